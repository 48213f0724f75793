//! Deduplication: the event ids of each key that were accepted within the horizon.

use std::hint::black_box;

use serde::{Deserialize, Serialize};

use crate::keys::HashedMap;
use crate::{Event, EventTime, KeyHash, SHARDS, ShardId};

/// The ids accepted within a horizon of event time.
///
/// An id is stored as a 128-bit fingerprint of (key, id). The probability that two different ids within the horizon
/// have the same fingerprint is about n² ÷ 2^129, which is 10^-25 for ten million stored ids.
///
/// The ids are stored in [`TABLES`] tables that grow and are swept independently: growing or sweeping a single table of
/// a million ids would delay an epoch by a tenth of a second.
pub(crate) struct Dedup {
    horizon_ms: i64,
    tables: Vec<Table>,
    /// The index of the table that is swept next.
    next: usize,
    /// The changes since the last call of `take_changes`, by shard; `None` if changes are not recorded.
    changes: Option<Vec<Changes>>,
}

/// The changes of the ids of a shard.
#[derive(Clone, Default)]
struct Changes {
    list: Vec<Acceptance>,
    /// The number of changes at which those that do not matter any more are dropped.
    drop_at: usize,
}

impl Changes {
    /// Drops the changes that no event above the watermark depends on, if there are many.
    fn expire(&mut self, watermark: EventTime, horizon_ms: i64) {
        if self.list.len() >= self.drop_at.max(SWEEP_MINIMUM) {
            self.list.retain(|change| is_alive(change.time, horizon_ms, watermark));
            self.drop_at = 2 * self.list.len();
            self.list.shrink_to(self.drop_at);
        }
    }
}

/// A part of the ids.
struct Table {
    /// The latest acceptance of each id.
    accepted: HashedMap<u128, EventTime>,
    /// Further acceptances of an id, more than the horizon apart from each other.
    others: HashedMap<u128, Vec<EventTime>>,
    sweep_at: usize,
    /// The watermark at the last sweep.
    swept: EventTime,
}

/// The number of tables, a power of two.
const TABLES: usize = 64;

/// A change of an id: it was accepted, or its acceptance was forgotten.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Acceptance {
    fingerprint: u128,
    pub time: EventTime,
    /// True if the id was accepted, false if its acceptance was forgotten.
    accepted: bool,
}

impl Acceptance {
    /// Returns the fingerprint of the id.
    pub fn id(&self) -> u128 {
        self.fingerprint
    }
}

/// The number of ids below which a table is not swept.
const SWEEP_MINIMUM: usize = (1 << 16) / TABLES;

impl Dedup {
    pub fn new(horizon_ms: i64) -> Self {
        Dedup { horizon_ms, tables: (0..TABLES).map(|_| Table::new()).collect(), next: 0, changes: None }
    }

    /// Returns true if deduplication is on.
    pub fn is_on(&self) -> bool {
        self.horizon_ms != 0
    }

    /// Returns the fingerprint of the id of an event, if it has one and deduplication is on.
    #[inline]
    pub fn id_of(&self, event: &impl Event) -> Option<Fingerprint> {
        let id = if self.is_on() { event.id()? } else { return None };
        Some(Fingerprint::of(event.key_hash(), id))
    }

    /// Reads the place of an id in its table, so that it is in the processor's cache when the id is accepted.
    pub fn prefetch(&self, id: Fingerprint) {
        let fingerprint = id.value();
        // The processor goes on while it waits for the memory.
        black_box(self.tables[index_of(fingerprint)].accepted.contains_key(&fingerprint));
    }

    /// Accepts the id of an event with this key and returns true, unless the id was accepted before within the horizon.
    pub fn accept(&mut self, key: KeyHash, id: Fingerprint, time: EventTime) -> bool {
        let fingerprint = id.value();
        let horizon_ms = self.horizon_ms.unsigned_abs();
        if !self.table(fingerprint).accept(fingerprint, time, horizon_ms) {
            return false;
        }
        self.note(key, Acceptance { fingerprint, time, accepted: true });
        true
    }

    /// Forgets the acceptance of an id at this time, because its event was retracted.
    pub fn forget(&mut self, key: KeyHash, id: Fingerprint, time: EventTime) {
        let fingerprint = id.value();
        self.table(fingerprint).remove(fingerprint, time);
        self.note(key, Acceptance { fingerprint, time, accepted: false });
    }

