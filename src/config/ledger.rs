//! The location of the ledger, and the settings that a pipeline's results depend on.

use std::path::PathBuf;

use headwater_sinks::Secret;

use crate::decode::{Binary, Format};
use crate::settings::{Diagnostics, Section, Server, renamed, secrets};

use super::{Config, SinksConfig};

/// The location of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerConfig {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL database at this URL.
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
                section.report_error("path", "a ledger in SQLite needs the path of a file", diagnostics);
            }
            path.map(LedgerConfig::Sqlite)
        }
        Some(true) => {
            let own =
                secrets::address(&mut section, Server::Postgres, diagnostics).map(|address| address.url);
            let is_given = section.has("url") || section.has("url_file");
            let mut databases = sinks.postgres();
            // With several databases, the ledger's must be named.
            let only = databases.next().filter(|_| databases.next().is_none());
            let url = own.or_else(|| only.map(|sink| sink.url.clone()));
            if url.is_none() && !is_given {
                section.report_error(
                    "url",
                    "a ledger in PostgreSQL needs a url here, or exactly one PostgreSQL sink",
                    diagnostics,
                );
            }
            url.map(LedgerConfig::Postgres)
        }
    };
    section.end(diagnostics);
    ledger
}

/// Recorded only if it is true, so that pipelines that were started before this key existed can resume.
pub(super) const STRICT_FIELDS: &str = "source.strict_fields";

/// The keys that an epoch's results depend on, besides its records.
const SEMANTIC_KEYS: [&str; 16] = [
    "source.kind",
    "source.schema_registry.unknown_id",
    "source.avro.framing",
    "source.protobuf.framing",
    "source.protobuf.message",
    "source.epoch_records",
    "source.max_jump",
    "time.max_out_of_orderness",
    "time.max_future_skew",
    "time.idle_advance",
    "limits.dedup_horizon",
    "state.ttl",
    "fields.",
    "keys.",
    "windows",
    "patterns",
];

/// The keys of lists on which no result depends: contents are recorded as they come into force.
const LIST_BOUNDS: [&str; 3] = ["].max_entries", "].max_bytes", "].wait"];

impl Config {
    /// Returns the settings that the pipeline's results depend on, one `key = value` per line. They are recorded when
    /// the pipeline begins, and must not change while there are epochs to replay.
    pub fn semantics(&self) -> String {
        let semantic = self.effective.iter().filter(|(key, value)| match key.as_str() {
            STRICT_FIELDS => value == "true",
            key => {
                let identity = self.source.kind().identity.contains(&key);
                let is_of_list = key.starts_with("lists[")
                    && !key.contains("].source.")
                    && !LIST_BOUNDS.iter().any(|bound| key.ends_with(bound));
                identity || is_of_list || SEMANTIC_KEYS.iter().any(|prefix| key.starts_with(prefix))
            }
        });
        let lines = semantic.map(|(key, value)| match key.as_str() {
            // The division of the input into epochs may change after a stop; the input itself may not.
            "source.epoch_records" => format!("time.epoch_records = {value}\n"),
            "source.max_jump" => format!("time.max_jump = {value}\n"),
            key => {
                let (key, value) = renamed::persisted(key, value);
                format!("{key} = {value}\n")
            }
        });
        let decoder = match self.plan.decoding.format {
            // Pipelines that were started before there were formats recorded only the version.
            Format { name: "json", version, .. } => format!("decoder = {version}\n"),
            Format { name, version, .. } => format!("decoder = {name} {version}\n"),
        };
        let schema = match &self.plan.decoding.binary {
            Some(Binary::File { digest, .. }) => Some(format!("source.schema = {digest}\n")),
            _ => None,
        };
        std::iter::once(decoder).chain(schema).chain(lines).collect()
    }
}
