//! At least N events in the last D: velocity spikes and bursts.

use serde::{Deserialize, Serialize};

use crate::{Event, EventTime, Pattern};

/// At least `n` events within the last `within_ms`, on the rising edge.
///
/// It remembers the times of the key's last `n` events.
#[derive(Clone, Copy, Debug)]
pub struct Frequency {
    n: usize,
    within_ms: i64,
}

/// What [`Frequency`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate {
    /// How many events the interval holds, as far as the pattern counts: its threshold.
    pub count: u64,
    /// The time between the first and the last of them, in milliseconds.
    pub within_ms: i64,
}

/// The last event times of a key, in a ring.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Recent {
    times: Vec<i64>,
    /// Where the next one goes once the ring is full: the place of the oldest.
    next: usize,
    held: bool,
}

/// What a step overwrote.
#[derive(Clone, Copy, Debug)]
pub struct Overwritten {
    time: Option<EventTime>,
    held: bool,
}

impl Frequency {
    /// At least `n` events (one or more) in the last `within_ms` milliseconds.
    pub fn at_least(n: usize, within_ms: i64) -> Frequency {
        Frequency { n: n.max(1), within_ms }
    }
}

impl<E: Event> Pattern<E> for Frequency {
    type State = Recent;
    type Undo = Overwritten;
    type Match = Rate;

    fn step(&self, state: &mut Recent, event: &E) -> (Option<Rate>, Overwritten) {
        let now = event.time().0;
        let mut undo = Overwritten { time: None, held: state.held };
        if state.times.len() < self.n {
            state.times.push(now);
        } else {
            undo.time = Some(EventTime(std::mem::replace(&mut state.times[state.next], now)));
            state.next = if state.next + 1 == self.n { 0 } else { state.next + 1 };
        }
        let full = state.times.len() == self.n;
        let span = now.saturating_sub(state.times[if full { state.next } else { 0 }]);
        state.held = full && span < self.within_ms;
        let found = (state.held && !undo.held).then_some(Rate { count: self.n as u64, within_ms: span });
        (found, undo)
    }

    fn undo(&self, state: &mut Recent, _event: &E, undo: Overwritten) {
        state.held = undo.held;
        match undo.time {
            None => {
                state.times.pop();
            }
            Some(time) => {
                state.next = if state.next == 0 { self.n - 1 } else { state.next - 1 };
                state.times[state.next] = time.0;
            }
        }
    }
}
