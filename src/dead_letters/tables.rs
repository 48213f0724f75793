//! Dead letters in the table `dead_letters`, of SQLite and of PostgreSQL. Both databases answer the same queries; rows
//! are fetched one by one or a few at a time, so that large payloads do not add up in memory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use headwater_dataflows::{Offset, Partition, Position};
use headwater_sinks::Secret;
use headwater_sinks::postgres::Target;
use rusqlite::OpenFlags;
use rusqlite::types::Value;
use tokio_postgres::types::ToSql;

use super::{Filter, Group, LetterId, LettersError, time};
use crate::decode::rfc3339_ms;
use crate::json::rfc3339;
use crate::source::kafka::dead_letters::{DeadLetter, header};

/// The timeout of a call, with connecting and all its statements.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The time after which PostgreSQL itself cancels a statement that reads, so that none goes on for a client that has
/// given up.
const READ_TIMEOUT: &str = "20s";

/// The same for statements that delete.
const WRITE_TIMEOUT: &str = "30s";

/// The number of rows that PostgreSQL sends at once.
const ROWS: i32 = 16;
/// The maximum number of groups.
pub const GROUPS: usize = 1000;

/// A database with the table.
#[derive(Clone, Debug)]
pub enum Database {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// PostgreSQL: its address, and the schema of the table if it is not the default.
    Postgres(Secret, Option<String>),
}

/// The order of rows, and the row before the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The newest first, after this row.
    Newest(Option<TableCursor>),
    /// By partition and offset, after this row.
    ByPosition(Option<LetterId>),
    /// This row.
    One(LetterId),
}

/// The last row of a page: its timestamp as the database writes it, and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableCursor {
    pub timestamp: String,
    pub id: LetterId,
}

impl TableCursor {
    pub fn parse(text: &str) -> Result<TableCursor, LettersError> {
        let parsed = text.rsplit_once('~');
        let parsed = parsed
            .and_then(|(time, id)| Some(TableCursor { timestamp: time.to_owned(), id: id.parse().ok()? }));
        parsed
            .filter(|cursor| !cursor.timestamp.is_empty())
            .ok_or_else(|| LettersError::Cursor(text.to_owned()))
    }
}

impl std::fmt::Display for TableCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}~{}", self.timestamp, self.id)
    }
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct TableRow {
    pub id: LetterId,
    pub reason: String,
    pub field: Option<String>,
    pub message: String,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    /// The timestamp, as the database writes it.
    pub timestamp: String,
    /// The timestamp in milliseconds; None if the record has none.
    pub timestamp_ms: Option<i64>,
    pub retries: i64,
}

impl TableRow {
    pub fn cursor(&self) -> TableCursor {
        TableCursor { timestamp: self.timestamp.clone(), id: self.id }
    }

    /// Returns the row as a letter of a topic. A table belongs to one pipeline, which has one source.
    pub fn into_letter(self, pipeline: &str, source_topic: Option<&str>) -> DeadLetter {
        let LetterId { partition, offset } = self.id;
        let header = |name: &str, value: String| (name.to_owned(), value.into_bytes());
        let mut headers = vec![
            header(header::REASON, self.reason),
            header(header::MESSAGE, self.message),
            header(header::FIELD, self.field.unwrap_or_default()),
            header(header::SOURCE_PARTITION, partition.to_string()),
            header(header::SOURCE_OFFSET, offset.to_string()),
            header(header::RETRIES, self.retries.to_string()),
            header(header::PIPELINE, pipeline.to_owned()),
        ];
        headers.extend(self.timestamp_ms.map(|ms| header(header::SOURCE_TIMESTAMP, ms.to_string())));
        headers.extend(source_topic.map(|topic| header(header::SOURCE_TOPIC, topic.to_owned())));
        DeadLetter {
            position: Position { partition: Partition(partition), offset: Offset(offset) },
            timestamp: self.timestamp_ms.unwrap_or(-1),
            key: self.key,
            value: self.value,
            headers,
        }
    }
}

