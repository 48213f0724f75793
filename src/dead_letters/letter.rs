//! A dead letter as people and programs see it.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use headwater_dataflows::{Offset, Partition, Position};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::payload::{self, Masked};
use crate::json::rfc3339;
use crate::source::kafka::dead_letters::{DeadLetter, connect, header};

/// The id of a dead letter: its partition and offset, written `PARTITION:OFFSET`. In a topic, they are the letter's own;
/// in a table, those of the rejected record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LetterId {
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: i64,
}

impl LetterId {
    /// Returns the id of a letter.
    pub fn of(letter: &DeadLetter) -> LetterId {
        let Position { partition: Partition(partition), offset: Offset(offset) } = letter.position;
        LetterId { partition, offset }
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.partition, self.offset)
    }
}

impl FromStr for LetterId {
    type Err = String;

    fn from_str(text: &str) -> Result<LetterId, String> {
        let parsed = text.split_once(':').and_then(|(partition, offset)| {
            let offset = offset.parse().ok().filter(|&offset: &i64| offset >= 0)?;
            Some(LetterId { partition: partition.parse().ok()?, offset })
        });
        parsed.ok_or_else(|| {
            format!("{text:?} is no id of a dead letter: expected PARTITION:OFFSET, such as 0:9")
        })
    }
}

impl Serialize for LetterId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A part of a text, by characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Place {
    /// The first character.
    pub start: usize,
    /// The character after the last.
    pub end: usize,
}

/// The rejected record's place in the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct SourceRecord {
    /// The topic; None if the source is not Kafka.
    pub topic: Option<String>,
    /// The partition.
    pub partition: Option<u32>,
    /// The offset.
    pub offset: Option<i64>,
    /// The record's timestamp, in RFC 3339.
    pub timestamp: Option<String>,
}

/// A dead letter, with the masks of the configuration applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Letter {
    /// The id.
    #[schema(value_type = String)]
    pub id: LetterId,
    /// The partition of the id.
    pub partition: u32,
    /// The offset of the id.
    pub offset: i64,
    /// The reason for the rejection.
    pub reason: String,
    /// The field that caused it.
    pub field: Option<String>,
    /// The error message.
    pub message: Option<String>,
    /// The time at which the letter was written to its topic, in RFC 3339; in a table, the timestamp of the record.
    pub time: Option<String>,
    /// The number of earlier retries of the record.
    pub retries: u32,
    /// True if the letter was sent again; None if the retry ledger could not be read.
    pub sent_again: Option<bool>,
    /// The producer of the record, if its header names one.
    pub producer: Option<String>,
    /// The record's place in the source.
    pub source: SourceRecord,
    /// The record's key, if it is text.
    pub key: Option<String>,
    /// The record's key, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// The record's value, if it is text.
    pub value: Option<String>,
    /// The record's value, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
    /// The length of the stored value in bytes.
    pub bytes: usize,
    /// The length of the record's value, if only its beginning is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_bytes: Option<u64>,
    /// The part of `value` that the message is about.
    pub place: Option<Place>,
    /// All headers of the letter, as text.
    #[serde(skip)]
    pub headers: Vec<(String, String)>,
}

