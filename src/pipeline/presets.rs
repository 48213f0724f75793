//! The patterns as rules of the user's own: each is a preset of one condition.

use super::describe::{emit, span};
use super::plan::{AlertPolicy, AmountPlan, FrequencyPlan, Patterns};

/// Returns the section `[[rules]]` that raises at the same events as an enabled pattern; None if there is no such pattern.
pub fn preset(pattern: &str, patterns: &Patterns) -> Option<String> {
    let (condition, policy) = match pattern {
        "velocity_spike" => {
            let plan = patterns.velocity_spike?;
            let condition = count(&format!("more_than = {}", plan.at_least - 1), plan);
            (condition, plan.alert_policy)
        }
        "rapid_fire_burst" => {
            let plan = patterns.rapid_fire_burst?;
            (count(&format!("at_least = {}", plan.at_least), plan), plan.alert_policy)
        }
        "merchant_diversity" => {
            let plan = patterns.merchant_diversity?;
            let (at_least, within) = (plan.at_least, span(plan.within_ms));
            let condition = format!(
                "distinct = {{ of = \"merchant_id\", at_least = {at_least}, within = \"{within}\" }}"
            );
            (condition, plan.alert_policy)
        }
        "amount_anomaly" => {
            let plan = patterns.amount_anomaly?;
            (outlier(plan), plan.alert_policy)
        }
        "impossible_travel" => {
            let plan = patterns.impossible_travel?;
            let condition =
                format!("travel = {{ more_than_km = {:?}, more_than_kmh = {:?} }}", plan.km, plan.kmh);
            (condition, plan.alert_policy)
        }
        _ => return None,
    };
    let AlertPolicy { severity, emission } = policy;
    Some(format!(
        "[[rules]]\nid = \"{pattern}\"\nby = \"key\"\n{condition}\nseverity = \"{}\"\nemit = \"{}\"\n",
        severity.as_str(),
        emit(emission)
    ))
}

fn count(bound: &str, plan: FrequencyPlan) -> String {
    format!("count = {{ {bound}, within = \"{}\" }}", span(plan.within_ms))
}

fn outlier(plan: AmountPlan) -> String {
    let AmountPlan { sigmas, high_sigmas, at_least, min_sigma, min_relative_sigma, .. } = plan;
    let group_by = if plan.per_currency { ", group_by = \"currency\"" } else { "" };
    format!(
        "outlier = {{ of = \"amount\", sigmas = {sigmas:?}, high_sigmas = {high_sigmas:?}, at_least = {at_least}, \
         min_sigma = {min_sigma:?}, min_relative_sigma = {min_relative_sigma:?}{group_by} }}"
    )
}

#[cfg(test)]
mod tests;
