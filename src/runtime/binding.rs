//! Binding: epochs close, the watermark advances, and every worker hears of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use headwater_dataflows::{Control, ControlStream, Epoch, EventTime};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;

use super::clock::ClockHand;
use super::failure::{Failure, RunError};
use super::recorder::Recorder;
use super::recording::LedgerHandle;
use crate::coordination::{Binding, Bound, Closed, Collector, EpochRecord, GroupOffsets, Watermark};

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
    /// Epochs that are done again, of which `replayed` have been.
    pub replay: Arc<Vec<EpochRecord>>,
    /// See `replay`.
    pub replayed: usize,
    /// Makes new epochs durable.
    pub ledger: Option<LedgerHandle>,
    /// Where failures go.
    pub failure: Failure,
}

impl Binder {
    /// What every worker must hear at the end of an epoch, if anything.
    fn bound(&mut self, bound: &Bound) -> Option<Control> {
        let before = self.watermark.current();
        let mut watermark = self.watermark.advance(&bound.bindings);
        self.hand.slowest.set(bound.slowest);
        let first_end = bound.ended && !self.hand.stop.get();
        if bound.ended || bound.stopping {
            self.hand.stop.set(true);
        }
        let mut record = EpochRecord {
            epoch: bound.epoch,
            wall_ms: bound.wall_ms,
            bindings: bound.bindings.clone(),
            closes: first_end && self.close_at_end,
        };
        if let Some(before) = self.replay.get(self.replayed) {
            self.replayed += 1;
            record.closes = before.closes;
            if record != *before {
                self.failure
                    .report(RunError::Replay { epoch: bound.epoch, detail: differences(before, &record) });
                return None;
            }
            // The group is told of what was replayed once, at its end: its offsets never go back.
            if self.replayed == self.replay.len() {
                self.offsets.borrow_mut().bound(bound.epoch, &last_bindings(&self.replay));
            }
        } else {
            self.offsets.borrow_mut().bound(bound.epoch, &record.bindings);
            if let Some(ledger) = self.ledger.as_ref().filter(|_| !record.is_empty()) {
                ledger.record(record.clone());
            }
        }
        if record.closes {
            watermark = EventTime::MAX;
        }
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.record(&record, watermark)
        {
            self.failure.report(error);
        }
        (!record.is_empty() || watermark != before).then_some(Control { watermark, checkpoint: false })
    }
}

/// What was bound otherwise than before, in words.
fn differences(before: &EpochRecord, now: &EpochRecord) -> String {
    let lost = before.bindings.iter().find(|binding| !now.bindings.contains(binding));
    let new = now.bindings.iter().find(|binding| !before.bindings.contains(binding));
    match (lost, new) {
        (Some(lost), Some(new)) => format!("{lost:?} became {new:?}"),
        (Some(lost), None) => format!("{lost:?} is missing"),
        (None, Some(new)) => format!("{new:?} is new"),
        (None, None) => format!(
            "epoch {} at {} became epoch {} at {}",
            before.epoch, before.wall_ms, now.epoch, now.wall_ms
        ),
    }
}

/// Each partition's last binding that names an end.
fn last_bindings(records: &[EpochRecord]) -> Vec<Binding> {
    let mut last = BTreeMap::new();
    for binding in records.iter().flat_map(|record| &record.bindings) {
        last.insert(binding.partition, *binding);
    }
    last.into_values().collect()
}

/// The control stream: for each epoch with a binding, or a change of the watermark, what holds at its end. It is to be
/// broadcast.
pub fn bind<'scope>(closed: StreamVec<'scope, Epoch, Closed>, mut binder: Binder) -> ControlStream<'scope> {
    let to_first = Exchange::new(|_: &Closed| 0);
    closed.unary_frontier::<CapacityContainerBuilder<Vec<Control>>, _, _, _>(
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
}
