//! A set of rules that is known only when the program runs, and can change while it runs, evaluated in one pass over the
//! states of a key.
//!
//! ```text
//!   event ─▶ version of its position ─▶ rules, by id   3          8          9          12
//!                                                      │ holds    │          │ holds    │ holds
//!            each: filter ─▶ condition ─▶ suppression ─▶ result   │          │          │
//!                                                      ▼                     ▼          ▼
//!                                    states of key     3: count             9: runs    12: sum
//!                                    last stepped by   definition a         b          c
//! ```
//!
//! The states of a key are sorted by id, and only rules that processed an event have one. A state is stored with the id
//! of its rule and the definition that stepped it last. So another version, or another set after a restore, continues the
//! states of the rules that it has. If a definition has changed, the next step [adopts](SetRule::definition) the state,
//! and undoing this step restores the state before.

mod condition;
mod finding;
mod machine;
mod rule;
mod silence;
mod state;
mod stored;
mod versions;

use std::rc::Rc;

use thiserror::Error;

pub use condition::{Condition, Locate, Number, Predicate, Step, Value};
pub use finding::{Course, Finding};
use rule::{Filter, Rule, considers};
use state::{ConditionUndo, Entry};
pub use state::{RuleUndo, SetState, forget_rules_by_id};
pub use stored::{last_of, shard_of};
pub use versions::{Backfill, RuleVersions};
use versions::{Judges, Versions};

use crate::capture::Damage;
use crate::patterns::Description;
use crate::prefetch::prefetch;
use crate::rules::{Entering, Found, Live, Rules, UndoSink};
use crate::{Anchor, Emission, Epoch, Event, EventTime};

/// Makes a result of an event and what was found at it.
pub type ResultOf<E, D> = Box<dyn Fn(&E, &Finding) -> D>;

/// Makes a result of a key, the first event of a course that no event followed, and what was found: a
/// [`Finding::Absence`].
pub type ResultOfAbsence<E, D> = Box<dyn Fn(&<E as Event>::Key, &Anchor, &Finding) -> D>;

/// A rule of a [`RuleSet`].
pub struct SetRule<E: Event, D> {
    /// The identity of the rule's state. It is not used again after the rule was removed. An absence whose results change
    /// in any way needs another id.
    pub id: u64,
    /// The identity of all that decides: filter, condition with its parameters, suppression. At the first event that the
    /// filter of another definition than the last accepts, the rule starts from what the last one has kept, and keeps of
    /// it what this one needs:
    ///
    /// - `Count`: the times of the last `at_least` events.
    /// - `Sum`, `Average`, `Share`: the numbers of the last `within_ms` at the last event with a number.
    /// - `Distinct`: the last `at_least` distinct values, with their times; another definition forgets those beyond its own
    ///   at the first event that it considers, also one without a value.
    /// - `Outlier`: the count, sum and sum of squares of all numbers, for each group.
    /// - `Travel`: the last known location.
    /// - `Sequence`: the events of each run, if they are fewer than the steps now take. Runs that have taken too long are
    ///   forgotten when a run begins or goes on.
    /// - whether the condition held at the last event, and the time up to which results are suppressed.
    ///
    /// What it did not keep stays forgotten, also for late events that an earlier definition judges: if one of them comes
    /// after an event that a later definition has stepped, it finds what the later one has kept.
    ///
    /// A condition of another kind, or of other numbers or values, needs another id.
    pub definition: u64,
    /// The events that the rule considers; `None`: all.
    pub filter: Option<Predicate<E>>,
    /// The condition.
    pub condition: Condition<E>,
    /// The time of the emission of results. Those of an absence always wait for the watermark.
    pub emission: Emission,
    /// The suppression of results, in milliseconds of event time. After a result at an event of time t, the key has no
    /// result of this rule at an event before t + `suppress_ms`. If the condition still holds at the first event from
    /// then on that the condition considers, this event is a result, also without a rising edge.
    ///
    /// The time of the result of an absence is the end of the silence. An absence that is suppressed is not made up for.
    ///
    /// `None` or less than one: no suppression.
    pub suppress_ms: Option<i64>,
    /// Makes the results of all other conditions than absences.
    pub result: ResultOf<E, D>,
    /// Makes the results of absences.
    pub absent: ResultOfAbsence<E, D>,
}

impl<E: Event, D> SetRule<E, D> {
    /// Returns the time before an event, in milliseconds, that decides about it: the longer one of the condition's
    /// [`look_back_ms`](Condition::look_back_ms) and the suppression.
    pub fn look_back_ms(&self) -> i64 {
        self.condition.look_back_ms().max(self.suppress_ms.unwrap_or(0))
    }
}

