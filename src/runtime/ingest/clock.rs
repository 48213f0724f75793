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

use crate::coordination::Binding;
use crate::coordination::ingest::{Paced, TimeRules, WallClock};
use crate::runtime::ingest::activity::{Activity, Alarm};
use crate::runtime::recovery::origin::Origin;
use crate::wall::wall_ms;

/// An epoch may take this part of the time that records wait, one in so many.
const LAG_PARTS: u32 = 10;

/// The greatest length of an epoch while records wait, in lengths of others.
const MAX_STRETCH: u32 = 5;

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
    /// The length of an epoch that follows one in which nothing happened, as long as it has no records; None if readers of
    /// other processes cannot say that it has.
    pub quiet: Option<Duration>,
    /// The signal of the readers that the open epoch has records.
    pub activity: Activity,
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
    /// True if nothing happened in the newest bound epoch.
    pub is_quiet: Cell<bool>,
    /// The time that is needed for the records that waited at the end of the newest bound epoch.
    pub lag: Cell<Duration>,
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
        let mut alarm = Alarm::new(scope.activator_for(Rc::clone(&info.address)));
        if worker == 0 {
            settings.activity.wake(scope.worker().sync_activator_for(info.address.to_vec()));
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
                        true => alarm.now(),
                        false => alarm.within(epoch_clock.length()),
                    }
                }
                NextAction::Wait(time) => alarm.within(time),
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
    /// The epoch before the open one.
    previous: Epoch,
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
        let (started, last_start, previous) = (Instant::now(), None, Epoch(0));
        EpochClock { settings, clock_control, started, wall, last_start, replayed: 0, previous }
    }

    /// Returns the minimum length of the open epoch. While many records wait, epochs are longer: each costs all operators
    /// and sinks something, and the records in it have waited for longer than that anyway.
    fn length(&self) -> Duration {
        let shortest = self.settings.length;
        (self.clock_control.lag.get() / LAG_PARTS).clamp(shortest, shortest * MAX_STRETCH)
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
        let ClockSettings { length: shortest, counted, .. } = self.settings;
        let length = self.length();
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
        // Epochs count time, for all that is due after a number of them.
        let counted_time = |elapsed: Duration| {
            u64::try_from(elapsed.as_nanos() / shortest.as_nanos().max(1)).unwrap_or(1).max(1)
        };
        let mut steps = if length > shortest { elapsed.map_or(1, counted_time) } else { 1 };
        if !is_replaying
            && !counted
            && let Some(quiet) = self.settings.quiet
            && let Some(elapsed) = elapsed
            && self.clock_control.is_quiet.get()
            && self.clock_control.bound.get() >= self.previous
            && !self.settings.activity.has_records()
        {
            if let Some(rest) = quiet.checked_sub(elapsed).filter(|rest| !rest.is_zero()) {
                return NextAction::Wait(rest);
            }
            steps = counted_time(elapsed);
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
                let next = if counted { open } else { Epoch(open.0 + steps) };
                let wall_ms = self.wall.read(wall_ms(), self.started.elapsed());
                let tick = Tick { paced: self.clock_control.paced.get(), ..Tick::new(wall_ms) };
                (self.settings.first.max(next), tick)
            }
        };
        self.replayed += usize::from(tick.replay.is_some());
        self.previous = self.clock_control.newest.replace(epoch);
        self.last_start = Some(Instant::now());
        self.settings.activity.reset();
        NextAction::Begin(epoch, tick)
    }
}

/// Returns true if every sink has committed `epoch`, according to a probe behind all sinks.
pub fn committed(probe: &Probe<Epoch>, epoch: Epoch) -> bool {
    probe.with_frontier(|frontier| !Antichain::from_iter(frontier.iter().copied()).less_equal(&epoch))
}

#[cfg(test)]
mod tests {
    use timely::dataflow::operators::Probe as _;

    use super::*;
    use crate::coordination::{EpochRecord, Manifest};
    use crate::runtime::fakes::{self, collect, manifest, record, settle, worker};

    /// A length that no test reaches.
    const HOUR: Duration = Duration::from_secs(3600);

    fn settings(length: Duration, counted: bool) -> ClockSettings {
        let (quiet, activity) = (None, Activity::default());
        ClockSettings {
            origin: Arc::default(),
            first: Epoch(7),
            length,
            in_flight: 5,
            counted,
            quiet,
            activity,
        }
    }

