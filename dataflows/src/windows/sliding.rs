//! Sliding (hopping) windows: windows of one size that start at regular intervals and overlap.

use differential_dataflow::{AsCollection, Data, VecCollection};

use super::aligned::Aligned;
use super::{Aggregate, EmitPolicy, Row};
use crate::{Epoch, Event, Keyed, OwnedKey};

/// Extension trait for sliding windows.
pub trait Sliding<'scope, E: Event> {
    /// Emits one row for each key and window of `size_ms` that has events. A window starts at each multiple of
    /// `slide_ms` since 1970.
    ///
    /// # Panics
    /// Panics if `slide_ms` is not in 1..=`size_ms`.
    ///
    /// ```
    /// use headwater_dataflows::{Admission, Admit, testing};
    /// use headwater_dataflows::windows::{EmitPolicy, Sliding, Statistics};
    ///
    /// let counts = testing::run(1, |events, control| {
    ///     let (keyed, _) = events.admit(control, Admission::default());
    ///     let count = Statistics::new(|_: &testing::Line| None, |_: &testing::Line| None);
    ///     keyed.sliding("Sliding", 60, 30, EmitPolicy::Final, count, |row| (row.window.start.0, row.summary.count))
    /// }, vec![(vec![("ann", 40, 0, "a"), ("ann", 70, 1, "b")], 100)]);
    /// assert_eq!(counts, vec![((0, 1), 0, 1), ((30, 2), 0, 1), ((60, 1), 1, 1)]);
    /// ```
    fn sliding<A, D, F>(
        self,
        name: &str,
        size_ms: i64,
        slide_ms: i64,
        emit: EmitPolicy,
        aggregate: A,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        A: Aggregate<E>,
        D: Data,
        F: Fn(Row<'_, OwnedKey<E>, A::State>) -> D + 'static;
}

impl<'scope, E: Event> Sliding<'scope, E> for Keyed<'scope, E> {
    fn sliding<A, D, F>(
        self,
        name: &str,
        size_ms: i64,
        slide_ms: i64,
        emit: EmitPolicy,
        aggregate: A,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        A: Aggregate<E>,
        D: Data,
        F: Fn(Row<'_, OwnedKey<E>, A::State>) -> D + 'static,
    {
        self.keep_for(size_ms);
        let load = self.load();
        self.run(name, Aligned::new(size_ms, slide_ms, emit, aggregate, result, load)).as_collection()
    }
}