/// A rule or a version that a set cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RuleSetError {
    /// Two rules have the same id.
    #[error("two rules have the id {0}")]
    Ambiguous(u64),
    /// A sequence has no steps.
    #[error("the sequence of the rule with the id {0} has no steps")]
    NoSteps(u64),
    /// A rule has the id of a rule that an earlier version has removed.
    #[error("the id {0} was that of a rule that has been removed")]
    Reused(u64),
    /// A rule whose results are absences has another definition than in the version before.
    #[error("the rule with the id {0} is an absence, whose definition cannot change: it needs another id")]
    ChangedAbsence(u64),
    /// A rule with a backfill is not in its version, or an earlier version has it.
    #[error("the rule with the id {0} has a backfill, and is not new in its version")]
    NotNew(u64),
    /// A version begins before the one that was added before it.
    #[error("a version since epoch {epoch} cannot follow one since epoch {newest}")]
    Unordered {
        /// The epoch of the version.
        epoch: Epoch,
        /// The epoch of the newest version.
        newest: Epoch,
    },
}

/// Any number of rules, for [`scan_all`](crate::Scan::scan_all). The number of a rule, in descriptions of its state, is
/// its index in the list that the set was made of, or what [`RuleVersions::add`] returned for it.
///
/// ```
/// use headwater_dataflows::testing::{Kit, Line};
/// use headwater_dataflows::{Condition, Emission, Finding, RuleSet, Scan, SetRule};
///
/// let rule = |id, filter, condition, suppress_ms| SetRule::<Line, String> {
///     id,
///     definition: 1,
///     filter,
///     condition,
///     emission: Emission::Immediate,
///     suppress_ms,
///     result: Box::new(move |line, found| match found {
///         Finding::Count(rate) => format!("{id}: {} logins at {}", rate.count, line.time),
///         other => format!("{id}: {other:?} at {}", line.time),
///     }),
///     absent: Box::new(move |key, since, _| format!("{id}: no event of {key} since {}", since.time)),
/// };
/// let logins = rule(
///     7,
///     Some(Box::new(|line: &Line| line.id.starts_with("login"))),
///     Condition::Count { at_least: 2, within_ms: 10 },
///     Some(20),
/// );
/// let silence = rule(3, None, Condition::Absence { within_ms: 50 }, None);
/// let set = RuleSet::new(vec![logins, silence]).expect("the ids differ");
///
/// let mut kit = Kit::new(|keyed| keyed.scan_all("Rules", set));
/// for (time, id) in [(1, "login 1"), (2, "logout"), (8, "login 2"), (21, "login 3"), (29, "login 4")] {
///     kit.push_at(time, Line::of("ann", id));
/// }
/// // At 29 the condition holds again, and the suppression since 8 is over.
/// kit.expect_raised(["7: 2 logins at 8".to_owned(), "7: 2 logins at 29".to_owned()]);
/// kit.advance_watermark(78);
/// kit.expect_raised(["3: no event of ann since 29".to_owned()]);
/// kit.finish();
/// ```
pub struct RuleSet<E: Event, D> {
    versions: Versions<E, D>,
}

/// The number of states of a key that are prefetched.
const PREFETCHED: usize = 8;

impl<E: Event, D> RuleSet<E, D> {
    /// Creates a set. Its rules are in force for all events until a version is added, and have the numbers 0, 1 and so on.
    ///
    /// # Errors
    /// Fails if two rules have the same id, or a sequence has no steps.
    pub fn new(rules: Vec<SetRule<E, D>>) -> Result<RuleSet<E, D>, RuleSetError> {
        Ok(RuleSet { versions: Versions::new(rules)? })
    }

    /// Returns a handle that adds versions.
    pub fn versions(&self) -> RuleVersions<E, D> {
        self.versions.handle()
    }
}

/// Returns the number of rules that consider an event and keep a state: the states that a key has after its first event.
fn kept<E: Event, D>(rules: &[Rc<Rule<E, D>>], filters: &[Filter<E>], event: &E) -> usize {
    let judging = rules.iter().zip(filters);
    judging.filter(|(rule, filter)| !rule.has_no_state() && considers(filter, event)).count()
}

