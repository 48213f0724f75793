//! `headwater bench cost`: compares the five patterns as a dataflow with a hand-written loop over the same events.
//!
//! The loop is the minimal implementation without an engine: one thread and one hash map with one state per key,
//! without durability or scaling. If events are out of order, the loop buffers them until the same watermark has
//! passed, and sorts them. The difference to the dataflow is the cost of the engine's services.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_dataflows::patterns::{Diversity, Frequency, Location, Outlier, Travel};
use headwater_dataflows::{Admission, Admit, Emission, Pattern, Scan};
use serde_json::json;

use super::args::CostArgs;
use super::drive::{Drive, EPOCH, Spent, disordered, events, in_order};
use super::usage;
use crate::cli::output::{self, OutputError, Table, counted, note};
use crate::event::Event;
use crate::outputs::Severity;
use crate::pipeline::{AlertPolicy, AmountPlan, DiversityPlan, FrequencyPlan, Patterns, TravelPlan, rules};
use crate::source::generator::GeneratorSettings;

/// The minimum lag of the watermark behind the newest event, in milliseconds.
const BEHIND_MS: i64 = 5000;

/// One hour, the time span of some patterns, in milliseconds.
const HOUR: i64 = 3_600_000;

/// The forms that are compared: the loop, and the dataflow with one worker and with two workers.
const FORMS: [&str; 3] = ["loop", "1", "2"];

/// Runs the loop and the dataflow alternately and prints medians.
///
/// # Errors
/// If the results cannot be printed.
pub fn cost(args: &CostArgs) -> Result<(), OutputError> {
    let settings = GeneratorSettings { users: args.users, ..in_order() };
    let events = disordered(events(settings, args.events), args.disordered, args.disorder_ms);
    let behind_ms = args.disorder_ms.max(BEHIND_MS);
    let emission = if args.final_only { Emission::Final } else { Emission::Immediate };
    let by_dataflow = |workers| {
        let drive = Drive { workers, behind_ms, close: args.final_only };
        by_dataflow(&events, drive, emission)
    };
    let by_hand = || match args.disorder_ms {
        0 => by_hand(events.clone()),
        _ => by_sorting(&events, Drive { workers: 1, behind_ms, close: true }),
    };
    let mut rounds: Vec<[Spent; 3]> = Vec::new();
    for round in 1..=args.rounds.max(1) {
        let spent = [by_hand(), by_dataflow(1), by_dataflow(2)];
        let [hand, one, two] = spent.map(|spent| per_second(args.events, spent.wall));
        note!("round {round}: loop {hand:.0}, one worker {one:.0}, two workers {two:.0} events/s");
        rounds.push(spent);
    }
    let report = report(args.events, &rounds);
    let text = || {
        let mut table =
            Table::new(&["form", "events/s", "of loop", "events/CPU-second", "of loop, CPU", "matches"]);
        for form in FORMS {
            let number = |key: &str, digits: usize| match report[key][form].as_f64() {
                Some(value) => format!("{value:.digits$}"),
                None => "-".to_owned(),
            };
            table.add([
                form.parse().map_or(form.to_owned(), |workers| counted(workers, "worker")),
                number("events_per_s", 0),
                number("ratio", 2),
                number("events_per_cpu_s", 0),
                number("cpu_ratio", 2),
                report["matches"][form].to_string(),
            ]);
        }
        table.to_string()
    };
    output::report(args.json, || report.clone(), text)
}

/// Returns the medians by form. Ratios are computed per round, because the speed of the machine drifts. Ratios of CPU
/// time are valid on a busy machine, too.
fn report(events: usize, rounds: &[[Spent; 3]]) -> serde_json::Value {
    let by_form = |value: &dyn Fn(&[Spent; 3], usize) -> Option<f64>| -> serde_json::Value {
        let of = |form| rounds.iter().map(|round| value(round, form)).collect::<Option<Vec<_>>>().map(median);
        FORMS.iter().enumerate().map(|(form, name)| ((*name).to_owned(), json!(of(form)))).collect()
    };
    let rate = |spent: &Spent| per_second(events, spent.wall);
    let cpu_rate = |spent: &Spent| spent.cpu.map(|cpu| per_second(events, cpu));
    let matches = |round: &[Spent; 3]| -> serde_json::Value {
        FORMS.iter().zip(round).map(|(name, spent)| ((*name).to_owned(), json!(spent.results))).collect()
    };
    json!({
        "events": events,
        "matches": rounds.last().map(matches),
        "loop_events_per_s": median(rounds.iter().map(|round| rate(&round[0])).collect()).round(),
        "events_per_s": by_form(&|round, form| Some(rate(&round[form]).round())),
        "ratio": by_form(&|round, form| Some(rate(&round[form]) / rate(&round[0]))),
        "events_per_cpu_s": by_form(&|round, form| Some(cpu_rate(&round[form])?.round())),
        "cpu_ratio": by_form(&|round, form| Some(cpu_rate(&round[form])? / cpu_rate(&round[0])?)),
    })
}

/// Returns events per second.
pub fn per_second(events: usize, elapsed: Duration) -> f64 {
    events as f64 / elapsed.as_secs_f64()
}

