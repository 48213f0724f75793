//! The start of a run: fences and opens the sinks, decides where the run resumes, and opens the source there. In a
//! cluster with a ledger, the leader does this and sends the followers what they need to open theirs.

use std::sync::Arc;

use headwater_dataflows::{Epoch, Offset, Partition};
use headwater_sinks::{Generation, LedgerId, Progress, WriterContext, crash};

use crate::cluster::{Cluster, ClusterSettings, ClusterStart};
use crate::config::with_recorded_rules;
use crate::coordination::{
    CommittedThrough, EpochRecord, ListVersion, Loss, Manifest, Owners, Position, Positions, Skip, Versions,
};
use crate::ledger::{Claim, Genesis, Ledger, LedgerError, decode_manifest, encode_manifest};
use crate::metrics::Metrics;
use crate::outputs::SinkJob;
use crate::pipeline::{LiveRules, Plan, RuleSetPlan, operators};
use crate::runtime::checkpoint::writer::WriterId;
use crate::runtime::failure::RunError;
use crate::runtime::ingest::changes::ChangeRequests;
use crate::runtime::local;
use crate::runtime::recovery::bootstrap::{ClusterBootstrap, exchange_bootstrap, local_workers, processes};
use crate::runtime::recovery::discard::{DiscardContext, discard_state, reset_epoch};
use crate::runtime::recovery::lists::{
    Preloaded, StartLists, add_first, begin, newest, read_first, record_changed, replayed, retain_known,
};
use crate::runtime::recovery::origin::{
    Checkpoints, History, OpenedSink, Origin, Records, fenced_by_zombie, open_sink, origin,
};
use crate::runtime::recovery::rules::{
    add_spaces, all_rules, first_rules, in_force, load_pasts, permitted_rules, replayed_pasts,
    request_configured,
};
use crate::source::{Opening, Source};

/// The role of a process in a run.
pub enum Role {
    /// Runs without a ledger: the state is empty, and reading starts where the source starts.
    Unrecorded,
    /// Uses the ledger: replays recorded epochs, and records new ones.
    Leader(Box<History>),
    /// Uses what the leader of the cluster sends.
    Follower(Box<Following>),
}

/// The data and options of a process that does not use the ledger.
pub struct Following {
    /// The settings that the results depend on; they must be equal in all processes.
    pub semantics: String,
    /// The settings of checkpoints; None if checkpoints are disabled.
    pub checkpoints: Option<Checkpoints>,
}

/// A run that is ready: its sinks and its source are open.
pub struct PreparedRun {
    /// The identity of the writer.
    pub context: WriterContext,
    /// The checkpoint and the epochs that the run resumes from.
    pub origin: Origin,
    /// The source.
    pub source: Arc<dyn Source>,
    /// The start position of each partition.
    pub positions: Positions,
    /// The number of partitions that are known before the first epoch, replayed or new.
    pub known: usize,
    /// The first new epoch, above all epochs in the ledger and the sinks.
    pub first_epoch: Epoch,
    /// The outputs that sinks do not receive.
    pub skips: Vec<Skip>,
    /// The ledger that epochs are recorded in; None in a follower, or without a ledger.
    pub ledger: Option<Box<dyn Ledger>>,
    /// The settings of checkpoints; None if checkpoints are disabled.
    pub checkpoints: Option<Checkpoints>,
    /// The changes in force at the point to resume from.
    pub in_force: Versions,
    /// The offset at which the pipeline began, by partition; empty in a follower.
    pub starts: Vec<Offset>,
    /// The contents of lists that are in force after the replay.
    pub newest_lists: Vec<ListVersion>,
    /// The contents of lists that the replay needs.
    pub preloaded: Preloaded,
    /// The cluster that the process has joined; None if it is the only one.
    pub cluster: Option<Cluster>,
}

/// The parts of a process that a start uses: its workers and metrics, and its rules and lists with requests of others.
pub struct StartContext<'a> {
    /// The configuration of workers, processes and hosts.
    pub workers: &'a timely::Config,
    /// The settings of the cluster; None if the process is the only one.
    pub cluster: Option<&'a ClusterSettings>,
    /// The metrics, which say what the start waits for.
    pub metrics: &'a Arc<Metrics>,
    /// The rules in force, of which the ledger has the text.
    pub live: &'a LiveRules,
    /// The changes that are requested.
    pub requests: &'a ChangeRequests,
    /// The lists.
    pub lists: StartLists<'a>,
}

