//! Workers, the dataflow, the driver that carries out coordination's decisions, shutdown.

mod amendment;
mod binding;
mod checkpointing;
mod clock;
mod compute;
mod delivery;
mod failure;
mod field_errors;
mod flow;
mod forgetting;
mod handout;
mod joining;
mod keeper;
mod plan;
mod reading;
mod recorder;
mod recording;
mod recovery;
mod rules;
mod starting;
mod telling;
mod watch;
mod writer;

pub use amendment::{Amendment, Unfit, amendment, can_be_reset, check_finished};
pub use compute::{Computed, Inputs, compute, operators};
pub use failure::RunError;
pub use forgetting::forgets_of;
pub use handout::processes;
pub use plan::{
    AmountPlan, By, DiversityPlan, FrequencyPlan, Limits, Patterns, Plan, Telling, Time, TravelPlan,
    WindowKind, WindowPlan,
};
pub use recovery::{
    Checkpoints, History, Records, Resets, may_double, needs_checkpoints, readable_origin, resume_from,
};
pub use rules::rules;
pub use starting::{Following, Past, killed, positions_of, read_from};

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, Offset, Partition, ShardId};
use headwater_sinks::{Sink, Start, crash};

use timely::worker::Worker;

use crate::coordination::{Position, Skips};
use crate::metrics::Metrics;
use crate::outputs::{Listener, Tongue};
use crate::source::{Opening, Source};
use clock::committed;
use failure::Failure;
use flow::{Capturing, Flow, Parts};
use handout::come_together;
use joining::Round;
use keeper::Author;
use recorder::Recorder;
use recording::{Concluding, LedgerHandle};
use recovery::{Origin, disturbed, fenced_by_whom};
use starting::{Begun, begin};
use writer::{Given, WriterHandle};

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
    pub source: Opening,
    /// Where results go.
    pub sinks: Vec<SinkJob>,
    /// Who writes: told to every sink.
    pub start: Start,
    /// What was done before and is done again, and where what is done is recorded.
    pub past: Past,
    /// Workers, processes and hosts.
    pub workers: timely::Config,
    /// Set it to have the run read no more, finish what it has read, and end.
    pub stopping: Arc<AtomicBool>,
    /// Counters, to be looked at meanwhile.
    pub metrics: Arc<Metrics>,
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
    let Job { mut plan, source, mut sinks, start, past, workers, stopping, metrics } = job;
    let failure = Failure::default();
    let (first_worker, local_workers) = local(&workers);
    let local = first_worker..first_worker + local_workers;
    let follows = matches!(past, Past::Follows(_));
    let recorded_cluster = processes(&workers) > 1 && !matches!(past, Past::Unrecorded);
    let Begun {
        start,
        mut origin,
        source,
        positions,
        known,
        first_epoch,
        skips,
        ledger: recorded,
        checkpoints: wanted,
    } = begin(past, source, &mut sinks, start, &plan, &workers, &metrics)?;
    plan.first_epoch = plan.first_epoch.max(first_epoch);
    let before: Vec<_> = positions.as_slice().iter().map(|position| position.timestamp_ms).collect();
    source.expect_before(&before);
    metrics.stalls_after(plan.time.standstill(), plan.time.held_warning);

    let mut threads = Vec::new();
    let (mut concluding, mut checkpoints) = (None, None);
    if let Some(Checkpoints { store, interval_ms, keep }) = wanted {
        let author = Author { lineage: start.lineage.clone(), generation: start.generation };
        let spawned = keeper::spawn(store, author, origin.parts().to_vec(), local.clone(), failure.clone());
        let (keeper, thread) = spawned.map_err(cannot_start)?;
        threads.push(thread);
        let manifests = std::mem::take(&mut origin.manifests);
        concluding = Some(Concluding { keep, manifests, keeper: keeper.clone() });
        checkpoints = Some(Capturing { keeper, interval_ms, generation: start.generation });
    }
    let (mut ledger, mut ledger_thread) = (None, None);
    if let Some(recorded) = recorded {
        let spawned =
            recording::spawn(recorded, origin.durable, concluding, failure.clone(), Arc::clone(&metrics));
        let (handle, thread) = spawned.map_err(cannot_start)?;
        (ledger, ledger_thread) = (Some(handle), Some(thread));
    } else {
        // Only the first process concludes; the keeper's thread ends when nobody holds it.
        drop(concluding);
    }
    let mut writers = Vec::new();
    for (SinkJob { sink, tongue, commit_interval }, taken) in sinks.into_iter().zip(&origin.taken) {
        metrics.commits_every(commit_interval);
        let largest = sink.largest_message().unwrap_or(usize::MAX);
        let (failure, metrics) = (failure.clone(), Arc::clone(&metrics));
        let least = taken.least_of(start.shards);
        let given = Given { taken: least, skips: Skips::of(sink.name(), &skips), ledger: ledger.clone() };
        let spawned = writer::spawn(sink, given, local.clone(), commit_interval, failure, metrics);
        let (writer, thread) = spawned.map_err(cannot_start)?;
        let listener = Listener::new(tongue.within(largest), taken.clone(), plan.provenance());
        writers.push((writer, listener));
        threads.push(thread);
    }
    let recorder = match &plan.record_bindings {
        Some(path) if first_worker == 0 => Some(Recorder::create(path)?),
        _ => None,
    };
    let (tell_group, told_group) = channel::<Offsets>();
    let (committing, counting) = (Arc::clone(&source), Arc::clone(&metrics));
    let group = std::thread::spawn(move || {
        for offsets in told_group {
            crash::point("group.commit.before");
            if let Err(error) = committing.commit(&offsets) {
                counting.group_commit_failed();
                tracing::warn!(%error, "the consumer group could not be told of progress");
            }
            crash::point("group.commit.after");
        }
    });

    let context = Arc::new(Context {
        plan,
        source,
        positions: positions.as_slice().into(),
        known,
        origin: Arc::new(origin),
        handles: Mutex::new(Some(Handles { writers, checkpoints })),
        local_workers,
        recorder: Mutex::new(recorder),
        ledger: Mutex::new(ledger),
        stopping,
        failure: failure.clone(),
        metrics: Arc::clone(&metrics),
        tell_group: Mutex::new(Some(tell_group)),
    });
    let shared = Arc::clone(&context);
    let together = recorded_cluster.then(come_together);
    metrics.starting("waiting for the other processes");
    let guards = joining::execute(workers, Round::Run, move |worker| {
        shared.metrics.started();
        if let Some(together) = &together {
            together.store(true, Ordering::Relaxed);
        }
        shared.work(worker);
    })?;
    // Once every worker has its own handles, none must outlive them here: threads end when all handles are gone.
    drop(guards.join());
    drop(context);
    for thread in threads {
        if thread.join().is_err() {
            failure.report(RunError::Workers("the thread of a sink or of the state store panicked".into()));
        }
    }
    let ledger = match ledger_thread.map(JoinHandle::join) {
        Some(Ok(ledger)) => Some(ledger),
        Some(Err(_)) => {
            failure.report(RunError::Workers("the thread of the ledger panicked".into()));
            None
        }
        None => None,
    };
    // It only informs; a panic there has been printed.
    let _ = group.join();
    let outcome = failure.into_result();
    let Some(mut ledger) = ledger else {
        return outcome.map_err(|error| if follows { disturbed(error) } else { error });
    };
    let outcome = outcome.map_err(|error| fenced_by_whom(error, &mut *ledger, &start));
    if let Err(error) = ledger.ended() {
        tracing::debug!(%error, "the end of the run is not recorded");
    }
    outcome
}

