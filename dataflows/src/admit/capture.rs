//! Capture and restore of the state of admission: un-final events by key, and accepted ids.
//!
//! Ids are stored as their changes between two checkpoints, by shard. Such a record is deleted when no event can repeat
//! any of its ids.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::{AsCollection, VecCollection};
use timely::ExchangeData;

use super::{Admission, Admitter, Refused, build};
use crate::batch::{Batch, Entry, Run, RunRef, Slot};
use crate::capture::{self, Captured, Captures, Damage, Drain, Mark, Record, Saved, Stored, Tracker};
use crate::control::ControlStream;
use crate::dedup::Acceptance;
use crate::event::order;
use crate::keyed::Keyed;
use crate::keys::{Keys, NEVER};
use crate::{Epoch, Event, EventTime, OwnedKey, Position, ShardId};

/// The stored state of a key: its last position in the order of evaluation, and its un-final events.
type Known<E> = ((EventTime, Position), Vec<E>);

/// The capture state of admission.
pub(super) struct Tracked<E: Event> {
    tracker: Tracker<E>,
    write: fn(&Known<E>) -> Vec<u8>,
    ids: Ids,
}

/// The records of accepted ids.
struct Ids {
    operator: Arc<str>,
    /// The latest time in each stored record.
    stored: BTreeMap<(Epoch, ShardId), EventTime>,
    /// The records of the mark that have not been emitted. `None` deletes a record.
    pending: Vec<(Epoch, ShardId, Option<Vec<Acceptance>>)>,
}

impl Ids {
    fn next(&mut self) -> Option<Record> {
        let (epoch, shard, changes) = self.pending.pop()?;
        let value = changes.map(|mut changes| {
            // They are in the order of slots, which depends on the worker. The sort is stable: changes of one id keep
            // their order.
            changes.sort_by_key(Acceptance::id);
            capture::encode(&changes)
        });
        Some(Record {
            operator: Arc::clone(&self.operator),
            shard,
            key: epoch.0.to_be_bytes().to_vec(),
            value,
        })
    }

    /// Decodes the changes of a record, in order.
    fn restore(&mut self, record: &Record) -> Result<Vec<Acceptance>, Damage> {
        let Some(value) = &record.value else { return Ok(Vec::new()) };
        let epoch =
            <[u8; 8]>::try_from(&*record.key).map_err(|_| Damage::Impossible("the key is not an epoch"))?;
        let changes: Vec<Acceptance> = capture::decode(value)?;
        let epoch = Epoch(u64::from_be_bytes(epoch));
        self.stored.extend(latest(&changes).map(|latest| ((epoch, record.shard), latest)));
        Ok(changes)
    }
}

fn latest(changes: &[Acceptance]) -> Option<EventTime> {
    changes.iter().map(|change| change.time).max()
}

/// Returns the name under which the accepted ids of the admission with this name are captured.
pub fn ids_of(admission: &str) -> String {
    format!("{admission}: ids")
}

impl<'scope> Captures<'scope> {
    /// Like [`Admit::admit`](crate::Admit::admit). The state of admission is captured under `name`, accepted ids under
    /// the name that [`ids_of`] returns for it.
    pub fn admit<E>(
        &self,
        name: &str,
        events: VecCollection<'scope, Epoch, E>,
        control: ControlStream<'scope>,
        admission: Admission,
    ) -> (Captured<'scope, E>, VecCollection<'scope, Epoch, Refused<E>>)
    where
        E: Event<Key: ToOwned<Owned: Stored>> + ExchangeData,
    {
        let keys = Rc::new(RefCell::new(Keys::new()));
        let mut admitter = Admitter::new(admission, Rc::clone(&keys));
        let mut resumed = None;
        if let Some(mut register) = self.register() {
            let (operator, records) = register.enter(name);
            let mut tracker = Tracker::new(operator);
            let (operator, mut accepted) = register.enter(&ids_of(name));
            let mut ids = Ids { operator, stored: BTreeMap::new(), pending: Vec::new() };
            if let Some((epoch, watermark)) = register.from() {
                admitter.watermark = watermark;
                let mut events = Vec::new();
                register.load(records, &mut keys.borrow_mut(), |slot, key: &OwnedKey<E>, saved| {
                    tracker.restored(slot);
                    let (last, of_key): Known<E> = capture::decode(saved)?;
                    if of_key.iter().any(|event| event.key().to_owned() != *key) {
                        return Err(Damage::Impossible("the value has events of another key"));
                    }
                    events.push((slot, last, of_key));
                    Ok(())
                });
                accepted.sort_unstable_by(|a, b| a.key.cmp(&b.key));
                for record in accepted {
                    match ids.restore(&record) {
                        Ok(changes) => changes.into_iter().for_each(|change| admitter.dedup.repeat(change)),
                        Err(damage) => register.damaged(&record, damage),
                    }
                }
                resumed = admitter.resume(epoch, events);
                if let Some(batch) = &resumed {
                    tracker.resumed(batch, batch.numbered_runs());
                }
            }
            admitter.dedup.watch();
            admitter.capture = Some(Tracked { tracker, write: |known| capture::encode(known), ids });
        }
        let admitter = Rc::new(RefCell::new(admitter));
        if let Some(mut register) = self.register() {
            register.add(capture::build(name, control.clone(), Rc::clone(&admitter)));
        }
        let (batches, refused) = build(events.inner, control.clone(), admitter);
        let restored = self.register().and_then(|register| register.from());
        let keyed = Keyed::new(batches, control, keys, restored);
        (Captured::new(keyed, self.clone(), resumed), refused.as_collection())
    }
}

