//! Patterns over random streams, compared with the specification.

use std::collections::BTreeMap;

use differential_dataflow::VecCollection;
use headwater_dataflows::patterns::{Deviation, Diversity, Frequency, Outlier, Rate, Travel, Trip, Variety};
use headwater_dataflows::{Admission, Admit, Emission, Epoch, Keyed, Pattern, Rule, Rules, Scan, Stored};
use proptest::prelude::*;

use crate::event::Tx;
use crate::harness::{Seen, Snapshots, check, equal, run, snapshots, watermarks};
use crate::spec::admission::admit;
use crate::spec::patterns::{self, Answer, Found, trip};
use crate::spec::{answers, final_ones};
use crate::streams::streams;

const HORIZON: i64 = 10;
pub const ADMISSION: Admission = Admission { dedup_horizon_ms: HORIZON, ttl_ms: None };

/// Matches every event, with the offsets of all events up to it.
pub struct Trail;

impl Pattern<Tx> for Trail {
    type State = Vec<i64>;
    type Undo = i64;
    type Match = Vec<i64>;

    fn step(&self, offsets: &mut Vec<i64>, event: &Tx) -> (Option<Vec<i64>>, i64) {
        offsets.push(event.offset);
        (Some(offsets.clone()), event.offset)
    }

    fn undo(&self, offsets: &mut Vec<i64>, event: &Tx, undo: i64) {
        assert_eq!(
            (offsets.pop(), undo),
            (Some(event.offset), event.offset),
            "only the latest step is undone"
        );
    }
}

pub fn frequency() -> Frequency {
    Frequency::at_least(3, 12)
}

pub fn rate(event: &Tx, Rate { count, within_ms }: Rate) -> Answer {
    Answer::new(event, Found::Rate { count, within: within_ms })
}

pub fn diversity() -> Diversity<impl Fn(&Tx) -> Option<u64>> {
    Diversity::at_least(3, 20, |event: &Tx| event.merchant)
}

pub fn variety(event: &Tx, Variety { distinct, within_ms }: Variety) -> Answer {
    Answer::new(event, Found::Variety { distinct, within: within_ms })
}

pub fn outlier() -> Outlier<impl Fn(&Tx) -> Option<i64>> {
    Outlier::beyond(2.0, 3, 1.0, |event: &Tx| event.amount).with_min_relative_sigma(0.5)
}

/// Computes the sum and 4n²(n − 1)σ² from mean and deviation. For small amounts they are exact whole numbers.
pub fn deviation(event: &Tx, found: Deviation) -> Answer {
    let Deviation { amount, mean, stddev, sigmas, n } = found;
    let count = n as f64;
    let expected = (amount as f64 - mean).abs() / stddev;
    assert!((sigmas / expected - 1.0).abs() < 1e-9, "{sigmas} is not {expected}");
    let sum = (mean * count).round() as i64;
    let spread = (stddev * stddev * 4.0 * count * count * (count - 1.0)).round() as i64;
    Answer::new(event, Found::Deviation { amount, n, sum, spread })
}

pub fn travel() -> impl Pattern<Tx, Match = Trip<i64>, State: Stored> {
    Travel::beyond(50.0, 2e7, Tx::location, |event: &Tx| &event.offset)
}

pub fn journey(event: &Tx, Trip { from, km, seconds, kmh }: Trip<i64>) -> Answer {
    Answer::new(event, trip(from, km, (seconds * 1000.0).round() as i64, kmh))
}

pub fn trail(event: &Tx, offsets: Vec<i64>) -> Answer {
    Answer::new(event, Found::Trail(offsets))
}

/// Returns all patterns as rules of one pass, each with its own emission.
pub fn all_rules(emission: [Emission; 5]) -> impl Rules<Tx, Answer, State: Stored> {
    let [a, b, c, d, e] = emission;
    let absent = false.then(|| Rule::new(frequency(), a, rate));
    let trails = (Rule::new(travel(), d, journey), (Some(Rule::new(Trail, e, trail)), ()));
    let rest = (Rule::new(diversity(), b, variety), (Rule::new(outlier(), c, deviation), trails));
    (Rule::new(frequency(), a, rate), (absent, rest))
}

fn expected_frequency(events: &[Tx]) -> Vec<Answer> {
    patterns::frequency(3, 12, events)
}

fn expected_diversity(events: &[Tx]) -> Vec<Answer> {
    patterns::diversity(3, 20, events)
}

fn expected_outlier(events: &[Tx]) -> Vec<Answer> {
    patterns::outlier(2, 3, 1, 2, events)
}

fn expected_travel(events: &[Tx]) -> Vec<Answer> {
    patterns::travel(50.0, 2e7, events)
}

pub type Expected = fn(&[Tx]) -> Vec<Answer>;

