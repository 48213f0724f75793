//! The reading operator: reads records of a worker's partitions, stamps them with the open epoch and decodes them.
//!
//! ```text
//!   ticks ──▶ ┌─────────┐ ──▶ events, at the epoch in which they were read
//!             │ Read    │ ──▶ records that could not be decoded or lie in the future
//!   Reader ─▶ └─────────┘ ──▶ Closed(e): the bindings, once the clock has passed e
//! ```

mod lead;
mod records;

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, EventTime, Offset, Partition};
use prometheus::IntGauge;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::probe::Handle as Probe;

use crate::coordination::ingest::PartitionState;
use crate::coordination::ingest::{PartitionTracker, Timing};
use crate::coordination::{Binding, Closed, Position};
use crate::decode::{Decoder, Decoding, withholding};
use crate::event::Event;
use crate::metrics::{Metrics, Share};
use crate::outputs::DeadLetter;
use crate::rounds::{MAX_LINKS, TraceContext};
use crate::runtime::failure::Failure;
use crate::runtime::ingest::activity::{Activity, Alarm, NextRead};
use crate::runtime::ingest::clock::Tick;
use crate::runtime::ingest::field_errors::FieldErrors;
use crate::runtime::ingest::rejections::Rejections;
use crate::source::{Budget, Reader, SourceError, Wake};

use lead::Lead;
pub use lead::SlowestTimes;

/// Settings of a worker's reading operator.
#[derive(Clone, Debug)]
pub struct ReadSettings {
    /// The timeouts and limits by which partitions are judged.
    pub timing: Timing,
    /// The number of records that a counted epoch takes from each partition.
    pub epoch_records: i64,
    /// The maximum number of bytes that this worker has read and not committed.
    pub bytes_in_flight: usize,
    /// True if this worker reports the metrics that are equal on all workers of its process.
    pub reports: bool,
    /// The way in which records are decoded.
    pub decoding: Decoding,
}

/// The amount that is read before the operator yields to others.
const BUDGET: Budget = Budget { records: 1024, bytes: 8 << 20 };

/// The time at the end of a partition after which a record to be replayed, not reached yet, counts as missing.
const MISSING: Duration = Duration::from_secs(15);

/// The interval at which lag and held partitions are reported.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// The outputs of the reading operator.
pub struct Read<'scope> {
    /// Decoded events.
    pub events: StreamVec<'scope, Epoch, (Event, Epoch, isize)>,
    /// Records that are not events, and events that lie in the future.
    pub rejected: StreamVec<'scope, Epoch, (DeadLetter, Epoch, isize)>,
    /// The bindings of each epoch that was closed.
    pub closed: StreamVec<'scope, Epoch, Closed>,
}

