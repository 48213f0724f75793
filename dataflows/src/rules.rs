//! Rules: patterns evaluated together in one pass over the events of a key.

use crate::capture::Damage;
use crate::patterns::{Absence, Description, Run, Waiting};
use crate::{Emission, Epoch, Event, EventTime, KeyHash, OwnedKey, Pattern};

/// A pattern, the function that makes results of its matches, and the time of their emission.
pub struct Rule<P, F> {
    pattern: P,
    emission: Emission,
    result: F,
}

impl<P, F> Rule<P, F> {
    /// Creates a rule. `result` makes a result of a matching event and its match.
    pub fn new(pattern: P, emission: Emission, result: F) -> Self {
        Rule { pattern, emission, result }
    }
}

/// A rule for absent events, whose results are emitted when the watermark has passed the deadline.
pub struct Missing<E, T, F> {
    absence: Absence<E, T>,
    result: F,
}

impl<E, T, F> Missing<E, T, F> {
    /// Creates a rule. `result` makes a result of the key and the run that no event followed.
    pub fn new(absence: Absence<E, T>, result: F) -> Self {
        Missing { absence, result }
    }
}

/// A change of a result, found by a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<D> {
    /// The number of the rule.
    pub rule: u32,
    /// The result.
    pub answer: D,
    /// The time that the watermark must pass before the result is emitted; `None` if it is emitted at once.
    pub due: Option<EventTime>,
    /// 1 if the result holds from this step on, −1 if a result that has not been emitted no longer holds.
    pub diff: isize,
}

