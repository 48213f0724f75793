//! `headwater status`: what the ledger and the sinks have, and what a start would do. Nothing is taken over.

use std::fmt;

use headwater_dataflows::Epoch;
use headwater_sinks::{LedgerId, Progress, Shards, WriterContext};
use serde_json::{Value, json};

use super::output::{out, outln};
use super::{DONE, FAILED, REFUSED, build, config_error};
use crate::config::{Config, LedgerConfig};
use crate::coordination::{
    EpochRecord, Loss, NoOrigin, NoResume, Operator, Skip, committed_through, is_closed,
};
use crate::ledger::{self, Claim, Ledger, LedgerError, StoredManifest};
use crate::runtime::{
    ConfigChange, IncompatibleState, Resets, RunError, check_finished, config_change, forgets_of, killed,
    may_double, needs_checkpoints, operators, positions_of, read_from, readable_origin, resume_from,
};
use crate::source::SourceError;
use crate::state::{self, ExistingStore};
use crate::wall::wall_ms;

/// Prints the status of a pipeline. The process's exit code is what that of a start would be.
///
/// # Errors
/// If there is no ledger to look at, or it cannot be read.
pub fn status(config: &Config, json: bool) -> anyhow::Result<u8> {
    let Some(ledger) = &config.ledger else {
        return Err(
            config_error("ledger", "the status of a pipeline is in its ledger, and it has none").into()
        );
    };
    let facts = Facts::collect(config, ledger)?;
    let encodings: Vec<_> = build::sinks(config, "").iter().map(|job| job.encoding).collect();
    let outlook = facts.outlook(&Wanted {
        semantics: config.semantics(),
        operators: operators(&config.plan, &encodings),
        resets: config.resets.clone(),
    });
    let outlook = facts.looked_into(config, outlook);
    if json {
        outln!("{}", facts.json(&outlook, wall_ms()))?;
    } else {
        out!("{}", facts.text(&outlook, wall_ms()))?;
    }
    Ok(match outlook {
        Outlook::Begins | Outlook::GoesOn { .. } => DONE,
        Outlook::Refuses(_) => REFUSED,
        Outlook::Unknown(_) => FAILED,
    })
}

/// What is there.
struct Facts {
    pipeline: String,
    /// None if the pipeline was never started.
    claim: Option<Claim>,
    manifests: Vec<StoredManifest>,
    pruned: Epoch,
    /// All that are recorded.
    epochs: Vec<EpochRecord>,
    sinks: Vec<(String, Result<Vec<Progress>, String>)>,
    /// What sinks are not given.
    skips: Vec<Skip>,
    /// What is never read.
    losses: Vec<Loss>,
    /// The sinks that have committed before.
    committed: Vec<String>,
    /// How many runs were killed at the ledger's end, or are running there.
    attempts: u64,
}

/// What a start would do it with.
#[derive(Clone)]
struct Wanted {
    semantics: String,
    operators: Vec<Operator>,
    resets: Resets,
}

/// What a start would do.
#[derive(Debug, PartialEq, Eq)]
enum Outlook {
    /// Begin the pipeline.
    Begins,
    /// Go on after an epoch, and do again what is recorded after it.
    GoesOn {
        after: Epoch,
        replay: usize,
        through: Epoch,
        closed: bool,
        with_changes: Option<ConfigChange>,
        adopted: Vec<String>,
        /// The checkpoints that would do, best first.
        origins: Vec<Epoch>,
    },
    /// Not start, to keep a promise.
    Refuses(String),
    /// It depends on what could not be read.
    Unknown(String),
}

impl Facts {
    /// In an order in which each is at least as new as those before, so that a pipeline that runs meanwhile never looks
    /// as if a sink were ahead of the ledger, or a checkpoint ahead of a sink.
    fn collect(config: &Config, ledger: &LedgerConfig) -> Result<Facts, RunError> {
        let pipeline = config.plan.pipeline.to_string();
        let mut ledger = match ledger {
            LedgerConfig::Sqlite(path) if !path.exists() => None,
            ledger => Some(build::ledger(ledger, &pipeline)?),
        };
        let mut facts = Facts {
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
        };
        if let Some(ledger) = &mut ledger {
            facts.skips = ledger.skips()?;
            facts.losses = ledger.losses()?;
            facts.committed = build::committed(&mut **ledger, config)?;
            facts.claim = ledger.peek()?;
            facts.manifests = ledger.manifests()?;
        }
        for mut job in build::sinks(config, "") {
            let progress = job
                .sink
                .peek_progress(&facts.pipeline)
                .map_err(|error| format!("{:#}", anyhow::Error::from(error)));
            facts.sinks.push((job.sink.name().to_owned(), progress));
        }
        if let Some(ledger) = &mut ledger {
            (facts.pruned, facts.epochs) = recorded(&mut **ledger)?;
            facts.attempts = ledger.attempts(facts.durable().unwrap_or_default())?;
        }
        Ok(facts)
    }

