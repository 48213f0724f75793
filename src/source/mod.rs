//! Sources of records: Kafka, NDJSON files and the deterministic generator.
//!
//! A [`Source`] is opened once per process. It lists the partitions, the start offset of each and, if the run is
//! bounded, the end offset. Each worker gets a [`Reader`] for the partitions it owns; readers never block.

pub mod file;
pub mod generator;
pub mod history;
pub mod kafka;

use crate::coordination::ingest::PartitionState;
use crate::rounds::TraceContext;
use std::sync::Arc;

use headwater_dataflows::{Offset, Partition, Position};
use thiserror::Error;

/// The timestamp of a record that carries none.
pub const NO_TIMESTAMP: i64 = i64::MAX;

/// An undecoded record, borrowed from the reader's buffers.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// The partition and offset, which identify the record.
    pub position: Position,
    /// The record timestamp (Kafka's, not the event time), in milliseconds since 1970, or [`NO_TIMESTAMP`].
    pub timestamp: i64,
    /// The record's key, as bytes.
    pub key: Option<&'a [u8]>,
    /// The record's value; None for a tombstone.
    pub value: Option<&'a [u8]>,
    /// The number of times that the record was retried from the dead letters.
    pub retries: u32,
    /// The producer of the record, as bytes, if the source has it in a header.
    pub producer: Option<&'a [u8]>,
}

/// The maximum amount to read in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The maximum number of records.
    pub records: usize,
    /// The approximate maximum of key and value bytes: reading stops once it is reached.
    pub bytes: usize,
}

impl Budget {
    /// A budget that reads nothing.
    pub const NONE: Budget = Budget { records: 0, bytes: 0 };

    /// Returns a budget of `records` records of any size.
    pub const fn records(records: usize) -> Budget {
        Budget { records, bytes: usize::MAX }
    }
}

/// A function that wakes a reader's thread.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Reads the partitions that one worker owns.
pub trait Reader {
    /// Emits at most `budget` records, in offset order within each partition, and returns their number. Does not block.
    /// With an empty budget, it only processes errors and statistics of the client.
    fn read(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError>;

    /// Sets a function that is called from any thread when records have arrived after a read that found none, so that nobody
    /// has to ask often. Returns false if it is never called.
    fn wake_with(&mut self, _wake: Wake) -> bool {
        false
    }

    /// Collects the contexts of the next `most` records whose traces are sampled. Without a call none is collected. Most
    /// kinds of records have no context.
    fn collect_contexts(&mut self, _most: usize) {}

    /// Returns the contexts that were collected since the last call.
    fn take_contexts(&mut self) -> Vec<TraceContext> {
        Vec::new()
    }

    /// Sets the order of partitions for the next reads, by their places in [`partitions`](Reader::partitions), the one furthest
    /// behind in event time first: reading that one keeps few events un-final. A quarter of a budget still goes to all
    /// partitions alike, so that none waits for another. Sources that do not read ahead of a partition ignore it.
    fn set_order(&mut self, _places: &[usize]) {}

    /// Returns the state of each owned partition.
    fn partitions(&self) -> Vec<PartitionState>;

    /// Adds a partition, which is read from an offset.
    ///
    /// # Errors
    /// If the partition cannot be added, or this kind of source never adds partitions.
    fn add(&mut self, partition: Partition, _from: Offset) -> Result<(), SourceError> {
        Err(SourceError::Refused(format!("partition {} is not assigned to this reader", partition.0)))
    }

    /// Pauses or resumes a partition. Records that were already fetched may be dropped and fetched again.
    fn set_paused(&mut self, partition: Partition, paused: bool) -> Result<(), SourceError>;

    /// Limits a partition to records before an offset; None removes the limit. The position never passes the limit.
    fn set_limit(&mut self, partition: Partition, limit: Option<Offset>) -> Result<(), SourceError>;
}

/// An open source of records, shared by the workers of a process.
pub trait Source: Send + Sync {
    /// Returns the start offset of each partition, by partition number.
    fn start(&self) -> &[Offset];

    /// Returns a reader of these partitions, each from the given offset.
    fn reader(&self, owned: &[(Partition, Offset)]) -> Result<Box<dyn Reader>, SourceError>;

    /// Returns the partitions that were added after those of [`start`](Source::start), each with its first offset.
    fn added(&self) -> Vec<(Partition, Offset)> {
        Vec::new()
    }

    /// Sets, by partition, the timestamp that the record before the start offset had when it was read, if known.
    /// Readers that are opened later compare it with the log, to detect a recreated topic.
    fn expect_before(&self, _timestamps_ms: &[Option<i64>]) {}

    /// Returns true if all records exist from the start, so that epochs can close by a count of records.
    fn is_counted(&self) -> bool {
        false
    }

    /// Describes, for a pipeline whose input is closed, the records after these offsets, by partition, which are never
    /// read, and records that are missing before them.
    ///
    /// # Errors
    /// If the source cannot be read.
    fn unread(&self, _ends: &[Offset]) -> Result<Vec<String>, SourceError> {
        Ok(Vec::new())
    }

    /// Returns the topic and the last known end offset of each partition, by number; None if the source has no topic.
    fn ends(&self) -> Option<(&str, Vec<Offset>)> {
        None
    }

    /// Commits the offsets of the next records to read, for the source's own tools. The commit is advisory; it blocks
    /// for a few seconds at most.
    fn commit(&self, offsets: &[(Partition, Offset)]) -> Result<(), SourceError>;
}

/// A function that opens a source, to be read from these offsets, by partition, or from its configured start.
pub type Opening = Box<dyn FnOnce(Option<Vec<Offset>>) -> Result<Arc<dyn Source>, SourceError> + Send>;

/// A function that opens a source again: a topic at the first record with this timestamp, in milliseconds, or a later one.
pub type Reopening = Arc<dyn Fn(Option<i64>) -> Result<Arc<dyn Source>, SourceError> + Send + Sync>;

/// An error of a source.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The source could not be reached, or responded with an error.
    #[error("source: cannot {action}")]
    Unavailable {
        /// The failed action, as a verb phrase.
        action: String,
        /// The underlying error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Reading would lose or repeat records: an offset is out of retention, or the topic was recreated or is compacted.
    #[error("source: {0}")]
    Refused(String),
}
