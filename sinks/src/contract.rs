//! The contract of every sink: the trait [`Sink`] and its types.

use std::fmt;

use headwater_dataflows::{Epoch, SHARDS, ShardId};
use thiserror::Error;

use crate::Changes;

/// The random id of a ledger, assigned when the ledger is created: 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LedgerId(pub String);

/// The fencing number of a start. Each start of a pipeline has a higher generation than all earlier starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of shards, one bit per shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shards(pub u64);

impl Shards {
    /// All shards.
    pub const ALL: Shards = Shards(u64::MAX);

    /// Returns the shards of the workers `workers`, out of `peers` workers in total.
    pub fn of_workers(workers: std::ops::Range<usize>, peers: usize) -> Shards {
        Shards(
            (0..SHARDS)
                .filter(|&s| workers.contains(&ShardId(s).worker(peers)))
                .fold(0, |set, s| set | 1 << s),
        )
    }

    /// Returns true if `shard` is in the set.
    pub fn contains(self, shard: ShardId) -> bool {
        self.0 >> shard.0 & 1 == 1
    }
}

/// The progress of one writer: the sink has committed every output of `shards` for every epoch up to and including
/// `through`.
///
/// Written in the same transaction as the outputs that it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The ledger that these outputs belong to.
    pub ledger_id: LedgerId,
    /// The generation of the start that wrote them.
    pub generation: Generation,
    /// The shards that this writer is responsible for.
    pub shards: Shards,
    /// The last epoch that is complete in the sink.
    pub through: Epoch,
}

/// The identity of a writer, passed to [`Sink::open`].
#[derive(Clone, Debug)]
pub struct WriterContext {
    /// The name of the pipeline. Part of progress rows, transactional ids and the name of the progress topic.
    pub pipeline: String,
    /// The ledger of the pipeline. A sink with progress of another ledger is refused.
    pub ledger_id: LedgerId,
    /// The generation of this start.
    pub generation: Generation,
    /// The index of this process in the cluster. There is one writer per process and sink.
    pub process: usize,
    /// The shards that this writer is responsible for.
    pub shards: Shards,
    /// The greatest number of processes that may ever have written to this sink. Process 0 fences all of them.
    pub max_processes: usize,
    /// The epoch that durably replaces all progress of the sink, of any ledger. `None` unless the sink is adopted.
    pub adopt: Option<Epoch>,
}

impl WriterContext {
    /// Returns the reason why this start must not write to a sink with this progress; `None` if it may. `last` is the
    /// last start that opened the sink.
    pub fn objection_to(
        &self,
        sink: &str,
        progress: &[Progress],
        last: Option<&(LedgerId, Generation)>,
    ) -> Option<String> {
        // A start of another ledger that has committed nothing may be replaced. If it had committed, its progress would
        // be in `progress`.
        let last = last.filter(|(ledger_id, _)| self.adopt.is_none() && *ledger_id == self.ledger_id);
        let written = progress.iter().map(|found| (&found.ledger_id, found.generation));
        let opened = last.map(|(ledger_id, generation)| (ledger_id, *generation));
        written.chain(opened).find_map(|(ledger_id, generation)| self.objection(sink, ledger_id, generation))
    }

    /// Returns the reason why this start must not write to a sink that a start of `ledger_id` and `generation` has
    /// written or opened: this start belongs to another ledger, or is older. Returns `None` if it may.
    pub fn objection(&self, sink: &str, ledger_id: &LedgerId, generation: Generation) -> Option<String> {
        let found = if *ledger_id != self.ledger_id {
            format!(
                "its progress belongs to another ledger ({}), not to the current one ({}): the current ledger was \
                 recreated, or belongs to another pipeline; restore the other ledger",
                ledger_id.0, self.ledger_id.0
            )
        } else if generation > self.generation {
            format!(
                "generation {generation} has written here and this start is generation {}: a later start has taken \
                 over, or the ledger is an older copy; restore the newest copy",
                self.generation
            )
        } else {
            return None;
        };
        Some(format!(
            "{found}, or use `--adopt-sink {sink} --accept-duplicates` to mark the sink as caught up with the current \
             ledger: results of records that are read again are written a second time (tables reject rows that they \
             already have: empty those tables first)"
        ))
    }
}

/// The permission to make everything up to an epoch visible. Only coordination grants it, after the epoch is complete
/// on every worker and everything that must be durable before the commit is durable.
#[derive(Debug)]
#[must_use = "a permit is for one commit"]
pub struct CommitPermit {
    through: Epoch,
}

impl CommitPermit {
    /// Creates a permit. Only the coordination of the pipeline may call this.
    pub fn granted(through: Epoch) -> CommitPermit {
        CommitPermit { through }
    }

    /// Returns the last epoch that may become visible.
    pub fn through(&self) -> Epoch {
        self.through
    }
}

