//! The specification of the conditions of rule sets, and of suppression: over all events of a key that the rule's filter
//! accepts, in sorted order.

use std::collections::BTreeMap;

use super::patterns::{Answer, Found};
use crate::event::Tx;

/// The events that a condition considers, each with what it finds there.
pub type Judged = Vec<(Tx, Option<Found>)>;

/// Returns the results of a condition. Without suppression these are the rising edges. With it, nothing is a result less
/// than `suppress` after a result; and the first event after that is one if the condition holds there.
pub fn rising(suppress: Option<i64>, judged: Judged) -> Vec<Answer> {
    let mut answers: Vec<Answer> = Vec::new();
    for (i, (event, found)) in judged.iter().enumerate() {
        let Some(found) = found else { continue };
        let before = i.checked_sub(1).map(|before| &judged[before]);
        let rises = before.is_none_or(|(_, found)| found.is_none());
        let end = answers.last().zip(suppress).map(|(last, suppress)| last.time + suppress);
        let is_first = |end: i64| before.is_some_and(|(before, _)| before.time < end);
        if end.is_none_or(|end| event.time >= end) && (rises || end.is_some_and(is_first)) {
            answers.push(Answer::new(event, found.clone()));
        }
    }
    answers
}

/// Returns those of a condition's matches, sorted by time, that are not suppressed by an earlier one.
pub fn unsuppressed(suppress: Option<i64>, matches: Vec<Answer>) -> Vec<Answer> {
    let mut answers: Vec<Answer> = Vec::new();
    for answer in matches {
        let end = answers.last().zip(suppress).map(|(last, suppress)| last.time + suppress);
        if end.is_none_or(|end| answer.time >= end) {
            answers.push(answer);
        }
    }
    answers
}

pub fn every(events: &[Tx]) -> Vec<Answer> {
    events.iter().map(|event| Answer::new(event, Found::Match)).collect()
}

/// Judges each event that has a number by the times and numbers of the last `within`.
fn trailing(
    within: i64,
    number: impl Fn(&Tx) -> Option<i64>,
    events: &[Tx],
    find: impl Fn(&[(i64, i64)]) -> Option<Found>,
) -> Judged {
    let numbers: Vec<(&Tx, i64)> = events.iter().filter_map(|event| Some((event, number(event)?))).collect();
    let judge = |i: usize| {
        let now = numbers[i].0;
        let last = numbers[..=i].iter().filter(|(event, _)| event.time > now.time - within);
        let last: Vec<(i64, i64)> = last.map(|(event, number)| (event.time, *number)).collect();
        (now.clone(), find(&last))
    };
    (0..numbers.len()).map(judge).collect()
}

fn span(last: &[(i64, i64)]) -> i64 {
    last[last.len() - 1].0 - last[0].0
}

pub fn count(n: usize, within: i64, events: &[Tx]) -> Judged {
    trailing(
        within,
        |_| Some(1),
        events,
        |last| {
            let newest = last.get(last.len().checked_sub(n)?..)?;
            Some(Found::Rate { count: n as u64, within: span(newest) })
        },
    )
}

/// The sum of the amounts is more than `more_than`.
pub fn sum(more_than: i64, within: i64, events: &[Tx]) -> Judged {
    trailing(
        within,
        |event| event.amount,
        events,
        |last| {
            let sum: i64 = last.iter().map(|(_, number)| number).sum();
            let total = Found::Total { sum, n: last.len(), within: span(last) };
            (sum > more_than).then_some(total)
        },
    )
}

/// The average of the amounts is at least `at_least`.
pub fn average(at_least: i64, events_at_least: usize, within: i64, events: &[Tx]) -> Judged {
    trailing(
        within,
        |event| event.amount,
        events,
        |last| {
            let sum: i64 = last.iter().map(|(_, number)| number).sum();
            let n = last.len();
            let total = Found::Total { sum, n, within: span(last) };
            (n >= events_at_least && sum >= at_least * n as i64).then_some(total)
        },
    )
}

/// More than one part in `parts` of the events has a place.
pub fn share(parts: usize, events_at_least: usize, within: i64, events: &[Tx]) -> Judged {
    trailing(
        within,
        |event| Some(i64::from(event.place.is_some())),
        events,
        |last| {
            let (hits, n) = (last.iter().filter(|(_, hit)| *hit == 1).count(), last.len());
            let part = Found::Part { hits, n, within: span(last) };
            (n >= events_at_least && hits * parts > n).then_some(part)
        },
    )
}

pub fn distinct(n: usize, within: i64, events: &[Tx]) -> Judged {
    let merchant = |event: &Tx| Some(event.merchant? as i64);
    trailing(within, merchant, events, |last| {
        let seen: BTreeMap<i64, i64> = last.iter().map(|(time, merchant)| (*merchant, *time)).collect();
        let mut times: Vec<i64> = seen.into_values().collect();
        times.sort_unstable();
        let least_recent = *times.get(times.len().checked_sub(n)?)?;
        Some(Found::Variety { distinct: n as u64, within: last[last.len() - 1].0 - least_recent })
    })
}

/// Returns each event that no other follows for `within`. The time of a match is the last instant of this time.
pub fn silence(within: i64, events: &[Tx]) -> Vec<Answer> {
    let followed = |i: usize| events.get(i + 1).is_some_and(|next| next.time < events[i].time + within);
    let silent = (0..events.len()).filter(|i| !followed(*i));
    let at_end = |event: &Tx| Tx { time: event.time + within - 1, ..event.clone() };
    silent.map(|i| Answer::new(&at_end(&events[i]), Found::Sequence(vec![events[i].offset; 2]))).collect()
}

/// Reduces the events of each match to the first, and those that complete a step: the steps take this many events each.
pub fn milestones(times: &[usize], matches: Vec<Answer>) -> Vec<Answer> {
    let reduce = |answer: Answer| {
        let Found::Sequence(offsets) = &answer.found else { unreachable!("the match is of a sequence") };
        let ends = times.iter().scan(0, |taken, times| {
            *taken += times;
            Some(*taken - 1)
        });
        let kept = std::iter::once(0).chain(ends).map(|i| offsets[i]).collect();
        Answer { found: Found::Sequence(kept), ..answer }
    };
    matches.into_iter().map(reduce).collect()
}
