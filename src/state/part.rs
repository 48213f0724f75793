//! The byte format of a part of a checkpoint, version 1: the records of one shard, by operator and key.
//!
//! A part consists of the version, followed by bincode with variable-length integers: the operators in order, each
//! with its name and its records in the order of their keys. A record is a key and, unless it is removed, a value.

use std::collections::BTreeMap;
use std::sync::Arc;

use bincode::Options;
use headwater_dataflows::{Record, ShardId};
use thiserror::Error;

/// The version that this program writes.
const VERSION: u8 = 1;

/// The reason why bytes cannot be decoded as a part.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes were written by an unknown version.
    #[error("its format has version {0}, and this program supports version {VERSION}")]
    Version(u8),
    /// The bytes are too short or too long, or contain an invalid value.
    #[error("it is malformed: {0}")]
    Undecodable(String),
}

/// A key and its state; None if the state is removed.
type Change<'a> = (&'a [u8], Option<&'a [u8]>);

/// The latest records of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content<'a>(BTreeMap<&'a str, Vec<Change<'a>>>);

impl<'a> Content<'a> {
    /// Collects the records of one shard. The last record of each operator and key counts.
    pub fn of(records: &'a [Record]) -> Content<'a> {
        let mut content = Content::default();
        for record in records {
            let changes = content.0.entry(&*record.operator).or_default();
            changes.push((&record.key, record.value.as_deref()));
        }
        content.0.values_mut().for_each(latest);
        content
    }

    /// Decodes the output of [`encode`](Content::encode).
    ///
    /// # Errors
    /// If the bytes are anything else.
    pub fn decode(bytes: &'a [u8]) -> Result<Content<'a>, Malformed> {
        let undecodable = |reason: String| Malformed::Undecodable(reason);
        match bytes.split_first() {
            Some((&VERSION, rest)) => bincode::options()
                .deserialize(rest)
                .map(Content)
                .map_err(|error| undecodable(error.to_string())),
            Some((&version, _)) => Err(Malformed::Version(version)),
            None => Err(undecodable("it is empty".to_owned())),
        }
    }

    /// Encodes the version and the records.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bincode::options().serialize_into(&mut bytes, &self.0).expect("bytes can be written to memory");
        bytes
    }

    /// Applies later changes: they replace earlier changes of the same keys.
    pub fn over(&mut self, later: Content<'a>) {
        for (operator, mut changes) in later.0 {
            let before = self.0.entry(operator).or_default();
            before.append(&mut changes);
            latest(before);
        }
    }

    /// Drops removed records. This is correct only if there are no earlier parts in which those keys still have a
    /// value.
    pub fn settle(&mut self) {
        self.0.values_mut().for_each(|changes| changes.retain(|(_, value)| value.is_some()));
        self.0.retain(|_, changes| !changes.is_empty());
    }

    /// Returns the records, owned.
    pub fn records(&self, shard: ShardId) -> impl Iterator<Item = Record> {
        self.0.iter().flat_map(move |(operator, changes)| {
            let operator: Arc<str> = Arc::from(*operator);
            changes.iter().map(move |(key, value)| Record {
                operator: Arc::clone(&operator),
                shard,
                key: key.to_vec(),
                value: value.map(<[u8]>::to_vec),
            })
        })
    }
}

/// Sorts changes by key, and retains only the last change of each key.
fn latest(changes: &mut Vec<Change<'_>>) {
    changes.sort_by_key(|(key, _)| *key);
    changes.dedup_by(|later, earlier| {
        let same = later.0 == earlier.0;
        if same {
            *earlier = *later;
        }
        same
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(operator: &str, key: &[u8], value: Option<&[u8]>) -> Record {
        Record {
            operator: operator.into(),
            shard: ShardId(3),
            key: key.to_vec(),
            value: value.map(<[u8]>::to_vec),
        }
    }

    #[test]
    fn the_format_is_unchanged() {
        let records = [record("b", b"k", Some(b"v")), record("a", b"", None)];
        let bytes = Content::of(&records).encode();
        assert_eq!(bytes, b"\x01\x02\x01a\x01\x00\x00\x01b\x01\x01k\x01\x01v");
        assert_eq!(Content::decode(&bytes), Ok(Content::of(&records)));
        assert_eq!(Content::decode(b"\x02"), Err(Malformed::Version(2)));
    }

    #[test]
    fn later_changes_win_and_settle_drops_removed_keys() {
        let base = [record("a", b"1", Some(b"x")), record("a", b"2", Some(b"x"))];
        let delta = [record("a", b"2", Some(b"y")), record("a", b"1", None), record("a", b"2", Some(b"z"))];
        let mut content = Content::of(&base);
        content.over(Content::of(&delta));
        let all = [record("a", b"1", None), record("a", b"2", Some(b"z"))];
        assert_eq!(content.records(ShardId(3)).collect::<Vec<_>>(), all);
        content.settle();
        assert_eq!(content.records(ShardId(3)).collect::<Vec<_>>(), all[1..]);
    }

    fn changes() -> impl Strategy<Value = Vec<Record>> {
        let change = (0..3u8, 0..6u8, proptest::option::of(any::<u8>()));
        proptest::collection::vec(change, 0..20).prop_map(|changes| {
            changes
                .into_iter()
                .map(|(operator, key, value)| {
                    record(&operator.to_string(), &[key], value.map(|value| [value]).as_ref().map(|v| &v[..]))
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn merged_parts_equal_all_changes_in_order(
            parts in proptest::collection::vec(changes(), 1..6)
        ) {
            let encoded: Vec<_> = parts.iter().map(|records| Content::of(records).encode()).collect();
            let mut merged = Content::default();
            for bytes in &encoded {
                merged.over(Content::decode(bytes).expect("it was just written"));
            }
            merged.settle();
            let mut model = BTreeMap::new();
            for record in parts.into_iter().flatten() {
                model.insert((record.operator.clone(), record.key.clone()), record);
            }
            let expected: Vec<_> = model.into_values().filter(|record| record.value.is_some()).collect();
            prop_assert_eq!(merged.records(ShardId(3)).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn invalid_bytes_are_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(content) = Content::decode(&bytes) {
                prop_assert!(content.encode().len() <= bytes.len());
            }
        }
    }
}
