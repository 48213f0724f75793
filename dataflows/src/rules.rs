//! Rules: patterns that are evaluated together, in one pass over the events of a key.

use crate::{Emission, Event, Pattern};

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

/// Several rules with one type of result: `()`, or a rule (or none) and further rules, `(rule, (rule, ()))`.
///
/// They are stepped together, so that a key's states lie side by side and each event is looked at once. Not meant
/// to be implemented elsewhere.
pub trait Rules<E, D>: 'static {
    /// What they remember of a key.
    type State: Default + 'static;
    /// What takes the state back over one event.
    type Undo: 'static;

    /// Takes in a key's next event; appends what is found.
    fn step(&self, state: &mut Self::State, event: &E, found: &mut Vec<(Emission, D)>) -> Self::Undo;

    /// Goes back over the latest event.
    fn undo(&self, state: &mut Self::State, event: &E, undo: Self::Undo);
}

impl<E, D> Rules<E, D> for () {
    type State = ();
    type Undo = ();

    fn step(&self, _: &mut (), _: &E, _: &mut Vec<(Emission, D)>) {}

    fn undo(&self, _: &mut (), _: &E, _: ()) {}
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
    fn step(&self, state: &mut Self::State, event: &E, found: &mut Vec<(Emission, D)>) -> Self::Undo {
        let (rule, rest) = self;
        let (matched, undo) = rule.pattern.step(&mut state.0, event);
        if let Some(matched) = matched {
            found.push((rule.emission, (rule.result)(event, matched)));
        }
        (undo, rest.step(&mut state.1, event, found))
    }

    #[inline]
    fn undo(&self, state: &mut Self::State, event: &E, (undo, others): Self::Undo) {
        self.1.undo(&mut state.1, event, others);
        self.0.pattern.undo(&mut state.0, event, undo);
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
    fn step(&self, state: &mut Self::State, event: &E, found: &mut Vec<(Emission, D)>) -> Self::Undo {
        let (rule, rest) = self;
        let undo = rule.as_ref().map(|rule| {
            let (matched, undo) = rule.pattern.step(&mut state.0, event);
            if let Some(matched) = matched {
                found.push((rule.emission, (rule.result)(event, matched)));
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
}
