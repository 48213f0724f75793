//! Keys by slot: each key is hashed at decode, compared once per epoch, and a small number from then on.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;

use crate::batch::{RunRef, Slot};
use crate::prefetch::prefetch;
use crate::slots::Slots;
use crate::{Epoch, Event, EventTime, KeyHash, Load, Offset, OwnedKey, Partition, Position};

/// How many keys are looked up side by side.
const FETCHED: usize = 32;

/// Takes a value that is a hash already.
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

/// What admission knows of a key.
pub(crate) struct KeyInfo<K> {
    pub key: K,
    hash: KeyHash,
    /// The greatest place in the order of evaluation that was ever admitted, or [`NEVER`].
    pub last: (EventTime, Position),
    /// The key's newest run.
    pub run: Option<RunRef>,
    /// Whether somebody sees to it that it is forgotten in time.
    pub watched: bool,
    /// Another key with the same hash.
    same_hash: Other,
}

/// Whoever has a slot was given it with a key.
const KNOWN: &str = "a slot has a key";

/// Before all events: none at this time is ever admitted.
pub(crate) const NEVER: (EventTime, Position) =
    (EventTime::MIN, Position { partition: Partition(0), offset: Offset(0) });

/// A slot, or none in as little room.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Other(Slot);

impl Other {
    const NONE: Slot = Slot(u32::MAX);

    fn new(slot: Option<Slot>) -> Other {
        Other(slot.unwrap_or(Other::NONE))
    }

    fn get(self) -> Option<Slot> {
        (self.0 != Other::NONE).then_some(self.0)
    }
}

/// The keys of one worker.
pub(crate) struct Keys<E: Event> {
    slots: HashedMap<u64, Slot>,
    infos: Slots<Option<KeyInfo<OwnedKey<E>>>>,
    /// How many slots there have been.
    slots_in_all: u32,
    /// Slots of keys that are no more, which operators have let go of.
    free: Vec<Slot>,
    /// The longest time for which an operator must keep a key after its last event, in milliseconds.
    reach_ms: i64,
    load: Load,
}

impl<E: Event> Keys<E> {
    pub fn new() -> Self {
        Keys {
            slots: HashMap::default(),
            infos: Slots::default(),
            slots_in_all: 0,
            free: Vec::new(),
            reach_ms: 0,
            load: Load::default(),
        }
    }

    /// What is held, by these keys and by those who count theirs there.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// The key of a slot.
    pub fn key(&self, slot: Slot) -> &OwnedKey<E> {
        &self.info(slot).key
    }

    /// The key of a slot, and its hash.
    pub fn hashed(&self, slot: Slot) -> (KeyHash, &OwnedKey<E>) {
        let info = self.info(slot);
        (info.hash, &info.key)
    }

    /// The greatest place in the order of evaluation that was ever admitted for a key, or [`NEVER`].
    pub fn last(&self, slot: Slot) -> (EventTime, Position) {
        self.info(slot).last
    }

    fn info(&self, slot: Slot) -> &KeyInfo<OwnedKey<E>> {
        self.infos.at(slot).as_ref().expect(KNOWN)
    }

    /// What is known of the key of a slot.
    pub fn info_mut(&mut self, slot: Slot) -> &mut KeyInfo<OwnedKey<E>> {
        self.infos.at_mut(slot).as_mut().expect(KNOWN)
    }

    /// The slots of the keys of `updates`, in their order.
    ///
    /// A few at a time and step by step, so that what one key waits for from memory is fetched beside what the next
    /// one does.
    pub fn slots<'a>(
        &mut self,
        updates: &'a [(E, Epoch, isize)],
        mut each: impl FnMut(Slot, &'a (E, Epoch, isize)),
    ) {
        for some in updates.chunks(FETCHED) {
            let mut candidates = [None; FETCHED];
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

    /// Asks for what is known of a key.
    pub fn prefetch(&self, slot: Slot) {
        prefetch(self.infos.at(slot));
    }

    /// The slot of an event's key, new if the key is.
    pub fn slot(&mut self, hash: KeyHash, event: &E) -> Slot {
        self.slot_of(hash, event.key())
    }

    /// The slot of a key, new if the key is.
    pub fn slot_of(&mut self, hash: KeyHash, key: &E::Key) -> Slot {
        let mut known = self.slots.get(&hash.0).copied();
        while let Some(slot) = known {
            let info = self.info(slot);
            if info.key.borrow() == key {
                return slot;
            }
            known = info.same_hash.get();
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            let next = Slot(self.slots_in_all);
            assert_ne!(next, Other::NONE, "a worker has fewer than 2^32 keys");
            self.slots_in_all += 1;
            next
        });
        let same_hash = Other::new(self.slots.insert(hash.0, slot));
        let info = KeyInfo { key: key.to_owned(), hash, last: NEVER, run: None, watched: false, same_hash };
        *self.infos.made(slot) = Some(info);
        self.load.keys_changed(0, 1);
        slot
    }

    /// Forgets a key. Its slot still belongs to it until it is [freed](Keys::free): operators may have to name it.
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
                    if info.same_hash == Other(slot) {
                        info.same_hash = same_hash;
                    }
                    before = info.same_hash.get();
                }
            }
        }
        self.load.keys_changed(1, 0);
    }

    /// Gives slots of removed keys to keys to come.
    pub fn free(&mut self, slots: Vec<Slot>) {
        self.free.extend(slots);
    }

    #[cfg(test)]
    pub fn slots_in_all(&self) -> usize {
        self.slots_in_all as usize
    }

    /// Has keys kept for so long after their last event at the least, in milliseconds.
    pub fn keep_for(&mut self, reach_ms: i64) {
        self.reach_ms = self.reach_ms.max(reach_ms);
    }

    /// See [`keep_for`](Keys::keep_for).
    pub fn reach_ms(&self) -> i64 {
        self.reach_ms
    }
}
