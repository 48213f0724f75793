//! The reader of one worker: a consumer with one queue per partition.
//!
//! librdkafka fetches on its own threads into bounded queues, and the worker takes records from them without blocking.
//! A partition is paused by not taking records from its queue: the queue fills up and fetching stops. Pausing the
//! consumer instead would drop fetched records and fetch them again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use headwater_dataflows::{Offset, Partition, Position};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use rdkafka::{ClientConfig, Message};

use super::ends::PartitionEnds;
use super::fetched::Fetched;
use super::partition::{PartitionReader, StatsContext, split};
use super::stats;
use super::{REQUEST_TIMEOUT, kafka_partition, unavailable};
use crate::coordination::ingest::PartitionState;
use crate::rounds::{TRACEPARENT, TraceContext};
use crate::source::{Budget, Raw, Reader, SourceError, Wake};

/// The header with the number of times that a record was retried from the dead letters, in decimal.
pub const RETRIES: &str = "headwater-retries";

/// The part of a budget that all partitions share, if they have an order, is one in so many.
const EQUAL_PART: usize = 4;

/// A callback for each record, with its partition.
pub(super) type OnRecord<'a> = dyn FnMut(Partition, &Fetched<'_>) + 'a;

/// Reads the partitions of one worker.
pub(super) struct KafkaReader {
    // Declared first: the queues must be dropped before the consumer.
    readers: Vec<PartitionReader>,
    consumer: Arc<BaseConsumer<StatsContext>>,
    topic: String,
    /// By partition, the offset at which reading stops; empty for an unbounded run.
    stop: Vec<Offset>,
    /// The index of the partition that is read first next time, so that a busy partition does not starve others.
    first: usize,
    /// The indices of readers in the order in which they get what is left of a budget; empty if all get the same.
    order: Vec<usize>,
    ends: PartitionEnds,
    /// The number of occurrences of each non-fatal partition error.
    errors: HashMap<String, u64>,
    /// The header that names the producer of a record.
    producer_header: Vec<u8>,
    sampled: Sampled,
    /// Wakes the thread that reads.
    wake: Option<Wake>,
}

/// The contexts of sampled records.
#[derive(Default)]
struct Sampled {
    /// The number of further contexts to collect; 0 if headers are not to be read for them.
    wanted: usize,
    contexts: Vec<TraceContext>,
}

impl KafkaReader {
    /// Creates a reader without partitions; [`assign`](KafkaReader::assign) adds them. Unless `stop` is empty, it holds
    /// the offset at which each partition stops. `ends` holds the end offsets of all partitions.
    pub fn new(
        config: &ClientConfig,
        topic: &str,
        stop: &[Offset],
        ends: &PartitionEnds,
    ) -> Result<KafkaReader, SourceError> {
        let failed = |error| unavailable(format!("read topic {topic}"), error);
        let context = StatsContext { topic: topic.to_owned(), stats: Mutex::default() };
        let mut config = config.clone();
        config.set("statistics.interval.ms", stats::INTERVAL_MS);
        let consumer: Arc<BaseConsumer<StatsContext>> =
            Arc::new(config.create_with_context(context).map_err(failed)?);
        let (topic, stop) = (topic.to_owned(), stop.to_vec());
        let (readers, errors, ends) = (Vec::new(), HashMap::new(), ends.clone());
        let (producer_header, sampled) = (Vec::new(), Sampled::default());
        let wake = None;
        Ok(KafkaReader {
            readers,
            consumer,
            topic,
            stop,
            first: 0,
            order: Vec::new(),
            ends,
            errors,
            producer_header,
            sampled,
            wake,
        })
    }

    /// Sets the header that names the producer of a record.
    pub fn with_producer_header(mut self, name: &str) -> KafkaReader {
        self.producer_header = name.as_bytes().to_vec();
        self
    }

    /// Adds a partition, read from an offset. The record before it must have the timestamp `before`, if that is known.
    pub fn assign(
        &mut self,
        partition: Partition,
        Offset(position): Offset,
        before: Option<i64>,
    ) -> Result<(), SourceError> {
        let (topic, number) = (&self.topic, kafka_partition(partition.0));
        let failed = |error| unavailable(format!("read topic {topic}"), error);
        // The queue is split before the assignment, so that no record is fetched into the shared queue.
        let queues = split(&self.consumer, topic, number)
            .ok_or_else(|| SourceError::Refused(format!("topic {topic} has no partition {number}")))?;
        let stop = self.stop.get(partition.0 as usize).map(|stop| stop.0);
        let mut reader = PartitionReader::new(partition, queues, position, stop, before);
        self.wake.iter().for_each(|wake| reader.wake_with(wake));
        if !reader.ended() {
            let mut assignment = TopicPartitionList::new();
            let from = KafkaOffset::Offset(position - i64::from(before.is_some()));
            assignment.add_partition_offset(topic, number, from).map_err(failed)?;
            self.consumer.incremental_assign(&assignment).map_err(failed)?;
        }
        self.readers.push(reader);
        Ok(())
    }

