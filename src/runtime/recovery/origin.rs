//! Recovery: decides where a run resumes, from the contents of the ledger, the sinks and the state store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use headwater_dataflows::{Checkpoint, Epoch, EventTime, Offset, Partition, Record, SHARDS, ShardId};
use headwater_sinks::{CommitError, OpenError, Progress, Shards, Sink, WriterContext, crash};

use crate::config::with_recorded_rules;
use crate::coordination::{
    Binding, CommittedThrough, EpochRecord, Loss, Manifest, NoOrigin, NoResume, Operator, Owners, Part,
    PartName, Positions, Recorded, Resume, Skip, apply_losses, chain, durable, is_closed, left_behind,
    lists_of, resume,
};
use crate::ledger::{Claim, Ledger, LedgerError, StoredManifest, readable};
use crate::pipeline::{ConfigChange, LiveRules, Resets};
use crate::runtime::checkpoint::contents;
use crate::runtime::checkpoint::writer::{LoadedPart, WriterId, merge, read};
use crate::runtime::failure::RunError;
use crate::runtime::recovery::compatibility::{check_finished, config_change, with_changes};
use crate::runtime::recovery::rules::{newest_rules, permitted_rules};
use crate::state::StateStore;

/// A claimed ledger, with the decisions that the start is based on.
pub struct History {
    /// The ledger that epochs are recorded in.
    pub ledger: Box<dyn Ledger>,
    /// The result of claiming the ledger.
    pub claim: Claim,
    /// The part of the configuration that determines results; recorded at the first start and at each change.
    pub semantics: String,
    /// The text of the rules with which the pipeline began.
    pub first_rules: String,
    /// The difference to the recorded configuration, if any.
    pub config_change: Option<ConfigChange>,
    /// The permitted resets.
    pub resets: Resets,
    /// The outputs that are withheld from sinks.
    pub skips: Vec<Skip>,
    /// The records that are lost and never read.
    pub losses: Vec<Loss>,
    /// The sinks that have committed in earlier runs.
    pub committed: Vec<String>,
    /// The settings of checkpoints; None if none are made.
    pub checkpoints: Option<Checkpoints>,
}

/// The settings of checkpoints.
pub struct Checkpoints {
    /// The store of their parts.
    pub store: Box<dyn StateStore>,
    /// The minimum interval between two checkpoints, in milliseconds of the epochs' wall times.
    pub interval_ms: i64,
    /// The number of checkpoints that are kept.
    pub keep: usize,
}

/// The contents of a checkpoint's parts by shard, until the shard's worker takes them.
type State = Vec<Mutex<Vec<LoadedPart>>>;

/// The point at which a run resumes.
#[derive(Default)]
pub struct Origin {
    /// The checkpoint to resume from; None at the beginning of the pipeline.
    pub manifest: Option<Manifest>,
    /// The state of that checkpoint.
    state: State,
    /// All manifests in the ledger, in order.
    pub manifests: Vec<StoredManifest>,
    /// The epoch of the newest manifest, readable or not; 0 if there is none.
    pub newest: Epoch,
    /// The epochs to be replayed.
    pub replay: Vec<EpochRecord>,
    /// The last epoch in the ledger.
    pub durable: Epoch,
    /// The committed epochs of each sink.
    pub committed_through: Vec<CommittedThrough>,
    /// The contents of lists and the pasts of rules that recorded epochs let come into force, in order.
    pub recorded_contents: Vec<(Epoch, Vec<[u8; 32]>)>,
    /// The first offset to read of each partition that has lost records to be replayed.
    pub read_from: BTreeMap<Partition, Offset>,
    /// The workers that read the partitions.
    pub owners: Owners,
}

impl Origin {
    /// Returns the origin of a run without a ledger, with this number of sinks.
    pub fn unrecorded(sinks: usize) -> Origin {
        Origin { committed_through: vec![CommittedThrough::nothing(); sinks], ..Origin::default() }
    }

