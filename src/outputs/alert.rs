//! Alerts: what patterns found.

use headwater_dataflows::{Epoch, EventTime, Position, ShardId};
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
    /// Worth a note.
    Low,
    /// Worth a look.
    Medium,
    /// Worth acting on.
    High,
    /// Worth acting on at once.
    Critical,
}

impl Severity {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

/// A match of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alert {
    /// The triggering event's place in the input.
    pub position: Position,
    /// Which rule, by name.
    pub rule: &'static str,
    /// The rule's version.
    pub rule_version: u32,
    /// Alert severity.
    pub severity: Severity,
    /// The key, with its kind in front.
    pub key: Box<str>,
    /// The events it is about, the triggering one last.
    pub event_ids: Vec<Box<str>>,
    /// When the triggering event happened.
    pub event_time: EventTime,
    /// Whether it can no longer be revoked when it is given.
    pub settled: bool,
    /// What the rule says of it: a JSON object.
    pub details: Box<str>,
    /// The pipeline's name.
    pub pipeline: std::sync::Arc<str>,
}

impl Alert {
    /// The first 16 bytes, in hex, of SHA-256 over pipeline, rule, version, key kind, key, partition and offset,
    /// each preceded by its length in four bytes, the greatest first.
    pub fn id(&self) -> String {
        let (kind, id) = split_key(&self.key);
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            hash.update((text.len() as u32).to_be_bytes());
            hash.update(text.as_bytes());
        };
        part(&self.pipeline);
        part(self.rule);
        part(&self.rule_version.to_string());
        part(kind.as_str());
        part(id);
        part(&self.position.partition.0.to_string());
        part(&self.position.offset.0.to_string());
        hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn status_text(status: Status) -> &'static str {
    match status {
        Status::Raised => "raised",
        Status::Revoked => "revoked",
    }
}

impl Output for Alert {
    fn of(mapping: &OutputMapping) -> Option<u8> {
        mapping.alerts
    }

    fn shard(&self) -> ShardId {
        shard_of(&self.key)
    }

    fn row(&self, epoch: Epoch, status: Status, table: u8, out: &mut Changes) {
        let (kind, id) = split_key(&self.key);
        let event_ids = serde_json::to_string(&self.event_ids).expect("texts are JSON");
        out.rows
            .row(table)
            .cell(Cell::Text(&self.id()))
            .cell(Cell::Text(status_text(status)))
            .cell(Cell::Text(self.rule))
            .cell(Cell::Int(self.rule_version.into()))
            .cell(Cell::Text(self.severity.as_str()))
            .cell(Cell::Text(kind.as_str()))
            .cell(Cell::Text(id))
            .cell(Cell::Json(&event_ids))
            .cell(Cell::Time(self.event_time.0))
            .cell(Cell::Int(epoch.0 as i64))
            .cell(Cell::Bool(self.settled))
            .cell(Cell::Json(&self.details))
            .end();
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
            status: status_text(status),
            rule: self.rule,
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
            serde_json::to_writer(out, &message).expect("a buffer takes everything");
        });
    }
}
