//! `headwater status`: shows the state of the ledger and the sinks, and predicts the outcome of a start. It does not
//! claim or fence anything.

mod rules;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use headwater_dataflows::Epoch;
use headwater_sinks::{LedgerId, OpenError, Progress, Shards, WriterContext};
use serde_json::{Value, json};

use super::output::{self, counted};
use super::{DONE, FAILED, REFUSED, config_error};
use crate::assembly;
use crate::config::{Config, LedgerConfig, changes};
use crate::coordination::{
    EpochRecord, ListVersion, Loss, NoOrigin, NoResume, Operator, Skip, committed_through, is_closed,
};
use crate::ledger::{self, Claim, Ledger, LedgerError, StoredManifest};
use crate::lists::hex;
use crate::pipeline::{ConfigChange, Resets, RuleSetPlan, operators};
use crate::runtime::{
    IncompatibleState, RunError, add_spaces, all_rules, check_finished, config_change, duplicate_risk_of,
    first_rules, needs_checkpoints, newest_rules, permitted_rules, positions_of, read_from, readable_origin,
    repeated_kill, reset_epoch, resume_from,
};
use crate::source::SourceError;
use crate::state::{self, ExistingStore};
use crate::wall::wall_ms;

/// Prints the status of a pipeline. Returns the exit code that a start would have.
///
/// # Errors
/// If there is no ledger, or it cannot be read.
pub fn status(config: &Config, json: bool) -> anyhow::Result<u8> {
    let Some(ledger) = &config.ledger else {
        return Err(config_error(
            "ledger",
            "the status of a pipeline is stored in its ledger: add `[ledger]`",
        )
        .into());
    };
    let mut state = PipelineState::collect(config, ledger)?;
    let encodings: Vec<_> = assembly::sinks(config, "").iter().map(|job| job.encoding).collect();
    let mut plan = config.plan.clone();
    let genesis = state.claim.as_ref().and_then(|claim| claim.genesis.as_ref());
    let (first, live) = (first_rules(genesis, &plan), config.live_rules());
    let mut texts = all_rules(&first, &state.manifests, &state.epochs);
    let has_changed = genesis.is_some_and(|genesis| has_changed(config, &genesis.semantics));
    if config.resets.all.is_some() || has_changed {
        for text in &mut texts {
            *text = permitted_rules(text, &live)?;
        }
    }
    add_spaces(&mut plan, &texts, &live)?;
    if genesis.is_some() {
        let newest = newest_rules(&first, ledger::readable(&state.manifests).last(), &state.epochs);
        let newest = if has_changed { permitted_rules(newest, &live)? } else { newest.to_owned() };
        state.rules = Some(live.read(&newest).map_err(LedgerError::Refused)?);
    }
    let outcome = state.predict(&StartRequest {
        semantics: config.semantics(),
        operators: operators(&plan, &encodings),
        resets: config.resets.clone(),
    });
    let outcome = state.check_resources(config, outcome);
    let now = wall_ms();
    output::report(json, || state.json(&outcome, now), || state.text(&outcome, now))?;
    Ok(match outcome {
        StartOutcome::Begin | StartOutcome::Resume { .. } => DONE,
        StartOutcome::Refuse(_) => REFUSED,
        StartOutcome::Unknown(_) => FAILED,
    })
}

/// Returns true if settings that results depend on differ from the recorded ones.
fn has_changed(config: &Config, recorded: &str) -> bool {
    !matches!(changes(recorded, &config.semantics(), &config.resets.sections), Ok(None))
}

/// The recorded state of a pipeline.
struct PipelineState {
    pipeline: String,
    /// The claim of the last start; None if the pipeline was never started.
    claim: Option<Claim>,
    manifests: Vec<StoredManifest>,
    pruned: Epoch,
    /// The epochs in the ledger that are not pruned.
    epochs: Vec<EpochRecord>,
    sinks: Vec<(String, Result<Vec<Progress>, Unreadable>)>,
    /// The skipped outputs.
    skips: Vec<Skip>,
    /// The records that are never read.
    losses: Vec<Loss>,
    /// The sinks that must have progress, because they have committed before.
    committed: Vec<String>,
    /// The number of runs since the last recorded epoch that were killed or are still running.
    attempts: u64,
    /// The rules of the user's own in force at the end of the ledger; None if the pipeline has never begun.
    rules: Option<Arc<RuleSetPlan>>,
}

