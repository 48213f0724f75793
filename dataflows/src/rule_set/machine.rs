//! The evaluation of conditions: each is a pattern, and its state a variant of one type.

use std::rc::Rc;

use super::condition::{Condition, Locate, Number, Predicate, Shared, Step, Value};
use super::finding::{Course, Finding, Milestone};
use super::silence::Silence;
use super::state::{ConditionState as State, ConditionUndo as Undo};
use crate::patterns::{
    Anchored, Average, Description, Displaced, Diversity, Every, Evicted, Frequency, Grouped, Holding,
    Outlier, Sequence, Share, Steps, Sum, Travel,
};
use crate::{Anchor, Event, EventTime, Pattern};

/// A condition that can be evaluated.
pub(super) enum Machine<E> {
    Match(Every),
    Count(Frequency),
    Sum(Sum<Number<E>>),
    Average(Average<Number<E>>),
    Distinct(Diversity<Value<E>>),
    Share(Share<Predicate<E>>),
    Outlier(Outlier<Number<E>>),
    OutlierByGroup(Grouped<Outlier<Number<E>>, Value<E>>),
    Travel(Travel<Locate<E>, Anchored>),
    Sequence(Sequence<E, Milestone>, u32),
    Silence(Silence<E>),
}

/// The result of a step: what was found, and true if it was not found at the event before.
pub(super) type Held = Option<(Finding, bool)>;

impl<E: Event> Machine<E> {
    /// Returns the evaluation of a condition; `None` if it is a sequence without steps.
    pub fn new(condition: Condition<E>) -> Option<Machine<E>> {
        Some(match condition {
            Condition::Match => Machine::Match(Every),
            Condition::Count { at_least, within_ms } => {
                Machine::Count(Frequency::at_least(at_least, within_ms))
            }
            Condition::Sum { of, bound, within_ms } => Machine::Sum(Sum::new(bound, within_ms, of)),
            Condition::Average { of, bound, at_least_events, within_ms } => {
                Machine::Average(Average::new(bound, at_least_events, within_ms, of))
            }
            Condition::Distinct { of, at_least, within_ms } => {
                Machine::Distinct(Diversity::at_least(at_least, within_ms, of))
            }
            Condition::Share { of, more_than_ppm, at_least_events, within_ms } => {
                Machine::Share(Share::more_than(more_than_ppm, at_least_events, within_ms, of))
            }
            Condition::Outlier { of, sigmas, at_least, min_sigma, min_relative_sigma, group_by } => {
                let outlier = Outlier::beyond(sigmas, at_least, min_sigma, of);
                let outlier = outlier.with_min_relative_sigma(min_relative_sigma);
                match group_by {
                    None => Machine::Outlier(outlier),
                    Some(group) => Machine::OutlierByGroup(Grouped::by(outlier, group)),
                }
            }
            Condition::Travel { km, kmh, location } => Machine::Travel(Travel::anchored(km, kmh, location)),
            Condition::Sequence { steps, within_ms, absent } => {
                let first_times = steps.first()?.times.max(1);
                let steps = sequence(steps)?;
                match absent {
                    None => Machine::Sequence(steps.at_most(1).within(within_ms), first_times),
                    Some(absent) => {
                        let absence = steps.then_not(move |_, event| absent(event)).within(within_ms);
                        Machine::Silence(Silence::new(absence, first_times))
                    }
                }
            }
            Condition::Absence { within_ms } => {
                let first = Sequence::first(|event: &E| Some(anchor(event)));
                let absence = first.at_most(1).then_not(|_, _| true).within(within_ms);
                Machine::Silence(Silence::new(absence, 1))
            }
        })
    }

    /// Returns the state before all events.
    pub fn initial(&self) -> State {
        match self {
            Machine::Match(_) => State::Nothing,
            Machine::Count(_) => State::Count(Default::default()),
            Machine::Sum(_) | Machine::Average(_) | Machine::Share(_) => State::Trailing(Box::default()),
            Machine::Distinct(_) => State::Distinct(Default::default()),
            Machine::Outlier(_) => State::Outlier(Box::default()),
            Machine::OutlierByGroup(_) => State::Groups(None),
            Machine::Travel(_) => State::Travel(None),
            Machine::Sequence(..) | Machine::Silence(_) => State::Runs(Vec::new()),
        }
    }

