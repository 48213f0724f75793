//! Statements that create, fill and drop partitions, each in a short transaction of its own.
//!
//! A transaction holds an advisory lock, so that of several sessions only one changes partitions. It gives up after
//! [`LOCK_TIMEOUT`]: while it waits for a lock that a reader holds, rounds wait behind it.
//!
//! - Attaching a partition locks the table only against other such statements, and the default partition against
//!   everything. Rounds and readers of other partitions go on.
//! - Dropping a partition locks the table against everything, for a few milliseconds.

use std::time::Duration;

use tokio::time::sleep;

use super::super::connection::{Session, SessionError};
use super::{Partitioning, Period, Start, default_partition, infinite_partition, literal};
use crate::tables::{TABLES, Table};

/// The key of the advisory lock of statements that change partitions.
const PARTITION_LOCK: i64 = 0x6865_6164_7061_7274;

/// The timeout of waiting for a lock, in milliseconds. A round may have to wait as long, when a reader holds the lock.
const LOCK_TIMEOUT_MS: u32 = 250;

/// The number of attempts to get a lock, a second apart.
const ATTEMPTS: u32 = 5;

/// The number of rows that are deleted in one transaction.
const BATCH: u64 = 10_000;

/// The number of periods of rows in the default partition that are looked at in one pass.
const STRAYS: i64 = 100;

/// Partitions that were created.
#[derive(Debug, Default)]
pub(crate) struct Created {
    /// Their names.
    pub names: Vec<String>,
    /// The number of rows that were moved to them from the default partition.
    pub moved: u64,
}

/// Begins a transaction that changes partitions.
async fn begin(session: &Session) -> Result<(), SessionError> {
    let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}");
    session.client.batch_execute(&begin).await?;
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended(current_schema(), $1))";
    session.client.query(lock, &[&PARTITION_LOCK]).await?;
    Ok(())
}

/// Runs `body` in a transaction that changes partitions.
pub(crate) async fn transaction<T>(
    session: &Session,
    body: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    let outcome = match begin(session).await {
        Ok(()) => body.await,
        Err(error) => Err(error),
    };
    let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = session.client.batch_execute(end).await;
    // The error of the body says more than the error of a rollback on a lost connection.
    let value = outcome?;
    ended?;
    Ok(value)
}

