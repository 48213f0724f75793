//! Why a PostgreSQL server cannot be connected to, in words that name the address and what to check.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::Misconfigured;

/// See the module.
#[derive(Debug)]
pub enum ConnectError {
    /// A file for TLS cannot be used.
    Settings(Misconfigured),
    /// Nobody answered in time.
    Slow {
        /// Who was asked.
        hosts: String,
        /// How long.
        limit: Duration,
    },
    /// The server, or the way to it.
    Failed {
        /// Who was asked.
        hosts: String,
        /// The client's own error.
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
            // The configuration is to blame: whoever decides on the exit code looks for it.
            ConnectError::Settings(error) => Some(error),
            ConnectError::Slow { .. } | ConnectError::Failed { .. } => None,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Settings(_) => f.write_str("TLS with PostgreSQL cannot be set up"),
            ConnectError::Slow { hosts, limit } => write!(
                f,
                "PostgreSQL at {hosts} does not answer within {limit:?}: check that it runs, the address and the \
                 network; something may accept connections there and say nothing"
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
                "; check the database's name, or create it"
            } else {
                ""
            };
        return f.write_str(check);
    }
    let reason = causes(error);
    let check = check(error, &reason);
    write!(f, "PostgreSQL at {hosts} {check} ({reason})")
}

/// What an error without the server's own words means.
fn check(error: &tokio_postgres::Error, reason: &str) -> &'static str {
    let io = root_io(error);
    let says = |words: &str| reason.contains(words);
    if says("failed to lookup address") {
        "has an unknown host name: check its spelling and the DNS"
    } else if says("does not support TLS") {
        "does not offer TLS, and `sslmode` demands it: set `ssl = on` at the server"
    } else if says("NotValidForName") || says("not valid for name") {
        "has a certificate for another host name: connect by a name that is in it, or set `sslmode=verify-ca`"
    } else if says("UnknownIssuer") || says("BadSignature") || says("CaUsedAsEndEntity") {
        "has a certificate that is not trusted: check that `sslrootcert` has the CA that signed it"
    } else if says("invalid peer certificate") {
        "has a certificate that is not valid: check it"
    } else if says("received fatal alert") {
        "does not accept the client's certificate, or demands one: check `sslcert` and `sslkey`"
    } else if says("TLS handshake") {
        "does not speak TLS as it should: check the address and `sslmode`"
    } else if io.is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused) {
        "refuses connections: check that it runs, the address and the port"
    } else if io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut) {
        "does not answer: check that it runs, the address and the network"
    } else if says("password missing") {
        "demands a password, and the url has none"
    } else {
        "cannot be connected to: check that it is a PostgreSQL server, the address and the port"
    }
}

fn root_io(error: &tokio_postgres::Error) -> Option<&io::Error> {
    error.source()?.downcast_ref::<io::Error>()
}

/// An error with its causes.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
