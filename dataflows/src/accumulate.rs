//! `accumulate`: a running state per key, updated in order of arrival.

use std::rc::Rc;

use timely::dataflow::StreamVec;

use crate::batch::{Batch, Change, RunRef, Slot};
use crate::capture::{Capture, Damage, Saved, Stored, decode, encode};
use crate::keyed::{Keyed, Logic, Selection};
use crate::keys::Keys;
use crate::slots::Slots;
use crate::{Epoch, Event, EventTime, OwnedKey, StatePart};

/// Extension trait for running states per key.
pub trait Accumulate<'scope, E: Event> {
    /// Folds the events of each key, epoch by epoch and in the order (event time, partition, offset) within an epoch.
    /// `step` adds to the output: there is one output for each worker and epoch with events.
    ///
    /// The outputs are a log, not a collection: an output of an event is never revoked, and retractions have no effect.
    ///
    /// ```
    /// use headwater_dataflows::{Accumulate, Admission, Admit, testing};
    /// use differential_dataflow::AsCollection;
    /// use timely::dataflow::operators::vec::Map;
    ///
    /// // Numbers the events of each key.
    /// let numbered = testing::run(1, |events, control| {
    ///     let (keyed, _) = events.admit(control, Admission::default());
    ///     keyed.accumulate("Number", |_epoch, seen: &mut u32, event, out: &mut Vec<(i64, u32)>| {
    ///         *seen += 1;
    ///         out.push((event.offset, *seen));
    ///     }).flat_map(|(epoch, all)| all.into_iter().map(move |one| (one, epoch, 1))).as_collection()
    /// }, vec![
    ///     (vec![("ann", 10, 0, "a"), ("ann", 8, 1, "b")], 5),
    ///     (vec![("ann", 6, 2, "c")], 20),
    /// ]);
    /// assert_eq!(numbered, vec![((0, 2), 0, 1), ((1, 1), 0, 1), ((2, 3), 1, 1)]);
    /// ```
    fn accumulate<S, O, F>(self, name: &str, step: F) -> StreamVec<'scope, Epoch, (Epoch, O)>
    where
        S: Default + 'static,
        O: Default + Clone + 'static,
        F: FnMut(Epoch, &mut S, &E, &mut O) + 'static;
}

impl<'scope, E: Event> Accumulate<'scope, E> for Keyed<'scope, E> {
    fn accumulate<S, O, F>(self, name: &str, step: F) -> StreamVec<'scope, Epoch, (Epoch, O)>
    where
        S: Default + 'static,
        O: Default + Clone + 'static,
        F: FnMut(Epoch, &mut S, &E, &mut O) + 'static,
    {
        self.run(name, Accumulator::new(step))
    }
}

pub(crate) struct Accumulator<S, O, F> {
    step: F,
    states: Slots<S>,
    output: std::marker::PhantomData<O>,
}

impl<S: Default, O, F> Accumulator<S, O, F> {
    pub fn new(step: F) -> Self {
        Accumulator { step, states: Slots::default(), output: std::marker::PhantomData }
    }
}

impl<E, S, O, F> Logic<E> for Accumulator<S, O, F>
where
    E: Event,
    S: Default + 'static,
    O: Default + Clone + 'static,
    F: FnMut(Epoch, &mut S, &E, &mut O) + 'static,
{
    type Out = (Epoch, O);

    fn forget(&mut self, slots: &[Slot]) {
        self.states.forget(slots);
    }

    fn step(&mut self, batch: &Rc<Batch<E>>, selection: &Selection<E>, out: &mut Vec<Self::Out>) {
        let mut output = O::default();
        for run in selection.runs(batch) {
            let state = self.states.made(run.slot);
            for entry in run.entries().filter(|&entry| batch.change(entry) == Change::Insert) {
                (self.step)(batch.epoch, state, batch.event(entry), &mut output);
            }
        }
        out.push((batch.epoch, output));
    }

    fn close(&mut self, _: Epoch, _: EventTime, _: &Keys<E>, _: &mut Vec<Self::Out>) {}

    fn visit(&self, slot: Slot, _: &OwnedKey<E>, _: EventTime, visitor: &mut dyn FnMut(StatePart<'_>)) {
        if let Some(state) = self.states.get(slot) {
            visitor(StatePart::Running(state));
        }
    }
}

/// Outputs are never revoked, so the state does not depend on which events are final.
impl<E, S, O, F> Capture<E> for Accumulator<S, O, F>
where
    E: Event,
    S: Stored + Default + 'static,
    O: Default + Clone + 'static,
    F: FnMut(Epoch, &mut S, &E, &mut O) + 'static,
{
    fn hold(&mut self, _: EventTime) {}

    fn closes(&self, _: Epoch, _: EventTime, _: &mut Vec<Slot>) {}

    fn save(&mut self, slot: Slot, _: Option<RunRef>, _: EventTime) -> Saved {
        let value = Some(encode(self.states.made(slot))).filter(|value| *value != encode(&S::default()));
        Saved { value, unsettled: None }
    }

    fn load(&mut self, slot: Slot, _: &OwnedKey<E>, _: EventTime, saved: &[u8]) -> Result<(), Damage> {
        *self.states.made(slot) = decode(saved)?;
        Ok(())
    }

    fn resume(&mut self, _: Epoch, _: Option<&Rc<Batch<E>>>, _: &Selection<E>) {}
}
