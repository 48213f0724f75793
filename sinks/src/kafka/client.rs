//! Configuration and logging of Kafka clients, and waiting for the admin client.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

pub use super::options::{OptionRefused, Options};
use super::options::{check_option, first_name};
use crate::Misconfigured;

/// The timeout of [`look_up`].
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns the configuration of a client: `defaults`, overridden by the user's `options`, and `owned`, which options
/// must not override.
///
/// # Errors
/// If an option is one of `owned`, or does not pass [`check_option`].
pub fn client_config(
    brokers: &str,
    options: &Options,
    defaults: &[(&str, &str)],
    owned: &[(&str, &str)],
) -> Result<ClientConfig, Misconfigured> {
    let mut config = ClientConfig::new();
    for &(key, value) in defaults {
        config.set(key, value);
    }
    for (key, value) in options {
        check_option(key, value)?;
        let name = first_name(key);
        if owned.iter().any(|&(owned, _)| owned == name) {
            return Err(OptionRefused::owned(key).into());
        }
        config.set(name, value.expose());
    }
    let is_set_to = |key, value| config.get(key).is_some_and(|set| set.eq_ignore_ascii_case(value));
    if is_set_to("sasl.mechanisms", "OAUTHBEARER") && !is_set_to("sasl.oauthbearer.method", "oidc") {
        let reason = "`sasl.mechanisms = \"OAUTHBEARER\"` needs `sasl.oauthbearer.method = \"oidc\"`, with a client \
                      and a token endpoint: no other method can get a token";
        return Err(Misconfigured(reason.to_owned()));
    }
    for &(key, value) in owned {
        config.set(key, value);
    }
    config.set("bootstrap.servers", brokers);
    Ok(config)
}

/// Returns the configuration of a consumer that reads a topic from its beginning to its end, outside of any consumer
/// group.
///
/// # Errors
/// Those of [`client_config`].
pub fn reader_config(
    brokers: &str,
    options: &Options,
    topic: &str,
    defaults: &[(&str, &str)],
) -> Result<ClientConfig, Misconfigured> {
    let owned = [
        // Assigning partitions requires a group id. No offsets are committed to this group.
        ("group.id", topic),
        ("enable.auto.commit", "false"),
        ("isolation.level", "read_committed"),
        ("auto.offset.reset", "earliest"),
        ("enable.partition.eof", "true"),
    ];
    client_config(brokers, options, defaults, &owned)
}

/// Converts the error of creating a client. librdkafka rejects incompatible options and unreadable files only when the
/// client is created.
pub fn creation_error(config: &ClientConfig, error: KafkaError) -> Misconfigured {
    let reason = match &error {
        KafkaError::ClientCreation(reason) => reason.clone(),
        // The text of this error contains the value.
        KafkaError::ClientConfig(_, _, key, _) => format!("`{key}` cannot be set"),
        other => other.to_string(),
    };
    // The message of librdkafka contains the option but not the file.
    let file = reason.split_whitespace().next().filter(|key| key.ends_with(".location"));
    let file = file.and_then(|key| config.get(key)).map(|file| format!(" ({file})")).unwrap_or_default();
    Misconfigured(format!("cannot create the Kafka client with these options: {reason}{file}"))
}

/// A client context that only forwards log lines to `tracing`.
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

/// Forwards a log line of librdkafka to `tracing`, with the same level.
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

/// Logs an error event. Most of them report lost connections, which librdkafka reopens itself.
pub fn log_error(error: &KafkaError, reason: &str) {
    tracing::debug!(target: "librdkafka", %error, "{reason}");
}

/// Asks for the metadata of a topic, which the client keeps: otherwise it would look for them only when it needs them, and
/// again only after half a second. Without an answer, the client goes on by itself.
pub(crate) fn look_up<C: ClientContext>(client: &Client<C>, topic: &str) {
    if let Err(error) = client.fetch_metadata(Some(topic), METADATA_TIMEOUT) {
        tracing::debug!(%error, topic, "cannot look up a topic yet");
    }
}

/// Drops a client on a thread of its own. The threads of a client look for its end every 0.1 s, and nothing needs to wait
/// for that.
pub(crate) fn drop_aside(client: impl Send + 'static) {
    // Without a thread, the client is dropped here.
    _ = std::thread::Builder::new().name("drop-client".to_owned()).spawn(move || drop(client));
}

/// Blocks until a future of the admin client completes. The client completes it on its own thread, so no async runtime
/// is needed.
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
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.into())).collect()
    }

    #[test]
    fn options_override_defaults_but_not_owned_settings() {
        let config = client_config(
            "b:1",
            &options(&[("queue.buffering.max.ms", "5")]),
            &[("linger.ms", "0")],
            &[("acks", "all")],
        )
        .expect("valid options");
        assert_eq!(config.get("linger.ms"), Some("5"));
        assert_eq!(
            config.get("queue.buffering.max.ms"),
            None,
            "librdkafka applies two names of a setting in any order"
        );
        assert_eq!(config.get("acks"), Some("all"));
        assert_eq!(config.get("bootstrap.servers"), Some("b:1"));
    }

    #[test]
    fn owned_options_are_refused_by_name() {
        for key in ["enable.auto.commit", "metadata.broker.list", "isolation.level", "client.id"] {
            let refused = client_config("b:1", &options(&[(key, "x")]), &[], &[("client.id", "1")]);
            let expected = format!("the option `{key}` cannot be set: Headwater sets it itself");
            assert_eq!(refused.expect_err("it is owned"), Misconfigured(expected));
        }
    }

    #[test]
    fn oauth_needs_a_method_that_gets_a_token() {
        let oauth = client_config("b:1", &options(&[("sasl.mechanism", "OAUTHBEARER")]), &[], &[]);
        assert!(oauth.expect_err("no token").0.contains("needs `sasl.oauthbearer.method"));
    }
}
