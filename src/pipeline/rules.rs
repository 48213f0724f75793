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

/// Defines the registry of rules: each entry is the name of its pattern, and its rule if the plan has the pattern. The
/// number of a rule, by which its state is stored, is the count of entries after it: new entries come first.
macro_rules! registry {
    (|$pipeline:ident, $patterns:ident| $($name:literal => $rule:expr,)*) => {
        /// The names of the rules' patterns, in the order of the registry.
        const NAMES: &[&str] = &[$($name),*];

        /// Returns the rules of a plan, to be scanned together.
        pub fn rules(
            $pipeline: &Arc<str>,
            $patterns: &Patterns,
        ) -> impl Rules<Event, Alert, State: Stored> + use<> {
            registry!(@pairs $($rule,)*)
        }
    };
    (@pairs) => { () };
    (@pairs $first:expr, $($rest:expr,)*) => { ($first, registry!(@pairs $($rest,)*)) };
}

registry! { |pipeline, patterns|
    "velocity_spike" => patterns.velocity_spike.map(|plan| frequency(pipeline, "velocity_spike", plan)),
    "rapid_fire_burst" => patterns.rapid_fire_burst.map(|plan| frequency(pipeline, "rapid_fire_burst", plan)),
    "merchant_diversity" => patterns.merchant_diversity.map(|plan| diversity(pipeline, plan)),
    "amount_anomaly" => patterns.amount_anomaly.filter(|plan| !plan.per_currency).map(|plan| {
        Rule::new(outlier(plan), plan.alert_policy.emission, deviant(pipeline, plan))
    }),
    "amount_anomaly" => patterns.amount_anomaly.filter(|plan| plan.per_currency).map(|plan| {
        Rule::new(by_currency(plan), plan.alert_policy.emission, deviant(pipeline, plan))
    }),
    "impossible_travel" => patterns.impossible_travel.map(|plan| travel(pipeline, plan)),
}

/// Returns the numbers and pattern names of all rules.
fn numbered() -> impl Iterator<Item = (u32, &'static str)> {
    (0..).zip(NAMES.iter().rev().copied())
}

/// Returns the names of the patterns.
pub fn patterns() -> impl Iterator<Item = &'static str> {
    NAMES.chunk_by(|one, next| one == next).map(|same| same[0])
}

/// Removes the state of these patterns from the stored state of a key; None if no state is left.
///
/// # Errors
/// If the stored state is damaged.
pub fn forget(patterns: &[&str], saved: &[u8]) -> Result<Option<Vec<u8>>, Damage> {
    let of_patterns = numbered().filter(|(_, name)| patterns.contains(name));
    let numbers: Vec<_> = of_patterns.map(|(number, _)| number).collect();
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

fn by_currency(
    plan: AmountPlan,
) -> Grouped<Outlier<impl Fn(&Event) -> Option<i64> + use<>>, impl Fn(&Event) -> Option<u64> + use<>> {
    Grouped::by(outlier(plan), |event: &Event| {
        event.currency().map(|currency| KeyHash::of(currency.as_bytes()).0)
    })
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
