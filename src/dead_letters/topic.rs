//! Dead letters in a topic: pages from the newest letter back.

use std::ops::Range;
use std::time::{Duration, Instant};

use headwater_dataflows::Partition;

use super::{Filter, LettersError};
use crate::source::kafka::dead_letters::{DeadLetter, header};
use crate::source::kafka::topic_ranges::TopicRanges;

/// The maximum number of letters that are read for a page, and the maximum time. A page with fewer letters than asked
/// for has a cursor.
const SCAN_LETTERS: usize = 50_000;
const SCAN_TIME: Duration = Duration::from_secs(10);
/// The maximum size of the values of a page, in bytes.
pub const PAGE_BYTES: usize = 8 << 20;
/// The numbers of offsets that are read at once, of a partition.
const FIRST_STEP: i64 = 16;
const LARGEST_STEP: i64 = 1024;
/// The size of values above which fewer offsets are read at once, in bytes.
const STEP_BYTES: usize = 1 << 20;
/// The maximum difference of the clocks that write letters.
const CLOCKS_MS: i64 = 60_000;

/// Letters from the newest back, and where the next page continues.
#[derive(Debug, Default)]
pub struct RawPage {
    pub letters: Vec<DeadLetter>,
    pub cursor: Option<String>,
    pub of_other_pipelines: u64,
}

/// Returns true if a letter is not known to belong to another pipeline.
pub fn is_of_pipeline(letter: &DeadLetter, pipeline: &str) -> bool {
    letter.header(header::PIPELINE).is_none_or(|name| name == pipeline)
}

/// The unread part of a partition.
struct Part {
    partition: Partition,
    low: i64,
    /// The end of the offsets that are not read.
    next: i64,
    step: i64,
    /// The letters that are read and not given, in the order of offsets. Those that are not chosen have no value.
    read: Vec<(DeadLetter, bool)>,
}

impl Part {
    /// Returns the end of the offsets whose letters are not given.
    fn end(&self) -> i64 {
        self.read.last().map_or(self.next, |(letter, _)| letter.position.offset.0 + 1)
    }

    /// Returns what orders the letters of all partitions.
    fn newest(&self) -> Option<(i64, Partition)> {
        self.read.last().map(|(letter, _)| (letter.timestamp, self.partition))
    }

    /// Adapts the number of offsets to the size of values.
    fn adapt(&mut self) {
        let bytes: usize =
            self.read.iter().map(|(letter, _)| letter.value.as_ref().map_or(0, Vec::len)).sum();
        self.step =
            if bytes > STEP_BYTES { (self.step / 2).max(1) } else { (self.step * 2).min(LARGEST_STEP) };
    }
}

/// Reads a page of the letters that a filter chooses.
///
/// # Errors
/// If the cursor is invalid, or the topic cannot be read.
pub fn page(
    topic: &TopicRanges,
    pipeline: &str,
    filter: &Filter,
    cursor: Option<&str>,
    limit: usize,
) -> Result<RawPage, LettersError> {
    let mut parts = parts(topic, filter, cursor)?;
    let deadline = Instant::now() + SCAN_TIME;
    let (mut page, mut bytes, mut scanned) = (RawPage::default(), 0, 0);
    loop {
        let complete = refill(topic, &mut parts, deadline, &|letter| {
            is_of_pipeline(letter, pipeline) && filter.matches(letter)
        })?;
        if !complete && scanned == 0 {
            return Err(LettersError::TimedOut(SCAN_TIME));
        }
        let newest =
            (0..parts.len()).filter(|&at| parts[at].newest().is_some()).max_by_key(|&at| parts[at].newest());
        let Some(newest) = newest.filter(|_| complete) else { break };
        let (letter, chosen) = parts[newest].read.pop().expect("it has a newest letter");
        scanned += 1;
        if chosen {
            bytes += letter.value.as_ref().map_or(0, Vec::len);
            page.letters.push(letter);
        } else if !is_of_pipeline(&letter, pipeline) {
            page.of_other_pipelines += 1;
        }
        if page.letters.len() >= limit || bytes > PAGE_BYTES || scanned >= SCAN_LETTERS {
            break;
        }
    }
    if parts.iter().any(|part| part.end() > part.low) {
        let ends = parts.iter().map(|part| format!("{}:{}", part.partition.0, part.end()));
        page.cursor = Some(ends.collect::<Vec<_>>().join(","));
    }
    Ok(page)
}