/// Opens the sinks and the source of a run. The order of the steps ensures that nothing is lost or duplicated.
///
/// # Errors
/// If a sink or the source cannot be opened or must not be used.
pub fn prepare(
    role: Role,
    source: Opening,
    sinks: &mut [SinkJob],
    context: WriterContext,
    plan: &mut Plan,
    start: &StartContext<'_>,
) -> Result<PreparedRun, RunError> {
    let StartContext { workers, metrics, .. } = *start;
    match role {
        Role::Unrecorded => {
            let context = with_newer_generation(sinks, context, metrics)?;
            let mut latest = Epoch(0);
            for job in sinks.iter_mut() {
                latest = latest.max(open(job, &context, None, metrics)?.latest);
            }
            metrics.starting("opening the source");
            let source = source(None)?;
            let positions = Positions::starting(source.start());
            let (origin, first_epoch) = (Origin::unrecorded(sinks.len()), latest.next());
            let (skips, ledger, checkpoints) = (Vec::new(), None, None);
            let first = RuleSetPlan::first(plan.rules.clone()).to_text();
            let mut in_force = in_force(&origin, first);
            request_configured(&in_force, &[], plan, start.live, start.requests)?;
            // In a cluster, the other processes receive the contents with a change.
            let first = if processes(workers) == 1 { read_first(&start.lists) } else { Vec::new() };
            add_first(&first, &mut in_force);
            let preloaded = begin(start.lists.lists, &in_force, &[], None)?;
            let known = positions.as_slice().len();
            let starts = source.start().to_vec();
            let is_first = context.process == 0;
            let first_start = || is_first.then(|| ClusterStart { generation: None, data: Vec::new() });
            let join = |settings| Cluster::join(settings, first_start(), metrics);
            let cluster = start.cluster.map(join).transpose()?;
            Ok(PreparedRun {
                starts,
                context,
                origin,
                source,
                positions,
                known,
                first_epoch,
                skips,
                ledger,
                checkpoints,
                newest_lists: newest(&in_force, &[]),
                in_force,
                preloaded,
                cluster,
            })
        }
        Role::Leader(history) => prepare_leader(*history, source, sinks, context, plan, start),
        Role::Follower(following) => prepare_follower(*following, source, sinks, context, plan, start),
    }
}

/// Returns the context with a generation above that of every sink. Without a ledger, the generation is the wall time.
/// If the clock was set back since an earlier start, this start must still fence that one.
fn with_newer_generation(
    sinks: &mut [SinkJob],
    mut context: WriterContext,
    metrics: &Metrics,
) -> Result<WriterContext, RunError> {
    for job in sinks {
        metrics.starting(format!("reading the progress of sink {}", job.sink.name()));
        for Progress { generation, .. } in job.sink.peek_progress(&context.pipeline)? {
            if generation >= context.generation {
                tracing::warn!(
                    sink = job.sink.name(),
                    "the clock is behind that of an earlier start: using the generation after that start's"
                );
                context.generation = Generation(generation.0.saturating_add(1));
            }
        }
    }
    Ok(context)
}

/// Opens a sink and returns its progress.
fn open(
    job: &mut SinkJob,
    context: &WriterContext,
    history: Option<&mut History>,
    metrics: &Metrics,
) -> Result<OpenedSink, RunError> {
    metrics.starting(format!("opening sink {}", job.sink.name()));
    crash::point("sink.open.before");
    let found = open_sink(&mut *job.sink, context, history)?;
    crash::point("sink.open.after");
    Ok(found)
}

