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
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
use crate::source::{Budget, PartitionState, Raw, Reader, SourceError};

/// The header that counts how often a record has come back from the dead letters, as decimal text.
pub const RETRIES: &str = "headwater-retries";

/// Takes a record and the partition that it is from.
pub(super) type Each<'a> = dyn FnMut(Partition, &BorrowedMessage<'_>) + 'a;

/// Reads the partitions of one worker.
pub(super) struct KafkaReader {
    // Queues first: they must be gone before the consumer is.
    readers: Vec<PartitionReader>,
    consumer: Arc<BaseConsumer<Watch>>,
    topic: String,
    /// By partition, where it ends; empty if they do not.
    stop: Vec<Offset>,
    /// Which partition is read first next time, so that none waits for ever behind a busy one.
    first: usize,
    ends: Ends,
    /// How often each error of a partition came that does not end reading.
    errors: HashMap<String, u64>,
}

/// One partition.
struct PartitionReader {
    partition: Partition,
    queue: PartitionQueue<Watch>,
    position: i64,
    stop: Option<i64>,
    limit: Option<i64>,
    paused: bool,
    /// The timestamp that the record before the first one had, until that was found, or found to be gone.
    before: Option<i64>,
    /// How it differs, if it does.
    changed: Option<String>,
    /// The last statistics, until the queue has been found empty after them.
    unconfirmed: Option<Seen>,
    /// The last statistics.
    seen: Option<Seen>,
    /// How many statistics came from a leader that answers.
    observation: u64,
    /// How often what was known of the partition's end became old.
    leader_failures: u64,
}

/// What the consumer's callbacks have heard.
struct Watch {
    topic: String,
    seen: Mutex<Vec<(i32, Seen)>>,
}

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        let seen = stats::parse(statistics, &self.topic);
        *self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = seen;
    }
}

impl ConsumerContext for Watch {}

impl KafkaReader {
    /// A reader of partitions that are [assigned](KafkaReader::assign) to it, each, unless `stop` is empty, to its stop;
    /// `ends` are all partitions' ends.
    pub fn new(
        config: &ClientConfig,
        topic: &str,
        stop: &[Offset],
        ends: &Ends,
    ) -> Result<KafkaReader, SourceError> {
        let failed = |error| unavailable(format!("read topic {topic}"), error);
        let watch = Watch { topic: topic.to_owned(), seen: Mutex::default() };
        let mut config = config.clone();
        config.set("statistics.interval.ms", stats::INTERVAL_MS);
        let consumer: Arc<BaseConsumer<Watch>> = Arc::new(config.create_with_context(watch).map_err(failed)?);
        let (topic, stop) = (topic.to_owned(), stop.to_vec());
        let (readers, errors, ends) = (Vec::new(), HashMap::new(), ends.clone());
        Ok(KafkaReader { readers, consumer, topic, stop, first: 0, ends, errors })
    }

    /// Reads a partition from an offset on. The record before it must have the timestamp `before`, if that is known.
    pub fn assign(
        &mut self,
        partition: Partition,
        Offset(position): Offset,
        before: Option<i64>,
    ) -> Result<(), SourceError> {
        let (topic, number) = (&self.topic, kafka(partition.0));
        let failed = |error| unavailable(format!("read topic {topic}"), error);
        // Split before it is assigned: nothing is ever fetched into the queue that all partitions share.
        let queue = self
            .consumer
            .split_partition_queue(topic, number)
            .ok_or_else(|| SourceError::Refused(format!("topic {topic} has no partition {number}")))?;
        let stop = self.stop.get(partition.0 as usize).map(|stop| stop.0);
        let reader = PartitionReader::new(partition, queue, position, stop, before);
        if !reader.ended() {
            let mut assignment = TopicPartitionList::new();
            let from = KafkaOffset::Offset(position - i64::from(before.is_some()));
            assignment.add_partition_offset(topic, number, from).map_err(failed)?;
            self.consumer.incremental_assign(&assignment).map_err(failed)?;
        }
        self.readers.push(reader);
        Ok(())
    }

