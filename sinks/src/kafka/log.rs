//! Reading the progress topic up to a sentinel.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message as _, Offset, TopicPartitionList};
use thiserror::Error;

use super::client::{Options, Quiet, reader_config};
use super::progress::Record;
use crate::Misconfigured;

/// How long a sentinel may stay hidden behind another producer's open transaction.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the progress topic could not be read.
#[derive(Debug, Error)]
pub(super) enum LogError {
    #[error(
        "progress topic {topic}, partition {partition}: what was to be read did not come within {PATIENCE:?}; \
        a transaction that another producer left open may hide it"
    )]
    Hidden { topic: String, partition: i32 },
    #[error(
        "progress topic {topic}, partition {partition}, offset {offset} is not a progress record: {reason}"
    )]
    Malformed { topic: String, partition: i32, offset: i64, reason: String },
    #[error("progress topic {topic}")]
    Kafka { topic: String, source: KafkaError },
}

/// By partition, the offset from which a reading starts; none for the beginning.
type Place = Vec<Option<i64>>;

/// The progress topic of a pipeline, read from where the last reading that was [accepted](ProgressLog::accept) stopped.
pub(super) struct ProgressLog {
    topic: String,
    config: rdkafka::ClientConfig,
    next: Place,
}

/// What a reading has found.
pub(super) struct Found {
    pub records: Vec<Record>,
    /// Where it stopped.
    pub next: Place,
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

    /// How many partitions the topic has: a sentinel goes to each.
    pub fn partitions(&self) -> impl Iterator<Item = i32> + use<> {
        0..i32::try_from(self.next.len()).unwrap_or(i32::MAX)
    }

    /// All records since the last reading that was accepted, up to `sentinel` in every partition. Those of other sinks
    /// are among them; those that were removed are not.
    pub fn read_until(&self, sentinel: &Record) -> Result<Found, LogError> {
        self.read(Some(sentinel))
    }

    /// The same, up to what readers see as the end: progress may be hidden behind it.
    pub fn read_to_end(&self) -> Result<Vec<Record>, LogError> {
        self.read(None).map(|found| found.records)
    }

    /// The next reading goes on after this one. Until then what was found is found again: a reading that failed, or that
    /// has found a successor, must not hide it from the next.
    pub fn accept(&mut self, next: Place) {
        self.next = next;
    }

    fn read(&self, sentinel: Option<&Record>) -> Result<Found, LogError> {
        let topic = self.topic.clone();
        let kafka = |source| LogError::Kafka { topic: topic.clone(), source };
        let consumer: BaseConsumer<Quiet> = self.config.create_with_context(Quiet).map_err(kafka)?;
        let mut assignment = TopicPartitionList::new();
        for (partition, next) in self.partitions().zip(&self.next) {
            let from = next.map_or(Offset::Beginning, Offset::Offset);
            assignment.add_partition_offset(&topic, partition, from).map_err(kafka)?;
        }
        consumer.assign(&assignment).map_err(kafka)?;

        let mut next = self.next.clone();
        let mut records: Vec<(i32, Record)> = Vec::new();
        let mut waiting: Vec<i32> = self.partitions().collect();
        let deadline = Instant::now() + PATIENCE;
        while let Some(&partition) = waiting.first() {
            if Instant::now() > deadline {
                return Err(LogError::Hidden { topic, partition });
            }
            match consumer.poll(Duration::from_millis(50)) {
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    if !waiting.contains(&partition) {
                        continue;
                    }
                    if let Some(slot) = usize::try_from(partition).ok().and_then(|p| next.get_mut(p)) {
                        *slot = Some(offset + 1);
                    }
                    let Some(value) = message.payload() else {
                        // Compaction takes its time: what was removed may still be there.
                        let removed = message.key().unwrap_or_default();
                        records.retain(|(from, record)| *from != partition || record.key() != removed);
                        continue;
                    };
                    let malformed =
                        |reason| LogError::Malformed { topic: topic.clone(), partition, offset, reason };
                    let record = Record::decode(value).map_err(malformed)?;
                    if sentinel == Some(&record) {
                        waiting.retain(|&other| other != partition);
                    }
                    records.push((partition, record));
                }
                Some(Err(KafkaError::PartitionEOF(partition))) if sentinel.is_none() => {
                    waiting.retain(|&other| other != partition);
                }
                Some(Err(KafkaError::PartitionEOF(_))) | None => {}
                Some(Err(error)) => tracing::debug!(%error, topic, "reading the progress topic"),
            }
        }
        Ok(Found { records: records.into_iter().map(|(_, record)| record).collect(), next })
    }
}
