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

use super::clock::{Tick, committed};
use crate::coordination::Closed;
use crate::metrics::{Metrics, Share};
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
    keys: Share,
    open_windows: Share,
    counted: Option<Instant>,
    metrics: Arc<Metrics>,
}

impl Watch {
    /// Returns a monitor. Exactly one worker of each process has `reports_frontiers` set.
    pub fn new(probes: Probes, reports_frontiers: bool, metrics: Arc<Metrics>) -> Watch {
        let (keys, open_windows) = (metrics.keys(), metrics.open_windows());
        Watch {
            probes,
            reports_frontiers,
            last_closed: None,
            last_committed: None,
            keys,
            open_windows,
            counted: None,
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
        while times.begun.pop_front_if(|(epoch, _)| committed(behind, *epoch)).is_some() {}
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
