//! What every sink promises: [`Sink`], and the words it is said in.

use std::fmt;

use headwater_dataflows::{Epoch, SHARDS, ShardId};
use thiserror::Error;

use crate::Changes;

/// The random identity of a pipeline's ledger, set once: 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LedgerId(pub String);

/// The fencing number of a start: each start of a pipeline has a higher one than all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of logical shards: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shards(pub u64);

impl Shards {
    /// All of them.
    pub const ALL: Shards = Shards(u64::MAX);

    /// The shards that live on the workers `workers` of `peers` in all.
    pub fn of_workers(workers: std::ops::Range<usize>, peers: usize) -> Shards {
        Shards(
            (0..SHARDS)
                .filter(|&s| workers.contains(&ShardId(s).worker(peers)))
                .fold(0, |set, s| set | 1 << s),
        )
    }

    /// Whether `shard` is in the set.
    pub fn contains(self, shard: ShardId) -> bool {
        self.0 >> shard.0 & 1 == 1
    }
}

/// What a sink has durably taken: every output of `shards` for every epoch up to and including `through`.
///
/// Written in the same transaction as the outputs that it speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The ledger that these outputs belong to.
    pub ledger_id: LedgerId,
    /// The start that wrote them.
    pub generation: Generation,
    /// The logical shards this writer is responsible for.
    pub shards: Shards,
    /// The last epoch that is complete in the sink.
    pub through: Epoch,
}

/// Who is about to write: handed to [`Sink::open`].
#[derive(Clone, Debug)]
pub struct WriterContext {
    /// The pipeline's name: prefixes every row, transactional id and internal topic.
    pub pipeline: String,
    /// The pipeline's ledger. A sink whose progress names another is refused.
    pub ledger_id: LedgerId,
    /// This start's generation.
    pub generation: Generation,
    /// Which process of the cluster writes here: one writer per process and sink.
    pub process: usize,
    /// The shards that this writer is responsible for.
    pub shards: Shards,
    /// How many processes may ever have written here: the first one fences them all.
    pub max_processes: usize,
    /// If set, the sink is adopted: whatever progress it has, of whichever ledger, is replaced by this, durably.
    pub adopt: Option<Epoch>,
}

impl WriterContext {
    /// Why it must not write a sink with this progress, which this start was the last to open, if so.
    pub fn objection_to(
        &self,
        sink: &str,
        progress: &[Progress],
        last: Option<&(LedgerId, Generation)>,
    ) -> Option<String> {
        // A start that has committed nothing has promised nothing: another ledger's may be replaced.
        let last = last.filter(|(ledger_id, _)| self.adopt.is_none() && *ledger_id == self.ledger_id);
        let written = progress.iter().map(|found| (&found.ledger_id, found.generation));
        let opened = last.map(|(ledger_id, generation)| (ledger_id, *generation));
        written.chain(opened).find_map(|(ledger_id, generation)| self.objection(sink, ledger_id, generation))
    }

    /// Why it must not write a sink in which this ledger and generation have been, if so: its own is another ledger, or it
    /// is older.
    pub fn objection(&self, sink: &str, ledger_id: &LedgerId, generation: Generation) -> Option<String> {
        let found = if *ledger_id != self.ledger_id {
            format!(
                "its progress belongs to another ledger ({}), and this one is {}: this one was begun anew, or is another \
                 pipeline's; restore that one",
                ledger_id.0, self.ledger_id.0
            )
        } else if generation > self.generation {
            format!(
                "generation {generation} has written here and this start is {}: it has a successor, or its ledger is an \
                 older copy; restore the newest",
                self.generation
            )
        } else {
            return None;
        };
        Some(format!(
            "{found}, or `--reset-sink {sink} --accept-duplicates` goes on with this one: what is read again gives its \
             results a second time (tables that have the rows already refuse them: empty those first)"
        ))
    }
}

/// The right to make everything up to an epoch visible. Only coordination hands it out, once the epoch is
/// complete on every worker and what must be durable before it is durable.
#[derive(Debug)]
#[must_use = "a permit is for one commit"]
pub struct CommitPermit {
    through: Epoch,
}

impl CommitPermit {
    /// To be called by the pipeline's coordination alone.
    pub fn granted(through: Epoch) -> CommitPermit {
        CommitPermit { through }
    }

    /// The last epoch that may become visible.
    pub fn through(&self) -> Epoch {
        self.through
    }
}

