use serde_json::{Value, json, value::RawValue};

use super::*;
use crate::json::rfc3339;
use crate::metrics::Metrics;
use crate::results::{Explainer, Explanation, Recent};

/// 2026-11-29T08:00:00Z.
const T: i64 = 1_795_939_200_000;

/// Returns the line of an event of a user, `ms` after [`T`].
fn line(id: &str, user: &str, ms: i64) -> String {
    let time = T + ms;
    format!(
        r#"{{"event_id":"{id}","event_type":"transaction","user_id":"{user}","event_time":{time},"amount":2.5}}"#
    )
}

fn alert(rule: &str, ids: &[&str], ms: i64) -> AlertRecord {
    AlertRecord {
        alert_id: "00".to_owned(),
        status: "raised".to_owned(),
        rule: rule.to_owned(),
        rule_version: 1,
        severity: "high".to_owned(),
        key_kind: "user".to_owned(),
        key: "ann".to_owned(),
        event_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        event_time: rfc3339(T + ms),
        epoch: 5,
        r#final: false,
        details: RawValue::from_string("{}".to_owned()).expect("JSON"),
        mode: "live".to_owned(),
        event_time_ms: T + ms,
        position: None,
    }
}

/// Explains an alert from these lines of a file, of which an epoch takes two.
fn explain(lines: &[String], alert: &AlertRecord) -> Explanation {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("events.ndjson");
    std::fs::write(&path, lines.join("\n")).expect("written");
    explain_source(&format!("kind = \"file\"\npaths = {path:?}\nepoch_records = 2"), alert)
}

fn explain_source(source: &str, alert: &AlertRecord) -> Explanation {
    let text = format!(
        "pipeline = \"p\"\n[source]\n{source}\n[patterns.rapid_fire_burst]\nat_least = 3\n[patterns.amount_anomaly]\n\
         [patterns.impossible_travel]\n[sinks.file]\npath = \"out\"\n\
         [keys]\nmerchant = \"merchant_id\"\n[[rules]]\nid = \"large\"\nby = \"merchant\"\nwhere = \"event.amount > 2.0\"\n\
         count = {{ at_least = 2, within = \"1m\" }}\n[[rules]]\nid = \"silent\"\nabsence = {{ within = \"1m\" }}\n"
    );
    let config = Config::parse(&text, std::iter::empty()).expect("valid");
    let results = Recent::new(std::sync::Arc::default(), std::sync::Arc::new(Metrics::default()));
    let source = SourceEvents::of_config(&config);
    let (patterns, own) = (config.plan.patterns.clone(), config.live_rules());
    Explainer::new(patterns, own, Some(source)).explain(&results, alert).expect("readable")
}

fn ids(explanation: &Explanation) -> Vec<&str> {
    explanation.events.iter().map(|event| &*event.event_id).collect()
}

#[test]
fn a_file_is_read_again_as_the_pipeline_admitted_it() {
    let lines = [
        line("a0", "ann", 0),
        line("b0", "bob", 0),
        line("a1", "ann", 20_000),
        "not JSON".to_owned(),
        // The watermark is 5 s behind a1.
        line("late", "ann", 14_999),
        line("a2", "ann", 19_000),
        line("a2", "ann", 19_000),
        line("a3", "ann", 21_000),
        line("a4", "ann", 20_500),
        line("a5", "ann", 22_000),
    ];
    let explanation = explain(&lines, &alert("rapid_fire_burst", &["a1", "a2", "a3"], 21_000));
    assert_eq!(ids(&explanation), ["a2", "a1", "a4", "a3"], "{explanation:?}");
    assert!(explanation.complete && explanation.events_from.as_deref() == Some("source"), "{explanation:?}");
    let note = explanation.note.as_deref().expect("a note");
    assert!(note.starts_with("1 event is left out") && note.contains("refused as late"), "{note}");
    let last = &explanation.events[3];
    assert_eq!(last.before, Some(json!({ "count": 3, "within": "10s" })));
    let event = &explanation.events[0];
    assert_eq!((event.offset, event.epoch, event.amount.as_deref()), (5, None, Some("2.5")));
    let arrived: Vec<_> = explanation.events.iter().map(|event| event.arrived_after).collect();
    assert_eq!(arrived, [false, false, true, false]);
}

