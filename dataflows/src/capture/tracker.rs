//! The keys of an operator that have changed since their last capture, and those that are pending for capture.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use timely::scheduling::Activator;

use super::stored::{Record, key_bytes};
use crate::batch::{Batch, Run, RunRef, Slot};
use crate::keys::Keys;
use crate::slots::Slots;
use crate::{Epoch, Event, EventTime, KeyHash, OwnedKey};

/// The captured state of a key.
#[derive(Default)]
pub(crate) struct Saved {
    /// The state without the effect of un-final events; `None` if there is no such state.
    pub value: Option<Vec<u8>>,
    /// The time of the earliest un-final event. The captured state changes when this event becomes final.
    pub unsettled: Option<EventTime>,
}

/// A request to capture state at the end of an epoch.
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
    keys: Slots<KeyState>,
    /// The keys that have changed since the latest mark.
    touched: Vec<Slot>,
    /// The keys that had un-final events when they were captured, by the time of the earliest such event.
    unsettled: BTreeMap<EventTime, Vec<Slot>>,
    /// The mark that is being captured.
    mark: Option<Mark>,
    /// The keys to capture for the mark. A key that changes before its turn is captured then, and skipped later.
    pending: Vec<Slot>,
    /// The number of keys to capture for the latest mark.
    wanted: usize,
    /// The keys with stored records that were removed since the latest mark, as hash and encoded key.
    removed: Vec<(KeyHash, Vec<u8>)>,
    /// The captured records that have not been taken.
    captured: BTreeMap<Epoch, Vec<Record>>,
    /// The epoch of the latest mark that is completely captured.
    complete: Option<Epoch>,
    /// Activates the operator that takes the captured records.
    wake: Option<Activator>,
}

/// The capture state of a key.
#[derive(Clone, Copy, Default)]
struct KeyState {
    /// The newest run of the key that the operator has processed.
    newest: Option<RunRef>,
    touched: bool,
    pending: bool,
    /// True if the checkpoint has a record of the key.
    stored: bool,
    /// True if the key was removed and its slot has no new key. A pending capture of the slot is then skipped.
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
    fn key_state(&mut self, slot: Slot) -> &mut KeyState {
        self.keys.made(slot)
    }

    /// Sets the activator of the operator that takes the captured records.
    pub fn woken_by(&mut self, activator: Activator) {
        self.wake = Some(activator);
    }

    /// Records that a key was restored from a checkpoint.
    pub fn restored(&mut self, slot: Slot) {
        self.key_state(slot).stored = true;
    }

    /// Records that the un-final events in these runs were restored from a checkpoint.
    pub fn resumed<'a>(&mut self, batch: &Batch<E>, runs: impl Iterator<Item = (RunRef, &'a Run)>) {
        for (at, run) in runs {
            self.key_state(run.slot).newest = Some(at);
            let first = batch.entries[run.entries()].iter().map(|entry| entry.time).min();
            if let Some(first) = first {
                self.unsettled.entry(first).or_default().push(run.slot);
            }
        }
    }

    /// Records that a key changes, and the run that changes it, if any.
    pub fn touch(&mut self, slot: Slot, run: Option<RunRef>) {
        let key = self.key_state(slot);
        key.newest = run.or(key.newest);
        key.gone = false;
        if !std::mem::replace(&mut key.touched, true) {
            self.touched.push(slot);
        }
    }

    /// Records that a key is removed. A pending capture of it must be done before. The next mark deletes the record of
    /// the key, before it captures a new key in the same slot.
    pub fn removed(&mut self, slot: Slot, keys: &Keys<E>) {
        let key = self.key_state(slot);
        (key.newest, key.gone) = (None, true);
        if std::mem::replace(&mut key.stored, false) {
            let (hash, key) = keys.hashed(slot);
            self.removed.push((hash, (self.write_key)(hash, key)));
        }
    }

    /// Starts the capture of every key that has changed, or whose events became final, since the previous mark. The
    /// previous mark must be completely captured.
    pub fn mark(&mut self, mark: Mark) {
        debug_assert!(self.pending.is_empty());
        let later = self.unsettled.split_off(&mark.watermark.plus_ms(1));
        let settled = std::mem::replace(&mut self.unsettled, later).into_values().flatten();
        self.pending = std::mem::take(&mut self.touched);
        self.pending.extend(settled);
        // In the order of memory. Slots are popped from the end.
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

    /// Returns the mark that is being captured, if any.
    pub fn marked(&self) -> Option<Mark> {
        self.mark
    }

    /// Returns the total number of keys to capture for the latest mark.
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Captures the key if it is pending. Call it after the mark, and before the key changes.
    pub fn before(
        &mut self,
        slot: Slot,
        keys: &Keys<E>,
        save: impl FnOnce(Option<RunRef>, EventTime) -> Saved,
    ) {
        let Some(mark) = self.mark else { return };
        let key = self.key_state(slot);
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

    /// Removes and returns a key that may still be pending; `None` if there are no more.
    pub fn next(&mut self) -> Option<Slot> {
        self.pending.pop()
    }

    /// Adds a record to those of the mark of this epoch.
    pub fn give(&mut self, epoch: Epoch, record: Record) {
        self.captured.entry(epoch).or_default().push(record);
    }

    /// Records that the mark is completely captured.
    pub fn finish(&mut self) {
        if let Some(mark) = self.mark.take() {
            self.complete = Some(mark.epoch);
        }
    }

    /// Removes and returns the records captured since the last call.
    pub fn take(&mut self) -> BTreeMap<Epoch, Vec<Record>> {
        std::mem::take(&mut self.captured)
    }

    /// Returns the epoch of the latest mark that is completely captured.
    pub fn complete(&self) -> Option<Epoch> {
        self.complete
    }
}
