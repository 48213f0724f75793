//! What operators remember of keys, by slot.

use crate::batch::Slot;

/// How many bytes are asked for at a time. Allocators serve so much on its own; of less, they put several into pages that
/// these do not fill.
const CHUNK_BYTES: usize = (1 << 20) - (1 << 12);

/// A value for each slot.
///
/// In chunks that never move: millions of keys come one by one, and a list that doubled would copy them all now and
/// then, in the middle of an epoch, and keep room for as many again.
pub(crate) struct Slots<S>(Vec<Box<[S]>>);

impl<S> Default for Slots<S> {
    fn default() -> Self {
        Slots(Vec::new())
    }
}

impl<S> Slots<S> {
    /// How many slots are made at a time.
    const CHUNK: usize = match size_of::<S>() {
        0 => CHUNK_BYTES,
        size if size > CHUNK_BYTES => 1,
        size => CHUNK_BYTES / size,
    };

    /// The value of a slot that was made.
    ///
    /// # Panics
    /// If it was not.
    #[inline]
    pub fn at(&self, slot: Slot) -> &S {
        &self.0[slot.index() / Self::CHUNK][slot.index() % Self::CHUNK]
    }

    /// The same, to change it.
    #[inline]
    pub fn at_mut(&mut self, slot: Slot) -> &mut S {
        &mut self.0[slot.index() / Self::CHUNK][slot.index() % Self::CHUNK]
    }

    /// The value of a slot, if it was made.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut S> {
        self.0.get_mut(slot.index() / Self::CHUNK)?.get_mut(slot.index() % Self::CHUNK)
    }
}

impl<S: Default> Slots<S> {
    /// Makes all slots up to this one.
    #[inline]
    pub fn make(&mut self, slot: Slot) {
        while self.0.len() <= slot.index() / Self::CHUNK {
            self.0.push(std::iter::repeat_with(S::default).take(Self::CHUNK).collect());
        }
    }

    /// The value of a slot, made if it was not.
    #[inline]
    pub fn made(&mut self, slot: Slot) -> &mut S {
        self.make(slot);
        self.at_mut(slot)
    }

    /// Lets go of what is remembered of some slots.
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
    fn a_slot_keeps_its_value_while_others_are_made_and_forgotten() {
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
