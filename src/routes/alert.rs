//! Changes of alerts in the outbox, and the routes that they take.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cel::{AlertPredicate, AlertValues, CurrentValues};
use crate::decode::rfc3339_ms;
use crate::outputs::Severity;

/// A change of an alert, with the fields of its message in other sinks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertChange {
    /// The alert id.
    pub alert_id: String,
    /// `raised` or `revoked`.
    pub status: String,
    /// The name of the rule.
    pub rule: String,
    /// The version of the rule.
    pub rule_version: i64,
    /// The severity.
    pub severity: Severity,
    /// The kind of the key.
    pub key_kind: String,
    /// The key.
    pub key: String,
    /// The ids of the events that match.
    pub event_ids: serde_json::Value,
    /// The event time of the triggering event, as RFC 3339.
    pub event_time: String,
    /// The epoch of the change.
    pub epoch: i64,
    /// True if the alert cannot be revoked.
    pub r#final: bool,
    /// The details of the rule.
    pub details: serde_json::Value,
}

/// The status of an alert that is raised.
pub const RAISED: &str = "raised";

impl AlertChange {
    /// Returns true if the alert is raised, false if it is revoked.
    pub fn is_raised(&self) -> bool {
        self.status == RAISED
    }

    /// Returns the stable id of the change: alert id, status and epoch.
    pub fn id(&self) -> String {
        format!("{}:{}:{}", self.alert_id, self.status, self.epoch)
    }
}

/// A field of alerts by which they are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// The name of the rule.
    Rule,
    /// The severity.
    Severity,
    /// The kind of the key.
    KeyKind,
    /// The key.
    Key,
}

impl Label {
    /// All fields, with their names.
    pub const ALL: [(&str, Label); 4] = [
        ("rule", Label::Rule),
        ("severity", Label::Severity),
        ("key_kind", Label::KeyKind),
        ("key", Label::Key),
    ];

    /// Returns the name in the configuration and in payloads.
    pub fn name(self) -> &'static str {
        match self {
            Label::Rule => "rule",
            Label::Severity => "severity",
            Label::KeyKind => "key_kind",
            Label::Key => "key",
        }
    }

    fn of(self, alert: &AlertChange) -> &str {
        match self {
            Label::Rule => &alert.rule,
            Label::Severity => alert.severity.as_str(),
            Label::KeyKind => &alert.key_kind,
            Label::Key => &alert.key,
        }
    }
}

/// Returns the values of these fields, by name.
pub fn labels_of(labels: &[Label], alert: &AlertChange) -> BTreeMap<String, String> {
    labels.iter().map(|label| (label.name().to_owned(), label.of(alert).to_owned())).collect()
}

/// The alerts that a route delivers. A condition that is not set holds for every alert.
#[derive(Clone, Debug, Default)]
pub struct AlertFilter {
    /// The names of the rules.
    pub rules: Option<BTreeSet<String>>,
    /// The least severity.
    pub min_severity: Option<Severity>,
    /// The keys.
    pub keys: Option<BTreeSet<String>>,
    /// The condition on alerts.
    pub condition: Option<AlertPredicate>,
    /// True if revocations are delivered, too.
    pub send_revoked: bool,
}

impl AlertFilter {
    /// Returns true if the route delivers this alert. With `keeps_state`, the receiver keeps a raised alert open until it
    /// is revoked: its revocation then passes whatever its severity and details, which may have been others when it was
    /// raised.
    pub fn accepts(&self, alert: &AlertChange, keeps_state: bool) -> bool {
        let has = |set: &Option<BTreeSet<String>>, value: &String| {
            set.as_ref().is_none_or(|set| set.contains(value))
        };
        let is_severe = self.min_severity.is_none_or(|least| alert.severity >= least);
        let resolves = keeps_state && !alert.is_raised();
        has(&self.rules, &alert.rule)
            && has(&self.keys, &alert.key)
            && (is_severe || resolves)
            && self.condition.as_ref().is_none_or(|condition| is_met(condition, alert, resolves))
    }

    /// Returns the number of evaluations of the condition that ended with an error, in this process.
    pub fn errors(&self) -> u64 {
        self.condition.as_ref().map_or(0, AlertPredicate::errors)
    }
}

/// Returns true if a condition holds for an alert; if it `resolves` what was raised, also if it may have held then.
fn is_met(condition: &AlertPredicate, alert: &AlertChange, resolves: bool) -> bool {
    let details = alert.details.to_string();
    let current =
        CurrentValues { severity: alert.severity.as_str(), status: &alert.status, details: &details };
    let values = AlertValues {
        rule: &alert.rule,
        key_kind: &alert.key_kind,
        key: &alert.key,
        // The outbox has only times that were written by a sink.
        event_time_ms: rfc3339_ms(&alert.event_time).unwrap_or(i64::MAX),
        current: Some(current),
    };
    condition.holds(&values) || resolves && condition.can_hold(&AlertValues { current: None, ..values })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Returns a change of an alert.
    pub fn change(id: &str, status: &str, epoch: i64) -> AlertChange {
        AlertChange {
            alert_id: id.to_owned(),
            status: status.to_owned(),
            rule: "velocity_spike".to_owned(),
            rule_version: 1,
            severity: Severity::High,
            key_kind: "user".to_owned(),
            key: "ann".to_owned(),
            event_ids: serde_json::json!(["e1"]),
            event_time: "2026-03-01T10:00:00.000Z".to_owned(),
            epoch,
            r#final: false,
            details: serde_json::json!({ "count": 101, "within_ms": 3_600_000 }),
        }
    }

    #[test]
    fn a_filter_accepts_alerts_that_meet_all_conditions() {
        let set = |values: &[&str]| Some(values.iter().map(|&value| value.to_owned()).collect());
        let alert = change("a", "raised", 1);
        let all = AlertFilter::default();
        assert!(all.accepts(&alert, false));
        let severe = AlertFilter { min_severity: Some(Severity::Critical), ..AlertFilter::default() };
        assert!(!severe.accepts(&alert, true));
        let revoked = change("a", "revoked", 2);
        assert!(severe.accepts(&revoked, true), "an incident must not stay open");
        assert!(!severe.accepts(&revoked, false));
        let by_rule = AlertFilter { rules: set(&["velocity_spike"]), keys: set(&["bob"]), ..all.clone() };
        assert!(!by_rule.accepts(&alert, false), "another key");
        assert!(AlertFilter { keys: set(&["ann"]), ..by_rule }.accepts(&alert, false));
    }

    #[test]
    fn a_revocation_passes_a_condition_that_may_have_held() {
        let of = |source: &str| {
            let condition = Some(crate::cel::compile_alert_predicate(source).expect("valid"));
            AlertFilter { condition, ..AlertFilter::default() }
        };
        let (raised, revoked) = (change("a", "raised", 1), change("a", "revoked", 2));
        let counts = of("alert.details.count > 200 && alert.key == 'ann'");
        assert!(!counts.accepts(&raised, true));
        assert!(counts.accepts(&revoked, true), "the count may have been greater");
        assert!(!counts.accepts(&revoked, false));
        assert!(!of("alert.details.count > 200 && alert.key == 'bob'").accepts(&revoked, true));
        let only_raised =
            of("alert.status == 'raised' && alert.event_time < timestamp('2026-03-01T10:00:01Z')");
        assert!(only_raised.accepts(&raised, false) && !only_raised.accepts(&revoked, false));
        assert!(only_raised.accepts(&revoked, true), "an incident must not stay open");
    }
}
