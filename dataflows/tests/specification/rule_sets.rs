//! Sets of rules over random streams: any set has the results of each of its rules by the specification, and keeps them
//! when it is restored, also by another set.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use differential_dataflow::consolidation;
use headwater_dataflows::patterns::{Bound, Rate, Trip, Variety};
use headwater_dataflows::{
    Admission, Admit, Condition, Course, Emission, EventTime, Finding, Predicate, RuleSet, STATE_VERSION,
    Scan, SetRule, Step,
};
use proptest::prelude::*;

use crate::event::Tx;
use crate::harness::{Snapshots, check, demand, equal, run, snapshots, watermarks};
use crate::restore::{
    State, after, checkpoint, format_state, merge, parse_state, recorded_path, run_captured,
};
use crate::scan::{ADMISSION, deviation};
use crate::spec::admission::admit;
use crate::spec::patterns::{self, Answer, Fits, Found, trip};
use crate::spec::{answers, rules as spec};
use crate::streams::{Round, rounds, streams};
use crate::workers::recorded_input;

/// A kind of rule, with its specification: the results of a key's events, given the suppression.
struct Kind {
    what: &'static str,
    filter: Option<fn(&Tx) -> bool>,
    condition: fn() -> Condition<Tx>,
    results: fn(Option<i64>, &[Tx]) -> Vec<Answer>,
    /// True if the results wait for the watermark whatever the emission is.
    waits: bool,
    /// The least numbers of results and of revoked results in 64 streams.
    demanded: (usize, usize),
}

fn is_placed(event: &Tx) -> bool {
    event.place.is_some()
}

fn is_paid(event: &Tx) -> bool {
    event.amount > Some(0)
}

fn step(filter: fn(&Tx) -> bool, times: u32) -> Step<Tx> {
    Step { filter: Box::new(filter), times }
}

const PAID: Fits = |_, event| is_paid(event);
const PLACED: Fits = |_, event| is_placed(event);
const SOLD: Fits = |_, event| event.merchant.is_some();

