//! The binding operator: closes epochs, advances the watermark, and sends both to every worker.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use headwater_dataflows::{Control, Epoch, EventTime, Since};
use headwater_sinks::Generation;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;

use crate::coordination::ingest::{Pace, Paced, ReadPermission, TimeRules};
use crate::coordination::{
    Binding, Bound, Closed, Collector, EpochRecord, GroupOffsets, InForce, Manifest, Marks, Positions,
    Versions, Watermark,
};
use crate::metrics::{Metrics, PartitionTime};
use crate::runtime::backfill::{BoundState, Gate};
use crate::runtime::checkpoint::operators::Marked;
use crate::runtime::commit::ledger_writer::LedgerWriterHandle;
use crate::runtime::failure::{Failure, RunError};
use crate::runtime::ingest::changes::{Answer, BoundChange, ChangeRequests, Contents, Notice, bind_all};
use crate::runtime::ingest::clock::ClockControl;
use crate::runtime::ingest::trace::TraceWriter;
use crate::runtime::recovery::origin::Origin;

/// The maximum time for which a run that is to be resumed at once goes on for a checkpoint before it stops.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(10);

/// The minimum time for which such a run goes on: if all processes are asked to stop, there will be no other run, and the last
/// request may arrive a little later than the first.
const DECIDED_AFTER: Duration = Duration::from_millis(500);

/// The time for waiting records below which a run keeps up with its input: a replay then is faster than the input was.
const KEEPS_UP: Duration = Duration::from_secs(1);

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
    /// The changes of rules and lists that are requested.
    pub requests: ChangeRequests,
    /// The exchange with the thread that makes the pasts of rules.
    pub gate: Gate,
    /// The changes that are in force, and those that un-final events need.
    pub in_force: Versions,
    /// Marks the epochs whose state is captured; None if checkpoints are disabled.
    pub marker: Option<Marker>,
    /// True if a run that is asked to stop makes a checkpoint while it goes on, and then stops without another one: the next
    /// start replays what came after it, which takes less time than a checkpoint for which reading stops. It may become false
    /// while the run stops.
    pub rescaling: Arc<AtomicBool>,
    /// The checkpoint that the run makes before it stops.
    pub before_stop: Option<BeforeStop>,
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
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// The checkpoint that a run makes before it stops.
#[derive(Clone, Copy)]
pub struct BeforeStop {
    /// The time of the request to stop.
    since: Instant,
    /// True if it is concluded, and the run keeps up, so that little has to be replayed.
    is_enough: bool,
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
    /// Ends a bound epoch: records it or compares it with the recorded one. Returns the notice for all workers, if one is
    /// needed.
    fn end_epoch(&mut self, bound: &Bound) -> Option<Notice> {
        let before = self.watermark.current();
        let origin = Arc::clone(&self.origin);
        let replayed = origin.replay.get(self.replayed);
        let rules = replayed.map_or_else(TimeRules::default, |before| before.rules);
        let mut bindings = bound.bindings.clone();
        if let Some(recorded) = replayed {
            self.origin.use_recorded_bindings(recorded, &mut bindings, &self.positions);
        }
        let is_held = replayed.is_none() && bindings.is_empty() && self.gate.is_held();
        let mut watermark = match is_held {
            // The pasts of rules are those up to this watermark.
            true => before,
            false => self.watermark.advance(&bindings, bound.wall_ms, rules),
        };
        self.positions.advance(&bindings);
        let times = self.watermark.partitions().zip(self.positions.as_slice());
        self.metrics.partition_times(times.map(|((watermark, idle), position)| PartitionTime {
            watermark,
            idle,
            next_offset: position.next.0,
        }));
        self.pace.add(&bound.unfinal);
        let first_end = bound.ended && !self.clock_control.stop.get();
        if bound.ended || (bound.stopping && !self.awaits_checkpoint(bound, replayed.is_some())) {
            self.clock_control.stop.set(true);
        }
        let closes = replayed.map_or(first_end && self.close_at_end, |before| before.closes);
        if closes {
            watermark = self.watermark.close();
        }
        let (change, answer) = self.change(bound, watermark, replayed);
        let record = EpochRecord {
            epoch: bound.epoch,
            wall_ms: bound.wall_ms,
            bindings,
            closes,
            rules,
            change: change.as_ref().map(|(in_force, _)| in_force.change.clone()).unwrap_or_default(),
        };
        let is_quiet = record.is_empty() && bound.bindings.is_empty() && watermark == before;
        self.clock_control.is_quiet.set(is_quiet && !self.gate.is_watched());
        let now = self.started.elapsed();
        let positions = self.positions.as_slice();
        let paced = self.pace.end_epoch(now, positions, bound.slowest, watermark);
        let permission = if self.gate.is_held() { ReadPermission::None } else { paced.permission };
        self.clock_control.paced.set(Paced { permission, ..paced });
        if replayed.is_none() {
            self.gate.note(|| self.bound_state(bound.epoch, watermark));
        }
        self.clock_control.lag.set(bound.lag);
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
        match (answer, &self.ledger) {
            (Some(answer), Some(ledger)) => ledger.when_durable(answer),
            (Some(answer), None) => answer(),
            (None, _) => {}
        }
        if let Some(trace) = self.trace.as_mut().filter(|_| !record.is_empty() || watermark != before)
            && let Err(error) = trace.record(&record, watermark, self.counted)
        {
            self.failure.report(error);
        }
        let must_emit = !record.is_empty() || watermark != before || checkpoint;
        must_emit.then_some(Notice { control: Control { watermark, checkpoint }, change })
    }

