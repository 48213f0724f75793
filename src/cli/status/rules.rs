//! The rules in force in `headwater status`: their version, and those that are not complete for all events.

use serde_json::{Value, json};

use crate::json::rfc3339;
use crate::pipeline::{Completeness, RulePlan, RuleSetPlan};

/// Returns the rules that are not complete for all events.
fn incomplete(set: &RuleSetPlan) -> impl Iterator<Item = &RulePlan> {
    set.rules.iter().filter(|rule| rule.complete != Completeness::Always)
}

/// Returns a line on the set, and one for each rule that is not complete for all events.
pub fn text(set: &RuleSetPlan) -> Vec<String> {
    let noun = if set.rules.len() == 1 { "rule" } else { "rules" };
    let first = format!("rules: version {}, {} {noun}", set.version, set.rules.len());
    let of_rule = |rule: &RulePlan| match (rule.complete.from_ms(), rule.complete.since_ms()) {
        (Some(from), _) => Some(format!("rule {}: complete from {} on", rule.id, rfc3339(from))),
        (_, Some(since)) => Some(format!("rule {}: knows events after {}", rule.id, rfc3339(since))),
        _ => None,
    };
    let waits = |rule: &RulePlan| format!("rule {}: waits until its past has been read", rule.id);
    let waiting = set.waiting.iter().map(waits);
    std::iter::once(first).chain(incomplete(set).filter_map(of_rule)).chain(waiting).collect()
}

/// Returns the set as JSON.
pub fn json(set: &RuleSetPlan) -> Value {
    let of_rule = |rule: &RulePlan| {
        json!({
            "id": &*rule.id,
            "complete_from": rule.complete.from_ms().map(rfc3339),
            "knows_since": rule.complete.since_ms().map(rfc3339),
        })
    };
    let incomplete: Vec<_> = incomplete(set).map(of_rule).collect();
    let waiting: Vec<_> = set.waiting.iter().map(|rule| &*rule.id).collect();
    json!({ "version": set.version, "rules": set.rules.len(), "incomplete": incomplete, "waiting": waiting })
}
