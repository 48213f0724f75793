//! Rules that enter with their past, over random streams: from then on their results are those of rules that have always
//! been there, and those of other rules do not change; after a restore as well.

use std::cell::RefCell;
use std::collections::BTreeMap;

use differential_dataflow::consolidation;
use headwater_dataflows::{Backfill, Emission, Epoch, EventTime, KeyedState, RuleSet, last_of, shard_of};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::event::Tx;
use crate::harness::{Before, Changes, check, demand, watermarks};
use crate::restore::{Outcome, State, after, checkpoint, merge, run_captured_with};
use crate::rule_versions::{Draw, draw, set_rule, since};
use crate::scan::ADMISSION;
use crate::spec::versions::{Chosen, Of, Version};
use crate::streams::{Round, rounds};

/// Keys and states, with the time of the last event.
type Saved = Vec<(Vec<u8>, EventTime, Vec<u8>)>;

/// The versions of a set, the last of which has rules with a past.
#[derive(Clone)]
struct Entry {
    versions: Vec<Version>,
    entering: Vec<u64>,
    after: EventTime,
    past: Saved,
}

impl Entry {
    fn set(&self, restored: Option<u64>, worker: (usize, usize)) -> (RuleSet<Tx, Of>, Before) {
        let rules = |version: &Version| version.rules.iter().map(set_rule).collect();
        let set = RuleSet::new(rules(&self.versions[0])).expect("the rules are valid");
        let (handle, entry) = (set.versions(), self.clone());
        let mut added = 1;
        let mut before = move |epoch: Epoch| {
            let begins = |version: &Version| version.since.as_ref().is_some_and(|since| since.epoch <= epoch);
            while entry.versions.get(added).is_some_and(begins) {
                let version = &entry.versions[added];
                let is_last = added + 1 == entry.versions.len();
                let since = version.since.clone().expect("only the first version has no beginning");
                let has_past = restored.is_some_and(|restored| since.epoch.0 <= restored);
                let backfill = (is_last && !entry.entering.is_empty()).then(|| Backfill {
                    rules: entry.entering.clone(),
                    after: entry.after,
                    states: if has_past { Vec::new() } else { entry.states(worker) },
                });
                handle.add_backfilled(since, rules(version), backfill).expect("the version can follow");
                added += 1;
            }
        };
        if let Some(restored) = restored {
            before(Epoch(restored));
        }
        (set, Box::new(before))
    }

    fn states(&self, (index, peers): (usize, usize)) -> Vec<KeyedState<Tx, headwater_dataflows::SetState>> {
        let is_own = |key: &[u8]| shard_of(key).expect("a key").worker(peers) == index;
        let of_worker = self.past.iter().filter(|(key, ..)| is_own(key));
        of_worker.map(|(key, last, value)| KeyedState::decode(key, *last, value).expect("captured")).collect()
    }

    fn run(&self, rounds: &[Round], workers: usize, from: Option<(u64, &State)>) -> Outcome<Of> {
        let (entry, restored) = (self.clone(), from.map(|(mark, _)| mark));
        let from = from.map(|(mark, state)| checkpoint(state, rounds, mark));
        run_captured_with(rounds, workers, from, move |captures, events, control| {
            let scope = events.inner.scope();
            let (set, before) = entry.set(restored, (scope.index(), scope.peers()));
            (captures.admit("Admit", events, control, ADMISSION).0.scan_all("Rules", set), before)
        })
    }
}

/// Returns the past of rules at the end of an epoch, from a run with these rules alone.
fn past(rounds: &[Round], epoch: usize, rules: Vec<Chosen>) -> Saved {
    let mut rounds = rounds[..=epoch].to_vec();
    rounds[epoch].checkpoint = true;
    let alone = Entry {
        versions: vec![Version { since: None, rules }],
        entering: Vec::new(),
        after: EventTime::MIN,
        past: Vec::new(),
    };
    let state = merge(State::new(), &alone.run(&rounds, 1, None).captured, epoch as u64);
    let mut lasts = BTreeMap::new();
    let mut past = Saved::new();
    for ((operator, _, key), value) in &state {
        match &**operator {
            "Admit" => drop(lasts.insert(key.clone(), last_of(value).expect("a time"))),
            "Rules" => past.push((key.clone(), EventTime::MIN, value.clone())),
            _ => {}
        }
    }
    past.iter_mut().for_each(|(key, last, _)| *last = lasts.get(key).copied().unwrap_or(*last));
    past
}

#[derive(Clone, Debug)]
struct Plan {
    rounds: Vec<Round>,
    /// The rules of the versions, and those that enter.
    rules: [Vec<Draw>; 3],
    at: Index,
    earlier: Index,
    mark: Index,
    workers: [usize; 2],
}

