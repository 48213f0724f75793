//! The progress of event time: the watermark by epoch and by partition.

use std::collections::VecDeque;

use headwater_dataflows::{Epoch, EventTime};

/// The maximum number of watermarks that are remembered.
const WATERMARKS: usize = 100_000;

/// The watermark and state of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionTime {
    /// The partition's own watermark; [`EventTime::MIN`] if it has accepted no record.
    pub watermark: EventTime,
    /// True if it is idle.
    pub idle: bool,
    /// The offset after the last record of the closed epochs.
    pub next_offset: i64,
}

/// The watermarks of epochs that are not committed, and the last one before them.
#[derive(Default)]
pub(super) struct Progress {
    /// The epochs at which the watermark changed.
    watermarks: VecDeque<(Epoch, EventTime)>,
    /// The partitions, in process 0.
    pub partitions: Vec<PartitionTime>,
    /// The generation of this start; None without a ledger.
    pub generation: Option<u64>,
}

impl Progress {
    /// Adds the watermark at the end of an epoch. All sinks have committed the epochs before `frontier`.
    pub fn watermark(&mut self, epoch: Epoch, watermark: EventTime, frontier: Epoch) {
        if self.watermarks.back().is_none_or(|(_, last)| *last < watermark) {
            self.watermarks.push_back((epoch, watermark));
        }
        while self.watermarks.get(1).is_some_and(|(next, _)| *next < frontier)
            || self.watermarks.len() > WATERMARKS
        {
            self.watermarks.pop_front();
        }
    }

    /// Returns the watermark at the end of an epoch; None if it is not known.
    pub fn watermark_at(&self, epoch: Epoch) -> Option<EventTime> {
        let after = self.watermarks.partition_point(|(at, _)| *at <= epoch);
        Some(self.watermarks.get(after.checked_sub(1)?)?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_of_an_epoch_is_the_last_change_before_its_end() {
        let mut progress = Progress::default();
        for (epoch, watermark) in [(3, 10), (5, 10), (6, 20), (9, 30)] {
            progress.watermark(Epoch(epoch), EventTime(watermark), Epoch(1));
        }
        let at = |epoch| progress.watermark_at(Epoch(epoch)).map(|watermark| watermark.0);
        assert_eq!(
            [at(2), at(3), at(5), at(6), at(8), at(100)],
            [None, Some(10), Some(10), Some(20), Some(20), Some(30)]
        );
    }

    #[test]
    fn watermarks_before_the_frontier_are_forgotten_but_the_last() {
        let mut progress = Progress::default();
        for (epoch, frontier) in [(3, 1), (6, 1), (9, 9)] {
            progress.watermark(Epoch(epoch), EventTime(10 * epoch as i64), Epoch(frontier));
        }
        assert_eq!(progress.watermark_at(Epoch(5)), None);
        assert_eq!(progress.watermark_at(Epoch(8)), Some(EventTime(60)));
    }
}
