//! The SQLite sink: one file, one process, and one transaction per round, in WAL mode with `synchronous=FULL`.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use headwater_dataflows::Epoch;
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, ToSql, Transaction, TransactionBehavior, params,
};

use crate::contract::{
    CommitError, CommitPermit, Generation, LedgerId, OpenError, Progress, Shards, Sink, StageError,
    WriterContext,
};
use crate::crash;
use crate::migrations::{Migration, pending};
use crate::tables::{Column, ColumnType, Mode, Table, TableSet};
use crate::{Cell, Changes, Row, private, row_name, text};

const MIGRATIONS: [Migration; 5] = [
    Migration { number: 1, name: "tables", sql: include_str!("../../migrations/sqlite/0001_tables.sql") },
    Migration { number: 2, name: "numbers", sql: include_str!("../../migrations/sqlite/0002_numbers.sql") },
    Migration { number: 3, name: "starts", sql: include_str!("../../migrations/sqlite/0003_starts.sql") },
    Migration {
        number: 4,
        name: "alerts by change",
        sql: include_str!("../../migrations/sqlite/0004_alerts_by_change.sql"),
    },
    Migration {
        number: 5,
        name: "modes of alerts",
        sql: include_str!("../../migrations/sqlite/0005_modes_of_alerts.sql"),
    },
];

const OUTBOX_MIGRATIONS: [Migration; 1] = [Migration {
    number: 1,
    name: "outbox",
    sql: include_str!("../../migrations/sqlite/outbox/0001_outbox.sql"),
}];

/// The configuration of a SQLite sink.
#[derive(Clone, Debug)]
pub struct SqliteConfig {
    /// The sink's name.
    pub name: String,
    /// The database file, created if it does not exist.
    pub path: PathBuf,
    /// True if rows of append-only tables that are already stored are left unchanged instead of refused. Without a
    /// ledger, a start may write rows again that an earlier start has written.
    pub skip_stored: bool,
    /// The tables to write.
    pub set: TableSet,
}

impl SqliteConfig {
    /// Builds the sink, which is not open yet.
    pub fn build(self) -> SqliteSink {
        SqliteSink { config: self, open: None, staged: BTreeMap::new() }
    }
}

/// A sink that writes tables of a SQLite database.
pub struct SqliteSink {
    config: SqliteConfig,
    open: Option<Open>,
    staged: BTreeMap<Epoch, Vec<Changes>>,
}

/// The error of writing a round.
struct WriteError {
    error: rusqlite::Error,
    /// The output that was refused, in the format of `--skip`.
    output: Option<String>,
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> WriteError {
        WriteError { error, output: None }
    }
}

struct Open {
    connection: Connection,
    context: WriterContext,
    /// The epoch in the progress row of this writer, if there is one.
    through: Option<Epoch>,
}

impl SqliteSink {
    fn unavailable(&self, source: rusqlite::Error) -> OpenError {
        OpenError::Unavailable {
            sink: self.config.name.clone(),
            what: self.config.path.display().to_string(),
            source: Box::new(source),
        }
    }

