//! Binding: epochs close, the watermark advances, and every worker hears of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use headwater_dataflows::{Control, ControlStream, Epoch, EventTime};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::Broadcast;

use super::clock::ClockHand;
use super::failure::Failure;
use super::recorder::Recorder;
use crate::coordination::{Bound, Closed, Collector, GroupOffsets, Watermark};

/// What worker 0 does with the epochs that close.
pub struct Binder {
    /// For all workers of the cluster.
    pub collector: Collector,
    /// As of no epoch yet.
    pub watermark: Watermark,
    /// Whether the watermark goes to infinity when the input ends.
    pub close_at_end: bool,
    /// What the clock hears.
    pub hand: Rc<ClockHand>,
    /// What the consumer group may be told.
    pub offsets: Rc<RefCell<GroupOffsets>>,
    /// Where bindings are written down.
    pub recorder: Option<Recorder>,
    /// Where failures go.
    pub failure: Failure,
}

impl Binder {
    /// What every worker must hear at the end of an epoch, if anything.
    fn bound(&mut self, bound: &Bound) -> Option<Control> {
        let before = self.watermark.current();
        let mut watermark = self.watermark.advance(&bound.bindings);
        self.offsets.borrow_mut().bound(bound.epoch, &bound.bindings);
        self.hand.slowest.set(bound.slowest);
        let first_end = bound.ended && !self.hand.stop.get();
        if bound.ended || bound.stopping {
            self.hand.stop.set(true);
        }
        let closes = first_end && self.close_at_end;
        if closes {
            watermark = EventTime::MAX;
        }
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.record(bound, watermark, closes)
        {
            self.failure.report(error);
        }
        (!bound.bindings.is_empty() || watermark != before).then_some(Control { watermark })
    }
}

/// The control stream: for each epoch with a binding, or a change of the watermark, what holds at its end.
pub fn bind<'scope>(closed: StreamVec<'scope, Epoch, Closed>, mut binder: Binder) -> ControlStream<'scope> {
    let to_first = Exchange::new(|_: &Closed| 0);
    closed
        .unary_frontier::<CapacityContainerBuilder<Vec<Control>>, _, _, _>(
            to_first,
            "Bind",
            |capability, _| {
                drop(capability);
                let mut capabilities = BTreeMap::new();
                move |(input, frontier), output| {
                    input.for_each(|stamp, data| {
                        let epoch = *stamp.least().expect("data travels with a time");
                        capabilities.entry(epoch).or_insert_with(|| stamp.delayed(&epoch, 0));
                        data.drain(..).for_each(|closed| binder.collector.closed(epoch, closed));
                    });
                    loop {
                        match binder.collector.next(|epoch| !frontier.less_equal(&epoch)) {
                            Ok(None) => break,
                            Ok(Some(bound)) => {
                                let control = binder.bound(&bound);
                                let capability =
                                    capabilities.remove(&bound.epoch).expect("retained with the first word");
                                output.session(&capability).give_iterator(control.into_iter());
                            }
                            Err(error) => return binder.failure.report(error.into()),
                        }
                    }
                }
            },
        )
        .broadcast()
}
