//! The start of a run: sinks are fenced and opened, where it goes on is decided, and the source is opened there. In a cluster
//! with a ledger the first process does so, and hands out what the others need to open theirs.

use std::sync::Arc;

use headwater_dataflows::{Epoch, Offset, Partition};
use headwater_sinks::{Generation, LedgerId, Progress, WriterContext, crash};

use super::SinkJob;
use super::bootstrap::{ClusterBootstrap, exchange_bootstrap, processes};
use super::compute::operators;
use super::failure::RunError;
use super::forgetting::{Forgetting, forget, forgets_of};
use super::plan::Plan;
use super::recovery::{Checkpoints, Found, History, Origin, Records, fenced_by_zombie, open_sink, origin};
use crate::coordination::{EpochRecord, Loss, Manifest, Position, Positions, Skip};
use crate::ledger::{Genesis, Ledger, LedgerError, decode_manifest, encode_manifest};
use crate::metrics::Metrics;
use crate::source::{Opening, Source};

/// What a run knows of those before it.
pub enum Role {
    /// Nothing: it begins with empty state wherever the source starts.
    Unrecorded,
    /// What its ledger has: what was done before is done again, and what is done is recorded.
    Leader(Box<History>),
    /// What the first process of the cluster hands out.
    Follower(Box<Following>),
}

/// What a process knows by itself that does not have the ledger.
pub struct Following {
    /// What decides the pipeline's answers: the same in every process.
    pub semantics: String,
    /// Where and how often checkpoints are made, if they are.
    pub checkpoints: Option<Checkpoints>,
}

/// A run that can begin.
pub struct Begun {
    /// Who writes.
    pub context: WriterContext,
    /// Where it goes on.
    pub origin: Origin,
    /// Where records come from.
    pub source: Arc<dyn Source>,
    /// From where on, by partition.
    pub positions: Positions,
    /// How many partitions are known before the first epoch that is replayed or new.
    pub known: usize,
    /// The first epoch that nobody ever had.
    pub first_epoch: Epoch,
    /// What sinks are not given.
    pub skips: Vec<Skip>,
    /// Where epochs are recorded, in the process that does.
    pub ledger: Option<Box<dyn Ledger>>,
    /// Where and how often checkpoints are made, if they are.
    pub checkpoints: Option<Checkpoints>,
}

/// Opens the sinks and the source of a run, in the one order that loses and doubles nothing.
///
/// # Errors
/// If something cannot be opened, or must not be.
pub fn begin(
    role: Role,
    source: Opening,
    sinks: &mut [SinkJob],
    context: WriterContext,
    plan: &Plan,
    workers: &timely::Config,
    metrics: &Metrics,
) -> Result<Begun, RunError> {
    match role {
        Role::Unrecorded => {
            let context = above_earlier(sinks, context, metrics)?;
            let mut latest = Epoch(0);
            for job in sinks.iter_mut() {
                latest = latest.max(open(job, &context, None, metrics)?.latest);
            }
            metrics.starting("opening the source");
            let source = source(None)?;
            let positions = Positions::starting(source.start());
            let (origin, first_epoch) = (Origin::unrecorded(sinks.len()), latest.next());
            let (skips, ledger, checkpoints) = (Vec::new(), None, None);
            let known = positions.as_slice().len();
            Ok(Begun { context, origin, source, positions, known, first_epoch, skips, ledger, checkpoints })
        }
        Role::Leader(history) => lead(*history, source, sinks, context, plan, workers, metrics),
        Role::Follower(following) => follow(*following, source, sinks, context, workers, metrics),
    }
}

/// The start, with a generation above all that sinks have. Without a ledger it is the wall time, and the clock may have been
/// set back since an earlier start: that is fenced by this one, as it would be had the clock gone on.
fn above_earlier(
    sinks: &mut [SinkJob],
    mut context: WriterContext,
    metrics: &Metrics,
) -> Result<WriterContext, RunError> {
    for job in sinks {
        metrics.starting(format!("looking at sink {}", job.sink.name()));
        for Progress { generation, .. } in job.sink.peek_progress(&context.pipeline)? {
            if generation >= context.generation {
                tracing::warn!(
                    sink = job.sink.name(),
                    "the clock is behind an earlier start's, or was set back: this start is counted after that one"
                );
                context.generation = Generation(generation.0.saturating_add(1));
            }
        }
    }
    Ok(context)
}

