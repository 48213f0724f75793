//! The five rules over events: patterns of the `dataflows` crate, and the alerts that their matches raise.

#![expect(
    clippy::type_complexity,
    reason = "the type of a rule includes its closures, and no alias would be used twice"
)]

use std::sync::Arc;

use headwater_dataflows::patterns::{
    Deviation, Diversity, Frequency, Grouped, Location, Outlier, Rate, Travel, Trip, Variety,
};
use headwater_dataflows::{Damage, KeyHash, Rule, Rules, Stored, forget_rules};

use super::alerts::{AlertBuilder, deviation_details, trip_details};
use super::plan::{AmountPlan, DiversityPlan, FrequencyPlan, Patterns, TravelPlan};
use crate::event::Event;
use crate::outputs::{Alert, MICROS, Severity};

/// The version of the patterns. Increment it when the semantics of one change, so that its alerts get new ids.
const PATTERN_VERSION: u32 = 1;

/// Defines the registry of rules: each entry is the name of its pattern, how far it looks back in milliseconds of event
/// time if the plan has the pattern and it looks back, and its rule if the plan has the pattern. The number of a rule, by
/// which its state is stored, is the count of entries after it: new entries come first.
macro_rules! registry {
    (|$pipeline:ident, $patterns:ident| $($name:literal looks back $look_back:expr => $rule:expr,)*) => {
        /// The names of the rules' patterns, in the order of the registry.
        const NAMES: &[&str] = &[$($name),*];

        /// Returns the rules of a plan, to be scanned together.
        pub fn rules(
            $pipeline: &Arc<str>,
            $patterns: &Patterns,
        ) -> impl Rules<Event, Alert, State: Stored> + use<> {
            registry!(@pairs $($rule,)*)
        }

        /// Returns the longest time that a rule of a plan looks back, in milliseconds of event time.
        pub fn longest_look_back_ms($patterns: &Patterns) -> i64 {
            let all: [Option<i64>; NAMES.len()] = [$($look_back),*];
            all.into_iter().flatten().max().unwrap_or(0)
        }
    };
    (@pairs) => { () };
    (@pairs $first:expr, $($rest:expr,)*) => { ($first, registry!(@pairs $($rest,)*)) };
}

registry! { |pipeline, patterns|
    "velocity_spike" looks back patterns.velocity_spike.map(|plan| plan.within_ms) =>
        patterns.velocity_spike.map(|plan| frequency(pipeline, "velocity_spike", plan)),
    "rapid_fire_burst" looks back patterns.rapid_fire_burst.map(|plan| plan.within_ms) =>
        patterns.rapid_fire_burst.map(|plan| frequency(pipeline, "rapid_fire_burst", plan)),
    "merchant_diversity" looks back patterns.merchant_diversity.map(|plan| plan.within_ms) =>
        patterns.merchant_diversity.map(|plan| diversity(pipeline, plan)),
    "amount_anomaly" looks back None => patterns.amount_anomaly.filter(|plan| !plan.per_currency).map(|plan| {
        Rule::new(outlier(plan), plan.alert_policy.emission, deviant(pipeline, plan))
    }),
    "amount_anomaly" looks back None => patterns.amount_anomaly.filter(|plan| plan.per_currency).map(|plan| {
        Rule::new(by_currency(plan), plan.alert_policy.emission, deviant(pipeline, plan))
    }),
    "impossible_travel" looks back None => patterns.impossible_travel.map(|plan| travel(pipeline, plan)),
}

/// Returns the numbers and pattern names of all rules.
fn numbered() -> impl Iterator<Item = (u32, &'static str)> {
    (0..).zip(NAMES.iter().rev().copied())
}

/// Returns the name of the pattern of a rule; None if there is no rule with this number.
pub(super) fn pattern_of(rule: u32) -> Option<&'static str> {
    numbered().find(|(number, _)| *number == rule).map(|(_, name)| name)
}

/// Returns the names of the patterns.
pub fn patterns() -> impl Iterator<Item = &'static str> {
    NAMES.chunk_by(|one, next| one == next).map(|same| same[0])
}

/// Removes the state of these patterns from the stored state of a key; None if no state is left.
///
/// # Errors
/// If the stored state is damaged.
pub fn discard(patterns: &[&str], saved: &[u8]) -> Result<Option<Vec<u8>>, Damage> {
    let of_patterns = numbered().filter(|(_, name)| patterns.contains(name));
    let numbers: Vec<_> = of_patterns.map(|(number, _)| number).collect();
    forget_rules::<Event, Alert, _>(&rules(&"".into(), &Patterns::default()), &numbers, saved)
}

