//! Where the ledger is, and what a pipeline's answers depend on.

use std::path::PathBuf;

use headwater_sinks::Secret;

use super::address::Server;
use super::read::{Diagnostics, Section};
use super::{Config, SinksConfig, secrets};

/// Where the ledger is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerConfig {
    /// In a SQLite file.
    Sqlite(PathBuf),
    /// In PostgreSQL, at this URL.
    Postgres(Secret),
}

/// Reads the section `[ledger]`.
pub(super) fn read(
    mut section: Section<'_>,
    sinks: &SinksConfig,
    diagnostics: &mut Diagnostics,
) -> Option<LedgerConfig> {
    let postgres = section.choice("kind", &[("postgres", true), ("sqlite", false)], diagnostics);
    let ledger = match postgres {
        None => None,
        Some(false) => {
            let path = section.file("path", diagnostics);
            if path.is_none() {
                section.report_error("path", "a ledger in SQLite needs the path of its file", diagnostics);
            }
            path.map(LedgerConfig::Sqlite)
        }
        Some(true) => {
            let own =
                secrets::address(&mut section, Server::Postgres, diagnostics).map(|address| address.url);
            let is_given = section.has("url") || section.has("url_file");
            let url = own.or_else(|| sinks.postgres.as_ref().map(|sink| sink.url.clone()));
            if url.is_none() && !is_given {
                section.report_error(
                    "url",
                    "a ledger in PostgreSQL needs a url, or a sinks.postgres that has one",
                    diagnostics,
                );
            }
            url.map(LedgerConfig::Postgres)
        }
    };
    section.end(diagnostics);
    ledger
}

/// How records are read: raised when the same bytes become another event, or none.
const DECODER: u32 = 2;

/// Recorded where it is set, so that pipelines that began before there was such a key go on.
pub(super) const STRICT_FIELDS: &str = "source.strict_fields";

/// What an epoch's results depend on beside its records.
const DECISIVE: [&str; 13] = [
    "source.kind",
    "source.topic",
    "source.paths",
    "source.seed",
    "source.epoch_records",
    "source.max_jump",
    "time.max_out_of_orderness",
    "time.max_future_skew",
    "time.idle_advance",
    "limits.dedup_horizon",
    "state.ttl",
    "windows",
    "patterns",
];

impl Config {
    /// What the pipeline's answers depend on, one `key = value` a line: recorded when it begins, and the same as long
    /// as epochs are to be replayed.
    pub fn semantics(&self) -> String {
        let decisive = self.effective.iter().filter(|(key, value)| match key.as_str() {
            STRICT_FIELDS => value == "true",
            _ => DECISIVE.iter().any(|what| key.starts_with(what)),
        });
        let lines = decisive.map(|(key, value)| match key.as_str() {
            // How an input is cut into epochs may change after a stop; which input it is may not.
            "source.epoch_records" => format!("time.epoch_records = {value}\n"),
            "source.max_jump" => format!("time.max_jump = {value}\n"),
            key => format!("{key} = {value}\n"),
        });
        std::iter::once(format!("decoder = {DECODER}\n")).chain(lines).collect()
    }
}