fn prepare_leader(
    mut history: History,
    source: Opening,
    sinks: &mut [SinkJob],
    context: WriterContext,
    plan: &mut Plan,
    start: &StartContext<'_>,
) -> Result<PreparedRun, RunError> {
    let StartContext { workers, metrics, .. } = *start;
    let mut found = Vec::new();
    for job in sinks.iter_mut() {
        found.push((job.sink.name().to_owned(), open(job, &context, Some(&mut history), metrics)?));
    }
    let encodings: Vec<_> = sinks.iter().map(|sink| sink.encoding).collect();
    let records = Records::read(&mut *history.ledger)?;
    history.first_rules = first_rules(history.claim.genesis.as_ref(), plan);
    let mut texts = all_rules(&history.first_rules, &records.manifests, &records.epochs);
    if history.config_change.is_some() || history.resets.all.is_some() {
        for text in texts.iter_mut().chain([&mut history.first_rules]) {
            *text = permitted_rules(text, start.live)?;
        }
    }
    add_spaces(plan, &texts, start.live)?;
    let operators = operators(plan, &encodings);
    if let Some(durable) = reset_epoch(&records.manifests, &records.epochs, history.resets.all) {
        let rule = plan.time.watermark_rule();
        let discarding = DiscardContext { context: &context, operators: &operators, rule, rules: start.live };
        discard_state(&mut history, &records, durable, sinks, &mut found, &discarding)?;
    }
    drop(records);
    let latest = found.iter().map(|(_, found)| found.latest).max().unwrap_or_default();
    let found: Vec<_> = found.iter().map(|(name, found)| (&**name, &found.progress[..])).collect();
    metrics.starting("reading the newest checkpoint");
    let mut origin = origin(&mut history, &found, &operators, start.live, context.shards)?;
    for (sink, _) in found.iter().filter(|(_, progress)| !progress.is_empty()) {
        history.ledger.committed(sink)?;
    }
    crash::point("start.loaded");
    metrics.starting("opening the source");
    let losses_before = history.losses.len();
    let (source, positions, known) = open_source(source, &mut origin, &mut history)?;
    origin.owners = owners(&*source, &positions, workers);
    if origin.is_closed() {
        let unread = source.unread(&ends(&positions, &origin))?;
        unread.iter().for_each(|unread| tracing::warn!("{unread}"));
    }
    // With several processes, the end of one kills the others, so a kill does not point to a record.
    if processes(workers) == 1 {
        let has_new_losses = history.losses.len() > losses_before;
        check_attempts(&mut history, &origin, &*source, &positions, has_new_losses)?;
    }
    crash::point("start.begun");
    let in_force = retain_known(in_force(&origin, history.first_rules.clone()), start.lists.lists);
    let replayed = begin_lists(&mut history, &mut origin, &in_force, latest, &start.lists, metrics)?;
    let stored = history.checkpoints.as_mut().map(|checkpoints| (checkpoints, &context.ledger_id));
    let preloaded = begin(start.lists.lists, &in_force, &replayed, stored)?;
    let stored = history.checkpoints.as_mut().map(|checkpoints| (checkpoints, &context.ledger_id));
    load_pasts(start.live, &replayed_pasts(&origin.replay), local_workers(workers), stored)?;
    let genesis = history.claim.genesis.as_ref();
    let starts = genesis.map_or_else(|| source.start().to_vec(), |genesis| genesis.starts.clone());
    let cluster = if processes(workers) > 1 {
        let names = found.iter().map(|(name, _)| (*name).to_owned());
        let committed_through = names.zip(origin.committed_through.iter().cloned()).collect();
        let contents = (committed_through, texts, &replayed[..]);
        Some(send_bootstrap(start, &context, &history, &origin, &positions, contents)?)
    } else {
        None
    };
    let History { ledger, checkpoints, skips, .. } = history;
    request_configured(&in_force, &origin.replay, plan, start.live, start.requests)?;
    // New epochs are above every epoch that was ever recorded or committed, also of another ledger.
    let first_epoch = origin.durable.max(latest).next();
    Ok(PreparedRun {
        starts,
        context,
        origin,
        source,
        positions,
        known,
        first_epoch,
        skips,
        ledger: Some(ledger),
        checkpoints,
        newest_lists: newest(&in_force, &replayed),
        in_force,
        preloaded,
        cluster,
    })
}

/// Lets what the lists are now come into force after the replay. Returns the contents that the replay lets come into force.
fn begin_lists(
    history: &mut History,
    origin: &mut Origin,
    in_force: &Versions,
    latest: Epoch,
    lists: &StartLists<'_>,
    metrics: &Metrics,
) -> Result<Vec<ListVersion>, RunError> {
    if lists.readers.is_some() {
        metrics.starting("reading the lists");
    }
    let Claim { ledger_id, generation, .. } = &history.claim;
    let writer_id = WriterId { ledger_id: ledger_id.clone(), generation: *generation };
    let stored = history.checkpoints.as_mut().map(|checkpoints| (checkpoints, writer_id));
    record_changed(lists, in_force, origin, latest, &mut *history.ledger, stored)?;
    Ok(replayed(&origin.replay))
}

/// Joins the cluster and sends its other processes what they need to start.
fn send_bootstrap(
    start: &StartContext<'_>,
    context: &WriterContext,
    history: &History,
    origin: &Origin,
    positions: &Positions,
    (committed_through, rules, lists): (Vec<(String, CommittedThrough)>, Vec<String>, &[ListVersion]),
) -> Result<Cluster, RunError> {
    let bootstrap = ClusterBootstrap {
        ledger_id: context.ledger_id.0.clone(),
        generation: context.generation.0,
        semantics: history.semantics.clone(),
        manifest: origin.manifest.as_ref().map(encode_manifest),
        rules,
        lists: lists.to_vec(),
        pasts: replayed_pasts(&origin.replay),
        positions: positions.clone(),
        durable: origin.durable,
        committed_through,
        skips: history.skips.clone(),
        owners: origin.owners.clone(),
    };
    exchange_bootstrap(start.cluster, Some(&bootstrap), start.metrics).map(|(cluster, _)| cluster)
}

