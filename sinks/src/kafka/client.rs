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
use rdkafka::types::RDKafkaConfRes;

use crate::Misconfigured;

/// Options for librdkafka, as the user wrote them. They may hold passwords: never print their values.
pub type Options = BTreeMap<String, String>;

/// librdkafka's second names of settings that are owned or have a default here, and the first ones.
const ALIASES: &[(&str, &str)] = &[
    ("metadata.broker.list", "bootstrap.servers"),
    ("auto.commit.enable", "enable.auto.commit"),
    ("request.required.acks", "acks"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("compression.codec", "compression.type"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("sasl.mechanism", "sasl.mechanisms"),
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

/// Options whose values may be secrets, by what their names contain: what librdkafka says of them is not repeated.
const SECRET: [&str; 7] = ["password", "secret", "token", "pem", "key", "config", "assertion"];

/// Parts of librdkafka that a build may lack: its own name of each, and the cargo feature that adds it.
struct Part {
    builtin: &'static str,
    what: &'static str,
    feature: &'static str,
}

const TLS: Part = Part { builtin: "ssl", what: "TLS", feature: "tls" };
const SCRAM: Part = Part { builtin: "sasl_scram", what: "SASL/SCRAM", feature: "tls" };
const OIDC: Part = Part { builtin: "oidc", what: "OAuth with OpenID Connect", feature: "oidc" };
const GSSAPI: Part = Part { builtin: "sasl_gssapi", what: "SASL/GSSAPI (Kerberos)", feature: "gssapi" };

/// The part of librdkafka that an option needs, if it may be missing.
fn needed(name: &str, value: &str) -> Option<Part> {
    let value = value.to_ascii_uppercase();
    match name {
        "security.protocol" if value.ends_with("SSL") => Some(TLS),
        "sasl.mechanisms" if value.starts_with("SCRAM-") => Some(SCRAM),
        "sasl.mechanisms" if value == "GSSAPI" => Some(GSSAPI),
        "sasl.oauthbearer.method" if value == "OIDC" => Some(OIDC),
        name if name.starts_with("sasl.kerberos.") => Some(GSSAPI),
        name if name.starts_with("ssl.") => Some(TLS),
        _ => None,
    }
}

/// Whether librdkafka was built with a part.
fn is_built(part: &Part) -> bool {
    let native = ClientConfig::new().create_native_config();
    let features = native.and_then(|native| native.get("builtin.features")).unwrap_or_default();
    features.split(',').any(|feature| feature.trim() == part.builtin)
}

/// Checks an option and returns librdkafka's first name of it.
///
/// # Errors
/// If Headwater sets it itself, or librdkafka does not know it, does not take its value, or was built without what it
/// needs.
pub fn check_option<'a>(key: &'a str, value: &str) -> Result<&'a str, Misconfigured> {
    let wrong = |reason: String| Err(Misconfigured(reason));
    let name = ALIASES.iter().find(|(alias, _)| *alias == key).map_or(key, |&(_, name)| name);
    if OWNED.contains(&name) {
        return wrong(format!("the option `{key}` cannot be set: Headwater sets it itself"));
    }
    if let Some(Part { what, feature, .. }) = needed(name, value).filter(|part| !is_built(part)) {
        return wrong(format!(
            "the option `{key}` needs {what}, and this program was built without it: build it with \
             `cargo build --release --features {feature}`"
        ));
    }
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => Ok(name),
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            wrong(format!("the Kafka client (librdkafka) has no option `{key}`"))
        }
        Err(KafkaError::ClientConfig(_, reason, ..)) if !SECRET.iter().any(|word| name.contains(word)) => {
            wrong(format!("the Kafka client does not take the value of the option `{key}`: {reason}"))
        }
        Err(_) => wrong(format!("the Kafka client does not take the value of the option `{key}`")),
    }
}

