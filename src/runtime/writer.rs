//! The writer of a sink: one thread per process and sink. Each round commits all epochs that are complete by then.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use headwater_sinks::{Changes, CommitError, CommitPermit, MessageNames, Sink, crash, row_name};
use timely::scheduling::activate::SyncActivator;

use super::failure::{Failure, RunError};
use super::ledger_writer::LedgerWriterHandle;
use crate::coordination::Skips;
use crate::metrics::Metrics;

/// A message from a worker to a writer.
#[derive(Debug, PartialEq)]
pub enum Delivery {
    /// The changes of an epoch. The round that commits them also commits progress through this epoch.
    Changes {
        /// The epoch.
        epoch: Epoch,
        /// The changes, in order; may be empty.
        changes: Vec<Changes>,
    },
    /// The frontier of a worker: it has delivered all changes of the epochs before `reached`; None: of all epochs.
    Frontier {
        /// The index of the worker.
        worker: usize,
        /// The first epoch that may have further changes.
        reached: Option<Epoch>,
    },
}

/// The capacity of the writer's queue, in messages. The number of bytes is limited by the reading operator.
const QUEUE: usize = 256;

/// A worker's handle to a writer.
#[derive(Clone)]
pub struct WriterHandle {
    sink: String,
    committed_through: Option<Epoch>,
    sender: SyncSender<Delivery>,
    shared: Arc<Shared>,
}

struct Shared {
    /// The first epoch that is not committed; [`ALL`] once all are committed.
    committed: AtomicU64,
    activators: Mutex<Vec<SyncActivator>>,
}

const ALL: u64 = u64::MAX;

impl WriterHandle {
    /// Returns the name of the sink.
    pub fn sink(&self) -> &str {
        &self.sink
    }

    /// Returns the last replayed epoch that the sink had already committed when it was opened.
    pub fn committed_through(&self) -> Option<Epoch> {
        self.committed_through
    }

    /// Sends a message to the writer. A writer that has failed discards every message, since the run is about to end.
    ///
    /// # Errors
    /// The message itself, if the queue is full.
    pub fn send(&self, message: Delivery) -> Result<(), Delivery> {
        match self.sender.try_send(message) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
            Err(TrySendError::Full(message)) => Err(message),
        }
    }

    /// Returns the first epoch that is not committed; None once all are committed.
    pub fn committed(&self) -> Option<Epoch> {
        let committed = self.shared.committed.load(Ordering::Acquire);
        (committed != ALL).then_some(Epoch(committed))
    }

    /// Registers an operator to be activated after each commit.
    pub fn add_activator(&self, _worker: usize, activator: SyncActivator) {
        self.shared.activators.lock().expect("no thread panics while it holds the lock").push(activator);
    }
}

impl Shared {
    /// Publishes the first epoch that is not committed, and activates the operators that wait for it.
    fn publish(&self, committed: Option<Epoch>) {
        self.committed.store(committed.map_or(ALL, |committed| committed.0), Ordering::Release);
        for activator in self.activators.lock().expect("no thread panics while it holds the lock").iter() {
            // A worker that has shut down needs no activation.
            let _ = activator.activate();
        }
    }
}

/// Creates the handle of a writer, and the queue from which the writer receives.
fn queue(sink: &str, committed_through: Option<Epoch>) -> (WriterHandle, Receiver<Delivery>) {
    let (sender, receiver) = sync_channel(QUEUE);
    let shared = Arc::new(Shared { committed: AtomicU64::new(0), activators: Mutex::default() });
    (WriterHandle { sink: sink.to_owned(), committed_through, sender, shared }, receiver)
}

/// The outputs that are withheld from a sink.
pub struct WriterOptions {
    /// The last epoch that it has committed.
    pub committed_through: Option<Epoch>,
    /// The outputs that are skipped, since the sink refuses them.
    pub skips: Skips,
    /// The ledger in which its first commit is recorded, in the leader.
    pub ledger: Option<LedgerWriterHandle>,
}

/// Starts the writer of an opened sink, for these workers.
pub fn spawn(
    sink: Box<dyn Sink>,
    options: WriterOptions,
    workers: Range<usize>,
    commit_interval: Duration,
    failure: Failure,
    metrics: Arc<Metrics>,
) -> std::io::Result<(WriterHandle, JoinHandle<()>)> {
    let (handle, receiver) = queue(sink.name(), options.committed_through);
    let writer = Writer::new(sink, options, workers, Arc::clone(&handle.shared), metrics);
    let thread = std::thread::Builder::new().name(format!("sink-{}", handle.sink)).spawn(move || {
        if let Err(error) = writer.run(&receiver, commit_interval, &failure) {
            failure.report(error);
        }
    })?;
    Ok((handle, thread))
}