    /// Builds the origin that the leader of a cluster has decided, for a process with these shards.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn from_leader(
        manifest: Option<Manifest>,
        checkpoints: Option<&mut Checkpoints>,
        shards: Shards,
        durable: Epoch,
        committed_through: Vec<CommittedThrough>,
    ) -> Result<Origin, RunError> {
        let state = match (&manifest, checkpoints) {
            (Some(manifest), Some(Checkpoints { store, .. })) => load(&mut **store, manifest, shards)?,
            _ => State::new(),
        };
        Ok(Origin { manifest, state, durable, committed_through, ..Origin::default() })
    }

    /// Removes lost records from the epochs to be replayed, which begin at these positions.
    pub fn apply_losses(&mut self, positions: &Positions, losses: &[Loss]) {
        self.read_from = apply_losses(&mut self.replay, positions.as_slice(), losses);
    }

    /// Replaces the bindings of a replayed epoch by the recorded ones where lost records had counted: the remaining
    /// records must end alike, but the times that they bind are incomplete.
    pub fn use_recorded_bindings(&self, before: &EpochRecord, now: &mut [Binding], positions: &Positions) {
        for binding in now {
            let next = positions.as_slice().get(binding.partition.0 as usize).map(|position| position.next);
            if self.read_from.get(&binding.partition).is_none_or(|from| next > Some(*from)) {
                continue;
            }
            let same = |before: &&Binding| {
                (before.partition, before.end, before.timestamp)
                    == (binding.partition, binding.end, binding.timestamp)
            };
            if let Some(recorded) = before.bindings.iter().find(same) {
                *binding = *recorded;
            }
        }
    }

    /// Returns the watermark before the first epoch of the run.
    pub fn watermark(&self) -> EventTime {
        self.manifest.as_ref().map_or(EventTime::MIN, |manifest| manifest.watermark)
    }

    /// Returns the last recorded wall time, in milliseconds since 1970, if any.
    pub fn recorded_wall_ms(&self) -> Option<i64> {
        let replayed = self.replay.last().map(|record| record.wall_ms);
        replayed.or_else(|| self.manifest.as_ref().map(|manifest| manifest.wall_ms))
    }

    /// Returns true if the input was closed and every window is final, so that no further epoch can follow.
    pub fn is_closed(&self) -> bool {
        is_closed(self.manifest.as_ref(), &self.replay)
    }

    /// Returns the parts that those of the next checkpoint follow.
    pub fn parts(&self) -> &[Part] {
        self.manifest.as_ref().map_or(&[], |manifest| &manifest.parts)
    }

    /// Takes the state of a worker's shards; can be called once per worker. None at the beginning of the pipeline.
    ///
    /// # Errors
    /// If a part has an unknown version.
    pub fn state(&self, worker: usize, peers: usize) -> Result<Option<Checkpoint>, RunError> {
        let Some(manifest) = &self.manifest else { return Ok(None) };
        let mut records: Vec<Record> = Vec::new();
        for shard in (0..SHARDS).map(ShardId).filter(|shard| shard.worker(peers) == worker) {
            let mut parts =
                self.state[shard.0 as usize].lock().expect("no thread panics while it holds the lock");
            records.extend(merge(&std::mem::take(&mut *parts))?.records(shard));
        }
        Ok(Some(Checkpoint { epoch: manifest.epoch, watermark: manifest.watermark, records }))
    }
}

