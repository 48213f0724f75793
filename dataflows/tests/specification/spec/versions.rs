//! The specification of sets of rules that change. Each event of a key is judged, in sorted order, by the version that its
//! position belongs to. What a rule has kept of earlier events stays the same when its definition changes: the new one
//! judges an event as if the kept events were all the events before it, and then keeps what it needs itself.

use std::collections::BTreeMap;

use headwater_dataflows::{Emission, Since};

use super::patterns::{self, Answer, Found};
use super::rules as spec;
use crate::event::Tx;

/// A condition, with its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Judge {
    Match,
    Count {
        n: usize,
        within: i64,
    },
    Sum {
        more_than: i64,
        within: i64,
    },
    Average {
        at_least: i64,
        events: usize,
        within: i64,
    },
    Distinct {
        n: usize,
        within: i64,
    },
    Share {
        parts: usize,
        events: usize,
        within: i64,
    },
    Outlier {
        at_least: usize,
        by_place: bool,
    },
    Travel {
        km: i64,
    },
    /// So many paid events, then so many placed ones.
    Sequence {
        paid: usize,
        placed: usize,
        within: i64,
    },
    /// A paid event that no placed one follows.
    Unplaced {
        within: i64,
    },
    Silence {
        within: i64,
    },
}

impl Judge {
    /// Returns true if the results are absences.
    pub fn is_absence(self) -> bool {
        matches!(self, Judge::Unplaced { .. } | Judge::Silence { .. })
    }
}

/// The events that a rule considers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filter {
    All,
    Placed,
    Paid,
    /// All but those of one merchant.
    Others(u64),
}

impl Filter {
    pub fn accepts(self, event: &Tx) -> bool {
        match self {
            Filter::All => true,
            Filter::Placed => is_placed(event),
            Filter::Paid => is_paid(event),
            Filter::Others(merchant) => event.merchant != Some(merchant),
        }
    }
}

pub fn is_placed(event: &Tx) -> bool {
    event.place.is_some()
}

pub fn is_paid(event: &Tx) -> bool {
    event.amount > Some(0)
}

/// A rule of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub id: u64,
    /// The version that has the rule; of an absence, the first version that has it.
    pub version: usize,
    pub judge: Judge,
    pub filter: Filter,
    pub suppress: Option<i64>,
    pub emission: Emission,
}

/// A version: its beginning, unless it is the first, and its rules.
#[derive(Clone, Debug)]
pub struct Version {
    pub since: Option<Since>,
    pub rules: Vec<Chosen>,
}

impl Version {
    pub fn rule(&self, id: u64) -> Option<&Chosen> {
        self.rules.iter().find(|rule| rule.id == id)
    }
}

/// A result: the id of its rule, the version that judged the event, and the answer. The version of an absence is the first
/// that has the rule.
pub type Of = (u64, usize, Answer);

/// A result, the time that the watermark must pass, and the last epoch in which it is emitted if it was not before.
pub type Timed = (Of, Option<i64>, Option<u64>);

/// Returns the index of the version that judges an event: the newest that does not begin after its position.
pub fn version_of(versions: &[Version], event: &Tx) -> usize {
    let has_begun = |version: &Version| {
        let end = version.since.as_ref().and_then(|since| since.ends.get(event.partition as usize));
        end.is_none_or(|end| end.0 <= event.offset)
    };
    versions.iter().rposition(has_begun).expect("the first version has no beginning")
}