/// Returns the median.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The hash function of the engine, over the bytes of a key.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = headwater_dataflows::KeyHash::of(bytes).0;
    }
    fn write_u8(&mut self, _: u8) {}
}

type Value = fn(&Event) -> Option<u64>;
type Amount = fn(&Event) -> Option<i64>;
type Place = fn(&Event) -> Option<Location>;
type Name = for<'a> fn(&'a Event) -> &'a str;

/// The states of all patterns for one key.
#[derive(Default)]
struct State {
    velocity: <Frequency as Pattern<Event>>::State,
    burst: <Frequency as Pattern<Event>>::State,
    diversity: <Diversity<Value> as Pattern<Event>>::State,
    amount: <Outlier<Amount> as Pattern<Event>>::State,
    travel: <Travel<Place, Name> as Pattern<Event>>::State,
}

/// The hand-written loop.
struct HandWrittenLoop {
    velocity: Frequency,
    burst: Frequency,
    diversity: Diversity<Value>,
    amount: Outlier<Amount>,
    travel: Travel<Place, Name>,
    keys: HashMap<Box<str>, State, BuildHasherDefault<KeyHasher>>,
    matches: u64,
}

impl HandWrittenLoop {
    fn new() -> HandWrittenLoop {
        HandWrittenLoop {
            velocity: Frequency::at_least(101, HOUR),
            burst: Frequency::at_least(10, 10_000),
            diversity: Diversity::at_least(8, HOUR, Event::merchant),
            amount: Outlier::beyond(3.0, 30, 10_000.0, Event::amount as Amount).with_min_relative_sigma(0.01),
            travel: Travel::beyond(50.0, 900.0, Event::location, Event::id),
            keys: HashMap::default(),
            matches: 0,
        }
    }

    fn step(&mut self, event: &Event) {
        let state = match self.keys.get_mut(event.key()) {
            Some(state) => state,
            None => self.keys.entry(event.key().into()).or_default(),
        };
        self.matches += u64::from(self.velocity.step(&mut state.velocity, event).0.is_some());
        self.matches += u64::from(self.burst.step(&mut state.burst, event).0.is_some());
        self.matches += u64::from(self.diversity.step(&mut state.diversity, event).0.is_some());
        self.matches += u64::from(self.amount.step(&mut state.amount, event).0.is_some());
        self.matches += u64::from(self.travel.step(&mut state.travel, event).0.is_some());
    }
}

/// Measures the work of one thread over all events.
fn timed(work: impl FnOnce(&mut HandWrittenLoop)) -> Spent {
    let (started, cpu_before) = (Instant::now(), usage::thread_cpu());
    let mut by_hand = HandWrittenLoop::new();
    work(&mut by_hand);
    let cpu = usage::thread_cpu().zip(cpu_before).map(|(now, before)| now - before);
    Spent { wall: started.elapsed(), cpu, results: by_hand.matches }
}

fn by_hand(events: Vec<Event>) -> Spent {
    timed(|by_hand| events.into_iter().for_each(|event| by_hand.step(&event)))
}

/// Buffers events until the watermark has passed their time, and processes them in order.
fn by_sorting(events: &[Event], drive: Drive) -> Spent {
    let watermarks = drive.watermarks(events);
    let mut epochs: Vec<Vec<Event>> = events.chunks(EPOCH).map(<[Event]>::to_vec).collect();
    epochs.resize_with(watermarks.len(), Vec::new);
    timed(|by_hand| {
        let mut buffered: Vec<Event> = Vec::new();
        for (epoch, watermark) in epochs.into_iter().zip(watermarks) {
            buffered.extend(epoch);
            // The stable sort is fast here, because it makes use of runs that are already sorted.
            buffered.sort_by_key(|event| (event.event_time(), event.position()));
            let passed = buffered.partition_point(|event| event.event_time() <= watermark);
            buffered.drain(..passed).for_each(|event| by_hand.step(&event));
        }
    })
}

/// Returns the built-in rules with their default parameters.
pub fn patterns(emission: Emission) -> Patterns {
    let alert_policy = AlertPolicy { severity: Severity::Medium, emission };
    Patterns {
        velocity_spike: Some(FrequencyPlan { at_least: 101, within_ms: HOUR, alert_policy }),
        rapid_fire_burst: Some(FrequencyPlan { at_least: 10, within_ms: 10_000, alert_policy }),
        merchant_diversity: Some(DiversityPlan { at_least: 8, within_ms: HOUR, alert_policy }),
        amount_anomaly: Some(AmountPlan {
            sigmas: 3.0,
            high_sigmas: 5.0,
            at_least: 30,
            min_sigma: 0.01,
            min_relative_sigma: 0.01,
            per_currency: false,
            alert_policy,
        }),
        impossible_travel: Some(TravelPlan { km: 50.0, kmh: 900.0, alert_policy }),
    }
}

fn by_dataflow(events: &[Event], drive: Drive, emission: Emission) -> Spent {
    drive.run(events, move |events, control| {
        let (keyed, _) = events.admit(control, Admission::default());
        keyed.scan_all("Rules", rules(&Arc::from("bench"), &patterns(emission))).inner
    })
}
