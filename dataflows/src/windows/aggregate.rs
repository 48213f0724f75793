//! Aggregates of windows.

use serde::{Deserialize, Serialize};

use super::distinct::Distinct;
use crate::Event;
use crate::patterns::Moments;

/// Aggregates events, in any order.
///
/// # Contract
/// - Adding the same events in another order gives an equal state.
/// - `undo` with the value that `add` returned restores the state before that `add`. Additions are undone latest
///   first.
/// - `merge` of two states gives the state of all events of both.
pub trait Aggregate<E>: 'static {
    /// The state of one window.
    type State: Clone + Default + 'static;
    /// The data needed to undo one addition.
    type Undo: 'static;

    /// Adds an event.
    fn add(&self, state: &mut Self::State, event: &E) -> Self::Undo;

    /// Undoes the latest addition.
    fn undo(&self, state: &mut Self::State, event: &E, undo: Self::Undo);

    /// Adds all events of another state.
    fn merge(&self, state: &mut Self::State, other: &Self::State);
}

/// Computes the number of events, the count, sum, extremes and standard deviation of their amounts, and the number of
/// their distinct values.
pub struct Statistics<A, V> {
    amount: A,
    value: V,
}

impl<A, V> Statistics<A, V> {
    /// Creates the aggregate. `amount` returns the amount of an event, if it has one. `value` returns the value whose
    /// distinct occurrences are counted, as a number that identifies it.
    pub fn new(amount: A, value: V) -> Self {
        Statistics { amount, value }
    }
}

/// The state of [`Statistics`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The number of events.
    pub count: u64,
    /// The count, sum and standard deviation of the amounts.
    pub amounts: Moments,
    /// The least and the greatest amount.
    pub extremes: Option<(i64, i64)>,
    values: Distinct,
}

impl Summary {
    /// Returns the number of distinct values.
    pub fn distinct(&self) -> u64 {
        self.values.len() as u64
    }
}

/// The parts of the previous state that cannot be computed from the new state and the event.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    extremes: Option<(i64, i64)>,
    new_value: Option<u64>,
}

impl<E, A, V> Aggregate<E> for Statistics<A, V>
where
    E: Event,
    A: Fn(&E) -> Option<i64> + 'static,
    V: Fn(&E) -> Option<u64> + 'static,
{
    type State = Summary;
    type Undo = Before;

    fn add(&self, state: &mut Summary, event: &E) -> Before {
        let extremes = state.extremes;
        state.count += 1;
        if let Some(amount) = (self.amount)(event) {
            state.amounts.add(amount);
            state.extremes =
                Some(extremes.map_or((amount, amount), |(min, max)| (min.min(amount), max.max(amount))));
        }
        let new_value = (self.value)(event).filter(|&value| state.values.insert(value));
        Before { extremes, new_value }
    }

    fn undo(&self, state: &mut Summary, event: &E, undo: Before) {
        state.count -= 1;
        if let Some(amount) = (self.amount)(event) {
            state.amounts.remove(amount);
        }
        state.extremes = undo.extremes;
        if let Some(value) = undo.new_value {
            state.values.remove(value);
        }
    }

    fn merge(&self, state: &mut Summary, other: &Summary) {
        state.count += other.count;
        state.amounts.merge(&other.amounts);
        state.extremes = match (state.extremes, other.extremes) {
            (Some((min, max)), Some((other_min, other_max))) => {
                Some((min.min(other_min), max.max(other_max)))
            }
            (one, other) => one.or(other),
        };
        state.values.extend(other.values.iter());
    }
}