/// Attempts an action again if it could not get a lock.
pub(crate) async fn patiently<T>(
    action: impl AsyncFn() -> Result<T, SessionError>,
) -> Result<T, SessionError> {
    let mut attempt = 1;
    loop {
        match action().await {
            Err(error) if error.is_lock_timeout() && attempt < ATTEMPTS => attempt += 1,
            outcome => return outcome,
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Makes the tables partitioned, which have just been created and are empty. Their indexes are those of the migrations;
/// the primary keys end with the column of the times, as PostgreSQL demands.
pub(crate) async fn convert(session: &Session, period: Period) -> Result<(), SessionError> {
    let client = &session.client;
    for table in &TABLES {
        let (name, time) = (table.name, table.columns[table.time].name);
        let others = "SELECT pg_get_indexdef(indexrelid) FROM pg_index
                      WHERE indrelid = to_regclass($1) AND NOT indisprimary ORDER BY indexrelid";
        let others = client.query(others, &[&name]).await?;
        let others: Vec<String> = others.iter().map(|row| row.get(0)).collect();
        let mut key: Vec<_> = table.columns[..table.key()].iter().map(|column| column.name).collect();
        if !key.contains(&time) {
            key.push(time);
        }
        let key = key.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(", ");
        client
            .batch_execute(&format!(
                "CREATE TABLE {name}_partitioned (LIKE {name} INCLUDING ALL EXCLUDING INDEXES)
                     PARTITION BY RANGE (\"{time}\");
                 DROP TABLE {name};
                 ALTER TABLE {name}_partitioned RENAME TO {name};
                 ALTER TABLE {name} ADD PRIMARY KEY ({key});
                 {};
                 CREATE TABLE {} PARTITION OF {name} DEFAULT;
                 CREATE TABLE {} PARTITION OF {name} FOR VALUES FROM ('infinity') TO (MAXVALUE)",
                others.join(";\n"),
                default_partition(table),
                infinite_partition(table),
            ))
            .await?;
    }
    let record = "CREATE TABLE headwater_partitioning (period text NOT NULL)";
    client.batch_execute(record).await?;
    client.execute("INSERT INTO headwater_partitioning (period) VALUES ($1)", &[&period.as_str()]).await?;
    Ok(())
}

/// Returns the name of the period by which the tables are partitioned; `None` if they are not.
pub(crate) async fn recorded(session: &Session) -> Result<Option<String>, SessionError> {
    let exists = "SELECT to_regclass('headwater_partitioning') IS NOT NULL";
    if !session.client.query_one(exists, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    Ok(Some(session.client.query_one("SELECT period FROM headwater_partitioning", &[]).await?.get(0)))
}

/// Returns the names of the partitions of a table, in the order of time, without the default partition.
pub(crate) async fn attached(
    session: &Session,
    table: &Table,
    period: Period,
) -> Result<Vec<String>, SessionError> {
    let all = "SELECT relname::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
               WHERE inhparent = to_regclass($1)";
    let all = session.client.query(all, &[&table.name]).await?;
    let mut names: Vec<String> =
        all.iter().map(|row| row.get(0)).filter(|name: &String| period.is_partition(table, name)).collect();
    names.sort_unstable();
    Ok(names)
}

/// Creates those partitions that do not exist, and moves their rows from the default partition to them.
pub(crate) async fn create(
    session: &Session,
    table: &Table,
    period: Period,
    starts: &[Start],
) -> Result<Created, SessionError> {
    let body = async {
        let attached = attached(session, table, period).await?;
        let mut created = Created::default();
        for &start in starts {
            let name = period.partition(table, start);
            if attached.contains(&name) {
                continue;
            }
            if created.names.is_empty() {
                lock_default(session, table).await?;
            }
            created.moved += attach(session, table, period, start, &name).await?;
            created.names.push(name);
        }
        Ok(created)
    };
    transaction(session, body).await
}

/// Locks the default partition, after the table, as readers and rounds do.
async fn lock_default(session: &Session, table: &Table) -> Result<(), SessionError> {
    let lock = format!(
        "LOCK TABLE ONLY {} IN SHARE UPDATE EXCLUSIVE MODE; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
        table.name,
        default_partition(table)
    );
    Ok(session.client.batch_execute(&lock).await?)
}

/// Attaches a new partition. Returns the number of rows that were moved to it.
async fn attach(
    session: &Session,
    table: &Table,
    period: Period,
    start: Start,
    name: &str,
) -> Result<u64, SessionError> {
    let (parent, stray, time) = (table.name, default_partition(table), table.columns[table.time].name);
    let (from, to) = period.bounds(start);
    let client = &session.client;
    client.batch_execute(&format!("CREATE TABLE {name} (LIKE {parent} INCLUDING ALL)")).await?;
    let moving = format!(
        "WITH moved AS (DELETE FROM {stray} WHERE \"{time}\" >= {from} AND \"{time}\" < {to} RETURNING *)
         INSERT INTO {name} SELECT * FROM moved"
    );
    let moved = client.execute(&moving, &[]).await?;
    let attach = format!("ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ({from}) TO ({to})");
    client.batch_execute(&attach).await?;
    Ok(moved)
}

/// Returns the size of the default partition, in bytes.
pub(crate) async fn default_size(session: &Session, table: &Table) -> Result<i64, SessionError> {
    size(session, &default_partition(table)).await
}

/// Returns the size of a partition, in bytes.
pub(crate) async fn size(session: &Session, name: &str) -> Result<i64, SessionError> {
    let size = "SELECT coalesce(pg_table_size(to_regclass($1)), 0)";
    Ok(session.client.query_one(size, &[&name]).await?.get(0))
}

/// Returns the periods of rows in the default partition that should have partitions of their own, with the number of
/// rows of each.
pub(crate) async fn strays(
    session: &Session,
    table: &Table,
    partitioning: &Partitioning,
    now: i64,
) -> Result<Vec<(Start, i64)>, SessionError> {
    let Some(&last) = partitioning.upcoming(now).last() else { return Ok(Vec::new()) };
    let oldest = partitioning.oldest(now).unwrap_or(Start(0));
    let (period, time) = (partitioning.period, table.columns[table.time].name);
    let (from, (_, to)) = (literal(oldest), period.bounds(last));
    let found = format!(
        "SELECT (date_trunc('{}', \"{time}\" AT TIME ZONE 'UTC')::date - date '1970-01-01')::bigint, count(*)
         FROM {} WHERE \"{time}\" >= {from} AND \"{time}\" < {to} GROUP BY 1 ORDER BY 1 LIMIT $1",
        period.as_str(),
        default_partition(table),
    );
    let found = session.client.query(&found, &[&STRAYS]).await?;
    Ok(found.iter().map(|row| (Start(row.get(0)), row.get(1))).collect())
}

/// Drops a partition, unless `is_permitted` returns false in the same transaction. Returns true if it was dropped.
pub(crate) async fn drop(
    session: &Session,
    name: &str,
    is_permitted: impl AsyncFnOnce() -> Result<bool, SessionError>,
) -> Result<bool, SessionError> {
    let body = async {
        let permitted = is_permitted().await?;
        if permitted {
            session.client.batch_execute(&format!("DROP TABLE {name}")).await?;
        }
        Ok(permitted)
    };
    transaction(session, body).await
}

/// Deletes the rows of the default partition that are older than a period, in batches, as long as `is_permitted`
/// returns true. Returns their number.
pub(crate) async fn delete_older(
    session: &Session,
    table: &Table,
    oldest: Start,
    is_permitted: impl AsyncFn() -> Result<bool, SessionError>,
) -> Result<u64, SessionError> {
    let (stray, time) = (default_partition(table), table.columns[table.time].name);
    let delete = format!(
        "DELETE FROM {stray} WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM {stray} WHERE \"{time}\" < {} LIMIT {BATCH}))",
        literal(oldest)
    );
    let mut deleted = 0;
    loop {
        let body = async {
            match is_permitted().await? {
                true => Ok(session.client.execute(&delete, &[]).await?),
                false => Ok(0),
            }
        };
        let batch = transaction(session, body).await?;
        deleted += batch;
        if batch < BATCH {
            return Ok(deleted);
        }
    }
}