/// The reason why the progress of a sink cannot be read.
#[derive(Debug)]
struct Unreadable {
    reason: String,
    /// True if a start would be refused for it; false if the sink may only be unreachable now.
    is_refusal: bool,
}

impl Unreadable {
    fn of(error: OpenError) -> Unreadable {
        let is_refusal = matches!(error, OpenError::Refused { .. });
        Unreadable { reason: format!("{:#}", anyhow::Error::from(error)), is_refusal }
    }

    fn outcome(&self) -> StartOutcome {
        let reason = self.reason.clone();
        if self.is_refusal { StartOutcome::Refuse(reason) } else { StartOutcome::Unknown(reason) }
    }
}

/// The parameters of the start to predict.
#[derive(Clone)]
struct StartRequest {
    semantics: String,
    operators: Vec<Operator>,
    resets: Resets,
}

/// The predicted outcome of a start.
#[derive(Debug, PartialEq, Eq)]
enum StartOutcome {
    /// The start begins the pipeline.
    Begin,
    /// The start resumes after an epoch and replays the recorded epochs after it.
    Resume {
        after: Epoch,
        replay: usize,
        through: Epoch,
        closed: bool,
        with_changes: Option<ConfigChange>,
        adopted: Vec<String>,
        /// The checkpoints that the start can resume from, best first.
        origins: Vec<Epoch>,
    },
    /// The start is refused, to protect a guarantee.
    Refuse(String),
    /// The outcome is unknown, because a resource cannot be read.
    Unknown(String),
}

impl PipelineState {
    /// Reads the state. Each part is at least as new as the parts read before it. If the pipeline is running meanwhile,
    /// no sink appears to be ahead of the ledger, and no checkpoint ahead of a sink.
    fn collect(config: &Config, ledger: &LedgerConfig) -> Result<PipelineState, RunError> {
        let pipeline = config.plan.pipeline.to_string();
        let mut ledger = match ledger {
            LedgerConfig::Sqlite(path) if !path.exists() => None,
            ledger => Some(assembly::ledger(ledger, &pipeline)?),
        };
        let mut state = PipelineState {
            pipeline,
            claim: None,
            manifests: Vec::new(),
            pruned: Epoch(0),
            epochs: Vec::new(),
            sinks: Vec::new(),
            skips: Vec::new(),
            losses: Vec::new(),
            committed: Vec::new(),
            attempts: 0,
            rules: None,
        };
        if let Some(ledger) = &mut ledger {
            state.skips = ledger.skips()?;
            state.losses = ledger.losses()?;
            state.committed = assembly::sinks_with_progress(&mut **ledger, config)?;
            state.claim = ledger.peek()?;
            state.manifests = ledger.manifests()?;
        }
        for mut job in assembly::sinks(config, "") {
            let progress = job.sink.peek_progress(&state.pipeline).map_err(Unreadable::of);
            state.sinks.push((job.sink.name().to_owned(), progress));
        }
        if let Some(ledger) = &mut ledger {
            (state.pruned, state.epochs) = recorded_epochs(&mut **ledger)?;
            state.attempts = ledger.attempts(state.durable().unwrap_or_default())?;
        }
        Ok(state)
    }

    /// Predicts the outcome of a start that discards all state; None if it would not.
    fn predict_reset(&self, request: &StartRequest) -> Option<StartOutcome> {
        let durable = reset_epoch(&self.manifests, &self.epochs, request.resets.all)?;
        let mut adopted = Vec::new();
        for (sink, progress) in &self.sinks {
            let progress = match progress {
                Ok(progress) => progress,
                Err(unreadable) => return Some(unreadable.outcome()),
            };
            if let Some(objection) = self.objection(sink, progress) {
                return Some(StartOutcome::Refuse(objection));
            }
            match committed_through(sink, progress, durable, &self.committed) {
                Ok(committed_through) if committed_through.least() < Some(durable) => {
                    adopted.push(sink.clone())
                }
                Ok(_) => {}
                Err(reason) => return Some(StartOutcome::Refuse(reason.to_string())),
            }
        }
        let reason = format!("all state is discarded, and no input through epoch {durable} is read again");
        let with_changes = Some(ConfigChange { reason, discarded: ["all".to_owned()].into() });
        let closed = is_closed(ledger::readable(&self.manifests).last(), &self.epochs);
        let (after, replay, through, origins) = (durable, 0, durable, Vec::new());
        Some(StartOutcome::Resume { after, replay, through, closed, with_changes, adopted, origins })
    }

