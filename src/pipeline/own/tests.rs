//! Alerts of the user's own rules: each condition with its details, the severity, and the ids of events.

use headwater_dataflows::Scan;
use headwater_dataflows::testing::Kit;

use super::*;
use crate::config::Config;
use crate::pipeline::fixtures::{T, at, event};

/// Returns the rules of a configuration.
fn rules(text: &str) -> Vec<RulePlan> {
    let text = format!("pipeline = \"p\"\n[source]\nkind = \"generator\"\n{text}");
    Config::parse_without_sinks(&text, std::iter::empty()).expect("a valid configuration").plan.rules
}

/// Checks the alerts of events of `ann`: seconds and further fields; and after them, of the watermark at this second. An
/// alert is its event ids, severity and details.
#[track_caller]
fn expect(rule: &str, events: &[(i64, &str)], watermark: Option<i64>, expected: &[(&str, &str, &str)]) {
    let rules = rules(&format!("[[rules]]\nid = \"own\"\n{rule}"));
    let set = rule_set::<Event>(&"p".into(), &rules.iter().collect::<Vec<_>>());
    let mut kit: Kit<Event, (String, String, String)> = Kit::new(|keyed| {
        let alerts = keyed.scan_all("Rules", set);
        alerts.map(|alert: Alert| {
            (alert.event_ids.join(" "), alert.severity.as_str().to_owned(), alert.details.into())
        })
    });
    for (seconds, fields) in events {
        let fields = fields.replace('\'', "\"");
        kit.push_at(T + 1000 * seconds, at(&fields));
    }
    if let Some(seconds) = watermark {
        kit.advance_watermark(T + 1000 * seconds);
    }
    let owned = |(ids, severity, details): &(&str, &str, &str)| {
        ((*ids).to_owned(), (*severity).to_owned(), details.replace('\'', "\""))
    };
    kit.expect_raised(expected.iter().map(owned));
}

#[test]
fn a_match_is_each_event_that_the_filter_accepts() {
    let amounts = [(0, ",'amount':1"), (1, ",'amount':3"), (2, ""), (3, ",'amount':2.5")];
    expect(
        "where = \"event.amount > 2.0\"\nmatch = true\nseverity = \"event.amount > 2.9 ? 'critical' : 'low'\"",
        &amounts,
        None,
        &[("e1", "critical", "{}"), ("e3", "low", "{}")],
    );
}

#[test]
fn a_count_rises_again_after_its_suppression() {
    let events: Vec<_> = (0..8).map(|second| (second, "")).collect();
    let count = "count = { more_than = 1, within = \"1m\" }";
    expect(count, &events, None, &[("e1", "medium", "{'count':2,'within_ms':60000}")]);
    // The state of a count is bounded by its threshold, so a later alert says no more than that it is reached.
    let again = [
        ("e1", "medium", "{'count':2,'within_ms':60000}"),
        ("e4", "medium", "{'count':2,'within_ms':60000}"),
        ("e7", "medium", "{'count':2,'within_ms':60000}"),
    ];
    expect(&format!("{count}\nsuppress = \"3s\""), &events, None, &again);
}

#[test]
fn sums_and_averages_are_exact() {
    let amounts =
        [(0, ",'amount':0.1"), (1, ",'amount':0.2"), (2, ",'amount':'0.000001'"), (70, ",'amount':9")];
    expect(
        "sum = { of = \"amount\", more_than = 0.3, within = \"1m\" }",
        &amounts,
        None,
        // At the last event the sum is above the bound, as it was at the event before.
        &[("e2", "medium", "{'n':3,'sum':0.300001,'within_ms':60000}")],
    );
    expect(
        "average = { of = \"event.amount * 2.0\", at_least = 0.3, at_least_events = 2, within = \"1m\" }",
        &amounts,
        None,
        &[("e1", "medium", "{'average':0.3,'n':2,'within_ms':60000}")],
    );
}

