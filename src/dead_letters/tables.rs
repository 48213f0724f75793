//! Dead letters in the table `dead_letters`, of SQLite and of PostgreSQL. Both databases answer the same queries; rows
//! are fetched one by one or a few at a time, so that large payloads do not add up in memory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use headwater_dataflows::{Offset, Partition, Position};
use headwater_sinks::Secret;
use rusqlite::params_from_iter;

use super::{Filter, Group, LetterId, LettersError, time};
use crate::database::postgres::{Session, SessionError, Settings, millis, values};
use crate::database::{Parameter, Statement, sqlite};
use crate::decode::rfc3339_ms;
use crate::json::rfc3339;
use crate::source::kafka::dead_letters::{DeadLetter, header};

/// The timeout of a call, with connecting and all its statements.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The time after which PostgreSQL itself cancels a statement that reads, so that none goes on for a client that has
/// given up.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

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

/// Adds the conditions of a filter.
fn add_filter(statement: &mut Statement, filter: &Filter, is_sqlite: bool) {
    for (column, wanted) in [("reason", &filter.reason), ("field", &filter.field)] {
        if let Some(wanted) = wanted {
            statement.condition(&format!("{column} = ?"), [Parameter::Text(wanted.clone())]);
        }
    }
    for (comparison, ms) in [(">=", filter.from_ms), ("<", filter.to_ms)] {
        if let Some(ms) = ms {
            statement.condition(&format!("timestamp {comparison} ?"), [at(ms)]);
        }
    }
    // The rows without a timestamp have one that is far away.
    if filter.from_ms.is_some() || filter.to_ms.is_some() {
        statement.condition("timestamp >= ?", [at(0)]);
        match is_sqlite {
            // Its times are texts, and a year of more than four digits sorts by its first.
            true => statement.condition("length(timestamp) = 24", []),
            false => statement.condition("timestamp < ?", [at(END_MS)]),
        }
    }
}

