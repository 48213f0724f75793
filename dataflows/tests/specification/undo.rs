//! `undo` is the inverse of `step` and of `add`, and states that are the same can replace one another. Not all states can
//! be compared, so the tests compare their matches of later events.

use std::cell::Cell;
use std::fmt::Debug;

use headwater_dataflows::Pattern;
use headwater_dataflows::patterns::{Average, Bound, Frequency, Grouped, Outlier, Share, Sum};
use headwater_dataflows::windows::{Aggregate, Statistics, Summary};
use proptest::prelude::*;

use crate::event::{PLACES, Tx};
use crate::harness::{check, demand};
use crate::scan::{diversity, frequency, outlier, travel};
use crate::sequences::{related, unrelated};

/// A step with an event, or the undo of a number of steps.
#[derive(Clone, Debug)]
enum Move {
    Forward(Tx),
    Back(usize),
}

/// Generates an event whose time is relative to the previous event.
fn event() -> impl Strategy<Value = Tx> {
    let amount = prop::option::of(prop_oneof![4 => -9..9i64, 1 => any::<i64>()]);
    let merchant = prop::option::of(0..6u64);
    let place = prop::option::of(0..PLACES.len() as u8);
    (0..8i64, amount, merchant, place).prop_map(|(time, amount, merchant, place)| Tx {
        amount,
        merchant,
        place,
        ..Tx::plain(0, time, 0)
    })
}

fn moves() -> impl Strategy<Value = (Vec<Move>, Vec<Tx>)> {
    let step = prop_oneof![3 => event().prop_map(Move::Forward), 1 => (1..12usize).prop_map(Move::Back)];
    (prop::collection::vec(step, 0..40), prop::collection::vec(event(), 1..12))
}

/// Places an event after another: makes its time absolute, and sets its offset.
fn after(last: Option<&Tx>, event: &Tx) -> Tx {
    let (time, offset) = last.map_or((0, 0), |last| (last.time, last.offset + 1));
    Tx { time: time + event.time, offset, ..event.clone() }
}

/// Returns the matches of later events.
fn matches_of<P: Pattern<Tx>>(
    pattern: &P,
    state: &mut P::State,
    last: Option<&Tx>,
    probes: &[Tx],
) -> Vec<Option<P::Match>> {
    let mut last = last.cloned();
    let mut matches = Vec::new();
    for probe in probes {
        let event = after(last.as_ref(), probe);
        matches.push(pattern.step(state, &event).0);
        last = Some(event);
    }
    matches
}

/// Checks that, after any steps and undos, a pattern behaves as if it had only processed the steps that remain.
fn check_undo<P: Pattern<Tx>>(pattern: P)
where
    P::Match: PartialEq + Debug,
{
    check(file!(), moves(), |(moves, probes)| {
        let mut state = P::State::default();
        let mut taken: Vec<(Tx, P::Undo)> = Vec::new();
        let back = |state: &mut P::State, taken: &mut Vec<(Tx, P::Undo)>, n: usize| {
            for (event, undo) in taken.drain(taken.len().saturating_sub(n)..).rev() {
                pattern.undo(state, &event, undo);
            }
        };
        for step in &moves {
            match step {
                Move::Back(n) => back(&mut state, &mut taken, *n),
                Move::Forward(event) => {
                    let event = after(taken.last().map(|(event, _)| event), event);
                    let (_, undo) = pattern.step(&mut state, &event);
                    taken.push((event, undo));
                }
            }
        }
        let last = taken.last().map(|(event, _)| event);
        let mut fresh = P::State::default();
        for (event, _) in &taken {
            pattern.step(&mut fresh, event);
        }
        let want = matches_of(&pattern, &mut fresh, last, &probes);
        prop_assert_eq!(matches_of(&pattern, &mut state, last, &probes), want);
        Ok(())
    });
}

/// Checks that a pattern is in its initial state after all steps are undone.
fn check_full_undo<P: Pattern<Tx>>(pattern: P)
where
    P::Match: PartialEq + Debug,
{
    let events = prop::collection::vec(event(), 0..40);
    check(file!(), (events, prop::collection::vec(event(), 1..12)), |(events, probes)| {
        let mut state = P::State::default();
        let mut taken: Vec<(Tx, P::Undo)> = Vec::new();
        for event in &events {
            let event = after(taken.last().map(|(event, _)| event), event);
            let (_, undo) = pattern.step(&mut state, &event);
            taken.push((event, undo));
        }
        for (event, undo) in taken.into_iter().rev() {
            pattern.undo(&mut state, &event, undo);
        }
        let want = matches_of(&pattern, &mut P::State::default(), None, &probes);
        prop_assert_eq!(matches_of(&pattern, &mut state, None, &probes), want);
        Ok(())
    });
}

