//! The ledger: the durable record of a pipeline, from which a start replays exactly what was done before.
//!
//! ```text
//!   claim ─▶ ledger id, generation, genesis                     (a start takes over)
//!   register_processes ─▶ the most processes that ever wrote    (before any sink is opened)
//!   skip ─▶ an output that a sink refuses                       (before any sink is opened)
//!   lose ─▶ records that are gone, or must never be read        (before the first read)
//!   attempt ─▶ the number of runs killed before any record      (before the first read)
//!   begin ─▶ genesis: the start offsets and the semantics       (before the first read, once)
//!   append ─▶ epochs, as they are bound                         (before any sink commits them)
//!   committed ─▶ a sink that has results                        (with its first commit)
//!   conclude ─▶ the manifest of a checkpoint; prunes what no start needs any more
//!   amend ─▶ changed semantics, from a checkpoint that contains every recorded epoch
//! ```
//!
//! Every write is one transaction that first checks the generation, so a process that was fenced cannot write.

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

/// The state of a pipeline before its first record is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// The first offset, by partition.
    pub starts: Vec<Offset>,
    /// The settings that determine the results, as text. Epochs are replayed only with the same settings.
    pub semantics: String,
}

/// The contents of the ledger that a start claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The ledger's random id.
    pub ledger_id: LedgerId,
    /// The generation of this start, which is higher than that of every earlier start.
    pub generation: Generation,
    /// The beginning of the pipeline; None if the pipeline has never begun.
    pub genesis: Option<Genesis>,
}

/// A manifest as it is stored in the ledger.
#[derive(Debug)]
pub struct StoredManifest {
    /// The epoch of the manifest.
    pub epoch: Epoch,
    /// The manifest, or the reason why it cannot be read.
    pub manifest: Result<Manifest, LedgerError>,
}

/// Returns the manifests that can be read.
pub fn readable(manifests: &[StoredManifest]) -> impl Iterator<Item = &Manifest> + Clone {
    manifests.iter().filter_map(|stored| stored.manifest.as_ref().ok())
}

/// The reason why a ledger operation failed.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// The store could not be reached or returned an error. A write that was in progress may have been applied.
    #[error("ledger: cannot {action}")]
    Unavailable {
        /// The operation that failed.
        action: String,
        /// The error of the store.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A later start has taken over. This process must end and must not be restarted.
    #[error("ledger: pipeline {pipeline} was taken over by a later start (generation {generation})")]
    Fenced {
        /// The name of the pipeline.
        pipeline: String,
        /// The generation of the later start.
        generation: Generation,
    },
    /// The ledger contains an invalid value, or was written by a later version of the program.
    #[error("ledger: {0}")]
    Refused(String),
}

/// A store of a ledger, opened for one pipeline.
///
/// # Contract
/// [`claim`](Ledger::claim) must be called first. When a method returns `Ok`, its write is durable: it survives a
/// power failure. Methods block.
pub trait Ledger: Send {
    /// Claims the pipeline: from now on no older generation can write.
    ///
    /// # Errors
    /// If the store cannot be reached or contains an invalid value.
    fn claim(&mut self) -> Result<Claim, LedgerError>;

    /// Registers the number of processes that are about to write, before any of them writes. Returns the largest
    /// number of processes that was ever registered.
    ///
    /// # Errors
    /// If the pipeline was taken over or the store fails.
    fn register_processes(&mut self, processes: usize) -> Result<usize, LedgerError>;

    /// Records an output that this and every later start must not write to a sink.
    ///
    /// # Errors
    /// If the pipeline was taken over or the store fails.
    fn skip(&mut self, skip: &Skip) -> Result<(), LedgerError>;

    /// Returns every output that must not be written to its sink.
    ///
    /// # Errors
    /// If the store fails.
    fn skips(&mut self) -> Result<Vec<Skip>, LedgerError>;

    /// Records a range of records of a partition that this and every later start must not read.
    ///
    /// # Errors
    /// If the pipeline was taken over or the store fails.
    fn lose(&mut self, loss: &Loss) -> Result<(), LedgerError>;

    /// Returns every range of records that must not be read, by partition.
    ///
    /// # Errors
    /// If the store fails.
    fn losses(&mut self) -> Result<Vec<Loss>, LedgerError>;

    /// Records that a sink has committed results of this ledger. From now on, a sink without progress has lost it.
    ///
    /// # Errors
    /// If the pipeline was taken over or the store fails.
    fn committed(&mut self, sink: &str) -> Result<(), LedgerError>;

