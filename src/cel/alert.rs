//! Conditions on alerts. The values of an alert are the slots of an event, so that all that expressions over events can do
//! is done with them, too.

use std::sync::{Arc, LazyLock};

use headwater_dataflows::{EventTime, KeyHash, Offset, Partition, Position};

use super::eval::Truth;
use super::{AlertPredicate, CelError, Scope, compile, condition};
use crate::event::{Body, Event, Extension, Kind, RecordKey, Slot, Span};
use crate::fields::{FieldId, FieldType, Layout};

/// The texts of an alert, in the order of the layout.
const TEXTS: [&str; 5] = ["rule", "key_kind", "key", "severity", "status"];

/// The members of an alert, for messages.
pub(super) const MEMBERS: [&str; 7] =
    ["rule", "key_kind", "key", "severity", "status", "event_time", "details"];

static LAYOUT: LazyLock<Layout> =
    LazyLock::new(|| Layout::new(TEXTS.map(|name| (name.into(), FieldType::String)).into()));

/// The values of an alert.
#[derive(Clone, Copy, Debug)]
pub struct AlertValues<'a> {
    /// The rule.
    pub rule: &'a str,
    /// The kind of the key.
    pub key_kind: &'a str,
    /// The key.
    pub key: &'a str,
    /// The time of the triggering event, in milliseconds since 1970.
    pub event_time_ms: i64,
    /// The values that may differ between the changes of an alert; None if they are not known.
    pub current: Option<CurrentValues<'a>>,
}

/// The values that may differ between the changes of an alert.
#[derive(Clone, Copy, Debug)]
pub struct CurrentValues<'a> {
    /// The severity.
    pub severity: &'a str,
    /// `raised` or `revoked`.
    pub status: &'a str,
    /// The details: a JSON object.
    pub details: &'a str,
}

/// Returns the field of a member of an alert.
pub(super) fn field(name: &str) -> Option<(FieldId, FieldType)> {
    match name {
        "details" => Some((FieldId::ATTRIBUTES, FieldType::Object)),
        "event_time" => Some((FieldId::EVENT_TIME, FieldType::Timestamp)),
        _ => LAYOUT.own().find(|(_, known, _)| *known == name).map(|(id, _, kind)| (id, kind)),
    }
}

/// Compiles a condition on alerts.
///
/// # Errors
/// If the source is not an expression, or not one that is true or false.
pub fn compile_alert_predicate(source: &str) -> Result<AlertPredicate, CelError> {
    let compiled: Result<Truth, CelError> = compile(source, &Scope::of_alerts(&LAYOUT), condition);
    compiled.map(|truth| AlertPredicate::new(source, truth))
}

impl AlertPredicate {
    /// Returns true if the condition holds for an alert. A condition with a fault does not.
    pub fn holds(&self, alert: &AlertValues<'_>) -> bool {
        self.0.counted(self.0.expression.eval(&alert.as_event())).unwrap_or(false)
    }

    /// Returns false if the condition cannot hold for any alert with these values, whatever is not known of it.
    pub fn can_hold(&self, alert: &AlertValues<'_>) -> bool {
        self.0.expression.eval(&alert.as_event()) != Ok(false)
    }
}

