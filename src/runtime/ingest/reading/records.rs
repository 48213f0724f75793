//! Reads, decodes and judges records, within a budget of what is not committed yet.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, EventTime, Partition};

use super::{BUDGET, OwnedPartition, ReadContext, Reading};
use crate::coordination::ingest::{Clocks, PartitionState, RECORD_OVERHEAD, TimeRules, UNFINAL_OVERHEAD};
use crate::decode::{Reason, Rejection};
use crate::event::Event;
use crate::outputs::DeadLetter;
use crate::runtime::ingest::clock::{Tick, committed};
use crate::runtime::ingest::rejections::Batch;
use crate::source::{Budget, Raw, SourceError};

/// The number of records after which a worker chooses anew which partition is furthest behind, times its partitions.
const ORDERED_RECORDS: usize = 6 * 1024;

/// The least number of records for one choice, which costs some microseconds.
pub(super) const LEAST_STEP: usize = 64;

/// The time for which partitions that have begun wait for the first records of others.
pub(super) const FIRST_WITHIN: Duration = Duration::from_millis(500);

impl Reading {
    /// Releases the bytes of epochs that every sink has committed.
    pub(super) fn release(&mut self) {
        while let Some((_, bytes)) =
            self.in_flight.pop_front_if(|(epoch, _)| committed(&self.context.committed, *epoch))
        {
            self.bytes_in_flight -= bytes;
        }
        self.share_in_flight.set(self.bytes_in_flight);
    }

    /// Returns how much may be read now. Without budget the source is still polled, so that its errors and backlog are
    /// seen. An epoch that must be read to its end may exceed the limit once all epochs before it are committed:
    /// otherwise it could never end.
    pub(super) fn budget(&self, epoch: Epoch) -> Budget {
        let limit = self.settings.bytes_in_flight;
        let left = limit.saturating_sub(self.bytes_in_flight);
        let must_end = self.replaying || self.settings.timing.counted;
        if left > 0 {
            Budget { bytes: BUDGET.bytes.min(left), ..BUDGET }
        } else if must_end && self.in_flight.iter().all(|(other, _)| *other == epoch) {
            BUDGET
        } else {
            Budget::NONE
        }
    }

    /// Reads like [`read_records`](Self::read_records), in steps between which the partition that is furthest behind is chosen
    /// anew: with many partitions, each has few records for a second of event time, and is soon ahead of the others.
    pub(super) fn read_in_order(
        &mut self,
        budget: Budget,
        tick: &Tick,
        give: &mut dyn FnMut(Result<Event, DeadLetter>),
    ) -> Result<(usize, usize), SourceError> {
        if self.replaying || self.settings.timing.counted {
            return self.read_records(budget, tick, give);
        }
        let step = (ORDERED_RECORDS / self.partitions.len().max(1)).clamp(LEAST_STEP, BUDGET.records);
        let mut left = budget;
        let (mut all, mut all_bytes) = (0, 0);
        loop {
            self.pause_leaders(tick)?;
            self.set_order();
            let part = Budget { records: left.records.min(step), ..left };
            let (read, bytes) = self.read_records(part, tick, give)?;
            (all, all_bytes) = (all + read, all_bytes + bytes);
            left = Budget { records: left.records - read, bytes: left.bytes.saturating_sub(bytes) };
            if read < part.records || left.records == 0 || left.bytes == 0 {
                return Ok((all, all_bytes));
            }
        }
    }

    /// Pauses the partitions that have got ahead of what may be read in this epoch, or that have begun while the first records
    /// of others are still being fetched. The next epoch decides anew. Those that are too far ahead of the slowest one of the
    /// process are paused only until it has caught up.
    fn pause_leaders(&mut self, tick: &Tick) -> Result<(), SourceError> {
        let begun = self.waits_for_others_to_begin();
        let bound = self.lead_bound(tick);
        for owned in &mut self.partitions {
            let leads = bound.is_some_and(|bound| owned.tracker.greatest() > Some(bound));
            let leads = leads && !owned.tracker.is_idle();
            // What else is paused stays so.
            if owned.paused && (leads || !owned.leads) {
                continue;
            }
            let waits = begun.as_ref().is_some_and(|begun| begun.contains(&owned.tracker.partition()));
            let must_wait = waits || !owned.is_allowed(tick);
            owned.leads = leads && !must_wait;
            owned.set_paused(leads || must_wait, self.reader.as_mut())?;
        }
        Ok(())
    }

    /// Publishes how far the slowest partition of this worker is. Returns the time beyond which a partition leads too far.
    fn lead_bound(&mut self, tick: &Tick) -> Option<EventTime> {
        let lead_ms = tick.paced.lead_ms?;
        let states = self.reader.partitions();
        let has_records = |(owned, state): &(&OwnedPartition, &PartitionState)| {
            state.backlog > 0 && !owned.tracker.is_idle()
        };
        let times = self.partitions.iter().zip(&states).filter(has_records);
        let slowest = times.filter_map(|(owned, _)| owned.tracker.greatest()).min();
        self.context.slowest.publish(self.worker, slowest);
        self.lead.bound(self.context.slowest.of_process(), lead_ms)
    }

