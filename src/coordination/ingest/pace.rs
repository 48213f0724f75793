//! Pace: decides once for all workers, from the bindings of earlier epochs, which partitions may be read in the next
//! epoch, and the cause of a stall.

use std::time::Duration;

use headwater_dataflows::{EventTime, Partition};
use serde::{Deserialize, Serialize};

use super::{Liveness, ReadPermission, Slowest, Stall, Unfinal, UnfinalBytes};
use crate::coordination::Position;

/// Decides which partitions may be read, and monitors the watermark.
#[derive(Clone, Debug)]
pub struct Pace {
    /// The bytes of un-final events.
    pub unfinal: Unfinal,
    /// The maximum number of un-final bytes.
    pub unfinal_limit: u64,
    /// The maximum lead of a partition over the slowest one, in milliseconds, if it is limited.
    pub max_drift_ms: Option<i64>,
    /// The monitor of the watermark.
    pub liveness: Liveness,
}

/// The decisions for the readers of the next epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Paced {
    /// The partitions that may be read.
    pub permission: ReadPermission,
    /// The greatest pushing time up to which a partition may be read, if it is limited.
    pub drift_bound: Option<EventTime>,
    /// The maximum lead of a partition, within the epoch, over the slowest one of its process that has records, in milliseconds
    /// of event time, if it is limited.
    pub lead_ms: Option<i64>,
    /// The stall of the watermark, if there is one.
    pub stall: Option<Stall>,
}

/// Un-final events may take this part of their limit, one in so many, before partitions keep together within an epoch.
const APART: u64 = 8;

/// And at least as many bytes: what some steps of reading take.
const LEAST_APART: u64 = 8 << 20;

impl Pace {
    /// Adds the bytes of the events that an epoch has accepted.
    pub fn add(&mut self, bytes: &[(Partition, UnfinalBytes)]) {
        for &(partition, bytes) in bytes {
            self.unfinal.add(partition, bytes);
        }
    }

    /// Ends an epoch at `now`: `positions` are the positions of all partitions, and `slowest` is the partition that
    /// holds the watermark, as reported by the readers.
    pub fn end_epoch(
        &mut self,
        now: Duration,
        positions: &[Position],
        slowest: Option<Slowest>,
        watermark: EventTime,
    ) -> Paced {
        self.unfinal.settle(watermark);
        let active = || (0..).map(Partition).zip(positions).filter(|(_, position)| !position.idle);
        let slowest_partition =
            active().min_by_key(|(partition, position)| (position.push.greatest, *partition));
        let permission =
            self.unfinal.permission(self.unfinal_limit, slowest_partition.map(|(partition, _)| partition));
        let greatest = || active().filter_map(|(_, position)| position.push.greatest);
        let ends = greatest().min().zip(greatest().max());
        let drift_bound = ends.and_then(|(least, most)| {
            let drift = self.max_drift_ms.map(|drift_ms| least.plus_ms(drift_ms));
            [drift, self.bound(least, most, watermark)].into_iter().flatten().min()
        });
        let lead_ms = ends.and_then(|(least, most)| self.lead_ms(least, most, watermark));
        let stall = self.liveness.observe(now, watermark, slowest, permission, self.unfinal.total());
        Paced { permission, drift_bound, lead_ms, stall }
    }

    /// Returns the lead at which un-final events take the part of their limit from which on partitions keep together, if they
    /// take more: they lie between the watermark and the partition that leads, and are taken to be spread evenly. What is
    /// un-final because events are out of order is no reason to wait, so that a lead of as much is always allowed.
    fn lead_ms(&self, least: EventTime, most: EventTime, watermark: EventTime) -> Option<i64> {
        let (total, apart) = (self.unfinal.total(), (self.unfinal_limit / APART).max(LEAST_APART));
        let [least, most, watermark] = [least, most, watermark].map(|time| i128::from(time.0));
        let out_of_order = (least - watermark).max(0);
        let lead = (most - watermark) * i128::from(apart) / i128::from(total.max(1)) - out_of_order;
        (total > apart).then(|| i64::try_from(lead.max(out_of_order)).unwrap_or(i64::MAX))
    }