    fn refused(&self, reason: String) -> OpenError {
        let reason = format!("{}: {reason}", self.config.path.display());
        OpenError::Refused { sink: self.config.name.clone(), reason }
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        // An error is ignored here: SQLite reports errors of the path in more detail.
        let _ = private::file(&self.config.path);
        let connection = Connection::open(&self.config.path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(connection)
    }

    /// Applies pending migrations. The inner error is the reason why they must not be applied.
    fn migrate(connection: &mut Connection, set: TableSet) -> rusqlite::Result<Result<(), String>> {
        let migrations: &[Migration] = match set {
            TableSet::Outputs => &MIGRATIONS,
            TableSet::Outbox => &OUTBOX_MIGRATIONS,
        };
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(
            "CREATE TABLE IF NOT EXISTS headwater_migrations (number INTEGER PRIMARY KEY, hash TEXT NOT NULL)",
        )?;
        let applied = transaction
            .prepare("SELECT number, hash FROM headwater_migrations")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<Vec<(i32, String)>>>()?;
        let pending = match pending(migrations, &applied) {
            Ok(pending) => pending,
            Err(reason) => return Ok(Err(reason)),
        };
        for migration in pending {
            transaction.execute_batch(migration.sql)?;
            transaction.execute(
                "INSERT INTO headwater_migrations (number, hash) VALUES (?, ?)",
                params![migration.number, migration.hash()],
            )?;
        }
        transaction.commit()?;
        Ok(Ok(()))
    }

    /// Returns another pipeline that has written to these tables, if there is one. Their keys do not contain the
    /// pipeline, so two pipelines would overwrite each other's rows.
    fn other_pipeline(connection: &Connection, pipeline: &str) -> rusqlite::Result<Option<String>> {
        connection
            .prepare_cached("SELECT pipeline FROM headwater_progress WHERE pipeline <> ? LIMIT 1")?
            .query_row([pipeline], |row| row.get(0))
            .optional()
    }

    fn belongs_to(&self, owner: &str) -> OpenError {
        self.refused(format!("the tables belong to pipeline {owner:?}: give each pipeline a file of its own"))
    }

    fn progress(&self, connection: &Connection, pipeline: &str) -> rusqlite::Result<Vec<Progress>> {
        connection
            .prepare(
                "SELECT lineage, generation, shards, through FROM headwater_progress WHERE pipeline = ? AND sink = ?",
            )?
            .query_map([pipeline, &self.config.name], |row| {
                Ok(Progress {
                    ledger_id: LedgerId(row.get(0)?),
                    generation: Generation(row.get::<_, i64>(1)? as u64),
                    shards: Shards(row.get::<_, i64>(2)? as u64),
                    through: Epoch(row.get::<_, i64>(3)? as u64),
                })
            })?
            .collect()
    }

    /// Fences older starts and reads the progress, in one transaction: a commit of an older start is either contained
    /// in the progress or fails. A start that adopts replaces all progress.
    ///
    /// # Errors
    /// The inner error is the reason why this start must not write here. Nothing has changed then.
    fn take_over(
        &self,
        connection: &mut Connection,
        context: &WriterContext,
    ) -> rusqlite::Result<Result<Vec<Progress>, OpenError>> {
        let name = &self.config.name;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(owner) = Self::other_pipeline(&transaction, &context.pipeline)? {
            return Ok(Err(self.belongs_to(&owner)));
        }
        if let Some(through) = context.adopt {
            let forget = "DELETE FROM headwater_progress WHERE pipeline = ? AND sink = ?";
            transaction.execute(forget, [&context.pipeline, name])?;
            self.advance(&transaction, context, through)?;
        }
        let progress = self.progress(&transaction, &context.pipeline)?;
        let last = self.last_start(&transaction, &context.pipeline)?;
        if let Some(reason) = context.objection_to(name, &progress, last.as_ref()) {
            return Ok(Err(self.refused(reason)));
        }
        transaction.execute(
            "INSERT OR REPLACE INTO headwater_starts (pipeline, sink, lineage, generation) VALUES (?, ?, ?, ?)",
            params![context.pipeline, name, context.ledger_id.0, context.generation.0 as i64],
        )?;
        transaction.commit()?;
        Ok(Ok(progress))
    }

    /// Returns the last start that has opened this sink.
    fn last_start(
        &self,
        connection: &Connection,
        pipeline: &str,
    ) -> rusqlite::Result<Option<(LedgerId, Generation)>> {
        connection
            .prepare_cached(
                "SELECT lineage, generation FROM headwater_starts WHERE pipeline = ? AND sink = ?",
            )?
            .query_row([pipeline, &self.config.name], |row| {
                Ok((LedgerId(row.get(0)?), Generation(row.get::<_, i64>(1)? as u64)))
            })
            .optional()
    }

    /// Writes the progress of this writer.
    fn advance(
        &self,
        connection: &Connection,
        context: &WriterContext,
        through: Epoch,
    ) -> rusqlite::Result<()> {
        let WriterContext { pipeline, ledger_id, generation, process, shards, .. } = context;
        connection
            .prepare_cached(
                "INSERT INTO headwater_progress (pipeline, sink, generation, writer, lineage, shards, through)
                 VALUES (?, ?, ?, ?, ?, ?, ?)
                 ON CONFLICT (pipeline, sink, generation, writer) DO UPDATE SET through = excluded.through",
            )?
            .execute(params![
                pipeline,
                self.config.name,
                generation.0 as i64,
                *process as i64,
                ledger_id.0,
                shards.0 as i64,
                through.0 as i64
            ])
            .map(drop)
    }

    /// Writes a round and its progress. Returns false if this writer is fenced.
    fn write(
        &self,
        open: &Open,
        connection: &rusqlite::Transaction<'_>,
        through: Epoch,
    ) -> Result<bool, WriteError> {
        let WriterContext { pipeline, ledger_id, generation, process, .. } = &open.context;
        if self.last_start(connection, pipeline)? != Some((ledger_id.clone(), *generation)) {
            return Ok(false);
        }
        let (generation, writer) = (generation.0 as i64, *process as i64);
        // Another pipeline that opened at the same time may have committed first.
        if Self::other_pipeline(connection, pipeline)?.is_some() {
            return Ok(false);
        }
        let before: Option<i64> = connection
            .prepare_cached(
                "SELECT through FROM headwater_progress WHERE pipeline = ? AND sink = ? AND generation = ? AND writer = ?",
            )?
            .query_row(params![pipeline, self.config.name, generation, writer], |row| row.get(0))
            .optional()?;
        if before.map(|through| Epoch(through as u64)) != open.through {
            return Ok(false);
        }
        for (table, description) in self.config.set.tables() {
            match description.mode {
                Mode::Append => self.append(connection, table, description, through)?,
                Mode::Upsert { key } => self.upsert(connection, table, description, key, through)?,
            }
        }
        self.advance(connection, &open.context, through)?;
        Ok(true)
    }

    fn append(
        &self,
        connection: &Connection,
        table: usize,
        to: &Table,
        through: Epoch,
    ) -> Result<(), WriteError> {
        let otherwise = if self.config.skip_stored { " ON CONFLICT DO NOTHING" } else { "" };
        let mut insert = connection.prepare_cached(&(insert(to, "INSERT") + otherwise))?;
        for (epoch, row) in self.rows(through).filter(|(_, row)| row.table == table) {
            self.execute(&mut insert, epoch, &row)?;
        }
        Ok(())
    }

    /// Returns the staged rows through an epoch, each with its epoch.
    fn rows(&self, through: Epoch) -> impl Iterator<Item = (Epoch, Row<'_>)> {
        let rounds = self.staged.range(..=through);
        rounds.flat_map(|(&epoch, changes)| {
            changes.iter().flat_map(move |changes| changes.rows.iter().map(move |row| (epoch, row)))
        })
    }

    fn execute(
        &self,
        statement: &mut rusqlite::CachedStatement<'_>,
        epoch: Epoch,
        row: &Row<'_>,
    ) -> Result<(), WriteError> {
        let mut written = || {
            for (at, cell) in row.cells().enumerate() {
                statement.raw_bind_parameter(at + 1, Bound(cell))?;
            }
            statement.raw_execute().map(drop)
        };
        written().map_err(|error| WriteError {
            error,
            output: Some(format!("{}:{epoch}:{}", self.config.name, row_name(row))),
        })
    }

    /// Writes the last change of each key.
    fn upsert(
        &self,
        connection: &Connection,
        table: usize,
        to: &Table,
        key: usize,
        through: Epoch,
    ) -> Result<(), WriteError> {
        let mut last = HashMap::new();
        for (order, (epoch, row)) in self.rows(through).filter(|(_, row)| row.table == table).enumerate() {
            last.insert(row.leading_bytes(key), (order, epoch, row));
        }
        let mut last: Vec<_> = last.into_values().collect();
        last.sort_unstable_by_key(|(order, ..)| *order);
        let mut replace = connection.prepare_cached(&insert(to, "INSERT OR REPLACE"))?;
        let mut delete = connection.prepare_cached(&delete(to, key))?;
        for (_, epoch, row) in last {
            let statement = if row.deletes { &mut delete } else { &mut replace };
            self.execute(statement, epoch, &row)?;
        }
        Ok(())
    }
}

fn insert(table: &Table, verb: &str) -> String {
    let names: Vec<_> = table.columns.iter().map(written).collect();
    let places = vec!["?"; names.len()];
    format!("{verb} INTO {} ({}) VALUES ({})", table.name, names.join(", "), places.join(", "))
}

fn delete(table: &Table, key: usize) -> String {
    let names: Vec<_> =
        table.columns[..key].iter().map(|column| format!("{} = ?", written(column))).collect();
    format!("DELETE FROM {} WHERE {}", table.name, names.join(" AND "))
}

/// Returns the column to write a value to: for a decimal number its text column, from which SQLite generates the
/// number.
fn written(column: &Column) -> String {
    match column.kind {
        ColumnType::Numeric => format!("\"{}_exact\"", column.name),
        _ => format!("\"{}\"", column.name),
    }
}

/// A cell as SQLite stores it.
struct Bound<'a>(Cell<'a>);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0 {
            Cell::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Cell::Bool(value) => ToSqlOutput::Owned(Value::Integer(value.into())),
            Cell::Int(value) => ToSqlOutput::Owned(Value::Integer(value)),
            Cell::Float(value) => ToSqlOutput::Owned(Value::Real(value)),
            Cell::Micros(value) => ToSqlOutput::Owned(Value::Text(text::decimal(value))),
            Cell::Time(value) => ToSqlOutput::Owned(Value::Text(text::rfc3339(value))),
            Cell::Text(value) | Cell::Json(value) => ToSqlOutput::Borrowed(ValueRef::Text(value.as_bytes())),
            Cell::Bytes(value) => ToSqlOutput::Borrowed(ValueRef::Blob(value)),
        })
    }
}

