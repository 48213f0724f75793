//! The expectations of a test: changes of alerts, and refused events.

use serde_json::Value;

use super::events::{json, read_offset};
use crate::outputs::{Severity, Status};
use crate::pipeline::Plan;
use crate::settings::{Diagnostics, Node, Origin, Section, nearest};

/// An expected change of an alert.
#[derive(Clone, Debug)]
pub struct ExpectedAlert {
    /// The line in the file.
    pub line: usize,
    /// The change.
    pub status: Status,
    /// The rule.
    pub rule: String,
    /// The name of the key.
    pub key: String,
    /// The kind of the key.
    pub key_kind: Option<String>,
    /// The event time, in milliseconds after the beginning.
    pub at_ms: i64,
    /// The severity.
    pub severity: Option<Severity>,
    /// The ids of the events.
    pub event_ids: Option<Vec<String>>,
    /// The details that are compared.
    pub details: Vec<(String, Value)>,
}

/// An expected refusal of an event.
#[derive(Clone, Debug)]
pub struct ExpectedLetter {
    /// The line in the file.
    pub line: usize,
    /// The reason.
    pub reason: &'static str,
    /// The event time, in milliseconds after the beginning.
    pub at_ms: i64,
    /// The id of the event.
    pub event_id: Option<String>,
}

/// Names that expectations can refer to.
pub struct Names {
    rules: Vec<String>,
    key_kinds: Vec<String>,
}

impl Names {
    /// Returns the names of a plan.
    pub fn of(plan: &Plan) -> Names {
        let own = plan.rules.iter().map(|rule| rule.id.to_string());
        let spaces = plan.all_spaces();
        let mut key_kinds = vec!["user".to_owned(), "device".to_owned()];
        let own_spaces = spaces.iter().map(|space| space.name.to_string());
        key_kinds.extend(own_spaces.filter(|name| name != "user" && name != "device"));
        Names { rules: plan.patterns.names().into_iter().map(str::to_owned).chain(own).collect(), key_kinds }
    }
}

/// Returns the line of a place in a file.
pub fn line(origin: &Origin) -> usize {
    match origin {
        Origin::Line(line) | Origin::LineOf(_, line) => *line,
        Origin::Environment(_) | Origin::Default => 1,
    }
}

/// Reads an expected change of an alert.
pub fn read_alert(
    mut section: Section<'_>,
    names: &Names,
    diagnostics: &mut Diagnostics,
) -> Option<ExpectedAlert> {
    let line = line(&section.origin());
    let statuses = [("raised", Status::Raised), ("revoked", Status::Revoked)];
    let status = section.choice("status", &statuses, diagnostics);
    let rule = read_name(&mut section, "rule", &names.rules, diagnostics);
    let key = read_key(&mut section, diagnostics);
    let key_kind = read_name(&mut section, "key_kind", &names.key_kinds, diagnostics);
    let at_ms = read_offset(&mut section, "at", diagnostics);
    let severities = Severity::ALL.map(|severity| (severity.as_str(), severity));
    let severity = section.choice("severity", &severities, diagnostics);
    let event_ids = section.list("event_ids", diagnostics);
    let mut details = Vec::new();
    if let Some(mut inner) = section.section("details", diagnostics) {
        for (name, item) in inner.items() {
            match item.node.value() {
                Node::Table(_) | Node::Array(_) => {
                    let message = format!("expected a number, text or boolean, got {}", item.node.kind());
                    inner.report_error(name, message, diagnostics);
                }
                node => details.extend(json(node).map(|value| (name.clone(), value))),
            }
        }
    }
    section.end(diagnostics);
    let (status, rule, key, at_ms) = (status?, rule?, key?, at_ms?);
    Some(ExpectedAlert { line, status, rule, key, key_kind, at_ms, severity, event_ids, details })
}

/// Reads an expected refusal of an event.
pub fn read_letter(mut section: Section<'_>, diagnostics: &mut Diagnostics) -> Option<ExpectedLetter> {
    let line = line(&section.origin());
    let reasons = ["late", "duplicate"].map(|reason| (reason, reason));
    let reason = section.choice("reason", &reasons, diagnostics);
    let at_ms = read_offset(&mut section, "at", diagnostics);
    let event_id = section.text("event_id", diagnostics);
    section.end(diagnostics);
    Some(ExpectedLetter { line, reason: reason?, at_ms: at_ms?, event_id })
}

/// Reads one of the names of a configuration.
fn read_name(
    section: &mut Section<'_>,
    key: &str,
    names: &[String],
    diagnostics: &mut Diagnostics,
) -> Option<String> {
    section.get_text(key, diagnostics, |text| {
        let text = text.unwrap_or_default();
        if names.iter().any(|name| name == text) {
            return Ok(text.to_owned());
        }
        let known = names.iter().map(String::as_str);
        Err(match nearest(text, known.clone()) {
            Some(near) => format!("{near:?}"),
            None => format!("one of {}", known.collect::<Vec<_>>().join(", ")),
        })
    })
}

/// Reads the name of a key: text, or the values of several fields.
fn read_key(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<String> {
    section.get("key", diagnostics, |node| match node {
        Node::Text(text) if !text.is_empty() => Ok(text.clone()),
        Node::Int(number) => Ok(number.to_string()),
        Node::Array(_) => json(node).map(|list| list.to_string()).ok_or_else(|| "finite numbers".to_owned()),
        _ => Err("text, or the list of values of a key of several fields".to_owned()),
    })
}
