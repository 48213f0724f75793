//! Blobs in Redis: what several processes share. Every key begins with the pipeline's name.

use std::time::Duration;

use redis::{Client, Cmd, Connection, FromRedisValue, RedisError, cmd};

use super::{StateError, StateStore};

/// How long a connection, or an answer, may take.
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
    prefix: String,
    /// None after a failure.
    connection: Option<Connection>,
}

impl RedisStore {
    /// Connects to the Redis at `url`.
    ///
    /// # Errors
    /// If it cannot be reached, or does not keep what it is given.
    pub fn open(url: &str, pipeline: &str) -> Result<RedisStore, StateError> {
        let client = Client::open(url).map_err(|error| unavailable("use the URL of Redis", error))?;
        let prefix = format!("headwater:{pipeline}:");
        let mut store = RedisStore { client, prefix, connection: None };
        store.check()?;
        Ok(store)
    }

    /// Whatever it has answered for must survive.
    fn check(&mut self) -> Result<(), StateError> {
        for (name, expected, reason) in DURABLE {
            let command = cmd("CONFIG").arg("GET").arg(name).take();
            let (_, value): (String, String) = self.ask(&format!("ask Redis for its {name}"), &command)?;
            if value != expected {
                return Err(StateError::Refused(format!(
                    "Redis has {name} {value}, and {expected} is needed: {reason}"
                )));
            }
        }
        Ok(())
    }

    /// Asks once more if the connection is lost: whatever is asked may be asked twice.
    fn ask<T: FromRedisValue>(&mut self, action: &str, command: &Cmd) -> Result<T, StateError> {
        let mut lost = false;
        loop {
            let answer = self.connection().and_then(|connection| command.query(connection));
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) if !lost && (error.is_io_error() || error.is_connection_dropped()) => {
                    (lost, self.connection) = (true, None);
                }
                Err(error) => {
                    self.connection = None;
                    return Err(unavailable(action, error));
                }
            }
        }
    }

    fn connection(&mut self) -> Result<&mut Connection, RedisError> {
        if self.connection.is_none() {
            let connection = self.client.get_connection_with_timeout(PATIENCE)?;
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

fn unavailable(action: &str, error: RedisError) -> StateError {
    StateError::Unavailable { action: action.to_owned(), source: Box::new(error) }
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
        self.check()
    }
}