impl Sink for SqliteSink {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn open(&mut self, context: &WriterContext) -> Result<Vec<Progress>, OpenError> {
        let mut connection = self.connect().map_err(|error| self.unavailable(error))?;
        Self::migrate(&mut connection, self.config.set)
            .map_err(|error| self.unavailable(error))?
            .map_err(|reason| self.refused(reason))?;
        let progress =
            self.take_over(&mut connection, context).map_err(|error| self.unavailable(error))??;
        self.open = Some(Open { connection, context: context.clone(), through: context.adopt });
        Ok(progress)
    }

    fn peek_progress(&mut self, pipeline: &str) -> Result<Vec<Progress>, OpenError> {
        if !self.config.path.exists() {
            return Ok(Vec::new());
        }
        let progress = (|| {
            let connection =
                Connection::open_with_flags(&self.config.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            connection.busy_timeout(Duration::from_secs(5))?;
            if !connection.table_exists(None, "headwater_progress")? {
                return Ok(Ok(Vec::new()));
            }
            Ok(match Self::other_pipeline(&connection, pipeline)? {
                Some(owner) => Err(self.belongs_to(&owner)),
                None => Ok(self.progress(&connection, pipeline)?),
            })
        })();
        progress.map_err(|error| self.unavailable(error))?
    }

    fn stage(&mut self, epoch: Epoch, changes: Changes) -> Result<(), StageError> {
        self.staged.entry(epoch).or_default().push(changes);
        Ok(())
    }

    fn commit(&mut self, permit: CommitPermit) -> Result<(), CommitError> {
        let (sink, through) = (self.config.name.clone(), permit.through());
        let Some(mut open) = self.open.take() else {
            return Err(CommitError::Failed { sink, through, reason: "the sink is not open".into() });
        };
        let failed = |WriteError { error, output }: WriteError| {
            let (sink, mut reason) = (sink.clone(), error.to_string());
            if let Some(output) = output {
                reason += &format!(" ({output}); with a ledger, `--skip {output}` leaves it out");
            }
            match error.sqlite_error_code() {
                Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig) => {
                    CommitError::Refused { sink, through, reason }
                }
                _ => CommitError::Failed { sink, through, reason },
            }
        };
        let result = (|| {
            // A transaction that reads before it writes would fail at once if another connection wrote in between.
            let behavior = TransactionBehavior::Immediate;
            let transaction = Transaction::new_unchecked(&open.connection, behavior)
                .map_err(|error| failed(error.into()))?;
            if !self.write(&open, &transaction, through).map_err(failed)? {
                let reason =
                    "a later start has taken over, or another writer has changed its progress row".to_owned();
                return Err(CommitError::Fenced { sink: sink.clone(), reason });
            }
            crash::point("sqlite.written");
            // A commit that reports "busy" has not happened. After any other error the outcome is unknown.
            transaction.commit().map_err(|error| match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy) => failed(error.into()),
                _ => CommitError::Indeterminate { sink: sink.clone(), through, reason: error.to_string() },
            })
        })();
        if result.is_ok() {
            open.through = Some(through);
            self.staged = self.staged.split_off(&through.next());
        }
        self.open = Some(open);
        result
    }
}

/// Returns the rule and the id of the triggering event of each raised alert.
///
/// # Errors
/// If the database cannot be read.
pub fn alerts(database: &std::path::Path) -> rusqlite::Result<Vec<(String, String)>> {
    Connection::open(database)?
        .prepare("SELECT rule, json_extract(event_ids, '$[#-1]') FROM alerts WHERE status = 'raised'")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

#[cfg(test)]
mod tests;