#[test]
fn the_trigger_that_is_not_found_is_named() {
    let explanation = explain(&[line("a0", "ann", 0)], &alert("rapid_fire_burst", &["a9"], 0));
    assert!(!explanation.complete && explanation.events.is_empty());
    let note = explanation.note.expect("a note");
    assert!(
        note.contains("the triggering event was not found in file") && note.contains("add `events`"),
        "{note}"
    );
}

#[test]
fn an_alert_is_shown_even_if_the_source_cannot_be_read() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = format!(
        "pipeline = \"p\"\n[source]\nkind = \"file\"\npaths = {:?}\n[patterns.rapid_fire_burst]\n[sinks.file]\npath = \"out\"\n",
        file.path()
    );
    let config = Config::parse(&text, std::iter::empty()).expect("valid");
    let source = SourceEvents::of_config(&config);
    drop(file);
    let results = Recent::new(std::sync::Arc::default(), std::sync::Arc::new(Metrics::default()));
    let explainer = Explainer::new(
        config.plan.patterns.clone(),
        crate::pipeline::LiveRules::of(Vec::new()),
        Some(source),
    );
    let explanation = explainer.explain(&results, &alert("rapid_fire_burst", &["a0"], 0)).expect("an answer");
    assert!(explanation.note.is_some_and(|note| note.contains("cannot read file")), "the reason");
}

#[test]
fn all_amounts_of_a_file_are_known() {
    let lines = [line("a0", "ann", 0), line("b0", "bob", 1), line("a1", "ann", 2), line("a2", "ann", 3)];
    let explanation = explain(&lines, &alert("amount_anomaly", &["a2"], 3));
    assert!(explanation.complete, "{explanation:?}");
    assert_eq!(explanation.note, None);
    let last = explanation.events.last().and_then(|event| event.before.clone()).expect("a state");
    assert_eq!((&last["n"], &last["mean"]), (&Value::from(2), &Value::from(2.5)));
}

#[test]
fn a_source_that_cannot_be_read_again_is_named() {
    let explanation = explain_source("kind = \"generator\"", &alert("rapid_fire_burst", &["a0"], 0));
    let note = explanation.note.expect("a note");
    assert!(
        note.contains("the source cannot be read again (its records are not stored)")
            && note.contains("add `events`"),
        "{note}"
    );
    assert!(!explanation.complete && explanation.events_from.is_none());
}

#[test]
fn a_rule_of_ones_own_shows_which_events_it_considered() {
    let of = |n: i64, user: &str, merchant: &str, amount: f64| {
        let time = T + 1000 * n;
        format!(
            r#"{{"event_id":"e{n}","event_type":"transaction","user_id":"{user}","event_time":{time},"amount":{amount},"merchant_id":"{merchant}"}}"#
        )
    };
    let lines =
        [of(0, "ann", "m", 3.0), of(1, "bob", "m", 1.0), of(2, "bob", "other", 3.0), of(3, "eve", "m", 3.0)];
    let raised =
        AlertRecord { key_kind: "merchant".to_owned(), key: "m".to_owned(), ..alert("large", &["e3"], 3000) };
    let explanation = explain(&lines, &raised);
    let considered: Vec<_> =
        explanation.events.iter().map(|event| (&*event.event_id, event.took_part)).collect();
    assert_eq!(considered, [("e0", true), ("e1", false), ("e3", true)], "{explanation:?}");
    assert!(explanation.complete && explanation.events[2].trigger, "{explanation:?}");
    assert!(explanation.summary.starts_with("merchant m matched large ("), "{}", explanation.summary);
    let before: Vec<_> = explanation.events.iter().map(|event| event.before.clone()).collect();
    let one = Some(json!({ "count": 1, "within_ms": 60_000, "at_least": 2 }));
    assert_eq!(before, [None, one.clone(), one]);
    let revoked = AlertRecord { status: "revoked".to_owned(), ..raised };
    let summary = explain(&lines, &revoked).summary;
    assert!(
        summary.ends_with("at this event: the state before it is 1 event in the last 1 min; raises at 2."),
        "{summary}"
    );

    let explanation = explain(&lines, &alert("silent", &["e0"], 60_000));
    assert_eq!(ids(&explanation), ["e0"], "{explanation:?}");
}