impl Letter {
    /// Creates the letter, with the values of masked fields replaced wherever they appear.
    pub fn new(letter: &DeadLetter, mask: &[String], sent_again: Option<bool>) -> Letter {
        let text = |name| letter.header(name).filter(|text| !text.is_empty()).map(str::to_owned);
        let (field, message) = (text(header::FIELD), text(header::MESSAGE));
        let id = LetterId::of(letter);
        let masked = Payload::new(letter.value.as_deref(), mask);
        let Payload { masked, value_base64 } = masked;
        let clean = |text: String| masked.as_ref().map_or(text.clone(), |masked| masked.clean(&text));
        let place = masked.as_ref().and_then(|masked| {
            payload::place_in_masked(masked, field.as_deref(), message.as_deref().unwrap_or_default())
        });
        let (key, key_base64) = match letter.key.as_deref().map(std::str::from_utf8) {
            None => (None, None),
            Some(Ok(key)) => (Some(clean(key.to_owned())), None),
            Some(Err(_)) => (None, letter.key.as_ref().map(|key| STANDARD.encode(key))),
        };
        let timestamp = text(header::SOURCE_TIMESTAMP).and_then(|text| text.parse().ok());
        // The other headers are of this program's making, and hold nothing of the payload.
        let header = |(name, value): &(String, Vec<u8>)| {
            let value = String::from_utf8_lossy(value).into_owned();
            let is_message = [header::MESSAGE, connect::MESSAGE].contains(&name.as_str());
            (name.clone(), if is_message { clean(value) } else { value })
        };
        Letter {
            id,
            partition: id.partition,
            offset: id.offset,
            reason: letter.reason().to_owned(),
            message: message.map(&clean),
            field,
            time: time(letter.timestamp),
            retries: letter.retries(),
            sent_again,
            producer: text(header::PRODUCER),
            source: SourceRecord {
                topic: text(header::SOURCE_TOPIC),
                partition: text(header::SOURCE_PARTITION).and_then(|text| text.parse().ok()),
                offset: text(header::SOURCE_OFFSET).and_then(|text| text.parse().ok()),
                timestamp: timestamp.and_then(time),
            },
            key,
            key_base64,
            bytes: letter.value.as_ref().map_or(0, Vec::len),
            original_bytes: text(header::ORIGINAL_LENGTH).and_then(|text| text.parse().ok()),
            place,
            headers: letter.headers.iter().map(header).collect(),
            value: masked.map(|masked| masked.text),
            value_base64,
        }
    }
}

/// A value, masked if it is text. A mask hides a value that is not text: nothing says where the field is in it.
struct Payload {
    masked: Option<Masked>,
    value_base64: Option<String>,
}

impl Payload {
    fn new(value: Option<&[u8]>, mask: &[String]) -> Payload {
        let none = Payload { masked: None, value_base64: None };
        let Some(value) = value else { return none };
        match std::str::from_utf8(value) {
            Ok(text) => Payload { masked: Some(payload::mask(text, mask)), ..none },
            Err(_) if mask.is_empty() => Payload { value_base64: Some(STANDARD.encode(value)), ..none },
            Err(_) => none,
        }
    }
}

/// Returns a time in RFC 3339; None for the values that stand for no timestamp.
pub fn time(ms: i64) -> Option<String> {
    /// The year 10000.
    const END: i64 = 253_402_300_800_000;
    (0..END).contains(&ms).then(|| rfc3339(ms))
}

/// The letters to choose; a field that is None chooses all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The reason.
    pub reason: Option<String>,
    /// The field.
    pub field: Option<String>,
    /// The producer.
    pub producer: Option<String>,
    /// The first time of the letter, in milliseconds since 1970.
    pub from_ms: Option<i64>,
    /// The time after the last, in milliseconds since 1970.
    pub to_ms: Option<i64>,
}

