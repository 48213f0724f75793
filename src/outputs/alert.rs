//! Alerts: matches of rules.

use headwater_dataflows::{Epoch, EventTime, Position, ShardId};
use headwater_sinks::tables::OUTBOX;
use headwater_sinks::{Cell, Changes};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Envelope, Output, OutputMapping, Status, shard_of};
use crate::event::split_key;
use crate::json::rfc3339;

/// Alert severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// For information.
    Low,
    /// Requires a review.
    Medium,
    /// Requires action.
    High,
    /// Requires immediate action.
    Critical,
}

impl Severity {
    /// All severities, the least severe first.
    pub const ALL: [Severity; 4] = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical];

    /// Returns the name in outputs.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

/// The mode of a rule, and of its alerts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleMode {
    /// Alerts are stored and sent.
    #[default]
    Live,
    /// Alerts are stored in tables and files, and sent to no one: a rule on trial.
    Shadow,
}

impl RuleMode {
    /// All modes.
    pub const ALL: [RuleMode; 2] = [RuleMode::Live, RuleMode::Shadow];

    /// Returns the name in configurations and outputs.
    pub fn as_str(self) -> &'static str {
        match self {
            RuleMode::Live => "live",
            RuleMode::Shadow => "shadow",
        }
    }
}

/// A match of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alert {
    /// The position of the triggering event.
    pub position: Position,
    /// The name of the rule.
    pub rule: std::sync::Arc<str>,
    /// The rule's version.
    pub rule_version: u32,
    /// Alert severity.
    pub severity: Severity,
    /// The key, with its prefix.
    pub key: Box<str>,
    /// The ids of the events that match, the triggering event last.
    pub event_ids: Vec<Box<str>>,
    /// The event time of the triggering event.
    pub event_time: EventTime,
    /// True if the alert is final when it is emitted: it cannot be revoked.
    pub settled: bool,
    /// Details of the rule: a JSON object.
    pub details: Box<str>,
    /// The pipeline's name.
    pub pipeline: std::sync::Arc<str>,
    /// The mode of the rule. It is no part of the id.
    pub mode: RuleMode,
}

impl Alert {
    /// Returns the alert id: the first 16 bytes, in hex, of SHA-256 over pipeline, rule, version, key kind, key,
    /// partition and offset, each preceded by its length as four big-endian bytes.
    pub fn id(&self) -> String {
        let (kind, id) = split_key(&self.key);
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            hash.update((text.len() as u32).to_be_bytes());
            hash.update(text.as_bytes());
        };
        part(&self.pipeline);
        part(&self.rule);
        part(&self.rule_version.to_string());
        part(kind.as_str());
        part(id);
        part(&self.position.partition.0.to_string());
        part(&self.position.offset.0.to_string());
        hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Output for Alert {
    fn accepted_by(&self, mapping: &OutputMapping) -> Option<u8> {
        mapping.alerts.filter(|_| self.mode == RuleMode::Live || mapping.shadow_alerts)
    }

    fn shard(&self) -> ShardId {
        shard_of(&self.key)
    }

    fn row(&self, epoch: Epoch, status: Status, table: u8, out: &mut Changes) {
        let (kind, id) = split_key(&self.key);
        let event_ids = serde_json::to_string(&self.event_ids).expect("strings encode as JSON");
        let mut row = out.rows.row(table);
        row.cell(Cell::Text(&self.id()))
            .cell(Cell::Text(status.as_str()))
            .cell(Cell::Text(&self.rule))
            .cell(Cell::Int(self.rule_version.into()))
            .cell(Cell::Text(self.severity.as_str()))
            .cell(Cell::Text(kind.as_str()))
            .cell(Cell::Text(id))
            .cell(Cell::Json(&event_ids))
            .cell(Cell::Time(self.event_time.0))
            .cell(Cell::Int(epoch.0 as i64))
            .cell(Cell::Bool(self.settled))
            .cell(Cell::Json(&self.details));
        // The outbox has live alerts only.
        if table != OUTBOX {
            row.cell(Cell::Text(self.mode.as_str()));
        }
        row.end();
    }

    fn message(&self, epoch: Epoch, status: Status, topic: u8, _: &Envelope<'_>, out: &mut Changes) {
        #[derive(Serialize)]
        struct Message<'a> {
            alert_id: &'a str,
            status: &'a str,
            rule: &'a str,
            rule_version: u32,
            severity: Severity,
            key_kind: &'a str,
            key: &'a str,
            event_ids: &'a [Box<str>],
            event_time: String,
            epoch: u64,
            r#final: bool,
            details: &'a serde_json::value::RawValue,
        }
        let (kind, key) = split_key(&self.key);
        let message = Message {
            alert_id: &self.id(),
            status: status.as_str(),
            rule: &self.rule,
            rule_version: self.rule_version,
            severity: self.severity,
            key_kind: kind.as_str(),
            key,
            event_ids: &self.event_ids,
            event_time: rfc3339(self.event_time.0),
            epoch: epoch.0,
            r#final: self.settled,
            details: serde_json::from_str(&self.details).expect("a rule's details are JSON"),
        };
        out.messages.push(topic, Some(key.as_bytes()), &[], |out| {
            serde_json::to_writer(out, &message).expect("writing to a Vec cannot fail");
        });
    }
}