    /// A clock whose newest epoch is bound at once.
    fn clock(settings: ClockSettings) -> EpochClock {
        EpochClock::new(settings, Rc::default())
    }

    impl EpochClock {
        /// Returns the epoch and tick that begin now; None if the clock waits.
        fn begin(&mut self, open: u64, behind: u64) -> Option<(u64, Tick)> {
            match self.next(Epoch(open), behind) {
                NextAction::Begin(epoch, tick) => Some((epoch.0, tick)),
                NextAction::Wait(_) => None,
            }
        }

        fn begins(&mut self, open: u64, behind: u64) -> Option<u64> {
            self.begin(open, behind).map(|(epoch, _)| epoch)
        }
    }

    #[test]
    fn an_epoch_has_a_minimum_length() {
        let mut waiting = clock(settings(HOUR, false));
        assert_eq!(waiting.begins(0, 0), Some(7), "the first begins at once, above all earlier epochs");
        let NextAction::Wait(rest) = waiting.next(Epoch(7), 0) else { panic!("the epoch has just begun") };
        assert!(rest <= HOUR && rest > HOUR / 2, "{rest:?}");
        let mut short = clock(settings(Duration::ZERO, false));
        assert_eq!([short.begins(0, 0), short.begins(7, 1), short.begins(8, 2)], [7, 8, 9].map(Some));
    }

