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

use differential_dataflow::{AsCollection, VecCollection};
use headwater_dataflows::windows::{Row, Session, Sliding, Statistics, Summary};
use headwater_dataflows::{Accumulate, Admission, Admit, Epoch, EventTime, Keyed, Scan};
use timely::dataflow::Scope;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::operators::{Concatenate, Inspect, Probe as _};

use super::binding::{Binder, bind};
use super::clock::{ClockHand, ClockSettings, ticks};
use super::delivery::deliver;
use super::failure::Failure;
use super::plan::{By, Plan, WindowKind, WindowPlan};
use super::reading::{Read, ReadContext, ReadSettings, read};
use super::recorder::Recorder;
use super::recording::{LedgerHandle, durable};
use super::rules::rules;
use super::telling::{Identity, part, told};
use super::watch::{Heard, Sights, Watch};
use super::writer::WriterHandle;
use crate::coordination::{Collector, EpochRecord, GroupOffsets, Watermark};
use crate::event::{Event, KeyKind, split_key};
use crate::metrics::Metrics;
use crate::outputs::{Alert, DeadLetter, KeyHistory, Status, Told, Tongue, WindowRow, tell};
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
    let admission = Admission { dedup_horizon_ms: plan.limits.dedup_horizon_ms };
    let (keyed, refused) = events.as_collection().admit(control, admission);
    let load = keyed.load();
    let letters = refused
        .map(|refused| DeadLetter::refused(&refused.event, refused.refusal))
        .concat(rejected.as_collection());
    let counted = Arc::clone(&metrics);
    let letters = told("Dead letters", letters, Arc::clone(&tongues), move |letter: &DeadLetter, _| {
        if matches!(letter.reason(), crate::decode::Reason::Late | crate::decode::Reason::Duplicate) {
            counted.rejected(letter.reason().as_str(), 1);
        }
    });
    let mut all = vec![letters];

    if tongues.iter().any(|tongue| tongue.takes().events.is_some()) {
        let tongues = Arc::clone(&tongues);
        all.push(keyed.clone().accumulate(
            "Enrich",
            move |epoch, history: &mut KeyHistory, event: &Event, told: &mut Told| {
                tell(&history.arrive(event), epoch, Status::Raised, &tongues, told);
            },
        ));
    }

    let alerts = keyed.clone().scan_all("Rules", rules(&plan.pipeline, &plan.patterns));
    let counted = Arc::clone(&metrics);
    all.push(told("Alerts", alerts, Arc::clone(&tongues), move |alert: &Alert, status| {
        counted.alert(
            alert.rule,
            match status {
                Status::Raised => "raised",
                Status::Revoked => "revoked",
            },
        );
    }));

    for window in &plan.windows {
        let rows = rows(keyed.clone(), window);
        all.push(told(&format!("Window: {}", window.name), rows, Arc::clone(&tongues), |_, _| {}));
    }

    let all = scope.concatenate(all);
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

/// The rows of one window.
fn rows<'scope>(keyed: Keyed<'scope, Event>, plan: &WindowPlan) -> VecCollection<'scope, Epoch, WindowRow> {
    let keyed = match plan.by {
        By::Key => keyed,
        By::User => keyed.only(|key| split_key(key).0 == KeyKind::User),
        By::Device => keyed.only(|key| split_key(key).0 == KeyKind::Device),
    };
    let statistics = Statistics::new(Event::amount, Event::merchant);
    let name = Arc::clone(&plan.name);
    let row = move |row: Row<'_, String, Summary>| {
        WindowRow::new(&name, row.key, row.window, row.closed, row.summary)
    };
    match plan.kind {
        WindowKind::Tumbling { size_ms } => {
            keyed.sliding(&plan.name, size_ms, size_ms, plan.refresh, statistics, row)
        }
        WindowKind::Sliding { size_ms, every_ms } => {
            keyed.sliding(&plan.name, size_ms, every_ms, plan.refresh, statistics, row)
        }
        WindowKind::Session { gap_ms } => keyed.session(&plan.name, gap_ms, plan.refresh, statistics, row),
    }
}

impl Identity for Alert {
    fn same(&self, other: &Self) -> bool {
        self.position == other.position && self.rule == other.rule
    }
}

impl Identity for WindowRow {
    fn same(&self, other: &Self) -> bool {
        self.name == other.name && self.key == other.key && self.window.start == other.window.start
    }
}

impl Identity for DeadLetter {
    fn same(&self, other: &Self) -> bool {
        self.position == other.position
    }
}
