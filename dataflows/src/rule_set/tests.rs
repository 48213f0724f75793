//! States of sets: what is stored, adopted, forgotten and described.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::capture::{decode, encode};
use crate::testing::{Kit, Line};
use crate::{Offset, Scan, Since};

fn rule(id: u64, condition: Condition<Line>) -> SetRule<Line, (u64, i64)> {
    SetRule {
        id,
        definition: 1,
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
        set.step(state, &Line::from(("ann", time, time, "a")), &mut None, &mut found);
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
    assert_eq!(state.entries.iter().map(|entry| entry.id()).collect::<Vec<_>>(), [3]);
}

/// Returns the rule with another definition.
fn other(definition: u64, rule: SetRule<Line, (u64, i64)>) -> SetRule<Line, (u64, i64)> {
    SetRule { definition, ..rule }
}

fn sum_of_ones() -> Condition<Line> {
    Condition::Sum { of: Box::new(|_| Some(1)), bound: crate::patterns::Bound::AtLeast(2), within_ms: 9 }
}

#[test]
fn a_state_is_adopted_with_other_rules_and_parameters() {
    let before = set(vec![rule(1, count(5)), rule(2, count(3)), rule(3, count(3)), rule(4, count(2))]);
    let mut state = SetState::default();
    step(&before, &mut state, 1..=4);
    let after = set(vec![
        other(2, rule(4, Condition::Match)),
        other(2, rule(2, count(6))),
        rule(9, count(2)),
        other(2, rule(1, count(2))),
        other(2, rule(3, sum_of_ones())),
    ]);
    let mut adopted = after.adopt(stored(&state)).expect("the state is whole");
    assert_eq!(adopted.entries.iter().map(|entry| entry.id()).collect::<Vec<_>>(), [1, 2, 3, 4]);
    // Rule 1 has the last two times of four, and rule 2 the last three. Rule 3 has a state of another kind.
    let raised = step(&after, &mut adopted, 5..=7);
    assert_eq!(raised, [(1, 5), (4, 5), (3, 6), (4, 6), (9, 6), (2, 7), (4, 7)]);

    state.entries.swap(0, 2);
    assert!(after.adopt(state).is_err());
}

/// The bytes of a state that was stored before there were definitions: rule 1 has counted the times 1 and 2, and its
/// results are suppressed up to 9.
const UNDEFINED: &[u8] = &[1, 1, 1, 1, 18, 1, 2, 2, 4, 0, 0];

#[test]
fn a_state_stored_without_definition_is_adopted_at_the_first_step() {
    let saved: SetState = decode(UNDEFINED).expect("the state can be decoded");
    assert_eq!(saved.entries[0].until, 9);
    assert_eq!(encode(&saved), UNDEFINED);
    let suppressed = || SetRule { suppress_ms: Some(10), ..rule(1, count(2)) };
    let set = set(vec![suppressed()]);
    let mut state = set.adopt(saved).expect("the state is whole");
    assert_eq!(state.entries[0].identity.definition, None);
    assert_eq!(step(&set, &mut state, 8..=9), [(1, 9)]);
    assert_eq!(stored(&state).entries[0].identity.definition, Some(1));
}

#[test]
fn an_undone_step_restores_the_state_of_the_definition_before() {
    let conditions: [fn(usize) -> Condition<Line>; 4] = [
        count,
        |n| Condition::Distinct { of: Box::new(|line| Some(line.time as u64)), at_least: n, within_ms: 100 },
        |n| Condition::Sequence {
            steps: vec![Step { filter: Box::new(|_| true), times: n as u32 }],
            within_ms: 100,
            absent: None,
        },
        |n| if n > 4 { count(n) } else { sum_of_ones() },
    ];
    for condition in conditions {
        let suppressed = |n, suppress_ms| SetRule { suppress_ms, ..rule(1, condition(n)) };
        let before = set(vec![suppressed(7, Some(50))]);
        let after = set(vec![other(2, suppressed(3, Some(1)))]);
        let mut state = SetState::default();
        step(&before, &mut state, 1..=8);
        let saved = encode(&state);
        let line = |time| Line::from(("ann", time, time, "a"));
        let mut undos = vec![Vec::new(); 52];
        for (time, undo) in (9..).zip(&mut undos) {
            after.step(&mut state, &line(time), undo, &mut Vec::new());
        }
        assert_ne!(encode(&state), saved);
        for (time, undo) in (9..).zip(undos).collect::<Vec<_>>().into_iter().rev() {
            after.undo(&mut state, &line(time), undo.into_iter().flatten());
        }
        assert_eq!(encode(&state), saved);
    }
}

/// Returns the beginning of a version, with all events so far in one partition.
fn since(epoch: u64, end: i64, last_time: i64) -> Since {
    Since { epoch: Epoch(epoch), ends: vec![Offset(end)], last_time: EventTime(last_time) }
}

#[test]
fn versions_that_contradict_earlier_ones_are_refused() {
    let silence = || Condition::Absence { within_ms: 9 };
    let set = set(vec![rule(5, count(2)), rule(3, silence()), rule(4, count(2))]);
    let versions = set.versions();
    assert_eq!(
        versions.add(since(4, 9, 9), vec![rule(7, count(2)), rule(3, silence()), rule(5, count(3))]),
        Ok(vec![3, 1, 0])
    );
    let refused = |since, rule| versions.add(since, vec![rule]).err();
    assert_eq!(refused(since(5, 9, 9), rule(4, count(2))), Some(RuleSetError::Reused(4)));
    let changed = Some(RuleSetError::ChangedAbsence(3));
    assert_eq!(refused(since(5, 9, 9), other(2, rule(3, silence()))), changed);
    assert_eq!(refused(since(5, 9, 9), other(2, rule(3, count(2)))), changed);
    let unordered = RuleSetError::Unordered { epoch: Epoch(3), newest: Epoch(4) };
    assert_eq!(refused(since(3, 9, 9), rule(8, count(2))), Some(unordered));
    assert_eq!(
        versions.add(since(4, 9, 9), vec![rule(8, silence())]),
        Ok(vec![4]),
        "refused ones left nothing"
    );
}

#[test]
fn versions_and_states_that_are_not_needed_are_forgotten() {
    let mut set = set(vec![rule(0, count(9)), rule(1, count(9))]);
    let versions = set.versions();
    let mut state = SetState::default();
    step(&set, &mut state, 0..=9);
    for n in 1..=100 {
        let rules = vec![other(n, rule(0, count(9 + n as usize))), rule(n + 1, count(9))];
        let numbers = versions.add(since(n, 10 * n as i64, 10 * n as i64 - 1), rules).expect("it can follow");
        assert_eq!(numbers, [0, n as u32 + 1]);
        assert!(!set.begin(Epoch(n)) && !set.begin(Epoch(n + 1)), "no absence is removed");
        step(&set, &mut state, 10 * n as i64..=10 * n as i64 + 9);
        // One event of the version before is not final.
        assert!(!set.forget(EventTime(10 * n as i64 - 2)));
        assert_eq!(set.versions.ids().len(), 3);
        assert!(set.forget(EventTime(10 * n as i64 - 1)));
        set.sweep(&mut state);
        assert_eq!(state.entries.iter().map(|entry| entry.id()).collect::<Vec<_>>(), [0, n + 1]);
    }
    assert_eq!(set.versions.ids(), [(0, 0), (101, 101)]);
}

#[test]
fn only_absences_of_removed_rules_are_not_emitted() {
    let mut versions = None;
    let is =
        |what: &'static str| Some(Box::new(move |line: &Line| line.id.starts_with(what)) as Predicate<Line>);
    let silence = |id| SetRule { filter: is("a"), ..rule(id, Condition::Absence { within_ms: 10 }) };
    let last = |id| SetRule { filter: is("b"), emission: Emission::Final, ..rule(id, count(2)) };
    let mut kit = Kit::new(|keyed| {
        let set = set(vec![silence(1), last(2), silence(3)]);
        versions = Some(set.versions());
        keyed.scan_all("Rules", set)
    });
    let versions = versions.expect("the dataflow is built");
    // Epochs 0 to 4. The first absence is emitted in the epoch of the change.
    kit.push_at(1, Line::of("ann", "a1"));
    kit.push_at(20, Line::of("ann", "a2"));
    kit.push_at(21, Line::of("ann", "b1"));
    kit.push_at(25, Line::of("ann", "b2"));
    kit.advance_watermark(10);
    kit.expect_raised([(1, 1), (3, 1)]);
    versions.add(since(4, 4, 25), vec![silence(3)]).expect("the version can follow");
    // The results of rule 2 are still corrected, by events that it judges only.
    kit.push_at(22, Line::of("ann", "b3"));
    kit.retract(Line::from(("ann", 21, 2, "b1")));
    kit.push_at(28, Line::of("ann", "a3"));
    kit.advance_watermark(100);
    kit.expect_raised([(3, 28)]);
    kit.finish();
}

#[test]
fn a_late_event_is_judged_by_its_own_version() {
    let mut versions = None;
    let mut kit = Kit::new(|keyed| {
        let set = set(vec![rule(1, count(3)), rule(2, count(2))]);
        versions = Some(set.versions());
        keyed.scan_all("Rules", set)
    });
    let versions = versions.expect("the dataflow is built");
    kit.push_at(10, Line::of("ann", "a"));
    kit.push_at(30, Line::of("ann", "b"));
    kit.expect_raised([(2, 30)]);
    versions.add(since(1, 2, 30), vec![other(2, rule(1, count(2)))]).expect("the version can follow");
    kit.push_at(20, Line::of("ann", "c")); // Rule 2 does not see it. For rule 1, two are enough here, and held at 30.
    kit.expect_raised([(1, 20)]);
    kit.push_at(15, Line::of("ann", "d"));
    kit.expect_raised([(1, 15)]);
    kit.expect_revoked([(1, 20)]);
    kit.finish();
}

#[test]
fn a_longer_sequence_leaves_no_runs_that_are_too_long() {
    let sequence = |times| Condition::Sequence {
        steps: vec![Step { filter: Box::new(|_| true), times }],
        within_ms: 100,
        absent: None,
    };
    let (long, short) = (set(vec![rule(1, sequence(9))]), set(vec![other(2, rule(1, sequence(3)))]));
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
    assert_eq!(rest.entries.iter().map(|entry| entry.id()).collect::<Vec<_>>(), [5, 7]);
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
