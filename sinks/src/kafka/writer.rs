//! One transactional producer. It owns a transactional id until another producer initialises the id.
//!
//! ```text
//!   open ─ init_transactions ─▶ ( begin ─ send… ─ wait for every delivery ─ commit )*
//! ```
//!
//! Errors are classified by their consequence for the caller ([`Trouble`]). A producer that had an error or a slow
//! commit is not used for another transaction: librdkafka resends a lost `EndTxn`, and the request does not identify
//! its transaction. A late request for the previous transaction can therefore end the next one before all its records
//! are sent. A new producer with the same id has a higher producer epoch, and the broker rejects requests with a lower
//! one.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header as KafkaHeader, Message as _, OwnedHeaders};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};

use super::client::{Options, client_config, log_error, log_line, look_up};
use crate::Header;
use crate::Misconfigured;

/// The time after which the broker aborts a transaction whose producer does not continue it. Also the timeout of
/// deliveries and takeovers.
pub(super) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The total timeout of a commit with its retries. By then the broker has ended the transaction itself.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(20);
/// The timeout of one attempt to commit.
const COMMIT_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// The duration above which librdkafka may have resent the request of a commit. Also the timeout of waiting for
/// in-flight records before an abort.
const SLOW_COMMIT: Duration = Duration::from_secs(1);
/// The interval of polling for delivery reports. On average, it adds half of itself to the duration of a transaction.
const POLL_INTERVAL: Duration = Duration::from_micros(500);

/// Returns the configuration of a transactional producer: `defaults`, the user's `options`, and the settings that
/// transactions require.
///
/// # Errors
/// If an option must not be set, or librdkafka rejects it.
pub fn producer_config(
    brokers: &str,
    options: &Options,
    defaults: &[(&str, &str)],
) -> Result<ClientConfig, Misconfigured> {
    let timeout = TRANSACTION_TIMEOUT.as_millis().to_string();
    let owned = [
        ("transaction.timeout.ms", &*timeout),
        ("acks", "all"),
        ("enable.idempotence", "true"),
        // The partitioner of the Java client: every producer sends a key to the same partition.
        ("partitioner", "murmur2_random"),
    ];
    client_config(brokers, options, defaults, &owned)
}

/// The outcome of a transaction that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing of the transaction becomes visible. A retry may succeed.
    Failed(String),
    /// Nothing of the transaction becomes visible, and every retry fails: the broker rejects the record with this
    /// number.
    Refused(usize, String),
    /// The outcome is unknown.
    Indeterminate(String),
    /// Another producer has taken over the transactional id, which ended the transaction.
    Fenced(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Trouble::Failed(reason)
        | Trouble::Refused(_, reason)
        | Trouble::Indeterminate(reason)
        | Trouble::Fenced(reason)) = self;
        f.write_str(reason)
    }
}

/// One record to produce.
pub struct Outgoing<'a> {
    /// The number of the record in its transaction.
    pub number: usize,
    /// Its topic.
    pub topic: &'a str,
    /// The partition; `None` if the key determines it.
    pub partition: Option<i32>,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers, in order.
    pub headers: &'a [Header<'a>],
}

/// The events reported by the callbacks of a producer.
#[derive(Default)]
struct ProducerEvents {
    /// True after an error or a slow commit: a new producer must replace this one.
    needs_replacement: AtomicBool,
    /// The delivery error of the open transaction that is reported to the caller.
    failure: Mutex<Option<Trouble>>,
}

impl ClientContext for ProducerEvents {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.needs_replacement.store(true, Ordering::Relaxed);
        log_error(&error, reason);
    }
}

impl ProducerContext for ProducerEvents {
    /// The number of the record in its transaction.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Err((error, message)) = result {
            let key =
                message.key().map_or("none".into(), |key| String::from_utf8_lossy(&key[..key.len().min(64)]));
            let mut failure = self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let delivery_error = delivery_error(number, message.topic(), &key, error);
            // After a rejected record, the others of its transaction fail too. Therefore a rejection takes precedence.
            if failure.is_none() || matches!(delivery_error, Trouble::Refused(..)) {
                failure.replace(delivery_error);
            }
        }
    }
}

