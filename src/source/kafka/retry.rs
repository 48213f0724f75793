//! Retrying dead letters: sending each to the source topic again, at most once.
//!
//! ```text
//!   dead letters of this pipeline ──▶ ┌────────── one transaction ──────────┐
//!                                     │ their records ──▶ source topic       │
//!                                     │ retry ledger  ──▶ headwater-retries  │
//!                                     └──────────────────────────────────────┘
//! ```
//!
//! The retry ledger says what was sent. It is a compacted topic on the brokers of the source, so that one transaction
//! covers it and the records sent. (The offsets of a consumer group would expire after `offsets.retention.minutes`, and
//! cannot represent letters that were left out for their reason.) A retry of all letters of a reason records the offset
//! after the last one, by partition of the dead-letter topic and reason. A retry of some of them, or from a table, records
//! each letter. The transactional id belongs to the pipeline, so the later of two concurrent retries fences the earlier
//! one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use headwater_dataflows::Position;
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

/// A dead letter to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resend {
    /// The letter.
    pub letter: DeadLetter,
    /// The value to send instead of the original one.
    pub edited: Option<Vec<u8>>,
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
    /// The dead-letter topic, or [`TABLE`].
    pub letters_topic: &'a str,
    /// True if late events are sent, although they will be late again.
    pub include_late: bool,
    /// True if the letters are some of those with their reason, or come from a table: each is recorded by itself.
    pub records_each: bool,
    /// The maximum number of letters to send in a second.
    pub per_second: Option<f64>,
    /// The header that names the producer of a record; it is sent again.
    pub producer_header: &'a str,
}

/// The name of tables of dead letters in the retry ledger. No topic can have it.
pub const TABLE: &str = "(table)";

/// Returns the name of the topic with the retry ledger of a pipeline.
pub fn retries_topic(pipeline: &str) -> String {
    format!("headwater-retries-{pipeline}")
}

/// Returns true if a letter belongs to this pipeline and source topic.
pub fn is_of(letter: &DeadLetter, pipeline: &str, source_topic: &str) -> bool {
    letter.header(header::PIPELINE) == Some(pipeline)
        && letter.header(header::SOURCE_TOPIC) == Some(source_topic)
}

