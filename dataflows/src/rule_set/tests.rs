//! States of sets: what is stored, adopted, forgotten and described.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::Scan;
use crate::capture::{decode, encode};
use crate::testing::{Kit, Line};

fn rule(id: u64, condition: Condition<Line>) -> SetRule<Line, (u64, i64)> {
    SetRule {
        is_fresh: false,
        id,
        filter: None,
        condition,
        emission: Emission::Immediate,
        suppress_ms: None,
        result: Box::new(move |line, _| (id, line.time)),
        absent: Box::new(move |_, first, _| (id, first.time.0)),
    }
}

fn count(at_least: usize) -> Condition<Line> {
    Condition::Count { at_least, within_ms: 100 }
}

fn set(rules: Vec<SetRule<Line, (u64, i64)>>) -> RuleSet<Line, (u64, i64)> {
    RuleSet::new(rules).expect("the set is valid")
}

/// Steps events at the times `times`, and returns the results.
fn step(
    set: &RuleSet<Line, (u64, i64)>,
    state: &mut SetState,
    times: std::ops::RangeInclusive<i64>,
) -> Vec<(u64, i64)> {
    let mut found = Vec::new();
    for time in times {
        set.step(state, &Line::from(("ann", time, time, "a")), &mut found);
    }
    found.into_iter().map(|found| found.answer).collect()
}

fn stored(state: &SetState) -> SetState {
    decode(&encode(state)).expect("what is encoded can be decoded")
}

#[test]
fn invalid_sets_are_refused() {
    let refused = |rules| RuleSet::<Line, _>::new(rules).err();
    assert_eq!(
        refused(vec![rule(1, count(2)), rule(2, count(2)), rule(1, count(3))]),
        Some(RuleSetError::Ambiguous(1))
    );
    let empty = Condition::Sequence { steps: Vec::new(), within_ms: 5, absent: None };
    assert_eq!(refused(vec![rule(4, empty)]), Some(RuleSetError::NoSteps(4)));
    assert_eq!(refused(Vec::new()), None);
}

#[test]
fn only_rules_that_considered_an_event_have_state() {
    let of_others = SetRule { filter: Some(Box::new(|line: &Line| line.time < 0)), ..rule(2, count(2)) };
    let set = set(vec![rule(3, count(2)), of_others, rule(1, Condition::Match)]);
    let mut state = SetState::default();
    assert_eq!(step(&set, &mut state, 1..=1), [(1, 1)]);
    assert_eq!(state.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [3]);
}

#[test]
fn a_state_is_adopted_with_other_rules_and_parameters() {
    let before = set(vec![rule(1, count(5)), rule(2, count(3)), rule(3, count(3)), rule(4, count(2))]);
    let mut state = SetState::default();
    step(&before, &mut state, 1..=4);
    let after = set(vec![
        rule(4, Condition::Match),
        rule(2, count(6)),
        rule(9, count(2)),
        rule(1, count(2)),
        rule(
            3,
            Condition::Sum {
                of: Box::new(|_| Some(1)),
                bound: crate::patterns::Bound::AtLeast(2),
                within_ms: 9,
            },
        ),
    ]);
    let mut adopted = after.adopt(stored(&state)).expect("the state is whole");
    assert_eq!(adopted.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [1, 2]);
    // Rule 1 has the last two times of four, and rule 2 the last three.
    let raised = step(&after, &mut adopted, 5..=7);
    assert_eq!(raised, [(1, 5), (4, 5), (3, 6), (4, 6), (9, 6), (2, 7), (4, 7)]);

    state.entries.swap(0, 2);
    assert!(after.adopt(state).is_err());
}

#[test]
fn a_longer_sequence_leaves_no_runs_that_are_too_long() {
    let sequence = |times| Condition::Sequence {
        steps: vec![Step { filter: Box::new(|_| true), times }],
        within_ms: 100,
        absent: None,
    };
    let (long, short) = (set(vec![rule(1, sequence(9))]), set(vec![rule(1, sequence(3))]));
    let mut state = SetState::default();
    assert_eq!(step(&long, &mut state, 1..=8), []);
    let mut adopted = short.adopt(stored(&state)).expect("the state is whole");
    assert_eq!(step(&short, &mut adopted, 9..=9), [(1, 9)]);
}

#[test]
fn rules_are_forgotten_by_id() {
    let set = set(vec![rule(7, count(3)), rule(5, count(2)), rule(6, Condition::Absence { within_ms: 3 })]);
    let mut state = SetState::default();
    step(&set, &mut state, 1..=2);
    let saved = encode(&state);
    let forget = |ids: &[u64]| forget_rules_by_id(ids, &saved).expect("the state is whole");
    assert_eq!(forget(&[]), Some(saved.clone()));
    assert_eq!(forget(&[5, 6, 7]), None);
    let rest: SetState = decode(&forget(&[6, 8]).expect("two rules are left")).expect("the rest is whole");
    assert_eq!(rest.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [5, 7]);
    assert!(forget_rules_by_id(&[5], &saved[1..]).is_err());
    assert_eq!(
        crate::forget_rules::<Line, (u64, i64), _>(&set, &[0, 1, 2], &saved).expect("the state is whole"),
        None,
        "by number, too"
    );
}

#[test]
fn states_are_described_by_the_index_of_their_rule() {
    let states: Rc<RefCell<Option<crate::KeyStates<Line>>>> = Rc::default();
    let handle = Rc::clone(&states);
    let share = Condition::Share {
        of: Box::new(|line: &Line| line.id == "a"),
        more_than_ppm: 400_000,
        at_least_events: 9,
        within_ms: 10,
    };
    let set = set(vec![rule(20, share), rule(30, count(4)), rule(10, Condition::Absence { within_ms: 5 })]);
    let mut kit = Kit::new(move |keyed| {
        *handle.borrow_mut() = Some(keyed.key_states());
        keyed.scan_all("Rules", set)
    });
    kit.push_at(5, Line::of("ann", "a"));
    kit.push_at(7, Line::of("ann", "b"));
    let mut described = Vec::new();
    states.borrow().as_ref().expect("the dataflow is built").visit("ann", &mut |_, part| {
        if let crate::StatePart::Rule { rule, description } = part {
            described.push((rule, description));
        }
    });
    described.sort_by_key(|(rule, _)| *rule);
    let share =
        Description::Share { hits: 1, n: 2, more_than_ppm: 400_000, at_least_events: 9, within_ms: 10 };
    assert_eq!(described[0], (0, share));
    assert_eq!(described[1], (1, Description::Count { count: 2, at_least: 4, within_ms: 100 }));
    assert_eq!(described[2], (2, Description::Runs { runs: vec![(EventTime(7), 1)], steps: 2 }));
}