/// Decides where a start with these operators resumes, from the progress of each sink, and reads the state of these shards. A
/// changed configuration is recorded first. Deletes parts of earlier starts that no manifest needs from the state store.
///
/// # Errors
/// If there is no point to resume from, or its state cannot be read.
pub fn origin(
    history: &mut History,
    sinks: &[(&str, &[Progress])],
    operators: &[Operator],
    live: &LiveRules,
    shards: Shards,
) -> Result<Origin, RunError> {
    let History {
        ledger,
        claim,
        checkpoints,
        semantics,
        first_rules,
        config_change: changes,
        resets,
        committed,
        ..
    } = history;
    let Records { manifests, pruned, mut epochs } = Records::read(&mut **ledger)?;
    if checkpoints.is_none() && !manifests.is_empty() {
        return Err(needs_checkpoints().into());
    }
    for stored in &manifests {
        if let Err(error) = &stored.manifest {
            tracing::warn!(epoch = %stored.epoch, %error, "skipping unreadable checkpoint");
        }
    }
    let resume = resume_from(&manifests, pruned, &epochs, committed, sinks)?;
    let newest = readable(&manifests).find(|manifest| resume.origins.first() == Some(&manifest.epoch));
    let before = newest.map_or(operators, |manifest| &manifest.operators);
    if let Some(config_change) = config_change(changes.as_ref(), before, operators, &resets.sections)? {
        check_finished(&resume, &config_change)?;
        let manifest = match (newest, &mut *checkpoints) {
            (Some(manifest), Some(Checkpoints { store, .. })) => {
                let writer_id = WriterId { ledger_id: claim.ledger_id.clone(), generation: claim.generation };
                let mut changed =
                    with_changes(&mut **store, &writer_id, manifest, &config_change, operators)?;
                changed.in_force.replace_rules(|text| permitted_rules(text, live))?;
                Some(changed)
            }
            _ => None,
        };
        crash::point("ledger.amend.before");
        let rules = permitted_rules(newest_rules(first_rules, newest, &epochs), live)?;
        ledger.amend(&with_recorded_rules(semantics, &rules), manifest.as_ref())?;
        crash::point("ledger.amend.after");
        tracing::info!(
            reason = config_change.reason,
            discarded = %config_change.discarded.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
            "resuming with a changed configuration"
        );
        *changes = None;
        return origin(history, sinks, operators, live, shards);
    }
    let recorded_contents = recorded_contents(&epochs);
    let (manifest, state) = match checkpoints {
        None => (None, Vec::new()),
        Some(Checkpoints { store, .. }) => {
            let chosen = first_readable(&resume.origins, &manifests, &mut **store, shards)?;
            let chosen =
                chosen.ok_or(NoResume::from(NoOrigin::Unreadable { pruned, durable: resume.durable }))?;
            delete_unused(&mut **store, claim, &manifests, &recorded_contents)?;
            chosen
        }
    };
    let epoch = manifest.as_ref().map_or(Epoch(0), |manifest| manifest.epoch);
    epochs.retain(|record| record.epoch > epoch);
    Ok(Origin {
        manifest,
        state,
        newest: manifests.last().map_or(Epoch(0), |stored| stored.epoch),
        manifests,
        replay: epochs,
        durable: resume.durable,
        committed_through: resume.committed_through,
        recorded_contents,
        read_from: BTreeMap::new(),
        owners: Owners::default(),
    })
}

/// Returns the contents in the state store that recorded epochs refer to.
fn recorded_contents(epochs: &[EpochRecord]) -> Vec<(Epoch, Vec<[u8; 32]>)> {
    let of_epoch = |record: &EpochRecord| (record.epoch, record.change.hashes().collect::<Vec<_>>());
    epochs.iter().map(of_epoch).filter(|(_, hashes)| !hashes.is_empty()).collect()
}

/// Returns the refusal of a start without checkpoints of a pipeline that has them.
pub fn needs_checkpoints() -> LedgerError {
    let reason = "the pipeline has checkpoints: it cannot resume without [checkpoint] and the [state] that holds them; \
                  restore both sections; `headwater status` reports if the state store is lost";
    LedgerError::Refused(reason.into())
}

/// The contents of a ledger.
pub struct Records {
    /// All manifests, in order.
    pub manifests: Vec<StoredManifest>,
    /// The epoch through which recorded epochs were pruned.
    pub pruned: Epoch,
    /// All remaining epochs, in order.
    pub epochs: Vec<EpochRecord>,
}

impl Records {
    /// Reads the contents of a ledger.
    ///
    /// # Errors
    /// If the ledger fails, or an epoch is damaged.
    pub fn read(ledger: &mut dyn Ledger) -> Result<Records, LedgerError> {
        let (manifests, pruned) = (ledger.manifests()?, ledger.pruned()?);
        Ok(Records { manifests, pruned, epochs: ledger.epochs(pruned)? })
    }
}

