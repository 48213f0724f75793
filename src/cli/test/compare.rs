//! Comparison of the results of a test with its expectations.
//!
//! Expectations name some members of a result only, so that a result can satisfy several of them: each is given a result
//! of its own, if that is possible (the augmenting paths of bipartite matching).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::expect::{ExpectedAlert, ExpectedLetter};
use super::offset::{self, BEGINNING_MS};
use crate::event::split_key;
use crate::outputs::{RecentAlert, Status};

/// The members of an expectation or a result, in their order.
type Members = Vec<(&'static str, Value)>;

/// A difference between expectations and results.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The line of the expectation; None of a result that is not expected.
    pub line: Option<usize>,
    /// The expectation.
    pub expected: Option<Members>,
    /// The result.
    pub actual: Option<Members>,
    /// The members that differ, if there are both: name, expected and actual value.
    pub members: Vec<(String, Value, Value)>,
}

/// An expectation, or a result, as it is compared.
struct Compared {
    /// The line of the expectation; 0 of a result.
    line: usize,
    /// The members that identify it: only those with the same identity are compared.
    identity: String,
    /// All members, for people.
    members: Members,
}

/// Returns the differences of alerts.
pub fn alerts(expected: &[ExpectedAlert], actual: &[RecentAlert]) -> Vec<Difference> {
    differences(expected.iter().map(expected_alert).collect(), actual.iter().map(actual_alert).collect())
}

/// A refused event: the reason, its time in milliseconds after the beginning, and its id.
#[derive(Clone, Debug)]
pub struct Letter {
    /// The reason.
    pub reason: String,
    /// The event time, in milliseconds after the beginning.
    pub at_ms: i64,
    /// The id of the event.
    pub event_id: String,
}

/// Returns the differences of refused events.
pub fn letters(expected: &[ExpectedLetter], actual: &[Letter]) -> Vec<Difference> {
    let compared = |line, reason: &str, at_ms, id: Option<&str>| {
        let at = offset::display(at_ms);
        let mut members: Members = vec![("reason", reason.into()), ("at", at.clone().into())];
        members.extend(id.map(|id| ("event_id", id.into())));
        Compared { line, identity: format!("{reason} {at}"), members }
    };
    let expected = expected
        .iter()
        .map(|letter| compared(letter.line, letter.reason, letter.at_ms, letter.event_id.as_deref()));
    let actual =
        actual.iter().map(|letter| compared(0, &letter.reason, letter.at_ms, Some(&letter.event_id)));
    differences(expected.collect(), actual.collect())
}

fn expected_alert(alert: &ExpectedAlert) -> Compared {
    let mut members = head(&alert.rule, alert.status, &alert.key, alert.at_ms);
    members.extend(alert.key_kind.iter().map(|kind| ("key_kind", kind.as_str().into())));
    members.extend(alert.severity.map(|severity| ("severity", severity.as_str().into())));
    if !alert.details.is_empty() {
        members.push(("details", alert.details.iter().cloned().collect::<Map<_, _>>().into()));
    }
    members.extend(alert.event_ids.iter().map(|ids| ("event_ids", ids.clone().into())));
    let identity = identity(&alert.rule, alert.status, &alert.key, alert.at_ms);
    Compared { line: alert.line, identity, members }
}

fn actual_alert(RecentAlert { alert, status, .. }: &RecentAlert) -> Compared {
    let (kind, key) = split_key(&alert.key);
    let at_ms = alert.event_time.0 - BEGINNING_MS;
    let mut members = head(&alert.rule, *status, key, at_ms);
    members.push(("key_kind", kind.as_str().into()));
    members.push(("severity", alert.severity.as_str().into()));
    members.push(("details", serde_json::from_str(&alert.details).unwrap_or_default()));
    members.push(("event_ids", alert.event_ids.iter().map(|id| Value::from(&**id)).collect()));
    Compared { line: 0, identity: identity(&alert.rule, *status, key, at_ms), members }
}

fn head(rule: &str, status: Status, key: &str, at_ms: i64) -> Members {
    let mut members: Members = vec![("rule", rule.into())];
    if status == Status::Revoked {
        members.push(("status", status.as_str().into()));
    }
    members.extend([("key", key.into()), ("at", offset::display(at_ms).into())]);
    members
}

