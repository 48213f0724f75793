//! Reading: records of a worker's partitions, stamped with the open epoch and decoded.
//!
//! ```text
//!   ticks ──▶ ┌─────────┐ ──▶ events, at the epoch in which they were read
//!             │ Read    │ ──▶ what could not be decoded, or lies in the future
//!   Reader ─▶ └─────────┘ ──▶ Closed(e): the bindings, once the clock has passed e
//! ```

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

use super::clock::{Tick, committed};
use super::failure::Failure;
use super::field_errors::FieldErrors;
use crate::coordination::{Binding, Closed, Position};
use crate::decode::{Decoder, Reason, Rejection};
use crate::event::Event;
use crate::metrics::{Metrics, Share};
use crate::outputs::DeadLetter;
use crate::source::{PartitionState, Raw, Reader, SourceError};

/// How a worker reads.
#[derive(Clone, Debug)]
pub struct ReadSettings {
    /// How long a partition must be silent at its end to be idle.
    pub idle_timeout: Duration,
    /// How far beyond its record's timestamp, or the epoch's wall time, an event may lie, in milliseconds.
    pub max_future_skew_ms: i64,
    /// How far a partition may be ahead of the slowest one with a backlog, in milliseconds of event time.
    pub max_drift_ms: i64,
    /// How many bytes this worker may have read that are not committed yet.
    pub bytes_in_flight: usize,
    /// Whether a record is rejected for an optional field of a wrong form.
    pub strict_fields: bool,
}

/// How many records are read before other operators get their turn.
const BUDGET: usize = 1024;

/// How long a partition must be at its end, short of a record that was read before, for the record to be gone.
const MISSING: Duration = Duration::from_secs(15);

/// How long to wait when there was nothing to read.
const PAUSE: Duration = Duration::from_millis(1);

/// How often it is told how many records wait.
const LAG_EVERY: Duration = Duration::from_millis(250);

/// What the reading operator gives.
pub struct Read<'scope> {
    /// Decoded events.
    pub events: StreamVec<'scope, Epoch, (Event, Epoch, isize)>,
    /// Records that are no events, and events that lie in the future.
    pub rejected: StreamVec<'scope, Epoch, (DeadLetter, Epoch, isize)>,
    /// What each epoch held.
    pub closed: StreamVec<'scope, Epoch, Closed>,
}

/// What reading is told from outside the dataflow.
#[derive(Clone)]
pub struct ReadContext {
    /// By partition, how far it had come before.
    pub positions: Arc<[Position]>,
    /// Set when the process was asked to stop.
    pub stopping: Arc<AtomicBool>,
    /// The newest watermark that is known here.
    pub watermark: Rc<Cell<EventTime>>,
    /// Behind all sinks.
    pub committed: Probe<Epoch>,
    /// Where a failure to read goes.
    pub failure: Failure,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Reads with `reader` as long as the clock ticks.
pub fn read<'scope>(
    ticks: StreamVec<'scope, Epoch, Tick>,
    reader: Box<dyn Reader>,
    settings: ReadSettings,
    context: ReadContext,
) -> Read<'scope> {
    let scope = ticks.scope();
    let worker = scope.index();
    let mut builder = OperatorBuilder::new("Read".to_owned(), scope);
    let activator = scope.activator_for(builder.operator_info().address);
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
                reading.begin(front);
                if frontiers[0].less_equal(&front.epoch) || !reading.is_complete() {
                    break;
                }
                closed.activate().session(&front.capabilities[2]).give(reading.close(&front.tick));
                open.pop_front();
            }
            let Some(current) = open.front() else {
                if !frontiers[0].is_empty() {
                    activator.activate_after(PAUSE);
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
            if read { activator.activate() } else { activator.activate_after(PAUSE) }
        }
    });
    Read { events: event_stream, rejected: rejected_stream, closed: closed_stream }
}

struct OpenEpoch {
    epoch: Epoch,
    tick: Tick,
    capabilities: [Capability<Epoch>; 3],
}