/// Returns the parts of a topic before a cursor that may have letters in the filter's time.
fn parts(topic: &TopicRanges, filter: &Filter, cursor: Option<&str>) -> Result<Vec<Part>, LettersError> {
    let ends = cursor.map(parse_cursor).transpose()?;
    let at = |time: Option<i64>, by| time.map(|time| topic.offsets_at(time.saturating_add(by))).transpose();
    let (first, end) = (at(filter.from_ms, -CLOCKS_MS)?, at(filter.to_ms, CLOCKS_MS)?);
    let part = |(partition, Range { start, end: high }): (Partition, Range<i64>)| {
        let index = partition.0 as usize;
        let of =
            |offsets: &Option<Vec<i64>>| offsets.as_ref().and_then(|offsets| offsets.get(index).copied());
        // A partition that the cursor does not name was added after it.
        let before = match &ends {
            Some(ends) => ends.iter().find(|(of, _)| *of == partition.0).map_or(start, |(_, end)| *end),
            None => high,
        };
        let low = of(&first).unwrap_or(start).max(start);
        let next = of(&end).unwrap_or(high).min(before).min(high).max(low);
        Part { partition, low, next, step: FIRST_STEP, read: Vec::new() }
    };
    Ok(topic.bounds().map(part).collect())
}

fn parse_cursor(cursor: &str) -> Result<Vec<(u32, i64)>, LettersError> {
    let part = |part: &str| {
        let (partition, end) = part.split_once(':')?;
        Some((partition.parse().ok()?, end.parse().ok()?))
    };
    let parts: Option<Vec<_>> = cursor.split(',').map(part).collect();
    parts.ok_or_else(|| LettersError::Cursor(cursor.to_owned()))
}

/// Reads until every partition has letters or is read to its beginning. Returns false if the deadline came first.
fn refill(
    topic: &TopicRanges,
    parts: &mut [Part],
    deadline: Instant,
    is_chosen: &dyn Fn(&DeadLetter) -> bool,
) -> Result<bool, LettersError> {
    loop {
        let is_empty = |part: &Part| part.read.is_empty() && part.next > part.low;
        let range = |part: &Part| (part.partition, (part.next - part.step).max(part.low)..part.next);
        let ranges: Vec<_> = parts.iter().filter(|part| is_empty(part)).map(range).collect();
        if ranges.is_empty() {
            return Ok(true);
        }
        let mut read: Vec<Vec<(DeadLetter, bool)>> = parts.iter().map(|_| Vec::new()).collect();
        let complete = topic.read_letters(&ranges, deadline, &mut |mut letter| {
            let chosen = is_chosen(&letter);
            if !chosen {
                (letter.key, letter.value) = (None, None);
            }
            read[letter.position.partition.0 as usize].push((letter, chosen));
        })?;
        if !complete {
            return Ok(false);
        }
        for (partition, range) in ranges {
            let at = partition.0 as usize;
            parts[at].next = range.start;
            parts[at].read = std::mem::take(&mut read[at]);
            parts[at].adapt();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_an_end_for_each_partition() {
        assert_eq!(parse_cursor("0:12,1:7").expect("valid"), [(0, 12), (1, 7)]);
        for wrong in ["", "0", "0:x", "0:1,", "a:1"] {
            assert!(matches!(parse_cursor(wrong), Err(LettersError::Cursor(_))), "{wrong}");
        }
    }

    #[test]
    fn fewer_large_letters_are_read_at_once() {
        let letter = |bytes| (super::super::letter::tests::letter(&vec![b'x'; bytes]), true);
        let mut part =
            Part { partition: Partition(0), low: 0, next: 99, step: 16, read: vec![letter(2 << 20)] };
        part.adapt();
        assert_eq!(part.step, 8);
        part.read = vec![letter(10)];
        (0..20).for_each(|_| part.adapt());
        assert_eq!(part.step, LARGEST_STEP);
        assert_eq!(part.end(), 8, "after the letter at 7");
        part.read.clear();
        assert_eq!(part.end(), 99);
    }
}
