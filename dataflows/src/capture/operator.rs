//! The operator that gives what is captured, beside the one whose state it is.

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

/// How many keys are captured at a time, at least: what else a worker does waits for no more.
const KEYS_AT_A_TIME: usize = 64;

/// In how many goes all keys of a mark are captured, at most.
const GOES: usize = 4096;

/// What is left between two goes to whatever else runs on the machine: broker, database, and other threads of its own.
const PAUSE: Duration = Duration::from_millis(1);

/// State that is captured a few keys at a time.
pub(crate) trait Drain<E: Event>: 'static {
    /// Knows what is to be captured.
    fn tracker(&mut self) -> &mut Tracker<E>;

    /// Captures about so many keys more of the mark, if there is one.
    fn drain(&mut self, count: usize);
}

/// Gives what is captured of `state` as records of the epoch of their mark, and keeps that epoch's capability until
/// all is given.
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
                let epoch = *stamp.least().expect("control travels with a time");
                if data.drain(..).any(|control| control.checkpoint) {
                    marks.insert(epoch, stamp.delayed(&epoch, 0));
                }
            });
            let mut state = state.borrow_mut();
            if state.tracker().marked().is_some() {
                let keys = KEYS_AT_A_TIME.max(state.tracker().wanted() / GOES);
                state.drain(keys);
            }
            let tracker = state.tracker();
            let mut output = output.activate();
            for (epoch, records) in tracker.take() {
                let capability = marks.get(&epoch).expect("both operators have the same control");
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
