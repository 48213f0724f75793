//! A ledger in PostgreSQL: wherever process 0 runs, it finds it.

use std::time::Duration;

use headwater_dataflows::Epoch;
use headwater_sinks::postgres::parse_url;
use headwater_sinks::{Generation, Lineage};
use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

use super::{
    Claim, Genesis, Ledger, LedgerError, format, lost, new_lineage, read_genesis, read_round, unavailable,
};
use crate::coordination::EpochRecord;

/// What the database holds, in version 1. The lock keeps two first starts apart: its number is "hw-ledgr" in ASCII.
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
COMMIT;
";
const VERSION: i64 = 1;

/// Settings of the session. A writer that is paused or cut off must not hold its lock for ever.
const OPTIONS: &str = "-c synchronous_commit=on -c lock_timeout=10s -c statement_timeout=30s \
                       -c idle_in_transaction_session_timeout=10s -c client_min_messages=warning";

/// How long connecting, or one answer, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
pub struct PostgresLedger {
    pipeline: String,
    runtime: Runtime,
    client: Client,
    generation: Generation,
}

impl PostgresLedger {
    /// Connects, and makes the tables if they do not exist.
    ///
    /// # Errors
    /// If the address is none or demands TLS, which this build does not have, or the server does not do as asked.
    pub fn open(url: &str, pipeline: &str) -> Result<PostgresLedger, LedgerError> {
        let mut config = parse_url(url).map_err(LedgerError::Refused)?;
        let options = [config.get_options().unwrap_or_default(), OPTIONS].join(" ");
        config
            .options(options)
            .application_name("headwater-ledger")
            .connect_timeout(PATIENCE)
            .tcp_user_timeout(PATIENCE)
            .keepalives_idle(PATIENCE);
        let failed = |error| unavailable("open PostgreSQL", described(error));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| unavailable("start a runtime", error))?;
        let client = runtime.block_on(async {
            let (client, connection) = config.connect(NoTls).await?;
            // Whoever uses the client is told of the error, too.
            tokio::spawn(async move { drop(connection.await) });
            client.batch_execute(TABLES).await?;
            Ok(client)
        });
        let client = client.map_err(failed)?;
        Ok(PostgresLedger { pipeline: pipeline.to_owned(), runtime, client, generation: Generation(0) })
    }

    fn query(
        &self,
        action: &str,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, LedgerError> {
        self.runtime.block_on(async {
            match tokio::time::timeout(PATIENCE, self.client.query(statement, values)).await {
                Ok(answer) => answer.map_err(|error| unavailable(action, described(error))),
                Err(elapsed) => Err(unavailable(action, elapsed)),
            }
        })
    }

    /// A statement that names the row it has written, if the pipeline was ours to write.
    fn write(
        &self,
        action: &str,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<(), LedgerError> {
        if !self.query(action, statement, values)?.is_empty() {
            return Ok(());
        }
        let current = "SELECT generation FROM headwater_ledger WHERE pipeline = $1";
        let rows = self.query(action, current, &[&self.pipeline])?;
        Err(lost(&self.pipeline, rows.first().map(|row| row.get(0))))
    }
}

impl Ledger for PostgresLedger {
    fn claim(&mut self) -> Result<Claim, LedgerError> {
        const CLAIM: &str = "
            INSERT INTO headwater_ledger AS ledger (pipeline, version, lineage, generation)
            VALUES ($1, $2, $3, 1)
            ON CONFLICT (pipeline) DO UPDATE SET generation = ledger.generation + 1
            WHERE ledger.version = excluded.version
            RETURNING lineage, generation, starts, meaning";
        let lineage = new_lineage()?.0;
        let rows = self.query("take the pipeline over", CLAIM, &[&self.pipeline, &VERSION, &lineage])?;
        let Some(row) = rows.first() else {
            let reason = format!("the database has another version than {VERSION}, which this program knows");
            return Err(LedgerError::Refused(reason));
        };
        self.generation = Generation(row.get::<_, i64>(1) as u64);
        let genesis = read_genesis(&self.pipeline, row.get(2), row.get(3))?;
        Ok(Claim { lineage: Lineage(row.get(0)), generation: self.generation, genesis })
    }

    fn begin(&mut self, genesis: &Genesis) -> Result<(), LedgerError> {
        const BEGIN: &str = "
            UPDATE headwater_ledger SET starts = coalesce(starts, $3), meaning = coalesce(meaning, $4)
            WHERE pipeline = $1 AND generation = $2
            RETURNING 1";
        let (generation, starts) = (self.generation.0 as i64, format::encode_starts(&genesis.starts));
        self.write("begin the pipeline", BEGIN, &[&self.pipeline, &generation, &starts, &genesis.meaning])
    }

    fn epochs(&mut self, after: Epoch) -> Result<Vec<EpochRecord>, LedgerError> {
        const EPOCHS: &str = "SELECT through, epochs FROM headwater_bindings WHERE pipeline = $1 AND through > $2 ORDER BY through";
        let mut epochs = Vec::new();
        for row in self.query("read the bindings", EPOCHS, &[&self.pipeline, &(after.0 as i64)])? {
            epochs.extend(read_round(&self.pipeline, row.get(0), row.get(1))?);
        }
        epochs.retain(|record| record.epoch > after);
        Ok(epochs)
    }

    fn append(&mut self, epochs: &[EpochRecord]) -> Result<(), LedgerError> {
        // The locked row is read anew after waiting for whoever held it: a successor's generation is seen.
        const APPEND: &str = "
            WITH mine AS (
                SELECT 1 FROM headwater_ledger WHERE pipeline = $1 AND generation = $2 FOR UPDATE
            )
            INSERT INTO headwater_bindings (pipeline, through, epochs) SELECT $1, $3, $4 FROM mine RETURNING 1";
        let Some(last) = epochs.last() else { return Ok(()) };
        let (generation, through, bytes) =
            (self.generation.0 as i64, last.epoch.0 as i64, format::encode(epochs));
        self.write("record epochs", APPEND, &[&self.pipeline, &generation, &through, &bytes])
    }
}

/// The server's own words, where there are any.
fn described(error: tokio_postgres::Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error.as_db_error() {
        Some(told) => format!("{} ({})", told.message(), told.code().code()).into(),
        None => error.into(),
    }
}
