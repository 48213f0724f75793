//! The five rules over events: patterns of the `dataflows` crate, and the alerts that their matches raise.

#![expect(
    clippy::type_complexity,
    reason = "the type of a rule includes its closures, and no alias would be used twice"
)]

use std::sync::Arc;

use headwater_dataflows::patterns::{
    Deviation, Diversity, Frequency, Grouped, Location, Outlier, Rate, Travel, Trip, Variety,
};
use headwater_dataflows::{Damage, Emission, KeyHash, Rule, Rules, Stored, forget_rules};

use serde::Serialize;
use serde_json::value::RawValue;

use super::plan::{AlertPolicy, AmountPlan, DiversityPlan, FrequencyPlan, Patterns, TravelPlan};
use crate::event::Event;
use crate::json::{round6, write_micros};
use crate::outputs::{Alert, Severity};

/// The version of the rules. Increment it when the semantics of a rule change, so that its alerts get new ids.
const RULE_VERSION: u32 = 1;

/// Returns the rules of a plan, to be scanned together.
pub fn rules(pipeline: &Arc<str>, patterns: &Patterns) -> impl Rules<Event, Alert, State: Stored> + use<> {
    let velocity = patterns.velocity_spike.map(|plan| frequency(pipeline, "velocity_spike", plan));
    let burst = patterns.rapid_fire_burst.map(|plan| frequency(pipeline, "rapid_fire_burst", plan));
    let diversity = patterns.merchant_diversity.map(|plan| diversity(pipeline, plan));
    let amounts = patterns.amount_anomaly.filter(|plan| !plan.per_currency);
    let amounts =
        amounts.map(|plan| Rule::new(outlier(plan), plan.alert_policy.emission, deviant(pipeline, plan)));
    let by_currency = patterns.amount_anomaly.filter(|plan| plan.per_currency).map(|plan| {
        let pattern = Grouped::by(outlier(plan), |event: &Event| {
            event.currency().map(|currency| KeyHash::of(currency.as_bytes()).0)
        });
        Rule::new(pattern, plan.alert_policy.emission, deviant(pipeline, plan))
    });
    let travel = patterns.impossible_travel.map(|plan| travel(pipeline, plan));
    (velocity, (burst, (diversity, (amounts, (by_currency, (travel, ()))))))
}

/// The numbers of each pattern's rules. The number of a rule is the count of rules after it.
const NUMBERS: [(&str, &[u32]); 5] = [
    ("velocity_spike", &[5]),
    ("rapid_fire_burst", &[4]),
    ("merchant_diversity", &[3]),
    ("amount_anomaly", &[2, 1]),
    ("impossible_travel", &[0]),
];

/// Returns the names of the patterns.
pub fn patterns() -> impl Iterator<Item = &'static str> {
    NUMBERS.iter().map(|(name, _)| *name)
}

/// Removes the state of these patterns from the stored state of a key; None if no state is left.
///
/// # Errors
/// If the stored state is damaged.
pub fn forget(patterns: &[&str], saved: &[u8]) -> Result<Option<Vec<u8>>, Damage> {
    let numbers =
        NUMBERS.iter().filter(|(name, _)| patterns.contains(name)).flat_map(|(_, numbers)| *numbers);
    let numbers: Vec<_> = numbers.copied().collect();
    forget_rules::<Event, Alert, _>(&rules(&"".into(), &Patterns::default()), &numbers, saved)
}

/// A builder of the alerts of one rule.
struct AlertBuilder {
    pipeline: Arc<str>,
    rule: &'static str,
    emission: Emission,
}

impl AlertBuilder {
    fn new(pipeline: &Arc<str>, rule: &'static str, alert_policy: AlertPolicy) -> AlertBuilder {
        AlertBuilder { pipeline: Arc::clone(pipeline), rule, emission: alert_policy.emission }
    }