impl Retry<'_> {
    /// Sends letters to the source topic, each with its retry count raised by one. Letters that an earlier run sent are
    /// not sent again, however that run ended.
    ///
    /// # Errors
    /// If the letters cannot be read or sent.
    pub fn run<E: From<RetryError>>(
        &self,
        letters: impl IntoIterator<Item = Result<Resend, E>>,
    ) -> Result<Retried, E> {
        let (writer, mut ledger) = self.open()?;
        let mut retried = Retried::default();
        let (mut chosen, mut bytes, begun) = (Vec::new(), 0, Instant::now());
        let most =
            self.per_second.map_or(RECORDS, |rate| (rate / 5.0).ceil().clamp(1.0, RECORDS as f64) as usize);
        for resend in letters {
            let resend = resend?;
            if let Some(counter) = self.omission_counter(&resend, &ledger, &mut retried) {
                *counter += 1;
                continue;
            }
            bytes += resend.letter.value.as_ref().map_or(0, Vec::len);
            chosen.push(resend);
            if chosen.len() >= most || bytes > BYTES {
                self.send(&writer, &mut chosen, &mut ledger, &mut retried)?;
                bytes = 0;
                if let Some(rate) = self.per_second {
                    let due = begun + Duration::from_secs_f64(retried.sent as f64 / rate);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            }
        }
        self.send(&writer, &mut chosen, &mut ledger, &mut retried)?;
        Ok(retried)
    }

    /// Counts what [`run`](Retry::run) would send, and changes nothing: a retry that is running is not fenced.
    ///
    /// # Errors
    /// If the letters or the retry ledger cannot be read.
    pub fn dry_run<E: From<RetryError>>(
        &self,
        letters: impl IntoIterator<Item = Result<Resend, E>>,
    ) -> Result<Retried, E> {
        let ledger = RetryLedger::read(self.brokers, self.options, self.pipeline)?;
        let mut retried = Retried::default();
        for resend in letters {
            match self.omission_counter(&resend?, &ledger, &mut retried) {
                Some(counter) => *counter += 1,
                None => retried.sent += 1,
            }
        }
        Ok(retried)
    }

    /// Returns the counter for a letter that must not be sent; None if it is sent.
    fn omission_counter<'r>(
        &self,
        Resend { letter, edited }: &Resend,
        ledger: &RetryLedger,
        retried: &'r mut Retried,
    ) -> Option<&'r mut u64> {
        if !is_of(letter, self.pipeline, self.source_topic) {
            Some(&mut retried.of_others)
        } else if letter.retries() >= MOST_RETRIES && edited.is_none() {
            Some(&mut retried.exhausted)
        } else if letter.header(header::ORIGINAL_LENGTH).is_some() {
            Some(&mut retried.truncated)
        } else if ledger.has_sent(self.letters_topic, letter) {
            Some(&mut retried.before)
        } else if letter.reason() == "late" && !self.include_late && edited.is_none() {
            Some(&mut retried.late)
        } else {
            None
        }
    }

    /// Takes over the transactional id, which fences earlier runs, and then reads what they committed to the ledger.
    fn open(&self) -> Result<(Writer, RetryLedger), RetryError> {
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
        let writer = Writer::open(&config, &id, Some(&topic)).map_err(failed)?;
        Ok((writer, RetryLedger::read_topic(self.brokers, self.options, &topic)?))
    }

    /// Sends the chosen letters and their entries in the ledger in one transaction.
    fn send(
        &self,
        writer: &Writer,
        chosen: &mut Vec<Resend>,
        ledger: &mut RetryLedger,
        retried: &mut Retried,
    ) -> Result<(), RetryError> {
        if chosen.is_empty() {
            return Ok(());
        }
        let mut entries = BTreeMap::new();
        let outcome = writer.transaction(|writer| {
            for (number, resend) in (0..).zip(chosen.iter()) {
                self.send_record(writer, number, resend)?;
                let (key, value) = self.entry(&resend.letter);
                entries.insert(key, value);
            }
            let topic = retries_topic(self.pipeline);
            for (key, value) in &entries {
                let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
                let (number, partition) = (chosen.len(), Some(0));
                writer.send(&Outgoing { number, topic: &topic, partition, key, value, headers: &[] })?;
            }
            Ok(())
        });
        outcome.map_err(|trouble| match trouble {
            Trouble::Fenced(_) => RetryError::Fenced,
            other => RetryError::Sending { topic: self.source_topic.to_owned(), reason: other.to_string() },
        })?;
        entries.iter().for_each(|(key, value)| ledger.enter(key, value));
        retried.sent += chosen.len() as u64;
        chosen.clear();
        Ok(())
    }

    fn send_record(
        &self,
        writer: &Writer,
        number: usize,
        Resend { letter, edited }: &Resend,
    ) -> Result<(), Trouble> {
        let retries = (letter.retries() + 1).to_string();
        let mut headers = vec![Header { name: header::RETRIES, value: retries.as_bytes() }];
        if let Some(producer) = letter.header(header::PRODUCER) {
            headers.push(Header { name: self.producer_header, value: producer.as_bytes() });
        }
        writer.send(&Outgoing {
            number,
            topic: self.source_topic,
            partition: None,
            key: letter.key.as_deref(),
            value: edited.as_deref().or(letter.value.as_deref()),
            headers: &headers,
        })
    }

    /// Returns the entry in the ledger of a letter that is sent. Without `records_each`, letters of one partition and
    /// reason are sent in order of their offsets.
    fn entry(&self, letter: &DeadLetter) -> (String, String) {
        let Position { partition, offset } = letter.position;
        let (place, partition, offset) = (self.letters_topic, partition.0, offset.0);
        if self.records_each {
            let sent = serde_json::json!({ "sent_at": crate::json::rfc3339(crate::wall::wall_ms()) });
            return (format!("{place}/{partition}/{offset}"), sent.to_string());
        }
        (format!("{place}/{partition}/{}", letter.reason()), (offset + 1).to_string())
    }
}

/// The ledger of the letters that were sent again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryLedger {
    /// The offset after the last letter that was sent, by `TOPIC/PARTITION/REASON`.
    offsets: BTreeMap<String, i64>,
    /// The letters that were sent one by one, by topic: partition and offset.
    letters: BTreeMap<String, BTreeSet<(u32, i64)>>,
}

