//! A share of the events in the last D beyond a bound: declined payments.

use super::trailing::{Evicted, Trailing};
use super::{Description, Holding};
use crate::{Event, EventTime, Pattern};

/// Matches when, of the events within the last `within_ms`, more than a given share satisfies a predicate, on the rising
/// edge. The comparison is exact.
///
/// It stores a number for each event of the last `within_ms`, so its state grows with the rate of events.
///
/// ```
/// use headwater_dataflows::patterns::Share;
/// use headwater_dataflows::testing::{Kit, Line};
///
/// // More than half of three or more events within 10 ms.
/// let declined = Share::more_than(500_000, 3, 10, |line: &Line| line.id == "declined");
/// let mut kit = Kit::scan(declined, |line: &Line, part| (line.time, part.hits, part.n));
/// for (time, id) in [(1, "declined"), (2, "declined"), (3, "paid"), (4, "paid"), (11, "declined")] {
///     kit.push_at(time, Line::of("ann", id));
/// }
/// kit.expect_raised([(3, 2, 3)]); // at 4 and at 11 it is exactly half
/// kit.finish();
/// ```
pub struct Share<F> {
    ppm: u32,
    at_least_events: u64,
    within_ms: i64,
    of: F,
}

/// A match of [`Share`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// The number of events in the interval that satisfy the predicate.
    pub hits: u64,
    /// The number of events in the interval.
    pub n: u64,
    /// The time between the first and the last of these events, in milliseconds.
    pub within_ms: i64,
}

/// A million: the whole.
const WHOLE: u128 = 1_000_000;

impl<F> Share<F> {
    /// Creates the pattern: more than `ppm` millionths of at least `at_least_events` events in the last `within_ms`
    /// milliseconds satisfy `of`.
    pub fn more_than(ppm: u32, at_least_events: u64, within_ms: i64, of: F) -> Share<F> {
        Share { ppm, at_least_events, within_ms: within_ms.max(1), of }
    }

    fn holds(&self, state: &Trailing) -> bool {
        let (hits, n) = (state.sum().unsigned_abs(), u128::from(state.count()));
        state.count() >= self.at_least_events && hits * WHOLE > u128::from(self.ppm) * n
    }
}

impl<E: Event, F: Fn(&E) -> bool + 'static> Holding<E> for Share<F> {
    fn step_holding(&self, state: &mut Trailing, event: &E) -> (Option<(Part, bool)>, Evicted) {
        let hit = Some(i64::from((self.of)(event)));
        let (held, rises, undo) = state.step(event.time().0, hit, self.within_ms, |state| self.holds(state));
        let part = || Part { hits: state.sum() as u64, n: state.count(), within_ms: state.span() };
        (held.then(|| (part(), rises)), undo)
    }
}

impl<E: Event, F: Fn(&E) -> bool + 'static> Pattern<E> for Share<F> {
    type State = Trailing;
    type Undo = Evicted;
    type Match = Part;

    fn step(&self, state: &mut Trailing, event: &E) -> (Option<Part>, Evicted) {
        self.step_edge(state, event)
    }

    fn undo(&self, state: &mut Trailing, _event: &E, undo: Evicted) {
        state.undo(undo);
    }

    fn same(&self, one: &Trailing, other: &Trailing) -> bool {
        one == other
    }

    fn describe(&self, state: &Trailing, watermark: EventTime) -> Option<Description> {
        let (n, hits) = state.present(self.within_ms, watermark);
        let Share { ppm: more_than_ppm, at_least_events, within_ms, .. } = *self;
        Some(Description::Share { hits: hits as u64, n, more_than_ppm, at_least_events, within_ms })
    }
}
