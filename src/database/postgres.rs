//! Sessions of PostgreSQL.

use std::time::{Duration, Instant};

use headwater_sinks::Secret;
use headwater_sinks::postgres::Target;
use tokio::runtime::Runtime;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::Parameter;

/// The settings of a session.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// The address.
    pub url: &'a Secret,
    /// The schema of the tables, if it is not the default.
    pub schema: Option<&'a str>,
    /// The name that the server shows for the session.
    pub application: &'a str,
    /// True if the session cannot write.
    pub is_read_only: bool,
    /// The time after which the server itself cancels a statement, so that none goes on for a client that has given up.
    pub statement_timeout: Duration,
    /// The maximum time of connecting and of one run.
    pub timeout: Duration,
}

/// A session, closed when it is dropped.
pub struct Session {
    /// None only while the session is dropped.
    runtime: Option<Runtime>,
    client: Client,
    timeout: Duration,
}

/// An error of a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The server cannot be reached, or the address is invalid.
    #[error(transparent)]
    Connect(Box<dyn std::error::Error + Send + Sync>),
    /// A statement failed.
    #[error("{}", message(.0))]
    Statement(tokio_postgres::Error),
    /// There was no answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// Returns the server's message, which the client's own text lacks.
fn message(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

impl Drop for Session {
    fn drop(&mut self) {
        // The HTTP server drops it on a thread that must not block, where dropping a runtime would panic.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Session {
    /// Connects to a server.
    ///
    /// # Errors
    /// If it cannot be reached, or refuses the settings.
    pub fn connect(settings: Settings<'_>) -> Result<Session, SessionError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| SessionError::Connect(error);
        let Settings { url, schema, application, is_read_only, statement_timeout, timeout } = settings;
        let begun = Instant::now();
        let mut target = Target::parse(url.expose()).map_err(|error| failed(error.into()))?;
        let own = format!(
            "-c default_transaction_read_only={} -c statement_timeout={} -c timezone=UTC -c client_min_messages=warning",
            if is_read_only { "on" } else { "off" },
            statement_timeout.as_millis()
        );
        let config = target.config();
        let options = [config.get_options().unwrap_or_default(), &own].join(" ");
        config.options(options).application_name(application).tcp_user_timeout(timeout);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed(error.into()))?;
        let connected = async { tokio::time::timeout(timeout, target.connect()).await };
        let (client, _) = runtime
            .block_on(connected)
            .map_err(|_| SessionError::TimedOut(timeout))?
            .map_err(|error| failed(error.into()))?;
        let left = timeout.saturating_sub(begun.elapsed());
        let mut session = Session { runtime: Some(runtime), client, timeout: left };
        if let Some(schema) = schema {
            session.run(async |client| {
                client.query("SELECT set_config('search_path', quote_ident($1), false)", &[&schema]).await
            })?;
        }
        session.timeout = timeout;
        Ok(session)
    }

    /// Returns true if the connection is lost.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs statements. After a timeout, the connection may still wait for their answer: connect again.
    ///
    /// # Errors
    /// If a statement fails, or there is no answer in time.
    pub fn run<T>(
        &mut self,
        statements: impl AsyncFnOnce(&mut Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, SessionError> {
        let Session { runtime, client, timeout } = self;
        let runtime = runtime.as_ref().expect("the session is not being dropped");
        let answered = async { tokio::time::timeout(*timeout, statements(client)).await };
        match runtime.block_on(answered) {
            Ok(answer) => answer.map_err(SessionError::Statement),
            Err(_) => Err(SessionError::TimedOut(*timeout)),
        }
    }
}

/// Returns parameters as the client takes them.
pub fn values<'a>(parameters: &'a [Parameter]) -> Vec<&'a (dyn ToSql + Sync)> {
    let value = |parameter: &'a Parameter| -> &'a (dyn ToSql + Sync) {
        match parameter {
            Parameter::Text(text) | Parameter::Time(text) => text,
            Parameter::Int(value) => value,
        }
    };
    parameters.iter().map(value).collect()
}

/// Returns the milliseconds since 1970 of a finite time.
pub fn millis(time: &str) -> String {
    format!("(extract(epoch FROM {time}) * 1000)::bigint")
}
