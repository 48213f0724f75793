//! Committed results, read back for people: alerts, their changes in order, and the events that explain them.
//!
//! ```text
//!   Config ──▶ of_config ─┬▶ Stored<Sqlite>    the first sink with a table of alerts
//!                         ├▶ Stored<Postgres>
//!                         └▶ Recent            the alerts of this process, if no sink stores them in a table
//! ```
//!
//! Reading has connections of its own: it never waits for a round, and no round waits for it. An explanation takes the
//! events of a key from the table `events` or, if no sink has it, from the source (`SourceEvents`).

mod alert;
mod explain;
mod postgres;
mod query;
mod recent;
mod source_events;
mod sqlite;
mod stored;

pub use alert::{AlertRecord, ChangeCursor};
pub use explain::{ExplainedEvent, Explainer, Explanation};
pub use query::{AlertQuery, EventQuery};
pub use recent::Recent;
pub use source_events::SourceEvents;
pub use stored::{EventRecord, Stored};

use std::sync::Arc;

use headwater_dataflows::Epoch;

use crate::config::{Config, OutputKind, SinkConfig};
use crate::metrics::Metrics;
use crate::outputs::{RecentAlerts, RuleMode};
use postgres::Postgres;
use sqlite::Sqlite;

/// The maximum number of events that are read for an explanation.
const MAX_EVENTS: usize = 5_000;

/// An error of reading results.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {place}: {reason}")]
pub struct ResultsError {
    /// The store.
    pub place: String,
    /// The reason.
    pub reason: String,
}

/// The committed results of a pipeline. Methods block, for at most some seconds.
pub trait Results: Send + Sync {
    /// Returns the place where the results are stored, for people.
    fn place(&self) -> String;

    /// Returns the alerts that match a query, the newest change first.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn alerts(&self, query: &AlertQuery) -> Result<Vec<AlertRecord>, ResultsError>;

    /// Returns an alert; None if there is none with this id.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn alert(&self, id: &str) -> Result<Option<AlertRecord>, ResultsError>;

    /// Returns at most `limit` alerts, of one mode or of both, that changed after `after` in an epoch before `before`, in the order of their
    /// changes.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn changes(
        &self,
        mode: Option<RuleMode>,
        after: &ChangeCursor,
        before: Epoch,
        limit: usize,
    ) -> Result<Vec<AlertRecord>, ResultsError>;

    /// Returns true if events are stored.
    fn has_events(&self) -> bool;

    /// Returns the newest events of a key that match a query, the oldest first; None if no events are stored.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn events(&self, query: &EventQuery) -> Result<Option<Vec<EventRecord>>, ResultsError>;
}

/// Returns the results of a configuration, and the buffer that the run must fill if no sink stores alerts in a table.
pub fn of_config(config: &Config, metrics: &Arc<Metrics>) -> (Arc<dyn Results>, Option<Arc<RecentAlerts>>) {
    for sink in config.sinks.0.values() {
        match sink {
            SinkConfig::Sqlite(sqlite) if sqlite.tables.tables.contains(&OutputKind::Alerts) => {
                let has_events = sqlite.tables.tables.contains(&OutputKind::Events);
                return (Arc::new(Stored::new(Sqlite::new(sqlite.path.clone()), has_events)), None);
            }
            SinkConfig::Postgres(postgres) if postgres.tables.tables.contains(&OutputKind::Alerts) => {
                let has_events = postgres.tables.tables.contains(&OutputKind::Events);
                let database = Postgres::new(postgres.url.clone(), postgres.schema.clone());
                return (Arc::new(Stored::new(database, has_events)), None);
            }
            _ => {}
        }
    }
    let alerts = Arc::new(RecentAlerts::default());
    (Arc::new(Recent::new(Arc::clone(&alerts), Arc::clone(metrics))), Some(alerts))
}