    #[test]
    fn an_epoch_is_longer_while_many_records_wait() {
        let mut clock = clock(settings(Duration::from_millis(2), false));
        let length = |lag: u64| {
            clock.clock_control.lag.set(Duration::from_millis(lag));
            clock.length().as_millis()
        };
        assert_eq!([0, 19, 20, 60, 100, 3_600_000].map(length), [2, 2, 2, 6, 10, 10]);
        assert_eq!(clock.begins(0, 0), Some(7));
        clock.clock_control.lag.set(Duration::from_secs(9));
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(clock.begins(7, 0), None);
        std::thread::sleep(Duration::from_millis(8));
        let next = clock.begins(7, 0).expect("its time is over");
        assert!(next >= 12, "epochs go on with the time: {next}");
        clock.clock_control.lag.set(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(clock.begins(next, 0), Some(next + 1));
    }

    #[test]
    fn an_epoch_without_records_is_longer_while_nothing_happens() {
        let settings = ClockSettings { quiet: Some(HOUR), ..settings(Duration::from_nanos(1), false) };
        let activity = settings.activity.clone();
        let mut clock = clock(settings);
        assert_eq!(clock.begins(0, 0), Some(7));
        clock.clock_control.bound.set(Epoch(6));
        clock.clock_control.is_quiet.set(true);
        assert_eq!(clock.begins(7, 0), None, "it waits for records");
        activity.note();
        assert_eq!(clock.begins(7, 0), Some(8), "it has some");
        assert_eq!(clock.begins(8, 0), Some(9), "the epoch before is not bound, so it may have had records");
        clock.clock_control.bound.set(Epoch(8));
        assert_eq!(clock.begins(9, 0), None);
        clock.settings.quiet = Some(Duration::from_millis(2));
        std::thread::sleep(Duration::from_millis(3));
        let next = clock.begins(9, 0).expect("its time is over");
        assert!(next > 1_000_000, "epochs go on with the time: {next}");
        clock.clock_control.is_quiet.set(false);
        assert_eq!(clock.begins(next, 0), Some(next + 1));
    }

    #[test]
    fn no_epoch_begins_while_a_sink_is_too_far_behind() {
        let mut clock = clock(settings(Duration::ZERO, false));
        assert_eq!(clock.begins(0, 99), Some(7), "nothing is in flight before the first epoch");
        assert_eq!(clock.begins(7, 4), Some(8));
        assert_eq!(clock.begins(8, 5), None);
        assert_eq!(clock.begins(8, 4), Some(9));
    }

    #[test]
    fn a_counted_epoch_begins_when_the_one_before_is_bound() {
        let mut clock = clock(settings(HOUR, true));
        assert_eq!(clock.begins(0, 0), Some(7));
        assert_eq!(clock.begins(8, 0), None, "its records are still being read");
        clock.clock_control.bound.set(Epoch(7));
        assert_eq!(clock.begins(8, 0), Some(8), "however short the time");
    }

    #[test]
    fn recorded_epochs_are_replayed_with_their_clocks() {
        let old = EpochRecord { wall_ms: 1_000, rules: TimeRules::EventTime, ..record(3, 10) };
        let new = EpochRecord { wall_ms: 2_000, ..record(5, 20) };
        let origin = fakes::origin(None, vec![old.clone(), new.clone()]);
        let mut clock = clock(ClockSettings { origin, ..settings(HOUR, false) });
        for (open, EpochRecord { epoch, wall_ms, bindings, rules, .. }) in [(0, old), (3, new)] {
            let tick = Tick { rules, replay: Some(bindings), ..Tick::new(wall_ms) };
            assert_eq!(clock.begin(open, 0), Some((epoch.0, tick)), "it does not wait for an hour");
        }
        assert_eq!(clock.begins(5, 0), None, "new epochs have their length");
        clock.settings.length = Duration::ZERO;
        let (epoch, tick) = clock.begin(5, 0).expect("a new epoch");
        assert_eq!((epoch, tick.replay), (7, None));
    }

    #[test]
    fn a_replay_waits_for_slow_sinks() {
        let origin = fakes::origin(None, (1..=3).map(|epoch| record(epoch, 10)).collect());
        let mut clock = clock(ClockSettings { origin, ..settings(HOUR, true) });
        assert_eq!([clock.begins(0, 0), clock.begins(1, 5), clock.begins(1, 4)], [Some(1), None, Some(2)]);
    }

    #[test]
    fn wall_time_continues_after_the_recorded_one() {
        let future = wall_ms() + 86_400_000;
        let at = |origin| {
            let mut clock = clock(ClockSettings { origin, ..settings(HOUR, false) });
            (0..).map_while(|open| clock.begin(open, 0)).last().expect("an epoch").1.wall_ms
        };
        let checkpoint = Manifest { wall_ms: future, ..manifest(1, Vec::new()) };
        assert!(at(fakes::origin(Some(checkpoint), Vec::new())) >= future, "the clock was set back by a day");
        assert!(at(fakes::origin(None, Vec::new())) < future);
    }

    #[test]
    fn no_epoch_follows_a_closed_input() {
        let closing = EpochRecord { closes: true, ..record(3, 10) };
        let mut clock =
            clock(ClockSettings { origin: fakes::origin(None, vec![closing]), ..settings(HOUR, true) });
        assert!(!clock.is_over(), "the last epoch is replayed first");
        assert_eq!(clock.begins(0, 0), Some(3));
        assert!(clock.is_over());
    }

    /// Runs the operator with sinks that have committed everything, until `stop` epochs have begun. Returns the epochs
    /// and the frontier in the end; None if the stream has ended.
    fn run(counted: bool, stop: usize) -> (Vec<u64>, Option<Epoch>) {
        let mut worker = worker();
        let (clock_control, behind) = (Rc::<ClockControl>::default(), Probe::new());
        let collected = worker.dataflow(|scope| {
            let settings = settings(Duration::ZERO, counted);
            let ticks = ticks(scope, settings, Rc::clone(&clock_control), behind.clone());
            let (ticks, collected) = collect(ticks);
            ticks.probe_with(&behind);
            collected
        });
        let mut begun = Vec::new();
        for _ in 0..200 {
            worker.step();
            begun.extend(collected.take().into_iter().map(|(epoch, _)| epoch.0));
            clock_control.bound.set(clock_control.newest.get());
            if begun.len() >= stop {
                clock_control.stop.set(true);
                clock_control.wake();
            }
        }
        (begun, behind.with_frontier(|frontier| frontier.first().copied()))
    }

    #[test]
    fn a_stopped_clock_ends_its_stream() {
        for counted in [false, true] {
            let (begun, frontier) = run(counted, 3);
            assert!(begun.starts_with(&[7, 8, 9]), "{begun:?}");
            assert_eq!(frontier, None, "no epoch stays open");
        }
    }

    #[test]
    fn an_epoch_is_committed_once_the_frontier_is_past_it() {
        let mut worker = worker();
        let probe = Probe::new();
        let mut input = worker.dataflow::<Epoch, _, _>(|scope| {
            use timely::dataflow::operators::vec::Input;
            let (input, stream) = scope.new_input::<()>();
            stream.probe_with(&probe);
            input
        });
        input.advance_to(Epoch(3));
        settle(&mut worker);
        assert_eq!([2, 3].map(|epoch| committed(&probe, Epoch(epoch))), [true, false]);
        input.close();
        settle(&mut worker);
        assert!(committed(&probe, Epoch(u64::MAX)), "all epochs");
    }
}
