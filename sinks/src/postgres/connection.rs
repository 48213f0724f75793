//! A session with the server: made with our settings, checked, known by its backend's pid and start, so that it
//! can be ended for sure from another one.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Statement};

use super::{ConnectError, Target, encode, sql};
use crate::Misconfigured;

/// How long a silent server is waited for, and how long a backend may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Settings of every session. They travel as startup options, which a pooler of transactions refuses: behind one,
/// the session's tables and the backend's pid would mean nothing.
///
/// `lock_timeout`: whoever holds our row that long is not a predecessor about to end. `statement_timeout` and
/// `idle_in_transaction_session_timeout`: far above any round, so that a lost session's locks do end.
const OPTIONS: &str = "-c synchronous_commit=on -c lock_timeout=10s -c statement_timeout=60s \
                       -c idle_in_transaction_session_timeout=60s -c client_min_messages=warning";

/// The oldest version that is supported, as `server_version_num` has it.
const OLDEST: i32 = 140_000;

/// How much of a COPY is sent as one message.
const CHUNK: usize = 256 * 1024;

/// A backend of the server. A pid alone may have been given to another one since.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Backend {
    pid: i32,
    /// Microseconds since 1970.
    started: i64,
}

/// Why something could not be done.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There is no connection.
    Connect(ConnectError),
    /// The server, or the way to it.
    Store(tokio_postgres::Error),
    /// It took too long; the words say what.
    Slow(&'static str),
    /// It must not be done.
    Refused(String),
}

impl Trouble {
    /// Whether the rows are to blame: classes 22 (data exception) and 23 (integrity constraint violation) of PostgreSQL's
    /// error codes.
    pub fn is_about_the_rows(&self) -> bool {
        match self {
            Trouble::Store(error) => error
                .code()
                .is_some_and(|code| code.code().starts_with("22") || code.code().starts_with("23")),
            Trouble::Connect(_) | Trouble::Slow(_) | Trouble::Refused(_) => false,
        }
    }
}

impl Trouble {
    /// The table, and the server's words about the row, that it did not take.
    pub fn refused_row(&self) -> Option<(&str, &str)> {
        let Trouble::Store(error) = self else { return None };
        let database_error = error.as_db_error()?;
        Some((database_error.table()?, database_error.detail()?))
    }
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        Trouble::Store(error)
    }
}

impl From<ConnectError> for Trouble {
    fn from(error: ConnectError) -> Self {
        Trouble::Connect(error)
    }
}

impl From<Misconfigured> for Trouble {
    fn from(error: Misconfigured) -> Self {
        Trouble::Connect(error.into())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match self {
            Trouble::Store(error) => error,
            Trouble::Connect(error) => return error.fmt(f),
            Trouble::Slow(what) => return write!(f, "{what} took too long"),
            Trouble::Refused(reason) => return f.write_str(reason),
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

impl std::error::Error for Trouble {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Trouble::Connect(error) => error.source(),
            Trouble::Store(_) | Trouble::Slow(_) | Trouble::Refused(_) => None,
        }
    }
}

/// Where to connect to, and as what.
pub(super) struct Address {
    target: Target,
}

impl Address {
    /// The address of a sink's sessions, whose tables are in this schema: see [`Target::parse`].
    ///
    /// # Errors
    /// If the url is none, or the schema's name would need quotes.
    pub fn parse(url: &str, schema: Option<&str>, application_name: &str) -> Result<Address, Misconfigured> {
        let mut target = Target::parse(url)?;
        let config = target.config();
        let mut options = [config.get_options().unwrap_or_default(), OPTIONS].join(" ");
        if let Some(schema) = schema {
            if !is_plain(schema) {
                let reason = format!("{schema:?} is no name of a schema: lower-case letters, digits and `_`");
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

/// Whether a name means itself, in SQL and in a connection's options, without quotes.
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

/// A session. Dropping it closes the socket; what its backend does then is for [`Session::end_backend`].
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
    /// Connects to a server that is fit.
    pub async fn connect(address: &Address) -> Result<Session, Trouble> {
        let (client, driver) = address.target.connect().await?;
        let facts = "SELECT pg_is_in_recovery(), current_setting('server_version_num')::integer, pid,
                            (extract(epoch FROM backend_start) * 1000000)::bigint
                     FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        let facts = client.query_one(facts, &[]).await?;
        let backend = Backend { pid: facts.get(2), started: facts.get(3) };
        let session = Session { client, backend, driver, statements: HashMap::new() };
        if facts.get(0) {
            return Err(Trouble::Refused("the server is a standby".to_owned()));
        }
        let version: i32 = facts.get(1);
        if version < OLDEST {
            return Err(Trouble::Refused(format!("the server's version {version} is below {OLDEST}")));
        }
        Ok(session)
    }

    /// Ends a backend of our own, and returns when it is gone: whatever it was doing is then done or never will be.
    pub async fn end_backend(&self, backend: Backend) -> Result<(), Trouble> {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE pid = $1 AND (extract(epoch FROM backend_start) * 1000000)::bigint = $2";
        let deadline = Instant::now() + PATIENCE;
        while !self.client.query(end, &[&backend.pid, &backend.started]).await?.is_empty() {
            if Instant::now() > deadline {
                return Err(Trouble::Slow("ending the backend of the connection before"));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends the backends that `is_older` knows by their application name, and returns when they are gone.
    pub async fn end_backends(&self, is_older: impl Fn(&str) -> bool) -> Result<(), Trouble> {
        let all = "SELECT application_name, pid, (extract(epoch FROM backend_start) * 1000000)::bigint
                   FROM pg_stat_activity WHERE datname = current_database() AND application_name IS NOT NULL";
        for row in self.client.query(all, &[]).await? {
            if is_older(row.get(0)) {
                self.end_backend(Backend { pid: row.get(1), started: row.get(2) }).await?;
            }
        }
        Ok(())
    }

    /// Makes the tables of the session; those they are modelled on must exist.
    pub async fn make_tables(&self) -> Result<(), Trouble> {
        Ok(self.client.batch_execute(&sql::make_session_tables()).await?)
    }

    /// A statement, prepared once.
    pub async fn prepared(&mut self, sql: &str) -> Result<Statement, Trouble> {
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
    ) -> Result<(), Trouble> {
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