    /// Checks the state store and the source; returns `outcome` unless one of them prevents the start.
    fn check_resources(&self, config: &Config, outcome: StartOutcome) -> StartOutcome {
        let after = match &outcome {
            StartOutcome::Refuse(_) | StartOutcome::Unknown(_) => return outcome,
            StartOutcome::Begin => Ok(Epoch(0)),
            StartOutcome::Resume { after, origins, .. } if origins.is_empty() => Ok(*after),
            StartOutcome::Resume { origins, .. } => self.origin(config, origins),
        };
        let checked = after.and_then(|after| self.check_source(config, after));
        match checked {
            Ok(()) => outcome,
            Err(error) if error.is_refusal() => StartOutcome::Refuse(error.to_string()),
            Err(error) => StartOutcome::Unknown(format!("{:#}", anyhow::Error::from(error))),
        }
    }

    /// Returns the best checkpoint whose state can be read.
    fn origin(&self, config: &Config, origins: &[Epoch]) -> Result<Epoch, RunError> {
        let best = origins.first().copied().unwrap_or_default();
        if self.manifests.is_empty() {
            return Ok(best);
        }
        if config.checkpoint.is_none() {
            return Err(needs_checkpoints().into());
        }
        let chosen = match state::open_existing(&config.state, &self.pipeline)? {
            ExistingStore::InUse => return Ok(best),
            ExistingStore::Absent => origins.contains(&Epoch(0)).then_some(Epoch(0)),
            ExistingStore::Open(mut store) => readable_origin(origins, &self.manifests, &mut *store)?,
        };
        let durable = self.durable().unwrap_or_default();
        chosen.ok_or(NoResume::from(NoOrigin::Unreadable { pruned: self.pruned, durable }).into())
    }

    /// Checks that the source still has the records that a start would read after an epoch.
    fn check_source(&self, config: &Config, after: Epoch) -> Result<(), RunError> {
        let genesis = self.claim.as_ref().and_then(|claim| claim.genesis.as_ref());
        let origin = ledger::readable(&self.manifests).filter(|manifest| manifest.epoch <= after).last();
        let Some(mut positions) = positions_of(origin, genesis.map(|genesis| &genesis.starts[..])) else {
            return Ok(assembly::source(config, false)(None).map(drop)?);
        };
        let from = origin.map_or(Epoch(0), |origin| origin.epoch);
        let (before, replay): (Vec<_>, Vec<_>) =
            self.epochs.iter().filter(|record| record.epoch > from).cloned().partition(|r| r.epoch <= after);
        before.iter().for_each(|record| positions.advance(&record.bindings));
        let positions = positions.with_added(&replay);
        let starts = read_from(&positions, &self.losses);
        let source = assembly::source(config, false)(Some(starts.clone()))?;
        if source.start().len() != starts.len() {
            let has = source.start().len();
            let reason =
                format!("the pipeline began with {} partitions, and the source has {has}", starts.len());
            return Err(SourceError::Refused(reason).into());
        }
        let is_new = source.start().iter().zip(&starts).any(|(start, starts)| start > starts);
        let durable = self.durable().unwrap_or_default();
        match repeated_kill(self.attempts, durable, &*source, &positions, &replay).filter(|_| !is_new) {
            Some(killed) => Err(killed),
            None => Ok(()),
        }
    }