    /// Returns a stored state in a form that this condition can process; `None` if it is that of another condition. The
    /// condition it was stored by may have had other parameters.
    pub fn adopt(&self, state: State) -> Option<State> {
        Some(match (self, state) {
            (Machine::Count(frequency), State::Count(state)) => State::Count(frequency.adopt(state)),
            (Machine::Distinct(diversity), State::Distinct(state)) => State::Distinct(diversity.adopt(state)),
            (Machine::Sequence(sequence, _), State::Runs(runs)) => State::Runs(sequence.adopt(runs)),
            (Machine::Silence(silence), State::Runs(runs)) => State::Runs(silence.adopt(runs)),
            (machine, state) => {
                let same = std::mem::discriminant(&machine.initial()) == std::mem::discriminant(&state);
                return same.then_some(state);
            }
        })
    }

    /// Processes the key's next event, and sets the data needed to undo it. Not for a [`Silence`], whose results need no
    /// event.
    #[inline]
    pub fn step(&self, state: &mut State, event: &E, undo: &mut Undo) -> Held {
        match (self, state) {
            (Machine::Match(_), _) => Some((Finding::Match, true)),
            (Machine::Count(pattern), State::Count(state)) => {
                let (held, before) = pattern.step_holding(state, event);
                undo.put(Undo::Count(before));
                held.map(|(found, rises)| (Finding::Count(found), rises))
            }
            (machine, state) => machine.step_other(state, event, undo),
        }
    }

    /// Processes the next event with a condition that needs more time than a call.
    fn step_other(&self, state: &mut State, event: &E, undo: &mut Undo) -> Held {
        match (self, state) {
            (Machine::Sum(pattern), State::Trailing(state)) => {
                let (held, before) = pattern.step_holding(state, event);
                undo.put(before.into());
                held.map(|(found, rises)| (Finding::Sum(found), rises))
            }
            (Machine::Average(pattern), State::Trailing(state)) => {
                let (held, before) = pattern.step_holding(state, event);
                undo.put(before.into());
                held.map(|(found, rises)| (Finding::Average(found), rises))
            }
            (Machine::Distinct(pattern), State::Distinct(state)) => {
                let (held, before) = pattern.step_holding(state, event);
                undo.put(before.into());
                held.map(|(found, rises)| (Finding::Distinct(found), rises))
            }
            (Machine::Share(pattern), State::Trailing(state)) => {
                let (held, before) = pattern.step_holding(state, event);
                undo.put(before.into());
                held.map(|(found, rises)| (Finding::Share(found), rises))
            }
            (machine, state) => machine.step_each(state, event, undo).map(|found| (found, true)),
        }
    }

    /// Processes the next event with a condition that matches at each event for which it holds.
    fn step_each(&self, state: &mut State, event: &E, undo: &mut Undo) -> Option<Finding> {
        match (self, state) {
            (Machine::Outlier(pattern), State::Outlier(state)) => {
                pattern.step(state, event).0.map(Finding::Outlier)
            }
            (Machine::OutlierByGroup(pattern), State::Groups(state)) => {
                let (found, before) = pattern.step(state, event);
                undo.put(Undo::Groups(before));
                found.map(Finding::Outlier)
            }
            (Machine::Travel(pattern), State::Travel(state)) => {
                let (found, before) = pattern.step(state, event);
                undo.put(Undo::Travel(before));
                found.map(Finding::Travel)
            }
            (Machine::Sequence(pattern, first_times), State::Runs(state)) => {
                let (found, before) = pattern.step(state, event);
                undo.put(Undo::Runs(before.map(Box::new)));
                found.and_then(|run| Course::of(&run, *first_times)).map(Finding::Sequence)
            }
            _ => unreachable!("a state is made or adopted by its condition"),
        }
    }

