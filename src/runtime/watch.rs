//! Observation of a worker's dataflow between steps, for metrics and readiness: its frontiers and the amount of state.
//!
//! All workers of a process see the same frontiers; one of them reports them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, EventTime, Load};
use timely::dataflow::StreamVec;
use timely::dataflow::operators::Inspect;
use timely::dataflow::operators::probe::Handle as Probe;

use crate::coordination::Closed;
use crate::metrics::{BusyMeter, Metrics, Share};
use crate::rounds::{Advances, Epochs};
use crate::runtime::ingest::clock::{Tick, committed};
use crate::wall::wall_ms;

/// The interval at which the state of operators is counted.
const COUNT_EVERY: Duration = Duration::from_millis(250);

/// An observer of a worker's streams, which records the times of epochs.
#[derive(Clone, Default)]
pub struct StreamObserver(Rc<RefCell<EpochTimes>>);

#[derive(Default)]
struct EpochTimes {
    /// The first epoch of the run.
    first: Option<Epoch>,
    /// The start times of epochs that some sink has not committed.
    begun: VecDeque<(Epoch, Instant)>,
    /// The start times of epochs that some operator has not completed.
    open: VecDeque<(Epoch, Instant)>,
    /// The oldest record timestamp that this worker read in each epoch whose alerts are not committed.
    read: VecDeque<(Epoch, i64)>,
}

impl StreamObserver {
    /// Observes the epochs that begin.
    pub fn ticks<'scope>(&self, ticks: StreamVec<'scope, Epoch, Tick>) -> StreamVec<'scope, Epoch, Tick> {
        let StreamObserver(times) = self.clone();
        ticks.inspect_core(move |event| {
            let Ok((stamp, _)) = event else { return };
            let mut times = times.borrow_mut();
            let epoch = *stamp.least().expect("a tick travels with its epoch");
            times.first.get_or_insert(epoch);
            let now = Instant::now();
            times.begun.push_back((epoch, now));
            times.open.push_back((epoch, now));
        })
    }

    /// Observes the epochs that this worker closes.
    pub fn closed<'scope>(
        &self,
        closed: StreamVec<'scope, Epoch, Closed>,
    ) -> StreamVec<'scope, Epoch, Closed> {
        let StreamObserver(times) = self.clone();
        closed.inspect_core(move |event| {
            let Ok((stamp, closed)) = event else { return };
            let epoch = *stamp.least().expect("data travels with a time");
            let oldest = closed.iter().filter_map(|closed| closed.oldest).min();
            times.borrow_mut().read.extend(oldest.map(|oldest| (epoch, oldest)));
        })
    }
}

/// The probes and counters of one worker's dataflow.
pub struct Probes {
    /// The observer of the streams.
    pub observer: StreamObserver,
    /// The probe behind the control stream.
    pub closed: Probe<Epoch>,
    /// The probe behind all operators and before the sinks.
    pub computed: Probe<Epoch>,
    /// The probe behind all sinks.
    pub committed: Probe<Epoch>,
    /// The probe behind the sinks that accept alerts.
    pub alerted: Probe<Epoch>,
    /// The newest watermark that this worker has received.
    pub watermark: Rc<Cell<EventTime>>,
    /// The amount of state in the operators.
    pub load: Load,
}

/// A monitor of one worker's dataflow.
pub struct Watch {
    probes: Probes,
    /// True if this worker reports the frontiers of its process.
    reports_frontiers: bool,
    last_closed: Option<Epoch>,
    last_committed: Option<Epoch>,
    /// The advances of the frontiers behind the control stream and behind all operators, if rounds are recorded.
    bound: Advances,
    computed: Advances,
    keys: Share,
    open_windows: Share,
    counted: Option<Instant>,
    busy: BusyMeter,
    metrics: Arc<Metrics>,
}

impl Watch {
    /// Returns a monitor of the worker with this index, on its thread. Exactly one worker of each process has
    /// `reports_frontiers` set.
    pub fn new(probes: Probes, worker: usize, reports_frontiers: bool, metrics: Arc<Metrics>) -> Watch {
        let (keys, open_windows) = (metrics.keys(), metrics.open_windows());
        Watch {
            probes,
            reports_frontiers,
            last_closed: None,
            last_committed: None,
            bound: Advances::default(),
            computed: Advances::default(),
            keys,
            open_windows,
            counted: None,
            busy: metrics.worker_busy(worker),
            metrics,
        }
    }

