//! Manifests: the contents of a checkpoint, and the names of its parts.

use std::fmt;

use headwater_dataflows::{Epoch, EventTime, Offset, Partition, SHARDS, ShardId};
use headwater_sinks::{Generation, LedgerId};
use serde::{Deserialize, Serialize};

use super::ingest::PushTime;
use super::{AllIdle, Binding, EpochRecord, Versions};

/// The description of a checkpoint: everything that is needed to resume after an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The last epoch whose effects the checkpoint contains.
    pub epoch: Epoch,
    /// The generation of the start that wrote the manifest.
    pub generation: Generation,
    /// The wall time of the epoch, in milliseconds since 1970.
    pub wall_ms: i64,
    /// The watermark at the end of the epoch.
    pub watermark: EventTime,
    /// The positions from which to resume reading, by partition.
    pub positions: Vec<Position>,
    /// The bytes of events that are not final, by partition and time.
    pub unfinal: Vec<(Partition, EventTime, u64)>,
    /// The time since which every partition is idle, if they all are and the watermark then follows the wall time.
    pub all_idle: Option<AllIdle>,
    /// The rules and lists in force, and those before them that un-final events need.
    pub in_force: Versions,
    /// The operators whose state the parts contain, in the order of the dataflow.
    pub operators: Vec<Operator>,
    /// The number of keys with state, if it was counted.
    pub keys: Option<u64>,
    /// The state: for each shard a base and the deltas after it, in order. A shard without parts is empty.
    pub parts: Vec<Part>,
}

impl Manifest {
    /// Returns the total size of the parts, in bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }
}

/// The progress of reading one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The offset of the next record to read.
    pub next: Offset,
    /// The pushing time of its records, which advances the watermark.
    pub push: PushTime,
    /// The timestamp of the record before `next`, in milliseconds since 1970, if that record was read.
    pub timestamp_ms: Option<i64>,
    /// True if the partition is idle: it does not hold back the watermark.
    pub idle: bool,
}

impl Position {
    /// Returns the position of a partition from which nothing was read yet.
    pub fn starting(next: Offset) -> Position {
        Position { next, push: PushTime::default(), timestamp_ms: None, idle: false }
    }
}

/// The positions of all partitions, advanced epoch by epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions(Vec<Position>);

impl Positions {
    /// Returns the positions at the beginning of a pipeline.
    pub fn starting(starts: &[Offset]) -> Positions {
        Positions(starts.iter().map(|&next| Position::starting(next)).collect())
    }

    /// Returns the positions of a checkpoint.
    pub fn of(positions: &[Position]) -> Positions {
        Positions(positions.to_vec())
    }

    /// Applies the bindings of an epoch. An unknown partition is added.
    pub fn advance(&mut self, bindings: &[Binding]) {
        for binding in bindings {
            let at = binding.partition.0 as usize;
            if at >= self.0.len() {
                self.0.resize(at + 1, Position::starting(Offset(0)));
            }
            let position = &mut self.0[at];
            position.next = position.next.max(binding.end);
            position.push.greatest = position.push.greatest.max(binding.pushing_time);
            position.push.candidate = binding.candidate;
            position.timestamp_ms = binding.timestamp.or(position.timestamp_ms);
            position.idle = binding.idle;
        }
    }

    /// Returns the positions, advanced to these offsets where those are greater.
    #[must_use]
    pub fn reading_from(mut self, starts: &[Offset]) -> Positions {
        self.0.iter_mut().zip(starts).for_each(|(position, &start)| position.next = position.next.max(start));
        self
    }

    /// Adds the partitions that these epochs, in order, have added. The binding that adds a partition has no record,
    /// and its end is the partition's start offset.
    pub fn with_added(mut self, epochs: &[EpochRecord]) -> Positions {
        for binding in epochs.iter().flat_map(|record| &record.bindings) {
            let at = binding.partition.0 as usize;
            if at >= self.0.len() {
                self.0.resize(at + 1, Position::starting(Offset(0)));
                self.0[at].next = binding.end;
            }
        }
        self
    }