    /// Undoes the latest step.
    pub fn undo(&self, state: &mut State, event: &E, undo: Undo) {
        match (self, state, undo) {
            (Machine::Match(_), ..) | (_, State::Trailing(_) | State::Distinct(_), Undo::Event) => {}
            (Machine::Count(pattern), State::Count(state), Undo::Count(undo)) => {
                pattern.undo(state, event, undo);
            }
            (Machine::Sum(pattern), State::Trailing(state), Undo::Trailing { numbers, held }) => {
                pattern.undo(state, event, Evicted { has_number: true, held, numbers });
            }
            (Machine::Average(pattern), State::Trailing(state), Undo::Trailing { numbers, held }) => {
                pattern.undo(state, event, Evicted { has_number: true, held, numbers });
            }
            (Machine::Share(pattern), State::Trailing(state), Undo::Trailing { numbers, held }) => {
                pattern.undo(state, event, Evicted { has_number: true, held, numbers });
            }
            (Machine::Distinct(pattern), State::Distinct(state), Undo::Distinct { value, from, held }) => {
                pattern.undo(state, event, Displaced { has_value: true, held, from, value });
            }
            (Machine::Outlier(pattern), State::Outlier(state), Undo::Event) => {
                pattern.undo(state, event, ());
            }
            (Machine::OutlierByGroup(pattern), State::Groups(state), Undo::Groups(undo)) => {
                pattern.undo(state, event, undo);
            }
            (Machine::Travel(pattern), State::Travel(state), Undo::Travel(undo)) => {
                pattern.undo(state, event, undo);
            }
            (Machine::Sequence(..) | Machine::Silence(_), State::Runs(state), Undo::Runs(undo)) => {
                if let Some(before) = undo {
                    *state = *before;
                }
            }
            _ => unreachable!("a step returns undo data of its own condition"),
        }
    }

    /// Describes a state: see [`Pattern::describe`].
    pub fn describe(&self, state: &State, watermark: EventTime) -> Option<Description> {
        match (self, state) {
            (Machine::Count(pattern), State::Count(state)) => {
                Pattern::<E>::describe(pattern, state, watermark)
            }
            (Machine::Sum(pattern), State::Trailing(state)) => pattern.describe(state, watermark),
            (Machine::Average(pattern), State::Trailing(state)) => pattern.describe(state, watermark),
            (Machine::Share(pattern), State::Trailing(state)) => pattern.describe(state, watermark),
            (Machine::Distinct(pattern), State::Distinct(state)) => pattern.describe(state, watermark),
            (Machine::Outlier(pattern), State::Outlier(state)) => pattern.describe(state, watermark),
            (Machine::OutlierByGroup(pattern), State::Groups(state)) => pattern.describe(state, watermark),
            (Machine::Travel(pattern), State::Travel(state)) => pattern.describe(state, watermark),
            (Machine::Sequence(pattern, _), State::Runs(state)) => pattern.describe(state, watermark),
            (Machine::Silence(silence), State::Runs(state)) => Some(silence.describe(state, watermark)),
            _ => None,
        }
    }
}

fn anchor<E: Event>(event: &E) -> Milestone {
    Some(Rc::new(Anchor::of(event)))
}

/// Returns the steps of a sequence, each as often as it takes an event; `None` if there are none.
fn sequence<E: Event>(steps: Vec<Step<E>>) -> Option<Steps<E, Milestone>> {
    let mut steps = steps.into_iter();
    let Step { filter, times } = steps.next()?;
    let filter: Shared<E> = Rc::from(filter);
    let first = Rc::clone(&filter);
    let started = Sequence::first(move |event: &E| first(event).then(|| anchor(event)));
    let taken_more = repeat(started, &filter, times.max(1) - 1);
    Some(
        steps.fold(taken_more, |before, Step { filter, times }| {
            repeat(before, &Rc::from(filter), times.max(1))
        }),
    )
}

/// Adds a step `times` times. The last event completes the step.
fn repeat<E: Event>(before: Steps<E, Milestone>, filter: &Shared<E>, times: u32) -> Steps<E, Milestone> {
    (1..=times).fold(before, |before, time| {
        let filter = Rc::clone(filter);
        let completes = time == times;
        before.then(move |_, event| filter(event).then(|| completes.then(|| anchor(event)).flatten()))
    })
}
