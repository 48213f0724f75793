//! The two clocks: [`Epoch`], the timely timestamp of every collection, and [`EventTime`], when a thing
//! happened according to the event itself. Neither is a wall clock, and no operator reads one.

use std::fmt;
use std::time::Duration;

use differential_dataflow::lattice::Lattice;
use serde::{Deserialize, Serialize};
use timely::order::{PartialOrder, TotalOrder};
use timely::progress::timestamp::{PathSummary, Refines, Timestamp};

/// A counter of rounds of input: the logical time of every collection.
///
/// Events that were read in the same epoch are processed, committed and replayed together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
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

/// When something happened: milliseconds since 1970-01-01T00:00:00Z.
///
/// [`EventTime::MIN`] stands for "nothing seen yet" and [`EventTime::MAX`] for "no more will come"; arithmetic
/// saturates at both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventTime(pub i64);

impl EventTime {
    /// Before every event: the watermark at the start.
    pub const MIN: EventTime = EventTime(i64::MIN);
    /// After every event: the watermark once all input has ended.
    pub const MAX: EventTime = EventTime(i64::MAX);

    /// This time plus `ms` milliseconds, saturating.
    pub const fn plus_ms(self, ms: i64) -> EventTime {
        EventTime(self.0.saturating_add(ms))
    }

    /// This time less `ms` milliseconds, saturating; [`EventTime::MIN`] and [`EventTime::MAX`] stay what they are.
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

/// A duration in whole milliseconds of event time, saturating at `i64::MAX`.
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A partition of the input, numbered from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Partition(pub u32);

/// The place of a record within its partition, numbered from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Offset(pub i64);

/// The identity of a record: its partition and its offset there. It breaks ties between equal event times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The partition.
    pub partition: Partition,
    /// The offset within it.
    pub offset: Offset,
}

impl Position {
    /// At or before every other.
    pub(crate) const FIRST: Position = Position { partition: Partition(0), offset: Offset(i64::MIN) };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.partition.0, self.offset.0)
    }
}
