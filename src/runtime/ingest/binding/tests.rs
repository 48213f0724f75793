use std::sync::mpsc::Receiver;
use std::time::Duration;

use headwater_dataflows::{Offset, Partition};
use timely::dataflow::operators::probe::{Handle as Probe, Probe as _};
use timely::dataflow::operators::vec::Input;
use timely::dataflow::operators::vec::input::Handle;
use timely::worker::Worker;

use super::*;
use crate::coordination::ingest::{Liveness, Unfinal};
use crate::coordination::{Change, WatermarkRule};
use crate::runtime::backfill::Gate;
use crate::runtime::commit::ledger_writer::{Entry, durable};
use crate::runtime::fakes::{self, Collected, binding, collect, record, settle, worker};
use crate::runtime::ingest::changes::ChangeRequest;
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
        requests: ChangeRequests::default(),
        gate: Gate::default(),
        in_force: Versions::default(),
        marker: Some(Marker {
            marks: Marks::new(100, Epoch(0)),
            generation: Generation(3),
            marked: Rc::clone(&marked),
        }),
        rescaling: Arc::default(),
        before_stop: None,
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
        lag: Duration::ZERO,
        ended: false,
        stopping: false,
    }
}

impl Fixture {
    /// Returns the epochs to be recorded, and answers those who wait until they are durable.
    fn recorded(&self) -> Vec<EpochRecord> {
        let epochs = self.entries.try_iter().filter_map(|entry| match entry {
            Entry::Epoch(record) => Some(record),
            Entry::Durable(answer) => {
                answer.call();
                None
            }
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

    /// Pretends that the request to stop came this time ago.
    fn asked_before(&mut self, time: Duration) {
        let since = Instant::now().checked_sub(time).expect("the machine has run for longer");
        self.binder.before_stop = Some(BeforeStop { since, is_enough: false });
    }
}

fn control(watermark: i64) -> Option<Notice> {
    Some(Notice { control: Control { watermark: EventTime(watermark), checkpoint: false }, change: None })
}

fn mark(watermark: i64) -> Option<Notice> {
    Some(Notice { control: Control { watermark: EventTime(watermark), checkpoint: true }, change: None })
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

/// Requests other rules; `last_time` is that of the change.
fn request_rules(fixture: &Fixture) -> Receiver<InForce> {
    let (bound, binding) = std::sync::mpsc::sync_channel(1);
    let make = |since: &Since| {
        let rules = Some(format!("rules since {} at {}", since.epoch, since.last_time.0));
        Change { rules, ..Change::default() }
    };
    fixture.binder.requests.add(ChangeRequest { make: Box::new(make), contents: Vec::new(), bound });
    binding
}

#[test]
fn a_change_is_bound_to_the_next_epoch_even_if_it_is_empty() {
    let mut fixture = fixture(Vec::new());
    fixture.binder.end_epoch(&bound(4, vec![binding(10)]));
    fixture.recorded();
    let bound_change = request_rules(&fixture);
    let notice = fixture.binder.end_epoch(&bound(5, Vec::new())).expect("a notice");
    let (in_force, contents) = notice.change.expect("a change");
    assert_eq!(in_force.since, Since { epoch: Epoch(5), ends: vec![Offset(10)], last_time: EventTime(9) });
    assert_eq!((in_force.change.rules.as_deref(), contents), (Some("rules since 5 at 9"), vec![]));
    assert!(bound_change.try_recv().is_err(), "it is not durable");
    assert_eq!(fixture.recorded()[0].change, in_force.change, "it is recorded before a later epoch");
    assert_eq!(bound_change.try_recv(), Ok(in_force.clone()));
    assert_eq!(fixture.binder.in_force.as_slice(), [in_force]);
    assert_eq!(fixture.binder.end_epoch(&bound(6, Vec::new())), None, "nothing changes any more");
}

#[test]
fn a_replay_repeats_recorded_changes_and_binds_no_other() {
    let change = Change { rules: Some("recorded".to_owned()), ..Change::default() };
    let mut fixture = fixture(vec![EpochRecord { change, ..record(4, 10) }, record(6, 20)]);
    let requested = request_rules(&fixture);
    let notice = fixture.binder.end_epoch(&bound(4, vec![binding(10)])).expect("a notice");
    assert_eq!(notice.change.expect("a change").0.change.rules.as_deref(), Some("recorded"));
    let notice = fixture.binder.end_epoch(&bound(6, vec![binding(20)])).expect("a notice");
    assert!(notice.change.is_none() && requested.try_recv().is_err());
    let notice = fixture.binder.end_epoch(&bound(7, vec![binding(30)])).expect("a notice");
    fixture.recorded();
    assert!(notice.change.is_some() && requested.try_recv().is_ok());
    assert!(!fixture.binder.failure.is_some());
}

#[test]
fn a_checkpoint_has_the_changes_that_are_in_force() {
    let mut fixture = fixture(Vec::new());
    request_rules(&fixture);
    fixture.binder.end_epoch(&bound(4, vec![binding(10)]));
    fixture.binder.end_epoch(&Bound { wall_ms: 100, ..bound(5, vec![binding(20)]) });
    fixture.binder.end_epoch(&Bound { wall_ms: 200, ..bound(6, vec![binding(30)]) });
    let manifests = fixture.marked.take();
    assert_eq!(manifests[0].in_force.rules(), Some("rules since 4 at 9"));
}

#[test]
fn rules_enter_in_an_epoch_without_records_while_the_run_holds() {
    let mut fixture = fixture(Vec::new());
    let gate = fixture.binder.gate.clone();
    let newest = || gate.bound_after(Epoch(0), Duration::ZERO).expect("the run goes on");
    assert_eq!(newest(), None);
    fixture.binder.end_epoch(&bound(4, vec![binding(10)]));
    gate.hold();
    fixture.binder.end_epoch(&bound(5, vec![binding(20)]));
    let state = newest().expect("a bound epoch");
    assert_eq!(
        (state.epoch, &state.positions[..], state.watermark),
        (Epoch(5), &[Offset(20)][..], EventTime(19))
    );
    assert_eq!(fixture.binder.clock_control.paced.get().permission, ReadPermission::None);
    let (bound_entry, entry) = std::sync::mpsc::sync_channel(1);
    let make = |since: &Since| Change { rules: Some(since.epoch.to_string()), ..Change::default() };
    gate.offer(state, ChangeRequest { make: Box::new(make), contents: Vec::new(), bound: bound_entry });
    let other = request_rules(&fixture);
    let notice = fixture.binder.end_epoch(&bound(6, Vec::new())).expect("a notice");
    assert_eq!(notice.control, Control { watermark: EventTime(19), checkpoint: false });
    fixture.recorded();
    assert_eq!(entry.try_recv().expect("bound").change.rules.as_deref(), Some("6"));
    assert!(other.try_recv().is_err() && !gate.is_held(), "another change follows in a later epoch");
    fixture.binder.end_epoch(&bound(7, vec![binding(30)]));
    fixture.recorded();
    assert!(other.try_recv().is_ok());
    assert_eq!(fixture.binder.clock_control.paced.get().permission, ReadPermission::All);
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
fn a_run_that_is_resumed_at_once_stops_after_a_checkpoint() {
    let stop = |epoch, wall_ms, end| Bound { stopping: true, wall_ms, ..bound(epoch, vec![binding(end)]) };
    let mut fixture = fixture(vec![record(3, 5)]);
    fixture.binder.marker.as_mut().expect("checkpoints").marks = Marks::new(60_000, Epoch(0));
    fixture.binder.rescaling.store(true, Ordering::Relaxed);
    fixture.binder.end_epoch(&bound(3, vec![binding(5)]));
    fixture.binder.end_epoch(&bound(4, vec![binding(10)]));
    assert_eq!(fixture.binder.end_epoch(&stop(5, 2_000, 20)), mark(19));
    assert_eq!(fixture.binder.end_epoch(&stop(6, 2_010, 30)), control(29));
    assert!(!fixture.is_stopped(), "it is not concluded");
    fixture.binder.marker.as_mut().expect("checkpoints").marks.concluded(Epoch(5));
    fixture.binder.end_epoch(&stop(7, 2_020, 40));
    assert!(!fixture.is_stopped(), "perhaps there will be no other run");
    fixture.asked_before(DECIDED_AFTER);
    fixture.binder.clock_control.newest.set(Epoch(9));
    fixture.binder.end_epoch(&stop(8, 2_030, 50));
    assert!(fixture.is_stopped());
    assert_eq!(
        fixture.binder.end_epoch(&stop(9, 2_040, 60)),
        control(59),
        "the replay of four epochs is short"
    );
}

#[test]
fn a_run_that_is_not_resumed_after_all_stops_at_a_checkpoint() {
    for is_late in [false, true] {
        let mut fixture = fixture(Vec::new());
        fixture.binder.rescaling.store(true, Ordering::Relaxed);
        fixture.binder.clock_control.newest.set(Epoch(7));
        fixture.binder.end_epoch(&bound(4, vec![binding(10)]));
        let stop = |epoch, end| Bound { stopping: true, wall_ms: 2_000, ..bound(epoch, vec![binding(end)]) };
        assert_eq!(fixture.binder.end_epoch(&stop(5, 20)), mark(19));
        fixture.binder.marker.as_mut().expect("checkpoints").marks.concluded(Epoch(5));
        fixture.asked_before(DECIDED_AFTER);
        fixture.binder.rescaling.store(is_late, Ordering::Relaxed);
        fixture.binder.end_epoch(&stop(6, 30));
        assert!(fixture.is_stopped());
        fixture.binder.rescaling.store(false, Ordering::Relaxed);
        assert_eq!(fixture.binder.end_epoch(&stop(7, 40)), mark(39));
    }
}

#[test]
fn a_run_that_lags_stops_at_another_checkpoint() {
    let mut fixture = fixture(Vec::new());
    fixture.binder.rescaling.store(true, Ordering::Relaxed);
    fixture.binder.clock_control.newest.set(Epoch(6));
    fixture.binder.end_epoch(&bound(4, vec![binding(10)]));
    let stop = |epoch, end| {
        let lag = Duration::from_secs(60);
        Bound { stopping: true, wall_ms: 2_000, lag, ..bound(epoch, vec![binding(end)]) }
    };
    assert_eq!(fixture.binder.end_epoch(&stop(5, 20)), mark(19));
    fixture.binder.marker.as_mut().expect("checkpoints").marks.concluded(Epoch(5));
    fixture.asked_before(DECIDED_AFTER);
    assert_eq!(fixture.binder.end_epoch(&stop(6, 30)), mark(29));
    assert!(fixture.is_stopped());
}

#[test]
fn a_checkpoint_that_is_not_concluded_delays_a_stop_for_a_while_only() {
    let stop =
        |epoch| Bound { stopping: true, wall_ms: 2_000, ..bound(epoch, vec![binding(epoch as i64 * 10)]) };
    let mut fixture = fixture(Vec::new());
    fixture.binder.rescaling.store(true, Ordering::Relaxed);
    fixture.binder.end_epoch(&bound(4, vec![binding(10)]));
    fixture.binder.end_epoch(&stop(5));
    assert!(!fixture.is_stopped());
    fixture.asked_before(CHECKPOINT_WITHIN);
    fixture.binder.end_epoch(&stop(6));
    assert!(fixture.is_stopped());
}

#[test]
fn without_checkpoints_or_in_a_replay_a_stop_waits_for_nothing() {
    for (replay, has_marker) in [(Vec::new(), false), (vec![record(4, 10), record(5, 20)], true)] {
        let mut fixture = fixture(replay);
        fixture.binder.rescaling.store(true, Ordering::Relaxed);
        fixture.binder.marker = fixture.binder.marker.take().filter(|_| has_marker);
        fixture.binder.end_epoch(&bound(4, vec![binding(10)]));
        fixture.binder.end_epoch(&Bound { stopping: true, ..bound(5, vec![binding(20)]) });
        assert!(fixture.is_stopped());
    }
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
    assert_eq!(checkpoint, mark(19));
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
    assert_eq!(last, mark(9));
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
        lag: Duration::ZERO,
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
    notices: Collected<Notice>,
    durable: Probe<Epoch>,
}

fn running() -> RunningFixture {
    let Fixture { binder, ledger, entries, .. } = fixture(Vec::new());
    let (failure, probe) = (binder.failure.clone(), Probe::new());
    let mut worker = worker();
    let (closed, notices) = worker.dataflow(|scope| {
        let (closed, stream) = scope.new_input();
        let (bound, notices) = collect(bind(stream, binder));
        durable(bound, Some(ledger.durable())).probe_with(&probe);
        (closed, notices)
    });
    RunningFixture { worker, closed, ledger, entries, failure, notices, durable: probe }
}

impl RunningFixture {
    /// Sends these messages of the current epoch, and ends all epochs before `next`. Returns the notices.
    fn close(&mut self, messages: impl IntoIterator<Item = Closed>, next: u64) -> Vec<(Epoch, Notice)> {
        messages.into_iter().for_each(|message| self.closed.send(message));
        self.closed.advance_to(Epoch(next));
        settle(&mut self.worker);
        self.notices.take()
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
    assert_eq!(running.notices.take(), [], "the frontier is still at epoch 4");
    let expected = control(9).expect("a notice");
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