/// Returns the offset through which each partition is read after the replay.
fn ends(positions: &Positions, origin: &Origin) -> Vec<Offset> {
    let mut ends: Vec<_> = positions.as_slice().iter().map(|position| position.next).collect();
    for binding in origin.replay.iter().flat_map(|record| &record.bindings) {
        ends[binding.partition.0 as usize] = binding.end;
    }
    ends
}

fn prepare_follower(
    following: Following,
    source: Opening,
    sinks: &mut [SinkJob],
    mut context: WriterContext,
    plan: &mut Plan,
    start: &StartContext<'_>,
) -> Result<PreparedRun, RunError> {
    let StartContext { workers, metrics, .. } = *start;
    metrics.starting("waiting for the other processes");
    let Following { semantics: own_semantics, mut checkpoints } = following;
    let refused = |reason: String| RunError::from(LedgerError::Refused(reason));
    let (cluster, bootstrap) = exchange_bootstrap(start.cluster, None, metrics)?;
    let ClusterBootstrap {
        ledger_id,
        generation,
        semantics,
        manifest,
        rules: texts,
        lists: replayed,
        pasts,
        positions,
        durable,
        committed_through,
        skips,
        owners,
    } = bootstrap;
    if semantics != own_semantics {
        return Err(refused("the processes of the cluster have different configurations".into()));
    }
    add_spaces(plan, &texts, start.live)?;
    (context.ledger_id, context.generation) = (LedgerId(ledger_id), Generation(generation));
    tracing::info!(generation, "received the start data from the first process");
    let mut committed_by_own = Vec::new();
    for job in sinks.iter_mut() {
        cluster.check()?;
        open(job, &context, None, metrics).map_err(fenced_by_zombie)?;
        let committed_through = committed_through.iter().find(|(name, _)| name == job.sink.name());
        let unknown = || refused(format!("the first process of the cluster has no sink {}", job.sink.name()));
        committed_by_own.push(committed_through.ok_or_else(unknown)?.1.clone());
    }
    let manifest = manifest.as_deref().map(decode_manifest).transpose();
    let manifest = manifest.map_err(|damaged| {
        refused(format!("the manifest from the first process of the cluster is damaged: {damaged}"))
    })?;
    cluster.check()?;
    let mut origin =
        Origin::from_leader(manifest, checkpoints.as_mut(), context.shards, durable, committed_by_own)?;
    origin.owners = owners;
    metrics.starting("opening the source");
    let source = source(Some(positions.as_slice().iter().map(|position| position.next).collect()))?;
    let first_epoch = durable.next();
    let known = positions.as_slice().len();
    let first = texts.into_iter().next().unwrap_or_default();
    let in_force = retain_known(in_force(&origin, first), start.lists.lists);
    let stored = checkpoints.as_mut().map(|checkpoints| (checkpoints, &context.ledger_id));
    let preloaded = begin(start.lists.lists, &in_force, &replayed, stored)?;
    let stored = checkpoints.as_mut().map(|checkpoints| (checkpoints, &context.ledger_id));
    load_pasts(start.live, &pasts, local_workers(workers), stored)?;
    Ok(PreparedRun {
        starts: Vec::new(),
        context,
        origin,
        source,
        positions,
        known,
        first_epoch,
        skips,
        ledger: None,
        checkpoints,
        newest_lists: Vec::new(),
        in_force,
        preloaded,
        cluster: Some(cluster),
    })
}