    /// Returns the partitions that have begun, if others have records of which the first one has not come yet. Without this, those
    /// that are fetched first would be read far ahead of the others, and wait for them at length.
    fn waits_for_others_to_begin(&mut self) -> Option<BTreeSet<Partition>> {
        if !self.awaits_first {
            return None;
        }
        let asked = *self.first_asked.get_or_insert_with(Instant::now);
        let states = self.reader.partitions();
        let all = || self.partitions.iter().zip(&states);
        let is_awaited = |(owned, state): (&OwnedPartition, &PartitionState)| {
            state.position <= owned.first && state.backlog > 0 && !state.ended
        };
        self.awaits_first = asked.elapsed() < FIRST_WITHIN && all().any(is_awaited);
        let has_begun = |(owned, state): &(&OwnedPartition, &PartitionState)| state.position > owned.first;
        self.awaits_first.then(|| all().filter(has_begun).map(|(_, state)| state.partition).collect())
    }

    /// Reads, decodes and judges records; returns their number and their size in bytes.
    fn read_records(
        &mut self,
        budget: Budget,
        tick: &Tick,
        give: &mut dyn FnMut(Result<Event, DeadLetter>),
    ) -> Result<(usize, usize), SourceError> {
        let watermark = self.context.watermark.get();
        let Reading { reader, decoder, field_errors, settings, partitions, index, oldest, .. } = self;
        let timing = &settings.timing;
        let skew_ms = timing.max_future_skew_ms;
        let timed = !timing.counted || tick.rules == TimeRules::EventTime;
        let wall_ms = timed.then_some(tick.wall_ms);
        let (mut bytes, mut accepted, mut malformed, mut invalid, mut future) = (0, 0u64, 0, 0, 0);
        // What a replay rejects was counted before.
        let is_limited = self.context.rejections.is_some() && !self.replaying;
        let mut batch = Batch::default();
        let read = reader.read(budget, &mut |raw: Raw<'_>| {
            let tracker = &mut partitions[index[raw.position.partition.0 as usize]].tracker;
            let size = RECORD_OVERHEAD + raw.value.map_or(0, <[u8]>::len);
            bytes += size;
            tracker.record(raw.position.offset, raw.timestamp);
            let clocks = Clocks::new(tick.rules, raw.timestamp, wall_ms);
            *oldest = [*oldest, clocks.timestamp_ms].into_iter().flatten().min();
            match decoder.decode(raw) {
                Ok(event) => {
                    field_errors.note(raw.position, decoder.field_errors());
                    let time = event.event_time();
                    let size = size + event.transcoded_bytes();
                    if clocks.is_future(time, skew_ms) {
                        future += 1;
                        let rejection = Rejection::future(time, clocks.timestamp_ms, clocks.wall_ms, skew_ms);
                        give(Err(DeadLetter::rejected(raw, rejection)));
                        return;
                    }
                    accepted += 1;
                    bytes += event.transcoded_bytes();
                    let unfinal = size + (UNFINAL_OVERHEAD - RECORD_OVERHEAD);
                    tracker.accept(time, clocks.pushing_time(time), unfinal, timing, watermark);
                    give(Ok(event));
                }
                Err(rejection) => {
                    let count =
                        if rejection.reason == Reason::Malformed { &mut malformed } else { &mut invalid };
                    *count += 1;
                    if is_limited {
                        batch.reject(raw.position, &rejection);
                    }
                    give(Err(DeadLetter::rejected(raw, rejection)));
                }
            }
        })?;
        let metrics = &self.context.metrics;
        metrics.events(accepted);
        for (reason, n) in
            [(Reason::Malformed, malformed), (Reason::Invalid, invalid), (Reason::Future, future)]
        {
            metrics.rejected(reason.as_str(), n);
        }
        if is_limited && read > 0 {
            batch.records = read as u64;
            self.limit_rejections(tick.wall_ms, batch);
        }
        Ok((read, bytes))
    }

    /// Stops the run in order if too many records are rejected.
    fn limit_rejections(&self, wall_ms: i64, batch: Batch) {
        let ReadContext { rejections, failure, stopping, .. } = &self.context;
        let Some(refusal) = rejections.as_ref().and_then(|rejections| rejections.add(wall_ms, batch)) else {
            return;
        };
        if failure.refuse_at_end(refusal) {
            tracing::error!("too many records are rejected: stopping after what is read");
            stopping.store(true, Ordering::Relaxed);
        }
    }
}
