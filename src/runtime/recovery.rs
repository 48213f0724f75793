//! The start of a run: from what the ledger, the sinks and the state store have to where it goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use headwater_dataflows::{Checkpoint, Epoch, EventTime, Offset, Partition, Record, SHARDS, ShardId};
use headwater_sinks::{CommitError, OpenError, Progress, Shards, Sink, WriterContext, crash};

use super::checkpoint_writer::{LoadedPart, WriterId, merge, read};
use super::config_change::{ConfigChange, check_finished, config_change, with_changes};
use super::failure::RunError;
use crate::coordination::{
    Binding, CommittedThrough, EpochRecord, Loss, Manifest, NoOrigin, NoResume, Operator, Part, Positions,
    Recorded, Resume, Skip, apply_losses, chain, durable, is_closed, left_behind, resume,
};
use crate::ledger::{Claim, Ledger, LedgerError, StoredManifest, readable};
use crate::state::StateStore;

/// A ledger that was claimed, and what goes with it.
pub struct History {
    /// Where epochs are recorded.
    pub ledger: Box<dyn Ledger>,
    /// What claiming it has found.
    pub claim: Claim,
    /// What decides the pipeline's answers: recorded when it begins, and when it is amended.
    pub semantics: String,
    /// What its configuration no longer says as it did, if anything.
    pub config_change: Option<ConfigChange>,
    /// What may be reset where it has to.
    pub resets: Resets,
    /// What sinks are not given.
    pub skips: Vec<Skip>,
    /// What is never read.
    pub losses: Vec<Loss>,
    /// The sinks that have committed before.
    pub committed: Vec<String>,
    /// Where and how often checkpoints are made, if they are.
    pub checkpoints: Option<Checkpoints>,
}

/// What may be reset, if a start would be refused otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resets {
    /// What may forget its state, by section of the configuration.
    pub sections: BTreeSet<String>,
    /// Sinks that may be marked as caught up with the ledger, whatever they have.
    pub sinks: BTreeSet<String>,
    /// Whether a sink may be given results again that it has, which the ledger does not know of.
    pub accept_duplicates: bool,
    /// All state may be forgotten, and nothing replayed, if the ledger ends with this epoch.
    pub all: Option<Epoch>,
}

/// Where and how often checkpoints are made.
pub struct Checkpoints {
    /// Where their parts are put.
    pub store: Box<dyn StateStore>,
    /// The least time between two, in milliseconds of the epochs' wall times.
    pub interval_ms: i64,
    /// How many a start can go back to.
    pub keep: usize,
}

/// By shard, the contents of a checkpoint's parts, until the shard's worker takes them.
type State = Vec<Mutex<Vec<LoadedPart>>>;

/// Where a run goes on.
#[derive(Default)]
pub struct Origin {
    /// The checkpoint that it goes on from; none at the beginning of the pipeline.
    pub manifest: Option<Manifest>,
    /// The state of that checkpoint.
    state: State,
    /// All manifests that the ledger has, in order.
    pub manifests: Vec<StoredManifest>,
    /// The epoch of the newest, readable or not; 0 if there is none.
    pub newest: Epoch,
    /// The epochs to be done again.
    pub replay: Vec<EpochRecord>,
    /// The ledger's end.
    pub durable: Epoch,
    /// By sink, what it has.
    pub committed_through: Vec<CommittedThrough>,
    /// By partition, the first offset that is read, of those that have lost records that were to be replayed.
    pub read_from: BTreeMap<Partition, Offset>,
}

impl Origin {
    /// Of a run that goes on from nothing that is recorded, into so many sinks.
    pub fn unrecorded(sinks: usize) -> Origin {
        Origin { committed_through: vec![CommittedThrough::nothing(); sinks], ..Origin::default() }
    }

    /// As the first process of a cluster has decided it, for a process with these shards.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn handed(
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

    /// Takes what is lost from what is replayed, which begins at these positions.
    pub fn apply_losses(&mut self, positions: &Positions, losses: &[Loss]) {
        self.read_from = apply_losses(&mut self.replay, positions.as_slice(), losses);
    }

