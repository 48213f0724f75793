//! Un-final bytes: the memory that events take until they are final, and the partitions that pause at the limit.
//!
//! A partition that is ahead of the slowest one costs memory: its events wait for the watermark, which the slowest one
//! holds back. Their bytes are counted from the bindings alone, so that replay makes the same decisions with any
//! number of workers.

use std::collections::{BTreeMap, VecDeque};

use headwater_dataflows::{EventTime, Partition};
use serde::{Deserialize, Serialize};

/// The approximate memory that a record needs besides its value, in bytes.
pub const RECORD_OVERHEAD: usize = 200;

/// The approximate memory that an event needs besides its value until it is final, in bytes: what operators keep so that they can
/// revise their results. Measured with five patterns and a window.
pub const UNFINAL_OVERHEAD: usize = 1400;

/// The bytes of events of one epoch that are counted together, and become final together. An epoch may be long enough to read more
/// than the limit of un-final bytes, most of which is final when it is bound.
pub const UNFINAL_PART: u64 = 128 << 10;

/// The bytes of some events that an epoch accepted from a partition, by when they become final.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnfinalBytes {
    /// The bytes of events at or below the partition's greatest pushing time.
    near: u64,
    near_through: Option<EventTime>,
    /// The bytes of events beyond it, from clocks that are ahead.
    far: u64,
    far_through: Option<EventTime>,
}

impl UnfinalBytes {
    /// Returns the bytes of one event; see [`add`](UnfinalBytes::add).
    pub fn of(time: EventTime, greatest: Option<EventTime>, bytes: usize) -> UnfinalBytes {
        let mut one = UnfinalBytes::default();
        one.add(time, greatest, bytes);
        one
    }

    /// Adds an event of `bytes` bytes, given the greatest pushing time of its partition.
    pub fn add(&mut self, time: EventTime, greatest: Option<EventTime>, bytes: usize) {
        let (sum, through) = match Some(time) <= greatest {
            true => (&mut self.near, &mut self.near_through),
            false => (&mut self.far, &mut self.far_through),
        };
        *sum += bytes as u64;
        *through = (*through).max(Some(time));
    }

    /// Returns the number of bytes.
    pub fn total(self) -> u64 {
        self.near + self.far
    }

    fn parts(self) -> impl Iterator<Item = (EventTime, u64)> {
        [(self.near_through, self.near), (self.far_through, self.far)]
            .into_iter()
            .filter_map(|(through, bytes)| Some((through?, bytes)))
    }
}

/// The partitions that may be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ReadPermission {
    /// Every partition.
    #[default]
    All,
    /// Only the slowest partition: all others are too far ahead of it.
    Only(Partition),
    /// No partition.
    None,
}

impl ReadPermission {
    /// Returns true if a partition may be read.
    pub fn allows(self, partition: Partition) -> bool {
        match self {
            ReadPermission::All => true,
            ReadPermission::Only(slowest) => partition == slowest,
            ReadPermission::None => false,
        }
    }
}

/// The number of different times that are kept for each partition. Beyond it, neighbours are merged into the later
/// time.
const MAX_ENTRIES: usize = 64;

/// Merges neighbours up to a sixteenth of all bytes, so that at most 33 remain: of two neighbours the sum is more. Merging whatever
/// is next to each other would merge the oldest ones most often, just before they are final, until they are most of the bytes.
fn merge_neighbours(entries: &mut VecDeque<(EventTime, u64)>) {
    let all: u64 = entries.iter().map(|(_, bytes)| bytes).sum();
    let most = all / (MAX_ENTRIES as u64 / 4);
    let mut merged: VecDeque<(EventTime, u64)> = VecDeque::with_capacity(MAX_ENTRIES + 1);
    for (through, bytes) in entries.drain(..) {
        match merged.back_mut() {
            Some((later, sum)) if *sum + bytes <= most => (*later, *sum) = (through, *sum + bytes),
            _ => merged.push_back((through, bytes)),
        }
    }
    *entries = merged;
}

/// The bytes of un-final events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unfinal {
    /// By partition, in ascending order: the greatest event time of the events of some epochs, and their bytes.
    by_partition: BTreeMap<Partition, VecDeque<(EventTime, u64)>>,
    total: u64,
}

impl Unfinal {
    /// Returns the un-final bytes of a manifest.
    pub fn of(entries: &[(Partition, EventTime, u64)]) -> Unfinal {
        let mut unfinal = Unfinal::default();
        for &(partition, through, bytes) in entries {
            unfinal.insert(partition, through, bytes);
        }
        unfinal
    }

    /// Returns the entries for a manifest: by partition, ascending in time.
    pub fn entries(&self) -> Vec<(Partition, EventTime, u64)> {
        let of = |(&partition, entries): (&Partition, &VecDeque<_>)| {
            entries.iter().map(|&(through, bytes)| (partition, through, bytes)).collect::<Vec<_>>()
        };
        self.by_partition.iter().flat_map(of).collect()
    }

