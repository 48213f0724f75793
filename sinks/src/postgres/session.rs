//! A connection to PostgreSQL and what is said over it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use headwater_dataflows::Epoch;
use tokio_postgres::{Client, Config, Error, NoTls};

use super::encode::CopyBuffer;
use crate::contract::{Generation, Lineage, Progress, Shards, Start};
use crate::migrations::{Migration, pending};
use crate::tables::{Column, Mode, TABLES, Table};
use crate::{Changes, Row};

const MIGRATIONS: [Migration; 1] =
    [Migration { number: 1, name: "tables", sql: include_str!("../../migrations/postgres/0001_tables.sql") }];

/// Any number will do, as long as nobody else uses it: "headwate" in ASCII.
const MIGRATION_LOCK: i64 = 0x6865_6164_7761_7465;

/// A connection, and what identifies it to the server.
pub(super) struct Session {
    pub client: Client,
    pub pid: i32,
}

/// Why a session is of no use: the server's error, or a reason not to use it.
pub(super) enum Unfit {
    Error(Error),
    Refused(String),
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Unfit::Error(error)
    }
}

/// What the server knows a writer of a pipeline's sink by.
fn application_name(start: &Start, sink: &str) -> String {
    format!("headwater:{}:{sink}:{}:{}", start.pipeline, start.generation, start.process)
}

