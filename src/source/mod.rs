//! Where records come from: Kafka, files of NDJSON, the deterministic generator.
//!
//! A [`Source`] is opened once per process and knows the partitions and where each starts and, if the run is
//! bounded, ends. Each worker gets a [`Reader`] for the partitions it owns; readers never wait.

pub mod file;
pub mod generator;
pub mod kafka;

use std::sync::Arc;
use std::time::Instant;

use headwater_dataflows::{Offset, Partition, Position};
use thiserror::Error;

/// A record as it was read, borrowed from the reader's buffers.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Its identity.
    pub position: Position,
    /// The record's own timestamp (Kafka's, not the event's), in milliseconds since 1970.
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
    /// Since when the position has equalled the partition's high watermark without a fetch error, a change of
    /// leader or a pause in between; none while there is, or may be, more to read.
    pub at_end_since: Option<Instant>,
    /// Whether the partition has come to its announced end and will never deliver more.
    pub ended: bool,
    /// How many records are known to wait beyond the position.
    pub backlog: u64,
}

/// Reads the partitions that one worker owns.
pub trait Reader {
    /// Hands out at most `budget` records, in offset order within each partition, without waiting; says how many.
    /// With a budget of zero it only takes note of what has happened.
    fn read(&mut self, budget: usize, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError>;

    /// The state of each owned partition.
    fn partitions(&self) -> Vec<PartitionState>;

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