    /// What [`Reader::read`] does, with everything that Kafka keeps of a record.
    pub fn records(&mut self, budget: Budget, each: &mut Each<'_>) -> Result<usize, SourceError> {
        self.listen()?;
        if let Some(changed) = self.ends.changed() {
            return Err(SourceError::Refused(changed));
        }
        let readers = self.readers.len();
        let mut left = budget;
        loop {
            let readable = self.readers.iter().filter(|reader| reader.readable()).count();
            // An equal share of what is left for each; the shares of those with less to read go round again.
            let share = (left.records / readable.max(1)).max(1);
            let before = left.records;
            for turn in 0..readers {
                let reader = (self.first + turn) % readers;
                if let Some(error) = self.readers[reader].read(share, &mut left, each) {
                    self.readers[reader].disturb();
                    self.judge_partition(reader, &error)?;
                }
                if let Some(changed) = &self.readers[reader].changed {
                    let PartitionReader { partition: Partition(partition), position, .. } =
                        self.readers[reader];
                    return Err(SourceError::Refused(format!(
                        "the record at offset {} of {} partition {partition} {changed}: the topic was deleted and \
                         created anew; another `pipeline` name, with tables of its own, reads all that it has",
                        position - 1,
                        self.topic
                    )));
                }
            }
            self.first = (self.first + 1) % readers.max(1);
            if left.records == before || left.records == 0 || left.bytes == 0 {
                return Ok(budget.records - left.records);
            }
        }
    }

    fn partition_reader(&mut self, partition: Partition) -> Result<&mut PartitionReader, SourceError> {
        let reader = self.readers.iter_mut().find(|reader| reader.partition == partition);
        reader.ok_or_else(|| SourceError::Refused(format!("partition {} is not read here", partition.0)))
    }

