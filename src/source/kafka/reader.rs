//! One worker's reader: a consumer of its own, with a queue per partition.
//!
//! librdkafka fetches on its own threads into bounded queues, and the worker takes from them without waiting. A
//! partition is paused by not taking from its queue: the queue fills up, fetching stops, and nothing that was
//! fetched is dropped or read again, as pausing the consumer would do.
//!
//! Offsets without a record for us (transaction markers, aborted records) are passed in two steps: statistics
//! name the next offset that will be fetched, and once the partition's queue has been found empty after that, all
//! records before that offset have been handed out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headwater_dataflows::{Offset, Partition, Position};
use headwater_sinks::kafka::client::{log_error, log_line};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use rdkafka::{ClientConfig, Message};

use super::ends::Ends;
use super::headers::headers;
use super::stats::{self, Seen};
use super::{ANSWER, kafka, unavailable};
use crate::source::{PartitionState, Raw, Reader, SourceError};

/// The header that counts how often a record has come back from the dead letters, as decimal text.
pub const RETRIES: &str = "headwater-retries";

/// Takes a record and the partition that it is from.
pub(super) type Each<'a> = dyn FnMut(Partition, &BorrowedMessage<'_>) + 'a;

/// Reads the partitions of one worker.
pub(super) struct KafkaReader {
    // Queues first: they must be gone before the consumer is.
    lanes: Vec<Lane>,
    consumer: Arc<BaseConsumer<Watch>>,
    topic: String,
    /// Which partition is read first next time, so that none waits for ever behind a busy one.
    first: usize,
    ends: Ends,
    /// How often each error of a partition came that does not end reading.
    errors: HashMap<String, u64>,
}

/// One partition.
struct Lane {
    partition: Partition,
    queue: PartitionQueue<Watch>,
    position: i64,
    stop: Option<i64>,
    limit: Option<i64>,
    paused: bool,
    /// The last statistics, until the queue has been found empty after them.
    unconfirmed: Option<Seen>,
    high_watermark: i64,
    leader: Option<(i32, i32)>,
    at_end_since: Option<Instant>,
}

/// What the consumer's callbacks have heard.
struct Watch {
    topic: String,
    seen: Mutex<Vec<(i32, Seen)>>,
    disturbed: AtomicBool,
}

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.disturbed.store(true, Ordering::Relaxed);
        log_error(&error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        let seen = stats::parse(statistics, &self.topic);
        *self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = seen;
    }
}

impl ConsumerContext for Watch {}

impl KafkaReader {
    /// A reader of the owned partitions, each from its offset and, unless `stop` is empty, to its stop; `ends` are
    /// all partitions' ends.
    pub fn new(
        config: &ClientConfig,
        topic: &str,
        owned: &[(Partition, Offset)],
        stop: &[Offset],
        ends: &Ends,
    ) -> Result<KafkaReader, SourceError> {
        let failed = |error| unavailable(format!("read topic {topic}"), error);
        let watch =
            Watch { topic: topic.to_owned(), seen: Mutex::default(), disturbed: AtomicBool::new(false) };
        let mut config = config.clone();
        config.set("statistics.interval.ms", stats::INTERVAL_MS);
        let consumer: Arc<BaseConsumer<Watch>> = Arc::new(config.create_with_context(watch).map_err(failed)?);
        let mut lanes = Vec::with_capacity(owned.len());
        let mut assignment = TopicPartitionList::new();
        for &(partition, Offset(position)) in owned {
            let number = kafka(partition.0);
            // Split before it is assigned: nothing is ever fetched into the queue that all partitions share.
            let queue = consumer
                .split_partition_queue(topic, number)
                .ok_or_else(|| SourceError::Refused(format!("topic {topic} has no partition {number}")))?;
            let stop = stop.get(partition.0 as usize).map(|stop| stop.0);
            let lane = Lane::new(partition, queue, position, stop);
            if !lane.ended() {
                let offset = KafkaOffset::Offset(position);
                assignment.add_partition_offset(topic, number, offset).map_err(failed)?;
            }
            lanes.push(lane);
        }
        if assignment.count() > 0 {
            consumer.assign(&assignment).map_err(failed)?;
        }
        Ok(KafkaReader {
            lanes,
            consumer,
            topic: topic.to_owned(),
            first: 0,
            ends: ends.clone(),
            errors: HashMap::new(),
        })
    }

