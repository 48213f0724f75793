//! Results in a SQLite file.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, params_from_iter};

use super::query::Dialect;
use super::stored::{Database, Row, Value};
use crate::database::{Statement, sqlite};

/// The time to wait for a lock of a writer, which WAL makes rare.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A SQLite file, opened for reading when it is first read.
pub struct Sqlite {
    path: PathBuf,
    connection: Mutex<Option<Connection>>,
}

impl Sqlite {
    /// Returns the file at a path, which need not exist yet.
    pub fn new(path: PathBuf) -> Sqlite {
        Sqlite { path, connection: Mutex::default() }
    }
}

impl Database for Sqlite {
    const DIALECT: Dialect = Dialect {
        millis: |column| format!("CAST(round(unixepoch({column}, 'subsec') * 1000) AS INTEGER)"),
        json: str::to_owned,
        amount: "amount_exact",
    };

    fn place(&self) -> String {
        format!("the SQLite file {}", self.path.display())
    }

    fn rows(&self, statement: &Statement) -> Result<Vec<Row>, String> {
        let mut open = self.connection.lock().expect("no holder of the lock panics");
        if open.is_none() {
            if !self.path.exists() {
                return Ok(Vec::new());
            }
            *open = Some(sqlite::open(&self.path, true, LOCK_TIMEOUT).map_err(|error| error.to_string())?);
        }
        let connection = open.as_ref().expect("it has been opened");
        match read(connection, statement) {
            // The sink creates its tables when it is opened.
            Err(error) if error.to_string().contains("no such table") => Ok(Vec::new()),
            rows => rows.map_err(|error| error.to_string()),
        }
    }
}

fn read(connection: &Connection, statement: &Statement) -> rusqlite::Result<Vec<Row>> {
    let mut prepared = connection.prepare_cached(statement.text())?;
    let columns = prepared.column_count();
    let rows = prepared.query_map(params_from_iter(statement.parameters()), |row| {
        (0..columns)
            .map(|column| {
                Ok(match row.get_ref(column)? {
                    ValueRef::Null => Value::Null,
                    ValueRef::Integer(value) => Value::Int(value),
                    ValueRef::Real(value) => Value::Real(value),
                    ValueRef::Text(text) | ValueRef::Blob(text) => {
                        Value::Text(String::from_utf8_lossy(text).into_owned())
                    }
                })
            })
            .collect()
    })?;
    rows.collect()
}