    /// Returns the names of the sinks that have committed results of this ledger.
    ///
    /// # Errors
    /// If the store fails.
    fn committed_sinks(&mut self) -> Result<Vec<String>, LedgerError>;

    /// Records that a run begins while the ledger ends at `durable`. Returns the number of earlier runs that began
    /// there and never [ended](Ledger::ended): they were killed.
    ///
    /// # Errors
    /// If the pipeline was taken over or the store fails.
    fn attempt(&mut self, durable: Epoch) -> Result<u64, LedgerError>;

    /// Returns the number of runs that began while the ledger ended at `durable` and have not [ended](Ledger::ended).
    ///
    /// # Errors
    /// If the store fails.
    fn attempts(&mut self, durable: Epoch) -> Result<u64, LedgerError>;

    /// Records that the run has ended by itself, with or without success.
    ///
    /// # Errors
    /// If the pipeline was taken over or the store fails.
    fn ended(&mut self) -> Result<(), LedgerError>;

    /// Records that a later start took over from this run while it was still running; `now_ms` is when this run
    /// noticed it, in milliseconds since 1970. This is the only write that an older generation may make: it affects no
    /// result.
    ///
    /// # Errors
    /// If the store fails.
    fn replaced(&mut self, now_ms: i64) -> Result<(), LedgerError> {
        let takeovers = Takeovers::after(self.takeovers()?, now_ms);
        self.put_takeovers(takeovers)
    }

    /// Replaces the recorded takeovers, whichever generation owns the pipeline.
    ///
    /// # Errors
    /// If the store fails.
    fn put_takeovers(&mut self, takeovers: Takeovers) -> Result<(), LedgerError>;

    /// Returns the most recent takeovers from live runs; None if there were none.
    ///
    /// # Errors
    /// If the store fails.
    fn takeovers(&mut self) -> Result<Option<Takeovers>, LedgerError>;

    /// Records the beginning of the pipeline.
    ///
    /// # Errors
    /// If the pipeline was taken over or has already begun, or the store fails.
    fn begin(&mut self, genesis: &Genesis) -> Result<(), LedgerError>;

    /// Returns the contents of the ledger without claiming it; None if the pipeline has never been started. Like every
    /// method that only reads, it may be called at any time.
    ///
    /// # Errors
    /// If the store cannot be reached or contains an invalid value.
    fn peek(&mut self) -> Result<Option<Claim>, LedgerError>;

    /// Returns every epoch recorded after `after`, in order.
    ///
    /// # Errors
    /// If some of these epochs were pruned, the store fails, or a round is damaged.
    fn epochs(&mut self, after: Epoch) -> Result<Vec<EpochRecord>, LedgerError>;

    /// Returns the last epoch of the pruned rounds; 0 if none were pruned.
    ///
    /// # Errors
    /// If the store fails.
    fn pruned(&mut self) -> Result<Epoch, LedgerError>;

    /// Returns every manifest, in order.
    ///
    /// # Errors
    /// If the store fails. A damaged manifest does not hide the others.
    fn manifests(&mut self) -> Result<Vec<StoredManifest>, LedgerError>;

    /// Records bound epochs, in ascending order, all of them after the last recorded epoch.
    ///
    /// # Errors
    /// If the pipeline was taken over or the store fails.
    fn append(&mut self, epochs: &[EpochRecord]) -> Result<(), LedgerError>;

    /// Records a manifest that is newer than all others and, in the same transaction, prunes the ledger. A start can
    /// then resume from the newest `keep` manifests, of which the beginning counts as one; epochs that none of them
    /// needs are deleted.
    ///
    /// # Errors
    /// If the pipeline was taken over, the store fails, or the manifest is not newer than all others or has invalid
    /// parts.
    fn conclude(&mut self, manifest: &Manifest, keep: usize) -> Result<(), LedgerError>;

    /// Records changed semantics of the pipeline. From now on it resumes only from `manifest`, which must be of the
    /// last recorded epoch: the same transaction deletes all other manifests, also one of the same epoch, and all
    /// epochs, because they could no longer be replayed with the same results. Without a manifest, no epoch may have
    /// been recorded.
    ///
    /// # Errors
    /// If the pipeline was taken over, the store fails, or there are epochs after the manifest.
    fn amend(&mut self, semantics: &str, manifest: Option<&Manifest>) -> Result<(), LedgerError>;
}

