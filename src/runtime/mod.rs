//! The runtime: workers, the dataflow, the driver that carries out the decisions of `coordination`, and shutdown.

mod backfill;
mod background;
mod checkpoint;
mod commit;
mod failure;
#[cfg(test)]
pub mod fakes;
mod flow;
mod ingest;
mod lists;
mod peers;
mod queries;
mod recovery;
pub mod rereading;
mod rule_control;
mod threads;
mod watch;

pub use failure::RunError;
pub use ingest::changes::{ChangeRequest, ChangeRequests};
pub use peers::{HttpAddress, Peer, PeerError, Peers};
pub use queries::{Queries, QueryError};
pub use recovery::bootstrap::processes;
pub use recovery::compatibility::{IncompatibleState, check_finished, config_change, is_discardable};
pub use recovery::discard::reset_epoch;
pub use recovery::origin::{
    Checkpoints, History, Records, duplicate_risk_of, needs_checkpoints, readable_origin, resume_from,
};
pub use recovery::rules::{add_spaces, all_rules, first_rules, newest_rules, permitted_rules};
pub use recovery::start::{Following, Role, positions_of, read_from, repeated_kill};
pub use rule_control::{FollowingRule, RuleChangeError, RuleControl, RuleSetChange};

use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, Offset, Partition, RefusedLog};
use headwater_sinks::WriterContext;

use timely::worker::Worker;

use crate::cluster::{Cluster, ClusterSettings};
use crate::config::{ListConfig, OtlpConfig};
use crate::coordination::{Position, Versions};
use crate::ledger::Ledger;
use crate::lists::Lists;
use crate::metrics::Metrics;
use crate::otlp::Exporter;
use crate::outputs::{RecentAlerts, SinkJob, SinkRoute};
use crate::pipeline::{Limits, LiveRules, Plan, RuleHistory};
use crate::routes::{Deliverer, DeliverySettings};
use crate::source::{Opening, Reopening, Source};
use backfill::{BackfillSettings, Backfiller, Gate};
use commit::ledger_writer::LedgerWriterHandle;
use commit::sink_writer::WriterHandle;
use failure::Failure;
use flow::{CheckpointSettings, Flow, FlowInputs};
use ingest::activity::Activity;
use ingest::clock::committed;
use ingest::reading::SlowestTimes;
use ingest::rejections::Rejections;
use ingest::trace::TraceWriter;
use lists::{ListReaders, Requester};
use queries::Mailbox;
use recovery::bootstrap::local_workers;
use recovery::lists::{Preloaded, StartLists};
use recovery::origin::{Origin, attribute_fencing, fenced_by_zombie};
use recovery::start::{PreparedRun, StartContext, prepare};
use threads::Threads;

/// The inputs of a run.
pub struct Job {
    /// The plan: what the run computes.
    pub plan: Plan,
    /// Opens the source.
    pub source: Opening,
    /// The sinks.
    pub sinks: Vec<SinkJob>,
    /// The identity of the writer, passed to every sink.
    pub context: WriterContext,
    /// The role of this process: without a ledger, leader or follower.
    pub role: Role,
    /// The configuration of workers, processes and hosts.
    pub workers: timely::Config,
    /// The settings of the cluster; None if this process is the only one.
    pub cluster: Option<ClusterSettings>,
    /// A flag that stops the run: it reads no more, finishes what it has read, and ends.
    pub stopping: Arc<AtomicBool>,
    /// A flag of process 0 that says that the run is to be resumed at once after a stop. It then goes on for a checkpoint, for
    /// up to 10 s, and stops without another one: what came after it is replayed. If the flag is taken back in time, it stops at one.
    pub rescaling: Arc<AtomicBool>,
    /// The metrics, updated during the run.
    pub metrics: Arc<Metrics>,
    /// Receives the alerts, if no sink stores them in a table.
    pub recent: Option<Arc<RecentAlerts>>,
    /// The handle that other threads query the state of keys with.
    pub queries: Queries,
    /// The rules of the user's own that are in force.
    pub rules: LiveRules,
    /// The changes that other threads request.
    pub requests: ChangeRequests,
    /// Opens the source again for the pasts of rules; the reason if it cannot be read again.
    pub reopen: Result<Reopening, String>,
    /// The lists that rules look values up in.
    pub lists: Lists,
    /// The lists whose sources this process reads.
    pub list_configs: Vec<ListConfig>,
    /// The HTTP addresses of the processes, of which this run receives those of the others.
    pub peers: Peers,
    /// The routes whose deliveries this process makes while the run goes on, if there are any.
    pub deliveries: Option<DeliverySettings>,
    /// The settings of the export of traces, if it is enabled.
    pub otlp: Option<OtlpConfig>,
}

