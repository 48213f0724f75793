//! Decoding of one record: its fields are scanned and validated, and form an event.

use std::borrow::Cow;
use std::sync::Arc;

use headwater_dataflows::EventTime;

use super::event_text::EventText;
use super::scan::{Scanner, SyntaxError, Text, Value, find_special};
use super::{Decoder, Envelope, FieldError, Format, MappedDecoder, Rejection, number};
use crate::event::{Body, Event, EventType, Extension, KeyKind, Kind, Span};
use crate::source::Raw;

/// The maximum size of a record, in bytes.
pub(super) const MAX_RECORD: usize = 1 << 20;

/// The maximum size of the attributes' text, in bytes.
pub(super) const MAX_ATTRIBUTES: usize = 64 << 10;

/// The known fields, in the order of their validation.
const FIELDS: [&str; 13] = [
    "event_id",
    "event_type",
    "user_id",
    "device_id",
    "event_time",
    "amount",
    "currency",
    "merchant_id",
    "merchant_category",
    "ip_address",
    "session_id",
    "location",
    "attributes",
];

const EVENT_ID: usize = 0;
const EVENT_TYPE: usize = 1;
const USER_ID: usize = 2;
const DEVICE_ID: usize = 3;
const EVENT_TIME: usize = 4;
const AMOUNT: usize = 5;
const CURRENCY: usize = 6;
const MERCHANT_ID: usize = 7;
const MERCHANT_CATEGORY: usize = 8;
const IP_ADDRESS: usize = 9;
const SESSION_ID: usize = 10;
const LOCATION: usize = 11;
const ATTRIBUTES: usize = 12;

/// Returns the index of a known field.
fn field(name: &str) -> Option<usize> {
    Some(match name {
        "event_id" => EVENT_ID,
        "event_type" => EVENT_TYPE,
        "user_id" => USER_ID,
        "device_id" => DEVICE_ID,
        "event_time" => EVENT_TIME,
        "amount" => AMOUNT,
        "currency" => CURRENCY,
        "merchant_id" => MERCHANT_ID,
        "merchant_category" => MERCHANT_CATEGORY,
        "ip_address" => IP_ADDRESS,
        "session_id" => SESSION_ID,
        "location" => LOCATION,
        "attributes" => ATTRIBUTES,
        _ => return None,
    })
}

/// The format JSON: one object per record.
pub const JSON: Format = Format {
    name: "json",
    version: 2,
    envelope: Envelope::none,
    needs_fields: false,
    defaults: &[],
    binary: None,
    new: |fields, is_strict| match fields {
        None => Box::new(JsonDecoder::new(is_strict)),
        Some(fields) => Box::new(MappedDecoder::new(fields, is_strict)),
    },
};

/// A decoder of JSON objects.
#[derive(Default)]
pub struct JsonDecoder {
    /// True if an error in an optional field rejects the record.
    strict: bool,
    /// The errors of optional fields of the last record.
    errors: Vec<FieldError>,
    /// The part of the event's text after the original record.
    appended: String,
    /// The values of the known fields of the last record.
    members: [Value; FIELDS.len()],
    /// Unknown fields: name and value, as ranges of the record.
    unknown: Vec<(Text, Span)>,
}

impl Decoder for JsonDecoder {
    fn field_errors(&self) -> &[FieldError] {
        &self.errors
    }

    fn decode(&mut self, raw: Raw<'_>) -> Result<Event, Rejection> {
        let text = text_of(&raw)?;
        self.scan(text)?;
        self.appended.clear();
        self.errors.clear();
        let JsonDecoder { strict, errors, appended, members, unknown } = self;
        let text = EventText { record: text, appended };
        EventBuilder { text, members, unknown, strict: *strict, errors }.build(&raw)
    }
}

impl JsonDecoder {
    /// Creates a decoder that treats optional fields with an error as absent or, if `strict`, rejects their records.
    pub fn new(strict: bool) -> JsonDecoder {
        JsonDecoder { strict, ..JsonDecoder::default() }
    }

    /// Scans the values of the record's fields.
    fn scan(&mut self, text: &str) -> Result<(), Rejection> {
        self.unknown.clear();
        self.members = [Value::Null; FIELDS.len()];
        let mut seen = 0u16;
        let mut duplicate = None;
        let mut scanner = Scanner::new(text, leading_space(text));
        let result =
            scanner.members(1, |name, value, span| match field(&Scanner::new(text, 0).unescaped(&name)) {
                Some(field) => {
                    if seen >> field & 1 == 1 {
                        duplicate = duplicate.or(Some(FIELDS[field]));
                    }
                    seen |= 1 << field;
                    self.members[field] = value;
                }
                None => self.unknown.push((name, span)),
            });
        result.and_then(|()| scanner.end()).map_err(not_json)?;
        match duplicate {
            Some(name) => Err(Rejection::malformed(Some(name), format!("duplicate field {name}"))),
            None => Ok(()),
        }
    }
}