    /// What a start would do that may forget all state, if it would do that.
    fn outlook_of_reset(&self, wanted: &Wanted) -> Option<Outlook> {
        let durable = forgets_of(&self.manifests, &self.epochs, wanted.resets.all)?;
        let mut adopted = Vec::new();
        for (sink, progress) in &self.sinks {
            let progress = match progress {
                Ok(progress) => progress,
                Err(reason) => return Some(Outlook::Unknown(reason.clone())),
            };
            if let Some(objection) = self.objection(sink, progress) {
                return Some(Outlook::Refuses(objection));
            }
            match committed_through(sink, progress, durable, &self.committed) {
                Ok(committed_through) if committed_through.least() < Some(durable) => {
                    adopted.push(sink.clone())
                }
                Ok(_) => {}
                Err(reason) => return Some(Outlook::Refuses(reason.to_string())),
            }
        }
        let because = format!("all state is forgotten, and nothing through epoch {durable} is read again");
        let with_changes = Some(ConfigChange { because, forget: ["all".to_owned()].into() });
        let closed = is_closed(ledger::readable(&self.manifests).last(), &self.epochs);
        let (after, replay, through, origins) = (durable, 0, durable, Vec::new());
        Some(Outlook::GoesOn { after, replay, through, closed, with_changes, adopted, origins })
    }

    /// What a start would do, given the state store and the source, too: if neither refuses, what was thought.
    fn looked_into(&self, config: &Config, outlook: Outlook) -> Outlook {
        let after = match &outlook {
            Outlook::Refuses(_) | Outlook::Unknown(_) => return outlook,
            Outlook::Begins => Ok(Epoch(0)),
            Outlook::GoesOn { after, origins, .. } if origins.is_empty() => Ok(*after),
            Outlook::GoesOn { origins, .. } => self.origin(config, origins),
        };
        let checked = after.and_then(|after| self.check_source(config, after));
        match checked {
            Ok(()) => outlook,
            Err(error) if error.is_refusal() => Outlook::Refuses(error.to_string()),
            Err(error) => Outlook::Unknown(format!("{:#}", anyhow::Error::from(error))),
        }
    }

    /// The origin whose state can be read.
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

    /// Whether the source has what a start would read that goes on after an epoch.
    fn check_source(&self, config: &Config, after: Epoch) -> Result<(), RunError> {
        let genesis = self.claim.as_ref().and_then(|claim| claim.genesis.as_ref());
        let origin = ledger::readable(&self.manifests).filter(|manifest| manifest.epoch <= after).last();
        let Some(mut positions) = positions_of(origin, genesis.map(|genesis| &genesis.starts[..])) else {
            return Ok(build::source(config, false)(None).map(drop)?);
        };
        let from = origin.map_or(Epoch(0), |origin| origin.epoch);
        let (before, replay): (Vec<_>, Vec<_>) =
            self.epochs.iter().filter(|record| record.epoch > from).cloned().partition(|r| r.epoch <= after);
        before.iter().for_each(|record| positions.advance(&record.bindings));
        let positions = positions.with_added(&replay);
        let wanted = read_from(&positions, &self.losses);
        let source = build::source(config, false)(Some(wanted.clone()))?;
        if source.start().len() != wanted.len() {
            let has = source.start().len();
            let reason =
                format!("the pipeline began with {} partitions, and the source has {has}", wanted.len());
            return Err(SourceError::Refused(reason).into());
        }
        let is_new = source.start().iter().zip(&wanted).any(|(start, wanted)| start > wanted);
        let durable = self.durable().unwrap_or_default();
        match killed(self.attempts, durable, &*source, &positions, &replay).filter(|_| !is_new) {
            Some(killed) => Err(killed),
            None => Ok(()),
        }
    }

