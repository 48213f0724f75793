//! What windows sum up.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::Event;
use crate::patterns::Moments;

/// Sums up events, in any order.
///
/// # Contract
/// - Adding the same events in another order gives an equal state.
/// - `undo` with what `add` returned brings the state back to what it was before that `add`; undoing goes
///   backwards over the latest additions.
/// - `merge` of two states is the state of all events of both.
pub trait Aggregate<E>: 'static {
    /// What a window keeps.
    type State: Clone + Default + 'static;
    /// What takes a state back over one addition.
    type Undo: 'static;

    /// Takes in an event.
    fn add(&self, state: &mut Self::State, event: &E) -> Self::Undo;

    /// Goes back over the latest addition.
    fn undo(&self, state: &mut Self::State, event: &E, undo: Self::Undo);

    /// Takes in all events of another state.
    fn merge(&self, state: &mut Self::State, other: &Self::State);
}

/// Counts events; count, sum, extremes and deviation of their amounts; and how many distinct values they have.
pub struct Statistics<A, V> {
    amount: A,
    value: V,
}

impl<A, V> Statistics<A, V> {
    /// `amount` gives an event's amount, if it has one; `value` what is counted distinctly, as a number that
    /// stands for it.
    pub fn new(amount: A, value: V) -> Self {
        Statistics { amount, value }
    }
}

/// What [`Statistics`] keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How many events there are.
    pub count: u64,
    /// Count, sum and deviation of the amounts.
    pub amounts: Moments,
    /// The least and the greatest amount.
    pub extremes: Option<(i64, i64)>,
    values: BTreeSet<u64>,
}

impl Summary {
    /// How many distinct values there are.
    pub fn distinct(&self) -> u64 {
        self.values.len() as u64
    }
}

/// What an addition changed that cannot be computed back.
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
            state.values.remove(&value);
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
        state.values.extend(&other.values);
    }
}