    /// What [`Reader::read`] does, with everything that Kafka keeps of a record.
    pub fn records(&mut self, budget: usize, each: &mut Each<'_>) -> Result<usize, SourceError> {
        self.listen()?;
        let lanes = self.lanes.len();
        let mut count = 0;
        loop {
            let readable = self.lanes.iter().filter(|lane| lane.readable()).count();
            // An equal share of what is left for each; the shares of those with less to read go round again.
            let share = (budget - count) / readable.max(1);
            let before = count;
            for turn in 0..lanes {
                let lane = (self.first + turn) % lanes;
                let (read, error) = self.lanes[lane].read(share.max(1).min(budget - count), each);
                count += read;
                if let Some(error) = error {
                    self.lanes[lane].disturb();
                    self.judge_partition(lane, &error)?;
                }
            }
            self.first = (self.first + 1) % lanes.max(1);
            if count == before || count == budget {
                return Ok(count);
            }
        }
    }

    fn lane(&mut self, partition: Partition) -> Result<&mut Lane, SourceError> {
        let lane = self.lanes.iter_mut().find(|lane| lane.partition == partition);
        lane.ok_or_else(|| SourceError::Refused(format!("partition {} is not read here", partition.0)))
    }

    /// Whether every partition has come to its stop.
    pub fn ended(&self) -> bool {
        self.lanes.iter().all(Lane::ended)
    }

    /// Takes what the consumer has to say apart from records: errors and statistics.
    fn listen(&mut self) -> Result<(), SourceError> {
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            match event {
                Err(error) => self.judge(&error)?,
                Ok(message) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    return Err(unavailable(
                        format!("read topic {}", self.topic),
                        format!("the record {partition}:{offset} came outside its partition's queue"),
                    ));
                }
            }
        }
        let watch = self.consumer.context();
        if watch.disturbed.swap(false, Ordering::Relaxed) {
            self.lanes.iter_mut().for_each(Lane::disturb);
        }
        let seen = std::mem::take(&mut *watch.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        for (partition, seen) in seen {
            if let Some(lane) = self.lanes.iter_mut().find(|lane| kafka(lane.partition.0) == partition) {
                lane.learn(seen);
            }
        }
        Ok(())
    }

    /// Whether reading can go on after an error of the consumer: connections come back by themselves.
    fn judge(&self, error: &KafkaError) -> Result<(), SourceError> {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
                Err(SourceError::Refused(format!("topic {} is gone: {error}", self.topic)))
            }
            Some(
                Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::Authentication
                | Code::SaslAuthenticationFailed
                | Code::Fatal,
            ) => Err(unavailable(format!("read topic {}", self.topic), error.clone())),
            _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
                Err(unavailable(format!("read topic {}", self.topic), error.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The same for an error of one partition, which may say that its position is not in the log any more.
    fn judge_partition(&mut self, lane: usize, error: &KafkaError) -> Result<(), SourceError> {
        use RDKafkaErrorCode as Code;
        let lost = matches!(
            error.rdkafka_error_code(),
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::NoOffset | Code::LogTruncation)
        );
        let Lane { partition: Partition(partition), position, .. } = self.lanes[lane];
        let topic = &self.topic;
        if let Some(way_on) = unreadable(error) {
            return Err(SourceError::Refused(format!(
                "cannot read what {topic} partition {partition} has at offset {position} or after it: {error}; {way_on}"
            )));
        }
        if !lost {
            self.judge(error)?;
            self.note(partition, error);
            return Ok(());
        }
        let log = match self.consumer.fetch_watermarks(topic, kafka(partition), ANSWER) {
            Ok((low, end)) => format!("its log has offsets {low} to {end}"),
            Err(error) => format!("its log cannot be asked: {error}"),
        };
        Err(SourceError::Refused(format!(
            "cannot go on at offset {position} of {topic} partition {partition}: {log}; records were removed before \
             they were read, or the topic was created anew"
        )))
    }

    /// Logs an error of a partition that does not end reading: the first of its kind, then every hundredth.
    fn note(&mut self, partition: u32, error: &KafkaError) {
        let count = self.errors.entry(error.to_string()).or_default();
        *count += 1;
        if *count % 100 == 1 {
            tracing::warn!(topic = self.topic, partition, count, %error, "a partition has an error; reading goes on");
        }
    }
}

