//! The explanation of an alert: the events that took part, in the order in which its rule sees them, and the rule's state
//! before each.
//!
//! The rule is evaluated again over the events of the key, so events that arrived after the alert, out of order, stand where
//! they belong, and show why it was revoked. The events are those of the table `events` or, if there is none, are read from
//! the source again.

use std::collections::HashMap;

use headwater_dataflows::patterns::{Location, haversine_km};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::alert::AlertRecord;
use super::query::EventQuery;
use super::source_events::{SourceEvents, SourceRead};
use super::stored::EventRecord;
use super::{MAX_EVENTS, Results, ResultsError};
use crate::json::{rfc3339, round6};
use crate::pipeline::{
    ConditionPlan, LiveRules, Patterns, RuleDescription, RulePlan, StateBefore, describe, span, states_before,
};

/// The maximum number of events in an explanation of a rule that looks at all earlier events.
const MAX_SHOWN: usize = 50;

/// The explanation of an alert.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Explanation {
    /// A sentence about the alert.
    pub summary: String,
    /// True if all events that the rule looked at are known.
    pub complete: bool,
    /// The missing part, and how to have it; null if nothing is missing.
    pub note: Option<String>,
    /// The place from which the events were read: the `table` of events, or the `source`, again; null if they are not known.
    pub events_from: Option<String>,
    /// The time that the rule looks back, in milliseconds; null if it looks at all earlier events or at the one before.
    pub look_back_ms: Option<i64>,
    /// The events up to the triggering one, which is the last, in the order in which the rule sees them.
    pub events: Vec<ExplainedEvent>,
}

/// An event of an explanation.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ExplainedEvent {
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// The event time, RFC 3339 in UTC.
    pub event_time: String,
    /// The partition of the record.
    pub partition: i64,
    /// The offset of the record.
    pub offset: i64,
    /// The epoch in which it was read; null if the event was read from the source again.
    pub epoch: Option<u64>,
    /// True for the triggering event.
    pub trigger: bool,
    /// True if the rule counted the event.
    pub took_part: bool,
    /// True if it arrived after the triggering event, out of order.
    pub arrived_after: bool,
    /// The exact amount, as text.
    pub amount: Option<String>,
    /// The currency.
    pub currency: Option<String>,
    /// The merchant.
    pub merchant_id: Option<String>,
    /// The location: `lat` and `lon`, in degrees.
    #[schema(value_type = Option<Object>)]
    pub location: Option<Location>,
    /// The rule's state before the event; null if it is not known, or if the rule considered no event before.
    #[schema(value_type = Option<Object>)]
    pub before: Option<Value>,
}

/// Explains the alerts of a plan's rules.
pub struct Explainer {
    patterns: Patterns,
    own: LiveRules,
    source: Option<SourceEvents>,
}

/// The events of a key up to a triggering event, as far as they are known.
struct KnownEvents {
    /// The place from which they were read.
    from: &'static str,
    /// The events, in the order in which the rule sees them.
    events: Vec<EventRecord>,
    /// The event time after which all events are known; None if all are.
    known_from_ms: Option<i64>,
    /// True if events may be missing even after that time.
    has_gaps: bool,
    /// True if not all events of the key are known.
    is_partial: bool,
    /// The missing events in words.
    missing: String,
    /// A remark on events that are known.
    remark: Option<String>,
}

impl KnownEvents {
    /// Returns the events of the table; `at` is the triggering one.
    fn of_table(mut events: Vec<EventRecord>, at: usize) -> KnownEvents {
        let is_truncated = events.len() == MAX_EVENTS;
        let first_ms = events.first().map(|event| event.event_time_ms);
        events.truncate(at + 1);
        KnownEvents {
            from: "table",
            events,
            known_from_ms: first_ms.filter(|_| is_truncated),
            has_gaps: false,
            is_partial: is_truncated,
            missing: format!("only the newest {MAX_EVENTS} events of the key were read"),
            remark: None,
        }
    }

