//! The event of a record whose values were scanned.

use std::sync::Arc;

use headwater_dataflows::EventTime;

use super::convert::{self, Wrong};
use super::envelope::Roots;
use super::{Const, FieldMap, FieldSource, MappedField};
use crate::decode::event_text::EventText;
use crate::decode::record::{MAX_ATTRIBUTES, degrees, numbers_fit};
use crate::decode::scan::Value;
use crate::decode::{FieldError, Reason, Rejection, number};
use crate::event::{Body, Event, EventType, Extension, KeyKind, Kind, Slot, Span, absent_key};
use crate::fields::{FieldId, FieldType, STANDARD};
use crate::source::Raw;

/// The maximum size of an event id, in bytes.
const MAX_ID: usize = 128;
/// The maximum size of a text in a standard field, in bytes.
const MAX_STANDARD: usize = 256;
/// The maximum size of a text in a field of one's own, in bytes.
const MAX_TEXT: usize = 4096;

/// The type of an event whose record says none.
const EVENT: &str = "event";

/// A builder of an event.
pub(super) struct EventBuilder<'a> {
    pub map: &'a FieldMap,
    pub roots: Roots,
    pub text: EventText<'a>,
    /// The values by read; None where the record has none.
    pub values: &'a [Option<Value>],
    pub strict: bool,
    pub errors: &'a mut Vec<FieldError>,
}