    fn predict(&self, request: &StartRequest) -> StartOutcome {
        let genesis = self.claim.as_ref().and_then(|claim| claim.genesis.as_ref());
        let changes = match assembly::config_changes(genesis, &request.semantics, &request.resets.sections) {
            Ok(changes) => changes,
            Err(error) => return StartOutcome::Refuse(error.to_string()),
        };
        let resume_with = |sinks: &[(&str, &[Progress])]| {
            resume_from(&self.manifests, self.pruned, &self.epochs, &self.committed, sinks)
        };
        if let Some(outcome) = self.predict_reset(request) {
            return outcome;
        }
        let (mut sinks, mut adopted) = (Vec::new(), Vec::new());
        for (sink, progress) in &self.sinks {
            let progress = match progress {
                Ok(progress) => progress,
                Err(unreadable) => return unreadable.outcome(),
            };
            let objection = self.objection(sink, progress);
            if request.resets.joining.contains(sink) && progress.is_empty() && !self.committed.contains(sink)
            {
                // A run with several processes does not let it join.
                continue;
            }
            if request.resets.sinks.contains(sink)
                && (objection.is_some() || resume_with(&[(&**sink, &progress[..])]).is_err())
            {
                if let Some(reason) = self.duplicate_risk(sink, progress, request) {
                    return StartOutcome::Refuse(reason);
                }
                adopted.push(sink.clone());
            } else if let Some(objection) = objection {
                return StartOutcome::Refuse(objection);
            } else {
                sinks.push((&**sink, &progress[..]));
            }
        }
        match resume_with(&sinks) {
            Ok(_) if genesis.is_none() => StartOutcome::Begin,
            Ok(resume) => {
                let after = resume.origins.first().copied().unwrap_or(Epoch(0));
                let replay = self.epochs.iter().filter(|record| record.epoch > after).count();
                let origin = ledger::readable(&self.manifests).find(|manifest| manifest.epoch == after);
                let closed = is_closed(origin, &self.epochs);
                let before = origin.map_or(&request.operators, |manifest| &manifest.operators);
                let with_changes =
                    config_change(changes.as_ref(), before, &request.operators, &request.resets.sections);
                let checked = with_changes.and_then(|with_changes| -> Result<_, IncompatibleState> {
                    with_changes
                        .iter()
                        .try_for_each(|config_change| check_finished(&resume, config_change))?;
                    Ok(with_changes)
                });
                match checked {
                    Ok(with_changes) => {
                        let (through, origins) = (resume.durable, resume.origins);
                        StartOutcome::Resume {
                            after,
                            replay,
                            through,
                            closed,
                            with_changes,
                            adopted,
                            origins,
                        }
                    }
                    Err(incompatible) => StartOutcome::Refuse(incompatible.to_string()),
                }
            }
            Err(reason) => StartOutcome::Refuse(reason.to_string()),
        }
    }

    /// Returns the reason why a sink does not belong to the ledger; None if it does.
    fn objection(&self, sink: &str, progress: &[Progress]) -> Option<String> {
        let objection = self.context().objection_to(sink, progress, None);
        objection.map(|objection| format!("sink {sink}: {objection}"))
    }

    /// Returns the context of a start, as far as the checks of a sink need it.
    fn context(&self) -> WriterContext {
        let claim = self.claim.as_ref();
        let none = || LedgerId("not created yet".to_owned());
        WriterContext {
            pipeline: self.pipeline.clone(),
            ledger_id: claim.map_or_else(none, |claim| claim.ledger_id.clone()),
            generation: claim.map(|claim| claim.generation).unwrap_or_default(),
            process: 0,
            shards: Shards::ALL,
            max_processes: 1,
            adopt: None,
        }
    }

    /// Returns the reason why a reset of a sink is refused: it could duplicate results, and duplicates are not
    /// accepted. None if the reset is permitted.
    fn duplicate_risk(&self, sink: &str, progress: &[Progress], request: &StartRequest) -> Option<String> {
        let durable = self.durable().unwrap_or_default();
        let reason = duplicate_risk_of(sink, progress, &self.context(), durable)?;
        (!request.resets.accept_duplicates).then(|| format!("sink {sink}: {reason}"))
    }

    /// Returns the last recorded epoch.
    fn durable(&self) -> Option<Epoch> {
        let last = self.epochs.last().map(|last| last.epoch);
        last.max(self.manifests.last().map(|stored| stored.epoch))
    }

