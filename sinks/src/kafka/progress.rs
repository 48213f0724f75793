//! Records of the progress topic: the progress of writers, and sentinels. A sentinel marks the position up to which a
//! reader must read.
//!
//! ```text
//!   offset ──▶  P(g4,w0)  P(g4,w1)  S(g5,id-0)  S(g5,id-1)
//!                                                   └── reading stops here, not before
//! ```
//!
//! Reading to the end of the partition is not enough. For `read_committed`, the end is the last stable offset: the
//! first offset of the oldest open transaction of any producer. There may be committed progress after it. A sentinel
//! that this process committed comes after everything that was committed before.

use headwater_dataflows::Epoch;

use crate::{Generation, LedgerId, Progress, Shards};

/// The version of the encoding of keys and values.
const VERSION: u8 = 1;
const PROGRESS: u8 = 1;
const SENTINEL: u8 = 2;

/// One record of the progress topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The sink that the record belongs to; the sinks of a pipeline share the topic.
    pub sink: String,
    /// The index of the process that wrote it.
    pub process: u32,
    pub ledger_id: LedgerId,
    pub generation: Generation,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Progress {
        shards: Shards,
        through: Epoch,
    },
    /// The first record that each new producer commits.
    Sentinel {
        /// A random number, constant for the lifetime of a process. It distinguishes processes that use copies of one
        /// ledger.
        nonce: u64,
        /// The number of this producer in its process, counted from 0.
        incarnation: u64,
        /// Its transactional id.
        id: String,
    },
}

impl Record {
    /// Returns the key for compaction: one per sink, generation and writer for progress, and one per sentinel.
    pub fn key(&self) -> Vec<u8> {
        let mut key = vec![VERSION];
        let (kind, tail) = match &self.body {
            Body::Progress { .. } => ("progress", String::new()),
            Body::Sentinel { nonce, incarnation, .. } => ("sentinel", format!("/{nonce:016x}/{incarnation}")),
        };
        let Record { sink, generation, process, .. } = self;
        key.extend_from_slice(format!("{sink}/{kind}/{generation}/{process}{tail}").as_bytes());
        key
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.push(match self.body {
            Body::Progress { .. } => PROGRESS,
            Body::Sentinel { .. } => SENTINEL,
        });
        put_text(&mut out, &self.sink);
        put_text(&mut out, &self.ledger_id.0);
        out.extend_from_slice(&self.generation.0.to_le_bytes());
        out.extend_from_slice(&self.process.to_le_bytes());
        match &self.body {
            Body::Progress { shards, through } => {
                out.extend_from_slice(&shards.0.to_le_bytes());
                out.extend_from_slice(&through.0.to_le_bytes());
            }
            Body::Sentinel { nonce, incarnation, id } => {
                out.extend_from_slice(&nonce.to_le_bytes());
                out.extend_from_slice(&incarnation.to_le_bytes());
                put_text(&mut out, id);
            }
        }
        out
    }

    /// Decodes the output of [`encode`](Record::encode). The error is the reason why `bytes` are not a record.
    pub fn decode(bytes: &[u8]) -> Result<Record, String> {
        let mut rest = bytes;
        match byte(&mut rest) {
            Some(VERSION) => {}
            Some(other) => return Err(format!("unknown version {other}")),
            None => return Err("it is empty".to_owned()),
        }
        let record =
            fields(&mut rest).ok_or("it is truncated, its text is not UTF-8, or its kind is unknown")?;
        if rest.is_empty() { Ok(record) } else { Err(format!("{} extra bytes at the end", rest.len())) }
    }

    /// Returns the progress of a progress record; `None` for a sentinel.
    pub fn progress(&self) -> Option<Progress> {
        let Body::Progress { shards, through } = self.body else { return None };
        Some(Progress { ledger_id: self.ledger_id.clone(), generation: self.generation, shards, through })
    }
}