    fn alert(
        &self,
        event: &Event,
        before: Option<Box<str>>,
        severity: Severity,
        details: impl Serialize,
    ) -> Alert {
        Alert {
            position: event.position(),
            rule: self.rule,
            rule_version: RULE_VERSION,
            severity,
            key: event.key().into(),
            event_ids: before.into_iter().chain([event.id().into()]).collect(),
            event_time: event.event_time(),
            settled: self.emission == Emission::Final,
            details: serde_json::to_string(&details).expect("numbers and names are JSON").into(),
            pipeline: Arc::clone(&self.pipeline),
        }
    }
}

fn frequency(
    pipeline: &Arc<str>,
    rule: &'static str,
    plan: FrequencyPlan,
) -> Rule<Frequency, impl Fn(&Event, Rate) -> Alert + use<>> {
    let builder = AlertBuilder::new(pipeline, rule, plan.alert_policy);
    Rule::new(
        Frequency::at_least(plan.at_least, plan.within_ms),
        plan.alert_policy.emission,
        move |event: &Event, rate: Rate| {
            let details = serde_json::json!({ "count": rate.count, "within_ms": plan.within_ms });
            builder.alert(event, None, plan.alert_policy.severity, details)
        },
    )
}

fn diversity(
    pipeline: &Arc<str>,
    plan: DiversityPlan,
) -> Rule<Diversity<impl Fn(&Event) -> Option<u64> + use<>>, impl Fn(&Event, Variety) -> Alert + use<>> {
    let builder = AlertBuilder::new(pipeline, "merchant_diversity", plan.alert_policy);
    let pattern = Diversity::at_least(plan.at_least, plan.within_ms, Event::merchant);
    Rule::new(pattern, plan.alert_policy.emission, move |event: &Event, variety: Variety| {
        let details = serde_json::json!({ "distinct": variety.distinct, "within_ms": plan.within_ms });
        builder.alert(event, None, plan.alert_policy.severity, details)
    })
}

/// Units of a stored amount (millionths) per unit of the amount.
const MICROS: f64 = 1e6;

fn outlier(plan: AmountPlan) -> Outlier<impl Fn(&Event) -> Option<i64> + use<>> {
    Outlier::beyond(plan.sigmas, plan.at_least, plan.min_sigma * MICROS, Event::amount)
        .with_min_relative_sigma(plan.min_relative_sigma)
}

/// The details of an alert on an amount. `amount` keeps all digits of the event.
#[derive(Serialize)]
struct DeviantDetails<'a> {
    amount: &'a RawValue,
    mean: f64,
    n: u64,
    sigmas: f64,
    stddev: f64,
}

fn deviant(pipeline: &Arc<str>, plan: AmountPlan) -> impl Fn(&Event, Deviation) -> Alert + use<> {
    let builder = AlertBuilder::new(pipeline, "amount_anomaly", plan.alert_policy);
    move |event, deviation| {
        let high = deviation.sigmas > plan.high_sigmas;
        let severity =
            if high { plan.alert_policy.severity.max(Severity::High) } else { plan.alert_policy.severity };
        let mut amount = Vec::new();
        write_micros(&mut amount, deviation.amount);
        let details = DeviantDetails {
            amount: serde_json::from_slice(&amount).expect("a decimal number is JSON"),
            mean: round6(deviation.mean / MICROS),
            n: deviation.n,
            sigmas: round6(deviation.sigmas),
            stddev: round6(deviation.stddev / MICROS),
        };
        builder.alert(event, None, severity, details)
    }
}

fn travel(
    pipeline: &Arc<str>,
    plan: TravelPlan,
) -> Rule<
    Travel<impl Fn(&Event) -> Option<Location> + use<>, impl Fn(&Event) -> &str + use<>>,
    impl Fn(&Event, Trip<String>) -> Alert + use<>,
> {
    let builder = AlertBuilder::new(pipeline, "impossible_travel", plan.alert_policy);
    let pattern = Travel::beyond(plan.km, plan.kmh, Event::location, Event::id);
    Rule::new(pattern, plan.alert_policy.emission, move |event: &Event, trip: Trip<String>| {
        let details = serde_json::json!({
            "km": round6(trip.km),
            "seconds": round6(trip.seconds),
            "kmh": trip.kmh.map(round6),
        });
        builder.alert(event, Some(trip.from.into()), plan.alert_policy.severity, details)
    })
}
