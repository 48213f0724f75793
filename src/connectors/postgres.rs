//! PostgreSQL: tables as sink.

use std::time::Duration;

use headwater_sinks::Secret;
use headwater_sinks::postgres::{Partitioning, Period, PostgresConfig, probe};
use headwater_sinks::tables::TableSet;

use super::outputs::TABLES;
use super::{Check, SinkConfig, SinkConnector, SinkContext, SinkKind, TablesConfig, databases};
use crate::outputs::SinkJob;
use crate::settings::{Diagnostics, Section, Server, keys, millis, secrets};

pub const SINK: SinkKind = SinkKind {
    name: "postgres",
    keys: keys! {
        "sinks.postgres.url": "Address of the database, such as `postgres://headwater@127.0.0.1/headwater`, or a list of `key=value` settings. TLS settings are those of libpq: `sslmode` (`disable`, `prefer`, `require`, `verify-ca`, `verify-full`; `allow` is treated as `prefer`, the default: TLS if the server offers it, unverified, and otherwise a warning), `sslrootcert` (a file, or `system`), `sslcert` and `sslkey`. The default of `connect_timeout` is 10 s. Required unless `url_file` is set."
        "sinks.postgres.url_file": "File that contains the URL."
        "sinks.postgres.password_file": "File that contains the password, for a URL without one."
        "sinks.postgres.schema": "Schema of the tables, created if it does not exist. Without it, the connection's `search_path` decides. Tables belong to one pipeline, so each pipeline in a database needs its own schema. Lower-case letters, digits and `_`."
        "sinks.postgres.tables" = "[\"events\", \"alerts\", \"windows\", \"dead_letters\"]": "Outputs to write."
        "sinks.postgres.partition_by": "Time that a partition of the tables covers: `day` or `month`, in UTC. By it, events and alerts are partitioned by event time, windows by their start, dead letters by the timestamp of the record. Partitions are made ahead and as rows need them; rows of times that are more than a week (or two months) ahead are in the partition `TABLE_default` until their time comes, and rows without a time (dead letters of files have no timestamp) in `TABLE_infinite`. It applies to new tables only: existing ones keep what they have. Without it, tables are not partitioned."
        "sinks.postgres.retention": "Age above which rows are removed, at least `1d`, by the clock of the server. Whole partitions are dropped, without disturbing the rounds. Rows that are already older when they arrive, in a replay for example, are written, then removed within a minute or two, and counted in the log. Rows without a time are kept. It must be longer than any window and pattern. Needs `partition_by`. Without it, rows are kept."
        "sinks.postgres.dashboards" = "false": "Creates and refreshes materialised views over the last seven days: `headwater_alerts_by_hour`, `headwater_top_keys`, `headwater_volumes_by_type` and `headwater_dead_letters_by_reason`. If it is false, existing views are left as they are."
        "sinks.postgres.dashboards_refresh" = "\"1m\"": "Time between two refreshes of the views. If a refresh takes more than a tenth of it, refreshes are less frequent."
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
    /// The partitioning of the tables, if they are partitioned.
    pub partitioning: Option<Partitioning>,
    /// The interval at which the views of dashboards are refreshed; None if they are left alone.
    pub dashboards: Option<Duration>,
}

/// The least retention: a day.
const LEAST_RETENTION_MS: i64 = 86_400_000;

fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<PostgresSinkConfig> {
    let url = secrets::address(section, Server::Postgres, diagnostics).map(|address| address.url);
    if url.is_none() && !section.has("url") && !section.has("url_file") {
        section.report_missing("url", diagnostics);
    }
    let schema = section.text("schema", diagnostics);
    let tables = TablesConfig::read(section, "tables", &TABLES, diagnostics);
    let period = section.choice("partition_by", &Period::ALL, diagnostics);
    let retention = section.duration("retention", LEAST_RETENTION_MS, diagnostics).map(millis);
    if retention.is_some() && !section.has("partition_by") {
        let message = "whole partitions are dropped: set `partition_by = \"day\"` as well";
        section.report_error("retention", message, diagnostics);
    }
    let dashboards = section.bool("dashboards", diagnostics);
    let refresh = section.duration("dashboards_refresh", 1000, diagnostics).map(millis);
    Some(PostgresSinkConfig {
        url: url?,
        schema,
        tables: tables?,
        partitioning: period.map(|period| Partitioning { period, retention }),
        dashboards: refresh.filter(|_| dashboards == Some(true)),
    })
}

impl SinkConnector for PostgresSinkConfig {
    fn jobs(&self, name: &str, context: SinkContext<'_>) -> Vec<SinkJob> {
        let PostgresSinkConfig { url, schema, tables, partitioning, dashboards } = self.clone();
        let (name, skip_stored, set) = (name.into(), !context.has_ledger, TableSet::Outputs);
        let sink = PostgresConfig { name, url, schema, skip_stored, set, partitioning, dashboards }.build();
        vec![tables.job(Box::new(sink), true)]
    }

    fn check(&self, name: &str, _context: SinkContext<'_>) -> Vec<Check> {
        let wanted = probe::Wanted {
            sink: name,
            set: TableSet::Outputs,
            partitioning: self.partitioning,
            dashboards: self.dashboards,
        };
        let outcome = probe::sink(self.url.expose(), self.schema.as_deref(), wanted);
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
