//! The records of a backtest, in epochs.
//!
//! ```text
//!   source ─▶ reader ─ the same number of records from each partition that may be read ─▶ one epoch
//!     View: decoder ─▶ future? ─▶ pushing times ─▶ bindings ─▶ watermark ─▶ events of the epoch, and W after it
//!     bindings ─▶ Pace: the partitions that may be read in the next epoch
//! ```
//!
//! Epochs are counts of records, as in a run over files, so that the same input gives the same results. A topic has no
//! group, and nothing is committed. Records are decoded once, or twice if the candidate has fields of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_dataflows::{EventTime, Partition};

use crate::assembly;
use crate::config::{Config, SourceConfig};
use crate::coordination::ingest::{
    Clocks, Liveness, Pace, Paced, PartitionState, PartitionTracker, RECORD_OVERHEAD, TimeRules, Timing,
    Unfinal, UnfinalBytes,
};
use crate::coordination::{Binding, Position, Positions, Watermark, WatermarkRule};
use crate::decode::{Decoder, Reason, withholding};
use crate::event::Event;
use crate::pipeline::{Plan, Time};
use crate::source::kafka::StartFrom;
use crate::source::{Budget, Raw, Reader, Source, SourceError};

/// The number of records that an epoch takes from each partition of a topic.
const TOPIC_EPOCH_RECORDS: i64 = 1000;

/// The maximum lead of a partition of a topic over the slowest one, in milliseconds, unless `time.max_drift` is less. So
/// records arrive approximately in the order of time, and few events wait for others.
const TOPIC_DRIFT_MS: i64 = 1000;

/// The maximum number of bytes of one read.
const READ_BYTES: usize = 8 << 20;

/// The pause after a read that returned nothing.
const PAUSE: Duration = Duration::from_millis(1);

/// The time without a record after which a source that has not ended counts as unavailable.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// The events of an epoch, as one plan decodes them.
#[derive(Clone, Debug)]
pub struct EpochInput {
    /// The accepted events.
    pub events: Vec<Event>,
    /// The watermark after the epoch.
    pub watermark: EventTime,
}

/// The records that were read so far, as one plan decodes them.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// The number of accepted events.
    pub accepted: u64,
    /// The number of rejected records, by reason.
    pub rejected: BTreeMap<&'static str, u64>,
}

/// The records of a source, decoded by one plan or by two.
pub struct Input {
    reader: Box<dyn Reader>,
    views: Vec<View>,
    timing: Timing,
    epoch_records: i64,
    positions: Positions,
    pace: Pace,
    paced: Paced,
    /// True if the watermark goes to infinity at the end of the input.
    closes: bool,
    records: u64,
    is_ended: bool,
    // The reader needs the open source.
    _source: Arc<dyn Source>,
}

/// The records as one plan decodes them.
struct View {
    decoder: Box<dyn Decoder>,
    trackers: Vec<PartitionTracker>,
    watermark: Watermark,
    events: Vec<Event>,
    decoded: Decoded,
}

impl Input {
    /// Opens the source of a configuration, to be decoded by these plans. A topic is read from the first record with a
    /// timestamp of `since_ms` or later, other sources from their first record.
    ///
    /// # Errors
    /// If the source cannot be opened.
    pub fn open(config: &Config, plans: &[&Plan], since_ms: Option<i64>) -> Result<Input, SourceError> {
        let source = open_source(config, since_ms)?;
        let owned: Vec<_> = (0..).map(Partition).zip(source.start().iter().copied()).collect();
        let gates = plans.iter().filter_map(|plan| plan.decoding.gate()).collect();
        let mut reader = withholding(source.reader(&owned)?, gates);
        for &(partition, _) in &owned {
            reader.set_paused(partition, true)?;
        }
        let (time, is_topic) = (config.plan.time, matches!(config.source, SourceConfig::Kafka(_)));
        let positions = Positions::starting(source.start());
        let drift_ms = time.max_drift_ms.unwrap_or(TOPIC_DRIFT_MS).min(TOPIC_DRIFT_MS);
        let mut pace = Pace {
            unfinal: Unfinal::default(),
            unfinal_limit: config.plan.limits.unfinal_bytes,
            max_drift_ms: if is_topic { Some(drift_ms) } else { time.max_drift_ms },
            liveness: Liveness::new(time.standstill(), time.held_warning),
        };
        let paced = pace.end_epoch(Duration::ZERO, positions.as_slice(), None, EventTime::MIN);
        Ok(Input {
            reader,
            views: plans.iter().map(|plan| View::new(plan, positions.as_slice(), &time)).collect(),
            timing: Timing {
                idle_timeout: time.idle_timeout,
                held_timeout: time.held_timeout,
                max_future_skew_ms: time.max_future_skew_ms,
                max_jump_ms: time.max_jump_ms,
                counted: true,
            },
            epoch_records: if is_topic { TOPIC_EPOCH_RECORDS } else { time.epoch_records },
            positions,
            pace,
            paced,
            closes: config.source.is_bounded(),
            records: 0,
            is_ended: owned.is_empty(),
            _source: source,
        })
    }

    /// Returns the number of records that were read.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Returns what was decoded, by plan.
    pub fn decoded(&self) -> impl Iterator<Item = &Decoded> {
        self.views.iter().map(|view| &view.decoded)
    }