const KINDS: &[Kind] = &[
    Kind {
        what: "match",
        filter: Some(|event| event.amount > Some(6)),
        condition: || Condition::Match,
        results: |suppress, events| spec::unsuppressed(suppress, spec::every(events)),
        waits: false,
        demanded: (40, 5),
    },
    Kind {
        what: "count",
        filter: None,
        condition: || Condition::Count { at_least: 3, within_ms: 12 },
        results: |suppress, events| spec::rising(suppress, spec::count(3, 12, events)),
        waits: false,
        demanded: (30, 5),
    },
    Kind {
        what: "count of some",
        filter: Some(is_placed),
        condition: || Condition::Count { at_least: 2, within_ms: 20 },
        results: |suppress, events| spec::rising(suppress, spec::count(2, 20, events)),
        waits: false,
        demanded: (30, 5),
    },
    Kind {
        what: "sum",
        filter: None,
        condition: || Condition::Sum {
            of: Box::new(|event: &Tx| event.amount),
            bound: Bound::MoreThan(7),
            within_ms: 15,
        },
        results: |suppress, events| spec::rising(suppress, spec::sum(7, 15, events)),
        waits: false,
        demanded: (30, 5),
    },
    Kind {
        what: "average",
        filter: Some(|event| event.merchant != Some(0)),
        condition: || Condition::Average {
            of: Box::new(|event: &Tx| event.amount),
            bound: Bound::AtLeast(2),
            at_least_events: 2,
            within_ms: 25,
        },
        results: |suppress, events| spec::rising(suppress, spec::average(2, 2, 25, events)),
        waits: false,
        demanded: (30, 5),
    },
    Kind {
        what: "distinct",
        filter: None,
        condition: || Condition::Distinct {
            of: Box::new(|event: &Tx| event.merchant),
            at_least: 3,
            within_ms: 20,
        },
        results: |suppress, events| spec::rising(suppress, spec::distinct(3, 20, events)),
        waits: false,
        demanded: (20, 3),
    },
    Kind {
        what: "share",
        filter: Some(|event| event.amount.is_some()),
        condition: || Condition::Share {
            of: Box::new(is_placed),
            more_than_ppm: 500_000,
            at_least_events: 2,
            within_ms: 25,
        },
        results: |suppress, events| spec::rising(suppress, spec::share(2, 2, 25, events)),
        waits: false,
        demanded: (30, 5),
    },
    Kind {
        what: "outlier",
        filter: None,
        condition: || Condition::Outlier {
            of: Box::new(|event: &Tx| event.amount),
            sigmas: 2.0,
            at_least: 3,
            min_sigma: 1.0,
            min_relative_sigma: 0.5,
            group_by: None,
        },
        results: |suppress, events| spec::unsuppressed(suppress, patterns::outlier(2, 3, 1, 2, events)),
        waits: false,
        demanded: (15, 3),
    },
    Kind {
        what: "outlier by group",
        filter: None,
        condition: || Condition::Outlier {
            of: Box::new(|event: &Tx| event.amount),
            sigmas: 2.0,
            at_least: 3,
            min_sigma: 1.0,
            min_relative_sigma: 0.5,
            group_by: Some(Box::new(|event: &Tx| Some(u64::from(event.place.is_some())))),
        },
        results: |suppress, events| {
            let (placed, others): (Vec<Tx>, Vec<Tx>) = events.iter().cloned().partition(is_placed);
            let mut matches = patterns::outlier(2, 3, 1, 2, &placed);
            matches.extend(patterns::outlier(2, 3, 1, 2, &others));
            matches.sort_by_key(|answer| (answer.time, answer.partition, answer.offset));
            spec::unsuppressed(suppress, matches)
        },
        waits: false,
        demanded: (8, 1),
    },
    Kind {
        what: "travel",
        filter: Some(|event| event.partition < 2),
        condition: || Condition::Travel { km: 50.0, kmh: 2e7, location: Box::new(Tx::location) },
        results: |suppress, events| spec::unsuppressed(suppress, patterns::travel(50.0, 2e7, events)),
        waits: false,
        demanded: (30, 4),
    },
    Kind {
        what: "sequence",
        filter: None,
        condition: || Condition::Sequence {
            steps: vec![step(is_paid, 2), step(is_placed, 1)],
            within_ms: 15,
            absent: None,
        },
        results: |suppress, events| {
            let matches = patterns::sequence(&[PAID, PAID, PLACED], usize::MAX, 15, events);
            spec::unsuppressed(suppress, spec::milestones(&[2, 1], matches))
        },
        waits: false,
        demanded: (20, 3),
    },
    Kind {
        what: "longer sequence",
        filter: Some(|event| event.merchant.is_some()),
        condition: || Condition::Sequence {
            steps: vec![step(is_paid, 1), step(is_placed, 3)],
            within_ms: 40,
            absent: None,
        },
        results: |suppress, events| {
            let matches = patterns::sequence(&[PAID, PLACED, PLACED, PLACED], usize::MAX, 40, events);
            spec::unsuppressed(suppress, spec::milestones(&[1, 3], matches))
        },
        waits: false,
        demanded: (4, 1),
    },
    Kind {
        what: "absence after one",
        filter: None,
        condition: || Condition::Sequence {
            steps: vec![step(is_paid, 1)],
            within_ms: 15,
            absent: Some(Box::new(is_placed)),
        },
        results: |suppress, events| {
            let matches = patterns::absence(&[PAID, PLACED], 8, 15, events);
            spec::unsuppressed(suppress, spec::milestones(&[1], matches))
        },
        waits: true,
        demanded: (30, 0),
    },
    Kind {
        what: "absence after three",
        filter: None,
        condition: || Condition::Sequence {
            steps: vec![step(is_paid, 2), step(|event| event.merchant.is_some(), 1)],
            within_ms: 40,
            absent: Some(Box::new(is_placed)),
        },
        results: |suppress, events| {
            let matches = patterns::absence(&[PAID, PAID, SOLD, PLACED], 8, 40, events);
            spec::unsuppressed(suppress, spec::milestones(&[2, 1], matches))
        },
        waits: true,
        demanded: (4, 0),
    },
    Kind {
        what: "absence",
        filter: Some(is_placed),
        condition: || Condition::Absence { within_ms: 12 },
        results: |suppress, events| spec::unsuppressed(suppress, spec::silence(12, events)),
        waits: true,
        demanded: (40, 0),
    },
];

