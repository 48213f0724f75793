//! The tables of a sink: created by numbered migrations, then partitioned if the configuration says so.

use super::connection::{Session, SessionError};
use super::partitions::{Partitioning, ddl};
use super::sql;
use crate::migrations::{Migration, pending};
use crate::tables::TableSet;

const MIGRATIONS: [Migration; 3] = [
    Migration { number: 1, name: "tables", sql: include_str!("../../migrations/postgres/0001_tables.sql") },
    Migration {
        number: 2,
        name: "alerts by change",
        sql: include_str!("../../migrations/postgres/0002_alerts_by_change.sql"),
    },
    Migration {
        number: 3,
        name: "modes of alerts",
        sql: include_str!("../../migrations/postgres/0003_modes_of_alerts.sql"),
    },
];

const OUTBOX_MIGRATIONS: [Migration; 1] = [Migration {
    number: 1,
    name: "outbox",
    sql: include_str!("../../migrations/postgres/outbox/0001_outbox.sql"),
}];

/// Creates the schema and applies pending migrations, which must suit plain and partitioned tables alike. New tables
/// are then partitioned, as `partitioning` says.
///
/// # Errors
/// If existing tables are not partitioned as `partitioning` says. Nothing is changed then.
pub(super) async fn migrate(
    session: &Session,
    schema: Option<&str>,
    set: TableSet,
    partitioning: Option<&Partitioning>,
    sink: &str,
) -> Result<(), SessionError> {
    let migrations = match set {
        TableSet::Outputs => MIGRATIONS.as_slice(),
        TableSet::Outbox => OUTBOX_MIGRATIONS.as_slice(),
    };
    let client = &session.client;
    client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    client.query("SELECT pg_advisory_xact_lock($1)", &[&sql::MIGRATION_LOCK]).await?;
    if let Some(schema) = schema {
        // CREATE SCHEMA requires a privilege even if the schema exists.
        let exists = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";
        if !client.query_one(exists, &[&schema]).await?.get::<_, bool>(0) {
            client.batch_execute(&format!("CREATE SCHEMA \"{schema}\"")).await?;
        }
    }
    client
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS headwater_migrations (number integer PRIMARY KEY, hash text NOT NULL)",
        )
        .await?;
    let applied = client.query("SELECT number, hash FROM headwater_migrations", &[]).await?;
    let applied: Vec<_> = applied.iter().map(|row| (row.get(0), row.get(1))).collect();
    if !applied.is_empty() {
        check_partitioning(session, partitioning, sink).await?;
    }
    for migration in pending(migrations, &applied).map_err(SessionError::Refused)? {
        client.batch_execute(migration.sql).await?;
        let record = "INSERT INTO headwater_migrations (number, hash) VALUES ($1, $2)";
        client.execute(record, &[&migration.number, &migration.hash()]).await?;
    }
    if let Some(partitioning) = partitioning.filter(|_| applied.is_empty()) {
        ddl::convert(session, partitioning.period).await?;
    }
    Ok(client.batch_execute("COMMIT").await?)
}

/// Checks that existing tables are partitioned as the configuration says.
///
/// # Errors
/// If they are not. Rows of years are not moved while a pipeline waits for its sink.
pub(super) async fn check_partitioning(
    session: &Session,
    partitioning: Option<&Partitioning>,
    sink: &str,
) -> Result<(), SessionError> {
    let recorded = ddl::recorded(session).await?;
    let wanted = partitioning.map(|partitioning| partitioning.period.as_str());
    if recorded.as_deref() == wanted {
        return Ok(());
    }
    let (found, back) = match &recorded {
        None => ("the tables are not partitioned".to_owned(), "remove `partition_by`".to_owned()),
        Some(period) => {
            (format!("the tables are partitioned by {period}"), format!("set `partition_by = \"{period}\"`"))
        }
    };
    let wanted = wanted
        .map_or("`partition_by` is not set".to_owned(), |period| format!("`partition_by` is \"{period}\""));
    Err(SessionError::Refused(format!(
        "{found}, but {wanted}, and only new tables can be partitioned differently: {back}; or set `schema` to a new one \
         and start once with `--adopt-sink {sink}`: the sink continues in new tables there, and these stay as they are"
    )))
}
