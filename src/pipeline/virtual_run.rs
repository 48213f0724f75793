//! A run of a plan in the caller's thread, at virtual times: for tests of rules and backtests.
//!
//! ```text
//!   events that arrive together ─▶ one epoch ─▶ compute, on one worker ─▶ changes of alerts, refused events
//! ```
//!
//! All operators are those of a run, with its key spaces, suppression and watermark. Time passes only by events. In a
//! test of rules, the watermark follows the greatest event time, as that of one partition does, and
//! [`VirtualRun::finish`] ends the input. A backtest passes the watermark of its partitions with each epoch.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use differential_dataflow::AsCollection;
use differential_dataflow::input::InputSession;
use headwater_dataflows::{Captures, Clock, Epoch, EventTime, Offset, Partition, Position, Record};
use headwater_sinks::{Cell, tables};
use timely::WorkerConfig;
use timely::communication::Allocator;
use timely::communication::allocator::thread::Thread;
use timely::dataflow::ProbeHandle;
use timely::dataflow::operators::vec::Input;
use timely::dataflow::operators::{Inspect, Probe};
use timely::worker::Worker;

use super::compute::{Computed, Inputs, compute};
use super::plan::Plan;
use super::rule_operators::RuleHistory;
use crate::event::Event;
use crate::metrics::Metrics;
use crate::outputs::{EncodedOutputs, OutputMapping, RecentAlert, RecentAlerts, SinkEncoding, SinkRoute};

/// The outputs that are encoded: dead letters. Alerts are observed before they are encoded.
const DEAD_LETTERS: OutputMapping = OutputMapping {
    events: None,
    alerts: None,
    windows: None,
    dead_letters: Some(tables::DEAD_LETTERS),
    shadow_alerts: false,
};

/// An event that was not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedEvent {
    /// The position of the event.
    pub position: Position,
    /// The reason, as in dead letters.
    pub reason: String,
}

/// The results of an epoch.
#[derive(Clone, Debug, Default)]
pub struct EpochResults {
    /// The changes of alerts.
    pub alerts: Vec<RecentAlert>,
    /// The events that were not admitted.
    pub refused: Vec<RefusedEvent>,
}

/// Captured states, by operator and key.
pub type Captured = BTreeMap<(Arc<str>, Vec<u8>), Vec<u8>>;

/// A run of a plan on one worker, in the thread that owns it.
pub struct VirtualRun {
    worker: Worker,
    events: InputSession<Epoch, Event, isize>,
    clock: Clock,
    probe: ProbeHandle<Epoch>,
    encoded: Rc<RefCell<Vec<EncodedOutputs>>>,
    alerts: Arc<RecentAlerts>,
    /// The latest captured record of each operator and key.
    captured: Rc<RefCell<Captured>>,
    captures: ProbeHandle<Epoch>,
    epoch: Epoch,
    max_out_of_orderness_ms: i64,
    /// The greatest event time that has arrived.
    greatest: EventTime,
}

impl VirtualRun {
    /// Builds the dataflow of a plan.
    pub fn new(plan: &Plan) -> VirtualRun {
        let mut worker = Worker::new(WorkerConfig::default(), Allocator::Thread(Thread::default()), None);
        let routes: Arc<[SinkRoute]> = Arc::new([SinkRoute::to_all(SinkEncoding::Rows(DEAD_LETTERS))]);
        let (metrics, alerts) = (Arc::<Metrics>::default(), Arc::new(RecentAlerts::unbounded()));
        let (encoded, recent) = (Rc::<RefCell<Vec<_>>>::default(), Arc::clone(&alerts));
        let history = RuleHistory::of(plan);
        let (list, probe) = (Rc::clone(&encoded), ProbeHandle::new());
        let (states, stored) = (Rc::<RefCell<Captured>>::default(), ProbeHandle::new());
        let captured = Rc::clone(&states);
        let (events, clock) = worker.dataflow::<Epoch, _, _>(|scope| {
            let mut events = InputSession::new();
            let (clock, control) = Clock::new(scope);
            let captures = Captures::new(scope);
            let (_, rejected) = scope.new_input();
            let inputs = Inputs {
                events: events.to_collection(scope),
                rejected: rejected.as_collection(),
                control,
                refused: None,
            };
            let Computed { encoded, .. } =
                compute(inputs, &captures, plan, &history, &routes, &metrics, Some(recent));
            encoded
                .inspect(move |(_, encoded): &(Epoch, EncodedOutputs)| {
                    list.borrow_mut().push(encoded.clone())
                })
                .probe_with(&probe);
            let records = captures.finish().expect("nothing was restored");
            records.inspect(move |record| store(&mut states.borrow_mut(), record)).probe_with(&stored);
            (events, clock)
        });
        VirtualRun {
            worker,
            events,
            clock,
            probe,
            encoded,
            alerts,
            captured,
            captures: stored,
            epoch: Epoch(0),
            max_out_of_orderness_ms: plan.time.max_out_of_orderness_ms,
            greatest: EventTime::MIN,
        }
    }

