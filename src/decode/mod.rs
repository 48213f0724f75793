//! Decoding of records into events or rejections. Decoding never panics, and copies nothing but the event's text.
//!
//! A record is scanned once. The scan collects the values of its known fields, which are validated afterwards, so that
//! a record that is not JSON is rejected as malformed, whatever else is wrong with it.

mod binary;
mod event_text;
mod fields;
mod number;
mod record;
mod scan;
mod withholding;

pub use binary::{
    Binary, BinaryKind, Fetched, FileSchema, Framing, SchemaGate, SchemaRegistry, Schemas, UnknownId,
};
pub use fields::{
    Const, Envelope, FieldMap, FieldSource, Form, MAX_OWN, MappedDecoder, MappedField, Path, TimeFormat,
};
pub use record::{JSON, JsonDecoder};
pub use withholding::withholding;

use std::borrow::Cow;
use std::sync::Arc;

use headwater_dataflows::EventTime;
use serde::{Deserialize, Serialize};

use self::binary::BinaryDecoder;
use crate::event::Event;
use crate::fields::Layout;
use crate::source::Raw;

/// Parses an RFC 3339 time with an offset. Returns milliseconds since 1970.
///
/// # Errors
/// If the text is not such a time; the error says why.
pub fn rfc3339_ms(text: &str) -> Result<i64, &'static str> {
    number::rfc3339(text)
}

/// Parses a decimal number. Returns millionths, rounded half to even; None if it is no number, or above 10^12 in size.
pub fn decimal_micros(text: &str) -> Option<i64> {
    number::is_number(text).then(|| number::micros(text).ok())?
}

/// A decoder of records into events.
pub trait Decoder {
    /// Decodes a record.
    ///
    /// # Errors
    /// If the record is not a valid event.
    fn decode(&mut self, raw: Raw<'_>) -> Result<Event, Rejection>;

    /// Returns the errors of the optional fields of the last event, which are absent in it.
    fn field_errors(&self) -> &[FieldError];
}

/// A format of records.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// The name in `source.format`.
    pub name: &'static str,
    /// The version of the decoder. It is raised when the same bytes decode to another event, or to none.
    pub version: u32,
    /// The envelope of the data.
    pub envelope: fn() -> Envelope,
    /// True if the fields must be named, because the envelope has no standard event.
    pub needs_fields: bool,
    /// The paths of standard fields that need not be named.
    pub defaults: &'static [(&'static str, &'static str)],
    /// The kind of the format, if records are not text.
    pub binary: Option<BinaryKind>,
    /// Creates a decoder of these fields, or of those of the standard event, which rejects records with a malformed
    /// optional field if the second argument is true.
    new: fn(Option<Arc<FieldMap>>, bool) -> Box<dyn Decoder>,
}

/// All formats; the first is the default.
pub const FORMATS: &[Format] = &[JSON, AVRO, PROTOBUF, CLOUD_EVENTS, DEBEZIUM];

/// Avro, by schemas.
pub const AVRO: Format = Format { name: "avro", version: 1, binary: Some(BinaryKind::Avro), ..JSON };

/// Protobuf, by schemas.
pub const PROTOBUF: Format =
    Format { name: "protobuf", version: 1, binary: Some(BinaryKind::Protobuf), ..JSON };

/// The JSON format of CloudEvents.
pub const CLOUD_EVENTS: Format = Format {
    name: "cloudevents",
    version: 1,
    envelope: Envelope::cloud_events,
    needs_fields: true,
    defaults: &[("event_id", "@.id"), ("event_time", "@.time"), ("event_type", "@.type")],
    ..JSON
};

/// Changes of rows by Debezium, in JSON.
pub const DEBEZIUM: Format =
    Format { name: "debezium", version: 1, envelope: Envelope::debezium, needs_fields: true, ..JSON };

impl Format {
    /// Returns how records of this format are decoded into standard events.
    pub fn standard(self) -> Decoding {
        Decoding { format: self, binary: None, fields: None, strict: false }
    }
}

/// The way in which records are decoded.
#[derive(Clone, Debug)]
pub struct Decoding {
    /// The format of records.
    pub format: Format,
    /// The schemas of records, if they are not text.
    pub binary: Option<Binary>,
    /// The fields of events; None for those of the standard event.
    pub fields: Option<Arc<FieldMap>>,
    /// True if a malformed optional field rejects the record; false if the field is treated as absent.
    pub strict: bool,
}

