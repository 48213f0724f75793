//! Events: decoded records.

#[cfg(feature = "abomonation")]
pub(crate) mod abomonated;
pub mod forms;
mod kind;
pub(crate) mod packed;
mod values;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use headwater_dataflows::patterns::Location;
use headwater_dataflows::{Epoch, EventTime, KeyHash, Position, prefetch};
use serde::{Deserialize, Serialize};

use crate::fields::{Layout, Value};
use crate::json;

use forms::form;
pub(crate) use kind::{Extension, Kind, Slot, Transcoded};

/// The type of a standard event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EventType {
    /// A payment.
    Transaction,
    /// An action of a user.
    UserActivity,
    /// A measurement of a device.
    IotSensor,
    /// A call of an API.
    ApiCall,
}

impl EventType {
    /// Returns the name in records.
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Transaction => "transaction",
            EventType::UserActivity => "user_activity",
            EventType::IotSensor => "iot_sensor",
            EventType::ApiCall => "api_call",
        }
    }

    /// Parses the name in records.
    pub fn parse(text: &str) -> Option<EventType> {
        [EventType::Transaction, EventType::UserActivity, EventType::IotSensor, EventType::ApiCall]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// The kind of a key. User 42 and device 42 are different keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyKind<'a> {
    /// A user.
    User,
    /// A device.
    Device,
    /// A key of the user's own, with its name in `[keys]`.
    Own(&'a str),
    /// No key: the event has neither user nor device.
    Absent,
}

impl<'a> KeyKind<'a> {
    /// Returns the name in outputs.
    pub fn as_str(self) -> &'a str {
        match self {
            KeyKind::User => "user",
            KeyKind::Device => "device",
            KeyKind::Own(name) => name,
            KeyKind::Absent => "none",
        }
    }

    /// Returns the kind of this name.
    pub fn parse(name: &'a str) -> KeyKind<'a> {
        match name {
            "user" => KeyKind::User,
            "device" => KeyKind::Device,
            "none" => KeyKind::Absent,
            own => KeyKind::Own(own),
        }
    }

    /// Returns a key of this kind with its prefix. It identifies the key among those of all kinds.
    pub fn prefixed(self, key: &str) -> String {
        let name = if let KeyKind::Own(name) = self { name.len() + 1 } else { 0 };
        let mut prefixed = String::with_capacity(1 + name + key.len());
        self.push_prefixed(key, &mut prefixed);
        prefixed
    }

    /// Appends a key of this kind with its prefix.
    pub fn push_prefixed(self, key: &str, out: &mut String) {
        match self {
            KeyKind::User => out.push('u'),
            KeyKind::Device => out.push('d'),
            KeyKind::Own(name) => out.extend(["k", name, ":"]),
            KeyKind::Absent => out.push('n'),
        }
        out.push_str(key);
    }
}

/// The number of keys that stand for none. The ids of events without a key are distinguished in these, so that what
/// is remembered of them is bounded.
const ABSENT_KEYS: u64 = 1024;

/// Returns the key, with its prefix, of an event without a key whose id has this hash.
pub(crate) fn absent_key(id: KeyHash) -> String {
    KeyKind::Absent.prefixed(&(id.0 % ABSENT_KEYS).to_string())
}

/// Splits a key with its prefix into its kind and its name, which is empty if there is no key.
pub fn split_key(key: &str) -> (KeyKind<'_>, &str) {
    let mut rest = key.chars();
    match rest.next() {
        Some('u') => (KeyKind::User, rest.as_str()),
        Some('d') => (KeyKind::Device, rest.as_str()),
        Some('n') => (KeyKind::Absent, ""),
        Some('k') => match rest.as_str().split_once(':') {
            Some((name, key)) => (KeyKind::Own(name), key),
            None => (KeyKind::Absent, ""),
        },
        _ => (KeyKind::Absent, ""),
    }
}

/// A range of an event's text, or [`ABSENT`](Span::ABSENT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    pub const ABSENT: Span = Span { start: 0, len: u32::MAX };

    pub fn new(range: std::ops::Range<usize>) -> Span {
        Span { start: range.start as u32, len: range.len() as u32 }
    }

    /// Returns the range of the text; meaningless for an absent span.
    pub fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.len()
    }

    /// Returns the number of bytes; meaningless for an absent span.
    pub fn len(self) -> usize {
        self.len as usize
    }

    fn of(self, text: &str) -> Option<&str> {
        text.get(self.start as usize..).and_then(|rest| rest.get(..self.len as usize))
    }
}