    /// Returns the time up to which partitions may be read once un-final events take half of what they may: the middle of the
    /// partitions' times if un-final events are more because partitions are apart than because events are out of order. So the
    /// half that leads waits long before the limit stops all but the slowest, and how far it may lead is a matter of memory,
    /// whatever the density of event time. Else no partition gets ahead of the first one by more than events are out of order
    /// in one epoch, however many it has.
    fn bound(&self, least: EventTime, most: EventTime, watermark: EventTime) -> Option<EventTime> {
        let (least, most, out_of_order) =
            (i128::from(least.0), i128::from(most.0), i128::from(least.0) - i128::from(watermark.0));
        let bound =
            if most - least > out_of_order { (least + most).div_euclid(2) } else { most + out_of_order };
        let bound = i64::try_from(bound).map_or(EventTime::MAX, EventTime);
        (self.unfinal.total() > self.unfinal_limit / 2).then_some(bound)
    }
}

impl Paced {
    /// Returns true if a partition may be read. An idle partition may always be read: it is not ahead of any other,
    /// and its records would become late while they wait.
    pub fn allows(&self, partition: Partition, greatest: Option<EventTime>, idle: bool) -> bool {
        let within = self.drift_bound.is_none_or(|bound| greatest.is_none_or(|time| time <= bound));
        (idle && self.permission != ReadPermission::None) || (self.permission.allows(partition) && within)
    }
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::Offset;

    use super::*;

    const LIMIT: u64 = 1000;

    /// Returns what may be read of partitions whose greatest times are these, when an event of the last one takes so many bytes.
    fn paced(times: &[i64], watermark: i64, bytes: usize) -> (Paced, Vec<bool>) {
        paced_within(LIMIT, times, watermark, bytes)
    }

    fn paced_within(unfinal_limit: u64, times: &[i64], watermark: i64, bytes: usize) -> (Paced, Vec<bool>) {
        let forever = Duration::from_secs(3600);
        let mut pace = Pace {
            unfinal: Unfinal::default(),
            unfinal_limit,
            max_drift_ms: None,
            liveness: Liveness::new(forever, forever),
        };
        let event = UnfinalBytes::of(EventTime(times[times.len() - 1]), None, bytes);
        pace.add(&[(Partition(times.len() as u32 - 1), event)]);
        let positions: Vec<_> = times
            .iter()
            .map(|&time| {
                let mut position = Position::starting(Offset(0));
                position.push.greatest = Some(EventTime(time));
                position
            })
            .collect();
        let paced = pace.end_epoch(Duration::ZERO, &positions, None, EventTime(watermark));
        let allowed =
            (0..).zip(times).map(|(p, &time)| paced.allows(Partition(p), Some(EventTime(time)), false));
        (paced, allowed.collect())
    }

    #[test]
    fn partitions_that_lead_wait_once_un_final_events_take_half_of_the_limit() {
        let times = [100, 120, 180, 200];
        assert_eq!(paced(&times, 95, 500).1, [true; 4], "there is room");
        assert_eq!(paced(&times, 95, 501).1, [true, true, false, false]);
        assert_eq!(paced(&times, 95, 1000).1, [true, false, false, false], "the limit");
        assert_eq!(paced(&times, -5, 501).1, [true; 4], "they are out of order rather than apart");
        assert_eq!(paced(&[100, 100], 95, 501).1, [true; 2], "none leads");
        assert_eq!(
            paced(&times, -5, 501).0.drift_bound,
            Some(EventTime(305)),
            "and none gets far ahead of the first"
        );
        let bound = paced(&[100, i64::MAX], i64::MIN, 501).0.drift_bound;
        assert_eq!(bound, Some(EventTime::MAX), "no time overflows");
        assert_eq!(paced(&[100, i64::MAX], 95, 501).1, [true, false]);
    }

    #[test]
    fn the_lead_is_that_at_which_un_final_events_take_their_part() {
        let lead = |times: &[i64], mib: usize| paced_within(1 << 30, times, 90_000, mib << 20).0.lead_ms;
        let apart = [100_000, 150_000, 200_000];
        assert_eq!(lead(&apart, 128), None, "there is room");
        assert_eq!(
            lead(&apart, 256),
            Some(45_000),
            "half of what lies after the watermark, and from there on"
        );
        assert_eq!(lead(&apart, 1024), Some(10_000), "as much as events are out of order");
        assert_eq!(lead(&[100_000; 3], 256), Some(10_000));
        assert_eq!(paced_within(1 << 20, &apart, 90_000, 8 << 20).0.lead_ms, None, "a few steps of reading");
        assert!(lead(&[i64::MIN, i64::MAX], 256).is_some(), "no time overflows");
    }
}
