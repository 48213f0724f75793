//! Embedding: a dataflow in the caller's thread, with a handle to push events and a callback for results.

use std::cell::RefCell;
use std::rc::Rc;

use differential_dataflow::input::InputSession;
use differential_dataflow::{Data, VecCollection, consolidation};
use timely::WorkerConfig;
use timely::communication::Allocator;
use timely::communication::allocator::thread::Thread;
use timely::dataflow::ProbeHandle;
use timely::dataflow::operators::{Inspect, Probe};
use timely::worker::Worker;

use crate::{Clock, ControlStream, Epoch, EventTime};

/// A dataflow on one worker, in the thread that owns the engine.
///
/// Pushed events are processed when the epoch ends. When that call returns, the subscriber has received all resulting
/// changes. A subscriber may send to a channel, and the engine may be fed from one. For several workers, build the same
/// dataflow in [`timely::execute()`], with a [`Clock`] for the watermark.
///
/// ```
/// use std::sync::mpsc;
/// use headwater_dataflows::{Admission, Admit, Emission, Engine, EventTime, Scan, patterns::Frequency, testing::Line};
///
/// let (alerts, inbox) = mpsc::channel();
/// let mut engine = Engine::new(|events, control| {
///     let (keyed, _refused) = events.admit(control, Admission::default());
///     keyed.scan("Pair", Frequency::at_least(2, 10), Emission::Immediate, |line: &Line, _| line.id.clone())
/// }, move |alert, _epoch, diff| alerts.send((alert, diff)).expect("the inbox is open"));
///
/// engine.push(Line::from(("ann", 10, 0, "a")));
/// engine.push(Line::from(("ann", 15, 1, "b")));
/// engine.end_epoch(EventTime(5));
/// assert_eq!(inbox.try_recv(), Ok(("b".to_owned(), 1)));
///
/// engine.push(Line::from(("ann", 8, 2, "c"))); // so that the pair is complete at a
/// engine.finish();
/// assert_eq!(inbox.iter().collect::<Vec<_>>(), [("a".to_owned(), 1), ("b".to_owned(), -1)]);
/// ```
pub struct Engine<E: Data> {
    events: InputSession<Epoch, E, isize>,
    clock: Clock,
    epoch: Epoch,
    watermark: EventTime,
    probe: ProbeHandle<Epoch>,
    /// Passes the pending changes to the subscriber.
    deliver: Box<dyn FnMut()>,
    worker: Worker,
}

impl<E: Data> Engine<E> {
    /// Builds a dataflow. The subscriber receives each change of its result as (result, epoch, diff), epoch by epoch
    /// and sorted. A positive diff is the number of times that the result is raised, a negative one the number of times
    /// that it is revoked.
    pub fn new<D: Data>(
        build: impl for<'s> FnOnce(VecCollection<'s, Epoch, E>, ControlStream<'s>) -> VecCollection<'s, Epoch, D>,
        mut subscriber: impl FnMut(D, Epoch, isize) + 'static,
    ) -> Engine<E> {
        let mut worker = Worker::new(WorkerConfig::default(), Allocator::Thread(Thread::default()), None);
        let probe = ProbeHandle::new();
        let changes: Rc<RefCell<Vec<(D, Epoch, isize)>>> = Rc::default();
        let results = Rc::clone(&changes);
        let (events, clock) = worker.dataflow::<Epoch, _, _>(|scope| {
            let mut events = InputSession::new();
            let (clock, control) = Clock::new(scope);
            build(events.to_collection(scope), control)
                .inner
                .inspect(move |change: &(D, Epoch, isize)| results.borrow_mut().push(change.clone()))
                .probe_with(&probe);
            (events, clock)
        });
        let deliver = move || {
            let mut changes = changes.take();
            consolidation::consolidate_updates(&mut changes);
            changes.into_iter().for_each(|(result, epoch, diff)| subscriber(result, epoch, diff));
        };
        Engine {
            events,
            clock,
            epoch: Epoch(0),
            watermark: EventTime::MIN,
            probe,
            deliver: Box::new(deliver),
            worker,
        }
    }

    /// Pushes an event into the current epoch.
    pub fn push(&mut self, event: E) {
        self.events.update(event, 1);
    }

    /// Retracts an event that was pushed before.
    pub fn retract(&mut self, event: E) {
        self.events.update(event, -1);
    }

    /// Ends the epoch. No event at or below `watermark` is accepted in a later epoch. A watermark below an earlier one
    /// has no effect. Returns when the subscriber has received all changes of the epoch.
    pub fn end_epoch(&mut self, watermark: EventTime) {
        self.watermark = self.watermark.max(watermark);
        self.epoch = self.epoch.next();
        self.clock.end_epoch(self.watermark);
        self.events.advance_to(self.epoch);
        self.events.flush();
        while self.probe.less_than(&self.epoch) {
            self.worker.step();
        }
        (self.deliver)();
    }

    /// Ends the input: advances the watermark to infinity, which emits all results that wait for it.
    pub fn finish(mut self) {
        self.end_epoch(EventTime::MAX);
    }
}