fn identity(rule: &str, status: Status, key: &str, at_ms: i64) -> String {
    format!("{rule} {} {at_ms} {key}", status.as_str())
}

fn differences(expected: Vec<Compared>, actual: Vec<Compared>) -> Vec<Difference> {
    let mut groups: BTreeMap<String, (Vec<Compared>, Vec<Compared>)> = BTreeMap::new();
    let mut order = Vec::new();
    for (compared, is_actual) in
        expected.into_iter().map(|one| (one, false)).chain(actual.into_iter().map(|one| (one, true)))
    {
        let group = groups.entry(compared.identity.clone()).or_insert_with(|| {
            order.push(compared.identity.clone());
            Default::default()
        });
        if is_actual { group.1.push(compared) } else { group.0.push(compared) }
    }
    // In the order of the file, then in that of the results.
    let ordered = order.into_iter().filter_map(|identity| groups.remove(&identity));
    ordered.flat_map(|(expected, actual)| differences_of_same(expected, actual)).collect()
}

/// Returns the differences of expectations and results with the same identity.
fn differences_of_same(expected: Vec<Compared>, actual: Vec<Compared>) -> Vec<Difference> {
    let fits = |e: usize, a: usize| differing(&expected[e].members, &actual[a].members).is_empty();
    let mut taken: Vec<Option<usize>> = vec![None; actual.len()];
    for e in 0..expected.len() {
        assign(e, &fits, &mut taken, &mut vec![false; actual.len()]);
    }
    let mut satisfied = vec![false; expected.len()];
    taken.iter().flatten().for_each(|e| satisfied[*e] = true);
    let mut left = actual.into_iter().zip(taken).filter(|(_, taken)| taken.is_none()).map(|(one, _)| one);
    let mut found: Vec<_> = expected
        .into_iter()
        .zip(satisfied)
        .filter(|(_, satisfied)| !satisfied)
        .map(|(expected, _)| {
            let actual = left.next();
            let members = actual.as_ref().map(|actual| differing(&expected.members, &actual.members));
            Difference {
                line: Some(expected.line),
                expected: Some(expected.members),
                actual: actual.map(|actual| actual.members),
                members: members.unwrap_or_default(),
            }
        })
        .collect();
    found.extend(left.map(|actual| Difference {
        line: None,
        expected: None,
        actual: Some(actual.members),
        members: Vec::new(),
    }));
    found
}

/// Gives an expectation a result that fits. If another expectation has it, that one is given another result.
fn assign(
    e: usize,
    fits: &impl Fn(usize, usize) -> bool,
    taken: &mut [Option<usize>],
    tried: &mut [bool],
) -> bool {
    for a in 0..taken.len() {
        if tried[a] || !fits(e, a) {
            continue;
        }
        tried[a] = true;
        if taken[a].is_none_or(|other| assign(other, fits, taken, tried)) {
            taken[a] = Some(e);
            return true;
        }
    }
    false
}

/// Returns the members of an expectation that differ in a result: name, expected and actual value.
fn differing(expected: &Members, actual: &Members) -> Vec<(String, Value, Value)> {
    let mut differing = Vec::new();
    for (name, value) in expected {
        let found = actual.iter().find(|(known, _)| known == name).map_or(&Value::Null, |(_, found)| found);
        match (*name, value) {
            ("status" | "at", _) => {}
            ("details", Value::Object(details)) => {
                for (detail, value) in details {
                    let found = &found[detail.as_str()];
                    if !is_equal(value, found) {
                        differing.push((format!("details.{detail}"), value.clone(), found.clone()));
                    }
                }
            }
            _ if value != found => differing.push(((*name).to_owned(), value.clone(), found.clone())),
            _ => {}
        }
    }
    differing
}

/// Compares details. Numbers may be given as text, and times as offsets.
fn is_equal(expected: &Value, actual: &Value) -> bool {
    match (expected, actual) {
        (Value::Number(expected), Value::Number(actual)) => expected.as_f64() == actual.as_f64(),
        (Value::String(expected), Value::Number(actual)) => expected.parse().ok() == actual.as_f64(),
        (Value::String(expected), Value::String(actual)) => {
            let time = offset::parse_signed(expected).map(|ms| crate::json::rfc3339(BEGINNING_MS + ms));
            expected == actual || time.as_ref() == Some(actual)
        }
        _ => expected == actual,
    }
}

