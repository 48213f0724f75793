//! The ledger: the durable record of what happened, by which a start does again exactly what was done before.
//!
//! ```text
//!   claim ─▶ lineage, generation, genesis, every bound epoch     (a start takes over)
//!   enrol ─▶ how many processes there ever were        (before any sink is opened)
//!   skip ─▶ an output that a sink does not take        (before any sink is opened)
//!   lose ─▶ records that are gone, or are never to be read       (before the first read)
//!   attempt ─▶ how many runs died without recording anything     (before the first read)
//!   begin ─▶ genesis: where each partition starts, what the pipeline is   (before the first read, once)
//!   append ─▶ epochs, as they are bound                          (before any sink commits them)
//!   committed ─▶ a sink that has results, with its first commit
//!   conclude ─▶ a checkpoint's manifest; what no start needs any more goes
//!   amend ─▶ another meaning, from a checkpoint on that has everything before
//! ```
//!
//! Every write is one transaction that first checks the generation: a process that was taken over writes nothing.

mod format;
mod manifest;
mod postgres;
mod sqlite;

use headwater_dataflows::{Epoch, Offset, Partition};
use headwater_sinks::{Generation, LedgerId};
use thiserror::Error;

pub use self::format::Damaged;
pub(crate) use self::manifest::{decode as decode_manifest, encode as encode_manifest};
pub use self::postgres::{PostgresLedger, table_names as postgres_tables};
pub use self::sqlite::SqliteLedger;
use crate::coordination::{EpochRecord, Loss, Manifest, Skip, Takeovers, are_chains};

/// What a pipeline began with, before its first record was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// By partition, the first offset.
    pub starts: Vec<Offset>,
    /// What decides its answers, as text: epochs are replayed only under the same.
    pub semantics: String,
}

/// What a start finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The ledger's random identity.
    pub ledger_id: LedgerId,
    /// This start's generation: higher than that of every start before.
    pub generation: Generation,
    /// What the pipeline began with; none if it has never begun.
    pub genesis: Option<Genesis>,
}

/// A manifest as the ledger has it.
#[derive(Debug)]
pub struct StoredManifest {
    /// Its epoch.
    pub epoch: Epoch,
    /// What it says, or why it cannot be read.
    pub manifest: Result<Manifest, LedgerError>,
}

