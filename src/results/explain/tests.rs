use super::*;
use crate::outputs::RuleMode;
use crate::pipeline::fixtures::{T, all_patterns};
use crate::results::{AlertQuery, ChangeCursor};
use headwater_dataflows::Epoch;
use serde_json::value::RawValue;

/// Results with the events of one key.
struct Events(Option<Vec<EventRecord>>);

impl Results for Events {
    fn place(&self) -> String {
        "a test".to_owned()
    }

    fn alerts(&self, _: &AlertQuery) -> Result<Vec<AlertRecord>, ResultsError> {
        Ok(Vec::new())
    }

    fn alert(&self, _: &str) -> Result<Option<AlertRecord>, ResultsError> {
        Ok(None)
    }

    fn changes(
        &self,
        _: Option<RuleMode>,
        _: &ChangeCursor,
        _: Epoch,
        _: usize,
    ) -> Result<Vec<AlertRecord>, ResultsError> {
        Ok(Vec::new())
    }

    fn has_events(&self) -> bool {
        self.0.is_some()
    }

    fn events(&self, query: &EventQuery) -> Result<Option<Vec<EventRecord>>, ResultsError> {
        let is_after = |event: &EventRecord| {
            query.after.as_ref().is_none_or(|after| rfc3339(event.event_time_ms) > *after)
        };
        Ok(self.0.as_ref().map(|events| events.iter().filter(|event| is_after(event)).cloned().collect()))
    }
}

/// The event `eN` in epoch `epoch`, `seconds` after [`T`].
fn event(n: i64, seconds: i64, epoch: u64) -> EventRecord {
    EventRecord {
        considered: None,
        event: None,
        partition: 0,
        offset: n,
        epoch: Some(epoch),
        arrival: epoch,
        event_id: format!("e{n}"),
        event_type: "transaction".to_owned(),
        event_time_ms: T + 1000 * seconds,
        amount: None,
        currency: None,
        merchant_id: None,
        location: None,
    }
}

fn alert(rule: &str, events: &[&EventRecord], status: &str, epoch: u64) -> AlertRecord {
    let time = events.last().expect("an event").event_time_ms;
    AlertRecord {
        alert_id: "00".to_owned(),
        status: status.to_owned(),
        rule: rule.to_owned(),
        rule_version: 1,
        severity: "high".to_owned(),
        key_kind: "user".to_owned(),
        key: "ann".to_owned(),
        event_ids: events.iter().map(|event| event.event_id.clone()).collect(),
        event_time: rfc3339(time),
        epoch,
        r#final: false,
        details: RawValue::from_string("{}".to_owned()).expect("JSON"),
        mode: "live".to_owned(),
        event_time_ms: time,
        position: None,
    }
}

fn explain(alert: &AlertRecord, events: Option<Vec<EventRecord>>) -> Explanation {
    Explainer::new(all_patterns(), LiveRules::of(Vec::new()), None)
        .explain(&Events(events), alert)
        .expect("readable")
}

fn befores(explanation: &Explanation, name: &str) -> Vec<Value> {
    let before =
        |event: &ExplainedEvent| event.before.as_ref().map_or(Value::Null, |state| state[name].clone());
    explanation.events.iter().map(before).collect()
}

#[test]
fn a_burst_shows_the_events_of_its_interval() {
    let events = vec![event(0, 0, 1), event(1, 20, 2), event(2, 25, 3), event(3, 26, 4)];
    let burst = alert("rapid_fire_burst", &[&events[2]], "raised", 3);
    let explanation = explain(&burst, Some(events));
    let ids: Vec<_> = explanation.events.iter().map(|event| event.event_id.as_str()).collect();
    assert_eq!(ids, ["e1", "e2"], "neither what is older than 10 s nor what follows");
    assert_eq!(befores(&explanation, "count"), [json!(0), json!(1)]);
    assert!(explanation.complete && explanation.events[1].trigger && !explanation.events[0].trigger);
    assert_eq!(explanation.note, None);
    assert!(explanation.summary.contains("user ann matched rapid_fire_burst (at least 2 events in 10s)"));
}

#[test]
fn a_revoked_alert_shows_what_arrived_after_it() {
    // e0 arrives in epoch 9 and makes e1 the one that reaches the count.
    let events = vec![event(0, 19, 9), event(1, 20, 2), event(2, 25, 3)];
    let burst = alert("rapid_fire_burst", &[&events[2]], "revoked", 9);
    let explanation = explain(&burst, Some(events));
    let late: Vec<_> = explanation.events.iter().map(|event| event.arrived_after).collect();
    assert_eq!(late, [true, false, false]);
    assert_eq!(befores(&explanation, "count").last(), Some(&json!(2)), "the count was reached before");
    assert!(
        explanation.summary.contains("Revoked in epoch 9: 1 event with an earlier event time")
            && explanation
                .summary
                .ends_with("at this event: the number of events before it, within 10s, is 2."),
        "{}",
        explanation.summary
    );
}

#[test]
fn an_amount_shows_the_statistics_before_each_event() {
    let amounts = ["9", "12", "15.5"];
    let events: Vec<_> = (0..3)
        .map(|n| EventRecord { amount: Some(amounts[n as usize].to_owned()), ..event(n, n, 1) })
        .collect();
    let explanation = explain(&alert("amount_anomaly", &[&events[2]], "raised", 1), Some(events));
    assert_eq!(befores(&explanation, "mean"), [json!(0.0), json!(9.0), json!(10.5)]);
    assert_eq!(befores(&explanation, "stddev"), [Value::Null, Value::Null, json!(2.12132)]);
    assert_eq!((explanation.complete, explanation.look_back_ms), (true, None));
}

#[test]
fn merchants_and_distances_are_shown_before_each_event() {
    let merchant = |n, name: &str| EventRecord { merchant_id: Some(name.to_owned()), ..event(n, n, 1) };
    let events = vec![merchant(0, "a"), merchant(1, "a"), event(2, 2, 1), merchant(3, "b")];
    let explanation = explain(&alert("merchant_diversity", &[&events[3]], "raised", 1), Some(events));
    assert_eq!(befores(&explanation, "distinct"), [json!(0), json!(1), json!(1), json!(1)]);
    let part: Vec<_> = explanation.events.iter().map(|event| event.took_part).collect();
    assert_eq!(part, [true, true, false, true]);

    let at = |n, lat| EventRecord { location: Some((lat, 0.0)), ..event(n, 3600 * n, 1) };
    let events = vec![at(0, 0.0), event(1, 1800, 1), at(2, 10.0)];
    let travel = alert("impossible_travel", &[&events[0], &events[2]], "raised", 1);
    let explanation = explain(&travel, Some(events));
    assert_eq!(befores(&explanation, "km_from_previous"), [Value::Null, Value::Null, json!(1111.95)]);
    assert_eq!(explanation.events.iter().filter(|event| event.took_part).count(), 2);
}

#[test]
fn missing_events_are_said_to_be_missing() {
    let trigger = event(2, 25, 3);
    let burst = alert("rapid_fire_burst", &[&trigger], "raised", 3);
    let explanation = explain(&burst, None);
    assert!(!explanation.complete && explanation.events.is_empty());
    assert!(explanation.note.expect("a note").contains("no sink stores events"));
    let explanation = explain(&burst, Some(vec![event(1, 20, 2)]));
    assert!(explanation.note.expect("a note").contains("retention"));
}
