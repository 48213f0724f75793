//! Errors of connecting to a PostgreSQL server. Their messages name the address and what to check.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::Misconfigured;

/// The reason why connecting to a PostgreSQL server failed.
#[derive(Debug)]
pub enum ConnectError {
    /// A file of the TLS settings cannot be used.
    Settings(Misconfigured),
    /// The server did not respond in time.
    TimedOut {
        /// The hosts that were tried.
        hosts: String,
        /// The timeout.
        limit: Duration,
    },
    /// The server or the network reported an error.
    Failed {
        /// The hosts that were tried.
        hosts: String,
        /// The error of the client.
        source: tokio_postgres::Error,
    },
}

impl From<Misconfigured> for ConnectError {
    fn from(error: Misconfigured) -> Self {
        ConnectError::Settings(error)
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            // An error of the configuration. The exit code depends on finding it among the sources.
            ConnectError::Settings(error) => Some(error),
            ConnectError::TimedOut { .. } | ConnectError::Failed { .. } => None,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Settings(_) => f.write_str("TLS with PostgreSQL cannot be set up"),
            ConnectError::TimedOut { hosts, limit } => write!(
                f,
                "PostgreSQL at {hosts} does not answer within {limit:?}: check that it runs, the address and the \
                 network; another program may accept connections there without responding"
            ),
            ConnectError::Failed { hosts, source } => failed(f, hosts, source),
        }
    }
}

fn failed(f: &mut fmt::Formatter<'_>, hosts: &str, error: &tokio_postgres::Error) -> fmt::Result {
    if let Some(database_error) = error.as_db_error() {
        let code = database_error.code();
        write!(f, "PostgreSQL at {hosts}: {} ({})", database_error.message(), code.code())?;
        let check =
            if [SqlState::INVALID_PASSWORD, SqlState::INVALID_AUTHORIZATION_SPECIFICATION].contains(code) {
                "; check user and password, `sslmode`, and the server's pg_hba.conf"
            } else if *code == SqlState::INVALID_CATALOG_NAME {
                "; check the name of the database, or create it"
            } else {
                ""
            };
        return f.write_str(check);
    }
    let reason = causes(error);
    let check = check(error, &reason);
    write!(f, "PostgreSQL at {hosts} {check} ({reason})")
}

/// Explains an error that the server did not report itself.
fn check(error: &tokio_postgres::Error, reason: &str) -> &'static str {
    let io = root_io(error);
    let contains = |text: &str| reason.contains(text);
    if contains("failed to lookup address") {
        "has an unknown host name: check its spelling and the DNS"
    } else if contains("does not support TLS") {
        "does not offer TLS, but `sslmode` requires it: set `ssl = on` on the server"
    } else if contains("NotValidForName") || contains("not valid for name") {
        "has a certificate for another host name: connect by a name that is in it, or set `sslmode=verify-ca`"
    } else if contains("UnknownIssuer") || contains("BadSignature") || contains("CaUsedAsEndEntity") {
        "has a certificate that is not trusted: check that `sslrootcert` has the CA that signed it"
    } else if contains("invalid peer certificate") {
        "has a certificate that is not valid: check it"
    } else if contains("received fatal alert") {
        "does not accept the client's certificate, or demands one: check `sslcert` and `sslkey`"
    } else if contains("TLS handshake") {
        "failed the TLS handshake: check the address and `sslmode`"
    } else if io.is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused) {
        "refuses connections: check that it runs, the address and the port"
    } else if io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut) {
        "does not answer: check that it runs, the address and the network"
    } else if contains("password missing") {
        "requires a password, but the URL has none"
    } else {
        "cannot be reached: check that it is a PostgreSQL server, the address and the port"
    }
}

fn root_io(error: &tokio_postgres::Error) -> Option<&io::Error> {
    error.source()?.downcast_ref::<io::Error>()
}

/// Returns the message of an error, followed by those of its causes.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
