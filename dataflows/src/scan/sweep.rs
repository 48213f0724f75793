//! Sweeps of the states of all keys, a few in each epoch.

use crate::batch::Slot;
use crate::slots::Slots;

/// The number of keys that are swept in an epoch: it takes less than a millisecond.
const KEYS: usize = 1024;

/// The progress of sweeps.
#[derive(Default)]
pub(super) struct Sweep {
    /// The next slot.
    at: u32,
    /// The number of times that the end of the slots is to be reached.
    ends: u32,
}

impl Sweep {
    /// Starts a sweep of all slots. If one is in progress, the new one follows it.
    pub fn start(&mut self) {
        self.ends = if self.at == 0 { 1 } else { 2 };
    }

    /// Sweeps some more slots.
    pub fn advance<S>(&mut self, slots: &mut Slots<S>, sweep: impl Fn(&mut S)) {
        for _ in 0..KEYS {
            if self.ends == 0 {
                return;
            }
            match slots.get_mut(Slot(self.at)) {
                Some(state) => {
                    sweep(state);
                    self.at += 1;
                }
                None => (self.at, self.ends) = (0, self.ends - 1),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_started_during_another_reaches_every_slot() {
        let mut slots: Slots<u64> = Slots::default();
        slots.make(Slot(3 * KEYS as u32));
        let mut sweep = Sweep::default();
        sweep.start();
        sweep.advance(&mut slots, |state| *state = 1);
        sweep.start();
        while sweep.ends > 0 {
            sweep.advance(&mut slots, |state| *state = 2);
        }
        assert_eq!((0..=3 * KEYS as u32).find(|at| *slots.at(Slot(*at)) != 2), None);
        sweep.advance(&mut slots, |_| panic!("there is nothing to sweep"));
    }
}
