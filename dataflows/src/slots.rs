//! The state that operators keep per key, by slot.

use crate::batch::Slot;

/// The size of an allocation in bytes. Allocators serve requests of this size separately; they put several smaller ones
/// into pages that those do not fill.
const CHUNK_BYTES: usize = (1 << 20) - (1 << 12);

/// A value for each slot.
///
/// The values are stored in chunks that never move. Millions of keys arrive one by one; a vector that doubles its size
/// would sometimes copy all of them in the middle of an epoch, and would reserve memory for as many again.
pub(crate) struct Slots<S>(Vec<Box<[S]>>);

impl<S> Default for Slots<S> {
    fn default() -> Self {
        Slots(Vec::new())
    }
}

impl<S> Slots<S> {
    /// The number of slots in a chunk.
    const CHUNK: usize = match size_of::<S>() {
        0 => CHUNK_BYTES,
        size if size > CHUNK_BYTES => 1,
        size => CHUNK_BYTES / size,
    };

    /// Returns the value of a slot.
    ///
    /// # Panics
    /// Panics if the slot has not been created.
    #[inline]
    pub fn at(&self, slot: Slot) -> &S {
        &self.0[slot.index() / Self::CHUNK][slot.index() % Self::CHUNK]
    }

    /// Like [`at`](Slots::at), with mutable access.
    #[inline]
    pub fn at_mut(&mut self, slot: Slot) -> &mut S {
        &mut self.0[slot.index() / Self::CHUNK][slot.index() % Self::CHUNK]
    }

    /// Returns the value of a slot; `None` if the slot has not been created.
    pub fn get(&self, slot: Slot) -> Option<&S> {
        self.0.get(slot.index() / Self::CHUNK)?.get(slot.index() % Self::CHUNK)
    }

    /// Like [`get`](Slots::get), with mutable access.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut S> {
        self.0.get_mut(slot.index() / Self::CHUNK)?.get_mut(slot.index() % Self::CHUNK)
    }
}

impl<S: Default> Slots<S> {
    /// Creates all slots up to this one.
    #[inline]
    pub fn make(&mut self, slot: Slot) {
        while self.0.len() <= slot.index() / Self::CHUNK {
            self.0.push(std::iter::repeat_with(S::default).take(Self::CHUNK).collect());
        }
    }

    /// Returns the value of a slot, and creates the slot if necessary.
    #[inline]
    pub fn made(&mut self, slot: Slot) -> &mut S {
        self.make(slot);
        self.at_mut(slot)
    }

    /// Resets the values of some slots.
    pub fn forget(&mut self, slots: &[Slot]) {
        for &slot in slots {
            self.get_mut(slot).map(std::mem::take);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_keeps_its_value_while_others_change() {
        let mut slots: Slots<u64> = Slots::default();
        let far = Slot(5 * Slots::<u64>::CHUNK as u32 + 7);
        *slots.made(Slot(3)) = 30;
        *slots.made(far) = 70;
        assert_eq!((*slots.at(Slot(3)), *slots.at(Slot(4)), *slots.at(far)), (30, 0, 70));
        slots.forget(&[Slot(3), Slot(9_000_000)]);
        assert_eq!((*slots.at(Slot(3)), *slots.at(far)), (0, 70));
        assert_eq!(slots.get_mut(Slot(9_000_000)), None);
    }
}
