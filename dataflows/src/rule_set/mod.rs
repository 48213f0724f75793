//! A set of rules that is known only when the program runs, evaluated in one pass over the states of a key.
//!
//! ```text
//!   rules, by id   3          8          9          12             each: filter ─▶ condition ─▶ suppression ─▶ result
//!                  │ holds    │          │ holds    │ holds
//!   event ─────────┼──────────┼──────────┼──────────┤
//!                  ▼                     ▼          ▼
//!   states of key  3: count             9: runs    12: sum         sorted by id; only of rules that processed an event
//! ```
//!
//! A state is stored with the id of its rule. So another set, with rules added, removed or in another order, restores the
//! states of the rules that it has.

mod condition;
mod finding;
mod machine;
mod silence;
mod state;

use std::cell::Cell;

use thiserror::Error;

pub use condition::{Condition, Locate, Number, Predicate, Step, Value};
pub use finding::{Course, Finding};
use machine::Machine;
use state::{ConditionUndo, Entry, Raised, RuleUndo, Undos};
pub use state::{SetState, SetUndo, forget_rules_by_id};

use crate::capture::Damage;
use crate::patterns::Description;
use crate::prefetch::prefetch;
use crate::rules::{Found, Live, Rules};
use crate::{Anchor, Emission, Event, EventTime};

/// Makes a result of an event and what was found at it.
pub type ResultOf<E, D> = Box<dyn Fn(&E, &Finding) -> D>;

/// Makes a result of a key, the first event of a course that no event followed, and what was found: a
/// [`Finding::Absence`].
pub type ResultOfAbsence<E, D> = Box<dyn Fn(&<E as Event>::Key, &Anchor, &Finding) -> D>;

/// A rule of a [`RuleSet`].
pub struct SetRule<E: Event, D> {
    /// The identity of the rule, by which its state is stored. A rule whose filter or condition changes needs a new id,
    /// and an id must not be used again after its rule was removed: keys without events since then keep their state.
    pub id: u64,
    /// True if the rule is not one of those that stored the restored state: what it finds among the restored events is
    /// emitted in the first epoch, so that a later event can revoke it.
    pub is_fresh: bool,
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

/// An invalid rule of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RuleSetError {
    /// Two rules have the same id.
    #[error("two rules have the id {0}")]
    Ambiguous(u64),
    /// A sequence has no steps.
    #[error("the sequence of the rule with the id {0} has no steps")]
    NoSteps(u64),
}

/// Any number of rules, for [`scan_all`](crate::Scan::scan_all). The number of a rule, in descriptions of its state, is
/// its index in the list that the set was made of.
///
/// ```
/// use headwater_dataflows::testing::{Kit, Line};
/// use headwater_dataflows::{Condition, Emission, Finding, RuleSet, Scan, SetRule};
///
/// let rule = |id, filter, condition, suppress_ms| SetRule::<Line, String> {
///     id,
///     is_fresh: false,
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
    /// Sorted by id.
    rules: Box<[Rule<E, D>]>,
    /// The filter of each rule. They lie together because an event passes few of many.
    filters: Box<[Option<Predicate<E>>]>,
    /// A buffer for the undo data of a step.
    undos: Cell<Undos>,
}

/// The number of states of a key that are prefetched.
const PREFETCHED: usize = 8;

/// A rule that can be evaluated.
struct Rule<E: Event, D> {
    id: u64,
    /// The index in the list that the set was made of.
    number: u32,
    is_fresh: bool,
    machine: Machine<E>,
    emission: Emission,
    suppress_ms: Option<i64>,
    result: ResultOf<E, D>,
    absent: ResultOfAbsence<E, D>,
}

impl<E: Event, D> RuleSet<E, D> {
    /// Creates a set.
    ///
    /// # Errors
    /// Fails if two rules have the same id, or a sequence has no steps.
    pub fn new(rules: Vec<SetRule<E, D>>) -> Result<RuleSet<E, D>, RuleSetError> {
        let mut list: Vec<(u32, SetRule<E, D>)> = (0..).zip(rules).collect();
        list.sort_unstable_by_key(|(_, rule)| rule.id);
        if let Some(pair) = list.windows(2).find(|pair| pair[0].1.id == pair[1].1.id) {
            return Err(RuleSetError::Ambiguous(pair[0].1.id));
        }
        let (mut rules, mut filters) = (Vec::new(), Vec::new());
        for (number, rule) in list {
            let SetRule { id, is_fresh, filter, condition, emission, suppress_ms, result, absent } = rule;
            let machine = Machine::new(condition).ok_or(RuleSetError::NoSteps(id))?;
            let suppress_ms = suppress_ms.filter(|suppress_ms| *suppress_ms > 0);
            rules.push(Rule { id, number, is_fresh, machine, emission, suppress_ms, result, absent });
            filters.push(filter);
        }
        Ok(RuleSet { rules: rules.into(), filters: filters.into(), undos: Cell::default() })
    }

