//! PostgreSQL: tables as sink.

use headwater_sinks::Secret;
use headwater_sinks::postgres::{PostgresConfig, probe};
use headwater_sinks::tables::TableSet;

use super::outputs::TABLES;
use super::{Check, SinkConfig, SinkConnector, SinkContext, SinkKind, TablesConfig, databases};
use crate::outputs::SinkJob;
use crate::settings::{Diagnostics, Section, Server, keys, secrets};

pub const SINK: SinkKind = SinkKind {
    name: "postgres",
    keys: keys! {
        "sinks.postgres.url": "Address of the database, such as `postgres://headwater@127.0.0.1/headwater`, or a list of `key=value` settings. TLS settings are those of libpq: `sslmode` (`disable`, `prefer`, `require`, `verify-ca`, `verify-full`; `allow` is treated as `prefer`, the default: TLS if the server offers it, unverified, and otherwise a warning), `sslrootcert` (a file, or `system`), `sslcert` and `sslkey`. The default of `connect_timeout` is 10 s. Required unless `url_file` is set."
        "sinks.postgres.url_file": "File that contains the URL."
        "sinks.postgres.password_file": "File that contains the password, for a URL without one."
        "sinks.postgres.schema": "Schema of the tables, created if it does not exist. Without it, the connection's `search_path` decides. Tables belong to one pipeline, so each pipeline in a database needs its own schema. Lower-case letters, digits and `_`."
        "sinks.postgres.tables" = "[\"events\", \"alerts\", \"windows\", \"dead_letters\"]": "Outputs to write."
        "sinks.postgres.commit_interval" = "\"200ms\"": "Minimum time between the beginnings of two transactions. Longer intervals cost less."
    },
    read: |section, diagnostics| read(section, diagnostics).map(SinkConfig::Postgres),
};

/// Tables in PostgreSQL to write.
#[derive(Clone, Debug)]
pub struct PostgresSinkConfig {
    /// The address of the server and database.
    pub url: Secret,
    /// The schema of the tables; None to let the connection's `search_path` decide.
    pub schema: Option<String>,
    /// The tables to write.
    pub tables: TablesConfig,
}

fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<PostgresSinkConfig> {
    let url = secrets::address(section, Server::Postgres, diagnostics).map(|address| address.url);
    if url.is_none() && !section.has("url") && !section.has("url_file") {
        section.report_missing("url", diagnostics);
    }
    let schema = section.text("schema", diagnostics);
    let tables = TablesConfig::read(section, "tables", &TABLES, diagnostics);
    Some(PostgresSinkConfig { url: url?, schema, tables: tables? })
}

impl SinkConnector for PostgresSinkConfig {
    fn jobs(&self, name: &str, context: SinkContext<'_>) -> Vec<SinkJob> {
        let PostgresSinkConfig { url, schema, tables } = self.clone();
        let sink = PostgresConfig {
            name: name.into(),
            url,
            schema,
            skip_stored: !context.has_ledger,
            set: TableSet::Outputs,
        }
        .build();
        vec![tables.job(Box::new(sink))]
    }

    fn check(&self, name: &str, _context: SinkContext<'_>) -> Vec<Check> {
        let outcome = probe::sink(self.url.expose(), self.schema.as_deref(), TableSet::Outputs);
        vec![Check::of(format!("sinks.{name}"), databases(&self.url), outcome)]
    }

    fn targets(&self) -> Vec<String> {
        let schema = self.schema.as_ref().map_or(String::new(), |schema| format!(" in schema {schema}"));
        vec![format!("{}{schema}", databases(&self.url))]
    }

    fn sharing_objection(&self, has_ledger: bool) -> Option<String> {
        let reason = "several processes need a ledger to write one database: add `[ledger]`, or start one process with \
                      more workers (-w)";
        (!has_ledger).then(|| reason.to_owned())
    }
}
