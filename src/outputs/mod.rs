//! What the pipeline says, and how each sink is told: rows for tables, messages for topics.
//!
//! Outputs are encoded where they arise, on the worker's thread, once for each sink that wants them: a [`EncodedOutputs`]
//! holds one worker's share of an epoch for all sinks.

mod alert;
mod dead_letter;
mod enriched;
mod window;

pub use alert::{Alert, Severity};
pub use dead_letter::DeadLetter;
pub use enriched::{Arrival, KeyHistory};
pub use window::WindowRow;

use std::sync::Arc;

use headwater_dataflows::{Epoch, KeyHash, ShardId};
use headwater_sinks::Changes;

use crate::coordination::CommittedThrough;

/// What one sink takes of each kind of output: the index of its table or topic, if it takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputMapping {
    /// Events, enriched.
    pub events: Option<u8>,
    /// Alerts.
    pub alerts: Option<u8>,
    /// Window aggregates.
    pub windows: Option<u8>,
    /// Dead letters.
    pub dead_letters: Option<u8>,
}

/// How one sink is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkEncoding {
    /// In rows of tables.
    Rows(OutputMapping),
    /// In messages of topics, of at most so many bytes each.
    Messages(OutputMapping, usize),
}

impl SinkEncoding {
    /// What the sink takes.
    pub fn mapping(&self) -> &OutputMapping {
        match self {
            SinkEncoding::Rows(mapping) | SinkEncoding::Messages(mapping, _) => mapping,
        }
    }

    /// The same, in messages of no more bytes than `largest`.
    pub fn within(self, largest: usize) -> SinkEncoding {
        match self {
            SinkEncoding::Messages(mapping, before) => SinkEncoding::Messages(mapping, before.min(largest)),
            rows => rows,
        }
    }
}

/// What outputs are of, for readers of a topic that several pipelines write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The pipeline.
    pub pipeline: Arc<str>,
    /// The topic that it reads, if it reads one.
    pub source_topic: Option<Arc<str>>,
}

/// A sink, and what it need not be told again.
#[derive(Clone, Debug)]
pub struct SinkRoute {
    /// How it is told.
    pub encoding: SinkEncoding,
    provenance: Provenance,
    committed_through: Arc<CommittedThrough>,
    /// No shard of it has later ones.
    most: Option<Epoch>,
}

impl SinkRoute {
    /// One that has taken some epochs, by shard, that are perhaps done again.
    pub fn new(
        encoding: SinkEncoding,
        committed_through: CommittedThrough,
        provenance: Provenance,
    ) -> SinkRoute {
        SinkRoute {
            encoding,
            provenance,
            most: committed_through.most(),
            committed_through: Arc::new(committed_through),
        }
    }

    /// One that has nothing.
    pub fn to_all(encoding: SinkEncoding) -> SinkRoute {
        SinkRoute::new(encoding, CommittedThrough::nothing(), Provenance::default())
    }
}

/// Changes for each sink, by its index.
pub type EncodedOutputs = Vec<Changes>;

/// Something that can be told to sinks.
pub trait Output {
    /// The table or topic it goes to.
    fn of(mapping: &OutputMapping) -> Option<u8>;

    /// The shard that it is of: the one of its key, or else of its record's partition.
    fn shard(&self) -> ShardId;

    /// Appends it as a row of table `table`.
    fn row(&self, epoch: Epoch, status: Status, table: u8, out: &mut Changes);

    /// Appends it as a message to topic `topic`.
    fn message(&self, epoch: Epoch, status: Status, topic: u8, envelope: &Envelope<'_>, out: &mut Changes);
}

/// What a message that can be cut short, and says what it is of, has to go by.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The most bytes that its topic takes.
    pub largest: usize,
    /// What it is of.
    pub provenance: &'a Provenance,
}

/// Whether an output joins or leaves the collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It joins.
    Raised,
    /// It leaves.
    Revoked,
}

/// Tells every sink that takes it and does not have it.
pub fn encode_for_sinks<O: Output>(
    output: &O,
    epoch: Epoch,
    status: Status,
    routes: &[SinkRoute],
    encoded: &mut EncodedOutputs,
) {
    encoded.resize_with(routes.len(), Changes::default);
    for (SinkRoute { encoding, provenance, committed_through, most }, changes) in routes.iter().zip(encoded) {
        if Some(epoch) <= *most && committed_through.has(output.shard(), epoch) {
            continue;
        }
        match (encoding, O::of(encoding.mapping())) {
            (_, None) => {}
            (SinkEncoding::Rows(_), Some(table)) => output.row(epoch, status, table, changes),
            (SinkEncoding::Messages(_, largest), Some(topic)) => {
                output.message(epoch, status, topic, &Envelope { largest: *largest, provenance }, changes);
            }
        }
    }
}

/// The shard of a key as operators know it.
fn shard_of(key: &str) -> ShardId {
    KeyHash::of(key.as_bytes()).shard()
}