/// A query: its conditions and order, and its values. `?` stands for the next value.
#[derive(Debug, Default)]
struct Query {
    is_sqlite: bool,
    text: String,
    values: Vec<Parameter>,
}

#[derive(Clone, Debug)]
enum Parameter {
    Text(String),
    /// A time, as the database reads it.
    Time(String),
    Number(i64),
}

impl Query {
    fn add(&mut self, text: &str, values: impl IntoIterator<Item = Parameter>) {
        self.text += text;
        self.values.extend(values);
    }

    /// Adds the conditions of a filter.
    fn filter(&mut self, filter: &Filter) {
        self.add(" WHERE true", []);
        for (column, wanted) in [("reason", &filter.reason), ("field", &filter.field)] {
            if let Some(wanted) = wanted {
                self.add(&format!(" AND {column} = ?"), [Parameter::Text(wanted.clone())]);
            }
        }
        for (comparison, ms) in [(">=", filter.from_ms), ("<", filter.to_ms)] {
            if let Some(ms) = ms {
                self.add(&format!(" AND timestamp {comparison} ?"), [at(ms)]);
            }
        }
        // The rows without a timestamp have one that is far away.
        if filter.from_ms.is_some() || filter.to_ms.is_some() {
            self.add(" AND timestamp >= ?", [at(0)]);
            match self.is_sqlite {
                // Its times are texts, and a year of more than four digits sorts by its first.
                true => self.add(" AND length(timestamp) = 24", []),
                false => self.add(" AND timestamp < ?", [at(END_MS)]),
            }
        }
    }

    fn rows(&mut self, rows: &Rows) {
        let number = |id: &LetterId| [Parameter::Number(id.partition.into()), Parameter::Number(id.offset)];
        match rows {
            Rows::Newest(after) => {
                if let Some(TableCursor { timestamp, id }) = after {
                    let [partition, offset] = number(id);
                    let values = [Parameter::Time(timestamp.clone()), partition, offset];
                    self.add(" AND (timestamp, partition, \"offset\") < (?, ?, ?)", values);
                }
                self.add(NEWEST_FIRST, []);
            }
            Rows::ByPosition(after) => {
                if let Some(id) = after {
                    self.add(" AND (partition, \"offset\") > (?, ?)", number(id));
                }
                self.add(" ORDER BY partition, \"offset\"", []);
            }
            Rows::One(id) => self.add(" AND partition = ? AND \"offset\" = ?", number(id)),
        }
    }

    fn limit(&mut self, limit: usize) {
        self.add(" LIMIT ?", [Parameter::Number(i64::try_from(limit).unwrap_or(i64::MAX))]);
    }

    /// Returns the query with numbered parameters, which PostgreSQL needs with their types.
    fn numbered(&self) -> String {
        let mut values = self.values.iter().enumerate();
        let mut text = String::new();
        for (at, piece) in self.text.split('?').enumerate() {
            if at > 0 {
                let (number, value) = values.next().expect("each ? has a value");
                let number = number + 1;
                text += &match value {
                    Parameter::Text(_) => format!("${number}"),
                    Parameter::Time(_) => format!("${number}::text::timestamptz"),
                    Parameter::Number(_) => format!("${number}::bigint"),
                };
            }
            text += piece;
        }
        text
    }
}

/// The last millisecond of the year 9999.
const END_MS: i64 = 253_402_300_799_999;

fn at(ms: i64) -> Parameter {
    Parameter::Time(rfc3339(ms.clamp(0, END_MS)))
}

