//! The rules of a plan in words, for people.

use headwater_dataflows::Emission;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::own::{RulePlan, SeverityPlan};
use super::plan::{AlertPolicy, AmountPlan, FrequencyPlan, Patterns};
use crate::json::of_toml;
use crate::outputs::RuleMode;

/// A rule of a plan.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RuleDescription {
    /// The id in alerts and metrics.
    pub id: String,
    /// The condition, in words; of a rule of the user's own, its description, which may be empty.
    pub description: String,
    /// The keys that it groups by.
    pub by: String,
    /// The severity of its alerts, or an expression of it.
    pub severity: String,
    /// The time of emission: `immediate` or `final`.
    pub emit: &'static str,
    /// The mode: `live`, or `shadow` for a rule whose alerts are stored and sent to no one.
    pub mode: &'static str,
    /// The event time after an alert in which there is no further one of the key, in milliseconds; null if there is no such time.
    pub suppress_ms: Option<i64>,
    /// The settings, under the names of the configuration.
    #[schema(value_type = Object)]
    pub settings: Value,
    /// The time that it looks back, in milliseconds of event time; null if it looks at all earlier events or at the one before.
    pub look_back_ms: Option<i64>,
}

impl RuleDescription {
    fn new(id: &str, policy: AlertPolicy, description: String, settings: Value) -> RuleDescription {
        let emit = emit(policy.emission);
        RuleDescription {
            id: id.to_owned(),
            description,
            by: "key".to_owned(),
            severity: policy.severity.as_str().to_owned(),
            emit,
            mode: RuleMode::Live.as_str(),
            suppress_ms: None,
            settings,
            look_back_ms: None,
        }
    }
}

pub(super) fn emit(emission: Emission) -> &'static str {
    match emission {
        Emission::Immediate => "immediate",
        Emission::Final => "final",
    }
}

/// Returns the rules of a plan: those of patterns in the order of the reference, then the user's own.
pub fn describe(patterns: &Patterns, own: &[RulePlan]) -> Vec<RuleDescription> {
    let mut rules = of_patterns(patterns);
    rules.extend(own.iter().map(of_own));
    rules
}

/// Describes a rule of the user's own.
fn of_own(rule: &RulePlan) -> RuleDescription {
    let settings = rule.settings.iter().filter(|(key, _)| key != "by");
    RuleDescription {
        id: rule.id.to_string(),
        description: rule.description.as_deref().unwrap_or_default().to_owned(),
        by: rule.by.name().to_owned(),
        severity: match &rule.severity {
            SeverityPlan::Fixed(severity) => severity.as_str().to_owned(),
            SeverityPlan::Chosen(choice) => choice.source().to_owned(),
        },
        emit: if rule.condition.is_absence() { "final" } else { emit(rule.emission) },
        mode: rule.mode.as_str(),
        suppress_ms: rule.suppress_ms,
        settings: settings.map(|(key, text)| (key.clone(), of_toml(text))).collect(),
        look_back_ms: rule.condition.look_back_ms(),
    }
}

fn of_patterns(patterns: &Patterns) -> Vec<RuleDescription> {
    let mut rules = Vec::new();
    rules.extend(patterns.velocity_spike.map(|plan| {
        let more_than = plan.at_least - 1;
        let description = format!("more than {more_than} events in {}", span(plan.within_ms));
        frequency("velocity_spike", plan, description, "more_than", more_than)
    }));
    rules.extend(patterns.rapid_fire_burst.map(|plan| {
        let description = format!("at least {} events in {}", plan.at_least, span(plan.within_ms));
        frequency("rapid_fire_burst", plan, description, "at_least", plan.at_least)
    }));
    rules.extend(patterns.merchant_diversity.map(|plan| {
        let within = span(plan.within_ms);
        let description = format!("at least {} distinct merchants in {within}", plan.at_least);
        let settings = json!({ "at_least": plan.at_least, "within": within });
        RuleDescription {
            look_back_ms: Some(plan.within_ms),
            ..RuleDescription::new("merchant_diversity", plan.alert_policy, description, settings)
        }
    }));
    rules.extend(patterns.amount_anomaly.map(amount));
    rules.extend(patterns.impossible_travel.map(|plan| {
        let description =
            format!("more than {} km from the previous location, at more than {} km/h", plan.km, plan.kmh);
        let settings = json!({ "more_than_km": plan.km, "more_than_kmh": plan.kmh });
        RuleDescription::new("impossible_travel", plan.alert_policy, description, settings)
    }));
    rules
}

fn frequency(id: &str, plan: FrequencyPlan, description: String, key: &str, count: usize) -> RuleDescription {
    let settings = json!({ key: count, "within": span(plan.within_ms) });
    RuleDescription {
        look_back_ms: Some(plan.within_ms),
        ..RuleDescription::new(id, plan.alert_policy, description, settings)
    }
}

fn amount(plan: AmountPlan) -> RuleDescription {
    let of_currency = if plan.per_currency { " of the same currency" } else { "" };
    let description = format!(
        "an amount more than {} standard deviations from the mean of at least {} earlier amounts{of_currency}",
        plan.sigmas, plan.at_least
    );
    let settings = json!({
        "sigmas": plan.sigmas,
        "high_sigmas": plan.high_sigmas,
        "at_least": plan.at_least,
        "min_sigma": plan.min_sigma,
        "min_relative_sigma": plan.min_relative_sigma,
        "per_currency": plan.per_currency,
    });
    RuleDescription::new("amount_anomaly", plan.alert_policy, description, settings)
}

/// Returns a duration in the largest unit that divides it: `1h`, `90s`, `250ms`.
pub fn span(ms: i64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let unit = units.into_iter().find(|(unit, _)| ms != 0 && ms % unit == 0);
    let (unit, name) = unit.unwrap_or((1, "ms"));
    format!("{}{name}", ms / unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::fixtures::all_patterns;

    #[test]
    fn every_rule_is_described_with_its_settings() {
        let rules = describe(&all_patterns(), &[]);
        let ids: Vec<_> = rules.iter().map(|rule| &*rule.id).collect();
        let all: std::collections::BTreeSet<_> = crate::pipeline::patterns().collect();
        assert_eq!(ids.iter().copied().collect::<std::collections::BTreeSet<_>>(), all);
        assert_eq!(rules[0].description, "more than 2 events in 1m");
        assert_eq!(rules[0].settings, json!({ "more_than": 2, "within": "1m" }));
        assert_eq!(rules[0].look_back_ms, Some(60_000));
        assert_eq!(rules[4].look_back_ms, None);
    }

    #[test]
    fn a_span_has_the_largest_unit_that_divides_it() {
        for (ms, text) in
            [(0, "0ms"), (250, "250ms"), (90_000, "90s"), (3_600_000, "1h"), (172_800_000, "2d")]
        {
            assert_eq!(span(ms), text);
        }
    }
}