/// The offset of the next record of each partition.
type Offsets = Vec<(Partition, Offset)>;

/// The reason why rules cannot enter with their past in a run with a ledger and without checkpoints.
const NO_STORE: &str =
    "the run has a [ledger] and no [checkpoint], so that a replay would not have the past of rules";

/// The interval at which offsets are committed to the consumer group.
const OFFSETS_EVERY: Duration = Duration::from_millis(500);

/// The maximum time that a worker sleeps when it has nothing to do and nothing wakes it.
const PARK: Duration = Duration::from_millis(100);

/// The maximum time that a worker sleeps while queries may wait.
const SHORT_PARK: Duration = Duration::from_millis(1);

/// Runs a pipeline until its input ends, it is stopped, or it fails.
///
/// # Errors
/// The failure that ended the run.
pub fn run(job: Job) -> Result<(), RunError> {
    let Job {
        mut plan,
        source,
        mut sinks,
        context,
        role,
        workers,
        cluster,
        stopping,
        rescaling,
        metrics,
        recent,
        queries,
        rules,
        requests,
        reopen,
        lists,
        list_configs,
        peers,
        deliveries,
        otlp,
    } = job;
    let failure = Failure::default();
    let (first_worker, local_workers) = local(&workers);
    let follows = matches!(role, Role::Follower(_));
    let has_ledger = !matches!(role, Role::Unrecorded);
    metrics.watch_lists(lists.clone());
    let readers = start_list_readers(&list_configs, &lists, &stopping)?;
    let start_lists = StartLists { lists: &lists, readers: readers.as_ref() };
    let start = StartContext {
        workers: &workers,
        cluster: cluster.as_ref(),
        metrics: &metrics,
        live: &rules,
        requests: &requests,
        lists: start_lists,
    };
    let prepared = prepare(role, source, &mut sinks, context, &mut plan, &start)?;
    let PreparedRun { context, mut origin, source, positions, known, first_epoch, skips, in_force, .. } =
        prepared;
    let (newest_lists, preloaded, starts) = (prepared.newest_lists, prepared.preloaded, prepared.starts);
    // Dropped once all other threads have ended.
    let cluster = prepared.cluster;
    let history = recovery::rules::history(&in_force, &rules)?;
    metrics.watch_rules(history.newest().errors());
    plan.first_epoch = plan.first_epoch.max(first_epoch);
    let before: Vec<_> = positions.as_slice().iter().map(|position| position.timestamp_ms).collect();
    source.expect_before(&before);
    if has_ledger {
        metrics.claimed(context.generation.0);
    }
    metrics.stalls_after(plan.time.standstill(), plan.time.held_warning);

    let own = first_worker..first_worker + local_workers;
    let mut threads = Threads::new(own.clone(), failure.clone(), Arc::clone(&metrics));
    let (checkpoints, retention) = match prepared.checkpoints {
        Some(wanted) => Some(threads.start_checkpoint_writer(wanted, &mut origin, &context)?).unzip(),
        None => (None, None),
    };
    // Only the leader writes manifests. Elsewhere their retention, a handle of the checkpoint writer, is dropped.
    let ledger = match prepared.ledger {
        Some(recorded) => Some(threads.start_ledger_writer(recorded, &origin, retention)?),
        None => {
            drop(retention);
            None
        }
    };
    let provenance = plan.provenance();
    let store =
        checkpoints.as_ref().map(|settings| settings.checkpoint_writer.clone()).filter(|_| has_ledger);
    let requester = readers.map(|readers| Requester::start(readers, newest_lists, requests.clone(), store));
    let requester = requester.transpose().map_err(threads::cannot_start)?;
    let writers =
        threads.start_sink_writers(sinks, &origin, &context, &skips, ledger.as_ref(), &provenance)?;
    let (gate, refused) = (Gate::default(), RefusedLog::default());
    let store =
        checkpoints.as_ref().map(|settings| settings.checkpoint_writer.clone()).filter(|_| has_ledger);
    let backfiller = (first_worker == 0).then(|| {
        Backfiller::start(BackfillSettings {
            plan: plan.clone(),
            live: rules.clone(),
            requests: requests.clone(),
            gate: gate.clone(),
            refused: refused.clone(),
            reopen: if has_ledger && store.is_none() { Err(NO_STORE.to_owned()) } else { reopen },
            is_topic: source.ends().is_some(),
            starts,
            store,
        })
    });
    let backfiller = backfiller.transpose().map_err(threads::cannot_start)?;
    let trace = match &plan.record_bindings {
        Some(path) if first_worker == 0 => {
            let before = origin.manifest.as_ref().map_or(Epoch(0), |manifest| manifest.epoch);
            Some(TraceWriter::after(before, path)?)
        }
        _ => None,
    };
    let group_offsets = threads.start_group_commits(Arc::clone(&source));
    let Limits { max_rejected_share, rejected_window, .. } = plan.limits;
    let start = |settings| Deliverer::start(settings, &context, Arc::clone(&metrics));
    let deliverer = deliveries.map(start).transpose().map_err(threads::cannot_start)?;
    let exporter = start_exporter(otlp, &context, &metrics)?;
    let shared = RunShared {
        rejections: max_rejected_share.map(|share| Arc::new(Rejections::new(share, rejected_window))),
        plan,
        source,
        positions: positions.as_slice().into(),
        known,
        origin: Arc::new(origin),
        handles: Mutex::new(Some(WorkerHandles { writers, checkpoints })),
        local_workers,
        trace: Mutex::new(trace),
        ledger: Mutex::new(ledger),
        in_force,
        history,
        rules,
        requests,
        activity: Activity::default(),
        slowest: SlowestTimes::new(local_workers),
        gate,
        refused,
        lists,
        preloaded: Arc::new(Mutex::new(preloaded)),
        stopping,
        rescaling,
        failure: failure.clone(),
        metrics,
        recent,
        group_offsets: Mutex::new(Some(group_offsets)),
        peers,
        mailboxes: Mutex::new(queries.open(own, processes(&workers) * local_workers)),
    };
    run_workers(workers, shared, cluster.as_ref())?;
    // They have a handle of the checkpoint writer.
    drop((requester, backfiller));
    let ledger = threads.join();
    // After the last commit of the sinks, so that it can deliver all that is in the outbox.
    drop(deliverer);
    exporter.into_iter().for_each(Exporter::end);
    drop(cluster);
    end(failure.into_result(), ledger, &context, follows)
}