/// The inputs of reading that come from outside the dataflow.
#[derive(Clone)]
pub struct ReadContext {
    /// The position of each partition at the start.
    pub positions: Arc<[Position]>,
    /// Returns this worker's partitions that were added since the start, each with its first offset.
    pub added: Rc<dyn Fn() -> Vec<(Partition, Offset)>>,
    /// True once a shutdown was requested.
    pub stopping: Arc<AtomicBool>,
    /// The signal to the clock that the open epoch has records.
    pub activity: Activity,
    /// The time of the slowest partition of each worker of this process.
    pub slowest: SlowestTimes,
    /// The newest watermark that this worker has received.
    pub watermark: Rc<Cell<EventTime>>,
    /// The probe behind all sinks.
    pub committed: Probe<Epoch>,
    /// The place to report a failed read.
    pub failure: Failure,
    /// The monitor of rejected records, if there is a limit.
    pub rejections: Option<Arc<Rejections>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Builds the operator, which reads with `reader` as long as the clock ticks.
pub fn read<'scope>(
    ticks: StreamVec<'scope, Epoch, Tick>,
    reader: Box<dyn Reader>,
    settings: ReadSettings,
    context: ReadContext,
) -> Read<'scope> {
    let scope = ticks.scope();
    let worker = scope.index();
    let mut builder = OperatorBuilder::new("Read".to_owned(), scope);
    let address = builder.operator_info().address;
    let mut alarm = Alarm::new(scope.activator_for(Rc::clone(&address)));
    let awakened = scope.worker().sync_activator_for(address.to_vec());
    let wakes: Wake = Arc::new(move || _ = awakened.activate());
    let mut ticks = builder.new_input(ticks, Pipeline);
    let (events, event_stream) = builder.new_output();
    let (rejected, rejected_stream) = builder.new_output();
    let (closed, closed_stream) = builder.new_output();
    let mut events = OutputBuilder::<_, CapacityContainerBuilder<Vec<(Event, Epoch, isize)>>>::from(events);
    let mut rejected =
        OutputBuilder::<_, CapacityContainerBuilder<Vec<(DeadLetter, Epoch, isize)>>>::from(rejected);
    let mut closed = OutputBuilder::<_, CapacityContainerBuilder<Vec<Closed>>>::from(closed);

    builder.build(move |capabilities| {
        drop(capabilities);
        let mut open: VecDeque<OpenEpoch> = VecDeque::new();
        let mut reading = Reading::new(worker, reader, settings, context);
        reading.is_woken = reading.reader.wake_with(wakes);
        move |frontiers| {
            ticks.for_each(|stamp, data| {
                let epoch = *stamp.least().expect("a tick travels with its epoch");
                let capabilities = std::array::from_fn(|port| stamp.delayed(&epoch, port));
                open.extend(data.drain(..).map(|tick| OpenEpoch {
                    epoch,
                    tick,
                    capabilities: Clone::clone(&capabilities),
                }));
            });
            while let Some(front) = open.front() {
                reading.begin_epoch(front.epoch, &front.tick);
                if frontiers[0].less_equal(&front.epoch) || !reading.is_complete() {
                    break;
                }
                closed.activate().session(&front.capabilities[2]).give(reading.close(&front.tick));
                open.pop_front();
            }
            let Some(current) = open.front() else {
                if !frontiers[0].is_empty() {
                    alarm.at(NextRead::Soon);
                }
                return;
            };
            let mut events = events.activate();
            let mut rejected = rejected.activate();
            let mut events = events.session(&current.capabilities[0]);
            let mut rejected = rejected.session(&current.capabilities[1]);
            let epoch = current.epoch;
            let read = reading.read(epoch, &current.tick, &mut |outcome| match outcome {
                Ok(event) => events.give((event, epoch, 1)),
                Err(letter) => rejected.give((letter, epoch, 1)),
            });
            alarm.at(read);
        }
    });
    Read { events: event_stream, rejected: rejected_stream, closed: closed_stream }
}

struct OpenEpoch {
    epoch: Epoch,
    tick: Tick,
    capabilities: [Capability<Epoch>; 3],
}

struct Reading {
    worker: usize,
    reader: Box<dyn Reader>,
    decoder: Box<dyn Decoder>,
    field_errors: FieldErrors,
    settings: ReadSettings,
    context: ReadContext,
    partitions: Vec<OwnedPartition>,
    /// The index in `partitions` by partition number.
    index: Vec<usize>,
    /// The indices in `partitions` by how far each is behind in event time.
    order: Vec<usize>,
    started: Instant,
    /// The epoch that is being read, and since when.
    open: Option<Epoch>,
    opened: Instant,
    /// True if the open epoch is replayed.
    replaying: bool,
    in_flight: VecDeque<(Epoch, usize)>,
    bytes_in_flight: usize,
    share_in_flight: Share,
    reported: Option<Instant>,
    /// The oldest timestamp of a record in the open epoch.
    oldest: Option<i64>,
    /// The number of records in the open epoch, and the contexts of its first sampled ones, if rounds are recorded.
    records: u64,
    contexts: Vec<TraceContext>,
    ended: bool,
    /// True if records wake the reader.
    is_woken: bool,
    /// Since when the first records of partitions are waited for, and whether they still are.
    first_asked: Option<Instant>,
    awaits_first: bool,
    lead: Lead,
}

/// A partition that this worker reads.
struct OwnedPartition {
    tracker: PartitionTracker,
    /// True if it is not read: it is too far ahead of the slowest partition, or all of a replayed epoch is read.
    paused: bool,
    /// True if it is paused because it leads too far, until others have caught up.
    leads: bool,
    /// The offset at which its share of a counted epoch ends.
    until: Option<Offset>,
    /// The offset at which it is read first.
    first: Offset,
    lag: IntGauge,
    held: IntGauge,
    withheld: IntGauge,
}