impl Session {
    /// Connects; the connection's other half runs whenever the runtime does.
    pub async fn connect(config: &Config, start: &Start, sink: &str) -> Result<Session, Unfit> {
        let mut config = config.clone();
        config
            .application_name(application_name(start, sink))
            .connect_timeout(Duration::from_secs(10))
            .keepalives_idle(Duration::from_secs(30));
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move {
            // Whoever uses the client is told of the error, too.
            let _ = connection.await;
        });
        client
            .batch_execute("SET lock_timeout = '10s'; SET synchronous_commit = on; SET idle_in_transaction_session_timeout = '60s'")
            .await?;
        let row = client
            .query_one(
                "SELECT pg_backend_pid(), current_setting('server_version_num')::int, pg_is_in_recovery()",
                &[],
            )
            .await?;
        let (pid, version, standby): (i32, i32, bool) = (row.get(0), row.get(1), row.get(2));
        if version < 140_000 {
            return Err(Unfit::Refused(format!(
                "PostgreSQL 14 or newer is needed, this is {}",
                version / 10_000
            )));
        }
        if standby {
            return Err(Unfit::Refused("the server is a standby and cannot be written".into()));
        }
        Ok(Session { client, pid })
    }

    /// Applies what migrations are missing.
    pub async fn migrate(&self) -> Result<(), Unfit> {
        self.client.execute("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await?;
        let done = self.migrate_locked().await;
        self.client.execute("SELECT pg_advisory_unlock($1)", &[&MIGRATION_LOCK]).await?;
        done
    }

    async fn migrate_locked(&self) -> Result<(), Unfit> {
        self.client
            .batch_execute("CREATE TABLE IF NOT EXISTS headwater_migrations (number integer PRIMARY KEY, hash text NOT NULL)")
            .await?;
        let rows = self.client.query("SELECT number, hash FROM headwater_migrations", &[]).await?;
        let applied: Vec<(i32, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        for migration in pending(&MIGRATIONS, &applied).map_err(Unfit::Refused)? {
            // Both are ours: a script without quotes in its hash.
            let record = format!(
                "INSERT INTO headwater_migrations VALUES ({}, '{}')",
                migration.number,
                migration.hash()
            );
            self.client.batch_execute(&format!("BEGIN; {} {record}; COMMIT", migration.sql)).await?;
        }
        Ok(())
    }

    /// Tables of this session that rows of keyed tables go through.
    pub async fn make_stages(&self) -> Result<(), Error> {
        for table in TABLES.iter().filter(|table| table.mode != Mode::Append) {
            let name = table.name;
            self.client
                .batch_execute(&format!(
                    "CREATE TEMP TABLE IF NOT EXISTS staged_{name} (LIKE {name}) ON COMMIT DELETE ROWS;
                     CREATE TEMP TABLE IF NOT EXISTS deleted_{name} AS SELECT {} FROM {name} WITH NO DATA;",
                    names(key(table)),
                ))
                .await?;
        }
        Ok(())
    }

    /// The progress of a pipeline's sink.
    pub async fn progress(&self, pipeline: &str, sink: &str) -> Result<Vec<Progress>, Error> {
        let query = "SELECT lineage, generation, shards, through FROM headwater_progress WHERE pipeline = $1 AND sink = $2";
        let rows = self.client.query(query, &[&pipeline, &sink]).await?;
        Ok(rows
            .iter()
            .map(|row| Progress {
                lineage: Lineage(row.get(0)),
                generation: Generation(row.get::<_, i64>(1) as u64),
                shards: Shards(row.get::<_, i64>(2) as u64),
                through: Epoch(row.get::<_, i64>(3) as u64),
            })
            .collect())
    }

    /// How far this writer's own progress row says it is.
    pub async fn own_progress(&self, start: &Start, sink: &str) -> Result<Option<Epoch>, Error> {
        let row = self
            .client
            .query_opt(
                "SELECT through FROM headwater_progress WHERE pipeline = $1 AND sink = $2 AND generation = $3 AND writer = $4",
                &[&start.pipeline, &sink, &(start.generation.0 as i64), &(start.process as i32)],
            )
            .await?;
        Ok(row.map(|row| Epoch(row.get::<_, i64>(0) as u64)))
    }

    /// Makes this writer's progress row.
    pub async fn begin_progress(&self, start: &Start, sink: &str, through: Epoch) -> Result<(), Error> {
        self.client
            .execute(
                "INSERT INTO headwater_progress VALUES ($1, $2, $3, $4, $5, $6, $7)
                 ON CONFLICT (pipeline, sink, generation, writer) DO NOTHING",
                &[
                    &start.pipeline,
                    &sink,
                    &(start.generation.0 as i64),
                    &(start.process as i32),
                    &start.lineage.0,
                    &(start.shards.0 as i64),
                    &(through.0 as i64),
                ],
            )
            .await
            .map(drop)
    }

    /// Ends the server's side of older starts of this pipeline's sink: a writer that is paused inside a transaction
    /// would hold its locks for ever.
    pub async fn end_older(&self, start: &Start, sink: &str) -> Result<(), Error> {
        let prefix = format!("headwater:{}:{sink}:", start.pipeline);
        let rows = self
            .client
            .query(
                "SELECT pid, application_name FROM pg_stat_activity
                 WHERE starts_with(application_name, $1) AND datname = current_database()",
                &[&prefix],
            )
            .await?;
        for row in rows {
            let (pid, name): (i32, String) = (row.get(0), row.get(1));
            let generation = name[prefix.len()..].split(':').next().and_then(|text| text.parse::<u64>().ok());
            if generation.is_some_and(|generation| generation < start.generation.0) {
                self.end_backend(pid).await?;
            }
        }
        Ok(())
    }

    /// Ends a backend and waits until it is gone; says whether it is.
    pub async fn end_backend(&self, pid: i32) -> Result<bool, Error> {
        self.client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            let gone = self
                .client
                .query_opt("SELECT 1 FROM pg_stat_activity WHERE pid = $1", &[&pid])
                .await?
                .is_none();
            if gone {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(false)
    }

    /// The greatest offset of each partition that the append-only tables hold.
    pub async fn stored(&self) -> Result<HashMap<i64, i64>, Error> {
        let query = "SELECT partition, max(greatest) FROM (
                         SELECT partition, max(\"offset\") AS greatest FROM events GROUP BY 1
                         UNION ALL SELECT partition, max(\"offset\") FROM dead_letters GROUP BY 1
                     ) AS both_tables GROUP BY 1";
        let rows = self.client.query(query, &[]).await?;
        Ok(rows.iter().map(|row| (row.get::<_, i32>(0).into(), row.get(1))).collect())
    }

    /// Begins a round: false if another start has taken over, or the progress row is not as this writer left it.
    pub async fn begin(&self, start: &Start, sink: &str, from: Epoch, through: Epoch) -> Result<bool, Error> {
        self.client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        let updated = self
            .client
            .execute(
                "UPDATE headwater_progress SET through = $6
                 WHERE pipeline = $1 AND sink = $2 AND generation = $3 AND writer = $4 AND through = $5
                 AND NOT EXISTS (
                     SELECT 1 FROM headwater_progress WHERE pipeline = $1 AND sink = $2 AND generation > $3
                 )",
                &[
                    &start.pipeline,
                    &sink,
                    &(start.generation.0 as i64),
                    &(start.process as i32),
                    &(from.0 as i64),
                    &(through.0 as i64),
                ],
            )
            .await?;
        Ok(updated == 1)
    }

    /// Writes rows of one table into the open transaction.
    pub async fn write(
        &self,
        index: usize,
        table: &Table,
        rows: &[&Changes],
        stored: &HashMap<i64, i64>,
    ) -> Result<(), Error> {
        let rows = rows.iter().flat_map(|changes| changes.rows.iter()).filter(|row| row.table == index);
        match table.mode {
            Mode::Append => {
                let mut buffer = CopyBuffer::new();
                let mut any = false;
                for row in rows.filter(|row| stored.is_empty() || !is_stored(row, stored)) {
                    buffer.row(table.columns, row.cells());
                    any = true;
                }
                if any { self.copy(table.name, table.columns, buffer).await } else { Ok(()) }
            }
            Mode::Upsert { .. } => self.upsert(table, rows).await,
        }
    }

    /// Each key's last change, by way of the staging tables.
    async fn upsert(&self, table: &Table, rows: impl Iterator<Item = Row<'_>>) -> Result<(), Error> {
        let key = key(table);
        let mut last = HashMap::new();
        for row in rows {
            last.insert(row.leading_bytes(key.len()), row);
        }
        let (mut staged, mut deleted) = (CopyBuffer::new(), CopyBuffer::new());
        let (mut any_staged, mut any_deleted) = (false, false);
        for row in last.into_values() {
            if row.deletes {
                deleted.row(key, row.cells());
                any_deleted = true;
            } else {
                staged.row(table.columns, row.cells());
                any_staged = true;
            }
        }
        let name = table.name;
        if any_deleted {
            self.client.batch_execute(&format!("TRUNCATE deleted_{name}")).await?;
            self.copy(&format!("deleted_{name}"), key, deleted).await?;
            let same: Vec<_> =
                key.iter().map(|column| format!("t.\"{0}\" = d.\"{0}\"", column.name)).collect();
            let delete = format!("DELETE FROM {name} t USING deleted_{name} d WHERE {}", same.join(" AND "));
            self.client.batch_execute(&delete).await?;
        }
        if any_staged {
            self.copy(&format!("staged_{name}"), table.columns, staged).await?;
            let (all, of_key) = (names(table.columns), names(key));
            let set: Vec<_> = table.columns[key.len()..]
                .iter()
                .map(|column| format!("\"{0}\" = excluded.\"{0}\"", column.name))
                .collect();
            let upsert = format!(
                "INSERT INTO {name} ({all}) SELECT {all} FROM staged_{name} ON CONFLICT ({of_key}) DO UPDATE SET {}",
                set.join(", ")
            );
            self.client.batch_execute(&upsert).await?;
        }
        Ok(())
    }

    async fn copy(&self, table: &str, columns: &[Column], buffer: CopyBuffer) -> Result<(), Error> {
        let copy = format!("COPY {table} ({}) FROM STDIN (FORMAT binary)", names(columns));
        let sink = self.client.copy_in(&copy).await?;
        futures_util::pin_mut!(sink);
        let mut rest = Bytes::from(buffer.finish());
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(1 << 18));
            sink.send(piece).await?;
        }
        sink.finish().await.map(drop)
    }
}

fn key(table: &Table) -> &'static [Column] {
    match table.mode {
        Mode::Append => &[],
        Mode::Upsert { key } => &table.columns[..key],
    }
}

fn names(columns: &[Column]) -> String {
    columns.iter().map(|column| format!("\"{}\"", column.name)).collect::<Vec<_>>().join(", ")
}

/// Whether an append-only row was stored by an earlier start.
fn is_stored(row: &Row<'_>, stored: &HashMap<i64, i64>) -> bool {
    let mut cells = row.cells();
    match (cells.next(), cells.next()) {
        (Some(crate::Cell::Int(partition)), Some(crate::Cell::Int(offset))) => {
            stored.get(&partition).is_some_and(|&greatest| offset <= greatest)
        }
        _ => false,
    }
}
