//! Who may read in the next epoch, and what holds the watermark up: decided once for all, from what the epochs before
//! have bound.

use std::time::Duration;

use headwater_dataflows::{EventTime, Partition};
use serde::{Deserialize, Serialize};

use super::{Liveness, ReadPermission, Slowest, Stall, Unfinal, UnfinalBytes};
use crate::coordination::Position;

/// Decides who may read, and watches the watermark.
#[derive(Clone, Debug)]
pub struct Pace {
    /// The bytes that are not final.
    pub unfinal: Unfinal,
    /// How many may be.
    pub unfinal_limit: u64,
    /// How far a partition may be ahead of the slowest one, in milliseconds, if that is limited.
    pub max_drift_ms: Option<i64>,
    /// Watches the watermark.
    pub liveness: Liveness,
}

/// What the readers of the next epoch must know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Paced {
    /// Who may read.
    pub permission: ReadPermission,
    /// How far a partition that is read on may have pushed, if that is limited.
    pub drift_bound: Option<EventTime>,
    /// What holds the watermark up, if anything does.
    pub stall: Option<Stall>,
}

impl Pace {
    /// Takes in what an epoch has accepted.
    pub fn add(&mut self, bytes: &[(Partition, UnfinalBytes)]) {
        for &(partition, bytes) in bytes {
            self.unfinal.add(partition, bytes);
        }
    }

    /// Ends an epoch at `now`: partitions have come as far as `positions`, and `slowest` is what readers say of the one
    /// that holds the watermark.
    pub fn end_epoch(
        &mut self,
        now: Duration,
        positions: &[Position],
        slowest: Option<Slowest>,
        watermark: EventTime,
    ) -> Paced {
        self.unfinal.settle(watermark);
        let busy = || (0..).map(Partition).zip(positions).filter(|(_, position)| !position.idle);
        let hindmost = busy().min_by_key(|(partition, position)| (position.push.greatest, *partition));
        let permission =
            self.unfinal.permission(self.unfinal_limit, hindmost.map(|(partition, _)| partition));
        let least = busy().filter_map(|(_, position)| position.push.greatest).min();
        let drift_bound = least.zip(self.max_drift_ms).map(|(least, drift_ms)| least.plus_ms(drift_ms));
        let stall = self.liveness.observe(now, watermark, slowest, permission, self.unfinal.total());
        Paced { permission, drift_bound, stall }
    }
}

impl Paced {
    /// Whether a partition may be read. An idle one always may: it is not ahead of anything, and what it has would
    /// become late while it waits.
    pub fn allows(&self, partition: Partition, greatest: Option<EventTime>, idle: bool) -> bool {
        let within = self.drift_bound.is_none_or(|bound| greatest.is_none_or(|time| time <= bound));
        idle || (self.permission.allows(partition) && within)
    }
}
