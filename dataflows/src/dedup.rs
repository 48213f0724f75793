//! Which event ids of a key were accepted lately.

use serde::{Deserialize, Serialize};

use crate::keys::HashedMap;
use crate::{EventTime, KeyHash, SHARDS, ShardId};

/// Remembers accepted ids for a horizon of event time.
///
/// An id is kept as a 128-bit fingerprint of (key, id). Two different ids within the horizon are taken for one
/// with a probability of about n² ÷ 2^129, which is 10^-25 at ten million remembered ids.
pub(crate) struct Dedup {
    horizon_ms: i64,
    /// The latest acceptance of each id.
    accepted: HashedMap<u128, EventTime>,
    /// Further acceptances of an id, which lie more than the horizon apart.
    others: HashedMap<u128, Vec<EventTime>>,
    sweep_at: usize,
    /// When the watermark was when it was last looked for expired ones.
    swept: EventTime,
    /// What has changed since it was taken last, by shard, if anybody wants to know.
    changes: Option<Vec<Vec<Acceptance>>>,
}

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

/// Below this many ids it is not worth looking for expired ones.
const SWEEP_MINIMUM: usize = 1 << 16;

impl Dedup {
    pub fn new(horizon_ms: i64) -> Self {
        Dedup {
            horizon_ms,
            accepted: Default::default(),
            others: Default::default(),
            sweep_at: SWEEP_MINIMUM,
            swept: EventTime::MIN,
            changes: None,
        }
    }

    /// Whether anything is remembered at all.
    pub fn is_on(&self) -> bool {
        self.horizon_ms != 0
    }

    /// Accepts an event's id unless one within the horizon was accepted before; says whether it did.
    pub fn accept(&mut self, key: KeyHash, id: &[u8], time: EventTime) -> bool {
        let fingerprint = fingerprint(key, id);
        let near = |other: EventTime| other.0.abs_diff(time.0) <= self.horizon_ms.unsigned_abs();
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
        self.note(key, Acceptance { fingerprint, time, accepted: true });
        true
    }

    /// Forgets that an id was accepted at this time: its event was retracted.
    pub fn forget(&mut self, key: KeyHash, id: &[u8], time: EventTime) {
        let fingerprint = fingerprint(key, id);
        self.remove(fingerprint, time);
        self.note(key, Acceptance { fingerprint, time, accepted: false });
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
        if !accepted {
            return self.remove(fingerprint, time);
        }
        let latest = self.accepted.entry(fingerprint).or_insert(time);
        if *latest != time {
            let earlier = std::mem::replace(latest, (*latest).max(time)).min(time);
            self.others.entry(fingerprint).or_default().push(earlier);
        }
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

    /// Lets go of ids that no event above the watermark can repeat, when there are many.
    /// Lets go of ids that no event above the watermark can repeat, when there are many, or when all there were last time
    /// have expired.
    pub fn expire(&mut self, watermark: EventTime) {
        let outlived = self.swept.plus_ms(self.horizon_ms) <= watermark;
        if self.accepted.len() < if outlived { SWEEP_MINIMUM } else { self.sweep_at } {
            return;
        }
        self.swept = watermark;
        let alive = |time: EventTime| time.plus_ms(self.horizon_ms) > watermark;
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
        for i in 0..2 * SWEEP_MINIMUM as i64 {
            assert!(dedup.accept(KEY, &i.to_le_bytes(), EventTime(i)));
            dedup.expire(EventTime(i - 10));
        }
        assert!(dedup.accepted.len() < SWEEP_MINIMUM + 100, "{}", dedup.accepted.len());
        let last = 2 * SWEEP_MINIMUM as i64 - 1;
        assert!(!dedup.accept(KEY, &last.to_le_bytes(), EventTime(last)));
    }
}
