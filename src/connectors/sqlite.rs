//! SQLite: tables in a file as sink.

use std::path::PathBuf;

use headwater_sinks::sqlite::SqliteConfig;
use headwater_sinks::tables::TableSet;

use super::outputs::TABLES;
use super::{Check, SinkConfig, SinkConnector, SinkContext, SinkKind, TablesConfig, writable};
use crate::outputs::SinkJob;
use crate::settings::{Diagnostics, Section, keys};

pub const SINK: SinkKind = SinkKind {
    name: "sqlite",
    keys: keys! {
        "sinks.sqlite.path" = required: "Path of the database file."
        "sinks.sqlite.tables" = "[\"events\", \"alerts\", \"windows\", \"dead_letters\"]": "Outputs to write."
        "sinks.sqlite.commit_interval" = "\"200ms\"": "Minimum time between the beginnings of two transactions."
    },
    read: |section, diagnostics| read(section, diagnostics).map(SinkConfig::Sqlite),
};

/// Tables in a SQLite file to write.
#[derive(Clone, Debug)]
pub struct SqliteSinkConfig {
    /// The database file.
    pub path: PathBuf,
    /// The tables to write.
    pub tables: TablesConfig,
}

fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<SqliteSinkConfig> {
    let path = section.file("path", diagnostics);
    let tables = TablesConfig::read(section, "tables", &TABLES, diagnostics);
    Some(SqliteSinkConfig { path: path?, tables: tables? })
}

impl SinkConnector for SqliteSinkConfig {
    fn jobs(&self, name: &str, context: SinkContext<'_>) -> Vec<SinkJob> {
        let (name, path) = (name.into(), self.path.clone());
        let sink =
            SqliteConfig { name, path, skip_stored: !context.has_ledger, set: TableSet::Outputs }.build();
        vec![self.tables.job(Box::new(sink), true)]
    }

    fn check(&self, name: &str, _context: SinkContext<'_>) -> Vec<Check> {
        let what = format!("file {}", self.path.display());
        vec![Check::of(format!("sinks.{name}"), what, writable(&self.path))]
    }

    fn targets(&self) -> Vec<String> {
        vec![format!("file {}", self.path.display())]
    }

    fn sharing_objection(&self, has_ledger: bool) -> Option<String> {
        let reason = "several processes with a ledger cannot share a SQLite file: remove the sink, or start one process \
                      with more workers (-w)";
        has_ledger.then(|| reason.to_owned())
    }
}
