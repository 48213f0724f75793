//! Blobs in Redis: what several processes share. Every key begins with the pipeline's name.

use std::fmt;
use std::time::Duration;

use headwater_sinks::Misconfigured;
use redis::{Client, Cmd, Connection, ErrorKind, FromRedisValue, RedisError, cmd};

use super::{StateError, StateStore};
use crate::config::{Durability, RedisConfig};

/// How long each step of making a connection may take: it has two.
const CONNECTING: Duration = Duration::from_secs(5);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many keys are asked for at a time.
const SCANNED: usize = 1000;

/// What must be so for a blob that was put to be there after a crash: by `CONFIG GET`, with the reason.
const DURABLE: [(&str, &str, &str); 3] = [
    ("appendonly", "yes", "what it holds is gone when it ends"),
    ("appendfsync", "always", "what it has answered for is gone when the power is"),
    ("maxmemory-policy", "noeviction", "it drops what it has answered for when its memory is full"),
];

/// Blobs in a Redis.
pub struct RedisStore {
    client: Client,
    /// Host and port.
    place: String,
    durability: Durability,
    prefix: String,
    /// None after a failure.
    connection: Option<Connection>,
}

impl RedisStore {
    /// Connects to a Redis.
    ///
    /// # Errors
    /// If it cannot be reached, or does not keep what it is given.
    pub fn open(config: &RedisConfig, pipeline: &str) -> Result<RedisStore, StateError> {
        let client = client(config).map_err(|error| StateError::Unavailable {
            action: "use Redis".to_owned(),
            source: error.into(),
        })?;
        let place = client.get_connection_info().addr().to_string();
        let prefix = format!("headwater:{pipeline}:");
        let durability = config.durability;
        let mut store = RedisStore { client, place, durability, prefix, connection: None };
        match durability {
            Durability::Checked => store.check()?,
            Durability::Assumed => {
                store.ask::<String>("ask Redis whether it is there", &cmd("PING"))?;
                tracing::warn!(
                    "`state.durability = \"assumed\"`: that Redis keeps what it is given is the operator's word"
                );
            }
        }
        Ok(store)
    }

    /// Whatever it has answered for must survive.
    fn check(&mut self) -> Result<(), StateError> {
        for (name, expected, reason) in DURABLE {
            let command = cmd("CONFIG").arg("GET").arg(name).take();
            let (_, value): (String, String) = self.ask(&format!("ask Redis for its {name}"), &command)?;
            if value != expected {
                return Err(StateError::Refused(format!(
                    "Redis has {name} {value}, and {expected} is needed: {reason}; set it, with CONFIG REWRITE"
                )));
            }
        }
        Ok(())
    }