const COLUMNS: &str = "partition, \"offset\", reason, field, message, \"key\", value, retries";
const NEWEST_FIRST: &str = " ORDER BY timestamp DESC, partition DESC, \"offset\" DESC";
/// The columns of a group in SQLite. The place of the newest row is a text that sorts like its columns.
const SQLITE_GROUP: &str =
    "SELECT reason, field, count(*), min(CASE WHEN length(timestamp) = 24 THEN timestamp END),
    max(CASE WHEN length(timestamp) = 24 THEN timestamp END),
    max(timestamp || printf(' %010d %020d', partition, \"offset\"))";

/// The columns of a group in PostgreSQL. The place of the newest row is an array, which sorts by its elements.
fn postgres_group() -> String {
    let ms = |what| postgres_ms(&format!("{what}(timestamp) FILTER (WHERE isfinite(timestamp))"));
    let of_row = postgres_ms("timestamp");
    format!(
        "SELECT reason, field, count(*), {}, {}, max(ARRAY[CASE WHEN isfinite(timestamp) THEN {of_row} ELSE {} END, \
         partition::bigint, \"offset\"])",
        ms("min"),
        ms("max"),
        i64::MAX
    )
}

impl Database {
    /// Returns the name of the database, for errors.
    fn name(&self) -> String {
        match self {
            Database::Sqlite(path) => path.display().to_string(),
            Database::Postgres(..) => "PostgreSQL".to_owned(),
        }
    }

    fn query(&self) -> Query {
        Query { is_sqlite: matches!(self, Database::Sqlite(_)), ..Query::default() }
    }

    /// Passes on rows until `each` returns false.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub fn rows(
        &self,
        filter: &Filter,
        rows: &Rows,
        limit: usize,
        each: &mut dyn FnMut(TableRow) -> bool,
    ) -> Result<(), LettersError> {
        let mut query = self.query();
        query.filter(filter);
        query.rows(rows);
        query.limit(limit);
        match self {
            Database::Sqlite(path) => {
                let select = format!("SELECT {COLUMNS}, timestamp FROM dead_letters");
                sqlite(path, false, |connection| sqlite_rows(connection, &select, &query, each))
            }
            Database::Postgres(url, schema) => postgres(url, schema.as_deref(), true, async |mut client| {
                let select = format!(
                    "SELECT {COLUMNS}, timestamp::text, {} FROM dead_letters",
                    postgres_ms("CASE WHEN isfinite(timestamp) THEN timestamp END")
                );
                let transaction = client.transaction().await?;
                let values = parameters(&query);
                let portal = transaction.bind(&(select + &query.numbered()), &references(&values)).await?;
                loop {
                    let rows = transaction.query_portal(&portal, ROWS).await?;
                    if rows.is_empty() || !rows.iter().map(postgres_row).all(&mut *each) {
                        return Ok(());
                    }
                }
            }),
        }
    }

    /// Returns the groups of rows by reason and field, the largest first.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub fn groups(&self, filter: &Filter) -> Result<Vec<Group>, LettersError> {
        let mut query = self.query();
        query.filter(filter);
        query.add(" GROUP BY reason, field ORDER BY count(*) DESC", []);
        query.limit(GROUPS);
        match self {
            Database::Sqlite(path) => sqlite(path, false, |connection| {
                let mut statement =
                    connection.prepare(&format!("{SQLITE_GROUP} FROM dead_letters{}", query.text))?;
                let mut rows = statement.query(rusqlite::params_from_iter(sqlite_values(&query)))?;
                let mut groups = Vec::new();
                while let Some(row) = rows.next()? {
                    let seen = |text: Option<String>| rfc3339_ms(&text?).ok();
                    let (first_ms, last_ms) = (seen(row.get(3)?), seen(row.get(4)?));
                    let newest: String = row.get(5)?;
                    let mut place = newest.rsplit(' ');
                    let (offset, partition) = (place.next(), place.next());
                    let number = |text: Option<&str>| text?.parse::<i64>().ok();
                    let example = newest_row(number(partition), number(offset));
                    groups.push(group(row.get(0)?, row.get(1)?, row.get(2)?, (first_ms, last_ms), example));
                }
                Ok(groups)
            }),
            Database::Postgres(url, schema) => postgres(url, schema.as_deref(), true, async |client| {
                let text = format!("{} FROM dead_letters{}", postgres_group(), query.numbered());
                let values = parameters(&query);
                let rows = client.query(&text, &references(&values)).await?;
                let group_of = |row: &tokio_postgres::Row| {
                    let newest: Vec<i64> = row.get(5);
                    let example = newest_row(newest.get(1).copied(), newest.get(2).copied());
                    group(row.get(0), row.get(1), row.get(2), (row.get(3), row.get(4)), example)
                };
                Ok(rows.iter().map(group_of).collect())
            }),
        }
    }

    /// Counts the rows before a time or, unless `dry_run`, deletes them. Rows without a timestamp are kept.
    ///
    /// # Errors
    /// If the table cannot be written.
    pub fn purge(&self, before_ms: i64, dry_run: bool) -> Result<u64, LettersError> {
        let mut query = self.query();
        query.filter(&Filter { to_ms: Some(before_ms), ..Filter::default() });
        let count = "SELECT count(*) FROM dead_letters";
        let delete = "DELETE FROM dead_letters";
        match self {
            Database::Sqlite(path) => sqlite(path, !dry_run, |connection| {
                let values = rusqlite::params_from_iter(sqlite_values(&query));
                if dry_run {
                    let counted =
                        connection.query_row(&format!("{count}{}", query.text), values, |row| row.get(0));
                    return counted.map(i64::unsigned_abs);
                }
                Ok(connection.execute(&format!("{delete}{}", query.text), values)? as u64)
            }),
            Database::Postgres(url, schema) => postgres(url, schema.as_deref(), dry_run, async |client| {
                let values = parameters(&query);
                let (text, values) = (query.numbered(), references(&values));
                if dry_run {
                    let row = client.query_one(&format!("{count}{text}"), &values).await?;
                    return Ok(row.get::<_, i64>(0).unsigned_abs());
                }
                client.execute(&format!("{delete}{text}"), &values).await
            }),
        }
        .map_err(|error| match error {
            LettersError::Database { source, .. } => {
                LettersError::Database { action: format!("delete dead letters in {}", self.name()), source }
            }
            other => other,
        })
    }
}