    /// Starts to record changes.
    pub fn watch(&mut self) {
        self.changes = self.is_on().then(|| vec![Changes::default(); SHARDS as usize]);
    }

    /// Removes and returns the changes since the last call, in order within each shard.
    pub fn take_changes(&mut self) -> impl Iterator<Item = (ShardId, Vec<Acceptance>)> {
        let shards = self
            .changes
            .iter_mut()
            .flatten()
            .zip(0..)
            .map(|(changes, shard)| (ShardId(shard), std::mem::take(changes).list));
        shards.filter(|(_, changes)| !changes.is_empty())
    }

    /// Repeats a change of an id. An acceptance is not checked against earlier ones, because an id that it was compared
    /// with may have expired.
    pub fn repeat(&mut self, Acceptance { fingerprint, time, accepted }: Acceptance) {
        let table = self.table(fingerprint);
        if accepted { table.put(fingerprint, time) } else { table.remove(fingerprint, time) }
    }

    /// Returns true if an event above the watermark could repeat an id that was accepted at this time.
    pub fn matters(&self, time: EventTime, watermark: EventTime) -> bool {
        is_alive(time, self.horizon_ms, watermark)
    }

    fn note(&mut self, key: KeyHash, change: Acceptance) {
        if let Some(changes) = &mut self.changes {
            changes[key.shard().0 as usize].list.push(change);
        }
    }

    /// Evicts the ids that no event above the watermark can repeat from one of the tables, if that table has many ids,
    /// or if all ids of its last sweep have expired. Drops the changes of such ids from one of the shards.
    pub fn expire(&mut self, watermark: EventTime) {
        let horizon_ms = self.horizon_ms;
        self.tables[self.next].expire(watermark, horizon_ms);
        if let Some(changes) = &mut self.changes {
            let shard = self.next % changes.len();
            changes[shard].expire(watermark, horizon_ms);
        }
        self.next = (self.next + 1) % TABLES;
    }

    fn table(&mut self, fingerprint: u128) -> &mut Table {
        &mut self.tables[index_of(fingerprint)]
    }
}

/// Returns the index of the table of an id: by the half that does not determine the position within the table.
fn index_of(fingerprint: u128) -> usize {
    (fingerprint >> 64) as usize % TABLES
}

impl Table {
    fn new() -> Self {
        Table {
            accepted: Default::default(),
            others: Default::default(),
            sweep_at: SWEEP_MINIMUM,
            swept: EventTime::MIN,
        }
    }

    fn accept(&mut self, fingerprint: u128, time: EventTime, horizon_ms: u64) -> bool {
        let near = |other: EventTime| other.0.abs_diff(time.0) <= horizon_ms;
        match self.accepted.get_mut(&fingerprint) {
            None => {
                self.accepted.insert(fingerprint, time);
            }
            Some(latest) => {
                if near(*latest) || self.others.get(&fingerprint).is_some_and(|o| o.iter().any(|&t| near(t)))
                {
                    return false;
                }
                let earlier = std::mem::replace(latest, (*latest).max(time)).min(time);
                self.others.entry(fingerprint).or_default().push(earlier);
            }
        }
        true
    }

    fn put(&mut self, fingerprint: u128, time: EventTime) {
        let latest = self.accepted.entry(fingerprint).or_insert(time);
        if *latest != time {
            let earlier = std::mem::replace(latest, (*latest).max(time)).min(time);
            self.others.entry(fingerprint).or_default().push(earlier);
        }
    }

    fn remove(&mut self, fingerprint: u128, time: EventTime) {
        let others = self.others.get_mut(&fingerprint);
        if self.accepted.get(&fingerprint) == Some(&time) {
            match others.and_then(Vec::pop) {
                Some(other) => self.accepted.insert(fingerprint, other),
                None => self.accepted.remove(&fingerprint),
            };
        } else if let Some(others) = others {
            others.retain(|&other| other != time);
        }
    }

    fn expire(&mut self, watermark: EventTime, horizon_ms: i64) {
        let alive = |time| is_alive(time, horizon_ms, watermark);
        let outlived = !alive(self.swept);
        if self.accepted.len() < if outlived { SWEEP_MINIMUM } else { self.sweep_at } {
            return;
        }
        self.swept = watermark;
        self.others.retain(|_, times| {
            times.retain(|&time| alive(time));
            !times.is_empty()
        });
        let others = &self.others;
        self.accepted.retain(|id, time| alive(*time) || others.contains_key(id));
        self.sweep_at = (2 * self.accepted.len()).max(SWEEP_MINIMUM);
        self.accepted.shrink_to(2 * self.sweep_at);
    }
}

