//! Losses: records that a pipeline skips because they are gone, or because they kill every process that reads them.
//!
//! ```text
//!   partition  ──[ read before ┊ gone ]──[ existing records ──▶
//!                ▲ replay begins         ▲ `next`: reading begins here, now and in every later start
//! ```
//!
//! The ledger leaves its bindings unchanged and records the losses beside them. Every start subtracts the losses from
//! the bindings in the same way. So each remaining record keeps its epoch, under which a sink may already have
//! committed it, and the watermark of every epoch is unchanged.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use headwater_dataflows::{Offset, Partition};

use super::{EpochRecord, Position};

/// A range of records of a partition that is never read again, neither by a replay nor when reading reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// The partition.
    pub partition: Partition,
    /// The offset at which the start that accepted the loss would have begun to read.
    pub first: Offset,
    /// The first offset that is read.
    pub next: Offset,
}

impl Loss {
    /// Returns the number of lost offsets, which is at least the number of lost records.
    pub fn offsets(&self) -> u64 {
        self.next.0.saturating_sub(self.first.0).max(0).unsigned_abs()
    }
}

/// A permission to continue without some records: `TOPIC`, `TOPIC:PARTITION` or `TOPIC:PARTITION:OFFSET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedLoss {
    /// The topic.
    pub topic: String,
    /// The partition; None for all partitions.
    pub partition: Option<Partition>,
    /// The last offset that is lost; if None, reading begins at the first record that exists.
    pub through: Option<Offset>,
}

impl AcceptedLoss {
    /// Returns true if the permission applies to a partition of a topic.
    fn covers(&self, topic: &str, partition: Partition) -> bool {
        self.topic == topic && self.partition.is_none_or(|of| of == partition)
    }
}

impl fmt::Display for AcceptedLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.topic)?;
        self.partition.iter().try_for_each(|partition| write!(f, ":{}", partition.0))?;
        self.through.iter().try_for_each(|through| write!(f, ":{}", through.0))
    }
}

impl FromStr for AcceptedLoss {
    type Err = String;

    fn from_str(text: &str) -> Result<AcceptedLoss, String> {
        let mut words = text.split(':');
        let topic = words.next().unwrap_or_default().to_owned();
        let numbers = words.map(|word| word.parse::<i64>().ok().filter(|&number| number >= 0));
        let invalid = || format!("expected TOPIC, TOPIC:PARTITION or TOPIC:PARTITION:OFFSET, not {text:?}");
        let numbers = numbers.collect::<Option<Vec<_>>>().ok_or_else(invalid)?;
        let partition = numbers.first().map(|&number| u32::try_from(number).map(Partition));
        let partition = partition.transpose().map_err(|_| invalid())?;
        if topic.is_empty() || numbers.len() > 2 {
            return Err(invalid());
        }
        Ok(AcceptedLoss { topic, partition, through: numbers.get(1).map(|&offset| Offset(offset)) })
    }
}

/// Returns the offset at which to begin reading a partition whose position is `start`, given the first offset of the
/// log and the offset after its last. Returns None if records are missing and no permission covers the loss.
pub fn go_on_at(
    accepted: &[AcceptedLoss],
    topic: &str,
    partition: Partition,
    start: Offset,
    (low, end): (Offset, Offset),
) -> Option<Offset> {
    let mut covering = accepted.iter().filter(|accepted| accepted.covers(topic, partition)).peekable();
    let is_accepted = covering.peek().is_some();
    let through = covering.filter_map(|accepted| accepted.through).max();
    // Records beyond the end are unknown, so they cannot be given up in advance.
    let after = through.map_or(start, |through| Offset(through.0 + 1).min(end).max(start));
    if start > end || (start < low && !is_accepted) { None } else { Some(after.max(low)) }
}

