//! The share of rejected records that a process reads. Above `limits.max_rejected_share` the run ends in order: it reads
//! no more, commits what it has read, and is refused, instead of turning all input into dead letters after a faulty
//! deployment. It decides nothing about results, so records that are replayed do not count.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use headwater_dataflows::Position;

use crate::decode::{Reason, Rejection};
use crate::runtime::failure::RunError;

/// The minimum number of records in the window: a share of fewer records says little.
const MIN_RECORDS: u64 = 200;
/// The number of parts of the window.
const PARTS: i64 = 60;

/// The reason and field of a rejection.
type Kind = (Reason, Option<Cow<'static, str>>);

/// The rejections of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Count {
    records: u64,
    /// The first of them, with its message.
    example: (Position, String),
}

/// Records that were read, and those that were rejected because they are no events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The number of records.
    pub records: u64,
    rejected: BTreeMap<Kind, Count>,
}

impl Batch {
    /// Counts a rejected record. Only the first of a kind is copied.
    pub fn reject(&mut self, position: Position, rejection: &Rejection) {
        match self.rejected.get_mut(&(rejection.reason, rejection.field.clone())) {
            Some(count) => count.records += 1,
            None => {
                let count = Count { records: 1, example: (position, rejection.message.clone()) };
                self.rejected.insert((rejection.reason, rejection.field.clone()), count);
            }
        }
    }

    fn merge(&mut self, other: Batch) {
        self.records += other.records;
        for (kind, count) in other.rejected {
            match self.rejected.get_mut(&kind) {
                Some(before) => before.records += count.records,
                None => drop(self.rejected.insert(kind, count)),
            }
        }
    }
}

/// The rejections of a process within a window of wall time.
#[derive(Debug)]
pub struct Rejections {
    max_share: f64,
    window: Duration,
    parts: Mutex<VecDeque<(i64, Batch)>>,
}

impl Rejections {
    /// Creates the monitor of a process.
    pub fn new(max_share: f64, window: Duration) -> Rejections {
        Rejections { max_share, window, parts: Mutex::default() }
    }

    /// Adds records that were read at a recorded wall time. Returns the refusal if too many are rejected.
    pub fn add(&self, wall_ms: i64, batch: Batch) -> Option<RunError> {
        let window_ms = i64::try_from(self.window.as_millis()).unwrap_or(i64::MAX).max(1);
        let part = wall_ms.div_euclid((window_ms / PARTS).max(1));
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        while parts.front().is_some_and(|(first, _)| *first <= part - PARTS) {
            parts.pop_front();
        }
        let rejects = !batch.rejected.is_empty();
        match parts.back_mut() {
            Some((last, sum)) if *last >= part => sum.merge(batch),
            _ => parts.push_back((part, batch)),
        }
        if !rejects {
            return None;
        }
        let mut sum = Batch::default();
        parts.iter().for_each(|(_, batch)| sum.merge(batch.clone()));
        let rejected: u64 = sum.rejected.values().map(|count| count.records).sum();
        let share = rejected as f64 / sum.records.max(1) as f64;
        if sum.records < MIN_RECORDS || share <= self.max_share {
            return None;
        }
        let ((reason, field), Count { example: (position, message), .. }) =
            sum.rejected.iter().max_by_key(|(_, count)| count.records)?;
        let field = field.as_ref().map_or(String::new(), |field| format!(" in field {field}"));
        Some(RunError::RejectedShare {
            rejected,
            records: sum.records,
            window: self.window,
            percent: (share * 100.0).round() as u64,
            max_share: self.max_share,
            most: format!(
                "{}{field}, first partition {}, offset {}: {message}",
                reason.as_str(),
                position.partition.0,
                position.offset.0
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::{Offset, Partition};

    use super::*;

    fn batch(records: u64, rejected: u64) -> Batch {
        let mut batch = Batch { records, ..Batch::default() };
        for n in 0..rejected {
            let position = Position { partition: Partition(1), offset: Offset(n as i64) };
            let field = if n % 3 == 0 { "amount" } else { "user_id" };
            let (field, message) = (Some(Cow::Borrowed(field)), format!("{field} is missing"));
            batch.reject(position, &Rejection { reason: Reason::Invalid, field, message });
        }
        batch
    }

    fn monitor() -> Rejections {
        Rejections::new(0.5, Duration::from_secs(60))
    }

    #[test]
    fn a_share_above_the_limit_names_the_most_frequent_error() {
        let rejections = monitor();
        assert!(rejections.add(0, batch(1000, 500)).is_none(), "not above");
        let error = rejections.add(10, batch(100, 52)).expect("above").to_string();
        for part in
            ["50 % of 1100 records", "60s", "invalid in field user_id", "partition 1, offset 1", "0.5"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_share_of_few_records_is_no_reason_to_stop() {
        let rejections = monitor();
        assert!(rejections.add(0, batch(199, 199)).is_none());
        assert!(rejections.add(0, batch(1, 1)).is_some());
    }

    #[test]
    fn records_before_the_window_do_not_count() {
        let rejections = monitor();
        assert!(rejections.add(0, batch(10_000, 0)).is_none());
        assert!(rejections.add(59_000, batch(300, 300)).is_none());
        assert!(rejections.add(61_000, batch(10, 10)).is_some());
        let rejections = monitor();
        assert!(rejections.add(0, batch(150, 150)).is_none());
        assert!(rejections.add(61_000, batch(150, 150)).is_none());
    }
}
