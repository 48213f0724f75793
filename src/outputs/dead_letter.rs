//! Dead letters: rejected records, with the reason.

use headwater_dataflows::{Epoch, Event as _, Position, Refusal, ShardId};
use headwater_sinks::{Cell, Changes, Header};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Envelope, Output, OutputMapping, Status};
use crate::decode::{Reason, Rejection};
use crate::event::Event;
use crate::source::Raw;
use crate::source::kafka::dead_letters::{connect, header};

/// A rejected record with its original bytes, and the rejection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The record's position in the source.
    pub position: Position,
    /// The record timestamp, in milliseconds since 1970.
    pub timestamp: i64,
    /// The record's key, as bytes.
    pub key: Option<Box<[u8]>>,
    /// The record's value, as bytes.
    pub value: Option<Box<[u8]>>,
    /// The number of times that the record was retried from the dead letters.
    pub retries: u32,
    /// The reason and message of the rejection.
    pub rejection: Rejection,
    /// The producer of the record, if a header names it and the record was rejected before it was an event.
    pub producer: Option<Box<str>>,
    /// The shard of the event's key if the record was decoded; else that of the partition.
    shard: ShardId,
}

impl DeadLetter {
    /// Creates the dead letter of a record that was rejected when it was read or decoded.
    pub fn rejected(raw: Raw<'_>, rejection: Rejection) -> DeadLetter {
        DeadLetter {
            position: raw.position,
            timestamp: raw.timestamp,
            key: raw.key.map(Box::from),
            value: raw.value.map(Box::from),
            retries: raw.retries,
            rejection,
            producer: raw.producer.and_then(producer_name),
            shard: ShardId::of_partition(raw.position.partition),
        }
    }

    /// Creates the dead letter of a decoded event that was late or a duplicate.
    pub fn refused(event: &Event, refusal: Refusal) -> DeadLetter {
        let rejection = match refusal {
            Refusal::Late => Rejection::late(event.event_time()),
            Refusal::Duplicate => Rejection::duplicate(event.id()),
        };
        DeadLetter {
            position: event.position(),
            timestamp: event.timestamp(),
            key: event.record_key().map(Box::from),
            value: Some(event.original().into()),
            retries: event.retries(),
            rejection,
            producer: None,
            shard: event.key_hash().shard(),
        }
    }

    /// Returns the reason for the rejection.
    pub fn reason(&self) -> Reason {
        self.rejection.reason
    }
}

impl std::fmt::Display for DeadLetter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Position { partition, offset } = self.position;
        write!(f, "partition {}, offset {}, is {}: ", partition.0, offset.0, self.reason().as_str())?;
        if let Some(field) = &self.rejection.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.rejection.message)
    }
}

impl Output for DeadLetter {
    fn accepted_by(&self, mapping: &OutputMapping) -> Option<u8> {
        mapping.dead_letters
    }

    fn shard(&self) -> ShardId {
        self.shard
    }

    fn row(&self, epoch: Epoch, _: Status, table: u8, out: &mut Changes) {
        out.rows
            .row(table)
            .cell(Cell::Int(self.position.partition.0.into()))
            .cell(Cell::Int(self.position.offset.0))
            .cell(Cell::Text(self.rejection.reason.as_str()))
            .cell(self.rejection.field.as_deref().map_or(Cell::Null, Cell::Text))
            .cell(Cell::Text(&self.rejection.message))
            .cell(self.key.as_deref().map_or(Cell::Null, Cell::Bytes))
            .cell(self.value.as_deref().map_or(Cell::Null, Cell::Bytes))
            .cell(Cell::Time(self.timestamp))
            .cell(Cell::Int(epoch.0 as i64))
            // The maximum of the column.
            .cell(Cell::Int(i64::from(self.retries).min(i32::MAX.into())))
            .end();
    }

