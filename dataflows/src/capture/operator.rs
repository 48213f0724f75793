//! The operator that emits the captured state of another operator.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::stored::Record;
use super::tracker::Tracker;
use crate::control::ControlStream;
use crate::{Epoch, Event};

/// The minimum number of keys captured in a slice. The other work of the worker waits during a slice.
const MIN_KEYS_PER_SLICE: usize = 64;

/// The maximum number of slices in which all keys of a mark are captured.
const MAX_SLICES: usize = 4096;

/// The pause between two slices. It leaves time to the broker, the database, and other threads of this process.
const PAUSE: Duration = Duration::from_millis(1);

/// State that is captured a few keys at a time.
pub(crate) trait Drain<E: Event>: 'static {
    /// Returns the tracker of the keys to capture.
    fn tracker(&mut self) -> &mut Tracker<E>;

    /// Captures about `count` more keys of the mark, if there is a mark.
    fn drain(&mut self, count: usize);
}

/// Builds an operator that emits the captured records of `state` in the epoch of their mark. Holds the capability of
/// that epoch until all its records are emitted.
pub(crate) fn build<'scope, E: Event>(
    name: &str,
    control: ControlStream<'scope>,
    state: Rc<RefCell<impl Drain<E>>>,
) -> StreamVec<'scope, Epoch, Record> {
    let scope = control.scope();
    let mut builder = OperatorBuilder::new(format!("Capture: {name}"), scope);
    let activator = scope.activator_for(builder.operator_info().address);
    state.borrow_mut().tracker().woken_by(scope.activator_for(builder.operator_info().address));
    let mut control = builder.new_input(control, Pipeline);
    let (output, stream) = builder.new_output();
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<Vec<Record>>>::from(output);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut marks: BTreeMap<Epoch, Capability<Epoch>> = BTreeMap::new();
        move |_frontiers| {
            control.for_each(|stamp, data| {
                let epoch = *stamp.least().expect("a message has a timestamp");
                if data.drain(..).any(|control| control.checkpoint) {
                    marks.insert(epoch, stamp.delayed(&epoch, 0));
                }
            });
            let mut state = state.borrow_mut();
            if state.tracker().marked().is_some() {
                let keys = MIN_KEYS_PER_SLICE.max(state.tracker().wanted() / MAX_SLICES);
                state.drain(keys);
            }
            let tracker = state.tracker();
            let mut output = output.activate();
            for (epoch, records) in tracker.take() {
                let capability = marks.get(&epoch).expect("both operators receive the same control messages");
                output.session(capability).give_iterator(records.into_iter());
            }
            if let Some(complete) = tracker.complete() {
                marks.retain(|epoch, _| *epoch > complete);
            }
            if tracker.marked().is_some() {
                activator.activate_after(PAUSE);
            }
        }
    });
    stream
}
