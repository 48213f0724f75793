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

use crate::coordination::ingest::{Pace, TimeRules};
use crate::coordination::{
    Binding, Bound, Closed, Collector, EpochRecord, GroupOffsets, Manifest, Marks, Positions, Watermark,
};
use crate::metrics::{Metrics, PartitionTime};
use crate::runtime::checkpoint::operators::Marked;
use crate::runtime::commit::ledger_writer::LedgerWriterHandle;
use crate::runtime::failure::{Failure, RunError};
use crate::runtime::ingest::clock::ClockControl;
use crate::runtime::ingest::trace::TraceWriter;
use crate::runtime::recovery::origin::Origin;

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
    /// The metrics.
    pub metrics: Arc<Metrics>,
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
        let times = self.watermark.partitions().zip(self.positions.as_slice());
        self.metrics.partition_times(times.map(|((watermark, idle), position)| PartitionTime {
            watermark,
            idle,
            next_offset: position.next.0,
        }));
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;
    use std::time::Duration;

    use headwater_dataflows::{Offset, Partition};
    use timely::dataflow::operators::probe::{Handle as Probe, Probe as _};
    use timely::dataflow::operators::vec::Input;
    use timely::dataflow::operators::vec::input::Handle;
    use timely::worker::Worker;

    use super::*;
    use crate::coordination::WatermarkRule;
    use crate::coordination::ingest::{Liveness, Unfinal};
    use crate::runtime::commit::ledger_writer::{Entry, durable};
    use crate::runtime::fakes::{self, Collected, binding, collect, record, settle, worker};
    use crate::runtime::ingest::clock::committed;

    /// A binder of a pipeline with one partition, and what it has recorded.
    struct Fixture {
        binder: Binder,
        ledger: LedgerWriterHandle,
        entries: Receiver<Entry>,
        marked: Marked,
    }

    /// Returns a binder that replays these epochs and then marks an epoch every 100 ms of recorded wall time. The
    /// watermark is 1 ms behind the greatest event time.
    fn fixture(replay: Vec<EpochRecord>) -> Fixture {
        let (ledger, entries) = LedgerWriterHandle::detached(Epoch(0));
        let marked = Marked::default();
        let rule = WatermarkRule { max_out_of_orderness_ms: 0, idle_advance_ms: None };
        let forever = Duration::from_secs(3600);
        let binder = Binder {
            collector: Collector::new(2),
            watermark: Watermark::new(1, rule),
            pace: Pace {
                unfinal: Unfinal::default(),
                unfinal_limit: 1 << 20,
                max_drift_ms: None,
                liveness: Liveness::new(forever, forever),
            },
            started: Instant::now(),
            positions: Positions::starting(&[Offset(0)]),
            marker: Some(Marker {
                marks: Marks::new(100, Epoch(0)),
                generation: Generation(3),
                marked: Rc::clone(&marked),
            }),
            counted: false,
            close_at_end: true,
            clock_control: Rc::default(),
            offsets: Rc::default(),
            trace: None,
            origin: fakes::origin(None, replay),
            replayed: 0,
            ledger: Some(ledger.clone()),
            failure: Failure::default(),
            metrics: Arc::default(),
        };
        Fixture { binder, ledger, entries, marked }
    }

    fn bound(epoch: u64, bindings: Vec<Binding>) -> Bound {
        Bound {
            epoch: Epoch(epoch),
            wall_ms: 0,
            bindings,
            unfinal: Vec::new(),
            slowest: None,
            ended: false,
            stopping: false,
        }
    }

    impl Fixture {
        fn recorded(&self) -> Vec<EpochRecord> {
            let epochs = self.entries.try_iter().map(|entry| match entry {
                Entry::Epoch(record) => record,
                other => panic!("{other:?}"),
            });
            epochs.collect()
        }

        /// Returns the offsets to commit once every sink has committed all epochs.
        fn offsets(&self) -> Option<Vec<(Partition, Offset)>> {
            let mut offsets = self.binder.offsets.borrow_mut();
            offsets.completed(|_| true);
            offsets.take()
        }

        fn is_stopped(&self) -> bool {
            self.binder.clock_control.stop.get()
        }
    }

    fn control(watermark: i64) -> Option<Control> {
        Some(Control { watermark: EventTime(watermark), checkpoint: false })
    }

    #[test]
    fn an_epoch_with_records_is_recorded_and_announced() {
        let mut fixture = fixture(Vec::new());
        assert_eq!(fixture.binder.end_epoch(&bound(4, vec![binding(10)])), control(9));
        assert_eq!(fixture.recorded(), [record(4, 10)]);
        assert_eq!(fixture.offsets(), Some(vec![(Partition(0), Offset(10))]));
        assert_eq!(fixture.binder.clock_control.bound.get(), Epoch(4));
    }

    #[test]
    fn an_epoch_without_effect_is_not_recorded() {
        let mut fixture = fixture(Vec::new());
        assert_eq!(fixture.binder.end_epoch(&bound(4, Vec::new())), None);
        assert_eq!((fixture.recorded(), fixture.offsets()), (vec![], None));
    }

    #[test]
    fn an_equal_replay_is_announced_and_not_recorded_again() {
        let mut fixture = fixture(vec![record(4, 10), record(6, 20)]);
        assert_eq!(fixture.binder.end_epoch(&bound(4, vec![binding(10)])), control(9));
        assert_eq!(fixture.offsets(), None, "those of the group never go back");
        assert_eq!(fixture.binder.end_epoch(&bound(6, vec![binding(20)])), control(19));
        assert_eq!(fixture.offsets(), Some(vec![(Partition(0), Offset(20))]));
        assert_eq!(fixture.recorded(), []);
        assert_eq!(fixture.binder.end_epoch(&bound(7, vec![binding(30)])), control(29));
        assert_eq!(fixture.recorded(), [record(7, 30)]);
        assert!(!fixture.binder.failure.is_some());
    }

    #[test]
    fn a_replay_that_differs_ends_the_run() {
        let Binding { partition, .. } = binding(0);
        for bindings in [vec![], vec![binding(11)], vec![binding(10), Binding { partition, ..binding(9) }]] {
            let mut fixture = fixture(vec![record(4, 10)]);
            assert_eq!(fixture.binder.end_epoch(&bound(4, bindings)), None);
            assert_eq!((fixture.recorded(), fixture.offsets()), (vec![], None));
            let failure = std::mem::take(&mut fixture.binder.failure).into_result();
            assert!(matches!(failure, Err(RunError::Replay { epoch: Epoch(4), .. })), "{failure:?}");
        }
    }

    #[test]
    fn a_difference_names_what_is_missing_and_what_is_new() {
        let (none, ten) = (EpochRecord { bindings: Vec::new(), ..record(4, 0) }, record(4, 10));
        assert!(differences(&ten, &none).ends_with("is missing from the replay"));
        assert!(differences(&none, &ten).ends_with("is not in the ledger"));
        assert!(differences(&ten, &record(4, 11)).starts_with("recorded partition 0 to offset"));
        let later = EpochRecord { wall_ms: 7, ..ten.clone() };
        assert_eq!(differences(&ten, &later), "recorded epoch 4 at wall time 0 ms, replayed epoch 4 at 7 ms");
    }

    #[test]
    fn the_end_of_the_input_closes_the_windows() {
        let mut fixture = fixture(Vec::new());
        let closed = fixture.binder.end_epoch(&Bound { ended: true, ..bound(4, vec![binding(10)]) });
        assert_eq!(closed, control(i64::MAX));
        assert_eq!(fixture.recorded(), [EpochRecord { closes: true, ..record(4, 10) }]);
        assert!(fixture.is_stopped());
    }

    #[test]
    fn a_stop_before_the_end_leaves_the_windows_open() {
        let mut fixture = fixture(Vec::new());
        fixture.binder.end_epoch(&bound(3, vec![binding(5)]));
        let stopping = Bound { stopping: true, ..bound(4, vec![binding(10)]) };
        assert_eq!(fixture.binder.end_epoch(&stopping), control(9));
        assert!(fixture.is_stopped());
        let after = fixture.binder.end_epoch(&Bound { ended: true, ..bound(5, vec![binding(20)]) });
        assert_eq!(after, control(19), "the run was stopped first");
        assert!(fixture.recorded().iter().all(|record| !record.closes));
    }

    #[test]
    fn a_recorded_end_is_replayed_as_recorded() {
        let mut fixture = fixture(vec![EpochRecord { closes: true, ..record(4, 10) }]);
        assert_eq!(fixture.binder.end_epoch(&bound(4, vec![binding(10)])), control(i64::MAX));
        assert!(!fixture.binder.failure.is_some());
    }

    #[test]
    fn a_marked_epoch_has_a_manifest_with_the_positions_after_it() {
        let mut fixture = fixture(Vec::new());
        fixture.binder.end_epoch(&bound(4, vec![binding(10)]));
        let late = Bound { wall_ms: 100, ..bound(5, vec![binding(20)]) };
        let checkpoint = fixture.binder.end_epoch(&late);
        assert_eq!(checkpoint, Some(Control { watermark: EventTime(19), checkpoint: true }));
        let manifests = fixture.marked.take();
        assert_eq!(manifests.len(), 1);
        let manifest = &manifests[0];
        assert_eq!((manifest.epoch, manifest.generation, manifest.wall_ms), (Epoch(5), Generation(3), 100));
        assert_eq!((manifest.positions[0].next, manifest.watermark), (Offset(20), EventTime(19)));
    }

    #[test]
    fn the_last_epoch_of_a_stopped_run_is_marked_even_if_empty() {
        let mut fixture = fixture(Vec::new());
        fixture.binder.end_epoch(&bound(4, vec![binding(10)]));
        fixture.recorded();
        fixture.binder.clock_control.newest.set(Epoch(6));
        let stop = |epoch| Bound { stopping: true, ..bound(epoch, Vec::new()) };
        assert_eq!(fixture.binder.end_epoch(&stop(5)), None, "epoch 6 is open as well");
        let last = fixture.binder.end_epoch(&stop(6));
        assert_eq!(last, Some(Control { watermark: EventTime(9), checkpoint: true }));
        let empty = EpochRecord { bindings: Vec::new(), ..record(6, 0) };
        assert_eq!(fixture.recorded(), [empty], "no manifest may be above the ledger");
    }

    fn closed(worker: usize, bindings: Vec<Binding>) -> Closed {
        Closed {
            worker,
            wall_ms: 0,
            bindings,
            unfinal: Vec::new(),
            slowest: None,
            oldest: None,
            ended: false,
            stopping: false,
        }
    }

    /// The operators `Bind` and `Record`, with a ledger that the test plays.
    struct RunningFixture {
        worker: Worker,
        closed: Handle<Epoch, Closed>,
        ledger: LedgerWriterHandle,
        entries: Receiver<Entry>,
        failure: Failure,
        controls: Collected<Control>,
        durable: Probe<Epoch>,
    }

    fn running() -> RunningFixture {
        let Fixture { binder, ledger, entries, .. } = fixture(Vec::new());
        let (failure, probe) = (binder.failure.clone(), Probe::new());
        let mut worker = worker();
        let (closed, controls) = worker.dataflow(|scope| {
            let (closed, stream) = scope.new_input();
            let (control, controls) = collect(bind(stream, binder));
            durable(control, Some(ledger.durable())).probe_with(&probe);
            (closed, controls)
        });
        RunningFixture { worker, closed, ledger, entries, failure, controls, durable: probe }
    }

    impl RunningFixture {
        /// Sends these messages of the current epoch, and ends all epochs before `next`. Returns the control messages.
        fn close(&mut self, messages: impl IntoIterator<Item = Closed>, next: u64) -> Vec<(Epoch, Control)> {
            messages.into_iter().for_each(|message| self.closed.send(message));
            self.closed.advance_to(Epoch(next));
            settle(&mut self.worker);
            self.controls.take()
        }
    }

    #[test]
    fn an_epoch_is_bound_once_it_has_ended_on_every_worker() {
        let mut running = running();
        running.close([], 4);
        let both = [closed(1, vec![]), closed(0, vec![binding(10)])];
        running.closed.send(both[0].clone());
        running.closed.send(both[1].clone());
        running.closed.flush();
        settle(&mut running.worker);
        assert_eq!(running.controls.take(), [], "the frontier is still at epoch 4");
        let expected = Control { watermark: EventTime(9), checkpoint: false };
        assert_eq!(running.close([], 5), [(Epoch(4), expected)]);
        assert!(!running.failure.is_some());
    }

    #[test]
    fn an_epoch_that_a_worker_has_not_closed_ends_the_run() {
        let mut running = running();
        running.close([], 4);
        assert_eq!(running.close([closed(0, vec![binding(10)])], 5), []);
        assert!(running.failure.is_some());
        assert_eq!(running.entries.try_iter().count(), 0, "nothing is recorded");
    }

    #[test]
    fn an_epoch_is_released_only_when_its_bindings_are_durable() {
        let mut running = running();
        running.close([], 4);
        running.close([closed(0, vec![binding(10)]), closed(1, vec![])], 5);
        running.close([closed(0, vec![]), closed(1, vec![])], 9);
        assert_eq!(running.entries.try_iter().collect::<Vec<_>>(), [Entry::Epoch(record(4, 10))]);
        let is_released = |running: &RunningFixture, epoch| committed(&running.durable, Epoch(epoch));
        assert!(is_released(&running, 3) && !is_released(&running, 4), "it is queued, and not written");
        running.ledger.set_durable(Epoch(4));
        settle(&mut running.worker);
        assert!(is_released(&running, 8), "epoch 5 has nothing to record");
    }
}