impl Filter {
    /// Returns true if a letter is chosen.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let is = |name, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| letter.header(name) == Some(wanted))
        };
        let in_time = || {
            let time = letter.timestamp;
            self.from_ms.is_none_or(|from| time >= from) && self.to_ms.is_none_or(|to| time < to)
        };
        let is_timed = self.from_ms.is_some() || self.to_ms.is_some();
        is(header::REASON, &self.reason)
            && is(header::FIELD, &self.field)
            && is(header::PRODUCER, &self.producer)
            && (!is_timed || (time(letter.timestamp).is_some() && in_time()))
    }

    /// Returns true if nothing but the reason decides.
    pub fn is_by_reason(&self) -> bool {
        Filter { reason: None, ..self.clone() } == Filter::default()
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;

    /// Returns a letter of the pipeline `fraud`, at 2:7.
    pub fn letter(value: &[u8]) -> DeadLetter {
        let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        DeadLetter {
            position: Position { partition: Partition(2), offset: Offset(7) },
            timestamp: 1_772_330_400_000,
            key: Some(vec![0xff]),
            value: Some(value.to_vec()),
            headers: vec![
                header(header::REASON, "invalid"),
                header(header::MESSAGE, "user_id is no text"),
                header(header::FIELD, "user_id"),
                header(header::PIPELINE, "fraud"),
                header(header::SOURCE_TOPIC, "payments"),
                header(header::SOURCE_PARTITION, "1"),
                header(header::SOURCE_OFFSET, "9"),
                header(header::SOURCE_TIMESTAMP, "1772330399000"),
                header(header::PRODUCER, "shop"),
            ],
        }
    }

    #[test]
    fn a_letter_serialises_to_the_contract_of_the_api() {
        let letter = Letter::new(&letter(br#"{"user_id":1.5}"#), &[], Some(false));
        let expected = json!({
            "id": "2:7", "partition": 2, "offset": 7, "reason": "invalid", "field": "user_id",
            "message": "user_id is no text", "time": "2026-03-01T02:00:00.000Z", "retries": 0, "sent_again": false,
            "producer": "shop", "key": null, "key_base64": "/w==", "value": "{\"user_id\":1.5}", "bytes": 15,
            "source": {
                "topic": "payments", "partition": 1, "offset": 9, "timestamp": "2026-03-01T01:59:59.000Z",
            },
            "place": { "start": 11, "end": 14 },
        });
        assert_eq!(serde_json::to_value(letter).expect("JSON"), expected);
    }

    #[test]
    fn a_secret_is_masked_in_value_key_message_and_headers() {
        let mut letter = letter(br#"{"user_id":"4711","a":1}"#);
        letter.key = Some(b"4711".to_vec());
        letter.headers[1].1 = b"user_id \"4711\" is unknown".to_vec();
        let letter = Letter::new(&letter, &["user_id".to_owned()], None);
        assert_eq!(letter.value.as_deref(), Some(r#"{"user_id":"***","a":1}"#));
        assert_eq!(letter.key.as_deref(), Some("***"));
        assert_eq!(letter.place, Some(Place { start: 11, end: 16 }));
        let all = format!("{letter:?}");
        assert!(!all.contains("4711"), "{all}");
    }

    #[test]
    fn bytes_that_are_not_text_are_base64_or_hidden() {
        let bytes = letter(b"\xff\x00");
        let shown = Letter::new(&bytes, &[], None);
        assert_eq!((shown.value, shown.value_base64.as_deref()), (None, Some("/wA=")));
        let hidden = Letter::new(&bytes, &["card".to_owned()], None);
        assert_eq!((hidden.value, hidden.value_base64, hidden.bytes), (None, None, 2));
    }

    #[test]
    fn a_filter_chooses_by_every_part() {
        let letter = letter(b"{}");
        let text = |text: &str| Some(text.to_owned());
        let all = Filter {
            reason: text("invalid"),
            field: text("user_id"),
            producer: text("shop"),
            from_ms: Some(1_772_330_400_000),
            to_ms: Some(1_772_330_400_001),
        };
        assert!(all.matches(&letter) && Filter::default().matches(&letter));
        for other in [
            Filter { reason: text("late"), ..all.clone() },
            Filter { field: text("amount"), ..all.clone() },
            Filter { producer: text("x"), ..all.clone() },
            Filter { from_ms: Some(1_772_330_400_001), ..all.clone() },
            Filter { to_ms: Some(1_772_330_400_000), ..all.clone() },
        ] {
            assert!(!other.matches(&letter), "{other:?}");
        }
        let untimed = DeadLetter { timestamp: i64::MAX, ..letter };
        assert!(!all.matches(&untimed) && Filter { from_ms: None, to_ms: None, ..all }.matches(&untimed));
    }

    #[test]
    fn an_id_is_a_partition_and_an_offset() {
        assert_eq!("2:7".parse(), Ok(LetterId { partition: 2, offset: 7 }));
        for wrong in ["", "2", "2:", ":7", "-1:7", "2:-7", "2:7:9", "x:y"] {
            assert!(wrong.parse::<LetterId>().is_err(), "{wrong}");
        }
    }
}