/// What to do about an error that stays however often the partition is read, if it is one: librdkafka would go on after
/// the records.
fn unreadable(error: &KafkaError) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code()? {
        Code::NotImplemented | Code::UnsupportedCompressionType | Code::BadCompression => Some(
            "they are compressed as this program cannot decompress: it reads none, gzip, snappy, lz4 and zstd; have \
             them produced anew, with another `compression.type`",
        ),
        Code::BadMessage | Code::InvalidMessage => {
            Some("they are damaged; check the broker's disk and log, and have them produced anew")
        }
        Code::MessageSizeTooLarge => {
            Some("they are too large to be fetched; set `receive.message.max.bytes` in `[source.options]`")
        }
        _ => None,
    }
}

impl Lane {
    fn new(partition: Partition, queue: PartitionQueue<Watch>, position: i64, stop: Option<i64>) -> Lane {
        Lane {
            partition,
            queue,
            position,
            stop,
            limit: None,
            paused: false,
            unconfirmed: None,
            high_watermark: position,
            leader: None,
            at_end_since: None,
        }
    }

    fn ended(&self) -> bool {
        self.stop.is_some_and(|stop| self.position >= stop)
    }

    /// How many offsets are left to read, the partition having at least this end.
    fn backlog(&self, end: i64) -> u64 {
        let end = self.high_watermark.max(end);
        let end = self.stop.map_or(end, |stop| stop.min(end));
        u64::try_from(end - self.position).unwrap_or(0)
    }

    /// The first offset that is not to be handed out.
    fn bound(&self) -> i64 {
        self.stop.unwrap_or(i64::MAX).min(self.limit.unwrap_or(i64::MAX))
    }

    fn readable(&self) -> bool {
        !self.paused && self.position < self.bound()
    }

    /// What was known of the partition's end is not known any more.
    fn disturb(&mut self) {
        self.at_end_since = None;
        self.unconfirmed = None;
    }

    fn learn(&mut self, seen: Seen) {
        if self.leader.replace(seen.leader).is_some_and(|leader| leader != seen.leader) || !seen.fresh {
            self.disturb();
        }
        self.high_watermark = seen.high_watermark.unwrap_or(self.high_watermark);
        self.unconfirmed = Some(seen);
    }

    /// The queue is empty: everything up to the next offset to be fetched has been handed out.
    fn drained(&mut self) {
        let Some(seen) = self.unconfirmed.take() else { return };
        if let Some(next) = seen.next {
            self.advance(next);
        }
        if seen.fresh && seen.high_watermark == Some(self.position) {
            self.at_end_since.get_or_insert_with(Instant::now);
        } else {
            self.at_end_since = None;
        }
    }

    /// Moves on to `next`, but not beyond what may be handed out.
    fn advance(&mut self, next: i64) {
        self.position = self.position.max(next.min(self.bound()));
    }

    /// Hands out at most `budget` records; says how many, and the error on which it stopped.
    fn read(&mut self, budget: usize, each: &mut Each<'_>) -> (usize, Option<KafkaError>) {
        let mut count = 0;
        while count < budget && self.readable() {
            match self.queue.poll(Duration::ZERO) {
                None => {
                    self.drained();
                    break;
                }
                Some(Err(error)) => return (count, Some(error)),
                Some(Ok(message)) => {
                    let offset = message.offset();
                    if offset < self.bound() {
                        each(self.partition, &message);
                        count += 1;
                    }
                    drop(message);
                    self.at_end_since = None;
                    self.advance(offset + 1);
                }
            }
        }
        (count, None)
    }
}

