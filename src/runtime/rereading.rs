//! Records that are read beside or without a run, in epochs: for a backtest, and for the pasts of rules.
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

use headwater_dataflows::{EventTime, Offset, Partition};

use crate::coordination::ingest::{
    Clocks, Liveness, Pace, Paced, PartitionState, PartitionTracker, TimeRules, Timing, UNFINAL_OVERHEAD,
    Unfinal, UnfinalBytes,
};
use crate::coordination::{Binding, Position, Positions, Watermark, WatermarkRule};
use crate::decode::{Decoder, Reason, withholding};
use crate::event::Event;
use crate::pipeline::{Plan, Time};
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

/// The way in which records are read again.
#[derive(Clone, Debug)]
pub struct RereadSettings {
    /// True if the records are those of a topic.
    pub is_topic: bool,
    /// True if the watermark goes to infinity at the end of the input.
    pub closes: bool,
    /// The offset after the last record to read, by partition; None: all that there are now.
    pub ends: Option<Vec<Offset>>,
}

/// The records of a source, decoded by one plan or by two.
pub struct Rereading {
    reader: Box<dyn Reader>,
    views: Vec<View>,
    timing: Timing,
    epoch_records: i64,
    positions: Positions,
    pace: Pace,
    paced: Paced,
    settings: RereadSettings,
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

impl Rereading {
    /// Begins to read a source from these offsets, by partition, to be decoded by these plans.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub fn begin(
        source: Arc<dyn Source>,
        starts: &[Offset],
        plans: &[&Plan],
        settings: RereadSettings,
    ) -> Result<Rereading, SourceError> {
        let owned: Vec<_> = (0..).map(Partition).zip(starts.iter().copied()).collect();
        let gates = plans.iter().filter_map(|plan| plan.decoding.gate()).collect();
        let mut reader = withholding(source.reader(&owned)?, gates);
        for &(partition, _) in &owned {
            reader.set_paused(partition, true)?;
        }
        let time = plans[0].time;
        let positions = Positions::starting(starts);
        let drift_ms = time.max_drift_ms.unwrap_or(TOPIC_DRIFT_MS).min(TOPIC_DRIFT_MS);
        let mut pace = Pace {
            unfinal: Unfinal::default(),
            unfinal_limit: plans[0].limits.unfinal_bytes,
            max_drift_ms: if settings.is_topic { Some(drift_ms) } else { time.max_drift_ms },
            liveness: Liveness::new(time.standstill(), time.held_warning),
        };
        let paced = pace.end_epoch(Duration::ZERO, positions.as_slice(), None, EventTime::MIN);
        let mut rereading = Rereading {
            reader,
            views: plans.iter().map(|plan| View::new(plan, positions.as_slice(), &plan.time)).collect(),
            timing: Timing {
                idle_timeout: time.idle_timeout,
                held_timeout: time.held_timeout,
                max_future_skew_ms: time.max_future_skew_ms,
                max_jump_ms: time.max_jump_ms,
                counted: true,
            },
            epoch_records: if settings.is_topic { TOPIC_EPOCH_RECORDS } else { time.epoch_records },
            positions,
            pace,
            paced,
            settings,
            records: 0,
            is_ended: owned.is_empty(),
            _source: source,
        };
        rereading.limit()?;
        Ok(rereading)
    }

    /// Goes on from where it is to these ends. A partition that was not among the starts is read from its first record.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub fn go_on(&mut self, ends: Vec<Offset>) -> Result<(), SourceError> {
        let position = Position::starting(Offset(0));
        for (partition, _) in (0..).map(Partition).zip(&ends).skip(self.views[0].trackers.len()) {
            self.reader.add(partition, position.next)?;
            self.reader.set_paused(partition, true)?;
            let tracker = || PartitionTracker::new(partition, &position);
            self.views.iter_mut().for_each(|view| view.trackers.push(tracker()));
        }
        (self.is_ended, self.settings.ends) = (ends.is_empty(), Some(ends));
        self.limit()
    }

    fn limit(&mut self) -> Result<(), SourceError> {
        for (partition, end) in (0..).map(Partition).zip(self.settings.ends.iter().flatten()) {
            self.reader.set_limit(partition, Some(*end))?;
        }
        Ok(())
    }

    /// Returns the states of the partitions. One whose records have all been read has ended.
    fn states(&self) -> Vec<PartitionState> {
        let mut states = self.reader.partitions();
        for (state, end) in states.iter_mut().zip(self.settings.ends.iter().flatten()) {
            state.ended |= state.position >= *end;
        }
        states
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
        for at in 0..self.views[0].trackers.len() {
            let partition = Partition(at as u32);
            let tracker = &self.views[0].trackers[at];
            if self.paced.allows(partition, tracker.greatest(), tracker.is_idle()) {
                self.reader.set_paused(partition, false)?;
                self.read_share(at)?;
                self.reader.set_paused(partition, true)?;
            }
        }
        let states = self.states();
        self.is_ended = states.iter().all(|state| state.ended);
        let closes = self.is_ended && self.settings.closes;
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
        let (mut left, mut last) = (self.epoch_records as usize, Instant::now());
        while left > 0 && !self.states()[at].ended {
            let budget = Budget { records: left, bytes: READ_BYTES };
            let Rereading { reader, views, timing, .. } = self;
            let read = reader.read(budget, &mut |raw| {
                views.iter_mut().for_each(|view| view.accept(raw, timing));
            })?;
            left -= read.min(left);
            self.records += read as u64;
            if read > 0 {
                last = Instant::now();
            } else if last.elapsed() > MAX_SILENCE {
                return Err(silent(&self.states()[at], last.elapsed()));
            } else if !self.states()[at].ended {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }
}

/// Returns the error of a partition without records for this long.
fn silent(state: &PartitionState, silence: Duration) -> SourceError {
    let seconds = silence.as_secs();
    let reason = match state.is_withheld {
        true => format!("the next record has been waiting for its schema for {seconds} s"),
        false => format!("no record for {seconds} s"),
    };
    let action = format!("read partition {} to its end", state.partition.0);
    SourceError::Unavailable { action, source: reason.into() }
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
                    let size = UNFINAL_OVERHEAD + raw.value.map_or(0, <[u8]>::len) + event.transcoded_bytes();
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
            let (binding, parts) = tracker.close(state, false, TimeRules::default());
            bindings.extend(binding);
            unfinal.extend(parts);
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
