//! Checks of a PostgreSQL database for a sink or a ledger, which change nothing in it.

use std::time::Duration;

use tokio::runtime::Builder;
use tokio::time::timeout;

use super::connection::{Address, Session, SessionError};
use super::{Partitioning, ROUND_TIMEOUT};
use crate::tables::TableSet;

/// The tables of a sink in addition to the tables of its outputs.
const OWN: [&str; 2] = ["headwater_migrations", "headwater_progress"];

/// The reason why a database cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Obstacle(#[from] SessionError);

/// The tables that a sink wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The name of the sink.
    pub sink: &'a str,
    /// The tables.
    pub set: TableSet,
    /// The partitioning of the tables.
    pub partitioning: Option<Partitioning>,
    /// The interval at which views are refreshed, if there are any.
    pub dashboards: Option<Duration>,
}

impl Wanted<'_> {
    /// Returns what a run creates in existing tables; `None` if nothing.
    fn creates(&self) -> Option<&'static str> {
        match (self.partitioning, self.dashboards) {
            (Some(_), _) => Some("partitions"),
            (None, Some(_)) => Some("views"),
            (None, None) => None,
        }
    }
}

/// Checks that a sink can connect, and can create and write its tables. Returns a description of the database.
///
/// # Errors
/// If it cannot: the reason, and what to do.
pub fn sink(url: &str, schema: Option<&str>, wanted: Wanted<'_>) -> Result<String, Obstacle> {
    let tables = wanted.set.tables().map(|(_, table)| table.name);
    probe(url, schema, &OWN.into_iter().chain(tables).collect::<Vec<_>>(), Some(wanted))
}

/// Checks the same for the tables `names` in the default schema of the connection.
///
/// # Errors
/// If it cannot: the reason, and what to do.
pub fn tables(url: &str, names: &[&str]) -> Result<String, Obstacle> {
    probe(url, None, names, None)
}

fn probe(
    url: &str,
    schema: Option<&str>,
    names: &[&str],
    wanted: Option<Wanted<'_>>,
) -> Result<String, Obstacle> {
    let address = Address::parse(url, schema, "headwater-check").map_err(SessionError::from)?;
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| SessionError::Refused(format!("cannot start a runtime: {error}")))?;
    let checked = async { timeout(ROUND_TIMEOUT, check(&address, schema, names, wanted)).await };
    Ok(runtime.block_on(checked).unwrap_or(Err(SessionError::TimedOut("checking the permissions")))?)
}

async fn check(
    address: &Address,
    schema: Option<&str>,
    names: &[&str],
    wanted: Option<Wanted<'_>>,
) -> Result<String, SessionError> {
    const FACTS: &str = "
        SELECT current_user::text, coalesce($1, current_schema()::text, ''), current_setting('server_version'),
               EXISTS (SELECT FROM pg_namespace WHERE nspname = coalesce($1, current_schema()::text)),
               has_database_privilege(current_database(), 'CREATE'),
               coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)";
    const SCHEMA: &str = "
        SELECT has_schema_privilege($1, 'CREATE'),
               ARRAY(SELECT name FROM unnest($2::text[]) AS name WHERE to_regclass(format('%I.%I', $1, name)) IS NULL),
               ARRAY(SELECT format('%s on %s', privilege, name)
                     FROM unnest($2::text[]) AS name, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
                     WHERE to_regclass(format('%I.%I', $1, name)) IS NOT NULL
                       AND NOT has_table_privilege(format('%I.%I', $1, name), privilege))";
    let session = Session::connect(address).await?;
    let facts = session.client.query_one(FACTS, &[&schema]).await?;
    let (user, schema, version): (String, String, String) = (facts.get(0), facts.get(1), facts.get(2));
    let (exists, may_create, tls): (bool, bool, bool) = (facts.get(3), facts.get(4), facts.get(5));
    let refused = |reason| Err(SessionError::Refused(reason));
    let server = format!("PostgreSQL {version}{}", if tls { ", TLS" } else { ", not encrypted" });
    if !exists {
        return match may_create {
            true => Ok(format!("{server}; schema {schema} will be created")),
            false => refused(format!(
                "there is no schema {schema:?}, and {user} is not allowed to create it: CREATE SCHEMA {schema} \
                 AUTHORIZATION {user}"
            )),
        };
    }
    let facts = session.client.query_one(SCHEMA, &[&schema, &names]).await?;
    let (may_create, missing, denied): (bool, Vec<String>, Vec<String>) =
        (facts.get(0), facts.get(1), facts.get(2));
    if !missing.is_empty() && !may_create {
        return refused(format!(
            "{user} is not allowed to create the tables {} in schema {schema}: GRANT CREATE ON SCHEMA {schema} \
             TO {user}",
            missing.join(", ")
        ));
    }
    if let Some(wanted) = wanted {
        if missing.is_empty() {
            super::schema::check_partitioning(&session, wanted.partitioning.as_ref(), wanted.sink).await?;
        }
        if let (Some(created), false) = (wanted.creates(), may_create) {
            return refused(format!(
                "{user} is not allowed to create {created} in schema {schema}: GRANT CREATE ON SCHEMA {schema} TO {user}"
            ));
        }
    }
    if !denied.is_empty() {
        return refused(format!("{user} lacks privileges: GRANT {} TO {user}", denied.join(", ")));
    }
    let tables = match missing.len() {
        0 => "all tables exist".to_owned(),
        all if all == names.len() => "tables will be created".to_owned(),
        some => format!("{some} of {} tables will be created", names.len()),
    };
    Ok(format!("{server}; schema {schema}, {tables}"))
}