fn cannot_start(error: std::io::Error) -> RunError {
    RunError::Workers(error.to_string())
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
    positions: Arc<[Position]>,
    known: usize,
    origin: Arc<Origin>,
    handles: Mutex<Option<Handles>>,
    local_workers: usize,
    recorder: Mutex<Option<Recorder>>,
    ledger: Mutex<Option<LedgerHandle>>,
    stopping: Arc<AtomicBool>,
    failure: Failure,
    metrics: Arc<Metrics>,
    tell_group: Mutex<Option<Sender<Offsets>>>,
}

/// Of what every worker has a copy.
#[derive(Clone)]
struct Handles {
    writers: Vec<(WriterHandle, Listener)>,
    checkpoints: Option<Capturing>,
}

impl Context {
    /// The life of one worker.
    fn work(&self, worker: &mut Worker) {
        match self.parts(worker) {
            Ok(parts) => self.run(worker, parts),
            Err(error) => self.failure.report(error),
        }
    }

    /// What a worker's dataflow is built from.
    fn parts(&self, worker: &Worker) -> Result<Parts, RunError> {
        let (index, peers) = (worker.index(), worker.peers());
        let is_own = move |partition| ShardId::of_partition(partition).worker(peers) == index;
        let owned: Vec<_> = (0..)
            .map(Partition)
            .zip(self.positions.iter().map(|position| position.next))
            .filter(|(partition, _)| is_own(*partition))
            .collect();
        let source = Arc::clone(&self.source);
        let added = move || source.added().into_iter().filter(|(partition, _)| is_own(*partition)).collect();
        let reader = self.source.reader(&owned)?;
        let lock = "no worker panics while it holds the lock";
        let Handles { writers, checkpoints } =
            self.handles.lock().expect(lock).clone().expect("they stay as long as workers start");
        let first = worker.index() == 0;
        Ok(Parts {
            plan: self.plan.clone(),
            reader,
            positions: Arc::clone(&self.positions),
            known: self.known,
            added: Rc::new(added),
            local_workers: self.local_workers,
            counted: self.source.is_counted(),
            sinks: writers,
            recorder: if first { self.recorder.lock().expect(lock).take() } else { None },
            origin: Arc::clone(&self.origin),
            ledger: if first { self.ledger.lock().expect(lock).take() } else { None },
            checkpoints,
            restored: self.origin.state(worker.index(), worker.peers())?,
            stopping: Arc::clone(&self.stopping),
            failure: self.failure.clone(),
            metrics: Arc::clone(&self.metrics),
        })
    }

    fn run(&self, worker: &mut Worker, parts: Parts) {
        let flow = worker.dataflow(|scope| flow::build(scope, parts));
        let mut flow = match flow {
            Ok(flow) => flow,
            Err(error) => {
                self.failure.report(error.into());
                return drop_dataflows(worker);
            }
        };
        let first = worker.index() == 0;
        let lock = "no worker panics while it holds the lock";
        let tell_group = if first { self.tell_group.lock().expect(lock).take() } else { None };
        let mut told = Instant::now();
        while worker.step_or_park(Some(PARK)) {
            if self.failure.is_some() {
                return drop_dataflows(worker);
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

fn drop_dataflows(worker: &mut Worker) {
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
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
