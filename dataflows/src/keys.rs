//! Keys by slot. Each key is hashed when it is decoded, compared once per epoch, and represented by its slot
//! afterwards.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;

use crate::batch::{RunRef, Slot};
use crate::prefetch::prefetch;
use crate::slots::Slots;
use crate::{Epoch, Event, EventTime, KeyHash, Load, Offset, OwnedKey, Partition, Position};

/// The number of keys that are looked up together.
const LOOKUP_COUNT: usize = 32;

/// A hasher for values that are already hashes.
#[derive(Default)]
pub(crate) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = self.0.rotate_left(32) ^ u64::from_le_bytes(word);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}

pub(crate) type HashedMap<K, V> = HashMap<K, V, BuildHasherDefault<Identity>>;

/// The data that admission keeps per key.
pub(crate) struct KeyInfo<K> {
    pub key: K,
    hash: KeyHash,
    /// The greatest position in the order of evaluation of any admitted event, or [`NEVER`].
    pub last: (EventTime, Position),
    /// The newest run of the key.
    pub run: Option<RunRef>,
    /// True if the expiry of the key is scheduled.
    pub watched: bool,
    /// Another key with the same hash.
    same_hash: OptionalSlot,
}

/// The message of a panic for a slot without a key.
const SLOT_HAS_KEY: &str = "a slot has a key";

/// A position before all events: no event of this time is ever admitted.
pub(crate) const NEVER: (EventTime, Position) =
    (EventTime::MIN, Position { partition: Partition(0), offset: Offset(0) });

/// An optional slot, in the memory of a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
struct OptionalSlot(Slot);

impl OptionalSlot {
    const NONE: Slot = Slot(u32::MAX);

    fn new(slot: Option<Slot>) -> OptionalSlot {
        OptionalSlot(slot.unwrap_or(OptionalSlot::NONE))
    }

    fn get(self) -> Option<Slot> {
        (self.0 != OptionalSlot::NONE).then_some(self.0)
    }
}

/// The keys of one worker.
pub(crate) struct Keys<E: Event> {
    slots: HashedMap<u64, Slot>,
    infos: Slots<Option<KeyInfo<OwnedKey<E>>>>,
    /// The number of slots created.
    slots_in_all: u32,
    /// Slots of removed keys that no operator refers to.
    free: Vec<Slot>,
    /// The longest time that an operator needs a key after its last event, in milliseconds.
    reach_ms: i64,
    /// The time to live of a key after its last event, in milliseconds; `None` if keys are kept forever.
    ttl_ms: Option<i64>,
    load: Load,
    /// Keys that an operator has added, of which admission has to know.
    adopted: Vec<Slot>,
}

impl<E: Event> Keys<E> {
    pub fn new() -> Self {
        Keys {
            slots: HashMap::default(),
            infos: Slots::default(),
            slots_in_all: 0,
            free: Vec::new(),
            reach_ms: 0,
            ttl_ms: None,
            load: Load::default(),
            adopted: Vec::new(),
        }
    }

    /// Returns the counts of these keys and of the windows of their operators.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Returns the key of a slot.
    pub fn key(&self, slot: Slot) -> &OwnedKey<E> {
        &self.info(slot).key
    }

    /// Returns the key of a slot, and its hash.
    pub fn hashed(&self, slot: Slot) -> (KeyHash, &OwnedKey<E>) {
        let info = self.info(slot);
        (info.hash, &info.key)
    }

    /// Returns the greatest position in the order of evaluation of any admitted event of a key, or [`NEVER`].
    pub fn last(&self, slot: Slot) -> (EventTime, Position) {
        self.info(slot).last
    }

    fn info(&self, slot: Slot) -> &KeyInfo<OwnedKey<E>> {
        self.infos.at(slot).as_ref().expect(SLOT_HAS_KEY)
    }

    /// Returns the data of the key of a slot.
    pub fn info_mut(&mut self, slot: Slot) -> &mut KeyInfo<OwnedKey<E>> {
        self.infos.at_mut(slot).as_mut().expect(SLOT_HAS_KEY)
    }

    /// Calls `each` with the slot of the key of each update, in order.
    ///
    /// Looks up several keys at a time and step by step, so that their memory accesses overlap.
    pub fn slots<'a>(
        &mut self,
        updates: &'a [(E, Epoch, isize)],
        mut each: impl FnMut(Slot, &'a (E, Epoch, isize)),
    ) {
        for some in updates.chunks(LOOKUP_COUNT) {
            let mut candidates = [None; LOOKUP_COUNT];
            for (candidate, (event, ..)) in candidates.iter_mut().zip(some) {
                *candidate = self.slots.get(&event.key_hash().0).copied();
            }
            for (candidate, (event, ..)) in candidates.iter().zip(some) {
                event.prefetch();
                if let Some(slot) = candidate {
                    prefetch(self.infos.at(*slot));
                }
            }
            for (candidate, (event, ..)) in candidates.iter().zip(some) {
                black_box(std::ptr::from_ref(event.key()));
                if let Some(slot) = candidate {
                    prefetch(self.info(*slot).key.borrow());
                }
            }
            for (candidate, update) in candidates.into_iter().zip(some) {
                let event = &update.0;
                let slot = candidate.filter(|slot| self.info(*slot).key.borrow() == event.key());
                each(slot.unwrap_or_else(|| self.slot(event.key_hash(), event)), update);
            }
        }
    }

