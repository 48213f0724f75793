//! Sets of rules that change while the dataflow runs, over random streams: each event is judged by the version that its
//! position belongs to, at every step and after a restore.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use differential_dataflow::consolidation;
use headwater_dataflows::patterns::Bound;
use headwater_dataflows::{
    Admit, Condition, Emission, Epoch, EventTime, Finding, Offset, Predicate, RuleSet, Scan, SetRule, Since,
    Step,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::event::Tx;
use crate::harness::{Before, Snapshots, check, demand, equal, run_from, snapshots, watermarks};
use crate::restore::{State, after, checkpoint, merge, run_captured_with};
use crate::rule_sets::{answer, offsets};
use crate::scan::ADMISSION;
use crate::spec::admission::admit;
use crate::spec::answers;
use crate::spec::patterns::{Answer, Found};
use crate::spec::versions::{Chosen, Filter, Judge, Of, Version, emitted, is_paid, is_placed, results};
use crate::streams::{Round, rounds, streams};

const KINDS: usize = 12;

/// Returns a condition of a kind. All conditions of a kind have states of the same kind.
fn judge(kind: usize, n: usize, within: i64) -> Judge {
    match kind {
        0 => Judge::Match,
        1 => Judge::Count { n, within },
        2 => Judge::Sum { more_than: 3 * n as i64, within },
        3 => Judge::Average { at_least: n as i64, events: 1 + n % 2, within },
        4 => Judge::Distinct { n, within },
        5 => Judge::Share { parts: [2, 4][n % 2], events: n, within },
        6 => Judge::Outlier { at_least: 1 + n, by_place: false },
        7 => Judge::Outlier { at_least: 1 + n, by_place: true },
        8 => Judge::Travel { km: [10, 50, 500, 5000][n % 4] },
        9 => Judge::Sequence { paid: 1 + n % 3, placed: n / 2, within },
        10 => Judge::Unplaced { within },
        _ => Judge::Silence { within },
    }
}

fn condition(judge: Judge) -> Condition<Tx> {
    let step = |filter: fn(&Tx) -> bool, times: usize| Step { filter: Box::new(filter), times: times as u32 };
    let amount = || Box::new(|event: &Tx| event.amount);
    match judge {
        Judge::Match => Condition::Match,
        Judge::Count { n, within } => Condition::Count { at_least: n, within_ms: within },
        Judge::Sum { more_than, within } => {
            Condition::Sum { of: amount(), bound: Bound::MoreThan(more_than), within_ms: within }
        }
        Judge::Average { at_least, events, within } => Condition::Average {
            of: amount(),
            bound: Bound::AtLeast(at_least),
            at_least_events: events as u64,
            within_ms: within,
        },
        Judge::Distinct { n, within } => {
            Condition::Distinct { of: Box::new(|event: &Tx| event.merchant), at_least: n, within_ms: within }
        }
        Judge::Share { parts, events, within } => Condition::Share {
            of: Box::new(is_placed),
            more_than_ppm: 1_000_000 / parts as u32,
            at_least_events: events as u64,
            within_ms: within,
        },
        Judge::Outlier { at_least, by_place } => Condition::Outlier {
            of: amount(),
            sigmas: 2.0,
            at_least: at_least as u64,
            min_sigma: 1.0,
            min_relative_sigma: 0.5,
            group_by: by_place.then(|| Box::new(|event: &Tx| Some(u64::from(is_placed(event)))) as _),
        },
        Judge::Travel { km } => {
            Condition::Travel { km: km as f64, kmh: 2e7, location: Box::new(Tx::location) }
        }
        Judge::Sequence { paid, placed, within } => {
            let steps = [(is_paid as fn(&Tx) -> bool, paid), (is_placed, placed)];
            let steps = steps.into_iter().filter(|(_, times)| *times > 0);
            let steps = steps.map(|(filter, times)| step(filter, times)).collect();
            Condition::Sequence { steps, within_ms: within, absent: None }
        }
        Judge::Unplaced { within } => Condition::Sequence {
            steps: vec![step(is_paid, 1)],
            within_ms: within,
            absent: Some(Box::new(is_placed)),
        },
        Judge::Silence { within } => Condition::Absence { within_ms: within },
    }
}

pub fn set_rule(chosen: &Chosen) -> SetRule<Tx, Of> {
    let Chosen { id, version, judge, filter, suppress, emission } = *chosen;
    let mut definition = DefaultHasher::new();
    (judge, filter, suppress).hash(&mut definition);
    SetRule {
        id,
        definition: definition.finish(),
        filter: (filter != Filter::All)
            .then(|| Box::new(move |event: &Tx| filter.accepts(event)) as Predicate<Tx>),
        condition: condition(judge),
        emission,
        suppress_ms: suppress,
        result: Box::new(move |event, finding| (id, version, answer(event, finding))),
        absent: Box::new(move |key, anchor, finding| {
            let Finding::Absence { course, at } = finding else { unreachable!("the rule is an absence") };
            let found = Found::Sequence(offsets(course));
            let (partition, offset) = (anchor.position.partition.0, anchor.position.offset.0);
            (id, version, Answer { key: *key, time: at.0 - 1, partition, offset, found })
        }),
    }
}

/// Returns a set of the version `first`, and the function that adds each later version at the latest possible time. Those
/// of the epochs up to `restored` are added at once.
fn set(versions: &[Version], first: usize, restored: Option<u64>) -> (RuleSet<Tx, Of>, Before) {
    let rules = |version: &Version| version.rules.iter().map(set_rule).collect();
    let set = RuleSet::new(rules(&versions[first])).expect("the rules are valid");
    let handle = set.versions();
    let mut later: VecDeque<Version> = versions[first + 1..].iter().cloned().collect();
    let mut before = move |epoch: Epoch| {
        let begins = |version: &Version| version.since.as_ref().is_some_and(|since| since.epoch < epoch);
        while later.front().is_some_and(begins) {
            let version = later.pop_front().expect("there is a first one");
            let since = version.since.clone().expect("only the first version has no beginning");
            handle.add(since, rules(&version)).expect("the version can follow");
        }
    };
    if let Some(restored) = restored {
        before(Epoch(restored + 1));
    }
    (set, Box::new(before))
}

/// The random properties of a rule.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    pub kind: usize,
    n: usize,
    within: i64,
    filter: Filter,
    suppress: Option<i64>,
    emission: Emission,
}