    /// Adds the bytes that an epoch accepted from a partition.
    pub fn add(&mut self, partition: Partition, bytes: UnfinalBytes) {
        for (through, bytes) in bytes.parts() {
            self.insert(partition, through, bytes);
        }
    }

    fn insert(&mut self, partition: Partition, through: EventTime, bytes: u64) {
        self.total += bytes;
        let entries = self.by_partition.entry(partition).or_default();
        let at = entries.partition_point(|&(other, _)| other < through);
        match entries.get_mut(at) {
            Some((other, sum)) if *other == through => *sum += bytes,
            _ => entries.insert(at, (through, bytes)),
        }
        if entries.len() > MAX_ENTRIES {
            merge_neighbours(entries);
        }
    }

    /// Releases the bytes that are final at a watermark.
    pub fn settle(&mut self, watermark: EventTime) {
        for entries in self.by_partition.values_mut() {
            while let Some((_, bytes)) = entries.pop_front_if(|(through, _)| *through <= watermark) {
                self.total -= bytes;
            }
        }
    }

    /// Returns a time that no un-final event is after; None if every event is final.
    pub fn last_time(&self) -> Option<EventTime> {
        self.by_partition.values().filter_map(|entries| entries.back()).map(|(through, _)| *through).max()
    }

    /// Returns the number of un-final bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns the partitions that may be read, given the limit of un-final bytes and the slowest partition that is
    /// not idle. If all partitions are idle, all may be read: only a record can advance the watermark.
    pub fn permission(&self, limit: u64, slowest: Option<Partition>) -> ReadPermission {
        match slowest {
            Some(slowest) if self.total >= limit => ReadPermission::Only(slowest),
            _ => ReadPermission::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(events: &[(i64, usize)], greatest: i64) -> UnfinalBytes {
        let mut bytes = UnfinalBytes::default();
        for &(time, size) in events {
            bytes.add(EventTime(time), Some(EventTime(greatest)), size);
        }
        bytes
    }

    #[test]
    fn bytes_are_released_when_the_watermark_passes_them() {
        let mut unfinal = Unfinal::default();
        unfinal.add(Partition(0), bytes(&[(10, 100), (20, 50)], 20));
        unfinal.add(Partition(1), bytes(&[(15, 7)], 20));
        assert_eq!(unfinal.total(), 157);
        unfinal.settle(EventTime(15));
        assert_eq!(unfinal.total(), 150, "an epoch's events are released together");
        unfinal.settle(EventTime(20));
        assert_eq!(unfinal.total(), 0);
    }

    #[test]
    fn a_clock_ahead_does_not_hold_the_bytes_of_its_epoch() {
        let mut unfinal = Unfinal::default();
        unfinal.add(Partition(0), bytes(&[(10, 100), (290_000, 1)], 20));
        unfinal.settle(EventTime(20));
        assert_eq!(unfinal.total(), 1);
    }

    #[test]
    fn merging_neighbours_loses_no_bytes_and_releases_none_early() {
        let mut unfinal = Unfinal::default();
        for time in 0..1000 {
            unfinal.add(Partition(0), bytes(&[(time, 1)], i64::MAX));
        }
        assert_eq!(unfinal.total(), 1000);
        assert!(unfinal.entries().len() <= MAX_ENTRIES);
        assert_eq!(Unfinal::of(&unfinal.entries()), unfinal, "a manifest keeps them");
        for watermark in 0..1000 {
            unfinal.settle(EventTime(watermark));
            assert!(unfinal.total() >= (999 - watermark) as u64, "at {watermark}");
        }
        assert_eq!(unfinal.total(), 0);
    }

    /// A long epoch is many entries, which are merged many times before the watermark comes.
    #[test]
    fn merging_neighbours_keeps_few_bytes_beyond_the_watermark() {
        let mut unfinal = Unfinal::default();
        for time in 0..20_000 {
            unfinal.add(Partition(0), bytes(&[(time, 1)], i64::MAX));
            assert!(unfinal.entries().len() <= MAX_ENTRIES);
        }
        unfinal.settle(EventTime(14_999));
        assert!((5_000..5_000 + 20_000 / 16).contains(&unfinal.total()), "{}", unfinal.total());
    }

    #[test]
    fn all_but_the_slowest_pause_at_the_limit() {
        let mut unfinal = Unfinal::default();
        assert_eq!(unfinal.permission(100, Some(Partition(1))), ReadPermission::All);
        unfinal.add(Partition(0), bytes(&[(10, 100)], 20));
        let only = unfinal.permission(100, Some(Partition(1)));
        assert_eq!([0, 1, 2].map(|partition| only.allows(Partition(partition))), [false, true, false]);
        assert_eq!(unfinal.permission(100, None), ReadPermission::All, "all are idle");
    }
}
