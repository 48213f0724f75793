//! The whole dataflow of a pipeline.
//!
//! ```text
//!   Clock ─▶ Read ─▶ Admit ─┬▶ Enrich ──────┐
//!             │        │    ├▶ Rules ───────┤
//!             │        │    └▶ windows ─────┼▶ Part by sink ─▶ Deliver (each sink) ─▶ probe
//!             │        └ late, duplicate ───┤
//!             ├──────── malformed, … ───────┘
//!             └▶ Bind ─┬▶ control, to all keyed operators
//!                      └▶ Record (ledger) ─▶ what Deliver may let a sink commit
//! ```

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use differential_dataflow::AsCollection;
use headwater_dataflows::{Epoch, EventTime};
use timely::dataflow::Scope;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::operators::{Inspect, Probe as _};

use super::binding::{Binder, bind};
use super::clock::{ClockHand, ClockSettings, ticks};
use super::compute::{Computed, Inputs, compute};
use super::delivery::deliver;
use super::failure::Failure;
use super::plan::Plan;
use super::reading::{Read, ReadContext, ReadSettings, read};
use super::recorder::Recorder;
use super::recording::{LedgerHandle, durable};
use super::telling::part;
use super::watch::{Heard, Sights, Watch};
use super::writer::WriterHandle;
use crate::coordination::{Collector, EpochRecord, GroupOffsets, Watermark};
use crate::metrics::Metrics;
use crate::outputs::Tongue;
use crate::source::Reader;

/// What the dataflow of one worker is built from.
pub struct Parts {
    /// What to compute.
    pub plan: Plan,
    /// Reads this worker's partitions.
    pub reader: Box<dyn Reader>,
    /// How many partitions there are in all.
    pub partitions: usize,
    /// How many workers this process has: they share its bytes in flight.
    pub local_workers: usize,
    /// The writers of the sinks, and how each is told.
    pub sinks: Vec<(WriterHandle, Tongue)>,
    /// Worker 0 writes down the bindings here.
    pub recorder: Option<Recorder>,
    /// Epochs that are done again; on worker 0.
    pub replay: Arc<Vec<EpochRecord>>,
    /// Where worker 0 makes epochs durable.
    pub ledger: Option<LedgerHandle>,
    /// Set when the process was asked to stop.
    pub stopping: Arc<AtomicBool>,
    /// Where failures go.
    pub failure: Failure,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// What a worker keeps of its dataflow.
pub struct Flow {
    /// Behind all sinks.
    pub committed: Probe<Epoch>,
    /// On worker 0: what the consumer group may be told.
    pub offsets: Rc<RefCell<GroupOffsets>>,
    /// Looks at it for the metrics.
    pub watch: Watch,
}

/// Builds the dataflow of one worker.
pub fn build(scope: Scope<'_, Epoch>, parts: Parts) -> Flow {
    let Parts {
        plan,
        reader,
        partitions,
        local_workers,
        sinks,
        recorder,
        replay,
        ledger,
        stopping,
        failure,
        metrics,
    } = parts;
    let committed = Probe::new();
    let hand = Rc::new(ClockHand::default());
    let offsets = Rc::new(RefCell::new(GroupOffsets::default()));
    let watermark = Rc::new(Cell::new(EventTime::MIN));

    let clock = ClockSettings {
        replay: Arc::clone(&replay),
        first: plan.first_epoch,
        length: plan.time.epoch,
        in_flight: plan.limits.epochs_in_flight,
    };
    let heard = Heard::default();
    let ticks = heard.ticks(ticks(scope, clock, Rc::clone(&hand), committed.clone()));
    let settings = ReadSettings {
        idle_timeout: plan.time.idle_timeout,
        max_future_skew_ms: plan.time.max_future_skew_ms,
        max_drift_ms: plan.time.max_drift_ms,
        bytes_in_flight: plan.limits.bytes_in_flight / local_workers.max(1),
    };
    let context = ReadContext {
        stopping,
        watermark: Rc::clone(&watermark),
        committed: committed.clone(),
        failure: failure.clone(),
        metrics: Arc::clone(&metrics),
    };
    let Read { events, rejected, closed } = read(ticks, reader, settings, context);
    let binder = Binder {
        collector: Collector::new(scope.peers()),
        watermark: Watermark::new(partitions, plan.time.max_out_of_orderness_ms),
        close_at_end: plan.close_at_end,
        hand,
        offsets: Rc::clone(&offsets),
        recorder,
        replay,
        replayed: 0,
        ledger,
        failure,
    };
    let durable_at = binder.ledger.as_ref().map(LedgerHandle::durable);
    let newest = Rc::clone(&watermark);
    let bound = Probe::new();
    let bindings = bind(heard.closed(closed), binder);
    let durable = durable(bindings.clone(), durable_at);
    let control = bindings
        .broadcast()
        .inspect(move |control| newest.set(newest.get().max(control.watermark)))
        .probe_with(&bound);

    let tongues: Arc<[Tongue]> = sinks.iter().map(|(_, tongue)| *tongue).collect();
    let inputs = Inputs { events: events.as_collection(), rejected: rejected.as_collection(), control };
    let Computed { told: all, load } = compute(inputs, &plan, &tongues, &metrics);
    let takes_alerts = |tongue: &Tongue| tongue.takes().alerts.is_some();
    let alerted = if tongues.iter().any(takes_alerts) { Probe::new() } else { committed.clone() };
    if sinks.is_empty() {
        all.probe_with(&committed);
    } else {
        let delivered = part(all, sinks.len());
        for ((writer, tongue), changes) in sinks.into_iter().zip(delivered) {
            let done = deliver(changes, durable.clone(), writer).probe_with(&committed);
            if takes_alerts(&tongue) {
                done.probe_with(&alerted);
            }
        }
    }
    let speaks = scope.index().is_multiple_of(local_workers.max(1));
    let sights = Sights { heard, closed: bound, committed: committed.clone(), alerted, watermark, load };
    Flow { committed, offsets, watch: Watch::new(sights, speaks, metrics) }
}
