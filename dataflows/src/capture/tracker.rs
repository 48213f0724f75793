//! Which keys have changed since they were captured last, and which are still to be captured.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use timely::scheduling::Activator;

use super::stored::{Record, key_bytes};
use crate::batch::{Batch, Run, RunRef, Slot};
use crate::keys::Keys;
use crate::slots::Slots;
use crate::{Epoch, Event, EventTime, KeyHash, OwnedKey};

/// What an operator says of a key that it is to capture.
#[derive(Default)]
pub(crate) struct Saved {
    /// The state without what is not final; none if there is no such state.
    pub value: Option<Vec<u8>>,
    /// The time of the earliest event that is not final. Once it is, the state will be another.
    pub unsettled: Option<EventTime>,
}

/// A checkpoint that is being captured.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    pub epoch: Epoch,
    /// The watermark of the epoch.
    pub watermark: EventTime,
}

/// The keys of one operator on one worker.
pub(crate) struct Tracker<E: Event> {
    operator: Arc<str>,
    write_key: fn(KeyHash, &OwnedKey<E>) -> Vec<u8>,
    keys: Slots<Known>,
    /// Changed since the latest mark.
    touched: Vec<Slot>,
    /// Keys that had events that were not final when they were captured, by the time of the earliest.
    unsettled: BTreeMap<EventTime, Vec<Slot>>,
    mark: Option<Mark>,
    /// What the mark still wants, unless it was captured before it was touched.
    pending: Vec<Slot>,
    /// How many keys the mark wanted.
    wanted: usize,
    /// Keys that are no more, since the latest mark, and of which there are records: each hash and what names the key.
    removed: Vec<(KeyHash, Vec<u8>)>,
    /// Captured, and not taken.
    captured: BTreeMap<Epoch, Vec<Record>>,
    /// The latest mark of which all is captured.
    complete: Option<Epoch>,
    /// Wakes the operator that takes what is captured.
    wake: Option<Activator>,
}

/// What is known of a key.
#[derive(Clone, Copy, Default)]
struct Known {
    /// The newest run of the key that the operator has taken in.
    newest: Option<RunRef>,
    touched: bool,
    pending: bool,
    /// Whether there is a record of it.
    stored: bool,
    /// Whether the key is no more, and no other has come to its place: what is still wanted of it is nothing.
    gone: bool,
}

impl<E: Event> Tracker<E>
where
    OwnedKey<E>: Serialize,
{
    pub fn new(operator: Arc<str>) -> Self {
        Tracker {
            operator,
            write_key: |hash, key| key_bytes(hash, key),
            keys: Slots::default(),
            touched: Vec::new(),
            unsettled: BTreeMap::new(),
            mark: None,
            pending: Vec::new(),
            wanted: 0,
            removed: Vec::new(),
            captured: BTreeMap::new(),
            complete: None,
            wake: None,
        }
    }
}

impl<E: Event> Tracker<E> {
    fn known(&mut self, slot: Slot) -> &mut Known {
        self.keys.made(slot)
    }

    /// Names the operator that takes what is captured.
    pub fn woken_by(&mut self, activator: Activator) {
        self.wake = Some(activator);
    }

    /// A key came from a checkpoint.
    pub fn restored(&mut self, slot: Slot) {
        self.known(slot).stored = true;
    }

    /// Events that are not final came from a checkpoint.
    pub fn resumed<'a>(&mut self, batch: &Batch<E>, runs: impl Iterator<Item = (RunRef, &'a Run)>) {
        for (at, run) in runs {
            self.known(run.slot).newest = Some(at);
            let first = batch.entries[run.entries()].iter().map(|entry| entry.time).min();
            if let Some(first) = first {
                self.unsettled.entry(first).or_default().push(run.slot);
            }
        }
    }

    /// The key changes, and this is the run that changes it, if one does.
    pub fn touch(&mut self, slot: Slot, run: Option<RunRef>) {
        let key = self.known(slot);
        key.newest = run.or(key.newest);
        key.gone = false;
        if !std::mem::replace(&mut key.touched, true) {
            self.touched.push(slot);
        }
    }

    /// The key is no more, and what was wanted of it is captured: the next mark has its record removed, before it
    /// captures what has come to its place.
    pub fn removed(&mut self, slot: Slot, keys: &Keys<E>) {
        let key = self.known(slot);
        (key.newest, key.gone) = (None, true);
        if std::mem::replace(&mut key.stored, false) {
            let (hash, key) = keys.hashed(slot);
            self.removed.push((hash, (self.write_key)(hash, key)));
        }
    }

    /// Wants every key captured that has changed since the mark before, of which nothing may be wanted any more.
    pub fn mark(&mut self, mark: Mark) {
        debug_assert!(self.pending.is_empty());
        let later = self.unsettled.split_off(&mark.watermark.plus_ms(1));
        let settled = std::mem::replace(&mut self.unsettled, later).into_values().flatten();
        self.pending = std::mem::take(&mut self.touched);
        self.pending.extend(settled);
        // What lies side by side in memory is captured one after the other.
        self.pending.sort_unstable_by(|a, b| b.cmp(a));
        for slot in &self.pending {
            let key = self.keys.at_mut(*slot);
            (key.pending, key.touched) = (true, false);
        }
        self.wanted = self.pending.len();
        for (hash, key) in std::mem::take(&mut self.removed) {
            let operator = Arc::clone(&self.operator);
            self.give(mark.epoch, Record { operator, shard: hash.shard(), key, value: None });
        }
        self.mark = Some(mark);
        if let Some(operator) = &self.wake {
            operator.activate();
        }
    }

    /// The mark that is being captured.
    pub fn marked(&self) -> Option<Mark> {
        self.mark
    }

    /// How many keys the latest mark wanted in all.
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Captures the key if that is still wanted. To be called before it changes, and after the mark.
    pub fn before(
        &mut self,
        slot: Slot,
        keys: &Keys<E>,
        save: impl FnOnce(Option<RunRef>, EventTime) -> Saved,
    ) {
        let Some(mark) = self.mark else { return };
        let key = self.known(slot);
        if !std::mem::replace(&mut key.pending, false) || key.gone {
            return;
        }
        let Saved { value, unsettled } = save(key.newest, mark.watermark);
        let was_stored = std::mem::replace(&mut key.stored, value.is_some());
        if let Some(first) = unsettled {
            self.unsettled.entry(first).or_default().push(slot);
        }
        if value.is_some() || was_stored {
            let (hash, key) = keys.hashed(slot);
            let (operator, key) = (Arc::clone(&self.operator), (self.write_key)(hash, key));
            self.give(mark.epoch, Record { operator, shard: hash.shard(), key, value });
        }
    }

    /// A key that is perhaps still to be captured.
    pub fn next(&mut self) -> Option<Slot> {
        self.pending.pop()
    }

    /// Adds a record to a mark's.
    pub fn give(&mut self, epoch: Epoch, record: Record) {
        self.captured.entry(epoch).or_default().push(record);
    }

    /// All that the mark wanted is captured.
    pub fn finish(&mut self) {
        if let Some(mark) = self.mark.take() {
            self.complete = Some(mark.epoch);
        }
    }

    /// What was captured since the last call.
    pub fn take(&mut self) -> BTreeMap<Epoch, Vec<Record>> {
        std::mem::take(&mut self.captured)
    }

    /// The latest mark of which all is captured.
    pub fn complete(&self) -> Option<Epoch> {
        self.complete
    }
}
