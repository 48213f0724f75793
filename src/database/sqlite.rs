//! SQLite files.

use std::path::Path;
use std::time::Duration;

use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OpenFlags, ToSql};

use super::Parameter;

/// Opens a file that exists. `lock_timeout` is the time to wait for a lock of a writer, which WAL makes rare.
///
/// # Errors
/// If it cannot be opened.
pub fn open(path: &Path, is_read_only: bool, lock_timeout: Duration) -> rusqlite::Result<Connection> {
    // With WAL, a reader writes to the file of shared memory.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(lock_timeout)?;
    connection.pragma_update(None, "query_only", is_read_only)?;
    Ok(connection)
}

impl ToSql for Parameter {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Parameter::Text(text) | Parameter::Time(text) => text.to_sql(),
            Parameter::Int(value) => value.to_sql(),
        }
    }
}
