//! Reads, decodes and judges records, within a budget of what is not committed yet.

use std::sync::atomic::Ordering;

use headwater_dataflows::Epoch;

use super::{BUDGET, ReadContext, Reading};
use crate::coordination::ingest::{Clocks, RECORD_OVERHEAD, TimeRules, UNFINAL_OVERHEAD};
use crate::decode::{Reason, Rejection};
use crate::event::Event;
use crate::outputs::DeadLetter;
use crate::runtime::ingest::clock::{Tick, committed};
use crate::runtime::ingest::rejections::Batch;
use crate::source::{Budget, Raw, SourceError};

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

    /// Reads, decodes and judges records; returns their number and their size in bytes.
    pub(super) fn read_records(
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