/// Returns true if an event above the watermark could repeat an id that was accepted at this time.
fn is_alive(time: EventTime, horizon_ms: i64, watermark: EventTime) -> bool {
    time.plus_ms(horizon_ms) > watermark
}

/// The 128-bit fingerprint of (key, id), low half first. Its alignment is that of a half.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fingerprint([u64; 2]);

impl Fingerprint {
    /// Returns the fingerprint of the id of an event with this key.
    pub fn of(key: KeyHash, id: &[u8]) -> Fingerprint {
        let low = KeyHash::of(id).0;
        let high = KeyHash::of_seeded(id, key.0).0;
        // Mixed again, so that the low half, which determines the position within the table, also depends on the key.
        Fingerprint([low ^ high.rotate_left(29), high])
    }

    fn value(self) -> u128 {
        (u128::from(self.0[1]) << 64) | u128::from(self.0[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: KeyHash = KeyHash(7);

    fn of(id: &[u8]) -> Fingerprint {
        Fingerprint::of(KEY, id)
    }

    #[test]
    fn an_id_is_a_duplicate_within_the_horizon_before_and_after() {
        let mut dedup = Dedup::new(60);
        assert!(dedup.accept(KEY, of(b"a"), EventTime(1000)));
        assert!(!dedup.accept(KEY, of(b"a"), EventTime(1060)));
        assert!(!dedup.accept(KEY, of(b"a"), EventTime(940)));
        assert!(dedup.accept(KEY, of(b"a"), EventTime(1061)));
        assert!(!dedup.accept(KEY, of(b"a"), EventTime(941)));
        assert!(dedup.accept(KEY, of(b"a"), EventTime(939)));
        assert!(dedup.accept(KEY, of(b"b"), EventTime(1000)));
        assert!(dedup.accept(KeyHash(8), Fingerprint::of(KeyHash(8), b"a"), EventTime(1000)));
    }

    #[test]
    fn forgetting_an_acceptance_keeps_the_others() {
        let mut dedup = Dedup::new(60);
        for time in [1000, 1100, 1200] {
            assert!(dedup.accept(KEY, of(b"a"), EventTime(time)));
        }
        dedup.forget(KEY, of(b"a"), EventTime(1200));
        assert!(dedup.accept(KEY, of(b"a"), EventTime(1200)));
        dedup.forget(KEY, of(b"a"), EventTime(1000));
        assert!(!dedup.accept(KEY, of(b"a"), EventTime(1100)));
        assert!(dedup.accept(KEY, of(b"a"), EventTime(1000)));
    }

    /// A run that reads a past faster than it happened would otherwise keep far more changes than ids.
    #[test]
    fn changes_of_expired_ids_are_dropped() {
        let mut dedup = Dedup::new(60);
        dedup.watch();
        let count = 20 * SWEEP_MINIMUM as i64;
        for i in 0..count {
            assert!(dedup.accept(KEY, of(&i.to_le_bytes()), EventTime(i)));
            dedup.expire(EventTime(i - 10));
        }
        let changes: Vec<_> = dedup.take_changes().flat_map(|(_, changes)| changes).collect();
        assert!(changes.len() < 2 * SWEEP_MINIMUM, "{}", changes.len());
        let mut restored = Dedup::new(60);
        changes.into_iter().for_each(|change| restored.repeat(change));
        for i in count - 70..count {
            assert!(!restored.accept(KEY, of(&i.to_le_bytes()), EventTime(i)), "{i}");
        }
    }

    #[test]
    fn expired_ids_are_evicted_and_others_are_kept() {
        let mut dedup = Dedup::new(60);
        let count = 2 * (SWEEP_MINIMUM * TABLES) as i64;
        for i in 0..count {
            assert!(dedup.accept(KEY, of(&i.to_le_bytes()), EventTime(i)));
            dedup.expire(EventTime(i - 10));
        }
        let held: usize = dedup.tables.iter().map(|table| table.accepted.len()).sum();
        assert!(held < SWEEP_MINIMUM * TABLES + 100, "{held}");
        let last = count - 1;
        assert!(!dedup.accept(KEY, of(&last.to_le_bytes()), EventTime(last)));
    }
}
