//! Backfill: rules that enter a run as if they had always been there.
//!
//! ```text
//!   rules that wait ─▶ Backfiller (a thread of the first process): Engine reads the source from before, up to what is bound
//!     … again, until it has nearly met the run ─▶ hold: nothing is read ─▶ the rest ─▶ pasts, in the state store, durable
//!     ─▶ Gate ─▶ bound to an epoch without records, whose row names the pasts ─▶ every worker: states, un-final events
//! ```
//!
//! A kill before that row is durable leaves rules that wait: the next start begins again. After it, the rules have entered,
//! and a replay finds the pasts in the state store.

mod engine;
mod gate;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, EventTime, Offset, RefusedEvents, RefusedLog};
use headwater_sinks::crash;
use tracing::subscriber::{NoSubscriber, with_default};

use self::engine::{Engine, EngineError, plan_of};
pub use self::gate::{BoundState, Gate, RunEnded};
use crate::connectors::causes;
use crate::json::rfc3339;
use crate::lists::hash;
use crate::pipeline::{LiveRules, Plan, RulePlan, span};
use crate::runtime::checkpoint::writer::CheckpointWriterHandle;
use crate::runtime::ingest::changes::{ChangeRequest, ChangeRequests, Contents};
use crate::runtime::rereading;
use crate::source::{Reopening, Source, SourceError};

/// The time after which the thread looks again whether rules wait, or the run ends.
const STEP: Duration = Duration::from_millis(100);

/// The time after an error until the next attempt.
const RETRY: Duration = Duration::from_secs(10);

/// The rest is read while the run holds once reading up to what is bound takes less than this.
const NEARLY_MET: Duration = Duration::from_millis(300);

/// The maximum time for which the run holds.
const MAX_HOLD: Duration = Duration::from_secs(10);

/// The number of attempts, each with more lag than the one before.
const ATTEMPTS: u32 = 4;

/// The parts of a run that a backfill uses.
pub struct BackfillSettings {
    /// The plan of the run.
    pub plan: Plan,
    /// The rules of the process.
    pub live: LiveRules,
    /// The changes that are requested.
    pub requests: ChangeRequests,
    /// The exchange with the operator that binds epochs.
    pub gate: Gate,
    /// The positions of refused events.
    pub refused: RefusedLog,
    /// Opens the source again; the reason if it cannot be read again.
    pub reopen: Result<Reopening, String>,
    /// True if the source is a topic.
    pub is_topic: bool,
    /// The offset at which the pipeline began, by partition.
    pub starts: Vec<Offset>,
    /// Makes the pasts durable; None without checkpoints.
    pub store: Option<CheckpointWriterHandle>,
}

/// The thread. It ends when this is dropped.
pub struct Backfiller {
    gate: Gate,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The reason why rules do not enter now.
#[derive(Debug)]
enum Failed {
    /// The run ends.
    Ended,
    /// They can never enter with their past.
    Never(String),
    /// They cannot enter now.
    Now(String),
    /// An event came later than the lag permits.
    Late,
}

impl From<RunEnded> for Failed {
    fn from(RunEnded: RunEnded) -> Failed {
        Failed::Ended
    }
}

impl From<SourceError> for Failed {
    fn from(error: SourceError) -> Failed {
        Failed::Now(causes(&error))
    }
}

impl From<EngineError> for Failed {
    fn from(error: EngineError) -> Failed {
        match error {
            EngineError::Late => Failed::Late,
            EngineError::Source(error) => error.into(),
            EngineError::Ended => Failed::Ended,
            EngineError::Damaged(reason) => Failed::Never(reason),
        }
    }
}

impl Backfiller {
    /// Starts the thread.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(settings: BackfillSettings) -> std::io::Result<Backfiller> {
        let stopping = Arc::new(AtomicBool::new(false));
        let gate = settings.gate.clone();
        let state = Work { settings, stopping: Arc::clone(&stopping) };
        let thread = std::thread::Builder::new().name("backfill".into()).spawn(move || state.run())?;
        Ok(Backfiller { gate, stopping, thread: Some(thread) })
    }
}