impl Draw {
    pub fn chosen(self, id: u64, version: usize, kind: usize) -> Chosen {
        let Draw { n, within, filter, suppress, emission, .. } = self;
        Chosen { id, version, judge: judge(kind, n, within), filter, suppress, emission }
    }
}

/// The effect of a change of the set on a rule.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Stays,
    Removed,
    /// It has other parameters, filter, suppression and emission, and the same id unless it is an absence.
    Changed(Draw),
    /// It has another id, and nothing else.
    Renewed,
}

#[derive(Clone, Debug)]
struct Change {
    at: Index,
    fates: Vec<Fate>,
    added: Vec<Draw>,
    /// True if partitions without events so far are not listed.
    is_short: bool,
}

pub fn draw() -> impl Strategy<Value = Draw> {
    let filter = prop_oneof![
        3 => Just(Filter::All),
        1 => Just(Filter::Placed),
        1 => Just(Filter::Paid),
        1 => (0..3u64).prop_map(Filter::Others),
    ];
    let suppress = prop_oneof![1 => Just(None), 1 => (1..40i64).prop_map(Some)];
    let emission = prop_oneof![Just(Emission::Immediate), Just(Emission::Final)];
    (0..KINDS, 1..5usize, 3..40i64, filter, suppress, emission).prop_map(
        |(kind, n, within, filter, suppress, emission)| Draw { kind, n, within, filter, suppress, emission },
    )
}

fn changes() -> impl Strategy<Value = (Vec<Draw>, Vec<Change>)> {
    let fate = prop_oneof![
        4 => Just(Fate::Stays),
        1 => Just(Fate::Removed),
        3 => draw().prop_map(Fate::Changed),
        1 => Just(Fate::Renewed),
    ];
    let fates = prop::collection::vec(fate, 24);
    let change = (any::<Index>(), fates, prop::collection::vec(draw(), 0..4), any::<bool>());
    let change = change.prop_map(|(at, fates, added, is_short)| Change { at, fates, added, is_short });
    let size = prop_oneof![1 => Just(0), 8 => 1..14usize, 1 => 64..80usize];
    let first = size.prop_flat_map(|size| prop::collection::vec(draw(), size));
    (first, prop::collection::vec(change, 0..5))
}

