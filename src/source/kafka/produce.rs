//! Producing records at a set rate: what `headwater produce` and the retry of dead letters do.
//!
//! The pace is open-loop: record n is due n / rate after the beginning whatever became of those before it, and
//! lags are measured from when a record was due, so that a stall shows instead of slowing the clock. A record's Kafka
//! timestamp is that time, too.

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

use super::kafka;

/// How long records may stay unacknowledged at the end.
const LAST_ACKNOWLEDGEMENT: Duration = Duration::from_secs(30);
/// How often progress is reported.
const REPORT: Duration = Duration::from_secs(1);
/// How long deliveries are waited for at a time, and the finest step of the pace.
const STEP: Duration = Duration::from_millis(1);

/// A record to be produced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Produced {
    /// Its partition; none leaves it to the key, as Java clients choose it, or to chance without a key.
    pub partition: Option<u32>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; none is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers, in order.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// How far producing has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Records handed to the producer.
    pub sent: u64,
    /// Records that the broker has acknowledged.
    pub acknowledged: u64,
    /// By how much the last record was sent later than it was due.
    pub behind: Duration,
    /// The longest time from when a record was due to its acknowledgement.
    pub slowest: Duration,
}

/// Why records could not be produced.
#[derive(Debug, Error)]
pub enum ProduceError {
    /// The client's options cannot be used.
    #[error("cannot connect to Kafka")]
    Option(#[from] Misconfigured),
    /// The cluster did not take a record, or could not be reached.
    #[error("cannot produce to topic {topic}: {reason}")]
    Failed {
        /// The topic.
        topic: String,
        /// What the cluster or the client said.
        reason: String,
    },
}

/// An idempotent producer of one topic.
pub struct Producer {
    topic: String,
    producer: BaseProducer<Deliveries>,
    sent: u64,
}

/// What became of the records sent. With each goes the microsecond at which it was due.
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
    /// Prepares to produce; the first record connects.
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

    /// Produces until `records` end or `stop` is set, `rate` a second or, without one, as fast as they are taken.
    /// Says about once a second how far it is. Returns when every record sent has been acknowledged.
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
            if reported.elapsed() >= REPORT {
                self.check()?;
                progress(&self.report(behind));
                reported = Instant::now();
            }
        }
        self.finish(behind)
    }

    /// Sends one record, waiting while the producer's queue is full. Without a `timestamp` it is that of sending.
    fn send(
        &mut self,
        produced: &Produced,
        due: Duration,
        timestamp: Option<i64>,
    ) -> Result<(), ProduceError> {
        let due = usize::try_from(micros(due)).unwrap_or(usize::MAX);
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&self.topic, due);
        record.partition = produced.partition.map(kafka);
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
        let deadline = Instant::now() + LAST_ACKNOWLEDGEMENT;
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            self.wait();
        }
        self.check()?;
        let report = self.report(behind);
        if report.acknowledged < report.sent {
            let missing = report.sent - report.acknowledged;
            return Err(self
                .failed(format!("{missing} records are not acknowledged within {LAST_ACKNOWLEDGEMENT:?}")));
        }
        Ok(report)
    }

    /// Takes what has been acknowledged meanwhile, then sleeps: polling for as long would keep a core busy.
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