/// Checks that two states that are the same, of which one had an additional event, can replace one another in later
/// steps and undos.
fn check_same<P: Pattern<Tx>>(pattern: P)
where
    P::Match: PartialEq + Debug,
{
    let (tried, met) = (Cell::new(0), Cell::new(0));
    let events = prop::collection::vec(event(), 1..60);
    let input = (events, 0..20usize, prop::collection::vec(event(), 1..12));
    check(file!(), input, |(events, left_out, probes)| {
        tried.set(tried.get() + 1);
        let mut placed: Vec<Tx> = Vec::new();
        for event in &events {
            placed.push(after(placed.last(), event));
        }
        let (mut one, mut other) = (P::State::default(), P::State::default());
        let mut earlier = Vec::new();
        let mut later = placed.iter().enumerate();
        for (at, event) in later.by_ref() {
            earlier.push((event, pattern.step(&mut one, event).1));
            if at != left_out {
                pattern.step(&mut other, event);
            }
            if at >= left_out && pattern.same(&one, &other) {
                break;
            }
        }
        let matches = |state: &P::State| matches_of(&pattern, &mut state.clone(), placed.last(), &probes);
        if !pattern.same(&one, &other) {
            return Ok(());
        }
        met.set(met.get() + 1);
        let expected = matches(&other);
        prop_assert_eq!(&matches(&one), &expected);

        // Steps of one state, undone with the undo data of the other.
        let mut taken = Vec::new();
        let mut later_other = other.clone();
        for (_, event) in later {
            pattern.step(&mut one, event);
            taken.push((event, pattern.step(&mut later_other, event).1));
        }
        prop_assert!(
            pattern.same(&one, &later_other),
            "states that are the same differ after the same steps"
        );
        for (event, undo) in taken.into_iter().rev() {
            pattern.undo(&mut one, event, undo);
        }
        prop_assert_eq!(matches(&one), expected);

        // All steps of one state, undone from the other state.
        for (event, undo) in earlier.into_iter().rev() {
            pattern.undo(&mut other, event, undo);
        }
        prop_assert_eq!(matches(&other), matches(&P::State::default()));
        Ok(())
    });
    demand("states that become the same", tried.get(), &[("same", met.get(), 16)]);
}

#[test]
fn frequency_can_be_undone() {
    check_undo(frequency());
    check_undo(Frequency::at_least(1, 5));
    check_full_undo(Frequency::at_least(7, 30));
    check_same(frequency());
}

#[test]
fn diversity_can_be_undone() {
    check_undo(diversity());
    check_full_undo(diversity());
    check_same(diversity());
}

#[test]
fn outlier_can_be_undone() {
    check_undo(outlier());
    check_undo(Outlier::beyond(1.0, 2, 0.0, |event: &Tx| event.amount));
    check_full_undo(outlier());
    check_same(outlier());
}

#[test]
fn travel_can_be_undone() {
    check_undo(travel());
    check_full_undo(travel());
    check_same(travel());
}

#[test]
fn sequences_can_be_undone() {
    check_undo(unrelated());
    check_undo(related());
    check_full_undo(related());
    check_same(unrelated());
    check_same(related());
}

fn sum() -> Sum<impl Fn(&Tx) -> Option<i64>> {
    Sum::new(Bound::MoreThan(5), 20, |event: &Tx| event.amount)
}

fn average() -> Average<impl Fn(&Tx) -> Option<i64>> {
    Average::new(Bound::AtLeast(2), 2, 20, |event: &Tx| event.amount)
}

fn share() -> Share<impl Fn(&Tx) -> bool> {
    Share::more_than(500_000, 3, 20, |event: &Tx| event.place.is_some())
}

#[test]
fn sums_averages_and_shares_can_be_undone() {
    check_undo(sum());
    check_full_undo(sum());
    check_same(sum());
    check_undo(average());
    check_full_undo(average());
    check_same(average());
    check_undo(share());
    check_full_undo(share());
    check_same(share());
}

#[test]
fn grouped_patterns_can_be_undone() {
    let parity = |event: &Tx| event.merchant.map(|merchant| merchant % 2);
    check_undo(Grouped::by(frequency(), parity));
    check_full_undo(Grouped::by(diversity(), parity));
    check_same(Grouped::by(frequency(), parity));
}

fn statistics() -> Statistics<impl Fn(&Tx) -> Option<i64>, impl Fn(&Tx) -> Option<u64>> {
    Statistics::new(|event: &Tx| event.amount, |event: &Tx| event.merchant)
}

#[test]
fn statistics_can_be_undone() {
    check(file!(), moves(), |(moves, _)| {
        let statistics = statistics();
        let mut states = vec![Summary::default()];
        let mut taken = Vec::new();
        let mut state = states[0].clone();
        for step in moves {
            match step {
                Move::Forward(event) => {
                    let undo = statistics.add(&mut state, &event);
                    states.push(state.clone());
                    taken.push((event, undo));
                }
                Move::Back(n) => {
                    for _ in 0..n {
                        let Some((event, undo)) = taken.pop() else { break };
                        statistics.undo(&mut state, &event, undo);
                        states.pop();
                        prop_assert_eq!(Some(&state), states.last());
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn statistics_do_not_depend_on_order_and_can_be_merged() {
    let events = || prop::collection::vec(event(), 0..30);
    check(file!(), (events().prop_shuffle(), events()), |(one, other)| {
        let statistics = statistics();
        let state = |events: &mut dyn Iterator<Item = &Tx>| {
            let mut state = Default::default();
            for event in events {
                statistics.add(&mut state, event);
            }
            state
        };
        let all = state(&mut one.iter().chain(&other));
        prop_assert_eq!(&state(&mut other.iter().chain(&one).rev()), &all);
        let mut merged = state(&mut one.iter());
        statistics.merge(&mut merged, &state(&mut other.iter()));
        prop_assert_eq!(&merged, &all);
        Ok(())
    });
}
