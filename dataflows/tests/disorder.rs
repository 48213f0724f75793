//! The cost of disorder, for a key with a steady stream of events of which some arrive out of order.
//!
//! A million events per hour, one in a hundred delayed by up to five seconds, watermark five seconds behind: at any
//! time, about 1,400 events of the key are un-final.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use headwater_dataflows::patterns::{Diversity, Frequency, Location, Outlier, Travel};
use headwater_dataflows::{
    Admission, Admit, Emission, Engine, Event, EventTime, Offset, Partition, Pattern, Position, Refused,
    Rule, Scan,
};
use serde::{Deserialize, Serialize};

/// An event of the only key. Its other attributes are derived from its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Hit {
    time: i64,
    offset: i64,
}

impl Hit {
    fn hash(&self) -> u64 {
        (self.offset.unsigned_abs() + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20
    }

    fn is_delayed(&self) -> bool {
        self.hash().is_multiple_of(100)
    }
}

impl Event for Hit {
    type Key = u64;
    fn key(&self) -> &u64 {
        &7
    }
    fn time(&self) -> EventTime {
        EventTime(self.time)
    }
    fn position(&self) -> Position {
        Position { partition: Partition(0), offset: Offset(self.offset) }
    }
}

const HOUR_MS: i64 = 3_600_000;
const BEHIND_MS: i64 = 5000;

/// Returns `count` events at the rate of a million per hour, of which one in a hundred is delayed.
fn with_delays(count: i64) -> Vec<Hit> {
    let hit = |offset| {
        let hit = Hit { time: offset * HOUR_MS / 1_000_000, offset };
        let back = if hit.is_delayed() { hit.hash() / 100 % BEHIND_MS.unsigned_abs() } else { 0 };
        Hit { time: hit.time - back as i64, offset }
    };
    (0..count).map(hit).collect()
}

/// Returns the same events in order.
fn in_order(count: i64) -> Vec<Hit> {
    let mut hits = with_delays(count);
    hits.sort_by_key(|hit| (hit.time, hit.offset));
    hits
}

/// A pattern that counts its steps.
struct Counted<P> {
    pattern: P,
    steps: Rc<Cell<u64>>,
}

impl<P: Pattern<Hit>> Pattern<Hit> for Counted<P> {
    type State = P::State;
    type Undo = P::Undo;
    type Match = P::Match;

    fn step(&self, state: &mut P::State, event: &Hit) -> (Option<P::Match>, P::Undo) {
        self.steps.set(self.steps.get() + 1);
        self.pattern.step(state, event)
    }

    fn undo(&self, state: &mut P::State, event: &Hit, undo: P::Undo) {
        self.pattern.undo(state, event, undo);
    }

    fn same(&self, one: &P::State, other: &P::State) -> bool {
        self.pattern.same(one, other)
    }
}

/// The number of a pattern, and the offset of the event that matched.
type Match = (usize, i64);

/// The outcome of a run.
struct Run {
    /// The steps of frequency over 101 events and over 10, diversity over 8 values, outlier and travel.
    steps: [u64; 5],
    changes: Vec<(Match, isize)>,
    spent: Duration,
}

impl Run {
    fn revoked(&self) -> usize {
        self.changes.iter().filter(|(_, diff)| *diff < 0).count()
    }