    /// Returns the events of the source; `at` is the triggering one.
    fn of_source(read: SourceRead, at: usize) -> KnownEvents {
        let SourceRead { place, mut events, known_from_ms, has_gaps, is_partial, missing, late } = read;
        events.truncate(at + 1);
        let missing =
            missing.unwrap_or_else(|| format!("only the newest {MAX_EVENTS} events of the key are kept"));
        let subject = match late {
            1 => "1 event is".to_owned(),
            late => format!("{late} events are"),
        };
        let remark = format!(
            "{subject} left out: by the order of the records in {place}, probably refused as late; only a table of events \
             tells that exactly"
        );
        KnownEvents {
            from: "source",
            events,
            known_from_ms,
            has_gaps,
            is_partial,
            missing: format!(
                "the events were read from {place} again, because no sink stores them: {missing}"
            ),
            remark: (late > 0).then_some(remark),
        }
    }
}

impl Explainer {
    /// Returns the explainer of the rules of these patterns and of the user's own, which reads events from the source if no
    /// sink stores them.
    pub fn new(patterns: Patterns, own: LiveRules, source: Option<SourceEvents>) -> Explainer {
        Explainer { patterns, own, source }
    }

    /// Explains an alert from the events of its key.
    ///
    /// # Errors
    /// If the events cannot be read.
    pub fn explain(&self, results: &dyn Results, alert: &AlertRecord) -> Result<Explanation, ResultsError> {
        let set = self.own.current();
        let rule = describe(&self.patterns, &set.rules).into_iter().find(|rule| rule.id == alert.rule);
        let look_back_ms = rule.as_ref().and_then(|rule| rule.look_back_ms);
        let query = EventQuery {
            key_kind: alert.key_kind.clone(),
            key: alert.key.clone(),
            // The state before the first event that took part depends on what lies as far before it.
            after: look_back_ms.map(|ms| rfc3339(alert.event_time_ms.saturating_sub(2 * ms))),
            through: rfc3339(alert.event_time_ms),
            limit: MAX_EVENTS,
        };
        let own = set.rules.iter().find(|rule| *rule.id == *alert.rule);
        // The table has neither the fields by which a rule of the user's own selects events, nor other keys.
        let of_own = match own {
            Some(_) => self.of_source(alert, look_back_ms, own).ok(),
            None => None,
        };
        if let Some(known) = of_own {
            return Ok(self.of_events(alert, rule.as_ref(), own, known));
        }
        let known = match results.events(&query)? {
            Some(events) => {
                let not_found = "the triggering event is not stored: it may be older than the table's retention, or the \
                                 table of events may be newer than the alert";
                trigger(alert, own, &events)
                    .map(|at| KnownEvents::of_table(events, at))
                    .ok_or_else(|| not_found.to_owned())
            }
            None => self.of_source(alert, look_back_ms, own),
        };
        Ok(match known {
            Ok(known) => self.of_events(alert, rule.as_ref(), own, known),
            Err(note) => without_events(alert, rule.as_ref(), note),
        })
    }

    /// Returns the events of the source.
    ///
    /// # Errors
    /// If they are not known: the reason.
    fn of_source(
        &self,
        alert: &AlertRecord,
        look_back_ms: Option<i64>,
        own: Option<&RulePlan>,
    ) -> Result<KnownEvents, String> {
        let unknown = |reason: &str| {
            format!(
                "no sink stores events in a table{reason}: add `events` to the tables of the SQLite or PostgreSQL sink to see \
                 them"
            )
        };
        let source = self.source.as_ref().ok_or_else(|| unknown(""))?;
        // The alert is shown all the same.
        let read =
            source.read(alert, look_back_ms, own).map_err(|error| unknown(&format!(", and {error}")))?;
        let Some(read) = read else {
            let reason = source.objection().unwrap_or_default();
            return Err(unknown(&format!(", and the source cannot be read again ({reason})")));
        };
        match trigger(alert, own, &read.events) {
            Some(at) => Ok(KnownEvents::of_source(read, at)),
            None => {
                let reason = read.missing.map_or(String::new(), |missing| format!(" ({missing})"));
                Err(unknown(&format!(", and the triggering event was not found in {}{reason}", read.place)))
            }
        }
    }