impl OwnedPartition {
    fn new(tracker: PartitionTracker, first: Offset, metrics: &Metrics) -> OwnedPartition {
        let partition = tracker.partition();
        let (lag, [held, withheld]) = (metrics.consumer_lag(partition), metrics.partition_waits(partition));
        let (paused, leads, until) = (false, false, None);
        OwnedPartition { tracker, paused, leads, until, first, lag, held, withheld }
    }

    /// Pauses or resumes the partition.
    fn set_paused(&mut self, paused: bool, reader: &mut dyn Reader) -> Result<(), SourceError> {
        if self.paused != paused {
            reader.set_paused(self.tracker.partition(), paused)?;
            self.paused = paused;
        }
        Ok(())
    }

    /// Returns true if the partition may be read in this epoch.
    fn is_allowed(&self, tick: &Tick) -> bool {
        let tracker = &self.tracker;
        tick.paced.allows(tracker.partition(), tracker.greatest(), tracker.is_idle())
    }
}

impl Reading {
    fn new(worker: usize, reader: Box<dyn Reader>, settings: ReadSettings, context: ReadContext) -> Self {
        let mut reader = withholding(reader, Vec::from_iter(settings.decoding.gate()));
        if context.metrics.rounds().is_some() {
            reader.collect_contexts(MAX_LINKS);
        }
        let partitions: Vec<OwnedPartition> = reader
            .partitions()
            .iter()
            .map(|PartitionState { partition, position, .. }| {
                let tracker = PartitionTracker::new(*partition, &context.positions[partition.0 as usize]);
                OwnedPartition::new(tracker, *position, &context.metrics)
            })
            .collect();
        let number = |owned: &OwnedPartition| owned.tracker.partition().0 as usize;
        let mut index = vec![usize::MAX; partitions.iter().map(|o| number(o) + 1).max().unwrap_or(0)];
        partitions.iter().enumerate().for_each(|(at, owned)| index[number(owned)] = at);
        Reading {
            worker,
            reader,
            decoder: settings.decoding.decoder(),
            field_errors: FieldErrors::new(Arc::clone(&context.metrics)),
            share_in_flight: context.metrics.bytes_in_flight(),
            settings,
            context,
            partitions,
            index,
            order: Vec::new(),
            started: Instant::now(),
            open: None,
            opened: Instant::now(),
            replaying: false,
            in_flight: VecDeque::new(),
            bytes_in_flight: 0,
            reported: None,
            oldest: None,
            records: 0,
            contexts: Vec::new(),
            ended: false,
            is_woken: false,
            first_asked: None,
            awaits_first: true,
            lead: Lead::default(),
        }
    }

    /// Begins an epoch, unless it is already open.
    fn begin_epoch(&mut self, epoch: Epoch, tick: &Tick) {
        if self.open.replace(epoch) == Some(epoch) || self.ended {
            return;
        }
        self.opened = Instant::now();
        if self.settings.reports {
            self.context.metrics.watermark_stalls(tick.paced.stall.as_ref());
        }
        let was_replaying = std::mem::replace(&mut self.replaying, tick.replay.is_some());
        let begun = match &tick.replay {
            Some(bindings) => self.begin_replay(bindings),
            None if self.settings.timing.counted => self.begin_counted(tick),
            None => self.begin_timed(tick, was_replaying).and_then(|()| self.add_partitions()),
        };
        if let Err(error) = begun {
            self.fail(error);
        }
    }

    /// Limits a replayed epoch to the records that its bindings name.
    fn begin_replay(&mut self, bindings: &[Binding]) -> Result<(), SourceError> {
        let states = self.reader.partitions();
        for (owned, state) in self.partitions.iter_mut().zip(states) {
            let partition = state.partition;
            let target = bindings.iter().find(|binding| binding.partition == partition).copied();
            owned.tracker.replay(target);
            let limit = match target {
                Some(Binding { end, timestamp: Some(_), .. }) => end,
                _ => state.position,
            };
            self.reader.set_limit(partition, Some(limit))?;
            owned.set_paused(false, self.reader.as_mut())?;
            owned.until = None;
        }
        Ok(())
    }