    /// Updates the metrics.
    pub fn observe(&mut self) {
        let Probes { observer, closed, computed, committed: behind, alerted, watermark, load } = &self.probes;
        let mut times = observer.0.borrow_mut();
        while let Some((_, oldest)) = times.read.pop_front_if(|(epoch, _)| committed(alerted, *epoch)) {
            // The clocks of producers may be slightly ahead.
            let ms = wall_ms().saturating_sub(oldest).max(0);
            self.metrics.latency(Duration::from_millis(ms.unsigned_abs()));
        }
        let rounds = self.metrics.rounds().filter(|_| self.reports_frontiers);
        if rounds.is_some() {
            let now = Instant::now();
            self.bound.note(frontier(closed), now);
            self.computed.note(frontier(computed), now);
        }
        let mut round: Option<(Epoch, Epoch, Instant)> = None;
        while let Some((last, begun)) = times.begun.pop_front_if(|(epoch, _)| committed(behind, *epoch)) {
            let (first, opened) = round.map_or((last, begun), |(first, _, opened)| (first, opened));
            round = Some((first, last, opened));
        }
        if let (Some(rounds), Some((first, last, opened))) = (rounds, round) {
            let (bound, computed) = (self.bound.passed(last), self.computed.passed(last));
            rounds.committed(Epochs { first, last, opened, bound, computed, ended: Instant::now() });
        }
        while let Some((_, begun)) = times.open.pop_front_if(|(epoch, _)| committed(computed, *epoch)) {
            if self.reports_frontiers {
                self.metrics.computed(begun.elapsed());
            }
        }
        if self.reports_frontiers {
            // Frontiers are reported once the first epoch of the run is complete.
            let reportable =
                |probe| frontier(probe).filter(|&epoch| times.first.is_some_and(|first| first < epoch));
            if let Some(epoch) = reportable(closed)
                && self.last_closed.replace(epoch) != Some(epoch)
            {
                self.metrics.closed(Epoch(epoch.0 - 1), watermark.get());
            }
            if let Some(epoch) = reportable(behind)
                && self.last_committed.replace(epoch) != Some(epoch)
            {
                self.metrics.frontier(epoch, times.begun.front().map(|(_, begun)| *begun));
            }
        }
        if self.counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
            self.counted = Some(Instant::now());
            self.keys.set(load.keys());
            self.open_windows.set(load.open_windows());
            self.busy.measure();
            if self.reports_frontiers {
                self.metrics.log_stalls();
            }
        }
    }
}

/// Returns the frontier at a probe; None once it is empty.
fn frontier(probe: &Probe<Epoch>) -> Option<Epoch> {
    probe.with_frontier(|frontier| frontier.first().copied())
}

#[cfg(test)]
mod tests {
    use timely::dataflow::operators::Probe as _;
    use timely::dataflow::operators::vec::Input;
    use timely::dataflow::operators::vec::input::Handle;
    use timely::worker::Worker;

    use super::*;
    use crate::rounds::{Round, RoundRecorder, SinkTransaction, Step, Transaction};
    use crate::runtime::fakes::{settle, worker};

    /// A monitor of streams that the test drives.
    struct Fixture {
        worker: Worker,
        watch: Watch,
        ticks: Handle<Epoch, Tick>,
        closed: Handle<Epoch, Closed>,
        /// The inputs behind which the probes `closed`, `computed`, `committed` and `alerted` are.
        behind: [Handle<Epoch, ()>; 4],
        watermark: Rc<Cell<EventTime>>,
        metrics: Arc<Metrics>,
    }

    fn fixture(reports_frontiers: bool) -> Fixture {
        let mut worker = worker();
        let observer = StreamObserver::default();
        let probes: [Probe<Epoch>; 4] = std::array::from_fn(|_| Probe::new());
        let (ticks, closed, behind) = worker.dataflow(|scope| {
            let (ticks, stream) = scope.new_input();
            observer.ticks(stream);
            let (closed, stream) = scope.new_input();
            observer.closed(stream);
            let behind = std::array::from_fn(|at| {
                let (input, stream) = scope.new_input();
                stream.probe_with(&probes[at]);
                input
            });
            (ticks, closed, behind)
        });
        let [bound, computed, committed, alerted] = probes;
        let (watermark, load) = (Rc::new(Cell::new(EventTime::MIN)), Load::default());
        let (cell, metrics) = (Rc::clone(&watermark), Arc::<Metrics>::default());
        let probes = Probes { observer, closed: bound, computed, committed, alerted, watermark: cell, load };
        let watch = Watch::new(probes, 0, reports_frontiers, Arc::clone(&metrics));
        Fixture { worker, watch, ticks, closed, behind, watermark, metrics }
    }

    const CLOSED: usize = 0;
    const COMPUTED: usize = 1;
    const COMMITTED: usize = 2;
    const ALERTED: usize = 3;

    impl Fixture {
        /// Begins an epoch, in which a worker reads a record of this timestamp.
        fn begin(&mut self, epoch: u64, oldest: Option<i64>) {
            self.ticks.advance_to(Epoch(epoch));
            self.ticks.send(Tick::new(0));
            self.ticks.flush();
            self.closed.advance_to(Epoch(epoch));
            self.closed.send(Closed {
                worker: 0,
                wall_ms: 0,
                bindings: Vec::new(),
                unfinal: Vec::new(),
                slowest: None,
                oldest,
                lag: Duration::ZERO,
                ended: false,
                stopping: false,
            });
            self.closed.flush();
            settle(&mut self.worker);
        }

        /// Lets the frontier behind a probe reach an epoch, and updates the metrics.
        fn reach(&mut self, probe: usize, epoch: u64) {
            self.behind[probe].advance_to(Epoch(epoch));
            settle(&mut self.worker);
            self.watch.observe();
        }