    fn of_events(
        &self,
        alert: &AlertRecord,
        rule: Option<&RuleDescription>,
        own: Option<&RulePlan>,
        known: KnownEvents,
    ) -> Explanation {
        let events = &known.events;
        let trigger = events.last().expect("the triggering event is there");
        let look_back_ms = rule.and_then(|rule| rule.look_back_ms);
        let (states, now) = match own {
            Some(own) => split(own_states(own, &known)),
            None => {
                let states = self.states(alert, &known);
                let now = states.last().and_then(|state| state.as_ref().map(words));
                (states, now)
            }
        };
        let shown = match look_back_ms {
            Some(ms) => {
                events.iter().position(|event| event.event_time_ms > trigger.event_time_ms - ms).unwrap_or(0)
            }
            None => events.len().saturating_sub(MAX_SHOWN),
        };
        let shown_events = || events.iter().zip(&states).skip(shown);
        let late = shown_events().filter(|(event, _)| event.arrival > trigger.arrival).count();
        let explained = shown_events().map(|(event, state)| ExplainedEvent {
            event_id: event.event_id.clone(),
            event_type: event.event_type.clone(),
            event_time: rfc3339(event.event_time_ms),
            partition: event.partition,
            offset: event.offset,
            epoch: event.epoch,
            trigger: std::ptr::eq(event, trigger),
            took_part: self.took_part(alert, event),
            arrived_after: event.arrival > trigger.arrival,
            amount: event.amount.clone(),
            currency: event.currency.clone(),
            merchant_id: event.merchant_id.clone(),
            location: event.location.map(|(lat, lon)| Location { lat, lon }),
            before: state.clone(),
        });
        let complete = is_complete(alert, look_back_ms, &known);
        let note = match (complete, look_back_ms) {
            (false, _) => Some(known.missing.clone()),
            (true, None) if shown > 0 => {
                Some(format!("the newest {MAX_SHOWN} of {} events are shown", events.len()))
            }
            (true, _) => None,
        };
        let notes: Vec<_> = [note, known.remark.clone()].into_iter().flatten().collect();
        Explanation {
            summary: summary(alert, rule, late, now.as_deref()),
            complete,
            note: (!notes.is_empty()).then(|| notes.join(". ")),
            events_from: Some(known.from.to_owned()),
            look_back_ms,
            events: explained.collect(),
        }
    }

    /// Returns true if a rule counts an event.
    fn took_part(&self, alert: &AlertRecord, event: &EventRecord) -> bool {
        if let Some(considered) = event.considered {
            return considered;
        }
        match alert.rule.as_str() {
            "merchant_diversity" => event.merchant_id.is_some(),
            "amount_anomaly" => event.amount.is_some(),
            "impossible_travel" => alert.event_ids.contains(&event.event_id),
            _ => true,
        }
    }

    /// Returns the rule's state before each event, where it is known.
    fn states(&self, alert: &AlertRecord, known: &KnownEvents) -> Vec<Option<Value>> {
        let KnownEvents { events, known_from_ms, .. } = known;
        let within = match alert.rule.as_str() {
            "velocity_spike" => self.patterns.velocity_spike.map(|plan| plan.within_ms),
            "rapid_fire_burst" => self.patterns.rapid_fire_burst.map(|plan| plan.within_ms),
            "merchant_diversity" => self.patterns.merchant_diversity.map(|plan| plan.within_ms),
            _ => None,
        };
        match (alert.rule.as_str(), within) {
            (rule, Some(within_ms)) => {
                let mut states = match rule {
                    "merchant_diversity" => distinct(events, within_ms),
                    _ => counts(events, within_ms),
                };
                for (state, event) in states.iter_mut().zip(events) {
                    if known_from_ms.is_some_and(|from| event.event_time_ms.saturating_sub(within_ms) < from)
                    {
                        *state = None;
                    }
                }
                states
            }
            ("amount_anomaly", None) if !known.is_partial => {
                let per_currency = self.patterns.amount_anomaly.is_some_and(|plan| plan.per_currency);
                moments(events, per_currency)
            }
            ("impossible_travel", None) => distances(events),
            _ => vec![None; events.len()],
        }
    }
}

