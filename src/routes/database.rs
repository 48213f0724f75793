//! The database of the outbox: SQLite or PostgreSQL, with statements that both understand.
//!
//! Parameters are `$1`, `$2` and so on, integers or texts. A write is one transaction that first checks that no later
//! start has taken over.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headwater_sinks::Secret;
use headwater_sinks::postgres::{ConnectError, Target};
use rusqlite::types::{ToSqlOutput, ValueRef};
use thiserror::Error;
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};

/// The place of an outbox.
#[derive(Clone, Debug)]
pub enum OutboxPlace {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A schema of a PostgreSQL database.
    Postgres {
        /// The address of the database.
        url: Secret,
        /// The schema.
        schema: String,
    },
}

impl OutboxPlace {
    /// Returns the file of the outbox beside a ledger in SQLite: `ledger-outbox.db` beside `ledger.db`.
    pub fn beside(ledger: &Path) -> OutboxPlace {
        let mut name = ledger.file_stem().unwrap_or_default().to_owned();
        name.push("-outbox.");
        name.push(ledger.extension().unwrap_or("db".as_ref()));
        OutboxPlace::Sqlite(ledger.with_file_name(name))
    }

    /// Returns the schema of a pipeline's outbox in the database of its ledger. Names of pipelines that are no names of
    /// schemas are followed by their hash.
    pub fn in_database(url: Secret, pipeline: &str) -> OutboxPlace {
        const PREFIX: &str = "headwater_outbox_";
        let plain: String = pipeline.chars().map(|c| if c == '-' { '_' } else { c }).take(37).collect();
        let schema = match plain == pipeline {
            true => format!("{PREFIX}{plain}"),
            false => format!("{PREFIX}{plain}_{}", &super::content::hash(&[pipeline])[..8]),
        };
        OutboxPlace::Postgres { url, schema }
    }
}

impl fmt::Display for OutboxPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OutboxPlace::Sqlite(path) => write!(f, "file {}", path.display()),
            OutboxPlace::Postgres { schema, .. } => write!(f, "schema {schema} of the ledger's database"),
        }
    }
}

/// The error of an outbox.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A later start has taken over.
    #[error("a later start has taken over the outbox")]
    Fenced,
    /// The database returned an error, or could not be reached.
    #[error("the outbox cannot be used: {0}")]
    Unavailable(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        StoreError::Unavailable(error.to_string())
    }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> StoreError {
        let message = match error.as_db_error() {
            Some(error) => format!("{} ({})", error.message(), error.code().code()),
            None => error.to_string(),
        };
        StoreError::Unavailable(message)
    }
}

impl From<ConnectError> for StoreError {
    fn from(error: ConnectError) -> StoreError {
        let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
        StoreError::Unavailable(format!("{error}{cause}"))
    }
}

/// A value of a statement or a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Int(i64),
    /// A text.
    Text(String),
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Int(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Value::Int(number) => (*number).into(),
            Value::Text(text) => text.as_str().into(),
        })
    }
}

impl Value {
    fn typed(&self) -> (&(dyn ToSql + Sync), Type) {
        match self {
            Value::Int(number) => (number, Type::INT8),
            Value::Text(text) => (text, Type::TEXT),
        }
    }
}

/// A statement with its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    sql: String,
    values: Vec<Value>,
}

impl Statement {
    /// Creates a statement.
    pub fn new<const N: usize>(sql: impl Into<String>, values: [Value; N]) -> Statement {
        Statement { sql: sql.into(), values: values.into() }
    }
}

/// A row of a result, read from left to right.
pub struct Row(std::vec::IntoIter<Value>);

impl Row {
    /// Returns the next value, which is a number.
    ///
    /// # Errors
    /// If it is not.
    pub fn int(&mut self) -> Result<i64, StoreError> {
        match self.0.next() {
            Some(Value::Int(number)) => Ok(number),
            other => Err(StoreError::Unavailable(format!("expected a number, found {other:?}"))),
        }
    }

    /// Returns the next value, which is a text.
    ///
    /// # Errors
    /// If it is not.
    pub fn text(&mut self) -> Result<String, StoreError> {
        match self.0.next() {
            Some(Value::Text(text)) => Ok(text),
            other => Err(StoreError::Unavailable(format!("expected a text, found {other:?}"))),
        }
    }
}

/// The timeout of one operation.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The settings of a session. A deliverer that is paused must not hold its lock forever.
const OPTIONS: &str = "-c synchronous_commit=on -c lock_timeout=10s -c statement_timeout=30s \
                       -c idle_in_transaction_session_timeout=10s -c client_min_messages=warning";

/// An open database.
pub enum Database {
    /// A SQLite file.
    Sqlite(rusqlite::Connection),
    /// A session with PostgreSQL.
    Postgres(tokio_postgres::Client),
}