    /// Reads like [`Reader::read`], but passes the whole record.
    pub fn records(&mut self, budget: Budget, each: &mut OnRecord<'_>) -> Result<usize, SourceError> {
        self.poll_events()?;
        if let Some(changed) = self.ends.changed() {
            return Err(SourceError::Refused(changed));
        }
        let readers = self.readers.len();
        let mut left = budget;
        let mut equal = if self.order.is_empty() { budget.records } else { budget.records / EQUAL_PART };
        loop {
            let readable = self.readers.iter().filter(|reader| reader.is_readable()).count();
            // Each partition gets an equal share of the remaining budget; unused shares are distributed again. If there are more
            // partitions than records, the next ones get theirs in the next round.
            let share = (equal.min(left.records) / readable.max(1)).max(1);
            let before = left.records;
            let mut turns = 0;
            while turns < readers && before - left.records < equal {
                self.read_partition((self.first + turns) % readers, share, &mut left, each)?;
                turns += 1;
            }
            self.first = (self.first + if turns < readers { turns } else { 1 }) % readers.max(1);
            for turn in 0..self.order.len() {
                self.read_partition(self.order[turn], left.records, &mut left, each)?;
            }
            equal = left.records;
            if left.records == before || left.records == 0 || left.bytes == 0 {
                return Ok(budget.records - left.records);
            }
        }
    }

    /// Reads at most a share of the remaining budget from one partition.
    fn read_partition(
        &mut self,
        reader: usize,
        share: usize,
        left: &mut Budget,
        each: &mut OnRecord<'_>,
    ) -> Result<(), SourceError> {
        if let Some(error) = self.readers[reader].read(share, left, each) {
            self.readers[reader].invalidate();
            self.handle_partition_error(reader, &error)?;
        }
        let PartitionReader { partition: Partition(partition), position, changed, .. } =
            &self.readers[reader];
        match changed {
            None => Ok(()),
            Some(changed) => Err(SourceError::Refused(format!(
                "the record at offset {} of {} partition {partition} {changed}: the topic was deleted and \
                 recreated; use another `pipeline` name, with its own tables, to read the new topic from its start",
                position - 1,
                self.topic
            ))),
        }
    }

    fn partition_reader(&mut self, partition: Partition) -> Result<&mut PartitionReader, SourceError> {
        let reader = self.readers.iter_mut().find(|reader| reader.partition == partition);
        reader.ok_or_else(|| {
            SourceError::Refused(format!("partition {} is not assigned to this reader", partition.0))
        })
    }

    /// Returns true if every partition has reached its stop.
    pub fn ended(&self) -> bool {
        self.readers.iter().all(PartitionReader::ended)
    }

    /// Processes the consumer's events other than records: errors and statistics.
    fn poll_events(&mut self) -> Result<(), SourceError> {
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            match event {
                Err(error) => self.check_error(&error)?,
                Ok(message) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    return Err(unavailable(
                        format!("read topic {}", self.topic),
                        format!("the record {partition}:{offset} arrived outside its partition's queue"),
                    ));
                }
            }
        }
        let context = self.consumer.context();
        let all = std::mem::take(&mut *context.stats.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        for (partition, stats) in all {
            if let Some(reader) =
                self.readers.iter_mut().find(|reader| kafka_partition(reader.partition.0) == partition)
            {
                reader.update(stats);
            }
        }
        Ok(())
    }

    /// Returns an error of the consumer if it is fatal; librdkafka recovers from others, such as lost connections.
    fn check_error(&self, error: &KafkaError) -> Result<(), SourceError> {
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

    /// Handles an error of one partition. An error that its position is not in the log any more is fatal, too.
    fn handle_partition_error(&mut self, reader: usize, error: &KafkaError) -> Result<(), SourceError> {
        use RDKafkaErrorCode as Code;
        let lost = matches!(
            error.rdkafka_error_code(),
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::NoOffset | Code::LogTruncation)
        );
        let PartitionReader { partition: Partition(partition), position, .. } = self.readers[reader];
        let topic = &self.topic;
        if let Some(remedy) = permanent_error_remedy(error) {
            return Err(SourceError::Refused(format!(
                "cannot read the records of {topic} partition {partition} from offset {position}: {error}; {remedy}"
            )));
        }
        if !lost {
            self.check_error(error)?;
            self.log_partition_error(partition, error);
            return Ok(());
        }
        let log = match self.consumer.fetch_watermarks(topic, kafka_partition(partition), REQUEST_TIMEOUT) {
            Ok((low, end)) => format!("its log has offsets {low} to {end}"),
            Err(error) => format!("the offsets of its log are unknown: {error}"),
        };
        Err(SourceError::Refused(format!(
            "cannot resume at offset {position} of {topic} partition {partition}: {log}; records were removed before \
             they were read, or the topic was recreated; `--accept-loss {topic}:{partition}` resumes at the first available \
             offset, without the records before it"
        )))
    }

    /// Logs a non-fatal error of a partition: the first of its kind, then every hundredth.
    fn log_partition_error(&mut self, partition: u32, error: &KafkaError) {
        let count = self.errors.entry(error.to_string()).or_default();
        *count += 1;
        if *count % 100 == 1 {
            tracing::warn!(topic = self.topic, partition, count, %error, "partition error; reading continues");
        }
    }
}

