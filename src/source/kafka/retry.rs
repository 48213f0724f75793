//! Sending dead letters to the source topic once more, each at most once.
//!
//! ```text
//!   dead letters of this pipeline ──▶ ┌────────── one transaction ──────────┐
//!                                     │ original bytes ──▶ source topic      │
//!                                     │ how far it is  ──▶ headwater-retries │
//!                                     └──────────────────────────────────────┘
//! ```
//!
//! How far it is, for each partition of the dead-letter topic and each reason, is a compacted topic on the brokers of
//! the source, where a transaction can join it with what is sent. The offsets of a consumer group would be forgotten
//! after `offsets.retention.minutes`, and say nothing of letters that were passed over for their reason. The
//! transactional id is the pipeline's, so of two that retry at once the later one goes on and the other is refused.

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

/// How often a record may be sent to the source topic again.
pub const MOST_RETRIES: u32 = 3;
/// How much one transaction sends, in records and in bytes.
const RECORDS: usize = 500;
const BYTES: usize = 8 << 20;
/// How long the topic of what was retried may take to be read.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why dead letters could not be sent again.
#[derive(Debug, Error)]
pub enum RetryError {
    /// They could not be read.
    #[error(transparent)]
    Read(#[from] SourceError),
    /// A topic could not be looked up or created.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// An option must not be set.
    #[error("cannot connect to Kafka")]
    Option(#[from] Misconfigured),
    /// The cluster could not be reached, or answered with an error.
    #[error("cannot {action}")]
    Kafka {
        /// What was being done.
        action: String,
        /// Kafka's own error.
        source: KafkaError,
    },
    /// The records were not taken. Those of the transactions before are there, and are not sent again.
    #[error("cannot send to topic {topic}: {reason}; nothing is sent twice if it is tried again")]
    Sending {
        /// The source topic.
        topic: String,
        /// What the cluster or the client said.
        reason: String,
    },
    /// Another retry of the same pipeline has begun since.
    #[error("another retry of this pipeline's dead letters has taken over; that one goes on")]
    Fenced,
}

/// What became of dead letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retried {
    /// Sent to the source topic.
    pub sent: u64,
    /// Left since they were sent before.
    pub before: u64,
    /// Left since they would be late again.
    pub late: u64,
    /// Left since they have come back [`MOST_RETRIES`] times.
    pub exhausted: u64,
    /// Left since only their beginning was kept.
    pub truncated: u64,
    /// Left since another pipeline wrote them, or they are of another source topic, or do not say of which.
    pub of_others: u64,
}

/// Which dead letters are sent where.
#[derive(Clone, Debug)]
pub struct Retry<'a> {
    /// The brokers of the source.
    pub brokers: &'a str,
    /// Options of the source for librdkafka.
    pub options: &'a Options,
    /// The pipeline whose letters they are.
    pub pipeline: &'a str,
    /// The source topic.
    pub source_topic: &'a str,
    /// The topic that the letters are in.
    pub letters_topic: &'a str,
    /// Whether those that were late are sent, which will be late again.
    pub include_late: bool,
}

/// The name of the topic that says how far a pipeline's letters were retried.
pub fn retries_topic(pipeline: &str) -> String {
    format!("headwater-retries-{pipeline}")
}

/// Whether a letter is of this pipeline and of this source topic.
pub fn is_of(letter: &DeadLetter, pipeline: &str, source_topic: &str) -> bool {
    letter.header(header::PIPELINE) == Some(pipeline)
        && letter.header(header::SOURCE_TOPIC) == Some(source_topic)
}

impl Retry<'_> {
    /// Sends the original bytes of letters to the source topic, each with its retry count raised by one. What was sent
    /// by a run before is not sent again, whatever ended that.
    ///
    /// # Errors
    /// If they cannot be read or sent.
    pub fn run(
        &self,
        letters: impl IntoIterator<Item = Result<DeadLetter, SourceError>>,
    ) -> Result<Retried, RetryError> {
        let (writer, mut marks) = self.begin()?;
        let mut retried = Retried::default();
        let mut chosen = Vec::new();
        let mut bytes = 0;
        for letter in letters {
            let letter = letter?;
            let Some(left) = self.left(&letter, &marks, &mut retried) else {
                bytes += letter.value.as_ref().map_or(0, Vec::len);
                chosen.push(letter);
                if chosen.len() == RECORDS || bytes > BYTES {
                    self.send(&writer, &mut chosen, &mut marks, &mut retried)?;
                    bytes = 0;
                }
                continue;
            };
            *left += 1;
        }
        self.send(&writer, &mut chosen, &mut marks, &mut retried)?;
        Ok(retried)
    }

    /// Where a letter that is not to be sent is counted.
    fn left<'r>(&self, letter: &DeadLetter, marks: &Marks, retried: &'r mut Retried) -> Option<&'r mut u64> {
        if !is_of(letter, self.pipeline, self.source_topic) {
            Some(&mut retried.of_others)
        } else if letter.retries() >= MOST_RETRIES {
            Some(&mut retried.exhausted)
        } else if letter.header(header::ORIGINAL_LENGTH).is_some() {
            Some(&mut retried.truncated)
        } else if marks.get(&self.mark_of(letter)).is_some_and(|&next| letter.position.offset.0 < next) {
            Some(&mut retried.before)
        } else if letter.reason() == "late" && !self.include_late {
            Some(&mut retried.late)
        } else {
            None
        }
    }

    /// The letters of a partition are in order, so those of one reason are done up to an offset.
    fn mark_of(&self, letter: &DeadLetter) -> String {
        format!("{}/{}/{}", self.letters_topic, letter.position.partition.0, letter.reason())
    }

    /// Takes over the transactional id, and then reads what earlier runs have sent: they can send no more.
    fn begin(&self) -> Result<(Writer, Marks), RetryError> {
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
        Ok((writer, self.marks(&topic)?))
    }

    fn marks(&self, topic: &str) -> Result<Marks, RetryError> {
        let failed = |source| RetryError::Kafka { action: format!("read topic {topic}"), source };
        let config = reader_config(self.brokers, self.options, topic, &[])?;
        let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet).map_err(failed)?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, 0, Offset::Beginning).map_err(failed)?;
        consumer.assign(&assignment).map_err(failed)?;
        let mut marks = Marks::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match consumer.poll(Duration::from_millis(50)) {
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(marks),
                Some(Ok(message)) => {
                    let text = |bytes| std::str::from_utf8(bytes).ok();
                    let offset = message.payload().and_then(text).and_then(|text| text.parse().ok());
                    if let (Some(key), Some(offset)) = (message.key().and_then(text), offset) {
                        marks.insert(key.to_owned(), offset);
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

    /// Sends what was chosen, and how far that is, in one transaction.
    fn send(
        &self,
        writer: &Writer,
        chosen: &mut Vec<DeadLetter>,
        marks: &mut Marks,
        retried: &mut Retried,
    ) -> Result<(), RetryError> {
        if chosen.is_empty() {
            return Ok(());
        }
        let mut moved = Marks::new();
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
                moved.insert(self.mark_of(letter), letter.position.offset.0 + 1);
            }
            let topic = retries_topic(self.pipeline);
            for (key, next) in &moved {
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
        marks.append(&mut moved);
        retried.sent += chosen.len() as u64;
        chosen.clear();
        Ok(())
    }
}

/// By partition of the dead-letter topic and reason, the offset behind the last letter that was sent.
type Marks = BTreeMap<String, i64>;