/// Returns the results of a key's events.
pub fn results(versions: &[Version], events: &[Tx]) -> Vec<Timed> {
    let mut ids: Vec<u64> = versions.iter().flat_map(|version| &version.rules).map(|rule| rule.id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().flat_map(|id| results_of(id, versions, events)).collect()
}

fn results_of(id: u64, versions: &[Version], events: &[Tx]) -> Vec<Timed> {
    let judged = events.iter().filter_map(|event| {
        let rule = versions[version_of(versions, event)].rule(id)?;
        rule.filter.accepts(event).then_some((rule, event))
    });
    let judged: Vec<(&Chosen, &Tx)> = judged.collect();
    match judged.first() {
        None => Vec::new(),
        Some((rule, _)) if rule.judge.is_absence() => {
            let events: Vec<Tx> = judged.iter().map(|(_, event)| (*event).clone()).collect();
            let without = versions.iter().skip(rule.version).find(|version| version.rule(id).is_none());
            let until = without.and_then(|version| version.since.as_ref()).map(|since| since.epoch.0);
            let timed = |answer: Answer| {
                let due = Some(answer.time);
                ((id, rule.version, answer), due, until)
            };
            absences(rule, &events).into_iter().map(timed).collect()
        }
        Some(_) => {
            let mut memory = Memory::default();
            let timed = |(rule, event): (&Chosen, &Tx)| {
                let found = memory.raise(rule, event)?;
                let due = (rule.emission == Emission::Final).then_some(event.time);
                Some(((id, rule.version, Answer::new(event, found)), due, None))
            };
            judged.into_iter().filter_map(timed).collect()
        }
    }
}

fn absences(rule: &Chosen, events: &[Tx]) -> Vec<Answer> {
    let matches = match rule.judge {
        Judge::Unplaced { within } => {
            let matches = patterns::absence(
                &[|_, event| is_paid(event), |_, event| is_placed(event)],
                8,
                within,
                events,
            );
            spec::milestones(&[1], matches)
        }
        Judge::Silence { within } => spec::silence(within, events),
        _ => unreachable!("the rule is an absence"),
    };
    spec::unsuppressed(rule.suppress, matches)
}

/// The memory of a rule: a part of the events so far.
#[derive(Default)]
struct Memory {
    events: Vec<Tx>,
    runs: Vec<Course>,
    /// True if the condition held at the last event.
    held: bool,
    /// The time up to which results are suppressed.
    until: Option<i64>,
}

/// The events of a run, each with whether it is the first or completes a step.
type Course = Vec<(Tx, bool)>;

impl Memory {
    /// Returns what is found at the next event, unless it is no result.
    fn raise(&mut self, rule: &Chosen, event: &Tx) -> Option<Found> {
        let held = self.held;
        let found = self.judge(rule.judge, event)?;
        match rule.suppress {
            None => (!held).then_some(found),
            Some(_) if self.until.is_some_and(|until| event.time < until) => None,
            Some(suppress) => {
                self.until = Some(event.time + suppress);
                Some(found)
            }
        }
    }

    /// Returns what the condition finds at the next event, as if the kept events were all events before. Keeps what the
    /// condition needs.
    fn judge(&mut self, judge: Judge, event: &Tx) -> Option<Found> {
        if let Judge::Sequence { paid, placed, within } = judge {
            return self.advance([paid, placed], within, event);
        }
        if let Judge::Count { n, .. } | Judge::Distinct { n, .. } = judge {
            // Also at an event without a value, if the definition before kept more.
            self.events.drain(..self.events.len().saturating_sub(n));
        }
        let mut events = self.events.clone();
        events.push(event.clone());
        let now = event.time;
        // Of a condition that matches at the rising edge: what it finds, and the events that it keeps.
        let (judged, kept): (spec::Judged, Vec<Tx>) = match judge {
            Judge::Match => return Some(Found::Match),
            Judge::Outlier { at_least, by_place } => {
                let (others, mut same): (Vec<Tx>, Vec<Tx>) =
                    self.events.drain(..).partition(|other| by_place && is_placed(other) != is_placed(event));
                let before = patterns::outlier(2, at_least, 1, 2, &same).len();
                same.push(event.clone());
                let mut found = patterns::outlier(2, at_least, 1, 2, &same);
                self.events = others.into_iter().chain(same).collect();
                return found.split_off(before).pop().map(|answer| answer.found);
            }
            Judge::Travel { km } => {
                self.events =
                    events.iter().rev().find(|event| is_placed(event)).cloned().into_iter().collect();
                let found = patterns::travel(km as f64, 2e7, &events).pop();
                return found.map(|answer| answer.found);
            }
            Judge::Count { n, within } => {
                (spec::count(n, within, &events), events[events.len().saturating_sub(n)..].to_vec())
            }
            Judge::Sum { more_than, within } => {
                (spec::sum(more_than, within, &events), last(within, now, &events))
            }
            Judge::Average { at_least, events: n, within } => {
                (spec::average(at_least, n, within, &events), last(within, now, &events))
            }
            Judge::Share { parts, events: n, within } => {
                (spec::share(parts, n, within, &events), last(within, now, &events))
            }
            Judge::Distinct { n, within } => {
                let is_last = |(i, one): &(usize, &Tx)| {
                    events[i + 1..].iter().all(|later| later.merchant != one.merchant)
                };
                let last = events.iter().enumerate().filter(is_last);
                let last: Vec<Tx> = last.map(|(_, event)| event.clone()).collect();
                (spec::distinct(n, within, &events), last[last.len().saturating_sub(n)..].to_vec())
            }
            Judge::Sequence { .. } | Judge::Unplaced { .. } | Judge::Silence { .. } => {
                unreachable!("a sequence was advanced, and absences are judged over all events")
            }
        };
        // An event without number or value is not considered.
        let (_, found) = judged.last().filter(|(judged, _)| judged == event)?;
        self.events = kept;
        self.held = found.is_some();
        found.clone()
    }

    /// Advances the runs. Those that cannot go on are discarded by the next event that starts or advances one.
    fn advance(&mut self, [paid, placed]: [usize; 2], within: i64, event: &Tx) -> Option<Found> {
        let fits = |step: usize| if step < paid { is_paid(event) } else { is_placed(event) };
        let steps = paid + placed;
        self.runs.retain(|run| run.len() < steps);
        let goes_on = |run: &Course| event.time - run[0].0.time < within;
        let starts = fits(0);
        if !starts && !self.runs.iter().any(|run| goes_on(run) && fits(run.len())) {
            return None;
        }
        self.runs.retain(goes_on);
        for run in &mut self.runs {
            if fits(run.len()) {
                let completes = [paid, steps].contains(&(run.len() + 1));
                run.push((event.clone(), completes));
            }
        }
        if starts {
            self.runs.push(vec![(event.clone(), true)]);
        }
        let (ended, runs) = self.runs.drain(..).partition(|run| run.len() == steps);
        self.runs = runs;
        let ended: Vec<Course> = ended;
        let latest = ended.last()?;
        let completed = latest.iter().skip(usize::from(paid > 1)).filter(|(_, completes)| *completes);
        let first = std::iter::once(&latest[0]);
        Some(Found::Sequence(first.chain(completed).map(|(event, _)| event.offset).collect()))
    }
}

fn last(within: i64, now: i64, events: &[Tx]) -> Vec<Tx> {
    events.iter().filter(|event| event.time > now - within).cloned().collect()
}

/// Returns the results that have been emitted at the end of an epoch, given the watermarks of all epochs.
pub fn emitted(all: BTreeMap<Timed, isize>, epoch: usize, watermarks: &[i64]) -> BTreeMap<Of, isize> {
    let is_emitted = |(_, due, until): &Timed| {
        let last = until.map_or(epoch, |until| epoch.min(until as usize));
        due.is_none_or(|due| due <= watermarks[last])
    };
    let mut emitted = BTreeMap::new();
    for ((result, _, _), count) in all.into_iter().filter(|(timed, _)| is_emitted(timed)) {
        *emitted.entry(result).or_default() += count;
    }
    emitted
}
