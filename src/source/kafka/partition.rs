//! The reader of one partition.
//!
//! Offsets without a visible record (transaction markers, aborted records) are passed in two steps: statistics contain
//! the next offset to fetch, and once the partition's queue has been found empty after that, all records before that
//! offset have been emitted.

use std::sync::{Arc, Mutex};

use headwater_dataflows::{Offset, Partition};
use headwater_sinks::kafka::client::{log_error, log_line};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;

use super::batch_queue::{BatchQueue, Serve};
use super::fetched::Fetched;
use super::reader::OnRecord;
use super::stats::{self, PartitionStats};
use crate::coordination::ingest::PartitionState;
use crate::source::{Budget, Wake};

/// The reader of one partition.
pub(super) struct PartitionReader {
    pub partition: Partition,
    /// The binding's form of the queue, which wakes the reader.
    queue: PartitionQueue<StatsContext>,
    batch: Arc<BatchQueue<StatsContext>>,
    pub position: i64,
    pub stop: Option<i64>,
    pub limit: Option<i64>,
    pub paused: bool,
    /// The expected timestamp of the record before the start, until that record was checked or found to be gone.
    pub before: Option<i64>,
    /// The difference of that record's timestamp, if there is one.
    pub changed: Option<String>,
    /// The last statistics of a fresh leader, until the queue has been found empty after them.
    unconfirmed: Option<PartitionStats>,
    /// The last statistics.
    stats: Option<PartitionStats>,
    /// The number of statistics that came from a responding leader.
    observation: u64,
    /// The number of times that the last observation of the partition's end became stale.
    leader_failures: u64,
}

/// The consumer's callbacks, which store the last statistics.
pub(super) struct StatsContext {
    pub topic: String,
    pub stats: Mutex<Vec<(i32, PartitionStats)>>,
}

impl ClientContext for StatsContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        let stats = stats::parse(statistics, &self.topic);
        *self.stats.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = stats;
    }
}

impl ConsumerContext for StatsContext {}

/// The binding's form of the queue of a partition, and ours.
pub(super) type Queues = (PartitionQueue<StatsContext>, BatchQueue<StatsContext>);

/// Splits the queue of a partition from that of the consumer; None if the client does not know the partition.
pub(super) fn split(
    consumer: &Arc<BaseConsumer<StatsContext>>,
    topic: &str,
    partition: i32,
) -> Option<Queues> {
    let queue = consumer.split_partition_queue(topic, partition)?;
    Some((queue, BatchQueue::new(consumer, topic, partition)?))
}

impl PartitionReader {
    pub fn wake_with(&mut self, wake: &Wake) {
        let wake = Arc::clone(wake);
        self.queue.set_nonempty_callback(move || wake());
    }

    pub fn new(
        partition: Partition,
        (queue, batch): Queues,
        position: i64,
        stop: Option<i64>,
        before: Option<i64>,
    ) -> PartitionReader {
        PartitionReader {
            partition,
            queue,
            batch: Arc::new(batch),
            position,
            stop,
            limit: None,
            paused: false,
            before,
            changed: None,
            unconfirmed: None,
            stats: None,
            observation: 0,
            leader_failures: 0,
        }
    }

    pub fn ended(&self) -> bool {
        self.before.is_none() && self.stop.is_some_and(|stop| self.position >= stop)
    }

    /// Returns the number of offsets left to read, if committed records extend to `end` at least.
    fn backlog(&self, end: i64) -> u64 {
        let stable = self.stats.and_then(|stats| stats.stable_offset);
        let end = stable.map_or(end, |stable| stable.max(end));
        let end = self.stop.map_or(end, |stop| stop.min(end));
        u64::try_from(end - self.position).unwrap_or(0)
    }

    /// Returns the first offset that must not be emitted.
    fn bound(&self) -> i64 {
        self.stop.unwrap_or(i64::MAX).min(self.limit.unwrap_or(i64::MAX))
    }

    pub fn is_readable(&self) -> bool {
        !self.paused && (self.position < self.bound() || self.before.is_some())
    }

    /// Marks the last observation of the partition's end as stale.
    pub fn invalidate(&mut self) {
        self.leader_failures += 1;
        self.unconfirmed = None;
    }

    /// Applies new statistics.
    pub fn update(&mut self, stats: PartitionStats) {
        let before = self.stats.replace(stats);
        let other_leader = before.is_some_and(|before| before.leader != stats.leader);
        let lost = before.is_some_and(|before| before.fresh) && !stats.fresh;
        if other_leader || lost {
            self.invalidate();
        }
        self.observation += u64::from(stats.fresh);
        self.unconfirmed = Some(stats).filter(|stats| stats.fresh);
    }