    /// Returns the contents of lists that are in force at the end of the ledger, by name, with the epochs that they were bound
    /// to.
    fn lists(&self) -> Vec<(Epoch, &ListVersion)> {
        let newest = ledger::readable(&self.manifests).last();
        let of_manifest = newest.iter().flat_map(|manifest| manifest.in_force.as_slice());
        let of_manifest = of_manifest.map(|in_force| (in_force.since.epoch, &in_force.change));
        let of_epochs = self.epochs.iter().map(|record| (record.epoch, &record.change));
        let all = of_manifest.chain(of_epochs);
        let all = all.flat_map(|(epoch, change)| change.lists.iter().map(move |list| (epoch, list)));
        let by_name: BTreeMap<_, _> = all.map(|(epoch, list)| (&list.name, (epoch, list))).collect();
        by_name.into_values().collect()
    }

    fn text(&self, outcome: &StartOutcome, now_ms: i64) -> String {
        let mut lines = vec![match &self.claim {
            None => format!("pipeline {}: never started", self.pipeline),
            Some(Claim { ledger_id, generation, .. }) => format!(
                "pipeline {}: ledger {}, generation {generation}, recorded {}",
                self.pipeline,
                ledger_id.0,
                through(self.durable())
            ),
        }];
        lines.extend(self.manifests.iter().rev().map(|stored| match &stored.manifest {
            Ok(manifest) => format!(
                "checkpoint of epoch {}: {} s old, {} bytes in {} parts{}",
                manifest.epoch,
                age_s(manifest.wall_ms, now_ms),
                manifest.bytes(),
                manifest.parts.len(),
                manifest.keys.map(|keys| format!(", {keys} keys")).unwrap_or_default()
            ),
            Err(error) => format!("checkpoint of epoch {}: {error}", stored.epoch),
        }));
        lines.extend(self.lists().into_iter().map(|(after, list)| {
            let (hash, bytes) = (&hex(&list.hash)[..12], list.bytes);
            format!("list {}: {bytes} bytes, SHA-256 {hash}…, in force after epoch {after}", list.name)
        }));
        lines.extend(self.sinks.iter().map(|(sink, progress)| match progress {
            Ok(progress) => {
                format!("sink {sink}: {}", through(newest(progress).map(|newest| newest.through)))
            }
            Err(unreadable) => format!("sink {sink}: cannot read its progress: {}", unreadable.reason),
        }));
        lines.extend(self.skips.iter().map(|skip| format!("skipped: {skip}")));
        lines.extend(self.losses.iter().map(|loss| {
            let Loss { partition, first, next } = loss;
            format!("never read: partition {}, offsets {} to {}", partition.0, first.0, next.0 - 1)
        }));
        let has_rules = |set: &&Arc<RuleSetPlan>| !set.rules.is_empty() || set.version > 1;
        lines.extend(self.rules.iter().filter(has_rules).flat_map(|set| rules::text(set)));
        lines.push(outcome.to_string());
        lines.into_iter().map(|line| line + "\n").collect()
    }

