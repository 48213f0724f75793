//! At least N events in the last D: velocity spikes and bursts.

use serde::{Deserialize, Serialize};

use super::description::present;
use super::{Description, Holding};
use crate::{Event, EventTime, Pattern, prefetch};

/// Matches at least `n` events within the last `within_ms`, on the rising edge.
///
/// It stores the times of the key's last `n` events.
#[derive(Clone, Copy, Debug)]
pub struct Frequency {
    n: usize,
    within_ms: i64,
}

/// A match of [`Frequency`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate {
    /// The number of events in the interval. The pattern counts up to its threshold, so this is the threshold.
    pub count: u64,
    /// The time between the first and the last of these events, in milliseconds.
    pub within_ms: i64,
}

/// The last event times of a key, in a ring buffer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Recent {
    times: Vec<i64>,
    /// The index of the oldest time, which is overwritten next, once the ring is full.
    next: u32,
    held: bool,
}

/// Grows a list by doubling from empty, up to `most`. There may be millions of idle keys, whose lists are short.
pub(super) fn make_room<T>(list: &mut Vec<T>, most: usize) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len().clamp(1, most.saturating_sub(list.len()).max(1)));
    }
}

/// The data needed to undo one step of [`Frequency`].
#[derive(Clone, Copy, Debug)]
pub struct Overwritten {
    time: EventTime,
    /// True if the ring was full, so that `time` was overwritten.
    full: bool,
    held: bool,
}

impl Frequency {
    /// Creates the pattern: at least `n` events (from one to 2^32 − 1) in the last `within_ms` milliseconds.
    pub fn at_least(n: usize, within_ms: i64) -> Frequency {
        Frequency { n: n.clamp(1, u32::MAX as usize), within_ms }
    }

    /// Returns a stored state in a form that this pattern can process: the last `n` times, oldest first unless the ring
    /// is full. The pattern it was stored by may have had another `n`.
    pub(crate) fn adopt(&self, mut state: Recent) -> Recent {
        let len = state.times.len();
        if len != self.n || state.next as usize >= len {
            state.times.rotate_left((state.next as usize).min(len));
            state.times.drain(..len.saturating_sub(self.n));
            state.next = 0;
        }
        state
    }
}

impl<E: Event> Holding<E> for Frequency {
    #[inline(always)]
    fn step_holding(&self, state: &mut Recent, event: &E) -> (Option<(Rate, bool)>, Overwritten) {
        let now = event.time().0;
        let mut undo =
            Overwritten { time: EventTime::MIN, full: state.times.len() == self.n, held: state.held };
        if !undo.full {
            make_room(&mut state.times, self.n);
            state.times.push(now);
        } else {
            undo.time = EventTime(std::mem::replace(&mut state.times[state.next as usize], now));
            state.next = if state.next as usize + 1 == self.n { 0 } else { state.next + 1 };
        }
        let full = state.times.len() == self.n;
        let span = now.saturating_sub(state.times[if full { state.next as usize } else { 0 }]);
        state.held = full && span < self.within_ms;
        let rate = Rate { count: self.n as u64, within_ms: span };
        (state.held.then_some((rate, !undo.held)), undo)
    }
}

impl<E: Event> Pattern<E> for Frequency {
    type State = Recent;
    type Undo = Overwritten;
    type Match = Rate;

    #[inline]
    fn step(&self, state: &mut Recent, event: &E) -> (Option<Rate>, Overwritten) {
        self.step_edge(state, event)
    }

    fn undo(&self, state: &mut Recent, _event: &E, undo: Overwritten) {
        state.held = undo.held;
        if undo.full {
            state.next = if state.next == 0 { self.n as u32 } else { state.next } - 1;
            state.times[state.next as usize] = undo.time.0;
        } else {
            // The ring may start at any index if this state was replaced by an equal one (see `same`).
            state.times.rotate_left(state.next as usize);
            state.next = 0;
            state.times.pop();
        }
    }

    fn prefetch(&self, state: &Recent, _event: &E) {
        state.prefetch();
    }

    fn same(&self, one: &Recent, other: &Recent) -> bool {
        one.same(other)
    }

    fn describe(&self, state: &Recent, watermark: EventTime) -> Option<Description> {
        let count = state.count_within(self.within_ms, watermark);
        Some(Description::Count { count, at_least: self.n as u64, within_ms: self.within_ms })
    }
}

impl Recent {
    /// Prefetches the times that a step reads and writes.
    #[inline]
    pub(crate) fn prefetch(&self) {
        [self.times.get(self.next as usize), self.times.last()].into_iter().flatten().for_each(prefetch);
    }

    /// Returns true if one state can replace the other.
    pub(crate) fn same(&self, other: &Recent) -> bool {
        self.held == other.held && self.oldest_first().eq(other.oldest_first())
    }

    /// Returns the times oldest first, regardless of the index at which the ring starts.
    fn oldest_first(&self) -> impl Iterator<Item = &i64> {
        let (newer, older) = self.times.split_at(self.next as usize);
        older.iter().chain(newer)
    }

    /// Returns the number of stored times in the last `within_ms`: see [`Description`].
    fn count_within(&self, within_ms: i64, watermark: EventTime) -> u64 {
        let (newer, older) = self.times.split_at(self.next as usize);
        let Some(&last) = newer.last().or(older.last()) else { return 0 };
        let start = present(watermark, last).saturating_sub(within_ms);
        let after_start = |times: &[i64]| times.len() - times.partition_point(|&time| time <= start);
        (after_start(older) + after_start(newer)) as u64
    }
}