/// A decoded event: the fields that operators sort by, and a shared body. Moving and cloning copies a few words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub(crate) position: Position,
    pub(crate) event_time: EventTime,
    pub(crate) key_hash: KeyHash,
    #[serde(with = "shared")]
    pub(crate) body: Arc<Body>,
}

/// The content of an event. Its text is the original record, or what that was transcoded to, followed by the values that are not ranges of it: the key
/// with its prefix, unescaped strings and merged attributes.
///
/// The fields that operators use come first, so that they are in one or two cache lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[repr(C)]
pub(crate) struct Body {
    pub text: Box<str>,
    pub key: Span,
    pub amount: Option<i64>,
    /// The hash of the merchant id, by which patterns and windows distinguish merchants.
    pub merchant: u64,
    pub merchant_id: Span,
    pub location: Option<(f64, f64)>,
    pub id: Span,
    /// The length of the original record at the start of the text.
    pub original: u32,
    pub retries: u32,
    pub timestamp: i64,
    /// The key of the record, if it is not the name of the event's key.
    pub record_key: RecordKey,
    pub currency: Span,
    pub merchant_category: Span,
    pub ip_address: Span,
    pub session_id: Span,
    pub device_id: Span,
    pub attributes: Span,
    pub kind: Kind,
}

impl Body {
    /// Returns true if all spans lie within the text.
    fn is_valid(&self) -> bool {
        let Body { currency, merchant_id, merchant_category, ip_address, session_id, .. } = *self;
        let extension = self.extension();
        let required = [self.key, self.id];
        let own = extension.iter().flat_map(|extension| &extension.own).filter_map(|slot| match slot {
            Slot::String(span) => Some(*span),
            _ => None,
        });
        let optional = [
            currency,
            merchant_id,
            merchant_category,
            ip_address,
            session_id,
            self.device_id,
            self.attributes,
            extension.map_or(Span::ABSENT, |extension| extension.user_id),
            extension.map_or(Span::ABSENT, |extension| extension.event_type),
        ];
        self.text.get(..self.original as usize).is_some()
            && !matches!(self.kind(), Kind::Transcoded(_))
            && required.iter().all(|span| span.of(&self.text).is_some())
            && (optional.into_iter().chain(own))
                .all(|span| span == Span::ABSENT || span.of(&self.text).is_some())
    }

    /// Returns the kind of the event, whatever its record was.
    fn kind(&self) -> &Kind {
        match &self.kind {
            Kind::Transcoded(transcoded) => &transcoded.kind,
            kind => kind,
        }
    }

    fn extension(&self) -> Option<&Extension> {
        match self.kind() {
            Kind::Extended(extension) => Some(extension),
            _ => None,
        }
    }
}

/// Serialisation of a shared body. Between processes it is sent by value; a received body is validated.
mod shared {
    use std::sync::Arc;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Body;

    pub fn serialize<S: Serializer>(body: &Arc<Body>, serializer: S) -> Result<S::Ok, S::Error> {
        body.as_ref().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Body>, D::Error> {
        let body = Body::deserialize(deserializer)?;
        if body.is_valid() {
            Ok(Arc::new(body))
        } else {
            Err(D::Error::custom("a span of the event lies beyond its text"))
        }
    }
}

/// The key of the record of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RecordKey {
    Absent,
    /// The record key equals the name of the event's key.
    Usual,
    Other(Box<[u8]>),
}

/// Events are equal if they are decoded from the same record.
impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Orders by event time, then by position, then by text.
impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = |event: &Event| (event.event_time, event.position, event.timestamp(), event.retries());
        order(self).cmp(&order(other)).then_with(|| self.body.text.cmp(&other.body.text))
    }
}

macro_rules! optional_texts {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        pub fn $name(&self) -> Option<&str> {
            self.body.$name.of(&self.body.text)
        }
    )*};
}

impl Event {
    /// Returns the event id.
    pub fn id(&self) -> &str {
        self.body.id.of(&self.body.text).unwrap_or_default()
    }