    /// Limits a counted epoch to the same number of records from each partition that may be read.
    fn begin_counted(&mut self, tick: &Tick) -> Result<(), SourceError> {
        let states = self.reader.partitions();
        for (owned, Offset(position)) in self.partitions.iter_mut().zip(states.iter().map(|s| s.position)) {
            let reads = owned.is_allowed(tick);
            let until = Offset(if reads { position + self.settings.epoch_records } else { position });
            owned.until = Some(until);
            self.reader.set_limit(owned.tracker.partition(), Some(until))?;
        }
        Ok(())
    }

    /// Resumes the partitions that may be read in a timed epoch and pauses the others.
    fn begin_timed(&mut self, tick: &Tick, was_replaying: bool) -> Result<(), SourceError> {
        for owned in &mut self.partitions {
            let partition = owned.tracker.partition();
            if was_replaying {
                self.reader.set_limit(partition, None)?;
                owned.tracker.replay(None);
            }
            owned.leads = false;
            owned.set_paused(!owned.is_allowed(tick), self.reader.as_mut())?;
        }
        Ok(())
    }

    /// Adds new partitions. The open epoch binds their first offsets and reads no record of them.
    fn add_partitions(&mut self) -> Result<(), SourceError> {
        for (partition, first) in (self.context.added)() {
            let at = partition.0 as usize;
            if self.index.get(at).is_some_and(|&index| index != usize::MAX) {
                continue;
            }
            self.reader.add(partition, first)?;
            self.reader.set_paused(partition, true)?;
            if self.index.len() <= at {
                self.index.resize(at + 1, usize::MAX);
            }
            self.index[at] = self.partitions.len();
            let tracker = PartitionTracker::added(partition, first);
            self.partitions.push(OwnedPartition {
                paused: true,
                ..OwnedPartition::new(tracker, first, &self.context.metrics)
            });
        }
        Ok(())
    }

    /// Returns true if the open epoch is read to its end: to its bindings if replayed, or its share of each partition if
    /// counted.
    fn is_complete(&self) -> bool {
        if self.ended {
            return true;
        }
        let counted = !self.replaying && self.settings.timing.counted;
        let has_share = || {
            let states = self.reader.partitions();
            let mut both = self.partitions.iter().zip(&states);
            both.all(|(owned, state)| state.ended || owned.until.is_some_and(|until| state.position >= until))
        };
        self.partitions.iter().all(|owned| owned.tracker.is_complete()) && (!counted || has_share())
    }

    /// Checks that a replayed epoch ends at exactly the records that its bindings name.
    fn check_replay(&self, states: &[PartitionState], now: Duration) -> Result<(), SourceError> {
        for (OwnedPartition { tracker, .. }, state) in self.partitions.iter().zip(states) {
            let Some(Binding { end, timestamp: Some(timestamp), partition, .. }) = tracker.target() else {
                continue;
            };
            // Soon after a change of leader, the reported end of a partition may be too low.
            let over = state.ended || tracker.at_end_for(now).is_some_and(|time| time >= MISSING);
            if (state.position >= end || over) && !tracker.is_complete() {
                let found = match tracker.end() {
                    Some((read, found)) if read == end => format!("has timestamp {found}"),
                    _ => "is missing".to_owned(),
                };
                return Err(SourceError::Refused(format!(
                    "the record {}:{} had timestamp {timestamp} when it was read before, and now {found}: the input \
                     was truncated or recreated",
                    partition.0,
                    end.0 - 1
                )));
            }
        }
        Ok(())
    }

    /// Lets the partition that is furthest behind in event time be read first. One that has no event yet comes last: it
    /// may never have one.
    fn set_order(&mut self) {
        let Reading { order, partitions, reader, .. } = self;
        let greatest = |at: &usize| partitions[*at].tracker.greatest().unwrap_or(EventTime::MAX);
        order.clear();
        order.extend(0..partitions.len());
        order.sort_by_key(greatest);
        reader.set_order(order);
    }

