//! The admitted events as a collection, for further keys: events that one key admitted are admitted again by another.

use std::cell::RefCell;
use std::rc::Rc;

use differential_dataflow::{AsCollection, VecCollection};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::{Operator, OutputBuilder};
use timely::progress::Antichain;

use crate::batch::{Batch, Change, History};
use crate::keyed::Keyed;
use crate::{Control, Epoch, Event, Position, Since};

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

    /// Like [`events`](Events::events), for a further key that is used from time to time. When a use begins, the un-final
    /// events are inserted that were left out before, in the epoch after that of its beginning.
    fn events_while(self, name: &str, used: EventUse) -> VecCollection<'scope, Epoch, E>;
}

/// The events of which a further key is used. Clones share it.
#[derive(Clone, Debug)]
pub struct EventUse(Rc<RefCell<Uses>>);

#[derive(Debug)]
struct Uses {
    /// True if the key is used of all events, whatever the changes.
    is_always: bool,
    /// True from there on if it is used.
    changes: Vec<(Since, bool)>,
}

impl EventUse {
    /// Returns a use of all events.
    pub fn always() -> EventUse {
        EventUse(Rc::new(RefCell::new(Uses { is_always: true, changes: Vec::new() })))
    }

    /// Returns a use that [`add`](EventUse::add) changes; there is none before.
    pub fn changing() -> EventUse {
        EventUse(Rc::new(RefCell::new(Uses { is_always: false, changes: Vec::new() })))
    }

    /// Adds a change: the key is used, or not, of the events from `since` on. Call it before the operator has the control
    /// message of `since.epoch`.
    pub fn add(&self, since: Since, is_used: bool) {
        let mut uses = self.0.borrow_mut();
        if uses.changes.last().map_or(is_used, |(_, before)| *before != is_used) {
            uses.changes.push((since, is_used));
        }
    }

    /// Returns true if the key is used of the event at a position.
    pub fn has(&self, position: Position) -> bool {
        let uses = self.0.borrow();
        let newest = || uses.changes.iter().rfind(|(since, _)| since.includes(position));
        uses.is_always || newest().is_some_and(|(_, is_used)| *is_used)
    }

    /// Returns true if a use begins in the epoch after this one.
    fn begins_after(&self, epoch: Epoch) -> bool {
        self.0.borrow().changes.iter().any(|(since, is_used)| *is_used && since.epoch == epoch)
    }

    /// Returns true if the event at a position has been inserted by the beginning of a use.
    fn is_repeated(&self, position: Position) -> bool {
        let begun = |(since, is_used): &(Since, bool)| *is_used && !since.includes(position);
        self.0.borrow().changes.iter().any(begun)
    }
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

    fn events_while(self, name: &str, used: EventUse) -> VecCollection<'scope, Epoch, E> {
        self.events_while_from(name, used, None)
    }
}

impl<'scope, E: Event> Keyed<'scope, E> {
    /// Like [`events_while`](Events::events_while), with the restored un-final events.
    pub(crate) fn events_while_from(
        self,
        name: &str,
        used: EventUse,
        restored: Option<Rc<Batch<E>>>,
    ) -> VecCollection<'scope, Epoch, E> {
        let Keyed { batches, control, selection, .. } = self;
        let mut builder = OperatorBuilder::new(name.to_owned(), batches.scope());
        let mut batches = builder.new_input_connection(batches, Pipeline, []);
        let mut control = builder.new_input_connection(control, Pipeline, []);
        // What a control message causes is of the next epoch, so that no epoch waits for its own.
        let connection = [(0, Antichain::from_elem(Epoch(0))), (1, Antichain::from_elem(Epoch(1)))];
        let (output, stream) = builder.new_output_connection(connection);
        let mut output = OutputBuilder::<_, CapacityContainerBuilder<Vec<(E, Epoch, isize)>>>::from(output);
        let mut history: History<E, ()> = History::new();
        restored.into_iter().for_each(|batch| history.push(batch, ()));
        builder.build(move |capabilities| {
            drop(capabilities);
            move |_frontiers| {
                let mut output = output.activate();
                batches.for_each(|stamp, data| {
                    let mut session = output.session(&stamp);
                    for batch in data.drain(..) {
                        for entry in selection.runs(&batch).flat_map(|run| run.entries()) {
                            let event = batch.event(entry);
                            let is_used = used.has(event.position());
                            match batch.change(entry) {
                                Change::Insert if is_used => session.give((event.clone(), batch.epoch, 1)),
                                Change::Retract(_) if is_used || used.is_repeated(event.position()) => {
                                    session.give((event.clone(), batch.epoch, -1));
                                }
                                _ => {}
                            }
                        }
                        history.push(batch, ());
                    }
                });
                control.for_each(|stamp, data| {
                    let epoch = *stamp.least().expect("a message has a timestamp");
                    for Control { watermark, .. } in data.drain(..) {
                        history.settle(watermark);
                        if used.begins_after(epoch) {
                            let capability = stamp.delayed(&epoch.next(), 0);
                            let mut session = output.session(&capability);
                            // The un-final events of which the key was not used.
                            for (_, _, event) in selection.live_after(&history, watermark) {
                                if !used.has(event.position()) {
                                    session.give((event.clone(), epoch.next(), 1));
                                }
                            }
                        }
                    }
                });
            }
        });
        stream.as_collection()
    }
}