    /// Returns true if a run that is asked to stop goes on until a checkpoint is concluded.
    fn awaits_checkpoint(&mut self, bound: &Bound, replaying: bool) -> bool {
        let Some(Marker { marks, .. }) = &mut self.marker else { return false };
        if replaying || self.clock_control.stop.get() || !self.rescaling.load(Ordering::Relaxed) {
            return false;
        }
        let is_first = self.before_stop.is_none();
        let before = self.before_stop.get_or_insert(BeforeStop { since: Instant::now(), is_enough: false });
        if is_first {
            marks.demand(bound.wall_ms);
            if !marks.is_settled() {
                tracing::info!("going on until a checkpoint is made");
            }
        }
        before.is_enough = marks.is_settled() && bound.lag < KEEPS_UP;
        let elapsed = before.since.elapsed();
        elapsed < DECIDED_AFTER || (!marks.is_settled() && elapsed < CHECKPOINT_WITHIN)
    }

    /// Returns the change that is bound to an epoch, with the contents of its lists: in a replay the recorded one, whose
    /// contents every process has read at its start; else what was requested, with the answer to those who asked for it.
    fn change(
        &mut self,
        bound: &Bound,
        watermark: EventTime,
        replayed: Option<&EpochRecord>,
    ) -> (Option<(InForce, Vec<Contents>)>, Option<Answer>) {
        let since = || {
            let BoundState { epoch, positions, last_time, .. } = self.bound_state(bound.epoch, watermark);
            Since { epoch, ends: positions, last_time }
        };
        let (change, answer) = match replayed {
            Some(before) if before.change.is_empty() => (None, None),
            Some(before) => {
                (Some((InForce { since: since(), change: before.change.clone() }, Vec::new())), None)
            }
            // The last epochs of a run that stops are not those of a change.
            None if self.clock_control.stop.get() => (None, None),
            None => {
                let entry = || self.gate.take_entry(&self.bound_state(bound.epoch, watermark));
                let entry = if bound.bindings.is_empty() { entry() } else { None };
                let requested = match entry {
                    Some(entry) => Some(bind_all(vec![entry], since())),
                    None => self.requests.bind(since),
                };
                match requested.map(BoundChange::split) {
                    Some((change, answer)) => (change, Some(answer)),
                    None => (None, None),
                }
            }
        };
        if let Some((in_force, _)) = &change {
            self.in_force.add(in_force.clone());
        }
        self.in_force.settle(watermark);
        (change, answer)
    }

    /// Returns the state at the end of an epoch with this watermark.
    fn bound_state(&self, epoch: Epoch, watermark: EventTime) -> BoundState {
        let positions = self.positions.as_slice();
        BoundState {
            epoch,
            positions: positions.iter().map(|position| position.next).collect(),
            timestamps_ms: positions.iter().map(|position| position.timestamp_ms).collect(),
            watermark,
            last_time: self.pace.unfinal.last_time().unwrap_or(EventTime::MIN).max(watermark),
        }
    }

    /// Decides whether to mark the epoch; if so, adds its manifest without parts to `marked` and returns true.
    fn mark(&mut self, record: &EpochRecord, watermark: EventTime) -> bool {
        let Some(Marker { marks, generation, marked }) = &mut self.marker else { return false };
        if let Some(ledger) = &self.ledger {
            marks.concluded(ledger.concluded());
        }
        let last = self.clock_control.stop.get() && record.epoch == self.clock_control.newest.get();
        let is_resumed = self.rescaling.load(Ordering::Relaxed);
        if last && is_resumed && self.before_stop.is_some_and(|before| before.is_enough) {
            return false;
        }
        // What a change causes in the next epoch would not be captured.
        if !record.change.is_empty() || !(if last { marks.mark_last(record) } else { marks.mark(record) }) {
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
            in_force: self.in_force.clone(),
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
        (Some(lost), Some(new)) => format!("recorded {lost}, replayed {new}"),
        (Some(lost), None) => format!("{lost} is missing from the replay"),
        (None, Some(new)) => format!("{new} is not in the ledger"),
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

/// Returns a notice at the end of each epoch that has a binding, a new watermark, a mark or a change. Only worker 0 emits
/// them; they must be broadcast.
pub fn bind<'scope>(
    closed: StreamVec<'scope, Epoch, Closed>,
    mut binder: Binder,
) -> StreamVec<'scope, Epoch, Notice> {
    let to_first = Exchange::new(|_: &Closed| 0);
    closed.unary_frontier::<CapacityContainerBuilder<Vec<Notice>>, _, _, _>(
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
                            let notice = binder.end_epoch(&bound);
                            let capability = capabilities
                                .remove(&bound.epoch)
                                .expect("a capability is retained with the first message");
                            output.session(&capability).give_iterator(notice.into_iter());
                        }
                        Err(error) => return binder.failure.report(error.into()),
                    }
                }
            }
        },
    )
}

#[cfg(test)]
mod tests;
