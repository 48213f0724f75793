//! An average in the last D beyond a bound: a sensor that runs hot.

use super::trailing::{Evicted, Trailing};
use super::{Bound, Description, Holding, Total};
use crate::{Event, EventTime, Pattern};

/// Matches an average of the numbers within the last `within_ms` that satisfies a bound, on the rising edge among the
/// events that have a number. The sum is compared with the bound times the count, so that nothing is rounded.
///
/// It stores the numbers of the last `within_ms`, so its state grows with the rate of events.
///
/// ```
/// use headwater_dataflows::patterns::{Average, Bound};
/// use headwater_dataflows::testing::{Kit, Line};
///
/// // An average of at least 10 among three or more within 10 ms. The id of a line is its number.
/// let average = Average::new(Bound::AtLeast(10), 3, 10, |line: &Line| line.id.parse().ok());
/// let mut kit = Kit::scan(average, |line: &Line, total| (line.time, total.sum, total.n));
/// kit.push_at(1, Line::of("ann", "50"));
/// kit.push_at(2, Line::of("ann", "-30"));
/// kit.expect_raised([]); // two only
/// kit.push_at(3, Line::of("ann", "10"));
/// kit.expect_raised([(3, 30, 3)]);
/// kit.push_at(4, Line::of("ann", "9"));
/// kit.push_at(11, Line::of("ann", "41"));
/// kit.expect_raised([]); // at 11 the average of −30, 10, 9 and 41 is 7.5
/// kit.push_at(12, Line::of("ann", "0"));
/// kit.expect_raised([(12, 60, 4)]);
/// kit.finish();
/// ```
pub struct Average<F> {
    bound: Bound,
    at_least_events: u64,
    within_ms: i64,
    of: F,
}

impl<F> Average<F> {
    /// Creates the pattern: an average in the last `within_ms` milliseconds that satisfies `bound`, of at least
    /// `at_least_events` numbers. `of` returns the number of an event, if it has one.
    pub fn new(bound: Bound, at_least_events: u64, within_ms: i64, of: F) -> Average<F> {
        Average { bound, at_least_events, within_ms: within_ms.max(1), of }
    }
}

impl<E: Event, F: Fn(&E) -> Option<i64> + 'static> Holding<E> for Average<F> {
    fn step_holding(&self, state: &mut Trailing, event: &E) -> (Option<(Total, bool)>, Evicted) {
        let holds = |state: &Trailing| {
            state.count() >= self.at_least_events && self.bound.is_satisfied(state.sum(), state.count())
        };
        let (held, rises, undo) = state.step(event.time().0, (self.of)(event), self.within_ms, holds);
        (held.then(|| ((&*state).into(), rises)), undo)
    }
}

impl<E: Event, F: Fn(&E) -> Option<i64> + 'static> Pattern<E> for Average<F> {
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
        let Average { bound, at_least_events, within_ms, .. } = *self;
        Some(Description::Average { sum, n, bound, at_least_events, within_ms })
    }
}