    fn message(&self, _: Epoch, _: Status, topic: u8, envelope: &Envelope<'_>, out: &mut Changes) {
        let Envelope { largest, provenance } = *envelope;
        let partition = self.position.partition.0.to_string();
        let offset = self.position.offset.0.to_string();
        let timestamp = self.timestamp.to_string();
        let retries = self.retries.to_string();
        let mut headers = Vec::with_capacity(22);
        for (name, value) in [
            (header::REASON, self.rejection.reason.as_str()),
            (header::MESSAGE, self.rejection.message.as_str()),
            (header::FIELD, self.rejection.field.as_deref().unwrap_or_default()),
            (header::SOURCE_PARTITION, &partition),
            (header::SOURCE_OFFSET, &offset),
            (header::SOURCE_TIMESTAMP, &timestamp),
            (header::RETRIES, &retries),
            (connect::PARTITION, &partition),
            (connect::OFFSET, &offset),
            (connect::CONNECTOR, &provenance.pipeline),
            // A pipeline is one task, whatever the number of its workers.
            (connect::TASK, "0"),
            (connect::STAGE, stage(self.rejection.reason)),
            (connect::EXCEPTION, self.rejection.reason.as_str()),
            (connect::MESSAGE, self.rejection.message.as_str()),
        ] {
            headers.push(Header { name, value: value.as_bytes() });
        }
        headers.push(Header { name: header::PIPELINE, value: provenance.pipeline.as_bytes() });
        if let Some(topic) = &provenance.source_topic {
            headers.push(Header { name: header::SOURCE_TOPIC, value: topic.as_bytes() });
            headers.push(Header { name: connect::TOPIC, value: topic.as_bytes() });
        }
        if let Some(producer) = &self.producer {
            headers.push(Header { name: header::PRODUCER, value: producer.as_bytes() });
        }
        // A key is complete or missing: a truncated key would be a different key.
        let key = self.key.as_deref().filter(|key| key.len() <= largest / 4);
        let Some(value) = &self.value else {
            return out.messages.push_tombstone(topic, key, &headers);
        };
        let taken: usize = headers.iter().map(|header| header.name.len() + header.value.len()).sum();
        let room = largest.saturating_sub(taken + key.map_or(0, <[u8]>::len) + FRAMING);
        if value.len() <= room && key.is_some() == self.key.is_some() {
            return out.messages.push(topic, key, &headers, |out| out.extend_from_slice(value));
        }
        let (length, hash) = (value.len().to_string(), hex(&Sha256::digest(value)));
        headers.push(Header { name: header::ORIGINAL_LENGTH, value: length.as_bytes() });
        headers.push(Header { name: header::ORIGINAL_SHA256, value: hash.as_bytes() });
        out.messages.push(topic, key, &headers, |out| {
            out.extend_from_slice(&value[..value.len().min(room)]);
        });
    }
}

/// The space that a message needs beside its key, value and usual headers, in bytes: for the two headers of a truncated
/// message, and for Kafka's framing of a record and a batch.
const FRAMING: usize = 512;

/// Returns the stage of Kafka Connect that corresponds to a rejection: a record that is no event, or an event that does
/// not count.
fn stage(reason: Reason) -> &'static str {
    match reason {
        Reason::Malformed | Reason::Invalid => "VALUE_CONVERTER",
        Reason::Late | Reason::Future | Reason::Duplicate => "TRANSFORMATION",
    }
}

/// The maximum length of a producer's name, which any producer can write, in bytes.
const MAX_PRODUCER: usize = 256;

