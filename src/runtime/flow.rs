//! The dataflow of a pipeline.
//!
//! ```text
//!   Clock ─▶ Read ─▶ Admit ─┬▶ Enrich ──────┐
//!             │        │    ├▶ Rules ───────┤
//!             │        │    └▶ windows ─────┼▶ Part by sink ─▶ Deliver (each sink) ─▶ probe
//!             │        └ late, duplicate ───┤
//!             ├──────── malformed, … ───────┘
//!             └▶ Bind ─┬▶ control, to all keyed operators ─▶ captured state ─▶ Store ─▶ Conclude (ledger)
//!                      └▶ Record (ledger) ─▶ durable epochs, which Deliver may let a sink commit
//! ```

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use differential_dataflow::AsCollection;
use headwater_dataflows::{
    Captures, Checkpoint, ControlStream, Epoch, EventTime, Offset, Partition, RefusedLog, RestoreError,
};
use headwater_sinks::Generation;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::vec::{Broadcast, Map};
use timely::dataflow::operators::{Concat, Concatenate, Exchange, Inspect, Probe as _};
use timely::dataflow::{Scope, StreamVec};

use crate::coordination::ingest::{Liveness, Pace, Timing, Unfinal};
use crate::coordination::{
    Collector, GroupOffsets, InForce, ListVersion, Marks, Operator, Position, Positions, StoredPasts,
    Versions, Watermark,
};
use crate::lists::{Lists, Table};
use crate::metrics::Metrics;
use crate::outputs::{EncodedOutputs, Output, RecentAlerts, SinkRoute, split_by_sink};
use crate::pipeline::{
    Computed, Inputs, LiveRules, Plan, RuleHistory, RuleOperators, RulePasts, States, compute, operators,
};
use crate::runtime::backfill::Gate;
use crate::runtime::checkpoint::operators::{Concluder, Marked, conclude, marks, store};
use crate::runtime::checkpoint::writer::CheckpointWriterHandle;
use crate::runtime::commit::delivery::deliver;
use crate::runtime::commit::ledger_writer::{LedgerWriterHandle, durable};
use crate::runtime::commit::sink_writer::WriterHandle;
use crate::runtime::failure::{Failure, RunError};
use crate::runtime::ingest::activity::Activity;
use crate::runtime::ingest::binding::{Binder, Marker, bind};
use crate::runtime::ingest::changes::{ChangeRequests, Contents, apply};
use crate::runtime::ingest::clock::{ClockControl, ClockSettings, committed, ticks};
use crate::runtime::ingest::reading::{Read, ReadContext, ReadSettings, SlowestTimes, read};
use crate::runtime::ingest::rejections::Rejections;
use crate::runtime::ingest::trace::TraceWriter;
use crate::runtime::recovery::lists::Preloaded;
use crate::runtime::recovery::origin::Origin;
use crate::runtime::watch::{Probes, StreamObserver, Watch};
use crate::source::Reader;

/// The length of an epoch without records that follows one in which nothing happened.
const QUIET: Duration = Duration::from_millis(200);

