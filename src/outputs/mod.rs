//! What the pipeline says, and how each sink is told: rows for tables, messages for topics.
//!
//! Outputs are encoded where they arise, on the worker's thread, once for each sink that wants them: a [`Told`]
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

use crate::coordination::Taken;

/// What one sink takes of each kind of output: the index of its table or topic, if it takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
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
pub enum Tongue {
    /// In rows of tables.
    Rows(Takes),
    /// In messages of topics, of at most so many bytes each.
    Messages(Takes, usize),
}

impl Tongue {
    /// What the sink takes.
    pub fn takes(&self) -> &Takes {
        match self {
            Tongue::Rows(takes) | Tongue::Messages(takes, _) => takes,
        }
    }

    /// The same, in messages of no more bytes than `largest`.
    pub fn within(self, largest: usize) -> Tongue {
        match self {
            Tongue::Messages(takes, before) => Tongue::Messages(takes, before.min(largest)),
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
pub struct Listener {
    /// How it is told.
    pub tongue: Tongue,
    provenance: Provenance,
    taken: Arc<Taken>,
    /// No shard of it has later ones.
    most: Option<Epoch>,
}

impl Listener {
    /// One that has taken some epochs, by shard, that are perhaps done again.
    pub fn new(tongue: Tongue, taken: Taken, provenance: Provenance) -> Listener {
        Listener { tongue, provenance, most: taken.most(), taken: Arc::new(taken) }
    }

    /// One that has nothing.
    pub fn to_all(tongue: Tongue) -> Listener {
        Listener::new(tongue, Taken::nothing(), Provenance::default())
    }
}

/// Changes for each sink, by its index.
pub type Told = Vec<Changes>;

/// Something that can be told to sinks.
pub trait Output {
    /// The table or topic it goes to.
    fn of(takes: &Takes) -> Option<u8>;

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
pub fn tell<O: Output>(output: &O, epoch: Epoch, status: Status, listeners: &[Listener], told: &mut Told) {
    told.resize_with(listeners.len(), Changes::default);
    for (Listener { tongue, provenance, taken, most }, changes) in listeners.iter().zip(told) {
        if Some(epoch) <= *most && taken.has(output.shard(), epoch) {
            continue;
        }
        match (tongue, O::of(tongue.takes())) {
            (_, None) => {}
            (Tongue::Rows(_), Some(table)) => output.row(epoch, status, table, changes),
            (Tongue::Messages(_, largest), Some(topic)) => {
                output.message(epoch, status, topic, &Envelope { largest: *largest, provenance }, changes);
            }
        }
    }
}

/// The shard of a key as operators know it.
fn shard_of(key: &str) -> ShardId {
    KeyHash::of(key.as_bytes()).shard()
}