    fn json(&self, outcome: &StartOutcome, now_ms: i64) -> Value {
        let checkpoint = |stored: &StoredManifest| match &stored.manifest {
            Ok(manifest) => json!({
                "epoch": manifest.epoch.0,
                "age_s": age_s(manifest.wall_ms, now_ms),
                "bytes": manifest.bytes(),
                "parts": manifest.parts.len(),
                "keys": manifest.keys,
            }),
            Err(error) => json!({ "epoch": stored.epoch.0, "error": error.to_string() }),
        };
        let sink = |(name, progress): &(String, Result<Vec<Progress>, Unreadable>)| match progress {
            Ok(progress) => {
                let newest = newest(progress);
                json!({
                    "name": name,
                    "through": newest.map(|newest| newest.through.0),
                    "generation": newest.map(|newest| newest.generation.0),
                })
            }
            Err(unreadable) => json!({ "name": name, "error": unreadable.reason }),
        };
        let loss = |loss: &Loss| json!({ "partition": loss.partition.0, "first": loss.first.0, "next": loss.next.0 });
        let start = match outcome {
            StartOutcome::Begin => json!({ "outcome": "begin" }),
            StartOutcome::Resume { after, replay, through, closed, with_changes, adopted, .. } => json!({
                "outcome": "resume", "after": after.0, "replay": replay, "through": through.0, "closed": closed,
                "changes": with_changes.as_ref().map(|config_change| &config_change.reason),
                "discards": with_changes.as_ref().map(|config_change| &config_change.discarded),
                "adopts": adopted,
            }),
            StartOutcome::Refuse(reason) => json!({ "outcome": "refuse", "reason": reason }),
            StartOutcome::Unknown(reason) => json!({ "outcome": "unknown", "reason": reason }),
        };
        json!({
            "pipeline": self.pipeline,
            "ledger_id": self.claim.as_ref().map(|claim| &claim.ledger_id.0),
            "generation": self.claim.as_ref().map(|claim| claim.generation.0),
            "recorded_through": self.durable().map(|durable| durable.0),
            "pruned_through": self.pruned.0,
            "checkpoints": self.manifests.iter().rev().map(checkpoint).collect::<Vec<_>>(),
            "lists": self.lists().into_iter().map(|(after, list)| json!({
                "name": list.name, "hash": hex(&list.hash), "bytes": list.bytes, "after_epoch": after.0,
            })).collect::<Vec<_>>(),
            "sinks": self.sinks.iter().map(sink).collect::<Vec<_>>(),
            "skips": self.skips.iter().map(Skip::to_string).collect::<Vec<_>>(),
            "losses": self.losses.iter().map(loss).collect::<Vec<_>>(),
            "rules": self.rules.as_ref().map(|set| rules::json(set)),
            "start": start,
        })
    }
}

impl fmt::Display for StartOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartOutcome::Begin => f.write_str("a start would begin the pipeline"),
            StartOutcome::Resume { after, replay, through, closed, with_changes, adopted, .. } => {
                match after {
                    Epoch(0) => f.write_str("a start would resume from the beginning")?,
                    after => write!(f, "a start would resume from the checkpoint of epoch {after}")?,
                }
                match replay {
                    0 => f.write_str(", with nothing to replay")?,
                    &replay => {
                        write!(f, " and replay {}, through epoch {through}", counted(replay as u64, "epoch"))?
                    }
                }
                if let Some(ConfigChange { reason, discarded }) = with_changes {
                    write!(f, ", with a changed configuration: {reason}")?;
                    for (at, section) in discarded.iter().enumerate() {
                        write!(
                            f,
                            "{} {section}",
                            if at == 0 { ", discarding the state of" } else { " and" }
                        )?;
                    }
                }
                for sink in adopted {
                    write!(f, ", marking sink {sink} as caught up with the ledger")?;
                }
                f.write_str(if *closed { "; the input is closed, so the run would then end" } else { "" })
            }
            StartOutcome::Refuse(reason) => write!(f, "a start would be refused: {reason}"),
            StartOutcome::Unknown(reason) => write!(f, "the outcome of a start is unknown: {reason}"),
        }
    }
}

/// Returns the last pruned epoch and all recorded epochs after it.
fn recorded_epochs(ledger: &mut dyn Ledger) -> Result<(Epoch, Vec<EpochRecord>), LedgerError> {
    let mut pruned = ledger.pruned()?;
    loop {
        match ledger.epochs(pruned) {
            Ok(epochs) => return Ok((pruned, epochs)),
            Err(error) => {
                // A running pipeline may have pruned more epochs meanwhile.
                let now = ledger.pruned()?;
                if now == pruned {
                    return Err(error);
                }
                pruned = now;
            }
        }
    }
}

fn newest(progress: &[Progress]) -> Option<&Progress> {
    progress.iter().max_by_key(|progress| (progress.through, progress.generation))
}

fn through(epoch: Option<Epoch>) -> String {
    epoch.map_or("nothing yet".to_owned(), |epoch| format!("through epoch {epoch}"))
}

/// Returns the age in whole seconds; 0 for a time in the future.
fn age_s(wall_ms: i64, now_ms: i64) -> i64 {
    now_ms.saturating_sub(wall_ms).max(0) / 1000
}

#[cfg(test)]
mod tests;
