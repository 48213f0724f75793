//! The container of events that are exchanged between workers: a vector that knows its form between processes.

use std::cell::RefCell;

use timely::container::{Accountable, DrainContainer, PushInto, SizableContainer};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::ContainerBytes;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Operator;
use timely::{ExchangeData, bytes::arc::Bytes};

use crate::{Epoch, Event};

/// An event with its epoch and its multiplicity.
type Update<E> = (E, Epoch, isize);

/// Events between workers. Between processes they are sent as [`Event::pack`] writes them.
#[derive(Clone)]
pub struct Exchanged<E> {
    /// The events.
    pub updates: Vec<Update<E>>,
    /// The form between processes, from the question for its length to its writing; empty otherwise.
    packed: RefCell<Vec<u8>>,
}

impl<E> Exchanged<E> {
    fn of(updates: Vec<Update<E>>) -> Exchanged<E> {
        Exchanged { updates, packed: RefCell::default() }
    }
}

impl<E> Default for Exchanged<E> {
    fn default() -> Exchanged<E> {
        Exchanged::of(Vec::new())
    }
}

impl<E> Accountable for Exchanged<E> {
    fn record_count(&self) -> i64 {
        self.updates.record_count()
    }
}

impl<E> DrainContainer for Exchanged<E> {
    type Item<'a>
        = Update<E>
    where
        E: 'a;
    type DrainIter<'a>
        = std::vec::Drain<'a, Update<E>>
    where
        E: 'a;

    fn drain(&mut self) -> Self::DrainIter<'_> {
        self.updates.drain(..)
    }
}

impl<E> SizableContainer for Exchanged<E> {
    fn at_capacity(&self) -> bool {
        self.updates.at_capacity()
    }

    fn ensure_capacity(&mut self, stash: &mut Option<Exchanged<E>>) {
        self.updates.ensure_capacity(&mut stash.take().map(|stash| stash.updates));
    }
}

impl<E> PushInto<Update<E>> for Exchanged<E> {
    fn push_into(&mut self, update: Update<E>) {
        self.updates.push(update);
    }
}

impl<E: Event + ExchangeData> ContainerBytes for Exchanged<E> {
    /// Reads events of another process.
    ///
    /// # Panics
    /// If they are malformed: the processes of a cluster run the same program.
    fn from_bytes(bytes: Bytes) -> Exchanged<E> {
        Exchanged::of(E::unpack(&bytes).unwrap_or_else(|error| panic!("{error}")))
    }

    /// Returns the length, a multiple of 8 as timely expects. It packs the events, which are written next.
    fn length_in_bytes(&self) -> usize {
        let mut packed = self.packed.borrow_mut();
        if packed.is_empty() {
            E::pack(&self.updates, &mut packed);
            let padded = packed.len().next_multiple_of(8);
            packed.resize(padded, 0);
        }
        packed.len()
    }

    fn into_bytes<W: std::io::Write>(&self, writer: &mut W) {
        self.length_in_bytes();
        writer.write_all(&self.packed.take()).expect("timely has reserved the length");
    }
}

/// Puts the containers of a stream into those that are exchanged.
pub fn exchanged<'scope, E: Event>(
    events: StreamVec<'scope, Epoch, Update<E>>,
) -> timely::dataflow::Stream<'scope, Epoch, Exchanged<E>> {
    events.unary(Pipeline, "Exchanged", |_, _| {
        |input, output| {
            input.for_each_stamp(|stamp, containers| {
                let mut session = output.session(&stamp);
                for updates in containers {
                    session.give_container(&mut Exchanged::of(std::mem::take(updates)));
                }
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Line;

    #[test]
    fn events_are_the_same_in_another_process() {
        let updates = |number: u64| -> Vec<Update<Line>> {
            (0..number)
                .map(|at| {
                    (Line::from(("ann", at as i64, at as i64, "x")), Epoch(at / 3), 1 - 2 * (at as isize % 2))
                })
                .collect()
        };
        for number in [0, 1, 7, 200] {
            let sent = Exchanged::of(updates(number));
            let mut bytes = Vec::new();
            let length = sent.length_in_bytes();
            sent.into_bytes(&mut bytes);
            assert_eq!((length, length % 8), (bytes.len(), 0));
            assert_eq!(sent.length_in_bytes(), length, "it can be sent to several processes");
            let mut shared = timely::bytes::arc::BytesMut::from(bytes);
            let received = Exchanged::<Line>::from_bytes(shared.extract_to(length));
            assert_eq!(received.updates, updates(number));
        }
    }
}