/// A [`Rule`], a [`Missing`], or an `Option` of one of them. Not meant to be implemented elsewhere.
pub trait OneRule<E: Event, D>: 'static {
    /// The state of a key.
    type State: Default + Clone + 'static;
    /// The data needed to undo one step.
    type Undo: Clone + 'static;

    /// Processes the key's next event. Calls `emit` for each result, with its due time and diff: see [`Found`].
    fn step(
        &self,
        state: &mut Self::State,
        event: &E,
        emit: impl FnMut(D, Option<EventTime>, isize),
    ) -> Self::Undo;

    /// Undoes the latest step.
    fn undo(&self, state: &mut Self::State, event: &E, undo: Self::Undo);

    /// Prefetches the memory that the state points to and that the step of `event` will read.
    fn prefetch(&self, state: &Self::State, event: &E);

    /// Calls `emit` for each result that is not due at `watermark`, given a state of final events only.
    fn waiting(
        &self,
        _state: &Self::State,
        _key: &E::Key,
        _watermark: EventTime,
        _emit: impl FnMut(D, Option<EventTime>, isize),
    ) {
    }

    /// Returns true if one state can replace the other: see [`Pattern::same`].
    fn same(&self, one: &Self::State, other: &Self::State) -> bool;

    /// Describes a state: see [`Pattern::describe`].
    fn describe(&self, state: &Self::State, watermark: EventTime) -> Option<Description>;
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

    fn describe(&self, state: &P::State, watermark: EventTime) -> Option<Description> {
        self.pattern.describe(state, watermark)
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

    fn describe(&self, state: &Self::State, watermark: EventTime) -> Option<Description> {
        Some(self.absence.describe(state, watermark))
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

    fn describe(&self, state: &R::State, watermark: EventTime) -> Option<Description> {
        self.as_ref().and_then(|rule| rule.describe(state, watermark))
    }
}

/// A place for the items of undo data of a step: a list, or an `Option` for at most one. Not meant to be implemented
/// elsewhere.
pub trait UndoSink<U> {
    /// Adds an item, and returns it: to change it in place takes less time than to copy it afterwards.
    fn push(&mut self, item: U) -> &mut U;
}

impl<U> UndoSink<U> for Vec<Option<U>> {
    #[inline]
    fn push(&mut self, item: U) -> &mut U {
        self.push_mut(Some(item)).as_mut().expect("it was just added")
    }
}

impl<U> UndoSink<U> for Option<U> {
    #[inline]
    fn push(&mut self, item: U) -> &mut U {
        self.insert(item)
    }
}

/// The states of rules that enter as if they had always been there.
pub struct Entering<E: Event, S> {
    /// The time up to which the states are.
    pub after: EventTime,
    /// The states, by key.
    pub states: Vec<KeyedState<E, S>>,
}

/// The states of rules for one key.
#[derive(Clone, Debug)]
pub struct KeyedState<E: Event, S> {
    /// The hash of the key.
    pub hash: KeyHash,
    /// The key.
    pub key: OwnedKey<E>,
    /// The time of the last event of the key among those that the states are of.
    pub last: EventTime,
    /// The states.
    pub state: S,
}

/// Several rules with one type of result: `()`, or a [`Rule`] or [`Missing`] (or none: an `Option`) and further rules,
/// `(rule, (rule, ()))`. Or a [`RuleSet`](crate::RuleSet), whose rules are known only when the program runs.
///
/// They are stepped together, so that the states of a key are adjacent in memory and each event is read once. Not meant
/// to be implemented elsewhere.
pub trait Rules<E: Event, D>: 'static {
    /// The states of a key.
    type State: Default + Clone + 'static;
    /// An item of the data needed to undo one step.
    type Undo: Clone + 'static;

    /// Returns a bound of the numbers of rules. The number of a rule is the count of rules after it, or that in a
    /// [`RuleSet`](crate::RuleSet).
    fn count(&self) -> u32;

    /// Returns the set of all rules.
    fn all(&self) -> Live {
        Live::all(self.count())
    }

    /// Processes the key's next event, and appends its results to `found`, and to `undo` each item of the data needed to
    /// undo the step.
    fn step(
        &self,
        state: &mut Self::State,
        event: &E,
        undo: &mut impl UndoSink<Self::Undo>,
        found: &mut Vec<Found<D>>,
    );

    /// Undoes the latest step, given the items of its undo data.
    fn undo(&self, state: &mut Self::State, event: &E, undo: impl DoubleEndedIterator<Item = Self::Undo>);

    /// Prefetches the memory that the state points to and that the step of `event` will read.
    fn prefetch(&self, state: &Self::State, event: &E);

    /// Prefetches the memory that [`prefetch`](Rules::prefetch) will read, some time before it.
    #[inline]
    fn prefetch_ahead(&self, _state: &Self::State) {}

    /// Repeats the step of the key's next event for the live rules. `before` are the items of the step's undo data before,
    /// which remain those of the other rules.
    fn step_again(
        &self,
        live: Live,
        state: &mut Self::State,
        event: &E,
        before: impl Iterator<Item = Self::Undo>,
        undo: &mut impl UndoSink<Self::Undo>,
        found: &mut Vec<Found<D>>,
    );

    /// Removes the rules from `live` whose state equals the state `was` of the previous evaluation at the same event.
    fn settle(&self, live: &mut Live, state: &Self::State, was: &Self::State);

    /// Sets the states of the rules that are not live to the states `was` of the previous evaluation at the same event.
    fn restore(&self, live: Live, state: &mut Self::State, was: Self::State);

    /// Takes over changes of the rules. Called before the events or the watermark of `epoch` are processed. Returns true
    /// if rules were [removed](Rules::is_removed) by a change that comes into force with this epoch.
    fn begin(&mut self, _epoch: Epoch) -> bool {
        false
    }

    /// Returns true if results of this rule that wait for the watermark are not emitted any more.
    #[inline]
    fn is_removed(&self, _rule: u32) -> bool {
        false
    }

    /// Forgets rules that judge no event above this watermark. Returns true if their states are to be
    /// [swept](Rules::sweep).
    fn forget(&mut self, _watermark: EventTime) -> bool {
        false
    }

    /// Removes the states of forgotten rules.
    fn sweep(&self, _state: &mut Self::State) {}

    /// Removes and returns the states of rules that enter at the end of `epoch`, as if they had always been there. Called
    /// after [`begin`](Rules::begin).
    fn entering(&mut self, _epoch: Epoch) -> Option<Entering<E, Self::State>> {
        None
    }

    /// Lets rules judge the events after the time that [`entering`](Rules::entering) returned for this epoch. All steps of
    /// such events are undone.
    fn enter(&mut self, _epoch: Epoch) {}

    /// Adds the states of rules that enter to the states of a key.
    fn merge(&self, _state: &mut Self::State, _entering: Self::State) {}

    /// Returns a stored state in a form that these rules can process.
    ///
    /// # Errors
    /// Fails if no rules can have stored this state.
    fn adopt(&self, state: Self::State) -> Result<Self::State, Damage> {
        Ok(state)
    }

    /// Appends the results that are not due at `watermark`, given a state of final events only.
    fn waiting(&self, state: &Self::State, key: &E::Key, watermark: EventTime, found: &mut Vec<Found<D>>);

    /// Calls `each` with the number of each rule that describes its state, and the description.
    fn describe(&self, state: &Self::State, watermark: EventTime, each: &mut dyn FnMut(u32, Description));
}

/// The undo data of a list of rules is one item: that of the first rule, and the item of the others.
const ONE_ITEM: &str = "a list of rules has one item of undo data";

impl<E: Event, D> Rules<E, D> for () {
    type State = ();
    type Undo = ();

    #[inline]
    fn count(&self) -> u32 {
        0
    }

    #[inline]
    fn step(&self, _: &mut (), _: &E, undo: &mut impl UndoSink<()>, _: &mut Vec<Found<D>>) {
        undo.push(());
    }

