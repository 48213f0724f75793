//! The first failure of a run, from whichever thread it comes: it ends the run.

use std::sync::{Arc, OnceLock};

use headwater_dataflows::{Epoch, RestoreError};
use headwater_sinks::{CommitError, OpenError, StageError};
use thiserror::Error;

use super::config_change::IncompatibleState;
use crate::coordination::{InvalidPart, NoResume, Protocol};
use crate::ledger::LedgerError;
use crate::source::SourceError;
use crate::state::StateError;

/// Why a run ended before its input did.
#[derive(Debug, Error)]
pub enum RunError {
    /// The source cannot be read, or must not be.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A sink cannot be opened, or must not be.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A sink refused an output.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A sink did not commit, or nobody knows whether it did.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A process of before has taken a sink, though the ledger is ours; it will find that it may not write.
    #[error("sink {sink}: fenced again by a zombie instance: {reason}")]
    FencedByZombie {
        /// The sink's name.
        sink: String,
        /// The store's words.
        reason: String,
    },
    /// A worker broke the protocol.
    #[error(transparent)]
    Protocol(#[from] Protocol),
    /// The workers could not be started.
    #[error("cannot start workers: {0}")]
    Workers(String),
    /// The ledger cannot be used, or must not be.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// An epoch that was done again was not what it had been.
    #[error(
        "replay of epoch {epoch} diverged from the ledger: {detail}; the input or the decoder has changed: restore it, or \
         forget all state: `--reset all:EPOCH` with the epoch through which `headwater status` says that it is recorded; \
         nothing is read again then, and what was open is lost"
    )]
    Replay {
        /// Which epoch.
        epoch: Epoch,
        /// What differs.
        detail: String,
    },
    /// Runs were killed at the same place, again and again.
    #[error(
        "the last {runs} runs were killed before they recorded anything after epoch {durable}, with records waiting from \
         {unread} (TOPIC:PARTITION:OFFSET) on: a batch that decompresses to more memory than there is does that. Give the \
         process more memory and start it again, which this refusal permits; or `--accept-loss TOPIC:PARTITION:OFFSET` goes \
         on after OFFSET, which is to be the last of that batch (kafka-dump-log.sh shows it as lastOffset): the records of \
         the partition since the last checkpoint and through OFFSET are never read, results that were committed stay"
    )]
    Killed {
        /// How many.
        runs: u64,
        /// The ledger's end.
        durable: Epoch,
        /// What waits to be read.
        unread: String,
    },
    /// There is nothing to go on from, or what there is does not fit together.
    #[error(transparent)]
    Resume(#[from] NoResume),
    /// The configuration or the program is not what the pipeline's state was made by.
    #[error(transparent)]
    IncompatibleState(#[from] IncompatibleState),
    /// The state store cannot be used, or must not be.
    #[error(transparent)]
    State(#[from] StateError),
    /// A part of a checkpoint is not what was put.
    #[error(
        "checkpoint: part {name}: {damage}; restore the state store, or forget all state: `--reset all:EPOCH` with the epoch \
         through which `headwater status` says that it is recorded; nothing is read again then, and what was open is lost"
    )]
    Part {
        /// Its name.
        name: String,
        /// What is wrong with it.
        damage: String,
    },
    /// The state of a checkpoint is not that of this pipeline's operators.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A worker's word about a checkpoint contradicts what is known.
    #[error("checkpoint: {0}")]
    InvalidPart(#[from] InvalidPart),
    /// A file of the run's own cannot be written.
    #[error("cannot write {path}")]
    Record {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl RunError {
    /// Whether going on would break a promise, so that a restart would not help.
    pub fn is_refusal(&self) -> bool {
        self.is_replacement()
            || matches!(
                self,
                RunError::Source(SourceError::Refused(_))
                    | RunError::Open(OpenError::Refused { .. })
                    | RunError::Commit(CommitError::Refused { .. })
                    | RunError::Ledger(LedgerError::Refused(_))
                    | RunError::Stage(_)
                    | RunError::Replay { .. }
                    | RunError::Killed { .. }
                    | RunError::Resume(_)
                    | RunError::IncompatibleState(_)
                    | RunError::State(StateError::Refused(_))
                    | RunError::Part { .. }
                    | RunError::Restore(_)
            )
    }

    /// Whether a later start has taken over.
    pub fn is_replacement(&self) -> bool {
        matches!(
            self,
            RunError::Open(OpenError::Fenced { .. })
                | RunError::Commit(CommitError::Fenced { .. })
                | RunError::Ledger(LedgerError::Fenced { .. })
        )
    }
}

/// Where failures are reported. Only the first counts.
#[derive(Clone, Debug, Default)]
pub struct Failure(Arc<OnceLock<RunError>>);

impl Failure {
    /// Reports a failure.
    pub fn report(&self, error: RunError) {
        if let Err(later) = self.0.set(error) {
            tracing::warn!(error = %later, "a further failure while the run ends");
        }
    }

    /// Whether there was one.
    pub fn is_some(&self) -> bool {
        self.0.get().is_some()
    }

    /// The failure, if there was one; for the last to hold it.
    pub fn into_result(self) -> Result<(), RunError> {
        match Arc::into_inner(self.0).and_then(OnceLock::into_inner) {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}