struct Writer {
    name: String,
    skips: Skips,
    ledger: Option<LedgerWriterHandle>,
    sink: Box<dyn Sink>,
    first_worker: usize,
    /// The frontier of each worker's deliveries.
    reached: Vec<Option<Epoch>>,
    /// Epochs that are staged and not committed.
    staged: BTreeSet<Epoch>,
    committed: Option<Epoch>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
}

impl Writer {
    fn new(
        sink: Box<dyn Sink>,
        WriterOptions { skips, ledger, .. }: WriterOptions,
        workers: Range<usize>,
        shared: Arc<Shared>,
        metrics: Arc<Metrics>,
    ) -> Writer {
        Writer {
            name: sink.name().to_owned(),
            skips,
            ledger,
            sink,
            first_worker: workers.start,
            reached: vec![Some(Epoch(0)); workers.len()],
            staged: BTreeSet::new(),
            committed: Some(Epoch(0)),
            shared,
            metrics,
        }
    }

    /// Runs until every worker has delivered all epochs and all of them are committed.
    fn run(
        mut self,
        receiver: &Receiver<Delivery>,
        interval: Duration,
        failure: &Failure,
    ) -> Result<(), RunError> {
        let mut last_round: Option<Instant> = None;
        while self.committed.is_some() {
            let gap = last_round.map_or(Duration::ZERO, |last| interval.saturating_sub(last.elapsed()));
            let due = self.complete() != self.committed;
            // Once every worker has delivered all epochs, nothing more can arrive, so there is no reason to wait.
            let now = gap.is_zero() || self.complete().is_none();
            let message = match (due, now) {
                // A round may begin: only receive messages that are already queued.
                (true, true) => receiver.try_recv().ok(),
                (true, false) => wait(receiver, gap)?,
                (false, _) => wait(receiver, Duration::from_millis(100))?,
            };
            match message {
                Some(message) => self.receive(message)?,
                None if failure.is_some() => return Ok(()),
                None if due && now => {
                    last_round = Some(Instant::now());
                    self.round(failure)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    fn receive(&mut self, message: Delivery) -> Result<(), RunError> {
        match message {
            Delivery::Changes { epoch, changes } => {
                crash::point("sink.stage");
                for changes in self.without_skipped(epoch, changes) {
                    self.sink.stage(epoch, changes)?;
                }
                self.staged.insert(epoch);
            }
            Delivery::Frontier { worker, reached } => self.reached[worker - self.first_worker] = reached,
        }
        Ok(())
    }

    /// Removes the skipped outputs from a worker's changes of an epoch.
    fn without_skipped(&self, epoch: Epoch, mut delivered: Vec<Changes>) -> Vec<Changes> {
        let Some(skipped) = self.skips.in_epoch(epoch) else { return delivered };
        let is_skipped = |name: &str| {
            let skips = skipped.contains(name);
            if skips {
                tracing::warn!(sink = self.name, %epoch, output = name, "output skipped");
            }
            skips
        };
        let mut names = MessageNames::default();
        for changes in &mut delivered {
            *changes = changes.without(
                |row| is_skipped(&row_name(row)),
                |message| is_skipped(&names.next(message, self.sink.topics())),
            );
        }
        delivered
    }

    /// Returns the first epoch that is not complete on every worker; None if all are complete.
    fn complete(&self) -> Option<Epoch> {
        self.reached.iter().copied().flatten().min()
    }

    /// Commits all complete epochs.
    fn round(&mut self, failure: &Failure) -> Result<(), RunError> {
        let complete = self.complete();
        let later = complete.map_or_else(BTreeSet::new, |complete| self.staged.split_off(&complete));
        if let Some(&through) = std::mem::replace(&mut self.staged, later).last() {
            self.metrics.committing(&self.name);
            crash::point("sink.commit.before");
            let mut backoff = Duration::from_millis(10);
            while let Err(error) = self.sink.commit(CommitPermit::granted(through)) {
                if !matches!(error, CommitError::Failed { .. }) || failure.is_some() {
                    return Err(error.into());
                }
                self.metrics.commit_retried(&self.name);
                tracing::warn!(sink = self.name, %error, "retrying the round");
                std::thread::sleep(backoff);
                backoff = (2 * backoff).min(Duration::from_secs(1));
            }
            crash::point("sink.commit.after");
            self.metrics.committed(&self.name, through);
            if let Some(ledger) = self.ledger.take() {
                ledger.committed(&self.name);
            }
        }
        self.committed = complete;
        self.shared.publish(complete);
        Ok(())
    }
}

/// Receives the next message; None if the timeout expires.
fn wait(receiver: &Receiver<Delivery>, timeout: Duration) -> Result<Option<Delivery>, RunError> {
    match receiver.recv_timeout(timeout) {
        Ok(message) => Ok(Some(message)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => {
            Err(RunError::Workers("a worker ended before it had delivered all outputs".into()))
        }
    }
}