impl EventBuilder<'_> {
    pub fn build(mut self, raw: &Raw<'_>) -> Result<Event, Rejection> {
        let map = self.map;
        let mut standard = [Slot::Absent; STANDARD.len()];
        let mut own = vec![Slot::Absent; map.own].into_boxed_slice();
        for field in map.fields() {
            let slot = self.field(field, raw)?;
            match field.field.own() {
                Some(at) => own[at] = slot,
                None => standard[usize::from(field.field.0)] = slot,
            }
        }
        Ok(self.assemble(raw, &standard, own))
    }

    /// Returns the value of a field, if the event can do without it or the record has it.
    fn field(&mut self, field: &MappedField, raw: &Raw<'_>) -> Result<Slot, Rejection> {
        let appended = self.text.appended.len();
        let reason = match self.convert(field, raw) {
            Ok(Slot::Absent) if field.required => {
                let message = format!("{} is missing", field.label);
                return Err(Rejection::invalid(field.place.to_string(), message));
            }
            Ok(slot) => return Ok(slot),
            Err(reason) => reason,
        };
        self.text.appended.truncate(appended);
        let message = format!("{} {reason}", field.label);
        if self.strict || field.required {
            // What must be of another form was not understood; what is only beyond a range was.
            let reason = if reason.starts_with("must") { Reason::Malformed } else { Reason::Invalid };
            return Err(Rejection { reason, field: Some(field.place.to_string().into()), message });
        }
        self.errors.push(FieldError { field: field.name.to_string().into(), message });
        Ok(Slot::Absent)
    }

    /// Converts the value of a field.
    fn convert(&mut self, field: &MappedField, raw: &Raw<'_>) -> Result<Slot, Wrong> {
        let form = match &field.source {
            FieldSource::Const(value) => return Ok(self.constant(value)),
            FieldSource::RecordTimestamp => {
                return match number::in_range(raw.timestamp).filter(|_| raw.timestamp > 0) {
                    Some(ms) => Ok(Slot::Timestamp(ms)),
                    None => Err("is the record's timestamp, which this record does not have".into()),
                };
            }
            FieldSource::Place { .. } => return self.place(field.read + 2 * self.roots.data),
            FieldSource::Path { form, .. } => form,
        };
        let root = if field.is_in_envelope() { self.roots.outer } else { self.roots.data };
        let value = match &self.values[field.read + root] {
            None | Some(Value::Null) => return Ok(Slot::Absent),
            Some(value) => value,
        };
        match field.kind {
            FieldType::String => self.string(field.field, value),
            FieldType::Decimal => convert::decimal(self.text.record, value, form).map(Slot::Decimal),
            FieldType::Integer => convert::integer(self.text.record, value).map(Slot::Integer),
            FieldType::Float => convert::float(self.text.record, value).map(Slot::Float),
            FieldType::Boolean => convert::boolean(self.text.record, value, form).map(Slot::Boolean),
            FieldType::Timestamp => convert::timestamp(self.text.record, value, form).map(Slot::Timestamp),
            FieldType::Location => self.location(value),
            FieldType::Object => self.object(value),
        }
    }

    fn constant(&mut self, value: &Const) -> Slot {
        match value {
            Const::String(text) => Slot::String(self.text.append(text)),
            Const::Decimal(micros) => Slot::Decimal(*micros),
            Const::Integer(integer) => Slot::Integer(*integer),
            Const::Float(float) => Slot::Float(*float),
            Const::Boolean(boolean) => Slot::Boolean(*boolean),
            Const::Timestamp(ms) => Slot::Timestamp(*ms),
        }
    }

    /// Converts to text: a string, or a whole number digit by digit.
    fn string(&mut self, field: FieldId, value: &Value) -> Result<Slot, Wrong> {
        let limit = match field {
            FieldId::EVENT_ID => MAX_ID,
            _ if field.own().is_some() => MAX_TEXT,
            _ => MAX_STANDARD,
        };
        let span = match value {
            Value::Text(text) => self.text.literal(*text),
            Value::Number(span) if number::is_whole(&self.text.record[span.range()]) => *span,
            _ => return Err("must be a string or a whole number".into()),
        };
        let len = span.len();
        let identifies = [FieldId::EVENT_ID, FieldId::USER_ID, FieldId::DEVICE_ID, FieldId::EVENT_TYPE];
        if len > limit {
            Err(format!("has {len} bytes, more than {limit}").into())
        } else if len == 0 && identifies.contains(&field) {
            Err("is empty".into())
        } else {
            Ok(Slot::String(span))
        }
    }

    /// Converts an object with latitude and longitude.
    fn location(&self, value: &Value) -> Result<Slot, Wrong> {
        let Value::Object(span) = value else { return Err("must be an object with lat and lon".into()) };
        match degrees(self.text.record, *span) {
            Ok((lat, lon)) => Ok(Slot::Location(lat, lon)),
            Err(rejection) => Err(format!("is no location: {}", rejection.message).into()),
        }
    }

    /// Converts latitude and longitude that are apart.
    fn place(&self, read: usize) -> Result<Slot, Wrong> {
        let value = |read: usize| self.values[read].as_ref().unwrap_or(&Value::Null);
        let (lat, lon) = (value(read), value(read + 1));
        if *lat == Value::Null && *lon == Value::Null {
            return Ok(Slot::Absent);
        }
        let lat = convert::degrees(self.text.record, lat, "latitude", 90.0)?;
        Ok(Slot::Location(lat, convert::degrees(self.text.record, lon, "longitude", 180.0)?))
    }

    /// Converts an object that is kept as it is.
    fn object(&self, value: &Value) -> Result<Slot, Wrong> {
        let Value::Object(span) = value else { return Err("must be an object".into()) };
        let text = &self.text.record[span.range()];
        if text.len() > MAX_ATTRIBUTES {
            Err(format!("has {} bytes, more than {MAX_ATTRIBUTES}", text.len()).into())
        } else if !numbers_fit(text) {
            Err("contains a number that is too large to store".into())
        } else {
            Ok(Slot::String(*span))
        }
    }

    fn assemble(mut self, raw: &Raw<'_>, standard: &[Slot; STANDARD.len()], own: Box<[Slot]>) -> Event {
        let span = |field: FieldId| match standard[usize::from(field.0)] {
            Slot::String(span) => span,
            _ => Span::ABSENT,
        };
        let event_time = match standard[usize::from(FieldId::EVENT_TIME.0)] {
            Slot::Timestamp(ms) => EventTime(ms),
            _ => unreachable!("the time of an event is required"),
        };
        let has_id = span(FieldId::EVENT_ID) != Span::ABSENT;
        let id = match span(FieldId::EVENT_ID) {
            Span::ABSENT => {
                self.text.append(&format!("{}-{}", raw.position.partition.0, raw.position.offset.0))
            }
            id => id,
        };
        let event_type = match span(FieldId::EVENT_TYPE) {
            Span::ABSENT => self.text.append(EVENT),
            event_type => event_type,
        };
        let (user_id, device_id) = (span(FieldId::USER_ID), span(FieldId::DEVICE_ID));
        let (key, name) = self.key(event_type, user_id, device_id, id);
        let record_key = self.text.record_key(raw, name);
        let merchant_id = span(FieldId::MERCHANT_ID);
        let merchant = self.text.hash(merchant_id).0;
        let key_hash = self.text.hash(key);
        let body = Body {
            original: self.text.record.len() as u32,
            text: self.text.joined(),
            retries: raw.retries,
            timestamp: raw.timestamp,
            amount: match standard[usize::from(FieldId::AMOUNT.0)] {
                Slot::Decimal(micros) => Some(micros),
                _ => None,
            },
            location: match standard[usize::from(FieldId::LOCATION.0)] {
                Slot::Location(lat, lon) => Some((lat, lon)),
                _ => None,
            },
            merchant,
            record_key,
            key,
            id,
            currency: span(FieldId::CURRENCY),
            merchant_id,
            merchant_category: span(FieldId::MERCHANT_CATEGORY),
            ip_address: span(FieldId::IP_ADDRESS),
            session_id: span(FieldId::SESSION_ID),
            device_id,
            attributes: span(FieldId::ATTRIBUTES),
            kind: Kind::Extended(Box::new(Extension { event_type, user_id, has_id, is_mapped: true, own })),
        };
        Event { position: raw.position, event_time, key_hash, body: Arc::new(body) }
    }

    /// Appends the key of the event, with its prefix, and returns it and the span of its name. An event without a key is
    /// admitted under one of a number of keys that stand for none.
    fn key(&mut self, event_type: Span, user: Span, device: Span, id: Span) -> (Span, Option<Span>) {
        let is_sensor = self.text.str(event_type) == EventType::IotSensor.as_str();
        let (kind, name) = if is_sensor { (KeyKind::Device, device) } else { (KeyKind::User, user) };
        if name == Span::ABSENT {
            let key = absent_key(self.text.hash(id));
            return (self.text.append(&key), None);
        }
        (self.text.append_key(kind, name), Some(name))
    }
}
