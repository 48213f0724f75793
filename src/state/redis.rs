//! A state store in Redis, which several processes can share. Every key begins with the pipeline's name.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use headwater_sinks::redis::RedisClient;
use redis::{Cmd, Connection, FromRedisValue, RedisError, cmd};

use super::config::{Durability, RedisConfig};
use super::{StateError, StateStore};

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
    client: RedisClient,
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
        let client = config.server.client(RESPONSE_TIMEOUT).map_err(|error| StateError::Unavailable {
            action: "use Redis".to_owned(),
            source: error.into(),
        })?;
        let prefix = format!("headwater:{pipeline}:");
        let durability = config.durability;
        let mut store = RedisStore { client, durability, prefix, connection: None };
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

    /// Executes a command, and retries it once if the connection is lost: every command here is idempotent. What a signal interrupts, such
    /// as the one that lets a process go on that was stopped, does not count.
    fn execute<T: FromRedisValue>(&mut self, action: &str, command: &Cmd) -> Result<T, StateError> {
        // Only a connection that existed can be lost. A connection that cannot be made is not retried, which would
        // double the wait.
        let mut is_last_attempt = self.connection.is_none();
        loop {
            let answer = self.connection().and_then(|connection| command.query(connection));
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) if is_interrupted(&error) => self.connection = None,
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
            self.connection = Some(self.client.connect()?);
        }
        Ok(self.connection.as_mut().expect("the connection was just made"))
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// Returns true if a signal interrupted a call of the operating system: sockets with a timeout do not go on by themselves.
fn is_interrupted(error: &RedisError) -> bool {
    let shared = error.source().and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
    let cause = shared.and_then(|shared| shared.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::Interrupted)
}

impl RedisStore {
    fn error_of(&self, action: &str, error: RedisError) -> StateError {
        let is_config = action.starts_with("read the Redis setting");
        if is_config && matches!(error.code(), Some("NOPERM" | "ERR")) {
            return StateError::Refused(format!(
                "Redis at {} does not permit `CONFIG GET`, which is needed to check that it is durable ({error}): \
                 permit it (`ACL SETUSER name +config|get`), or, if you know that it has `appendonly yes`, \
                 `appendfsync always` and `maxmemory-policy noeviction`, set `state.durability = \"assumed\"`",
                self.client.address()
            ));
        }
        let source = Box::new(self.client.failure(error));
        StateError::Unavailable { action: action.to_owned(), source }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_calls_differ_from_lost_connections() {
        let error = |kind: io::ErrorKind| RedisError::from(io::Error::from(kind));
        assert!(is_interrupted(&error(io::ErrorKind::Interrupted)));
        assert!(!is_interrupted(&error(io::ErrorKind::ConnectionReset)));
        assert!(!is_interrupted(&error(io::ErrorKind::TimedOut)));
    }
}