    fn outlook(&self, wanted: &Wanted) -> Outlook {
        let genesis = self.claim.as_ref().and_then(|claim| claim.genesis.as_ref());
        let changes = match build::changed(genesis, &wanted.semantics, &wanted.resets.sections) {
            Ok(changes) => changes,
            Err(error) => return Outlook::Refuses(error.to_string()),
        };
        let resume_with = |sinks: &[(&str, &[Progress])]| {
            resume_from(&self.manifests, self.pruned, &self.epochs, &self.committed, sinks)
        };
        if let Some(outlook) = self.outlook_of_reset(wanted) {
            return outlook;
        }
        let (mut sinks, mut adopted) = (Vec::new(), Vec::new());
        for (sink, progress) in &self.sinks {
            let progress = match progress {
                Ok(progress) => progress,
                Err(reason) => return Outlook::Unknown(reason.clone()),
            };
            let objection = self.objection(sink, progress);
            if wanted.resets.sinks.contains(sink)
                && (objection.is_some() || resume_with(&[(&**sink, &progress[..])]).is_err())
            {
                if let Some(reason) = self.doubles(sink, progress, wanted) {
                    return Outlook::Refuses(reason);
                }
                adopted.push(sink.clone());
            } else if let Some(objection) = objection {
                return Outlook::Refuses(objection);
            } else {
                sinks.push((&**sink, &progress[..]));
            }
        }
        match resume_with(&sinks) {
            Ok(_) if genesis.is_none() => Outlook::Begins,
            Ok(resume) => {
                let after = resume.origins.first().copied().unwrap_or(Epoch(0));
                let replay = self.epochs.iter().filter(|record| record.epoch > after).count();
                let origin = ledger::readable(&self.manifests).find(|manifest| manifest.epoch == after);
                let closed = is_closed(origin, &self.epochs);
                let before = origin.map_or(&wanted.operators, |manifest| &manifest.operators);
                let with_changes =
                    config_change(changes.as_ref(), before, &wanted.operators, &wanted.resets.sections);
                let checked = with_changes.and_then(|with_changes| -> Result<_, IncompatibleState> {
                    with_changes
                        .iter()
                        .try_for_each(|config_change| check_finished(&resume, config_change))?;
                    Ok(with_changes)
                });
                match checked {
                    Ok(with_changes) => {
                        let (through, origins) = (resume.durable, resume.origins);
                        Outlook::GoesOn { after, replay, through, closed, with_changes, adopted, origins }
                    }
                    Err(unfit) => Outlook::Refuses(unfit.to_string()),
                }
            }
            Err(reason) => Outlook::Refuses(reason.to_string()),
        }
    }

    /// Why a sink does not belong to the ledger, if it does not.
    fn objection(&self, sink: &str, progress: &[Progress]) -> Option<String> {
        let context = self.context();
        let mut objections =
            progress.iter().filter_map(|found| context.objection(sink, &found.ledger_id, found.generation));
        objections.next().map(|objection| format!("sink {sink}: {objection}"))
    }