/// Decides how a start resumes, from the contents of the ledger and the progress of the sinks.
///
/// # Errors
/// If the start must be refused.
pub fn resume_from(
    manifests: &[StoredManifest],
    pruned: Epoch,
    epochs: &[EpochRecord],
    committed: &[String],
    sinks: &[(&str, &[Progress])],
) -> Result<Resume, NoResume> {
    let all: Vec<_> = manifests.iter().map(|stored| stored.epoch).collect();
    let known: Vec<_> = readable(manifests).map(|manifest| manifest.epoch).collect();
    let last_round = epochs.last().map(|last| last.epoch);
    resume(Recorded { last_round, manifests: &all, readable: &known, pruned, committed }, sinks)
}

/// The progress found in an opened sink.
pub struct OpenedSink {
    /// The progress of its writers.
    pub progress: Vec<Progress>,
    /// The last epoch that it has ever committed, of any ledger.
    pub latest: Epoch,
}

/// Returns the last epoch in this progress; 0 if there is none.
fn latest(progress: &[Progress]) -> Epoch {
    progress.iter().map(|progress| progress.through).max().unwrap_or_default()
}

/// Opens a sink and returns its progress. A sink whose progress does not follow from the ledger is marked as caught up
/// with it, if that is permitted.
///
/// # Errors
/// If the sink cannot be opened, or the start must be refused.
pub fn open_sink(
    sink: &mut dyn Sink,
    context: &WriterContext,
    history: Option<&mut History>,
) -> Result<OpenedSink, RunError> {
    let found = |progress: Vec<Progress>| OpenedSink { latest: latest(&progress), progress };
    let opened = sink.open(context);
    let Some(History { ledger, resets, committed, .. }) = history else { return Ok(found(opened?)) };
    let ledger = &mut **ledger;
    let is_new =
        |progress: &[Progress]| progress.is_empty() && committed.iter().all(|name| name != sink.name());
    let joins =
        resets.joining.contains(sink.name()) && opened.as_ref().is_ok_and(|progress| is_new(progress));
    if joins || resets.sinks.contains(sink.name()) {
        let Records { manifests, pruned, epochs } = Records::read(ledger)?;
        let all: Vec<_> = manifests.iter().map(|stored| stored.epoch).collect();
        let durable = durable(epochs.last().map(|last| last.epoch), &all);
        // From its first start on, the sink has progress. So one that was opened and then killed does not join again.
        if joins && (durable == Epoch(0) || context.shards == Shards::ALL) {
            tracing::debug!(sink = sink.name(), after = %durable, "the sink begins at the end of the ledger");
            return adopt_sink(sink, context, durable, Epoch(0));
        }
        let must_adopt = match &opened {
            Ok(progress) => {
                resume_from(&manifests, pruned, &epochs, committed, &[(sink.name(), progress)]).is_err()
            }
            Err(error) => matches!(error, OpenError::Refused { .. }),
        };
        if must_adopt {
            let present = sink.peek_progress(&context.pipeline)?;
            let before = latest(&present);
            if !resets.accept_duplicates
                && let Some(reason) = duplicate_risk_of(sink.name(), &present, context, durable)
            {
                return Err(OpenError::Refused { sink: sink.name().to_owned(), reason }.into());
            }
            tracing::warn!(sink = sink.name(), through = %durable, "marked as caught up with the ledger");
            let adopted = adopt_sink(sink, context, durable, before);
            return adopted.map_err(|error| attribute_fencing(error, ledger, context));
        }
    }
    opened.map(found).map_err(|error| attribute_fencing(error.into(), ledger, context))
}

