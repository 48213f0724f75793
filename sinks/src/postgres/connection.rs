//! A session with the server: opened with our settings, checked, and identified by the pid and start time of its
//! backend, so that another session can terminate it reliably.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, Statement};

use super::{ConnectError, Target, encode, sql};
use crate::Misconfigured;
use crate::tables::TableSet;

/// The timeout of a server that does not respond, and of a backend that is being terminated.
const PATIENCE: Duration = Duration::from_secs(10);

/// The settings of every session. They are sent as startup options, which a transaction pooler rejects: behind such a
/// pooler, temporary tables and the pid of the backend would not belong to the session.
///
/// `lock_timeout`: a session that holds our row that long is not a predecessor that is about to end.
/// `statement_timeout` and `idle_in_transaction_session_timeout`: far above any round, so that the locks of a lost
/// session are released in the end.
const OPTIONS: &str = "-c synchronous_commit=on -c lock_timeout=10s -c statement_timeout=60s \
                       -c idle_in_transaction_session_timeout=60s -c client_min_messages=warning";

/// The oldest supported version, in the format of `server_version_num`.
const OLDEST: i32 = 140_000;

/// The size of one message of a COPY, in bytes.
const CHUNK: usize = 256 * 1024;

/// A backend of the server. The pid alone does not identify it, because pids are reused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Backend {
    pid: i32,
    /// Microseconds since 1970.
    started: i64,
}

/// The reason why an operation failed.
#[derive(Debug)]
pub(super) enum SessionError {
    /// Connecting failed.
    Connect(ConnectError),
    /// The server reported an error, or the connection was lost.
    Store(tokio_postgres::Error),
    /// The named operation timed out.
    TimedOut(&'static str),
    /// The operation is not allowed or not possible, for this reason.
    Refused(String),
}

impl SessionError {
    /// Returns true if the rows caused the error: classes 22 (data exception) and 23 (integrity constraint violation)
    /// of PostgreSQL's error codes.
    ///
    /// A row that has no place in the partitions did not cause it: the row belongs to a partition that was attached after
    /// the statement had begun, and a retry stores it there. Other violated checks have a name.
    pub fn is_caused_by_rows(&self) -> bool {
        let Some(error) = self.database_error() else { return false };
        let is_misplaced = *error.code() == SqlState::CHECK_VIOLATION && error.constraint().is_none();
        let code = error.code().code();
        (code.starts_with("22") || code.starts_with("23")) && !is_misplaced
    }

    /// Returns true if another session held a lock for too long.
    pub fn is_lock_timeout(&self) -> bool {
        self.database_error().is_some_and(|error| *error.code() == SqlState::LOCK_NOT_AVAILABLE)
    }

    fn database_error(&self) -> Option<&DbError> {
        match self {
            SessionError::Store(error) => error.as_db_error(),
            SessionError::Connect(_) | SessionError::TimedOut(_) | SessionError::Refused(_) => None,
        }
    }

    /// Returns the table of the row that the server rejected, and the detail that the server reported about it.
    pub fn refused_row(&self) -> Option<(&str, &str)> {
        let database_error = self.database_error()?;
        Some((database_error.table()?, database_error.detail()?))
    }
}

impl From<tokio_postgres::Error> for SessionError {
    fn from(error: tokio_postgres::Error) -> Self {
        SessionError::Store(error)
    }
}

impl From<ConnectError> for SessionError {
    fn from(error: ConnectError) -> Self {
        SessionError::Connect(error)
    }
}

impl From<Misconfigured> for SessionError {
    fn from(error: Misconfigured) -> Self {
        SessionError::Connect(error.into())
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match self {
            SessionError::Store(error) => error,
            SessionError::Connect(error) => return error.fmt(f),
            SessionError::TimedOut(what) => return write!(f, "{what} timed out"),
            SessionError::Refused(reason) => return f.write_str(reason),
        };
        if let Some(database_error) = error.as_db_error() {
            write!(f, "{} ({})", database_error.message(), database_error.code().code())?;
            let more = [database_error.detail(), database_error.where_()];
            return more.into_iter().flatten().try_for_each(|more| write!(f, "; {more}"));
        }
        write!(f, "{error}")?;
        match std::error::Error::source(error) {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for SessionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SessionError::Connect(error) => error.source(),
            SessionError::Store(_) | SessionError::TimedOut(_) | SessionError::Refused(_) => None,
        }
    }
}

/// The address, user and settings of a connection.
pub(super) struct Address {
    target: Target,
}

impl Address {
    /// Parses the address of a sink's sessions, whose tables are in `schema`: see [`Target::parse`].
    ///
    /// # Errors
    /// If the URL is not valid, or if the name of the schema would need quotes.
    pub fn parse(url: &str, schema: Option<&str>, application_name: &str) -> Result<Address, Misconfigured> {
        let mut target = Target::parse(url)?;
        let config = target.config();
        let mut options = [config.get_options().unwrap_or_default(), OPTIONS].join(" ");
        if let Some(schema) = schema {
            if !is_plain(schema) {
                let reason = format!(
                    "schema {schema:?} is not a valid name: use at most 63 lower-case letters, digits and `_`, \
                     beginning with a letter"
                );
                return Err(Misconfigured(reason));
            }
            options += &format!(" -c search_path={schema}");
        }
        config
            .options(options)
            .application_name(application_name)
            .tcp_user_timeout(PATIENCE)
            .keepalives_idle(PATIENCE);
        Ok(Address { target })
    }
}

/// Returns true if a name needs no quotes, in SQL and in the options of a connection.
fn is_plain(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL {}, database {}", self.target.hosts(), self.target.database())
    }
}

