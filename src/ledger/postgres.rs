//! A ledger in PostgreSQL, which process 0 can use from any machine.

use std::time::Duration;

use headwater_dataflows::Epoch;
use headwater_sinks::postgres::{ConnectError, Target};
use headwater_sinks::{Generation, LedgerId};
use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, IsolationLevel, Row, Transaction};

use super::{
    Claim, Genesis, Ledger, LedgerError, PRUNED, StoredManifest, UNPRUNED, check_ascending, check_not_pruned,
    check_nothing_after, check_version, format, new_ledger_id, ownership_error, read_genesis, read_loss,
    read_manifest, read_round, unavailable, write_manifest,
};
use crate::coordination::{EpochRecord, Loss, Manifest, Prune, Skip, Takeovers, prune};

/// The tables of the ledger, in versions 1 and 2. The lock serialises two first starts: its number is "hw-ledgr" in
/// ASCII.
const TABLES: &str = "
BEGIN;
SELECT pg_advisory_xact_lock(7527069085637862258);
CREATE TABLE IF NOT EXISTS headwater_ledger (
    pipeline text PRIMARY KEY,
    version bigint NOT NULL,
    lineage text NOT NULL,
    generation bigint NOT NULL,
    starts bytea,
    meaning text
);
CREATE TABLE IF NOT EXISTS headwater_bindings (
    pipeline text NOT NULL,
    through bigint NOT NULL,
    epochs bytea NOT NULL,
    PRIMARY KEY (pipeline, through)
);
CREATE TABLE IF NOT EXISTS headwater_manifests (
    pipeline text NOT NULL,
    epoch bigint NOT NULL,
    manifest bytea NOT NULL,
    PRIMARY KEY (pipeline, epoch)
);
CREATE TABLE IF NOT EXISTS headwater_writers (
    pipeline text PRIMARY KEY,
    processes bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS headwater_skips (
    pipeline text NOT NULL,
    sink text NOT NULL,
    epoch bigint NOT NULL,
    output text NOT NULL,
    PRIMARY KEY (pipeline, sink, epoch, output)
);
CREATE TABLE IF NOT EXISTS headwater_losses (
    pipeline text NOT NULL,
    partition bigint NOT NULL,
    first bigint NOT NULL,
    next bigint NOT NULL,
    PRIMARY KEY (pipeline, partition, first, next)
);
CREATE TABLE IF NOT EXISTS headwater_sinks (
    pipeline text NOT NULL,
    sink text NOT NULL,
    PRIMARY KEY (pipeline, sink)
);
CREATE TABLE IF NOT EXISTS headwater_attempts (
    pipeline text PRIMARY KEY,
    durable bigint NOT NULL,
    attempts bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS headwater_takeovers (
    pipeline text PRIMARY KEY,
    count bigint NOT NULL,
    last_ms bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS headwater_pruned (
    pipeline text PRIMARY KEY,
    through bigint NOT NULL
);
COMMIT;
";

/// Returns the names of the ledger tables.
pub fn table_names() -> impl Iterator<Item = &'static str> {
    TABLES.lines().filter_map(|line| line.strip_prefix("CREATE TABLE IF NOT EXISTS ")?.split(' ').next())
}

/// The settings of the session. A writer that is paused or disconnected must not hold its lock forever.
const OPTIONS: &str = "-c synchronous_commit=on -c lock_timeout=10s -c statement_timeout=30s \
                       -c idle_in_transaction_session_timeout=10s -c client_min_messages=warning";

/// The timeout of one operation.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A ledger in PostgreSQL.
pub struct PostgresLedger {
    pipeline: String,
    runtime: Runtime,
    client: Client,
    generation: Generation,
}

impl PostgresLedger {
    /// Connects to the server, and creates the tables if they do not exist.
    ///
    /// # Errors
    /// If the address is invalid, or the server cannot be reached or returns an error.
    pub fn open(url: &str, pipeline: &str) -> Result<PostgresLedger, LedgerError> {
        let connect = |error: ConnectError| unavailable("open PostgreSQL", error);
        let mut target = Target::parse(url).map_err(|error| connect(error.into()))?;
        let config = target.config();
        let options = [config.get_options().unwrap_or_default(), OPTIONS].join(" ");
        config
            .options(options)
            .application_name("headwater-ledger")
            .tcp_user_timeout(TIMEOUT)
            .keepalives_idle(TIMEOUT);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| unavailable("start a runtime", error))?;
        // The end of the connection is also reported to every use of the client.
        let (client, _) = runtime.block_on(target.connect()).map_err(connect)?;
        let ledger =
            PostgresLedger { pipeline: pipeline.to_owned(), runtime, client, generation: Generation(0) };
        ledger.create_tables()?;
        Ok(ledger)
    }

    fn create_tables(&self) -> Result<(), LedgerError> {
        let action = "create the tables of the ledger";
        let created = async { tokio::time::timeout(TIMEOUT, self.client.batch_execute(TABLES)).await };
        match self.runtime.block_on(created) {
            Ok(created) => created.map_err(|error| unavailable(action, describe(error))),
            Err(elapsed) => Err(unavailable(action, elapsed)),
        }
    }

    fn query(
        &self,
        action: &str,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, LedgerError> {
        self.runtime.block_on(async {
            match tokio::time::timeout(TIMEOUT, self.client.query(statement, values)).await {
                Ok(answer) => answer.map_err(|error| unavailable(action, describe(error))),
                Err(elapsed) => Err(unavailable(action, elapsed)),
            }
        })
    }

    /// Executes a statement that returns the row it has written, or nothing if this run does not own the pipeline.
    fn write(
        &self,
        action: &str,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, LedgerError> {
        let written = self.query(action, statement, values)?;
        if !written.is_empty() {
            return Ok(written);
        }
        let current = "SELECT generation FROM headwater_ledger WHERE pipeline = $1";
        let rows = self.query(action, current, &[&self.pipeline])?;
        Err(ownership_error(&self.pipeline, rows.first().map(|row| row.get(0))))
    }
}

fn read_claim(pipeline: &str, row: &Row) -> Result<Claim, LedgerError> {
    check_version(pipeline, row.get(0))?;
    let generation = Generation(row.get::<_, i64>(2) as u64);
    let genesis = read_genesis(pipeline, row.get(3), row.get(4))?;
    Ok(Claim { ledger_id: LedgerId(row.get(1)), generation, genesis })
}

impl Ledger for PostgresLedger {
    fn claim(&mut self) -> Result<Claim, LedgerError> {
        const CLAIM: &str = "
            INSERT INTO headwater_ledger AS ledger (pipeline, version, lineage, generation)
            VALUES ($1, $2, $3, 1)
            ON CONFLICT (pipeline) DO UPDATE SET generation = ledger.generation + 1
            WHERE ledger.version BETWEEN $2 AND $4
            RETURNING version, lineage, generation, starts, meaning";
        let ledger_id = new_ledger_id()?.0;
        let values: [&(dyn ToSql + Sync); 4] = [&self.pipeline, &UNPRUNED, &ledger_id, &PRUNED];
        let rows = self.query("claim the pipeline", CLAIM, &values)?;
        let claim = match rows.first() {
            Some(row) => read_claim(&self.pipeline, row)?,
            // The pipeline has a row, and its version was rejected.
            None => self.peek()?.ok_or_else(|| ownership_error(&self.pipeline, None))?,
        };
        self.generation = claim.generation;
        Ok(claim)
    }

    fn peek(&mut self) -> Result<Option<Claim>, LedgerError> {
        const PEEK: &str =
            "SELECT version, lineage, generation, starts, meaning FROM headwater_ledger WHERE pipeline = $1";
        let rows = self.query("read the pipeline", PEEK, &[&self.pipeline])?;
        rows.first().map(|row| read_claim(&self.pipeline, row)).transpose()
    }

    fn register_processes(&mut self, processes: usize) -> Result<usize, LedgerError> {
        const REGISTER: &str = "
            WITH mine AS (
                SELECT 1 FROM headwater_ledger WHERE pipeline = $1 AND generation = $2 FOR UPDATE
            )
            INSERT INTO headwater_writers AS writers (pipeline, processes) SELECT $1, $3 FROM mine
            ON CONFLICT (pipeline) DO UPDATE SET processes = greatest(writers.processes, excluded.processes)
            RETURNING processes";
        let (generation, processes) = (self.generation.0 as i64, processes as i64);
        let values: [&(dyn ToSql + Sync); 3] = [&self.pipeline, &generation, &processes];
        let rows = self.write("register the processes", REGISTER, &values)?;
        Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0)) as usize)
    }

    fn skip(&mut self, Skip { sink, epoch, output }: &Skip) -> Result<(), LedgerError> {
        const SKIP: &str =
            "INSERT INTO headwater_skips (pipeline, sink, epoch, output) VALUES ($1, $2, $3, $4)
            ON CONFLICT DO NOTHING";
        let (pipeline, epoch) = (self.pipeline.clone(), epoch.0 as i64);
        self.transact("record a skip", async |transaction| {
            transaction.execute(SKIP, &[&pipeline, sink, &epoch, output]).await.map(|_| Ok(()))
        })
    }

    fn skips(&mut self) -> Result<Vec<Skip>, LedgerError> {
        const SKIPS: &str = "SELECT sink, epoch, output FROM headwater_skips WHERE pipeline = $1 ORDER BY epoch, sink, output";
        let rows = self.query("read the skips", SKIPS, &[&self.pipeline])?;
        let skip = |row: &Row| Skip {
            sink: row.get(0),
            epoch: Epoch(row.get::<_, i64>(1) as u64),
            output: row.get(2),
        };
        Ok(rows.iter().map(skip).collect())
    }

    fn lose(&mut self, Loss { partition, first, next }: &Loss) -> Result<(), LedgerError> {
        const LOSE: &str =
            "INSERT INTO headwater_losses (pipeline, partition, first, next) VALUES ($1, $2, $3, $4)
            ON CONFLICT DO NOTHING";
        let (pipeline, partition) = (self.pipeline.clone(), i64::from(partition.0));
        self.transact("record a loss", async |transaction| {
            transaction.execute(LOSE, &[&pipeline, &partition, &first.0, &next.0]).await.map(|_| Ok(()))
        })
    }

    fn losses(&mut self) -> Result<Vec<Loss>, LedgerError> {
        const LOSSES: &str = "SELECT partition, first, next FROM headwater_losses WHERE pipeline = $1 ORDER BY partition, first, next";
        let rows = self.query("read the losses", LOSSES, &[&self.pipeline])?;
        Ok(rows.iter().map(|row| read_loss(row.get(0), row.get(1), row.get(2))).collect())
    }

    fn committed(&mut self, sink: &str) -> Result<(), LedgerError> {
        const COMMITTED: &str =
            "INSERT INTO headwater_sinks (pipeline, sink) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        let pipeline = self.pipeline.clone();
        self.transact("record the first commit of a sink", async |transaction| {
            transaction.execute(COMMITTED, &[&pipeline, &sink]).await.map(|_| Ok(()))
        })
    }

    fn committed_sinks(&mut self) -> Result<Vec<String>, LedgerError> {
        const SINKS: &str = "SELECT sink FROM headwater_sinks WHERE pipeline = $1 ORDER BY sink";
        let rows = self.query("read the sinks", SINKS, &[&self.pipeline])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    fn attempt(&mut self, durable: Epoch) -> Result<u64, LedgerError> {
        const ATTEMPT: &str = "
            INSERT INTO headwater_attempts AS before (pipeline, durable, attempts) VALUES ($1, $2, 1)
            ON CONFLICT (pipeline) DO UPDATE SET durable = excluded.durable,
            attempts = CASE WHEN before.durable = excluded.durable THEN before.attempts + 1 ELSE 1 END
            RETURNING attempts";
        let (pipeline, durable, mut all) = (self.pipeline.clone(), durable.0 as i64, 1_i64);
        self.transact("record the start of a run", async |transaction| {
            all = transaction.query_one(ATTEMPT, &[&pipeline, &durable]).await?.get(0);
            Ok(Ok(()))
        })?;
        Ok(all as u64 - 1)
    }

    fn attempts(&mut self, durable: Epoch) -> Result<u64, LedgerError> {
        const ATTEMPTS: &str = "SELECT attempts FROM headwater_attempts WHERE pipeline = $1 AND durable = $2";
        let rows = self.query("read the attempts", ATTEMPTS, &[&self.pipeline, &(durable.0 as i64)])?;
        Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0)) as u64)
    }

    fn ended(&mut self) -> Result<(), LedgerError> {
        const ENDED: &str = "DELETE FROM headwater_attempts WHERE pipeline = $1";
        let pipeline = self.pipeline.clone();
        self.transact("record the end of a run", async |transaction| {
            transaction.execute(ENDED, &[&pipeline]).await.map(|_| Ok(()))
        })
    }

    fn put_takeovers(&mut self, Takeovers { count, last_ms }: Takeovers) -> Result<(), LedgerError> {
        const PUT: &str = "
            INSERT INTO headwater_takeovers (pipeline, count, last_ms) VALUES ($1, $2, $3)
            ON CONFLICT (pipeline) DO UPDATE SET count = excluded.count, last_ms = excluded.last_ms";
        self.query("record a takeover", PUT, &[&self.pipeline, &(count as i64), &last_ms]).map(drop)
    }

    fn takeovers(&mut self) -> Result<Option<Takeovers>, LedgerError> {
        const TAKEOVERS: &str = "SELECT count, last_ms FROM headwater_takeovers WHERE pipeline = $1";
        let rows = self.query("read the takeovers", TAKEOVERS, &[&self.pipeline])?;
        let row = |row: &Row| Takeovers { count: row.get::<_, i64>(0) as u64, last_ms: row.get(1) };
        Ok(rows.first().map(row))
    }

    fn begin(&mut self, genesis: &Genesis) -> Result<(), LedgerError> {
        const BEGIN: &str = "
            UPDATE headwater_ledger SET starts = coalesce(starts, $3), meaning = coalesce(meaning, $4)
            WHERE pipeline = $1 AND generation = $2
            RETURNING 1";
        let (generation, starts) = (self.generation.0 as i64, format::encode_starts(&genesis.starts));
        self.write(
            "record the beginning of the pipeline",
            BEGIN,
            &[&self.pipeline, &generation, &starts, &genesis.semantics],
        )
        .map(drop)
    }

    fn epochs(&mut self, after: Epoch) -> Result<Vec<EpochRecord>, LedgerError> {
        const EPOCHS: &str = "SELECT through, epochs FROM headwater_bindings WHERE pipeline = $1 AND through > $2 ORDER BY through";
        let rows = self.query("read the bindings", EPOCHS, &[&self.pipeline, &(after.0 as i64)])?;
        // This is read after the rounds, so that rounds that were pruned in the meantime are detected.
        let pruned = self.pruned()?;
        check_not_pruned(&self.pipeline, after, pruned)?;
        let mut epochs = Vec::new();
        for row in rows {
            epochs.extend(read_round(&self.pipeline, row.get(0), row.get(1))?);
        }
        epochs.retain(|record| record.epoch > after);
        Ok(epochs)
    }

    fn pruned(&mut self) -> Result<Epoch, LedgerError> {
        const PRUNED: &str = "SELECT through FROM headwater_pruned WHERE pipeline = $1";
        let rows = self.query("read the last pruned epoch", PRUNED, &[&self.pipeline])?;
        Ok(Epoch(rows.first().map_or(0, |row| row.get::<_, i64>(0)) as u64))
    }

    fn manifests(&mut self) -> Result<Vec<StoredManifest>, LedgerError> {
        const MANIFESTS: &str =
            "SELECT epoch, manifest FROM headwater_manifests WHERE pipeline = $1 ORDER BY epoch";
        let rows = self.query("read the manifests", MANIFESTS, &[&self.pipeline])?;
        Ok(rows.iter().map(|row| read_manifest(&self.pipeline, row.get(0), row.get(1))).collect())
    }

    fn append(&mut self, epochs: &[EpochRecord]) -> Result<(), LedgerError> {
        // After waiting for the lock, PostgreSQL reads the row again: it sees the generation of a successor.
        const APPEND: &str = "
            WITH mine AS (
                SELECT 1 FROM headwater_ledger WHERE pipeline = $1 AND generation = $2 FOR UPDATE
            )
            INSERT INTO headwater_bindings (pipeline, through, epochs) SELECT $1, $3, $4 FROM mine RETURNING 1";
        let Some(last) = epochs.last() else { return Ok(()) };
        let (generation, through, bytes) =
            (self.generation.0 as i64, last.epoch.0 as i64, format::encode(epochs));
        self.write("record epochs", APPEND, &[&self.pipeline, &generation, &through, &bytes]).map(drop)
    }

    fn conclude(&mut self, manifest: &Manifest, keep: usize) -> Result<(), LedgerError> {
        let (epoch, bytes) = write_manifest(manifest)?;
        let pipeline = self.pipeline.clone();
        self.transact("record a checkpoint", async |transaction| {
            let all = "SELECT epoch FROM headwater_manifests WHERE pipeline = $1 ORDER BY epoch";
            let rows = transaction.query(all, &[&pipeline]).await?;
            let mut epochs: Vec<_> = rows.iter().map(|row| Epoch(row.get::<_, i64>(0) as u64)).collect();
            let checked = check_ascending(&pipeline, manifest.epoch, &epochs);
            if checked.is_err() {
                return Ok(checked);
            }
            transaction.execute(MANIFEST, &[&pipeline, &epoch, &bytes]).await?;
            epochs.push(manifest.epoch);
            if let Prune::Before(oldest) = prune(&epochs, keep) {
                prune_to(transaction, &pipeline, oldest).await?;
            }
            Ok(Ok(()))
        })
    }

    fn amend(&mut self, semantics: &str, manifest: Option<&Manifest>) -> Result<(), LedgerError> {
        let written = manifest.map(write_manifest).transpose()?;
        let pipeline = self.pipeline.clone();
        self.transact("record changed semantics", async |transaction| {
            let last: Option<i64> = transaction.query_one(LAST, &[&pipeline]).await?.get(0);
            let checked = check_nothing_after(&pipeline, manifest, last.map(|last| Epoch(last as u64)));
            if checked.is_err() {
                return Ok(checked);
            }
            let amend = "UPDATE headwater_ledger SET meaning = $2 WHERE pipeline = $1";
            transaction.execute(amend, &[&pipeline, &semantics]).await?;
            if let Some((epoch, bytes)) = &written {
                let delete = "DELETE FROM headwater_manifests WHERE pipeline = $1";
                transaction.execute(delete, &[&pipeline]).await?;
                transaction.execute(MANIFEST, &[&pipeline, epoch, bytes]).await?;
                prune_to(transaction, &pipeline, Epoch(*epoch as u64)).await?;
            }
            Ok(Ok(()))
        })
    }
}