/// The inputs from which the dataflow of one worker is built.
pub struct FlowInputs {
    /// The plan: what the dataflow computes.
    pub plan: Plan,
    /// The reader of this worker's partitions.
    pub reader: Box<dyn Reader>,
    /// The start position of each partition.
    pub positions: Arc<[Position]>,
    /// The number of partitions that are known before the first epoch; others are added in that epoch or later.
    pub known: usize,
    /// Returns the partitions of this worker that were added since the start.
    pub added: Rc<dyn Fn() -> Vec<(Partition, Offset)>>,
    /// The number of workers of this process, which share its bytes in flight.
    pub local_workers: usize,
    /// True if epochs close by a count of records.
    pub counted: bool,
    /// True if this is the only process.
    pub is_alone: bool,
    /// The signal of the readers of this process to its clock.
    pub activity: Activity,
    /// The time of the slowest partition of each worker of this process.
    pub slowest: SlowestTimes,
    /// The writers and routes of the sinks.
    pub sinks: Vec<(WriterHandle, SinkRoute)>,
    /// The trace that worker 0 writes the bindings to, if any.
    pub trace: Option<TraceWriter>,
    /// The checkpoint and the epochs that the run resumes from.
    pub origin: Arc<Origin>,
    /// The writer with which worker 0 makes epochs durable.
    pub ledger: Option<LedgerWriterHandle>,
    /// The changes in force before the first epoch.
    pub in_force: Versions,
    /// The rules of the user's own that are in force before the first epoch.
    pub history: RuleHistory,
    /// The rules of the process, which those of changes join.
    pub rules: LiveRules,
    /// The lists of the process.
    pub lists: Lists,
    /// The contents of lists that the replay needs.
    pub preloaded: Arc<Mutex<Preloaded>>,
    /// The changes that are requested.
    pub requests: ChangeRequests,
    /// The exchange with the thread that makes the pasts of rules.
    pub gate: Gate,
    /// Receives the positions of refused events, in the process of worker 0.
    pub refused: RefusedLog,
    /// The settings of checkpoints; None if checkpoints are disabled.
    pub checkpoints: Option<CheckpointSettings>,
    /// The checkpoint that the operators resume from; None at the beginning of the pipeline.
    pub restored: Option<Checkpoint>,
    /// True once the process has received a request to stop.
    pub stopping: Arc<AtomicBool>,
    /// True if the run is to be resumed at once after a stop.
    pub rescaling: Arc<AtomicBool>,
    /// Receives failures.
    pub failure: Failure,
    /// The monitor of rejected records, if there is a limit.
    pub rejections: Option<Arc<Rejections>>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Receives the alerts, if no sink stores them in a table.
    pub recent: Option<Arc<RecentAlerts>>,
}

/// The settings of checkpoints. Every worker has a copy.
#[derive(Clone)]
pub struct CheckpointSettings {
    /// Writes the parts.
    pub checkpoint_writer: CheckpointWriterHandle,
    /// The minimum time between two checkpoints, in milliseconds of the epochs' wall times.
    pub interval_ms: i64,
    /// The generation of this start.
    pub generation: Generation,
}

/// The handles of a built dataflow that its worker keeps.
pub struct Flow {
    /// The probe behind all sinks.
    pub committed: Probe<Epoch>,
    /// The offsets to commit to the consumer group, on worker 0.
    pub offsets: Rc<RefCell<GroupOffsets>>,
    /// Observes the dataflow for the metrics.
    pub watch: Watch,
    /// Reads the state of a key, for queries.
    pub states: States,
    /// The lists, and the watermarks of the epochs that some sink has not committed, on one worker of the process.
    lists: Option<(Lists, Settling)>,
}

/// Watermarks of epochs, in order.
type Settling = Rc<RefCell<VecDeque<(Epoch, EventTime)>>>;

impl Flow {
    /// Forgets the contents of lists that no event needs: those that were replaced before an epoch that every worker has
    /// computed and whose watermark has passed every event before the replacement.
    pub fn settle_lists(&self) {
        let Some((lists, settling)) = &self.lists else { return };
        let mut last = None;
        while let Some((_, watermark)) =
            settling.borrow_mut().pop_front_if(|(epoch, _)| committed(&self.committed, *epoch))
        {
            last = Some(watermark);
        }
        if let Some(watermark) = last {
            lists.settle(watermark);
        }
    }
}

/// The state that the operators of a worker share with each other and with the worker.
struct FlowState {
    /// The probe behind all sinks.
    committed: Probe<Epoch>,
    /// The control of the clock, on worker 0.
    clock_control: Rc<ClockControl>,
    /// The offsets to commit to the consumer group, on worker 0.
    offsets: Rc<RefCell<GroupOffsets>>,
    /// The newest watermark that this worker has received.
    watermark: Rc<Cell<EventTime>>,
    /// The marked epochs, on worker 0.
    marked: Marked,
}

impl FlowState {
    fn starting(origin: &Origin) -> FlowState {
        let clock_control = Rc::new(ClockControl::default());
        clock_control.bound.set(origin.manifest.as_ref().map_or(Epoch(0), |manifest| manifest.epoch));
        FlowState {
            committed: Probe::new(),
            clock_control,
            offsets: Rc::default(),
            watermark: Rc::new(Cell::new(origin.watermark())),
            marked: Marked::default(),
        }
    }
}