/// Starts to read lists, if this process reads any.
fn start_list_readers(
    configs: &[ListConfig],
    lists: &Lists,
    stopping: &Arc<AtomicBool>,
) -> Result<Option<ListReaders>, RunError> {
    if configs.is_empty() {
        return Ok(None);
    }
    ListReaders::start(configs, lists, stopping).map(Some).map_err(threads::cannot_start)
}

/// Starts the export of traces, if it is enabled.
fn start_exporter(
    otlp: Option<OtlpConfig>,
    context: &WriterContext,
    metrics: &Arc<Metrics>,
) -> Result<Option<Exporter>, RunError> {
    let exporter = otlp.map(|otlp| Exporter::start(otlp, context, metrics));
    exporter.transpose().map_err(threads::cannot_start)
}

/// Runs all workers of this process until they end. When it returns, no handle of a thread is left.
fn run_workers(
    workers: timely::Config,
    shared: RunShared,
    cluster: Option<&Cluster>,
) -> Result<(), RunError> {
    let shared = Arc::new(shared);
    let (metrics, failure) = (Arc::clone(&shared.metrics), shared.failure.clone());
    let work = move |worker: &mut Worker| {
        shared.metrics.started();
        shared.work(worker);
    };
    let guards = match cluster {
        None => timely::execute(workers, work).map_err(RunError::Workers)?,
        Some(cluster) => {
            metrics.starting("waiting for the other processes to read their state");
            let prepared = cluster.prepare()?;
            let of_loss = failure.clone();
            cluster.on_loss(move |lost| of_loss.report(lost.into()));
            prepared.execute(workers.worker, move || failure.reason(), work)?
        }
    };
    drop(guards.join());
    Ok(())
}

