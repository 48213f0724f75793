//! One transactional producer: a transactional id, held until somebody else initialises it.
//!
//! ```text
//!   open ─ init_transactions ─▶ ( begin ─ send… ─ wait for every delivery ─ commit )*
//! ```
//!
//! Everything that went wrong is told by what it means for the caller ([`Trouble`]), and a producer to which
//! anything unusual happened is not used for another transaction: librdkafka repeats a lost `EndTxn` without
//! saying which transaction it was for, and so the late answer to the last one can end half of the next. A new
//! producer with the same id starts with a higher epoch, to which late requests do not apply.

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

use super::client::{Options, client_config, log_error, log_line};
use crate::Header;
use crate::Misconfigured;

/// How long the broker leaves a transaction open whose producer has gone silent; also how long deliveries and
/// takeovers are waited for.
pub(super) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the outcome of a commit is asked for again and again: by then the broker has decided by itself.
const COMMIT_PATIENCE: Duration = Duration::from_secs(20);
/// How long it is waited for at a time.
const COMMIT_STEP: Duration = Duration::from_secs(2);
/// A commit that took longer than this may have been repeated on the way.
const SUSPICIOUS: Duration = Duration::from_secs(1);
/// How long deliveries are waited for in one step; an acknowledged transaction waits half of it for nothing.
const STEP: Duration = Duration::from_micros(500);

/// The configuration of every transactional producer: `defaults`, the user's `options`, and what transactions need.
///
/// # Errors
/// If an option must not be set, or librdkafka does not take it.
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
        // As the Java client does: a key goes to the same partition whoever produces it.
        ("partitioner", "murmur2_random"),
    ];
    client_config(brokers, options, defaults, &owned)
}

/// What became of a transaction that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing of it will ever be visible.
    Failed(String),
    /// Nothing of it will ever be visible, however often it is tried: the record of this number in it is not taken.
    Refused(usize, String),
    /// Nobody knows.
    Indeterminate(String),
    /// Another producer holds the id now; whoever that is finds out what became of it.
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
    /// Which of its transaction it is.
    pub number: usize,
    /// Its topic.
    pub topic: &'a str,
    /// None leaves it to the key.
    pub partition: Option<i32>,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; none is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers, in order.
    pub headers: &'a [Header<'a>],
}

/// What a producer's callbacks have seen.
#[derive(Default)]
struct Watch {
    disturbed: AtomicBool,
    failure: Mutex<Option<Trouble>>,
}

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.disturbed.store(true, Ordering::Relaxed);
        log_error(&error, reason);
    }
}

impl ProducerContext for Watch {
    /// The record's number in its transaction.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Err((error, message)) = result {
            let key =
                message.key().map_or("none".into(), |key| String::from_utf8_lossy(&key[..key.len().min(64)]));
            let mut failure = self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let undelivered = undelivered(number, message.topic(), &key, error);
            // What is refused makes the rest of its transaction fail, too: it is the one to be named.
            if failure.is_none() || matches!(undelivered, Trouble::Refused(..)) {
                failure.replace(undelivered);
            }
        }
    }
}

/// A record was not taken, and perhaps never will be.
fn undelivered(number: usize, topic: &str, key: &str, error: &KafkaError) -> Trouble {
    let reason = format!("topic {topic} does not take the message with key {key}: {error}");
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidRecord) => {
            Trouble::Refused(number, reason)
        }
        _ => Trouble::Failed(reason),
    }
}

/// A producer that has initialised its transactional id, and so fenced whoever held it before.
pub struct Writer {
    producer: BaseProducer<Watch>,
}

impl Writer {
    /// Takes over a transactional id: aborts what an earlier holder left open, waits until what it was
    /// committing is committed.
    ///
    /// # Errors
    /// If the cluster does not answer, or does not let us.
    pub fn open(config: &ClientConfig, id: &str) -> Result<Writer, KafkaError> {
        let mut config = config.clone();
        config.set("transactional.id", id);
        let producer: BaseProducer<Watch> = config.create_with_context(Watch::default())?;
        producer.init_transactions(TRANSACTION_TIMEOUT)?;
        // Connecting may take several attempts: what happened before the first transaction disturbs none.
        producer.poll(Duration::ZERO);
        producer.context().disturbed.store(false, Ordering::Relaxed);
        Ok(Writer { producer })
    }