impl RetryLedger {
    /// Reads the ledger of a pipeline; it is empty if nothing was ever sent.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(brokers: &str, options: &Options, pipeline: &str) -> Result<RetryLedger, RetryError> {
        let topic = retries_topic(pipeline);
        match Topics::connect(brokers, options)?.partitions(&topic)? {
            None => Ok(RetryLedger::default()),
            Some(_) => RetryLedger::read_topic(brokers, options, &topic),
        }
    }

    /// Returns true if a letter of this topic, or of [`TABLE`], was sent.
    pub fn has_sent(&self, letters_topic: &str, letter: &DeadLetter) -> bool {
        let Position { partition, offset } = letter.position;
        let key = format!("{letters_topic}/{}/{}", partition.0, letter.reason());
        self.offsets.get(&key).is_some_and(|&next| offset.0 < next)
            || self.letters.get(letters_topic).is_some_and(|sent| sent.contains(&(partition.0, offset.0)))
    }

    /// Enters a record of the topic. A record of an unknown form is from a later version, and is ignored.
    fn enter(&mut self, key: &str, value: &str) {
        let mut parts = key.rsplitn(3, '/');
        let (Some(last), Some(partition), Some(topic)) = (parts.next(), parts.next(), parts.next()) else {
            return;
        };
        match (partition.parse(), last.parse(), value.parse()) {
            (Ok(partition), Ok(offset), _) => {
                self.letters.entry(topic.to_owned()).or_default().insert((partition, offset));
            }
            (_, _, Ok(next)) => drop(self.offsets.insert(key.to_owned(), next)),
            _ => {}
        }
    }

    fn read_topic(brokers: &str, options: &Options, topic: &str) -> Result<RetryLedger, RetryError> {
        let failed = |source| RetryError::Kafka { action: format!("read topic {topic}"), source };
        let config = reader_config(brokers, options, topic, &[("fetch.wait.max.ms", "20")])?;
        let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet).map_err(failed)?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, 0, Offset::Beginning).map_err(failed)?;
        consumer.assign(&assignment).map_err(failed)?;
        let mut ledger = RetryLedger::default();
        let mut deadline = Instant::now() + READ_TIMEOUT;
        loop {
            match consumer.poll(Duration::from_millis(50)) {
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(ledger),
                Some(Ok(message)) => {
                    let text = |bytes| std::str::from_utf8(bytes).ok();
                    let value = message.payload().and_then(text);
                    if let (Some(key), Some(value)) = (message.key().and_then(text), value) {
                        ledger.enter(key, value);
                    }
                    deadline = Instant::now() + READ_TIMEOUT;
                }
                Some(Err(error)) if Instant::now() > deadline => return Err(failed(error)),
                None if Instant::now() > deadline => {
                    return Err(failed(KafkaError::NoMessageReceived));
                }
                Some(Err(_)) | None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::{Offset, Partition};

    use super::*;

    fn letter(partition: u32, offset: i64, reason: &str) -> DeadLetter {
        DeadLetter {
            position: Position { partition: Partition(partition), offset: Offset(offset) },
            timestamp: 0,
            key: None,
            value: None,
            headers: vec![(header::REASON.to_owned(), reason.as_bytes().to_vec())],
        }
    }

    #[test]
    fn the_ledger_knows_letters_by_offset_and_one_by_one() {
        let mut ledger = RetryLedger::default();
        ledger.enter("dead-letters/2/invalid", "7");
        ledger.enter("dead-letters/2/9", "{\"sent_at\":\"2026-03-01T02:00:00.000Z\"}");
        ledger.enter("(table)/0/3", "{}");
        ledger.enter("something/else", "x");
        ledger.enter("dead-letters/2/late", "of a later version");
        let has_sent =
            |partition, offset, reason| ledger.has_sent("dead-letters", &letter(partition, offset, reason));
        assert!(has_sent(2, 6, "invalid") && !has_sent(2, 7, "invalid") && !has_sent(1, 6, "invalid"));
        assert!(has_sent(2, 9, "malformed") && has_sent(2, 9, "invalid") && !has_sent(2, 6, "late"));
        assert!(!has_sent(0, 3, "invalid") && ledger.has_sent(TABLE, &letter(0, 3, "invalid")));
    }
}
