//! Dead letters: records that take no part, with the reason.

use headwater_dataflows::{Epoch, Position, Refusal};
use headwater_sinks::{Cell, Changes, Header};
use serde::{Deserialize, Serialize};

use super::{Output, Status, Takes};
use crate::decode::{Reason, Rejection};
use crate::event::Event;
use crate::source::Raw;
use crate::source::kafka::dead_letters::header;

/// A record as it came, and why it takes no part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Where it stood.
    pub position: Position,
    /// Its timestamp, in milliseconds since 1970.
    pub timestamp: i64,
    /// Its key, as bytes.
    pub key: Option<Box<[u8]>>,
    /// Its value, as bytes.
    pub value: Option<Box<[u8]>>,
    /// How often it has come back from the dead letters.
    pub retries: u32,
    /// What is wrong with it.
    pub rejection: Rejection,
}

impl DeadLetter {
    /// The letter of a record that was rejected as it was read.
    pub fn rejected(raw: Raw<'_>, rejection: Rejection) -> DeadLetter {
        DeadLetter {
            position: raw.position,
            timestamp: raw.timestamp,
            key: raw.key.map(Box::from),
            value: raw.value.map(Box::from),
            retries: raw.retries,
            rejection,
        }
    }

    /// The letter of an event that was refused once it was decoded.
    pub fn refused(event: &Event, refusal: Refusal) -> DeadLetter {
        let rejection = match refusal {
            Refusal::Late => Rejection::late(event.event_time()),
            Refusal::Duplicate => Rejection::duplicate(event.id()),
        };
        DeadLetter {
            position: event.position(),
            timestamp: event.timestamp(),
            key: event.record_key().map(Box::from),
            value: Some(event.original().as_bytes().into()),
            retries: event.retries(),
            rejection,
        }
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.rejection.reason
    }
}

impl Output for DeadLetter {
    fn of(takes: &Takes) -> Option<u8> {
        takes.dead_letters
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
            .cell(Cell::Int(self.retries.into()))
            .end();
    }

    fn message(&self, _: Epoch, _: Status, topic: u8, out: &mut Changes) {
        let partition = self.position.partition.0.to_string();
        let offset = self.position.offset.0.to_string();
        let timestamp = self.timestamp.to_string();
        let retries = self.retries.to_string();
        let mut headers = Vec::with_capacity(7);
        for (name, value) in [
            (header::REASON, self.rejection.reason.as_str()),
            (header::MESSAGE, self.rejection.message.as_str()),
            (header::FIELD, self.rejection.field.as_deref().unwrap_or_default()),
            (header::SOURCE_PARTITION, &partition),
            (header::SOURCE_OFFSET, &offset),
            (header::SOURCE_TIMESTAMP, &timestamp),
            (header::RETRIES, &retries),
        ] {
            headers.push(Header { name, value: value.as_bytes() });
        }
        match &self.value {
            Some(value) => {
                out.messages.push(topic, self.key.as_deref(), &headers, |out| out.extend_from_slice(value))
            }
            None => out.messages.push_tombstone(topic, self.key.as_deref(), &headers),
        }
    }
}