impl Database {
    /// Opens a database that exists.
    ///
    /// # Errors
    /// If it does not exist or cannot be reached.
    pub async fn open(place: &OutboxPlace) -> Result<Database, StoreError> {
        match place {
            OutboxPlace::Sqlite(path) => {
                let connection =
                    rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE)?;
                connection.busy_timeout(TIMEOUT)?;
                connection.pragma_update(None, "synchronous", "FULL")?;
                Ok(Database::Sqlite(connection))
            }
            OutboxPlace::Postgres { url, schema } => {
                let mut target = Target::parse(url.expose())
                    .map_err(|error| StoreError::Unavailable(error.to_string()))?;
                let config = target.config();
                let before = config.get_options().unwrap_or_default().to_owned();
                config
                    .options(format!("{before} {OPTIONS} -c search_path={schema}"))
                    .application_name("headwater-deliverer")
                    .tcp_user_timeout(TIMEOUT)
                    .keepalives_idle(TIMEOUT);
                // The end of the connection is also reported to every use of the client.
                let (client, _) = target.connect().await?;
                Ok(Database::Postgres(client))
            }
        }
    }

    /// Returns true if the tables of an outbox exist.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn has_tables(&mut self) -> Result<bool, StoreError> {
        let exists = match self {
            Database::Sqlite(_) => "SELECT count(*) FROM sqlite_schema WHERE name = 'headwater_deliveries'",
            Database::Postgres(_) => "SELECT count(to_regclass('headwater_deliveries'))",
        };
        let rows = self.query(&Statement::new(exists, [])).await?;
        rows.into_iter().next().map_or(Ok(false), |mut row| Ok(row.int()? > 0))
    }

    /// Returns the expression of a time as RFC 3339.
    pub fn time(&self, column: &str) -> String {
        match self {
            Database::Sqlite(_) => column.to_owned(),
            Database::Postgres(_) => {
                format!(r#"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"#)
            }
        }
    }

    /// Returns the rows of a query.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn query(&mut self, Statement { sql, values }: &Statement) -> Result<Vec<Row>, StoreError> {
        match self {
            Database::Sqlite(connection) => {
                let mut statement = connection.prepare_cached(&for_sqlite(sql))?;
                let columns = statement.column_count();
                let mut rows = statement.query(rusqlite::params_from_iter(values))?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    let cells = (0..columns).map(|at| match row.get_ref(at)? {
                        ValueRef::Integer(number) => Ok(Value::Int(number)),
                        other => Ok(Value::Text(other.as_str().map_err(rusqlite::Error::from)?.to_owned())),
                    });
                    found.push(Row(cells.collect::<Result<Vec<_>, rusqlite::Error>>()?.into_iter()));
                }
                Ok(found)
            }
            Database::Postgres(client) => {
                let values: Vec<_> = values.iter().map(Value::typed).collect();
                let rows = within(client.query_typed(sql, &values)).await?;
                let mut found = Vec::new();
                for row in rows {
                    let cells = row.columns().iter().enumerate().map(|(at, column)| {
                        if *column.type_() == Type::INT8 {
                            Ok(Value::Int(row.try_get(at)?))
                        } else {
                            Ok(Value::Text(row.try_get(at)?))
                        }
                    });
                    found.push(Row(cells.collect::<Result<Vec<_>, tokio_postgres::Error>>()?.into_iter()));
                }
                Ok(found)
            }
        }
    }

    /// Executes statements in one transaction. The first must change a row, or else nothing is executed: it checks the
    /// permission to write. Returns the number of rows that the last statement changed.
    ///
    /// # Errors
    /// If the first changes nothing, or the database fails.
    pub async fn write(&mut self, statements: &[Statement]) -> Result<u64, StoreError> {
        let mut changed = 0;
        match self {
            Database::Sqlite(connection) => {
                let behavior = rusqlite::TransactionBehavior::Immediate;
                let transaction = connection.transaction_with_behavior(behavior)?;
                for (at, Statement { sql, values }) in statements.iter().enumerate() {
                    let mut statement = transaction.prepare_cached(&for_sqlite(sql))?;
                    changed = statement.execute(rusqlite::params_from_iter(values))? as u64;
                    if at == 0 && changed == 0 {
                        return Err(StoreError::Fenced);
                    }
                }
                transaction.commit()?;
            }
            Database::Postgres(client) => {
                let transaction = within(client.transaction()).await?;
                for (at, Statement { sql, values }) in statements.iter().enumerate() {
                    let values: Vec<_> = values.iter().map(Value::typed).collect();
                    changed = within(transaction.execute_typed(sql, &values)).await?;
                    if at == 0 && changed == 0 {
                        return Err(StoreError::Fenced);
                    }
                }
                within(transaction.commit()).await?;
            }
        }
        Ok(changed)
    }
}

/// Returns a statement with SQLite's numbered parameters.
fn for_sqlite(sql: &str) -> String {
    sql.replace('$', "?")
}

async fn within<T>(
    operation: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, StoreError> {
    match timeout(TIMEOUT, operation).await {
        Ok(result) => Ok(result?),
        Err(elapsed) => Err(StoreError::Unavailable(elapsed.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pipeline_has_a_place_of_its_own() {
        let schema = |pipeline: &str| match OutboxPlace::in_database("postgres://x".into(), pipeline) {
            OutboxPlace::Postgres { schema, .. } => schema,
            OutboxPlace::Sqlite(_) => unreachable!("it is in PostgreSQL"),
        };
        assert_eq!(schema("fraud"), "headwater_outbox_fraud");
        let long = "a".repeat(63);
        let names = ["a-b", "a_b", &long, &long[..62]].map(schema);
        assert!(names.iter().all(|name| name.len() <= 63), "{names:?}");
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        for (ledger, outbox) in
            [("/d/ledger.db", "/d/ledger-outbox.db"), ("/d/ledger", "/d/ledger-outbox.db")]
        {
            let place = OutboxPlace::beside(Path::new(ledger));
            assert_eq!(place.to_string(), format!("file {outbox}"));
        }
    }
}