/// Opens a sink and marks it as caught up through epoch `durable`, whatever its progress. `latest` is the last epoch that
/// it had before.
///
/// # Errors
/// If the sink cannot be opened, or refuses the writer.
pub fn adopt_sink(
    sink: &mut dyn Sink,
    context: &WriterContext,
    durable: Epoch,
    latest: Epoch,
) -> Result<OpenedSink, RunError> {
    let progress = sink.open(&WriterContext { adopt: Some(durable), ..context.clone() })?;
    Ok(OpenedSink { progress, latest: latest.max(durable) })
}

/// Returns the reason why marking a sink as caught up with the ledger may write results twice; None if it cannot.
pub fn duplicate_risk_of(
    sink: &str,
    progress: &[Progress],
    context: &WriterContext,
    durable: Epoch,
) -> Option<String> {
    let foreign = progress
        .iter()
        .any(|progress| progress.ledger_id != context.ledger_id || progress.generation > context.generation);
    let has = latest(progress);
    (foreign || has > durable).then(|| {
        format!(
            "it has results through epoch {has} that are not recorded in this ledger, which ends at epoch {durable}: \
             reading the input again writes them a second time; `--adopt-sink {sink} --accept-duplicates` accepts that \
             (tables refuse rows that they already have: empty them first)"
        )
    })
}

/// Attributes a fenced or refused sink to its cause. If the ledger has a newer generation, a successor has replaced this
/// run. If it has the generation of this run, a zombie has fenced the sink again before it was fenced itself: then a
/// restart helps.
pub fn attribute_fencing(error: RunError, ledger: &mut dyn Ledger, context: &WriterContext) -> RunError {
    let is_fenced = match &error {
        RunError::Commit(CommitError::Fenced { .. }) | RunError::Open(OpenError::Fenced { .. }) => true,
        RunError::Open(OpenError::Refused { .. }) => false,
        _ => return error,
    };
    match ledger.peek() {
        Ok(Some(claim)) if claim.generation == context.generation && is_fenced => fenced_by_zombie(error),
        Ok(Some(claim)) if claim.generation > context.generation && !is_fenced => {
            LedgerError::Fenced { pipeline: context.pipeline.clone(), generation: claim.generation }.into()
        }
        Ok(_) => error,
        Err(error) => error.into(),
    }
}

/// Attributes fencing to a zombie. A follower always does so, since it has no ledger to check: it is restarted, and the
/// leader decides.
pub fn fenced_by_zombie(error: RunError) -> RunError {
    match error {
        RunError::Commit(CommitError::Fenced { sink, reason })
        | RunError::Open(OpenError::Fenced { sink, reason }) => RunError::FencedByZombie { sink, reason },
        error => error,
    }
}

