//! Tumbling windows: windows of one size that do not overlap.

use differential_dataflow::{Data, VecCollection};

use super::{Aggregate, EmitPolicy, Row, Sliding};
use crate::{Epoch, Event, Keyed, OwnedKey};

/// Extension trait for tumbling windows.
pub trait Tumbling<'scope, E: Event> {
    /// Emits one row for each key and window of `size_ms` that has events. Windows start at multiples of the size
    /// since 1970.
    ///
    /// ```
    /// use headwater_dataflows::{Admission, Admit, testing};
    /// use headwater_dataflows::windows::{EmitPolicy, Statistics, Tumbling};
    ///
    /// let counts = testing::run(1, |events, control| {
    ///     let (keyed, _) = events.admit(control, Admission::default());
    ///     let count = Statistics::new(|_: &testing::Line| None, |_: &testing::Line| None);
    ///     keyed.tumbling("Minute", 60, EmitPolicy::Final, count, |row| (row.window.start.0, row.summary.count))
    /// }, vec![
    ///     (vec![("ann", 10, 0, "a"), ("ann", 70, 1, "b")], 20),
    ///     (vec![("ann", 59, 2, "c")], 59),
    /// ]);
    /// assert_eq!(counts, vec![((0, 2), 1, 1), ((60, 1), 2, 1)]); // the second window closes at the end of the input
    /// ```
    fn tumbling<A, D, F>(
        self,
        name: &str,
        size_ms: i64,
        emit: EmitPolicy,
        aggregate: A,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        A: Aggregate<E>,
        D: Data,
        F: Fn(Row<'_, OwnedKey<E>, A::State>) -> D + 'static;
}

impl<'scope, E: Event> Tumbling<'scope, E> for Keyed<'scope, E> {
    fn tumbling<A, D, F>(
        self,
        name: &str,
        size_ms: i64,
        emit: EmitPolicy,
        aggregate: A,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        A: Aggregate<E>,
        D: Data,
        F: Fn(Row<'_, OwnedKey<E>, A::State>) -> D + 'static,
    {
        self.sliding(name, size_ms, size_ms, emit, aggregate, result)
    }
}