    /// Asks once more if the connection is lost: whatever is asked may be asked twice.
    fn ask<T: FromRedisValue>(&mut self, action: &str, command: &Cmd) -> Result<T, StateError> {
        // A connection that was there may be lost; one that cannot be made is not tried for twice as long.
        let mut lost = self.connection.is_none();
        loop {
            let answer = self.connection().and_then(|connection| command.query(connection));
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) if !lost && (error.is_io_error() || error.is_connection_dropped()) => {
                    (lost, self.connection) = (true, None);
                }
                Err(error) => {
                    self.connection = None;
                    return Err(self.failed(action, error));
                }
            }
        }
    }

    fn connection(&mut self) -> Result<&mut Connection, RedisError> {
        if self.connection.is_none() {
            let connection = self.client.get_connection_with_timeout(CONNECTING)?;
            connection.set_read_timeout(Some(PATIENCE))?;
            connection.set_write_timeout(Some(PATIENCE))?;
            self.connection = Some(connection);
        }
        Ok(self.connection.as_mut().expect("it was just made"))
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl RedisStore {
    fn failed(&self, action: &str, error: RedisError) -> StateError {
        let is_config = action.starts_with("ask Redis for its");
        if is_config && matches!(error.code(), Some("NOPERM" | "ERR")) {
            return StateError::Refused(format!(
                "Redis at {} does not permit `CONFIG GET`, by which it is asked whether it keeps what it is given \
                 ({error}): permit it (`ACL SETUSER name +config|get`), or, if you know that it has `appendonly yes`, \
                 `appendfsync always` and `maxmemory-policy noeviction`, set `state.durability = \"assumed\"`",
                self.place
            ));
        }
        let source = Box::new(RedisTrouble { place: self.place.clone(), error });
        StateError::Unavailable { action: action.to_owned(), source }
    }
}

/// A client of a Redis, not connected yet.
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

/// What went wrong, with the address and what to check.
#[derive(Debug)]
struct RedisTrouble {
    place: String,
    error: RedisError,
}

impl std::error::Error for RedisTrouble {}

impl fmt::Display for RedisTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RedisTrouble { place, error } = self;
        let reason = error.to_string();
        let says = |words: &str| reason.contains(words);
        let check = match error.code() {
            _ if error.kind() == ErrorKind::AuthenticationFailed => {
                "does not accept user and password: check those of `state.url`"
            }
            Some("WRONGPASS" | "NOAUTH") => "does not accept user and password: check those of `state.url`",
            Some("NOPERM") => "does not permit its user to do this: see `ACL LOG` at the server",
            _ if says("failed to lookup address") => {
                "has an unknown host name: check its spelling and the DNS"
            }
            _ if says("NotValidForName") || says("not valid for name") => {
                "has a certificate for another host name: connect by a name that is in it"
            }
            _ if says("UnknownIssuer") || says("BadSignature") => {
                "has a certificate that is not trusted: check that `state.ca_file` has the CA that signed it"
            }
            _ if says("invalid peer certificate") => "has a certificate that is not valid: check it",
            _ if says("fatal alert") => {
                "does not accept the client's certificate, or demands one: check `state.cert_file` and \
                 `state.key_file`"
            }
            _ if says("corrupt message") || says("InvalidContentType") => {
                "does not speak TLS on this port: check the port, or `redis://`"
            }
            _ if error.is_connection_refusal() => {
                "refuses connections: check that it runs, the address and the port"
            }
            _ if error.is_timeout() => {
                "does not answer in time: check that it runs, the address, the network, and whether it speaks TLS on \
                 this port (`rediss://`) or not"
            }
            _ if error.is_connection_dropped() || says("end of file") => {
                "closes the connection: it may expect TLS on this port (`rediss://`)"
            }
            _ => return write!(f, "Redis at {place}: {reason}"),
        };
        write!(f, "Redis at {place} {check} ({reason})")
    }
}

impl StateStore for RedisStore {
    fn put(&mut self, name: &str, blob: &[u8]) -> Result<(), StateError> {
        let command = cmd("SET").arg(self.key(name)).arg(blob).take();
        self.ask(&format!("put {name} into Redis"), &command)
    }

    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let command = cmd("GET").arg(self.key(name)).take();
        self.ask(&format!("get {name} from Redis"), &command)
    }

    fn delete(&mut self, name: &str) -> Result<(), StateError> {
        let command = cmd("DEL").arg(self.key(name)).take();
        self.ask(&format!("delete {name} from Redis"), &command)
    }

    fn list(&mut self, prefix: &str) -> Result<Vec<String>, StateError> {
        let mut names = std::collections::BTreeSet::new();
        let mut cursor = "0".to_owned();
        loop {
            let pattern = format!("{}*", self.key(prefix));
            let command = cmd("SCAN").arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCANNED).take();
            let (next, keys): (String, Vec<String>) = self.ask("list what is in Redis", &command)?;
            names.extend(keys.iter().filter_map(|key| key.strip_prefix(&self.prefix)).map(str::to_owned));
            cursor = next;
            if cursor == "0" {
                return Ok(names.into_iter().collect());
            }
        }
    }

    /// With `appendfsync always` Redis answers once what it was given is on disk: it must still be so.
    fn sync(&mut self) -> Result<(), StateError> {
        match self.durability {
            Durability::Checked => self.check(),
            Durability::Assumed => Ok(()),
        }
    }
}
