//! The state of rules in words, and of a key's rules as they are configured.

use headwater_dataflows::Scan;
use headwater_dataflows::testing::Kit;
use serde_json::{Value, json};

use super::*;
use crate::outputs::Alert;
use crate::pipeline::fixtures::{T, all_patterns, at};
use crate::pipeline::plan::{AmountPlan, Patterns};
use crate::pipeline::rules;

#[test]
fn counts_say_whether_they_may_be_higher() {
    let count = |count, within_ms| Description::Count { count, at_least: 101, within_ms };
    let (text, state) = words::describe("velocity_spike", &count(37, 3_600_000));
    assert_eq!(text, "37 events in the last 1 h; raises above 100");
    assert_eq!(state, json!({"count": 37, "within_ms": 3_600_000, "more_than": 100}));
    let (text, state) = words::describe("rapid_fire_burst", &count(101, 90_000));
    assert_eq!(text, "101 or more events in the last 90 s; raises at 101");
    assert_eq!(state, json!({"count": 101, "within_ms": 90_000, "at_least": 101}));
    let (text, _) = words::describe("rapid_fire_burst", &count(1, 1_500));
    assert_eq!(text, "1 event in the last 1500 ms; raises at 101");
}

#[test]
fn amounts_say_what_raises_next() {
    let amounts = |n, mean, stddev, bounds| Description::Amounts { n, mean, stddev, at_least: 2, bounds };
    for (description, text) in [
        (amounts(0, None, None, None), "0 amounts; raises once there are 2 amounts"),
        (amounts(1, Some(5e6), None, None), "1 amount, mean 5; raises once there are 2 amounts"),
        (
            amounts(2, Some(5e6), Some(0.0), None),
            "2 amounts, mean 5, standard deviation 0; does not raise while all amounts are equal",
        ),
        (
            amounts(9, Some(12.5e6), Some(3.1e6), Some((3.2e6, 21.8e6))),
            "9 amounts, mean 12.5, standard deviation 3.1; raises below 3.2 and above 21.8",
        ),
    ] {
        assert_eq!(words::describe("amount_anomaly", &description).0, text);
    }
}

#[test]
fn rules_of_ones_own_say_decimals_and_values() {
    use headwater_dataflows::patterns::Bound;
    let sum = Description::Sum { sum: 300_001, n: 3, bound: Bound::MoreThan(300_000), within_ms: 60_000 };
    let (text, state) = words::describe("own", &sum);
    assert_eq!(text, "3 numbers with the sum 0.300001 in the last 1 min; raises above 0.3");
    assert_eq!(state, json!({ "sum": "0.300001", "n": 3, "within_ms": 60_000 }));
    let bound = Bound::AtLeast(2_500_000);
    let average = Description::Average { sum: 5_000_000, n: 2, bound, at_least_events: 2, within_ms: 1000 };
    let (text, state) = words::describe("own", &average);
    assert_eq!(text, "2 numbers with the average 2.5 in the last 1 s; raises at 2.5 of 2 or more");
    assert_eq!(state["average"], json!(2.5));
    let distinct = Description::Distinct { distinct: 2, at_least: 3, within_ms: 1000 };
    assert_eq!(words::describe("own", &distinct).0, "2 distinct values in the last 1 s; raises at 3");
    assert_eq!(
        words::describe("merchant_diversity", &distinct).0,
        "2 merchants in the last 1 s; raises at 3"
    );
}

/// Returns the texts and states of the rules of ann after three events, 10 s apart.
fn after_three_events(patterns: &Patterns) -> Vec<(String, String, Value)> {
    let mut states = None;
    let mut kit = Kit::new(|keyed| {
        states = Some(keyed.key_states());
        keyed.scan_all("Rules", rules(&"fraud".into(), patterns)).map(|_: Alert| ())
    });
    let states = States {
        keys: states.expect("the dataflow is built"),
        spaces: Vec::new(),
        own_rules: RuleNumbers::default(),
    };
    for (seconds, fields) in [
        (0, r#","amount":9,"currency":"EUR","merchant_id":"m""#),
        (10, r#","amount":11,"currency":"EUR","merchant_id":"m""#),
        (20, r#","amount":10,"currency":"coins","location":{"lat":1.5,"lon":-2}"#),
    ] {
        kit.push_at(T + 1000 * seconds, at(fields));
    }
    kit.expect_raised([()]);
    let state = states.read("uann").into_state(0);
    assert!(state.found && !states.read("dann").into_state(0).found);
    state.rules.into_iter().map(|RuleState { rule, text, state }| (rule, text, state)).collect()
}

#[test]
fn every_rule_reports_its_state_and_thresholds() {
    let rules = after_three_events(&all_patterns());
    let amounts = "3 amounts, mean 10, standard deviation 1; raises below 7 and above 13";
    let located = "last located at 1.5, -2 at 2027-01-15T08:00:20.000Z; raises above 50 km and 900 km/h";
    let expected = [
        (
            "velocity_spike",
            "3 or more events in the last 1 min; raises above 2",
            json!({"count": 3, "within_ms": 60_000, "more_than": 2}),
        ),
        (
            "rapid_fire_burst",
            "1 event in the last 10 s; raises at 2",
            json!({"count": 1, "within_ms": 10_000, "at_least": 2}),
        ),
        (
            "merchant_diversity",
            "1 merchant in the last 5 s; raises at 2",
            json!({"distinct": 1, "within_ms": 5_000, "at_least": 2}),
        ),
        (
            "amount_anomaly",
            amounts,
            json!({"n": 3, "mean": 10.0, "stddev": 1.0, "lower": 7.0, "upper": 13.0, "at_least": 2}),
        ),
        (
            "impossible_travel",
            located,
            json!({
                "location": {"lat": 1.5, "lon": -2.0}, "time": "2027-01-15T08:00:20.000Z",
                "more_than_km": 50.0, "more_than_kmh": 900.0,
            }),
        ),
    ];
    assert_eq!(rules, expected.map(|(rule, text, state)| (rule.to_owned(), text.to_owned(), state)));
}

#[test]
fn each_currency_has_its_own_state_if_configured() {
    let plan = all_patterns().amount_anomaly.expect("all patterns");
    let amount_anomaly = Some(AmountPlan { per_currency: true, ..plan });
    let velocity_spike = all_patterns().velocity_spike;
    let rules = after_three_events(&Patterns { amount_anomaly, velocity_spike, ..Patterns::default() });
    let (rule, text, state) = &rules[1];
    assert_eq!(*rule, "amount_anomaly");
    let other = format!("hash {:016x}", headwater_dataflows::KeyHash::of(b"coins").0);
    let euros = "EUR: 2 amounts, mean 10, standard deviation 1.41421; raises below 5.75736 and above 14.2426";
    assert_eq!(*text, format!("{euros}. {other}: 1 amount, mean 10; raises once there are 2 amounts"));
    let currencies: Vec<_> = state["currencies"].as_array().expect("a list").iter().collect();
    assert_eq!(currencies.len(), 2);
    assert_eq!((&currencies[0]["currency"], &currencies[0]["n"]), (&json!("EUR"), &json!(2)));
    assert_eq!((&currencies[1]["currency"], &state["left_out"]), (&json!(other), &json!(0)));
}