/// Adds the first row and the order of rows.
fn add_rows(statement: &mut Statement, rows: &Rows) {
    let number = |id: &LetterId| [Parameter::Int(id.partition.into()), Parameter::Int(id.offset)];
    match rows {
        Rows::Newest(after) => {
            if let Some(TableCursor { timestamp, id }) = after {
                let [partition, offset] = number(id);
                let values = [Parameter::Time(timestamp.clone()), partition, offset];
                statement.condition("(timestamp, partition, \"offset\") < (?, ?, ?)", values);
            }
            statement.add(NEWEST_FIRST, []);
        }
        Rows::ByPosition(after) => {
            if let Some(id) = after {
                statement.condition("(partition, \"offset\") > (?, ?)", number(id));
            }
            statement.add(" ORDER BY partition, \"offset\"", []);
        }
        Rows::One(id) => statement.condition("partition = ? AND \"offset\" = ?", number(id)),
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
    let ms = |what| millis(&format!("{what}(timestamp) FILTER (WHERE isfinite(timestamp))"));
    let of_row = millis("timestamp");
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

    /// Returns a statement on the rows that a filter chooses.
    fn statement(&self, text: &str, filter: &Filter) -> Statement {
        let mut statement = Statement::new(text);
        add_filter(&mut statement, filter, matches!(self, Database::Sqlite(_)));
        statement
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
        let time = match self {
            Database::Sqlite(_) => "timestamp".to_owned(),
            Database::Postgres(..) => {
                format!("timestamp::text, {}", millis("CASE WHEN isfinite(timestamp) THEN timestamp END"))
            }
        };
        let mut statement = self.statement(&format!("SELECT {COLUMNS}, {time} FROM dead_letters"), filter);
        add_rows(&mut statement, rows);
        statement.limit(limit);
        match self {
            Database::Sqlite(path) => {
                in_sqlite(path, false, |connection| sqlite_rows(connection, &statement, each))
            }
            Database::Postgres(url, schema) => in_postgres(url, schema.as_deref(), true, async |client| {
                let transaction = client.transaction().await?;
                let portal = transaction.bind(&statement.numbered(), &values(statement.parameters())).await?;
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
        let columns = match self {
            Database::Sqlite(_) => SQLITE_GROUP.to_owned(),
            Database::Postgres(..) => postgres_group(),
        };
        let mut statement = self.statement(&format!("{columns} FROM dead_letters"), filter);
        statement.add(" GROUP BY reason, field ORDER BY count(*) DESC", []);
        statement.limit(GROUPS);
        match self {
            Database::Sqlite(path) => in_sqlite(path, false, |connection| {
                let mut prepared = connection.prepare(statement.text())?;
                let groups = prepared.query_map(params_from_iter(statement.parameters()), sqlite_group)?;
                groups.collect()
            }),
            Database::Postgres(url, schema) => in_postgres(url, schema.as_deref(), true, async |client| {
                let rows = client.query(&statement.numbered(), &values(statement.parameters())).await?;
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
        let text = if dry_run { "SELECT count(*) FROM dead_letters" } else { "DELETE FROM dead_letters" };
        let filter = Filter { to_ms: Some(before_ms), ..Filter::default() };
        let statement = self.statement(text, &filter);
        match self {
            Database::Sqlite(path) => in_sqlite(path, !dry_run, |connection| {
                let parameters = params_from_iter(statement.parameters());
                if dry_run {
                    let counted = connection.query_row(statement.text(), parameters, |row| row.get(0));
                    return counted.map(i64::unsigned_abs);
                }
                Ok(connection.execute(statement.text(), parameters)? as u64)
            }),
            Database::Postgres(url, schema) => in_postgres(url, schema.as_deref(), dry_run, async |client| {
                let (text, parameters) = (statement.numbered(), values(statement.parameters()));
                if dry_run {
                    let row = client.query_one(&text, &parameters).await?;
                    return Ok(row.get::<_, i64>(0).unsigned_abs());
                }
                client.execute(&text, &parameters).await
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

/// Runs statements of PostgreSQL on a connection of their own.
fn in_postgres<T>(
    url: &Secret,
    schema: Option<&str>,
    is_read_only: bool,
    statements: impl AsyncFnOnce(&mut tokio_postgres::Client) -> Result<T, tokio_postgres::Error>,
) -> Result<T, LettersError> {
    let settings = Settings {
        url,
        schema,
        application: "headwater-dead-letters",
        is_read_only,
        statement_timeout: if is_read_only { READ_TIMEOUT } else { TIMEOUT },
        timeout: TIMEOUT,
    };
    let answered = Session::connect(settings).and_then(|mut session| session.run(statements));
    answered.map_err(|error| match error {
        SessionError::TimedOut(timeout) => LettersError::TimedOut(timeout),
        error => LettersError::Database {
            action: "read dead letters in PostgreSQL".to_owned(),
            source: error.into(),
        },
    })
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

/// Runs statements on a SQLite file that exists.
fn in_sqlite<T>(
    path: &Path,
    writes: bool,
    statements: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>,
) -> Result<T, LettersError> {
    let failed = |source| LettersError::Database {
        action: format!("read dead letters in {}", path.display()),
        source,
    };
    if !path.exists() {
        return Err(failed("there is no such file; the first run creates it".into()));
    }
    let opened = sqlite::open(path, !writes, TIMEOUT);
    opened.and_then(|connection| statements(&connection)).map_err(|error| failed(error.into()))
}

/// Returns the group of a row.
fn sqlite_group(row: &rusqlite::Row<'_>) -> rusqlite::Result<Group> {
    let seen = |text: Option<String>| rfc3339_ms(&text?).ok();
    let times = (seen(row.get(3)?), seen(row.get(4)?));
    let newest: String = row.get(5)?;
    let mut place = newest.rsplit(' ').map(|number| number.parse::<i64>().ok());
    let (offset, partition) = (place.next().flatten(), place.next().flatten());
    Ok(group(row.get(0)?, row.get(1)?, row.get(2)?, times, newest_row(partition, offset)))
}

fn sqlite_rows(
    connection: &rusqlite::Connection,
    statement: &Statement,
    each: &mut dyn FnMut(TableRow) -> bool,
) -> rusqlite::Result<()> {
    let mut prepared = connection.prepare(statement.text())?;
    let mut rows = prepared.query(params_from_iter(statement.parameters()))?;
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
