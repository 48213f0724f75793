//! A rule that can be evaluated.

use std::rc::Rc;

use super::finding::Finding;
use super::machine::Machine;
use super::silence::Due;
use super::state::{ConditionState, ConditionUndo, Entry, Identity, RuleUndo, SetState};
use super::{ResultOf, ResultOfAbsence, SetRule};
use crate::patterns::Description;
use crate::rules::{Found, UndoSink};
use crate::{Emission, Event, EventTime};

/// A rule of one version of a set.
pub(super) struct Rule<E: Event, D> {
    /// The same for all states that it steps.
    pub identity: Rc<Identity>,
    /// The number in all versions.
    pub number: u32,
    machine: Machine<E>,
    emission: Emission,
    suppress_ms: Option<i64>,
    result: ResultOf<E, D>,
    absent: ResultOfAbsence<E, D>,
}

/// The filter of a rule, which versions share; `None`: all events.
pub(super) type Filter<E> = Option<Rc<dyn Fn(&E) -> bool>>;

#[inline]
pub(super) fn considers<E>(filter: &Filter<E>, event: &E) -> bool {
    filter.as_ref().is_none_or(|filter| filter(event))
}

impl<E: Event, D> Rule<E, D> {
    /// Returns the rule, and its filter. A sequence must have steps.
    pub fn new(rule: SetRule<E, D>, identity: Rc<Identity>, number: u32) -> (Self, Filter<E>) {
        let SetRule { filter, condition, emission, suppress_ms, result, absent, .. } = rule;
        let machine = Machine::new(condition).expect("a sequence has steps: the version was checked");
        let suppress_ms = suppress_ms.filter(|suppress_ms| *suppress_ms > 0);
        (Rule { identity, number, machine, emission, suppress_ms, result, absent }, filter.map(Rc::from))
    }

    pub fn id(&self) -> u64 {
        self.identity.id
    }

    /// Returns true if the results are absences.
    pub fn is_absence(&self) -> bool {
        matches!(self.machine, Machine::Silence(_))
    }

    /// Returns true if no event changes the state of the rule.
    pub fn has_no_state(&self) -> bool {
        matches!(self.machine, Machine::Match(_)) && self.suppress_ms.is_none()
    }

    /// Processes the key's next event, which the rule considers. `index` is that of the rule in its version. The rule's
    /// state is at `at` or later.
    #[inline]
    pub fn step(
        &self,
        index: usize,
        at: &mut usize,
        state: &mut SetState,
        event: &E,
        undos: &mut impl UndoSink<RuleUndo>,
        found: &mut Vec<Found<D>>,
    ) {
        if self.has_no_state() {
            let mut until = i64::MIN;
            return self.raise(&Finding::Match, true, &mut until, event, found);
        }
        let place = state.find(*at, &self.identity);
        *at = place + 1;
        // The undo data of the step is not needed if the entry before it is known.
        let undo_of_entry = match state.entries.get_mut(place) {
            Some(entry) if entry.is_of(&self.identity) => None,
            Some(entry) if entry.id() == self.id() => Some(self.adopt(entry)),
            _ => {
                state.insert(place, self.initial());
                Some(ConditionUndo::Fresh)
            }
        };
        let entry = &mut state.entries[place];
        let until = entry.until;
        let undo = &mut undos.push(RuleUndo { rule: index as u32, undo: ConditionUndo::Event }).undo;
        self.advance(entry, event, undo, found);
        if let Some(undo_of_entry) = undo_of_entry {
            *undo = undo_of_entry;
        } else if entry.until != until {
            undos.push(RuleUndo { rule: index as u32, undo: ConditionUndo::Until(until) });
        }
    }

    /// Turns an entry that another definition has left into one of this rule. Returns the data to undo that.
    #[cold]
    fn adopt(&self, entry: &mut Entry) -> ConditionUndo {
        let adopted = self.adopted(entry.clone()).unwrap_or_else(|| self.initial());
        ConditionUndo::Adopted(Box::new(std::mem::replace(entry, adopted)))
    }

    /// Returns the entry before all events.
    fn initial(&self) -> Entry {
        Entry { identity: Rc::clone(&self.identity), until: i64::MIN, state: self.machine.initial() }
    }

    /// Returns an entry that a rule with another definition, or of another process, has left, in a form that this rule can
    /// step; `None` if it is of another kind of condition.
    pub fn adopted(&self, entry: Entry) -> Option<Entry> {
        let state = self.machine.adopt(entry.state)?;
        Some(Entry { identity: Rc::clone(&self.identity), until: entry.until, state })
    }

    #[inline]
    fn advance(&self, entry: &mut Entry, event: &E, undo: &mut ConditionUndo, found: &mut Vec<Found<D>>) {
        let Entry { until, state, .. } = entry;
        if let (Machine::Silence(silence), ConditionState::Runs(runs)) = (&self.machine, &mut *state) {
            let before = silence.step(runs, until, self.suppress_ms, event, |due, diff| {
                found.push(self.expect(event.key(), &due, diff));
            });
            undo.put(ConditionUndo::Runs(before.map(Box::new)));
            return;
        }
        if let Some((finding, rises)) = self.machine.step(state, event, undo) {
            self.raise(&finding, rises, until, event, found);
        }
    }

    /// Undoes an item of the latest step, which was of this rule. Not for a step that made the entry.
    pub fn undo(&self, entry: &mut Entry, event: &E, undo: ConditionUndo) {
        match undo {
            ConditionUndo::Until(until) => entry.until = until,
            ConditionUndo::Adopted(before) => *entry = *before,
            undo => self.machine.undo(&mut entry.state, event, undo),
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

    fn expect(&self, key: &E::Key, due: &Due, diff: isize) -> Found<D> {
        let answer = (self.absent)(key, &due.anchor, &due.finding);
        Found { rule: self.number, answer, due: Some(due.due), diff }
    }

    /// Appends the absences of a state of final events only that are not due at `watermark`.
    pub fn waiting(&self, entry: &Entry, key: &E::Key, watermark: EventTime, found: &mut Vec<Found<D>>) {
        if let (Machine::Silence(silence), ConditionState::Runs(runs)) = (&self.machine, &entry.state) {
            let waiting = silence.waiting(runs, entry.until, self.suppress_ms, watermark);
            found.extend(waiting.map(|due| self.expect(key, &due, 1)));
        }
    }

    /// Describes a state, as this rule would process it.
    pub fn describe(&self, entry: &Entry, watermark: EventTime) -> Option<Description> {
        if entry.is_of(&self.identity) {
            self.machine.describe(&entry.state, watermark)
        } else {
            self.machine.describe(&self.adopted(entry.clone())?.state, watermark)
        }
    }
}
