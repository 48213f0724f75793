//! `headwater bench cost`: the five patterns as a dataflow, against one hand-written loop over the same events.
//!
//! The loop is what one would write without an engine: one thread, one hash map, one state a key, events in order,
//! nothing that survives or scales. What the engine costs beside it is what its services cost.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use differential_dataflow::input::InputSession;
use headwater_dataflows::patterns::{Diversity, Frequency, Location, Outlier, Travel};
use headwater_dataflows::{
    Admission, Admit, Clock, Emission, Epoch, EventTime, Offset, Partition, Pattern, Position, Scan,
};
use serde_json::json;
use timely::dataflow::operators::Probe;

use crate::cli::args::BenchArgs;
use crate::decode::Decoder;
use crate::event::Event;
use crate::outputs::Severity;
use crate::runtime::{AmountPlan, DiversityPlan, FrequencyPlan, Patterns, Telling, TravelPlan, rules};
use crate::source::Raw;
use crate::source::generator::{GeneratorSettings, RecordMaker};

/// How many events make an epoch: what 10 ms bring at 600 thousand a second.
const EPOCH: usize = 6000;

/// How far the dataflow may run ahead of its own results, in epochs.
const IN_FLIGHT: u64 = 4;

/// The hour of the patterns, in milliseconds.
const HOUR: i64 = 3_600_000;

