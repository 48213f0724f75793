//! Outputs of a pipeline and their encoding for sinks: rows for tables, messages for topics.
//!
//! Outputs are encoded on the thread of the worker that produces them, once for each sink that accepts them.
//! [`EncodedOutputs`] holds one worker's outputs of an epoch for all sinks.

mod alert;
mod dead_letter;
mod encode;
mod enriched;
mod recent;
mod window;

pub use alert::{Alert, RuleMode, Severity};
pub use dead_letter::DeadLetter;
pub use encode::{Identity, encode_outputs, split_by_sink};
pub use enriched::{Arrival, KeyHistory};
pub use recent::{RecentAlert, RecentAlerts};
pub(crate) use window::MICROS;
pub use window::WindowRow;

use std::sync::Arc;
use std::time::Duration;

use headwater_dataflows::{Epoch, KeyHash, ShardId};
use headwater_sinks::{Changes, Sink};

use crate::coordination::CommittedThrough;

/// The table or topic index of each output kind in a sink; None if the sink does not accept that kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputMapping {
    /// Enriched events.
    pub events: Option<u8>,
    /// Alerts.
    pub alerts: Option<u8>,
    /// Window aggregates.
    pub windows: Option<u8>,
    /// Dead letters.
    pub dead_letters: Option<u8>,
    /// True if the sink accepts alerts of shadow rules, too.
    pub shadow_alerts: bool,
}

/// The encoding of outputs for one sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkEncoding {
    /// Rows of tables.
    Rows(OutputMapping),
    /// Messages of topics, with the maximum size of a message in bytes.
    Messages(OutputMapping, usize),
}

/// A sink of a run, with the encoding of its outputs.
pub struct SinkJob {
    /// The sink, not yet opened.
    pub sink: Box<dyn Sink>,
    /// The encoding of outputs for the sink.
    pub encoding: SinkEncoding,
    /// The minimum time between the starts of two rounds.
    pub commit_interval: Duration,
}

impl SinkEncoding {
    /// Returns the output kinds that the sink accepts.
    pub fn mapping(&self) -> &OutputMapping {
        match self {
            SinkEncoding::Rows(mapping) | SinkEncoding::Messages(mapping, _) => mapping,
        }
    }

    /// Returns the same encoding, with messages of at most `largest` bytes.
    pub fn within(self, largest: usize) -> SinkEncoding {
        match self {
            SinkEncoding::Messages(mapping, before) => SinkEncoding::Messages(mapping, before.min(largest)),
            rows => rows,
        }
    }
}

/// The origin of outputs, for readers of a topic that several pipelines write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The name of the pipeline.
    pub pipeline: Arc<str>,
    /// The topic that the pipeline reads, if its source is a topic.
    pub source_topic: Option<Arc<str>>,
}

/// The route to a sink: its encoding, and the epochs that it has already committed.
#[derive(Clone, Debug)]
pub struct SinkRoute {
    /// The encoding.
    pub encoding: SinkEncoding,
    provenance: Provenance,
    committed_through: Arc<CommittedThrough>,
    /// The last epoch that any shard has committed.
    most: Option<Epoch>,
}

impl SinkRoute {
    /// Creates a route to a sink that has committed some epochs, by shard; their outputs are not encoded again on
    /// replay.
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

    /// Creates a route to a sink that has committed nothing.
    pub fn to_all(encoding: SinkEncoding) -> SinkRoute {
        SinkRoute::new(encoding, CommittedThrough::nothing(), Provenance::default())
    }
}

/// Changes for each sink, by its index.
pub type EncodedOutputs = Vec<Changes>;

/// An output that can be encoded for sinks.
pub trait Output {
    /// Returns the index of the table or topic for this output, if the sink accepts it.
    fn accepted_by(&self, mapping: &OutputMapping) -> Option<u8>;

    /// Returns the shard of the output's key, or of its record's partition if it has no key.
    fn shard(&self) -> ShardId;

    /// Appends the output as a row of table `table`.
    fn row(&self, epoch: Epoch, status: Status, table: u8, out: &mut Changes);

    /// Appends the output as a message to topic `topic`.
    fn message(&self, epoch: Epoch, status: Status, topic: u8, envelope: &Envelope<'_>, out: &mut Changes);
}

/// The parameters of a message that can be truncated and that names its origin.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The maximum size of a message of the topic, in bytes.
    pub largest: usize,
    /// The origin of the message.
    pub provenance: &'a Provenance,
}

/// The change of an output in the collection: added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The output is added.
    Raised,
    /// The output is removed.
    Revoked,
}

impl Status {
    /// All changes.
    pub const ALL: [Status; 2] = [Status::Raised, Status::Revoked];

    /// Returns the name in outputs.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Raised => "raised",
            Status::Revoked => "revoked",
        }
    }
}

/// Encodes an output for every sink that accepts its kind and has not committed its epoch.
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
        match (encoding, output.accepted_by(encoding.mapping())) {
            (_, None) => {}
            (SinkEncoding::Rows(_), Some(table)) => output.row(epoch, status, table, changes),
            (SinkEncoding::Messages(_, largest), Some(topic)) => {
                output.message(epoch, status, topic, &Envelope { largest: *largest, provenance }, changes);
            }
        }
    }
}

/// Returns the shard of a key with its prefix.
fn shard_of(key: &str) -> ShardId {
    KeyHash::of(key.as_bytes()).shard()
}
