//! The admitted events as a collection, for further keys: events that one key admitted are admitted again by another.

use differential_dataflow::{AsCollection, VecCollection};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;

use crate::batch::Change;
use crate::keyed::Keyed;
use crate::{Epoch, Event};

/// Extension trait for reading the admitted events as a collection.
pub trait Events<'scope, E: Event> {
    /// Returns the admitted events, each in the epoch of its admission. An event that was admitted and is retracted has
    /// a retraction. Restored events are not repeated.
    ///
    /// Mapped to another key, they can be admitted again. Such an admission refuses none of them as late, since it has
    /// the same watermarks, and needs no deduplication.
    ///
    /// ```
    /// use headwater_dataflows::{Admission, Admit, Emission, Events, Scan, patterns::Frequency, testing};
    /// use testing::Line;
    ///
    /// // Two events with the same id, whatever their keys. The last line repeats the first one.
    /// let pairs = testing::run(1, |events, control| {
    ///     let dedup = Admission { dedup_horizon_ms: 60_000, ..Admission::default() };
    ///     let (keyed, _refused) = events.admit(control.clone(), dedup);
    ///     let by_id = keyed.events("By id").map(|line| Line { key: line.id.clone(), ..line });
    ///     let (keyed, _none) = by_id.admit(control, Admission::default());
    ///     keyed.scan("Pair", Frequency::at_least(2, 10), Emission::Immediate, |line: &Line, _| line.offset)
    /// }, vec![
    ///     (vec![("ann", 10, 0, "x"), ("bob", 12, 1, "x"), ("bob", 13, 2, "y")], 5),
    ///     (vec![("ann", 10, 3, "x")], 20),
    /// ]);
    /// assert_eq!(pairs, vec![(1, 0, 1)]);
    /// ```
    fn events(self, name: &str) -> VecCollection<'scope, Epoch, E>;
}

impl<'scope, E: Event> Events<'scope, E> for Keyed<'scope, E> {
    fn events(self, name: &str) -> VecCollection<'scope, Epoch, E> {
        let Keyed { batches, selection, .. } = self;
        let events = batches.unary::<CapacityContainerBuilder<Vec<(E, Epoch, isize)>>, _, _, _>(
            Pipeline,
            name,
            move |_, _| {
                move |input, output| {
                    input.for_each(|capability, data| {
                        let mut session = output.session(&capability);
                        for batch in data.drain(..) {
                            for entry in selection.runs(&batch).flat_map(|run| run.entries()) {
                                let diff = match batch.change(entry) {
                                    Change::Insert => 1,
                                    Change::Retract(_) => -1,
                                };
                                session.give((batch.event(entry).clone(), batch.epoch, diff));
                            }
                        }
                    });
                }
            },
        );
        events.as_collection()
    }
}
