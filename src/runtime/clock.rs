//! Epochs: worker 0 mints them, the others follow its frontier.

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

/// The beginning of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tick {
    /// The recorded wall time, in milliseconds since 1970.
    pub wall_ms: i64,
    /// By which rules its records are judged.
    pub rules: TimeRules,
    /// Who may read, and what holds the watermark up.
    pub paced: Paced,
    /// What the epoch held when it was bound, if it is replayed.
    pub replay: Option<Vec<Binding>>,
}

impl Tick {
    /// Of an epoch in which everything may be read.
    pub fn new(wall_ms: i64) -> Tick {
        Tick { wall_ms, rules: TimeRules::default(), paced: Paced::default(), replay: None }
    }
}

/// What the clock needs to know.
#[derive(Clone)]
pub struct ClockSettings {
    /// Has the epochs that are done again, before the first new one.
    pub origin: Arc<Origin>,
    /// The first new epoch.
    pub first: Epoch,
    /// How long an epoch lasts, at least.
    pub length: Duration,
    /// How many epochs may lie between the one that is open and the slowest sink.
    pub in_flight: u64,
    /// Whether epochs are counts of records: each begins when the one before is bound, and time means nothing.
    pub counted: bool,
}

/// What those who bind the epochs tell the clock, on worker 0.
#[derive(Default)]
pub struct ClockHand {
    /// No further epoch shall begin.
    pub stop: Cell<bool>,
    /// The newest epoch that has begun.
    pub newest: Cell<Epoch>,
    /// The newest epoch that is bound.
    pub bound: Cell<Epoch>,
    /// See [`Tick::paced`].
    pub paced: Cell<Paced>,
    /// Has the clock look again at once.
    pub wake: RefCell<Option<Activator>>,
}

impl ClockHand {
    /// Has the clock look again at once.
    pub fn wake(&self) {
        if let Some(activator) = &*self.wake.borrow() {
            activator.activate();
        }
    }
}

/// The beginnings of epochs, on every worker. An epoch is open as long as the stream's frontier stands at it; a counted
/// one until every reader has its share.
///
/// `committed` is the frontier of all sinks: while it is too far behind, no epoch begins.
pub fn ticks<'scope>(
    scope: Scope<'scope, Epoch>,
    settings: ClockSettings,
    hand: Rc<ClockHand>,
    committed: Probe<Epoch>,
) -> StreamVec<'scope, Epoch, Tick> {
    let worker = scope.index();
    source::<_, CapacityContainerBuilder<Vec<Tick>>, _, _>(scope, "Clock", move |capability, info| {
        let mut capability = (worker == 0).then_some(capability);
        let activator = scope.activator_for(Rc::clone(&info.address));
        if worker == 0 {
            *hand.wake.borrow_mut() = Some(scope.activator_for(info.address));
        }
        let mut minting = Minting::new(settings, Rc::clone(&hand));
        move |output| {
            if hand.stop.get() || minting.is_over() {
                capability = None;
            }
            let Some(open) = &mut capability else { return };
            let behind =
                committed.with_frontier(|f| f.first().map(|&oldest| open.time().0.saturating_sub(oldest.0)));
            match minting.next(*open.time(), behind.unwrap_or(0)) {
                Next::Begin(epoch, tick) => {
                    open.downgrade(&epoch);
                    output.session(open).give(tick);
                    if minting.settings.counted {
                        open.downgrade(&epoch.next());
                    }
                    match minting.replays() {
                        true => activator.activate(),
                        false => activator.activate_after(minting.settings.length),
                    }
                }
                Next::Wait(time) => activator.activate_after(time),
            }
        }
    })
    .broadcast()
}

/// Decides when an epoch begins.
struct Minting {
    settings: ClockSettings,
    hand: Rc<ClockHand>,
    started: Instant,
    wall: WallClock,
    begun: Option<Instant>,
    /// How many epochs were replayed.
    replayed: usize,
}

/// What the clock does next.
enum Next {
    /// An epoch begins.
    Begin(Epoch, Tick),
    /// None does before so much time has passed, or the hand wakes the clock.
    Wait(Duration),
}

impl Minting {
    fn new(settings: ClockSettings, hand: Rc<ClockHand>) -> Minting {
        let wall = WallClock::after(settings.origin.recorded_wall_ms(), Duration::ZERO);
        Minting { settings, hand, started: Instant::now(), wall, begun: None, replayed: 0 }
    }

    /// Whether there are epochs to be replayed.
    fn replays(&self) -> bool {
        self.replayed < self.settings.origin.replay.len()
    }

    /// Whether the input was over, and every window final: nothing can follow.
    fn is_over(&self) -> bool {
        !self.replays() && self.settings.origin.is_closed()
    }

    /// What to do when `open` is the earliest epoch that can begin, or is open, and the slowest sink is so many epochs
    /// behind it.
    fn next(&mut self, open: Epoch, behind: u64) -> Next {
        let ClockSettings { length, counted, .. } = self.settings;
        let replays = self.replays();
        if !replays && counted && self.hand.newest.get() > self.hand.bound.get() {
            return Next::Wait(length);
        }
        let elapsed = self.begun.map(|begun| begun.elapsed());
        if !replays
            && !counted
            && let Some(rest) = elapsed.and_then(|elapsed| length.checked_sub(elapsed))
            && !rest.is_zero()
        {
            return Next::Wait(rest);
        }
        if self.begun.is_some() && behind >= self.settings.in_flight {
            return Next::Wait(length);
        }
        let (epoch, tick) = match self.settings.origin.replay.get(self.replayed) {
            Some(record) => {
                let replay = Some(record.bindings.clone());
                (record.epoch, Tick { rules: record.rules, replay, ..Tick::new(record.wall_ms) })
            }
            None => {
                let next = if counted { open } else { open.next() };
                let wall_ms = self.wall.read(wall_ms(), self.started.elapsed());
                let tick = Tick { paced: self.hand.paced.get(), ..Tick::new(wall_ms) };
                (self.settings.first.max(next), tick)
            }
        };
        self.replayed += usize::from(tick.replay.is_some());
        self.hand.newest.set(epoch);
        self.begun = Some(Instant::now());
        Next::Begin(epoch, tick)
    }
}

/// Whether every sink has committed `epoch`, by a probe behind all of them.
pub fn committed(probe: &Probe<Epoch>, epoch: Epoch) -> bool {
    probe.with_frontier(|frontier| !Antichain::from_iter(frontier.iter().copied()).less_equal(&epoch))
}