/// Returns the index of the triggering event; of an absence, which is at the end of a time without events, that of the last
/// event that it names.
fn trigger(alert: &AlertRecord, own: Option<&RulePlan>, events: &[EventRecord]) -> Option<usize> {
    let id = alert.event_ids.last();
    let is_absence = own.is_some_and(|own| own.condition.is_absence());
    events.iter().rposition(|event| {
        (is_absence || event.event_time_ms == alert.event_time_ms) && Some(&event.event_id) == id
    })
}

/// Returns true if all events that the rule looked at are known.
fn is_complete(alert: &AlertRecord, look_back_ms: Option<i64>, known: &KnownEvents) -> bool {
    let is_known = |id: &String| known.events.iter().any(|event| event.event_id == *id);
    let from_ms = look_back_ms.map(|ms| alert.event_time_ms.saturating_sub(ms));
    !known.has_gaps
        && match (from_ms, alert.rule.as_str()) {
            (Some(needed), _) => known.known_from_ms.is_none_or(|from| from <= needed),
            // The rule compares two events, and names both.
            (None, "impossible_travel") => alert.event_ids.iter().all(is_known),
            (None, _) => !known.is_partial,
        }
}

/// Returns the explanation of an alert whose events are not known.
fn without_events(alert: &AlertRecord, rule: Option<&RuleDescription>, note: String) -> Explanation {
    Explanation {
        summary: summary(alert, rule, 0, None),
        complete: false,
        note: Some(note),
        events_from: None,
        look_back_ms: rule.and_then(|rule| rule.look_back_ms),
        events: Vec::new(),
    }
}

/// Returns the state of a rule of the user's own before each event, where it is known.
fn own_states(rule: &RulePlan, known: &KnownEvents) -> Vec<Option<StateBefore>> {
    let KnownEvents { events, known_from_ms, has_gaps, is_partial, .. } = known;
    let read: Vec<_> = events.iter().filter_map(|event| event.event.as_ref()).collect();
    let mut states = states_before(rule, read.iter().copied());
    let look_back_ms = rule.condition.look_back_ms();
    let is_partial = *has_gaps || look_back_ms.is_none() && *is_partial;
    // Which courses wait for an event that does not come depends on any earlier ones.
    let depends_on_all = matches!(rule.condition, ConditionPlan::Sequence { absent: Some(_), .. });
    // Events of a table lack what the rule looks at.
    if is_partial || depends_on_all || states.len() < events.len() {
        return vec![None; events.len()];
    }
    for (state, event) in states.iter_mut().zip(events) {
        let from_ms = event.event_time_ms.saturating_sub(look_back_ms.unwrap_or(0));
        if known_from_ms.is_some_and(|known| from_ms < known) {
            *state = None;
        }
    }
    states
}

/// Returns the numbers of states, and the words for the last one.
fn split(states: Vec<Option<StateBefore>>) -> (Vec<Option<Value>>, Option<String>) {
    let last = states.last().and_then(|state| state.as_ref());
    let now = last.map(|last| format!("the state before it is {}", last.text));
    (states.into_iter().map(|state| state.map(|state| state.state)).collect(), now)
}

/// Describes an alert in a sentence or two. `late` is the number of events that arrived out of order, and `now` are words
/// for the state before the triggering event as it is known now.
fn summary(alert: &AlertRecord, rule: Option<&RuleDescription>, late: usize, now: Option<&str>) -> String {
    let AlertRecord { rule: id, key_kind, key, event_time, .. } = alert;
    let condition = rule.map_or(String::new(), |rule| format!(" ({})", rule.description));
    let raised = format!("{key_kind} {key} matched {id}{condition} at {event_time}.");
    if alert.status != "revoked" {
        return raised;
    }
    let arrived = match late {
        0 => "An event".to_owned(),
        1 => "1 event".to_owned(),
        late => format!("{late} events"),
    };
    let now = now.map_or(String::new(), |now| format!(": {now}"));
    format!(
        "{raised} Revoked in epoch {}: {arrived} with an earlier event time arrived after it, out of order, and with it the \
         rule no longer matches at this event{now}.",
        alert.epoch
    )
}