/// Those of these manifests that can be read.
pub fn readable(manifests: &[StoredManifest]) -> impl Iterator<Item = &Manifest> + Clone {
    manifests.iter().filter_map(|stored| stored.manifest.as_ref().ok())
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

    /// Records that so many processes are about to write, before any of them does; how many there ever were.
    ///
    /// # Errors
    /// If it was taken over or the store fails.
    fn register_processes(&mut self, processes: usize) -> Result<usize, LedgerError>;

    /// Records an output that a sink is not to be given, in this and every later start.
    ///
    /// # Errors
    /// If it was taken over or the store fails.
    fn skip(&mut self, skip: &Skip) -> Result<(), LedgerError>;

    /// Every output that a sink is not to be given.
    ///
    /// # Errors
    /// If the store fails.
    fn skips(&mut self) -> Result<Vec<Skip>, LedgerError>;

    /// Records that records of a partition are never read: by this and every later start.
    ///
    /// # Errors
    /// If it was taken over or the store fails.
    fn lose(&mut self, loss: &Loss) -> Result<(), LedgerError>;

    /// Every range of records that is never read, by partition.
    ///
    /// # Errors
    /// If the store fails.
    fn losses(&mut self) -> Result<Vec<Loss>, LedgerError>;

    /// Records that a sink has committed results of this ledger: from now on it has progress, or has lost it.
    ///
    /// # Errors
    /// If it was taken over or the store fails.
    fn committed(&mut self, sink: &str) -> Result<(), LedgerError>;

    /// The sinks that have committed results of this ledger, by name.
    ///
    /// # Errors
    /// If the store fails.
    fn committed_sinks(&mut self) -> Result<Vec<String>, LedgerError>;

    /// Records that a run begins while the ledger ends at `durable`. Returns how many runs began there before and
    /// never [ended](Ledger::ended): they were killed.
    ///
    /// # Errors
    /// If it was taken over or the store fails.
    fn attempt(&mut self, durable: Epoch) -> Result<u64, LedgerError>;

    /// How many runs began while the ledger ended at `durable` and have not [ended](Ledger::ended).
    ///
    /// # Errors
    /// If the store fails.
    fn attempts(&mut self, durable: Epoch) -> Result<u64, LedgerError>;

    /// Records that the run has ended by itself, well or not.
    ///
    /// # Errors
    /// If it was taken over or the store fails.
    fn ended(&mut self) -> Result<(), LedgerError>;

    /// Records that a later start took over from this one while it went on, noticed at `now_ms`, in milliseconds since
    /// 1970. It is the one thing that an older generation may write: it decides no result.
    ///
    /// # Errors
    /// If the store fails.
    fn replaced(&mut self, now_ms: i64) -> Result<(), LedgerError> {
        let takeovers = Takeovers::after(self.takeovers()?, now_ms);
        self.put_takeovers(takeovers)
    }

    /// Puts these takeovers in the place of what was recorded of them, whoever owns the pipeline.
    ///
    /// # Errors
    /// If the store fails.
    fn put_takeovers(&mut self, takeovers: Takeovers) -> Result<(), LedgerError>;

    /// The last takeovers from runs that went on; none if there never was one.
    ///
    /// # Errors
    /// If the store fails.
    fn takeovers(&mut self) -> Result<Option<Takeovers>, LedgerError>;

    /// Records what the pipeline begins with.
    ///
    /// # Errors
    /// If it was taken over, has begun already, or the store fails.
    fn begin(&mut self, genesis: &Genesis) -> Result<(), LedgerError>;

    /// What there is, without taking it over; none if the pipeline has never been started. May come at any time, as
    /// may whatever else only reads.
    ///
    /// # Errors
    /// If the store cannot be reached or holds what cannot be.
    fn peek(&mut self) -> Result<Option<Claim>, LedgerError>;

    /// Every epoch recorded after `after`, in order.
    ///
    /// # Errors
    /// If some of them were pruned, the store fails or a round is damaged.
    fn epochs(&mut self, after: Epoch) -> Result<Vec<EpochRecord>, LedgerError>;

    /// Through which epoch rounds were pruned; 0 if none were.
    ///
    /// # Errors
    /// If the store fails.
    fn pruned(&mut self) -> Result<Epoch, LedgerError>;

    /// Every manifest, in order.
    ///
    /// # Errors
    /// If the store fails. A damaged one does not hide the others.
    fn manifests(&mut self) -> Result<Vec<StoredManifest>, LedgerError>;

    /// Records bound epochs, in order, all above those recorded before.
    ///
    /// # Errors
    /// If it was taken over or the store fails.
    fn append(&mut self, epochs: &[EpochRecord]) -> Result<(), LedgerError>;

    /// Records a manifest above all before, and, in the same transaction, prunes: the ledger can then go back to
    /// `keep` manifests, of which the beginning is one, and has no epochs that none of them needs.
    ///
    /// # Errors
    /// If it was taken over, the store fails, or the manifest is not above all before or cannot be applied.
    fn conclude(&mut self, manifest: &Manifest, keep: usize) -> Result<(), LedgerError>;

    /// Records that the pipeline means something else from now on. It goes on from `manifest`, of the last recorded
    /// epoch, alone: in the same transaction all others, of the same epoch too, and all epochs go, which could not be
    /// done again as they were. Without a manifest nothing has been recorded.
    ///
    /// # Errors
    /// If it was taken over, the store fails, or there are epochs that are not in the manifest.
    fn amend(&mut self, semantics: &str, manifest: Option<&Manifest>) -> Result<(), LedgerError>;
}

/// A range of records, as it is stored, read back.
fn read_loss(partition: i64, first: i64, next: i64) -> Loss {
    Loss { partition: Partition(partition as u32), first: Offset(first), next: Offset(next) }
}

/// What to do about a ledger that is not what was written.
const RESTORE: &str = "restore the ledger from a copy, or begin under another `pipeline` name, with tables of its own: it \
                       reads everything again that the source has, and knows nothing of what came before";

/// The version of a pipeline's row while all its rounds are there.
const UNPRUNED: i64 = 1;
/// Its version once some were pruned: a program that knows nothing of manifests must not start from the rest.
const PRUNED: i64 = 2;

fn check_version(pipeline: &str, version: i64) -> Result<(), LedgerError> {
    if (UNPRUNED..=PRUNED).contains(&version) {
        return Ok(());
    }
    Err(LedgerError::Refused(format!(
        "pipeline {pipeline} has version {version}, and this program knows versions {UNPRUNED} to {PRUNED}: run the program \
         that wrote it, or a later one"
    )))
}