/// Records the end of a run in its ledger. Returns its outcome, with fencing attributed to its cause.
fn end(
    outcome: Result<(), RunError>,
    ledger: Option<Box<dyn Ledger>>,
    context: &WriterContext,
    follows: bool,
) -> Result<(), RunError> {
    let Some(mut ledger) = ledger else {
        return outcome.map_err(|error| if follows { fenced_by_zombie(error) } else { error });
    };
    let outcome = outcome.map_err(|error| attribute_fencing(error, &mut *ledger, context));
    if let Err(error) = ledger.ended() {
        tracing::debug!(%error, "cannot record the end of the run");
    }
    outcome
}

/// Returns the index of the first worker of this process, and the number of its workers.
fn local(config: &timely::Config) -> (usize, usize) {
    let workers = local_workers(config);
    match &config.communication {
        timely::CommunicationConfig::Cluster { process, .. } => (process * workers, workers),
        _ => (0, workers),
    }
}

/// The data that the workers of a process share.
struct RunShared {
    plan: Plan,
    source: Arc<dyn Source>,
    positions: Arc<[Position]>,
    known: usize,
    origin: Arc<Origin>,
    handles: Mutex<Option<WorkerHandles>>,
    local_workers: usize,
    trace: Mutex<Option<TraceWriter>>,
    ledger: Mutex<Option<LedgerWriterHandle>>,
    in_force: Versions,
    history: RuleHistory,
    rules: LiveRules,
    requests: ChangeRequests,
    activity: Activity,
    slowest: SlowestTimes,
    gate: Gate,
    refused: RefusedLog,
    lists: Lists,
    /// The contents that the replay needs.
    preloaded: Arc<Mutex<Preloaded>>,
    stopping: Arc<AtomicBool>,
    rescaling: Arc<AtomicBool>,
    failure: Failure,
    rejections: Option<Arc<Rejections>>,
    metrics: Arc<Metrics>,
    recent: Option<Arc<RecentAlerts>>,
    group_offsets: Mutex<Option<Sender<Offsets>>>,
    peers: Peers,
    /// The queries to each worker that has not begun.
    mailboxes: Mutex<Vec<Mailbox>>,
}

/// The handles that every worker clones.
#[derive(Clone)]
struct WorkerHandles {
    writers: Vec<(WriterHandle, SinkRoute)>,
    checkpoints: Option<CheckpointSettings>,
}

impl RunShared {
    /// Builds and runs the dataflow of a worker.
    fn work(&self, worker: &mut Worker) {
        let lock = "no thread panics while it holds the lock";
        let is_own = |mailbox: &mut Mailbox| mailbox.worker() == worker.index();
        let mailbox = self.mailboxes.lock().expect(lock).extract_if(.., is_own).next();
        match self.flow_inputs(worker) {
            Ok(inputs) => self.run(worker, inputs, mailbox),
            Err(error) => self.failure.report(error),
        }
    }

