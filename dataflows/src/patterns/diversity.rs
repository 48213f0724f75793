//! At least N distinct values in the last D: merchant diversity.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::frequency::make_room;
use crate::{Event, Pattern, prefetch};

/// At least `n` distinct values of an attribute within the last `within_ms`, on the rising edge among the events
/// that have the attribute.
///
/// It remembers the `n` most recently seen distinct values with their last times.
pub struct Diversity<F> {
    n: usize,
    within_ms: i64,
    value: F,
}

/// What [`Diversity`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variety {
    /// How many distinct values the interval holds, as far as the pattern counts: its threshold.
    pub distinct: u64,
    /// The time since the least recent of them was last seen, in milliseconds.
    pub within_ms: i64,
}

/// Distinct values, most recent last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSeen {
    values: Vec<(u64, i64)>,
    held: bool,
}

/// What a step changed.
#[derive(Clone, Copy, Debug)]
pub struct Displaced {
    looked: bool,
    held: bool,
    /// One more than the place that a value was taken from, if one was.
    from: Option<NonZeroU32>,
    /// What it was.
    value: (u64, i64),
}

impl<F> Diversity<F> {
    /// At least `n` distinct values (one or more) in the last `within_ms` milliseconds. `value` gives an event's
    /// value, as a number that stands for it: a hash of 64 bits or an index.
    pub fn at_least(n: usize, within_ms: i64, value: F) -> Diversity<F> {
        Diversity { n: n.max(1), within_ms, value }
    }
}

impl<E: Event, F: Fn(&E) -> Option<u64> + 'static> Pattern<E> for Diversity<F> {
    type State = LastSeen;
    type Undo = Displaced;
    type Match = Variety;

    fn step(&self, state: &mut LastSeen, event: &E) -> (Option<Variety>, Displaced) {
        let mut undo = Displaced { looked: false, held: state.held, from: None, value: (0, 0) };
        let Some(value) = (self.value)(event) else { return (None, undo) };
        undo.looked = true;
        let known = state.values.iter().position(|&(known, _)| known == value);
        if let Some(leaves) = known.or((state.values.len() == self.n).then_some(0)) {
            undo.from = NonZeroU32::new(leaves as u32 + 1);
            undo.value = state.values.remove(leaves);
        }
        let now = event.time().0;
        make_room(&mut state.values, self.n);
        state.values.push((value, now));
        let span = now.saturating_sub(state.values[0].1);
        state.held = state.values.len() == self.n && span < self.within_ms;
        let found =
            (state.held && !undo.held).then_some(Variety { distinct: self.n as u64, within_ms: span });
        (found, undo)
    }

    fn undo(&self, state: &mut LastSeen, _event: &E, undo: Displaced) {
        if undo.looked {
            state.held = undo.held;
            state.values.pop();
            if let Some(from) = undo.from {
                state.values.insert(from.get() as usize - 1, undo.value);
            }
        }
    }

    fn prefetch(&self, state: &LastSeen, _event: &E) {
        prefetch(&*state.values);
    }

    fn same(&self, one: &LastSeen, other: &LastSeen) -> bool {
        one == other
    }
}
