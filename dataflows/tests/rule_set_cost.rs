//! The cost of rules that are known only when the program runs, beside that of a static tuple of the same rules.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use headwater_dataflows::patterns::{Bound, Frequency};
use headwater_dataflows::{
    Admission, Admit, Condition, Emission, Engine, Event, EventTime, Number, Offset, Partition, Position,
    Predicate, Rule, RuleSet, Rules, Scan, SetRule, Step,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Hit {
    time: i64,
    offset: i64,
    key: u64,
    kind: u64,
}

impl Event for Hit {
    type Key = u64;
    fn key(&self) -> &u64 {
        &self.key
    }
    fn time(&self) -> EventTime {
        EventTime(self.time)
    }
    fn position(&self) -> Position {
        Position { partition: Partition(0), offset: Offset(self.offset) }
    }
}

const HOUR_MS: i64 = 3_600_000;

/// Returns `count` events of random keys and kinds, 100 in each millisecond.
fn hits(count: i64, keys: u64, kinds: u64) -> Vec<Hit> {
    let hit = |offset: i64| {
        let hash = (offset.unsigned_abs() + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
        Hit { time: offset / 100, offset, key: hash % keys, kind: hash / keys % kinds }
    };
    (0..count).map(hit).collect()
}

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The thresholds of five rules. They are not reached.
const AT_LEAST: [usize; 5] = [100, 101, 102, 103, 104];

fn static_rules() -> impl Rules<Hit, i64> {
    let rule =
        |n: usize| Rule::new(Frequency::at_least(n, HOUR_MS), Emission::Immediate, |hit: &Hit, _| hit.offset);
    let [a, b, c, d, e] = AT_LEAST.map(rule);
    (a, (b, (c, (d, (e, ())))))
}

fn count_rule(id: u64, at_least: usize, filter: Option<Predicate<Hit>>) -> SetRule<Hit, i64> {
    SetRule {
        id,
        definition: 1,
        filter,
        condition: Condition::Count { at_least, within_ms: HOUR_MS },
        emission: Emission::Immediate,
        suppress_ms: None,
        result: Box::new(|hit, _| hit.offset),
        absent: Box::new(|_, anchor, _| anchor.position.offset.0),
    }
}

/// Returns a set of the same five rules.
fn five_rules() -> RuleSet<Hit, i64> {
    let rules = (0..).zip(AT_LEAST).map(|(id, at_least)| count_rule(id, at_least, None));
    RuleSet::new(rules.collect()).expect("the ids differ")
}

/// Returns conditions that do not hold for any event.
fn each_condition() -> [(&'static str, Condition<Hit>); 7] {
    let number = || Box::new(|hit: &Hit| Some(hit.offset % 100)) as Number<Hit>;
    let step = |kind: u64| Step { filter: Box::new(move |hit: &Hit| hit.kind == kind), times: 1 };
    let (bound, within_ms) = (Bound::MoreThan(1_000_000), 5000);
    [
        ("count", Condition::Count { at_least: 100, within_ms: HOUR_MS }),
        ("sum", Condition::Sum { of: number(), bound, within_ms }),
        ("average", Condition::Average { of: number(), bound, at_least_events: 3, within_ms }),
        (
            "distinct",
            Condition::Distinct { of: Box::new(|hit: &Hit| Some(hit.kind)), at_least: 8, within_ms: HOUR_MS },
        ),
        (
            "share",
            Condition::Share {
                of: Box::new(|hit: &Hit| hit.kind == 0),
                more_than_ppm: 900_000,
                at_least_events: 20,
                within_ms,
            },
        ),
        ("sequence", Condition::Sequence { steps: vec![step(0), step(1), step(9)], within_ms, absent: None }),
        ("absence", Condition::Absence { within_ms: HOUR_MS }),
    ]
}

/// Returns a set of rules, three for each kind of event.
fn filtered_rules(kinds: u64) -> RuleSet<Hit, i64> {
    let rule = |id: u64| {
        let kind = id % kinds;
        let filter: Predicate<Hit> = Box::new(move |hit| hit.kind == kind);
        count_rule(id, 100, Some(filter))
    };
    RuleSet::new((0..3 * kinds).map(rule).collect()).expect("the ids differ")
}

/// Processes the events, then calls `held` while the state is in memory. Returns the time.
fn scan<R: Rules<Hit, i64>>(hits: &[Hit], rules: R, held: impl FnOnce()) -> Duration {
    let mut engine = Engine::new(
        move |events, control| {
            let (keyed, _) = events.admit(control, Admission::default());
            keyed.scan_all("Rules", rules)
        },
        |_, _, _| {},
    );
    let started = spent();
    for epoch in hits.chunks(3000) {
        epoch.iter().for_each(|hit| engine.push(*hit));
        engine.end_epoch(EventTime(epoch[0].time - 20));
    }
    let spent = spent().saturating_sub(started);
    engine.end_epoch(EventTime(hits[hits.len() - 1].time));
    engine.end_epoch(EventTime(hits[hits.len() - 1].time));
    held();
    engine.finish();
    spent
}

/// Returns the CPU time of this thread, if the kernel reports it, so that other load has little effect.
fn spent() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let cpu = stat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(cpu.unwrap_or_else(|| START.elapsed().as_nanos() as u64))
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Returns the resident memory of this process in KiB; 0 if the system does not report it.
fn resident_kib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let now = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    now.and_then(|kib| kib.trim().parse().ok()).unwrap_or(0)
}

/// `cargo test --release -p headwater-dataflows --test rule_set_cost -- --ignored --nocapture time`
#[test]
#[ignore = "measures time"]
fn time_of_an_event() {
    const EVENTS: i64 = 1_000_000;
    let hits = hits(EVENTS, 10_000, 1);
    let least = |run: &dyn Fn() -> Duration| (0..5).map(|_| run()).min().unwrap_or_default();
    let admission = least(&|| scan(&hits, (), || {}));
    println!("admission: {} ns an event", admission.as_nanos() as i64 / EVENTS);
    let print = |what: &str, spent: Duration| {
        let rules = spent.saturating_sub(admission);
        println!("{what}: {} ns an event beyond admission", rules.as_nanos() as i64 / EVENTS);
    };
    print("static/5", least(&|| scan(&hits, static_rules(), || {})));
    print("rule_set/5", least(&|| scan(&hits, five_rules(), || {})));
    let five_kinds = self::hits(EVENTS, 10_000, 5);
    for (what, _) in each_condition() {
        let set = || {
            let condition = each_condition().into_iter().find(|(name, _)| *name == what);
            let (_, condition) = condition.expect("the condition is in the list");
            RuleSet::new(vec![SetRule { condition, ..count_rule(1, 1, None) }]).expect("there is one rule")
        };
        print(what, least(&|| scan(&five_kinds, set(), || {})));
    }
    for kinds in [1, 17, 67] {
        let hits = self::hits(EVENTS, 10_000, kinds);
        let what = format!("rule_set/{}, 3 of them", 3 * kinds);
        print(&what, least(&|| scan(&hits, filtered_rules(kinds), || {})));
    }
}

/// Each measurement needs a process of its own, because allocators keep memory: `cargo test --release
/// -p headwater-dataflows --test rule_set_cost -- --ignored --nocapture --exact memory_of_NAME`
fn memory_of<R: Rules<Hit, i64>>(what: &str, rules: R, events: i64) {
    const KEYS: i64 = 200_000;
    let hits: Vec<Hit> = (0..KEYS * events)
        .map(|offset| Hit { time: offset / 100, offset, key: (offset % KEYS).unsigned_abs(), kind: 0 })
        .collect();
    let before = resident_kib();
    scan(&hits, rules, || {
        println!("{what}, {events} events: {} bytes a key", (resident_kib() - before) * 1024 / KEYS);
    });
}

#[test]
#[ignore = "measures memory"]
fn memory_of_admission() {
    memory_of("admission", (), 1);
}

#[test]
#[ignore = "measures memory"]
fn memory_of_static_rules() {
    memory_of("static/5", static_rules(), 1);
}

#[test]
#[ignore = "measures memory"]
fn memory_of_a_rule_set() {
    memory_of("rule_set/5", five_rules(), 1);
}

#[test]
#[ignore = "measures memory"]
fn memory_of_a_filtered_rule_set() {
    memory_of("rule_set/201, 3 of them", filtered_rules(67), 1);
}
