//! What a scan knows of a key, captured and restored.

use std::borrow::Borrow;
use std::rc::Rc;

use differential_dataflow::Data;

use super::{Scanner, give};
use crate::batch::{Batch, RunRef, Slot};
use crate::capture::{Capture, Damage, Saved, Stored, decode, encode};
use crate::event::order;
use crate::keyed::{Logic, Selection};
use crate::rules::Rules;
use crate::{Epoch, Event, EventTime, OwnedKey};

impl<E: Event, R: Rules<E, D, State: Stored>, D: Data> Capture<E> for Scanner<E, R, D> {
    fn hold(&mut self, watermark: EventTime) {
        self.history.hold(watermark);
    }

    /// Answers that are given follow from the state.
    fn closes(&self, _: Epoch, _: EventTime, _: &mut Vec<Slot>) {}

    /// Back over the key's steps that are not final, newest first, and forward again.
    fn save(&mut self, slot: Slot, newest: Option<RunRef>, watermark: EventTime) -> Saved {
        let Scanner { rules, states, history, found, .. } = self;
        let state = states.made(slot);
        let mut steps = Vec::new();
        history.for_each(newest, |entry, batch, index| {
            let stepped = history.get(entry.batch).is_some_and(|(_, steps)| steps.undos[index].is_some());
            if batch.entries[index].time > watermark && stepped {
                steps.push((order(batch.event(index)), entry));
            }
        });
        steps.sort_unstable();
        for (_, entry) in steps.iter().rev() {
            let (batch, steps) = history.get_mut(entry.batch).expect("for_each named a live batch");
            let undo = steps.undos[entry.entry as usize].take().expect("only steps were collected");
            rules.undo(state, batch.event(entry.entry as usize), undo);
        }
        let saved = Saved {
            value: Some(encode(state)).filter(|value| *value != encode(&R::State::default())),
            unsettled: steps.first().map(|((time, _), _)| *time),
        };
        for (_, entry) in steps {
            let (batch, steps) = history.get_mut(entry.batch).expect("as before");
            steps.undos[entry.entry as usize] =
                Some(rules.step(state, batch.event(entry.entry as usize), found));
            // It is what was found before.
            found.clear();
        }
        saved
    }

    fn load(
        &mut self,
        slot: Slot,
        key: &OwnedKey<E>,
        watermark: EventTime,
        saved: &[u8],
    ) -> Result<(), Damage> {
        let state = decode(saved)?;
        self.rules.waiting(&state, key.borrow(), watermark, &mut self.found);
        give(&mut self.waiting, self.found.drain(..), Epoch(0), 1, &mut Vec::new());
        *self.states.made(slot) = state;
        Ok(())
    }

    fn resume(&mut self, _: Epoch, batch: Option<&Rc<Batch<E>>>, selection: &Selection<E>) {
        if let Some(batch) = batch {
            self.step(batch, selection, &mut Vec::new());
        }
    }
}