/// One partition, as its owner sees it.
struct Owned {
    partition: Partition,
    /// What the open epoch took from it.
    end: Option<(Offset, i64)>,
    max_in_epoch: Option<EventTime>,
    max_ever: EventTime,
    /// When a record last came that ends idleness.
    alive: Instant,
    idle: bool,
    paused: bool,
    /// What the open epoch took from it before, if it is done again and took anything.
    target: Option<Binding>,
    lag: IntGauge,
}

impl Owned {
    /// Whether everything was read that the open epoch is known to hold.
    fn is_complete(&self) -> bool {
        match self.target {
            Some(Binding { end, timestamp: Some(timestamp), .. }) => self.end == Some((end, timestamp)),
            _ => true,
        }
    }
}

struct Reading {
    worker: usize,
    reader: Box<dyn Reader>,
    decoder: Decoder,
    field_errors: FieldErrors,
    settings: ReadSettings,
    context: ReadContext,
    owned: Vec<Owned>,
    /// The epoch that is being read.
    open: Option<Epoch>,
    /// Whether it is done again.
    replaying: bool,
    /// By partition number, where in `owned` it is.
    index: Vec<usize>,
    in_flight: VecDeque<(Epoch, usize)>,
    bytes_in_flight: usize,
    share_in_flight: Share,
    lag_told: Option<Instant>,
    slowest_backlog: Option<EventTime>,
    /// The oldest timestamp of a record in the open epoch.
    oldest: Option<i64>,
    ended: bool,
}

impl Reading {
    fn new(worker: usize, reader: Box<dyn Reader>, settings: ReadSettings, context: ReadContext) -> Self {
        let owned: Vec<Owned> = reader
            .partitions()
            .iter()
            .map(|state| (state, &context.positions[state.partition.0 as usize]))
            .map(|(state, position)| Owned {
                partition: state.partition,
                end: None,
                max_in_epoch: None,
                max_ever: position.max_event_time.unwrap_or(EventTime::MIN),
                alive: Instant::now(),
                idle: position.idle,
                paused: false,
                target: None,
                lag: context.metrics.consumer_lag(state.partition),
            })
            .collect();
        let mut index = vec![usize::MAX; owned.iter().map(|o| o.partition.0 as usize + 1).max().unwrap_or(0)];
        owned.iter().enumerate().for_each(|(at, owned)| index[owned.partition.0 as usize] = at);
        Reading {
            worker,
            reader,
            decoder: Decoder::new(settings.strict_fields),
            field_errors: FieldErrors::new(Arc::clone(&context.metrics)),
            share_in_flight: context.metrics.bytes_in_flight(),
            settings,
            context,
            owned,
            open: None,
            replaying: false,
            index,
            in_flight: VecDeque::new(),
            bytes_in_flight: 0,
            lag_told: None,
            slowest_backlog: None,
            oldest: None,
            ended: false,
        }
    }

    /// Turns to an epoch, unless it is the one that is being read.
    fn begin(&mut self, open: &OpenEpoch) {
        if self.open.replace(open.epoch) == Some(open.epoch) {
            return;
        }
        let was_replaying = std::mem::replace(&mut self.replaying, open.tick.replay.is_some());
        if !self.replaying && !was_replaying {
            return;
        }
        let positions = self.reader.partitions();
        for (owned, state) in self.owned.iter_mut().zip(positions) {
            let bindings = open.tick.replay.as_deref();
            owned.target =
                bindings.and_then(|all| all.iter().find(|b| b.partition == owned.partition).copied());
            let limit = bindings.map(|_| match owned.target {
                Some(Binding { end, timestamp: Some(_), .. }) => end,
                _ => state.position,
            });
            if let Err(error) = self.reader.set_limit(owned.partition, limit) {
                self.ended = true;
                self.context.failure.report(error.into());
            }
        }
    }

    /// Whether an epoch that is done again has everything that it is known to hold; one that is new always has.
    fn is_complete(&self) -> bool {
        self.owned.iter().all(Owned::is_complete)
    }