/// A rule of a random set.
#[derive(Clone, Copy, Debug)]
struct Chosen {
    id: u64,
    /// The index of its kind.
    kind: usize,
    emission: Emission,
    suppress: Option<i64>,
}

/// A result, with the id of its rule.
type Of = (u64, Answer);

impl Chosen {
    fn kind(&self) -> &'static Kind {
        &KINDS[self.kind]
    }

    fn rule(self) -> SetRule<Tx, Of> {
        let Chosen { id, emission, suppress, .. } = self;
        SetRule {
            id,
            definition: self.kind as u64,
            filter: self.kind().filter.map(|filter| Box::new(filter) as Predicate<Tx>),
            condition: (self.kind().condition)(),
            emission,
            suppress_ms: suppress,
            result: Box::new(move |event, finding| (id, answer(event, finding))),
            absent: Box::new(move |key, anchor, finding| {
                let Finding::Absence { course, at } = finding else { unreachable!("the rule is an absence") };
                assert_eq!(*course.first, *anchor);
                let found = Found::Sequence(offsets(course));
                let (partition, offset) = (anchor.position.partition.0, anchor.position.offset.0);
                (id, Answer { key: *key, time: at.0 - 1, partition, offset, found })
            }),
        }
    }

    fn is_final(&self) -> bool {
        self.kind().waits || self.emission == Emission::Final
    }

    /// Returns the results of a key's events by the specification.
    fn results(&self, events: &[Tx]) -> Vec<Of> {
        let accepts = |event: &Tx| self.kind().filter.is_none_or(|filter| filter(event));
        let considered: Vec<Tx> = events.iter().filter(|event| accepts(event)).cloned().collect();
        let suppress = self.suppress.filter(|suppress| *suppress > 0);
        (self.kind().results)(suppress, &considered).into_iter().map(|answer| (self.id, answer)).collect()
    }
}

pub fn offsets(course: &Course) -> Vec<i64> {
    let all = std::iter::once(&course.first).chain(&course.completed);
    all.map(|anchor| anchor.position.offset.0).collect()
}

pub fn answer(event: &Tx, finding: &Finding) -> Answer {
    Answer::new(
        event,
        match finding {
            Finding::Match => Found::Match,
            Finding::Count(Rate { count, within_ms }) => Found::Rate { count: *count, within: *within_ms },
            Finding::Sum(total) | Finding::Average(total) => {
                Found::Total { sum: total.sum as i64, n: total.n as usize, within: total.within_ms }
            }
            Finding::Distinct(Variety { distinct, within_ms }) => {
                Found::Variety { distinct: *distinct, within: *within_ms }
            }
            Finding::Share(part) => {
                Found::Part { hits: part.hits as usize, n: part.n as usize, within: part.within_ms }
            }
            Finding::Outlier(found) => return deviation(event, *found),
            Finding::Travel(Trip { from, km, seconds, kmh }) => {
                trip(from.position.offset.0, *km, (seconds * 1000.0).round() as i64, *kmh)
            }
            Finding::Sequence(course) => Found::Sequence(offsets(course)),
            Finding::Absence { .. } => unreachable!("an absence has no event"),
        },
    )
}

fn set(chosen: &[Chosen]) -> RuleSet<Tx, Of> {
    RuleSet::new(chosen.iter().map(|rule| rule.rule()).collect()).expect("the ids differ")
}

/// Generates the rules of a set, in any order of ids. Some sets have more rules than `Live` can name.
fn chosen() -> impl Strategy<Value = Vec<Chosen>> {
    let emission = any::<bool>().prop_map(|now| if now { Emission::Immediate } else { Emission::Final });
    let suppress = prop_oneof![2 => Just(None), 1 => Just(Some(0)), 3 => (1..40i64).prop_map(Some)];
    let rule = (0..KINDS.len(), emission, suppress);
    let size = prop_oneof![4 => 1..20usize, 1 => 64..80usize];
    let rules = size.prop_flat_map(move |size| prop::collection::vec(rule.clone(), size));
    rules.prop_map(|rules| {
        let numbered = (0u64..).zip(rules);
        // 101 is prime, so the ids differ.
        let rule = |(n, (kind, emission, suppress))| Chosen { id: n * 37 % 101, kind, emission, suppress };
        numbered.map(rule).collect()
    })
}

