//! A list that is the result of a query.

use std::time::Duration;

use headwater_sinks::Secret;
use headwater_sinks::postgres::Target;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::values::{Collector, Raw, key, row};
use super::{Defaults, ListBounds, ListReader, ListReading};
use crate::connectors::causes;
use crate::database::postgres::{Session, Settings};
use crate::fields::FieldType;
use crate::lists::Schema;
use crate::settings::{Diagnostics, Section, Server, millis, secrets};

/// A query whose rows are the entries of a list.
#[derive(Clone, Debug)]
pub struct PostgresListConfig {
    url: Secret,
    query: String,
    /// The column of the key; None: the first.
    key: Option<String>,
    every: Duration,
    timeout: Duration,
}

pub(super) fn read(
    section: &mut Section<'_>,
    defaults: &Defaults,
    diagnostics: &mut Diagnostics,
) -> Option<PostgresListConfig> {
    let query = section.text("query", diagnostics);
    if query.is_none() && !section.has("query") {
        section.report_missing("query", diagnostics);
    }
    let key = section.text("key", diagnostics);
    let every = section.duration("every", 1000, diagnostics).map(millis);
    let timeout = section.duration("timeout", 1000, diagnostics).map(millis);
    let own = secrets::address(section, Server::Postgres, diagnostics).map(|address| address.url);
    let is_given = section.has("url") || section.has("url_file");
    let url = own.or_else(|| defaults.postgres.clone().filter(|_| !is_given));
    if url.is_none() && !is_given {
        let message = "a query needs a url here, or exactly one PostgreSQL sink";
        section.report_error("url", message, diagnostics);
    }
    Some(PostgresListConfig { url: url?, query: query?, key, every: every?, timeout: timeout? })
}

impl PostgresListConfig {
    /// Returns the name of the database and its server, without the password.
    pub(super) fn database(&self) -> String {
        match Target::parse(self.url.expose()) {
            Ok(target) => format!("database {} at {}", target.database(), target.hosts()),
            Err(_) => "a database".to_owned(),
        }
    }

    pub(super) fn reader(&self, schema: Schema, bounds: ListBounds) -> PostgresReader {
        PostgresReader { config: self.clone(), schema, bounds, session: None, failures: 0 }
    }
}

pub(super) struct PostgresReader {
    config: PostgresListConfig,
    schema: Schema,
    bounds: ListBounds,
    session: Option<Session>,
    /// The number of failed readings since the last one that succeeded.
    failures: u32,
}

impl ListReader for PostgresReader {
    fn read(&mut self) -> Result<ListReading, String> {
        let read = self.query();
        self.failures = if read.is_ok() { 0 } else { self.failures.saturating_add(1) };
        if read.is_err() {
            self.session = None;
        }
        read
    }

    fn pause(&self) -> Duration {
        // Soon after a failure, then more and more rarely.
        let retry = Duration::from_secs(1 << self.failures.min(6).saturating_sub(1));
        if self.failures == 0 { self.config.every } else { retry.min(self.config.every) }
    }
}

impl PostgresReader {
    fn query(&mut self) -> Result<ListReading, String> {
        let PostgresListConfig { url, query, timeout, .. } = &self.config;
        if self.session.as_ref().is_none_or(Session::is_closed) {
            let settings = Settings {
                url,
                schema: None,
                application: "headwater list",
                is_read_only: true,
                statement_timeout: *timeout,
                timeout: *timeout,
            };
            let connected = Session::connect(settings);
            self.session = Some(connected.map_err(|error| format!("cannot connect: {}", causes(&error)))?);
        }
        let session = self.session.as_mut().expect("it is connected");
        // One row more than permitted is enough to refuse them.
        let limit = self.bounds.entries.saturating_add(1);
        let query = query.trim().trim_end_matches(';');
        let statement = format!("SELECT * FROM (\n{query}\n) AS list LIMIT {limit}");
        let messages = session.run(async |client| client.simple_query(&statement).await);
        let messages = messages.map_err(|error| format!("the query failed: {}", causes(&error)))?;
        self.entries(&messages)
    }

    fn entries(&self, messages: &[SimpleQueryMessage]) -> Result<ListReading, String> {
        let mut columns: Vec<&str> = Vec::new();
        let mut collector = Collector::new(self.bounds);
        let (mut key_at, mut values_at) = (0, Vec::new());
        let mut number = 0u64;
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(description) => {
                    columns = description.iter().map(|column| column.name()).collect();
                    let find = |name: &str| {
                        let at = columns.iter().position(|known| *known == name);
                        at.ok_or_else(|| {
                            format!("the query has no column {name}; columns: {}", columns.join(", "))
                        })
                    };
                    key_at = self.config.key.as_deref().map_or(Ok(0), find)?;
                    values_at =
                        self.schema.columns.iter().map(|(name, _)| find(name)).collect::<Result<_, _>>()?;
                }
                SimpleQueryMessage::Row(values) => {
                    number += 1;
                    let at = || format!("row {number}");
                    if columns.is_empty() {
                        return Err("the query has no columns".to_owned());
                    }
                    let key_of = key(self.schema.key, &text(values, key_at));
                    let row =
                        row(&self.schema, |at, _| value(values, values_at[at], self.schema.columns[at].1));
                    let entry = key_of.and_then(|key| Ok((key, row?)));
                    let (key, row) = entry.map_err(|error| format!("{}: {error}", at()))?;
                    collector.add(key, row, at)?;
                }
                _ => {}
            }
        }
        let (entries, warnings) = collector.end();
        Ok(ListReading { entries: Some(entries), refused: 0, warnings })
    }
}

fn text(row: &SimpleQueryRow, at: usize) -> Raw<'_> {
    row.get(at).map_or(Raw::Absent, |text| Raw::Text(text.into()))
}

/// Returns a value; an instant in the form of RFC 3339. The session's times are in UTC.
fn value(row: &SimpleQueryRow, at: usize, kind: FieldType) -> Raw<'_> {
    match (kind, row.get(at)) {
        (FieldType::Timestamp, Some(text)) => {
            let text = text.strip_suffix("+00").unwrap_or(text);
            Raw::Text(format!("{}Z", text.replacen(' ', "T", 1)).into())
        }
        _ => text(row, at),
    }
}
