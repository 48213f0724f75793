//! Clients of Kafka: which settings are whose, where their log lines go, and how to wait for the admin client.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use thiserror::Error;

/// Options for librdkafka, as the user wrote them. They may hold passwords: never print their values.
pub type Options = BTreeMap<String, String>;

/// A user's option that would break a promise.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the option `{key}` cannot be set: Headwater sets it itself")]
pub struct OptionRefused {
    /// Its name.
    pub key: String,
}

/// librdkafka's second names of settings that are owned or have a default here, and the first ones.
const ALIASES: &[(&str, &str)] = &[
    ("metadata.broker.list", "bootstrap.servers"),
    ("auto.commit.enable", "enable.auto.commit"),
    ("request.required.acks", "acks"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("compression.codec", "compression.type"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
];

/// Settings that no user may change: where to connect, and whatever decides which records are seen, in which
/// order, and as whose.
const OWNED: &[&str] = &[
    "bootstrap.servers",
    "group.id",
    "enable.auto.commit",
    "auto.commit.interval.ms",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "isolation.level",
    "enable.partition.eof",
    "statistics.interval.ms",
    "transactional.id",
    "transaction.timeout.ms",
    "enable.idempotence",
    "enable.gapless.guarantee",
    "acks",
    "partitioner",
    "queuing.strategy",
    "plugin.library.paths",
];

/// The configuration of a client: `defaults`, then the user's `options`, then `owned`.
///
/// Refuses options that Headwater must set itself: those in `owned` and a fixed list, whatever the client.
pub fn client_config(
    brokers: &str,
    options: &Options,
    defaults: &[(&str, &str)],
    owned: &[(&str, &str)],
) -> Result<ClientConfig, OptionRefused> {
    let mut config = ClientConfig::new();
    for &(key, value) in defaults {
        config.set(key, value);
    }
    for (key, value) in options {
        let name = ALIASES.iter().find(|(alias, _)| alias == key).map_or(&**key, |&(_, name)| name);
        if OWNED.contains(&name) || owned.iter().any(|&(ours, _)| ours == name) {
            return Err(OptionRefused { key: key.clone() });
        }
        config.set(name, value);
    }
    for &(key, value) in owned {
        config.set(key, value);
    }
    config.set("bootstrap.servers", brokers);
    Ok(config)
}

/// A client's context that sends its log lines to `tracing` and does nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

/// Sends a log line of librdkafka to `tracing`, with the same level.
pub fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => tracing::error!(target: "librdkafka", facility, "{message}"),
        RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::info!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{message}"),
    }
}

/// Logs an error event. Most are connections that librdkafka opens again by itself.
pub fn log_error(error: &KafkaError, reason: &str) {
    tracing::debug!(target: "librdkafka", %error, "{reason}");
}

/// Waits for the admin client, whose answers come from a thread of its own and need no runtime.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Options {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn an_option_overrides_a_default_and_never_what_is_owned() {
        let config = client_config(
            "b:1",
            &options(&[("queue.buffering.max.ms", "5")]),
            &[("linger.ms", "0")],
            &[("acks", "all")],
        )
        .expect("nothing is refused");
        assert_eq!(config.get("linger.ms"), Some("5"));
        assert_eq!(
            config.get("queue.buffering.max.ms"),
            None,
            "librdkafka takes two names in no certain order"
        );
        assert_eq!(config.get("acks"), Some("all"));
        assert_eq!(config.get("bootstrap.servers"), Some("b:1"));
    }

    #[test]
    fn an_option_that_breaks_a_promise_is_refused_by_name() {
        for key in ["enable.auto.commit", "metadata.broker.list", "isolation.level", "mine"] {
            let refused = client_config("b:1", &options(&[(key, "x")]), &[], &[("mine", "1")]);
            assert_eq!(refused.expect_err("it is owned"), OptionRefused { key: key.to_owned() });
        }
    }
}