/// Subtracts losses from the replay: epochs after `positions`, in order. A binding whose records are all lost no
/// longer names a last record. Its times are unchanged, and a binding that lost only some records keeps its last
/// record. Returns the first offset to read, by partition.
pub fn apply_losses(
    replay: &mut [EpochRecord],
    positions: &[Position],
    losses: &[Loss],
) -> BTreeMap<Partition, Offset> {
    let mut read_from = BTreeMap::new();
    for loss in losses {
        let start = positions.get(loss.partition.0 as usize).map(|position| position.next);
        if start.is_some_and(|start| start < loss.next) {
            let from = read_from.entry(loss.partition).or_insert(loss.next);
            *from = loss.next.max(*from);
        }
    }
    for binding in replay.iter_mut().flat_map(|record| &mut record.bindings) {
        if read_from.get(&binding.partition).is_some_and(|&from| binding.end <= from) {
            binding.timestamp = None;
        }
    }
    read_from
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::{Epoch, EventTime};

    use super::*;
    use crate::coordination::ingest::TimeRules;
    use crate::coordination::{Binding, Change, Watermark, WatermarkRule};

    #[test]
    fn permissions_are_formatted_as_they_are_parsed() {
        for text in ["raw-events", "raw-events:3", "raw-events:0:42"] {
            assert_eq!(text.parse::<AcceptedLoss>().expect(text).to_string(), text);
        }
        for text in ["", ":3", "a:", "a:b", "a:-1", "a:1:2:3", "a:5000000000"] {
            assert!(
                text.parse::<AcceptedLoss>().expect_err(text).contains("TOPIC:PARTITION:OFFSET"),
                "{text}"
            );
        }
    }

    #[test]
    fn missing_records_are_skipped_only_with_permission() {
        let at = |accepted: &[&str], start, low, end| {
            let accepted: Vec<_> = accepted.iter().map(|text| text.parse().expect("a permission")).collect();
            go_on_at(&accepted, "t", Partition(2), Offset(start), (Offset(low), Offset(end))).map(|at| at.0)
        };
        assert_eq!(at(&[], 5, 5, 9), Some(5));
        assert_eq!(at(&["t"], 5, 0, 9), Some(5), "no record is missing");
        assert_eq!(at(&[], 5, 7, 9), None);
        assert_eq!(at(&["t:1", "other"], 5, 7, 9), None, "another partition, another topic");
        assert_eq!((at(&["t"], 5, 7, 9), at(&["t:2"], 5, 7, 9)), (Some(7), Some(7)));
        assert_eq!(at(&["t:2:7"], 5, 0, 9), Some(8), "after the accepted offset");
        assert_eq!(at(&["t:2:7"], 8, 0, 9), Some(8), "a permission applies once");
        assert_eq!(at(&["t:2:3"], 5, 7, 9), Some(7));
        assert_eq!(at(&["t:2:700"], 5, 0, 9), Some(9), "future records are not given up");
        assert_eq!(at(&["t"], 10, 0, 9), None, "the log was truncated and written anew");
    }

    fn binding(partition: u32, end: i64, timestamp: Option<i64>, time: i64) -> Binding {
        let (partition, end, time) = (Partition(partition), Offset(end), Some(EventTime(time)));
        Binding {
            partition,
            end,
            timestamp,
            max_event_time: time,
            pushing_time: time,
            candidate: None,
            idle: false,
        }
    }

    fn replay() -> Vec<EpochRecord> {
        let bindings = [
            vec![binding(0, 4, Some(1), 40), binding(1, 3, Some(1), 30)],
            vec![binding(0, 8, Some(2), 80)],
            vec![binding(0, 9, Some(3), 90), binding(1, 5, Some(3), 95)],
        ];
        let record = |(at, bindings): (usize, Vec<Binding>)| EpochRecord {
            epoch: Epoch(7 + at as u64),
            wall_ms: 0,
            bindings,
            closes: false,
            rules: TimeRules::EarliestClock,
            change: Change::default(),
        };
        bindings.into_iter().enumerate().map(record).collect()
    }

    fn loss(first: i64, next: i64) -> Loss {
        Loss { partition: Partition(0), first: Offset(first), next: Offset(next) }
    }

    #[test]
    fn losses_keep_the_epochs_and_watermarks_of_other_records() {
        let position = |next| Position::starting(Offset(next));
        let positions = [position(2), position(0)];
        let ends = |record: &EpochRecord| -> Vec<_> {
            record.bindings.iter().map(|b| (b.partition.0, b.end.0, b.timestamp)).collect()
        };
        let mut lossy = replay();
        let read_from = apply_losses(&mut lossy, &positions, &[loss(2, 5), loss(0, 2)]);
        assert_eq!(
            read_from,
            BTreeMap::from([(Partition(0), Offset(5))]),
            "a loss before the position has no effect"
        );
        // The first epoch has lost all records of partition 0, the second only some, and partition 1 has lost none.
        assert_eq!(ends(&lossy[0]), [(0, 4, None), (1, 3, Some(1))]);
        assert_eq!(lossy[1..], replay()[1..]);
        let watermarks = |replay: &[EpochRecord]| {
            let rule = WatermarkRule { max_out_of_orderness_ms: 0, idle_advance_ms: None };
            let mut watermark = Watermark::new(2, rule);
            let mut advance =
                |record: &EpochRecord| watermark.advance(&record.bindings, record.wall_ms, record.rules);
            replay.iter().map(&mut advance).collect::<Vec<_>>()
        };
        assert_eq!(watermarks(&lossy), watermarks(&replay()));

        // Every later start gets the same result, also from an older checkpoint, and no loss is applied twice.
        let mut again = replay();
        apply_losses(&mut again, &positions, &[loss(2, 5)]);
        assert_eq!(again, lossy);
        apply_losses(&mut again, &positions, &[loss(2, 5)]);
        assert_eq!(again, lossy);
        let mut later = replay()[2..].to_vec();
        assert!(apply_losses(&mut later, &[position(8), position(3)], &[loss(2, 5)]).is_empty());
        assert_eq!(later, replay()[2..]);
    }

    #[test]
    fn a_loss_beyond_the_ledger_leaves_no_record_to_replay() {
        let mut lossy = replay();
        let positions = [Position::starting(Offset(2)); 2];
        let read_from = apply_losses(&mut lossy, &positions, &[loss(2, 100)]);
        assert_eq!(read_from[&Partition(0)], Offset(100));
        let of_0 = lossy.iter().flat_map(|record| &record.bindings).filter(|b| b.partition == Partition(0));
        assert!(of_0.map(|binding| binding.timestamp).all(|timestamp| timestamp.is_none()));
    }
}