impl<E: Event, D: 'static> Rules<E, D> for RuleSet<E, D> {
    type State = SetState;
    type Undo = RuleUndo;

    fn count(&self) -> u32 {
        self.versions.count()
    }

    fn all(&self) -> Live {
        self.versions.all()
    }

    fn begin(&mut self, epoch: Epoch) -> bool {
        self.versions.begin(epoch)
    }

    fn is_removed(&self, number: u32) -> bool {
        self.versions.is_removed(number)
    }

    fn forget(&mut self, watermark: EventTime) -> bool {
        self.versions.forget(watermark)
    }

    fn sweep(&self, state: &mut SetState) {
        let is_known = |entry: &Entry| self.versions.number(entry.id()).is_some();
        if !state.entries.iter().all(is_known) {
            state.entries.retain(is_known);
            state.entries.shrink_to_fit();
        }
    }

    fn step(
        &self,
        state: &mut SetState,
        event: &E,
        undo: &mut impl UndoSink<RuleUndo>,
        found: &mut Vec<Found<D>>,
    ) {
        let Judges { rules, filters } = self.versions.of(event);
        let mut at = 0;
        for (index, filter) in filters.iter().enumerate() {
            if considers(filter, event) {
                if state.entries.capacity() == 0 && !rules[index].has_no_state() {
                    state.entries.reserve_exact(kept(&rules[index..], &filters[index..], event));
                }
                rules[index].step(index, &mut at, state, event, undo, found);
            }
        }
    }

    fn undo(&self, state: &mut SetState, event: &E, undo: impl DoubleEndedIterator<Item = RuleUndo>) {
        let Judges { rules, .. } = self.versions.of(event);
        let mut end = state.entries.len();
        for RuleUndo { rule, undo } in undo.rev() {
            let rule = &rules[rule as usize];
            let found = state.entries[..end].binary_search_by_key(&rule.id(), Entry::id);
            let at = found.expect("a rule that stepped has a state");
            end = at + 1;
            match undo {
                ConditionUndo::Fresh => {
                    state.entries.remove(at);
                    end = at;
                }
                undo => rule.undo(&mut state.entries[at], event, undo),
            }
        }
    }

    #[inline]
    fn prefetch_ahead(&self, state: &SetState) {
        prefetch(&state.entries[..state.entries.len().min(PREFETCHED)]);
    }

    #[inline]
    fn prefetch(&self, state: &SetState, _event: &E) {
        state.entries.iter().take(PREFETCHED).for_each(|entry| entry.state.prefetch());
    }

    fn step_again(
        &self,
        live: Live,
        state: &mut SetState,
        event: &E,
        before: impl Iterator<Item = RuleUndo>,
        undo: &mut impl UndoSink<RuleUndo>,
        found: &mut Vec<Found<D>>,
    ) {
        let Judges { rules, filters } = self.versions.of(event);
        let mut before = before.peekable();
        let mut at = 0;
        for (index, rule) in rules.iter().enumerate() {
            let is_live = live.has(rule.number);
            while let Some(was) = before.next_if(|undo| undo.rule as usize == index) {
                if !is_live {
                    undo.push(was);
                }
            }
            if is_live && considers(&filters[index], event) {
                rule.step(index, &mut at, state, event, undo, found);
            }
        }
    }

    fn settle(&self, live: &mut Live, state: &SetState, was: &SetState) {
        let (mut at, mut of_was) = (0, 0);
        for &(id, number) in self.versions.ids() {
            at = state.seek(at, id);
            of_was = was.seek(of_was, id);
            let is_same = match (state.at(at, id), was.at(of_was, id)) {
                (None, None) => true,
                (Some(one), Some(other)) => one.same(other),
                _ => false,
            };
            if is_same {
                live.remove(number);
            }
        }
    }

    fn restore(&self, live: Live, state: &mut SetState, was: SetState) {
        let is_live = |entry: &Entry| self.versions.number(entry.id()).is_some_and(|number| live.has(number));
        state.entries.retain(is_live);
        state.entries.extend(was.entries.into_iter().filter(|entry| !is_live(entry)));
        state.entries.sort_unstable_by_key(Entry::id);
    }

    fn entering(&mut self, epoch: Epoch) -> Option<Entering<E, SetState>> {
        self.versions.entering(epoch)
    }

    fn enter(&mut self, epoch: Epoch) {
        self.versions.enter(epoch);
    }

    fn merge(&self, state: &mut SetState, entering: SetState) {
        let entering = entering
            .entries
            .into_iter()
            .filter_map(|entry| self.versions.rule(entry.id()).and_then(|rule| rule.adopted(entry)));
        state.entries.extend(entering);
        state.entries.sort_unstable_by_key(Entry::id);
        state.entries.shrink_to_fit();
    }

    fn adopt(&self, state: SetState) -> Result<SetState, Damage> {
        let mut entries = state.entries;
        if !entries.is_sorted_by(|one, other| one.id() < other.id()) {
            return Err(Damage::Impossible("the states are not sorted by rule"));
        }
        let mut adopted = Vec::with_capacity(entries.len());
        for entry in entries.drain(..) {
            match self.versions.rule_like(&entry.identity) {
                Some(rule) => adopted.extend(rule.adopted(entry)),
                // The first step by another definition adopts it, as if it had not been stored.
                None if self.versions.number(entry.id()).is_some() => adopted.push(entry),
                None => {}
            }
        }
        Ok(SetState { entries: adopted })
    }

    fn waiting(&self, state: &SetState, key: &E::Key, watermark: EventTime, found: &mut Vec<Found<D>>) {
        for entry in &state.entries {
            if let Some(rule) = self.versions.rule(entry.id()) {
                rule.waiting(entry, key, watermark, found);
            }
        }
    }

    fn describe(&self, state: &SetState, watermark: EventTime, each: &mut dyn FnMut(u32, Description)) {
        for entry in &state.entries {
            let Some(rule) = self.versions.in_force().rule(entry.id()) else { continue };
            if let Some(description) = rule.describe(entry, watermark) {
                each(rule.number, description);
            }
        }
    }
}

#[cfg(test)]
mod tests;
