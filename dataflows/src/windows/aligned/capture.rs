//! Capture and restore of a key's tumbling or sliding windows.

use std::rc::Rc;

use differential_dataflow::Data;

use super::{Aligned, addition};
use crate::batch::{Batch, EntryRef, RunRef, Slot};
use crate::capture::{Capture, Damage, Saved, Stored, decode, encode};
use crate::keyed::{Logic, Selection};
use crate::windows::{Aggregate, Render};
use crate::{Epoch, Event, EventTime, OwnedKey};

/// A window as stored: its start, the number and the aggregate of its final events, and the row emitted last.
type SavedWindow<S, D> = (EventTime, u64, S, Option<D>);

impl<E, A, D, F> Capture<E> for Aligned<E, A, D, F>
where
    E: Event,
    A: Aggregate<E, State: Stored>,
    D: Data + Stored,
    F: Render<E, A::State, D>,
{
    fn hold(&mut self, watermark: EventTime) {
        self.history.hold(watermark);
    }

    fn closes(&self, epoch: Epoch, watermark: EventTime, keys: &mut Vec<Slot>) {
        let due = self.open.due.iter().take_while(|(end, _)| end.minus_ms(1) <= watermark);
        keys.extend(due.flat_map(|(_, slots)| slots));
        if self.emit.due(self.refreshed, epoch) {
            keys.extend(self.open.changed.iter().flatten().map(|(slot, _)| *slot));
        }
    }

    fn save(&mut self, slot: Slot, newest: Option<RunRef>, watermark: EventTime) -> Saved {
        let mut additions = Vec::new();
        let mut unsettled = None;
        self.history.for_each(newest, |entry, batch, index| {
            let time = batch.entries[index].time;
            additions.push((entry, time));
            if time > watermark {
                unsettled = Some(unsettled.map_or(time, |first: EventTime| first.min(time)));
            }
        });
        if unsettled.is_none() {
            additions.clear();
        }
        let mut saved: Vec<SavedWindow<A::State, D>> = Vec::new();
        for start in self.open.windows.made(slot).starts() {
            let window = self.settled(slot, start, &additions, watermark);
            if window.1 > 0 || window.3.is_some() {
                saved.push(window);
            }
        }
        saved.sort_by_key(|window| window.0);
        Saved { value: (!saved.is_empty()).then(|| encode(&saved)), unsettled }
    }

    fn load(&mut self, slot: Slot, _: &OwnedKey<E>, _: EventTime, saved: &[u8]) -> Result<(), Damage> {
        let windows: Vec<SavedWindow<A::State, D>> = decode(saved)?;
        for (start, events, state, shown) in windows {
            let window = self.open.change(slot, start);
            (window.events, window.state, window.shown) = (events, state, shown.map(Box::new));
        }
        Ok(())
    }

    fn resume(&mut self, epoch: Epoch, batch: Option<&Rc<Batch<E>>>, selection: &Selection<E>) {
        self.refreshed = Some(epoch);
        if let Some(batch) = batch {
            self.step(batch, selection, &mut Vec::new());
        }
    }
}

impl<E: Event, A: Aggregate<E>, D: Data, F: Render<E, A::State, D>> Aligned<E, A, D, F> {
    /// Returns a window of a key without its events above the watermark: undoes the key's additions, newest first,
    /// copies the state, and adds the events again. Only events at or below the watermark are added to the copy.
    fn settled(
        &mut self,
        slot: Slot,
        start: EventTime,
        additions: &[(EntryRef, EventTime)],
        watermark: EventTime,
    ) -> SavedWindow<A::State, D> {
        let Aligned { bounds, aggregate, open, history, .. } = self;
        let window = open.windows.at_mut(slot).get_mut(start).expect("the window is open");
        let mut undone = Vec::new();
        for &(entry, time) in additions {
            let Some((batch, undo)) = addition(history, *bounds, entry, window.start) else { continue };
            let Some(undo) = undo.take() else { continue };
            aggregate.undo(&mut window.state, batch.event(entry.entry as usize), undo);
            undone.push((entry, time));
        }
        let mut events = window.events - undone.len() as u64;
        let mut state = window.state.clone();
        for (entry, time) in undone.into_iter().rev() {
            let Some((batch, undo)) = addition(history, *bounds, entry, window.start) else { continue };
            let event = batch.event(entry.entry as usize);
            *undo = Some(aggregate.add(&mut window.state, event));
            if time <= watermark {
                aggregate.add(&mut state, event);
                events += 1;
            }
        }
        (window.start, events, state, window.shown.as_deref().cloned())
    }
}