    /// Whether every partition has come to its stop.
    pub fn ended(&self) -> bool {
        self.readers.iter().all(PartitionReader::ended)
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
        let seen = std::mem::take(&mut *watch.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        for (partition, seen) in seen {
            if let Some(reader) =
                self.readers.iter_mut().find(|reader| kafka(reader.partition.0) == partition)
            {
                reader.learn(seen);
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
    fn judge_partition(&mut self, reader: usize, error: &KafkaError) -> Result<(), SourceError> {
        use RDKafkaErrorCode as Code;
        let lost = matches!(
            error.rdkafka_error_code(),
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::NoOffset | Code::LogTruncation)
        );
        let PartitionReader { partition: Partition(partition), position, .. } = self.readers[reader];
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
             they were read, or the topic was created anew; `--accept-loss {topic}:{partition}` goes on at the first offset \
             there is, without those before it"
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

impl PartitionReader {
    fn new(
        partition: Partition,
        queue: PartitionQueue<Watch>,
        position: i64,
        stop: Option<i64>,
        before: Option<i64>,
    ) -> PartitionReader {
        PartitionReader {
            partition,
            queue,
            position,
            stop,
            limit: None,
            paused: false,
            before,
            changed: None,
            unconfirmed: None,
            seen: None,
            observation: 0,
            leader_failures: 0,
        }
    }

    fn ended(&self) -> bool {
        self.before.is_none() && self.stop.is_some_and(|stop| self.position >= stop)
    }

    /// How many offsets are left to read, the committed records reaching at least to `end`.
    fn backlog(&self, end: i64) -> u64 {
        let stable = self.seen.and_then(|seen| seen.stable_offset);
        let end = stable.map_or(end, |stable| stable.max(end));
        let end = self.stop.map_or(end, |stop| stop.min(end));
        u64::try_from(end - self.position).unwrap_or(0)
    }

    /// The first offset that is not to be handed out.
    fn bound(&self) -> i64 {
        self.stop.unwrap_or(i64::MAX).min(self.limit.unwrap_or(i64::MAX))
    }

    fn readable(&self) -> bool {
        !self.paused && (self.position < self.bound() || self.before.is_some())
    }

    /// What was known of the partition's end is old.
    fn disturb(&mut self) {
        self.leader_failures += 1;
        self.unconfirmed = None;
    }

    fn learn(&mut self, seen: Seen) {
        let before = self.seen.replace(seen);
        let other_leader = before.is_some_and(|before| before.leader != seen.leader);
        let lost = before.is_some_and(|before| before.fresh) && !seen.fresh;
        if other_leader || lost {
            self.disturb();
        }
        self.observation += u64::from(seen.fresh);
        self.unconfirmed = Some(seen).filter(|seen| seen.fresh);
    }

    /// The queue is empty: everything up to the next offset to be fetched has been handed out.
    fn drained(&mut self) {
        if let Some(next) = self.unconfirmed.take().and_then(|seen| seen.next) {
            // The record before the first one is gone, so nothing is known of it.
            self.before = self.before.filter(|_| next < self.position);
            self.advance(next);
        }
    }

    /// Moves on to `next`, but not beyond what may be handed out.
    fn advance(&mut self, next: i64) {
        self.position = self.position.max(next.min(self.bound()));
    }

    /// Hands out at most `share` records, and no more than is left; returns the error on which it stopped.
    fn read(&mut self, share: usize, left: &mut Budget, each: &mut Each<'_>) -> Option<KafkaError> {
        let until = left.records.saturating_sub(share);
        while left.records > until && left.bytes > 0 && self.readable() {
            match self.queue.poll(Duration::ZERO) {
                None => {
                    self.drained();
                    break;
                }
                Some(Err(error)) => return Some(error),
                Some(Ok(message)) => {
                    let offset = message.offset();
                    if let Some(before) = self.before.take()
                        && offset < self.position
                    {
                        let found = message.timestamp().to_millis().unwrap_or(-1);
                        if found != before {
                            self.changed =
                                Some(format!("has timestamp {found}, and had {before} when it was read"));
                            return None;
                        }
                        continue;
                    }
                    if offset < self.bound() {
                        each(self.partition, &message);
                        left.records -= 1;
                        let bytes = message.key_len() + message.payload_len();
                        left.bytes = left.bytes.saturating_sub(bytes);
                    }
                    drop(message);
                    self.advance(offset + 1);
                }
            }
        }
        None
    }

    fn state(&self, end: i64) -> PartitionState {
        let known = self.seen.filter(|seen| seen.fresh);
        PartitionState {
            partition: self.partition,
            position: Offset(self.position),
            high_watermark: known.and_then(|seen| seen.high_watermark).map(Offset),
            stable_offset: known.and_then(|seen| seen.stable_offset).map(Offset),
            observation: self.observation,
            leader_failures: self.leader_failures,
            available: known.is_some(),
            ended: self.ended(),
            backlog: self.backlog(end),
        }
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

/// The retry count in a record's headers.
fn retries(message: &BorrowedMessage<'_>) -> u32 {
    let value = headers(message).find(|(name, _)| *name == RETRIES.as_bytes()).and_then(|(_, value)| value);
    retry_count(value)
}

/// What the header says, which anybody can write: what is not a number is as good as none, and a number beyond what
/// tables take is the greatest that they do.
pub(super) fn retry_count(header: Option<&[u8]>) -> u32 {
    let text = header.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    const GREATEST: u32 = i32::MAX.unsigned_abs();
    text.parse().map_or(GREATEST, |count: u32| count.min(GREATEST))
}

impl Reader for KafkaReader {
    fn read(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        self.records(budget, &mut |partition, message| each(raw(partition, message)))
    }

    fn partitions(&self) -> Vec<PartitionState> {
        self.readers.iter().map(|reader| reader.state(self.ends.of(reader.partition))).collect()
    }

    fn add(&mut self, partition: Partition, from: Offset) -> Result<(), SourceError> {
        self.assign(partition, from, None)
    }

    fn set_paused(&mut self, partition: Partition, paused: bool) -> Result<(), SourceError> {
        self.partition_reader(partition)?.paused = paused;
        Ok(())
    }

    fn set_limit(&mut self, partition: Partition, limit: Option<Offset>) -> Result<(), SourceError> {
        self.partition_reader(partition)?.limit = limit.map(|limit| limit.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At offset 7; its broker is not there.
    fn reader() -> PartitionReader {
        let watch = Watch { topic: "t".into(), seen: Mutex::default() };
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("group.id", "lane");
        let consumer: BaseConsumer<Watch> = config.create_with_context(watch).expect("a client");
        let queue = Arc::new(consumer).split_partition_queue("t", 0).expect("a queue");
        PartitionReader::new(Partition(0), queue, 7, None, None)
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
        let end = Some(9);
        Seen { next: Some(8), high_watermark: end, stable_offset: Some(8), leader: (leader, 1), fresh }
    }

    #[test]
    fn another_leader_and_silence_make_what_is_known_old() {
        let mut reader = reader();
        let mut learn = |seen| {
            reader.learn(seen);
            let state = reader.state(0);
            (state.observation, state.leader_failures, state.available)
        };
        assert_eq!(learn(seen(1, false)), (0, 0, false), "not heard of yet");
        assert_eq!(learn(seen(1, true)), (1, 0, true));
        assert_eq!(learn(seen(1, true)), (2, 0, true), "nothing has happened");
        assert_eq!(learn(seen(2, true)), (3, 1, true), "it has another leader");
        assert_eq!(learn(seen(2, false)), (3, 2, false), "nobody answers");
        assert_eq!(learn(seen(2, false)), (3, 2, false));
        assert_eq!(learn(seen(2, true)), (4, 2, true));
    }

    #[test]
    fn offsets_without_records_are_passed_once_the_queue_is_empty() {
        let mut reader = reader();
        reader.learn(seen(1, true));
        assert_eq!(reader.state(0).position, Offset(7));
        reader.drained();
        let state = reader.state(0);
        assert_eq!((state.position, state.high_watermark), (Offset(8), Some(Offset(9))));
        assert_eq!(state.backlog, 0, "what is not committed does not wait to be read");
        assert_eq!(reader.state(11).backlog, 3, "as the cluster said when it was asked");
    }
}
