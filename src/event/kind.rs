//! The kinds of events: what an event has beyond the fields of the standard one.

use serde::{Deserialize, Serialize};

use super::{EventType, Span};

/// The type of an event, and what an event has beyond the standard one.
///
/// Checkpoints store the first four variants as earlier releases stored the event type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Transaction,
    UserActivity,
    IotSensor,
    ApiCall,
    Extended(Box<Extension>),
    /// The text is not the record itself, but what it was transcoded to.
    Transcoded(Box<Transcoded>),
}

impl From<EventType> for Kind {
    fn from(event_type: EventType) -> Kind {
        match event_type {
            EventType::Transaction => Kind::Transaction,
            EventType::UserActivity => Kind::UserActivity,
            EventType::IotSensor => Kind::IotSensor,
            EventType::ApiCall => Kind::ApiCall,
        }
    }
}

/// The parts of an event beyond the standard one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Extension {
    /// The type of the event, which may be any text.
    pub event_type: Span,
    /// The user, also if the event's key is another.
    pub user_id: Span,
    /// True if the id is that of a field, by which duplicates are recognised; false if it is made of the position.
    pub has_id: bool,
    /// True if the record was mapped by `[fields]`. The user of a standard event of a sensor is for keys and rules only:
    /// outputs do not have it.
    pub is_mapped: bool,
    /// The values of the user's own fields, in the order of the layout.
    pub own: Box<[Slot]>,
}

/// An event whose record is not text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Transcoded {
    /// The original record.
    pub record: Box<[u8]>,
    /// The kind of the event otherwise, which is not this one again.
    pub kind: Kind,
}

/// The value of one of the user's own fields.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Slot {
    Absent,
    String(Span),
    Decimal(i64),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Timestamp(i64),
    Location(f64, f64),
}