    fn undo(&self, _: &mut (), _: &E, _: impl DoubleEndedIterator<Item = ()>) {}

    fn prefetch(&self, _: &(), _: &E) {}

    fn step_again(
        &self,
        _: Live,
        _: &mut (),
        _: &E,
        _: impl Iterator<Item = ()>,
        undo: &mut impl UndoSink<()>,
        _: &mut Vec<Found<D>>,
    ) {
        undo.push(());
    }

    fn settle(&self, _: &mut Live, _: &(), _: &()) {}

    fn restore(&self, _: Live, _: &mut (), _: ()) {}

    fn waiting(&self, _: &(), _: &E::Key, _: EventTime, _: &mut Vec<Found<D>>) {}

    fn describe(&self, _: &(), _: EventTime, _: &mut dyn FnMut(u32, Description)) {}
}

impl<E: Event, D, R: OneRule<E, D>, Rest: Rules<E, D>> Rules<E, D> for (R, Rest) {
    type State = (R::State, Rest::State);
    type Undo = (R::Undo, Rest::Undo);

    #[inline]
    fn count(&self) -> u32 {
        self.1.count() + 1
    }

    #[inline]
    fn step(
        &self,
        state: &mut Self::State,
        event: &E,
        undo: &mut impl UndoSink<Self::Undo>,
        found: &mut Vec<Found<D>>,
    ) {
        let emit = |answer, due, diff| found.push(Found { rule: self.1.count(), answer, due, diff });
        let first = self.0.step(&mut state.0, event, emit);
        let mut others = None;
        self.1.step(&mut state.1, event, &mut others, found);
        undo.push((first, others.expect(ONE_ITEM)));
    }

    #[inline]
    fn undo(&self, state: &mut Self::State, event: &E, undo: impl DoubleEndedIterator<Item = Self::Undo>) {
        for (undo, others) in undo {
            self.1.undo(&mut state.1, event, std::iter::once(others));
            self.0.undo(&mut state.0, event, undo);
        }
    }

    fn step_again(
        &self,
        live: Live,
        state: &mut Self::State,
        event: &E,
        mut before: impl Iterator<Item = Self::Undo>,
        undo: &mut impl UndoSink<Self::Undo>,
        found: &mut Vec<Found<D>>,
    ) {
        let (mut first, others) = before.next().expect(ONE_ITEM);
        if live.has(self.1.count()) {
            let emit = |answer, due, diff| found.push(Found { rule: self.1.count(), answer, due, diff });
            first = self.0.step(&mut state.0, event, emit);
        }
        let before = std::iter::once(others);
        let mut others = None;
        self.1.step_again(live, &mut state.1, event, before, &mut others, found);
        undo.push((first, others.expect(ONE_ITEM)));
    }

    fn settle(&self, live: &mut Live, state: &Self::State, was: &Self::State) {
        if live.has(self.1.count()) && self.0.same(&state.0, &was.0) {
            live.remove(self.1.count());
        }
        self.1.settle(live, &state.1, &was.1);
    }

    fn restore(&self, live: Live, state: &mut Self::State, was: Self::State) {
        if !live.has(self.1.count()) {
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
        let emit = |answer, due, diff| found.push(Found { rule: self.1.count(), answer, due, diff });
        self.0.waiting(&state.0, key, watermark, emit);
        self.1.waiting(&state.1, key, watermark, found);
    }

    fn describe(&self, state: &Self::State, watermark: EventTime, each: &mut dyn FnMut(u32, Description)) {
        if let Some(description) = self.0.describe(&state.0, watermark) {
            each(self.1.count(), description);
        }
        self.1.describe(&state.1, watermark, each);
    }
}

/// The rules, by number, whose steps are repeated. All rules from the 63rd on are always live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live(u64);

impl Live {
    /// The bit that represents all rules from the 63rd on.
    const LAST: u32 = u64::BITS - 1;

    /// Returns the set of all `count` rules.
    pub fn all(count: u32) -> Live {
        Live(if count > Self::LAST { u64::MAX } else { (1 << count) - 1 })
    }

    /// Returns true if no rule is live.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns true if the rule is live.
    pub fn has(self, rule: u32) -> bool {
        self.0 & (1 << rule.min(Self::LAST)) != 0
    }

    /// Returns the set with the rule.
    pub fn with(self, rule: u32) -> Live {
        Live(self.0 | 1 << rule.min(Self::LAST))
    }

    /// Returns the set without the rule.
    pub fn without(mut self, rule: u32) -> Live {
        self.remove(rule);
        self
    }

    /// Removes a rule from the set.
    pub fn remove(&mut self, rule: u32) {
        if rule < Self::LAST {
            self.0 &= !(1 << rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_from_the_63rd_on_stay_live() {
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