/// Runs loop and dataflow in turn and prints medians.
pub fn cost(args: &BenchArgs) {
    let events = events(args.events);
    let mut rates: [Vec<f64>; 3] = Default::default();
    let mut found = [0; 3];
    for round in 0..args.rounds.max(1) {
        let per_second = |took: Duration| args.events as f64 / took.as_secs_f64();
        let (took, matches) = by_hand(events.clone());
        rates[0].push(per_second(took));
        found[0] = matches;
        for workers in [1, 2] {
            let (took, matches) = by_dataflow(&events, workers);
            rates[workers].push(per_second(took));
            found[workers] = matches;
        }
        eprintln!(
            "round {}: loop {:.0}, one worker {:.0}, two workers {:.0} events/s",
            round + 1,
            rates[0][round],
            rates[1][round],
            rates[2][round]
        );
    }
    // Ratios are taken round by round, since the machine's speed drifts.
    let ratio = |workers: usize| {
        median(rates[workers].iter().zip(&rates[0]).map(|(flow, hand)| flow / hand).collect())
    };
    let report = json!({
        "events": args.events,
        "matches": { "loop": found[0], "1": found[1], "2": found[2] },
        "loop_events_per_s": median(rates[0].clone()).round(),
        "events_per_s": { "1": median(rates[1].clone()).round(), "2": median(rates[2].clone()).round() },
        "ratio": { "1": ratio(1), "2": ratio(2) },
    });
    if args.json {
        println!("{report}");
    } else {
        println!("loop         {:>12} events/s, {} matches", report["loop_events_per_s"], found[0]);
        for workers in [1, 2] {
            println!(
                "{workers} worker(s)  {:>12} events/s, {} matches, {:.2} of the loop",
                report["events_per_s"][workers.to_string()],
                found[workers],
                ratio(workers)
            );
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Events of the generator, in order of event time.
fn events(n: usize) -> Vec<Event> {
    let settings = GeneratorSettings {
        disorder: 0.0,
        late: 0.0,
        duplicates: 0.0,
        malformed: 0.0,
        invalid: 0.0,
        ..GeneratorSettings::default()
    };
    let partitions = settings.partitions as usize;
    let mut maker = RecordMaker::new(settings);
    let mut decoder = Decoder::default();
    (0..n)
        .map(|at| {
            let (partition, offset) = ((at % partitions) as u32, (at / partitions) as u64);
            let timestamp = maker.make(partition, offset, None);
            let position = Position { partition: Partition(partition), offset: Offset(offset as i64) };
            let raw =
                Raw { position, timestamp, key: Some(&maker.key), value: Some(&maker.value), retries: 0 };
            decoder.decode(raw).expect("the generator was told to break nothing")
        })
        .collect()
}

/// Takes the hash that an event carries.
#[derive(Default)]
struct Carried(u64);

impl Hasher for Carried {
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
type Name = fn(&Event) -> Box<str>;

/// A key's states, side by side.
#[derive(Default)]
struct State {
    velocity: <Frequency as Pattern<Event>>::State,
    burst: <Frequency as Pattern<Event>>::State,
    diversity: <Diversity<Value> as Pattern<Event>>::State,
    amount: <Outlier<Amount> as Pattern<Event>>::State,
    travel: <Travel<Place, Name> as Pattern<Event>>::State,
}

fn by_hand(events: Vec<Event>) -> (Duration, u64) {
    let velocity = Frequency::at_least(101, HOUR);
    let burst = Frequency::at_least(10, 10_000);
    let diversity: Diversity<Value> = Diversity::at_least(8, HOUR, Event::merchant);
    let amount: Outlier<Amount> = Outlier::beyond(3.0, 30, 10_000.0, Event::amount);
    let travel: Travel<Place, Name> = Travel::beyond(50.0, 900.0, Event::location, |event| event.id().into());
    let begun = Instant::now();
    let mut keys: HashMap<Box<str>, State, BuildHasherDefault<Carried>> = HashMap::default();
    let mut matches = 0;
    for event in events {
        if !keys.contains_key(event.key()) {
            keys.insert(event.key().into(), State::default());
        }
        let Some(state) = keys.get_mut(event.key()) else { continue };
        matches += u64::from(velocity.step(&mut state.velocity, &event).0.is_some());
        matches += u64::from(burst.step(&mut state.burst, &event).0.is_some());
        matches += u64::from(diversity.step(&mut state.diversity, &event).0.is_some());
        matches += u64::from(amount.step(&mut state.amount, &event).0.is_some());
        matches += u64::from(travel.step(&mut state.travel, &event).0.is_some());
    }
    (begun.elapsed(), matches)
}

/// The rules of the engine with their usual numbers.
fn patterns() -> Patterns {
    let telling = Telling { severity: Severity::Medium, emission: Emission::Immediate };
    Patterns {
        velocity_spike: Some(FrequencyPlan { at_least: 101, within_ms: HOUR, telling }),
        rapid_fire_burst: Some(FrequencyPlan { at_least: 10, within_ms: 10_000, telling }),
        merchant_diversity: Some(DiversityPlan { at_least: 8, within_ms: HOUR, telling }),
        amount_anomaly: Some(AmountPlan {
            sigmas: 3.0,
            high_sigmas: 5.0,
            at_least: 30,
            min_sigma: 0.01,
            telling,
        }),
        impossible_travel: Some(TravelPlan { km: 50.0, kmh: 900.0, telling }),
    }
}

fn by_dataflow(events: &[Event], workers: usize) -> (Duration, u64) {
    // Each worker reads its share of the partitions.
    let mut shares: Vec<Vec<Vec<Event>>> = vec![Vec::new(); workers];
    for epoch in events.chunks(EPOCH) {
        for (worker, share) in shares.iter_mut().enumerate() {
            let mine = |event: &&Event| event.position().partition.0 as usize % workers == worker;
            share.push(epoch.iter().filter(mine).cloned().collect());
        }
    }
    let watermarks: Vec<EventTime> =
        events.chunks(EPOCH).map(|epoch| epoch[epoch.len() - 1].event_time().minus_ms(5001)).collect();
    let shares: Arc<Vec<_>> = Arc::new(shares.into_iter().map(|share| Mutex::new(Some(share))).collect());
    let start = Arc::new(Barrier::new(workers));
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let share = shares[worker.index()].lock().expect("nobody panics with it").take().unwrap_or_default();
        let matches = std::rc::Rc::new(std::cell::Cell::new(0u64));
        let counted = std::rc::Rc::clone(&matches);
        let (mut input, mut clock, probe) = worker.dataflow::<Epoch, _, _>(|scope| {
            let mut input = InputSession::new();
            let (clock, control) = Clock::new(scope);
            let (keyed, _) = input.to_collection(scope).admit(control, Admission::default());
            let alerts = keyed.scan_all("Rules", rules(&Arc::from("bench"), &patterns()));
            let alerts = alerts.inspect(move |_| counted.set(counted.get() + 1));
            let (probe, _) = alerts.inner.probe();
            (input, clock, probe)
        });
        start.wait();
        let begun = Instant::now();
        let mut epoch = Epoch(0);
        for (events, &watermark) in share.into_iter().zip(&watermarks) {
            events.into_iter().for_each(|event| input.insert(event));
            epoch = epoch.next();
            match worker.index() {
                0 => clock.end_epoch(watermark),
                _ => clock.advance_to(epoch),
            }
            input.advance_to(epoch);
            input.flush();
            worker.step();
            while probe.less_than(&Epoch(epoch.0.saturating_sub(IN_FLIGHT))) {
                worker.step();
            }
        }
        drop((input, clock));
        while !probe.done() {
            worker.step();
        }
        (begun.elapsed(), matches.get())
    });
    let joined = guards.expect("workers start").join().into_iter();
    joined
        .map(|result| result.expect("no worker panics"))
        .fold((Duration::ZERO, 0), |(took, matches), (t, m)| (took.max(t), matches + m))
}