/// Returns the text of a record.
pub(super) fn text_of<'a>(raw: &Raw<'a>) -> Result<&'a str, Rejection> {
    let Some(bytes) = raw.value else {
        return Err(Rejection::malformed(None, "the record has no value"));
    };
    if bytes.len() > MAX_RECORD {
        return Err(Rejection::malformed(
            None,
            format!("the record has {} bytes, more than 1 MiB", bytes.len()),
        ));
    }
    std::str::from_utf8(bytes)
        .map_err(|error| Rejection::malformed(None, format!("not UTF-8 at byte {}", error.valid_up_to())))
}

pub(super) fn leading_space(text: &str) -> usize {
    text.bytes().take_while(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t')).count()
}

pub(super) fn not_json(SyntaxError { at, what }: SyntaxError) -> Rejection {
    Rejection::malformed(None, format!("not a JSON object: {what} at byte {at}"))
}

/// A builder of an event, which validates the scanned fields.
struct EventBuilder<'a> {
    text: EventText<'a>,
    members: &'a mut [Value; FIELDS.len()],
    unknown: &'a [(Text, Span)],
    strict: bool,
    errors: &'a mut Vec<FieldError>,
}

impl EventBuilder<'_> {
    fn build(mut self, raw: &Raw<'_>) -> Result<Event, Rejection> {
        self.check_types()?;
        let id = self.required(EVENT_ID, 128)?;
        let (event_type, type_span) = self.event_type()?;
        let user_id = self.optional(USER_ID)?;
        let device_id = self.optional(DEVICE_ID)?;
        let (kind, name, field) = match event_type {
            EventType::IotSensor => (KeyKind::Device, device_id, "device_id"),
            _ => (KeyKind::User, user_id, "user_id"),
        };
        let name = match name {
            Span::ABSENT => return Err(Rejection::invalid(field, format!("{field} is missing"))),
            name if name.len() == 0 => {
                return Err(Rejection::invalid(field, format!("{field} is empty")));
            }
            name => name,
        };
        let event_time = self.event_time()?;
        let amount = self.amount()?;
        let currency = self.optional(CURRENCY)?;
        let merchant_id = self.optional(MERCHANT_ID)?;
        let merchant_category = self.optional(MERCHANT_CATEGORY)?;
        let ip_address = self.optional(IP_ADDRESS)?;
        let session_id = self.optional(SESSION_ID)?;
        let location = self.location()?;
        let attributes = self.attributes()?;

        let record_key = self.text.record_key(raw, Some(name));
        let key = self.text.append_key(kind, name);
        let merchant = self.text.hash(merchant_id).0;
        let key_hash = self.text.hash(key);
        let body = Body {
            original: self.text.record.len() as u32,
            text: self.text.joined(),
            retries: raw.retries,
            timestamp: raw.timestamp,
            amount,
            location,
            merchant,
            record_key,
            key,
            id,
            currency,
            merchant_id,
            merchant_category,
            ip_address,
            session_id,
            device_id,
            attributes,
            kind: match event_type {
                // The key is the device; the user is beyond what events usually have.
                EventType::IotSensor if user_id != Span::ABSENT => Kind::Extended(Box::new(Extension {
                    event_type: type_span,
                    user_id,
                    has_id: true,
                    is_mapped: false,
                    own: Box::default(),
                })),
                event_type => event_type.into(),
            },
        };
        Ok(Event { position: raw.position, event_time, key_hash, body: Arc::new(body) })
    }

    /// Checks that every known field has its type, or is null.
    fn check_types(&mut self) -> Result<(), Rejection> {
        for (field, name) in FIELDS.into_iter().enumerate() {
            let value = self.members[field];
            let (fits, expected) = match field {
                _ if value == Value::Null => continue,
                EVENT_TIME => (matches!(value, Value::Text(_) | Value::Number(_)), "a string or a number"),
                AMOUNT => (matches!(value, Value::Text(_) | Value::Number(_)), "a number or a string"),
                LOCATION | ATTRIBUTES => (matches!(value, Value::Object(_)), "an object"),
                EVENT_TYPE | CURRENCY | IP_ADDRESS => (matches!(value, Value::Text(_)), "a string"),
                _ => (self.is_text(value), "a string or a whole number"),
            };
            if !fits {
                let rejection = Rejection::malformed(Some(name), format!("{name} must be {expected}"));
                self.handle_field_error(field, rejection)?;
            }
        }
        Ok(())
    }

    /// Returns true if a value can be an id: a string, or a whole number, whose digits are the id.
    fn is_text(&self, value: Value) -> bool {
        match value {
            Value::Text(_) => true,
            Value::Number(span) => number::is_whole(&self.text.record[span.range()]),
            _ => false,
        }
    }

    /// Handles an error of a field: an optional field becomes absent; otherwise the record is rejected.
    fn handle_field_error(&mut self, field: usize, rejection: Rejection) -> Result<(), Rejection> {
        if self.strict || self.is_required(field) {
            return Err(rejection);
        }
        self.errors.push(FieldError { field: FIELDS[field].into(), message: rejection.message });
        self.members[field] = Value::Null;
        Ok(())
    }

    /// Returns true if the event cannot exist without a field. The device id is required only for sensor events.
    fn is_required(&self, field: usize) -> bool {
        let is_sensor = || match &self.members[EVENT_TYPE] {
            Value::Text(text) => {
                Scanner::new(self.text.record, 0).unescaped(text) == EventType::IotSensor.as_str()
            }
            _ => false,
        };
        match field {
            EVENT_ID | EVENT_TYPE | EVENT_TIME => true,
            USER_ID => !is_sensor(),
            DEVICE_ID => is_sensor(),
            _ => false,
        }
    }

    /// Returns the span of a string, or of a whole number's digits, of at most `limit` bytes.
    #[inline]
    fn string(&mut self, field: usize, limit: usize) -> Result<Span, Rejection> {
        let span = match self.members[field] {
            Value::Text(text) => self.text.literal(text),
            Value::Number(span) => span,
            _ => return Ok(Span::ABSENT),
        };
        if span.len() <= limit { Ok(span) } else { Err(too_long(field, span.len(), limit)) }
    }

    #[inline]
    fn optional(&mut self, field: usize) -> Result<Span, Rejection> {
        match self.string(field, 256) {
            Ok(span) => Ok(span),
            Err(rejection) => self.handle_field_error(field, rejection).map(|()| Span::ABSENT),
        }
    }

    fn required(&mut self, field: usize, limit: usize) -> Result<Span, Rejection> {
        let name = FIELDS[field];
        match self.string(field, limit)? {
            Span::ABSENT => Err(Rejection::invalid(name, format!("{name} is missing"))),
            span if span.len() == 0 => Err(Rejection::invalid(name, format!("{name} is empty"))),
            span => Ok(span),
        }
    }

    /// Returns the type, and its span.
    fn event_type(&mut self) -> Result<(EventType, Span), Rejection> {
        let span = self.required(EVENT_TYPE, MAX_RECORD)?;
        let parsed = EventType::parse(self.text.str(span));
        parsed.map(|event_type| (event_type, span)).ok_or_else(|| {
            Rejection::invalid(
                "event_type",
                "event_type must be transaction, user_activity, iot_sensor or api_call",
            )
        })
    }

    fn event_time(&mut self) -> Result<EventTime, Rejection> {
        let ms = match self.members[EVENT_TIME] {
            Value::Number(span) => number::millis(&self.text.record[span.range()]),
            Value::Text(text) => {
                let span = self.text.literal(text);
                number::rfc3339(self.text.str(span)).map_err(Cow::Borrowed)
            }
            _ => Err("is missing".into()),
        };
        ms.map(EventTime).map_err(|what| Rejection::invalid("event_time", format!("event_time {what}")))
    }

    fn amount(&mut self) -> Result<Option<i64>, Rejection> {
        let micros = match self.members[AMOUNT] {
            Value::Number(span) => number::micros(&self.text.record[span.range()]),
            Value::Text(text) => {
                let span = self.text.literal(text);
                let text = self.text.str(span);
                if number::is_number(text) { number::micros(text) } else { Err("is not a decimal number") }
            }
            _ => return Ok(None),
        };
        match micros {
            Ok(micros) => Ok(Some(micros)),
            Err(what) => self
                .handle_field_error(AMOUNT, Rejection::invalid("amount", format!("amount {what}")))
                .map(|()| None),
        }
    }

    fn location(&mut self) -> Result<Option<(f64, f64)>, Rejection> {
        let Value::Object(span) = self.members[LOCATION] else { return Ok(None) };
        match degrees(self.text.record, span) {
            Ok(degrees) => Ok(Some(degrees)),
            Err(rejection) => self.handle_field_error(LOCATION, rejection).map(|()| None),
        }
    }

    /// Returns the span of the attributes, merged with the unknown fields into one object.
    fn attributes(&mut self) -> Result<Span, Rejection> {
        let own = match self.members[ATTRIBUTES] {
            Value::Object(span) => Some(span),
            _ => None,
        };
        let appended = self.text.appended.len();
        let span = match (own, self.unknown) {
            (None, []) => return Ok(Span::ABSENT),
            (Some(span), []) => span,
            (own, unknown) => self.merge(own, unknown),
        };
        let len = span.len();
        let message = if len > MAX_ATTRIBUTES {
            format!("attributes have {len} bytes, more than 65536")
        } else if !numbers_fit(self.text.str(span)) {
            "attributes contain a number that is too large to store".to_owned()
        } else {
            return Ok(span);
        };
        self.text.appended.truncate(appended);
        self.handle_field_error(ATTRIBUTES, Rejection::invalid("attributes", message)).map(|()| Span::ABSENT)
    }

    /// Appends an object with the attributes' own members, then the members of `unknown` that the attributes lack. Of
    /// several members with one name, the last is used.
    fn merge(&mut self, own: Option<Span>, unknown: &[(Text, Span)]) -> Span {
        let text = self.text.record;
        let unescape = |name: &Text| Scanner::new(text, 0).unescaped(name);
        let mut names = std::collections::HashSet::new();
        let mut merged = String::from("{");
        if let Some(span) = own {
            let range = span.range();
            // The object was scanned before, so it is well-formed.
            let _ = Scanner::new(text, range.start).members(2, |name, _, _| {
                names.insert(unescape(&name));
            });
            merged.push_str(text[range.start + 1..range.end - 1].trim());
        }
        let mut last = Vec::with_capacity(unknown.len());
        for (name, value) in unknown.iter().rev() {
            if names.insert(unescape(name)) {
                last.push((name, value));
            }
        }
        for (name, value) in last.into_iter().rev() {
            if merged.len() > 1 {
                merged.push(',');
            }
            merged.push('"');
            merged.push_str(&text[name.span.range()]);
            merged.push_str("\":");
            merged.push_str(&text[value.range()]);
        }
        merged.push('}');
        self.text.append(&merged)
    }
}

