//! Prefetching memory that will soon be read.
//!
//! The state of a key can be anywhere in memory, and a cache miss takes longer than the step itself. All keys of an
//! epoch are known in advance, so an operator prefetches the next keys while it processes the current one.
#![allow(unsafe_code)]

/// The size of a cache line in bytes.
const LINE: usize = 64;

/// The maximum number of bytes prefetched of a value.
const MAX_BYTES: usize = 8 * LINE;

/// Prefetches a value into the processor's cache, without waiting for it. Affects only speed.
///
/// Memory that the value points to is not prefetched. That requires another call, once the value itself is in the
/// cache. See `prefetch` of [`Pattern`](crate::Pattern) for what a pattern should prefetch.
#[inline]
pub fn prefetch<T: ?Sized>(value: &T) {
    let first = std::ptr::from_ref(value).cast::<u8>();
    let size = size_of_val(value).min(MAX_BYTES);
    for nth in 0..size.div_ceil(LINE) {
        line(first.wrapping_add(nth * LINE));
    }
    // The value may start in the middle of a cache line.
    line(first.wrapping_add(size.saturating_sub(1)));
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn line(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: every x86-64 processor has the instruction, and it does not fault on any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn line(_address: *const u8) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_value_can_be_prefetched() {
        prefetch(&());
        prefetch::<[u8]>(&[]);
        prefetch("text");
        prefetch(&vec![0u8; 3 * MAX_BYTES][..]);
        prefetch(&[0u64; 100]);
    }
}