/// Returns the beginning of the version that is in force after this epoch.
pub fn since(rounds: &[Round], epoch: usize, is_short: bool) -> Since {
    let read = rounds[..=epoch].iter().flat_map(|round| &round.updates);
    let mut ends = vec![Offset(0); 3];
    for (event, _) in read {
        let end = &mut ends[event.partition as usize];
        end.0 = end.0.max(event.offset + 1);
    }
    // Corrections come later, at the same positions.
    let all = rounds.iter().flat_map(|round| &round.updates).map(|(event, _)| event);
    let before = all.filter(|event| event.offset < ends[event.partition as usize].0);
    let last_time = before.map(|event| EventTime(event.time)).max().unwrap_or(EventTime::MIN);
    while is_short && ends.last() == Some(&Offset(0)) {
        ends.pop();
    }
    Since { epoch: Epoch(epoch as u64), ends, last_time }
}

fn versions(rounds: &[Round], first: &[Draw], changes: &[Change]) -> Vec<Version> {
    // 10007 is prime, so the ids differ, and new rules lie among the others.
    let mut ids = (0u64..).map(|n| n * 7919 % 10007);
    let mut id = || ids.next().expect("there are infinitely many");
    let mut rules: Vec<(Chosen, usize)> =
        first.iter().map(|draw| (draw.chosen(id(), 0, draw.kind), draw.kind)).collect();
    let of = |rules: &[(Chosen, usize)]| rules.iter().map(|(rule, _)| *rule).collect();
    let mut versions = vec![Version { since: None, rules: of(&rules) }];
    let mut changes = changes.to_vec();
    changes.sort_by_key(|change| change.at.index(rounds.len()));
    for (version, change) in (1..).zip(changes) {
        let mut next = Vec::new();
        for ((rule, kind), fate) in rules.into_iter().zip(change.fates.iter().cycle()) {
            // The version of an absence is the first that has the rule.
            let same = if rule.judge.is_absence() { rule } else { Chosen { version, ..rule } };
            let rule = match fate {
                Fate::Stays => same,
                Fate::Removed => continue,
                Fate::Changed(draw) if rule.judge.is_absence() => draw.chosen(id(), version, kind),
                Fate::Changed(draw) => draw.chosen(rule.id, version, kind),
                Fate::Renewed => Chosen { id: id(), version, ..rule },
            };
            next.push((rule, kind));
        }
        next.extend(change.added.iter().map(|draw| (draw.chosen(id(), version, draw.kind), draw.kind)));
        next.reverse();
        rules = next;
        let since = since(rounds, change.at.index(rounds.len()), change.is_short);
        versions.push(Version { since: Some(since), rules: of(&rules) });
    }
    versions
}

/// Returns the results at each epoch by the specification.
fn expected(rounds: &[Round], versions: &[Version]) -> Snapshots<Of> {
    let admitted = admit(rounds, ADMISSION.dedup_horizon_ms).rounds;
    let of = versions.to_vec();
    let all = answers(&admitted, move |events| results(&of, events));
    let watermarks = watermarks(rounds);
    let at_epoch = |(epoch, all)| emitted(all, epoch, &watermarks);
    all.into_iter().enumerate().map(at_epoch).collect()
}

/// Returns the number of absences that are never emitted because their rule was removed.
fn dropped(rounds: &[Round], versions: &[Version], expected: &Snapshots<Of>) -> usize {
    let kept: Vec<Version> = versions.to_vec();
    let events = admit(rounds, ADMISSION.dedup_horizon_ms).rounds;
    let all = answers(&events, move |events| results(&kept, events)).pop().unwrap_or_default();
    let last = expected.last().expect("there is a last epoch");
    all.keys().filter(|(result, _, until)| until.is_some() && !last.contains_key(result)).count()
}

#[test]
fn each_event_is_judged_by_its_version() {
    // The numbers of streams, results, revoked results, results of later versions, and absences that were dropped.
    let counts = RefCell::new([0; 5]);
    check(file!(), (streams(), changes()), |((rounds, workers), (first, changes))| {
        let versions = versions(&rounds, &first, &changes);
        let of = versions.clone();
        let mut got = run_from(Epoch(0), workers, &rounds, move |events, control| {
            let (set, before) = set(&of, 0, None);
            (events.admit(control, ADMISSION).0.scan_all("Rules", set), before)
        });
        let expected = expected(&rounds, &versions);
        equal("versions", &snapshots(rounds.len(), &got), &expected)?;
        consolidation::consolidate_updates(&mut got);
        let revoked = got.iter().filter(|(_, _, diff)| *diff < 0).count();
        let later = got.iter().filter(|((_, version, _), ..)| *version > 0).count();
        let seen = [1, got.len() - revoked, revoked, later, dropped(&rounds, &versions, &expected)];
        counts.borrow_mut().iter_mut().zip(seen).for_each(|(count, seen)| *count += seen);
        Ok(())
    });
    let [streams, given, revoked, later, dropped] = counts.into_inner();
    let counts =
        [("given", given, 1000), ("revoked", revoked, 60), ("later", later, 400), ("dropped", dropped, 20)];
    demand("versions", streams, &counts);
}

