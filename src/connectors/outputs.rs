//! The outputs that a sink writes.

use std::time::Duration;

use headwater_sinks::{Sink, tables};

use crate::outputs::{OutputMapping, SinkEncoding, SinkJob};
use crate::settings::{Diagnostics, Section, millis};

/// A kind of output that a sink can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutputKind {
    /// Enriched events.
    Events,
    /// Alerts.
    Alerts,
    /// Window aggregates.
    Windows,
    /// Dead letters.
    DeadLetters,
}

/// Returns the entry of an output in a mapping.
pub fn index_of(mapping: &mut OutputMapping, kind: OutputKind) -> &mut Option<u8> {
    match kind {
        OutputKind::Events => &mut mapping.events,
        OutputKind::Alerts => &mut mapping.alerts,
        OutputKind::Windows => &mut mapping.windows,
        OutputKind::DeadLetters => &mut mapping.dead_letters,
    }
}

/// Returns the index of an output's table in [`TABLES`](tables::TABLES).
pub fn table_of(kind: OutputKind) -> u8 {
    match kind {
        OutputKind::Events => tables::EVENTS,
        OutputKind::Alerts => tables::ALERTS,
        OutputKind::Windows => tables::WINDOW_AGGREGATES,
        OutputKind::DeadLetters => tables::DEAD_LETTERS,
    }
}

/// The tables to write, and how often to commit.
#[derive(Clone, Debug)]
pub struct TablesConfig {
    /// The outputs to write.
    pub tables: Vec<OutputKind>,
    /// The minimum time between the beginnings of two transactions.
    pub commit_interval: Duration,
}

/// The outputs, as the tables that store them are named.
pub(super) const TABLES: [(&str, OutputKind); 4] = [
    ("events", OutputKind::Events),
    ("alerts", OutputKind::Alerts),
    ("windows", OutputKind::Windows),
    ("dead_letters", OutputKind::DeadLetters),
];

impl TablesConfig {
    /// Reads the outputs to write, of those with a name, and the commit interval.
    pub(super) fn read(
        section: &mut Section<'_>,
        key: &str,
        outputs: &[(&str, OutputKind)],
        diagnostics: &mut Diagnostics,
    ) -> Option<TablesConfig> {
        let tables = section.choices(key, outputs, diagnostics);
        let interval = section.duration("commit_interval", 0, diagnostics);
        Some(TablesConfig { tables: tables?, commit_interval: millis(interval?) })
    }

    /// Returns the job of a sink that stores these tables, and alerts of shadow rules if `shadow_alerts` is true.
    pub(super) fn job(&self, sink: Box<dyn Sink>, shadow_alerts: bool) -> SinkJob {
        let mut mapping = OutputMapping { shadow_alerts, ..OutputMapping::default() };
        for &kind in &self.tables {
            *index_of(&mut mapping, kind) = Some(table_of(kind));
        }
        SinkJob { sink, encoding: SinkEncoding::Rows(mapping), commit_interval: self.commit_interval }
    }
}
