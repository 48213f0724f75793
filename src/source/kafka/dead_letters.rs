//! Reading dead letters. Sending them to the source topic again is in [`retry`](super::retry).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use headwater_dataflows::{Offset, Partition, Position};
use headwater_sinks::kafka::client::Options;

use super::fetched::Fetched;
use super::reader::{KafkaReader, retry_count};
use super::{KafkaSource, KafkaSourceConfig, StartFrom, consumer_config, unavailable};
use crate::source::{Budget, SourceError};

/// The names of a dead letter's headers.
pub mod header {
    pub use super::super::reader::RETRIES;

    /// The reason for the rejection: `malformed`, `invalid`, `late`, `future` or `duplicate`.
    pub const REASON: &str = "reason";
    /// The error message.
    pub const MESSAGE: &str = "message";
    /// The field that caused the rejection.
    pub const FIELD: &str = "field";
    /// The pipeline that rejected the record.
    pub const PIPELINE: &str = "pipeline";
    /// The topic that the record was read from.
    pub const SOURCE_TOPIC: &str = "source-topic";
    /// The record's partition in that topic, in decimal.
    pub const SOURCE_PARTITION: &str = "source-partition";
    /// The record's offset in that topic, in decimal.
    pub const SOURCE_OFFSET: &str = "source-offset";
    /// The record's Kafka timestamp, in milliseconds since 1970, in decimal.
    pub const SOURCE_TIMESTAMP: &str = "source-timestamp";
    /// The length of the original value in bytes, if the dead letter holds only its beginning or lacks its key.
    pub const ORIGINAL_LENGTH: &str = "original-length";
    /// The producer of the record, as its header says.
    pub const PRODUCER: &str = "producer";
    /// The SHA-256 of the original value in that case, in hexadecimal digits.
    pub const ORIGINAL_SHA256: &str = "original-sha256";
}

/// The names of headers with which Kafka Connect describes a rejected record, which user interfaces for Kafka show.
pub mod connect {
    /// The topic that the record was read from.
    pub const TOPIC: &str = "__connect.errors.topic";
    /// The record's partition, in decimal.
    pub const PARTITION: &str = "__connect.errors.partition";
    /// The record's offset, in decimal.
    pub const OFFSET: &str = "__connect.errors.offset";
    /// The pipeline.
    pub const CONNECTOR: &str = "__connect.errors.connector.name";
    /// The task of the pipeline.
    pub const TASK: &str = "__connect.errors.task.id";
    /// The stage of processing.
    pub const STAGE: &str = "__connect.errors.stage";
    /// The reason, in place of the name of an exception's class.
    pub const EXCEPTION: &str = "__connect.errors.exception.class.name";
    /// The error message.
    pub const MESSAGE: &str = "__connect.errors.exception.message";
}

/// The maximum time without a record before the end of a dead-letter topic.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum amount of the topic in memory, in bytes and in records.
const BYTES: usize = 16 << 20;
const RECORDS: usize = 500;

/// A rejected record, with its original bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The position in the dead-letter topic.
    pub position: Position,
    /// The time at which the dead letter was written, in milliseconds since 1970.
    pub timestamp: i64,
    /// The original key.
    pub key: Option<Vec<u8>>,
    /// The original value.
    pub value: Option<Vec<u8>>,
    /// All headers, in order; their names are in [`header`].
    pub headers: Vec<(String, Vec<u8>)>,
}

impl DeadLetter {
    pub(super) fn of(partition: Partition, record: &Fetched<'_>) -> DeadLetter {
        let owned = |(name, value): (&[u8], Option<&[u8]>)| {
            (String::from_utf8_lossy(name).into_owned(), value.unwrap_or_default().to_vec())
        };
        DeadLetter {
            position: Position { partition, offset: Offset(record.offset()) },
            timestamp: record.timestamp(),
            key: record.key().map(<[u8]>::to_vec),
            value: record.value().map(<[u8]>::to_vec),
            headers: record.headers().map(owned).collect(),
        }
    }

    /// Returns the text of a header; None if it is missing or not UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }

    /// Returns the reason for the rejection; empty if the header is missing.
    pub fn reason(&self) -> &str {
        self.header(header::REASON).unwrap_or_default()
    }

    /// Returns the number of earlier retries.
    pub fn retries(&self) -> u32 {
        retry_count(self.header(header::RETRIES).map(str::as_bytes))
    }
}

/// An iterator over the dead letters that a topic had when it was opened, in offset order within each partition.
pub struct DeadLetters {
    topic: String,
    reader: KafkaReader,
    read: VecDeque<DeadLetter>,
}

impl DeadLetters {
    /// Reads a dead-letter topic from its beginning to its current end.
    pub fn read_all(brokers: &str, options: &Options, topic: &str) -> Result<DeadLetters, SourceError> {
        let config = KafkaSourceConfig {
            ignore_group: false,
            producer_header: "producer".to_owned(),
            accepted: Vec::new(),
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
            // Never committed to, so reading starts at the beginning every time.
            group: format!("{topic}-list"),
            starts: None,
            start_from: StartFrom::Earliest,
            options: options.clone(),
            until_end: true,
            bytes_in_flight: BYTES,
        };
        let source = KafkaSource::open(config)?;
        let start: Vec<_> =
            source.start.iter().zip(0..).map(|(&offset, partition)| (Partition(partition), offset)).collect();
        let config = consumer_config(&source.config, start.len() as u32)?;
        let mut reader = KafkaReader::new(&config, topic, &source.stop, &source.ends)?;
        start.iter().try_for_each(|&(partition, offset)| reader.assign(partition, offset, None))?;
        Ok(DeadLetters { topic: topic.to_owned(), reader, read: VecDeque::new() })
    }

    fn refill(&mut self) -> Result<(), SourceError> {
        let deadline = Instant::now() + READ_TIMEOUT;
        while self.read.is_empty() && !self.reader.ended() {
            let read = &mut self.read;
            let count = self.reader.records(Budget::records(RECORDS), &mut |partition, record| {
                read.push_back(DeadLetter::of(partition, record));
            })?;
            if Instant::now() > deadline {
                return Err(unavailable(
                    format!("read topic {}", self.topic),
                    format!("no record arrived within {READ_TIMEOUT:?}"),
                ));
            }
            if count == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

impl Iterator for DeadLetters {
    type Item = Result<DeadLetter, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.refill() {
            Ok(()) => self.read.pop_front().map(Ok),
            Err(error) => Some(Err(error)),
        }
    }
}
