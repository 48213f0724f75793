//! The byte format of rounds of bindings and of start offsets, and the number encoding that all ledger formats share.
//!
//! A round consists of the version, the number of epochs, and for each epoch: the epoch, its wall time, flags, and its
//! bindings by partition. Version 2 adds pushing times and candidates to bindings; epochs of version 1 are replayed by the
//! rules of version 1. Version 3 adds changes of rules and lists, after the bindings of an epoch with that flag. Numbers are LEB128 varints, signed numbers are zigzag-encoded;
//! epochs and wall times are differences to the previous epoch.

use headwater_dataflows::{Epoch, EventTime, Offset, Partition};
use thiserror::Error;

use crate::coordination::ingest::TimeRules;
use crate::coordination::{Binding, Change, EpochRecord, ListVersion, StoredPasts};

/// The version of rounds and manifests that this program writes.
pub(super) const VERSION: u8 = 3;
/// The first version, which this program still reads.
const FIRST_VERSION: u8 = 1;
/// The first version with changes of rules and lists.
pub(super) const CHANGES_VERSION: u8 = 3;
/// The version of start offsets.
const STARTS_VERSION: u8 = 1;

/// Flags of a change.
const RULES: u8 = 1;
const PASTS: u8 = 2;

const CLOSES: u8 = 1;
const CHANGES: u8 = 2;

const TIMESTAMP: u64 = 1;
const MAX_EVENT_TIME: u64 = 2;
const IDLE: u64 = 4;
const PUSHING_TIME: u64 = 8;
const CANDIDATE: u64 = 16;

/// The reason why bytes cannot be decoded.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Damaged {
    /// The bytes were written by an unknown version.
    #[error("its format has version {0}, and this program supports versions up to {VERSION}")]
    Version(u8),
    /// The bytes are too short or too long, or contain an invalid value.
    #[error("it is malformed at byte {0}")]
    Malformed(usize),
    /// The bytes are not the bytes that were written.
    #[error("its checksum does not match")]
    WrongChecksum,
}

/// Encodes a round.
pub fn encode(epochs: &[EpochRecord]) -> Vec<u8> {
    let mut out = vec![VERSION];
    unsigned(&mut out, epochs.len() as u64);
    let (mut epoch, mut wall_ms) = (0, 0);
    for record in epochs {
        unsigned(&mut out, record.epoch.0.wrapping_sub(epoch));
        signed(&mut out, record.wall_ms.wrapping_sub(wall_ms));
        (epoch, wall_ms) = (record.epoch.0, record.wall_ms);
        let has_change = !record.change.is_empty();
        out.push(if record.closes { CLOSES } else { 0 } | if has_change { CHANGES } else { 0 });
        unsigned(&mut out, record.bindings.len() as u64);
        for binding in &record.bindings {
            unsigned(&mut out, u64::from(binding.partition.0));
            signed(&mut out, binding.end.0);
            let mut flags = 0;
            flags |= if binding.timestamp.is_some() { TIMESTAMP } else { 0 };
            flags |= if binding.max_event_time.is_some() { MAX_EVENT_TIME } else { 0 };
            flags |= if binding.idle { IDLE } else { 0 };
            flags |= if binding.pushing_time.is_some() { PUSHING_TIME } else { 0 };
            flags |= if binding.candidate.is_some() { CANDIDATE } else { 0 };
            unsigned(&mut out, flags);
            if let Some(timestamp) = binding.timestamp {
                signed(&mut out, timestamp);
            }
            for time in [binding.max_event_time, binding.pushing_time, binding.candidate] {
                time.into_iter().for_each(|time| signed(&mut out, time.0));
            }
        }
        if has_change {
            encode_change(&mut out, &record.change);
        }
    }
    out
}

/// Encodes a change: flags, the rules as text, the pasts of rules, and the lists.
pub(super) fn encode_change(out: &mut Vec<u8>, change: &Change) {
    let flag = |flag, is_set| if is_set { flag } else { 0 };
    out.push(flag(RULES, change.rules.is_some()) | flag(PASTS, change.pasts.is_some()));
    change.rules.iter().for_each(|rules| text(out, rules));
    if let Some(StoredPasts { hash, bytes }) = &change.pasts {
        out.extend_from_slice(hash);
        unsigned(out, *bytes);
    }
    unsigned(out, change.lists.len() as u64);
    for ListVersion { name, hash, bytes } in &change.lists {
        text(out, name);
        out.extend_from_slice(hash);
        unsigned(out, *bytes);
    }
}

pub(super) fn decode_change(reader: &mut Reader<'_>) -> Result<Change, Damaged> {
    let flags = reader.byte()?;
    if flags & !(RULES | PASTS) != 0 {
        return Err(reader.malformed());
    }
    let rules = (flags & RULES != 0).then(|| reader.text().map(str::to_owned)).transpose()?;
    let pasts = (flags & PASTS != 0).then(|| {
        let hash = *reader.chunk::<32>()?;
        Ok(StoredPasts { hash, bytes: reader.unsigned()? })
    });
    let pasts = pasts.transpose()?;
    let lists = (0..reader.unsigned()?).map(|_| {
        let name = reader.text()?.to_owned();
        let hash = *reader.chunk::<32>()?;
        Ok(ListVersion { name, hash, bytes: reader.unsigned()? })
    });
    Ok(Change { rules, lists: lists.collect::<Result<_, _>>()?, pasts })
}

