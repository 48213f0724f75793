//! Binding: epochs close, the watermark advances, and every worker hears of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use headwater_dataflows::{Control, ControlStream, Epoch, EventTime};
use headwater_sinks::Generation;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;

use super::checkpointing::Marked;
use super::clock::ClockHand;
use super::failure::{Failure, RunError};
use super::ledger_writer::LedgerWriterHandle;
use super::recovery::Origin;
use super::trace::TraceWriter;
use crate::coordination::ingest::{Pace, TimeRules};
use crate::coordination::{
    Binding, Bound, Closed, Collector, EpochRecord, GroupOffsets, Manifest, Marks, Positions, Watermark,
};

/// What worker 0 does with the epochs that close.
pub struct Binder {
    /// For all workers of the cluster.
    pub collector: Collector,
    /// As of the epoch before the first.
    pub watermark: Watermark,
    /// Decides who may read, and watches what holds the watermark up.
    pub pace: Pace,
    /// When the run began.
    pub started: Instant,
    /// How far partitions have come.
    pub positions: Positions,
    /// Decides which epochs are marked.
    pub marker: Option<Marker>,
    /// Whether epochs are counts of records.
    pub counted: bool,
    /// Whether the watermark goes to infinity when the input ends.
    pub close_at_end: bool,
    /// What the clock is told.
    pub hand: Rc<ClockHand>,
    /// What the consumer group may be told.
    pub offsets: Rc<RefCell<GroupOffsets>>,
    /// Where bindings are written down.
    pub trace: Option<TraceWriter>,
    /// Has the epochs that are replayed.
    pub origin: Arc<Origin>,
    /// How many have been.
    pub replayed: usize,
    /// Makes new epochs durable.
    pub ledger: Option<LedgerWriterHandle>,
    /// Where failures go.
    pub failure: Failure,
}

/// Marks epochs whose state is to be captured.
pub struct Marker {
    /// Which.
    pub marks: Marks,
    /// This start's.
    pub generation: Generation,
    /// Those that are marked.
    pub marked: Marked,
}

impl Binder {
    /// What every worker must hear at the end of an epoch, if anything.
    fn bound(&mut self, bound: &Bound) -> Option<Control> {
        let before = self.watermark.current();
        let replayed = self.origin.replay.get(self.replayed);
        let rules = replayed.map_or_else(TimeRules::default, |before| before.rules);
        let mut bindings = bound.bindings.clone();
        if let Some(recorded) = replayed {
            self.origin.as_recorded(recorded, &mut bindings, &self.positions);
        }
        let mut watermark = self.watermark.advance(&bindings, bound.wall_ms, rules);
        self.positions.advance(&bindings);
        self.pace.add(&bound.unfinal);
        let first_end = bound.ended && !self.hand.stop.get();
        if bound.ended || bound.stopping {
            self.hand.stop.set(true);
        }
        let record = EpochRecord {
            epoch: bound.epoch,
            wall_ms: bound.wall_ms,
            bindings,
            closes: replayed.map_or(first_end && self.close_at_end, |before| before.closes),
            rules,
        };
        if record.closes {
            watermark = self.watermark.close();
        }
        let now = self.started.elapsed();
        self.hand.paced.set(self.pace.end_epoch(now, self.positions.as_slice(), bound.slowest, watermark));
        self.hand.bound.set(bound.epoch);
        self.hand.wake();
        if let Some(before) = replayed.filter(|before| **before != record) {
            let detail = differences(before, &record);
            self.failure.report(RunError::Replay { epoch: bound.epoch, detail });
            return None;
        }
        let again = replayed.is_some();
        let checkpoint = self.mark(&record, watermark);
        if again {
            self.replayed += 1;
            // The group is told of what was replayed once, at its end: its offsets never go back.
            if self.replayed == self.origin.replay.len() {
                self.offsets.borrow_mut().bound(bound.epoch, &last_bindings(&self.origin.replay));
            }
        } else {
            self.offsets.borrow_mut().bound(bound.epoch, &record.bindings);
            // No progress, no manifest and no output stands above the ledger.
            let speaks = !record.is_empty() || checkpoint || watermark != before;
            if let Some(ledger) = self.ledger.as_ref().filter(|_| speaks) {
                ledger.record(record.clone());
            }
        }
        if let Some(trace) = self.trace.as_mut().filter(|_| !record.is_empty() || watermark != before)
            && let Err(error) = trace.record(&record, watermark, self.counted)
        {
            self.failure.report(error);
        }
        let speaks = !record.is_empty() || watermark != before || checkpoint;
        speaks.then_some(Control { watermark, checkpoint })
    }

    /// Whether the epoch is marked; if so, what its manifest will say is noted.
    fn mark(&mut self, record: &EpochRecord, watermark: EventTime) -> bool {
        let Some(Marker { marks, generation, marked }) = &mut self.marker else { return false };
        if let Some(ledger) = &self.ledger {
            marks.concluded(ledger.concluded());
        }
        let last = self.hand.stop.get() && record.epoch == self.hand.newest.get();
        if !(if last { marks.mark_last(record) } else { marks.mark(record) }) {
            return false;
        }
        marked.borrow_mut().push_back(Manifest {
            epoch: record.epoch,
            generation: *generation,
            wall_ms: record.wall_ms,
            watermark,
            positions: self.positions.as_slice().to_vec(),
            unfinal: self.pace.unfinal.entries(),
            all_idle: self.watermark.all_idle(),
            operators: Vec::new(),
            keys: None,
            parts: Vec::new(),
        });
        true
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