/// Opens one sink, and returns what it has.
fn open(
    job: &mut SinkJob,
    context: &WriterContext,
    history: Option<&mut History>,
    metrics: &Metrics,
) -> Result<Found, RunError> {
    metrics.starting(format!("opening sink {}", job.sink.name()));
    crash::point("sink.open.before");
    let found = open_sink(&mut *job.sink, context, history)?;
    crash::point("sink.open.after");
    Ok(found)
}

fn lead(
    mut history: History,
    source: Opening,
    sinks: &mut [SinkJob],
    context: WriterContext,
    plan: &Plan,
    workers: &timely::Config,
    metrics: &Metrics,
) -> Result<Begun, RunError> {
    let mut found = Vec::new();
    for job in sinks.iter_mut() {
        found.push((job.sink.name().to_owned(), open(job, &context, Some(&mut history), metrics)?));
    }
    let encodings: Vec<_> = sinks.iter().map(|sink| sink.encoding).collect();
    let operators = operators(plan, &encodings);
    let records = Records::read(&mut *history.ledger)?;
    if let Some(durable) = forgets_of(&records.manifests, &records.epochs, history.resets.all) {
        let rule = plan.time.watermark_rule();
        let forgetting = Forgetting { context: &context, operators: &operators, rule };
        forget(&mut history, &records, durable, sinks, &mut found, &forgetting)?;
    }
    drop(records);
    let latest = found.iter().map(|(_, found)| found.latest).max().unwrap_or_default();
    let found: Vec<_> = found.iter().map(|(name, found)| (&**name, &found.progress[..])).collect();
    metrics.starting("reading the newest checkpoint");
    let mut origin = origin(&mut history, &found, &operators)?;
    for (sink, _) in found.iter().filter(|(_, progress)| !progress.is_empty()) {
        history.ledger.committed(sink)?;
    }
    crash::point("start.loaded");
    metrics.starting("opening the source");
    let losses_before = history.losses.len();
    let (source, positions, known) = open_source(source, &mut origin, &mut history)?;
    if origin.is_closed() {
        let unread = source.unread(&ends(&positions, &origin))?;
        unread.iter().for_each(|unread| tracing::warn!("{unread}"));
    }
    // Of several processes, one that ends takes the others with it, whatever ended it.
    if processes(workers) == 1 {
        let is_new = history.losses.len() > losses_before;
        check_attempts(&mut history, &origin, &*source, &positions, is_new)?;
    }
    crash::point("start.begun");
    let History { ledger, semantics, checkpoints, skips, .. } = history;
    let names = found.iter().map(|(name, _)| (*name).to_owned());
    if processes(workers) > 1 {
        let word = ClusterBootstrap {
            ledger_id: context.ledger_id.0.clone(),
            generation: context.generation.0,
            semantics,
            manifest: origin.manifest.as_ref().map(encode_manifest),
            positions: positions.clone(),
            durable: origin.durable,
            committed_through: names.zip(origin.committed_through.iter().cloned()).collect(),
            skips: skips.clone(),
        };
        metrics.starting("waiting for the other processes");
        exchange_bootstrap(workers, Some(&word))?;
    }
    // Epochs go on above everything that was ever recorded or taken, whichever ledger's it was.
    let first_epoch = origin.durable.max(latest).next();
    Ok(Begun {
        context,
        origin,
        source,
        positions,
        known,
        first_epoch,
        skips,
        ledger: Some(ledger),
        checkpoints,
    })
}

/// How far each partition is read once everything is done again.
fn ends(positions: &Positions, origin: &Origin) -> Vec<Offset> {
    let mut ends: Vec<_> = positions.as_slice().iter().map(|position| position.next).collect();
    for binding in origin.replay.iter().flat_map(|record| &record.bindings) {
        ends[binding.partition.0 as usize] = binding.end;
    }
    ends
}