/// The error of opening a sink.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The store could not be reached or returned an error. A retry may succeed.
    #[error("sink {sink}: cannot open {what}")]
    Unavailable {
        /// The name of the sink.
        sink: String,
        /// The server, table or topic that was being opened.
        what: String,
        /// The store's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Opening would violate the contract: another ledger id, a higher generation, a missing table or topic.
    #[error("sink {sink}: {reason}")]
    Refused {
        /// The name of the sink.
        sink: String,
        /// The problem, and what the operator must do.
        reason: String,
    },
    /// Another process took over the sink while it was being opened: a later start, or a zombie that was resumed. The
    /// generation in the ledger distinguishes the two.
    #[error("sink {sink}: {reason}")]
    Fenced {
        /// The name of the sink.
        sink: String,
        /// The error message of the store.
        reason: String,
    },
}

/// The error of staging changes. Nothing of the round has become visible.
#[derive(Debug, Error)]
#[error("sink {sink}: cannot stage epoch {epoch}: {reason}")]
pub struct StageError {
    /// The name of the sink.
    pub sink: String,
    /// The epoch whose changes were refused.
    pub epoch: Epoch,
    /// The output that was refused, and the reason.
    pub reason: String,
}

/// The error of a commit, by its known outcome.
#[derive(Debug, Error)]
pub enum CommitError {
    /// The commit failed: nothing of the round is visible, and the same round may be retried.
    #[error("sink {sink}: commit through epoch {through} failed: {reason}")]
    Failed {
        /// The name of the sink.
        sink: String,
        /// The last epoch of the round.
        through: Epoch,
        /// The error message of the store.
        reason: String,
    },
    /// The commit failed, and every retry will fail: the store rejects an output of the round. For example, the key
    /// exists already, the store cannot store the value, or the message is larger than its topic allows. The reason
    /// identifies the output as precisely as the store does.
    #[error("sink {sink}: commit through epoch {through} was refused: {reason}")]
    Refused {
        /// The name of the sink.
        sink: String,
        /// The last epoch of the round.
        through: Epoch,
        /// The error message of the store.
        reason: String,
    },
    /// The outcome is unknown. The process must end; the next start reads the progress of the sink.
    #[error("sink {sink}: outcome of the commit through epoch {through} is unknown: {reason}")]
    Indeterminate {
        /// The name of the sink.
        sink: String,
        /// The last epoch of the round.
        through: Epoch,
        /// The error message of the store.
        reason: String,
    },
    /// A later start has taken over. The process must end and must not be restarted.
    #[error("sink {sink}: fenced by a later start: {reason}")]
    Fenced {
        /// The name of the sink.
        sink: String,
        /// The error message of the store.
        reason: String,
    },
}

/// A store that accepts outputs by epoch and commits them in transactions.
///
/// # Contract
/// - [`open`](Sink::open) is called first. It fences writers of older generations and returns the progress of each
///   writer, or none if the sink has never been written. It may be called again, to adopt the sink, before anything is
///   staged.
/// - [`stage`](Sink::stage) may be called for any epoch above the last committed one, in any order and any number of
///   times per epoch. Staged outputs are not visible to readers of committed data.
/// - [`commit`](Sink::commit) makes all outputs staged for epochs up to that of the permit visible, together with their
///   [`Progress`], atomically. Outputs of later epochs stay staged. The epochs of successive permits increase.
/// - After [`CommitError::Failed`] everything is still staged, and the caller may commit again.
/// - Append-only outputs keep all changes. Keyed tables get the last change of each key in the round, in the order
///   (epoch, order of staging).
///
/// Calls block. Each sink runs on its own thread.
pub trait Sink: Send {
    /// Returns the name of this sink in configuration, metrics and progress.
    fn name(&self) -> &str;

    /// Connects, fences older generations, checks that tables or topics exist, and returns the committed progress.
    fn open(&mut self, context: &WriterContext) -> Result<Vec<Progress>, OpenError>;

    /// Reads the progress without opening the sink: fences no writer, creates nothing and checks nothing. The result
    /// may be out of date. Empty if the sink has never been written.
    fn peek_progress(&mut self, pipeline: &str) -> Result<Vec<Progress>, OpenError>;

    /// Returns the size of the largest message that the sink accepts, in bytes of key, value and headers together, if
    /// it has such a limit and is open. Encoders must not exceed it: a larger message stops the sink.
    fn largest_message(&self) -> Option<usize> {
        None
    }

    /// Returns the topics to which messages refer by index; none for a sink that writes tables.
    fn topics(&self) -> &[String] {
        &[]
    }

    /// Stages changes of one epoch, to be made visible by a later commit.
    fn stage(&mut self, epoch: Epoch, changes: Changes) -> Result<(), StageError>;

    /// Commits everything staged up to the epoch of the permit, together with the progress, in one transaction.
    fn commit(&mut self, permit: CommitPermit) -> Result<(), CommitError>;
}
