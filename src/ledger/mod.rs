//! The ledger: the durable record of what happened, by which a start does again exactly what was done before.
//!
//! ```text
//!   claim ─▶ lineage, generation, genesis, every bound epoch     (a start takes over)
//!   begin ─▶ genesis: where each partition starts, what the pipeline is   (before the first read, once)
//!   append ─▶ epochs, as they are bound                          (before any sink commits them)
//! ```
//!
//! Every write is one transaction that first checks the generation: a process that was taken over writes nothing.

mod format;
mod postgres;
mod sqlite;

use headwater_dataflows::{Epoch, Offset};
use headwater_sinks::{Generation, Lineage};
use thiserror::Error;

pub use self::format::Damaged;
pub use self::postgres::PostgresLedger;
pub use self::sqlite::SqliteLedger;
use crate::coordination::EpochRecord;

/// What a pipeline began with: set once, before its first record is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// By partition, the first offset.
    pub starts: Vec<Offset>,
    /// What decides its answers, as text: epochs are replayed only under the same.
    pub meaning: String,
}

/// What a start finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The ledger's random identity.
    pub lineage: Lineage,
    /// This start's generation: higher than that of every start before.
    pub generation: Generation,
    /// What the pipeline began with; none if it has never begun.
    pub genesis: Option<Genesis>,
}

/// Why the ledger could not be used.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// It could not be reached or answered with an error. What was being written may have been written.
    #[error("ledger: cannot {action}")]
    Unavailable {
        /// What was being done.
        action: String,
        /// The store's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A later start has taken over. The process must end and not come back.
    #[error("ledger: pipeline {pipeline} was taken over by a later start, of generation {generation}")]
    Fenced {
        /// Whose.
        pipeline: String,
        /// The successor's.
        generation: Generation,
    },
    /// What it holds cannot be, or was written by a later version.
    #[error("ledger: {0}")]
    Refused(String),
}

/// A place that keeps a ledger, opened for one pipeline.
///
/// # Contract
/// [`claim`](Ledger::claim) comes first. Whatever returns `Ok` is durable: it survives the loss of power. Calls
/// block.
pub trait Ledger: Send {
    /// Takes the pipeline over: from now on no older generation writes.
    ///
    /// # Errors
    /// If the store cannot be reached or holds what cannot be.
    fn claim(&mut self) -> Result<Claim, LedgerError>;

    /// Records what the pipeline begins with.
    ///
    /// # Errors
    /// If it was taken over, has begun already, or the store fails.
    fn begin(&mut self, genesis: &Genesis) -> Result<(), LedgerError>;

    /// Every epoch recorded after `after`, in order.
    ///
    /// # Errors
    /// If the store fails or a round is damaged.
    fn epochs(&mut self, after: Epoch) -> Result<Vec<EpochRecord>, LedgerError>;

    /// Records bound epochs, in order, all above those recorded before.
    ///
    /// # Errors
    /// If it was taken over or the store fails.
    fn append(&mut self, epochs: &[EpochRecord]) -> Result<(), LedgerError>;
}

/// A new identity, from the system's source of random numbers.
fn new_lineage() -> Result<Lineage, LedgerError> {
    use std::io::Read;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|error| unavailable("draw a random lineage", error))?;
    Ok(Lineage(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}

fn unavailable(
    action: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> LedgerError {
    LedgerError::Unavailable { action: action.into(), source: source.into() }
}

/// What the pipeline began with, as it is stored, read back.
fn read_genesis(
    pipeline: &str,
    starts: Option<Vec<u8>>,
    meaning: Option<String>,
) -> Result<Option<Genesis>, LedgerError> {
    let Some((starts, meaning)) = starts.zip(meaning) else { return Ok(None) };
    let starts = format::decode_starts(&starts).map_err(|damaged| {
        LedgerError::Refused(format!("the start offsets of pipeline {pipeline} are damaged: {damaged}"))
    })?;
    Ok(Some(Genesis { starts, meaning }))
}

/// Why nothing was written: the pipeline has this generation now, or is not known any more.
fn lost(pipeline: &str, current: Option<i64>) -> LedgerError {
    match current {
        Some(current) => {
            LedgerError::Fenced { pipeline: pipeline.to_owned(), generation: Generation(current as u64) }
        }
        None => LedgerError::Refused(format!("it no longer knows pipeline {pipeline}: it was wiped")),
    }
}

/// A round as it is stored, read back.
fn read_round(pipeline: &str, through: i64, bytes: &[u8]) -> Result<Vec<EpochRecord>, LedgerError> {
    let epochs = format::decode(bytes).map_err(|damaged| {
        LedgerError::Refused(format!(
            "the round through epoch {through} of pipeline {pipeline} is damaged: {damaged}"
        ))
    })?;
    match epochs.last() {
        Some(last) if last.epoch.0 as i64 == through => Ok(epochs),
        _ => Err(LedgerError::Refused(format!(
            "the round through epoch {through} of pipeline {pipeline} does not end there"
        ))),
    }
}
