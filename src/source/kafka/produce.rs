//! Producing records at a given rate, for `headwater produce`.
//!
//! The schedule is open-loop: record n is due n / rate seconds after the beginning, whatever happened to the records
//! before it. Latencies are measured from the time at which a record was due, so that a stall is visible instead of
//! slowing the schedule down. That time is also the record's Kafka timestamp.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use headwater_sinks::Misconfigured;
use headwater_sinks::kafka::client::{Options, client_config, creation_error, log_error, log_line};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use thiserror::Error;

use super::kafka_partition;

/// The maximum time to wait for acknowledgements at the end.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval between progress reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// The interval at which deliveries are polled, and the resolution of the schedule.
const STEP: Duration = Duration::from_millis(1);

/// A record to produce.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Produced {
    /// The partition; None to choose it by the hash of the key, as Java clients do, or at random without a key.
    pub partition: Option<u32>,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value; None for a tombstone.
    pub value: Option<Vec<u8>>,
    /// The headers, in order.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// The progress of producing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Records passed to the client.
    pub sent: u64,
    /// Records that the broker has acknowledged.
    pub acknowledged: u64,
    /// The delay of the last record: the time from when it was due until it was sent.
    pub behind: Duration,
    /// The longest time from when a record was due until its acknowledgement.
    pub slowest: Duration,
}

/// An error of producing.
#[derive(Debug, Error)]
pub enum ProduceError {
    /// An option of the client is not allowed.
    #[error("cannot connect to Kafka")]
    Option(#[from] Misconfigured),
    /// The cluster rejected a record, or could not be reached.
    #[error("cannot produce to topic {topic}: {reason}")]
    Failed {
        /// The topic.
        topic: String,
        /// The error of the cluster or the client.
        reason: String,
    },
}

/// An idempotent producer of one topic.
pub struct Producer {
    topic: String,
    producer: BaseProducer<Deliveries>,
    sent: u64,
}

/// The delivery results. The opaque value of each record is the time at which it was due, in microseconds.
struct Deliveries {
    begun: Instant,
    acknowledged: AtomicU64,
    slowest: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, due: usize) {
        match result {
            Ok(_) => {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
                let lag = micros(self.begun.elapsed()).saturating_sub(due as u64);
                self.slowest.fetch_max(lag, Ordering::Relaxed);
            }
            Err((error, _)) => {
                let mut failure = self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                failure.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

impl Producer {
    /// Creates a producer. It connects when it sends the first record.
    pub fn connect(brokers: &str, options: &Options, topic: &str) -> Result<Producer, ProduceError> {
        let defaults = [("linger.ms", "5"), ("compression.type", "lz4")];
        let owned = [("acks", "all"), ("enable.idempotence", "true"), ("partitioner", "murmur2_random")];
        let config = client_config(brokers, options, &defaults, &owned)?;
        let deliveries = Deliveries {
            begun: Instant::now(),
            acknowledged: AtomicU64::new(0),
            slowest: AtomicU64::new(0),
            failure: Mutex::new(None),
        };
        let producer = config
            .create_with_context(deliveries)
            .map_err(|error: KafkaError| creation_error(&config, error))?;
        Ok(Producer { topic: topic.to_owned(), producer, sent: 0 })
    }

    /// Produces records until `records` ends or `stop` is set: `rate` per second or, without a rate, as fast as
    /// possible. Calls `progress` about once a second. Returns when every sent record has been acknowledged.
    pub fn run(
        mut self,
        records: impl IntoIterator<Item = Produced>,
        rate: Option<f64>,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&Report),
    ) -> Result<Report, ProduceError> {
        let begun = self.producer.context().begun.elapsed();
        let begun_wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut behind = Duration::ZERO;
        let mut reported = Instant::now();
        for record in records {
            let due = match rate {
                Some(rate) => {
                    let after = Duration::try_from_secs_f64(self.sent as f64 / rate).unwrap_or(Duration::MAX);
                    begun.saturating_add(after)
                }
                None => self.producer.context().begun.elapsed(),
            };
            while !stop.load(Ordering::Relaxed) && self.producer.context().begun.elapsed() < due {
                self.wait();
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let timestamp =
                rate.and_then(|_| i64::try_from(begun_wall.saturating_add(due - begun).as_millis()).ok());
            self.send(&record, due, timestamp)?;
            behind = self.producer.context().begun.elapsed().saturating_sub(due);
            if self.sent.is_multiple_of(64) {
                self.producer.poll(Duration::ZERO);
            }
            if reported.elapsed() >= REPORT_INTERVAL {
                self.check()?;
                progress(&self.report(behind));
                reported = Instant::now();
            }
        }
        self.finish(behind)
    }

    /// Sends one record; blocks while the client's queue is full. Without a `timestamp`, the client sets the current
    /// time.
    fn send(
        &mut self,
        produced: &Produced,
        due: Duration,
        timestamp: Option<i64>,
    ) -> Result<(), ProduceError> {
        let due = usize::try_from(micros(due)).unwrap_or(usize::MAX);
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&self.topic, due);
        record.partition = produced.partition.map(kafka_partition);
        record.key = produced.key.as_deref();
        record.payload = produced.value.as_deref();
        record.timestamp = timestamp;
        if !produced.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(produced.headers.len());
            record.headers = Some(produced.headers.iter().fold(headers, |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value.as_slice()) })
            }));
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    self.wait();
                    self.check()?;
                }
                Err((error, _)) => return Err(self.failed(error.to_string())),
            }
        }
        self.sent += 1;
        Ok(())
    }

    fn finish(self, behind: Duration) -> Result<Report, ProduceError> {
        let deadline = Instant::now() + ACK_TIMEOUT;
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            self.wait();
        }
        self.check()?;
        let report = self.report(behind);
        if report.acknowledged < report.sent {
            let missing = report.sent - report.acknowledged;
            return Err(
                self.failed(format!("{missing} records were not acknowledged within {ACK_TIMEOUT:?}"))
            );
        }
        Ok(report)
    }

    /// Processes acknowledgements, then sleeps: polling with a timeout would keep a core busy.
    fn wait(&self) {
        self.producer.poll(Duration::ZERO);
        std::thread::sleep(STEP);
    }

    fn report(&self, behind: Duration) -> Report {
        let Deliveries { acknowledged, slowest, .. } = &**self.producer.context();
        Report {
            sent: self.sent,
            acknowledged: acknowledged.load(Ordering::Relaxed),
            behind,
            slowest: Duration::from_micros(slowest.load(Ordering::Relaxed)),
        }
    }

    fn check(&self) -> Result<(), ProduceError> {
        let failure = &self.producer.context().failure;
        match failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
            Some(reason) => Err(self.failed(reason)),
            None => Ok(()),
        }
    }

    fn failed(&self, reason: String) -> ProduceError {
        ProduceError::Failed { topic: self.topic.clone(), reason }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
