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

use headwater_dataflows::Epoch;
use headwater_sinks::Changes;

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

/// Changes for each sink, by its index.
pub type Told = Vec<Changes>;

/// Something that can be told to sinks.
pub trait Output {
    /// The table or topic it goes to.
    fn of(takes: &Takes) -> Option<u8>;

    /// Appends it as a row of table `table`.
    fn row(&self, epoch: Epoch, status: Status, table: u8, out: &mut Changes);

    /// Appends it as a message to topic `topic`, of no more than `largest` bytes if it is one that can be cut short.
    fn message(&self, epoch: Epoch, status: Status, topic: u8, largest: usize, out: &mut Changes);
}

/// Whether an output joins or leaves the collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It joins.
    Raised,
    /// It leaves.
    Revoked,
}

/// Tells every sink that takes it.
pub fn tell<O: Output>(output: &O, epoch: Epoch, status: Status, tongues: &[Tongue], told: &mut Told) {
    told.resize_with(tongues.len(), Changes::default);
    for (tongue, changes) in tongues.iter().zip(told) {
        match (tongue, O::of(tongue.takes())) {
            (_, None) => {}
            (Tongue::Rows(_), Some(table)) => output.row(epoch, status, table, changes),
            (Tongue::Messages(_, largest), Some(topic)) => {
                output.message(epoch, status, topic, *largest, changes);
            }
        }
    }
}
