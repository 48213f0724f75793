//! Connection errors of Kafka clients. Their messages name the address and what to check.
//!
//! If no broker responds to a request, librdkafka returns only "timed out" or "transport failure". It reports the
//! causes as error events. [`Contact`] records the worst of them, which becomes the error.

use std::fmt;
use std::sync::Mutex;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::{log_error, log_line};

/// The kinds of connection errors, from those that may be temporary to permanent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// No broker responds, and no cause is known.
    NoResponse,
    /// The connections to all brokers were closed without a reported cause. Brokers close connections that use an
    /// unexpected protocol.
    Down,
    /// The connection is refused, or the network has no route.
    Unreachable,
    /// The broker closes the connection after the first request.
    Closed,
    /// The host name cannot be resolved.
    UnknownHost,
    /// The broker does not use TLS on this port.
    NoTls,
    /// The broker requires a client certificate, or rejects the one it received.
    ClientCertificate,
    /// The broker's certificate is for another host name.
    HostName,
    /// The broker's certificate is not signed by a trusted CA.
    Untrusted,
    /// Another TLS error.
    Tls,
    /// The broker does not offer the SASL mechanism.
    Mechanism,
    /// The broker rejects the credentials.
    Credentials,
}

impl Kind {
    /// Returns the kind of an error event; `None` if it is not a connection error.
    fn of(code: RDKafkaErrorCode, reason: &str) -> Option<Kind> {
        let contains = |text: &str| reason.contains(text);
        let is_closed_in_handshake = contains("SSL connection closed by peer") && contains("SSL_HANDSHAKE");
        if contains("PLAINTEXT broker") || contains("wrong version number") || is_closed_in_handshake {
            return Some(Kind::NoTls);
        }
        Some(match code {
            RDKafkaErrorCode::AllBrokersDown => Kind::Down,
            RDKafkaErrorCode::Resolve => Kind::UnknownHost,
            RDKafkaErrorCode::SSL | RDKafkaErrorCode::BrokerTransportFailure
                if contains("certificate required") || contains("alert bad certificate") =>
            {
                Kind::ClientCertificate
            }
            RDKafkaErrorCode::SSL if contains("certificate verify failed") => Kind::Untrusted,
            RDKafkaErrorCode::SSL => Kind::Tls,
            RDKafkaErrorCode::Authentication if contains("mechanism") && contains("supported") => {
                Kind::Mechanism
            }
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => {
                Kind::Credentials
            }
            RDKafkaErrorCode::BrokerTransportFailure
                if ["Disconnected", "Broken pipe", "reset by peer"].into_iter().any(contains) =>
            {
                Kind::Closed
            }
            RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::OperationTimedOut => {
                Kind::Unreachable
            }
            _ => return None,
        })
    }

    /// Returns true if waiting longer does not help.
    fn is_permanent(self) -> bool {
        self > Kind::Closed
    }
}

/// The reason why no broker can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContactError {
    kind: Kind,
    /// `host:port`, or the brokers as configured.
    address: String,
    /// The error message of librdkafka.
    reason: String,
}

impl ContactError {
    /// Returns the error that no broker responds.
    pub fn no_response(brokers: &str) -> ContactError {
        ContactError { kind: Kind::NoResponse, address: brokers.to_owned(), reason: String::new() }
    }

    /// Returns the worse of two errors.
    pub fn worse(one: Option<ContactError>, other: Option<ContactError>) -> Option<ContactError> {
        [one, other].into_iter().flatten().max_by_key(|problem| problem.kind)
    }

    /// Sets the address to `brokers` if the error has no address.
    pub fn at(self, brokers: &str) -> ContactError {
        let address = if self.address.is_empty() { brokers.to_owned() } else { self.address };
        ContactError { address, ..self }
    }

    /// Returns true if waiting longer does not help.
    pub fn is_permanent(&self) -> bool {
        self.kind.is_permanent()
    }

    /// Returns true if the certificate of the broker was rejected, for any reason.
    pub fn is_untrusted(&self) -> bool {
        self.kind == Kind::Untrusted
    }

    /// Sets the reason to a wrong host name in the certificate.
    pub fn with_wrong_host_name(self) -> ContactError {
        ContactError { kind: Kind::HostName, ..self }
    }
}

impl fmt::Display for ContactError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ContactError { kind, address, reason } = self;
        match kind {
            Kind::NoResponse => {
                return write!(
                    f,
                    "no broker of {address} responds: check that the brokers run, and that `brokers` has their \
                     addresses"
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

/// A client context that records the worst error of the connections.
#[derive(Debug, Default)]
pub struct Contact(Mutex<Option<ContactError>>);

impl Contact {
    /// Returns the worst error since the last call.
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
        let Some(problem) = error.rdkafka_error_code().and_then(|code| parse(code, reason)) else { return };
        let mut worst = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *worst = ContactError::worse(Some(problem), worst.take());
    }
}

impl ConsumerContext for Contact {}

/// Parses an error event, such as `ssl://host:9093/bootstrap: SSL handshake failed: … (after 3ms in state …)`.
fn parse(code: RDKafkaErrorCode, reason: &str) -> Option<ContactError> {
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

    /// Uses messages that librdkafka reported for real brokers.
    #[test]
    fn librdkafka_errors_are_classified() {
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
            let problem = parse(code, reason).expect("a problem");
            assert_eq!(problem.kind, kind, "{reason}");
            let address = if kind == Kind::Unreachable { "127.0.0.1:1" } else { "h:1" };
            assert_eq!(problem.address, address);
            assert!(!problem.to_string().contains("(after"), "{problem}");
        }
        let down = parse(Code::AllBrokersDown, "1/1 brokers are down").expect("a problem").at("h:1");
        assert!(down.to_string().starts_with("broker h:1 closes the connection: "), "{down}");
        assert_eq!(parse(Code::PartitionEOF, "the end"), None);
    }

    #[test]
    fn the_worst_error_is_recorded() {
        let contact = Contact::default();
        let report = |code, reason: &str| contact.error(KafkaError::Global(code), reason);
        report(RDKafkaErrorCode::BrokerTransportFailure, "a:1/1: Connection refused");
        report(RDKafkaErrorCode::Authentication, "b:1/1: SASL authentication error");
        report(RDKafkaErrorCode::BrokerTransportFailure, "a:1/1: Connection refused");
        assert_eq!(contact.take().map(|problem| problem.kind), Some(Kind::Credentials));
        assert_eq!(contact.take(), None);
    }
}
