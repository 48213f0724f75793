//! `undo` is the inverse of `step`, and of `add`, and states that are the same may stand for one another. Not all can be
//! compared, so what they do from then on is.

use std::cell::Cell;
use std::fmt::Debug;

use headwater_dataflows::Pattern;
use headwater_dataflows::patterns::{Frequency, Grouped, Outlier};
use headwater_dataflows::windows::{Aggregate, Statistics, Summary};
use proptest::prelude::*;

use crate::event::{PLACES, Tx};
use crate::harness::{check, demand};
use crate::scan::{diversity, frequency, outlier, travel};
use crate::sequences::{related, unrelated};

/// Steps forward with an event, or back over so many.
#[derive(Clone, Debug)]
enum Move {
    Forward(Tx),
    Back(usize),
}

/// An event whose time is how long after the one before it happened.
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

/// Puts events one after the other.
fn after(last: Option<&Tx>, event: &Tx) -> Tx {
    let (time, offset) = last.map_or((0, 0), |last| (last.time, last.offset + 1));
    Tx { time: time + event.time, offset, ..event.clone() }
}

/// What a pattern says of events to come.
fn said_of<P: Pattern<Tx>>(
    pattern: &P,
    state: &mut P::State,
    last: Option<&Tx>,
    probes: &[Tx],
) -> Vec<Option<P::Match>> {
    let mut last = last.cloned();
    let mut said = Vec::new();
    for probe in probes {
        let event = after(last.as_ref(), probe);
        said.push(pattern.step(state, &event).0);
        last = Some(event);
    }
    said
}

/// After any steps there and back, a pattern goes on as if it had only taken those that stand.
fn undoes<P: Pattern<Tx>>(pattern: P)
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
        let want = said_of(&pattern, &mut fresh, last, &probes);
        prop_assert_eq!(said_of(&pattern, &mut state, last, &probes), want);
        Ok(())
    });
}

/// After any steps there and all the way back, a pattern is at its beginning.
fn undoes_to_the_beginning<P: Pattern<Tx>>(pattern: P)
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
        let want = said_of(&pattern, &mut P::State::default(), None, &probes);
        prop_assert_eq!(said_of(&pattern, &mut state, None, &probes), want);
        Ok(())
    });
}

/// Where a state is the same with an event left out long ago as without, one goes on and back as the other does.
fn stands_in<P: Pattern<Tx>>(pattern: P)
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
        let said = |state: &P::State| said_of(&pattern, &mut state.clone(), placed.last(), &probes);
        if !pattern.same(&one, &other) {
            return Ok(());
        }
        met.set(met.get() + 1);
        let meeting = said(&other);
        prop_assert_eq!(&said(&one), &meeting);

        // Steps of the one, and back over those of the other.
        let mut taken = Vec::new();
        let mut later_other = other.clone();
        for (_, event) in later {
            pattern.step(&mut one, event);
            taken.push((event, pattern.step(&mut later_other, event).1));
        }
        prop_assert!(pattern.same(&one, &later_other), "states that have met do not part");
        for (event, undo) in taken.into_iter().rev() {
            pattern.undo(&mut one, event, undo);
        }
        prop_assert_eq!(said(&one), meeting);

        // The state of the other, and back over the steps of the one to the beginning.
        for (event, undo) in earlier.into_iter().rev() {
            pattern.undo(&mut other, event, undo);
        }
        prop_assert_eq!(said(&other), said(&P::State::default()));
        Ok(())
    });
    demand("states that met", tried.get(), &[("met", met.get(), 16)]);
}

#[test]
fn frequency_goes_back() {
    undoes(frequency());
    undoes(Frequency::at_least(1, 5));
    undoes_to_the_beginning(Frequency::at_least(7, 30));
    stands_in(frequency());
}

#[test]
fn diversity_goes_back() {
    undoes(diversity());
    undoes_to_the_beginning(diversity());
    stands_in(diversity());
}

#[test]
fn outlier_goes_back() {
    undoes(outlier());
    undoes(Outlier::beyond(1.0, 2, 0.0, |event: &Tx| event.amount));
    undoes_to_the_beginning(outlier());
    stands_in(outlier());
}

#[test]
fn travel_goes_back() {
    undoes(travel());
    undoes_to_the_beginning(travel());
    stands_in(travel());
}

#[test]
fn sequences_go_back() {
    undoes(unrelated());
    undoes(related());
    undoes_to_the_beginning(related());
    stands_in(unrelated());
    stands_in(related());
}

#[test]
fn a_pattern_by_group_goes_back() {
    let parity = |event: &Tx| event.merchant.map(|merchant| merchant % 2);
    undoes(Grouped::by(frequency(), parity));
    undoes_to_the_beginning(Grouped::by(diversity(), parity));
    stands_in(Grouped::by(frequency(), parity));
}

fn statistics() -> Statistics<impl Fn(&Tx) -> Option<i64>, impl Fn(&Tx) -> Option<u64>> {
    Statistics::new(|event: &Tx| event.amount, |event: &Tx| event.merchant)
}

#[test]
fn statistics_go_back() {
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
fn statistics_depend_on_no_order_and_merge_into_those_of_all() {
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
