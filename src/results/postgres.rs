//! Results in PostgreSQL.

use std::sync::Mutex;
use std::time::Duration;

use headwater_sinks::Secret;
use headwater_sinks::postgres::Target;
use tokio_postgres::Row as PostgresRow;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::query::Dialect;
use super::stored::{Database, Row, Value};
use crate::database::Statement;
use crate::database::postgres::{Session, SessionError, Settings, millis, values};

/// The timeout of a statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// The timeout of connecting and of an answer.
const TIMEOUT: Duration = Duration::from_secs(8);

/// A database in PostgreSQL, connected when it is first read, and again after the connection was lost.
pub struct Postgres {
    url: Secret,
    schema: Option<String>,
    session: Mutex<Option<Session>>,
}

impl Postgres {
    /// Returns the database at an address, with the schema of the tables.
    pub fn new(url: Secret, schema: Option<String>) -> Postgres {
        Postgres { url, schema, session: Mutex::default() }
    }

    fn connect(&self) -> Result<Session, SessionError> {
        Session::connect(Settings {
            url: &self.url,
            schema: self.schema.as_deref(),
            application: "headwater-results",
            is_read_only: true,
            statement_timeout: STATEMENT_TIMEOUT,
            timeout: TIMEOUT,
        })
    }
}

impl Database for Postgres {
    const DIALECT: Dialect = Dialect {
        millis: |column| format!("CASE WHEN isfinite({column}) THEN {} END", millis(column)),
        json: |column| format!("{column}::text"),
        amount: "amount::text",
    };

    fn place(&self) -> String {
        let hosts = Target::parse(self.url.expose()).map(|target| target.hosts());
        format!("PostgreSQL at {}", hosts.unwrap_or_default())
    }

    fn rows(&self, statement: &Statement) -> Result<Vec<Row>, String> {
        let mut open = self.session.lock().expect("no holder of the lock panics");
        if open.as_ref().is_none_or(Session::is_closed) {
            *open = Some(self.connect().map_err(|error| error.to_string())?);
        }
        let session = open.as_mut().expect("it is connected");
        let (text, parameters) = (statement.numbered(), values(statement.parameters()));
        match session.run(async |client| client.query(&text, &parameters).await) {
            Ok(rows) => rows.iter().map(cells).collect(),
            // The sink creates its tables when it is opened.
            Err(SessionError::Statement(error)) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                Ok(Vec::new())
            }
            Err(error) => {
                if matches!(error, SessionError::TimedOut(_)) {
                    // The connection may still be waiting for this answer.
                    *open = None;
                }
                Err(error.to_string())
            }
        }
    }
}

/// Returns the values of a row.
fn cells(row: &PostgresRow) -> Result<Row, String> {
    let value = |column: usize| -> Result<Value, tokio_postgres::Error> {
        let kind = row.columns()[column].type_();
        Ok(match *kind {
            Type::BOOL => {
                row.try_get::<_, Option<bool>>(column)?.map_or(Value::Null, |value| Value::Int(value.into()))
            }
            Type::INT4 => {
                row.try_get::<_, Option<i32>>(column)?.map_or(Value::Null, |value| Value::Int(value.into()))
            }
            Type::INT8 => row.try_get::<_, Option<i64>>(column)?.map_or(Value::Null, Value::Int),
            Type::FLOAT8 => row.try_get::<_, Option<f64>>(column)?.map_or(Value::Null, Value::Real),
            _ => row.try_get::<_, Option<String>>(column)?.map_or(Value::Null, Value::Text),
        })
    };
    (0..row.len()).map(|column| value(column).map_err(|error| error.to_string())).collect()
}