    /// What an epoch that was replayed bound, as it is recorded where records that had counted are lost: what is left of
    /// them must be what was recorded, and says less of time.
    pub fn as_recorded(&self, before: &EpochRecord, now: &mut [Binding], positions: &Positions) {
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

    /// The watermark before the first epoch that is done.
    pub fn watermark(&self) -> EventTime {
        self.manifest.as_ref().map_or(EventTime::MIN, |manifest| manifest.watermark)
    }

    /// The wall time that was recorded last, in milliseconds since 1970, if any was.
    pub fn recorded_wall_ms(&self) -> Option<i64> {
        let replayed = self.replay.last().map(|record| record.wall_ms);
        replayed.or_else(|| self.manifest.as_ref().map(|manifest| manifest.wall_ms))
    }

    /// Whether the input was over, and every window final: nothing can follow.
    pub fn is_closed(&self) -> bool {
        is_closed(self.manifest.as_ref(), &self.replay)
    }

    /// The parts that the next checkpoint's follow.
    pub fn parts(&self) -> &[Part] {
        self.manifest.as_ref().map_or(&[], |manifest| &manifest.parts)
    }

    /// The state of the shards of one of so many workers, to be taken once; none at the beginning.
    ///
    /// # Errors
    /// If a part is of a version that is not known here.
    pub fn state(&self, worker: usize, peers: usize) -> Result<Option<Checkpoint>, RunError> {
        let Some(manifest) = &self.manifest else { return Ok(None) };
        let mut records: Vec<Record> = Vec::new();
        for shard in (0..SHARDS).map(ShardId).filter(|shard| shard.worker(peers) == worker) {
            let mut parts = self.state[shard.0 as usize].lock().expect("no holder of the lock panics");
            records.extend(merge(&std::mem::take(&mut *parts))?.records(shard));
        }
        Ok(Some(Checkpoint { epoch: manifest.epoch, watermark: manifest.watermark, records }))
    }
}

/// Decides where a start goes on with these operators, given what each sink has, and reads the state that is there. What
/// is no longer as it was is amended before. What earlier starts left in the state store and nobody needs is deleted.
///
/// # Errors
/// If there is nothing to go on from, or what there is cannot be read.
pub fn origin(
    history: &mut History,
    sinks: &[(&str, &[Progress])],
    operators: &[Operator],
) -> Result<Origin, RunError> {
    let History { ledger, claim, checkpoints, semantics, config_change: changes, resets, committed, .. } =
        history;
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
                Some(with_changes(&mut **store, &writer_id, manifest, &config_change, operators)?)
            }
            _ => None,
        };
        crash::point("ledger.amend.before");
        ledger.amend(semantics, manifest.as_ref())?;
        crash::point("ledger.amend.after");
        tracing::info!(because = config_change.because, forgotten = ?config_change.forget, "resuming with a changed configuration");
        *changes = None;
        return origin(history, sinks, operators);
    }
    let (manifest, state) = match checkpoints {
        None => (None, Vec::new()),
        Some(Checkpoints { store, .. }) => {
            let chosen = choose(&resume.origins, &manifests, &mut **store)?;
            let chosen =
                chosen.ok_or(NoResume::from(NoOrigin::Unreadable { pruned, durable: resume.durable }))?;
            tidy(&mut **store, claim, &manifests)?;
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
        read_from: BTreeMap::new(),
    })
}

/// Why a pipeline that has checkpoints does not go on without them.
pub fn needs_checkpoints() -> LedgerError {
    let reason = "the pipeline has checkpoints: it cannot go on without [checkpoint], nor without the [state] that has them; \
                  restore both sections, and `headwater status` says whether their store is lost";
    LedgerError::Refused(reason.into())
}

/// What a ledger has.
pub struct Records {
    /// Every manifest, in order.
    pub manifests: Vec<StoredManifest>,
    /// Through which epoch rounds were pruned.
    pub pruned: Epoch,
    /// Every epoch that is left, in order.
    pub epochs: Vec<EpochRecord>,
}

impl Records {
    /// All of it.
    ///
    /// # Errors
    /// If the ledger fails, or an epoch is damaged.
    pub fn read(ledger: &mut dyn Ledger) -> Result<Records, LedgerError> {
        let (manifests, pruned) = (ledger.manifests()?, ledger.pruned()?);
        Ok(Records { manifests, pruned, epochs: ledger.epochs(pruned)? })
    }
}

/// How a start goes on from what a ledger has, and what sinks have.
///
/// # Errors
/// If it must not.
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

/// What an opened sink has.
pub struct Found {
    /// What its writers have promised.
    pub progress: Vec<Progress>,
    /// The last epoch that it ever had, whichever ledger's.
    pub latest: Epoch,
}

/// The last epoch of which anything is there.
fn latest(progress: &[Progress]) -> Epoch {
    progress.iter().map(|progress| progress.through).max().unwrap_or_default()
}

