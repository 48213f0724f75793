//! Capture and restore of a key's scan state.

use std::borrow::Borrow;
use std::rc::Rc;

use differential_dataflow::Data;

use super::enter::Placed;
use super::{Scanner, give};
use crate::batch::{Batch, RunRef, Slot};
use crate::capture::{Capture, Damage, Saved, Stored, decode, encode_unless_default};
use crate::event::order;
use crate::keyed::{Logic, Selection};
use crate::rules::Rules;
use crate::{Epoch, Event, EventTime, OwnedKey};

/// Removes the state of the rules with these numbers from `saved`, the captured state of a key. Returns the rest;
/// `None` if no state is left. The number of a rule is the count of rules after it.
///
/// # Errors
/// Fails if `saved` cannot be decoded as the state of such rules.
pub fn forget_rules<E, D, R>(rules: &R, numbers: &[u32], saved: &[u8]) -> Result<Option<Vec<u8>>, Damage>
where
    E: Event,
    R: Rules<E, D, State: Stored>,
{
    let mut state = decode(saved)?;
    let kept = numbers.iter().fold(rules.all(), |live, &number| live.without(number));
    rules.restore(kept, &mut state, R::State::default());
    Ok(encode_unless_default(&state))
}

impl<E: Event, R: Rules<E, D, State: Stored>, D: Data> Capture<E> for Scanner<E, R, D> {
    fn hold(&mut self, watermark: EventTime) {
        self.history.hold(watermark);
    }

    fn begin_restore(&mut self, epoch: Epoch) {
        self.begin(epoch.next());
    }

    /// Returns the keys for which rules enter. The results emitted follow from the state.
    fn closes(&self, _: Epoch, _: EventTime, keys: &mut Vec<Slot>) {
        keys.extend(self.entering.iter().flat_map(Placed::slots));
    }

    /// Undoes the key's un-final steps on a copy of its state.
    fn save(&mut self, slot: Slot, newest: Option<RunRef>, watermark: EventTime) -> Saved {
        let Scanner { rules, states, history, .. } = self;
        let mut state = states.made(slot).clone();
        let mut steps = Vec::new();
        history.for_each_since(newest, watermark, |entry, batch, index| {
            let undo = history.get(entry.batch).and_then(|(_, steps)| steps.undos.copy(index));
            if let Some(undo) = undo.filter(|_| batch.entries[index].time > watermark) {
                steps.push((order(batch.event(index)), entry, undo));
            }
        });
        steps.sort_unstable_by_key(|&(order, entry, _)| (order, entry));
        let unsettled = steps.first().map(|((time, _), ..)| *time);
        for (_, entry, undo) in steps.into_iter().rev() {
            let (batch, _) = history.get(entry.batch).expect("for_each named a live batch");
            rules.undo(&mut state, batch.event(entry.entry as usize), undo);
        }
        Saved { value: encode_unless_default(&state), unsettled }
    }

    fn load(
        &mut self,
        slot: Slot,
        key: &OwnedKey<E>,
        watermark: EventTime,
        saved: &[u8],
    ) -> Result<(), Damage> {
        let state = self.rules.adopt(decode(saved)?)?;
        self.rules.waiting(&state, key.borrow(), watermark, &mut self.found);
        give(&self.rules, &mut self.waiting, self.found.drain(..), Epoch(0), 1, &mut Vec::new());
        *self.states.made(slot) = state;
        Ok(())
    }

    fn resume(&mut self, _: Epoch, batch: Option<&Rc<Batch<E>>>, selection: &Selection<E>) {
        if let Some(batch) = batch {
            self.step(batch, selection, &mut Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patterns::Frequency;
    use crate::testing::Line;
    use crate::{Emission, Rule};

    #[test]
    fn rules_are_forgotten_one_by_one_and_empty_state_is_not_stored() {
        let rule = |count| Rule::new(Frequency::at_least(count, 10), Emission::Final, |_: &Line, _| ());
        let rules = (rule(2), (rule(3), ()));
        let mut state = Default::default();
        let line = Line::from(("ann", 10, 0, "a"));
        Rules::<Line, ()>::step(&rules, &mut state, &line, &mut None, &mut Vec::new());
        let saved = encode_unless_default(&state).expect("the state has an event");
        let forget = |numbers: &[u32]| forget_rules::<Line, (), _>(&rules, numbers, &saved).expect("whole");
        assert_eq!(forget(&[]), Some(saved.clone()));
        let (first, second) = (forget(&[1]).expect("the other's"), forget(&[0]).expect("the other's"));
        assert!(first != saved && second != saved && first != second);
        assert_eq!(forget(&[0, 1]), None);
        assert!(forget_rules::<Line, (), _>(&rules, &[0], &saved[1..]).is_err());
    }
}
