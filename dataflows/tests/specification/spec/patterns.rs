//! The specification of patterns: the matches among all events of a key in sorted order.
//!
//! "The last D" at an event of time t is (t − D, t]. Of events with equal times, only the event itself and those before
//! it in the order count.

use std::collections::{BTreeMap, BTreeSet};

use headwater_dataflows::patterns::Location;

use crate::event::Tx;

/// A match: its event and its details.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    pub key: u16,
    pub time: i64,
    pub partition: u32,
    pub offset: i64,
    pub found: Found,
}

/// The details of a match in a comparable form: whole numbers, or floats with seven digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    Rate { count: u64, within: i64 },
    Variety { distinct: u64, within: i64 },
    Deviation { amount: i64, n: u64, sum: i64, spread: i64 },
    Trip { from: i64, km: String, ms: i64, kmh: Option<String> },
    Trail(Vec<i64>),
    Sequence(Vec<i64>),
    Match,
    Total { sum: i64, n: usize, within: i64 },
    Part { hits: usize, n: usize, within: i64 },
}

impl Answer {
    pub fn new(event: &Tx, found: Found) -> Answer {
        let Tx { key, time, partition, offset, .. } = *event;
        Answer { key, time, partition, offset, found }
    }
}

/// Returns the events at which a condition holds that did not hold at the previous event.
fn rising_edges(holds: &[bool]) -> impl Iterator<Item = usize> {
    (0..holds.len()).filter(|&i| holds[i] && (i == 0 || !holds[i - 1]))
}

/// Returns the matches of at least `n` events in the last `within`.
pub fn frequency(n: usize, within: i64, events: &[Tx]) -> Vec<Answer> {
    let recent = |i: usize| events[..=i].iter().filter(|event| event.time > events[i].time - within).count();
    let holds: Vec<bool> = (0..events.len()).map(|i| recent(i) >= n).collect();
    let answer = |i: usize| {
        let within = events[i].time - events[i + 1 - n].time;
        Answer::new(&events[i], Found::Rate { count: n as u64, within })
    };
    rising_edges(&holds).map(answer).collect()
}

/// Returns the matches of at least `n` distinct merchants in the last `within`, among the events with a merchant.
pub fn diversity(n: usize, within: i64, events: &[Tx]) -> Vec<Answer> {
    let events: Vec<(&Tx, u64)> = events.iter().filter_map(|event| Some((event, event.merchant?))).collect();
    // The times at which each merchant was last seen before an event, most recent first.
    let last_seen = |i: usize| {
        let last: BTreeMap<u64, i64> =
            events[..=i].iter().map(|(event, value)| (*value, event.time)).collect();
        let mut times: Vec<i64> = last.into_values().collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        times
    };
    let recent = |i: usize| last_seen(i).into_iter().filter(|time| *time > events[i].0.time - within).count();
    let holds: Vec<bool> = (0..events.len()).map(|i| recent(i) >= n).collect();
    let answer = |i: usize| {
        let within = events[i].0.time - last_seen(i)[n - 1];
        Answer::new(events[i].0, Found::Variety { distinct: n as u64, within })
    };
    rising_edges(&holds).map(answer).collect()
}