/// Opens a sink, and says what it has. One that does not follow from the ledger is taken, if it may be, for having
/// everything that is recorded.
///
/// # Errors
/// If it cannot be opened, or must not be.
pub fn open_sink(
    sink: &mut dyn Sink,
    context: &WriterContext,
    history: Option<&mut History>,
) -> Result<Found, RunError> {
    let found = |progress: Vec<Progress>| Found { latest: latest(&progress), progress };
    let opened = sink.open(context);
    let Some(History { ledger, resets, committed, .. }) = history else { return Ok(found(opened?)) };
    let ledger = &mut **ledger;
    if resets.sinks.contains(sink.name()) {
        let Records { manifests, pruned, epochs } = Records::read(ledger)?;
        let all: Vec<_> = manifests.iter().map(|stored| stored.epoch).collect();
        let durable = durable(epochs.last().map(|last| last.epoch), &all);
        let unfit = match &opened {
            Ok(progress) => {
                resume_from(&manifests, pruned, &epochs, committed, &[(sink.name(), progress)]).is_err()
            }
            Err(error) => matches!(error, OpenError::Refused { .. }),
        };
        if unfit {
            let there = sink.peek_progress(&context.pipeline)?;
            let before = latest(&there);
            if !resets.accept_duplicates
                && let Some(reason) = may_double(sink.name(), &there, context, durable)
            {
                return Err(OpenError::Refused { sink: sink.name().to_owned(), reason }.into());
            }
            tracing::warn!(sink = sink.name(), through = %durable, "marked as caught up with the ledger");
            let anew = open_sink_anew(sink, context, durable, before);
            return anew.map_err(|error| attribute_fencing(error, ledger, context));
        }
    }
    opened.map(found).map_err(|error| attribute_fencing(error.into(), ledger, context))
}

/// Opens a sink that is taken for having everything through an epoch, whatever it had, through `latest`.
///
/// # Errors
/// If it cannot be opened, or must not be.
pub fn open_sink_anew(
    sink: &mut dyn Sink,
    context: &WriterContext,
    durable: Epoch,
    latest: Epoch,
) -> Result<Found, RunError> {
    let progress = sink.open(&WriterContext { adopt: Some(durable), ..context.clone() })?;
    Ok(Found { progress, latest: latest.max(durable) })
}

/// Why a sink may get results twice if it is taken for having what is recorded, if it may.
pub fn may_double(
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
            "it has results through epoch {has} that this ledger, which ends at epoch {durable}, does not know: what is \
             read again gives them a second time; `--reset-sink {sink} --accept-duplicates` accepts that (tables that \
             have the rows already refuse them: empty those first)"
        )
    })
}

/// Whether a sink was fenced, or refused, because of a successor, which the ledger knows, or fenced by a predecessor that has
/// woken up and has taken its own ids back before it found that it has nothing to say: then a restart helps.
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

/// Takes being fenced for the work of a predecessor. So does a process that does not have the ledger and cannot tell: it
/// is started again, and the first process, which can, decides.
pub fn fenced_by_zombie(error: RunError) -> RunError {
    match error {
        RunError::Commit(CommitError::Fenced { sink, reason })
        | RunError::Open(OpenError::Fenced { sink, reason }) => RunError::FencedByZombie { sink, reason },
        error => error,
    }
}

/// The best of these origins whose state can be read, and that state; none if there is none.
fn choose(
    origins: &[Epoch],
    manifests: &[StoredManifest],
    store: &mut dyn StateStore,
) -> Result<Option<(Option<Manifest>, State)>, RunError> {
    for &origin in origins {
        let Some(manifest) = readable(manifests).find(|manifest| manifest.epoch == origin) else {
            // The beginning.
            return Ok(Some((None, State::new())));
        };
        match load(store, manifest, Shards::ALL) {
            Ok(state) => return Ok(Some((Some(manifest.clone()), state))),
            Err(error @ RunError::Part { .. }) => {
                tracing::warn!(epoch = %origin, %error, "skipping unreadable checkpoint");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The best of these origins whose state can be read; none if there is none.
///
/// # Errors
/// If the store fails.
pub fn readable_origin(
    origins: &[Epoch],
    manifests: &[StoredManifest],
    store: &mut dyn StateStore,
) -> Result<Option<Epoch>, RunError> {
    let chosen = choose(origins, manifests, store)?;
    Ok(chosen.map(|(manifest, _)| manifest.map_or(Epoch(0), |manifest| manifest.epoch)))
}

/// Deletes what earlier starts left in the state store and no manifest needs. What a manifest needs that cannot be read
/// here, and perhaps can by another version, is not known: then everything stays.
fn tidy(store: &mut dyn StateStore, claim: &Claim, manifests: &[StoredManifest]) -> Result<(), RunError> {
    if manifests.iter().any(|stored| stored.manifest.is_err()) {
        return Ok(());
    }
    let found = store.list(&format!("{}/", claim.ledger_id.0))?;
    let found = found.iter().map(String::as_str);
    for name in left_behind(found, &claim.ledger_id, claim.generation, readable(manifests)) {
        store.delete(&name.to_string())?;
    }
    Ok(())
}

/// By shard, what a checkpoint's parts hold of these shards.
fn load(store: &mut dyn StateStore, manifest: &Manifest, shards: Shards) -> Result<State, RunError> {
    let of_shard = |shard| {
        let parts = chain(&manifest.parts, shard).filter(|_| shards.contains(shard));
        read(store, parts).map(Mutex::new)
    };
    (0..SHARDS).map(ShardId).map(of_shard).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::SqliteLedger;
    use headwater_sinks::LedgerId;

    #[test]
    fn whoever_is_fenced_asks_the_ledger_whether_it_has_a_successor_or_was_only_disturbed() {
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
