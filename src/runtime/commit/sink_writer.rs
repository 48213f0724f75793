//! The writer of a sink: one thread per process and sink. Each round commits all epochs that are complete by then.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use headwater_sinks::{Changes, CommitError, CommitPermit, MessageNames, Sink, crash, row_name};
use timely::scheduling::activate::SyncActivator;

use crate::coordination::Skips;
use crate::metrics::Metrics;
use crate::rounds::{SinkTransaction, Step, Transaction};
use crate::runtime::background::{self, Waiters};
use crate::runtime::commit::ledger_writer::LedgerWriterHandle;
use crate::runtime::failure::{Failure, RunError};

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
    waiters: Waiters,
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
        self.shared.waiters.add(activator);
    }
}

impl Shared {
    /// Publishes the first epoch that is not committed, and activates the operators that wait for it.
    fn publish(&self, committed: Option<Epoch>) {
        self.committed.store(committed.map_or(ALL, |committed| committed.0), Ordering::Release);
        self.waiters.wake();
    }
}

/// Creates the handle of a writer, and the queue from which the writer receives.
fn queue(sink: &str, committed_through: Option<Epoch>) -> (WriterHandle, Receiver<Delivery>) {
    let (sender, receiver) = sync_channel(QUEUE);
    let shared = Arc::new(Shared { committed: AtomicU64::new(0), waiters: Waiters::default() });
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
    let thread = background::spawn(format!("sink-{}", handle.sink), failure.clone(), move || {
        ((), writer.run(&receiver, commit_interval, &failure))
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
    /// Epochs that are staged and not committed, with the number of their outputs.
    staged: BTreeMap<Epoch, u64>,
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
            staged: BTreeMap::new(),
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
                let mut outputs = 0;
                for changes in self.without_skipped(epoch, changes) {
                    outputs += changes.rows.len() + changes.messages.len();
                    self.sink.stage(epoch, changes)?;
                }
                *self.staged.entry(epoch).or_default() += outputs as u64;
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
        let later = complete.map_or_else(BTreeMap::new, |complete| self.staged.split_off(&complete));
        let round = std::mem::replace(&mut self.staged, later);
        if let Some((&through, _)) = round.last_key_value() {
            let (begun, outputs) = (Instant::now(), round.values().sum());
            let (attempts, result) = self.commit(through, failure);
            if let (Some(rounds), Some((&first, _))) = (self.metrics.rounds(), round.first_key_value()) {
                let step = Step { begun, ended: Instant::now() };
                rounds.transacted(SinkTransaction {
                    sink: self.name.clone(),
                    transaction: Transaction { first, last: through, step },
                    outputs,
                    attempts,
                    error: result.as_ref().err().map(ToString::to_string),
                });
            }
            result?;
            self.metrics.committed(&self.name, through, outputs);
            if let Some(ledger) = self.ledger.take() {
                ledger.committed(&self.name);
            }
        }
        self.committed = complete;
        self.shared.publish(complete);
        Ok(())
    }

    /// Commits what is staged, through an epoch, in as many attempts as it takes; returns their number.
    fn commit(&mut self, through: Epoch, failure: &Failure) -> (u32, Result<(), CommitError>) {
        self.metrics.committing(&self.name);
        crash::point("sink.commit.before");
        let (mut attempts, mut backoff) = (1, Duration::from_millis(10));
        while let Err(error) = self.sink.commit(CommitPermit::granted(through)) {
            if !matches!(error, CommitError::Failed { .. }) || failure.is_some() {
                return (attempts, Err(error));
            }
            self.metrics.commit_retried(&self.name);
            tracing::warn!(sink = self.name, %error, "retrying the round");
            std::thread::sleep(backoff);
            (attempts, backoff) = (attempts + 1, (2 * backoff).min(Duration::from_secs(1)));
        }
        crash::point("sink.commit.after");
        (attempts, Ok(()))
    }
}

#[cfg(test)]
impl WriterHandle {
    /// Creates a handle without a writer: a test receives the messages, and says what is committed.
    pub fn detached(sink: &str, committed_through: Option<Epoch>) -> (WriterHandle, Receiver<Delivery>) {
        queue(sink, committed_through)
    }

    /// Sets the first epoch that is not committed; None: all are committed.
    pub fn set_committed(&self, committed: Option<Epoch>) {
        self.shared.publish(committed);
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

#[cfg(test)]
mod tests {
    use headwater_sinks::StageError;
    use headwater_sinks::memory::{Fault, Memory};

    use super::*;
    use crate::rounds::{Epochs, Round, RoundRecorder};
    use crate::runtime::commit::ledger_writer::Entry;
    use crate::runtime::fakes::{RefusingSink, context, rows, wait_until};

    /// An interval that no test reaches.
    const HOUR: Duration = Duration::from_secs(3600);

    fn sink(memory: &Memory) -> Box<dyn Sink> {
        let mut sink = memory.sink("memory");
        sink.open(&context()).expect("the sink is new");
        Box::new(sink)
    }

    fn options() -> WriterOptions {
        WriterOptions { committed_through: None, skips: Skips::default(), ledger: None }
    }

    /// A writer, driven without its thread.
    struct Fixture {
        memory: Memory,
        writer: Writer,
        handle: WriterHandle,
        receiver: Receiver<Delivery>,
        failure: Failure,
        metrics: Arc<Metrics>,
    }

    fn fixture(workers: Range<usize>, options: WriterOptions) -> Fixture {
        let (memory, metrics) = (Memory::default(), Arc::<Metrics>::default());
        let (handle, receiver) = queue("memory", None);
        let shared = Arc::clone(&handle.shared);
        let writer = Writer::new(sink(&memory), options, workers, shared, Arc::clone(&metrics));
        Fixture { memory, writer, handle, receiver, failure: Failure::default(), metrics }
    }

    fn changes(epoch: u64, offsets: impl IntoIterator<Item = i64>) -> Delivery {
        Delivery::Changes { epoch: Epoch(epoch), changes: vec![rows(offsets)] }
    }

    fn frontier(worker: usize, reached: Option<u64>) -> Delivery {
        Delivery::Frontier { worker, reached: reached.map(Epoch) }
    }

    impl Fixture {
        /// Receives these messages, and commits what is complete.
        fn round(&mut self, messages: impl IntoIterator<Item = Delivery>) -> Result<(), RunError> {
            messages.into_iter().try_for_each(|message| self.writer.receive(message))?;
            self.writer.round(&self.failure)
        }

        fn epochs(&self) -> Vec<u64> {
            self.memory.committed().iter().map(|(epoch, _)| epoch.0).collect()
        }

        fn through(&self) -> Option<u64> {
            self.memory.progress().map(|progress| progress.through.0)
        }
    }

    #[test]
    fn a_round_commits_the_epochs_complete_on_all_workers() {
        let mut fixture = fixture(2..4, options());
        let both = [changes(1, [10]), changes(1, [11]), changes(2, [12])];
        fixture
            .round(both.into_iter().chain([frontier(2, Some(3)), frontier(3, Some(2))]))
            .expect("committed");
        assert_eq!(
            (fixture.epochs(), fixture.through()),
            (vec![1, 1], Some(1)),
            "worker 3 may change epoch 2"
        );
        assert_eq!(fixture.handle.committed(), Some(Epoch(2)));

        fixture.round([frontier(3, None), frontier(2, None)]).expect("committed");
        assert_eq!((fixture.epochs(), fixture.through()), (vec![1, 1, 2], Some(2)));
        assert_eq!(fixture.handle.committed(), None, "all epochs");
    }

    #[test]
    fn an_epoch_without_changes_commits_its_progress() {
        let mut fixture = fixture(0..1, options());
        let marked = Delivery::Changes { epoch: Epoch(4), changes: Vec::new() };
        fixture.round([marked, frontier(0, Some(9))]).expect("committed");
        assert_eq!((fixture.epochs(), fixture.through()), (vec![], Some(4)));
    }

    #[test]
    fn a_round_without_epochs_needs_no_transaction() {
        let mut fixture = fixture(0..1, options());
        fixture.round([frontier(0, Some(5))]).expect("nothing to commit");
        assert_eq!((fixture.memory.commits(), fixture.handle.committed()), (0, Some(Epoch(5))));
    }

    #[test]
    fn a_failed_commit_is_retried_with_everything_staged() {
        let mut fixture = fixture(0..1, options());
        fixture.memory.fail_next(Fault::Failed);
        fixture.memory.fail_next(Fault::Failed);
        fixture
            .round([changes(1, [10]), changes(2, [11]), frontier(0, Some(3))])
            .expect("the third succeeds");
        assert_eq!((fixture.epochs(), fixture.memory.commits()), (vec![1, 2], 1));
        let text = fixture.metrics.text();
        assert!(text.contains("headwater_commit_retries_total{sink=\"memory\"} 2\n"), "{text}");
    }

    #[test]
    fn a_transaction_is_recorded_with_its_attempts_and_error() {
        for (fault, expected) in [(Fault::Failed, (2, false)), (Fault::Fenced, (1, true))] {
            let mut fixture = fixture(0..1, options());
            let (sender, rounds) = std::sync::mpsc::channel();
            let emit = move |round: Round| sender.send(round).expect("it is received");
            fixture.metrics.record_rounds(RoundRecorder::new(Box::new(emit)));
            fixture.memory.fail_next(fault);
            let ended = fixture.round([changes(1, [10]), changes(2, [11, 12]), frontier(0, Some(5))]);
            let (now, recorder) = (Instant::now(), fixture.metrics.rounds().expect("it is set"));
            let (first, last, bound, computed) = (Epoch(1), Epoch(4), None, None);
            recorder.committed(Epochs { first, last, opened: now, bound, computed, ended: now });
            let SinkTransaction { sink, transaction, outputs, attempts, error } =
                rounds.recv().expect("a round").transactions.remove(0);
            assert_eq!((sink.as_str(), transaction.first, transaction.last), ("memory", Epoch(1), Epoch(2)));
            assert_eq!((outputs, (attempts, error.is_some()), ended.is_err()), (3, expected, expected.1));
        }
    }

    #[test]
    fn a_commit_is_not_retried_once_the_run_has_failed() {
        let mut fixture = fixture(0..1, options());
        fixture.failure.report(RunError::Workers("another thread".into()));
        fixture.memory.fail_next(Fault::Failed);
        let ended = fixture.round([changes(1, [10]), frontier(0, Some(2))]);
        assert!(matches!(ended, Err(RunError::Commit(CommitError::Failed { .. }))), "{ended:?}");
        assert_eq!(fixture.memory.commits(), 0);
    }

    #[test]
    fn fencing_and_unknown_outcomes_are_never_retried() {
        for (fault, commits) in [(Fault::Fenced, 0), (Fault::Indeterminate, 1)] {
            let mut fixture = fixture(0..1, options());
            fixture.memory.fail_next(fault);
            let ended =
                fixture.round([changes(1, [10]), frontier(0, Some(2))]).expect_err("the run must end");
            assert_eq!(ended.is_replacement(), fault == Fault::Fenced, "{ended:?}");
            assert_eq!(fixture.memory.commits(), commits, "{fault:?}");
            assert_eq!(
                fixture.handle.committed(),
                Some(Epoch(0)),
                "{fault:?}: nothing is known to be committed"
            );
        }
    }

    #[test]
    fn a_refused_output_ends_the_run_and_needs_a_decision() {
        for refuses_stage in [true, false] {
            let mut fixture = fixture(0..1, options());
            let mut inner = fixture.memory.sink("memory");
            inner.open(&context()).expect("opened");
            fixture.writer.sink = Box::new(RefusingSink { inner, refuses_stage, has_refused: false });
            let refused = fixture.round([changes(7, [10]), frontier(0, Some(8))]).expect_err("refused");
            assert!(refused.is_refusal(), "{refused:?}");
            assert_eq!(matches!(refused, RunError::Stage(StageError { epoch: Epoch(7), .. })), refuses_stage);
            assert_eq!((fixture.through(), fixture.handle.committed()), (None, Some(Epoch(0))));
        }
    }

    #[test]
    fn a_skipped_row_is_left_out_of_its_epoch_only() {
        let skips = Skips::of("memory", &["memory:7:events/3/42".parse().expect("a skip")]);
        let mut fixture = fixture(0..1, WriterOptions { skips, ..options() });
        let delivered = [changes(7, [41, 42]), changes(8, [42])];
        fixture.round(delivered.into_iter().chain([frontier(0, None)])).expect("committed");
        assert_eq!(fixture.memory.committed(), [(Epoch(7), rows([41])), (Epoch(8), rows([42]))]);
    }

    /// The name of a message has the number of messages of its key before it, from the whole delivery of the epoch.
    #[test]
    fn messages_are_numbered_through_the_whole_delivery() {
        let message = |value: u8| {
            let mut changes = Changes::default();
            changes.messages.push(0, Some(b"ann"), &[], |out| out.push(value));
            changes
        };
        let skips = Skips::of("memory", &["memory:7:/ann/1".parse().expect("a skip")]);
        let mut fixture = fixture(0..1, WriterOptions { skips, ..options() });
        let delivered =
            Delivery::Changes { epoch: Epoch(7), changes: vec![message(1), message(2), message(3)] };
        fixture.round([delivered, frontier(0, None)]).expect("committed");
        let left: Vec<_> = fixture.memory.committed().into_iter().map(|(_, changes)| changes).collect();
        assert_eq!(left, [message(1), Changes::default(), message(3)]);
    }

    #[test]
    fn only_the_first_commit_is_recorded_in_the_ledger() {
        let (ledger, entries) = LedgerWriterHandle::detached(Epoch(0));
        let mut fixture = fixture(0..1, WriterOptions { ledger: Some(ledger), ..options() });
        fixture.round([frontier(0, Some(1))]).expect("nothing to commit");
        assert_eq!(entries.try_iter().count(), 0, "nothing is committed yet");
        fixture.round([changes(1, [10]), frontier(0, Some(2))]).expect("committed");
        fixture.round([changes(2, [11]), frontier(0, Some(3))]).expect("committed");
        assert_eq!(entries.try_iter().collect::<Vec<_>>(), [Entry::Committed("memory".to_owned())]);
    }

    #[test]
    fn a_round_takes_everything_that_is_queued() {
        let Fixture { memory, writer, handle, receiver, failure, .. } = fixture(0..1, options());
        for epoch in 1..=5 {
            handle.send(changes(epoch, [10])).expect("there is room");
            handle.send(frontier(0, Some(epoch + 1))).expect("there is room");
        }
        handle.send(frontier(0, None)).expect("there is room");
        writer.run(&receiver, HOUR, &failure).expect("all is committed");
        assert_eq!((memory.commits(), memory.committed().len()), (1, 5));
    }

    #[test]
    fn rounds_are_an_interval_apart_except_the_last_one() {
        let memory = Memory::default();
        let failure = Failure::default();
        let (handle, thread) =
            spawn(sink(&memory), options(), 0..1, HOUR, failure.clone(), Arc::default()).expect("a thread");
        let send = |message| handle.send(message).expect("there is room");
        send(changes(1, [10]));
        send(frontier(0, Some(2)));
        wait_until(|| handle.committed() == Some(Epoch(2)));
        send(changes(2, [11]));
        send(frontier(0, Some(3)));
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(memory.commits(), 1, "the interval is an hour");
        send(frontier(0, None));
        wait_until(|| thread.is_finished());
        assert_eq!((memory.commits(), handle.committed()), (2, None));
        assert!(!failure.is_some());
    }

    #[test]
    fn a_worker_that_ends_early_fails_the_run() {
        let Fixture { memory, writer, handle, receiver, failure, .. } = fixture(0..2, options());
        handle.send(changes(1, [10])).expect("there is room");
        handle.send(frontier(0, None)).expect("there is room");
        drop(handle);
        let ended = writer.run(&receiver, Duration::ZERO, &failure);
        assert!(matches!(ended, Err(RunError::Workers(_))), "{ended:?}");
        assert_eq!(memory.commits(), 0, "worker 1 has not delivered epoch 1");
    }

    #[test]
    fn a_failed_run_commits_nothing_more() {
        let Fixture { memory, writer, handle, receiver, failure, .. } = fixture(0..1, options());
        handle.send(changes(1, [10])).expect("there is room");
        handle.send(frontier(0, Some(2))).expect("there is room");
        drop(handle);
        failure.report(RunError::Workers("another thread".into()));
        writer.run(&receiver, Duration::ZERO, &failure).expect("the failure is reported already");
        assert_eq!(memory.commits(), 0);
    }

    #[test]
    fn a_full_queue_returns_the_message_and_an_ended_writer_none() {
        let (handle, receiver) = queue("memory", None);
        for epoch in 0..QUEUE as u64 {
            handle.send(changes(epoch, [10])).expect("there is room");
        }
        let back = handle.send(changes(999, [10]));
        assert_eq!(back, Err(changes(999, [10])));
        drop(receiver);
        assert_eq!(handle.send(changes(999, [10])), Ok(()), "the run is about to end");
    }
}
