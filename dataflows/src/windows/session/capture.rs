//! Capture and restore of a key's sessions.

use std::collections::BTreeMap;
use std::rc::Rc;

use differential_dataflow::Data;

use super::{Open, Sessions, Settled, summed};
use crate::batch::{Batch, RunRef, Slot};
use crate::capture::{Capture, Damage, Saved, Stored, decode, encode};
use crate::keyed::{Logic, Selection};
use crate::windows::{Aggregate, EmitPolicy, Render};
use crate::{Epoch, Event, EventTime, OwnedKey};

/// The stored state of a key: its sessions without un-final events, and the rows emitted and not final.
type SavedSessions<S, D> = (Vec<Settled<S>>, BTreeMap<EventTime, D>);

impl<E, A, D, F> Capture<E> for Sessions<E, A, D, F>
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
        keys.extend(self.due.iter().take_while(|(time, _)| *time <= watermark).map(|(_, slot)| *slot));
        if self.shows(epoch, watermark) {
            keys.extend(&self.changed);
        }
    }

    fn save(&mut self, slot: Slot, _: Option<RunRef>, watermark: EventTime) -> Saved {
        let Sessions { aggregate, keys, history, gap_ms, .. } = self;
        let key = keys.made(slot);
        let mut saved: SavedSessions<A::State, D> = (Vec::new(), key.shown.clone());
        let mut unsettled = None;
        for open in &key.open {
            let count = open.recent.partition_point(|&(time, _)| time <= watermark);
            let (settled, recent) = open.recent.split_at(count);
            unsettled = unsettled.or(recent.first().map(|&(time, _)| time));
            let open = Open { settled: open.settled.clone(), recent: settled.to_vec() };
            if open.settled.is_some() || count > 0 {
                let (_, state) = summed(aggregate, history, &open, *gap_ms);
                saved.0.push(Settled { first: open.first(), last: open.last(), state });
            }
        }
        let is_empty = saved.0.is_empty() && saved.1.is_empty();
        Saved { value: (!is_empty).then(|| encode(&saved)), unsettled }
    }

    fn load(&mut self, slot: Slot, _: &OwnedKey<E>, _: EventTime, saved: &[u8]) -> Result<(), Damage> {
        let (sessions, shown): SavedSessions<A::State, D> = decode(saved)?;
        self.load.windows(0, sessions.len());
        let emit = self.emit;
        let key = self.change(slot);
        key.open = sessions.into_iter().map(|s| Open { settled: Some(s), recent: Vec::new() }).collect();
        // Rows that nobody takes are not retracted.
        key.shown = if emit == EmitPolicy::Never { BTreeMap::new() } else { shown };
        self.schedule(slot);
        Ok(())
    }

    fn resume(&mut self, epoch: Epoch, batch: Option<&Rc<Batch<E>>>, selection: &Selection<E>) {
        self.refreshed = Some(epoch);
        if let Some(batch) = batch {
            self.step(batch, selection, &mut Vec::new());
        }
    }
}
