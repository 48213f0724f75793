//! A state store in Redis, which several processes can share. Every key begins with the pipeline's name.

use std::fmt;
use std::time::Duration;

use headwater_sinks::Misconfigured;
use redis::{Client, Cmd, Connection, ErrorKind, FromRedisValue, RedisError, cmd};

use super::config::{Durability, RedisConfig};
use super::{StateError, StateStore};

/// The timeout of each of the two steps of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The timeout of one response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The number of keys that are requested at a time.
const SCAN_COUNT: usize = 1000;

/// The settings that Redis needs so that blobs survive a crash: the name for `CONFIG GET`, the value, and the reason.
const DURABLE_SETTINGS: [(&str, &str, &str); 3] = [
    ("appendonly", "yes", "without it, all data is lost when Redis stops"),
    ("appendfsync", "always", "otherwise acknowledged writes are lost in a power failure"),
    ("maxmemory-policy", "noeviction", "otherwise acknowledged writes are dropped when its memory is full"),
];

/// A state store in Redis.
pub struct RedisStore {
    client: Client,
    /// The host and port.
    address: String,
    durability: Durability,
    prefix: String,
    /// The connection; None after a failure.
    connection: Option<Connection>,
}

impl RedisStore {
    /// Connects to Redis.
    ///
    /// # Errors
    /// If Redis cannot be reached, or is not durable.
    pub fn open(config: &RedisConfig, pipeline: &str) -> Result<RedisStore, StateError> {
        let client = client(config).map_err(|error| StateError::Unavailable {
            action: "use Redis".to_owned(),
            source: error.into(),
        })?;
        let address = client.get_connection_info().addr().to_string();
        let prefix = format!("headwater:{pipeline}:");
        let durability = config.durability;
        let mut store = RedisStore { client, address, durability, prefix, connection: None };
        match durability {
            Durability::Checked => store.check()?,
            Durability::Assumed => {
                store.execute::<String>("ping Redis", &cmd("PING"))?;
                tracing::warn!(
                    "`state.durability = \"assumed\"`: Redis is assumed to be durable, and its settings are not checked"
                );
            }
        }
        Ok(store)
    }

    /// Checks that Redis is durable: whatever it has acknowledged must survive a crash.
    fn check(&mut self) -> Result<(), StateError> {
        for (name, expected, reason) in DURABLE_SETTINGS {
            let command = cmd("CONFIG").arg("GET").arg(name).take();
            let (_, value): (String, String) =
                self.execute(&format!("read the Redis setting {name}"), &command)?;
            if value != expected {
                return Err(StateError::Refused(format!(
                    "Redis has {name} {value}, and {expected} is required: {reason}; set it, and \
                     store it with CONFIG REWRITE"
                )));
            }
        }
        Ok(())
    }

