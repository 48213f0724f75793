//! The failure of a run: the first one, from any thread, ends the run. A refusal ends it in order.

use std::sync::{Arc, OnceLock};

use headwater_dataflows::{Epoch, RestoreError};
use headwater_sinks::{CommitError, OpenError, StageError};
use thiserror::Error;

use crate::cluster::{ClusterError, PeerLost};
use crate::coordination::{InvalidPart, NoResume, Protocol};
use crate::ledger::LedgerError;
use crate::runtime::recovery::compatibility::IncompatibleState;
use crate::source::SourceError;
use crate::state::StateError;

/// The reason why a run ended before its input did.
#[derive(Debug, Error)]
pub enum RunError {
    /// The source cannot be read, or reading it is refused.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A sink cannot be opened, or opening it is refused.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A sink refused an output.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A sink did not commit, or the outcome of the commit is unknown.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A zombie has fenced a sink, although this run owns the ledger. The zombie will find that it was fenced itself.
    #[error("sink {sink}: fenced again by a zombie instance: {reason}")]
    FencedByZombie {
        /// The sink's name.
        sink: String,
        /// The message of the sink.
        reason: String,
    },
    /// A worker broke the protocol.
    #[error(transparent)]
    Protocol(#[from] Protocol),
    /// The workers could not be started.
    #[error("cannot start workers: {0}")]
    Workers(String),
    /// The process cannot be part of its cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Another process of the cluster was lost.
    #[error(transparent)]
    PeerLost(#[from] PeerLost),
    /// The ledger failed, or refused the operation.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The replay of an epoch differs from the recorded epoch.
    #[error(
        "replay of epoch {epoch} diverged from the ledger: {detail}; the input or the decoder has changed: restore it, \
         or discard all state: `--discard-state all:EPOCH`, where EPOCH is the last recorded epoch, which `headwater status` \
         prints; nothing is replayed then, and open windows and pattern state are lost"
    )]
    Replay {
        /// The epoch.
        epoch: Epoch,
        /// The difference.
        detail: String,
    },
    /// The rules of a change cannot be read in this process.
    #[error(
        "the rules that are bound to epoch {epoch} are not valid in this process: {reason}; start all processes with the same \
         program and configuration"
    )]
    Rules {
        /// The epoch.
        epoch: Epoch,
        /// The reason.
        reason: String,
    },
    /// The contents of a list that the start needs cannot be read.
    #[error(
        "the contents {hash} of the list {list}, which events are judged by, cannot be read from the state store: {damage}; \
         restore the state store, or discard all state: `--discard-state all:EPOCH`, where EPOCH is the last recorded epoch, \
         which `headwater status` prints; the lists are read again then"
    )]
    ListContents {
        /// The name of the list.
        list: String,
        /// The SHA-256 of the contents.
        hash: String,
        /// The damage.
        damage: String,
    },
    /// The contents of a list that a change names did not come with it.
    #[error("the contents of the list {list} that are bound to epoch {epoch} are missing: {reason}")]
    ListChange {
        /// The epoch.
        epoch: Epoch,
        /// The name of the list.
        list: String,
        /// The reason.
        reason: String,
    },
    /// Several runs were killed at the same epoch.
    #[error(
        "the last {runs} runs were killed before they recorded anything after epoch {durable}, while records waited \
         from {unread} (TOPIC:PARTITION:OFFSET) on: a batch that decompresses to more than the available memory may be \
         the cause. Give the process more memory and start it again, which is permitted after this refusal; or \
         `--accept-loss TOPIC:PARTITION:OFFSET` resumes after OFFSET, the last offset of that batch (lastOffset in the \
         output of kafka-dump-log.sh): the partition's records since the last checkpoint through OFFSET are never read, \
         and committed results stay"
    )]
    Killed {
        /// The number of killed runs.
        runs: u64,
        /// The last epoch of the ledger.
        durable: Epoch,
        /// The positions of the first records that have not been read.
        unread: String,
    },
    /// There is no state to resume from, or the ledger and the sinks contradict each other.
    #[error(transparent)]
    Resume(#[from] NoResume),
    /// The state of the pipeline does not fit the configuration or the program.
    #[error(transparent)]
    IncompatibleState(#[from] IncompatibleState),
    /// The state store failed, or refused the operation.
    #[error(transparent)]
    State(#[from] StateError),
    /// A part of a checkpoint is missing or damaged.
    #[error(
        "checkpoint: part {name}: {damage}; restore the state store, or discard all state: `--discard-state all:EPOCH`, where \
         EPOCH is the last recorded epoch, which `headwater status` prints; nothing is replayed then, and open windows \
         and pattern state are lost"
    )]
    Part {
        /// The name of the part.
        name: String,
        /// The damage.
        damage: String,
    },
    /// The state of a checkpoint does not fit this pipeline's operators.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A worker has stored an invalid part of a checkpoint.
    #[error("checkpoint: {0}")]
    InvalidPart(#[from] InvalidPart),
    /// Too many of the records that were read are no events. The run has ended in order.
    #[error(
        "{percent} % of {records} records that were read within {window:?} were rejected, more than limits.max_rejected_share = \
         {max_share}: most often {most}; what was read is committed, and the next start resumes after it: correct the \
         producer or the configuration and start it again, or raise `limits.max_rejected_share` (\"off\" sets no limit); \
         `headwater dead-letters groups` shows what was rejected, and `headwater dead-letters retry` sends it again"
    )]
    RejectedShare {
        /// The number of rejected records.
        rejected: u64,
        /// The number of records.
        records: u64,
        /// The time within which they were read.
        window: std::time::Duration,
        /// The share, in percent.
        percent: u64,
        /// The limit.
        max_share: f64,
        /// The most frequent rejection, with an example.
        most: String,
    },
    /// A file that records the run, such as the trace of its bindings, cannot be written.
    #[error("cannot write {path}")]
    Record {
        /// The file.
        path: String,
        /// The error.
        source: std::io::Error,
    },
}

