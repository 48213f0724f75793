//! The section `[patterns]`.

use headwater_dataflows::Emission;

use super::SEVERITIES;
use crate::pipeline::{AlertPolicy, AmountPlan, DiversityPlan, FrequencyPlan, Patterns, TravelPlan};
use crate::settings::{Diagnostics, Section};

/// Reads the severity and emission of a rule.
fn read_alert_policy(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<AlertPolicy> {
    let severity = section.choice("severity", &SEVERITIES, diagnostics);
    let emissions = [("immediate", Emission::Immediate), ("final", Emission::Final)];
    let emission = section.choice("emit", &emissions, diagnostics);
    Some(AlertPolicy { severity: severity?, emission: emission? })
}

fn read_frequency(
    mut section: Section<'_>,
    at_least: Option<i64>,
    diagnostics: &mut Diagnostics,
) -> Option<FrequencyPlan> {
    let within_ms = section.duration("within", 1, diagnostics);
    let alert_policy = read_alert_policy(&mut section, diagnostics);
    section.end(diagnostics);
    Some(FrequencyPlan { at_least: at_least? as usize, within_ms: within_ms?, alert_policy: alert_policy? })
}

/// Reads the section: a pattern is enabled if it has one.
pub(super) fn read(patterns: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Patterns {
    const COUNTS: std::ops::RangeInclusive<i64> = 1..=1_000_000;
    let mut read = Patterns::default();
    if let Some(mut section) = patterns.section("velocity_spike", diagnostics) {
        let more_than = section.int("more_than", COUNTS, diagnostics);
        read.velocity_spike = read_frequency(section, more_than.map(|more_than| more_than + 1), diagnostics);
    }
    if let Some(mut section) = patterns.section("rapid_fire_burst", diagnostics) {
        let at_least = section.int("at_least", COUNTS, diagnostics);
        read.rapid_fire_burst = read_frequency(section, at_least, diagnostics);
    }
    if let Some(mut section) = patterns.section("merchant_diversity", diagnostics) {
        let at_least = section.int("at_least", 1..=10_000, diagnostics);
        let within_ms = section.duration("within", 1, diagnostics);
        let alert_policy = read_alert_policy(&mut section, diagnostics);
        section.end(diagnostics);
        read.merchant_diversity = (|| {
            Some(DiversityPlan {
                at_least: at_least? as usize,
                within_ms: within_ms?,
                alert_policy: alert_policy?,
            })
        })();
    }
    if let Some(mut section) = patterns.section("amount_anomaly", diagnostics) {
        let sigmas = section.float("sigmas", 0.0..=1000.0, diagnostics);
        let high_sigmas = section.float("high_sigmas", 0.0..=1000.0, diagnostics);
        let at_least = section.int("at_least", 2..=1_000_000_000, diagnostics);
        let min_sigma = section.float("min_sigma", 0.0..=1e12, diagnostics);
        let min_relative_sigma = section.float("min_relative_sigma", 0.0..=1e3, diagnostics);
        let per_currency = section.bool("per_currency", diagnostics);
        let alert_policy = read_alert_policy(&mut section, diagnostics);
        section.end(diagnostics);
        read.amount_anomaly = (|| {
            Some(AmountPlan {
                sigmas: sigmas?,
                high_sigmas: high_sigmas?,
                at_least: at_least? as u64,
                min_sigma: min_sigma?,
                min_relative_sigma: min_relative_sigma?,
                per_currency: per_currency?,
                alert_policy: alert_policy?,
            })
        })();
    }
    if let Some(mut section) = patterns.section("impossible_travel", diagnostics) {
        let km = section.float("more_than_km", 0.0..=20_100.0, diagnostics);
        let kmh = section.float("more_than_kmh", 0.0..=1e9, diagnostics);
        let alert_policy = read_alert_policy(&mut section, diagnostics);
        section.end(diagnostics);
        read.impossible_travel = (|| Some(TravelPlan { km: km?, kmh: kmh?, alert_policy: alert_policy? }))();
    }
    read
}
