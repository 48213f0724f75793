//! Key spaces: further keys of an event, beside the one by which it is admitted.
//!
//! ```text
//!   events ─▶ admission by `key` ─┬─▶ rules, windows, enrichment by `key`
//!                                 └─▶ keyed by `card` ─ exchange ─▶ admission, without deduplication ─▶ rules, windows
//! ```

use std::cmp::Ordering;
use std::sync::Arc;

use headwater_dataflows::{Epoch, EventTime, KeyHash, Position};
use serde::{Deserialize, Serialize};

use crate::event::forms::form;
use crate::event::packed::{Malformed, write_bytes};
use crate::event::{Event, KeyKind, write_value};
use crate::fields::{FieldId, Value};
use crate::json::rfc3339;

/// A key space: the fields whose values are the key of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpace {
    /// The name, which is the `key_kind` of outputs.
    pub name: Arc<str>,
    /// The fields, at least one. An event that lacks one is not in the key space.
    pub fields: Vec<FieldId>,
}

impl KeySpace {
    /// Returns the key spaces that every pipeline has: users and devices.
    pub fn built_in() -> [KeySpace; 2] {
        [("user", FieldId::USER_ID), ("device", FieldId::DEVICE_ID)]
            .map(|(name, field)| KeySpace { name: name.into(), fields: vec![field] })
    }

    /// Returns the kind of its keys.
    pub fn kind(&self) -> KeyKind<'_> {
        KeyKind::parse(&self.name)
    }

    /// Returns the key of an event, with its prefix; None if the event has none. The key of several fields is a JSON
    /// array of their values.
    pub fn key(&self, event: &Event) -> Option<String> {
        if let [field] = self.fields[..] {
            return match event.value(field) {
                Value::Absent | Value::String("") => None,
                Value::String(text) => Some(self.kind().prefixed(text)),
                Value::Timestamp(ms) => Some(self.kind().prefixed(&rfc3339(ms))),
                value => {
                    let mut text = Vec::new();
                    write_value(value, &mut text);
                    Some(self.kind().prefixed(std::str::from_utf8(&text).unwrap_or_default()))
                }
            };
        }
        let mut key = vec![b'['];
        for (at, field) in self.fields.iter().enumerate() {
            if at > 0 {
                key.push(b',');
            }
            match event.value(*field) {
                Value::Absent | Value::String("") => return None,
                value => write_value(value, &mut key),
            }
        }
        key.push(b']');
        Some(self.kind().prefixed(std::str::from_utf8(&key).unwrap_or_default()))
    }
}

/// An event by the key of a key space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceEvent {
    event: Event,
    /// The key, with its prefix.
    key: Box<str>,
    hash: KeyHash,
}

impl SpaceEvent {
    /// Returns the event by its key of a key space; None if it has none.
    pub fn new(event: Event, space: &KeySpace) -> Option<SpaceEvent> {
        let key = space.key(&event)?.into_boxed_str();
        let hash = KeyHash::of(key.as_bytes());
        Some(SpaceEvent { event, key, hash })
    }
}

impl AsRef<Event> for SpaceEvent {
    fn as_ref(&self) -> &Event {
        &self.event
    }
}

impl AsRef<Event> for Event {
    fn as_ref(&self) -> &Event {
        self
    }
}

impl PartialOrd for SpaceEvent {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpaceEvent {
    fn cmp(&self, other: &Self) -> Ordering {
        self.event.cmp(&other.event).then_with(|| self.key.cmp(&other.key))
    }
}

impl headwater_dataflows::Event for SpaceEvent {
    type Key = str;

    fn key(&self) -> &str {
        &self.key
    }

    fn key_hash(&self) -> KeyHash {
        self.hash
    }

    fn time(&self) -> EventTime {
        self.event.event_time()
    }

    fn position(&self) -> Position {
        self.event.position()
    }

    fn id(&self) -> Option<&[u8]> {
        headwater_dataflows::Event::id(&self.event)
    }

    fn prefetch(&self) {
        headwater_dataflows::Event::prefetch(&self.event);
    }

    fn pack(batch: &[(SpaceEvent, Epoch, isize)], out: &mut Vec<u8>) {
        form::write(batch, out, |SpaceEvent { key, hash, .. }, out| {
            write_bytes(key.as_bytes(), out);
            out.extend_from_slice(&hash.0.to_le_bytes());
        });
    }

    fn unpack(bytes: &[u8]) -> Result<Vec<(SpaceEvent, Epoch, isize)>, String> {
        form::read(bytes, |event, reader| {
            let key = std::str::from_utf8(reader.bytes()?).map_err(|_| Malformed("its key"))?.into();
            Ok(SpaceEvent { event, key, hash: KeyHash(u64::from_le_bytes(reader.array()?)) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::split_key;
    use crate::pipeline::fixtures::event;

    fn space(name: &str, fields: &[FieldId]) -> KeySpace {
        KeySpace { name: name.into(), fields: fields.to_vec() }
    }

    #[test]
    fn keys_are_the_values_of_their_fields() {
        let full = event(0, 0, r#","merchant_id":"m\"1","amount":12.50,"ip_address":"""#);
        let key = |fields: &[FieldId]| {
            let key = space("pair", fields).key(&full)?;
            let (kind, name) = split_key(&key);
            assert_eq!(kind, KeyKind::Own("pair"));
            Some(name.to_owned())
        };
        assert_eq!(key(&[FieldId::MERCHANT_ID]).as_deref(), Some("m\"1"));
        assert_eq!(key(&[FieldId::AMOUNT]).as_deref(), Some("12.5"));
        assert_eq!(
            key(&[FieldId::MERCHANT_ID, FieldId::AMOUNT, FieldId::EVENT_TIME]).as_deref(),
            Some(r#"["m\"1",12.5,"2027-01-15T08:00:00.000Z"]"#)
        );
        assert_eq!(key(&[FieldId::CURRENCY]), None, "a field that the event lacks");
        assert_eq!(key(&[FieldId::IP_ADDRESS]), None, "an empty text is no key");
        assert_eq!(key(&[FieldId::MERCHANT_ID, FieldId::CURRENCY]), None);
        let user = &KeySpace::built_in()[0];
        assert_eq!(user.key(&full).as_deref(), Some("uann"));
    }
}