impl Decoding {
    /// Creates a decoder.
    pub fn decoder(&self) -> Box<dyn Decoder> {
        let decoder = (self.format.new)(self.fields.clone(), self.strict);
        match &self.binary {
            Some(binary) => Box::new(BinaryDecoder::new(binary.clone(), decoder)),
            None => decoder,
        }
    }

    /// Returns the gate of records whose schemas are not known yet; None if all records can be decoded at once.
    pub fn gate(&self) -> Option<SchemaGate> {
        self.binary.as_ref()?.gate()
    }

    /// Returns the names and types of the fields of events.
    pub fn layout(&self) -> Arc<Layout> {
        self.fields.as_ref().map(|fields| Arc::clone(fields.layout())).unwrap_or_default()
    }
}

/// An error of an optional field, which is treated as absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The name of the field.
    pub field: Cow<'static, str>,
    /// The error message.
    pub message: String,
}

/// The fields that are optional in an event, so that an error in them does not reject it.
pub const OPTIONAL_FIELDS: [&str; 10] = [
    "user_id",
    "device_id",
    "amount",
    "currency",
    "merchant_id",
    "merchant_category",
    "ip_address",
    "session_id",
    "location",
    "attributes",
];

/// The reason for which a record is rejected and becomes a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// The record cannot be parsed: it is not of its format, a known field has the wrong type, or it is too large.
    Malformed,
    /// The record can be parsed, but a field has an invalid value.
    Invalid,
    /// The event time is below the watermark.
    Late,
    /// The event time lies in the future.
    Future,
    /// An event with the same key and id was accepted before.
    Duplicate,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 5] =
        [Reason::Malformed, Reason::Invalid, Reason::Late, Reason::Future, Reason::Duplicate];

    /// Returns the name in outputs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::Invalid => "invalid",
            Reason::Late => "late",
            Reason::Future => "future",
            Reason::Duplicate => "duplicate",
        }
    }
}

/// The rejection of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rejection {
    /// The reason.
    pub reason: Reason,
    /// The field that caused the rejection, if there is one.
    pub field: Option<Cow<'static, str>>,
    /// The error message.
    pub message: String,
}

impl Rejection {
    fn malformed(field: Option<&'static str>, message: impl Into<String>) -> Rejection {
        Rejection { reason: Reason::Malformed, field: field.map(Cow::Borrowed), message: message.into() }
    }

    fn malformed_at(field: Option<String>, message: impl Into<String>) -> Rejection {
        Rejection { reason: Reason::Malformed, field: field.map(Cow::Owned), message: message.into() }
    }

    fn invalid(field: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Rejection {
        Rejection { reason: Reason::Invalid, field: Some(field.into()), message: message.into() }
    }

    /// Returns the rejection of an event whose time is more than `skew_ms` milliseconds after the earlier of its record
    /// timestamp and the wall time of reading, both in milliseconds since 1970.
    pub fn future(
        time: EventTime,
        timestamp_ms: Option<i64>,
        wall_ms: Option<i64>,
        skew_ms: i64,
    ) -> Rejection {
        let clocks = [("its record's timestamp", timestamp_ms), ("the wall time when it was read", wall_ms)];
        let earliest = clocks.into_iter().filter_map(|(name, ms)| Some((ms?, name))).min();
        let beyond = earliest.map_or(String::new(), |(ms, name)| {
            format!(
                ", more than {skew_ms} ms (time.max_future_skew) beyond {name}, {}",
                crate::json::rfc3339(ms)
            )
        });
        Rejection {
            reason: Reason::Future,
            field: Some(Cow::Borrowed("event_time")),
            message: format!("event_time {} lies in the future{beyond}", crate::json::rfc3339(time.0)),
        }
    }

    /// Returns the rejection of a late event.
    pub fn late(time: EventTime) -> Rejection {
        Rejection {
            reason: Reason::Late,
            field: Some(Cow::Borrowed("event_time")),
            message: format!("event_time {} is at or below the watermark", crate::json::rfc3339(time.0)),
        }
    }

    /// Returns the rejection of a duplicate event.
    pub fn duplicate(id: &str) -> Rejection {
        Rejection {
            reason: Reason::Duplicate,
            field: Some(Cow::Borrowed("event_id")),
            message: format!("an event of this key with the id {id:?} was accepted before"),
        }
    }
}
