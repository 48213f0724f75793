//! Retrying dead letters: sending each to the source topic again, at most once.
//!
//! ```text
//!   dead letters of this pipeline ──▶ ┌────────── one transaction ──────────┐
//!                                     │ original bytes ──▶ source topic      │
//!                                     │ retry offsets  ──▶ headwater-retries │
//!                                     └──────────────────────────────────────┘
//! ```
//!
//! The retry offsets, one per partition of the dead-letter topic and reason, are stored in a compacted topic on the
//! brokers of the source, so that one transaction covers them and the records sent. The offsets of a consumer group
//! would expire after `offsets.retention.minutes`, and cannot represent letters that were left out for their reason.
//! The transactional id belongs to the pipeline, so the later of two concurrent retries fences the earlier one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use headwater_sinks::Header;
use headwater_sinks::Misconfigured;
use headwater_sinks::kafka::client::{Options, Quiet, reader_config};
use headwater_sinks::kafka::topics::{TopicError, TopicSpec, Topics};
use headwater_sinks::kafka::writer::{Outgoing, Trouble, Writer, producer_config};
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use thiserror::Error;

use super::dead_letters::{DeadLetter, header};
use crate::source::SourceError;

/// The maximum number of retries of a record.
pub const MOST_RETRIES: u32 = 3;
/// The maximum size of a transaction, in records and in bytes.
const RECORDS: usize = 500;
const BYTES: usize = 8 << 20;
/// The maximum time to read the topic with the retry offsets.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// An error of a retry of dead letters.
#[derive(Debug, Error)]
pub enum RetryError {
    /// The dead letters could not be read.
    #[error(transparent)]
    Read(#[from] SourceError),
    /// A topic could not be looked up or created.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// An option of the client is not allowed.
    #[error("cannot connect to Kafka")]
    Option(#[from] Misconfigured),
    /// The cluster could not be reached, or responded with an error.
    #[error("cannot {action}")]
    Kafka {
        /// The failed action, as a verb phrase.
        action: String,
        /// Kafka's own error.
        source: KafkaError,
    },
    /// The records were not committed. Those of earlier transactions were, and are not sent again.
    #[error("cannot send to topic {topic}: {reason}; run the retry again: no record is sent twice")]
    Sending {
        /// The source topic.
        topic: String,
        /// The error of the cluster or the client.
        reason: String,
    },
    /// A later retry of the same pipeline has fenced this one.
    #[error("fenced by a later retry of this pipeline's dead letters, which continues")]
    Fenced,
}

/// The outcome of a retry, in numbers of dead letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retried {
    /// Sent to the source topic.
    pub sent: u64,
    /// Left out because an earlier run sent them.
    pub before: u64,
    /// Left out because they would be late again.
    pub late: u64,
    /// Left out because they were retried [`MOST_RETRIES`] times.
    pub exhausted: u64,
    /// Left out because only the beginning of the record is stored.
    pub truncated: u64,
    /// Left out because they belong to another pipeline or source topic, or do not name theirs.
    pub of_others: u64,
}

/// A retry of the dead letters of a pipeline.
#[derive(Clone, Debug)]
pub struct Retry<'a> {
    /// The brokers of the source.
    pub brokers: &'a str,
    /// The source's options for librdkafka.
    pub options: &'a Options,
    /// The pipeline that wrote the letters.
    pub pipeline: &'a str,
    /// The source topic.
    pub source_topic: &'a str,
    /// The dead-letter topic.
    pub letters_topic: &'a str,
    /// True if late events are sent, although they will be late again.
    pub include_late: bool,
}

/// Returns the name of the topic with the retry offsets of a pipeline.
pub fn retries_topic(pipeline: &str) -> String {
    format!("headwater-retries-{pipeline}")
}

/// Returns true if a letter belongs to this pipeline and source topic.
pub fn is_of(letter: &DeadLetter, pipeline: &str, source_topic: &str) -> bool {
    letter.header(header::PIPELINE) == Some(pipeline)
        && letter.header(header::SOURCE_TOPIC) == Some(source_topic)
}