impl Drop for Backfiller {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.gate.end();
        // A panic of the thread was logged; the rules wait for the next start.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The entry of rules.
struct Entered {
    /// The number of records that were read.
    records: u64,
    /// The epoch after which the rules are in force.
    epoch: Epoch,
    /// The time for which the run held.
    held: Duration,
}

struct Work {
    settings: BackfillSettings,
    stopping: Arc<AtomicBool>,
}

impl Work {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn run(&self) {
        let live = &self.settings.live;
        let mut logged = None;
        while !self.is_stopping() {
            let waiting = live.bound().waiting.clone();
            if waiting.is_empty() {
                std::thread::sleep(STEP);
                continue;
            }
            let made = self.make(&waiting);
            self.settings.gate.release();
            match made {
                Ok(()) => logged = None,
                Err(Failed::Ended) => return,
                Err(Failed::Late) => self.enter_without(&waiting, "its records are too far out of order"),
                Err(Failed::Never(reason)) => self.enter_without(&waiting, &reason),
                Err(Failed::Now(reason)) => {
                    live.note_backfill(format!("tried again: {reason}"));
                    if logged.as_ref() != Some(&reason) {
                        tracing::warn!(
                            rules = names(&waiting),
                            reason,
                            "cannot read the past of rules: they wait, and it is tried again every {} s",
                            RETRY.as_secs()
                        );
                    }
                    logged = Some(reason);
                    self.pause(RETRY);
                }
            }
        }
    }

    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_stopping() && Instant::now() < until {
            std::thread::sleep(STEP);
        }
    }

    /// Lets rules enter that wait.
    fn make(&self, rules: &[RulePlan]) -> Result<(), Failed> {
        let begun = Instant::now();
        tracing::info!(rules = names(rules), "reading the past of rules");
        for attempt in 0..ATTEMPTS {
            match self.attempt(rules, attempt) {
                Err(Failed::Late) => {}
                Err(failed) => return Err(failed),
                Ok(Entered { records, epoch, held }) => {
                    let (seconds, held_s) = (begun.elapsed().as_secs_f64(), held.as_secs_f64());
                    tracing::info!(
                        rules = names(rules), records, after = %epoch, seconds, held_s,
                        "rules have entered as if they had always been there"
                    );
                    return Ok(());
                }
            }
        }
        Err(Failed::Late)
    }

    /// Reads the past of rules and lets them enter.
    fn attempt(&self, rules: &[RulePlan], attempt: u32) -> Result<Entered, Failed> {
        let mut state = self.bound_after(Epoch(0))?;
        let mut refused = self.refused(state.epoch)?;
        let past_ms = rules.iter().map(RulePlan::past_ms).try_fold(0, |most, past| Some(past?.max(most)));
        let since = past_ms.map_or(EventTime::MIN, |past_ms| state.watermark.minus_ms(past_ms));
        if refused.since > since {
            return Err(Failed::Never(unknown_before(&refused, past_ms)));
        }
        let (source, starts) = self.open(since, &state)?;
        let BackfillSettings { plan, is_topic, .. } = &self.settings;
        let plan = plan_of(plan, rules.to_vec(), attempt);
        let mut engine = Engine::begin(&plan, source, &starts, *is_topic, since)?;
        loop {
            let begun = Instant::now();
            self.read(&mut engine, &state, &refused)?;
            if begun.elapsed() < NEARLY_MET {
                break;
            }
            state = self.bound_after(state.epoch)?;
            refused = self.refused(state.epoch)?;
        }
        // Most of the states are captured now, so that little is left to do while the run holds.
        engine.pasts(&state)?;
        crash::point("backfill.read");
        self.settings.gate.hold();
        let begun = Instant::now();
        let epoch = self.enter(&mut engine, rules, state)?;
        Ok(Entered { records: engine.records(), epoch, held: begun.elapsed() })
    }

    fn read(&self, engine: &mut Engine, to: &BoundState, refused: &RefusedEvents) -> Result<(), Failed> {
        let live = &self.settings.live;
        engine.go_on(to, refused, &mut |records| {
            live.note_backfill(format!("{records} records read"));
            !self.is_stopping()
        })?;
        Ok(())
    }

    /// Lets rules enter while the run holds.
    fn enter(&self, engine: &mut Engine, rules: &[RulePlan], mut state: BoundState) -> Result<Epoch, Failed> {
        let BackfillSettings { gate, store, live, .. } = &self.settings;
        let until = Instant::now() + MAX_HOLD;
        while Instant::now() < until {
            state = self.bound_after(state.epoch)?;
            self.read(engine, &state, &self.refused(state.epoch)?)?;
            let bytes = Arc::new(engine.pasts(&state)?.encode());
            let hash = hash(&bytes);
            if let Some(store) = store {
                store.put_contents(hash, Arc::clone(&bytes)).map_err(|_| Failed::Ended)?;
            }
            crash::point("backfill.stored");
            let (bound, is_bound) = sync_channel(1);
            let pasts = (state.watermark, Contents { hash, bytes });
            gate.offer(state.clone(), ChangeRequest::of_entry(live, ids(rules), Some(pasts), bound));
            crash::point("backfill.offered");
            loop {
                match is_bound.recv_timeout(STEP) {
                    Ok(in_force) => {
                        crash::point("backfill.bound");
                        return Ok(in_force.since.epoch);
                    }
                    Err(RecvTimeoutError::Disconnected) => return Err(Failed::Ended),
                    Err(RecvTimeoutError::Timeout) if self.is_stopping() => return Err(Failed::Ended),
                    Err(RecvTimeoutError::Timeout) => {}
                }
                let newest = gate.bound_after(Epoch(0), Duration::ZERO)?;
                let is_other = newest.is_some_and(|newest| !newest.is_same(&state));
                if is_other && gate.withdraw() {
                    break;
                }
            }
        }
        Err(Failed::Now(format!("the run has not stood still within {MAX_HOLD:?}")))
    }

