//! Rounds of commits: the epochs by which the frontier behind all sinks advances at once, with the times of their steps.
//!
//! ```text
//!   readers ── records, contexts of sampled records ──┐
//!   ledger's writer ── appends ───────────────────────┼▶ RoundRecorder ──▶ Round, on each advance of the frontier
//!   sinks' writers ── transactions ───────────────────┘         ▲
//!   watch ── opened, bound, computed, committed ────────────────┘
//! ```
//!
//! Each sink commits rounds of its own. A transaction belongs to the round that has its last epoch, so that it belongs to
//! exactly one: the frontier passes an epoch only after every sink has committed it. Recording holds a lock for the time
//! of a few moves, once for each epoch and transaction; nothing is recorded for single records.

mod trace_context;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use headwater_dataflows::Epoch;

pub use trace_context::{TRACEPARENT, TraceContext};

/// The maximum number of links of a round.
pub const MAX_LINKS: usize = 32;

/// A step with a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The time at which it began.
    pub begun: Instant,
    /// The time at which it ended.
    pub ended: Instant,
}

/// A transaction of the ledger or of a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The first epoch that it commits.
    pub first: Epoch,
    /// The last epoch that it commits.
    pub last: Epoch,
    /// Its times, with all retries.
    pub step: Step,
}

/// A transaction of a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkTransaction {
    /// The name of the sink.
    pub sink: String,
    /// Its epochs and times.
    pub transaction: Transaction,
    /// The number of rows and messages.
    pub outputs: u64,
    /// The number of attempts.
    pub attempts: u32,
    /// The error that ended the run; None if the transaction is committed.
    pub error: Option<String>,
}

/// The epochs of a round, with the times that the watch of a worker has observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epochs {
    /// The first epoch.
    pub first: Epoch,
    /// The last epoch.
    pub last: Epoch,
    /// The time at which the first epoch was opened.
    pub opened: Instant,
    /// The time at which all epochs were bound, if they are.
    pub bound: Option<Instant>,
    /// The time at which all operators had completed all epochs, if they have.
    pub computed: Option<Instant>,
    /// The time at which all sinks had committed all epochs, or at which the run ended.
    pub ended: Instant,
}

/// A round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// The epochs and their times.
    pub epochs: Epochs,
    /// The number of records that this process has read.
    pub records: u64,
    /// The contexts of sampled records, at most [`MAX_LINKS`].
    pub links: Vec<TraceContext>,
    /// The transactions of the ledger.
    pub appends: Vec<Transaction>,
    /// The transactions of the sinks, in the order in which they ended.
    pub transactions: Vec<SinkTransaction>,
}

/// A function that takes over a finished round. It does not wait.
type Emit = Box<dyn Fn(Round) + Send + Sync>;

/// Collects the parts of rounds.
pub struct RoundRecorder {
    parts: Mutex<Parts>,
    emit: Emit,
}

/// The parts of rounds that are not finished.
#[derive(Default)]
struct Parts {
    /// The number of records and the contexts, by epoch; only of epochs with records.
    reads: BTreeMap<Epoch, (u64, Vec<TraceContext>)>,
    appends: Vec<Transaction>,
    transactions: Vec<SinkTransaction>,
}

impl RoundRecorder {
    /// Creates a recorder that passes on each round.
    pub fn new(emit: Emit) -> RoundRecorder {
        RoundRecorder { parts: Mutex::default(), emit }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().expect("no holder of the lock panics")
    }

    /// Adds what a worker has read in an epoch.
    pub fn read(&self, epoch: Epoch, records: u64, mut contexts: Vec<TraceContext>) {
        let mut parts = self.parts();
        let (count, links) = parts.reads.entry(epoch).or_default();
        *count += records;
        contexts.truncate(MAX_LINKS - links.len().min(MAX_LINKS));
        links.append(&mut contexts);
    }

    /// Adds a transaction of the ledger.
    pub fn appended(&self, transaction: Transaction) {
        self.parts().appends.push(transaction);
    }

    /// Adds a transaction of a sink, before the frontier may pass its epochs.
    pub fn transacted(&self, transaction: SinkTransaction) {
        self.parts().transactions.push(transaction);
    }

    /// Ends the round of these epochs. Nothing is emitted if no sink had anything to commit.
    pub fn committed(&self, epochs: Epochs) {
        let round = self.parts().take(epochs);
        round.into_iter().for_each(&self.emit);
    }

    /// Ends the recording. A transaction that has failed and ended the run is emitted, as a round without an end.
    pub fn finish(&self) {
        let mut parts = self.parts();
        let failed = |transaction: &&SinkTransaction| transaction.error.is_some();
        let Some(transaction) = parts.transactions.iter().find(failed).map(|failed| &failed.transaction)
        else {
            return;
        };
        let (first, last, opened) = (transaction.first, transaction.last, transaction.step.begun);
        let epochs = Epochs { first, last, opened, bound: None, computed: None, ended: Instant::now() };
        let round = parts.take(epochs);
        drop(parts);
        round.into_iter().for_each(&self.emit);
    }
}

impl Parts {
    /// Removes the parts of epochs up to `last`. Returns the round if a sink had a transaction.
    fn take(&mut self, epochs: Epochs) -> Option<Round> {
        let Epochs { last, .. } = epochs;
        let later = self.reads.split_off(&last.next());
        let reads = std::mem::replace(&mut self.reads, later);
        let appends = self.appends.extract_if(.., |append| append.last <= last).collect();
        let is_past = |transaction: &mut SinkTransaction| transaction.transaction.last <= last;
        let transactions: Vec<_> = self.transactions.extract_if(.., is_past).collect();
        if transactions.is_empty() {
            return None;
        }
        let (mut records, mut links) = (0, Vec::new());
        for (count, contexts) in reads.into_values() {
            records += count;
            links.extend(contexts.into_iter().take(MAX_LINKS - links.len()));
        }
        Some(Round { epochs, records, links, appends, transactions })
    }
}

/// The times at which a frontier advanced.
#[derive(Default)]
pub struct Advances(VecDeque<(Option<Epoch>, Instant)>);

impl Advances {
    /// Notes the frontier; None once it is empty.
    pub fn note(&mut self, frontier: Option<Epoch>, now: Instant) {
        if self.0.back().is_none_or(|(last, _)| *last != frontier) {
            self.0.push_back((frontier, now));
        }
    }

    /// Returns the time at which the frontier passed an epoch, and forgets the advances before. Epochs do not decrease.
    pub fn passed(&mut self, epoch: Epoch) -> Option<Instant> {
        let is_before = |(frontier, _): &mut (Option<Epoch>, Instant)| frontier.is_some_and(|at| at <= epoch);
        while self.0.len() > 1 && self.0.pop_front_if(is_before).is_some() {}
        let (frontier, at) = self.0.front()?;
        frontier.is_none_or(|frontier| frontier > epoch).then_some(*at)
    }
}

#[cfg(test)]
mod tests;