impl FlowInputs {
    fn clock_settings(&self) -> ClockSettings {
        ClockSettings {
            origin: Arc::clone(&self.origin),
            first: self.plan.first_epoch,
            length: self.plan.time.epoch,
            in_flight: self.plan.limits.epochs_in_flight,
            counted: self.counted,
            quiet: self.is_alone.then_some(QUIET),
            activity: self.activity.clone(),
        }
    }

    fn read_settings(&self, reports: bool) -> ReadSettings {
        let Plan { time, limits, decoding, .. } = &self.plan;
        ReadSettings {
            timing: Timing {
                idle_timeout: time.idle_timeout,
                held_timeout: time.held_timeout,
                max_future_skew_ms: time.max_future_skew_ms,
                max_jump_ms: time.max_jump_ms,
                counted: self.counted,
            },
            epoch_records: time.epoch_records,
            bytes_in_flight: limits.bytes_in_flight / self.local_workers.max(1),
            reports,
            decoding: decoding.clone(),
        }
    }

    fn read_context(&self, state: &FlowState) -> ReadContext {
        ReadContext {
            positions: Arc::clone(&self.positions),
            added: Rc::clone(&self.added),
            stopping: Arc::clone(&self.stopping),
            activity: self.activity.clone(),
            slowest: self.slowest.clone(),
            watermark: Rc::clone(&state.watermark),
            committed: state.committed.clone(),
            failure: self.failure.clone(),
            rejections: self.rejections.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Returns the binder, which takes the trace, and sets the pace of the first epoch.
    fn binder(&mut self, peers: usize, state: &FlowState) -> Binder {
        let Plan { time, limits, close_at_end, .. } = &self.plan;
        let (manifest, rule) = (&self.origin.manifest, time.watermark_rule());
        let processes = peers / self.local_workers.max(1);
        let mut pace = Pace {
            unfinal: Unfinal::of(manifest.as_ref().map_or(&[], |manifest| &manifest.unfinal)),
            unfinal_limit: limits.unfinal_bytes.saturating_mul(processes as u64),
            max_drift_ms: time.max_drift_ms,
            liveness: Liveness::new(time.standstill(), time.held_warning),
        };
        let known = &self.positions[..self.known];
        let paced = pace.end_epoch(Duration::ZERO, known, None, self.origin.watermark());
        state.clock_control.paced.set(paced);
        let marker = |&CheckpointSettings { interval_ms, generation, .. }: &CheckpointSettings| Marker {
            marks: Marks::new(interval_ms, self.origin.newest),
            generation,
            marked: Rc::clone(&state.marked),
        };
        Binder {
            collector: Collector::new(peers),
            watermark: match manifest {
                Some(manifest) => Watermark::of(manifest, rule),
                None => Watermark::new(known.len(), rule),
            },
            pace,
            started: Instant::now(),
            counted: self.counted,
            positions: Positions::of(known),
            requests: self.requests.clone(),
            gate: self.gate.clone(),
            in_force: self.in_force.clone(),
            marker: self.checkpoints.as_ref().map(marker),
            rescaling: Arc::clone(&self.rescaling),
            before_stop: None,
            close_at_end: *close_at_end,
            clock_control: Rc::clone(&state.clock_control),
            offsets: Rc::clone(&state.offsets),
            trace: self.trace.take(),
            origin: Arc::clone(&self.origin),
            replayed: 0,
            ledger: self.ledger.clone(),
            failure: self.failure.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }
}

/// Builds the dataflow of one worker.
///
/// # Errors
/// If the operators cannot resume from the checkpoint. The dataflow must not run then.
pub fn build(scope: Scope<'_, Epoch>, mut inputs: FlowInputs) -> Result<Flow, RestoreError> {
    let state = FlowState::starting(&inputs.origin);
    let worker = scope.index();
    let reports = worker.is_multiple_of(inputs.local_workers.max(1));
    let (clock, settings) = (inputs.clock_settings(), inputs.read_settings(reports));
    let (context, binder) = (inputs.read_context(&state), inputs.binder(scope.peers(), &state));
    let FlowInputs {
        plan,
        reader,
        sinks,
        origin,
        ledger,
        checkpoints,
        restored,
        history,
        rules,
        lists,
        preloaded,
        refused,
        failure,
        metrics,
        recent,
        ..
    } = inputs;

    let observer = StreamObserver::default();
    let ticks = ticks(scope, clock, Rc::clone(&state.clock_control), state.committed.clone());
    let Read { events, rejected, closed } = read(observer.ticks(ticks), reader, settings, context);
    let (newest, bound) = (Rc::clone(&state.watermark), Probe::new());
    let bindings = bind(observer.closed(closed), binder);
    let durable = durable(bindings.clone(), ledger.as_ref().map(LedgerWriterHandle::durable));
    let observed = reports.then(|| Arc::clone(&metrics));
    let rule_operators: Rc<OnceCell<RuleOperators>> = Rc::default();
    let of_worker = (scope.index(), scope.peers());
    let mut change_rules =
        apply_rules(Rc::clone(&rule_operators), rules, of_worker, failure.clone(), observed.clone());
    let mut change_lists = apply_lists(lists.clone(), preloaded, failure.clone());
    let change = move |in_force: &InForce, contents: &[Contents]| {
        change_lists(in_force, contents);
        change_rules(in_force, contents);
    };
    let settling = (reports && !lists.is_empty()).then(Settling::default);
    let passed = settling.clone();
    let control = apply(bindings.broadcast(), change)
        .inspect_core(move |event| {
            let Ok((stamp, controls)) = event else { return };
            let Some(watermark) = controls.iter().map(|control| control.watermark).max() else { return };
            newest.set(newest.get().max(watermark));
            let epoch = *stamp.least().expect("data travels with a time");
            if let Some(settling) = &passed {
                settling.borrow_mut().push_back((epoch, watermark));
            }
            if let Some(metrics) = &observed {
                metrics.watermark_at(epoch, watermark);
            }
        })
        .probe_with(&bound);

    let routes: Arc<[SinkRoute]> = sinks.iter().map(|(_, route)| route.clone()).collect();
    let captures = match (&checkpoints, restored) {
        (None, _) => Captures::off(scope),
        (Some(_), None) => Captures::new(scope),
        (Some(_), Some(checkpoint)) => Captures::restore(scope, checkpoint),
    };
    // Another worker may read the partition than the one that owns its shard, and a sink's progress is kept by shard.
    let rejected = rejected.exchange(|(letter, _, _)| u64::from(letter.shard().0));
    let (events, rejected) = (events.as_collection(), rejected.as_collection());
    let inputs = Inputs { events, rejected, control: control.clone(), refused: Some(refused) };
    let Computed { encoded, load, states, rules } =
        compute(inputs, &captures, &plan, &history, &routes, &metrics, recent);
    assert!(rule_operators.set(rules).is_ok(), "a dataflow is built once");
    let computed = Probe::new();
    let encoded = encoded.probe_with(&computed);
    let operator = |(name, version): (Arc<str>, u32)| Operator { name: name.to_string(), version };
    let entered: Vec<_> = captures.operators().into_iter().map(operator).collect();
    let listed = || operators(&plan, routes.iter().map(|route| &route.encoding));
    debug_assert!(checkpoints.is_none() || entered == listed(), "{entered:?}");
    let captured = captures.finish()?;

    let takes_alerts = |route: &SinkRoute| route.encoding.mapping().alerts.is_some();
    let alerted = if routes.iter().any(takes_alerts) { Probe::new() } else { state.committed.clone() };
    let done = deliver_to_sinks(encoded, control.clone(), durable, sinks, &alerted);
    let done = done.probe_with(&state.committed);
    if let Some(CheckpointSettings { checkpoint_writer, .. }) = checkpoints {
        let stored = store(captured, control, checkpoint_writer);
        let (before, marked) = (origin.parts().to_vec(), state.marked);
        let concluder =
            ledger.map(|ledger| Concluder { marked, operators: entered, before, ledger, failure });
        conclude(stored, done, concluder);
    }
    let FlowState { committed, offsets, watermark, .. } = state;
    let probes =
        Probes { observer, closed: bound, computed, committed: committed.clone(), alerted, watermark, load };
    let lists = settling.map(|settling| (lists, settling));
    Ok(Flow { committed, offsets, watch: Watch::new(probes, worker, reports, metrics), states, lists })
}

/// Returns a function that lets the rules of a change come into force on this worker and, once a process has read them, in
/// its metrics.
fn apply_rules(
    operators: Rc<OnceCell<RuleOperators>>,
    rules: LiveRules,
    (worker, peers): (usize, usize),
    failure: Failure,
    metrics: Option<Arc<Metrics>>,
) -> impl FnMut(&InForce, &[Contents]) {
    move |InForce { since, change }, contents| {
        let Some(text) = &change.rules else { return };
        let pasts = match change.pasts {
            None => Ok(RulePasts::default()),
            Some(StoredPasts { hash, .. }) => {
                let arrived = contents.iter().find(|contents| contents.hash == hash);
                let bytes =
                    arrived.map(|contents| Arc::clone(&contents.bytes)).or_else(|| rules.take_pasts(&hash));
                let bytes = bytes.ok_or_else(|| "their pasts did not come with the change".to_owned());
                bytes.and_then(|bytes| RulePasts::decode(&bytes, worker, peers))
            }
        };
        let operators = operators.get().expect("the dataflow is built before it runs");
        let added = pasts.and_then(|pasts| {
            let set = rules.read(text)?;
            operators.add(since, &set, &pasts).map_err(|damage| damage.to_string())?;
            Ok(set)
        });
        match added {
            Ok(set) => {
                rules.enter(&set);
                if let Some(metrics) = &metrics {
                    metrics.watch_rules(set.errors());
                }
            }
            Err(reason) => failure.report(RunError::Rules { epoch: since.epoch, reason }),
        }
    }
}

/// Returns a function that lets the lists of a change come into force in this process.
fn apply_lists(
    lists: Lists,
    preloaded: Arc<Mutex<Preloaded>>,
    failure: Failure,
) -> impl FnMut(&InForce, &[Contents]) {
    move |InForce { since, change }, contents| {
        // A change with contents is not a replayed one.
        if !contents.is_empty() {
            preloaded.lock().expect("no thread panics while it holds the lock").forget();
        }
        for ListVersion { name, hash, .. } in &change.lists {
            // A list that the configuration does not have any more.
            let Some(list) = lists.get(name) else { continue };
            let make = || {
                let of_list = contents.iter().find(|contents| contents.hash == *hash);
                let bytes = of_list.ok_or_else(|| "they did not come with the change".to_owned())?;
                let table = Table::decode(list.schema(), &bytes.bytes).map_err(|error| error.to_string())?;
                Ok(Arc::new(table))
            };
            if let Err(reason) = list.add(since, *hash, make) {
                failure.report(RunError::ListChange { epoch: since.epoch, list: name.clone(), reason });
            }
        }
    }
}

/// Delivers encoded outputs to the writer of each sink. The returned stream has no data; its frontier is what all sinks
/// have committed. `alerted` probes the sinks that accept alerts.
fn deliver_to_sinks<'scope>(
    encoded: StreamVec<'scope, Epoch, (Epoch, EncodedOutputs)>,
    control: ControlStream<'scope>,
    durable: StreamVec<'scope, Epoch, ()>,
    sinks: Vec<(WriterHandle, SinkRoute)>,
    alerted: &Probe<Epoch>,
) -> StreamVec<'scope, Epoch, ()> {
    if sinks.is_empty() {
        return encoded.flat_map(|_| None::<()>);
    }
    let scope = encoded.scope();
    let marks = marks(control);
    let changes = split_by_sink(encoded, sinks.len());
    let mut done = Vec::new();
    for ((writer, route), changes) in sinks.into_iter().zip(changes) {
        let delivered = deliver(changes.concat(marks.clone()), durable.clone(), writer);
        if route.encoding.mapping().alerts.is_some() {
            delivered.clone().probe_with(alerted);
        }
        done.push(delivered);
    }
    scope.concatenate(done)
}
