//! Which event ids of a key were accepted lately.

use serde::{Deserialize, Serialize};

use crate::keys::HashedMap;
use crate::{EventTime, KeyHash, SHARDS, ShardId};

/// Remembers accepted ids for a horizon of event time.
///
/// An id is kept as a 128-bit fingerprint of (key, id). Two different ids within the horizon are taken for one
/// with a probability of about n² ÷ 2^129, which is 10^-25 at ten million remembered ids.
///
/// The ids lie in [`TABLES`] tables that grow and are swept each on its own: in one of a million ids either would hold up
/// an epoch for a tenth of a second.
pub(crate) struct Dedup {
    horizon_ms: i64,
    tables: Vec<Table>,
    /// The table that is looked through next.
    next: usize,
    /// What has changed since it was taken last, by shard, if anybody wants to know.
    changes: Option<Vec<Vec<Acceptance>>>,
}

/// Some of the ids.
struct Table {
    /// The latest acceptance of each id.
    accepted: HashedMap<u128, EventTime>,
    /// Further acceptances of an id, which lie more than the horizon apart.
    others: HashedMap<u128, Vec<EventTime>>,
    sweep_at: usize,
    /// When the watermark was when it was last looked for expired ones.
    swept: EventTime,
}

/// How many tables there are: a power of two.
const TABLES: usize = 64;

/// What became of an id.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Acceptance {
    fingerprint: u128,
    pub time: EventTime,
    /// Whether it was accepted, or that was forgotten.
    accepted: bool,
}

impl Acceptance {
    /// Stands for the id.
    pub fn id(&self) -> u128 {
        self.fingerprint
    }
}

/// Below this many ids in a table it is not worth looking for expired ones.
const SWEEP_MINIMUM: usize = (1 << 16) / TABLES;

impl Dedup {
    pub fn new(horizon_ms: i64) -> Self {
        Dedup { horizon_ms, tables: (0..TABLES).map(|_| Table::new()).collect(), next: 0, changes: None }
    }

    /// Whether anything is remembered at all.
    pub fn is_on(&self) -> bool {
        self.horizon_ms != 0
    }

    /// Accepts an event's id unless one within the horizon was accepted before; says whether it did.
    pub fn accept(&mut self, key: KeyHash, id: &[u8], time: EventTime) -> bool {
        let fingerprint = fingerprint(key, id);
        let horizon_ms = self.horizon_ms.unsigned_abs();
        if !self.table(fingerprint).accept(fingerprint, time, horizon_ms) {
            return false;
        }
        self.note(key, Acceptance { fingerprint, time, accepted: true });
        true
    }

    /// Forgets that an id was accepted at this time: its event was retracted.
    pub fn forget(&mut self, key: KeyHash, id: &[u8], time: EventTime) {
        let fingerprint = fingerprint(key, id);
        self.table(fingerprint).remove(fingerprint, time);
        self.note(key, Acceptance { fingerprint, time, accepted: false });
    }

    /// From now on keeps what changes, to be taken.
    pub fn watch(&mut self) {
        self.changes = self.is_on().then(|| vec![Vec::new(); SHARDS as usize]);
    }

    /// What has changed since the last call, in order within each shard.
    pub fn take_changes(&mut self) -> impl Iterator<Item = (ShardId, Vec<Acceptance>)> {
        let shards = self
            .changes
            .iter_mut()
            .flatten()
            .zip(0..)
            .map(|(changes, shard)| (ShardId(shard), std::mem::take(changes)));
        shards.filter(|(_, changes)| !changes.is_empty())
    }

    /// Does again what was done to an id. What was accepted is not asked whether it should have been: what it was held
    /// against may have expired.
    pub fn repeat(&mut self, Acceptance { fingerprint, time, accepted }: Acceptance) {
        let table = self.table(fingerprint);
        if accepted { table.put(fingerprint, time) } else { table.remove(fingerprint, time) }
    }

    /// Whether an event above the watermark could repeat an id accepted at this time.
    pub fn matters(&self, time: EventTime, watermark: EventTime) -> bool {
        time.plus_ms(self.horizon_ms) > watermark
    }

    fn note(&mut self, key: KeyHash, change: Acceptance) {
        if let Some(changes) = &mut self.changes {
            changes[key.shard().0 as usize].push(change);
        }
    }

    /// Lets go of ids that no event above the watermark can repeat, in one of the tables, if it has many, or if all that
    /// it had last time have expired.
    pub fn expire(&mut self, watermark: EventTime) {
        let horizon_ms = self.horizon_ms;
        self.tables[self.next].expire(watermark, horizon_ms);
        self.next = (self.next + 1) % TABLES;
    }

    fn table(&mut self, fingerprint: u128) -> &mut Table {
        // Of the half that does not place it in the table.
        &mut self.tables[(fingerprint >> 64) as usize % TABLES]
    }
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
        let alive = |time: EventTime| time.plus_ms(horizon_ms) > watermark;
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

fn fingerprint(key: KeyHash, id: &[u8]) -> u128 {
    let low = KeyHash::of(id).0;
    let high = KeyHash::of_seeded(id, key.0).0;
    // Mixed once more, so that the low half alone, which places it in the table, depends on the key too.
    (u128::from(high) << 64) | u128::from(low ^ high.rotate_left(29))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: KeyHash = KeyHash(7);

    #[test]
    fn an_id_is_a_duplicate_within_the_horizon_on_either_side_of_every_acceptance() {
        let mut dedup = Dedup::new(60);
        assert!(dedup.accept(KEY, b"a", EventTime(1000)));
        assert!(!dedup.accept(KEY, b"a", EventTime(1060)));
        assert!(!dedup.accept(KEY, b"a", EventTime(940)));
        assert!(dedup.accept(KEY, b"a", EventTime(1061)));
        assert!(!dedup.accept(KEY, b"a", EventTime(941)));
        assert!(dedup.accept(KEY, b"a", EventTime(939)));
        assert!(dedup.accept(KEY, b"b", EventTime(1000)));
        assert!(dedup.accept(KeyHash(8), b"a", EventTime(1000)));
    }

    #[test]
    fn a_forgotten_acceptance_makes_room_and_leaves_the_others() {
        let mut dedup = Dedup::new(60);
        for time in [1000, 1100, 1200] {
            assert!(dedup.accept(KEY, b"a", EventTime(time)));
        }
        dedup.forget(KEY, b"a", EventTime(1200));
        assert!(dedup.accept(KEY, b"a", EventTime(1200)));
        dedup.forget(KEY, b"a", EventTime(1000));
        assert!(!dedup.accept(KEY, b"a", EventTime(1100)));
        assert!(dedup.accept(KEY, b"a", EventTime(1000)));
    }

    #[test]
    fn expired_ids_leave_memory_and_live_ones_stay() {
        let mut dedup = Dedup::new(60);
        let count = 2 * (SWEEP_MINIMUM * TABLES) as i64;
        for i in 0..count {
            assert!(dedup.accept(KEY, &i.to_le_bytes(), EventTime(i)));
            dedup.expire(EventTime(i - 10));
        }
        let held: usize = dedup.tables.iter().map(|table| table.accepted.len()).sum();
        assert!(held < SWEEP_MINIMUM * TABLES + 100, "{held}");
        let last = count - 1;
        assert!(!dedup.accept(KEY, &last.to_le_bytes(), EventTime(last)));
    }
}
