//! A ledger in a SQLite file: for one process, or on a volume that follows process 0.

use std::path::{Path, PathBuf};
use std::time::Duration;

use headwater_dataflows::Epoch;
use headwater_sinks::{Generation, Lineage};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{
    Claim, Genesis, Ledger, LedgerError, format, lost, new_lineage, read_genesis, read_round, unavailable,
};
use crate::coordination::EpochRecord;

/// What the file holds, in version 1.
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
";
const VERSION: i64 = 1;

/// See the module.
pub struct SqliteLedger {
    pipeline: String,
    path: PathBuf,
    connection: Connection,
    generation: Generation,
}

impl SqliteLedger {
    /// Opens the file, made if it does not exist.
    ///
    /// # Errors
    /// If it cannot be opened or is not a SQLite database.
    pub fn open(path: &Path, pipeline: &str) -> Result<SqliteLedger, LedgerError> {
        let connect = || {
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

    /// One transaction that writes only if the pipeline is still ours.
    fn write(
        &mut self,
        action: &str,
        write: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), LedgerError> {
        let SqliteLedger { pipeline, path, connection, generation } = self;
        let outcome = (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let current: Option<i64> = transaction
                .prepare_cached("SELECT generation FROM headwater_ledger WHERE pipeline = ?")?
                .query_row([&*pipeline], |row| row.get(0))
                .optional()?;
            if current == Some(generation.0 as i64) {
                write(&transaction)?;
                transaction.commit()?;
            }
            Ok(current)
        })();
        match outcome {
            Ok(Some(current)) if current == generation.0 as i64 => Ok(()),
            Ok(current) => Err(lost(pipeline, current)),
            Err(error) => {
                let error: rusqlite::Error = error;
                Err(unavailable(format!("{action} in {}", path.display()), error))
            }
        }
    }
}

impl Ledger for SqliteLedger {
    fn claim(&mut self) -> Result<Claim, LedgerError> {
        type Row = (i64, String, i64, Option<Vec<u8>>, Option<String>);
        let fresh = new_lineage()?;
        let SqliteLedger { pipeline, path, connection, .. } = self;
        let claimed = (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute(
                "INSERT INTO headwater_ledger (pipeline, version, lineage, generation) VALUES (?, ?, ?, 0) \
                 ON CONFLICT (pipeline) DO NOTHING",
                params![*pipeline, VERSION, fresh.0],
            )?;
            let row: Row = transaction.query_row(
                "UPDATE headwater_ledger SET generation = generation + 1 WHERE pipeline = ? \
                 RETURNING version, lineage, generation, starts, meaning",
                [&*pipeline],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
            )?;
            if row.0 == VERSION {
                transaction.commit()?;
            }
            Ok(row)
        })();
        let (version, lineage, generation, starts, meaning) = claimed
            .map_err(|error: rusqlite::Error| unavailable(format!("take over {}", path.display()), error))?;
        if version != VERSION {
            return Err(LedgerError::Refused(format!(
                "{} has version {version}, and this program knows {VERSION}",
                path.display()
            )));
        }
        self.generation = Generation(generation as u64);
        let genesis = read_genesis(&self.pipeline, starts, meaning)?;
        Ok(Claim { lineage: Lineage(lineage), generation: self.generation, genesis })
    }

    fn begin(&mut self, genesis: &Genesis) -> Result<(), LedgerError> {
        let (pipeline, starts) = (self.pipeline.clone(), format::encode_starts(&genesis.starts));
        self.write("begin the pipeline", |transaction| {
            transaction
                .execute(
                    "UPDATE headwater_ledger SET starts = ?, meaning = ? WHERE pipeline = ? AND starts IS NULL",
                    params![starts, genesis.meaning, pipeline],
                )
                .map(drop)
        })
    }

    fn epochs(&mut self, after: Epoch) -> Result<Vec<EpochRecord>, LedgerError> {
        let rounds = (|| {
            self.connection
                .prepare(
                    "SELECT through, epochs FROM headwater_bindings WHERE pipeline = ? AND through > ? ORDER BY through",
                )?
                .query_map(params![self.pipeline, after.0 as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<Vec<(i64, Vec<u8>)>>>()
        })();
        let rounds = rounds
            .map_err(|error: rusqlite::Error| unavailable(format!("read {}", self.path.display()), error))?;
        let mut epochs = Vec::new();
        for (through, bytes) in rounds {
            epochs.extend(read_round(&self.pipeline, through, &bytes)?);
        }
        epochs.retain(|record| record.epoch > after);
        Ok(epochs)
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
}
