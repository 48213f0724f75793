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

    /// Goes back over the key's steps that are not final, on a copy.
    fn save(&mut self, slot: Slot, newest: Option<RunRef>, watermark: EventTime) -> Saved {
        let Scanner { rules, states, history, .. } = self;
        let mut state = states.made(slot).clone();
        let mut steps = Vec::new();
        history.for_each(newest, |entry, batch, index| {
            let undo = history.get(entry.batch).and_then(|(_, steps)| steps.undos[index].as_ref());
            if let Some(undo) = undo.filter(|_| batch.entries[index].time > watermark) {
                steps.push((order(batch.event(index)), entry, undo));
            }
        });
        steps.sort_unstable_by_key(|&(order, entry, _)| (order, entry));
        for &(_, entry, undo) in steps.iter().rev() {
            let (batch, _) = history.get(entry.batch).expect("for_each named a live batch");
            rules.undo(&mut state, batch.event(entry.entry as usize), undo.clone());
        }
        Saved {
            value: Some(encode(&state)).filter(|value| *value != encode(&R::State::default())),
            unsettled: steps.first().map(|((time, _), ..)| *time),
        }
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
