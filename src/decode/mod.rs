//! Decoding: bytes in, events or rejections out. Nothing panics, and nothing but the event's text is copied.
//!
//! A record is scanned once. What its known members hold is noted on the way and judged afterwards, so that a
//! record that is not JSON at all is called malformed whatever else is wrong with it.

mod number;
mod record;
mod scan;

pub use record::Decoder;

use std::borrow::Cow;

use headwater_dataflows::EventTime;
use serde::{Deserialize, Serialize};

/// A time in milliseconds since 1970, from RFC 3339 with an offset.
///
/// # Errors
/// Says what is wrong with it.
pub fn rfc3339_ms(text: &str) -> Result<i64, &'static str> {
    number::rfc3339(text)
}

/// An optional field of a wrong form, which is taken as absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Which.
    pub field: &'static str,
    /// What is wrong with it, for people.
    pub message: String,
}

/// The fields that can be of a wrong form in an event.
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

/// Why a record takes no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It cannot be read: not JSON, a known member of another type, too large.
    Malformed,
    /// It can be read, but breaks a rule.
    Invalid,
    /// It came after the watermark had passed it.
    Late,
    /// It claims to come from the future.
    Future,
    /// It came before.
    Duplicate,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 5] =
        [Reason::Malformed, Reason::Invalid, Reason::Late, Reason::Future, Reason::Duplicate];

    /// As it is written.
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

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rejection {
    /// Why it takes no part.
    pub reason: Reason,
    /// Which member is at fault, if one is.
    pub field: Option<Cow<'static, str>>,
    /// What is wrong, for people.
    pub message: String,
}

impl Rejection {
    fn malformed(field: Option<&'static str>, message: impl Into<String>) -> Rejection {
        Rejection { reason: Reason::Malformed, field: field.map(Cow::Borrowed), message: message.into() }
    }

    fn invalid(field: &'static str, message: impl Into<String>) -> Rejection {
        Rejection { reason: Reason::Invalid, field: Some(Cow::Borrowed(field)), message: message.into() }
    }

    /// An event whose time lies more than `skew_ms` beyond the earlier of its record's timestamp and the wall time at
    /// which it was read, all in milliseconds since 1970.
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

    /// An event that came after the watermark had passed it.
    pub fn late(time: EventTime) -> Rejection {
        Rejection {
            reason: Reason::Late,
            field: Some(Cow::Borrowed("event_time")),
            message: format!("event_time {} is at or below the watermark", crate::json::rfc3339(time.0)),
        }
    }

    /// An event that came before.
    pub fn duplicate(id: &str) -> Rejection {
        Rejection {
            reason: Reason::Duplicate,
            field: Some(Cow::Borrowed("event_id")),
            message: format!("an event of this key with the id {id:?} was accepted before"),
        }
    }
}