    /// Returns the inputs of a worker's dataflow.
    fn flow_inputs(&self, worker: &Worker) -> Result<FlowInputs, RunError> {
        let (index, peers) = (worker.index(), worker.peers());
        let origin = Arc::clone(&self.origin);
        let is_own = move |partition| origin.owners.worker(partition, peers) == index;
        let owned: Vec<_> = (0..)
            .map(Partition)
            .zip(self.positions.iter().map(|position| position.next))
            .filter(|(partition, _)| is_own(*partition))
            .collect();
        let source = Arc::clone(&self.source);
        let added = move || source.added().into_iter().filter(|(partition, _)| is_own(*partition)).collect();
        let reader = self.source.reader(&owned)?;
        let lock = "no thread panics while it holds the lock";
        let WorkerHandles { writers, checkpoints } = self
            .handles
            .lock()
            .expect(lock)
            .clone()
            .expect("handles are dropped after all workers have started");
        let first = worker.index() == 0;
        Ok(FlowInputs {
            plan: self.plan.clone(),
            reader,
            positions: Arc::clone(&self.positions),
            known: self.known,
            added: Rc::new(added),
            local_workers: self.local_workers,
            counted: self.source.is_counted(),
            is_alone: worker.peers() == self.local_workers,
            activity: self.activity.clone(),
            slowest: self.slowest.clone(),
            sinks: writers,
            trace: if first { self.trace.lock().expect(lock).take() } else { None },
            origin: Arc::clone(&self.origin),
            ledger: if first { self.ledger.lock().expect(lock).take() } else { None },
            in_force: self.in_force.clone(),
            history: self.history.clone(),
            rules: self.rules.clone(),
            lists: self.lists.clone(),
            preloaded: Arc::clone(&self.preloaded),
            requests: self.requests.clone(),
            gate: self.gate.clone(),
            refused: self.refused.clone(),
            checkpoints,
            restored: self.origin.state(worker.index(), worker.peers())?,
            stopping: Arc::clone(&self.stopping),
            rescaling: Arc::clone(&self.rescaling),
            failure: self.failure.clone(),
            rejections: self.rejections.clone(),
            metrics: Arc::clone(&self.metrics),
            recent: self.recent.clone(),
        })
    }

    fn run(&self, worker: &mut Worker, inputs: FlowInputs, mut mailbox: Option<Mailbox>) {
        self.peers.exchange(worker, self.local_workers);
        let flow = worker.dataflow(|scope| flow::build(scope, inputs));
        let mut flow = match flow {
            Ok(flow) => flow,
            Err(error) => {
                self.failure.report(error.into());
                return drop_dataflows(worker);
            }
        };
        let first = worker.index() == 0;
        let lock = "no thread panics while it holds the lock";
        let group_offsets = if first { self.group_offsets.lock().expect(lock).take() } else { None };
        let mut last_sent = Instant::now();
        mailbox.iter().for_each(Mailbox::answer_here);
        let mut park = PARK;
        while worker.step_or_park(Some(park)) {
            if self.failure.is_some() {
                return drop_dataflows(worker);
            }
            flow.watch.observe();
            if let Some(mailbox) = &mut mailbox {
                mailbox.answer_next(&flow.states);
                park = if mailbox.is_resting() { SHORT_PARK } else { PARK };
            }
            if last_sent.elapsed() >= OFFSETS_EVERY {
                last_sent = Instant::now();
                flow.settle_lists();
                send_offsets(&flow, group_offsets.as_ref());
            }
        }
        flow.watch.observe();
        send_offsets(&flow, group_offsets.as_ref());
    }
}

fn drop_dataflows(worker: &mut Worker) {
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
}

/// Sends the offsets that every sink has committed to the thread that commits them to the consumer group.
fn send_offsets(flow: &Flow, group: Option<&Sender<Offsets>>) {
    let Some(group) = group else { return };
    let mut offsets = flow.offsets.borrow_mut();
    offsets.completed(|epoch: Epoch| committed(&flow.committed, epoch));
    if let Some(offsets) = offsets.take() {
        // The receiver lives as long as the run.
        let _ = group.send(offsets);
    }
}