    /// Lets rules enter without their past.
    fn enter_without(&self, rules: &[RulePlan], reason: &str) {
        tracing::warn!(
            rules = names(rules),
            reason,
            "rules enter without their past, which cannot be known: `headwater status` says from when on their alerts are complete"
        );
        let (bound, is_bound) = sync_channel(1);
        self.settings.requests.add(ChangeRequest::of_entry(&self.settings.live, ids(rules), None, bound));
        while !self.is_stopping() && matches!(is_bound.recv_timeout(STEP), Err(RecvTimeoutError::Timeout)) {}
    }

    fn bound_after(&self, epoch: Epoch) -> Result<BoundState, Failed> {
        loop {
            if let Some(state) = self.settings.gate.bound_after(epoch, STEP)? {
                return Ok(state);
            }
            if self.is_stopping() {
                return Err(Failed::Ended);
            }
        }
    }

    /// Waits until all refused events of an epoch are known.
    fn refused(&self, epoch: Epoch) -> Result<RefusedEvents, Failed> {
        loop {
            if let Some(refused) = self.settings.refused.through(epoch) {
                return Ok(refused);
            }
            if self.is_stopping() {
                return Err(Failed::Ended);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Opens the source. Returns the offsets before which no record has an event after `since`.
    fn open(&self, since: EventTime, state: &BoundState) -> Result<(Arc<dyn Source>, Vec<Offset>), Failed> {
        let BackfillSettings { plan, reopen, starts, is_topic, .. } = &self.settings;
        let reopen = reopen.as_ref().map_err(|reason| Failed::Never(reason.clone()))?;
        // What a run logs of its start offsets does not hold here.
        let quietly = |since_ms| with_default(NoSubscriber::default(), || reopen(since_ms));
        let source = quietly(None)?;
        let firsts = source.start().to_vec();
        let begun = |partition: usize| starts.get(partition).copied().unwrap_or(Offset(0));
        if since == EventTime::MIN || !is_topic {
            let lost =
                (0..state.positions.len()).find(|&at| firsts.get(at).is_none_or(|first| *first > begun(at)));
            return match lost {
                Some(partition) => Err(lost_records(partition, begun(partition), firsts.get(partition))),
                None => Ok((source, (0..state.positions.len()).map(begun).collect())),
            };
        }
        // `since` is before all that the rules look back to.
        let since_ms = rereading::since_ms(since.0, 0, &plan.time);
        let at_time = quietly(Some(since_ms))?.start().to_vec();
        let mut from = Vec::new();
        for (partition, &next) in state.positions.iter().enumerate() {
            let (Some(&first), Some(&at_time)) = (firsts.get(partition), at_time.get(partition)) else {
                return Err(Failed::Now(format!("partition {partition} is not known yet")));
            };
            let is_needless = state.timestamps_ms[partition].is_some_and(|last_ms| last_ms < since_ms);
            if first > begun(partition) && at_time <= first && first < next && !is_needless {
                return Err(lost_records(partition, begun(partition), Some(&first)));
            }
            from.push(if is_needless { next } else { at_time.max(begun(partition)).min(next) });
        }
        Ok((source, from))
    }
}

fn lost_records(partition: usize, begun: Offset, first: Option<&Offset>) -> Failed {
    Failed::Never(match first {
        Some(first) => format!(
            "the source does not have the records of partition {partition} from {} to {} any more",
            begun.0,
            first.0 - 1
        ),
        None => format!("the source does not have partition {partition} any more"),
    })
}

/// Returns the reason why the past of rules is not known, given the time that they look back.
fn unknown_before(refused: &RefusedEvents, past_ms: Option<i64>) -> String {
    let since = rfc3339(refused.since.0);
    match past_ms {
        Some(past_ms) => format!(
            "late and duplicate events are known since {since}, and the rules need the last {}: raise limits.backfill_horizon, and \
             add the rule again later",
            span(past_ms)
        ),
        None => format!(
            "the rules look at all earlier events, and late and duplicate events are known only since {since}: \
             limits.backfill_horizon is shorter than the pipeline is old"
        ),
    }
}

/// Returns the ids of the states of rules.
fn ids(rules: &[RulePlan]) -> Vec<u64> {
    rules.iter().map(|rule| rule.state_id).collect()
}

/// Returns the ids of rules.
fn names(rules: &[RulePlan]) -> String {
    let ids: Vec<_> = rules.iter().map(|rule| &*rule.id).collect();
    ids.join(", ")
}