    /// A start, as far as a sink has to know to object to it.
    fn context(&self) -> WriterContext {
        let claim = self.claim.as_ref();
        let none = || LedgerId("not begun yet".to_owned());
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

    /// Why a sink is not reset, if it might have results twice then and nobody has said that it may.
    fn doubles(&self, sink: &str, progress: &[Progress], wanted: &Wanted) -> Option<String> {
        let durable = self.durable().unwrap_or_default();
        let reason = may_double(sink, progress, &self.context(), durable)?;
        (!wanted.resets.accept_duplicates).then(|| format!("sink {sink}: {reason}"))
    }

    /// The last epoch that is recorded.
    fn durable(&self) -> Option<Epoch> {
        let last = self.epochs.last().map(|last| last.epoch);
        last.max(self.manifests.last().map(|stored| stored.epoch))
    }

    fn text(&self, outlook: &Outlook, now_ms: i64) -> String {
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
        lines.extend(self.sinks.iter().map(|(sink, progress)| match progress {
            Ok(progress) => {
                format!("sink {sink}: {}", through(newest(progress).map(|newest| newest.through)))
            }
            Err(reason) => format!("sink {sink}: cannot be read: {reason}"),
        }));
        lines.extend(self.skips.iter().map(|skip| format!("skipped: {skip}")));
        lines.extend(self.losses.iter().map(|loss| {
            let Loss { partition, first, next } = loss;
            format!("never read: partition {}, offsets {} to {}", partition.0, first.0, next.0 - 1)
        }));
        lines.push(outlook.to_string());
        lines.into_iter().map(|line| line + "\n").collect()
    }

    fn json(&self, outlook: &Outlook, now_ms: i64) -> Value {
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
        let sink = |(name, progress): &(String, Result<Vec<Progress>, String>)| match progress {
            Ok(progress) => {
                let newest = newest(progress);
                json!({
                    "name": name,
                    "through": newest.map(|newest| newest.through.0),
                    "generation": newest.map(|newest| newest.generation.0),
                })
            }
            Err(reason) => json!({ "name": name, "error": reason }),
        };
        let loss = |loss: &Loss| json!({ "partition": loss.partition.0, "first": loss.first.0, "next": loss.next.0 });
        let start = match outlook {
            Outlook::Begins => json!({ "does": "begin" }),
            Outlook::GoesOn { after, replay, through, closed, with_changes, adopted, .. } => json!({
                "does": "go on", "after": after.0, "replay": replay, "through": through.0, "closed": closed,
                "changed": with_changes.as_ref().map(|config_change| &config_change.because),
                "forgets": with_changes.as_ref().map(|config_change| &config_change.forget),
                "adopts": adopted,
            }),
            Outlook::Refuses(reason) => json!({ "does": "refuse", "because": reason }),
            Outlook::Unknown(reason) => json!({ "does": "unknown", "because": reason }),
        };
        json!({
            "pipeline": self.pipeline,
            "lineage": self.claim.as_ref().map(|claim| &claim.ledger_id.0),
            "generation": self.claim.as_ref().map(|claim| claim.generation.0),
            "recorded_through": self.durable().map(|durable| durable.0),
            "pruned_through": self.pruned.0,
            "checkpoints": self.manifests.iter().rev().map(checkpoint).collect::<Vec<_>>(),
            "sinks": self.sinks.iter().map(sink).collect::<Vec<_>>(),
            "skips": self.skips.iter().map(Skip::to_string).collect::<Vec<_>>(),
            "losses": self.losses.iter().map(loss).collect::<Vec<_>>(),
            "start": start,
        })
    }
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outlook::Begins => f.write_str("a start would begin"),
            Outlook::GoesOn { after, replay, through, closed, with_changes, adopted, .. } => {
                match after {
                    Epoch(0) => f.write_str("a start would go on from the beginning")?,
                    after => write!(f, "a start would go on from the checkpoint of epoch {after}")?,
                }
                match replay {
                    0 => f.write_str(", with nothing to replay")?,
                    replay => write!(f, " and do {replay} epochs again, through {through}")?,
                }
                if let Some(ConfigChange { because, forget }) = with_changes {
                    write!(f, ", with a changed configuration: {because}")?;
                    for (at, section) in forget.iter().enumerate() {
                        write!(f, "{} {section}", if at == 0 { ", forgetting" } else { " and" })?;
                    }
                }
                for sink in adopted {
                    write!(f, ", taking sink {sink} for having everything that is recorded")?;
                }
                f.write_str(if *closed { "; the input was closed, so it would then end" } else { "" })
            }
            Outlook::Refuses(reason) => write!(f, "a start would be refused: {reason}"),
            Outlook::Unknown(reason) => write!(f, "what a start would do is not known: {reason}"),
        }
    }
}

/// Through which epoch rounds were pruned, and all that are left.
fn recorded(ledger: &mut dyn Ledger) -> Result<(Epoch, Vec<EpochRecord>), LedgerError> {
    let mut pruned = ledger.pruned()?;
    loop {
        match ledger.epochs(pruned) {
            Ok(epochs) => return Ok((pruned, epochs)),
            Err(error) => {
                // A pipeline that runs may have pruned more in between.
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

/// In whole seconds; what is not over yet is not old.
fn age_s(wall_ms: i64, now_ms: i64) -> i64 {
    now_ms.saturating_sub(wall_ms).max(0) / 1000
}

#[cfg(test)]
mod tests;