/// Returns the results at each epoch by the specification.
fn expected(rounds: &[Round], chosen: &[Chosen]) -> Snapshots<Of> {
    let admitted = admit(rounds, ADMISSION.dedup_horizon_ms).rounds;
    let rules = chosen.to_vec();
    let all = answers(&admitted, move |events| rules.iter().flat_map(|rule| rule.results(events)).collect());
    let waiting: BTreeSet<u64> = chosen.iter().filter(|rule| rule.is_final()).map(|rule| rule.id).collect();
    let at_epoch = |(all, watermark): (BTreeMap<Of, isize>, i64)| {
        let given = |((id, answer), _): &(Of, isize)| !waiting.contains(id) || answer.time <= watermark;
        all.into_iter().filter(given).collect()
    };
    all.into_iter().zip(watermarks(rounds)).map(at_epoch).collect()
}

#[test]
fn a_set_has_the_results_of_each_of_its_rules() {
    // The number of streams, results and revoked results by kind of rule.
    let seen = RefCell::new(vec![(0, 0); KINDS.len()]);
    let streams_seen = RefCell::new(0);
    check(file!(), (streams(), chosen()), |((rounds, workers), chosen)| {
        let rules = chosen.clone();
        let mut got = run(workers, &rounds, move |events, control| {
            events.admit(control, ADMISSION).0.scan_all("Rules", set(&rules))
        });
        equal("rule set", &snapshots(rounds.len(), &got), &expected(&rounds, &chosen))?;

        let by_id: BTreeMap<u64, Chosen> = chosen.iter().map(|rule| (rule.id, *rule)).collect();
        consolidation::consolidate_updates(&mut got);
        *streams_seen.borrow_mut() += 1;
        for ((id, answer), _, diff) in got {
            let (given, revoked) = &mut seen.borrow_mut()[by_id[&id].kind];
            *if diff > 0 { given } else { revoked } += 1;
            prop_assert!(diff > 0 || !by_id[&id].is_final(), "a final result was retracted: {answer:?}");
        }
        Ok(())
    });
    for (kind, (given, revoked)) in KINDS.iter().zip(seen.into_inner()) {
        let counts = [("given", given, kind.demanded.0), ("revoked", revoked, kind.demanded.1)];
        demand(kind.what, *streams_seen.borrow(), &counts);
    }
}

/// A set is restored by one with fewer rules, in another order: those that both have go on as if nothing had happened.
#[test]
fn a_restored_set_keeps_the_rules_that_it_still_has() {
    let counts = RefCell::new((0, 0, 0));
    let cases = (rounds(), chosen().prop_shuffle(), 0..8usize, prop::array::uniform2(1..=3usize));
    let cases = (cases, any::<prop::sample::Index>(), prop::option::of(Just(200)));
    check(file!(), cases, |((mut rounds, before, left_out, workers), marked, ttl_ms)| {
        let admission = Admission { ttl_ms, ..ADMISSION };
        let mark = marked.index(rounds.len());
        let said = watermarks(&rounds);
        rounds[mark].watermark = Some(said[mark]);
        rounds[mark].checkpoint = true;
        let run = |from, workers, rules: Vec<Chosen>| {
            run_captured(&rounds, workers, from, move |captures, events, control| {
                captures.admit("Admit", events, control, admission).0.scan_all("Rules", set(&rules))
            })
        };
        let uninterrupted = run(None, workers[0], before.clone());
        let state = merge(State::new(), &uninterrupted.captured, mark as u64);
        let after: Vec<Chosen> = before.iter().rev().skip(left_out).copied().collect();
        let common: BTreeSet<u64> = after.iter().map(|rule| rule.id).collect();
        let restored = run(Some(checkpoint(&state, &rounds, mark as u64)), workers[1], after);
        let later = |changes: Vec<(Of, u64, isize)>| -> Vec<(Of, u64, isize)> {
            let common = |change: &(Of, u64, isize)| change.1 > mark as u64 && common.contains(&change.0.0);
            changes.into_iter().filter(common).collect()
        };
        let (got, want) = (later(restored.changes), later(uninterrupted.changes));
        let revoked = got.iter().filter(|(_, _, diff)| *diff < 0).count();
        let (streams, given, all_revoked) = &mut *counts.borrow_mut();
        (*streams, *given, *all_revoked) =
            (*streams + 1, *given + got.len() - revoked, *all_revoked + revoked);
        prop_assert_eq!(got, want, "restored from epoch {}", mark);
        Ok(())
    });
    let (streams, given, revoked) = counts.into_inner();
    demand("restored sets", streams, &[("given", given, 300), ("revoked", revoked, 10)]);
}

