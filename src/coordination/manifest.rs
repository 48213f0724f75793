//! Manifests: what a checkpoint consists of, and the names of its parts.

use std::fmt;

use headwater_dataflows::{Epoch, EventTime, Offset, Partition, SHARDS, ShardId};
use headwater_sinks::{Generation, LedgerId};
use serde::{Deserialize, Serialize};

use super::ingest::PushTime;
use super::{AllIdle, Binding, EpochRecord};

/// A checkpoint: all that it takes to go on after an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The last epoch whose effects are in it.
    pub epoch: Epoch,
    /// The start that wrote it.
    pub generation: Generation,
    /// The epoch's wall time, in milliseconds since 1970.
    pub wall_ms: i64,
    /// The watermark at the end of the epoch.
    pub watermark: EventTime,
    /// Where reading goes on, by partition.
    pub positions: Vec<Position>,
    /// The bytes of events that are not final, by partition and time.
    pub unfinal: Vec<(Partition, EventTime, u64)>,
    /// Since when every partition is idle, if each is and the watermark is to follow the wall time then.
    pub all_idle: Option<AllIdle>,
    /// Whose state the parts hold, in the order of the dataflow.
    pub operators: Vec<Operator>,
    /// How many keys had state, if that was counted.
    pub keys: Option<u64>,
    /// The state: by shard, a base and the deltas after it, in order. A shard without parts is empty.
    pub parts: Vec<Part>,
}

impl Manifest {
    /// How many bytes its parts have.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }
}

/// How far a partition has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The offset of the next record to read.
    pub next: Offset,
    /// How far its records push the watermark.
    pub push: PushTime,
    /// The timestamp of the record before `next`, in milliseconds since 1970, if that was read.
    pub timestamp_ms: Option<i64>,
    /// Whether the partition is idle: it does not hold back the watermark.
    pub idle: bool,
}

impl Position {
    /// Of a partition of which nothing was read yet.
    pub fn starting(next: Offset) -> Position {
        Position { next, push: PushTime::default(), timestamp_ms: None, idle: false }
    }
}

/// How far every partition has come, epoch by epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions(Vec<Position>);

impl Positions {
    /// As of the beginning of a pipeline.
    pub fn starting(starts: &[Offset]) -> Positions {
        Positions(starts.iter().map(|&next| Position::starting(next)).collect())
    }

    /// As a checkpoint has them.
    pub fn of(positions: &[Position]) -> Positions {
        Positions(positions.to_vec())
    }

    /// Takes in an epoch's bindings. A partition that was not known is taken in.
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

    /// The same, with reading beginning at these offsets where they are greater.
    #[must_use]
    pub fn reading_from(mut self, starts: &[Offset]) -> Positions {
        self.0.iter_mut().zip(starts).for_each(|(position, &start)| position.next = position.next.max(start));
        self
    }

    /// Takes in where the partitions begin that these epochs, in order, have added: the binding that adds one has no
    /// record, and ends where it begins.
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

    /// By partition.
    pub fn as_slice(&self) -> &[Position] {
        &self.0
    }
}

/// An operator whose state is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Its name.
    pub name: String,
    /// The version of its state.
    pub version: u32,
}

/// An immutable piece of a shard's state, in the state store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name there.
    pub name: PartName,
    /// The SHA-256 of its content.
    pub hash: [u8; 32],
    /// The length of its content, in bytes.
    pub bytes: u64,
}

/// What a part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartKind {
    /// A shard's whole state.
    Base,
    /// What changed since the part before.
    Delta,
}

/// The name of a part: given once, by one start of one ledger, so that no other start ever writes it again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PartName {
    /// The ledger that it belongs to.
    pub ledger_id: LedgerId,
    /// The start that wrote it.
    pub generation: Generation,
    /// The last epoch whose effects are in it.
    pub epoch: Epoch,
    /// The shard.
    pub shard: ShardId,
    /// What it holds.
    pub kind: PartKind,
}

impl PartName {
    /// The name that is written so, if it is one.
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
        // Only what this program writes is one of its names: no signs, no zeros in front, nothing behind.
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
        PartName::parse(&text).ok_or_else(|| format!("{text:?} is no part's name"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_were_and_nothing_else_is_one() {
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
