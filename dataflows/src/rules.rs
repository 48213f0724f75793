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
    /// The number of the rule that says it.
    pub rule: u32,
    /// The answer.
    pub answer: D,
    /// The time that the watermark must have passed before it is given; none if it is given at once.
    pub due: Option<EventTime>,
    /// 1 if the answer holds from this step on, −1 if one that is not given yet no longer does.
    pub diff: isize,
}

/// A [`Rule`], a [`Missing`], or perhaps one of them (an `Option`). Not meant to be implemented elsewhere.
pub trait OneRule<E: Event, D>: 'static {
    /// What it remembers of a key.
    type State: Default + Clone + 'static;
    /// What takes the state back over one event.
    type Undo: Clone + 'static;

    /// Takes in a key's next event. `emit` hears of each answer, when it is due and its diff: see [`Found`].
    fn step(
        &self,
        state: &mut Self::State,
        event: &E,
        emit: impl FnMut(D, Option<EventTime>, isize),
    ) -> Self::Undo;

    /// Goes back over the latest event.
    fn undo(&self, state: &mut Self::State, event: &E, undo: Self::Undo);

    /// Asks for the memory that the next event's step will read and that the state points to.
    fn prefetch(&self, state: &Self::State, event: &E);

    /// Tells of each answer that is not due at `watermark`, though all events that the state knows are final.
    fn waiting(
        &self,
        _state: &Self::State,
        _key: &E::Key,
        _watermark: EventTime,
        _tell: impl FnMut(D, Option<EventTime>, isize),
    ) {
    }

    /// Whether one state may stand for the other: see [`Pattern::same`].
    fn same(&self, one: &Self::State, other: &Self::State) -> bool;
}

impl<E, D, P, F> OneRule<E, D> for Rule<P, F>
where
    E: Event,
    P: Pattern<E>,
    F: Fn(&E, P::Match) -> D + 'static,
{
    type State = P::State;
    type Undo = P::Undo;

    #[inline]
    fn step(
        &self,
        state: &mut P::State,
        event: &E,
        mut emit: impl FnMut(D, Option<EventTime>, isize),
    ) -> P::Undo {
        let (matched, undo) = self.pattern.step(state, event);
        if let Some(matched) = matched {
            let due = (self.emission == Emission::Final).then(|| event.time());
            emit((self.result)(event, matched), due, 1);
        }
        undo
    }

    #[inline]
    fn undo(&self, state: &mut P::State, event: &E, undo: P::Undo) {
        self.pattern.undo(state, event, undo);
    }

    #[inline]
    fn prefetch(&self, state: &P::State, event: &E) {
        self.pattern.prefetch(state, event);
    }

    fn same(&self, one: &P::State, other: &P::State) -> bool {
        self.pattern.same(one, other)
    }
}

impl<E, D, T, F> OneRule<E, D> for Missing<E, T, F>
where
    E: Event,
    T: Clone + PartialEq + 'static,
    F: Fn(&E::Key, &Run<T>) -> D + 'static,
{
    type State = Waiting<T>;
    type Undo = Option<Waiting<T>>;

    fn step(
        &self,
        state: &mut Self::State,
        event: &E,
        mut emit: impl FnMut(D, Option<EventTime>, isize),
    ) -> Self::Undo {
        let Missing { absence, result } = self;
        absence.step(state, event, |run, diff| {
            emit(result(event.key(), run), Some(absence.deadline(run)), diff);
        })
    }

    fn undo(&self, state: &mut Self::State, _event: &E, undo: Self::Undo) {
        self.absence.undo(state, undo);
    }

    #[inline]
    fn prefetch(&self, _state: &Self::State, _event: &E) {}

    fn waiting(
        &self,
        state: &Self::State,
        key: &E::Key,
        watermark: EventTime,
        mut emit: impl FnMut(D, Option<EventTime>, isize),
    ) {
        for run in self.absence.waiting(state, watermark) {
            emit((self.result)(key, run), Some(self.absence.deadline(run)), 1);
        }
    }

    fn same(&self, one: &Self::State, other: &Self::State) -> bool {
        one == other
    }
}

