//! What a worker looks at between steps, for metrics and readiness: how far the frontiers are, and what is held.
//!
//! Frontiers are the same on every process, each seen from there; one worker of a process speaks of them.

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

/// How often what operators hold is counted.
const COUNT_EVERY: Duration = Duration::from_millis(250);

/// What the streams of a worker say on their way.
#[derive(Clone, Default)]
pub struct StreamObserver(Rc<RefCell<Words>>);

#[derive(Default)]
struct Words {
    /// The first epoch of the run.
    first: Option<Epoch>,
    /// When epochs began that some sink has not committed.
    begun: VecDeque<(Epoch, Instant)>,
    /// When epochs began that some operator is not done with.
    open: VecDeque<(Epoch, Instant)>,
    /// The oldest timestamp in what this worker read in epochs whose alerts are not committed.
    read: VecDeque<(Epoch, i64)>,
}

impl StreamObserver {
    /// Hears of the epochs that begin.
    pub fn ticks<'scope>(&self, ticks: StreamVec<'scope, Epoch, Tick>) -> StreamVec<'scope, Epoch, Tick> {
        let StreamObserver(words) = self.clone();
        ticks.inspect_core(move |event| {
            let Ok((stamp, _)) = event else { return };
            let mut words = words.borrow_mut();
            let epoch = *stamp.least().expect("a tick travels with its epoch");
            words.first.get_or_insert(epoch);
            let now = Instant::now();
            words.begun.push_back((epoch, now));
            words.open.push_back((epoch, now));
        })
    }

    /// Hears of the epochs that this worker closes.
    pub fn closed<'scope>(
        &self,
        closed: StreamVec<'scope, Epoch, Closed>,
    ) -> StreamVec<'scope, Epoch, Closed> {
        let StreamObserver(words) = self.clone();
        closed.inspect_core(move |event| {
            let Ok((stamp, closed)) = event else { return };
            let epoch = *stamp.least().expect("data travels with a time");
            let oldest = closed.iter().filter_map(|closed| closed.oldest).min();
            words.borrow_mut().read.extend(oldest.map(|oldest| (epoch, oldest)));
        })
    }
}

/// What there is to look at.
pub struct Probes {
    /// What the streams said.
    pub observer: StreamObserver,
    /// Behind the control stream.
    pub closed: Probe<Epoch>,
    /// Behind all operators, before the sinks.
    pub computed: Probe<Epoch>,
    /// Behind all sinks.
    pub committed: Probe<Epoch>,
    /// Behind the sinks that take alerts.
    pub alerted: Probe<Epoch>,
    /// The newest watermark that is known here.
    pub watermark: Rc<Cell<EventTime>>,
    /// What the operators hold.
    pub load: Load,
}

/// Looks at one worker's dataflow.
pub struct Watch {
    probes: Probes,
    /// Whether this worker speaks of the frontiers for its process.
    speaks: bool,
    last_closed: Option<Epoch>,
    last_committed: Option<Epoch>,
    keys: Share,
    open_windows: Share,
    counted: Option<Instant>,
    metrics: Arc<Metrics>,
}

impl Watch {
    /// Of a worker that, if it `speaks`, is the one of its process to tell how far the frontiers are.
    pub fn new(probes: Probes, speaks: bool, metrics: Arc<Metrics>) -> Watch {
        let (keys, open_windows) = (metrics.keys(), metrics.open_windows());
        Watch {
            probes,
            speaks,
            last_closed: None,
            last_committed: None,
            keys,
            open_windows,
            counted: None,
            metrics,
        }
    }

    /// Tells the metrics what has changed.
    pub fn observe(&mut self) {
        let Probes { observer, closed, computed, committed: behind, alerted, watermark, load } = &self.probes;
        let mut words = observer.0.borrow_mut();
        while let Some((_, oldest)) = words.read.pop_front_if(|(epoch, _)| committed(alerted, *epoch)) {
            // Clocks of producers may be a little ahead.
            let ms = wall_ms().saturating_sub(oldest).max(0);
            self.metrics.latency(Duration::from_millis(ms.unsigned_abs()));
        }
        while words.begun.pop_front_if(|(epoch, _)| committed(behind, *epoch)).is_some() {}
        while let Some((_, begun)) = words.open.pop_front_if(|(epoch, _)| committed(computed, *epoch)) {
            if self.speaks {
                self.metrics.computed(begun.elapsed());
            }
        }
        if self.speaks {
            // Before its first epoch is over, a run has nothing to say.
            let stands = |probe| first(probe).filter(|&epoch| words.first.is_some_and(|first| first < epoch));
            if let Some(epoch) = stands(closed)
                && self.last_closed.replace(epoch) != Some(epoch)
            {
                self.metrics.closed(Epoch(epoch.0 - 1), watermark.get());
            }
            if let Some(epoch) = stands(behind)
                && self.last_committed.replace(epoch) != Some(epoch)
            {
                self.metrics.frontier(epoch, words.begun.front().map(|(_, begun)| *begun));
            }
        }
        if self.counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
            self.counted = Some(Instant::now());
            self.keys.set(load.keys());
            self.open_windows.set(load.open_windows());
            if self.speaks {
                self.metrics.log_stalls();
            }
        }
    }
}

/// Where a frontier stands; none once it is empty.
fn first(probe: &Probe<Epoch>) -> Option<Epoch> {
    probe.with_frontier(|frontier| frontier.first().copied())
}