    /// Executes a command, and retries it once if the connection is lost: every command here is idempotent.
    fn execute<T: FromRedisValue>(&mut self, action: &str, command: &Cmd) -> Result<T, StateError> {
        // Only a connection that existed can be lost. A connection that cannot be made is not retried, which would
        // double the wait.
        let mut is_last_attempt = self.connection.is_none();
        loop {
            let answer = self.connection().and_then(|connection| command.query(connection));
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) if !is_last_attempt && (error.is_io_error() || error.is_connection_dropped()) => {
                    (is_last_attempt, self.connection) = (true, None);
                }
                Err(error) => {
                    self.connection = None;
                    return Err(self.error_of(action, error));
                }
            }
        }
    }

    fn connection(&mut self) -> Result<&mut Connection, RedisError> {
        if self.connection.is_none() {
            let connection = self.client.get_connection_with_timeout(CONNECT_TIMEOUT)?;
            connection.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
            connection.set_write_timeout(Some(RESPONSE_TIMEOUT))?;
            self.connection = Some(connection);
        }
        Ok(self.connection.as_mut().expect("the connection was just made"))
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl RedisStore {
    fn error_of(&self, action: &str, error: RedisError) -> StateError {
        let is_config = action.starts_with("read the Redis setting");
        if is_config && matches!(error.code(), Some("NOPERM" | "ERR")) {
            return StateError::Refused(format!(
                "Redis at {} does not permit `CONFIG GET`, which is needed to check that it is durable ({error}): \
                 permit it (`ACL SETUSER name +config|get`), or, if you know that it has `appendonly yes`, \
                 `appendfsync always` and `maxmemory-policy noeviction`, set `state.durability = \"assumed\"`",
                self.address
            ));
        }
        let source = Box::new(RedisFailure { address: self.address.clone(), error });
        StateError::Unavailable { action: action.to_owned(), source }
    }
}

/// Returns a client of Redis that is not connected yet.
fn client(config: &RedisConfig) -> Result<Client, Misconfigured> {
    let unusable =
        |error: RedisError| Misconfigured(format!("the state store's Redis cannot be used: {error}"));
    #[cfg(feature = "tls")]
    if config.is_tls() {
        let read = |key: &str, path: &std::path::Path| {
            std::fs::read(path).map_err(|error| {
                Misconfigured(format!("`state.{key}`: the file {} cannot be read: {error}", path.display()))
            })
        };
        let root_cert = config.ca_file.as_deref().map(|path| read("ca_file", path)).transpose()?;
        let client_tls = match &config.certificate {
            Some((certificate, key)) => Some(redis::ClientTlsConfig {
                client_cert: read("cert_file", certificate)?,
                client_key: read("key_file", key)?,
            }),
            None => None,
        };
        let certificates = redis::TlsCertificates { client_tls, root_cert };
        return Client::build_with_tls(config.url.expose(), certificates).map_err(unusable);
    }
    Client::open(config.url.expose()).map_err(unusable)
}

/// An error of Redis, with the address and what to check.
#[derive(Debug)]
struct RedisFailure {
    address: String,
    error: RedisError,
}

impl std::error::Error for RedisFailure {}

impl fmt::Display for RedisFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RedisFailure { address, error } = self;
        let reason = error.to_string();
        let contains = |text: &str| reason.contains(text);
        let check = match error.code() {
            _ if error.kind() == ErrorKind::AuthenticationFailed => {
                "does not accept user and password: check those of `state.url`"
            }
            Some("WRONGPASS" | "NOAUTH") => "does not accept user and password: check those of `state.url`",
            Some("NOPERM") => "does not permit its user to do this: see `ACL LOG` at the server",
            _ if contains("failed to lookup address") => {
                "has an unknown host name: check its spelling and the DNS"
            }
            _ if contains("NotValidForName") || contains("not valid for name") => {
                "has a certificate for another host name: connect by a name that is in it"
            }
            _ if contains("UnknownIssuer") || contains("BadSignature") => {
                "has a certificate that is not trusted: check that `state.ca_file` has the CA that signed it"
            }
            _ if contains("invalid peer certificate") => "has a certificate that is not valid: check it",
            _ if contains("fatal alert") => {
                "does not accept the client's certificate, or demands one: check `state.cert_file` and \
                 `state.key_file`"
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
            _ => return write!(f, "Redis at {address}: {reason}"),
        };
        write!(f, "Redis at {address} {check} ({reason})")
    }
}

impl StateStore for RedisStore {
    fn put(&mut self, name: &str, blob: &[u8]) -> Result<(), StateError> {
        let command = cmd("SET").arg(self.key(name)).arg(blob).take();
        self.execute(&format!("put {name} into Redis"), &command)
    }

    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let command = cmd("GET").arg(self.key(name)).take();
        self.execute(&format!("get {name} from Redis"), &command)
    }

    fn delete(&mut self, name: &str) -> Result<(), StateError> {
        let command = cmd("DEL").arg(self.key(name)).take();
        self.execute(&format!("delete {name} from Redis"), &command)
    }

    fn list(&mut self, prefix: &str) -> Result<Vec<String>, StateError> {
        let mut names = std::collections::BTreeSet::new();
        let mut cursor = "0".to_owned();
        loop {
            let pattern = format!("{}*", self.key(prefix));
            let command =
                cmd("SCAN").arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN_COUNT).take();
            let (next, keys): (String, Vec<String>) = self.execute("list the blobs in Redis", &command)?;
            names.extend(keys.iter().filter_map(|key| key.strip_prefix(&self.prefix)).map(str::to_owned));
            cursor = next;
            if cursor == "0" {
                return Ok(names.into_iter().collect());
            }
        }
    }

    /// With `appendfsync always`, Redis acknowledges a write once it is on disk. This checks that the setting is
    /// unchanged.
    fn sync(&mut self) -> Result<(), StateError> {
        match self.durability {
            Durability::Checked => self.check(),
            Durability::Assumed => Ok(()),
        }
    }
}