fn fields(rest: &mut &[u8]) -> Option<Record> {
    let kind = byte(rest)?;
    let sink = text(rest)?;
    let ledger_id = LedgerId(text(rest)?);
    let generation = Generation(u64::from_le_bytes(array(rest)?));
    let process = u32::from_le_bytes(array(rest)?);
    let body = match kind {
        PROGRESS => Body::Progress {
            shards: Shards(u64::from_le_bytes(array(rest)?)),
            through: Epoch(u64::from_le_bytes(array(rest)?)),
        },
        SENTINEL => Body::Sentinel {
            nonce: u64::from_le_bytes(array(rest)?),
            incarnation: u64::from_le_bytes(array(rest)?),
            id: text(rest)?,
        },
        _ => return None,
    };
    Some(Record { sink, process, ledger_id, generation, body })
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let len =
        u16::try_from(text.len()).expect("the lengths of names and ids are checked when the sink opens");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    array::<1>(rest).map(|[byte]| byte)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn text(rest: &mut &[u8]) -> Option<String> {
    let len = usize::from(u16::from_le_bytes(array(rest)?));
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    String::from_utf8(head.to_vec()).ok()
}

/// Returns the newest progress of each writer of each generation, without progress that later generations have reached
/// or passed on all of its shards.
pub(super) fn newest(records: &[Record]) -> Vec<Progress> {
    let mut newest: Vec<(u32, Progress)> = Vec::new();
    for record in records {
        let Some(progress) = record.progress() else { continue };
        let is_same_writer = |(process, other): &&mut (u32, Progress)| {
            (*process, other.generation) == (record.process, progress.generation)
        };
        match newest.iter_mut().find(is_same_writer) {
            Some((_, slot)) => *slot = progress,
            None => newest.push((record.process, progress)),
        }
    }
    newest.sort_by_key(|(process, progress)| (progress.generation, *process));
    let is_superseded = |progress: &Progress| {
        let later = newest
            .iter()
            .filter(|(_, other)| other.generation > progress.generation && other.through >= progress.through);
        progress.shards.0 & !later.fold(0, |covered, (_, other)| covered | other.shards.0) == 0
    };
    newest.iter().map(|(_, progress)| progress).filter(|progress| !is_superseded(progress)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn progress(process: u32, generation: u64, shards: u64, through: u64) -> Record {
        Record {
            sink: "alerts".to_owned(),
            process,
            ledger_id: LedgerId("00112233445566778899aabbccddeeff".to_owned()),
            generation: Generation(generation),
            body: Body::Progress { shards: Shards(shards), through: Epoch(through) },
        }
    }

    fn sentinel() -> Record {
        let body = Body::Sentinel { nonce: 7, incarnation: 1, id: "fraud-alerts-0-1".to_owned() };
        Record { body, ..progress(0, 5, 0, 0) }
    }

    #[test]
    fn records_of_version_1_stay_readable() {
        let bytes = b"\x01\x01\x06\x00alerts\x20\x0000112233445566778899aabbccddeeff\
            \x05\0\0\0\0\0\0\0\x02\0\0\0\xff\0\0\0\0\0\0\0\x2a\0\0\0\0\0\0\0";
        assert_eq!(Record::decode(bytes), Ok(progress(2, 5, 0xff, 42)));
        assert_eq!(progress(2, 5, 0xff, 42).encode(), bytes);
        assert_eq!(progress(2, 5, 0xff, 42).key(), b"\x01alerts/progress/5/2");
        let bytes = b"\x01\x02\x06\x00alerts\x20\x0000112233445566778899aabbccddeeff\
            \x05\0\0\0\0\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x10\0fraud-alerts-0-1";
        assert_eq!(Record::decode(bytes), Ok(sentinel()));
        assert_eq!(sentinel().encode(), bytes);
        assert_eq!(sentinel().key(), b"\x01alerts/sentinel/5/0/0000000000000007/1");
    }

    #[test]
    fn truncated_and_extended_records_are_refused() {
        for record in [progress(2, 5, 0xff, 42), sentinel()] {
            let bytes = record.encode();
            for end in 0..bytes.len() {
                assert!(Record::decode(&bytes[..end]).is_err(), "truncated at {end}");
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert!(Record::decode(&longer).is_err());
        }
    }

    #[test]
    fn older_generations_count_until_all_their_shards_are_passed() {
        let log = [
            progress(0, 1, 0b0011, 10),
            progress(1, 1, 0b1100, 9),
            progress(0, 1, 0b0011, 12),
            progress(0, 2, 0b0111, 12),
        ];
        let found: Vec<_> = newest(&log).iter().map(|p| (p.generation.0, p.shards.0, p.through.0)).collect();
        assert_eq!(found, [(1, 0b1100, 9), (2, 0b0111, 12)]);
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(&bytes);
            let mut versioned = vec![VERSION, PROGRESS];
            versioned.extend(bytes);
            let _ = Record::decode(&versioned);
        }
    }
}
