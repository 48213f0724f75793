//! `--reset all:EPOCH`: a pipeline whose state is lost, or whose epochs cannot be replayed, goes on after the ledger's end
//! with no state. Nothing is read again, so nothing is doubled.

use headwater_dataflows::{Epoch, EventTime};
use headwater_sinks::{WriterContext, crash};

use super::SinkJob;
use super::failure::RunError;
use super::recovery::{Found, History, Records, open_sink_anew};
use crate::coordination::{
    EpochRecord, Manifest, NoOrigin, NoResume, Operator, Positions, Watermark, WatermarkRule,
    committed_through,
};
use crate::ledger::{LedgerError, StoredManifest, readable};

/// What a start knows that forgets all state.
pub struct Forgetting<'a> {
    /// Who writes.
    pub context: &'a WriterContext,
    /// The operators that go on with nothing.
    pub operators: &'a [Operator],
    /// How the watermark is computed.
    pub rule: WatermarkRule,
}

/// The epoch at which all state is to be forgotten: the ledger's end, if that is the one that was permitted and there is
/// anything to forget.
pub fn forgets_of(
    manifests: &[StoredManifest],
    epochs: &[EpochRecord],
    permitted: Option<Epoch>,
) -> Option<Epoch> {
    let last_round = epochs.last().map(|last| last.epoch);
    let last_manifest = manifests.last().map(|stored| stored.epoch);
    let durable = last_round.max(last_manifest)?;
    let newest = readable(manifests).last();
    let is_forgotten = newest.is_some_and(|manifest| manifest.epoch == durable && manifest.parts.is_empty());
    (permitted == Some(durable) && !is_forgotten).then_some(durable)
}

/// Puts one manifest without state in the place of all that the ledger has, at its end. Sinks that have less are taken for
/// having everything.
///
/// # Errors
/// If a sink does not belong to the ledger, nobody knows where reading goes on, or it cannot be written.
pub fn forget(
    history: &mut History,
    records: &Records,
    durable: Epoch,
    sinks: &mut [SinkJob],
    found: &mut [(String, Found)],
    forgetting: &Forgetting<'_>,
) -> Result<(), RunError> {
    if history.checkpoints.is_none() {
        let reason =
            "`--reset all` goes on from a checkpoint without state: it needs [checkpoint] and [state]";
        return Err(LedgerError::Refused(reason.into()).into());
    }
    let manifest = without_state(history, records, durable, forgetting)?;
    for (job, (name, found)) in sinks.iter_mut().zip(found) {
        let committed_through = committed_through(name, &found.progress, durable, &history.committed)?;
        let has = committed_through.least().unwrap_or_default();
        if has < durable {
            tracing::warn!(
                sink = name, after = %has, through = %durable,
                "its results of these epochs that it does not have are never written"
            );
            *found = open_sink_anew(&mut *job.sink, forgetting.context, durable, found.latest)?;
        }
    }
    crash::point("ledger.amend.before");
    history.ledger.amend(&history.semantics, Some(&manifest))?;
    crash::point("ledger.amend.after");
    history.config_change = None;
    tracing::warn!(after = %durable, "all state is forgotten: nothing is read again, and what was open is lost");
    Ok(())
}

/// The ledger's end as a manifest, with the positions and the watermark that there are, and no state.
fn without_state(
    history: &History,
    records: &Records,
    durable: Epoch,
    forgetting: &Forgetting<'_>,
) -> Result<Manifest, RunError> {
    let newest = readable(&records.manifests).last();
    let starts = history.claim.genesis.as_ref().map(|genesis| &genesis.starts);
    let (epoch, mut positions, mut watermark) = match (newest, starts) {
        (Some(manifest), _) => {
            (manifest.epoch, Positions::of(&manifest.positions), Watermark::of(manifest, forgetting.rule))
        }
        (None, Some(starts)) if records.pruned == Epoch(0) => {
            (Epoch(0), Positions::starting(starts), Watermark::new(starts.len(), forgetting.rule))
        }
        _ => return Err(NoResume::from(NoOrigin::NoPositions { pruned: records.pruned }).into()),
    };
    let mut wall_ms = newest.map_or(0, |manifest| manifest.wall_ms);
    let mut closes = newest.is_some_and(|manifest| manifest.watermark == EventTime::MAX);
    for record in records.epochs.iter().filter(|record| record.epoch > epoch) {
        positions.advance(&record.bindings);
        watermark.advance(&record.bindings, record.wall_ms, record.rules);
        wall_ms = record.wall_ms;
        closes |= record.closes;
    }
    if closes {
        watermark.close();
    }
    Ok(Manifest {
        epoch: durable,
        generation: history.claim.generation,
        wall_ms,
        watermark: watermark.current(),
        positions: positions.as_slice().to_vec(),
        unfinal: Vec::new(),
        all_idle: watermark.all_idle(),
        operators: forgetting.operators.to_vec(),
        keys: Some(0),
        parts: Vec::new(),
    })
}