#[test]
fn a_set_that_was_restored_goes_on_with_the_same_versions() {
    let counts = RefCell::new((0, 0, 0));
    let cases = (rounds(), changes(), prop::array::uniform2(1..=3usize), any::<[Index; 2]>());
    check(file!(), cases, |(mut rounds, (first, changes), workers, [marked, oldest])| {
        let mark = marked.index(rounds.len());
        let said = watermarks(&rounds);
        rounds[mark].watermark = Some(said[mark]);
        rounds[mark].checkpoint = true;
        let versions = versions(&rounds, &first, &changes);
        let run = |from, workers, first: usize, restored| {
            let versions = versions.clone();
            run_captured_with(&rounds, workers, from, move |captures, events, control| {
                let (set, before) = set(&versions, first, restored);
                (captures.admit("Admit", events, control, ADMISSION).0.scan_all("Rules", set), before)
            })
        };
        let uninterrupted = run(None, workers[0], 0, None);
        let state = merge(State::new(), &uninterrupted.captured, mark as u64);
        // Any version of which all earlier ones judge final events only.
        let is_enough = |version: &Version| {
            let begins = |since: &Since| since.epoch.0 <= mark as u64 && since.last_time.0 <= said[mark];
            version.since.as_ref().is_none_or(begins)
        };
        let enough: Vec<usize> = (0..versions.len()).filter(|at| is_enough(&versions[*at])).collect();
        let oldest = enough[oldest.index(enough.len())];
        let from = checkpoint(&state, &rounds, mark as u64);
        let restored = run(Some(from), workers[1], oldest, Some(mark as u64));
        let (streams, changed, skipped) = &mut *counts.borrow_mut();
        (*streams, *changed, *skipped) =
            (*streams + 1, *changed + restored.changes.len(), *skipped + usize::from(oldest > 0));
        let want = after(&uninterrupted.changes, mark as u64);
        prop_assert_eq!(restored.changes, want, "restored from epoch {} with version {}", mark, oldest);
        Ok(())
    });
    let (streams, changed, skipped) = counts.into_inner();
    demand(
        "restored versions",
        streams,
        &[("changes", changed, 300), ("without earlier versions", skipped, 3)],
    );
}

#[test]
fn a_change_of_some_rules_does_not_change_the_results_of_others() {
    let counts = RefCell::new((0, 0));
    check(file!(), (streams(), changes()), |((rounds, workers), (first, changes))| {
        let changed = versions(&rounds, &first, &changes);
        // The results have the first version, so that they are comparable.
        let plain = |rule: &Chosen| Chosen { version: 0, ..*rule };
        let stays = |rule: &&Chosen| {
            let same = |version: &Version| version.rule(rule.id).map(plain) == Some(**rule);
            changed.iter().all(same)
        };
        let unchanged: Vec<Chosen> = changed[0].rules.iter().filter(stays).copied().collect();
        let ids: Vec<u64> = unchanged.iter().map(|rule| rule.id).collect();
        let run = |versions: Vec<Version>| {
            let mut changes = run_from(Epoch(0), workers, &rounds, move |events, control| {
                let (set, before) = set(&versions, 0, None);
                (events.admit(control, ADMISSION).0.scan_all("Rules", set), before)
            });
            changes.iter_mut().for_each(|((_, version, _), ..)| *version = 0);
            changes.retain(|((id, ..), ..)| ids.contains(id));
            consolidation::consolidate_updates(&mut changes);
            changes
        };
        let alone = run(vec![Version { since: None, rules: unchanged }]);
        let (streams, given) = &mut *counts.borrow_mut();
        (*streams, *given) = (*streams + 1, *given + alone.len());
        prop_assert_eq!(run(changed), alone);
        Ok(())
    });
    let (streams, given) = counts.into_inner();
    demand("unchanged rules", streams, &[("changes", given, 300)]);
}
