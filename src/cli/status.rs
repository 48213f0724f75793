//! `headwater status`: what the ledger and the sinks have, and what a start would do. Nothing is taken over.

use std::fmt;

use headwater_dataflows::Epoch;
use headwater_sinks::{Lineage, Progress, Shards, Start};
use serde_json::{Value, json};

use super::output::{out, outln};
use super::{DONE, FAILED, REFUSED, build, complaint};
use crate::config::{Config, LedgerConfig};
use crate::coordination::{EpochRecord, Loss, NoOrigin, NoResume, Operator, Skip, is_closed, taken};
use crate::ledger::{self, Claim, Ledger, LedgerError, StoredManifest};
use crate::runtime::{
    Amendment, Resets, RunError, Unfit, amendment, check_finished, forgets_of, killed, may_double,
    needs_checkpoints, operators, positions_of, read_from, readable_origin, resume_from,
};
use crate::source::SourceError;
use crate::state::{self, Look};
use crate::wall::wall_ms;

/// Prints the status of a pipeline. The process's exit code is what that of a start would be.
///
/// # Errors
/// If there is no ledger to look at, or it cannot be read.
pub fn status(config: &Config, json: bool) -> anyhow::Result<u8> {
    let Some(ledger) = &config.ledger else {
        return Err(complaint("ledger", "the status of a pipeline is in its ledger, and it has none").into());
    };
    let facts = Facts::look(config, ledger)?;
    let tongues: Vec<_> = build::sinks(config, "").iter().map(|job| job.tongue).collect();
    let outlook = facts.outlook(&Wanted {
        meaning: config.meaning(),
        operators: operators(&config.plan, &tongues),
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
    meaning: String,
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
        amended: Option<Amendment>,
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
    fn look(config: &Config, ledger: &LedgerConfig) -> Result<Facts, RunError> {
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
            facts.claim = ledger.look()?;
            facts.manifests = ledger.manifests()?;
        }
        for mut job in build::sinks(config, "") {
            let progress =
                job.sink.look(&facts.pipeline).map_err(|error| format!("{:#}", anyhow::Error::from(error)));
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
            match taken(sink, progress, durable, &self.committed) {
                Ok(taken) if taken.least() < Some(durable) => adopted.push(sink.clone()),
                Ok(_) => {}
                Err(reason) => return Some(Outlook::Refuses(reason.to_string())),
            }
        }
        let because = format!("all state is forgotten, and nothing through epoch {durable} is read again");
        let amended = Some(Amendment { because, forget: ["all".to_owned()].into() });
        let closed = is_closed(ledger::readable(&self.manifests).last(), &self.epochs);
        let (after, replay, through, origins) = (durable, 0, durable, Vec::new());
        Some(Outlook::GoesOn { after, replay, through, closed, amended, adopted, origins })
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
        let chosen = match state::look(&config.state, &self.pipeline)? {
            Look::InUse => return Ok(best),
            Look::Absent => origins.contains(&Epoch(0)).then_some(Epoch(0)),
            Look::There(mut store) => readable_origin(origins, &self.manifests, &mut *store)?,
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
        let changes = match build::changed(genesis, &wanted.meaning, &wanted.resets.sections) {
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
                let amended = amendment(changes.as_ref(), before, &wanted.operators, &wanted.resets.sections);
                let checked = amended.and_then(|amended| -> Result<_, Unfit> {
                    amended.iter().try_for_each(|amendment| check_finished(&resume, amendment))?;
                    Ok(amended)
                });
                match checked {
                    Ok(amended) => {
                        let (through, origins) = (resume.durable, resume.origins);
                        Outlook::GoesOn { after, replay, through, closed, amended, adopted, origins }
                    }
                    Err(unfit) => Outlook::Refuses(unfit.to_string()),
                }
            }
            Err(reason) => Outlook::Refuses(reason.to_string()),
        }
    }

    /// Why a sink does not belong to the ledger, if it does not.
    fn objection(&self, sink: &str, progress: &[Progress]) -> Option<String> {
        let start = self.start();
        let mut objections =
            progress.iter().filter_map(|found| start.objection(sink, &found.lineage, found.generation));
        objections.next().map(|objection| format!("sink {sink}: {objection}"))
    }

    /// A start, as far as a sink has to know to object to it.
    fn start(&self) -> Start {
        let claim = self.claim.as_ref();
        let none = || Lineage("not begun yet".to_owned());
        Start {
            pipeline: self.pipeline.clone(),
            lineage: claim.map_or_else(none, |claim| claim.lineage.clone()),
            generation: claim.map(|claim| claim.generation).unwrap_or_default(),
            process: 0,
            shards: Shards::ALL,
            ever: 1,
            adopt: None,
        }
    }

    /// Why a sink is not reset, if it might have results twice then and nobody has said that it may.
    fn doubles(&self, sink: &str, progress: &[Progress], wanted: &Wanted) -> Option<String> {
        let durable = self.durable().unwrap_or_default();
        let reason = may_double(sink, progress, &self.start(), durable)?;
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
            Some(Claim { lineage, generation, .. }) => format!(
                "pipeline {}: ledger {}, generation {generation}, recorded {}",
                self.pipeline,
                lineage.0,
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
        lines.extend(self.skips.iter().map(|skip| format!("left out: {skip}")));
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
            Outlook::GoesOn { after, replay, through, closed, amended, adopted, .. } => json!({
                "does": "go on", "after": after.0, "replay": replay, "through": through.0, "closed": closed,
                "changed": amended.as_ref().map(|amendment| &amendment.because),
                "forgets": amended.as_ref().map(|amendment| &amendment.forget),
                "adopts": adopted,
            }),
            Outlook::Refuses(reason) => json!({ "does": "refuse", "because": reason }),
            Outlook::Unknown(reason) => json!({ "does": "unknown", "because": reason }),
        };
        json!({
            "pipeline": self.pipeline,
            "lineage": self.claim.as_ref().map(|claim| &claim.lineage.0),
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
            Outlook::GoesOn { after, replay, through, closed, amended, adopted, .. } => {
                match after {
                    Epoch(0) => f.write_str("a start would go on from the beginning")?,
                    after => write!(f, "a start would go on from the checkpoint of epoch {after}")?,
                }
                match replay {
                    0 => f.write_str(", with nothing to do again")?,
                    replay => write!(f, " and do {replay} epochs again, through {through}")?,
                }
                if let Some(Amendment { because, forget }) = amended {
                    write!(f, ", otherwise than before: {because}")?;
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
mod tests {
    use headwater_dataflows::EventTime;
    use headwater_sinks::{Generation, Lineage, Shards};

    use super::*;
    use crate::coordination::Manifest;
    use crate::coordination::ingest::TimeRules;
    use crate::ledger::Genesis;

    const AS_EVER: &str = "patterns.velocity_spike.more_than = 1\n";

    fn wanted(meaning: &str) -> Wanted {
        Wanted { meaning: meaning.into(), operators: Vec::new(), resets: Resets::default() }
    }

    fn manifest(epoch: u64, readable: bool) -> StoredManifest {
        let manifest = Manifest {
            epoch: Epoch(epoch),
            generation: Generation(2),
            wall_ms: 7_000,
            watermark: EventTime(0),
            positions: Vec::new(),
            unfinal: Vec::new(),
            all_idle: None,
            operators: Vec::new(),
            keys: Some(12),
            parts: Vec::new(),
        };
        let damaged = || LedgerError::Refused("it is damaged".into());
        StoredManifest { epoch: Epoch(epoch), manifest: readable.then_some(manifest).ok_or_else(damaged) }
    }

    /// Recorded through 9, with checkpoints of 4 and 6, of which the newer is damaged; sinks have 8 and 5.
    fn facts() -> Facts {
        let lineage = Lineage("ab".into());
        let genesis = Some(Genesis { starts: Vec::new(), meaning: AS_EVER.into() });
        let record = |epoch| EpochRecord {
            epoch: Epoch(epoch),
            wall_ms: 0,
            bindings: Vec::new(),
            closes: false,
            rules: TimeRules::default(),
        };
        let progress = |through| Progress {
            lineage: lineage.clone(),
            generation: Generation(3),
            shards: Shards::ALL,
            through: Epoch(through),
        };
        Facts {
            pipeline: "fraud".into(),
            claim: Some(Claim { lineage: lineage.clone(), generation: Generation(3), genesis }),
            manifests: vec![manifest(4, true), manifest(6, false)],
            pruned: Epoch(4),
            epochs: (5..10).map(record).collect(),
            sinks: vec![("a".into(), Ok(vec![progress(8)])), ("b".into(), Ok(vec![progress(5)]))],
            skips: vec!["b:6:events/3/42".parse().expect("a skip")],
            losses: Vec::new(),
            committed: vec!["a".into()],
            attempts: 0,
        }
    }

    fn refused(facts: &Facts) -> String {
        match facts.outlook(&wanted(AS_EVER)) {
            Outlook::Refuses(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_status_says_what_is_there_and_what_a_start_would_do() {
        let facts = facts();
        let outlook = facts.outlook(&wanted(AS_EVER));
        assert_eq!(
            facts.text(&outlook, 15_999),
            "pipeline fraud: ledger ab, generation 3, recorded through epoch 9\n\
             checkpoint of epoch 6: ledger: it is damaged\n\
             checkpoint of epoch 4: 8 s old, 0 bytes in 0 parts, 12 keys\n\
             sink a: through epoch 8\n\
             sink b: through epoch 5\n\
             left out: b:6:events/3/42\n\
             a start would go on from the checkpoint of epoch 4 and do 5 epochs again, through 9\n"
        );
        let json = facts.json(&outlook, 15_999);
        assert_eq!((&json["generation"], &json["recorded_through"]), (&json!(3), &json!(9)));
        assert_eq!(
            json["checkpoints"][1],
            json!({ "epoch": 4, "age_s": 8, "bytes": 0, "parts": 0, "keys": 12 })
        );
        assert_eq!(json["checkpoints"][0]["error"], "ledger: it is damaged");
        assert_eq!(json["sinks"][1], json!({ "name": "b", "through": 5, "generation": 3 }));
        let start = json!({ "does": "go on", "after": 4, "replay": 5, "through": 9, "closed": false, "changed": null, "forgets": null, "adopts": [] });
        assert_eq!(json["start"], start);
    }

    #[test]
    fn a_change_waits_for_a_stop_and_names_what_it_forgets() {
        let changed = Wanted {
            resets: Resets { sections: ["patterns".to_owned()].into(), ..Resets::default() },
            ..wanted("patterns.velocity_spike.more_than = 2\n")
        };
        let outlook = facts().outlook(&changed);
        let waits = "and not everything through epoch 9 is in a checkpoint and in every sink";
        assert!(matches!(&outlook, Outlook::Refuses(reason) if reason.contains(waits)), "{outlook:?}");

        let mut stopped = facts();
        stopped.manifests = vec![manifest(9, true)];
        for (_, progress) in &mut stopped.sinks {
            progress.as_mut().expect("readable")[0].through = Epoch(9);
        }
        assert_eq!(
            stopped.outlook(&changed).to_string(),
            "a start would go on from the checkpoint of epoch 9, with nothing to do again, otherwise than before: the \
             pipeline has had `patterns.velocity_spike.more_than = 1` and is configured with `patterns.velocity_spike.more_than = 2`, forgetting patterns.velocity_spike"
        );
    }

    #[test]
    fn a_start_that_would_be_refused_is_foretold_with_its_reason() {
        let changed = facts().outlook(&wanted("patterns.velocity_spike.more_than = 2\n"));
        assert!(
            matches!(&changed, Outlook::Refuses(reason) if reason.contains("`patterns.velocity_spike.more_than = 1`")),
            "{changed:?}"
        );

        let mut other = facts();
        other.claim.as_mut().expect("claimed").lineage = Lineage("cd".into());
        let stranger = refused(&other);
        assert!(stranger.starts_with("sink a: its progress belongs to another ledger (ab)"), "{stranger}");
        assert!(stranger.contains("`--reset-sink a --accept-duplicates`"), "{stranger}");
        let resets = |accept_duplicates| Resets {
            sinks: ["a", "b"].map(str::to_owned).into(),
            accept_duplicates,
            ..Resets::default()
        };
        let unaware = other.outlook(&Wanted { resets: resets(false), ..wanted(AS_EVER) });
        assert!(
            matches!(&unaware, Outlook::Refuses(reason) if reason.contains("a second time")),
            "{unaware:?}"
        );
        let aware = other.outlook(&Wanted { resets: resets(true), ..wanted(AS_EVER) });
        assert!(matches!(&aware, Outlook::GoesOn { adopted, .. } if adopted.len() == 2), "{aware:?}");
        assert!(refused(&Facts { claim: None, ..facts() }).contains("another ledger"));

        let mut restored = facts();
        restored.claim.as_mut().expect("claimed").generation = Generation(2);
        assert!(refused(&restored).starts_with("sink a: generation 3 has written here"));
        let gone = Facts { sinks: vec![("a".into(), Ok(Vec::new()))], pruned: Epoch(0), ..facts() };
        assert!(refused(&gone).contains("its progress is gone"), "it has committed before");

        let mut new = facts();
        new.sinks.push(("c".into(), Ok(Vec::new())));
        assert!(refused(&new).starts_with("sink c has results through epoch 0 only"));

        let older = Facts { epochs: Vec::new(), ..facts() };
        assert!(
            refused(&older)
                .starts_with("sink a: it has results through epoch 8, and the ledger ends at epoch 6")
        );
    }

    #[test]
    fn what_cannot_be_read_is_not_guessed() {
        let mut facts = facts();
        facts.sinks[1].1 = Err("no answer".into());
        let outlook = facts.outlook(&wanted(AS_EVER));
        assert_eq!(outlook, Outlook::Unknown("no answer".into()));
        assert!(facts.text(&outlook, 0).contains("sink b: cannot be read: no answer\n"));
    }

    #[test]
    fn a_pipeline_that_never_began_would_begin() {
        let nothing = || Facts {
            manifests: Vec::new(),
            epochs: Vec::new(),
            sinks: Vec::new(),
            pruned: Epoch(0),
            ..facts()
        };
        assert_eq!(Facts { claim: None, ..nothing() }.outlook(&wanted(AS_EVER)), Outlook::Begins);
        let mut claimed = nothing();
        claimed.claim.as_mut().expect("claimed").genesis = None;
        assert_eq!(claimed.outlook(&wanted(AS_EVER)), Outlook::Begins);
    }
}