    /// Returns the event type: one of those of [`EventType`], or a text of the user's own.
    pub fn event_type(&self) -> &str {
        match self.body.kind() {
            Kind::Transaction => EventType::Transaction.as_str(),
            Kind::UserActivity => EventType::UserActivity.as_str(),
            Kind::IotSensor => EventType::IotSensor.as_str(),
            Kind::ApiCall => EventType::ApiCall.as_str(),
            Kind::Extended(extension) => extension.event_type.of(&self.body.text).unwrap_or_default(),
            Kind::Transcoded(_) => unreachable!("checked when it was made and received"),
        }
    }

    /// Returns true if outputs have the id of the user.
    fn has_user_in_outputs(&self) -> bool {
        self.body.extension().is_none_or(|extension| extension.is_mapped)
    }

    /// Returns the id of the user, whether or not it is the event's key.
    pub fn user_id(&self) -> Option<&str> {
        match self.body.kind() {
            Kind::Extended(extension) => extension.user_id.of(&self.body.text),
            _ => match split_key(self.key()) {
                (KeyKind::User, id) => Some(id),
                _ => None,
            },
        }
    }

    /// Returns the key with its prefix: `u` or `d` for user or device, then its name.
    pub fn key(&self) -> &str {
        self.body.key.of(&self.body.text).unwrap_or_default()
    }

    /// Returns the event time.
    pub fn event_time(&self) -> EventTime {
        self.event_time
    }

    /// Returns the partition and offset of the record.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Returns the record timestamp, in milliseconds since 1970.
    pub fn timestamp(&self) -> i64 {
        self.body.timestamp
    }

    /// Returns the number of times that the record was retried from the dead letters.
    pub fn retries(&self) -> u32 {
        self.body.retries
    }

    /// Returns the amount, in millionths.
    pub fn amount(&self) -> Option<i64> {
        self.body.amount
    }

    /// Returns the location.
    pub fn location(&self) -> Option<Location> {
        self.body.location.map(|(lat, lon)| Location { lat, lon })
    }

    /// Returns the hash of the merchant id.
    pub fn merchant(&self) -> Option<u64> {
        (self.body.merchant_id != Span::ABSENT).then_some(self.body.merchant)
    }

    optional_texts! {
        /// Returns the currency of the amount.
        currency
        /// Returns the merchant id.
        merchant_id
        /// Returns the category of the merchant.
        merchant_category
        /// Returns the IP address.
        ip_address
        /// Returns the session id.
        session_id
        /// Returns the device id.
        device_id
        /// Returns further attributes: a JSON object.
        attributes
    }

    /// Returns the original record.
    pub fn original(&self) -> &[u8] {
        match &self.body.kind {
            Kind::Transcoded(transcoded) => &transcoded.record,
            _ => &self.body.text.as_bytes()[..self.body.original as usize],
        }
    }

    /// Returns the size of the text that the event has beside its record, because the record was transcoded to it.
    pub fn transcoded_bytes(&self) -> usize {
        match &self.body.kind {
            Kind::Transcoded(_) => self.body.original as usize,
            _ => 0,
        }
    }

    /// Keeps the original record of an event that was decoded from what the record was transcoded to.
    pub(crate) fn keep_record(&mut self, record: &[u8]) {
        let body = Arc::get_mut(&mut self.body).expect("an event that was just decoded is not shared");
        let kind = std::mem::replace(&mut body.kind, Kind::Transaction);
        body.kind = Kind::Transcoded(Box::new(Transcoded { record: record.into(), kind }));
    }

    /// Returns the original key of the record.
    pub fn record_key(&self) -> Option<&[u8]> {
        match &self.body.record_key {
            RecordKey::Absent => None,
            RecordKey::Usual => Some(split_key(self.key()).1.as_bytes()),
            RecordKey::Other(key) => Some(key),
        }
    }