    /// Returns the positions, by partition.
    pub fn as_slice(&self) -> &[Position] {
        &self.0
    }
}

/// An operator with state in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The name of the operator.
    pub name: String,
    /// The version of its state.
    pub version: u32,
}

/// An immutable piece of a shard's state, in the state store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The name of the part in the state store.
    pub name: PartName,
    /// The SHA-256 of the content.
    pub hash: [u8; 32],
    /// The length of the content, in bytes.
    pub bytes: u64,
}

/// The kind of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartKind {
    /// The whole state of a shard.
    Base,
    /// The changes since the previous part.
    Delta,
}

/// The name of a part. It contains the ledger and the generation, so that no other start ever writes a part of the
/// same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PartName {
    /// The id of the ledger that the part belongs to.
    pub ledger_id: LedgerId,
    /// The generation of the start that wrote the part.
    pub generation: Generation,
    /// The last epoch whose effects the part contains.
    pub epoch: Epoch,
    /// The shard.
    pub shard: ShardId,
    /// The kind of the part.
    pub kind: PartKind,
}

impl PartName {
    /// Parses the name of a part; None if the text is not one.
    pub fn parse(text: &str) -> Option<PartName> {
        let mut words = text.split('/');
        let ledger_id = LedgerId(words.next()?.to_owned());
        let generation = Generation(words.next()?.parse().ok()?);
        let epoch = Epoch(words.next()?.parse().ok()?);
        let (shard, kind) = words.next()?.split_once('.')?;
        let shard = ShardId(shard.parse().ok().filter(|&shard| shard < SHARDS)?);
        let kind = match kind {
            "base" => PartKind::Base,
            "delta" => PartKind::Delta,
            _ => return None,
        };
        let name = PartName { ledger_id, generation, epoch, shard, kind };
        // Only the exact form that this program writes is valid: no signs, no leading zeros, nothing after the name.
        (name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PartName { ledger_id, generation, epoch, shard, kind } = self;
        let kind = match kind {
            PartKind::Base => "base",
            PartKind::Delta => "delta",
        };
        write!(f, "{}/{generation}/{epoch}/{}.{kind}", ledger_id.0, shard.0)
    }
}

impl From<PartName> for String {
    fn from(name: PartName) -> String {
        name.to_string()
    }
}

impl TryFrom<String> for PartName {
    type Error = String;

    fn try_from(text: String) -> Result<PartName, String> {
        PartName::parse(&text).ok_or_else(|| format!("{text:?} is not the name of a part"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_formatted_names_are_parsed() {
        let name = PartName {
            ledger_id: LedgerId("ab12".into()),
            generation: Generation(7),
            epoch: Epoch(u64::MAX),
            shard: ShardId(63),
            kind: PartKind::Delta,
        };
        assert_eq!(name.to_string(), "ab12/7/18446744073709551615/63.delta");
        assert_eq!(PartName::parse(&name.to_string()), Some(name));
        for text in
            ["", "ab12/7/5/64.base", "ab12/07/5/1.base", "ab12/+7/5/1.base", "ab12/7/5/1.base/", "a/7/5/1"]
        {
            assert_eq!(PartName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn positions_follow_the_bindings_and_never_go_back() {
        let binding = |end, time, idle| Binding {
            partition: Partition(1),
            end: Offset(end),
            timestamp: None,
            max_event_time: time,
            pushing_time: time,
            candidate: None,
            idle,
        };
        let mut positions = Positions::starting(&[Offset(3), Offset(5)]);
        positions.advance(&[binding(9, Some(EventTime(70)), false)]);
        positions.advance(&[
            binding(9, None, true),
            Binding { partition: Partition(2), ..binding(1, None, true) },
        ]);
        let untouched = Position::starting(Offset(3));
        let added = Position { idle: true, ..Position::starting(Offset(1)) };
        let push = PushTime { greatest: Some(EventTime(70)), candidate: None };
        let read = Position { next: Offset(9), push, timestamp_ms: None, idle: true };
        assert_eq!(positions.as_slice(), [untouched, read, added]);
    }
}
