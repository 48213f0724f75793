//! What a scan knows of a key, captured and restored.

use std::borrow::Borrow;
use std::rc::Rc;

use differential_dataflow::Data;

use super::{Scanner, Walked};
use crate::batch::{Batch, RunRef, Slot};
use crate::capture::{Capture, Damage, Saved, Stored, decode, encode};
use crate::keyed::{Logic, Selection};
use crate::rules::{Found, Rules};
use crate::{Epoch, Event, EventTime, OwnedKey, Position};

impl<E: Event, R: Rules<E, D, State: Stored>, D: Data> Capture<E> for Scanner<E, R, D> {
    fn hold(&mut self, watermark: EventTime) {
        self.history.hold(watermark);
    }

    /// Answers that are given follow from the state.
    fn closes(&self, _: Epoch, _: EventTime, _: &mut Vec<Slot>) {}

    fn save(&mut self, slot: Slot, newest: Option<RunRef>, watermark: EventTime) -> Saved {
        slot.of(&mut self.states);
        self.go_back(slot, newest, (watermark.plus_ms(1), Position::FIRST));
        let Scanner { rules, states, history, walk, found, .. } = self;
        let state = &mut states[slot.index()];
        let saved = Saved {
            value: Some(encode(state)).filter(|value| *value != encode(&R::State::default())),
            unsettled: walk.first().map(|first| first.order.0),
        };
        // Forward again: what is found is what was found before.
        for Walked { entry, .. } in walk.drain(..) {
            let (batch, _) = history.get(entry.batch).expect("go_back named a live batch");
            let undo = rules.step(state, batch.event(entry.entry as usize), found);
            found.clear();
            let steps = history.log_mut(entry.batch).expect("as before");
            steps.undos[entry.entry as usize] = Some(undo);
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
        for Found { answer, due, diff } in self.found.drain(..) {
            self.waiting.entry(due.unwrap_or(watermark)).or_default().push((answer, diff));
        }
        *slot.of(&mut self.states) = state;
        Ok(())
    }

    fn resume(&mut self, _: Epoch, batch: Option<&Rc<Batch<E>>>, selection: &Selection<E>) {
        if let Some(batch) = batch {
            self.step(batch, selection, &mut Vec::new());
        }
    }
}
