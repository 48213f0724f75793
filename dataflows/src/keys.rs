//! Keys by slot: each key is hashed at decode, compared once per epoch, and a small number from then on.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::batch::{RunRef, Slot};
use crate::{Event, EventTime, KeyHash, Load, OwnedKey, Position};

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
    /// The greatest place in the order of evaluation that was ever admitted.
    pub last: Option<(EventTime, Position)>,
    /// The key's newest run.
    pub run: Option<RunRef>,
    /// Another key with the same hash.
    same_hash: Option<Slot>,
}

/// The keys of one worker.
pub(crate) struct Keys<E: Event> {
    slots: HashedMap<u64, Slot>,
    infos: Vec<KeyInfo<OwnedKey<E>>>,
    load: Load,
}

impl<E: Event> Keys<E> {
    pub fn new() -> Self {
        Keys { slots: HashMap::default(), infos: Vec::new(), load: Load::default() }
    }

    /// What is held, by these keys and by those who count theirs there.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// The key of a slot.
    pub fn key(&self, slot: Slot) -> &OwnedKey<E> {
        &self.infos[slot.index()].key
    }

    /// The key of a slot, and its hash.
    pub fn hashed(&self, slot: Slot) -> (KeyHash, &OwnedKey<E>) {
        let info = &self.infos[slot.index()];
        (info.hash, &info.key)
    }

    pub fn info_mut(&mut self, slot: Slot) -> &mut KeyInfo<OwnedKey<E>> {
        &mut self.infos[slot.index()]
    }

    /// The slot of an event's key, new if the key is.
    pub fn slot(&mut self, hash: KeyHash, event: &E) -> Slot {
        self.slot_of(hash, event.key())
    }

    /// The slot of a key, new if the key is.
    pub fn slot_of(&mut self, hash: KeyHash, key: &E::Key) -> Slot {
        let mut known = self.slots.get(&hash.0).copied();
        while let Some(slot) = known {
            let info = &self.infos[slot.index()];
            if info.key.borrow() == key {
                return slot;
            }
            known = info.same_hash;
        }
        let slot = Slot(u32::try_from(self.infos.len()).expect("a worker has fewer than 2^32 keys"));
        let same_hash = self.slots.insert(hash.0, slot);
        self.infos.push(KeyInfo { key: key.to_owned(), hash, last: None, run: None, same_hash });
        self.load.set_keys(self.infos.len());
        slot
    }
}