impl Difference {
    /// Returns the difference as a JSON object.
    pub fn json(&self) -> Value {
        let object = |members: &Option<Members>| match members {
            Some(members) => {
                members.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
            }
            None => Value::Null,
        };
        let members = self.members.iter().map(
            |(member, expected, actual)| json!({ "member": member, "expected": expected, "actual": actual }),
        );
        json!({
            "line": self.line,
            "expected": object(&self.expected),
            "actual": object(&self.actual),
            "members": members.collect::<Vec<_>>(),
        })
    }

    /// Returns the difference as lines of text: `-` before what is expected, `+` before what came.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let (Some(expected), Some(line)) = (&self.expected, self.line) {
            lines.push(format!("- {}  # line {line}", inline_table(expected)));
        }
        lines.extend(self.actual.as_ref().map(|actual| format!("+ {}", inline_table(actual))));
        for (member, expected, actual) in &self.members {
            let actual = match actual {
                Value::Null => "nothing".to_owned(),
                actual => toml_value(actual),
            };
            lines.push(format!("    {member}: expected {}, got {actual}", toml_value(expected)));
        }
        lines
    }
}

/// Returns members as the inline table of an expectation.
fn inline_table(members: &Members) -> String {
    let members: Vec<_> =
        members.iter().map(|(name, value)| format!("{name} = {}", toml_value(value))).collect();
    format!("{{ {} }}", members.join(", "))
}

/// Returns a value as TOML. Members that are null are left out, since TOML has no null.
fn toml_value(value: &Value) -> String {
    match value {
        Value::String(text) => toml::Value::String(text.clone()).to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(toml_value).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let members = members.iter().filter(|(_, value)| !value.is_null());
            let members: Vec<_> =
                members.map(|(name, value)| format!("{name} = {}", toml_value(value))).collect();
            if members.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", members.join(", ")) }
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(at_ms: i64, id: &str) -> Letter {
        Letter { reason: "late".to_owned(), at_ms, event_id: id.to_owned() }
    }

    fn expected(line: usize, at_ms: i64, id: Option<&str>) -> ExpectedLetter {
        ExpectedLetter { line, reason: "late", at_ms, event_id: id.map(str::to_owned) }
    }

    #[test]
    fn an_expectation_yields_its_result_to_a_stricter_one() {
        let came = [letter(0, "a"), letter(0, "b")];
        assert_eq!(letters(&[expected(1, 0, None), expected(2, 0, Some("a"))], &came), []);
        assert_eq!(letters(&[expected(1, 0, Some("b")), expected(2, 0, None)], &came), []);
    }

    #[test]
    fn differences_name_what_is_missing_unexpected_or_other() {
        let came = [letter(1000, "a"), letter(2000, "b")];
        let found = letters(&[expected(4, 1000, Some("x")), expected(5, 3000, None)], &came);
        let lines: Vec<_> = found.iter().flat_map(Difference::lines).collect();
        let as_expected = [
            r#"- { reason = "late", at = "1s", event_id = "x" }  # line 4"#,
            r#"+ { reason = "late", at = "1s", event_id = "a" }"#,
            r#"    event_id: expected "x", got "a""#,
            r#"- { reason = "late", at = "3s" }  # line 5"#,
            r#"+ { reason = "late", at = "2s", event_id = "b" }"#,
        ];
        assert_eq!(lines, as_expected);
        assert_eq!(found[1].json()["line"], 5);
    }

    #[test]
    fn details_compare_by_value() {
        for (expected, actual) in [
            (json!(20), json!(20.0)),
            (json!("9.5"), json!(9.5)),
            (json!("1h"), json!("2030-01-01T01:00:00.000Z")),
        ] {
            assert!(is_equal(&expected, &actual), "{expected} {actual}");
        }
        for (expected, actual) in [(json!(20), json!(19)), (json!(1), json!("1")), (json!("1h"), Value::Null)]
        {
            assert!(!is_equal(&expected, &actual), "{expected} {actual}");
        }
    }
}
