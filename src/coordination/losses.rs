//! Records that a pipeline goes on without: they are gone, or kill whoever reads them.
//!
//! ```text
//!   partition  ──[ read before ┊ gone ]──[ what there is ─────▶
//!                ▲ replay begins         ▲ `next`: reading begins here, now and in every later start
//! ```
//!
//! The ledger keeps its bindings as they are, and beside them what is lost. Each start takes the one from the other in
//! the same way, so that whatever is left keeps the epoch under which a sink may have committed it, and the watermark
//! is in every epoch what it was.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use headwater_dataflows::{Offset, Partition};

use super::{EpochRecord, Position};

/// Records of a partition that are never read again: by no start that would replay them, and by none that comes to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// The partition.
    pub partition: Partition,
    /// The offset at which the start that accepted it would have begun to read.
    pub first: Offset,
    /// The first offset that is read.
    pub next: Offset,
}

impl Loss {
    /// How many offsets are lost: at most so many records.
    pub fn offsets(&self) -> u64 {
        self.next.0.saturating_sub(self.first.0).max(0).unsigned_abs()
    }
}

/// A permission to go on without records: `TOPIC`, `TOPIC:PARTITION` or `TOPIC:PARTITION:OFFSET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedLoss {
    /// The topic.
    pub topic: String,
    /// The partition; all if none is named.
    pub partition: Option<Partition>,
    /// The last offset that is lost; without it, reading begins at the first record that is there.
    pub through: Option<Offset>,
}

impl AcceptedLoss {
    /// Whether it speaks of a partition of a topic.
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
        let wrong = || format!("expected TOPIC, TOPIC:PARTITION or TOPIC:PARTITION:OFFSET, not {text:?}");
        let numbers = numbers.collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
        let partition = numbers.first().map(|&number| u32::try_from(number).map(Partition));
        let partition = partition.transpose().map_err(|_| wrong())?;
        if topic.is_empty() || numbers.len() > 2 {
            return Err(wrong());
        }
        Ok(AcceptedLoss { topic, partition, through: numbers.get(1).map(|&offset| Offset(offset)) })
    }
}

/// Where reading a partition begins that would begin at `start`, given the first offset that the log has and the one
/// after its last. None if records would be missing that nobody has said may be.
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
    // Nobody can tell what is beyond the end, so it cannot be given up beforehand.
    let after = through.map_or(start, |through| Offset(through.0 + 1).min(end).max(start));
    if start > end || (start < low && !is_accepted) { None } else { Some(after.max(low)) }
}

/// Takes what is lost from what is replayed: epochs from `positions` on, in order. A binding all of whose records are
/// lost names none any more. What it says of time stays, and so does the last record of one that lost a part. Returns by
/// partition the first offset that is read.
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
    use crate::coordination::{Binding, Watermark, WatermarkRule};

    #[test]
    fn a_permission_is_written_as_it_is_read() {
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
    fn reading_begins_at_the_first_record_there_is_only_with_permission() {
        let at = |accepted: &[&str], start, low, end| {
            let accepted: Vec<_> = accepted.iter().map(|text| text.parse().expect("a permission")).collect();
            go_on_at(&accepted, "t", Partition(2), Offset(start), (Offset(low), Offset(end))).map(|at| at.0)
        };
        assert_eq!(at(&[], 5, 5, 9), Some(5));
        assert_eq!(at(&["t"], 5, 0, 9), Some(5), "nothing is lost");
        assert_eq!(at(&[], 5, 7, 9), None);
        assert_eq!(at(&["t:1", "other"], 5, 7, 9), None, "another partition, another topic");
        assert_eq!((at(&["t"], 5, 7, 9), at(&["t:2"], 5, 7, 9)), (Some(7), Some(7)));
        assert_eq!(at(&["t:2:7"], 5, 0, 9), Some(8), "after the offset that is named");
        assert_eq!(at(&["t:2:7"], 8, 0, 9), Some(8), "once, and not again");
        assert_eq!(at(&["t:2:3"], 5, 7, 9), Some(7));
        assert_eq!(at(&["t:2:700"], 5, 0, 9), Some(9), "what is not there yet is not given up");
        assert_eq!(at(&["t"], 10, 0, 9), None, "the log was cut, and what follows is no continuation");
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
        };
        bindings.into_iter().enumerate().map(record).collect()
    }

    fn loss(first: i64, next: i64) -> Loss {
        Loss { partition: Partition(0), first: Offset(first), next: Offset(next) }
    }

    #[test]
    fn what_is_left_keeps_its_epoch_and_the_watermark_is_as_it_was() {
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
            "one that is over concerns nobody"
        );
        // The first epoch has lost all of partition 0, the second half of it, and neither an epoch of partition 1.
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

        // Every later start comes to the same, also from an older checkpoint, and nothing is lost twice.
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
    fn a_loss_beyond_what_is_recorded_leaves_no_record_of_its_partition_to_replay() {
        let mut lossy = replay();
        let positions = [Position::starting(Offset(2)); 2];
        let read_from = apply_losses(&mut lossy, &positions, &[loss(2, 100)]);
        assert_eq!(read_from[&Partition(0)], Offset(100));
        let of_0 = lossy.iter().flat_map(|record| &record.bindings).filter(|b| b.partition == Partition(0));
        assert!(of_0.map(|binding| binding.timestamp).all(|timestamp| timestamp.is_none()));
    }
}
