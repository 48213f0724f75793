//! `--discard-state all:EPOCH`: resumes a pipeline at the end of its ledger without state, when its state is lost or its epochs
//! cannot be replayed. Nothing is read again, so nothing is duplicated.

use headwater_dataflows::{Epoch, EventTime};
use headwater_sinks::{WriterContext, crash};

use crate::config::with_recorded_rules;
use crate::coordination::{
    EpochRecord, Manifest, NoOrigin, NoResume, Operator, Positions, Watermark, WatermarkRule,
    committed_through,
};
use crate::ledger::{LedgerError, StoredManifest, readable};
use crate::outputs::SinkJob;
use crate::pipeline::LiveRules;
use crate::runtime::failure::RunError;
use crate::runtime::recovery::origin::{History, OpenedSink, Records, adopt_sink};
use crate::runtime::recovery::rules::{permitted_rules, settled};

/// The parameters of a start that discards all state.
pub struct DiscardContext<'a> {
    /// The identity of the writer.
    pub context: &'a WriterContext,
    /// The operators, which resume without state.
    pub operators: &'a [Operator],
    /// The parameters from which the watermark is computed.
    pub rule: WatermarkRule,
    /// The rules of the process.
    pub rules: &'a LiveRules,
}

/// Returns the epoch at which all state is discarded: the last one of the ledger, if `permitted` is that epoch and
/// there is anything to discard.
pub fn reset_epoch(
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

/// Replaces the contents of the ledger by one manifest without state, at its last epoch. Marks the sinks that are
/// behind as caught up with the ledger.
///
/// # Errors
/// If a sink does not belong to the ledger, the positions to read from are unknown, or the ledger or a sink cannot be
/// written.
pub fn discard_state(
    history: &mut History,
    records: &Records,
    durable: Epoch,
    sinks: &mut [SinkJob],
    found: &mut [(String, OpenedSink)],
    discarding: &DiscardContext<'_>,
) -> Result<(), RunError> {
    if history.checkpoints.is_none() {
        let reason =
            "`--discard-state all` creates a checkpoint without state: it needs [checkpoint] and [state]";
        return Err(LedgerError::Refused(reason.into()).into());
    }
    let manifest = manifest_without_state(history, records, durable, discarding)?;
    for (job, (name, found)) in sinks.iter_mut().zip(found) {
        let committed_through = committed_through(name, &found.progress, durable, &history.committed)?;
        let has = committed_through.least().unwrap_or_default();
        if has < durable {
            tracing::warn!(
                sink = name, after = %has, through = %durable,
                "the results of these epochs that the sink has not committed are never written to it"
            );
            *found = adopt_sink(&mut *job.sink, discarding.context, durable, found.latest)?;
        }
    }
    crash::point("ledger.amend.before");
    let rules = manifest.in_force.rules().unwrap_or(&history.first_rules);
    history.ledger.amend(&with_recorded_rules(&history.semantics, rules), Some(&manifest))?;
    crash::point("ledger.amend.after");
    history.config_change = None;
    tracing::warn!(
        after = %durable,
        "discarded all state: nothing is replayed; open windows and pattern state are lost"
    );
    Ok(())
}

/// Returns a manifest at the end of the ledger, with the recorded positions and watermark, and no state.
fn manifest_without_state(
    history: &History,
    records: &Records,
    durable: Epoch,
    discarding: &DiscardContext<'_>,
) -> Result<Manifest, RunError> {
    let newest = readable(&records.manifests).last();
    let starts = history.claim.genesis.as_ref().map(|genesis| &genesis.starts);
    let (epoch, mut positions, mut watermark) = match (newest, starts) {
        (Some(manifest), _) => {
            (manifest.epoch, Positions::of(&manifest.positions), Watermark::of(manifest, discarding.rule))
        }
        (None, Some(starts)) if records.pruned == Epoch(0) => {
            (Epoch(0), Positions::starting(starts), Watermark::new(starts.len(), discarding.rule))
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
    let mut in_force = settled(&history.first_rules, records);
    in_force.replace_rules(|text| permitted_rules(text, discarding.rules))?;
    Ok(Manifest {
        epoch: durable,
        generation: history.claim.generation,
        wall_ms,
        watermark: watermark.current(),
        positions: positions.as_slice().to_vec(),
        unfinal: Vec::new(),
        all_idle: watermark.all_idle(),
        in_force,
        operators: discarding.operators.to_vec(),
        keys: Some(0),
        parts: Vec::new(),
    })
}
