//! Workers, the dataflow, the driver that carries out coordination's decisions, shutdown.

mod binding;
mod clock;
mod compute;
mod delivery;
mod failure;
mod flow;
mod plan;
mod reading;
mod recorder;
mod recording;
mod rules;
mod telling;
mod watch;
mod writer;

pub use compute::{Computed, Inputs, compute};
pub use failure::RunError;
pub use plan::{
    AmountPlan, By, DiversityPlan, FrequencyPlan, Limits, Patterns, Plan, Telling, Time, TravelPlan,
    WindowKind, WindowPlan,
};
pub use rules::rules;

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, Offset, Partition};
use headwater_sinks::{Sink, Start};
use timely::worker::Worker;

use crate::coordination::{EpochRecord, taken};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::outputs::Tongue;
use crate::source::Source;
use clock::committed;
use failure::Failure;
use flow::{Flow, Parts};
use recorder::Recorder;
use recording::LedgerHandle;
use writer::WriterHandle;

/// A sink of a run.
pub struct SinkJob {
    /// The sink, not opened yet.
    pub sink: Box<dyn Sink>,
    /// How it is told.
    pub tongue: Tongue,
    /// The least time between the beginnings of two rounds.
    pub commit_interval: Duration,
}

/// Everything that a run needs.
pub struct Job {
    /// What to compute.
    pub plan: Plan,
    /// Where records come from.
    pub source: Arc<dyn Source>,
    /// Where results go.
    pub sinks: Vec<SinkJob>,
    /// Who writes: told to every sink.
    pub start: Start,
    /// What was done before and is done again, and where what is done is recorded; without it a run begins with empty
    /// state wherever the source starts.
    pub history: Option<History>,
    /// Workers, processes and hosts.
    pub workers: timely::Config,
    /// Set it to have the run read no more, finish what it has read, and end.
    pub stopping: Arc<AtomicBool>,
    /// Counters, to be looked at meanwhile.
    pub metrics: Arc<Metrics>,
}

/// A ledger that was claimed, and what it has.
pub struct History {
    /// Where epochs are recorded.
    pub ledger: Box<dyn Ledger>,
    /// Those that are recorded, in order: they are done again, exactly.
    pub epochs: Vec<EpochRecord>,
}

/// The offset of the next record of each partition.
type Offsets = Vec<(Partition, Offset)>;

/// How often the consumer group is told of progress.
const OFFSETS_EVERY: Duration = Duration::from_millis(500);

/// How long a worker sleeps when nothing is to be done.
const PARK: Duration = Duration::from_millis(1);

/// Runs a pipeline until its input ends, it is asked to stop, or it fails.
///
/// # Errors
/// What ended it before its input did.
pub fn run(job: Job) -> Result<(), RunError> {
    let Job { mut plan, source, sinks, start, history, workers, stopping, metrics } = job;
    let failure = Failure::default();
    let (first_worker, local_workers) = local(&workers);

    let durable = history.as_ref().and_then(|history| Some(history.epochs.last()?.epoch)).unwrap_or(Epoch(0));
    plan.first_epoch = plan.first_epoch.max(durable.next());
    let mut writers = Vec::new();
    let mut threads = Vec::new();
    for SinkJob { mut sink, tongue, commit_interval } in sinks {
        let progress = sink.open(&start)?;
        // Epochs go on above everything that a sink has ever taken.
        let latest = progress.iter().map(|progress| progress.through.next()).max();
        plan.first_epoch = plan.first_epoch.max(latest.unwrap_or(plan.first_epoch));
        let taken = match &history {
            Some(_) => taken(&progress, durable)
                .map_err(|mismatch| RunError::Recovery { sink: sink.name().to_owned(), mismatch })?,
            None => None,
        };
        metrics.commits_every(commit_interval);
        let largest = sink.largest_message().unwrap_or(usize::MAX);
        let range = first_worker..first_worker + local_workers;
        let spawned =
            writer::spawn(sink, taken, range, commit_interval, failure.clone(), Arc::clone(&metrics));
        let (writer, thread) = spawned.map_err(|error| RunError::Workers(error.to_string()))?;
        writers.push((writer, tongue.within(largest)));
        threads.push(thread);
    }
    let (replay, ledger) = match history {
        Some(History { ledger, epochs }) => {
            let spawned = recording::spawn(ledger, durable, failure.clone());
            let (handle, thread) = spawned.map_err(|error| RunError::Workers(error.to_string()))?;
            threads.push(thread);
            (epochs, Some(handle))
        }
        None => (Vec::new(), None),
    };
    let recorder = match &plan.record_bindings {
        Some(path) if first_worker == 0 => Some(Recorder::create(path)?),
        _ => None,
    };
    let (tell_group, told_group) = channel::<Offsets>();
    let (committing, counting) = (Arc::clone(&source), Arc::clone(&metrics));
    let group = std::thread::spawn(move || {
        for offsets in told_group {
            if let Err(error) = committing.commit(&offsets) {
                counting.group_commit_failed();
                tracing::warn!(%error, "the consumer group could not be told of progress");
            }
        }
    });

    let context = Arc::new(Context {
        plan,
        source,
        writers: Mutex::new(Some(writers)),
        local_workers,
        recorder: Mutex::new(recorder),
        replay: Arc::new(replay),
        ledger: Mutex::new(ledger),
        stopping,
        failure: failure.clone(),
        metrics,
        tell_group: Mutex::new(Some(tell_group)),
    });
    let shared = Arc::clone(&context);
    let guards = timely::execute(workers, move |worker| shared.work(worker)).map_err(RunError::Workers)?;
    // Once every worker has its own handles, none must outlive them here: writers end when all handles are gone.
    drop(guards.join());
    drop(context);
    for thread in threads {
        if thread.join().is_err() {
            failure.report(RunError::Workers("the thread of a sink or of the ledger panicked".into()));
        }
    }
    // It only informs; a panic there has been printed.
    let _ = group.join();
    failure.into_result()
}

