//! Why no broker can be talked to, in words that name the address and what to check.
//!
//! librdkafka answers a question that no broker has answered with "timed out" or "transport failure"; what happened on
//! the way it says in error events. They are kept here, and the gravest becomes the error.

use std::fmt;
use std::sync::Mutex;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::{log_error, log_line};

/// What is wrong with a connection, from what may pass by itself to what does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Nothing is known but that nobody answers.
    Silent,
    /// Every broker's connection has ended, and nothing was said of why: brokers close what they do not understand.
    Down,
    /// The connection is refused, or there is no way.
    Unreachable,
    /// The broker closes the connection as soon as it is spoken to.
    Closed,
    /// The name has no address.
    UnknownHost,
    /// The broker does not speak TLS.
    NoTls,
    /// The broker demands a certificate of the client, or does not take the one it is given.
    ClientCertificate,
    /// The broker's certificate is for another name.
    HostName,
    /// The broker's certificate is not signed by whom we trust.
    Untrusted,
    /// TLS fails otherwise.
    Tls,
    /// The broker does not offer the mechanism.
    Mechanism,
    /// The broker does not take who we say we are.
    Credentials,
}

impl Kind {
    /// What an error event says; none if it is about something else.
    fn of(code: RDKafkaErrorCode, reason: &str) -> Option<Kind> {
        let says = |words: &str| reason.contains(words);
        let closed_in_handshake = says("SSL connection closed by peer") && says("SSL_HANDSHAKE");
        if says("PLAINTEXT broker") || says("wrong version number") || closed_in_handshake {
            return Some(Kind::NoTls);
        }
        Some(match code {
            RDKafkaErrorCode::AllBrokersDown => Kind::Down,
            RDKafkaErrorCode::Resolve => Kind::UnknownHost,
            RDKafkaErrorCode::SSL | RDKafkaErrorCode::BrokerTransportFailure
                if says("certificate required") || says("alert bad certificate") =>
            {
                Kind::ClientCertificate
            }
            RDKafkaErrorCode::SSL if says("certificate verify failed") => Kind::Untrusted,
            RDKafkaErrorCode::SSL => Kind::Tls,
            RDKafkaErrorCode::Authentication if says("mechanism") && says("supported") => Kind::Mechanism,
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => {
                Kind::Credentials
            }
            RDKafkaErrorCode::BrokerTransportFailure
                if ["Disconnected", "Broken pipe", "reset by peer"].into_iter().any(says) =>
            {
                Kind::Closed
            }
            RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::OperationTimedOut => {
                Kind::Unreachable
            }
            _ => return None,
        })
    }

    /// Whether waiting longer does not help.
    fn is_permanent(self) -> bool {
        self > Kind::Closed
    }
}

/// Why no broker can be talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContactError {
    kind: Kind,
    /// `host:port`, or the brokers as configured.
    address: String,
    /// librdkafka's words.
    reason: String,
}

impl ContactError {
    /// Nothing is known but that nobody answers.
    pub fn silent(brokers: &str) -> ContactError {
        ContactError { kind: Kind::Silent, address: brokers.to_owned(), reason: String::new() }
    }

    /// The graver of two.
    pub fn graver(one: Option<ContactError>, other: Option<ContactError>) -> Option<ContactError> {
        [one, other].into_iter().flatten().max_by_key(|problem| problem.kind)
    }

    /// The same, at these brokers if it is about none in particular.
    pub fn at(self, brokers: &str) -> ContactError {
        let address = if self.address.is_empty() { brokers.to_owned() } else { self.address };
        ContactError { address, ..self }
    }

    /// Whether waiting longer does not help.
    pub fn is_permanent(&self) -> bool {
        self.kind.is_permanent()
    }

    /// Whether the broker's certificate is not taken, for whichever reason.
    pub fn is_distrust(&self) -> bool {
        self.kind == Kind::Untrusted
    }

    /// The same, the reason being the host name.
    pub fn about_the_name(self) -> ContactError {
        ContactError { kind: Kind::HostName, ..self }
    }
}

impl fmt::Display for ContactError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ContactError { kind, address, reason } = self;
        match kind {
            Kind::Silent => {
                return write!(
                    f,
                    "no broker of {address} answers: check that the brokers run, and that `brokers` names them"
                );
            }
            Kind::Unreachable => write!(
                f,
                "broker {address} cannot be reached: check that it runs, and the address, the port and the network"
            ),
            Kind::Down | Kind::Closed => write!(
                f,
                "broker {address} closes the connection: it may expect TLS or SASL on this port; check \
                 `security.protocol` and the port"
            ),
            Kind::UnknownHost => {
                write!(f, "the host name of broker {address} is unknown: check its spelling and the DNS")
            }
            Kind::NoTls => write!(
                f,
                "broker {address} does not speak TLS on this port: check the port and `security.protocol`"
            ),
            Kind::ClientCertificate => write!(
                f,
                "broker {address} does not accept the client's certificate, or demands one: check \
                 `ssl.certificate.location` and `ssl.key.location`"
            ),
            Kind::HostName => write!(
                f,
                "the certificate of broker {address} is for another host name: connect by a name that is in it"
            ),
            Kind::Untrusted => write!(
                f,
                "the certificate of broker {address} is not trusted: check that `ssl.ca.location` has the CA that \
                 signed it"
            ),
            Kind::Tls => write!(f, "TLS with broker {address} fails: check `security.protocol` and `ssl.*`"),
            Kind::Mechanism => write!(
                f,
                "broker {address} does not offer this SASL mechanism on this port: check `sasl.mechanisms`"
            ),
            Kind::Credentials => write!(
                f,
                "broker {address} does not accept the credentials: check `sasl.mechanisms`, `sasl.username` and \
                 `sasl.password`"
            ),
        }?;
        write!(f, " ({reason})")
    }
}