fn plans() -> impl Strategy<Value = Plan> {
    let rules = || prop::collection::vec(draw(), 0..4);
    let rules = (rules(), rules(), prop::collection::vec(draw(), 1..4));
    let at = any::<[Index; 3]>();
    (rounds(), rules, at, prop::array::uniform2(1..=3usize)).prop_map(
        |(rounds, (first, second, entering), [at, earlier, mark], workers)| Plan {
            rounds,
            rules: [first, second, entering],
            at,
            earlier,
            mark,
            workers,
        },
    )
}

/// Returns the epoch at which the rules enter, the set that they enter, and the set that always had them.
fn entry(plan: &mut Plan) -> (usize, Entry, Vec<Version>) {
    let Plan { rounds, rules, at, earlier, .. } = plan;
    let epoch = at.index(rounds.len()) + 1;
    let watermark = watermarks(rounds)[epoch - 1];
    rounds.insert(epoch, Round::of(&[], watermark));
    let mut id = 0;
    let mut chosen = |draws: &[Draw]| -> Vec<Chosen> {
        let of = |draw: &Draw| {
            id += 7919;
            draw.chosen(id % 10007, 0, draw.kind)
        };
        draws.iter().map(of).collect()
    };
    let [first, second, entering] = [&rules[0], &rules[1], &rules[2]].map(|draws| chosen(draws));
    let with = |rules: &[Chosen], more: &[Chosen]| [rules, more].concat();
    let earlier = since(rounds, earlier.index(epoch), false);
    let entry = since(rounds, epoch, false);
    let version = |since, rules| Version { since, rules };
    let changed = with(&first, &second);
    let versions = |more: &[Chosen]| {
        vec![
            version(None, with(&first, more)),
            version(Some(earlier.clone()), with(&changed, more)),
            version(Some(entry.clone()), with(&changed, &entering)),
        ]
    };
    let past = past(rounds, epoch, entering.clone());
    let ids = entering.iter().map(|rule| rule.id).collect();
    let set = Entry { versions: versions(&[]), entering: ids, after: EventTime(watermark), past };
    (epoch, set, versions(&entering))
}

/// Returns the results that are there at the end of an epoch.
fn contents(changes: &Changes<Of>, epoch: u64) -> Vec<(Of, isize)> {
    let until = changes.iter().filter(|change| change.1 <= epoch);
    let mut contents = until.map(|(result, _, diff)| (result.clone(), *diff)).collect();
    consolidation::consolidate(&mut contents);
    contents
}

#[test]
fn a_rule_with_its_past_is_as_if_it_had_always_been_there() {
    let counts = RefCell::new([0; 4]);
    check(file!(), plans(), |mut plan| {
        let (epoch, entered, always) = entry(&mut plan);
        let said = watermarks(&plan.rounds);
        let epoch = epoch as u64;
        let always = Entry { versions: always, entering: Vec::new(), past: Vec::new(), ..entered.clone() };
        let want = always.run(&plan.rounds, plan.workers[0], None).changes;
        let got = entered.run(&plan.rounds, plan.workers[1], None).changes;
        prop_assert_eq!(after(&got, epoch), after(&want, epoch), "from epoch {}", epoch);
        let enters = |result: &Of| entered.entering.contains(&result.0);
        let rule = |id: u64| always.versions[2].rule(id).expect("the version has it");
        let is_open = |(result, _): &(Of, isize)| {
            let Chosen { emission, judge, .. } = rule(result.0);
            let is_final = *emission == Emission::Final || judge.is_absence();
            !enters(result) || (!is_final && EventTime(result.2.time) > entered.after)
        };
        let mut open = contents(&want, epoch);
        open.retain(is_open);
        prop_assert_eq!(contents(&got, epoch), open.clone(), "at epoch {}", epoch);

        // With checkpoints, and from one of them, on another number of workers.
        let mark = plan.mark.index(plan.rounds.len());
        plan.rounds[mark].watermark = Some(said[mark]);
        plan.rounds[mark].checkpoint = true;
        let through = entered.run(&plan.rounds, plan.workers[1], None);
        prop_assert_eq!(&through.changes, &got, "capture changed the output");
        let state = merge(State::new(), &through.captured, mark as u64);
        let again = entered.run(&plan.rounds, plan.workers[0], Some((mark as u64, &state)));
        prop_assert_eq!(again.changes, after(&got, mark as u64), "restored from {} of {}", mark, epoch);
        let raised = open.iter().filter(|(result, _)| enters(result)).count();
        let later = after(&got, epoch).iter().filter(|(result, ..)| enters(result)).count();
        let revoked =
            after(&got, epoch).iter().filter(|(result, _, diff)| enters(result) && *diff < 0).count();
        let seen = [1, raised, later, revoked];
        counts.borrow_mut().iter_mut().zip(seen).for_each(|(count, seen)| *count += seen);
        Ok(())
    });
    let [streams, raised, later, revoked] = counts.into_inner();
    demand(
        "backfill",
        streams,
        &[("raised at the entry", raised, 6), ("later", later, 100), ("revoked", revoked, 2)],
    );
}