/// Decodes a round.
///
/// # Errors
/// If the bytes are not a round of a known version.
pub fn decode(bytes: &[u8]) -> Result<Vec<EpochRecord>, Damaged> {
    let mut reader = Reader::new(bytes)?;
    let rules = if reader.version == FIRST_VERSION { TimeRules::EventTime } else { TimeRules::EarliestClock };
    let count = reader.unsigned()?;
    let mut epochs = Vec::new();
    let (mut epoch, mut wall_ms) = (0u64, 0i64);
    for _ in 0..count {
        epoch = epoch.wrapping_add(reader.unsigned()?);
        wall_ms = wall_ms.wrapping_add(reader.signed()?);
        let flags = reader.byte()?;
        let known = if reader.version < CHANGES_VERSION { CLOSES } else { CLOSES | CHANGES };
        if flags & !known != 0 {
            return Err(reader.malformed());
        }
        let closes = flags & CLOSES != 0;
        let mut bindings = Vec::new();
        for _ in 0..reader.unsigned()? {
            bindings.push(decode_binding(&mut reader)?);
        }
        let change = if flags & CHANGES != 0 { decode_change(&mut reader)? } else { Change::default() };
        if epochs.last().is_some_and(|last: &EpochRecord| last.epoch.0 >= epoch) {
            return Err(reader.malformed());
        }
        epochs.push(EpochRecord { epoch: Epoch(epoch), wall_ms, bindings, closes, rules, change });
    }
    reader.end()?;
    Ok(epochs)
}

fn decode_binding(reader: &mut Reader<'_>) -> Result<Binding, Damaged> {
    let partition = u32::try_from(reader.unsigned()?).map_err(|_| reader.malformed())?;
    let end = Offset(reader.signed()?);
    let flags = reader.unsigned()?;
    let known = TIMESTAMP | MAX_EVENT_TIME | IDLE;
    let known = if reader.version == FIRST_VERSION { known } else { known | PUSHING_TIME | CANDIDATE };
    if flags & !known != 0 {
        return Err(reader.malformed());
    }
    let mut optional = |flag: u64| (flags & flag != 0).then(|| reader.signed()).transpose();
    let timestamp = optional(TIMESTAMP)?;
    let max_event_time = optional(MAX_EVENT_TIME)?.map(EventTime);
    let pushing_time = optional(PUSHING_TIME)?.map(EventTime);
    let candidate = optional(CANDIDATE)?.map(EventTime);
    Ok(Binding {
        partition: Partition(partition),
        end,
        timestamp,
        max_event_time,
        // In version 1, the event time pushed the watermark.
        pushing_time: if reader.version == FIRST_VERSION { max_event_time } else { pushing_time },
        candidate,
        idle: flags & IDLE != 0,
    })
}

/// Encodes start offsets by partition.
pub fn encode_starts(starts: &[Offset]) -> Vec<u8> {
    let mut out = vec![STARTS_VERSION];
    unsigned(&mut out, starts.len() as u64);
    starts.iter().for_each(|start| signed(&mut out, start.0));
    out
}

/// Decodes start offsets.
///
/// # Errors
/// If the bytes are not start offsets of this version.
pub fn decode_starts(bytes: &[u8]) -> Result<Vec<Offset>, Damaged> {
    let mut reader = Reader::new(bytes)?;
    let count = reader.unsigned()?;
    let starts = (0..count).map(|_| reader.signed().map(Offset)).collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(starts)
}