/// The configuration of a client: `defaults`, then the user's `options`, then `owned`.
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
        let name = check_option(key, value)?;
        if owned.iter().any(|&(ours, _)| ours == name) {
            return Err(Misconfigured(format!("the option `{key}` cannot be set: Headwater sets it itself")));
        }
        config.set(name, value);
    }
    let is = |key, value| config.get(key).is_some_and(|set| set.eq_ignore_ascii_case(value));
    if is("sasl.mechanisms", "OAUTHBEARER") && !is("sasl.oauthbearer.method", "oidc") {
        let reason = "`sasl.mechanisms = \"OAUTHBEARER\"` needs `sasl.oauthbearer.method = \"oidc\"`, with client and \
                      token endpoint: nothing else gets a token";
        return Err(Misconfigured(reason.to_owned()));
    }
    for &(key, value) in owned {
        config.set(key, value);
    }
    config.set("bootstrap.servers", brokers);
    Ok(config)
}

/// What the failure to make a client means: librdkafka refuses options that do not go together, and files that cannot be
/// read, only then.
pub fn creation_error(config: &ClientConfig, error: KafkaError) -> Misconfigured {
    let reason = match &error {
        KafkaError::ClientCreation(reason) => reason.clone(),
        // Its text has the value.
        KafkaError::ClientConfig(_, _, key, _) => format!("`{key}` cannot be set"),
        other => other.to_string(),
    };
    // librdkafka names the option and not the file.
    let file = reason.split_whitespace().next().filter(|key| key.ends_with(".location"));
    let file = file.and_then(|key| config.get(key)).map(|file| format!(" ({file})")).unwrap_or_default();
    Misconfigured(format!("the Kafka client cannot be set up with its options: {reason}{file}"))
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
        for key in ["enable.auto.commit", "metadata.broker.list", "isolation.level", "linger.ms"] {
            let refused = client_config("b:1", &options(&[(key, "1")]), &[], &[("linger.ms", "1")]);
            let expected = format!("the option `{key}` cannot be set: Headwater sets it itself");
            assert_eq!(refused.expect_err("it is owned"), Misconfigured(expected));
        }
    }
    #[test]
    fn an_option_that_the_client_does_not_take_is_named_without_its_value() {
        let refused = |key: &str, value: &str| check_option(key, value).expect_err(key).to_string();
        for (key, value, words) in [
            ("sasl.pasword", "canary", "has no option `sasl.pasword`"),
            ("fetch.wait.max.ms", "soon", "does not take the value of the option `fetch.wait.max.ms`: "),
            ("enable.auto.commit", "canary", "Headwater sets it itself"),
        ] {
            let message = refused(key, value);
            assert!(message.contains(words) && !message.contains("canary"), "{message}");
        }
        assert_eq!(check_option("sasl.mechanism", "PLAIN"), Ok("sasl.mechanisms"));
        let oauth = client_config("b:1", &options(&[("sasl.mechanism", "OAUTHBEARER")]), &[], &[]);
        assert!(oauth.expect_err("no token").0.contains("needs `sasl.oauthbearer.method"));
    }

    #[test]
    fn an_option_that_needs_a_part_that_is_not_built_names_the_cargo_feature() {
        for (key, value, part, words) in [
            ("security.protocol", "sasl_ssl", TLS, "needs TLS, "),
            ("ssl.ca.location", "/ca.pem", TLS, "needs TLS, "),
            ("sasl.mechanisms", "SCRAM-SHA-512", SCRAM, "needs SASL/SCRAM, "),
            ("sasl.oauthbearer.method", "oidc", OIDC, "--features oidc`"),
            ("sasl.kerberos.keytab", "/k", GSSAPI, "--features gssapi`"),
        ] {
            match check_option(key, value) {
                Ok(_) => assert!(is_built(&part), "{key}"),
                Err(refused) => {
                    assert!(!is_built(&part) && refused.0.contains(words), "{refused}");
                }
            }
        }
        assert!(check_option("security.protocol", "SASL_PLAINTEXT").is_ok(), "it needs no TLS");
    }
}