    fn rule(&self, id: u64) -> Option<&Rule<E, D>> {
        let at = self.rules.binary_search_by_key(&id, |rule| rule.id).ok()?;
        self.rules.get(at)
    }

    /// Processes the key's next event with a rule that considers it. The rule's state is at `at` or later.
    #[inline]
    fn step_rule(
        &self,
        index: usize,
        at: &mut usize,
        state: &mut SetState,
        event: &E,
        undos: &mut Undos,
        found: &mut Vec<Found<D>>,
    ) {
        let rule = &self.rules[index];
        if rule.has_no_state() {
            let mut until = i64::MIN;
            return rule.raise(&Finding::Match, true, &mut until, event, found);
        }
        *at = state.seek(*at, rule.id);
        let fresh = state.entries.get(*at).is_none_or(|entry| entry.id != rule.id);
        if fresh {
            state.insert(*at, Entry { id: rule.id, until: i64::MIN, state: rule.machine.initial() });
        }
        let entry = &mut state.entries[*at];
        let until = entry.until;
        let undo = undos.next(index as u32);
        rule.step(entry, event, undo, found);
        if fresh {
            *undo = ConditionUndo::Fresh;
        } else if entry.until != until {
            let undo_of_step = std::mem::replace(undo, ConditionUndo::Fresh);
            *undo = ConditionUndo::Raised(Box::new(Raised { until, undo: undo_of_step }));
        }
    }

    #[inline]
    fn collect_undos(&self, mut undos: Undos) -> SetUndo {
        let undo = undos.collect();
        self.undos.set(undos);
        undo
    }
}

#[inline]
fn considers<E>(filter: &Option<Predicate<E>>, event: &E) -> bool {
    filter.as_ref().is_none_or(|filter| filter(event))
}

impl<E: Event, D> Rule<E, D> {
    /// Returns true if no event changes the state of the rule.
    fn has_no_state(&self) -> bool {
        matches!(self.machine, Machine::Match(_)) && self.suppress_ms.is_none()
    }

    #[inline]
    fn step(&self, entry: &mut Entry, event: &E, undo: &mut ConditionUndo, found: &mut Vec<Found<D>>) {
        let Entry { until, state, .. } = entry;
        if let (Machine::Silence(silence), state::ConditionState::Runs(runs)) = (&self.machine, &mut *state) {
            let before = silence.step(runs, until, self.suppress_ms, event, |due, diff| {
                found.push(self.expect(event.key(), &due, diff));
            });
            *undo = ConditionUndo::Runs(before.map(Box::new));
            return;
        }
        if let Some((finding, rises)) = self.machine.step(state, event, undo) {
            self.raise(&finding, rises, until, event, found);
        }
    }

    /// Appends the result of a condition that holds at an event, unless it is suppressed.
    ///
    /// With suppression no edge is needed. The first result is at a rising edge, as none is suppressed yet. Later, if the
    /// condition holds at the first event that is not suppressed, this event is a result; if it does not, the next event
    /// at which it holds is a rising edge.
    #[inline]
    fn raise(&self, finding: &Finding, rises: bool, until: &mut i64, event: &E, found: &mut Vec<Found<D>>) {
        let now = event.time();
        match self.suppress_ms {
            None if !rises => return,
            None => {}
            Some(_) if now.0 < *until => return,
            Some(suppress_ms) => *until = now.plus_ms(suppress_ms).0,
        }
        let answer = (self.result)(event, finding);
        let due = (self.emission == Emission::Final).then_some(now);
        found.push(Found { rule: self.number, answer, due, diff: 1 });
    }

    fn expect(&self, key: &E::Key, due: &silence::Due, diff: isize) -> Found<D> {
        let answer = (self.absent)(key, &due.anchor, &due.finding);
        Found { rule: self.number, answer, due: Some(due.due), diff }
    }

    /// Returns true if one state can replace the other.
    fn same(&self, one: Option<&Entry>, other: Option<&Entry>) -> bool {
        match (one, other) {
            (None, None) => true,
            (Some(one), Some(other)) => {
                one.until == other.until && self.machine.same(&one.state, &other.state)
            }
            _ => false,
        }
    }
}