    /// Prefetches the data of a key.
    pub fn prefetch(&self, slot: Slot) {
        prefetch(self.infos.at(slot));
    }

    /// Returns the slot of the key of an event. A new key gets a new slot.
    pub fn slot(&mut self, hash: KeyHash, event: &E) -> Slot {
        self.slot_of(hash, event.key())
    }

    /// Returns the slot of a key; `None` if the key is unknown.
    pub fn find(&self, hash: KeyHash, key: &E::Key) -> Option<Slot> {
        let mut candidate = self.slots.get(&hash.0).copied();
        while let Some(slot) = candidate {
            let info = self.info(slot);
            if info.key.borrow() == key {
                return Some(slot);
            }
            candidate = info.same_hash.get();
        }
        None
    }

    /// Returns the slot of a key. A new key gets a new slot.
    pub fn slot_of(&mut self, hash: KeyHash, key: &E::Key) -> Slot {
        if let Some(slot) = self.find(hash, key) {
            return slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            let next = Slot(self.slots_in_all);
            assert_ne!(next, OptionalSlot::NONE, "a worker has fewer than 2^32 keys");
            self.slots_in_all += 1;
            next
        });
        let same_hash = OptionalSlot::new(self.slots.insert(hash.0, slot));
        let info = KeyInfo { key: key.to_owned(), hash, last: NEVER, run: None, watched: false, same_hash };
        *self.infos.made(slot) = Some(info);
        self.load.keys_changed(0, 1);
        slot
    }

    /// Returns the slot of a key that had its last event at `last`, which is added unless it is known; `None` if it has
    /// expired at this watermark.
    pub fn adopt(
        &mut self,
        hash: KeyHash,
        key: &E::Key,
        last: EventTime,
        watermark: EventTime,
    ) -> Option<Slot> {
        if let Some(slot) = self.find(hash, key).filter(|slot| self.last(*slot) != NEVER) {
            return Some(slot);
        }
        if self.ttl_ms.is_some_and(|ttl_ms| last.plus_ms(ttl_ms.max(self.reach_ms)) <= watermark) {
            return None;
        }
        let slot = self.slot_of(hash, key);
        self.info_mut(slot).last = (last, NEVER.1);
        self.adopted.push(slot);
        Some(slot)
    }

    /// Returns the number of slots that were ever in use.
    pub fn slot_count(&self) -> u32 {
        self.slots_in_all
    }

    /// Adds the keys in the slots from `first` on to those that admission has to know, with a last event at `last`.
    pub fn adopt_from(&mut self, first: u32, last: EventTime) {
        // Without a time to live, admission knows only keys with un-final events.
        let first = if self.ttl_ms.is_some() { first } else { self.slots_in_all };
        for slot in (first..self.slots_in_all).map(Slot) {
            self.info_mut(slot).last = (last, NEVER.1);
            self.adopted.push(slot);
        }
    }

    /// Removes and returns the keys that were added by [`adopt`](Keys::adopt) since the last call.
    pub fn take_adopted(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.adopted)
    }

    /// Removes a key. Its slot remains valid until it is [freed](Keys::free), because operators may still refer to it.
    pub fn remove(&mut self, slot: Slot) {
        let KeyInfo { hash, same_hash, .. } = *self.info(slot);
        match self.slots.get(&hash.0).copied() {
            Some(first) if first == slot => {
                match same_hash.get() {
                    Some(other) => self.slots.insert(hash.0, other),
                    None => self.slots.remove(&hash.0),
                };
            }
            mut before => {
                while let Some(other) = before {
                    let info = self.info_mut(other);
                    if info.same_hash == OptionalSlot(slot) {
                        info.same_hash = same_hash;
                    }
                    before = info.same_hash.get();
                }
            }
        }
        self.load.keys_changed(1, 0);
    }

    /// Makes the slots of removed keys available to new keys.
    pub fn free(&mut self, slots: Vec<Slot>) {
        self.free.extend(slots);
    }

    /// Requires that keys are kept for at least `reach_ms` milliseconds after their last event.
    pub fn keep_for(&mut self, reach_ms: i64) {
        self.reach_ms = self.reach_ms.max(reach_ms);
    }

    /// Sets the time to live of a key after its last event, in milliseconds; `None` keeps every key forever.
    pub fn expire_after(&mut self, ttl_ms: Option<i64>) {
        self.ttl_ms = ttl_ms;
    }

    /// Returns true unless the key of this slot has expired at this watermark, or never had an admitted event. The slot
    /// of an expired key is freed later.
    pub fn is_live(&self, slot: Slot, watermark: EventTime) -> bool {
        let last = self.last(slot);
        self.ttl_ms
            .is_none_or(|ttl_ms| last != NEVER && last.0.plus_ms(ttl_ms.max(self.reach_ms)) > watermark)
    }

    /// Returns the time for which keys must be kept: see [`keep_for`](Keys::keep_for).
    pub fn reach_ms(&self) -> i64 {
        self.reach_ms
    }
}
