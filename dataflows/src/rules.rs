//! Rules: patterns that are evaluated together, in one pass over the events of a key.

use crate::patterns::{Absence, Run, Waiting};
use crate::{Emission, Event, EventTime, Pattern};

/// A pattern, what is made of its matches, and when they are given.
pub struct Rule<P, F> {
    pattern: P,
    emission: Emission,
    result: F,
}

impl<P, F> Rule<P, F> {
    /// `result` turns an event that matches, and the match, into what comes out.
    pub fn new(pattern: P, emission: Emission, result: F) -> Self {
        Rule { pattern, emission, result }
    }
}

/// A rule for what does not follow, given when the watermark has passed the time for it.
pub struct Missing<E, T, F> {
    absence: Absence<E, T>,
    result: F,
}

impl<E, T, F> Missing<E, T, F> {
    /// `result` turns the key, and what was not followed, into what comes out.
    pub fn new(absence: Absence<E, T>, result: F) -> Self {
        Missing { absence, result }
    }
}

/// What a step says of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<D> {
    /// The answer.
    pub answer: D,
    /// The time that the watermark must have passed before it is given; none if it is given at once.
    pub due: Option<EventTime>,
    /// 1 if the answer holds from this step on, −1 if one that is not given yet no longer does.
    pub diff: isize,
}

impl<D> Found<D> {
    fn at<E: Event>(event: &E, emission: Emission, answer: D) -> Found<D> {
        let due = (emission == Emission::Final).then(|| event.time());
        Found { answer, due, diff: 1 }
    }
}

/// Several rules with one type of result: `()`, or a [`Rule`] (or none) or [`Missing`] and further rules,
/// `(rule, (rule, ()))`.
///
/// They are stepped together, so that a key's states lie side by side and each event is looked at once. Not meant
/// to be implemented elsewhere.
pub trait Rules<E: Event, D>: 'static {
    /// What they remember of a key.
    type State: Default + 'static;
    /// What takes the state back over one event.
    type Undo: 'static;

    /// Takes in a key's next event; appends what is found.
    fn step(&self, state: &mut Self::State, event: &E, found: &mut Vec<Found<D>>) -> Self::Undo;

    /// Goes back over the latest event.
    fn undo(&self, state: &mut Self::State, event: &E, undo: Self::Undo);

    /// Appends what was found and is not due at `watermark`, though all events that the state knows are final.
    fn waiting(&self, state: &Self::State, key: &E::Key, watermark: EventTime, found: &mut Vec<Found<D>>);
}

impl<E: Event, D> Rules<E, D> for () {
    type State = ();
    type Undo = ();

    fn step(&self, _: &mut (), _: &E, _: &mut Vec<Found<D>>) {}

    fn undo(&self, _: &mut (), _: &E, _: ()) {}

    fn waiting(&self, _: &(), _: &E::Key, _: EventTime, _: &mut Vec<Found<D>>) {}
}

impl<E, D, P, F, Rest> Rules<E, D> for (Rule<P, F>, Rest)
where
    E: Event,
    P: Pattern<E>,
    F: Fn(&E, P::Match) -> D + 'static,
    Rest: Rules<E, D>,
{
    type State = (P::State, Rest::State);
    type Undo = (P::Undo, Rest::Undo);

    #[inline]
    fn step(&self, state: &mut Self::State, event: &E, found: &mut Vec<Found<D>>) -> Self::Undo {
        let (rule, rest) = self;
        let (matched, undo) = rule.pattern.step(&mut state.0, event);
        if let Some(matched) = matched {
            found.push(Found::at(event, rule.emission, (rule.result)(event, matched)));
        }
        (undo, rest.step(&mut state.1, event, found))
    }

    #[inline]
    fn undo(&self, state: &mut Self::State, event: &E, (undo, others): Self::Undo) {
        self.1.undo(&mut state.1, event, others);
        self.0.pattern.undo(&mut state.0, event, undo);
    }

    fn waiting(&self, state: &Self::State, key: &E::Key, watermark: EventTime, found: &mut Vec<Found<D>>) {
        self.1.waiting(&state.1, key, watermark, found);
    }
}

impl<E, D, P, F, Rest> Rules<E, D> for (Option<Rule<P, F>>, Rest)
where
    E: Event,
    P: Pattern<E>,
    F: Fn(&E, P::Match) -> D + 'static,
    Rest: Rules<E, D>,
{
    type State = (P::State, Rest::State);
    type Undo = (Option<P::Undo>, Rest::Undo);

    #[inline]
    fn step(&self, state: &mut Self::State, event: &E, found: &mut Vec<Found<D>>) -> Self::Undo {
        let (rule, rest) = self;
        let undo = rule.as_ref().map(|rule| {
            let (matched, undo) = rule.pattern.step(&mut state.0, event);
            if let Some(matched) = matched {
                found.push(Found::at(event, rule.emission, (rule.result)(event, matched)));
            }
            undo
        });
        (undo, rest.step(&mut state.1, event, found))
    }

    #[inline]
    fn undo(&self, state: &mut Self::State, event: &E, (undo, others): Self::Undo) {
        self.1.undo(&mut state.1, event, others);
        if let (Some(rule), Some(undo)) = (&self.0, undo) {
            rule.pattern.undo(&mut state.0, event, undo);
        }
    }

    fn waiting(&self, state: &Self::State, key: &E::Key, watermark: EventTime, found: &mut Vec<Found<D>>) {
        self.1.waiting(&state.1, key, watermark, found);
    }
}

impl<E, D, T, F, Rest> Rules<E, D> for (Missing<E, T, F>, Rest)
where
    E: Event,
    T: Clone + 'static,
    F: Fn(&E::Key, &Run<T>) -> D + 'static,
    Rest: Rules<E, D>,
{
    type State = (Waiting<T>, Rest::State);
    type Undo = (Option<Waiting<T>>, Rest::Undo);

    fn step(&self, state: &mut Self::State, event: &E, found: &mut Vec<Found<D>>) -> Self::Undo {
        let (Missing { absence, result }, rest) = self;
        let undo = absence.step(&mut state.0, event, |run, diff| {
            let (answer, due) = (result(event.key(), run), Some(absence.deadline(run)));
            found.push(Found { answer, due, diff });
        });
        (undo, rest.step(&mut state.1, event, found))
    }

    fn undo(&self, state: &mut Self::State, event: &E, (undo, others): Self::Undo) {
        self.1.undo(&mut state.1, event, others);
        self.0.absence.undo(&mut state.0, undo);
    }

    fn waiting(&self, state: &Self::State, key: &E::Key, watermark: EventTime, found: &mut Vec<Found<D>>) {
        let (Missing { absence, result }, rest) = self;
        for run in absence.waiting(&state.0, watermark) {
            found.push(Found { answer: result(key, run), due: Some(absence.deadline(run)), diff: 1 });
        }
        rest.waiting(&state.1, key, watermark, found);
    }
}