/// Decodes a stored range of records.
fn read_loss(partition: i64, first: i64, next: i64) -> Loss {
    Loss { partition: Partition(partition as u32), first: Offset(first), next: Offset(next) }
}

/// Advice for a ledger whose contents are invalid.
const RESTORE: &str = "restore the ledger from a backup, or start under another `pipeline` name with its own \
                       tables: that pipeline reads the source from the beginning and has none of the previous \
                       state";

/// The version of a pipeline's row while none of its rounds were pruned.
const UNPRUNED: i64 = 1;
/// The version after rounds were pruned: a program without support for manifests must not start from the remaining
/// rounds.
const PRUNED: i64 = 2;

fn check_version(pipeline: &str, version: i64) -> Result<(), LedgerError> {
    if (UNPRUNED..=PRUNED).contains(&version) {
        return Ok(());
    }
    Err(LedgerError::Refused(format!(
        "the ledger of pipeline {pipeline} has version {version}, and this program supports versions {UNPRUNED} to \
         {PRUNED}: run the program that wrote it, or a later one"
    )))
}

/// Returns a new ledger id from the random number generator of the operating system.
fn new_ledger_id() -> Result<LedgerId, LedgerError> {
    use std::io::Read;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|error| unavailable("generate a random ledger id", error))?;
    Ok(LedgerId(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}

fn unavailable(
    action: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> LedgerError {
    LedgerError::Unavailable { action: action.into(), source: source.into() }
}

/// Decodes the stored beginning of a pipeline.
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

/// Decodes a stored manifest.
fn read_manifest(pipeline: &str, epoch: i64, bytes: &[u8]) -> StoredManifest {
    let manifest = match manifest::decode(bytes) {
        Ok(manifest) if manifest.epoch.0 as i64 == epoch => Ok(manifest),
        Ok(_) => Err("it belongs to another epoch".to_owned()),
        Err(damaged) => Err(damaged.to_string()),
    };
    let manifest = manifest.map_err(|damage| {
        LedgerError::Refused(format!(
            "the manifest of epoch {epoch} of pipeline {pipeline} is damaged: {damage}"
        ))
    });
    StoredManifest { epoch: Epoch(epoch as u64), manifest }
}

/// Encodes a manifest for the store.
fn write_manifest(manifest: &Manifest) -> Result<(i64, Vec<u8>), LedgerError> {
    if !are_chains(&manifest.parts) {
        let reason =
            format!("the parts of epoch {} are not a base and its deltas for each shard", manifest.epoch);
        return Err(LedgerError::Refused(reason));
    }
    Ok((manifest.epoch.0 as i64, manifest::encode(manifest)))
}

/// Returns an error if any epoch after `after` was pruned.
fn check_not_pruned(pipeline: &str, after: Epoch, pruned: Epoch) -> Result<(), LedgerError> {
    if after >= pruned {
        return Ok(());
    }
    Err(LedgerError::Refused(format!(
        "cannot read the epochs of pipeline {pipeline} after {after}: the epochs through {pruned} were pruned"
    )))
}

/// Returns an error if the epoch of a new manifest is not above all others.
fn check_ascending(pipeline: &str, epoch: Epoch, before: &[Epoch]) -> Result<(), LedgerError> {
    match before.last() {
        Some(last) if *last >= epoch => Err(LedgerError::Refused(format!(
            "cannot record the manifest of epoch {epoch}: pipeline {pipeline} has a manifest of epoch {last}"
        ))),
        _ => Ok(()),
    }
}

/// Returns an error if an epoch was recorded after the manifest of a configuration change.
fn check_nothing_after(
    pipeline: &str,
    manifest: Option<&Manifest>,
    last: Option<Epoch>,
) -> Result<(), LedgerError> {
    let through = manifest.map(|manifest| manifest.epoch);
    match last {
        Some(last) if Some(last) > through => Err(LedgerError::Refused(format!(
            "pipeline {pipeline} has recorded epoch {last}, which would have to be replayed with a changed configuration"
        ))),
        _ => Ok(()),
    }
}

/// Returns the reason why nothing was written: the pipeline has another generation now, or is no longer in the ledger.
fn ownership_error(pipeline: &str, current: Option<i64>) -> LedgerError {
    match current {
        Some(current) => {
            LedgerError::Fenced { pipeline: pipeline.to_owned(), generation: Generation(current as u64) }
        }
        None => LedgerError::Refused(format!(
            "pipeline {pipeline} is no longer in the ledger: it was wiped; {RESTORE}"
        )),
    }
}

/// Decodes a stored round.
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
