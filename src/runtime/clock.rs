//! Epochs: worker 0 mints them, the others follow its frontier.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, EventTime};
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::generic::operator::source;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::{Scope, StreamVec};
use timely::progress::Antichain;

use super::recovery::Origin;
use crate::coordination::Binding;
use crate::wall::wall_ms;

/// The beginning of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tick {
    /// The wall time, in milliseconds since 1970.
    pub wall_ms: i64,
    /// How far, in event time, the slowest partition that has a backlog has come, as far as is known.
    pub slowest: Option<EventTime>,
    /// What the epoch held when it was bound, if it is done again.
    pub replay: Option<Vec<Binding>>,
}

/// What the clock needs to know.
#[derive(Clone)]
pub struct ClockSettings {
    /// Has the epochs that are done again, before the first new one.
    pub origin: Arc<Origin>,
    /// The first new epoch.
    pub first: Epoch,
    /// How long an epoch lasts, at least.
    pub length: Duration,
    /// How many epochs may lie between the one that is open and the slowest sink.
    pub in_flight: u64,
}

/// What the clock hears from those who watch the epochs close, on worker 0.
#[derive(Debug, Default)]
pub struct ClockHand {
    /// No further epoch shall begin.
    pub stop: Cell<bool>,
    /// The newest epoch that has begun.
    pub newest: Cell<Epoch>,
    /// See [`Tick::slowest`].
    pub slowest: Cell<Option<EventTime>>,
}

/// The beginnings of epochs, on every worker. An epoch is open as long as the stream's frontier stands at it.
///
/// `committed` is the frontier of all sinks: while it is too far behind, no epoch begins.
pub fn ticks<'scope>(
    scope: Scope<'scope, Epoch>,
    settings: ClockSettings,
    hand: Rc<ClockHand>,
    committed: Probe<Epoch>,
) -> StreamVec<'scope, Epoch, Tick> {
    let worker = scope.index();
    source::<_, CapacityContainerBuilder<Vec<Tick>>, _, _>(scope, "Clock", move |capability, info| {
        let mut capability = (worker == 0).then_some(capability);
        let activator = scope.activator_for(info.address);
        let mut begun: Option<Instant> = None;
        let mut replayed = 0;
        let closed = settings.origin.is_closed();
        move |output| {
            if hand.stop.get() {
                capability = None;
            }
            let Some(open) = &mut capability else { return };
            let record = settings.origin.replay.get(replayed);
            if record.is_none() && closed {
                // The input was over, and every window is final: nothing can follow.
                capability = None;
                return;
            }
            let elapsed = begun.map(|begun| begun.elapsed());
            if record.is_none()
                && let Some(rest) = elapsed.and_then(|elapsed| settings.length.checked_sub(elapsed))
                && !rest.is_zero()
            {
                activator.activate_after(rest);
                return;
            }
            let behind =
                committed.with_frontier(|f| f.first().map(|&oldest| open.time().0.saturating_sub(oldest.0)));
            if begun.is_some() && behind.unwrap_or(0) >= settings.in_flight {
                activator.activate_after(settings.length);
                return;
            }
            let (epoch, tick) = match record {
                Some(record) => {
                    let replay = Some(record.bindings.clone());
                    (record.epoch, Tick { wall_ms: record.wall_ms, slowest: None, replay })
                }
                None => {
                    let epoch = settings.first.max(open.time().next());
                    (epoch, Tick { wall_ms: wall_ms(), slowest: hand.slowest.get(), replay: None })
                }
            };
            replayed += usize::from(tick.replay.is_some());
            hand.newest.set(epoch);
            open.downgrade(&epoch);
            output.session(open).give(tick);
            begun = Some(Instant::now());
            if replayed < settings.origin.replay.len() {
                activator.activate();
            } else {
                activator.activate_after(settings.length);
            }
        }
    })
    .broadcast()
}

/// Whether every sink has committed `epoch`, by a probe behind all of them.
pub fn committed(probe: &Probe<Epoch>, epoch: Epoch) -> bool {
    probe.with_frontier(|frontier| !Antichain::from_iter(frontier.iter().copied()).less_equal(&epoch))
}