        /// Returns the value of a line of the metrics.
        fn value(&self, name: &str) -> f64 {
            let text = self.metrics.text();
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the metric");
            line.trim().parse().expect("a number")
        }
    }

    #[test]
    fn latency_is_measured_when_the_alerts_are_committed() {
        let mut fixture = fixture(true);
        fixture.begin(3, Some(wall_ms() - 5_000));
        fixture.begin(4, None);
        fixture.begin(5, Some(wall_ms() + 60_000));
        fixture.reach(COMMITTED, 9);
        assert_eq!(fixture.value("headwater_latency_seconds_count "), 0.0, "a sink of alerts is slower");
        fixture.reach(ALERTED, 4);
        assert_eq!(fixture.value("headwater_latency_seconds_count "), 1.0);
        let latency = fixture.value("headwater_latency_seconds_sum ");
        assert!((5.0..60.0).contains(&latency), "{latency}");
        fixture.reach(ALERTED, 9);
        assert_eq!(fixture.value("headwater_latency_seconds_count "), 2.0, "epoch 4 has no record");
        assert!(fixture.value("headwater_latency_seconds_sum ") < latency + 1.0, "a clock that is ahead");
    }

    #[test]
    fn frontiers_are_reported_from_the_first_epoch_of_the_run() {
        let mut fixture = fixture(true);
        fixture.reach(CLOSED, 7);
        fixture.reach(COMMITTED, 7);
        assert_eq!((fixture.metrics.latest().0, fixture.metrics.frontier_epoch()), (0, Epoch(0)));
        fixture.begin(7, None);
        fixture.reach(COMMITTED, 7);
        assert_eq!(fixture.metrics.frontier_epoch(), Epoch(0), "epoch 7 is not committed");
        fixture.watermark.set(EventTime(123));
        fixture.reach(CLOSED, 8);
        assert_eq!(fixture.metrics.latest(), (7, 123));
        fixture.reach(COMMITTED, 8);
        assert_eq!(fixture.metrics.frontier_epoch(), Epoch(8));
    }

    #[test]
    fn the_time_of_an_epoch_ends_when_all_operators_complete_it() {
        let mut fixture = fixture(true);
        fixture.begin(1, None);
        fixture.begin(2, None);
        fixture.reach(CLOSED, 9);
        assert_eq!(fixture.value("headwater_epoch_seconds_count "), 0.0);
        fixture.reach(COMPUTED, 2);
        fixture.reach(COMPUTED, 2);
        assert_eq!(fixture.value("headwater_epoch_seconds_count "), 1.0, "once");
    }

    #[test]
    fn a_round_has_the_epochs_that_are_committed_at_once() {
        for reports_frontiers in [true, false] {
            let mut fixture = fixture(reports_frontiers);
            let (sender, rounds) = std::sync::mpsc::channel();
            let emit = move |round: Round| sender.send(round.epochs).expect("it is received");
            fixture.metrics.record_rounds(RoundRecorder::new(Box::new(emit)));
            let now = Instant::now();
            for last in [3, 5] {
                let transaction = Transaction {
                    first: Epoch(last),
                    last: Epoch(last),
                    step: Step { begun: now, ended: now },
                };
                let (sink, outputs, attempts, error) = ("memory".to_owned(), 1, 1, None);
                let recorder = fixture.metrics.rounds().expect("it is set");
                recorder.transacted(SinkTransaction { sink, transaction, outputs, attempts, error });
            }
            (1..=5).for_each(|epoch| fixture.begin(epoch, None));
            fixture.reach(CLOSED, 6);
            fixture.reach(COMPUTED, 4);
            fixture.reach(COMMITTED, 3);
            assert_eq!(rounds.try_iter().count(), 0, "epochs 1 and 2 have no transaction");
            fixture.reach(COMMITTED, 4);
            fixture.reach(COMPUTED, 6);
            fixture.reach(COMMITTED, 6);
            let rounds: Vec<_> = rounds.try_iter().collect();
            if reports_frontiers {
                assert_eq!(
                    rounds.iter().map(|r| (r.first.0, r.last.0)).collect::<Vec<_>>(),
                    [(3, 3), (4, 5)]
                );
                assert!(rounds[0].computed < rounds[1].computed && rounds[0].opened < rounds[1].opened);
                assert!(rounds.iter().all(|round| round.bound.is_some() && round.bound < round.computed));
            } else {
                assert_eq!(rounds, [], "another worker reports them");
            }
        }
    }

    #[test]
    fn one_worker_of_a_process_reports_the_frontiers() {
        let mut fixture = fixture(false);
        fixture.begin(1, Some(wall_ms()));
        for probe in [CLOSED, COMPUTED, COMMITTED, ALERTED] {
            fixture.reach(probe, 5);
        }
        assert_eq!((fixture.metrics.latest().0, fixture.metrics.frontier_epoch()), (0, Epoch(0)));
        assert_eq!(fixture.value("headwater_epoch_seconds_count "), 0.0);
        assert_eq!(fixture.value("headwater_latency_seconds_count "), 1.0, "of its own records");
    }
}
