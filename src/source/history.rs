//! Reading the records around one of them again: apart from the run, with a connection of its own, and within bounds.
//!
//! ```text
//!   HistoryQuery ─▶ RecordHistory::read ─▶ Visitor: is this the record? ─▶ the records before it, and some after it
//!                     └──────▶ HistoryRead: whether it was found, from which time on nothing is missing, and why
//! ```

use std::fmt;
use std::time::{Duration, Instant};

use headwater_dataflows::Position;

use super::{Raw, SourceError};
use crate::json::rfc3339;

/// The record to read around, and how far. Times are in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct HistoryQuery {
    /// The position of the record, if it is known; otherwise the record is searched.
    pub position: Option<Position>,
    /// The earliest timestamp that the record can have. The search begins there.
    pub earliest_ms: i64,
    /// The timestamp from which on records before it are read; None for all.
    pub from_ms: Option<i64>,
    /// The time before `from_ms` for which records are read too, if there are few.
    pub spare_ms: i64,
    /// The time after it for which records are read.
    pub after_ms: i64,
    /// The end of the time for reading.
    pub deadline: Instant,
}

/// Receives the records that are read.
pub trait Visitor {
    /// Returns true if this is the record to read around.
    fn is_wanted(&mut self, raw: Raw<'_>) -> bool;

    /// Receives a record. Each is passed once, the record to read around included, in the order of offsets within a range
    /// of a partition; later ranges may be passed first.
    fn record(&mut self, raw: Raw<'_>);

    /// Returns true if no earlier ranges are needed.
    fn is_full(&self) -> bool;
}

/// The outcome of reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryRead {
    /// True if the record was found.
    pub is_found: bool,
    /// The timestamp from which on all records up to the record were read; None if all were.
    pub since_ms: Option<i64>,
    /// The reasons why records are missing.
    pub gaps: Vec<Gap>,
}

/// The reason why records are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// The log no longer has its first records.
    Retention,
    /// A partition had records and has none any more, so that nobody knows the times of those that are gone.
    Emptied,
    /// The pipeline may not have begun to read at the first record.
    StartFrom,
    /// The bound of records or bytes was reached, or the time was over, before all earlier records were read.
    Bound(Bounds),
    /// It was reached before all records that arrived after it were read.
    After(Bounds),
    /// The record has no timestamp, by which those around it are found.
    NoTimestamps,
}

/// The bounds of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The maximum number of records.
    pub records: u64,
    /// The maximum number of bytes.
    pub bytes: u64,
    /// The maximum time.
    pub time: Duration,
}

impl Bounds {
    /// Returns the bounds of a reading that ends at a deadline. The time is rounded, for people.
    pub(super) fn until(deadline: Instant, records: u64, bytes: u64) -> Bounds {
        let left = deadline.saturating_duration_since(Instant::now());
        Bounds { records, bytes, time: Duration::from_secs_f64(left.as_secs_f64().round()) }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (records, bytes) = (self.records, self.bytes >> 20);
        write!(f, "at most {records} records, {bytes} MiB and {} s", self.time.as_secs())
    }
}

impl Gap {
    /// Returns true if records may be missing even after the time from which on all were read.
    pub fn is_after_start(self) -> bool {
        matches!(self, Gap::Emptied | Gap::After(_))
    }
}

impl HistoryRead {
    /// Returns the missing records in words; None if nothing is missing.
    pub fn missing(&self) -> Option<String> {
        let since = || self.since_ms.map_or(String::new(), |ms| format!(", those from {} on", rfc3339(ms)));
        let reason = |gap: &Gap| match gap {
            Gap::Retention => "records before its first one are gone, by its retention".to_owned(),
            Gap::Emptied => "a partition has lost all its records, by its retention".to_owned(),
            Gap::StartFrom => {
                "the pipeline may have begun to read it after its first record (source.start_from)".to_owned()
            }
            Gap::Bound(bounds) => {
                format!("only the newest records before the alert are read{} ({bounds})", since())
            }
            Gap::After(bounds) => format!("not all records that arrived after the alert are read ({bounds})"),
            Gap::NoTimestamps => "the record has no timestamp, by which those around it are found".to_owned(),
        };
        let reasons: Vec<_> = self.gaps.iter().map(reason).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// A source whose records can be read again. It touches neither readers nor offsets of a run.
pub trait RecordHistory: Send + Sync {
    /// Returns the name of the source, for people, such as `topic raw-events`.
    fn name(&self) -> String;

    /// Reads the record of a query and the records around it. Blocks until the deadline, and for requests of the client.
    ///
    /// # Errors
    /// If the source cannot be read.
    fn read(&self, query: &HistoryQuery, visitor: &mut dyn Visitor) -> Result<HistoryRead, SourceError>;
}

/// The remaining part of the bounds of one reading.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    pub records: u64,
    pub bytes: u64,
}

impl Allowance {
    pub fn of(bounds: Bounds) -> Allowance {
        Allowance { records: bounds.records, bytes: bounds.bytes }
    }

    /// Takes a record of this size; returns false if the bounds do not permit it.
    pub fn take(&mut self, raw: &Raw<'_>) -> bool {
        let bytes = raw.value.map_or(0, <[u8]>::len) + raw.key.map_or(0, <[u8]>::len);
        let fits = self.records > 0 && self.bytes > 0;
        if fits {
            self.records -= 1;
            self.bytes = self.bytes.saturating_sub(bytes as u64);
        }
        fits
    }
}