/// Returns the error of a record that was not delivered.
fn delivery_error(number: usize, topic: &str, key: &str, error: &KafkaError) -> Trouble {
    let reason = format!("topic {topic} rejects the message with key {key}: {error}");
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidRecord) => {
            Trouble::Refused(number, reason)
        }
        _ => Trouble::Failed(reason),
    }
}

/// A producer that has initialised its transactional id and thereby fenced the previous owner of the id.
pub struct Writer {
    producer: BaseProducer<ProducerEvents>,
}

impl Writer {
    /// Takes over a transactional id: aborts a transaction that the previous owner left open, or waits until its commit
    /// is complete. `topic` is one that exists, by which the writer connects sooner; looking up one that does not exist might
    /// create it.
    ///
    /// # Errors
    /// If the cluster does not respond, or does not permit it.
    pub fn open(config: &ClientConfig, id: &str, topic: Option<&str>) -> Result<Writer, KafkaError> {
        let mut config = config.clone();
        config.set("transactional.id", id);
        let producer: BaseProducer<ProducerEvents> = config.create_with_context(ProducerEvents::default())?;
        if let Some(topic) = topic {
            // The first request finds the brokers by the bootstrap servers, and the second connects to one of them.
            look_up(producer.client(), topic);
            look_up(producer.client(), topic);
        }
        producer.init_transactions(TRANSACTION_TIMEOUT)?;
        // Connecting may take several attempts. Errors before the first transaction do not affect any transaction.
        producer.poll(Duration::ZERO);
        producer.context().needs_replacement.store(false, Ordering::Relaxed);
        Ok(Writer { producer })
    }

    /// Returns true if another transaction may begin. Otherwise a new producer must first take over the id.
    pub fn is_usable(&self) -> bool {
        // Each poll handles one event, and an error may be queued behind log lines.
        (0..32).for_each(|_| self.producer.poll(Duration::ZERO));
        !self.context().needs_replacement.load(Ordering::Relaxed)
    }

    /// Commits all records that `produce` sends, in one transaction.
    ///
    /// # Errors
    /// If the transaction was not committed, or its outcome is unknown.
    pub fn transaction(&self, produce: impl FnOnce(&Writer) -> Result<(), Trouble>) -> Result<(), Trouble> {
        let started = Instant::now();
        self.producer.begin_transaction().map_err(|error| self.classify("begin a transaction", &error))?;
        let sent = produce(self).and_then(|()| self.wait_for_deliveries());
        let outcome = match sent {
            Ok(()) => self.commit(),
            Err(trouble) => Err(self.abort(trouble)),
        };
        outcome.map_err(|trouble| match trouble {
            // The broker also fences a producer whose transaction has timed out, without another producer.
            Trouble::Fenced(reason) if started.elapsed() >= TRANSACTION_TIMEOUT => {
                Trouble::Indeterminate(reason)
            }
            other => other,
        })
    }

