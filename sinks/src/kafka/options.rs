//! Options for librdkafka in the configuration: the options that may be set, the options whose values may be shown, and
//! errors that do not contain values.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;
use thiserror::Error;

use crate::{Misconfigured, Secret};

/// Options for librdkafka from the configuration. Any of them may contain a password, even under a misspelt name.
pub type Options = BTreeMap<String, Secret>;

/// The error of an option that cannot be used. It does not contain the value, unless the option [`is_harmless`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the option `{key}` {reason}")]
pub struct OptionRefused {
    /// The name of the option.
    pub key: String,
    /// The reason, as the rest of a sentence after the name.
    pub reason: String,
}

impl OptionRefused {
    fn new(key: &str, reason: impl Into<String>) -> OptionRefused {
        OptionRefused { key: key.to_owned(), reason: reason.into() }
    }

    /// Returns true if librdkafka has no option with this name.
    pub fn is_unknown(&self) -> bool {
        self.reason == UNKNOWN
    }

    /// Returns the error of an option that Headwater sets itself.
    pub(super) fn owned(key: &str) -> OptionRefused {
        OptionRefused::new(key, "cannot be set: Headwater sets it itself")
    }
}

impl From<OptionRefused> for Misconfigured {
    fn from(refused: OptionRefused) -> Misconfigured {
        Misconfigured(refused.to_string())
    }
}

/// Aliases in librdkafka of settings that Headwater sets itself or has a default for, with their canonical names.
const ALIASES: &[(&str, &str)] = &[
    ("metadata.broker.list", "bootstrap.servers"),
    ("auto.commit.enable", "enable.auto.commit"),
    ("request.required.acks", "acks"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("compression.codec", "compression.type"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("sasl.mechanism", "sasl.mechanisms"),
];

/// Settings that users may not change: the brokers, and all settings that determine which records are read or written,
/// their order, and the consumer group or transactional id.
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

/// Options whose values contain no secrets and may be shown.
const HARMLESS: &str = "\
    allow.auto.create.topics api.version.fallback.ms api.version.request api.version.request.timeout.ms \
    batch.num.messages batch.size broker.address.family broker.address.ttl check.crcs client.dns.lookup \
    client.id client.rack compression.codec compression.level compression.type connections.max.idle.ms \
    coordinator.query.interval.ms debug delivery.timeout.ms enable.metrics.push enable.random.seed \
    enable.sasl.oauthbearer.unsecure.jwt enable.ssl.certificate.verification fetch.error.backoff.ms \
    fetch.max.bytes fetch.message.max.bytes fetch.min.bytes fetch.queue.backoff.ms fetch.wait.max.ms \
    group.protocol heartbeat.interval.ms https.ca.location linger.ms log.connection.close log.queue \
    log.thread.name log_level max.in.flight max.in.flight.requests.per.connection \
    max.partition.fetch.bytes max.poll.interval.ms message.copy.max.bytes message.max.bytes \
    message.send.max.retries message.timeout.ms metadata.max.age.ms \
    metadata.recovery.rebootstrap.trigger.ms metadata.recovery.strategy partition.assignment.strategy \
    produce.offset.report queue.buffering.backpressure.threshold queue.buffering.max.kbytes \
    queue.buffering.max.messages queue.buffering.max.ms queued.max.messages.kbytes queued.min.messages \
    receive.message.max.bytes reconnect.backoff.jitter.ms reconnect.backoff.max.ms reconnect.backoff.ms \
    request.timeout.ms retries retry.backoff.max.ms retry.backoff.ms sasl.kerberos.keytab \
    sasl.kerberos.min.time.before.relogin sasl.kerberos.service.name sasl.mechanism sasl.mechanisms \
    sasl.oauthbearer.assertion.algorithm sasl.oauthbearer.assertion.file \
    sasl.oauthbearer.assertion.jwt.template.file sasl.oauthbearer.assertion.private.key.file \
    sasl.oauthbearer.grant.type sasl.oauthbearer.metadata.authentication.type sasl.oauthbearer.method \
    security.protocol session.timeout.ms socket.connection.setup.timeout.ms socket.keepalive.enable \
    socket.max.fails socket.nagle.disable socket.receive.buffer.bytes socket.send.buffer.bytes \
    socket.timeout.ms ssl.ca.certificate.stores ssl.ca.location ssl.certificate.location \
    ssl.cipher.suites ssl.crl.location ssl.curves.list ssl.endpoint.identification.algorithm \
    ssl.key.location ssl.keystore.location ssl.providers ssl.sigalgs.list sticky.partitioning.linger.ms \
    topic.metadata.propagation.max.ms topic.metadata.refresh.fast.interval.ms \
    topic.metadata.refresh.interval.ms topic.metadata.refresh.sparse";

/// Other options. Only their names may be shown.
const CONFIDENTIAL: &str = "\
    https.ca.pem sasl.kerberos.kinit.cmd sasl.kerberos.principal sasl.oauthbearer.assertion.claim.aud \
    sasl.oauthbearer.assertion.claim.exp.seconds sasl.oauthbearer.assertion.claim.iss \
    sasl.oauthbearer.assertion.claim.jti.include sasl.oauthbearer.assertion.claim.nbf.seconds \
    sasl.oauthbearer.assertion.claim.sub sasl.oauthbearer.assertion.private.key.passphrase \
    sasl.oauthbearer.assertion.private.key.pem sasl.oauthbearer.client.credentials.client.id \
    sasl.oauthbearer.client.credentials.client.secret sasl.oauthbearer.client.id \
    sasl.oauthbearer.client.secret sasl.oauthbearer.config sasl.oauthbearer.extensions \
    sasl.oauthbearer.scope sasl.oauthbearer.token.endpoint.url sasl.password sasl.username ssl.ca.pem \
    ssl.certificate.pem ssl.key.password ssl.key.pem ssl.keystore.password";

const UNKNOWN: &str = "is unknown to the Kafka client";

/// Returns the canonical name of a setting.
pub(super) fn first_name(key: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == key).map_or(key, |&(_, name)| name)
}

/// Returns true if the value of an option may be shown. The value of an unknown option may not: it may be a password
/// under a misspelt name.
pub fn is_harmless(key: &str) -> bool {
    HARMLESS.split_ascii_whitespace().any(|name| name == key)
}

/// Returns the names of all options, for suggesting corrections of misspelt names.
pub fn names() -> impl Iterator<Item = &'static str> {
    HARMLESS.split_ascii_whitespace().chain(CONFIDENTIAL.split_ascii_whitespace())
}

