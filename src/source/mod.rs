//! Where records come from: Kafka, files of NDJSON, the deterministic generator.
//!
//! A [`Source`] is opened once per process and knows the partitions and where each starts and, if the run is
//! bounded, ends. Each worker gets a [`Reader`] for the partitions it owns; readers never wait.

pub mod file;
pub mod generator;
pub mod kafka;

use std::sync::Arc;

use headwater_dataflows::{Offset, Partition, Position};
use thiserror::Error;

/// The timestamp of a record that has none: no clock stood by when it was written.
pub const NO_TIMESTAMP: i64 = i64::MAX;

/// A record as it was read, borrowed from the reader's buffers.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Its identity.
    pub position: Position,
    /// The record's own timestamp (Kafka's, not the event's), in milliseconds since 1970; [`NO_TIMESTAMP`] where there
    /// is none.
    pub timestamp: i64,
    /// The record's key, as bytes.
    pub key: Option<&'a [u8]>,
    /// The record's value; none is a tombstone.
    pub value: Option<&'a [u8]>,
    /// How often it has come back from the dead letters.
    pub retries: u32,
}

/// What a reader knows about one of its partitions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PartitionState {
    /// The partition.
    pub partition: Partition,
    /// The offset of the next record: all before it have been handed out or do not exist.
    pub position: Offset,
    /// The offset after the last record, committed or not, as of the last observation.
    pub high_watermark: Option<Offset>,
    /// The offset of the first record of the oldest transaction that was open then, or the high watermark.
    pub stable_offset: Option<Offset>,
    /// How often the leader was observed: two states with the same number have the same knowledge of the log's end.
    pub observation: u64,
    /// How often something has happened to the partition's own leader that makes what was known of it old.
    pub leader_failures: u64,
    /// Whether the leader answers.
    pub available: bool,
    /// Whether the partition has come to its announced end and will never deliver more.
    pub ended: bool,
    /// How many records are known to wait beyond the position.
    pub backlog: u64,
}

impl PartitionState {
    /// Of input that is all there, and ends.
    pub fn finite(partition: Partition, position: Offset, ended: bool, backlog: u64) -> PartitionState {
        PartitionState {
            partition,
            position,
            high_watermark: ended.then_some(position),
            stable_offset: None,
            observation: 0,
            leader_failures: 0,
            available: true,
            ended,
            backlog,
        }
    }
}

/// How much to read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How many records.
    pub records: usize,
    /// About how many bytes of keys and values: reading stops once there are as many.
    pub bytes: usize,
}

impl Budget {
    /// Nothing is read.
    pub const NONE: Budget = Budget { records: 0, bytes: 0 };

    /// So many records, of whatever size.
    pub const fn records(records: usize) -> Budget {
        Budget { records, bytes: usize::MAX }
    }
}

/// Reads the partitions that one worker owns.
pub trait Reader {
    /// Hands out at most `budget` records, in offset order within each partition, without waiting; says how many.
    /// Without a budget it only takes note of what has happened.
    fn read(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError>;

    /// The state of each owned partition.
    fn partitions(&self) -> Vec<PartitionState>;

    /// Reads a further partition from an offset on.
    ///
    /// # Errors
    /// If it cannot, or partitions are never added to this kind of source.
    fn add(&mut self, partition: Partition, _from: Offset) -> Result<(), SourceError> {
        Err(SourceError::Refused(format!("partition {} is not read here", partition.0)))
    }

    /// Stops or resumes handing out records of a partition; what was already fetched may be dropped and read again.
    fn set_paused(&mut self, partition: Partition, paused: bool) -> Result<(), SourceError>;

    /// Hands out no record of a partition at or beyond an offset; none lifts the limit. The position never passes it.
    fn set_limit(&mut self, partition: Partition, limit: Option<Offset>) -> Result<(), SourceError>;
}

/// A place that records come from, opened: shared by the workers of a process.
pub trait Source: Send + Sync {
    /// Where each partition starts, by partition number.
    fn start(&self) -> &[Offset];

    /// A reader of these partitions, each from the given offset.
    fn reader(&self, owned: &[(Partition, Offset)]) -> Result<Box<dyn Reader>, SourceError>;

    /// The partitions that were found beyond those of [`start`](Source::start), each with its first offset.
    fn added(&self) -> Vec<(Partition, Offset)> {
        Vec::new()
    }

    /// By partition, the timestamp that the record before its start had when it was read, where that is known: readers
    /// that are opened from now on hold it against what is there.
    fn expect_before(&self, _timestamps_ms: &[Option<i64>]) {}

    /// Whether all its records are there from the start, so that an epoch can be a number of them.
    fn is_counted(&self) -> bool {
        false
    }

    /// In words, what there is beyond these offsets, by partition, or is missing before them, where a pipeline's input was
    /// closed: nobody will read it.
    ///
    /// # Errors
    /// If it cannot be found out.
    fn unread(&self, _ends: &[Offset]) -> Result<Vec<String>, SourceError> {
        Ok(Vec::new())
    }

    /// The topic, and where each partition ended when it was opened, by number; none if it has no such ends.
    fn ends(&self) -> Option<(&str, Vec<Offset>)> {
        None
    }

    /// Tells the source's own tools how far the pipeline has come: offsets of the next record to read. Advisory;
    /// does not wait longer than a few seconds.
    fn commit(&self, offsets: &[(Partition, Offset)]) -> Result<(), SourceError>;
}

/// Opens a source, once: to be read from these offsets, by partition, or where it starts.
pub type Opening = Box<dyn FnOnce(Option<Vec<Offset>>) -> Result<Arc<dyn Source>, SourceError> + Send>;

/// Why a source cannot be read.
#[derive(Debug, Error)]
pub enum SourceError {
    /// It could not be reached or answered with an error.
    #[error("source: cannot {action}")]
    Unavailable {
        /// What was being done.
        action: String,
        /// The underlying error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Reading on would lose or repeat records: an offset out of retention, a topic recreated or compacted.
    #[error("source: {0}")]
    Refused(String),
}