impl<E: Event, D: 'static> Rules<E, D> for RuleSet<E, D> {
    type State = SetState;
    type Undo = SetUndo;

    fn count(&self) -> u32 {
        self.rules.len() as u32
    }

    fn is_fresh(&self, number: u32) -> bool {
        self.rules.iter().any(|rule| rule.number == number && rule.is_fresh)
    }

    fn step(&self, state: &mut SetState, event: &E, found: &mut Vec<Found<D>>) -> SetUndo {
        let mut undos = self.undos.take();
        let mut at = 0;
        for (index, filter) in self.filters.iter().enumerate() {
            if considers(filter, event) {
                self.step_rule(index, &mut at, state, event, &mut undos, found);
            }
        }
        self.collect_undos(undos)
    }

    fn undo(&self, state: &mut SetState, event: &E, undo: SetUndo) {
        let mut end = state.entries.len();
        for RuleUndo { rule, undo } in undo.0.into_iter().rev() {
            let rule = &self.rules[rule as usize];
            let found = state.entries[..end].binary_search_by_key(&rule.id, |entry| entry.id);
            end = found.expect("a rule that stepped has a state");
            let entry = &mut state.entries[end];
            match undo {
                ConditionUndo::Fresh => drop(state.entries.remove(end)),
                ConditionUndo::Raised(raised) => {
                    entry.until = raised.until;
                    rule.machine.undo(&mut entry.state, event, raised.undo);
                }
                undo => rule.machine.undo(&mut entry.state, event, undo),
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
        undo: &mut SetUndo,
        found: &mut Vec<Found<D>>,
    ) {
        let mut undos = self.undos.take();
        let mut before = std::mem::take(&mut undo.0).into_iter().peekable();
        let mut at = 0;
        for (index, rule) in self.rules.iter().enumerate() {
            let was = before.next_if(|undo| undo.rule as usize == index);
            if !live.has(rule.number) {
                was.into_iter().for_each(|was| *undos.next(was.rule) = was.undo);
            } else if considers(&self.filters[index], event) {
                self.step_rule(index, &mut at, state, event, &mut undos, found);
            }
        }
        *undo = self.collect_undos(undos);
    }

    fn settle(&self, live: &mut Live, state: &SetState, was: &SetState) {
        let (mut at, mut of_was) = (0, 0);
        for rule in &self.rules {
            at = state.seek(at, rule.id);
            of_was = was.seek(of_was, rule.id);
            if rule.same(state.at(at, rule.id), was.at(of_was, rule.id)) {
                live.remove(rule.number);
            }
        }
    }

    fn restore(&self, live: Live, state: &mut SetState, was: SetState) {
        let is_live = |entry: &Entry| self.rule(entry.id).is_some_and(|rule| live.has(rule.number));
        state.entries.retain(is_live);
        state.entries.extend(was.entries.into_iter().filter(|entry| !is_live(entry)));
        state.entries.sort_unstable_by_key(|entry| entry.id);
    }

    fn adopt(&self, state: SetState) -> Result<SetState, Damage> {
        let mut entries = state.entries;
        if !entries.is_sorted_by(|one, other| one.id < other.id) {
            return Err(Damage::Impossible("the states are not sorted by rule"));
        }
        let mut adopted = Vec::with_capacity(entries.len());
        for Entry { id, until, state } in entries.drain(..) {
            let state = self.rule(id).and_then(|rule| rule.machine.adopt(state));
            adopted.extend(state.map(|state| Entry { id, until, state }));
        }
        Ok(SetState { entries: adopted })
    }

    fn waiting(&self, state: &SetState, key: &E::Key, watermark: EventTime, found: &mut Vec<Found<D>>) {
        for Entry { id, until, state } in &state.entries {
            let Some(rule) = self.rule(*id) else { continue };
            if let (Machine::Silence(silence), state::ConditionState::Runs(runs)) = (&rule.machine, state) {
                let waiting = silence.waiting(runs, *until, rule.suppress_ms, watermark);
                found.extend(waiting.map(|due| rule.expect(key, &due, 1)));
            }
        }
    }

    fn describe(&self, state: &SetState, watermark: EventTime, each: &mut dyn FnMut(u32, Description)) {
        for Entry { id, state, .. } in &state.entries {
            let Some(rule) = self.rule(*id) else { continue };
            if let Some(description) = rule.machine.describe(state, watermark) {
                each(rule.number, description);
            }
        }
    }
}

#[cfg(test)]
mod tests;