/// The first of this process's workers, and how many there are.
fn local(config: &timely::Config) -> (usize, usize) {
    use timely::CommunicationConfig::{Cluster, Process, ProcessBinary, Thread};
    match &config.communication {
        Thread => (0, 1),
        Process(threads) | ProcessBinary(threads) => (0, *threads),
        Cluster { threads, process, .. } => (process * threads, *threads),
    }
}

/// What the workers of a process share.
struct Context {
    plan: Plan,
    source: Arc<dyn Source>,
    writers: Mutex<Option<Vec<(WriterHandle, Tongue)>>>,
    local_workers: usize,
    recorder: Mutex<Option<Recorder>>,
    replay: Arc<Vec<EpochRecord>>,
    ledger: Mutex<Option<LedgerHandle>>,
    stopping: Arc<AtomicBool>,
    failure: Failure,
    metrics: Arc<Metrics>,
    tell_group: Mutex<Option<Sender<Offsets>>>,
}

impl Context {
    /// The life of one worker.
    fn work(&self, worker: &mut Worker) {
        let starts = self.source.start();
        let owned: Vec<_> = starts
            .iter()
            .enumerate()
            .filter(|(partition, _)| partition % worker.peers() == worker.index())
            .map(|(partition, &offset)| (Partition(partition as u32), offset))
            .collect();
        let reader = match self.source.reader(&owned) {
            Ok(reader) => reader,
            Err(error) => return self.failure.report(error.into()),
        };
        let lock = "no worker panics while it holds the lock";
        let sinks = self.writers.lock().expect(lock).clone().unwrap_or_default();
        let first = worker.index() == 0;
        let parts = Parts {
            plan: self.plan.clone(),
            reader,
            partitions: starts.len(),
            local_workers: self.local_workers,
            sinks,
            recorder: if first { self.recorder.lock().expect(lock).take() } else { None },
            replay: Arc::clone(&self.replay),
            ledger: if first { self.ledger.lock().expect(lock).take() } else { None },
            stopping: Arc::clone(&self.stopping),
            failure: self.failure.clone(),
            metrics: Arc::clone(&self.metrics),
        };
        let mut flow = worker.dataflow(|scope| flow::build(scope, parts));
        let tell_group = if first { self.tell_group.lock().expect(lock).take() } else { None };
        let mut told = Instant::now();
        while worker.step_or_park(Some(PARK)) {
            if self.failure.is_some() {
                for dataflow in worker.installed_dataflows() {
                    worker.drop_dataflow(dataflow);
                }
                return;
            }
            flow.watch.look();
            if told.elapsed() >= OFFSETS_EVERY {
                told = Instant::now();
                tell(&flow, tell_group.as_ref());
            }
        }
        flow.watch.look();
        tell(&flow, tell_group.as_ref());
    }
}

/// Has the consumer group told of what every sink has committed.
fn tell(flow: &Flow, group: Option<&Sender<Offsets>>) {
    let Some(group) = group else { return };
    let mut offsets = flow.offsets.borrow_mut();
    offsets.completed(|epoch: Epoch| committed(&flow.committed, epoch));
    if let Some(offsets) = offsets.take() {
        // The receiver lives as long as the run.
        let _ = group.send(offsets);
    }
}
