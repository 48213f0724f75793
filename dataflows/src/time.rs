//! The two kinds of time: [`Epoch`], the timely timestamp of every collection, and [`EventTime`], the time of an event
//! according to the event itself. Neither is a wall clock, and no operator reads a wall clock.

use std::fmt;
use std::time::Duration;

use differential_dataflow::lattice::Lattice;
use serde::{Deserialize, Serialize};
use timely::order::{PartialOrder, TotalOrder};
use timely::progress::timestamp::{PathSummary, Refines, Timestamp};

/// A counter of units of input: the logical time of every collection.
///
/// Events that were read in the same epoch are processed, committed and replayed together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Returns the next epoch.
    pub const fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PartialOrder for Epoch {
    fn less_equal(&self, other: &Self) -> bool {
        self <= other
    }
}

impl TotalOrder for Epoch {}

impl Lattice for Epoch {
    fn join(&self, other: &Self) -> Self {
        *self.max(other)
    }
    fn meet(&self, other: &Self) -> Self {
        *self.min(other)
    }
}

impl Timestamp for Epoch {
    type Summary = Epoch;
    fn minimum() -> Self {
        Epoch(0)
    }
}

impl PathSummary<Epoch> for Epoch {
    fn results_in(&self, src: &Epoch) -> Option<Epoch> {
        self.0.checked_add(src.0).map(Epoch)
    }
    fn followed_by(&self, other: &Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Epoch)
    }
}

impl Refines<()> for Epoch {
    fn to_inner(_: ()) -> Self {
        Epoch(0)
    }
    fn to_outer(self) {}
    fn summarize(_: Epoch) {}
}

/// The time of an event, in milliseconds since 1970-01-01T00:00:00Z.
///
/// As a watermark, [`EventTime::MIN`] means that there were no events yet and [`EventTime::MAX`] that there will be no
/// more. Arithmetic saturates at both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventTime(pub i64);

impl EventTime {
    /// The time before every event: the watermark at the start.
    pub const MIN: EventTime = EventTime(i64::MIN);
    /// The time after every event: the watermark at the end of all input.
    pub const MAX: EventTime = EventTime(i64::MAX);

    /// Returns this time plus `ms` milliseconds, saturating.
    pub const fn plus_ms(self, ms: i64) -> EventTime {
        EventTime(self.0.saturating_add(ms))
    }

    /// Returns this time minus `ms` milliseconds, saturating. [`EventTime::MIN`] and [`EventTime::MAX`] do not change.
    pub const fn minus_ms(self, ms: i64) -> EventTime {
        if self.0 == i64::MAX { self } else { EventTime(self.0.saturating_sub(ms)) }
    }
}

impl fmt::Display for EventTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            EventTime::MIN => f.write_str("-inf"),
            EventTime::MAX => f.write_str("+inf"),
            EventTime(ms) => ms.fmt(f),
        }
    }
}

/// Converts a duration to whole milliseconds of event time, saturating at `i64::MAX`.
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A partition of the input, numbered from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Partition(pub u32);

/// The offset of a record in its partition, numbered from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Offset(pub i64);

/// The identity of a record: its partition and its offset. Breaks ties between equal event times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The partition.
    pub partition: Partition,
    /// The offset in the partition.
    pub offset: Offset,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.partition.0, self.offset.0)
    }
}