impl AlertValues<'_> {
    fn as_event(&self) -> Event {
        let mut text = String::new();
        let mut append = |value: &str| {
            let start = text.len();
            text.push_str(value);
            Span::new(start..text.len())
        };
        let known = [self.rule, self.key_kind, self.key].map(|value| Slot::String(append(value)));
        let (current, attributes) = match &self.current {
            Some(CurrentValues { severity, status, details }) => {
                ([*severity, *status].map(|value| Slot::String(append(value))), append(details))
            }
            None => ([Slot::Absent; 2], Span::ABSENT),
        };
        let own = known.into_iter().chain(current).collect();
        let absent = Span::ABSENT;
        let extension =
            Extension { event_type: absent, user_id: absent, has_id: false, is_mapped: true, own };
        let body = Body {
            text: text.into(),
            key: absent,
            amount: None,
            merchant: 0,
            merchant_id: absent,
            location: None,
            id: absent,
            original: 0,
            retries: 0,
            timestamp: 0,
            record_key: RecordKey::Absent,
            currency: absent,
            merchant_category: absent,
            ip_address: absent,
            session_id: absent,
            device_id: absent,
            attributes,
            kind: Kind::Extended(Box::new(extension)),
        };
        let position = Position { partition: Partition(0), offset: Offset(0) };
        let event_time = EventTime(self.event_time_ms);
        Event { position, event_time, key_hash: KeyHash::of(&[]), body: Arc::new(body) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DETAILS: &str = r#"{"count":12,"share":0.75,"sum":1234.5,"since":"2026-01-02T03:04:05Z"}"#;

    fn alert(severity: &'static str, status: &'static str) -> AlertValues<'static> {
        let current = Some(CurrentValues { severity, status, details: DETAILS });
        // 2026-01-02T00:00:00Z
        let event_time_ms = 1_767_312_000_000;
        AlertValues { rule: "card_testing", key_kind: "card", key: "c1", event_time_ms, current }
    }

    fn predicate(source: &str) -> AlertPredicate {
        compile_alert_predicate(source).unwrap_or_else(|error| panic!("{source}: {error}"))
    }

    #[test]
    fn conditions_use_all_values_of_an_alert() {
        let raised = alert("high", "raised");
        for (source, expected) in [
            ("alert.rule == 'card_testing' && alert.key == 'c1'", true),
            ("alert.rule.startsWith('card_')", true),
            ("alert.key_kind in ['user', 'device']", false),
            ("alert.severity in ['high', 'critical']", true),
            ("alert.status == 'revoked'", false),
            ("alert.event_time >= timestamp('2026-01-02T00:00:00Z')", true),
            ("alert.event_time.getHours() < 6", true),
            ("alert.details.count >= 12 && alert.details['share'] > 0.5", true),
            ("alert.details.sum == 1234.5", true),
            ("has(alert.details.count) && !has(alert.details.distinct)", true),
            ("alert.details.distinct > 3", false),
            ("timestamp(alert.details.since) > alert.event_time", true),
            ("true", true),
        ] {
            let predicate = predicate(source);
            assert_eq!((predicate.holds(&raised), predicate.errors()), (expected, 0), "{source}");
        }
    }

    #[test]
    fn errors_at_run_time_are_false_and_counted() {
        for source in ["alert.details.since > 3", "100 / (int(alert.details.count) - 12) > 1"] {
            let predicate = predicate(source);
            assert_eq!(
                (predicate.holds(&alert("low", "raised")), predicate.errors()),
                (false, 1),
                "{source}"
            );
        }
    }

    #[test]
    fn a_condition_cannot_hold_if_what_is_known_refutes_it() {
        let known = AlertValues { current: None, ..alert("high", "raised") };
        for (source, expected) in [
            ("alert.rule == 'card_testing' && alert.severity == 'low'", true),
            ("alert.rule == 'other' && alert.severity == 'low'", false),
            ("alert.severity == 'low' && alert.rule == 'other'", false),
            ("alert.details.count > 100", true),
            ("alert.key == 'c2' || alert.status == 'raised'", true),
            ("alert.key == 'c2'", false),
        ] {
            let predicate = predicate(source);
            assert_eq!((predicate.can_hold(&known), predicate.errors()), (expected, 0), "{source}");
        }
    }

    #[test]
    fn wrong_conditions_name_the_place_and_what_to_write() {
        for (source, expected) in [
            ("alert.rul == 'a'", "column 7: unknown member rul of an alert; did you mean rule?"),
            (
                "alert.amount > 2.0",
                "column 7: unknown member amount of an alert; known members: rule, key_kind, key, severity, status, \
                 event_time, details",
            ),
            ("rule == 'a'", "column 1: unknown name rule; write alert.rule"),
            ("key == 'a'", "column 1: unknown name key; write alert.key"),
            ("event.amount > 2.0", "column 1: unknown name event; did you mean alert?"),
            ("alert == 'a'", "column 1: alert is not a value; name a member, such as alert.details.count"),
            ("alert.severity > 2", "column 16: cannot compare string with number"),
            ("alert.severity", "column 1: expected a condition, found a string"),
            (
                "!alert.severity",
                "column 2: expected a condition, found a string; compare it, or write has(alert.severity)",
            ),
        ] {
            let error = compile_alert_predicate(source).expect_err(source).to_string();
            assert!(error.starts_with(expected), "{source}: {error}");
        }
    }
}