impl<E: Event, D, R: OneRule<E, D>> OneRule<E, D> for Option<R> {
    type State = R::State;
    type Undo = Option<R::Undo>;

    #[inline]
    fn step(
        &self,
        state: &mut R::State,
        event: &E,
        emit: impl FnMut(D, Option<EventTime>, isize),
    ) -> Self::Undo {
        self.as_ref().map(|rule| rule.step(state, event, emit))
    }

    #[inline]
    fn undo(&self, state: &mut R::State, event: &E, undo: Self::Undo) {
        if let (Some(rule), Some(undo)) = (self, undo) {
            rule.undo(state, event, undo);
        }
    }

    #[inline]
    fn prefetch(&self, state: &R::State, event: &E) {
        if let Some(rule) = self {
            rule.prefetch(state, event);
        }
    }

    fn waiting(
        &self,
        state: &R::State,
        key: &E::Key,
        watermark: EventTime,
        emit: impl FnMut(D, Option<EventTime>, isize),
    ) {
        if let Some(rule) = self {
            rule.waiting(state, key, watermark, emit);
        }
    }

    fn same(&self, one: &R::State, other: &R::State) -> bool {
        self.as_ref().is_none_or(|rule| rule.same(one, other))
    }
}

/// Several rules with one type of result: `()`, or a [`Rule`] or [`Missing`] (or none: an `Option`) and further rules,
/// `(rule, (rule, ()))`.
///
/// They are stepped together, so that a key's states lie side by side and each event is looked at once. Not meant
/// to be implemented elsewhere.
pub trait Rules<E: Event, D>: 'static {
    /// How many rules there are. A rule's number is how many come after it.
    const COUNT: u32;
    /// What they remember of a key.
    type State: Default + Clone + 'static;
    /// What takes the state back over one event.
    type Undo: Clone + 'static;

    /// Takes in a key's next event; appends what is found.
    fn step(&self, state: &mut Self::State, event: &E, found: &mut Vec<Found<D>>) -> Self::Undo;

    /// Goes back over the latest event.
    fn undo(&self, state: &mut Self::State, event: &E, undo: Self::Undo);

    /// Asks for the memory that the next event's step will read and that the state points to.
    fn prefetch(&self, state: &Self::State, event: &E);

    /// Takes in a key's next event again, for the rules that are live; `undo` is what the step gave before.
    fn step_again(
        &self,
        live: Live,
        state: &mut Self::State,
        event: &E,
        undo: &mut Self::Undo,
        found: &mut Vec<Found<D>>,
    );

    /// Leaves those rules live whose state is not what it `was` after the same event.
    fn settle(&self, live: &mut Live, state: &Self::State, was: &Self::State);

    /// Gives the rules that are not live the state that `was` after the same event.
    fn restore(&self, live: Live, state: &mut Self::State, was: Self::State);

    /// Appends what was found and is not due at `watermark`, though all events that the state knows are final.
    fn waiting(&self, state: &Self::State, key: &E::Key, watermark: EventTime, found: &mut Vec<Found<D>>);
}

impl<E: Event, D> Rules<E, D> for () {
    const COUNT: u32 = 0;
    type State = ();
    type Undo = ();

    fn step(&self, _: &mut (), _: &E, _: &mut Vec<Found<D>>) {}

    fn undo(&self, _: &mut (), _: &E, _: ()) {}

    fn prefetch(&self, _: &(), _: &E) {}

    fn step_again(&self, _: Live, _: &mut (), _: &E, _: &mut (), _: &mut Vec<Found<D>>) {}

    fn settle(&self, _: &mut Live, _: &(), _: &()) {}

    fn restore(&self, _: Live, _: &mut (), _: ()) {}