impl<E: Event> Admitter<E> {
    /// Restores admitted un-final events, by key. Returns their batch; `None` if there are none.
    fn resume(
        &mut self,
        epoch: Epoch,
        mut by_key: Vec<(Slot, (EventTime, Position), Vec<E>)>,
    ) -> Option<Rc<Batch<E>>> {
        by_key.sort_unstable_by_key(|(slot, ..)| *slot);
        let keys = Rc::clone(&self.keys);
        let mut keys = keys.borrow_mut();
        let (mut entries, mut runs, mut container) = (Vec::new(), Vec::new(), Vec::new());
        let mut max_time = EventTime::MIN;
        for (slot, last, mut events) in by_key {
            let info = keys.info_mut(slot);
            info.last = last;
            if let Some(expiry) = &mut self.expiry {
                info.watched = true;
                expiry.watch(slot, last.0);
            }
            let start = entries.len() as u32;
            events.sort_by_key(order);
            for event in events {
                let time = event.time();
                max_time = max_time.max(time);
                entries.push(Entry { time, container: 0, index: container.len() as u32, retracts: None });
                container.push((event, epoch, 1));
            }
            let end = entries.len() as u32;
            if end > start {
                keys.info_mut(slot).run = Some(RunRef::new(self.next_batch, runs.len()));
                runs.push(Run { slot, start, end, in_order: true, newest: last.0, previous: None });
            }
        }
        if entries.is_empty() {
            return None;
        }
        let batch = Rc::new(Batch {
            number: self.next_batch,
            epoch,
            max_time,
            entries,
            targets: Vec::new(),
            runs,
            expired: Vec::new(),
            containers: vec![container],
        });
        self.next_batch += 1;
        self.history.push(Rc::clone(&batch), ());
        Some(batch)
    }

    /// Requests capture of the state at the end of `epoch`, which has this watermark.
    pub(super) fn mark(&mut self, epoch: Epoch, watermark: EventTime) {
        if self.capture.is_none() {
            return;
        }
        // Only one mark is captured at a time: two would need two copies of the state.
        self.drain(usize::MAX);
        self.adopt();
        // Keys expire with the next batch, which reports them to the other operators.
        self.advance(watermark);
        let Admitter { capture, dedup, history, watermark, .. } = self;
        let Some(Tracked { tracker, ids, .. }) = capture else { return };
        history.hold(*watermark);
        ids.pending.extend(
            ids.stored
                .extract_if(.., |_, latest| !dedup.matters(*latest, *watermark))
                .map(|((epoch, shard), _)| (epoch, shard, None)),
        );
        for (shard, changes) in dedup.take_changes() {
            ids.stored.extend(latest(&changes).map(|latest| ((epoch, shard), latest)));
            ids.pending.push((epoch, shard, Some(changes)));
        }
        tracker.mark(Mark { epoch, watermark: *watermark });
    }

    /// Captures the keys that are about to change and are still pending.
    pub(super) fn before(&mut self, keys: &Keys<E>) {
        if self.capture.as_ref().is_some_and(|capture| capture.tracker.marked().is_some()) {
            let slots = std::mem::take(&mut self.slots);
            slots.chunk_by(|a, b| a.0 == b.0).for_each(|same| self.save(same[0].0, keys));
            self.slots = slots;
        }
    }

    /// Captures a key that is being removed, and marks it as removed.
    pub(super) fn removed(&mut self, slot: Slot, keys: &Keys<E>) {
        self.save(slot, keys);
        if let Some(Tracked { tracker, .. }) = &mut self.capture {
            tracker.removed(slot, keys);
        }
    }

    /// Marks a key as changed that no event has changed.
    pub(super) fn touch(&mut self, slot: Slot) {
        if let Some(Tracked { tracker, .. }) = &mut self.capture {
            tracker.touch(slot, None);
        }
    }

    /// Marks the keys of a batch as changed.
    pub(super) fn after(&mut self, batch: &Batch<E>) {
        if let Some(Tracked { tracker, .. }) = &mut self.capture {
            batch.numbered_runs().for_each(|(at, run)| tracker.touch(run.slot, Some(at)));
        }
    }

    fn save(&mut self, slot: Slot, keys: &Keys<E>) {
        let Admitter { capture, history, retracted, expiry, .. } = self;
        let Some(Tracked { tracker, write, .. }) = capture else { return };
        tracker.before(slot, keys, |newest, watermark| {
            let mut events = Vec::new();
            history.for_each_since(newest, watermark, |entry, batch, index| {
                if batch.entries[index].time > watermark && !retracted.contains(&entry) {
                    events.push(batch.event(index).clone());
                }
            });
            events.sort_by_key(order);
            let unsettled = events.first().map(Event::time);
            // Without events, the last position of the key is needed only for its expiry.
            let wanted = !events.is_empty() || (expiry.is_some() && keys.last(slot) != NEVER);
            Saved { value: wanted.then(|| write(&(keys.last(slot), events))), unsettled }
        });
    }
}

impl<E: Event> Drain<E> for Admitter<E> {
    fn tracker(&mut self) -> &mut Tracker<E> {
        &mut self.capture.as_mut().expect("only an operator with capture is drained").tracker
    }

    fn drain(&mut self, count: usize) {
        let keys = Rc::clone(&self.keys);
        let keys = keys.borrow();
        for _ in 0..count {
            let Some(Tracked { tracker, ids, .. }) = &mut self.capture else { return };
            let Some(mark) = tracker.marked() else { return };
            if let Some(slot) = tracker.next() {
                self.save(slot, &keys);
            } else if let Some(record) = ids.next() {
                tracker.give(mark.epoch, record);
                // It has all ids of the shard, which is enough for one slice, unless everything must be captured now.
                if count < usize::MAX {
                    return;
                }
            } else {
                tracker.finish();
                self.history.hold(EventTime::MAX);
            }
        }
    }
}