/// Returns the matches of amounts x with |x − mean| > kσ over at least `at_least` earlier amounts. σ is at least
/// `min_sigma` and at least |mean| ÷ `share`.
///
/// Computed in whole numbers: with n earlier amounts, S their sum and V = n·Σx² − S², which is n(n − 1)σ², this is
/// (nx − S)²(n − 1) > k²·V·n, and |nx − S| > k·n·`min_sigma`, and |nx − S|·`share` > k·|S|.
pub fn outlier(k: i64, at_least: usize, min_sigma: i64, share: i64, events: &[Tx]) -> Vec<Answer> {
    let amounts: Vec<(&Tx, i64)> = events.iter().filter_map(|event| Some((event, event.amount?))).collect();
    let mut answers = Vec::new();
    for (i, &(event, amount)) in amounts.iter().enumerate().skip(at_least) {
        let n = i as i64;
        let (sum, spread) = sum_and_spread(amounts[..i].iter().map(|(_, amount)| *amount));
        let distance = (n * amount - sum).abs();
        let beyond = distance.pow(2) * (n - 1) > k * k * spread * n;
        if beyond && distance > k * n * min_sigma && distance * share > k * sum.abs() {
            // Multiplied by n·share², so that all numbers are whole.
            let whole = n * share * share;
            let floor = (n * min_sigma * share).pow(2).max(sum.pow(2)) * (n - 1);
            let spread = (spread * whole).max(floor);
            answers.push(Answer::new(event, Found::Deviation { amount, n: i as u64, sum, spread }));
        }
    }
    answers
}

/// Returns Σx and n·Σx² − (Σx)².
pub fn sum_and_spread(amounts: impl Iterator<Item = i64> + Clone) -> (i64, i64) {
    let n = amounts.clone().count() as i64;
    let sum: i64 = amounts.clone().sum();
    (sum, n * amounts.map(|x| x * x).sum::<i64>() - sum * sum)
}

/// Returns the matches of events more than `km` from the previous located event, at a speed of more than `kmh`.
pub fn travel(km: f64, kmh: f64, events: &[Tx]) -> Vec<Answer> {
    let located: Vec<(&Tx, Location)> =
        events.iter().filter_map(|event| Some((event, event.location()?))).collect();
    let mut answers = Vec::new();
    for pair in located.windows(2) {
        let [(before, from), (event, to)] = pair else { unreachable!("windows of two") };
        let distance = distance_km(*from, *to);
        let ms = event.time - before.time;
        let speed = (ms > 0).then(|| distance / (ms as f64 / 3_600_000.0));
        if distance > km && speed.is_none_or(|speed| speed > kmh) {
            answers.push(Answer::new(event, trip(before.offset, distance, ms, speed)));
        }
    }
    answers
}

pub fn trip(from: i64, km: f64, ms: i64, kmh: Option<f64>) -> Found {
    let digits = |x: f64| format!("{x:.6e}");
    Found::Trip { from, km: digits(km), ms, kmh: kmh.map(digits) }
}

/// Returns the great-circle distance, by the angle between two vectors from the centre of the earth.
fn distance_km(a: Location, b: Location) -> f64 {
    let vector = |place: Location| {
        let (lat, lon) = (place.lat.to_radians(), place.lon.to_radians());
        [lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()]
    };
    let ([ax, ay, az], [bx, by, bz]) = (vector(a), vector(b));
    let cross = [ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx];
    let sine = cross.iter().map(|x| x * x).sum::<f64>().sqrt();
    let cosine = ax * bx + ay * by + az * bz;
    6371.0088 * sine.atan2(cosine)
}

/// A function that returns true if an event matches a step, given the events that the run has taken before.
pub type Fits = fn(&[&Tx], &Tx) -> bool;

/// Returns the indices of the events taken by the run that starts with the event at `start`, without a time limit: for
/// each step, the first event that matches.
fn run(steps: &[Fits], start: usize, events: &[Tx]) -> Vec<usize> {
    let mut taken: Vec<usize> = Vec::new();
    for (i, event) in events.iter().enumerate().skip(start) {
        let before: Vec<&Tx> = taken.iter().map(|i| &events[*i]).collect();
        if steps.get(taken.len()).is_some_and(|fits| fits(&before, event)) {
            taken.push(i);
        } else if taken.is_empty() {
            break;
        }
    }
    taken
}

/// The limit on the runs with the same number of events, and the runs that it keeps.
#[derive(Clone, Copy, PartialEq)]
enum Remember {
    /// Keeps the latest runs.
    Latest(usize),
    /// Keeps the earliest of the runs that lack one event, and the latest of the others.
    EarliestAtLast(usize),
}