/// Returns the best of these origins whose state can be read, with the state of these shards; None if there is none. Of other
/// shards, which other processes read, all parts must exist.
fn first_readable(
    origins: &[Epoch],
    manifests: &[StoredManifest],
    store: &mut dyn StateStore,
    shards: Shards,
) -> Result<Option<(Option<Manifest>, State)>, RunError> {
    for &origin in origins {
        let Some(manifest) = readable(manifests).find(|manifest| manifest.epoch == origin) else {
            // The beginning of the pipeline.
            return Ok(Some((None, State::new())));
        };
        match require_parts(store, manifest, shards).and_then(|()| load(store, manifest, shards)) {
            Ok(state) => return Ok(Some((Some(manifest.clone()), state))),
            Err(error @ RunError::Part { .. }) => {
                tracing::warn!(epoch = %origin, %error, "skipping unreadable checkpoint");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Returns the best of these origins whose state can be read; None if there is none.
///
/// # Errors
/// If the store fails.
pub fn readable_origin(
    origins: &[Epoch],
    manifests: &[StoredManifest],
    store: &mut dyn StateStore,
) -> Result<Option<Epoch>, RunError> {
    let chosen = first_readable(origins, manifests, store, Shards::ALL)?;
    Ok(chosen.map(|(manifest, _)| manifest.map_or(Epoch(0), |manifest| manifest.epoch)))
}

/// Deletes parts and contents of lists of earlier starts that the ledger does not need from the state store. Deletes nothing
/// if a manifest is unreadable: another version may be able to read it, and what it needs is unknown.
fn delete_unused(
    store: &mut dyn StateStore,
    claim: &Claim,
    manifests: &[StoredManifest],
    recorded_contents: &[(Epoch, Vec<[u8; 32]>)],
) -> Result<(), RunError> {
    if manifests.iter().any(|stored| stored.manifest.is_err()) {
        return Ok(());
    }
    let found = store.list(&format!("{}/", claim.ledger_id.0))?;
    let found = found.iter().map(String::as_str);
    let unused = left_behind(found, &claim.ledger_id, claim.generation, readable(manifests));
    store.delete_all(&unused.iter().map(PartName::to_string).collect::<Vec<_>>())?;
    let mut needed = lists_of(readable(manifests));
    needed.extend(recorded_contents.iter().flat_map(|(_, hashes)| hashes));
    contents::delete_unused(store, &claim.ledger_id, claim.generation, &needed)?;
    Ok(())
}

/// Checks that all parts of a checkpoint for other shards than these exist.
fn require_parts(store: &mut dyn StateStore, manifest: &Manifest, shards: Shards) -> Result<(), RunError> {
    let is_of_others = |part: &&Part| !shards.contains(part.name.shard);
    let Some(first) = manifest.parts.iter().find(is_of_others) else { return Ok(()) };
    let names = store.list(&format!("{}/", first.name.ledger_id.0))?;
    let found: BTreeSet<_> = names.iter().map(String::as_str).collect();
    let missing = |part: &&Part| !found.contains(&*part.name.to_string());
    match manifest.parts.iter().filter(is_of_others).find(missing) {
        Some(part) => Err(RunError::Part { name: part.name.to_string(), damage: "it is missing".to_owned() }),
        None => Ok(()),
    }
}

/// Loads the parts of a checkpoint for these shards, all at once: a store may read several at a time.
fn load(store: &mut dyn StateStore, manifest: &Manifest, shards: Shards) -> Result<State, RunError> {
    let chain = |shard| chain(&manifest.parts, shard).filter(move |_| shards.contains(shard));
    let mut loaded = read(store, (0..SHARDS).map(ShardId).flat_map(chain))?.into_iter();
    let of_shard = |shard| Mutex::new(loaded.by_ref().take(chain(shard).count()).collect());
    Ok((0..SHARDS).map(ShardId).map(of_shard).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::SqliteLedger;
    use headwater_sinks::LedgerId;

    #[test]
    fn fencing_is_attributed_to_a_successor_or_a_zombie() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || SqliteLedger::open(&dir.path().join("ledger.db"), "fraud").expect("opened");
        let mut ledger = open();
        let context = WriterContext {
            pipeline: "fraud".to_owned(),
            ledger_id: LedgerId("a".to_owned()),
            generation: ledger.claim().expect("claimed").generation,
            process: 0,
            shards: Shards::ALL,
            max_processes: 1,
            adopt: None,
        };
        let (sink, reason) = (|| "events".to_owned(), || "a newer instance".to_owned());
        let fenced = || {
            [
                RunError::from(OpenError::Fenced { sink: sink(), reason: reason() }),
                CommitError::Fenced { sink: sink(), reason: reason() }.into(),
            ]
        };
        let refused = || RunError::from(OpenError::Refused { sink: sink(), reason: reason() });
        for error in fenced() {
            let fenced_by_zombie = attribute_fencing(error, &mut ledger, &context);
            assert!(matches!(fenced_by_zombie, RunError::FencedByZombie { .. }), "{fenced_by_zombie:?}");
            assert!(!fenced_by_zombie.is_refusal(), "a restart helps");
        }
        let its_own = attribute_fencing(refused(), &mut ledger, &context);
        assert!(matches!(its_own, RunError::Open(OpenError::Refused { .. })), "{its_own:?}");
        open().claim().expect("a successor");
        for error in fenced().into_iter().chain([refused()]) {
            let replaced = attribute_fencing(error, &mut ledger, &context);
            assert!(replaced.is_refusal() && replaced.is_replacement(), "{replaced:?}");
        }
    }
}