/// Checks a pattern with both emissions against the specification, on any number of workers. Requires at least `given`
/// emitted and `revoked` revoked results in 64 streams.
pub fn scan_is(
    what: &'static str,
    (given, revoked): (usize, usize),
    expected: Expected,
    scan: fn(Keyed<'_, Tx>, Emission) -> VecCollection<'_, Epoch, Answer>,
) {
    let (immediate, finals) = (Seen::default(), Seen::default());
    check(file!(), streams(), |(rounds, workers)| {
        let admitted = admit(&rounds, HORIZON);
        let want = answers(&admitted.rounds, expected);
        let scanned = |emission| {
            run(workers, &rounds, move |events, control| scan(events.admit(control, ADMISSION).0, emission))
        };

        let got = scanned(Emission::Immediate);
        immediate.note(&got);
        equal(what, &snapshots(rounds.len(), &got), &want)?;

        let got = scanned(Emission::Final);
        finals.note(&got);
        prop_assert!(got.iter().all(|(_, _, diff)| *diff > 0), "a final result was retracted: {got:?}");
        let want = final_ones(&want, &watermarks(&rounds), |answer| answer.time);
        equal(what, &snapshots(rounds.len(), &got), &want)
    });
    immediate.demand(&format!("{what}, immediate"), given, revoked);
    finals.demand(&format!("{what}, final"), given / 2, 0);
}

#[test]
fn frequency_matches_the_specification() {
    scan_is("frequency", (60, 15), expected_frequency, |keyed, emission| {
        keyed.scan("Frequency", frequency(), emission, rate)
    });
}

#[test]
fn a_long_frequency_matches_the_specification() {
    let expected: Expected = |events| patterns::frequency(13, 60, events);
    scan_is("frequency of 13", (15, 4), expected, |keyed, emission| {
        keyed.scan("Frequency", Frequency::at_least(13, 60), emission, rate)
    });
}

#[test]
fn diversity_matches_the_specification() {
    scan_is("diversity", (40, 8), expected_diversity, |keyed, emission| {
        keyed.scan("Diversity", diversity(), emission, variety)
    });
}

#[test]
fn outlier_matches_the_specification() {
    scan_is("outlier", (40, 12), expected_outlier, |keyed, emission| {
        keyed.scan("Outlier", outlier(), emission, deviation)
    });
}

#[test]
fn travel_matches_the_specification() {
    scan_is("travel", (120, 20), expected_travel, |keyed, emission| {
        keyed.scan("Travel", travel(), emission, journey)
    });
}

#[test]
fn every_event_is_stepped_in_order_and_exactly_once() {
    scan_is("trail", (800, 200), patterns::trail, |keyed, emission| {
        keyed.scan("Trail", Trail, emission, trail)
    });
}

#[test]
fn rules_in_one_pass_match_like_separate_scans() {
    let seen = Seen::default();
    let emission = || prop::bool::ANY.prop_map(|now| if now { Emission::Immediate } else { Emission::Final });
    check(file!(), (streams(), prop::array::uniform5(emission())), |((rounds, workers), emissions)| {
        let got = run(workers, &rounds, move |events, control| {
            events.admit(control, ADMISSION).0.scan_all("Rules", all_rules(emissions))
        });
        seen.note(&got);
        let admitted = admit(&rounds, HORIZON).rounds;
        let each: [Expected; 5] =
            [expected_frequency, expected_diversity, expected_outlier, expected_travel, patterns::trail];
        let mut want: Snapshots<Answer> = vec![BTreeMap::new(); rounds.len() + 1];
        for (expected, emission) in each.into_iter().zip(emissions) {
            let mut answers = answers(&admitted, expected);
            if emission == Emission::Final {
                answers = final_ones(&answers, &watermarks(&rounds), |answer| answer.time);
            }
            want.iter_mut().zip(answers).for_each(|(all, answers)| all.extend(answers));
        }
        equal("rules", &snapshots(rounds.len(), &got), &want)
    });
    seen.demand("rules in one pass", 800, 100);
}

#[test]
fn keys_that_are_not_selected_have_no_effect() {
    let seen = Seen::default();
    check(file!(), streams(), |(rounds, workers)| {
        let got = run(workers, &rounds, |events, control| {
            let (keyed, _) = events.admit(control, ADMISSION);
            let keyed = keyed.only(|key| key % 2 == 1).only(|key| *key < 9);
            keyed.scan("Trail", Trail, Emission::Immediate, trail)
        });
        seen.note(&got);
        let mut selected = admit(&rounds, HORIZON).rounds;
        selected.iter_mut().for_each(|round| round.updates.retain(|(e, _)| e.key % 2 == 1 && e.key < 9));
        equal("selection", &snapshots(rounds.len(), &got), &answers(&selected, patterns::trail))
    });
    seen.demand("selection", 600, 150);
}