    /// Reads one budget's worth of records into the open epoch; returns when to read again.
    fn read(
        &mut self,
        epoch: Epoch,
        tick: &Tick,
        give: &mut dyn FnMut(Result<Event, DeadLetter>),
    ) -> NextRead {
        self.release();
        if self.ended {
            return NextRead::Soon;
        }
        let budget = self.budget(epoch);
        let (read, bytes) = match self.read_in_order(budget, tick, give) {
            Ok(read) => read,
            Err(error) => {
                self.fail(error);
                return NextRead::Soon;
            }
        };
        if read > 0 && self.records == 0 {
            self.context.activity.note();
        }
        self.records += read as u64;
        if self.context.metrics.rounds().is_some() {
            self.contexts.append(&mut self.reader.take_contexts());
        }
        if bytes > 0 {
            self.bytes_in_flight += bytes;
            match self.in_flight.back_mut() {
                Some((last, sum)) if *last == epoch => *sum += bytes,
                _ => self.in_flight.push_back((epoch, bytes)),
            }
        }
        let (states, now) = (self.reader.partitions(), self.started.elapsed());
        let asked = budget != Budget::NONE && !self.replaying;
        for (owned, state) in self.partitions.iter_mut().zip(&states) {
            owned.tracker.observe(state, now, asked && !owned.paused, &self.settings.timing);
        }
        self.report(&states, now);
        if self.replaying
            && let Err(error) = self.check_replay(&states, now)
        {
            self.fail(error);
        }
        let leads = || self.partitions.iter().any(|owned| owned.leads);
        let is_held = budget == Budget::NONE || self.replaying || self.settings.timing.counted || leads();
        match budget != Budget::NONE && (read == budget.records || bytes >= budget.bytes) {
            true => NextRead::Now,
            false if self.is_woken && !is_held => NextRead::Later,
            false => NextRead::Soon,
        }
    }

    /// Reports lag and held partitions, at most once per [`REPORT_EVERY`].
    fn report(&mut self, states: &[PartitionState], now: Duration) {
        if self.reported.is_some_and(|at| at.elapsed() < REPORT_EVERY) {
            return;
        }
        self.reported = Some(Instant::now());
        for (owned, state) in self.partitions.iter().zip(states) {
            // Records that are made as they are read have no end, and so no lag.
            owned.lag.set(i64::try_from(state.backlog).unwrap_or(0));
            let held = owned.tracker.held_for(now);
            let seconds = |(_, time): (Offset, Duration)| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
            owned.held.set(held.map_or(0, seconds));
            owned.withheld.set(owned.tracker.withheld_for(now).map_or(0, seconds));
            // A held partition that counts as idle, by `time.held_timeout`, no longer holds the watermark.
            let holds = held.filter(|_| !owned.tracker.is_idle());
            self.context.metrics.partition_holds(state.partition, holds);
        }
    }

    fn fail(&mut self, error: SourceError) {
        self.ended = true;
        self.context.failure.report(error.into());
    }

    /// Returns the time that the waiting records need at the pace of the open epoch, in which so many were read. Zero if epochs
    /// are counted, which is so where records are made as they are read and have no end.
    fn lag(&self, states: &[PartitionState], records: u64) -> Duration {
        if records == 0 || self.settings.timing.counted {
            return Duration::ZERO;
        }
        let waiting: f64 = states.iter().map(|state| state.backlog as f64).sum();
        let seconds = self.opened.elapsed().as_secs_f64() * waiting / records as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Closes the open epoch and returns its bindings.
    fn close(&mut self, tick: &Tick) -> Closed {
        let (states, now) = (self.reader.partitions(), self.started.elapsed());
        let (mut bindings, mut unfinal) = (Vec::new(), Vec::new());
        let mut slowest = None;
        let (records, contexts) = (std::mem::take(&mut self.records), std::mem::take(&mut self.contexts));
        if let (Some(epoch), Some(rounds)) = (self.open, self.context.metrics.rounds())
            && records > 0
        {
            rounds.read(epoch, records, contexts);
            self.reader.collect_contexts(MAX_LINKS);
        }
        for (owned, state) in self.partitions.iter_mut().zip(&states) {
            debug_assert_eq!(owned.tracker.partition(), state.partition);
            let (binding, parts) = owned.tracker.close(state, self.replaying, tick.rules);
            bindings.extend(binding);
            unfinal.extend(parts);
            let own = owned.tracker.slowness(state, now);
            slowest = [slowest, own].into_iter().flatten().min();
        }
        Closed {
            worker: self.worker,
            wall_ms: tick.wall_ms,
            bindings,
            unfinal,
            slowest,
            oldest: self.oldest.take(),
            lag: self.lag(&states, records),
            ended: !self.replaying && states.iter().all(|state| state.ended),
            stopping: self.context.stopping.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests;