/// Returns the runs after each event that are within the time limit and have never been discarded, by the index of
/// their first event. Incomplete runs with the same number of events are discarded beyond the limit `remember`.
fn remembered(
    steps: usize,
    runs: &[Vec<usize>],
    remember: Remember,
    within: i64,
    events: &[Tx],
) -> Vec<Vec<usize>> {
    let mut forgotten: BTreeSet<usize> = BTreeSet::new();
    let mut remembered = Vec::new();
    for now in 0..events.len() {
        let young = |start: &usize| events[now].time - events[*start].time < within;
        let mut here: Vec<usize> =
            (0..=now).filter(|start| young(start) && !forgotten.contains(start)).collect();
        for count in 1..steps {
            let taken = |start: &usize| runs[*start].iter().filter(|i| **i <= now).count();
            let equal: Vec<usize> = here.iter().copied().filter(|start| taken(start) == count).collect();
            match remember {
                Remember::EarliestAtLast(n) if count + 1 == steps => forgotten.extend(equal.iter().skip(n)),
                Remember::EarliestAtLast(n) | Remember::Latest(n) => {
                    forgotten.extend(equal.iter().rev().skip(n));
                }
            }
        }
        here.retain(|start| !forgotten.contains(start));
        remembered.push(here);
    }
    remembered
}

/// Returns the matches of events that match one step after the other, all within `within` of the first. If several runs
/// end with one event, the match is the run that started last.
pub fn sequence(steps: &[Fits], at_most: usize, within: i64, events: &[Tx]) -> Vec<Answer> {
    let runs: Vec<Vec<usize>> = (0..events.len()).map(|start| run(steps, start, events)).collect();
    let remember = Remember::Latest(at_most);
    let mut answers = Vec::new();
    for (now, remembered) in remembered(steps.len(), &runs, remember, within, events).into_iter().enumerate()
    {
        let ends = |start: &usize| runs[*start].get(steps.len() - 1) == Some(&now);
        if let Some(latest) = remembered.into_iter().rfind(ends) {
            let offsets = runs[latest].iter().map(|i| events[*i].offset).collect();
            answers.push(Answer::new(&events[now], Found::Sequence(offsets)));
        }
    }
    answers
}

/// Returns the matches of events that match all steps but the last, one after the other, without a following event that
/// matches the last, all within `within` of the first. Discarded runs do not match. The time of a match is the last
/// instant within the limit.
pub fn absence(steps: &[Fits], at_most: usize, within: i64, events: &[Tx]) -> Vec<Answer> {
    let runs: Vec<Vec<usize>> = (0..events.len()).map(|start| run(steps, start, events)).collect();
    let remember = Remember::EarliestAtLast(at_most);
    let remembered = remembered(steps.len(), &runs, remember, within, events);
    let mut answers = Vec::new();
    for (start, event) in events.iter().enumerate() {
        let inside = |i: &&usize| events[**i].time - event.time < within;
        let taken: Vec<usize> = runs[start].iter().take_while(inside).copied().collect();
        let kept = |now: usize| events[now].time - event.time >= within || remembered[now].contains(&start);
        if taken.len() + 1 == steps.len() && (start..events.len()).all(kept) {
            let offsets = taken.iter().map(|i| events[*i].offset).collect();
            let at_deadline = Tx { time: event.time + within - 1, ..event.clone() };
            answers.push(Answer::new(&at_deadline, Found::Sequence(offsets)));
        }
    }
    answers
}

/// Returns every event with the offsets of all events up to it: any change of history changes the match.
pub fn trail(events: &[Tx]) -> Vec<Answer> {
    let offsets: Vec<i64> = events.iter().map(|event| event.offset).collect();
    events
        .iter()
        .enumerate()
        .map(|(i, event)| Answer::new(event, Found::Trail(offsets[..=i].to_vec())))
        .collect()
}