impl RunError {
    /// Returns true if the run must not resume without a decision of the operator: a restart does not help.
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
                    | RunError::RejectedShare { .. }
                    | RunError::Resume(_)
                    | RunError::IncompatibleState(_)
                    | RunError::State(StateError::Refused(_))
                    | RunError::Part { .. }
                    | RunError::ListContents { .. }
                    | RunError::Restore(_)
            )
    }

    /// Returns true if a later start has taken over.
    pub fn is_replacement(&self) -> bool {
        matches!(
            self,
            RunError::Open(OpenError::Fenced { .. })
                | RunError::Commit(CommitError::Fenced { .. })
                | RunError::Ledger(LedgerError::Fenced { .. })
        )
    }
}

/// The shared slots of the failures of a run.
#[derive(Clone, Debug, Default)]
pub struct Failure(Arc<Slots>);

#[derive(Debug, Default)]
struct Slots {
    /// The first failure. Later ones are only logged.
    first: OnceLock<RunError>,
    /// The refusal of a run that ends in order.
    refusal: OnceLock<RunError>,
}

impl Failure {
    /// Reports a failure, which ends the run at once.
    pub fn report(&self, error: RunError) {
        let Err(later) = self.0.first.set(error) else { return };
        if matches!(self.0.first.get(), Some(RunError::PeerLost(_))) {
            // The workers of this process stop in the middle of whatever they do.
            tracing::debug!(error = %later, "a consequence of the loss of a process");
        } else {
            tracing::warn!(error = %later, "another failure while the run ends");
        }
    }

    /// Reports a refusal that is the outcome of the run once it has ended in order, unless it fails before. Returns
    /// false if there was another.
    pub fn refuse_at_end(&self, error: RunError) -> bool {
        self.0.refusal.set(error).is_ok()
    }

    /// Returns true if there was a failure.
    pub fn is_some(&self) -> bool {
        self.0.first.get().is_some()
    }

    /// Returns the message of the failure, if there was one.
    pub fn reason(&self) -> Option<String> {
        self.0.first.get().map(ToString::to_string)
    }

    /// Returns the failure or refusal, if there was one. Must be called on the last clone: other clones make it return
    /// Ok.
    pub fn into_result(self) -> Result<(), RunError> {
        let Some(Slots { first, refusal }) = Arc::into_inner(self.0) else { return Ok(()) };
        match first.into_inner().or(refusal.into_inner()) {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_hides_a_refusal_at_the_end() {
        let refusal = || RunError::Workers("refused".into());
        let failure = Failure::default();
        assert!(failure.refuse_at_end(refusal()) && !failure.refuse_at_end(refusal()));
        assert!(!failure.is_some(), "the run goes on");
        assert!(failure.clone().into_result().is_ok(), "not the last clone");
        let error = failure.into_result().expect_err("refused");
        assert!(error.to_string().ends_with("refused"), "{error}");

        let failure = Failure::default();
        failure.refuse_at_end(refusal());
        failure.report(RunError::Workers("failed".into()));
        let error = failure.into_result().expect_err("failed");
        assert!(error.to_string().ends_with("failed"), "{error}");
    }
}
