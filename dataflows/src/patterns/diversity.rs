//! At least N distinct values in the last D: merchant diversity.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::description::present;
use super::frequency::make_room;
use super::{Description, Holding};
use crate::{Event, EventTime, Pattern, prefetch};

/// Matches at least `n` distinct values of an attribute within the last `within_ms`, on the rising edge among the
/// events that have the attribute.
///
/// It stores the `n` most recently seen distinct values with their last times.
pub struct Diversity<F> {
    n: usize,
    within_ms: i64,
    value: F,
}

/// A match of [`Diversity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variety {
    /// The number of distinct values in the interval. The pattern counts up to its threshold, so this is the threshold.
    pub distinct: u64,
    /// The time since the least recent of these values was last seen, in milliseconds.
    pub within_ms: i64,
}

/// Distinct values, most recent last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSeen {
    values: Vec<(u64, i64)>,
    held: bool,
}

/// The data needed to undo one step of [`Diversity`].
#[derive(Clone, Copy, Debug)]
pub struct Displaced {
    /// True if the event had a value.
    pub(crate) has_value: bool,
    pub(crate) held: bool,
    /// The index plus one of the value that was removed from the list, if one was.
    pub(crate) from: Option<NonZeroU32>,
    /// The removed value and its time.
    pub(crate) value: (u64, i64),
}

impl<F> Diversity<F> {
    /// Creates the pattern: at least `n` distinct values (one or more) in the last `within_ms` milliseconds. `value`
    /// returns the value of an event, as a number that identifies it: a 64-bit hash or an index.
    pub fn at_least(n: usize, within_ms: i64, value: F) -> Diversity<F> {
        Diversity { n: n.max(1), within_ms, value }
    }

    /// Returns a stored state in a form that this pattern can process: the last `n` values. The pattern it was stored by
    /// may have had another `n`.
    pub(crate) fn adopt(&self, mut state: LastSeen) -> LastSeen {
        state.values.drain(..state.values.len().saturating_sub(self.n));
        state
    }
}

impl<E: Event, F: Fn(&E) -> Option<u64> + 'static> Holding<E> for Diversity<F> {
    #[inline(always)]
    fn step_holding(&self, state: &mut LastSeen, event: &E) -> (Option<(Variety, bool)>, Displaced) {
        let mut undo = Displaced { has_value: false, held: state.held, from: None, value: (0, 0) };
        let Some(value) = (self.value)(event) else { return (None, undo) };
        undo.has_value = true;
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
        let variety = Variety { distinct: self.n as u64, within_ms: span };
        (state.held.then_some((variety, !undo.held)), undo)
    }
}

impl<E: Event, F: Fn(&E) -> Option<u64> + 'static> Pattern<E> for Diversity<F> {
    type State = LastSeen;
    type Undo = Displaced;
    type Match = Variety;

    #[inline]
    fn step(&self, state: &mut LastSeen, event: &E) -> (Option<Variety>, Displaced) {
        self.step_edge(state, event)
    }

    fn undo(&self, state: &mut LastSeen, _event: &E, undo: Displaced) {
        if undo.has_value {
            state.held = undo.held;
            state.values.pop();
            if let Some(from) = undo.from {
                state.values.insert(from.get() as usize - 1, undo.value);
            }
        }
    }

    fn prefetch(&self, state: &LastSeen, _event: &E) {
        state.prefetch();
    }

    fn same(&self, one: &LastSeen, other: &LastSeen) -> bool {
        one == other
    }

    fn describe(&self, state: &LastSeen, watermark: EventTime) -> Option<Description> {
        let distinct = state.values.last().map_or(0, |&(_, last)| {
            let start = present(watermark, last).saturating_sub(self.within_ms);
            state.values.len() - state.values.partition_point(|&(_, time)| time <= start)
        });
        let (distinct, at_least) = (distinct as u64, self.n as u64);
        Some(Description::Distinct { distinct, at_least, within_ms: self.within_ms })
    }
}

impl LastSeen {
    /// Prefetches the values.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch(&*self.values);
    }
}