/// A component of librdkafka that a build may lack: its name in librdkafka, and the cargo feature that adds it.
struct Component {
    builtin: &'static str,
    what: &'static str,
    feature: &'static str,
}

const TLS: Component = Component { builtin: "ssl", what: "TLS", feature: "tls" };
const SCRAM: Component = Component { builtin: "sasl_scram", what: "SASL/SCRAM", feature: "tls" };
const OIDC: Component = Component { builtin: "oidc", what: "OAuth with OpenID Connect", feature: "oidc" };
const GSSAPI: Component =
    Component { builtin: "sasl_gssapi", what: "SASL/GSSAPI (Kerberos)", feature: "gssapi" };

/// Returns the component of librdkafka that an option requires, if a build may lack it.
fn required_component(name: &str, value: &str) -> Option<Component> {
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

/// Returns true if librdkafka was built with a component.
fn is_built_in(component: &Component) -> bool {
    let native = ClientConfig::new().create_native_config();
    let features = native.and_then(|native| native.get("builtin.features")).unwrap_or_default();
    features.split(',').any(|feature| feature.trim() == component.builtin)
}

/// Checks that an option may be set to a value: Headwater does not set the option itself, and librdkafka has it,
/// accepts the value, and was built with the component that the option requires.
///
/// # Errors
/// If it may not be set, with the reason.
pub fn check_option(key: &str, value: &Secret) -> Result<(), OptionRefused> {
    if OWNED.contains(&first_name(key)) {
        return Err(OptionRefused::owned(key));
    }
    let mut config = ClientConfig::new();
    config.set(key, value.expose());
    let error = config.create_native_config().err();
    // An unknown name is reported before a missing feature: `ssl.ca.locaton` is a misspelling in every build.
    if let Some(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) = error {
        return Err(OptionRefused::new(key, UNKNOWN));
    }
    if let Some(Component { what, feature, .. }) =
        required_component(first_name(key), value.expose()).filter(|component| !is_built_in(component))
    {
        let reason = format!(
            "needs {what}, and this program was built without it: build it with `cargo build --release --features \
             {feature}`"
        );
        return Err(OptionRefused::new(key, reason));
    }
    let Some(error) = error else { return Ok(()) };
    // The error of librdkafka contains the value, or a part of it.
    Err(OptionRefused::new(
        key,
        match error {
            KafkaError::ClientConfig(_, description, ..)
                if is_harmless(key) || description.contains("not supported in this build") =>
            {
                format!("cannot be set: {description}")
            }
            _ => "has a value that the Kafka client does not accept".to_owned(),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_has_every_listed_option() {
        for key in names() {
            let refused = check_option(key, &"".into());
            let unknown = refused.is_err_and(|refused| refused.reason.contains("unknown"));
            assert!(!unknown, "{key}");
        }
    }

    #[test]
    fn errors_do_not_contain_the_value() {
        for key in
            ["sasl.pasword", "sasl.mechanizm", "enable.ssl.certificate.verificatio", "ssl.key.pem", "acks"]
        {
            let refused = check_option(key, &"hunter2".into());
            let text = refused.map_or_else(|refused| format!("{refused} {refused:?}"), |()| String::new());
            assert!(!text.contains("hunter2"), "{text}");
        }
        let refused = check_option("sasl.pasword", &"hunter2".into()).expect_err("it is misspelt");
        assert_eq!(refused.to_string(), "the option `sasl.pasword` is unknown to the Kafka client");
        let refused = check_option("fetch.min.bytes", &"many".into()).expect_err("it is not a number");
        assert!(refused.reason.contains("fetch.min.bytes"), "{refused}");
    }

    #[test]
    fn options_of_missing_components_name_the_cargo_feature() {
        for (key, value, component, words) in [
            ("security.protocol", "sasl_ssl", TLS, "needs TLS, "),
            ("ssl.ca.location", "/ca.pem", TLS, "needs TLS, "),
            ("sasl.mechanisms", "SCRAM-SHA-512", SCRAM, "needs SASL/SCRAM, "),
            ("sasl.oauthbearer.method", "oidc", OIDC, "--features oidc`"),
            ("sasl.kerberos.keytab", "/k", GSSAPI, "--features gssapi`"),
        ] {
            match check_option(key, &value.into()) {
                Ok(_) => assert!(is_built_in(&component), "{key}"),
                Err(refused) => {
                    assert!(!is_built_in(&component) && refused.to_string().contains(words), "{refused}");
                }
            }
        }
        assert!(check_option("security.protocol", &"SASL_PLAINTEXT".into()).is_ok(), "it needs no TLS");
        let misspelt = check_option("ssl.ca.locaton", &"/ca.pem".into()).expect_err("it is misspelt");
        assert!(misspelt.is_unknown(), "{misspelt}");
    }
}