/// Why a sink could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The store could not be reached or answered with an error; trying again may help.
    #[error("sink {sink}: cannot open {what}")]
    Unavailable {
        /// The sink's name.
        sink: String,
        /// What was being opened: a server, table or topic.
        what: String,
        /// The store's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Opening would break the promise: another lineage, a higher generation, a missing table or topic.
    #[error("sink {sink}: {reason}")]
    Refused {
        /// The sink's name.
        sink: String,
        /// What is missing or in the way, for the operator.
        reason: String,
    },
    /// Another process took the sink over while it was being opened: a successor, or a predecessor that woke up. The
    /// ledger knows which.
    #[error("sink {sink}: {reason}")]
    Fenced {
        /// The sink's name.
        sink: String,
        /// The store's words.
        reason: String,
    },
}

/// Why changes could not be staged. Nothing of the round has become visible.
#[derive(Debug, Error)]
#[error("sink {sink}: cannot stage epoch {epoch}: {reason}")]
pub struct StageError {
    /// The sink's name.
    pub sink: String,
    /// The epoch whose changes were refused.
    pub epoch: Epoch,
    /// What was refused and why.
    pub reason: String,
}

/// Why a commit did not succeed, by what is known of its outcome.
#[derive(Debug, Error)]
pub enum CommitError {
    /// It did not happen: nothing of the round is visible, and the same round may be tried again.
    #[error("sink {sink}: commit through epoch {through} failed: {reason}")]
    Failed {
        /// The sink's name.
        sink: String,
        /// The last epoch of the round.
        through: Epoch,
        /// The store's words.
        reason: String,
    },
    /// It did not happen and never will: the store does not take the round as it is. A key is there already, say, a
    /// value is none that it can hold, or a message is larger than its topic takes. The reason names the output as closely
    /// as the store does.
    #[error("sink {sink}: commit through epoch {through} was refused: {reason}")]
    Refused {
        /// The sink's name.
        sink: String,
        /// The last epoch of the round.
        through: Epoch,
        /// The store's words.
        reason: String,
    },
    /// Nobody knows whether it happened. The process must end; the next start reads the sink's progress.
    #[error("sink {sink}: outcome of the commit through epoch {through} is unknown: {reason}")]
    Indeterminate {
        /// The sink's name.
        sink: String,
        /// The last epoch of the round.
        through: Epoch,
        /// The store's words.
        reason: String,
    },
    /// A later start has taken over. The process must end and not come back.
    #[error("sink {sink}: fenced by a later start: {reason}")]
    Fenced {
        /// The sink's name.
        sink: String,
        /// The store's words.
        reason: String,
    },
}

/// A store that takes outputs epoch by epoch and shows them transactionally.
///
/// # Contract
/// - [`open`](Sink::open) comes first; it fences writers of older generations and returns the progress found, per
///   writer, or none if the sink has never been written. It may come again, to adopt the sink, before anything is staged.
/// - [`stage`](Sink::stage) may be called for any epoch above the last committed one, in any order and as often
///   as wanted per epoch; nothing staged is visible to a reader that reads committed data.
/// - [`commit`](Sink::commit) makes all that was staged for epochs up to the permit's visible, together with a
///   [`Progress`] that says so, atomically; what was staged for later epochs stays staged. Permits ascend.
/// - After [`CommitError::Failed`] what was staged is still staged, and the caller may commit again.
/// - Append-only outputs keep all changes; keyed tables get each key's last change of the round, in the order
///   (epoch, order of staging).
///
/// Calls block; each sink runs on a thread of its own.
pub trait Sink: Send {
    /// The name under which configuration, metrics and progress know this sink.
    fn name(&self) -> &str;

    /// Connects, fences older generations, checks that tables or topics exist, and reads what is committed.
    fn open(&mut self, context: &WriterContext) -> Result<Vec<Progress>, OpenError>;

    /// The progress that is there, as of a moment ago, without opening: nobody is fenced, nothing is made, and nothing is
    /// refused. None if the sink has never been written.
    fn peek_progress(&mut self, pipeline: &str) -> Result<Vec<Progress>, OpenError>;

    /// The largest message that it takes, in bytes of key, value and headers together, if it has such a bound; known
    /// once it is open. Whoever encodes messages keeps below it: a larger one stops the sink.
    fn largest_message(&self) -> Option<usize> {
        None
    }

    /// The topics that messages name by their index; none of a sink of tables.
    fn topics(&self) -> &[String] {
        &[]
    }

    /// Takes the changes of one epoch, to be shown by a later commit.
    fn stage(&mut self, epoch: Epoch, changes: Changes) -> Result<(), StageError>;

    /// Shows everything staged up to the permit's epoch, with progress, in one transaction.
    fn commit(&mut self, permit: CommitPermit) -> Result<(), CommitError>;
}