impl Retry<'_> {
    /// Sends the original bytes of letters to the source topic, each with its retry count raised by one. Letters that
    /// an earlier run sent are not sent again, however that run ended.
    ///
    /// # Errors
    /// If the letters cannot be read or sent.
    pub fn run(
        &self,
        letters: impl IntoIterator<Item = Result<DeadLetter, SourceError>>,
    ) -> Result<Retried, RetryError> {
        let (writer, mut retry_offsets) = self.open()?;
        let mut retried = Retried::default();
        let mut chosen = Vec::new();
        let mut bytes = 0;
        for letter in letters {
            let letter = letter?;
            let Some(counter) = self.omission_counter(&letter, &retry_offsets, &mut retried) else {
                bytes += letter.value.as_ref().map_or(0, Vec::len);
                chosen.push(letter);
                if chosen.len() == RECORDS || bytes > BYTES {
                    self.send(&writer, &mut chosen, &mut retry_offsets, &mut retried)?;
                    bytes = 0;
                }
                continue;
            };
            *counter += 1;
        }
        self.send(&writer, &mut chosen, &mut retry_offsets, &mut retried)?;
        Ok(retried)
    }

    /// Returns the counter for a letter that must not be sent; None if it is sent.
    fn omission_counter<'r>(
        &self,
        letter: &DeadLetter,
        retry_offsets: &RetryOffsets,
        retried: &'r mut Retried,
    ) -> Option<&'r mut u64> {
        if !is_of(letter, self.pipeline, self.source_topic) {
            Some(&mut retried.of_others)
        } else if letter.retries() >= MOST_RETRIES {
            Some(&mut retried.exhausted)
        } else if letter.header(header::ORIGINAL_LENGTH).is_some() {
            Some(&mut retried.truncated)
        } else if retry_offsets
            .get(&self.offset_key(letter))
            .is_some_and(|&next| letter.position.offset.0 < next)
        {
            Some(&mut retried.before)
        } else if letter.reason() == "late" && !self.include_late {
            Some(&mut retried.late)
        } else {
            None
        }
    }

    /// Returns the key of a letter's retry offset. Letters of one partition and reason are sent in order of their
    /// offsets.
    fn offset_key(&self, letter: &DeadLetter) -> String {
        format!("{}/{}/{}", self.letters_topic, letter.position.partition.0, letter.reason())
    }

    /// Takes over the transactional id, which fences earlier runs, and then reads the retry offsets that they
    /// committed.
    fn open(&self) -> Result<(Writer, RetryOffsets), RetryError> {
        let topic = retries_topic(self.pipeline);
        let cluster = Topics::connect(self.brokers, self.options)?;
        let replication = cluster.describe(self.source_topic)?.map(|facts| facts.replication);
        let spec = TopicSpec { replication, ..TopicSpec::new(&topic, 1).with("cleanup.policy", "compact") };
        cluster.create(&[spec])?;
        let config =
            producer_config(self.brokers, self.options, &[("linger.ms", "5"), ("compression.type", "lz4")])?;
        let id = format!("{}-dead-letter-retry", self.pipeline);
        let failed =
            |source| RetryError::Kafka { action: format!("take over transactional id {id}"), source };
        let writer = Writer::open(&config, &id).map_err(failed)?;
        Ok((writer, self.read_offsets(&topic)?))
    }

    fn read_offsets(&self, topic: &str) -> Result<RetryOffsets, RetryError> {
        let failed = |source| RetryError::Kafka { action: format!("read topic {topic}"), source };
        let config = reader_config(self.brokers, self.options, topic, &[])?;
        let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet).map_err(failed)?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, 0, Offset::Beginning).map_err(failed)?;
        consumer.assign(&assignment).map_err(failed)?;
        let mut retry_offsets = RetryOffsets::new();
        let deadline = Instant::now() + READ_TIMEOUT;
        loop {
            match consumer.poll(Duration::from_millis(50)) {
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(retry_offsets),
                Some(Ok(message)) => {
                    let text = |bytes| std::str::from_utf8(bytes).ok();
                    let offset = message.payload().and_then(text).and_then(|text| text.parse().ok());
                    if let (Some(key), Some(offset)) = (message.key().and_then(text), offset) {
                        retry_offsets.insert(key.to_owned(), offset);
                    }
                }
                Some(Err(error)) if Instant::now() > deadline => return Err(failed(error)),
                None if Instant::now() > deadline => {
                    return Err(failed(KafkaError::NoMessageReceived));
                }
                Some(Err(_)) | None => {}
            }
        }
    }

    /// Sends the chosen letters and the new retry offsets in one transaction.
    fn send(
        &self,
        writer: &Writer,
        chosen: &mut Vec<DeadLetter>,
        retry_offsets: &mut RetryOffsets,
        retried: &mut Retried,
    ) -> Result<(), RetryError> {
        if chosen.is_empty() {
            return Ok(());
        }
        let mut advanced = RetryOffsets::new();
        let outcome = writer.transaction(|writer| {
            for (number, letter) in (0..).zip(chosen.iter()) {
                let retries = (letter.retries() + 1).to_string();
                writer.send(&Outgoing {
                    number,
                    topic: self.source_topic,
                    partition: None,
                    key: letter.key.as_deref(),
                    value: letter.value.as_deref(),
                    headers: &[Header { name: header::RETRIES, value: retries.as_bytes() }],
                })?;
                advanced.insert(self.offset_key(letter), letter.position.offset.0 + 1);
            }
            let topic = retries_topic(self.pipeline);
            for (key, next) in &advanced {
                let (key, value) = (Some(key.as_bytes()), next.to_string());
                let value = Some(value.as_bytes());
                let (number, partition) = (chosen.len(), Some(0));
                writer.send(&Outgoing { number, topic: &topic, partition, key, value, headers: &[] })?;
            }
            Ok(())
        });
        outcome.map_err(|trouble| match trouble {
            Trouble::Fenced(_) => RetryError::Fenced,
            other => RetryError::Sending { topic: self.source_topic.to_owned(), reason: other.to_string() },
        })?;
        retry_offsets.append(&mut advanced);
        retried.sent += chosen.len() as u64;
        chosen.clear();
        Ok(())
    }
}

/// The offset after the last letter that was sent, by partition of the dead-letter topic and reason.
type RetryOffsets = BTreeMap<String, i64>;
