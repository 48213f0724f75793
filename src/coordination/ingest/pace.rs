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
    /// The stall of the watermark, if there is one.
    pub stall: Option<Stall>,
}

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
        let least = active().filter_map(|(_, position)| position.push.greatest).min();
        let drift_bound = least.zip(self.max_drift_ms).map(|(least, drift_ms)| least.plus_ms(drift_ms));
        let stall = self.liveness.observe(now, watermark, slowest, permission, self.unfinal.total());
        Paced { permission, drift_bound, stall }
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
