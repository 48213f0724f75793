//! Dead letters: reading them back, and sending them to the source topic once more.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use headwater_dataflows::{Offset, Partition, Position};
use headwater_sinks::kafka::client::Options;
use rdkafka::Message;
use rdkafka::message::BorrowedMessage;

use super::headers::headers;
use super::produce::{ProduceError, Produced, Producer};
use super::reader::KafkaReader;
use super::{KafkaSource, KafkaSourceConfig, StartFrom, consumer_config, unavailable};
use crate::source::SourceError;

/// The names of a dead letter's headers.
pub mod header {
    pub use super::super::reader::RETRIES;

    /// Why the record was refused: `malformed`, `invalid`, `late`, `future` or `duplicate`.
    pub const REASON: &str = "reason";
    /// The same for people.
    pub const MESSAGE: &str = "message";
    /// The field at fault.
    pub const FIELD: &str = "field";
    /// The topic that the record was read from.
    pub const SOURCE_TOPIC: &str = "source-topic";
    /// Its partition there, in decimal.
    pub const SOURCE_PARTITION: &str = "source-partition";
    /// Its offset there, in decimal.
    pub const SOURCE_OFFSET: &str = "source-offset";
    /// Its Kafka timestamp, in milliseconds since 1970, in decimal.
    pub const SOURCE_TIMESTAMP: &str = "source-timestamp";
    /// The length of the original value in bytes, if the dead letter holds only its beginning, or lacks its key.
    pub const ORIGINAL_LENGTH: &str = "original-length";
    /// The SHA-256 of the original value then, in hexadecimal digits.
    pub const ORIGINAL_SHA256: &str = "original-sha256";
}

/// How often a record may be sent to the source topic again.
pub const MOST_RETRIES: u32 = 3;
/// How long a dead-letter topic may deliver nothing before its end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of the topic is held in memory at a time, in bytes and in records.
const BYTES: usize = 16 << 20;
const RECORDS: usize = 500;

/// A record that was refused, with the original bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where it is in the dead-letter topic.
    pub position: Position,
    /// When it was written there, in milliseconds since 1970.
    pub timestamp: i64,
    /// The original key.
    pub key: Option<Vec<u8>>,
    /// The original value.
    pub value: Option<Vec<u8>>,
    /// All headers, in order; their names are in [`header`].
    pub headers: Vec<(String, Vec<u8>)>,
}

impl DeadLetter {
    fn of(partition: Partition, message: &BorrowedMessage<'_>) -> DeadLetter {
        let owned = |(name, value): (&[u8], Option<&[u8]>)| {
            (String::from_utf8_lossy(name).into_owned(), value.unwrap_or_default().to_vec())
        };
        DeadLetter {
            position: Position { partition, offset: Offset(message.offset()) },
            timestamp: message.timestamp().to_millis().unwrap_or(-1),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers(message).map(owned).collect(),
        }
    }

    /// The text of a header; none if it is missing or not UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }

    /// Why it was refused; empty if nothing says so.
    pub fn reason(&self) -> &str {
        self.header(header::REASON).unwrap_or_default()
    }

    /// How often it had come back before.
    pub fn retries(&self) -> u32 {
        self.header(header::RETRIES).and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// All dead letters that a topic has at this moment, partition by partition in order.
pub struct DeadLetters {
    topic: String,
    reader: KafkaReader,
    read: VecDeque<DeadLetter>,
}

impl DeadLetters {
    /// Reads a dead-letter topic from its beginning to its present end.
    pub fn read_all(brokers: &str, options: &Options, topic: &str) -> Result<DeadLetters, SourceError> {
        let config = KafkaSourceConfig {
            ignore_group: false,
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
        let reader = KafkaReader::new(&config, topic, &start, &source.stop, &source.ends)?;
        Ok(DeadLetters { topic: topic.to_owned(), reader, read: VecDeque::new() })
    }

    fn refill(&mut self) -> Result<(), SourceError> {
        let deadline = Instant::now() + PATIENCE;
        while self.read.is_empty() && !self.reader.ended() {
            let read = &mut self.read;
            let count = self.reader.records(RECORDS, &mut |partition, message| {
                read.push_back(DeadLetter::of(partition, message));
            })?;
            if Instant::now() > deadline {
                return Err(unavailable(
                    format!("read topic {}", self.topic),
                    format!("nothing came for {PATIENCE:?}"),
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

/// What became of the dead letters that were to be sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retried {
    /// Sent to the source topic and acknowledged.
    pub sent: u64,
    /// Left where they are since they would be late again.
    pub late: u64,
    /// Left where they are since they have come back [`MOST_RETRIES`] times.
    pub exhausted: u64,
    /// Left where they are since only their beginning was kept.
    pub truncated: u64,
}

/// Sends the original bytes of dead letters to the source topic, each with its retry count raised by one. Late
/// ones only with `include_late`: they will be late again. Sending the same letters twice sends the records twice.
pub fn retry(
    brokers: &str,
    options: &Options,
    topic: &str,
    letters: impl IntoIterator<Item = DeadLetter>,
    include_late: bool,
) -> Result<Retried, ProduceError> {
    let mut retried = Retried::default();
    let again = letters.into_iter().filter_map(|letter| {
        let left = if letter.reason() == "late" && !include_late {
            &mut retried.late
        } else if letter.retries() >= MOST_RETRIES {
            &mut retried.exhausted
        } else if letter.header(header::ORIGINAL_LENGTH).is_some() {
            &mut retried.truncated
        } else {
            let retries = (letter.retries() + 1).to_string().into_bytes();
            let headers = vec![(header::RETRIES.to_owned(), retries)];
            return Some(Produced { partition: None, key: letter.key, value: letter.value, headers });
        };
        *left += 1;
        None
    });
    let producer = Producer::connect(brokers, options, topic)?;
    let report = producer.run(again, None, &AtomicBool::new(false), &mut |_| {})?;
    retried.sent = report.acknowledged;
    Ok(retried)
}
