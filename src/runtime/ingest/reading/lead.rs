//! The lead of partitions within an epoch: the workers of a process publish how far the slowest of their partitions is.
//!
//! What a clock decides for an epoch rests on epochs that are bound, and while records wait an epoch is long enough to read
//! half a minute of event time. A partition that is read a little faster than others would lead by that much, and all of it is
//! memory. The workers of other processes are known only from bound epochs.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use headwater_dataflows::EventTime;

/// The time for which partitions that lead wait for a slowest one that does not advance: it may be unable to, as in an open
/// transaction, and then only the limit of un-final events stops the others.
pub(super) const WAIT_WITHIN: Duration = Duration::from_millis(500);

/// The greatest event time of the slowest partition that has records, for each worker of a process.
#[derive(Clone, Debug)]
pub struct SlowestTimes(Arc<[AtomicI64]>);

impl SlowestTimes {
    /// Creates the times of so many workers, none of which has records.
    pub fn new(local_workers: usize) -> SlowestTimes {
        SlowestTimes((0..local_workers.max(1)).map(|_| AtomicI64::new(i64::MAX)).collect())
    }

    /// Publishes the time of a worker, by its index among those of all processes; None if it has no records.
    pub(super) fn publish(&self, worker: usize, time: Option<EventTime>) {
        self.0[worker % self.0.len()].store(time.map_or(i64::MAX, |time| time.0), Ordering::Relaxed);
    }

    /// Returns the earliest time of all workers; None if none has records.
    pub(super) fn of_process(&self) -> Option<EventTime> {
        let earliest = self.0.iter().map(|time| time.load(Ordering::Relaxed)).min();
        earliest.filter(|&time| time != i64::MAX).map(EventTime)
    }
}

/// The monitor of the slowest partition by a worker.
#[derive(Debug, Default)]
pub(super) struct Lead {
    seen: Option<(EventTime, Instant)>,
}

impl Lead {
    /// Returns the time beyond which a partition leads the slowest one by more than so many milliseconds; None if there is no
    /// slowest one, or if it has not advanced for [`WAIT_WITHIN`].
    pub fn bound(&mut self, slowest: Option<EventTime>, lead_ms: i64) -> Option<EventTime> {
        let slowest = slowest?;
        let since = match self.seen {
            Some((seen, since)) if seen == slowest => since,
            _ => self.seen.insert((slowest, Instant::now())).1,
        };
        (since.elapsed() < WAIT_WITHIN).then(|| slowest.plus_ms(lead_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_worker_bounds_the_others_as_long_as_it_advances() {
        let slowest = SlowestTimes::new(2);
        assert_eq!(slowest.of_process(), None);
        slowest.publish(0, Some(EventTime(70)));
        slowest.publish(1, Some(EventTime(20)));
        let mut lead = Lead::default();
        assert_eq!(lead.bound(slowest.of_process(), 30), Some(EventTime(50)));
        lead.seen = lead.seen.map(|(time, since)| (time, since - WAIT_WITHIN));
        assert_eq!(lead.bound(slowest.of_process(), 30), None, "it does not advance");
        slowest.publish(1, Some(EventTime(21)));
        assert_eq!(lead.bound(slowest.of_process(), 30), Some(EventTime(51)));
        slowest.publish(5, None);
        assert_eq!(
            lead.bound(slowest.of_process(), 30),
            Some(EventTime(100)),
            "no records wait for worker 1"
        );
        slowest.publish(0, None);
        assert_eq!(lead.bound(slowest.of_process(), 30), None);
    }
}