/// A session. Dropping it closes the socket. Its backend may continue until [`Session::end_backend`] terminates it.
pub(super) struct Session {
    pub client: Client,
    pub backend: Backend,
    driver: AbortHandle,
    statements: HashMap<String, Statement>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    /// Connects to a server, and checks its version and that it is not a standby.
    pub async fn connect(address: &Address) -> Result<Session, SessionError> {
        let (client, driver) = address.target.connect().await?;
        let facts = "SELECT pg_is_in_recovery(), current_setting('server_version_num')::integer, pid,
                            (extract(epoch FROM backend_start) * 1000000)::bigint
                     FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        let facts = client.query_one(facts, &[]).await?;
        let backend = Backend { pid: facts.get(2), started: facts.get(3) };
        let session = Session { client, backend, driver, statements: HashMap::new() };
        if facts.get(0) {
            return Err(SessionError::Refused("the server is a standby: connect to the primary".to_owned()));
        }
        let version: i32 = facts.get(1);
        if version < OLDEST {
            return Err(SessionError::Refused(format!(
                "the server's version must be at least {OLDEST} (PostgreSQL 14), but is {version}"
            )));
        }
        Ok(session)
    }

    /// Terminates a backend of ours, and returns when it has ended: its transaction is then committed or rolled back.
    pub async fn end_backend(&self, backend: Backend) -> Result<(), SessionError> {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE pid = $1 AND (extract(epoch FROM backend_start) * 1000000)::bigint = $2";
        let deadline = Instant::now() + PATIENCE;
        while !self.client.query(end, &[&backend.pid, &backend.started]).await?.is_empty() {
            if Instant::now() > deadline {
                return Err(SessionError::TimedOut("terminating the backend of the previous connection"));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Terminates the backends whose application name satisfies `is_older`, and returns when they have ended.
    pub async fn end_backends(&self, is_older: impl Fn(&str) -> bool) -> Result<(), SessionError> {
        let all = "SELECT application_name, pid, (extract(epoch FROM backend_start) * 1000000)::bigint
                   FROM pg_stat_activity WHERE datname = current_database() AND application_name IS NOT NULL";
        for row in self.client.query(all, &[]).await? {
            if is_older(row.get(0)) {
                self.end_backend(Backend { pid: row.get(1), started: row.get(2) }).await?;
            }
        }
        Ok(())
    }

    /// Creates the temporary tables of the session. The tables that they copy must exist.
    pub async fn make_tables(&self, set: TableSet) -> Result<(), SessionError> {
        Ok(self.client.batch_execute(&sql::make_session_tables(set)).await?)
    }

    /// Returns a prepared statement, preparing it on first use.
    pub async fn prepared(&mut self, sql: &str) -> Result<Statement, SessionError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Streams encoded rows into a COPY.
    pub async fn copy<'a>(
        &mut self,
        copy: &str,
        rows: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), SessionError> {
        let copy = self.prepared(copy).await?;
        let mut sink = std::pin::pin!(self.client.copy_in::<_, Bytes>(&copy).await?);
        let mut chunk = encode::HEADER.to_vec();
        for rows in rows {
            chunk.extend_from_slice(rows);
            if chunk.len() >= CHUNK {
                sink.feed(std::mem::take(&mut chunk).into()).await?;
            }
        }
        chunk.extend_from_slice(encode::TRAILER);
        sink.feed(chunk.into()).await?;
        sink.as_mut().finish().await?;
        Ok(())
    }
}