fn raw<'a>(partition: Partition, message: &'a BorrowedMessage<'_>) -> Raw<'a> {
    Raw {
        position: Position { partition, offset: Offset(message.offset()) },
        timestamp: message.timestamp().to_millis().unwrap_or(-1),
        key: message.key(),
        value: message.payload(),
        retries: retries(message),
    }
}

/// The retry count in a record's headers; what is not a number is as good as none.
fn retries(message: &BorrowedMessage<'_>) -> u32 {
    let value = headers(message).find(|(name, _)| *name == RETRIES.as_bytes()).and_then(|(_, value)| value);
    value.and_then(|bytes| std::str::from_utf8(bytes).ok()).and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl Reader for KafkaReader {
    fn read(&mut self, budget: usize, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        self.records(budget, &mut |partition, message| each(raw(partition, message)))
    }

    fn partitions(&self) -> Vec<PartitionState> {
        let state = |lane: &Lane| PartitionState {
            partition: lane.partition,
            position: Offset(lane.position),
            at_end_since: lane.at_end_since,
            ended: lane.ended(),
            backlog: lane.backlog(self.ends.of(lane.partition)),
        };
        self.lanes.iter().map(state).collect()
    }

    fn set_paused(&mut self, partition: Partition, paused: bool) -> Result<(), SourceError> {
        let lane = self.lane(partition)?;
        if lane.paused != paused {
            lane.paused = paused;
            lane.disturb();
        }
        Ok(())
    }

    fn set_limit(&mut self, partition: Partition, limit: Option<Offset>) -> Result<(), SourceError> {
        let lane = self.lane(partition)?;
        lane.limit = limit.map(|limit| limit.0);
        lane.disturb();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At its end, at offset 7; its broker is not there.
    fn lane() -> Lane {
        let watch = Watch { topic: "t".into(), seen: Mutex::default(), disturbed: AtomicBool::default() };
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("group.id", "lane");
        let consumer: BaseConsumer<Watch> = config.create_with_context(watch).expect("a client");
        let queue = Arc::new(consumer).split_partition_queue("t", 0).expect("a queue");
        Lane::new(Partition(0), queue, 7, None)
    }

    /// Those of the first line would otherwise be passed over with their records, and nobody would know.
    #[test]
    fn errors_that_stay_are_told_from_those_that_pass() {
        use RDKafkaErrorCode as Code;
        let of = |code| unreadable(&KafkaError::MessageConsumption(code));
        for code in [Code::NotImplemented, Code::BadCompression, Code::BadMessage, Code::MessageSizeTooLarge]
        {
            assert!(of(code).is_some(), "{code}");
        }
        for code in [Code::BrokerTransportFailure, Code::NotLeaderForPartition, Code::OffsetOutOfRange] {
            assert_eq!(of(code), None, "{code}");
        }
    }

    fn seen(leader: i32, fresh: bool) -> Seen {
        Seen { next: Some(7), high_watermark: Some(7), leader: (leader, 1), fresh }
    }

    /// After either, the end that was known may be one of before.
    #[test]
    fn how_long_a_partition_has_been_at_its_end_counts_anew_with_another_leader_and_after_silence() {
        let mut lane = lane();
        let mut learn = |seen| {
            lane.learn(seen);
            let before = lane.at_end_since;
            lane.drained();
            (before, lane.at_end_since)
        };
        let (before, since) = learn(seen(1, true));
        assert!(before.is_none() && since.is_some());
        assert_eq!(learn(seen(1, true)), (since, since), "nothing has happened");
        let (before, anew) = learn(seen(2, true));
        assert!(before.is_none() && anew > since, "it has another leader");
        assert_eq!(learn(seen(2, false)), (None, None), "nobody answers");
        let (before, again) = learn(seen(2, true));
        assert!(before.is_none() && again > anew);
    }
}
