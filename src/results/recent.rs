//! The most recent alerts of this process, where no sink stores alerts in a table.

use std::sync::Arc;

use headwater_dataflows::Epoch;

use super::alert::{AlertRecord, ChangeCursor};
use super::query::{AlertQuery, EventQuery};
use super::stored::EventRecord;
use super::{Results, ResultsError};
use crate::decode::rfc3339_ms;
use crate::metrics::Metrics;
use crate::outputs::{RecentAlert, RecentAlerts, RuleMode};

/// The recent alerts, of epochs that all sinks have committed.
pub struct Recent {
    alerts: Arc<RecentAlerts>,
    metrics: Arc<Metrics>,
}

impl Recent {
    /// Returns the alerts of a buffer that the run fills.
    pub fn new(alerts: Arc<RecentAlerts>, metrics: Arc<Metrics>) -> Recent {
        Recent { alerts, metrics }
    }

    /// Returns the committed state of all alerts, the newest change first.
    fn committed(&self) -> Vec<AlertRecord> {
        let committed = self.alerts.latest(self.metrics.frontier_epoch());
        committed.iter().rev().map(record).collect()
    }
}

fn record(recent: &RecentAlert) -> AlertRecord {
    AlertRecord::of(&recent.alert, recent.epoch, recent.status)
}

impl Results for Recent {
    fn place(&self) -> String {
        "memory of this process".to_owned()
    }

    fn alerts(&self, query: &AlertQuery) -> Result<Vec<AlertRecord>, ResultsError> {
        let is =
            |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        let ms = |time: &Option<String>| time.as_deref().and_then(|time| rfc3339_ms(time).ok());
        let (from, to) = (ms(&query.from), ms(&query.to));
        let mut alerts = self.committed();
        alerts.retain(|alert| {
            is(&query.rule, &alert.rule)
                && is(&query.severity, &alert.severity)
                && is(&query.status, &alert.status)
                && query.mode.is_none_or(|mode| alert.mode == mode.as_str())
                && is(&query.key_kind, &alert.key_kind)
                && is(&query.key, &alert.key)
                && from.is_none_or(|from| alert.event_time_ms >= from)
                && to.is_none_or(|to| alert.event_time_ms < to)
                && query.before.as_ref().is_none_or(|before| alert.cursor() < *before)
        });
        alerts.truncate(query.limit);
        Ok(alerts)
    }

    fn alert(&self, id: &str) -> Result<Option<AlertRecord>, ResultsError> {
        Ok(self.committed().into_iter().find(|alert| alert.alert_id == id))
    }

    fn changes(
        &self,
        mode: Option<RuleMode>,
        after: &ChangeCursor,
        before: Epoch,
        limit: usize,
    ) -> Result<Vec<AlertRecord>, ResultsError> {
        let before = before.min(self.metrics.frontier_epoch());
        let changes = self.alerts.changes(mode, &(after.epoch, after.alert_id.clone()), before, limit);
        Ok(changes.iter().map(record).collect())
    }

    fn has_events(&self) -> bool {
        false
    }

    fn events(&self, _query: &EventQuery) -> Result<Option<Vec<EventRecord>>, ResultsError> {
        Ok(None)
    }
}