/// Returns the remedy for an error that recurs however often the partition is read; None for other errors. librdkafka
/// would skip the affected records.
fn permanent_error_remedy(error: &KafkaError) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code()? {
        Code::NotImplemented | Code::UnsupportedCompressionType | Code::BadCompression => Some(
            "their compression is not supported (supported: none, gzip, snappy, lz4 and zstd); produce them again with \
             another `compression.type`",
        ),
        Code::BadMessage | Code::InvalidMessage => {
            Some("they are damaged; check the broker's disk and log, and produce them again")
        }
        Code::MessageSizeTooLarge => {
            Some("they are too large to fetch; raise `receive.message.max.bytes` in `[source.options]`")
        }
        _ => None,
    }
}

fn raw<'a>(
    partition: Partition,
    record: &Fetched<'a>,
    producer_header: &[u8],
    sampled: &mut Sampled,
) -> Raw<'a> {
    let (mut retries, mut producer) = (None, None);
    for (name, value) in record.headers() {
        if name == RETRIES.as_bytes() {
            retries = retries.or(value);
        } else if name == producer_header {
            producer = producer.or(value);
        } else if sampled.wanted > 0
            && name == TRACEPARENT.as_bytes()
            && let Some(context) = value.and_then(TraceContext::sampled)
        {
            sampled.wanted -= 1;
            sampled.contexts.push(context);
        }
    }
    Raw {
        position: Position { partition, offset: Offset(record.offset()) },
        timestamp: record.timestamp(),
        key: record.key(),
        value: record.value(),
        retries: retry_count(retries),
        producer,
    }
}

/// Parses the retry header, which any producer can write: text that is not a number counts as zero, and the count is
/// limited to the maximum of the table column.
pub(super) fn retry_count(header: Option<&[u8]>) -> u32 {
    let text = header.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    const MAX: u32 = i32::MAX.unsigned_abs();
    text.parse().map_or(MAX, |count: u32| count.min(MAX))
}

impl Reader for KafkaReader {
    fn read(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        let producer_header = std::mem::take(&mut self.producer_header);
        let mut sampled = std::mem::take(&mut self.sampled);
        let read = self.records(budget, &mut |partition, record| {
            each(raw(partition, record, &producer_header, &mut sampled));
        });
        (self.producer_header, self.sampled) = (producer_header, sampled);
        read
    }

    fn wake_with(&mut self, wake: Wake) -> bool {
        self.readers.iter_mut().for_each(|reader| reader.wake_with(&wake));
        self.wake = Some(wake);
        true
    }

    fn collect_contexts(&mut self, most: usize) {
        self.sampled.wanted = most;
    }

    fn take_contexts(&mut self) -> Vec<TraceContext> {
        std::mem::take(&mut self.sampled.contexts)
    }

    fn set_order(&mut self, places: &[usize]) {
        self.order.clear();
        self.order.extend_from_slice(places);
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

    /// librdkafka would otherwise skip the records of permanent errors silently.
    #[test]
    fn permanent_errors_differ_from_transient_ones() {
        use RDKafkaErrorCode as Code;
        let of = |code| permanent_error_remedy(&KafkaError::MessageConsumption(code));
        for code in [Code::NotImplemented, Code::BadCompression, Code::BadMessage, Code::MessageSizeTooLarge]
        {
            assert!(of(code).is_some(), "{code}");
        }
        for code in [Code::BrokerTransportFailure, Code::NotLeaderForPartition, Code::OffsetOutOfRange] {
            assert_eq!(of(code), None, "{code}");
        }
    }
}