fn frequency(
    pipeline: &Arc<str>,
    rule: &'static str,
    plan: FrequencyPlan,
) -> Rule<Frequency, impl Fn(&Event, Rate) -> Alert + use<>> {
    let builder = AlertBuilder::new(pipeline, rule, PATTERN_VERSION, plan.alert_policy.emission);
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
    let builder =
        AlertBuilder::new(pipeline, "merchant_diversity", PATTERN_VERSION, plan.alert_policy.emission);
    let pattern = Diversity::at_least(plan.at_least, plan.within_ms, Event::merchant);
    Rule::new(pattern, plan.alert_policy.emission, move |event: &Event, variety: Variety| {
        let details = serde_json::json!({ "distinct": variety.distinct, "within_ms": plan.within_ms });
        builder.alert(event, None, plan.alert_policy.severity, details)
    })
}

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

fn deviant(pipeline: &Arc<str>, plan: AmountPlan) -> impl Fn(&Event, Deviation) -> Alert + use<> {
    let builder = AlertBuilder::new(pipeline, "amount_anomaly", PATTERN_VERSION, plan.alert_policy.emission);
    move |event, deviation| {
        let high = deviation.sigmas > plan.high_sigmas;
        let severity =
            if high { plan.alert_policy.severity.max(Severity::High) } else { plan.alert_policy.severity };
        builder.alert(event, None, severity, deviation_details("amount", &deviation))
    }
}

fn travel(
    pipeline: &Arc<str>,
    plan: TravelPlan,
) -> Rule<
    Travel<impl Fn(&Event) -> Option<Location> + use<>, impl Fn(&Event) -> &str + use<>>,
    impl Fn(&Event, Trip<String>) -> Alert + use<>,