    /// An epoch that is done again must come to exactly the records that its bindings name.
    fn check_replay(&self) -> Result<(), SourceError> {
        for (owned, state) in self.owned.iter().zip(self.reader.partitions()) {
            let Some(Binding { end, timestamp: Some(timestamp), partition, .. }) = owned.target else {
                continue;
            };
            // The end of a partition proves little soon after its leader has changed.
            let over = state.ended || state.at_end_since.is_some_and(|since| since.elapsed() >= MISSING);
            if (state.position >= end || over) && !owned.is_complete() {
                let found = match owned.end {
                    Some((read, found)) if read == end => format!("has timestamp {found}"),
                    _ => "is missing".to_owned(),
                };
                return Err(SourceError::Refused(format!(
                    "the record {}:{}, of timestamp {timestamp} when it was read before, {found}: the input was \
                     truncated or created anew",
                    partition.0,
                    end.0 - 1
                )));
            }
        }
        Ok(())
    }

    /// Reads a little into the open epoch; says whether there may be more right now.
    fn read(&mut self, epoch: Epoch, tick: &Tick, give: &mut dyn FnMut(Result<Event, DeadLetter>)) -> bool {
        while let Some((_, bytes)) =
            self.in_flight.pop_front_if(|(epoch, _)| committed(&self.context.committed, *epoch))
        {
            self.bytes_in_flight -= bytes;
        }
        self.share_in_flight.set(self.bytes_in_flight);
        let now = Instant::now();
        self.tell_lag(now);
        if self.ended {
            return false;
        }
        // When too much is in flight the source is still heard: it may have failed, and more records wait.
        // An epoch that is done again is read to its end once all before it are committed: it can end no other way.
        let full = self.bytes_in_flight >= self.settings.bytes_in_flight
            && !(self.replaying && self.in_flight.iter().all(|(other, _)| *other == epoch));
        let budget = if full { 0 } else { BUDGET };
        let watermark = self.context.watermark.get();
        let latest = tick.wall_ms.saturating_add(self.settings.max_future_skew_ms);
        let Reading { reader, decoder, field_errors, settings, owned, index, oldest, .. } = self;
        let (mut bytes, mut accepted, mut malformed, mut invalid, mut future) = (0, 0u64, 0, 0, 0);
        let result = reader.read(budget, &mut |raw: Raw<'_>| {
            let owned = &mut owned[index[raw.position.partition.0 as usize]];
            bytes += RECORD_OVERHEAD + raw.value.map_or(0, <[u8]>::len);
            owned.end = Some((Offset(raw.position.offset.0 + 1), raw.timestamp));
            *oldest = Some(oldest.map_or(raw.timestamp, |oldest| oldest.min(raw.timestamp)));
            match decoder.decode(raw) {
                Ok(event) => {
                    field_errors.note(raw.position, decoder.field_errors());
                    let time = event.event_time();
                    if time.0 > latest.min(raw.timestamp.saturating_add(settings.max_future_skew_ms)) {
                        future += 1;
                        give(Err(DeadLetter::rejected(raw, Rejection::future(time))));
                        return;
                    }
                    accepted += 1;
                    owned.max_in_epoch = owned.max_in_epoch.max(Some(time));
                    if time > watermark {
                        owned.alive = now;
                    }
                    give(Ok(event));
                }
                Err(rejection) => {
                    if rejection.reason == Reason::Malformed {
                        malformed += 1
                    } else {
                        invalid += 1
                    }
                    give(Err(DeadLetter::rejected(raw, rejection)));
                }
            }
        });
        let read = match result {
            Ok(read) => read,
            Err(error) => {
                self.fail(error);
                return false;
            }
        };
        let metrics = &self.context.metrics;
        metrics.events(accepted);
        for (reason, n) in
            [(Reason::Malformed, malformed), (Reason::Invalid, invalid), (Reason::Future, future)]
        {
            metrics.rejected(reason.as_str(), n);
        }
        if bytes > 0 {
            self.bytes_in_flight += bytes;
            match self.in_flight.back_mut() {
                Some((last, sum)) if *last == epoch => *sum += bytes,
                _ => self.in_flight.push_back((epoch, bytes)),
            }
        }
        let outcome = if self.replaying { self.check_replay() } else { self.limit_drift(tick.slowest) };
        if let Err(error) = outcome {
            self.fail(error);
        }
        read == budget && !full
    }

    /// Tells how many records wait, now and then.
    fn tell_lag(&mut self, now: Instant) {
        if self.lag_told.is_none_or(|at| now.duration_since(at) >= LAG_EVERY) {
            self.lag_told = Some(now);
            for (owned, state) in self.owned.iter().zip(self.reader.partitions()) {
                owned.lag.set(i64::try_from(state.backlog).unwrap_or(i64::MAX));
            }
        }
    }

    fn fail(&mut self, error: SourceError) {
        self.ended = true;
        self.context.failure.report(error.into());
    }

    /// Pauses partitions that are too far ahead, and resumes those that no longer are.
    fn limit_drift(&mut self, slowest: Option<EventTime>) -> Result<(), SourceError> {
        let bound = slowest.map_or(EventTime::MAX, |slowest| slowest.plus_ms(self.settings.max_drift_ms));
        for owned in &mut self.owned {
            let ahead = owned.max_ever.max(owned.max_in_epoch.unwrap_or(EventTime::MIN)) > bound;
            if ahead != owned.paused {
                self.reader.set_paused(owned.partition, ahead)?;
                owned.paused = ahead;
            }
        }
        Ok(())
    }

    /// Ends the open epoch.
    fn close(&mut self, tick: &Tick) -> Closed {
        let states = self.reader.partitions();
        let mut bindings = Vec::new();
        self.slowest_backlog = None;
        for (owned, state) in self.owned.iter_mut().zip(&states) {
            debug_assert_eq!(owned.partition, state.partition);
            let idle = match (self.replaying, owned.target) {
                (true, target) => target.map_or(owned.idle, |target| target.idle),
                (false, _) => idle(owned, state, self.settings.idle_timeout),
            };
            owned.max_ever = owned.max_ever.max(owned.max_in_epoch.unwrap_or(EventTime::MIN));
            if owned.end.is_some() || idle != owned.idle || owned.target.is_some() {
                let position = owned.target.map_or(state.position, |target| target.end);
                bindings.push(Binding {
                    partition: owned.partition,
                    end: owned.end.map_or(position, |(end, _)| end),
                    timestamp: owned.end.map(|(_, timestamp)| timestamp),
                    max_event_time: owned.max_in_epoch,
                    idle,
                });
            }
            if state.backlog > 0 {
                self.slowest_backlog =
                    Some(self.slowest_backlog.map_or(owned.max_ever, |s| s.min(owned.max_ever)));
            }
            owned.idle = idle;
            (owned.end, owned.max_in_epoch, owned.target) = (None, None, None);
        }
        let stopping = self.context.stopping.load(Ordering::Relaxed);
        let ended = !self.replaying && states.iter().all(|state| state.ended);
        Closed {
            worker: self.worker,
            wall_ms: tick.wall_ms,
            bindings,
            slowest: self.slowest_backlog,
            // Records without a timestamp have a negative one, or the greatest.
            oldest: self.oldest.take().filter(|oldest| (0..i64::MAX).contains(oldest)),
            ended,
            stopping,
        }
    }
}

/// What a record costs in memory beside its bytes, roughly.
const RECORD_OVERHEAD: usize = 200;

/// A partition is idle when it has ended, or was silent at its end long enough.
fn idle(owned: &Owned, state: &PartitionState, timeout: Duration) -> bool {
    state.ended || state.at_end_since.is_some_and(|since| since.max(owned.alive).elapsed() >= timeout)
}

#[cfg(test)]
mod tests;
