//! A sum in the last D beyond a bound: money that leaves an account.

use super::trailing::{Evicted, Trailing};
use super::{Bound, Description, Holding};
use crate::{Event, EventTime, Pattern};

/// Matches a sum of the numbers within the last `within_ms` that satisfies a bound, on the rising edge among the events
/// that have a number. The sum is exact.
///
/// It stores the numbers of the last `within_ms`, so its state grows with the rate of events.
///
/// ```
/// use headwater_dataflows::patterns::{Bound, Sum};
/// use headwater_dataflows::testing::{Kit, Line};
///
/// // More than 100 within 10 ms. The id of a line is its amount.
/// let sum = Sum::new(Bound::MoreThan(100), 10, |line: &Line| line.id.parse().ok());
/// let mut kit = Kit::scan(sum, |line: &Line, total| (line.time, total.sum));
/// kit.push_at(1, Line::of("ann", "60"));
/// kit.push_at(5, Line::of("ann", "40"));
/// kit.expect_raised([]);
/// kit.push_at(6, Line::of("ann", "no amount"));
/// kit.push_at(7, Line::of("ann", "1"));
/// kit.expect_raised([(7, 101)]);
/// kit.push_at(8, Line::of("ann", "200")); // still more: no rising edge
/// kit.push_at(2, Line::of("ann", "-30")); // earlier: 7 is not the first any more
/// kit.expect_revoked([(7, 101)]);
/// kit.expect_raised([(8, 271)]);
/// kit.finish();
/// ```
pub struct Sum<F> {
    bound: Bound,
    within_ms: i64,
    of: F,
}

/// A match of [`Sum`] or [`Average`](super::Average).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Total {
    /// The sum of the numbers in the interval.
    pub sum: i128,
    /// The count of the numbers in the interval.
    pub n: u64,
    /// The time between the first and the last of these numbers, in milliseconds.
    pub within_ms: i64,
}

impl From<&Trailing> for Total {
    fn from(state: &Trailing) -> Total {
        Total { sum: state.sum(), n: state.count(), within_ms: state.span() }
    }
}

impl<F> Sum<F> {
    /// Creates the pattern: a sum in the last `within_ms` milliseconds that satisfies `bound`. `of` returns the number of
    /// an event, if it has one.
    pub fn new(bound: Bound, within_ms: i64, of: F) -> Sum<F> {
        Sum { bound, within_ms: within_ms.max(1), of }
    }
}

impl<E: Event, F: Fn(&E) -> Option<i64> + 'static> Holding<E> for Sum<F> {
    fn step_holding(&self, state: &mut Trailing, event: &E) -> (Option<(Total, bool)>, Evicted) {
        let holds = |state: &Trailing| self.bound.is_satisfied(state.sum(), 1);
        let (held, rises, undo) = state.step(event.time().0, (self.of)(event), self.within_ms, holds);
        (held.then(|| ((&*state).into(), rises)), undo)
    }
}

impl<E: Event, F: Fn(&E) -> Option<i64> + 'static> Pattern<E> for Sum<F> {
    type State = Trailing;
    type Undo = Evicted;
    type Match = Total;

    fn step(&self, state: &mut Trailing, event: &E) -> (Option<Total>, Evicted) {
        self.step_edge(state, event)
    }

    fn undo(&self, state: &mut Trailing, _event: &E, undo: Evicted) {
        state.undo(undo);
    }

    fn same(&self, one: &Trailing, other: &Trailing) -> bool {
        one == other
    }

    fn describe(&self, state: &Trailing, watermark: EventTime) -> Option<Description> {
        let (n, sum) = state.present(self.within_ms, watermark);
        Some(Description::Sum { sum, n, bound: self.bound, within_ms: self.within_ms })
    }
}
