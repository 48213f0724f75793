//! Reads the progress topic up to a sentinel.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message as _, Offset, TopicPartitionList};
use thiserror::Error;

use super::client::{Options, Quiet, drop_aside, look_up, reader_config};
use super::progress::Record;
use crate::Misconfigured;

/// The timeout of reading up to a sentinel. Until an open transaction of another producer ends, the records after it
/// cannot be read.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The error of reading the progress topic.
#[derive(Debug, Error)]
pub(super) enum LogError {
    #[error(
        "progress topic {topic}, partition {partition}: cannot read to the end within {READ_TIMEOUT:?}; \
        an open transaction of another producer may block the reader until it ends or times out"
    )]
    Hidden { topic: String, partition: i32 },
    #[error(
        "progress topic {topic}, partition {partition}, offset {offset} is not a progress record: {reason}"
    )]
    Malformed { topic: String, partition: i32, offset: i64, reason: String },
    #[error("cannot read progress topic {topic}")]
    Kafka { topic: String, source: KafkaError },
}

/// The next offset to read of each partition; `None` for the beginning.
type Offsets = Vec<Option<i64>>;

/// A reader of the progress topic of a pipeline. Each read starts at the end of the last
/// [accepted](ProgressLog::accept) one.
pub(super) struct ProgressLog {
    topic: String,
    config: rdkafka::ClientConfig,
    next: Offsets,
}

/// The result of a read.
pub(super) struct ReadResult {
    pub records: Vec<Record>,
    /// The offsets at which the read ended.
    pub next: Offsets,
}

impl ProgressLog {
    pub fn new(
        brokers: &str,
        options: &Options,
        topic: &str,
        partitions: u32,
    ) -> Result<ProgressLog, Misconfigured> {
        let defaults = [("fetch.wait.max.ms", "50"), ("fetch.queue.backoff.ms", "10")];
        let config = reader_config(brokers, options, topic, &defaults)?;
        Ok(ProgressLog { topic: topic.to_owned(), config, next: vec![None; partitions as usize] })
    }

    /// Returns the partitions of the topic. A sentinel is written to each of them.
    pub fn partitions(&self) -> impl Iterator<Item = i32> + use<> {
        0..i32::try_from(self.next.len()).unwrap_or(i32::MAX)
    }

    /// Reads all records since the last accepted read, up to `sentinel` in every partition. They include records of
    /// other sinks, but not records that tombstones have removed.
    pub fn read_until(&self, sentinel: &Record) -> Result<ReadResult, LogError> {
        self.read(Some(sentinel))
    }

    /// Reads up to the last stable offset. Progress after an open transaction is not included.
    pub fn read_to_end(&self) -> Result<Vec<Record>, LogError> {
        self.read(None).map(|result| result.records)
    }

    /// Makes the next read start at `next`. Without this call, the next read returns the same records again. It is not
    /// called after a read that failed or found a later start, so that the next read finds the same records.
    pub fn accept(&mut self, next: Offsets) {
        self.next = next;
    }

    fn read(&self, sentinel: Option<&Record>) -> Result<ReadResult, LogError> {
        let topic = self.topic.clone();
        let kafka = |source| LogError::Kafka { topic: topic.clone(), source };
        let consumer: BaseConsumer<Quiet> = self.config.create_with_context(Quiet).map_err(kafka)?;
        let mut assignment = TopicPartitionList::new();
        for (partition, next) in self.partitions().zip(&self.next) {
            let from = next.map_or(Offset::Beginning, Offset::Offset);
            assignment.add_partition_offset(&topic, partition, from).map_err(kafka)?;
        }
        look_up(consumer.client(), &topic);
        consumer.assign(&assignment).map_err(kafka)?;

        let mut next = self.next.clone();
        let mut records: Vec<(i32, Record)> = Vec::new();
        let mut unfinished: Vec<i32> = self.partitions().collect();
        let deadline = Instant::now() + READ_TIMEOUT;
        while let Some(&partition) = unfinished.first() {
            if Instant::now() > deadline {
                return Err(LogError::Hidden { topic, partition });
            }
            match consumer.poll(Duration::from_millis(50)) {
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    if !unfinished.contains(&partition) {
                        continue;
                    }
                    if let Some(slot) = usize::try_from(partition).ok().and_then(|p| next.get_mut(p)) {
                        *slot = Some(offset + 1);
                    }
                    let Some(value) = message.payload() else {
                        // A tombstone. The topic may still contain the record that it removes: compaction is delayed.
                        let removed = message.key().unwrap_or_default();
                        records.retain(|(from, record)| *from != partition || record.key() != removed);
                        continue;
                    };
                    let malformed =
                        |reason| LogError::Malformed { topic: topic.clone(), partition, offset, reason };
                    let record = Record::decode(value).map_err(malformed)?;
                    if sentinel == Some(&record) {
                        unfinished.retain(|&other| other != partition);
                    }
                    records.push((partition, record));
                }
                Some(Err(KafkaError::PartitionEOF(partition))) if sentinel.is_none() => {
                    unfinished.retain(|&other| other != partition);
                }
                Some(Err(KafkaError::PartitionEOF(_))) | None => {}
                Some(Err(error)) => {
                    tracing::debug!(%error, topic, "error while reading the progress topic; the client retries")
                }
            }
        }
        drop_aside(consumer);
        Ok(ReadResult { records: records.into_iter().map(|(_, record)| record).collect(), next })
    }
}