/// Returns the name of a producer from its header; None if it is empty, long or not UTF-8.
fn producer_name(header: &[u8]) -> Option<Box<str>> {
    let name = std::str::from_utf8(header).ok()?;
    (1..=MAX_PRODUCER).contains(&name.len()).then(|| name.into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::{Offset, Partition};

    use super::super::Provenance;
    use super::*;

    fn provenance() -> Provenance {
        Provenance { pipeline: "fraud".into(), source_topic: Some("payments".into()) }
    }

    fn letter(key: Option<usize>, value: usize) -> DeadLetter {
        DeadLetter {
            position: Position { partition: Partition(1), offset: Offset(2) },
            timestamp: 3,
            key: key.map(|len| vec![b'k'; len].into()),
            value: Some(vec![b'v'; value].into()),
            retries: 0,
            rejection: Rejection::duplicate("x"),
            producer: Some("shop".into()),
            shard: ShardId(1),
        }
    }

    /// Returns the lengths of key and value, and the original length and hash length from the headers.
    fn encoded(letter: &DeadLetter, largest: usize) -> (Option<usize>, usize, Option<(String, usize)>) {
        let mut changes = Changes::default();
        let envelope = Envelope { largest, provenance: &provenance() };
        letter.message(Epoch(1), Status::Raised, 0, &envelope, &mut changes);
        let message = changes.messages.iter().next().expect("one message");
        let value = message.value.unwrap_or_default();
        let header = |name: &str| {
            let found = message.headers.iter().find(|header| header.name == name)?;
            Some(String::from_utf8_lossy(found.value).into_owned())
        };
        let size: usize = message.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
        assert!(size + value.len() + message.key.map_or(0, <[u8]>::len) < largest);
        let original = header(header::ORIGINAL_LENGTH).zip(header(header::ORIGINAL_SHA256));
        (message.key.map(<[u8]>::len), value.len(), original.map(|(length, hash)| (length, hash.len())))
    }

    #[test]
    fn values_too_large_for_the_topic_are_truncated_and_marked() {
        assert_eq!(encoded(&letter(Some(10), 400), 2000), (Some(10), 400, None));
        let (key, value, original) = encoded(&letter(Some(10), 4000), 2000);
        assert_eq!((key, original), (Some(10), Some(("4000".into(), 64))));
        assert!((900..2000).contains(&value), "{value}");
        let (key, _, original) = encoded(&letter(Some(600), 20), 2000);
        assert_eq!((key, original), (None, Some(("20".into(), 64))), "a key is complete or missing");
    }

    #[test]
    fn a_dead_letter_names_its_pipeline_and_source_topic() {
        let mut changes = Changes::default();
        let envelope = Envelope { largest: 2000, provenance: &provenance() };
        letter(None, 1).message(Epoch(1), Status::Raised, 0, &envelope, &mut changes);
        let message = changes.messages.iter().next().expect("one message");
        let header =
            |name: &str| message.headers.iter().find(|header| header.name == name).map(|header| header.value);
        assert_eq!(header(header::PIPELINE), Some(&b"fraud"[..]));
        assert_eq!(header(header::SOURCE_TOPIC), Some(&b"payments"[..]));
        assert_eq!(header(header::PRODUCER), Some(&b"shop"[..]));
        for (name, value) in [
            ("topic", "payments"),
            ("partition", "1"),
            ("offset", "2"),
            ("connector.name", "fraud"),
            ("task.id", "0"),
            ("stage", "TRANSFORMATION"),
            ("exception.class.name", "duplicate"),
            ("exception.message", "an event of this key with the id \"x\" was accepted before"),
        ] {
            let found = header(&format!("__connect.errors.{name}")).map(String::from_utf8_lossy);
            assert_eq!(found.as_deref(), Some(value), "{name}");
        }
    }

    #[test]
    fn the_name_of_a_producer_is_short_text() {
        assert_eq!(producer_name(b"shop").as_deref(), Some("shop"));
        assert_eq!(
            (producer_name(b""), producer_name(b"\xff"), producer_name(&[b'x'; 257])),
            (None, None, None)
        );
    }

    #[test]
    fn a_retry_count_is_limited_to_the_maximum_of_its_column() {
        let mut changes = Changes::default();
        let letter = DeadLetter { retries: u32::MAX, ..letter(None, 1) };
        letter.row(Epoch(1), Status::Raised, 0, &mut changes);
        let row = changes.rows.iter().next().expect("one row");
        assert_eq!(row.cells().last(), Some(Cell::Int(i32::MAX.into())));
    }
}