/// Returns the state before an event in words.
fn words(state: &Value) -> String {
    let of = |name: &str| {
        state.get(name).map_or("unknown".to_owned(), |value| match value {
            Value::String(text) => text.clone(),
            Value::Null => "unknown".to_owned(),
            value => value.to_string(),
        })
    };
    let has = |name| state.get(name).is_some();
    if has("km_from_previous") {
        let (km, seconds) = (of("km_from_previous"), of("seconds_since_previous"));
        format!("it is {km} km from the previous event, {seconds} s after it")
    } else if has("distinct") {
        format!("the number of distinct merchants before it, within {}, is {}", of("within"), of("distinct"))
    } else if has("count") {
        format!("the number of events before it, within {}, is {}", of("within"), of("count"))
    } else {
        let (n, mean, stddev) = (of("n"), of("mean"), of("stddev"));
        format!("the {n} amounts before it have mean {mean} and standard deviation {stddev}")
    }
}

/// Returns the number of events in the interval before each event.
fn counts(events: &[EventRecord], within_ms: i64) -> Vec<Option<Value>> {
    let mut first = 0;
    let mut states = Vec::with_capacity(events.len());
    for (at, event) in events.iter().enumerate() {
        while events[first].event_time_ms <= event.event_time_ms.saturating_sub(within_ms) {
            first += 1;
        }
        states.push(Some(json!({ "count": at - first, "within": span(within_ms) })));
    }
    states
}

/// Returns the number of distinct merchants in the interval before each event.
fn distinct(events: &[EventRecord], within_ms: i64) -> Vec<Option<Value>> {
    let mut last: HashMap<&str, i64> = HashMap::new();
    let mut states = Vec::with_capacity(events.len());
    for event in events {
        let after = event.event_time_ms.saturating_sub(within_ms);
        last.retain(|_, time| *time > after);
        states.push(Some(json!({ "distinct": last.len(), "within": span(within_ms) })));
        if let Some(merchant) = event.merchant_id.as_deref() {
            last.insert(merchant, event.event_time_ms);
        }
    }
    states
}

/// Returns number, mean and sample standard deviation of the amounts before each event, by Welford's method (B. P.
/// Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products", Technometrics 4, 1962).
fn moments(events: &[EventRecord], per_currency: bool) -> Vec<Option<Value>> {
    let mut groups: HashMap<Option<&str>, (u64, f64, f64)> = HashMap::new();
    let mut states = Vec::with_capacity(events.len());
    for event in events {
        let group = event.currency.as_deref().filter(|_| per_currency);
        let (n, mean, squares) = groups.entry(group).or_default();
        let stddev = (*n > 1).then(|| round6((*squares / (*n - 1) as f64).sqrt()));
        states.push(Some(json!({ "n": *n, "mean": round6(*mean), "stddev": stddev })));
        if let Some(amount) = event.amount.as_deref().and_then(|amount| amount.parse::<f64>().ok()) {
            *n += 1;
            let delta = amount - *mean;
            *mean += delta / *n as f64;
            *squares += delta * (amount - *mean);
        }
    }
    states
}

/// Returns distance and time from the previous located event, for each located event.
fn distances(events: &[EventRecord]) -> Vec<Option<Value>> {
    let mut previous: Option<(Location, i64)> = None;
    let mut states = Vec::with_capacity(events.len());
    for event in events {
        let here = event.location.map(|(lat, lon)| Location { lat, lon });
        states.push(here.zip(previous).map(|(here, (before, time))| {
            json!({
                "km_from_previous": round6(haversine_km(before, here)),
                "seconds_since_previous": (event.event_time_ms - time) as f64 / 1e3,
            })
        }));
        previous = here.map(|here| (here, event.event_time_ms)).or(previous);
    }
    states
}

#[cfg(test)]
mod tests;