fn follow(
    following: Following,
    source: Opening,
    sinks: &mut [SinkJob],
    mut context: WriterContext,
    workers: &timely::Config,
    metrics: &Metrics,
) -> Result<Begun, RunError> {
    metrics.starting("waiting for the first process");
    let Following { semantics: own_semantics, mut checkpoints } = following;
    let refused = |reason: String| RunError::from(LedgerError::Refused(reason));
    let ClusterBootstrap {
        ledger_id,
        generation,
        semantics,
        manifest,
        positions,
        durable,
        committed_through,
        skips,
    } = exchange_bootstrap(workers, None)?;
    if semantics != own_semantics {
        return Err(refused("the processes of the cluster have different configurations".into()));
    }
    (context.ledger_id, context.generation) = (LedgerId(ledger_id), Generation(generation));
    tracing::info!(generation, "the first process has the ledger");
    let mut committed_by_own = Vec::new();
    for job in sinks.iter_mut() {
        open(job, &context, None, metrics).map_err(fenced_by_zombie)?;
        let committed_through = committed_through.iter().find(|(name, _)| name == job.sink.name());
        let unknown = || refused(format!("the first process of the cluster has no sink {}", job.sink.name()));
        committed_by_own.push(committed_through.ok_or_else(unknown)?.1.clone());
    }
    let manifest = manifest.as_deref().map(decode_manifest).transpose();
    let manifest =
        manifest.map_err(|damaged| refused(format!("what was handed out is damaged: {damaged}")))?;
    let origin = Origin::handed(manifest, checkpoints.as_mut(), context.shards, durable, committed_by_own)?;
    metrics.starting("opening the source");
    let source = source(Some(positions.as_slice().iter().map(|position| position.next).collect()))?;
    let first_epoch = durable.next();
    let known = positions.as_slice().len();
    Ok(Begun { context, origin, source, positions, known, first_epoch, skips, ledger: None, checkpoints })
}

/// Opens the source where the run goes on, which is recorded if it is the beginning.
fn open_source(
    source: Opening,
    origin: &mut Origin,
    history: &mut History,
) -> Result<(Arc<dyn Source>, Positions, usize), RunError> {
    let History { ledger, claim, semantics, losses, .. } = history;
    let starts = claim.genesis.as_ref().map(|genesis| &genesis.starts[..]);
    let positions = positions_of(origin.manifest.as_ref(), starts);
    let known = positions.as_ref().map(|positions| positions.as_slice().len());
    let positions = positions.map(|positions| positions.with_added(&origin.replay));
    let source = source(positions.as_ref().map(|positions| read_from(positions, losses)))?;
    let starts = source.start();
    let positions = positions.unwrap_or_else(|| Positions::starting(starts));
    if positions.as_slice().len() != starts.len() {
        let reason = format!(
            "the pipeline began with {} partitions, and the source has {}: its input does not change; another `pipeline` \
             name, with tables of its own, begins with all of it and reads everything again",
            positions.as_slice().len(),
            starts.len()
        );
        return Err(LedgerError::Refused(reason).into());
    }
    if claim.genesis.is_none() {
        ledger.begin(&Genesis { starts: starts.to_vec(), semantics: semantics.clone() })?;
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

/// How many runs may be killed one after the other without having recorded anything: more than whatever else kills runs
/// (a node that is drained, a test) does in a row.
const KILLED: u64 = 10;

/// Records that the run begins, and refuses it if too many before it were killed where it begins, unless what is there is
/// newly given up. The next start tries again: there may have been another cause.
fn check_attempts(
    history: &mut History,
    origin: &Origin,
    source: &dyn Source,
    positions: &Positions,
    is_given_up: bool,
) -> Result<(), RunError> {
    let runs = history.ledger.attempt(origin.durable)?;
    match killed(runs, origin.durable, source, positions, &origin.replay).filter(|_| !is_given_up) {
        Some(killed) => {
            history.ledger.ended()?;
            Err(killed)
        }
        None => Ok(()),
    }
}

/// Why a start is refused at whose place so many runs were killed: something there may kill it, too.
pub fn killed(
    runs: u64,
    durable: Epoch,
    source: &dyn Source,
    positions: &Positions,
    replay: &[EpochRecord],
) -> Option<RunError> {
    let unread = unread(source, positions, replay);
    let suspected = runs >= KILLED && !unread.is_empty();
    suspected.then(|| RunError::Killed { runs, durable, unread: unread.join(", ") })
}

/// What the source has beyond all that is recorded, as `--accept-loss` names it, each with the first offset.
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

/// Where a start goes on from a checkpoint, or from the beginning; none if that is not recorded yet.
pub fn positions_of(manifest: Option<&Manifest>, starts: Option<&[Offset]>) -> Option<Positions> {
    manifest.map(|manifest| Positions::of(&manifest.positions)).or_else(|| starts.map(Positions::starting))
}

/// By partition, the first offset that is read from these positions on.
pub fn read_from(positions: &Positions, losses: &[Loss]) -> Vec<Offset> {
    let next = |(partition, position): (u32, &Position)| {
        let of_partition = losses.iter().filter(|loss| loss.partition == Partition(partition));
        of_partition.map(|loss| loss.next).chain([position.next]).max().unwrap_or(position.next)
    };
    (0..).zip(positions.as_slice()).map(next).collect()
}