/// Opens the source at the offsets from which the run resumes. Records them if this is the pipeline's first start.
fn open_source(
    source: Opening,
    origin: &mut Origin,
    history: &mut History,
) -> Result<(Arc<dyn Source>, Positions, usize), RunError> {
    let History { ledger, claim, semantics, first_rules, losses, .. } = history;
    let starts = claim.genesis.as_ref().map(|genesis| &genesis.starts[..]);
    let positions = positions_of(origin.manifest.as_ref(), starts);
    let known = positions.as_ref().map(|positions| positions.as_slice().len());
    let positions = positions.map(|positions| positions.with_added(&origin.replay));
    let source = source(positions.as_ref().map(|positions| read_from(positions, losses)))?;
    let starts = source.start();
    let positions = positions.unwrap_or_else(|| Positions::starting(starts));
    if positions.as_slice().len() != starts.len() {
        let reason = format!(
            "the pipeline began with {} partitions, and the source has {}: the input of a pipeline cannot change; \
             use another `pipeline` name, with its own tables, to read everything from the beginning",
            positions.as_slice().len(),
            starts.len()
        );
        return Err(LedgerError::Refused(reason).into());
    }
    if claim.genesis.is_none() {
        let semantics = with_recorded_rules(semantics, first_rules);
        ledger.begin(&Genesis { starts: starts.to_vec(), semantics })?;
    }
    let wanted = read_from(&positions, losses);
    for (partition, (&first, &next)) in (0..).map(Partition).zip(wanted.iter().zip(starts)) {
        if first < next {
            let loss = Loss { partition, first, next };
            tracing::warn!(
                partition = partition.0,
                first = first.0,
                last = next.0 - 1,
                offsets = loss.offsets(),
                "skipping lost records, by this and every later start"
            );
            ledger.lose(&loss)?;
            losses.push(loss);
        }
    }
    origin.apply_losses(&positions, losses);
    let known = known.unwrap_or(starts.len());
    let positions = positions.reading_from(starts);
    Ok((source, positions, known))
}

/// Spreads the partitions over all workers by what waits in them, replayed records included, if the source says.
fn owners(source: &dyn Source, positions: &Positions, workers: &timely::Config) -> Owners {
    let Some((_topic, ends)) = source.ends() else { return Owners::default() };
    let nexts = positions.as_slice().iter().map(|position| position.next);
    let lags: Vec<_> =
        ends.iter().zip(nexts).map(|(end, next)| end.0.saturating_sub(next.0) as u64).collect();
    let (_, local_workers) = local(workers);
    Owners::by_lag(&lags, processes(workers) * local_workers)
}

/// The number of consecutive runs killed without recording anything after which a start is refused. Other causes of
/// kills, such as a drained node or a test, rarely reach it in a row.
const MAX_KILLED: u64 = 10;

/// Records an attempt of a run, and refuses it if too many runs before it were killed at the same epoch, unless the
/// records there were just given up. The next start is permitted again, since there may have been another cause.
fn check_attempts(
    history: &mut History,
    origin: &Origin,
    source: &dyn Source,
    positions: &Positions,
    has_new_losses: bool,
) -> Result<(), RunError> {
    let runs = history.ledger.attempt(origin.durable)?;
    match repeated_kill(runs, origin.durable, source, positions, &origin.replay).filter(|_| !has_new_losses) {
        Some(killed) => {
            history.ledger.ended()?;
            Err(killed)
        }
        None => Ok(()),
    }
}

/// Returns the refusal of a start after this many runs were killed at the same epoch while records waited, as these may
/// kill it, too; None if it may start.
pub fn repeated_kill(
    runs: u64,
    durable: Epoch,
    source: &dyn Source,
    positions: &Positions,
    replay: &[EpochRecord],
) -> Option<RunError> {
    let unread = unread(source, positions, replay);
    let suspected = runs >= MAX_KILLED && !unread.is_empty();
    suspected.then(|| RunError::Killed { runs, durable, unread: unread.join(", ") })
}

/// Lists the partitions with records after the recorded ones as TOPIC:PARTITION:OFFSET, the form of `--accept-loss`,
/// with the first such offset.
fn unread(source: &dyn Source, positions: &Positions, replay: &[EpochRecord]) -> Vec<String> {
    let Some((topic, ends)) = source.ends() else { return Vec::new() };
    let mut recorded = positions.clone();
    replay.iter().for_each(|record| recorded.advance(&record.bindings));
    let behind =
        (0..).zip(recorded.as_slice().iter().zip(ends)).filter(|(_, (position, end))| position.next < *end);
    behind
        .map(|(partition, (position, _)): (u32, _)| format!("{topic}:{partition}:{}", position.next.0))
        .collect()
}

/// Returns the positions at a checkpoint, or at the beginning of the pipeline; None if that is not recorded yet.
pub fn positions_of(manifest: Option<&Manifest>, starts: Option<&[Offset]>) -> Option<Positions> {
    manifest.map(|manifest| Positions::of(&manifest.positions)).or_else(|| starts.map(Positions::starting))
}

/// Returns the first offset to read of each partition, after the lost records.
pub fn read_from(positions: &Positions, losses: &[Loss]) -> Vec<Offset> {
    let next = |(partition, position): (u32, &Position)| {
        let of_partition = losses.iter().filter(|loss| loss.partition == Partition(partition));
        of_partition.map(|loss| loss.next).chain([position.next]).max().unwrap_or(position.next)
    };
    (0..).zip(positions.as_slice()).map(next).collect()
}