    /// Lets events arrive together, in one epoch, and returns what follows. The watermark after them is
    /// `max_out_of_orderness` and 1 ms behind the greatest event time so far.
    pub fn arrive(&mut self, events: impl IntoIterator<Item = Event>) -> EpochResults {
        for event in events {
            self.greatest = self.greatest.max(event.event_time());
            self.events.insert(event);
        }
        self.end_epoch(self.greatest.minus_ms(self.max_out_of_orderness_ms).minus_ms(1))
    }

    /// Returns the states of all operators at this watermark, which is not below the current one: the effect of the events
    /// up to it.
    pub fn states(&mut self, watermark: EventTime) -> Captured {
        self.epoch = self.epoch.next();
        self.events.advance_to(self.epoch);
        self.events.flush();
        self.clock.checkpoint(watermark);
        while self.captures.less_than(&self.epoch) {
            self.worker.step_or_park(Some(Duration::from_millis(1)));
        }
        self.encoded.take();
        self.alerts.take();
        self.captured.borrow().clone()
    }

    /// Ends the input: the watermark goes to infinity, so that whatever waits for it comes.
    pub fn finish(mut self) -> EpochResults {
        self.end_epoch(EventTime::MAX)
    }

    /// Lets events arrive together, in one epoch, after which the watermark is as given, and returns what follows.
    pub fn arrive_with_watermark(
        &mut self,
        events: impl IntoIterator<Item = Event>,
        watermark: EventTime,
    ) -> EpochResults {
        events.into_iter().for_each(|event| self.events.insert(event));
        self.end_epoch(watermark)
    }

    fn end_epoch(&mut self, watermark: EventTime) -> EpochResults {
        let ended = self.epoch;
        self.epoch = ended.next();
        self.events.advance_to(self.epoch);
        self.events.flush();
        self.clock.end_epoch(watermark);
        while self.probe.less_than(&self.epoch) {
            self.worker.step();
        }
        let refused = self.encoded.take().iter().flatten().flat_map(refused_events).collect();
        EpochResults { alerts: self.alerts.take(), refused }
    }
}

fn store(captured: &mut Captured, record: &Record) {
    let name = (Arc::clone(&record.operator), record.key.clone());
    match &record.value {
        Some(value) => drop(captured.insert(name, value.clone())),
        None => drop(captured.remove(&name)),
    }
}

/// Returns the events of rows of dead letters.
fn refused_events(changes: &headwater_sinks::Changes) -> Vec<RefusedEvent> {
    let refused = changes.rows.iter().filter_map(|row| {
        let mut cells = row.cells();
        match (cells.next()?, cells.next()?, cells.next()?) {
            (Cell::Int(partition), Cell::Int(offset), Cell::Text(reason)) => {
                let partition = Partition(u32::try_from(partition).ok()?);
                let position = Position { partition, offset: Offset(offset) };
                Some(RefusedEvent { position, reason: reason.to_owned() })
            }
            _ => None,
        }
    });
    refused.collect()
}