#[test]
fn distinct_values_and_shares_count_what_they_name() {
    let events = [(0, ",'currency':'EUR'"), (1, ",'currency':'EUR'"), (2, ",'currency':'USD'"), (3, "")];
    expect(
        "distinct = { of = \"currency\", at_least = 2, within = \"1m\" }",
        &events,
        None,
        &[("e2", "medium", "{'distinct':2,'within_ms':60000}")],
    );
    expect(
        "share = { of = \"event.currency == 'USD'\", more_than = 0.3, at_least_events = 3, within = \"1m\" }",
        &events,
        None,
        &[("e2", "medium", "{'hits':1,'n':3,'share':0.333333,'within_ms':60000}")],
    );
}

#[test]
fn an_outlier_is_far_from_the_mean_of_its_group() {
    let amounts = [
        (0, ",'amount':9,'currency':'EUR'"),
        (1, ",'amount':11,'currency':'EUR'"),
        (2, ",'amount':18,'currency':'USD'"),
        (3, ",'amount':18.000001,'currency':'EUR'"),
    ];
    expect(
        "outlier = { of = \"amount\", at_least = 2, high_sigmas = 5.0, group_by = \"currency\" }",
        &amounts,
        None,
        &[("e3", "high", "{'mean':10.0,'n':2,'sigmas':5.65685,'stddev':1.41421,'value':18.000001}")],
    );
}

#[test]
fn travel_names_the_event_before() {
    let place = [(0, ",'location':{'lat':0,'lon':0}"), (30, ""), (60, ",'location':{'lat':0,'lon':1}")];
    let found = [("e0 e2", "medium", "{'km':111.195,'kmh':6671.7,'seconds':60.0}")];
    expect("travel = { more_than_km = 50, more_than_kmh = 900 }", &place, None, &found);
}

#[test]
fn a_sequence_names_the_events_of_its_steps() {
    let steps =
        "steps = [{ where = \"event.currency == 'A'\" }, { where = \"event.currency == 'B'\", times = 2 }]";
    let events = [
        (0, ",'currency':'A'"),
        (1, ",'currency':'B'"),
        (2, ""),
        (9, ",'currency':'B'"),
        (70, ",'currency':'B'"),
    ];
    expect(
        &format!("sequence = {{ within = \"1m\", {steps} }}"),
        &events,
        None,
        &[("e0 e3", "medium", "{'seconds':9.0,'steps':2,'within_ms':60000}")],
    );
}

#[test]
fn an_absence_is_raised_by_the_watermark() {
    let absent = "{'since':'2027-01-15T08:00:05.000Z','within_ms':60000}";
    let events = [(0, ""), (5, "")];
    let absence = "absence = { within = \"1m\" }\nseverity = \"high\"";
    expect(absence, &events, Some(64), &[]);
    expect(absence, &events, Some(65), &[("e1", "high", absent)]);
    let unpaid = "sequence = { within = \"1m\", steps = [{ where = \"event.currency == 'A'\" }, { not = \"event.currency == 'B'\" }] }";
    let events = [(5, ",'currency':'A'"), (20, ",'currency':'A'"), (30, "")];
    expect(unpaid, &events, Some(65), &[("e0", "medium", absent)]);
    let paid = [(5, ",'currency':'A'"), (20, ",'currency':'B'")];
    expect(unpaid, &paid, Some(200), &[]);
}

#[test]
fn errors_of_expressions_are_counted_and_absences_are_not() {
    let rules = rules("[[rules]]\nid = \"own\"\nwhere = \"1.0 / event.amount > 0.0\"\nmatch = true\n");
    for (fields, holds) in [("", false), (r#","amount":0"#, false), (r#","amount":4"#, true)] {
        assert_eq!(rules[0].considers(&event(0, 0, fields)), holds, "{fields}");
    }
    assert_eq!(rules[0].errors(), 1);
}