    /// Reads the next epoch; returns it for each plan, in their order. None at the end of the input.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub fn next_epoch(&mut self) -> Result<Option<Vec<EpochInput>>, SourceError> {
        if self.is_ended {
            return Ok(None);
        }
        for at in 0..self.positions.as_slice().len() {
            let partition = Partition(at as u32);
            let tracker = &self.views[0].trackers[at];
            if self.paced.allows(partition, tracker.greatest(), tracker.is_idle()) {
                self.reader.set_paused(partition, false)?;
                self.read_share(at)?;
                self.reader.set_paused(partition, true)?;
            }
        }
        let states = self.reader.partitions();
        self.is_ended = states.iter().all(|state| state.ended);
        let closes = self.is_ended && self.closes;
        let mut epoch = Vec::new();
        for (at, view) in self.views.iter_mut().enumerate() {
            let (bindings, unfinal) = view.close(&states);
            let watermark = view.end_epoch(&bindings, closes);
            if at == 0 {
                self.positions.advance(&bindings);
                self.pace.add(&unfinal);
                self.paced = self.pace.end_epoch(Duration::ZERO, self.positions.as_slice(), None, watermark);
            }
            epoch.push(EpochInput { events: std::mem::take(&mut view.events), watermark });
        }
        Ok(Some(epoch))
    }

    /// Reads the share of an epoch from a partition, or the rest of the partition.
    fn read_share(&mut self, at: usize) -> Result<(), SourceError> {
        let Input { reader, views, timing, epoch_records, records, .. } = self;
        let (mut left, mut last) = (*epoch_records as usize, Instant::now());
        while left > 0 && !reader.partitions()[at].ended {
            let budget = Budget { records: left, bytes: READ_BYTES };
            let read = reader.read(budget, &mut |raw| {
                views.iter_mut().for_each(|view| view.accept(raw, timing));
            })?;
            left -= read.min(left);
            *records += read as u64;
            if read > 0 {
                last = Instant::now();
            } else if last.elapsed() > MAX_SILENCE {
                let seconds = MAX_SILENCE.as_secs();
                let reason = match reader.partitions()[at].is_withheld {
                    true => format!("the next record has been waiting for its schema for {seconds} s"),
                    false => format!("no record for {seconds} s"),
                };
                let action = format!("read partition {at} to its end");
                return Err(SourceError::Unavailable { action, source: reason.into() });
            } else if !reader.partitions()[at].ended {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }
}

/// Opens the source to be read to its present end, without the offsets of a consumer group.
fn open_source(config: &Config, since_ms: Option<i64>) -> Result<Arc<dyn Source>, SourceError> {
    let mut source = config.source.clone();
    let mut context = assembly::source_context(config, true);
    if let SourceConfig::Kafka(kafka) = &mut source {
        kafka.start_from = since_ms.map_or(StartFrom::Earliest, StartFrom::Time);
        // Together, they make the start independent of the group's offsets.
        (kafka.start_from_is_set, context.has_ledger) = (true, true);
    }
    source.connector().open(context, None)
}

impl View {
    fn new(plan: &Plan, positions: &[Position], time: &Time) -> View {
        let tracker = |(at, position)| PartitionTracker::new(Partition(at), position);
        // The watermark follows events only: wall times of the backtest say nothing about those of the records.
        let rule = WatermarkRule { idle_advance_ms: None, ..time.watermark_rule() };
        View {
            decoder: plan.decoding.decoder(),
            trackers: (0..).zip(positions).map(tracker).collect(),
            watermark: Watermark::new(positions.len(), rule),
            events: Vec::new(),
            decoded: Decoded::default(),
        }
    }

    /// Decodes a record and judges its time, as a run does.
    fn accept(&mut self, raw: Raw<'_>, timing: &Timing) {
        let tracker = &mut self.trackers[raw.position.partition.0 as usize];
        tracker.record(raw.position.offset, raw.timestamp);
        let reason = match self.decoder.decode(raw) {
            Ok(event) => {
                let (time, clocks) =
                    (event.event_time(), Clocks::new(TimeRules::default(), raw.timestamp, None));
                if !clocks.is_future(time, timing.max_future_skew_ms) {
                    let size = RECORD_OVERHEAD + raw.value.map_or(0, <[u8]>::len) + event.transcoded_bytes();
                    tracker.accept(time, clocks.pushing_time(time), size, timing, self.watermark.current());
                    self.decoded.accepted += 1;
                    self.events.push(event);
                    return;
                }
                Reason::Future
            }
            Err(rejection) => rejection.reason,
        };
        *self.decoded.rejected.entry(reason.as_str()).or_default() += 1;
    }

    /// Ends the reading of an epoch; returns its bindings, and its un-final bytes.
    fn close(&mut self, states: &[PartitionState]) -> (Vec<Binding>, Vec<(Partition, UnfinalBytes)>) {
        let (mut bindings, mut unfinal) = (Vec::new(), Vec::new());
        for (tracker, state) in self.trackers.iter_mut().zip(states) {
            let (binding, bytes) = tracker.close(state, false, TimeRules::default());
            bindings.extend(binding);
            unfinal.push((state.partition, bytes));
        }
        (bindings, unfinal)
    }

    /// Advances the watermark.
    fn end_epoch(&mut self, bindings: &[Binding], closes: bool) -> EventTime {
        let watermark = self.watermark.advance(bindings, 0, TimeRules::default());
        if closes { self.watermark.close() } else { watermark }
    }
}

/// Returns the timestamp from which on a topic is read, given the longest look-back of its rules: twice that before
/// `from_ms`, because the edge of a condition depends on what held at the event before. An accepted event time is later
/// than its record's timestamp by `max_future_skew` at most.
pub fn since_ms(from_ms: i64, look_back_ms: i64, time: &Time) -> i64 {
    from_ms
        .saturating_sub(look_back_ms.saturating_mul(2))
        .saturating_sub(time.max_out_of_orderness_ms)
        .saturating_sub(time.max_future_skew_ms)
        .max(0)
}
