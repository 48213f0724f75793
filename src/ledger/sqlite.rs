//! A ledger in a SQLite file, for one process, or on a volume that moves with process 0.

use std::path::{Path, PathBuf};
use std::time::Duration;

use headwater_dataflows::Epoch;
use headwater_sinks::{Generation, LedgerId, private};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::{
    Claim, Genesis, Ledger, LedgerError, PRUNED, StoredManifest, UNPRUNED, check_ascending, check_not_pruned,
    check_nothing_after, check_version, format, new_ledger_id, ownership_error, read_genesis, read_loss,
    read_manifest, read_round, unavailable, write_manifest,
};
use crate::coordination::{EpochRecord, Loss, Manifest, Prune, Skip, Takeovers, prune};

/// The tables of the ledger, in versions 1 and 2.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS headwater_ledger (
    pipeline TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    lineage TEXT NOT NULL,
    generation INTEGER NOT NULL,
    starts BLOB,
    meaning TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS headwater_bindings (
    pipeline TEXT NOT NULL,
    through INTEGER NOT NULL,
    epochs BLOB NOT NULL,
    PRIMARY KEY (pipeline, through)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS headwater_manifests (
    pipeline TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    manifest BLOB NOT NULL,
    PRIMARY KEY (pipeline, epoch)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS headwater_writers (
    pipeline TEXT PRIMARY KEY,
    processes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS headwater_skips (
    pipeline TEXT NOT NULL,
    sink TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    output TEXT NOT NULL,
    PRIMARY KEY (pipeline, sink, epoch, output)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS headwater_losses (
    pipeline TEXT NOT NULL,
    partition INTEGER NOT NULL,
    first INTEGER NOT NULL,
    next INTEGER NOT NULL,
    PRIMARY KEY (pipeline, partition, first, next)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS headwater_sinks (
    pipeline TEXT NOT NULL,
    sink TEXT NOT NULL,
    PRIMARY KEY (pipeline, sink)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS headwater_attempts (
    pipeline TEXT PRIMARY KEY,
    durable INTEGER NOT NULL,
    attempts INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS headwater_takeovers (
    pipeline TEXT PRIMARY KEY,
    count INTEGER NOT NULL,
    last_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS headwater_pruned (
    pipeline TEXT PRIMARY KEY,
    through INTEGER NOT NULL
) WITHOUT ROWID;
";

/// A ledger in a SQLite file.
pub struct SqliteLedger {
    pipeline: String,
    path: PathBuf,
    connection: Connection,
    generation: Generation,
}

impl SqliteLedger {
    /// Opens the file, and creates it if it does not exist.
    ///
    /// # Errors
    /// If the file cannot be opened or is not a SQLite database.
    pub fn open(path: &Path, pipeline: &str) -> Result<SqliteLedger, LedgerError> {
        let connect = || {
            // SQLite reports problems of the path better.
            let _ = private::file(path);
            let connection = Connection::open(path)?;
            connection.busy_timeout(Duration::from_secs(10))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.execute_batch(TABLES)?;
            Ok(connection)
        };
        let connection = connect()
            .map_err(|error: rusqlite::Error| unavailable(format!("open {}", path.display()), error))?;
        let (pipeline, path) = (pipeline.to_owned(), path.to_owned());
        Ok(SqliteLedger { pipeline, path, connection, generation: Generation(0) })
    }

    fn read<T>(&self, read: impl FnOnce(&Connection, &str) -> rusqlite::Result<T>) -> Result<T, LedgerError> {
        read(&self.connection, &self.pipeline)
            .map_err(|error| unavailable(format!("read {}", self.path.display()), error))
    }

    /// Executes one transaction, which writes only if this run still owns the pipeline.
    fn write<T>(
        &mut self,
        action: &str,
        write: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        let SqliteLedger { pipeline, path, connection, generation } = self;
        let outcome = (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let current: Option<i64> = transaction
                .prepare_cached("SELECT generation FROM headwater_ledger WHERE pipeline = ?")?
                .query_row([&*pipeline], |row| row.get(0))
                .optional()?;
            if current != Some(generation.0 as i64) {
                return Ok(Err(current));
            }
            let written = write(&transaction)?;
            transaction.commit()?;
            Ok(Ok(written))
        })();
        match outcome {
            Ok(Ok(written)) => Ok(written),
            Ok(Err(current)) => Err(ownership_error(pipeline, current)),
            Err(error) => {
                let error: rusqlite::Error = error;
                Err(unavailable(format!("{action} in {}", path.display()), error))
            }
        }
    }
}

/// The row of a pipeline: version, ledger id, generation, start offsets, semantics.
type Pipeline = (i64, String, i64, Option<Vec<u8>>, Option<String>);

fn pipeline_row(row: &Row<'_>) -> rusqlite::Result<Pipeline> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}

fn read_claim(pipeline: &str, row: Pipeline) -> Result<Claim, LedgerError> {
    let (version, ledger_id, generation, starts, semantics) = row;
    check_version(pipeline, version)?;
    let genesis = read_genesis(pipeline, starts, semantics)?;
    Ok(Claim { ledger_id: LedgerId(ledger_id), generation: Generation(generation as u64), genesis })
}

impl Ledger for SqliteLedger {
    fn claim(&mut self) -> Result<Claim, LedgerError> {
        let new_id = new_ledger_id()?;
        let SqliteLedger { pipeline, path, connection, .. } = self;
        let claimed = (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute(
                "INSERT INTO headwater_ledger (pipeline, version, lineage, generation) VALUES (?, ?, ?, 0) \
                 ON CONFLICT (pipeline) DO NOTHING",
                params![*pipeline, UNPRUNED, new_id.0],
            )?;
            let row = transaction.query_row(
                "UPDATE headwater_ledger SET generation = generation + 1 WHERE pipeline = ? \
                 RETURNING version, lineage, generation, starts, meaning",
                [&*pipeline],
                pipeline_row,
            )?;
            if check_version(pipeline, row.0).is_ok() {
                transaction.commit()?;
            }
            Ok(row)
        })();
        let row = claimed.map_err(|error: rusqlite::Error| {
            unavailable(format!("claim the pipeline in {}", path.display()), error)
        })?;
        let claim = read_claim(pipeline, row)?;
        self.generation = claim.generation;
        Ok(claim)
    }

    fn peek(&mut self) -> Result<Option<Claim>, LedgerError> {
        const PEEK: &str =
            "SELECT version, lineage, generation, starts, meaning FROM headwater_ledger WHERE pipeline = ?";
        let row = self
            .read(|connection, pipeline| connection.query_row(PEEK, [pipeline], pipeline_row).optional())?;
        row.map(|row| read_claim(&self.pipeline, row)).transpose()
    }

    fn register_processes(&mut self, processes: usize) -> Result<usize, LedgerError> {
        const REGISTER: &str = "INSERT INTO headwater_writers (pipeline, processes) VALUES (?, ?)
            ON CONFLICT (pipeline) DO UPDATE SET processes = max(processes, excluded.processes)
            RETURNING processes";
        let pipeline = self.pipeline.clone();
        self.write("register the processes", |transaction| {
            let values = params![pipeline, processes as i64];
            transaction
                .query_row(REGISTER, values, |row| row.get::<_, i64>(0))
                .map(|max_processes| max_processes as usize)
        })
    }

    fn skip(&mut self, Skip { sink, epoch, output }: &Skip) -> Result<(), LedgerError> {
        const SKIP: &str = "INSERT INTO headwater_skips (pipeline, sink, epoch, output) VALUES (?, ?, ?, ?)
            ON CONFLICT DO NOTHING";
        let pipeline = self.pipeline.clone();
        self.write("record a skip", |transaction| {
            transaction.execute(SKIP, params![pipeline, sink, epoch.0 as i64, output]).map(drop)
        })
    }

    fn skips(&mut self) -> Result<Vec<Skip>, LedgerError> {
        const SKIPS: &str =
            "SELECT sink, epoch, output FROM headwater_skips WHERE pipeline = ? ORDER BY epoch, sink, output";
        self.read(|connection, pipeline| {
            let skip = |row: &Row<'_>| {
                let epoch = Epoch(row.get::<_, i64>(1)? as u64);
                Ok(Skip { sink: row.get(0)?, epoch, output: row.get(2)? })
            };
            connection.prepare_cached(SKIPS)?.query_map([pipeline], skip)?.collect()
        })
    }

    fn lose(&mut self, Loss { partition, first, next }: &Loss) -> Result<(), LedgerError> {
        const LOSE: &str =
            "INSERT INTO headwater_losses (pipeline, partition, first, next) VALUES (?, ?, ?, ?)
            ON CONFLICT DO NOTHING";
        let pipeline = self.pipeline.clone();
        self.write("record a loss", |transaction| {
            transaction.execute(LOSE, params![pipeline, partition.0, first.0, next.0]).map(drop)
        })
    }

    fn losses(&mut self) -> Result<Vec<Loss>, LedgerError> {
        const LOSSES: &str = "SELECT partition, first, next FROM headwater_losses WHERE pipeline = ? ORDER BY partition, first, next";
        self.read(|connection, pipeline| {
            let loss = |row: &Row<'_>| Ok(read_loss(row.get(0)?, row.get(1)?, row.get(2)?));
            connection.prepare_cached(LOSSES)?.query_map([pipeline], loss)?.collect()
        })
    }

    fn committed(&mut self, sink: &str) -> Result<(), LedgerError> {
        const COMMITTED: &str =
            "INSERT INTO headwater_sinks (pipeline, sink) VALUES (?, ?) ON CONFLICT DO NOTHING";
        let pipeline = self.pipeline.clone();
        self.write("record the first commit of a sink", |transaction| {
            transaction.execute(COMMITTED, params![pipeline, sink]).map(drop)
        })
    }

    fn committed_sinks(&mut self) -> Result<Vec<String>, LedgerError> {
        const SINKS: &str = "SELECT sink FROM headwater_sinks WHERE pipeline = ? ORDER BY sink";
        self.read(|connection, pipeline| {
            connection.prepare_cached(SINKS)?.query_map([pipeline], |row| row.get(0))?.collect()
        })
    }

    fn attempt(&mut self, durable: Epoch) -> Result<u64, LedgerError> {
        const ATTEMPT: &str = "INSERT INTO headwater_attempts (pipeline, durable, attempts) VALUES (?, ?, 1)
            ON CONFLICT (pipeline) DO UPDATE SET durable = excluded.durable,
            attempts = CASE WHEN durable = excluded.durable THEN attempts + 1 ELSE 1 END
            RETURNING attempts";
        let pipeline = self.pipeline.clone();
        self.write("record the start of a run", |transaction| {
            let values = params![pipeline, durable.0 as i64];
            transaction.query_row(ATTEMPT, values, |row| row.get::<_, i64>(0)).map(|all| all as u64 - 1)
        })
    }

    fn attempts(&mut self, durable: Epoch) -> Result<u64, LedgerError> {
        const ATTEMPTS: &str = "SELECT attempts FROM headwater_attempts WHERE pipeline = ? AND durable = ?";
        let attempts = self.read(|connection, pipeline| {
            let values = params![pipeline, durable.0 as i64];
            connection.query_row(ATTEMPTS, values, |row| row.get::<_, i64>(0)).optional()
        })?;
        Ok(attempts.unwrap_or(0) as u64)
    }

    fn ended(&mut self) -> Result<(), LedgerError> {
        let pipeline = self.pipeline.clone();
        self.write("record the end of a run", |transaction| {
            transaction.execute("DELETE FROM headwater_attempts WHERE pipeline = ?", [&pipeline]).map(drop)
        })
    }

    fn put_takeovers(&mut self, Takeovers { count, last_ms }: Takeovers) -> Result<(), LedgerError> {
        const PUT: &str =
            "INSERT OR REPLACE INTO headwater_takeovers (pipeline, count, last_ms) VALUES (?, ?, ?)";
        let written = self.connection.execute(PUT, params![self.pipeline, count as i64, last_ms]);
        let failed = |error| unavailable(format!("record a takeover in {}", self.path.display()), error);
        written.map(drop).map_err(failed)
    }

    fn takeovers(&mut self) -> Result<Option<Takeovers>, LedgerError> {
        const TAKEOVERS: &str = "SELECT count, last_ms FROM headwater_takeovers WHERE pipeline = ?";
        self.read(|connection, pipeline| {
            let row =
                |row: &Row<'_>| Ok(Takeovers { count: row.get::<_, i64>(0)? as u64, last_ms: row.get(1)? });
            connection.query_row(TAKEOVERS, [pipeline], row).optional()
        })
    }

    fn begin(&mut self, genesis: &Genesis) -> Result<(), LedgerError> {
        let (pipeline, starts) = (self.pipeline.clone(), format::encode_starts(&genesis.starts));
        self.write("record the beginning of the pipeline", |transaction| {
            transaction
                .execute(
                    "UPDATE headwater_ledger SET starts = ?, meaning = ? WHERE pipeline = ? AND starts IS NULL",
                    params![starts, genesis.semantics, pipeline],
                )
                .map(drop)
        })
    }

    fn epochs(&mut self, after: Epoch) -> Result<Vec<EpochRecord>, LedgerError> {
        const ROUNDS: &str = "SELECT through, epochs FROM headwater_bindings WHERE pipeline = ? AND through > ? ORDER BY through";
        let rounds: Vec<(i64, Vec<u8>)> = self.read(|connection, pipeline| {
            connection
                .prepare_cached(ROUNDS)?
                .query_map(params![pipeline, after.0 as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })?;
        // This is read after the rounds, so that rounds that were pruned in the meantime are detected.
        let pruned = self.pruned()?;
        check_not_pruned(&self.pipeline, after, pruned)?;
        let mut epochs = Vec::new();
        for (through, bytes) in rounds {
            epochs.extend(read_round(&self.pipeline, through, &bytes)?);
        }
        epochs.retain(|record| record.epoch > after);
        Ok(epochs)
    }

    fn pruned(&mut self) -> Result<Epoch, LedgerError> {
        const PRUNED: &str = "SELECT through FROM headwater_pruned WHERE pipeline = ?";
        let through = self.read(|connection, pipeline| {
            connection.query_row(PRUNED, [pipeline], |row| row.get(0)).optional()
        })?;
        Ok(Epoch(through.unwrap_or(0i64) as u64))
    }

    fn manifests(&mut self) -> Result<Vec<StoredManifest>, LedgerError> {
        const MANIFESTS: &str =
            "SELECT epoch, manifest FROM headwater_manifests WHERE pipeline = ? ORDER BY epoch";
        self.read(|connection, pipeline| {
            connection
                .prepare_cached(MANIFESTS)?
                .query_map([pipeline], |row| {
                    Ok(read_manifest(pipeline, row.get(0)?, row.get_ref(1)?.as_blob()?))
                })?
                .collect()
        })
    }

    fn append(&mut self, epochs: &[EpochRecord]) -> Result<(), LedgerError> {
        let Some(last) = epochs.last() else { return Ok(()) };
        let (pipeline, through, bytes) = (self.pipeline.clone(), last.epoch.0 as i64, format::encode(epochs));
        self.write("record epochs", |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO headwater_bindings (pipeline, through, epochs) VALUES (?, ?, ?)",
                )?
                .execute(params![pipeline, through, bytes])
                .map(drop)
        })
    }

    fn conclude(&mut self, manifest: &Manifest, keep: usize) -> Result<(), LedgerError> {
        let (epoch, bytes) = write_manifest(manifest)?;
        let pipeline = self.pipeline.clone();
        let before = self.write("record a checkpoint", |transaction| {
            let before: Vec<Epoch> = transaction
                .prepare_cached("SELECT epoch FROM headwater_manifests WHERE pipeline = ? ORDER BY epoch")?
                .query_map([&pipeline], |row| Ok(Epoch(row.get::<_, i64>(0)? as u64)))?
                .collect::<rusqlite::Result<_>>()?;
            if check_ascending(&pipeline, manifest.epoch, &before).is_err() {
                return Ok(before);
            }
            transaction.execute(MANIFEST, params![pipeline, epoch, bytes])?;
            let all = [&before[..], &[manifest.epoch]].concat();
            if let Prune::Before(oldest) = prune(&all, keep) {
                prune_to(transaction, &pipeline, oldest)?;
            }
            Ok(before)
        })?;
        check_ascending(&self.pipeline, manifest.epoch, &before)
    }

    fn amend(&mut self, semantics: &str, manifest: Option<&Manifest>) -> Result<(), LedgerError> {
        let written = manifest.map(write_manifest).transpose()?;
        let pipeline = self.pipeline.clone();
        self.write("record changed semantics", |transaction| {
            let last: Option<i64> = transaction.query_row(LAST, [&pipeline], |row| row.get(0))?;
            let checked = check_nothing_after(&pipeline, manifest, last.map(|last| Epoch(last as u64)));
            if checked.is_err() {
                return Ok(checked);
            }
            let amend = "UPDATE headwater_ledger SET meaning = ? WHERE pipeline = ?";
            transaction.execute(amend, params![semantics, pipeline])?;
            if let Some((epoch, bytes)) = written {
                transaction.execute("DELETE FROM headwater_manifests WHERE pipeline = ?", [&pipeline])?;
                transaction.execute(MANIFEST, params![pipeline, epoch, bytes])?;
                prune_to(transaction, &pipeline, Epoch(epoch as u64))?;
            }
            Ok(Ok(()))
        })?
    }
}

const MANIFEST: &str = "INSERT INTO headwater_manifests (pipeline, epoch, manifest) VALUES (?, ?, ?)";

/// The last recorded epoch, of a round or a manifest.
const LAST: &str = "SELECT max(last) FROM (
    SELECT max(through) AS last FROM headwater_bindings WHERE pipeline = ?1
    UNION ALL SELECT max(epoch) FROM headwater_manifests WHERE pipeline = ?1)";

/// Deletes the manifests and rounds before the manifest of `oldest`.
fn prune_to(transaction: &Transaction<'_>, pipeline: &str, oldest: Epoch) -> rusqlite::Result<()> {
    for statement in [
        "DELETE FROM headwater_manifests WHERE pipeline = ? AND epoch < ?",
        "DELETE FROM headwater_bindings WHERE pipeline = ? AND through <= ?",
        "INSERT INTO headwater_pruned (pipeline, through) VALUES (?, ?) \
         ON CONFLICT (pipeline) DO UPDATE SET through = excluded.through",
    ] {
        transaction.execute(statement, params![pipeline, oldest.0 as i64])?;
    }
    transaction
        .execute("UPDATE headwater_ledger SET version = ? WHERE pipeline = ?", params![PRUNED, pipeline])
        .map(drop)
}
