//! The clock: worker 0 opens epochs, and the other workers follow its frontier.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::generic::operator::source;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::{Scope, StreamVec};
use timely::progress::Antichain;
use timely::scheduling::Activator;

use super::recovery::Origin;
use crate::coordination::Binding;
use crate::coordination::ingest::{Paced, TimeRules, WallClock};
use crate::wall::wall_ms;

/// The start of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tick {
    /// The recorded wall time, in milliseconds since 1970.
    pub wall_ms: i64,
    /// The rules for the event times of its records.
    pub rules: TimeRules,
    /// The partitions that may be read, and the stall of the watermark, if any.
    pub paced: Paced,
    /// The recorded bindings, if the epoch is replayed.
    pub replay: Option<Vec<Binding>>,
}

impl Tick {
    /// Creates the tick of an epoch in which everything may be read.
    pub fn new(wall_ms: i64) -> Tick {
        Tick { wall_ms, rules: TimeRules::default(), paced: Paced::default(), replay: None }
    }
}

/// The settings of the clock.
#[derive(Clone)]
pub struct ClockSettings {
    /// The origin of the run, whose epochs are replayed before the first new one.
    pub origin: Arc<Origin>,
    /// The first new epoch.
    pub first: Epoch,
    /// The minimum length of an epoch.
    pub length: Duration,
    /// The maximum number of epochs between the open epoch and the slowest sink.
    pub in_flight: u64,
    /// True if epochs close by a count of records: each starts when the one before it is bound, and time has no effect.
    pub counted: bool,
}

/// The control of the clock by the binding operator, on worker 0.
#[derive(Default)]
pub struct ClockControl {
    /// True if no further epoch may start.
    pub stop: Cell<bool>,
    /// The newest epoch that has started.
    pub newest: Cell<Epoch>,
    /// The newest epoch that is bound.
    pub bound: Cell<Epoch>,
    /// See [`Tick::paced`].
    pub paced: Cell<Paced>,
    /// Activates the clock.
    pub wake: RefCell<Option<Activator>>,
}

impl ClockControl {
    /// Activates the clock at once.
    pub fn wake(&self) {
        if let Some(activator) = &*self.wake.borrow() {
            activator.activate();
        }
    }
}

/// Emits the start of each epoch, on every worker. An epoch is open while the frontier of the stream is at it; a
/// counted epoch, until every reader has its share.
///
/// `committed` is the frontier of all sinks: no epoch starts while it is too far behind.
pub fn ticks<'scope>(
    scope: Scope<'scope, Epoch>,
    settings: ClockSettings,
    clock_control: Rc<ClockControl>,
    committed: Probe<Epoch>,
) -> StreamVec<'scope, Epoch, Tick> {
    let worker = scope.index();
    source::<_, CapacityContainerBuilder<Vec<Tick>>, _, _>(scope, "Clock", move |capability, info| {
        let mut capability = (worker == 0).then_some(capability);
        let activator = scope.activator_for(Rc::clone(&info.address));
        if worker == 0 {
            *clock_control.wake.borrow_mut() = Some(scope.activator_for(info.address));
        }
        let mut epoch_clock = EpochClock::new(settings, Rc::clone(&clock_control));
        move |output| {
            if clock_control.stop.get() || epoch_clock.is_over() {
                capability = None;
            }
            let Some(open) = &mut capability else { return };
            let behind =
                committed.with_frontier(|f| f.first().map(|&oldest| open.time().0.saturating_sub(oldest.0)));
            match epoch_clock.next(*open.time(), behind.unwrap_or(0)) {
                NextAction::Begin(epoch, tick) => {
                    open.downgrade(&epoch);
                    output.session(open).give(tick);
                    if epoch_clock.settings.counted {
                        open.downgrade(&epoch.next());
                    }
                    match epoch_clock.is_replaying() {
                        true => activator.activate(),
                        false => activator.activate_after(epoch_clock.settings.length),
                    }
                }
                NextAction::Wait(time) => activator.activate_after(time),
            }
        }
    })
    .broadcast()
}

/// Decides when an epoch starts.
struct EpochClock {
    settings: ClockSettings,
    clock_control: Rc<ClockControl>,
    started: Instant,
    wall: WallClock,
    last_start: Option<Instant>,
    /// The number of epochs that were replayed.
    replayed: usize,
}

/// The next action of the clock.
enum NextAction {
    /// Start an epoch.
    Begin(Epoch, Tick),
    /// Wait for this time, or until the clock is activated.
    Wait(Duration),
}

impl EpochClock {
    fn new(settings: ClockSettings, clock_control: Rc<ClockControl>) -> EpochClock {
        let wall = WallClock::after(settings.origin.recorded_wall_ms(), Duration::ZERO);
        EpochClock { settings, clock_control, started: Instant::now(), wall, last_start: None, replayed: 0 }
    }

    /// Returns true if there are epochs to replay.
    fn is_replaying(&self) -> bool {
        self.replayed < self.settings.origin.replay.len()
    }

    /// Returns true if the input had ended and every window was final: no epoch can follow.
    fn is_over(&self) -> bool {
        !self.is_replaying() && self.settings.origin.is_closed()
    }

    /// Decides the next action. `open` is the open epoch, or the earliest one that can start; the slowest sink is
    /// `behind` epochs behind it.
    fn next(&mut self, open: Epoch, behind: u64) -> NextAction {
        let ClockSettings { length, counted, .. } = self.settings;
        let is_replaying = self.is_replaying();
        if !is_replaying && counted && self.clock_control.newest.get() > self.clock_control.bound.get() {
            return NextAction::Wait(length);
        }
        let elapsed = self.last_start.map(|last_start| last_start.elapsed());
        if !is_replaying
            && !counted
            && let Some(rest) = elapsed.and_then(|elapsed| length.checked_sub(elapsed))
            && !rest.is_zero()
        {
            return NextAction::Wait(rest);
        }
        if self.last_start.is_some() && behind >= self.settings.in_flight {
            return NextAction::Wait(length);
        }
        let (epoch, tick) = match self.settings.origin.replay.get(self.replayed) {
            Some(record) => {
                let replay = Some(record.bindings.clone());
                (record.epoch, Tick { rules: record.rules, replay, ..Tick::new(record.wall_ms) })
            }
            None => {
                let next = if counted { open } else { open.next() };
                let wall_ms = self.wall.read(wall_ms(), self.started.elapsed());
                let tick = Tick { paced: self.clock_control.paced.get(), ..Tick::new(wall_ms) };
                (self.settings.first.max(next), tick)
            }
        };
        self.replayed += usize::from(tick.replay.is_some());
        self.clock_control.newest.set(epoch);
        self.last_start = Some(Instant::now());
        NextAction::Begin(epoch, tick)
    }
}

/// Returns true if every sink has committed `epoch`, according to a probe behind all sinks.
pub fn committed(probe: &Probe<Epoch>, epoch: Epoch) -> bool {
    probe.with_frontier(|frontier| !Antichain::from_iter(frontier.iter().copied()).less_equal(&epoch))
}