    /// Whether another transaction may be begun; else a new producer must take over the id first.
    pub fn usable(&self) -> bool {
        // Each takes one event: an error may wait behind log lines.
        (0..32).for_each(|_| self.producer.poll(Duration::ZERO));
        !self.context().disturbed.load(Ordering::Relaxed)
    }

    /// Shows everything that `produce` sends, at once, or nothing of it.
    ///
    /// # Errors
    /// If it could not be shown, or nobody knows.
    pub fn transaction(&self, produce: impl FnOnce(&Writer) -> Result<(), Trouble>) -> Result<(), Trouble> {
        let begun = Instant::now();
        self.producer.begin_transaction().map_err(|error| self.trouble("begin a transaction", &error))?;
        let sent = produce(self).and_then(|()| self.delivered());
        let outcome = match sent {
            Ok(()) => self.commit(),
            Err(trouble) => Err(self.abort(trouble)),
        };
        outcome.map_err(|trouble| match trouble {
            // The broker also fences a producer whose transaction has timed out: no other producer need be there.
            Trouble::Fenced(reason) if begun.elapsed() >= TRANSACTION_TIMEOUT => {
                Trouble::Indeterminate(reason)
            }
            other => other,
        })
    }

    /// Adds a record to the open transaction, waiting while the producer's queue is full.
    ///
    /// # Errors
    /// If the producer does not take it.
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
                    let undelivered = undelivered(outgoing.number, outgoing.topic, &key, &error);
                    return Err(match self.trouble("produce", &error) {
                        Trouble::Failed(_) => undelivered,
                        other => other,
                    });
                }
            }
        }
    }

    fn context(&self) -> &Watch {
        self.producer.context()
    }

    /// Takes what has been delivered meanwhile, then sleeps. Polling for as long would keep a core busy: what is left of
    /// a millisecond is rounded down to none.
    fn wait(&self) {
        self.producer.poll(Duration::ZERO);
        std::thread::sleep(STEP);
    }

    /// Waits until the broker has acknowledged everything sent. librdkafka itself would wait in steps of 100 ms.
    fn delivered(&self) -> Result<(), Trouble> {
        let deadline = Instant::now() + TRANSACTION_TIMEOUT;
        while self.producer.in_flight_count() > 0 {
            if Instant::now() > deadline {
                let count = self.producer.in_flight_count();
                return Err(Trouble::Failed(format!(
                    "{count} messages are not acknowledged within {TRANSACTION_TIMEOUT:?}: a partition has no leader, or \
                     fewer replicas in sync than min.insync.replicas demands"
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
        let begun = Instant::now();
        let mut retried = false;
        let outcome = loop {
            let Err(error) = self.producer.commit_transaction(COMMIT_STEP) else { break Ok(()) };
            let trouble = self.trouble("commit", &error);
            break match (&error, trouble) {
                (_, Trouble::Fenced(reason)) => Err(Trouble::Fenced(reason)),
                (KafkaError::Transaction(native), _)
                    if native.is_retriable() && begun.elapsed() < COMMIT_PATIENCE =>
                {
                    retried = true;
                    continue;
                }
                // Only a first answer proves that the broker has not committed: it said so itself.
                (KafkaError::Transaction(native), trouble) if native.txn_requires_abort() && !retried => {
                    Err(self.abort(trouble))
                }
                (_, trouble) => Err(Trouble::Indeterminate(trouble.to_string())),
            };
        };
        if begun.elapsed() > SUSPICIOUS {
            self.context().disturbed.store(true, Ordering::Relaxed);
        }
        outcome
    }

    /// Gives the open transaction up. What is still queued is dropped first, since aborting waits for it.
    fn abort(&self, trouble: Trouble) -> Trouble {
        self.context().disturbed.store(true, Ordering::Relaxed);
        if matches!(trouble, Trouble::Fenced(_)) {
            return trouble;
        }
        self.producer.purge(PurgeConfig::default().queue());
        let deadline = Instant::now() + SUSPICIOUS;
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            self.wait();
        }
        match self.producer.abort_transaction(TRANSACTION_TIMEOUT) {
            Ok(()) => trouble,
            Err(error) => match self.trouble("abort", &error) {
                Trouble::Fenced(reason) => Trouble::Fenced(reason),
                // Left open it is never committed: the next producer with this id, or the broker, aborts it.
                _ => {
                    tracing::warn!(%error, "a transaction could not be aborted and stays open until it times out");
                    trouble
                }
            },
        }
    }

    fn trouble(&self, action: &str, error: &KafkaError) -> Trouble {
        self.context().disturbed.store(true, Ordering::Relaxed);
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