impl std::error::Error for ContactError {}

/// The context of a client that keeps the gravest problem of its connections.
#[derive(Debug, Default)]
pub struct Contact(Mutex<Option<ContactError>>);

impl Contact {
    /// The gravest problem since it was asked for last.
    pub fn take(&self) -> Option<ContactError> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }
}

impl ClientContext for Contact {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
        let Some(problem) = error.rdkafka_error_code().and_then(|code| read(code, reason)) else { return };
        let mut gravest = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *gravest = ContactError::graver(Some(problem), gravest.take());
    }
}

impl ConsumerContext for Contact {}

/// Reads an error event, such as `ssl://host:9093/bootstrap: SSL handshake failed: … (after 3ms in state …)`.
fn read(code: RDKafkaErrorCode, reason: &str) -> Option<ContactError> {
    let kind = Kind::of(code, reason)?;
    let (broker, rest) = reason.split_once(": ").unwrap_or(("", reason));
    let address = broker.rsplit_once("://").map_or(broker, |(_, address)| address);
    let address = address.split('/').next().unwrap_or_default().to_owned();
    let reason = rest.split_once(" (after ").map_or(rest, |(reason, _)| reason).to_owned();
    Some(ContactError { kind, address, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In librdkafka's own words, as they came from real brokers.
    #[test]
    fn what_librdkafka_says_is_told_apart() {
        use RDKafkaErrorCode as Code;
        for (code, reason, kind) in [
            (
                Code::BrokerTransportFailure,
                "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)",
                Kind::Unreachable,
            ),
            (
                Code::Resolve,
                "h:1/bootstrap: Failed to resolve 'h:1': Name or service not known (after 5ms in state CONNECT)",
                Kind::UnknownHost,
            ),
            (
                Code::SSL,
                "ssl://h:1/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified (after 83ms in state SSL_HANDSHAKE)",
                Kind::Untrusted,
            ),
            (
                Code::SSL,
                "ssl://h:1/bootstrap: SSL handshake failed: Disconnected: SSL connection closed by peer: connecting to a PLAINTEXT broker listener? (after 4ms in state SSL_HANDSHAKE)",
                Kind::NoTls,
            ),
            (
                Code::BrokerTransportFailure,
                "ssl://h:1/bootstrap: Disconnected: SSL connection closed by peer (after 1ms in state SSL_HANDSHAKE)",
                Kind::NoTls,
            ),
            (
                Code::BrokerTransportFailure,
                "ssl://h:1/bootstrap: Receive failed: error:0A000412:SSL routines::sslv3 alert bad certificate: SSL alert number 42 (after 2ms in state APIVERSION_QUERY)",
                Kind::ClientCertificate,
            ),
            (
                Code::Authentication,
                "sasl_ssl://h:1/bootstrap: SASL authentication error: Authentication failed: Invalid username or password (after 9ms in state AUTH_REQ)",
                Kind::Credentials,
            ),
            (
                Code::BrokerTransportFailure,
                "h:1/bootstrap: Disconnected while requesting ApiVersion: might be caused by incorrect security.protocol configuration (connecting to a SSL listener?) (after 1ms in state APIVERSION_QUERY)",
                Kind::Closed,
            ),
        ] {
            let problem = read(code, reason).expect("a problem");
            assert_eq!(problem.kind, kind, "{reason}");
            let address = if kind == Kind::Unreachable { "127.0.0.1:1" } else { "h:1" };
            assert_eq!(problem.address, address);
            assert!(!problem.to_string().contains("(after"), "{problem}");
        }
        let down = read(Code::AllBrokersDown, "1/1 brokers are down").expect("a problem").at("h:1");
        assert!(down.to_string().starts_with("broker h:1 closes the connection: "), "{down}");
        assert_eq!(read(Code::PartitionEOF, "the end"), None);
    }

    #[test]
    fn the_gravest_problem_is_kept() {
        let contact = Contact::default();
        let say = |code, reason: &str| contact.error(KafkaError::Global(code), reason);
        say(RDKafkaErrorCode::BrokerTransportFailure, "a:1/1: Connection refused");
        say(RDKafkaErrorCode::Authentication, "b:1/1: SASL authentication error");
        say(RDKafkaErrorCode::BrokerTransportFailure, "a:1/1: Connection refused");
        assert_eq!(contact.take().map(|problem| problem.kind), Some(Kind::Credentials));
        assert_eq!(contact.take(), None);
    }
}
