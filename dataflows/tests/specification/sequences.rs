//! Sequences and absences over random streams, compared with all runs of a key's whole history.

use std::cell::Cell;
use std::collections::BTreeSet;

use headwater_dataflows::patterns::{Absence, Run, Sequence};
use headwater_dataflows::{Admit, Emission, Missing, Rule, Scan};
use proptest::prelude::*;

use crate::event::Tx;
use crate::harness::{Seen, check, demand, equal, run, snapshots, watermarks};
use crate::scan::{ADMISSION, Expected, scan_is};
use crate::spec::admission::admit;
use crate::spec::patterns::{self, Answer, Fits, Found};
use crate::spec::{answers, final_ones};
use crate::streams::streams;

/// Returns a sequence of two amounts above zero, then a place. Of several runs, only one is kept.
pub fn unrelated() -> Sequence<Tx, i64> {
    Sequence::first(|event: &Tx| (event.amount > Some(0)).then_some(event.offset))
        .times(2)
        .then(|_, event| event.place.map(|_| event.offset))
        .at_most(1)
        .within(15)
}

/// Returns a sequence of three events with the same merchant and amounts that do not decrease.
pub fn related() -> Sequence<Tx, Tx> {
    Sequence::first(|event: &Tx| event.merchant.map(|_| event.clone()))
        .then(|run, event| {
            let fits = event.merchant == run.first().merchant && event.amount >= run.last().amount;
            fits.then(|| event.clone())
        })
        .times(2)
        .at_most(2)
        .within(40)
}

pub fn offsets(event: &Tx, run: Run<i64>) -> Answer {
    Answer::new(event, Found::Sequence(run.iter().copied().collect()))
}

pub fn offsets_of_all(event: &Tx, run: Run<Tx>) -> Answer {
    Answer::new(event, Found::Sequence(run.iter().map(|event| event.offset).collect()))
}

/// Returns the expected answers without a limit on runs: if no step depends on the events of the run, a limit must not
/// change the answers.
fn expected_unrelated(events: &[Tx]) -> Vec<Answer> {
    let above: Fits = |_, event| event.amount > Some(0);
    patterns::sequence(&[above, above, |_, event| event.place.is_some()], usize::MAX, 15, events)
}

fn expected_related(events: &[Tx]) -> Vec<Answer> {
    let fits: Fits = |before, event| {
        event.merchant.is_some()
            && before.iter().all(|one| one.merchant == event.merchant && one.amount <= event.amount)
    };
    patterns::sequence(&[fits; 3], 2, 40, events)
}

#[test]
fn an_unrelated_sequence_matches_regardless_of_the_limit() {
    scan_is("unrelated", (60, 12), expected_unrelated, |keyed, emission| {
        keyed.scan("Unrelated", unrelated(), emission, offsets)
    });
}

#[test]
fn a_related_sequence_matches_the_specification() {
    scan_is("related", (20, 2), expected_related, |keyed, emission| {
        keyed.scan("Related", related(), emission, offsets_of_all)
    });
}

/// Returns the absence of a place after an amount above zero.
pub fn unplaced() -> Absence<Tx, Tx> {
    Sequence::first(|event: &Tx| (event.amount > Some(0)).then(|| event.clone()))
        .at_most(usize::MAX)
        .then_not(|_, event| event.place.is_some())
        .within(15)
}

fn expected_unplaced(events: &[Tx]) -> Vec<Answer> {
    let steps: [Fits; 2] = [|_, event| event.amount > Some(0), |_, event| event.place.is_some()];
    patterns::absence(&steps, usize::MAX, 15, events)
}

/// Returns the absence, after two events with the same merchant, of a third with a greater amount than the first.
fn unsurpassed() -> Absence<Tx, Tx> {
    Sequence::first(|event: &Tx| event.merchant.map(|_| event.clone()))
        .then(|run, event| (event.merchant == run.last().merchant).then(|| event.clone()))
        .at_most(2)
        .then_not(|run, event| event.merchant == run.last().merchant && event.amount > run.first().amount)
        .within(40)
}

fn expected_unsurpassed(events: &[Tx]) -> Vec<Answer> {
    let steps: [Fits; 3] = [
        |_, event| event.merchant.is_some(),
        |before, event| event.merchant == before[0].merchant,
        |before, event| event.merchant == before[0].merchant && event.amount > before[0].amount,
    ];
    patterns::absence(&steps, 2, 40, events)
}

/// Makes an answer of a run that no event followed: the first event of the run, at the deadline.
pub fn missing(within: i64) -> impl Fn(&u16, &Run<Tx>) -> Answer {
    move |key, run| {
        let offsets = run.iter().map(|event| event.offset).collect();
        let at_deadline = Tx { key: *key, time: run.start().0 + within - 1, ..run.first().clone() };
        Answer::new(&at_deadline, Found::Sequence(offsets))
    }
}

/// Checks an absence against the specification, on any number of workers.
fn absence_is(what: &'static str, expected: Expected, absence: fn() -> Absence<Tx, Tx>, within: i64) {
    let [count, given, prevented] = [(); 3].map(|()| Cell::new(0));
    check(file!(), streams(), |(rounds, workers)| {
        let got = run(workers, &rounds, move |events, control| {
            events.admit(control, ADMISSION).0.scan_absence("Absence", absence(), missing(within))
        });
        prop_assert!(got.iter().all(|(_, _, diff)| *diff > 0), "a final result was retracted: {got:?}");
        let all = answers(&admit(&rounds, ADMISSION.dedup_horizon_ms).rounds, expected);
        // The answers that held at some epoch and do not hold at the end were prevented.
        let held: BTreeSet<&Answer> = all.iter().flat_map(|answers| answers.keys()).collect();
        count.set(count.get() + 1);
        given.set(given.get() + got.len());
        prevented.set(prevented.get() + held.len() - all.last().map_or(0, |answers| answers.len()));
        let want = final_ones(&all, &watermarks(&rounds), |answer| answer.time);
        equal(what, &snapshots(rounds.len(), &got), &want)
    });
    demand(what, count.get(), &[("given", given.get(), 60), ("prevented", prevented.get(), 20)]);
}

#[test]
fn an_absence_matches_the_specification() {
    absence_is("unplaced", expected_unplaced, unplaced, 15);
}

#[test]
fn an_absence_after_related_events_matches_the_specification() {
    absence_is("unsurpassed", expected_unsurpassed, unsurpassed, 40);
}

#[test]
fn absence_and_sequence_in_one_pass_match_like_alone() {
    let seen = Seen::default();
    check(file!(), streams(), |(rounds, workers)| {
        let got = run(workers, &rounds, |events, control| {
            let sequence = Rule::new(unrelated(), Emission::Immediate, offsets);
            let unplaced = || Missing::new(unplaced(), missing(15));
            let rules = (Some(unplaced()), (sequence, (false.then(unplaced), ())));
            events.admit(control, ADMISSION).0.scan_all("Rules", rules)
        });
        seen.note(&got);
        let admitted = admit(&rounds, ADMISSION.dedup_horizon_ms).rounds;
        let absences = answers(&admitted, expected_unplaced);
        let mut want = final_ones(&absences, &watermarks(&rounds), |answer| answer.time);
        for (all, answers) in want.iter_mut().zip(answers(&admitted, expected_unrelated)) {
            answers.into_iter().for_each(|(answer, count)| *all.entry(answer).or_default() += count);
        }
        equal("absence and sequence", &snapshots(rounds.len(), &got), &want)
    });
    seen.demand("absence and sequence", 120, 12);
}
