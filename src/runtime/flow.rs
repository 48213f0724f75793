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

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use differential_dataflow::AsCollection;
use headwater_dataflows::{Captures, Checkpoint, Epoch, Offset, Partition, RestoreError};
use headwater_sinks::Generation;
use timely::dataflow::Scope;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::vec::{Broadcast, Map};
use timely::dataflow::operators::{Concat, Concatenate, Inspect, Probe as _};

use super::binding::{Binder, Marker, bind};
use super::checkpoint_writer::CheckpointWriterHandle;
use super::checkpointing::{Concluder, Marked, conclude, marks, store};
use super::clock::{ClockControl, ClockSettings, ticks};
use super::delivery::deliver;
use super::failure::Failure;
use super::ledger_writer::{LedgerWriterHandle, durable};
use super::reading::{Read, ReadContext, ReadSettings, read};
use super::recovery::Origin;
use super::trace::TraceWriter;
use super::watch::{Probes, StreamObserver, Watch};
use super::writer::WriterHandle;
use crate::coordination::ingest::{Liveness, Pace, Timing, Unfinal};
use crate::coordination::{Collector, GroupOffsets, Marks, Operator, Position, Positions, Watermark};
use crate::metrics::Metrics;
use crate::outputs::{SinkEncoding, SinkRoute, split_by_sink};
use crate::pipeline::{Computed, Inputs, Plan, compute, operators};
use crate::source::Reader;

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
    /// The writers and routes of the sinks.
    pub sinks: Vec<(WriterHandle, SinkRoute)>,
    /// The trace that worker 0 writes the bindings to, if any.
    pub trace: Option<TraceWriter>,
    /// The checkpoint and the epochs that the run resumes from.
    pub origin: Arc<Origin>,
    /// The writer with which worker 0 makes epochs durable.
    pub ledger: Option<LedgerWriterHandle>,
    /// The settings of checkpoints; None if checkpoints are disabled.
    pub checkpoints: Option<CheckpointSettings>,
    /// The checkpoint that the operators resume from; None at the beginning of the pipeline.
    pub restored: Option<Checkpoint>,
    /// True once the process has received a request to stop.
    pub stopping: Arc<AtomicBool>,
    /// Receives failures.
    pub failure: Failure,
    /// The metrics.
    pub metrics: Arc<Metrics>,
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
}