/// The recorded state of every version is kept forever, as that of the other operators:
/// `recorded_state_of_every_version_is_restored`. Version 1 has two forms: with and without the definitions of rules.
#[test]
fn recorded_state_of_sets_is_restored() {
    let mut rounds = recorded_input(include_str!("recorded/input.txt")).expect("the recorded input is valid");
    let half = rounds.len() / 2;
    rounds[half].checkpoint = true;
    let kind = |kind| {
        let suppress = (kind % 2 == 0).then_some(20);
        Chosen { id: 1000 - kind as u64, kind, emission: Emission::Immediate, suppress }
    };
    let chosen: Vec<Chosen> = (0..KINDS.len()).map(kind).collect();
    let run = |from, workers| {
        let rules = chosen.clone();
        run_captured(&rounds, workers, from, move |captures, events, control| {
            captures.admit("Admit", events, control, ADMISSION).0.scan_all("Rules", set(&rules))
        })
    };
    let uninterrupted = run(None, 2);
    let state = format_state(&merge(State::new(), &uninterrupted.captured, half as u64));
    let today = recorded_path("defined-rule-set", STATE_VERSION);
    if std::env::var_os("HEADWATER_RECORD").is_some() && !today.exists() {
        std::fs::write(&today, &state).expect("the recorded state is writable");
    }
    let recorded = std::fs::read_to_string(&today).expect("the state is recorded");
    assert!(recorded == state, "the state format has changed without a new version");
    let defined = (1..=STATE_VERSION).map(|version| recorded_path("defined-rule-set", version));
    for path in defined.chain([recorded_path("rule-set", 1)]) {
        let text = std::fs::read_to_string(&path).expect("the state of the version is recorded");
        let state = parse_state(&text).expect("the recorded state is valid");
        let again = run(Some(checkpoint(&state, &rounds, half as u64)), 3);
        assert_eq!(again.changes, after(&uninterrupted.changes, half as u64), "{}", path.display());
        assert!(again.changes.len() > 10, "there are too few changes after the checkpoint");
    }
}

#[test]
fn an_absence_that_ends_lets_those_happen_that_it_suppressed() {
    use headwater_dataflows::testing::{Kit, Line};
    let is = |what: &'static str| move |line: &Line| line.id == what;
    let rule = SetRule {
        id: 1,
        definition: 1,
        filter: None,
        condition: Condition::Sequence {
            steps: vec![Step { filter: Box::new(is("order")), times: 1 }],
            within_ms: 10,
            absent: Some(Box::new(is("payment"))),
        },
        emission: Emission::Immediate,
        suppress_ms: Some(20),
        result: Box::new(|_, _| unreachable!("an absence has no event")),
        absent: Box::new(|_, order, finding| match finding {
            Finding::Absence { at, .. } => (order.time, *at),
            _ => unreachable!("the rule is an absence"),
        }),
    };
    let set = RuleSet::new(vec![rule]).expect("there is one rule");
    let mut kit = Kit::new(|keyed| keyed.scan_all("Rules", set));
    kit.push_at(1, Line::of("ann", "order"));
    kit.push_at(4, Line::of("ann", "payment"));
    kit.push_at(5, Line::of("ann", "order"));
    kit.push_at(9, Line::of("ann", "order")); // suppressed by the one before
    kit.push_at(26, Line::of("ann", "order"));
    kit.advance_watermark(3);
    kit.expect_raised([]);
    kit.retract(Line::from(("ann", 5, 2, "order"))); // the one at 9 is raised in its place
    kit.advance_watermark(40);
    kit.expect_raised([(EventTime(9), EventTime(19))]); // that at 26 would end at 36, before 39
    kit.finish();
}