/// Runs a query of PostgreSQL on a connection of its own.
fn postgres<T>(
    url: &Secret,
    schema: Option<&str>,
    reads: bool,
    run: impl AsyncFnOnce(tokio_postgres::Client) -> Result<T, tokio_postgres::Error>,
) -> Result<T, LettersError> {
    let failed =
        |source| LettersError::Database { action: "read dead letters in PostgreSQL".to_owned(), source };
    let mut target = Target::parse(url.expose()).map_err(|error| failed(error.into()))?;
    let own = format!(
        "-c default_transaction_read_only={} -c statement_timeout={} -c timezone=UTC",
        if reads { "on" } else { "off" },
        if reads { READ_TIMEOUT } else { WRITE_TIMEOUT }
    );
    let config = target.config();
    let options = [config.get_options().unwrap_or_default(), &own].join(" ");
    config.options(options).application_name("headwater-dead-letters");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(error.into()))?;
    let answered = async {
        let (client, _) = target.connect().await.map_err(|error| failed(error.into()))?;
        let to_schema = "SELECT set_config('search_path', quote_ident($1), false)";
        if let Some(schema) = schema {
            client.query(to_schema, &[&schema]).await.map_err(|error| failed(describe(error)))?;
        }
        run(client).await.map_err(|error| failed(describe(error)))
    };
    let answered = async { tokio::time::timeout(TIMEOUT, answered).await };
    runtime.block_on(answered).map_err(|_| LettersError::TimedOut(TIMEOUT))?
}

/// Returns the error with the server's message, which the client's own text lacks.
fn describe(error: tokio_postgres::Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error.as_db_error() {
        Some(of_server) => of_server.message().to_owned().into(),
        None => error.into(),
    }
}