/// Builds the dataflow of one worker.
///
/// # Errors
/// If the operators cannot resume from the checkpoint. The dataflow must not run then.
pub fn build(scope: Scope<'_, Epoch>, inputs: FlowInputs) -> Result<Flow, RestoreError> {
    let FlowInputs {
        plan,
        reader,
        positions,
        known,
        added,
        local_workers,
        counted,
        sinks,
        trace,
        origin,
        ledger,
        checkpoints,
        restored,
        stopping,
        failure,
        metrics,
    } = inputs;
    let committed = Probe::new();
    let clock_control = Rc::new(ClockControl::default());
    let offsets = Rc::new(RefCell::new(GroupOffsets::default()));
    let watermark = Rc::new(Cell::new(origin.watermark()));

    clock_control.bound.set(origin.manifest.as_ref().map_or(Epoch(0), |manifest| manifest.epoch));
    let clock = ClockSettings {
        origin: Arc::clone(&origin),
        first: plan.first_epoch,
        length: plan.time.epoch,
        in_flight: plan.limits.epochs_in_flight,
        counted,
    };
    let observer = StreamObserver::default();
    let ticks = observer.ticks(ticks(scope, clock, Rc::clone(&clock_control), committed.clone()));
    let reports = scope.index().is_multiple_of(local_workers.max(1));
    let settings = ReadSettings {
        timing: Timing {
            idle_timeout: plan.time.idle_timeout,
            held_timeout: plan.time.held_timeout,
            max_future_skew_ms: plan.time.max_future_skew_ms,
            max_jump_ms: plan.time.max_jump_ms,
            counted,
        },
        epoch_records: plan.time.epoch_records,
        bytes_in_flight: plan.limits.bytes_in_flight / local_workers.max(1),
        reports,
        strict_fields: plan.strict_fields,
        format: plan.format,
    };
    let context = ReadContext {
        positions: Arc::clone(&positions),
        added,
        stopping,
        watermark: Rc::clone(&watermark),
        committed: committed.clone(),
        failure: failure.clone(),
        metrics: Arc::clone(&metrics),
    };
    let Read { events, rejected, closed } = read(ticks, reader, settings, context);
    let rule = plan.time.watermark_rule();
    let processes = scope.peers() / local_workers.max(1);
    let mut pace = Pace {
        unfinal: Unfinal::of(origin.manifest.as_ref().map_or(&[], |manifest| &manifest.unfinal)),
        unfinal_limit: plan.limits.unfinal_bytes.saturating_mul(processes as u64),
        max_drift_ms: plan.time.max_drift_ms,
        liveness: Liveness::new(plan.time.standstill(), plan.time.held_warning),
    };
    let known = &positions[..known];
    clock_control.paced.set(pace.end_epoch(Duration::ZERO, known, None, origin.watermark()));
    let marked = Marked::default();
    let binder = Binder {
        collector: Collector::new(scope.peers()),
        watermark: match &origin.manifest {
            Some(manifest) => Watermark::of(manifest, rule),
            None => Watermark::new(known.len(), rule),
        },
        pace,
        started: Instant::now(),
        counted,
        positions: Positions::of(known),
        marker: checkpoints.as_ref().map(|&CheckpointSettings { interval_ms, generation, .. }| Marker {
            marks: Marks::new(interval_ms, origin.newest),
            generation,
            marked: Rc::clone(&marked),
        }),
        close_at_end: plan.close_at_end,
        clock_control,
        offsets: Rc::clone(&offsets),
        trace,
        origin: Arc::clone(&origin),
        replayed: 0,
        ledger: ledger.clone(),
        failure: failure.clone(),
    };
    let durable_at = binder.ledger.as_ref().map(LedgerWriterHandle::durable);
    let newest = Rc::clone(&watermark);
    let bound = Probe::new();
    let bindings = bind(observer.closed(closed), binder);
    let durable = durable(bindings.clone(), durable_at);
    let control = bindings
        .broadcast()
        .inspect(move |control| newest.set(newest.get().max(control.watermark)))
        .probe_with(&bound);

    let routes: Arc<[SinkRoute]> = sinks.iter().map(|(_, route)| route.clone()).collect();
    let encodings = || routes.iter().map(|route| &route.encoding);
    let captures = match (&checkpoints, restored) {
        (None, _) => Captures::off(scope),
        (Some(_), None) => Captures::new(scope),
        (Some(_), Some(checkpoint)) => Captures::restore(scope, checkpoint),
    };
    let (events, rejected) = (events.as_collection(), rejected.as_collection());
    let inputs = Inputs { events, rejected, control: control.clone() };
    let Computed { encoded: all, load } = compute(inputs, &captures, &plan, &routes, &metrics);
    let computed = Probe::new();
    let all = all.probe_with(&computed);
    let operator = |(name, version): (Arc<str>, u32)| Operator { name: name.to_string(), version };
    let entered: Vec<_> = captures.operators().into_iter().map(operator).collect();
    debug_assert!(checkpoints.is_none() || entered == operators(&plan, encodings()), "{entered:?}");
    let captured = captures.finish()?;
    let takes_alerts = |encoding: &SinkEncoding| encoding.mapping().alerts.is_some();
    let alerted = if encodings().any(takes_alerts) { Probe::new() } else { committed.clone() };
    let done = if sinks.is_empty() {
        all.flat_map(|_| None::<()>)
    } else {
        let marks = marks(control.clone());
        let delivered = split_by_sink(all, sinks.len());
        let mut done = Vec::new();
        for ((writer, route), changes) in sinks.into_iter().zip(delivered) {
            let delivered = deliver(changes.concat(marks.clone()), durable.clone(), writer);
            if takes_alerts(&route.encoding) {
                delivered.clone().probe_with(&alerted);
            }
            done.push(delivered);
        }
        scope.concatenate(done)
    };
    let done = done.probe_with(&committed);
    if let Some(CheckpointSettings { checkpoint_writer, .. }) = checkpoints {
        let stored = store(captured, control, checkpoint_writer);
        let before = origin.parts().to_vec();
        let concluder =
            ledger.map(|ledger| Concluder { marked, operators: entered, before, ledger, failure });
        conclude(stored, done, concluder);
    }
    let probes =
        Probes { observer, closed: bound, computed, committed: committed.clone(), alerted, watermark, load };
    Ok(Flow { committed, offsets, watch: Watch::new(probes, reports, metrics) })
}