    /// Appends the members of the event's JSON object, without braces.
    pub fn write_members(&self, layout: &Layout, out: &mut Vec<u8>) {
        let mut text = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                out.extend_from_slice(name.as_bytes());
                json::write_string(out, value);
            }
        };
        text("\"event_id\":", Some(self.id()));
        text(",\"event_type\":", Some(self.event_type()));
        text(",\"user_id\":", self.user_id().filter(|_| self.has_user_in_outputs()));
        text(",\"device_id\":", self.device_id());
        text(",\"currency\":", self.currency());
        text(",\"merchant_id\":", self.merchant_id());
        text(",\"merchant_category\":", self.merchant_category());
        text(",\"ip_address\":", self.ip_address());
        text(",\"session_id\":", self.session_id());
        out.extend_from_slice(b",\"event_time\":\"");
        json::write_time(out, self.event_time.0);
        out.push(b'"');
        if let Some(amount) = self.body.amount {
            out.extend_from_slice(b",\"amount\":");
            json::write_micros(out, amount);
        }
        if let Some((lat, lon)) = self.body.location {
            out.extend_from_slice(b",\"location\":");
            write_value(Value::Location(Location { lat, lon }), out);
        }
        if let Some(attributes) = self.attributes() {
            out.extend_from_slice(b",\"attributes\":");
            out.extend_from_slice(attributes.as_bytes());
        }
        self.write_own(layout, true, out);
    }

    /// Returns the attributes and the user's own fields as one JSON object; None if there are neither.
    pub fn all_attributes(&self, layout: &Layout) -> Option<Cow<'_, str>> {
        let attributes = self.attributes();
        if self.body.extension().is_none_or(|extension| extension.own.is_empty()) {
            return attributes.map(Cow::Borrowed);
        }
        let members = attributes.map_or("", |object| object[1..object.len() - 1].trim());
        let mut out = Vec::with_capacity(members.len() + 64);
        out.push(b'{');
        out.extend_from_slice(members.as_bytes());
        self.write_own(layout, !members.is_empty(), &mut out);
        out.push(b'}');
        Some(Cow::Owned(String::from_utf8(out).expect("JSON is UTF-8")))
    }

    /// Appends the user's own fields that the event has, as members of a JSON object.
    fn write_own(&self, layout: &Layout, mut comma: bool, out: &mut Vec<u8>) {
        if self.body.extension().is_none() {
            return;
        }
        for (field, name, _) in layout.own() {
            let value = self.own(field);
            if value == Value::Absent {
                continue;
            }
            if std::mem::replace(&mut comma, true) {
                out.push(b',');
            }
            json::write_string(out, name);
            out.push(b':');
            write_value(value, out);
        }
    }
}

/// Appends a value as JSON.
pub(crate) fn write_value(value: Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Absent => out.extend_from_slice(b"null"),
        Value::String(text) => json::write_string(out, text),
        Value::Decimal(micros) => json::write_micros(out, micros),
        Value::Integer(integer) => json::write_int(out, integer),
        Value::Float(float) => json::write_float(out, float),
        Value::Boolean(boolean) => out.extend_from_slice(if boolean { b"true" } else { b"false" }),
        Value::Timestamp(ms) => {
            out.push(b'"');
            json::write_time(out, ms);
            out.push(b'"');
        }
        Value::Location(Location { lat, lon }) => {
            out.extend_from_slice(b"{\"lat\":");
            json::write_float(out, lat);
            out.extend_from_slice(b",\"lon\":");
            json::write_float(out, lon);
            out.push(b'}');
        }
        Value::Object(text) => out.extend_from_slice(text.as_bytes()),
    }
}

impl headwater_dataflows::Event for Event {
    type Key = str;

    fn key(&self) -> &str {
        Event::key(self)
    }

    fn key_hash(&self) -> KeyHash {
        self.key_hash
    }

    fn time(&self) -> EventTime {
        self.event_time
    }

    fn position(&self) -> Position {
        self.position
    }

    fn id(&self) -> Option<&[u8]> {
        if self.body.extension().is_some_and(|extension| !extension.has_id) {
            return None;
        }
        self.body.text.as_bytes().get(self.body.id.range())
    }

    fn prefetch(&self) {
        prefetch(&*self.body);
    }

    fn pack(batch: &[(Event, Epoch, isize)], out: &mut Vec<u8>) {
        form::write(batch, out, |_, _| {});
    }

    fn unpack(bytes: &[u8]) -> Result<Vec<(Event, Epoch, isize)>, String> {
        form::read(bytes, |event, _| Ok(event))
    }
}
