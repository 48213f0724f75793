//! Asking memory for what will soon be read.
//!
//! A key's state lies anywhere in memory, and waiting for it takes longer than stepping it. An operator knows all keys
//! of an epoch beforehand, so it asks for the next ones while it works on this one.
#![allow(unsafe_code)]

/// How many bytes memory gives at a time.
const LINE: usize = 64;

/// Of a larger value only the beginning is asked for.
const MOST: usize = 8 * LINE;

/// Asks the processor to bring a value nearer, and does not wait for it. It changes nothing but speed.
///
/// What the value points to is not asked for: that takes another call, once the value itself has arrived. For what is
/// worth asking for in a [`Pattern`](crate::Pattern), see its `prefetch`.
#[inline]
pub fn prefetch<T: ?Sized>(value: &T) {
    let first = std::ptr::from_ref(value).cast::<u8>();
    let size = size_of_val(value).min(MOST);
    for nth in 0..size.div_ceil(LINE) {
        line(first.wrapping_add(nth * LINE));
    }
    // It may begin in the middle of a line.
    line(first.wrapping_add(size.saturating_sub(1)));
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn line(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: every x86-64 has the instruction, and it faults on no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn line(_address: *const u8) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_may_be_asked_for() {
        prefetch(&());
        prefetch::<[u8]>(&[]);
        prefetch("text");
        prefetch(&vec![0u8; 3 * MOST][..]);
        prefetch(&[0u64; 100]);
    }
}
