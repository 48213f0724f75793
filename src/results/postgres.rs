//! Results in PostgreSQL.

use std::sync::Mutex;
use std::time::Duration;

use headwater_sinks::Secret;
use headwater_sinks::postgres::Target;
use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row as PostgresRow};

use super::query::{Dialect, Parameter, Statement};
use super::stored::{Database, Row, Value};

/// The settings of the session: it only reads, and gives up on a slow statement.
const OPTIONS: &str =
    "-c default_transaction_read_only=on -c statement_timeout=5s -c client_min_messages=warning";

/// The timeout of connecting and of an answer.
const TIMEOUT: Duration = Duration::from_secs(8);

/// A database in PostgreSQL, connected when it is first read, and again after the connection was lost.
pub struct Postgres {
    url: Secret,
    schema: Option<String>,
    session: Mutex<Option<Session>>,
}

struct Session {
    /// None only while the session is dropped.
    runtime: Option<Runtime>,
    client: Client,
}

impl Drop for Session {
    fn drop(&mut self) {
        // The server drops it on a thread that must not block, where dropping a runtime would panic.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Postgres {
    /// Returns the database at an address, with the schema of the tables.
    pub fn new(url: Secret, schema: Option<String>) -> Postgres {
        Postgres { url, schema, session: Mutex::default() }
    }

    fn connect(&self) -> Result<Session, String> {
        let mut target = Target::parse(self.url.expose()).map_err(|error| error.to_string())?;
        let config = target.config();
        let mut options = [config.get_options().unwrap_or_default(), OPTIONS].join(" ");
        if let Some(schema) = &self.schema {
            options.push_str(&format!(" -c search_path={schema}"));
        }
        config.options(options).application_name("headwater-results").tcp_user_timeout(TIMEOUT);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let (client, _) = runtime.block_on(target.connect()).map_err(|error| error.to_string())?;
        Ok(Session { runtime: Some(runtime), client })
    }
}

impl Database for Postgres {
    const DIALECT: Dialect = Dialect {
        text: |n| format!("${n}"),
        int: |n| format!("${n}"),
        time: |n| format!("${n}::text::timestamptz"),
        millis: |column| {
            format!("CASE WHEN isfinite({column}) THEN (extract(epoch FROM {column}) * 1000)::bigint END")
        },
        json: |column| format!("{column}::text"),
        amount: "amount::text",
    };

    fn place(&self) -> String {
        let hosts = Target::parse(self.url.expose()).map(|target| target.hosts());
        format!("PostgreSQL at {}", hosts.unwrap_or_default())
    }

    fn rows(&self, statement: &Statement) -> Result<Vec<Row>, String> {
        let mut open = self.session.lock().expect("no holder of the lock panics");
        if open.as_ref().is_none_or(|session| session.client.is_closed()) {
            *open = Some(self.connect()?);
        }
        let Session { runtime, client } = open.as_ref().expect("it is connected");
        let runtime = runtime.as_ref().expect("the session is not being dropped");
        let parameters: Vec<&(dyn ToSql + Sync)> = statement
            .parameters
            .iter()
            .map(|parameter| match parameter {
                Parameter::Text(text) => text as &(dyn ToSql + Sync),
                Parameter::Int(value) => value,
            })
            .collect();
        let answer = runtime.block_on(async {
            tokio::time::timeout(TIMEOUT, client.query(&statement.sql, &parameters)).await
        });
        match answer {
            Ok(Ok(rows)) => rows.iter().map(values).collect(),
            // The sink creates its tables when it is opened.
            Ok(Err(error)) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(Vec::new()),
            Ok(Err(error)) => {
                Err(error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned()))
            }
            Err(_) => {
                // The connection may still be waiting for this answer.
                *open = None;
                Err(format!("no answer within {} s", TIMEOUT.as_secs()))
            }
        }
    }
}

/// Returns the values of a row.
fn values(row: &PostgresRow) -> Result<Row, String> {
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
