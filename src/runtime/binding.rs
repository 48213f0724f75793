//! The binding operator: closes epochs, advances the watermark, and sends both to every worker.

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
use super::clock::ClockControl;
use super::failure::{Failure, RunError};
use super::ledger_writer::LedgerWriterHandle;
use super::recovery::Origin;
use super::trace::TraceWriter;
use crate::coordination::ingest::{Pace, TimeRules};
use crate::coordination::{
    Binding, Bound, Closed, Collector, EpochRecord, GroupOffsets, Manifest, Marks, Positions, Watermark,
};

/// The state of worker 0 that closes epochs.
pub struct Binder {
    /// Collects the closed epochs of all workers of the cluster.
    pub collector: Collector,
    /// The watermark; initially the one before the first epoch.
    pub watermark: Watermark,
    /// Decides which partitions may be read, and monitors the watermark.
    pub pace: Pace,
    /// The start time of the run.
    pub started: Instant,
    /// The positions of all partitions.
    pub positions: Positions,
    /// Marks the epochs whose state is captured; None if checkpoints are disabled.
    pub marker: Option<Marker>,
    /// True if epochs close by a count of records.
    pub counted: bool,
    /// True if the watermark goes to infinity at the end of the input.
    pub close_at_end: bool,
    /// The shared control of the clock.
    pub clock_control: Rc<ClockControl>,
    /// The offsets to commit to the consumer group.
    pub offsets: Rc<RefCell<GroupOffsets>>,
    /// The trace that bindings are written to, if any.
    pub trace: Option<TraceWriter>,
    /// The origin of the run, which has the epochs to replay.
    pub origin: Arc<Origin>,
    /// The number of epochs that were replayed.
    pub replayed: usize,
    /// The writer that makes new epochs durable.
    pub ledger: Option<LedgerWriterHandle>,
    /// Receives failures.
    pub failure: Failure,
}

/// Marks the epochs whose state is captured.
pub struct Marker {
    /// Decides which epochs are marked.
    pub marks: Marks,
    /// The generation of this start.
    pub generation: Generation,
    /// The marked epochs.
    pub marked: Marked,
}

impl Binder {
    /// Ends a bound epoch: records it or compares it with the recorded one. Returns the control message for all
    /// workers, if one is needed.
    fn end_epoch(&mut self, bound: &Bound) -> Option<Control> {
        let before = self.watermark.current();
        let replayed = self.origin.replay.get(self.replayed);
        let rules = replayed.map_or_else(TimeRules::default, |before| before.rules);
        let mut bindings = bound.bindings.clone();
        if let Some(recorded) = replayed {
            self.origin.use_recorded_bindings(recorded, &mut bindings, &self.positions);
        }
        let mut watermark = self.watermark.advance(&bindings, bound.wall_ms, rules);
        self.positions.advance(&bindings);
        self.pace.add(&bound.unfinal);
        let first_end = bound.ended && !self.clock_control.stop.get();
        if bound.ended || bound.stopping {
            self.clock_control.stop.set(true);
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
        self.clock_control.paced.set(self.pace.end_epoch(
            now,
            self.positions.as_slice(),
            bound.slowest,
            watermark,
        ));
        self.clock_control.bound.set(bound.epoch);
        self.clock_control.wake();
        if let Some(before) = replayed.filter(|before| **before != record) {
            let detail = differences(before, &record);
            self.failure.report(RunError::Replay { epoch: bound.epoch, detail });
            return None;
        }
        let again = replayed.is_some();
        let checkpoint = self.mark(&record, watermark);
        if again {
            self.replayed += 1;
            // Offsets are committed once, at the end of the replay: those of the group never go back.
            if self.replayed == self.origin.replay.len() {
                self.offsets.borrow_mut().bound(bound.epoch, &last_bindings(&self.origin.replay));
            }
        } else {
            self.offsets.borrow_mut().bound(bound.epoch, &record.bindings);
            // Progress, manifests and outputs never get ahead of the ledger.
            let must_record = !record.is_empty() || checkpoint || watermark != before;
            if let Some(ledger) = self.ledger.as_ref().filter(|_| must_record) {
                ledger.record(record.clone());
            }
        }
        if let Some(trace) = self.trace.as_mut().filter(|_| !record.is_empty() || watermark != before)
            && let Err(error) = trace.record(&record, watermark, self.counted)
        {
            self.failure.report(error);
        }
        let must_emit = !record.is_empty() || watermark != before || checkpoint;
        must_emit.then_some(Control { watermark, checkpoint })
    }

    /// Decides whether to mark the epoch; if so, adds its manifest without parts to `marked` and returns true.
    fn mark(&mut self, record: &EpochRecord, watermark: EventTime) -> bool {
        let Some(Marker { marks, generation, marked }) = &mut self.marker else { return false };
        if let Some(ledger) = &self.ledger {
            marks.concluded(ledger.concluded());
        }
        let last = self.clock_control.stop.get() && record.epoch == self.clock_control.newest.get();
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

/// Describes the difference between the recorded and the replayed bindings of an epoch.
fn differences(before: &EpochRecord, now: &EpochRecord) -> String {
    let lost = before.bindings.iter().find(|binding| !now.bindings.contains(binding));
    let new = now.bindings.iter().find(|binding| !before.bindings.contains(binding));
    match (lost, new) {
        (Some(lost), Some(new)) => format!("recorded {lost:?}, replayed {new:?}"),
        (Some(lost), None) => format!("{lost:?} is missing from the replay"),
        (None, Some(new)) => format!("{new:?} is not in the ledger"),
        (None, None) => format!(
            "recorded epoch {} at wall time {} ms, replayed epoch {} at {} ms",
            before.epoch, before.wall_ms, now.epoch, now.wall_ms
        ),
    }
}

/// Returns the last binding of each partition.
fn last_bindings(records: &[EpochRecord]) -> Vec<Binding> {
    let mut last = BTreeMap::new();
    for binding in records.iter().flat_map(|record| &record.bindings) {
        last.insert(binding.partition, *binding);
    }
    last.into_values().collect()
}

/// Returns the control stream: the watermark and the mark at the end of each epoch that has a binding, a new watermark
/// or a mark. Only worker 0 emits it; it must be broadcast.
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
                            let control = binder.end_epoch(&bound);
                            let capability = capabilities
                                .remove(&bound.epoch)
                                .expect("a capability is retained with the first message");
                            output.session(&capability).give_iterator(control.into_iter());
                        }
                        Err(error) => return binder.failure.report(error.into()),
                    }
                }
            }
        },
    )
}