#[cold]
fn too_long(field: usize, len: usize, limit: usize) -> Rejection {
    let name = FIELDS[field];
    Rejection::invalid(name, format!("{name} has {len} bytes, more than {limit}"))
}

/// Returns latitude and longitude of an object, which was scanned before and is well-formed.
pub(super) fn degrees(text: &str, object: Span) -> Result<(f64, f64), Rejection> {
    let (mut lat, mut lon, mut lng) = (Value::Null, Value::Null, Value::Null);
    let _ = Scanner::new(text, object.range().start).members(2, |name, value, _| {
        match &*Scanner::new(text, 0).unescaped(&name) {
            "lat" => lat = value,
            "lon" => lon = value,
            "lng" => lng = value,
            _ => {}
        }
    });
    let (lon, name) = if lon == Value::Null && lng != Value::Null { (lng, "lng") } else { (lon, "lon") };
    let degree = |value: Value, name: &str, limit: f64| match value {
        Value::Number(span) => {
            let parsed = text[span.range()].parse::<f64>().ok().filter(|degree| degree.abs() <= limit);
            // Adding zero makes a negative zero positive.
            parsed
                .map(|degree| degree + 0.0)
                .ok_or_else(|| Rejection::invalid("location", format!("{name} is beyond {limit} degrees")))
        }
        Value::Null => Err(Rejection::invalid("location", format!("location has no {name}"))),
        _ => Err(Rejection::malformed(Some("location"), format!("{name} must be a number"))),
    };
    Ok((degree(lat, "lat", 90.0)?, degree(lon, name, 180.0)?))
}

/// Returns true if every number of a JSON text has at most 1,000 characters and an exponent of at most three digits. A
/// number that a sink cannot store would stop the pipeline permanently.
pub(super) fn numbers_fit(text: &str) -> bool {
    let mut rest = text.as_bytes();
    while let Some(&byte) = rest.first() {
        match byte {
            b'"' => {
                let mut at = find_special(rest, 1);
                while rest[at] != b'"' {
                    at = find_special(rest, at + 2);
                }
                rest = &rest[at + 1..];
            }
            b'-' | b'0'..=b'9' => {
                let in_number = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let len = rest.iter().take_while(|byte| in_number(byte)).count();
                let exponent =
                    rest[..len].iter().position(|byte| matches!(byte, b'e' | b'E')).map_or(0, |e| {
                        let significant =
                            rest[e + 1..len].iter().skip_while(|byte| matches!(byte, b'+' | b'-' | b'0'));
                        significant.count()
                    });
                if len > 1000 || exponent > 3 {
                    return false;
                }
                rest = &rest[len..];
            }
            _ => rest = &rest[1..],
        }
    }
    true
}

#[cfg(test)]
mod poison;
#[cfg(test)]
mod tests;