    /// Adds a record to the open transaction, waiting while the producer's queue is full.
    ///
    /// # Errors
    /// If the producer rejects it.
    pub fn send(&self, outgoing: &Outgoing<'_>) -> Result<(), Trouble> {
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(outgoing.topic, outgoing.number);
        record.key = outgoing.key;
        record.payload = outgoing.value;
        record.partition = outgoing.partition;
        if !outgoing.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(outgoing.headers.len());
            record.headers = Some(outgoing.headers.iter().fold(headers, |headers, header| {
                headers.insert(KafkaHeader { key: header.name, value: Some(header.value) })
            }));
        }
        let deadline = Instant::now() + TRANSACTION_TIMEOUT;
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < deadline =>
                {
                    record = back;
                    self.wait();
                }
                Err((error, _)) => {
                    let key = outgoing.key.map_or("none".into(), String::from_utf8_lossy);
                    let delivery_error = delivery_error(outgoing.number, outgoing.topic, &key, &error);
                    return Err(match self.classify("produce", &error) {
                        Trouble::Failed(_) => delivery_error,
                        other => other,
                    });
                }
            }
        }
    }

    fn context(&self) -> &ProducerEvents {
        self.producer.context()
    }

    /// Handles pending delivery reports, then sleeps. Polling with this timeout would keep a core busy, because
    /// librdkafka rounds timeouts below one millisecond down to zero.
    fn wait(&self) {
        self.producer.poll(Duration::ZERO);
        std::thread::sleep(POLL_INTERVAL);
    }

    /// Waits until the broker has acknowledged all records. librdkafka itself would wait in steps of 100 ms.
    fn wait_for_deliveries(&self) -> Result<(), Trouble> {
        let deadline = Instant::now() + TRANSACTION_TIMEOUT;
        while self.producer.in_flight_count() > 0 {
            if Instant::now() > deadline {
                let count = self.producer.in_flight_count();
                return Err(Trouble::Failed(format!(
                    "{count} messages were not acknowledged within {TRANSACTION_TIMEOUT:?}: a partition has no leader, \
                     or fewer in-sync replicas than min.insync.replicas requires"
                )));
            }
            self.wait();
        }
        let failure = self.context().failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        match (failure, self.producer.client().fatal_error()) {
            (_, Some((code, reason))) if is_fencing(code) => Err(Trouble::Fenced(reason)),
            (_, Some((_, reason))) => Err(Trouble::Failed(reason)),
            (Some(failure), None) => Err(failure),
            (None, None) => Ok(()),
        }
    }

    fn commit(&self) -> Result<(), Trouble> {
        let started = Instant::now();
        let mut retried = false;
        let outcome = loop {
            let Err(error) = self.producer.commit_transaction(COMMIT_ATTEMPT_TIMEOUT) else { break Ok(()) };
            let trouble = self.classify("commit", &error);
            break match (&error, trouble) {
                (_, Trouble::Fenced(reason)) => Err(Trouble::Fenced(reason)),
                (KafkaError::Transaction(native), _)
                    if native.is_retriable() && started.elapsed() < COMMIT_TIMEOUT =>
                {
                    retried = true;
                    continue;
                }
                // Only the response to the first attempt proves that the broker has not committed. A later attempt may
                // fail because the first one succeeded.
                (KafkaError::Transaction(native), trouble) if native.txn_requires_abort() && !retried => {
                    Err(self.abort(trouble))
                }
                (_, trouble) => Err(Trouble::Indeterminate(trouble.to_string())),
            };
        };
        if started.elapsed() > SLOW_COMMIT {
            self.context().needs_replacement.store(true, Ordering::Relaxed);
        }
        outcome
    }

    /// Aborts the open transaction. Discards queued records first, because aborting waits for them.
    fn abort(&self, trouble: Trouble) -> Trouble {
        self.context().needs_replacement.store(true, Ordering::Relaxed);
        if matches!(trouble, Trouble::Fenced(_)) {
            return trouble;
        }
        self.producer.purge(PurgeConfig::default().queue());
        let deadline = Instant::now() + SLOW_COMMIT;
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            self.wait();
        }
        match self.producer.abort_transaction(TRANSACTION_TIMEOUT) {
            Ok(()) => trouble,
            Err(error) => match self.classify("abort", &error) {
                Trouble::Fenced(reason) => Trouble::Fenced(reason),
                // An open transaction is never committed: the next producer with this id, or the broker, aborts it.
                _ => {
                    tracing::warn!(%error, "cannot abort a transaction; it stays open until it times out");
                    trouble
                }
            },
        }
    }

    /// Classifies an error of librdkafka.
    fn classify(&self, action: &str, error: &KafkaError) -> Trouble {
        self.context().needs_replacement.store(true, Ordering::Relaxed);
        let fatal = self.producer.client().fatal_error();
        let code = fatal.as_ref().map(|(code, _)| *code).or(error.rdkafka_error_code());
        let reason = fatal.map_or_else(|| error.to_string(), |(_, reason)| reason);
        let reason = format!("cannot {action}: {reason}");
        if code.is_some_and(is_fencing) { Trouble::Fenced(reason) } else { Trouble::Failed(reason) }
    }
}

fn is_fencing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch
    )
}