    fn waiting(&self, _: &(), _: &E::Key, _: EventTime, _: &mut Vec<Found<D>>) {}
}

impl<E: Event, D, R: OneRule<E, D>, Rest: Rules<E, D>> Rules<E, D> for (R, Rest) {
    const COUNT: u32 = Rest::COUNT + 1;
    type State = (R::State, Rest::State);
    type Undo = (R::Undo, Rest::Undo);

    #[inline]
    fn step(&self, state: &mut Self::State, event: &E, found: &mut Vec<Found<D>>) -> Self::Undo {
        let emit = |answer, due, diff| found.push(Found { rule: Rest::COUNT, answer, due, diff });
        let undo = self.0.step(&mut state.0, event, emit);
        (undo, self.1.step(&mut state.1, event, found))
    }

    #[inline]
    fn undo(&self, state: &mut Self::State, event: &E, (undo, others): Self::Undo) {
        self.1.undo(&mut state.1, event, others);
        self.0.undo(&mut state.0, event, undo);
    }

    fn step_again(
        &self,
        live: Live,
        state: &mut Self::State,
        event: &E,
        undo: &mut Self::Undo,
        found: &mut Vec<Found<D>>,
    ) {
        if live.has(Rest::COUNT) {
            let emit = |answer, due, diff| found.push(Found { rule: Rest::COUNT, answer, due, diff });
            undo.0 = self.0.step(&mut state.0, event, emit);
        }
        self.1.step_again(live, &mut state.1, event, &mut undo.1, found);
    }

    fn settle(&self, live: &mut Live, state: &Self::State, was: &Self::State) {
        if live.has(Rest::COUNT) && self.0.same(&state.0, &was.0) {
            live.remove(Rest::COUNT);
        }
        self.1.settle(live, &state.1, &was.1);
    }

    fn restore(&self, live: Live, state: &mut Self::State, was: Self::State) {
        if !live.has(Rest::COUNT) {
            state.0 = was.0;
        }
        self.1.restore(live, &mut state.1, was.1);
    }

    #[inline]
    fn prefetch(&self, state: &Self::State, event: &E) {
        self.0.prefetch(&state.0, event);
        self.1.prefetch(&state.1, event);
    }

    fn waiting(&self, state: &Self::State, key: &E::Key, watermark: EventTime, found: &mut Vec<Found<D>>) {
        let emit = |answer, due, diff| found.push(Found { rule: Rest::COUNT, answer, due, diff });
        self.0.waiting(&state.0, key, watermark, emit);
        self.1.waiting(&state.1, key, watermark, found);
    }
}

/// The rules, by number, whose steps are to be taken again. From the 63rd on all always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live(u64);

impl Live {
    /// Stands for all rules from the 63rd on.
    const LAST: u32 = u64::BITS - 1;

    /// All of so many rules.
    pub fn all(count: u32) -> Live {
        Live(if count > Self::LAST { u64::MAX } else { (1 << count) - 1 })
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this is one of them.
    pub fn has(self, rule: u32) -> bool {
        self.0 & (1 << rule.min(Self::LAST)) != 0
    }

    /// Without one of them.
    pub fn without(mut self, rule: u32) -> Live {
        self.remove(rule);
        self
    }

    fn remove(&mut self, rule: u32) {
        if rule < Self::LAST {
            self.0 &= !(1 << rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_rules_there_are_those_with_numbers_too_great_stay_live() {
        for count in [0, 1, 62, 63, 64, 65, 200] {
            let mut live = Live::all(count);
            assert!((0..count).all(|rule| live.has(rule)), "{count}");
            (0..count).for_each(|rule| live.remove(rule));
            assert_eq!(live.is_empty(), count < 64, "{count}");
            assert!((0..count.min(63)).all(|rule| !live.has(rule)), "{count}");
            assert!((63..count).all(|rule| live.has(rule)), "{count}");
        }
    }
}