> {
    let builder =
        AlertBuilder::new(pipeline, "impossible_travel", PATTERN_VERSION, plan.alert_policy.emission);
    let pattern = Travel::beyond(plan.km, plan.kmh, Event::location, Event::id);
    Rule::new(pattern, plan.alert_policy.emission, move |event: &Event, trip: Trip<String>| {
        let details = trip_details(&trip);
        builder.alert(event, Some(trip.from.into()), plan.alert_policy.severity, details)
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::rc::Rc;

    use differential_dataflow::input::InputSession;
    use headwater_dataflows::testing::Kit;
    use headwater_dataflows::{
        Admission, Captures, Clock, Emission, Epoch, EventTime, Offset, Partition, Position, Scan,
    };
    use timely::dataflow::operators::Inspect;

    use super::*;
    use crate::outputs::RuleMode;
    use crate::pipeline::AlertPolicy;
    use crate::pipeline::fixtures::{T, all_patterns, at, event, policy};

    /// The time of an event `seconds` after [`T`].
    fn time(seconds: i64) -> i64 {
        T + 1000 * seconds
    }

    fn kit(patterns: &Patterns) -> Kit<Event, Alert> {
        let rules = rules(&"fraud".into(), patterns);
        Kit::new(|keyed| keyed.scan_all(RULES, rules))
    }

    const RULES: &str = "Rules";

    /// Returns the alert of an event of `ann`, without details.
    fn alert(rule: &'static str, offset: i64, seconds: i64, severity: Severity) -> Alert {
        Alert {
            position: Position { partition: Partition(0), offset: Offset(offset) },
            rule: rule.into(),
            rule_version: 1,
            severity,
            key: "uann".into(),
            event_ids: vec![format!("e{offset}").into()],
            event_time: EventTime(time(seconds)),
            settled: false,
            details: "".into(),
            pipeline: "fraud".into(),
            mode: RuleMode::Live,
        }
    }

    #[test]
    fn frequency_alerts_name_the_event_that_reaches_the_count() {
        let Patterns { velocity_spike, rapid_fire_burst, .. } = all_patterns();
        let mut kit = kit(&Patterns { velocity_spike, rapid_fire_burst, ..Patterns::default() });
        kit.push_at(time(0), at(""));
        kit.push_at(time(20), at(""));
        kit.push_at(time(25), at(""));
        let spike = Alert {
            details: r#"{"count":3,"within_ms":60000}"#.into(),
            ..alert("velocity_spike", 2, 25, Severity::High)
        };
        let burst = Alert {
            details: r#"{"count":2,"within_ms":10000}"#.into(),
            ..alert("rapid_fire_burst", 2, 25, Severity::Medium)
        };
        kit.expect_raised([spike, burst]);
        kit.finish();
    }

    #[test]
    fn a_final_alert_waits_for_the_watermark_and_is_marked() {
        let plan = all_patterns().rapid_fire_burst.expect("all patterns");
        let alert_policy = AlertPolicy { emission: Emission::Final, ..plan.alert_policy };
        let rapid_fire_burst = Some(FrequencyPlan { alert_policy, ..plan });
        let mut kit = kit(&Patterns { rapid_fire_burst, ..Patterns::default() });
        kit.push_at(time(0), at(""));
        kit.push_at(time(5), at(""));
        kit.expect_raised([]);
        kit.advance_watermark(time(5));
        kit.expect_raised([Alert {
            settled: true,
            details: r#"{"count":2,"within_ms":10000}"#.into(),
            ..alert("rapid_fire_burst", 1, 5, Severity::Medium)
        }]);
        kit.finish();
    }

    #[test]
    fn a_diversity_alert_needs_distinct_merchants() {
        let merchant_diversity = all_patterns().merchant_diversity;
        let mut kit = kit(&Patterns { merchant_diversity, ..Patterns::default() });
        for merchant in ["a", "a", "b"] {
            kit.push_at(time(1), at(&format!(r#","merchant_id":"{merchant}""#)));
        }
        kit.expect_raised([Alert {
            details: r#"{"distinct":2,"within_ms":5000}"#.into(),
            ..alert("merchant_diversity", 2, 1, Severity::Low)
        }]);
        kit.finish();
    }

    /// Checks the alert that an amount raises after the amounts 9 and 11.
    #[track_caller]
    fn expect_after_nine_and_eleven(plan: AmountPlan, amount: &str, raised: Option<(Severity, &str)>) {
        let mut kit = kit(&Patterns { amount_anomaly: Some(plan), ..Patterns::default() });
        for amount in ["9", "11", amount] {
            kit.push_at(time(1), at(&format!(r#","amount":{amount}"#)));
        }
        kit.expect_raised(raised.map(|(severity, details)| Alert {
            details: details.into(),
            ..alert("amount_anomaly", 2, 1, severity)
        }));
        kit.finish();
    }

    #[test]
    fn an_amount_far_beyond_the_mean_raises_the_severity() {
        let plan = all_patterns().amount_anomaly.expect("all patterns");
        let near = r#"{"amount":15,"mean":10.0,"n":2,"sigmas":3.53553,"stddev":1.41421}"#;
        let far = r#"{"amount":18.000001,"mean":10.0,"n":2,"sigmas":5.65685,"stddev":1.41421}"#;
        expect_after_nine_and_eleven(plan, "14", None);
        expect_after_nine_and_eleven(plan, "15", Some((Severity::Medium, near)));
        expect_after_nine_and_eleven(plan, "18.000001", Some((Severity::High, far)));
        let critical = AmountPlan { alert_policy: policy(Severity::Critical), ..plan };
        expect_after_nine_and_eleven(critical, "18.000001", Some((Severity::Critical, far)));
    }

    #[test]
    fn each_currency_has_its_own_mean_if_configured() {
        for (per_currency, raised) in [(true, 3), (false, 2)] {
            let plan = all_patterns().amount_anomaly.expect("all patterns");
            let amount_anomaly = Some(AmountPlan { per_currency, ..plan });
            let rules = rules(&"fraud".into(), &Patterns { amount_anomaly, ..Patterns::default() });
            let mut kit =
                Kit::new(|keyed| keyed.scan_all(RULES, rules).map(|alert: Alert| alert.position.offset.0));
            for (amount, currency) in [(9, "EUR"), (11, "EUR"), (15, "USD"), (15, "EUR")] {
                kit.push_at(time(1), at(&format!(r#","amount":{amount},"currency":"{currency}""#)));
            }
            kit.expect_raised([raised]);
            kit.finish();
        }
    }

    #[test]
    fn a_travel_alert_names_both_events() {
        let impossible_travel = all_patterns().impossible_travel;
        let mut kit = kit(&Patterns { impossible_travel, ..Patterns::default() });
        kit.push_at(time(0), at(r#","location":{"lat":0,"lon":0}"#));
        kit.push_at(time(60), at(r#","location":{"lat":0,"lon":1}"#));
        kit.expect_raised([Alert {
            event_ids: vec!["e0".into(), "e1".into()],
            details: r#"{"km":111.195,"kmh":6671.7,"seconds":60.0}"#.into(),
            ..alert("impossible_travel", 1, 60, Severity::Critical)
        }]);
        kit.finish();
    }

    /// Ids are keys of tables: a change of one duplicates stored alerts.
    #[test]
    fn alert_ids_are_stable_and_differ_in_every_component() {
        let base = alert("velocity_spike", 2, 25, Severity::High);
        assert_eq!(base.id(), "4e4612a260cce9be1deb553a9fa40a2c");
        let again = Alert { severity: Severity::Low, details: "{}".into(), settled: true, ..base.clone() };
        assert_eq!(again.id(), base.id(), "a revised alert replaces the earlier one");
        let others = [
            Alert { rule: "rapid_fire_burst".into(), ..base.clone() },
            Alert { rule_version: 2, ..base.clone() },
            Alert { key: "dann".into(), ..base.clone() },
            Alert { key: "uanna".into(), ..base.clone() },
            Alert { pipeline: "frau".into(), ..base.clone() },
            alert("velocity_spike", 3, 25, Severity::High),
            Alert { position: Position { partition: Partition(1), offset: Offset(2) }, ..base.clone() },
        ];
        let ids: BTreeSet<_> = others.iter().chain([&base]).map(Alert::id).collect();
        assert_eq!(ids.len(), others.len() + 1);
    }

    /// State is stored under these numbers.
    #[test]
    fn every_rule_has_a_number_of_its_own_that_never_changes() {
        let numbers: Vec<_> = numbered().collect();
        let expected = [
            (0, "impossible_travel"),
            (1, "amount_anomaly"),
            (2, "amount_anomaly"),
            (3, "merchant_diversity"),
            (4, "rapid_fire_burst"),
            (5, "velocity_spike"),
        ];
        assert_eq!(numbers, expected);
        assert_eq!(
            patterns().collect::<Vec<_>>(),
            [
                "velocity_spike",
                "rapid_fire_burst",
                "merchant_diversity",
                "amount_anomaly",
                "impossible_travel"
            ]
        );
    }

    /// Returns the stored state of the rules after an event that every pattern considers.
    fn stored(patterns: &Patterns) -> Vec<u8> {
        let rules = std::sync::Mutex::new(Some(rules(&"fraud".into(), patterns)));
        let records = timely::execute_directly(move |worker| {
            let records = Rc::new(RefCell::new(Vec::new()));
            let list = Rc::clone(&records);
            let (mut events, mut clock) = worker.dataflow::<Epoch, _, _>(|scope| {
                let mut events = InputSession::new();
                let (clock, control) = Clock::new(scope);
                let captures = Captures::new(scope);
                let events_in = events.to_collection(scope);
                let (keyed, _) = captures.admit("Admit", events_in, control, Admission::default());
                keyed.scan_all(RULES, rules.lock().expect("unlocked").take().expect("one worker"));
                let captured = captures.finish().expect("nothing was restored");
                captured.inspect(move |record| list.borrow_mut().push(record.clone()));
                (events, clock)
            });
            let place = r#""location":{"lat":1,"lon":1}"#;
            events.insert(event(0, 0, &format!(r#","amount":5,"currency":"EUR","merchant_id":"m",{place}"#)));
            clock.checkpoint(EventTime(time(9)));
            drop((events, clock));
            while worker.step() {}
            records.take()
        });
        let of_rules = records.into_iter().find(|record| &*record.operator == RULES);
        of_rules.and_then(|record| record.value).expect("the rules have state")
    }

    #[test]
    fn forgetting_a_pattern_removes_the_state_of_its_rules_only() {
        let Patterns {
            velocity_spike,
            rapid_fire_burst,
            merchant_diversity,
            amount_anomaly,
            impossible_travel,
        } = all_patterns();
        let none = Patterns::default;
        let by_currency = amount_anomaly.map(|plan| AmountPlan { per_currency: true, ..plan });
        let single = [
            ("velocity_spike", Patterns { velocity_spike, ..none() }),
            ("rapid_fire_burst", Patterns { rapid_fire_burst, ..none() }),
            ("merchant_diversity", Patterns { merchant_diversity, ..none() }),
            ("amount_anomaly", Patterns { amount_anomaly, ..none() }),
            ("amount_anomaly", Patterns { amount_anomaly: by_currency, ..none() }),
            ("impossible_travel", Patterns { impossible_travel, ..none() }),
        ];
        for (name, patterns) in single {
            let saved = stored(&patterns);
            assert_eq!(discard(&[name], &saved).expect("whole"), None, "{name} has no other state");
            let others: Vec<_> = self::patterns().filter(|other| *other != name).collect();
            assert_eq!(discard(&others, &saved).expect("whole"), Some(saved), "{name} keeps its state");
        }
        assert!(discard(&["velocity_spike"], &[0xff]).is_err(), "damaged state is not forgotten silently");
    }
}