    /// Advances the position after the queue was found empty: all records before the next offset to fetch were emitted.
    fn on_empty_queue(&mut self) {
        if let Some(next) = self.unconfirmed.take().and_then(|stats| stats.next) {
            // The record before the start is gone, so it cannot be checked.
            self.before = self.before.filter(|_| next < self.position);
            self.advance(next);
        }
    }

    /// Advances the position to `next`, but not beyond the bound.
    fn advance(&mut self, next: i64) {
        self.position = self.position.max(next.min(self.bound()));
    }

    /// Emits at most `share` records within the remaining budget. Returns the error that stopped it, if any.
    pub fn read(&mut self, share: usize, left: &mut Budget, each: &mut OnRecord<'_>) -> Option<KafkaError> {
        let until = left.records.saturating_sub(share);
        let batch = Arc::clone(&self.batch);
        let mut stopped_by = None;
        while left.records > until && left.bytes > 0 && self.is_readable() && stopped_by.is_none() {
            let served = batch.serve(&mut |fetched| match fetched {
                Err(error) => {
                    stopped_by = Some(error);
                    Serve::Stop
                }
                Ok(record) => {
                    self.take(&record, left, each);
                    let goes_on = left.records > until && left.bytes > 0 && self.is_readable();
                    if goes_on && self.changed.is_none() { Serve::Next } else { Serve::Stop }
                }
            });
            if served == 0 {
                self.on_empty_queue();
                break;
            }
            if self.changed.is_some() {
                break;
            }
        }
        stopped_by
    }

    /// Emits a record, or checks it if it is the one before the start.
    fn take(&mut self, record: &Fetched<'_>, left: &mut Budget, each: &mut OnRecord<'_>) {
        let offset = record.offset();
        if let Some(before) = self.before.take()
            && offset < self.position
        {
            let found = record.timestamp();
            if found != before {
                self.changed = Some(format!("has timestamp {found}, but had {before} when it was read"));
            }
            return;
        }
        if offset < self.bound() {
            each(self.partition, record);
            left.records -= 1;
            left.bytes = left.bytes.saturating_sub(record.size());
        }
        self.advance(offset + 1);
    }

    pub fn state(&self, end: i64) -> PartitionState {
        let known = self.stats.filter(|stats| stats.fresh);
        PartitionState {
            partition: self.partition,
            position: Offset(self.position),
            high_watermark: known.and_then(|stats| stats.high_watermark).map(Offset),
            stable_offset: known.and_then(|stats| stats.stable_offset).map(Offset),
            observation: self.observation,
            leader_failures: self.leader_failures,
            available: known.is_some(),
            is_withheld: false,
            ended: self.ended(),
            backlog: self.backlog(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a reader at offset 7, without a broker.
    fn reader() -> PartitionReader {
        let context = StatsContext { topic: "t".into(), stats: Mutex::default() };
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("group.id", "reader");
        let consumer: BaseConsumer<StatsContext> = config.create_with_context(context).expect("a client");
        let queues = split(&Arc::new(consumer), "t", 0).expect("a queue");
        PartitionReader::new(Partition(0), queues, 7, None, None)
    }

    fn stats(leader: i32, fresh: bool) -> PartitionStats {
        let end = Some(9);
        PartitionStats {
            next: Some(8),
            high_watermark: end,
            stable_offset: Some(8),
            leader: (leader, 1),
            fresh,
        }
    }

    #[test]
    fn a_new_or_silent_leader_makes_observations_stale() {
        let mut reader = reader();
        let mut update = |stats| {
            reader.update(stats);
            let state = reader.state(0);
            (state.observation, state.leader_failures, state.available)
        };
        assert_eq!(update(stats(1, false)), (0, 0, false), "no statistics of a responding leader yet");
        assert_eq!(update(stats(1, true)), (1, 0, true));
        assert_eq!(update(stats(1, true)), (2, 0, true), "no change");
        assert_eq!(update(stats(2, true)), (3, 1, true), "the leader has changed");
        assert_eq!(update(stats(2, false)), (3, 2, false), "no leader responds");
        assert_eq!(update(stats(2, false)), (3, 2, false));
        assert_eq!(update(stats(2, true)), (4, 2, true));
    }

    #[test]
    fn offsets_without_records_are_passed_once_the_queue_is_empty() {
        let mut reader = reader();
        reader.update(stats(1, true));
        assert_eq!(reader.state(0).position, Offset(7));
        reader.on_empty_queue();
        let state = reader.state(0);
        assert_eq!((state.position, state.high_watermark), (Offset(8), Some(Offset(9))));
        assert_eq!(state.backlog, 0, "uncommitted records do not count as backlog");
        assert_eq!(reader.state(11).backlog, 3, "the backlog extends to the end that the cluster returned");
    }
}