    /// Returns the matches that remain at the end.
    fn remaining(&self) -> Vec<(Match, isize)> {
        let mut changes = self.changes.clone();
        differential_dataflow::consolidation::consolidate(&mut changes);
        changes
    }
}

const REFUSED: usize = 5;

/// Scans with five patterns in one pass, with `per_epoch` events in each epoch.
fn scan(hits: &[Hit], per_epoch: usize) -> Run {
    let counters: [Rc<Cell<u64>>; 5] = Default::default();
    let [spike, burst, variety, anomaly, travel] = counters.clone();
    let changes: Rc<RefCell<Vec<(Match, isize)>>> = Rc::default();
    let received = Rc::clone(&changes);
    let mut engine = Engine::new(
        move |events, control| {
            let (keyed, refused) = events.admit(control, Admission::default());
            let now = Emission::Immediate;
            let place = |hit: &Hit| {
                let place = Location { lat: (hit.hash() % 160) as f64 - 80.0, lon: 0.0 };
                hit.hash().is_multiple_of(3).then_some(place)
            };
            let spike = Counted { pattern: Frequency::at_least(101, 25_000), steps: spike };
            let burst = Counted { pattern: Frequency::at_least(10, 33), steps: burst };
            let merchants = Diversity::at_least(8, 60, |hit: &Hit| Some(hit.hash() % 12));
            let variety = Counted { pattern: merchants, steps: variety };
            let amounts = Outlier::beyond(3.0, 30, 0.01, |hit: &Hit| Some((hit.hash() % 1000) as i64));
            let anomaly = Counted { pattern: amounts, steps: anomaly };
            let travel = Counted {
                pattern: Travel::beyond(5000.0, 2e9, place, |hit: &Hit| &hit.offset),
                steps: travel,
            };
            let rules = (
                Rule::new(spike, now, |hit: &Hit, _| (0, hit.offset)),
                (
                    Rule::new(burst, now, |hit: &Hit, _| (1, hit.offset)),
                    (
                        Rule::new(variety, now, |hit: &Hit, _| (2, hit.offset)),
                        (
                            Rule::new(anomaly, now, |hit: &Hit, _| (3, hit.offset)),
                            (Rule::new(travel, now, |hit: &Hit, _| (4, hit.offset)), ()),
                        ),
                    ),
                ),
            );
            let refused = refused.map(|refused: Refused<Hit>| (REFUSED, refused.event.offset));
            keyed.scan_all("Rules", rules).concat(refused)
        },
        move |(which, offset), _, diff| {
            assert_ne!(which, REFUSED, "no event is below the watermark");
            received.borrow_mut().push(((which, offset), diff));
        },
    );
    let started = Instant::now();
    let mut latest = i64::MIN;
    for epoch in hits.chunks(per_epoch) {
        for hit in epoch {
            latest = latest.max(hit.time);
            engine.push(*hit);
        }
        engine.end_epoch(EventTime(latest - BEHIND_MS - 1));
    }
    engine.finish();
    let spent = started.elapsed();
    Run { steps: counters.map(|steps| steps.get()), changes: changes.take(), spent }
}

#[test]
fn steps_are_repeated_only_until_the_state_is_unchanged() {
    // Live input: three events of the key in each epoch, so that the delayed events are far apart.
    const EVENTS: u64 = 20_000;
    let (ordered, delayed) = (scan(&in_order(EVENTS as i64), 3), scan(&with_delays(EVENTS as i64), 3));
    println!("steps for {EVENTS} events: {:?}; {} revoked", delayed.steps, delayed.revoked());
    assert_eq!(ordered.steps, [EVENTS; 5]);
    assert_eq!(ordered.revoked(), 0);
    assert_eq!(delayed.remaining(), ordered.remaining());
    assert!(delayed.revoked() > 100, "the stream has too few revoked matches");

    let count = with_delays(EVENTS as i64).iter().filter(|hit| hit.is_delayed()).count() as u64;
    let repeated = delayed.steps.map(|steps| (steps - EVENTS) / count);
    // States are compared after 8, 16, 32 … steps: 101 times are equal after 128 events, 10 after 16, and 8 distinct
    // values of 12 after 32 or 64.
    for (repeated, at_most) in repeated.into_iter().zip([128, 16, 64, u64::MAX, 32]) {
        assert!(repeated <= at_most, "{repeated} repeated steps for each delayed event");
    }
    // Each delayed amount changes the mean for all later amounts.
    assert!(repeated[3] > 500, "{repeated:?}");
}

#[test]
fn a_backlog_with_disorder_needs_at_most_half_more_steps() {
    // A backlog of an hour read at 300,000 events/s: an epoch of 10 ms contains the events of 11 s.
    const EVENTS: u64 = 60_000;
    let (ordered, delayed) = (scan(&in_order(EVENTS as i64), 3000), scan(&with_delays(EVENTS as i64), 3000));
    println!("steps for {EVENTS} events: {:?}; {} revoked", delayed.steps, delayed.revoked());
    assert_eq!(delayed.remaining(), ordered.remaining());
    assert!(delayed.revoked() > 100, "the stream has too few revoked matches");
    assert!(delayed.steps.iter().all(|steps| *steps <= EVENTS * 3 / 2), "{:?}", delayed.steps);
}

/// `cargo test -p headwater-dataflows --test disorder -- --ignored --nocapture`
#[test]
#[ignore = "measures time and memory"]
fn a_million_events_with_and_without_disorder() {
    for per_epoch in [3000, 3] {
        for (what, hits) in [("in order", in_order(1_000_000)), ("1% delayed", with_delays(1_000_000))] {
            let run = scan(&hits, per_epoch);
            let (spent, revoked, peak) = (run.spent, run.revoked(), peak_mib());
            println!(
                "{per_epoch} per epoch, {what}: {spent:.2?}, {:?} steps, {revoked} revoked, peak {peak} MiB",
                run.steps
            );
        }
    }
}

/// Returns the peak memory of this process in MiB; 0 if the system does not report it.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    peak.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) / 1024
}
