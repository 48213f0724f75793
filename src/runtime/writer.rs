//! The writer of a sink: one thread per process and sink, which commits in rounds as large as the load makes them.

use std::collections::BTreeSet;
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

/// What workers tell a writer.
#[derive(Debug)]
pub enum Delivered {
    /// Changes of an epoch, through which progress is to be committed.
    Changes {
        /// The epoch.
        epoch: Epoch,
        /// What it changed, in order; perhaps nothing.
        changes: Vec<Changes>,
    },
    /// All of a worker's changes of the epochs before `reached` were delivered; none: all there will ever be.
    Frontier {
        /// Which worker.
        worker: usize,
        /// The first epoch of which more may come.
        reached: Option<Epoch>,
    },
}

/// How many messages may wait for the writer. Bytes are bounded where they are read.
const QUEUE: usize = 256;

/// A worker's end of a writer.
#[derive(Clone)]
pub struct WriterHandle {
    sink: String,
    committed_through: Option<Epoch>,
    sender: SyncSender<Delivered>,
    shared: Arc<Shared>,
}

struct Shared {
    /// The first epoch that is not committed; [`ALL`] when everything is.
    committed: AtomicU64,
    activators: Mutex<Vec<SyncActivator>>,
}

const ALL: u64 = u64::MAX;

impl WriterHandle {
    /// The sink's name.
    pub fn sink(&self) -> &str {
        &self.sink
    }

    /// The last epoch that the sink had taken when it was opened, of those that are done again.
    pub fn committed_through(&self) -> Option<Epoch> {
        self.committed_through
    }

    /// Gives a message to the writer, or back if its queue is full. A writer that has failed takes everything:
    /// the run is about to end.
    pub fn send(&self, message: Delivered) -> Result<(), Delivered> {
        match self.sender.try_send(message) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
            Err(TrySendError::Full(message)) => Err(message),
        }
    }

    /// The first epoch that is not committed; none when all are.
    pub fn committed(&self) -> Option<Epoch> {
        let committed = self.shared.committed.load(Ordering::Acquire);
        (committed != ALL).then_some(Epoch(committed))
    }

    /// Has an operator of a worker scheduled after each commit.
    pub fn wakes(&self, _worker: usize, activator: SyncActivator) {
        self.shared.activators.lock().expect("no holder of the lock panics").push(activator);
    }
}

/// What of all that is done a sink is not given.
pub struct Given {
    /// Epochs through this one, which it has.
    pub committed_through: Option<Epoch>,
    /// Single outputs, which it does not take.
    pub skips: Skips,
    /// Where its first commit is recorded, in the process that has the ledger.
    pub ledger: Option<LedgerWriterHandle>,
}

/// Starts the writer of an opened sink, for the workers in `workers`.
pub fn spawn(
    sink: Box<dyn Sink>,
    Given { committed_through, skips, ledger }: Given,
    workers: std::ops::Range<usize>,
    commit_interval: Duration,
    failure: Failure,
    metrics: Arc<Metrics>,
) -> std::io::Result<(WriterHandle, JoinHandle<()>)> {
    let (sender, receiver) = sync_channel(QUEUE);
    let shared = Arc::new(Shared { committed: AtomicU64::new(0), activators: Mutex::default() });
    let name = sink.name().to_owned();
    let handle = WriterHandle { sink: name.clone(), committed_through, sender, shared: Arc::clone(&shared) };
    let writer = Writer {
        name: name.clone(),
        skips,
        ledger,
        sink,
        first_worker: workers.start,
        reached: vec![Some(Epoch(0)); workers.len()],
        staged: BTreeSet::new(),
        committed: Some(Epoch(0)),
        shared,
        metrics,
    };
    let thread = std::thread::Builder::new().name(format!("sink-{name}")).spawn(move || {
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
    /// How far each worker's delivery has come.
    reached: Vec<Option<Epoch>>,
    /// Epochs that were delivered and are not committed.
    staged: BTreeSet<Epoch>,
    committed: Option<Epoch>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Until every worker has delivered everything and all of it is committed.
    fn run(
        mut self,
        receiver: &Receiver<Delivered>,
        interval: Duration,
        failure: &Failure,
    ) -> Result<(), RunError> {
        let mut last_round: Option<Instant> = None;
        while self.committed.is_some() {
            let gap = last_round.map_or(Duration::ZERO, |last| interval.saturating_sub(last.elapsed()));
            let due = self.complete() != self.committed;
            // When every worker has delivered everything, nothing more can come: no use in waiting for it.
            let now = gap.is_zero() || self.complete().is_none();
            let message = match (due, now) {
                // A round may begin: only take in what is there already.
                (true, true) => receiver.try_recv().ok(),
                (true, false) => wait(receiver, gap)?,
                (false, _) => wait(receiver, Duration::from_millis(100))?,
            };
            match message {
                Some(message) => self.take(message)?,
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

    fn take(&mut self, message: Delivered) -> Result<(), RunError> {
        match message {
            Delivered::Changes { epoch, changes } => {
                crash::point("sink.stage");
                for changes in self.left_out(epoch, changes) {
                    self.sink.stage(epoch, changes)?;
                }
                self.staged.insert(epoch);
            }
            Delivered::Frontier { worker, reached } => self.reached[worker - self.first_worker] = reached,
        }
        Ok(())
    }

    /// What a worker has delivered of an epoch, without what the sink is not to be given.
    fn left_out(&self, epoch: Epoch, mut delivered: Vec<Changes>) -> Vec<Changes> {
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

    /// The first epoch that is not complete on every worker; none if all are.
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
                tracing::warn!(sink = self.name, %error, "will try the round again");
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
        self.shared.committed.store(complete.map_or(ALL, |complete| complete.0), Ordering::Release);
        for activator in self.shared.activators.lock().expect("no holder of the lock panics").iter() {
            // A worker that has shut down needs no waking.
            let _ = activator.activate();
        }
        Ok(())
    }
}

/// The next message, or none if none comes in time.
fn wait(receiver: &Receiver<Delivered>, timeout: Duration) -> Result<Option<Delivered>, RunError> {
    match receiver.recv_timeout(timeout) {
        Ok(message) => Ok(Some(message)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => {
            Err(RunError::Workers("a worker ended before its output did".into()))
        }
    }
}
