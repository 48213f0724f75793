//! Alerts of the matches of a rule.

use std::collections::BTreeMap;
use std::sync::Arc;

use headwater_dataflows::patterns::{Deviation, Trip};
use headwater_dataflows::{Emission, EventTime, Position};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::event::Event;
use crate::json::round6;
use crate::outputs::{Alert, MICROS, RuleMode, Severity};

/// A builder of the alerts of one rule.
pub(super) struct AlertBuilder {
    pipeline: Arc<str>,
    rule: Arc<str>,
    /// The number of the rule's definition. Alerts of another definition have other ids.
    version: u32,
    emission: Emission,
    mode: RuleMode,
}

impl AlertBuilder {
    pub fn new(pipeline: &Arc<str>, rule: &str, version: u32, emission: Emission) -> AlertBuilder {
        let mode = RuleMode::Live;
        AlertBuilder { pipeline: Arc::clone(pipeline), rule: rule.into(), version, emission, mode }
    }

    /// Sets the mode of the rule.
    pub fn in_mode(self, mode: RuleMode) -> AlertBuilder {
        AlertBuilder { mode, ..self }
    }

    /// Returns the alert of an event. `before` are the ids of earlier events that match.
    pub fn alert(
        &self,
        event: &Event,
        before: impl IntoIterator<Item = Box<str>>,
        severity: Severity,
        details: impl Serialize,
    ) -> Alert {
        let event_ids = before.into_iter().chain([event.id().into()]).collect();
        self.of(event.key(), event.position(), event.event_time(), event_ids, severity, details)
    }

    /// Returns the alert of a key, given with its prefix, at a position and time.
    pub fn of(
        &self,
        key: &str,
        position: Position,
        event_time: EventTime,
        event_ids: Vec<Box<str>>,
        severity: Severity,
        details: impl Serialize,
    ) -> Alert {
        Alert {
            position,
            rule: Arc::clone(&self.rule),
            rule_version: self.version,
            severity,
            key: key.into(),
            event_ids,
            event_time,
            settled: self.emission == Emission::Final,
            details: serde_json::to_string(&details).expect("numbers and names are JSON").into(),
            pipeline: Arc::clone(&self.pipeline),
            mode: self.mode,
        }
    }
}

/// The details of an alert: a JSON object whose numbers have all their digits.
pub(super) type Details = BTreeMap<&'static str, Box<RawValue>>;

macro_rules! details {
    ($($name:literal: $value:expr),* $(,)?) => {
        Details::from([$(
            ($name, serde_json::value::to_raw_value(&$value).expect("numbers and texts are JSON"))
        ),*])
    };
}

pub(super) use details;

/// Returns millionths as a JSON number with all digits.
pub(super) fn decimal(micros: i128) -> Box<RawValue> {
    RawValue::from_string(crate::json::decimal(micros)).expect("a decimal number is JSON")
}

/// Returns the details of a number that is far from the mean of earlier ones, which `name` has.
pub(super) fn deviation_details(name: &'static str, deviation: &Deviation) -> Details {
    let mut details = details! {
        "mean": round6(deviation.mean / MICROS),
        "n": deviation.n,
        "sigmas": round6(deviation.sigmas),
        "stddev": round6(deviation.stddev / MICROS),
    };
    details.insert(name, decimal(deviation.amount.into()));
    details
}

/// Returns the details of movement that is too fast.
pub(super) fn trip_details<N>(trip: &Trip<N>) -> Details {
    details! {
        "km": round6(trip.km), "seconds": round6(trip.seconds), "kmh": trip.kmh.map(round6),
    }
}
