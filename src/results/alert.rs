//! An alert as it is stored, and its place in the order of changes.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use headwater_dataflows::{Epoch, Position};

use crate::event::split_key;
use crate::json::rfc3339;
use crate::outputs::{Alert, Status};

/// The current state of an alert.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Alert)]
pub struct AlertRecord {
    /// The id: the same for every change of the alert.
    pub alert_id: String,
    /// `raised` or `revoked`.
    pub status: String,
    /// The rule.
    pub rule: String,
    /// The rule's version.
    pub rule_version: i64,
    /// `low`, `medium`, `high` or `critical`.
    pub severity: String,
    /// The kind of the key: `user` or `device`.
    pub key_kind: String,
    /// The key.
    pub key: String,
    /// The ids of the events that the alert names, the triggering event last.
    pub event_ids: Vec<String>,
    /// The event time of the triggering event, RFC 3339 in UTC.
    pub event_time: String,
    /// The epoch of the last change.
    pub epoch: u64,
    /// True if the alert cannot be revoked.
    pub r#final: bool,
    /// Details of the rule.
    #[schema(value_type = Object)]
    pub details: Box<RawValue>,
    /// The mode of the rule: `live`, or `shadow` for an alert that was sent to no one.
    pub mode: String,
    /// The event time, in milliseconds since 1970.
    #[serde(skip)]
    pub event_time_ms: i64,
    /// The position of the triggering event, where it is known. Tables do not store it.
    #[serde(skip)]
    pub position: Option<Position>,
}

impl AlertRecord {
    /// Returns the record of an alert that changed in an epoch.
    pub fn of(alert: &Alert, epoch: Epoch, status: Status) -> AlertRecord {
        let (kind, key) = split_key(&alert.key);
        let details = RawValue::from_string(alert.details.to_string());
        AlertRecord {
            alert_id: alert.id(),
            status: status.as_str().to_owned(),
            rule: alert.rule.to_string(),
            rule_version: alert.rule_version.into(),
            severity: alert.severity.as_str().to_owned(),
            key_kind: kind.as_str().to_owned(),
            key: key.to_owned(),
            event_ids: alert.event_ids.iter().map(|id| id.to_string()).collect(),
            event_time: rfc3339(alert.event_time.0),
            epoch: epoch.0,
            r#final: alert.settled,
            details: details.expect("a rule's details are JSON"),
            mode: alert.mode.as_str().to_owned(),
            event_time_ms: alert.event_time.0,
            position: Some(alert.position),
        }
    }

    /// Returns the place of the last change in the order of changes.
    pub fn cursor(&self) -> ChangeCursor {
        ChangeCursor { epoch: Epoch(self.epoch), alert_id: self.alert_id.clone() }
    }
}

/// A place in the order of changes, by epoch and id. Its text is `EPOCH-ID`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeCursor {
    /// The epoch.
    pub epoch: Epoch,
    /// The alert's id.
    pub alert_id: String,
}

impl ChangeCursor {
    /// Returns the place before all changes of an epoch and later ones.
    pub fn before(epoch: Epoch) -> ChangeCursor {
        ChangeCursor { epoch, alert_id: String::new() }
    }

    /// Parses the text of a cursor; None if it is not one.
    pub fn parse(text: &str) -> Option<ChangeCursor> {
        let (epoch, alert_id) = text.split_once('-')?;
        let is_id = alert_id.len() <= 64 && alert_id.bytes().all(|byte| byte.is_ascii_hexdigit());
        // The stores' integers are signed.
        let epoch = epoch.parse().ok().filter(|&epoch: &u64| i64::try_from(epoch).is_ok())?;
        is_id.then(|| ChangeCursor { epoch: Epoch(epoch), alert_id: alert_id.to_owned() })
    }
}

impl std::fmt::Display for ChangeCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.epoch.0, self.alert_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_parsed_from_its_text() {
        let cursor = ChangeCursor { epoch: Epoch(17), alert_id: "00ff".to_owned() };
        assert_eq!(ChangeCursor::parse(&cursor.to_string()), Some(cursor));
        assert_eq!(ChangeCursor::parse("3-"), Some(ChangeCursor::before(Epoch(3))));
        for wrong in ["", "3", "-1-00", "x-00", "3-zz", "18446744073709551615-00"] {
            assert_eq!(ChangeCursor::parse(wrong), None, "{wrong}");
        }
    }
}
