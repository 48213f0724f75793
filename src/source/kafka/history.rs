//! A topic's records around one of them.
//!
//! ```text
//!   position, or a search from the earliest time on ─▶ record and its timestamp
//!   slices of time, backwards from it, each longer: ···[      ][   ][ ]record[after]
//! ```
//!
//! Partitions are cut at the same time, which Kafka translates to offsets, so that what lies within a slice is known whole.
//! Records before the first one at a time have lesser timestamps, so nothing is missed where timestamps are out of order.

use std::time::Instant;

use headwater_dataflows::{Offset, Partition, Position};
use headwater_sinks::kafka::client::Options;

use super::fetched::Fetched;
use super::topic_ranges::{Fetch, Offsets, TopicRanges};
use crate::coordination::ingest::{Clocks, TimeRules};
use crate::source::history::{Allowance, Bounds, Gap, HistoryQuery, HistoryRead, RecordHistory, Visitor};
use crate::source::{Raw, SourceError};

/// The maximum number of records of one reading, by default. At 500 bytes each, they are 250 MB.
pub const RECORDS: u64 = 500_000;

/// The maximum number of bytes of one reading.
const BYTES: u64 = 256 << 20;

/// The length of the first slice, in milliseconds.
const FIRST_SLICE_MS: i64 = 1000;

/// The factor between the lengths of two slices.
const GROWTH: i64 = 4;

/// A topic to read again.
#[derive(Clone, Debug)]
pub struct TopicHistory {
    /// The bootstrap servers.
    pub brokers: String,
    /// Options for the Kafka client.
    pub options: Options,
    /// The topic.
    pub topic: String,
    /// True if the pipeline began to read it at the first record.
    pub is_from_first: bool,
    /// The maximum number of records of one reading.
    pub max_records: u64,
}

/// One reading of a topic.
struct Reading<'a> {
    topic: TopicRanges,
    /// The first offset of each partition.
    starts: Vec<i64>,
    bounds: Bounds,
    left: Allowance,
    deadline: Instant,
    visitor: &'a mut dyn Visitor,
    /// By partition, the timestamp of the first record that was read.
    firsts: Vec<Option<i64>>,
    read: HistoryRead,
}

impl RecordHistory for TopicHistory {
    fn name(&self) -> String {
        format!("topic {}", self.topic)
    }

    fn read(&self, query: &HistoryQuery, visitor: &mut dyn Visitor) -> Result<HistoryRead, SourceError> {
        let bounds = Bounds::until(query.deadline, self.max_records, BYTES);
        let topic = TopicRanges::open(&self.brokers, &self.options, &self.topic, Fetch::Much)?;
        let starts: Vec<_> = topic.bounds().map(|(_, range)| range.start).collect();
        let firsts = vec![None; starts.len()];
        let (left, deadline, read) = (Allowance::of(bounds), query.deadline, HistoryRead::default());
        let mut reading = Reading { topic, starts, bounds, left, deadline, visitor, firsts, read };
        let found = match query.position {
            Some(position) => reading.at(position)?,
            None => reading.search(query.earliest_ms)?,
        };
        let Some((position, timestamp)) = found else { return Ok(reading.read) };
        if Clocks::new(TimeRules::default(), timestamp, None).timestamp_ms.is_none() {
            reading.read.gaps.push(Gap::NoTimestamps);
            return Ok(reading.read);
        }
        reading.read.is_found = true;
        let ends = reading.ends_with(position, timestamp)?;
        let lows = reading.before(timestamp, query.from_ms, ends.clone())?;
        reading.note_start(&lows, query.from_ms, self.is_from_first);
        reading.after(&ends, timestamp, query.after_ms)?;
        if let Some(from_ms) = query.from_ms {
            reading.spare(from_ms.saturating_sub(query.spare_ms), &lows)?;
        }
        Ok(reading.read)
    }
}

