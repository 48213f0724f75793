//! Descriptions of the states of patterns, for people.

use super::{Bound, Location};
use crate::EventTime;

/// The state of a pattern for one key.
///
/// Counts "in the last D" are those of the interval (t − D, t], where t is the later of the watermark and the last event
/// that the pattern considered. So they decrease while a key has no events. After the end of all input (a watermark of
/// [`EventTime::MAX`]), t is the time of that event.
#[derive(Clone, Debug, PartialEq)]
pub enum Description {
    /// The state of a [`Frequency`](super::Frequency).
    Count {
        /// The number of events in the last `within_ms`, counted up to `at_least`.
        count: u64,
        /// The number of events that matches.
        at_least: u64,
        /// The length of the interval, in milliseconds.
        within_ms: i64,
    },
    /// The state of a [`Diversity`](super::Diversity).
    Distinct {
        /// The number of distinct values in the last `within_ms`, counted up to `at_least`.
        distinct: u64,
        /// The number of distinct values that matches.
        at_least: u64,
        /// The length of the interval, in milliseconds.
        within_ms: i64,
    },
    /// The state of a [`Sum`](super::Sum).
    Sum {
        /// The sum of the numbers in the last `within_ms`.
        sum: i128,
        /// The count of these numbers.
        n: u64,
        /// The bound that matches.
        bound: Bound,
        /// The length of the interval, in milliseconds.
        within_ms: i64,
    },
    /// The state of an [`Average`](super::Average).
    Average {
        /// The sum of the numbers in the last `within_ms`.
        sum: i128,
        /// The count of these numbers.
        n: u64,
        /// The bound of the average that matches.
        bound: Bound,
        /// The count of numbers from which on an average can match.
        at_least_events: u64,
        /// The length of the interval, in milliseconds.
        within_ms: i64,
    },
    /// The state of a [`Share`](super::Share).
    Share {
        /// The number of events in the last `within_ms` that satisfy the predicate.
        hits: u64,
        /// The number of events in the last `within_ms`.
        n: u64,
        /// The share that must be exceeded, in millionths.
        more_than_ppm: u32,
        /// The number of events from which on a share can match.
        at_least_events: u64,
        /// The length of the interval, in milliseconds.
        within_ms: i64,
    },
    /// The state of an [`Outlier`](super::Outlier), in the unit of the amounts.
    Amounts {
        /// The number of amounts.
        n: u64,
        /// Their mean; `None` if there are none.
        mean: Option<f64>,
        /// Their sample standard deviation; `None` for fewer than two.
        stddev: Option<f64>,
        /// The number of earlier amounts from which on an amount can match.
        at_least: u64,
        /// The bounds: an amount below the first or above the second matches. `None` if no amount matches yet.
        bounds: Option<(f64, f64)>,
    },
    /// The state of a [`Travel`](super::Travel).
    Place {
        /// The location and time of the last located event.
        last: Option<(Location, EventTime)>,
        /// The distance in kilometres that must be exceeded.
        km: f64,
        /// The speed in kilometres per hour that must be exceeded.
        kmh: f64,
    },
    /// The state of a [`Sequence`](super::Sequence) or an [`Absence`](super::Absence): the active runs.
    Runs {
        /// The time of the first event of each run, and the number of its events.
        runs: Vec<(EventTime, u64)>,
        /// The number of steps, with the absent event if there is one.
        steps: u64,
    },
    /// The state of a [`Grouped`](super::Grouped) pattern.
    Groups {
        /// The groups, in the order of their first events, with the descriptions of their states.
        groups: Vec<(Option<u64>, Description)>,
        /// The number of further groups, because they are too many.
        more: usize,
    },
}

impl Description {
    /// Returns true if the pattern has nothing to report: no event counts, and no run is active.
    pub fn is_empty(&self) -> bool {
        match self {
            Description::Count { count: number, .. }
            | Description::Distinct { distinct: number, .. }
            | Description::Sum { n: number, .. }
            | Description::Average { n: number, .. }
            | Description::Share { n: number, .. }
            | Description::Amounts { n: number, .. } => *number == 0,
            Description::Place { last, .. } => last.is_none(),
            Description::Runs { runs, .. } => runs.is_empty(),
            Description::Groups { groups, .. } => {
                groups.iter().all(|(_, description)| description.is_empty())
            }
        }
    }
}

/// Returns the time t of a [`Description`], given the time of the last event that the pattern considered.
pub(super) fn present(watermark: EventTime, last: i64) -> i64 {
    if watermark == EventTime::MAX { last } else { watermark.0.max(last) }
}
