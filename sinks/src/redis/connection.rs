//! Connections to a Redis server, for the sink and for the state store: TLS, timeouts, and errors that say what to check.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use redis::{Client, Connection, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError};

use crate::{Misconfigured, Secret};

/// The timeout of each of the two steps of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A Redis server and its connection settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisServer {
    /// The section of the configuration that names the server: `state` or `sinks.redis`, for error messages.
    pub section: String,
    /// The address, with user and password; `rediss://` for TLS.
    pub url: Secret,
    /// The file of the CA that signed the server's certificate; None for the CAs that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// The files of the client certificate and its private key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// A client of a Redis server. It connects when it is used, and again after a failure.
pub struct RedisClient {
    client: Client,
    section: String,
    /// The timeout of one response.
    response_timeout: Duration,
}

impl RedisServer {
    /// Returns the default settings for an address.
    pub fn at(section: &str, url: impl Into<Secret>) -> RedisServer {
        RedisServer { section: section.to_owned(), url: url.into(), ca_file: None, certificate: None }
    }

    /// Returns true if the connection uses TLS.
    pub fn is_tls(&self) -> bool {
        is_redis_tls(&self.url)
    }

    /// Returns a client that is not connected yet.
    ///
    /// # Errors
    /// If the address or a file of a certificate cannot be used.
    pub fn client(&self, response_timeout: Duration) -> Result<RedisClient, Misconfigured> {
        let unusable = |error: RedisError| {
            Misconfigured(format!("the Redis of [{}] cannot be used: {error}", self.section))
        };
        let info = self.url.expose().into_connection_info().map_err(unusable)?;
        // A request of several packets must not wait until the server acknowledges the packets before the last.
        let settings = info.tcp_settings().clone().set_nodelay(true);
        let client = self.with_certificates(info.set_tcp_settings(settings), unusable)?;
        Ok(RedisClient { client, section: self.section.clone(), response_timeout })
    }

    #[cfg(feature = "tls")]
    fn with_certificates(
        &self,
        info: ConnectionInfo,
        unusable: impl Fn(RedisError) -> Misconfigured,
    ) -> Result<Client, Misconfigured> {
        if !self.is_tls() {
            return Client::open(info).map_err(unusable);
        }
        let read = |key: &str, path: &std::path::Path| {
            std::fs::read(path).map_err(|error| {
                let section = &self.section;
                Misconfigured(format!(
                    "`{section}.{key}`: the file {} cannot be read: {error}",
                    path.display()
                ))
            })
        };
        let root_cert = self.ca_file.as_deref().map(|path| read("ca_file", path)).transpose()?;
        let client_tls = match &self.certificate {
            Some((certificate, key)) => Some(redis::ClientTlsConfig {
                client_cert: read("cert_file", certificate)?,
                client_key: read("key_file", key)?,
            }),
            None => None,
        };
        Client::build_with_tls(info, redis::TlsCertificates { client_tls, root_cert }).map_err(unusable)
    }

    #[cfg(not(feature = "tls"))]
    fn with_certificates(
        &self,
        info: ConnectionInfo,
        unusable: impl Fn(RedisError) -> Misconfigured,
    ) -> Result<Client, Misconfigured> {
        Client::open(info).map_err(unusable)
    }
}

/// Returns true if the address of a Redis server demands TLS.
pub fn is_redis_tls(url: &Secret) -> bool {
    ["rediss://", "valkeys://"].iter().any(|scheme| url.expose().starts_with(scheme))
}

/// Returns host and port of a Redis server, or the path of its socket, without user and password; None if the address
/// cannot be used.
pub fn redis_place(url: &Secret) -> Option<String> {
    let info = url.expose().into_connection_info().ok()?;
    Some(format!("{}, database {}", info.addr(), info.redis_settings().db()))
}

impl RedisClient {
    /// Returns the host and port of the server.
    pub fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    /// Connects to the server.
    ///
    /// # Errors
    /// If that fails or takes too long.
    pub fn connect(&self) -> Result<Connection, RedisError> {
        let connection = self.client.get_connection_with_timeout(CONNECT_TIMEOUT)?;
        connection.set_read_timeout(Some(self.response_timeout))?;
        connection.set_write_timeout(Some(self.response_timeout))?;
        Ok(connection)
    }

    /// Returns an error of the server or the connection with the address and what to check.
    pub fn failure(&self, error: RedisError) -> RedisFailure {
        RedisFailure { section: self.section.clone(), address: self.address(), error }
    }
}

/// An error of Redis, with the address and what to check.
#[derive(Debug)]
pub struct RedisFailure {
    section: String,
    address: String,
    error: RedisError,
}

impl std::error::Error for RedisFailure {}

impl fmt::Display for RedisFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RedisFailure { section, address, error } = self;
        let reason = error.to_string();
        match self.check(&reason) {
            Some(check) => write!(f, "Redis at {address} {} ({reason})", check.replace("SECTION", section)),
            None => write!(f, "Redis at {address}: {reason}"),
        }
    }
}

impl RedisFailure {
    /// Returns what is wrong, and what to check. `SECTION` stands for the section of the configuration.
    fn check(&self, reason: &str) -> Option<&'static str> {
        let contains = |text: &str| reason.contains(text);
        let error = &self.error;
        Some(match error.code() {
            _ if error.kind() == ErrorKind::AuthenticationFailed => {
                "does not accept user and password: check those of `SECTION.url`"
            }
            Some("WRONGPASS" | "NOAUTH") => "does not accept user and password: check those of `SECTION.url`",
            Some("NOPERM") => "does not permit its user to do this: see `ACL LOG` at the server",
            Some("READONLY") => "is a replica: connect to its primary",
            Some("OOM") => "has no memory left: raise its `maxmemory`, or remove data",
            _ if contains("failed to lookup address") => {
                "has an unknown host name: check its spelling and the DNS"
            }
            _ if contains("NotValidForName") || contains("not valid for name") => {
                "has a certificate for another host name: connect by a name that is in it"
            }
            _ if contains("UnknownIssuer") || contains("BadSignature") => {
                "has a certificate that is not trusted: check that `SECTION.ca_file` has the CA that signed it"
            }
            _ if contains("invalid peer certificate") => "has a certificate that is not valid: check it",
            _ if contains("fatal alert") => {
                "does not accept the client's certificate, or demands one: check `SECTION.cert_file` and \
                 `SECTION.key_file`"
            }
            _ if contains("corrupt message") || contains("InvalidContentType") => {
                "does not speak TLS on this port: check the port, or `redis://`"
            }
            _ if error.is_connection_refusal() => {
                "refuses connections: check that it runs, the address and the port"
            }
            _ if error.is_timeout() => {
                "does not answer in time: check that it runs, the address, the network, and whether it speaks TLS on \
                 this port (`rediss://`) or not"
            }
            _ if error.is_connection_dropped() || contains("end of file") => {
                "closes the connection: it may expect TLS on this port (`rediss://`)"
            }
            _ => return None,
        })
    }
}