impl Reading<'_> {
    /// Returns position and timestamp of the record at a position, if it is the wanted one.
    fn at(&mut self, position: Position) -> Result<Option<(Position, i64)>, SourceError> {
        let Position { partition, offset } = position;
        let bounds = self.topic.bounds().find(|(of, _)| *of == partition);
        if !bounds.is_some_and(|(_, range)| range.contains(&offset.0)) {
            self.read.gaps.push(Gap::Retention);
            return Ok(None);
        }
        let (mut found, visitor) = (None, &mut *self.visitor);
        self.topic.read(
            &[(partition, offset.0..offset.0 + 1)],
            self.deadline,
            &mut |partition, message| {
                let raw = raw(partition, message);
                found = visitor.is_wanted(raw).then_some((raw.position, raw.timestamp));
                true
            },
        )?;
        Ok(found)
    }

    /// Searches the wanted record, from a time on.
    fn search(&mut self, earliest_ms: i64) -> Result<Option<(Position, i64)>, SourceError> {
        let ends: Vec<_> = self.topic.bounds().map(|(_, range)| range.end).collect();
        let (mut time, mut length) = (earliest_ms, FIRST_SLICE_MS);
        let mut lows = self.topic.offsets_at(time)?;
        if lows == self.starts && lows.iter().any(|&low| low > 0) {
            self.read.gaps.push(Gap::Retention);
        }
        // The other half is for the records around it.
        let mut left = Allowance { records: self.left.records / 2, bytes: self.left.bytes / 2 };
        let mut found = None;
        while lows != ends {
            time = time.saturating_add(length);
            length = length.saturating_mul(GROWTH);
            let highs = self.topic.offsets_at(time)?;
            let (visitor, found_here) = (&mut *self.visitor, &mut found);
            let all = self.topic.read(&ranges(&lows, &highs), self.deadline, &mut |partition, message| {
                let raw = raw(partition, message);
                if visitor.is_wanted(raw) {
                    *found_here = Some((raw.position, raw.timestamp));
                }
                found_here.is_none() && left.take(&raw)
            })?;
            if found.is_some() {
                self.read.gaps.clear();
                return Ok(found);
            }
            if !all {
                self.read.gaps.push(Gap::Bound(self.bounds));
                return Ok(None);
            }
            lows = highs;
        }
        Ok(None)
    }

    /// Returns the offsets after the record and all records that have its timestamp or an earlier one.
    fn ends_with(&self, position: Position, timestamp: i64) -> Result<Vec<i64>, SourceError> {
        let mut ends = self.topic.offsets_at(timestamp.saturating_add(1))?;
        if let Some(end) = ends.get_mut(position.partition.0 as usize) {
            *end = (*end).max(position.offset.0 + 1);
        }
        Ok(ends)
    }

    /// Reads backwards from these ends until a time, or as far as the bounds permit. Returns the first offsets that were
    /// read.
    fn before(
        &mut self,
        timestamp: i64,
        from_ms: Option<i64>,
        mut highs: Vec<i64>,
    ) -> Result<Vec<i64>, SourceError> {
        // A quarter is for the records that arrived after it.
        let reserved = self.left.records / 4;
        let (mut time, mut length) = (timestamp.saturating_add(1), FIRST_SLICE_MS);
        let first = from_ms.unwrap_or(0).max(0);
        while time > first && highs != self.starts {
            let permitted = self.left.records.saturating_sub(reserved);
            if self.visitor.is_full() {
                self.read.since_ms = Some(time);
                return Ok(highs);
            }
            if permitted < self.bounds.records / 64 {
                return Ok(self.cut(time, highs));
            }
            let (from, lows) = loop {
                let from = time.saturating_sub(length).max(first);
                let lows = self.topic.offsets_at(from)?;
                let count = count(&lows, &highs);
                if count <= permitted {
                    break (from, lows);
                }
                length /= GROWTH;
                if length == 0 {
                    return Ok(self.cut(time, highs));
                }
            };
            if !self.slice(&lows, &highs)? {
                return Ok(self.cut(time, highs));
            }
            (time, highs) = (from, lows);
            length = length.saturating_mul(GROWTH);
        }
        Ok(highs)
    }

    /// Records that reading ended at a time by the bounds.
    fn cut(&mut self, time: i64, highs: Vec<i64>) -> Vec<i64> {
        self.read.gaps.push(Gap::Bound(self.bounds));
        self.read.since_ms = Some(time);
        highs
    }

    /// Records whether earlier records may have existed than those from these offsets on.
    fn note_start(&mut self, lows: &[i64], from_ms: Option<i64>, is_from_first: bool) {
        if self.read.since_ms.is_some() {
            return;
        }
        let is_cut = |partition: usize| lows[partition] == self.starts[partition] && lows[partition] > 0;
        let cut: Vec<_> = (0..lows.len()).filter(|&partition| is_cut(partition)).collect();
        let firsts: Vec<_> = cut.iter().map(|&partition| self.firsts[partition]).collect();
        self.read.since_ms = firsts.iter().copied().flatten().max().max(from_ms);
        if firsts.contains(&None) {
            self.read.gaps.push(Gap::Emptied);
        }
        if !cut.is_empty() {
            self.read.gaps.push(Gap::Retention);
        } else if from_ms.is_none() && !is_from_first {
            self.read.gaps.push(Gap::StartFrom);
        }
    }

    /// Reads what arrived after the record for a time, as far as the bounds permit.
    fn after(&mut self, lows: &[i64], timestamp: i64, mut after_ms: i64) -> Result<(), SourceError> {
        let highs = |topic: &TopicRanges, after_ms| topic.offsets_at(timestamp.saturating_add(after_ms));
        let (mut ends, mut is_whole) = (highs(&self.topic, after_ms)?, true);
        while count(lows, &ends) > self.left.records && after_ms > 0 {
            (after_ms, is_whole) = (after_ms / 2, false);
            ends = highs(&self.topic, after_ms)?;
        }
        let all = self.slice(lows, &ends)?;
        if !(all && is_whole) {
            self.read.gaps.push(Gap::After(self.bounds));
        }
        Ok(())
    }

    /// Reads from a time to these offsets, if nothing is missing after them and there are few records.
    fn spare(&mut self, from_ms: i64, highs: &[i64]) -> Result<(), SourceError> {
        let lows = self.topic.offsets_at(from_ms)?;
        let few = self.left.records.min(self.bounds.records / 10);
        if self.read.gaps.is_empty() && count(&lows, highs) <= few {
            self.slice(&lows, highs)?;
        }
        Ok(())
    }

    /// Reads a range of each partition. Returns false if a bound was reached before all records were read.
    fn slice(&mut self, lows: &[i64], highs: &[i64]) -> Result<bool, SourceError> {
        let Reading { topic, left, visitor, firsts, .. } = self;
        let mut begun = vec![false; lows.len()];
        topic.read(&ranges(lows, highs), self.deadline, &mut |partition, message| {
            let raw = raw(partition, message);
            let at = partition.0 as usize;
            if !std::mem::replace(&mut begun[at], true) {
                firsts[at] = Some(firsts[at].map_or(raw.timestamp, |first| first.min(raw.timestamp)));
            }
            let fits = left.take(&raw);
            if fits {
                visitor.record(raw);
            }
            fits
        })
    }
}

fn ranges(lows: &[i64], highs: &[i64]) -> Vec<Offsets> {
    (0..).map(Partition).zip(lows.iter().zip(highs).map(|(&low, &high)| low..high)).collect()
}

fn count(lows: &[i64], highs: &[i64]) -> u64 {
    lows.iter().zip(highs).map(|(low, high)| u64::try_from(high - low).unwrap_or(0)).sum()
}

fn raw<'a>(partition: Partition, record: &Fetched<'a>) -> Raw<'a> {
    Raw {
        position: Position { partition, offset: Offset(record.offset()) },
        timestamp: record.timestamp(),
        key: record.key(),
        value: record.value(),
        retries: 0,
        producer: None,
    }
}