fn group(
    reason: String,
    field: Option<String>,
    count: i64,
    (first_ms, last_ms): (Option<i64>, Option<i64>),
    example: Option<LetterId>,
) -> Group {
    Group {
        reason,
        field,
        producer: None,
        count: count.unsigned_abs(),
        first_seen: first_ms.and_then(time),
        last_seen: last_ms.and_then(time),
        example,
    }
}

/// Returns the id of a row.
fn newest_row(partition: Option<i64>, offset: Option<i64>) -> Option<LetterId> {
    Some(LetterId { partition: u32::try_from(partition?).ok()?, offset: offset? })
}

fn parameters(query: &Query) -> Vec<Box<dyn ToSql + Sync>> {
    let parameter = |value: &Parameter| -> Box<dyn ToSql + Sync> {
        match value {
            Parameter::Text(text) | Parameter::Time(text) => Box::new(text.clone()),
            Parameter::Number(number) => Box::new(*number),
        }
    };
    query.values.iter().map(parameter).collect()
}

fn references(values: &[Box<dyn ToSql + Sync>]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| &**value).collect()
}

/// Returns the milliseconds since 1970 of a time, in PostgreSQL.
fn postgres_ms(time: &str) -> String {
    format!("(extract(epoch FROM {time}) * 1000)::bigint")
}

fn postgres_row(row: &tokio_postgres::Row) -> TableRow {
    TableRow {
        id: LetterId { partition: row.get::<_, i32>(0).unsigned_abs(), offset: row.get(1) },
        reason: row.get(2),
        field: row.get(3),
        message: row.get(4),
        key: row.get(5),
        value: row.get(6),
        retries: row.get::<_, i32>(7).into(),
        timestamp: row.get(8),
        timestamp_ms: row.get::<_, Option<i64>>(9).filter(|&ms| time(ms).is_some()),
    }
}

fn sqlite_values(query: &Query) -> Vec<Value> {
    let value = |value: &Parameter| match value {
        Parameter::Text(text) | Parameter::Time(text) => Value::Text(text.clone()),
        Parameter::Number(number) => Value::Integer(*number),
    };
    query.values.iter().map(value).collect()
}

/// Opens a SQLite file that exists, for one query.
fn sqlite<T>(
    path: &Path,
    writes: bool,
    run: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>,
) -> Result<T, LettersError> {
    if !path.exists() {
        return Err(LettersError::Database {
            action: format!("read dead letters in {}", path.display()),
            source: "there is no such file; the first run creates it".into(),
        });
    }
    let access = if writes { OpenFlags::SQLITE_OPEN_READ_WRITE } else { OpenFlags::SQLITE_OPEN_READ_ONLY };
    let opened = rusqlite::Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX);
    let answered = opened.and_then(|connection| {
        connection.busy_timeout(TIMEOUT)?;
        run(&connection)
    });
    answered.map_err(|source| LettersError::Database {
        action: format!("read dead letters in {}", path.display()),
        source: source.into(),
    })
}

fn sqlite_rows(
    connection: &rusqlite::Connection,
    select: &str,
    query: &Query,
    each: &mut dyn FnMut(TableRow) -> bool,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(&format!("{select}{}", query.text))?;
    let mut rows = statement.query(rusqlite::params_from_iter(sqlite_values(query)))?;
    while let Some(row) = rows.next()? {
        let timestamp: String = row.get(8)?;
        let row = TableRow {
            id: LetterId { partition: row.get(0)?, offset: row.get(1)? },
            reason: row.get(2)?,
            field: row.get(3)?,
            message: row.get(4)?,
            key: row.get(5)?,
            value: row.get(6)?,
            retries: row.get(7)?,
            timestamp_ms: rfc3339_ms(&timestamp).ok().filter(|&ms| time(ms).is_some()),
            timestamp,
        };
        if !each(row) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
