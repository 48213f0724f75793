//! The progress rows: the epoch through which each writer of each start has committed.

use headwater_dataflows::Epoch;
use tokio::time::timeout;

use super::ROUND_TIMEOUT;
use super::connection::{Address, Session, SessionError};
use crate::contract::{Generation, LedgerId, Progress, Shards};

/// The progress row of a writer. It has no epoch until the first commit.
pub(super) struct Row {
    pub ledger_id: LedgerId,
    pub generation: Generation,
    shards: Shards,
    through: Option<Epoch>,
}

impl Row {
    /// Returns the progress of the writer; `None` if it has not committed.
    pub fn into_progress(self) -> Option<Progress> {
        let Row { ledger_id, generation, shards, through } = self;
        through.map(|through| Progress { ledger_id, generation, shards, through })
    }
}

/// Reads all progress rows of a sink.
pub(super) async fn read(session: &Session, pipeline: &str, sink: &str) -> Result<Vec<Row>, SessionError> {
    let all = "SELECT lineage, generation, shards, through FROM headwater_progress
               WHERE pipeline = $1 AND sink = $2 ORDER BY generation, writer";
    let rows = session.client.query(all, &[&pipeline, &sink]).await?;
    let rows = rows.iter().map(|row| Row {
        ledger_id: LedgerId(row.get(0)),
        generation: Generation(row.get::<_, i64>(1) as u64),
        shards: Shards(row.get::<_, i64>(2) as u64),
        through: row.get::<_, Option<i64>>(3).map(|through| Epoch(through as u64)),
    });
    Ok(rows.collect())
}

/// Returns another pipeline that has written to these tables, if there is one. Their keys do not contain the pipeline,
/// so two pipelines would overwrite each other's rows.
pub(super) async fn other_pipeline(
    session: &Session,
    pipeline: &str,
) -> Result<Option<String>, SessionError> {
    let other = "SELECT pipeline FROM headwater_progress WHERE pipeline <> $1 LIMIT 1";
    Ok(session.client.query_opt(other, &[&pipeline]).await?.map(|row| row.get(0)))
}

/// Returns the error that the tables belong to another pipeline.
pub(super) fn belongs_to(owner: &str) -> String {
    format!(
        "the tables belong to pipeline {owner:?}: set `schema`, so that each pipeline has tables of its own"
    )
}

/// Reads the progress of a sink. Returns none if the database does not have the tables.
pub(super) async fn peek_progress(
    address: &Address,
    pipeline: &str,
    sink: &str,
) -> Result<Vec<Progress>, SessionError> {
    let reading = async {
        let session = Session::connect(address).await?;
        let exists = "SELECT to_regclass('headwater_progress') IS NOT NULL";
        if !session.client.query_one(exists, &[]).await?.get::<_, bool>(0) {
            return Ok(Vec::new());
        }
        if let Some(owner) = other_pipeline(&session, pipeline).await? {
            return Err(SessionError::Refused(belongs_to(&owner)));
        }
        let rows = read(&session, pipeline, sink).await?;
        Ok(rows.into_iter().filter_map(Row::into_progress).collect())
    };
    timeout(ROUND_TIMEOUT, reading).await.unwrap_or(Err(SessionError::TimedOut("reading the progress")))
}
