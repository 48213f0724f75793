//! Where the ledger is, and what a pipeline's answers depend on.

use std::fmt;
use std::path::PathBuf;

use super::read::{Notes, Section};
use super::{Config, SinksConfig, check_postgres, values};

/// Where the ledger is.
#[derive(Clone, PartialEq, Eq)]
pub enum LedgerConfig {
    /// In a SQLite file.
    Sqlite(PathBuf),
    /// In PostgreSQL, at this URL.
    Postgres(String),
}

impl fmt::Debug for LedgerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LedgerConfig::Sqlite(path) => write!(f, "Sqlite({})", path.display()),
            LedgerConfig::Postgres(url) => write!(f, "Postgres({})", values::without_password(url)),
        }
    }
}

/// Reads the section `[ledger]`.
pub(super) fn read(mut section: Section<'_>, sinks: &SinksConfig, notes: &mut Notes) -> Option<LedgerConfig> {
    let postgres = section.choice("kind", &[("postgres", true), ("sqlite", false)], notes);
    let ledger = match postgres {
        None => None,
        Some(false) => {
            let path = section.text("path", notes);
            if path.is_none() {
                section.complain("path", "a ledger in SQLite needs the path of its file", notes);
            }
            path.map(|path| LedgerConfig::Sqlite(path.into()))
        }
        Some(true) => {
            let own = section.text("url", notes);
            if let Some(own) = &own {
                check_postgres(&section, own, notes);
            }
            let url = own.or_else(|| sinks.postgres.as_ref().map(|sink| sink.tables.place.clone()));
            if url.is_none() {
                section.complain(
                    "url",
                    "a ledger in PostgreSQL needs a url, or a sinks.postgres that has one",
                    notes,
                );
            }
            url.map(LedgerConfig::Postgres)
        }
    };
    section.end(notes);
    ledger
}

/// How records are read: raised when the same bytes become another event, or none.
const DECODER: u32 = 1;

/// What an epoch's results depend on beside its records.
const DECISIVE: [&str; 10] = [
    "source.kind",
    "source.topic",
    "source.paths",
    "source.seed",
    "time.max_out_of_orderness",
    "time.max_future_skew",
    "limits.dedup_horizon",
    "state.ttl",
    "windows",
    "patterns",
];

impl Config {
    /// What the pipeline's answers depend on, one `key = value` a line: recorded when it begins, and the same as long
    /// as epochs are to be done again.
    pub fn meaning(&self) -> String {
        let decisive =
            self.effective.iter().filter(|(key, _)| DECISIVE.iter().any(|what| key.starts_with(what)));
        let lines = decisive.map(|(key, value)| format!("{key} = {value}\n"));
        std::iter::once(format!("decoder = {DECODER}\n")).chain(lines).collect()
    }
}
