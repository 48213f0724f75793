//! An estimate of the watermark at a record's arrival, from the order of records.
//!
//! The run takes it from epochs, which are not recorded for ever. Here, the place of a record in the order of arrival is
//! its timestamp or, for files, its epoch, which is a count of records there. At each, the watermark follows the least of
//! the partitions' greatest pushing times, without the partitions that are idle or at their end.

use std::collections::BTreeMap;

use headwater_dataflows::{EventTime, Position};

use crate::coordination::ingest::PushTime;

/// The rules of the watermark.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The time by which an event may be older than the newest one of its partition.
    pub max_out_of_orderness_ms: i64,
    /// The distance in the order of arrival after which a partition is idle; None if it never is.
    pub idle: Option<i64>,
    /// The distance in the order of arrival from which on a record decides what is late.
    pub lag: i64,
    /// The jump in event time that needs no confirmation.
    pub max_jump_ms: Option<i64>,
}

/// The records that pushed the watermark, by partition.
#[derive(Debug, Default)]
pub struct Pushes {
    partitions: BTreeMap<u32, Partition>,
}

#[derive(Debug, Default)]
struct Partition {
    /// The progress within the range of offsets that is being read.
    push: PushTime,
    offset: i64,
    /// The place of the last record in the order of arrival.
    last: i64,
    /// The records that raised the greatest pushing time of their range: offset, place in the order of arrival, and that
    /// time.
    raised: Vec<(i64, i64, EventTime)>,
}

impl Pushes {
    /// Adds an accepted record with its place in the order of arrival and its pushing time. Ranges of offsets may come in
    /// any order.
    pub fn add(&mut self, position: Position, arrival: i64, time: EventTime, rules: &Rules) {
        let partition = self.partitions.entry(position.partition.0).or_default();
        if position.offset.0 < partition.offset {
            partition.push = PushTime::default();
        }
        partition.offset = position.offset.0;
        partition.last = partition.last.max(arrival);
        if partition.push.accept(time, rules.max_jump_ms)
            && let Some(greatest) = partition.push.greatest
        {
            partition.raised.push((position.offset.0, arrival, greatest));
        }
    }

    /// Brings the pushes into the order of offsets, with the maximum of arrival and time up to each.
    pub fn sort(&mut self) {
        for Partition { raised, .. } in self.partitions.values_mut() {
            raised.sort_unstable();
            let mut greatest = (i64::MIN, EventTime::MIN);
            for (_, arrival, time) in raised {
                greatest = (greatest.0.max(*arrival), greatest.1.max(*time));
                (*arrival, *time) = greatest;
            }
        }
    }

    /// Returns the watermark at a place in the order of arrival; None if it is not known.
    pub fn watermark(&self, arrival: i64, rules: &Rules) -> Option<EventTime> {
        let before = arrival.saturating_sub(rules.lag);
        let (mut least, mut greatest) = (None, None);
        for Partition { raised, last, .. } in self.partitions.values() {
            let pushed = raised.partition_point(|(_, at, _)| *at <= before).checked_sub(1);
            let Some((_, at, time)) = pushed.map(|at| raised[at]) else { continue };
            greatest = greatest.max(Some(time));
            let is_idle = match rules.idle {
                Some(idle) => at < before.saturating_sub(idle),
                None => *last < before,
            };
            if !is_idle {
                least = Some(least.map_or(time, |least: EventTime| least.min(time)));
            }
        }
        let time = least.or(greatest)?;
        Some(EventTime(time.0.saturating_sub(rules.max_out_of_orderness_ms).saturating_sub(1)))
    }
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::{Offset, Partition};

    use super::*;

    const RULES: Rules = Rules { max_out_of_orderness_ms: 5, idle: Some(100), lag: 10, max_jump_ms: None };

    fn add(pushes: &mut Pushes, partition: u32, offset: i64, arrival: i64, time: i64) {
        let position = Position { partition: Partition(partition), offset: Offset(offset) };
        pushes.add(position, arrival, EventTime(time), &RULES);
    }

    #[test]
    fn the_slowest_partition_that_is_not_idle_decides() {
        let mut pushes = Pushes::default();
        // The later range of partition 0 comes first.
        add(&mut pushes, 0, 5, 1050, 1050);
        add(&mut pushes, 0, 6, 1200, 1200);
        add(&mut pushes, 0, 1, 1000, 1000);
        add(&mut pushes, 0, 2, 1010, 900);
        add(&mut pushes, 1, 0, 1000, 980);
        pushes.sort();
        let watermark = |arrival| pushes.watermark(arrival, &RULES).map(|time| time.0);
        assert_eq!(watermark(1005), None, "what is read at the same time decides nothing");
        assert_eq!(watermark(1010), Some(974));
        assert_eq!(watermark(1060), Some(974), "partition 1 holds it");
        assert_eq!(watermark(1150), Some(1044), "until it is idle");
        assert_eq!(watermark(1400), Some(1194), "all are idle: the greatest");
    }
}
