//! Alerts of the matches of a rule.

use std::sync::Arc;

use headwater_dataflows::{Emission, EventTime, Position};
use serde::Serialize;

use crate::event::Event;
use crate::outputs::{Alert, Severity};

/// The version of the rules. Increment it when the semantics of a rule change, so that its alerts get new ids.
const RULE_VERSION: u32 = 1;

/// A builder of the alerts of one rule.
pub(super) struct AlertBuilder {
    pipeline: Arc<str>,
    rule: Arc<str>,
    emission: Emission,
}

impl AlertBuilder {
    pub fn new(pipeline: &Arc<str>, rule: &str, emission: Emission) -> AlertBuilder {
        AlertBuilder { pipeline: Arc::clone(pipeline), rule: rule.into(), emission }
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
            rule_version: RULE_VERSION,
            severity,
            key: key.into(),
            event_ids,
            event_time,
            settled: self.emission == Emission::Final,
            details: serde_json::to_string(&details).expect("numbers and names are JSON").into(),
            pipeline: Arc::clone(&self.pipeline),
        }
    }
}