/// A new identity, from the system's source of random numbers.
fn new_lineage() -> Result<LedgerId, LedgerError> {
    use std::io::Read;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|error| unavailable("draw a random lineage", error))?;
    Ok(LedgerId(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
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
    semantics: Option<String>,
) -> Result<Option<Genesis>, LedgerError> {
    let Some((starts, semantics)) = starts.zip(semantics) else { return Ok(None) };
    let starts = format::decode_starts(&starts).map_err(|damaged| {
        LedgerError::Refused(format!(
            "the start offsets of pipeline {pipeline} are damaged: {damaged}; {RESTORE}"
        ))
    })?;
    Ok(Some(Genesis { starts, semantics }))
}

/// A manifest as it is stored, read back.
fn read_manifest(pipeline: &str, epoch: i64, bytes: &[u8]) -> StoredManifest {
    let manifest = match manifest::decode(bytes) {
        Ok(manifest) if manifest.epoch.0 as i64 == epoch => Ok(manifest),
        Ok(_) => Err("it is another epoch's".to_owned()),
        Err(damaged) => Err(damaged.to_string()),
    };
    let manifest = manifest.map_err(|damage| {
        LedgerError::Refused(format!(
            "the manifest of epoch {epoch} of pipeline {pipeline} is damaged: {damage}"
        ))
    });
    StoredManifest { epoch: Epoch(epoch as u64), manifest }
}

/// A manifest, as it is to be stored.
fn write_manifest(manifest: &Manifest) -> Result<(i64, Vec<u8>), LedgerError> {
    if !are_chains(&manifest.parts) {
        let reason = format!("the parts of epoch {} are not a base and its deltas by shard", manifest.epoch);
        return Err(LedgerError::Refused(reason));
    }
    Ok((manifest.epoch.0 as i64, manifest::encode(manifest)))
}

/// What is pruned must not be asked for.
fn not_pruned(pipeline: &str, after: Epoch, pruned: Epoch) -> Result<(), LedgerError> {
    if after >= pruned {
        return Ok(());
    }
    Err(LedgerError::Refused(format!(
        "the epochs of pipeline {pipeline} through {pruned} were pruned, and those after {after} are asked for"
    )))
}

/// A manifest stands above all that are there.
fn ascends(pipeline: &str, epoch: Epoch, before: &[Epoch]) -> Result<(), LedgerError> {
    match before.last() {
        Some(last) if *last >= epoch => Err(LedgerError::Refused(format!(
            "pipeline {pipeline} has a manifest of epoch {last}, and one of epoch {epoch} cannot follow"
        ))),
        _ => Ok(()),
    }
}

/// What is amended leaves no epoch behind.
fn leaves_nothing(
    pipeline: &str,
    manifest: Option<&Manifest>,
    last: Option<Epoch>,
) -> Result<(), LedgerError> {
    let through = manifest.map(|manifest| manifest.epoch);
    match last {
        Some(last) if Some(last) > through => Err(LedgerError::Refused(format!(
            "pipeline {pipeline} has recorded epoch {last}, which would have to be done again otherwise"
        ))),
        _ => Ok(()),
    }
}

/// Why nothing was written: the pipeline has this generation now, or is not known any more.
fn lost(pipeline: &str, current: Option<i64>) -> LedgerError {
    match current {
        Some(current) => {
            LedgerError::Fenced { pipeline: pipeline.to_owned(), generation: Generation(current as u64) }
        }
        None => {
            LedgerError::Refused(format!("it no longer knows pipeline {pipeline}: it was wiped; {RESTORE}"))
        }
    }
}

/// A round as it is stored, read back.
fn read_round(pipeline: &str, through: i64, bytes: &[u8]) -> Result<Vec<EpochRecord>, LedgerError> {
    let epochs = format::decode(bytes).map_err(|damaged| {
        LedgerError::Refused(format!(
            "the round through epoch {through} of pipeline {pipeline} is damaged: {damaged}; {RESTORE}"
        ))
    })?;
    match epochs.last() {
        Some(last) if last.epoch.0 as i64 == through => Ok(epochs),
        _ => Err(LedgerError::Refused(format!(
            "the round through epoch {through} of pipeline {pipeline} does not end there; {RESTORE}"
        ))),
    }
}