const MANIFEST: &str = "INSERT INTO headwater_manifests (pipeline, epoch, manifest) VALUES ($1, $2, $3)";

/// The last recorded epoch, of a round or a manifest.
const LAST: &str = "SELECT max(last) FROM (
    SELECT max(through) AS last FROM headwater_bindings WHERE pipeline = $1
    UNION ALL SELECT max(epoch) FROM headwater_manifests WHERE pipeline = $1) AS recorded";

/// The outcome of the writes in a transaction: the transaction is committed if it is `Ok`.
type WriteOutcome = Result<Result<(), LedgerError>, tokio_postgres::Error>;

impl PostgresLedger {
    /// Executes one transaction under the lock of the pipeline's row. A transaction that is not committed is rolled
    /// back at once: the session is not driven between calls, and a successor would wait for the lock.
    fn transact(
        &mut self,
        action: &str,
        write: impl AsyncFnOnce(&Transaction<'_>) -> WriteOutcome,
    ) -> Result<(), LedgerError> {
        let PostgresLedger { pipeline, runtime, client, generation } = self;
        let transacted = async {
            let transaction =
                client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
            let written = async {
                let lock = "SELECT generation FROM headwater_ledger WHERE pipeline = $1 FOR UPDATE";
                let current = transaction.query_opt(lock, &[&*pipeline]).await?.map(|row| row.get(0));
                if current != Some(generation.0 as i64) {
                    return Ok(Err(ownership_error(pipeline, current)));
                }
                write(&transaction).await
            };
            match written.await {
                Ok(Ok(())) => transaction.commit().await.map(Ok),
                other => {
                    let undone = transaction.rollback().await;
                    other.and_then(|written| undone.map(|()| written))
                }
            }
        };
        match runtime.block_on(async { tokio::time::timeout(TIMEOUT, transacted).await }) {
            Ok(Ok(written)) => written,
            Ok(Err(error)) => Err(unavailable(action, describe(error))),
            Err(elapsed) => Err(unavailable(action, elapsed)),
        }
    }
}

/// Deletes the manifests and rounds before the manifest of `oldest`.
async fn prune_to(
    transaction: &Transaction<'_>,
    pipeline: &str,
    oldest: Epoch,
) -> Result<(), tokio_postgres::Error> {
    for statement in [
        "DELETE FROM headwater_manifests WHERE pipeline = $1 AND epoch < $2",
        "DELETE FROM headwater_bindings WHERE pipeline = $1 AND through <= $2",
        "INSERT INTO headwater_pruned (pipeline, through) VALUES ($1, $2)
         ON CONFLICT (pipeline) DO UPDATE SET through = excluded.through",
    ] {
        transaction.execute(statement, &[&pipeline, &(oldest.0 as i64)]).await?;
    }
    let version = "UPDATE headwater_ledger SET version = $2 WHERE pipeline = $1";
    transaction.execute(version, &[&pipeline, &PRUNED]).await.map(drop)
}

/// Returns the message of the server, if there is one.
fn describe(error: tokio_postgres::Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error.as_db_error() {
        Some(database_error) => {
            format!("{} ({})", database_error.message(), database_error.code().code()).into()
        }
        None => error.into(),
    }
}