pub(super) fn unsigned(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends text after its length.
pub(super) fn text(out: &mut Vec<u8>, text: &str) {
    unsigned(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn signed(out: &mut Vec<u8>, value: i64) {
    unsigned(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// A cursor over encoded bytes.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The version in the first byte.
    pub(super) version: u8,
}

impl<'a> Reader<'a> {
    /// Reads the version and returns a reader of the bytes after it.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Damaged> {
        match bytes.first() {
            Some(&version @ FIRST_VERSION..=VERSION) => Ok(Reader { bytes, at: 1, version }),
            Some(&other) => Err(Damaged::Version(other)),
            None => Err(Damaged::Malformed(0)),
        }
    }

    pub(super) fn malformed(&self) -> Damaged {
        Damaged::Malformed(self.at)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Damaged> {
        let byte = *self.bytes.get(self.at).ok_or(Damaged::Malformed(self.at))?;
        self.at += 1;
        Ok(byte)
    }

    pub(super) fn unsigned(&mut self) -> Result<u64, Damaged> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                return Err(self.malformed());
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed())
    }

    pub(super) fn signed(&mut self) -> Result<i64, Damaged> {
        let value = self.unsigned()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    pub(super) fn chunk<const N: usize>(&mut self) -> Result<&'a [u8; N], Damaged> {
        let (chunk, _) = self.bytes[self.at..].split_first_chunk::<N>().ok_or(self.malformed())?;
        self.at += N;
        Ok(chunk)
    }

    /// Reads text that is preceded by its length.
    pub(super) fn text(&mut self) -> Result<&'a str, Damaged> {
        let length = usize::try_from(self.unsigned()?).map_err(|_| self.malformed())?;
        let bytes = self.bytes[self.at..].get(..length).ok_or(self.malformed())?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.malformed())?;
        self.at += length;
        Ok(text)
    }

    pub(super) fn end(&self) -> Result<(), Damaged> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.malformed()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(epoch: u64, bindings: Vec<Binding>) -> EpochRecord {
        let rules = TimeRules::EarliestClock;
        let change = Change::default();
        EpochRecord {
            epoch: Epoch(epoch),
            wall_ms: 1_760_000_000_000,
            bindings,
            closes: false,
            rules,
            change,
        }
    }

    fn list(name: &str) -> ListVersion {
        ListVersion { name: name.to_owned(), hash: [0xab; 32], bytes: 200 }
    }

    /// The encoding of each version, which must never change.
    #[test]
    fn golden_bytes() {
        let first = Binding {
            partition: Partition(5),
            end: Offset(300),
            timestamp: Some(-1),
            max_event_time: Some(EventTime(64)),
            pushing_time: Some(EventTime(64)),
            candidate: None,
            idle: true,
        };
        let bytes = [1, 1, 7, 128, 128, 230, 130, 185, 102, 0, 1, 5, 216, 4, 7, 1, 128, 1];
        let replayed = EpochRecord { rules: TimeRules::EventTime, ..record(7, vec![first]) };
        assert_eq!(decode(&bytes), Ok(vec![replayed]));

        let second = Binding { pushing_time: Some(EventTime(3)), candidate: Some(EventTime(-1)), ..first };
        let bytes = [2, 1, 7, 128, 128, 230, 130, 185, 102, 0, 1, 5, 216, 4, 31, 1, 128, 1, 6, 1];
        let record = record(7, vec![second]);
        assert_eq!(decode(&bytes), Ok(vec![record.clone()]));

        let change = Change { rules: Some("ab".into()), lists: vec![list("c")], pasts: None };
        let record = EpochRecord { change, ..record };
        let bytes = [
            &[3, 1, 7, 128, 128, 230, 130, 185, 102, 2, 1, 5, 216, 4, 31, 1, 128, 1, 6, 1][..],
            &[1, 2, b'a', b'b', 1, 1, b'c'],
            &[0xab; 32],
            &[200, 1],
        ]
        .concat();
        assert_eq!(encode(std::slice::from_ref(&record)), bytes);
        assert_eq!(decode(&bytes), Ok(vec![record]));
        assert_eq!(encode_starts(&[Offset(0), Offset(64)]), [1, 2, 0, 128, 1]);
        assert_eq!(decode_starts(&[1, 2, 0, 128, 1]), Ok(vec![Offset(0), Offset(64)]));
    }

    #[test]
    fn unknown_versions_and_repeated_epochs_are_rejected() {
        assert_eq!(decode(&[4, 0]), Err(Damaged::Version(4)));
        assert_eq!(decode(&[]), Err(Damaged::Malformed(0)));
        let twice = [record(7, vec![]), record(7, vec![])];
        assert!(matches!(decode(&encode(&twice)), Err(Damaged::Malformed(_))));
    }

    fn changes() -> impl Strategy<Value = Change> {
        (any::<Option<String>>(), 0usize..3, any::<Option<u64>>()).prop_map(|(rules, lists, pasts)| Change {
            rules,
            lists: vec![list("x"); lists],
            pasts: pasts.map(|bytes| StoredPasts { hash: [7; 32], bytes }),
        })
    }

    fn bindings() -> impl Strategy<Value = Vec<Binding>> {
        let times = any::<[Option<i64>; 4]>();
        let binding = (any::<u32>(), any::<i64>(), times, any::<bool>());
        let binding =
            binding.prop_map(|(partition, end, [timestamp, time, pushing, candidate], idle)| Binding {
                partition: Partition(partition),
                end: Offset(end),
                timestamp,
                max_event_time: time.map(EventTime),
                pushing_time: pushing.map(EventTime),
                candidate: candidate.map(EventTime),
                idle,
            });
        prop::collection::vec(binding, 0..4)
    }

    proptest! {
        #[test]
        fn rounds_round_trip(
            rounds in prop::collection::vec(
                (1u64..1 << 40, any::<i64>(), bindings(), any::<bool>(), changes()), 0..5
            )
        ) {
            let mut last = 0;
            let epochs: Vec<_> = rounds
                .into_iter()
                .map(|(step, wall_ms, bindings, closes, change)| {
                    last += step;
                    EpochRecord { closes, wall_ms, change, ..record(last, bindings) }
                })
                .collect();
            let bytes = encode(&epochs);
            prop_assert_eq!(decode(&bytes), Ok(epochs));
            for end in 0..bytes.len() {
                prop_assert!(decode(&bytes[..end]).is_err(), "cut at {}", end);
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_rejected(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = (decode(&bytes), decode_starts(&bytes));
        }
    }
}
