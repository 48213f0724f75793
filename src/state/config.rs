//! Settings of state stores.

use std::fmt;
use std::path::PathBuf;

use headwater_sinks::Secret;
use headwater_sinks::redis::RedisServer;

/// The state store for checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateConfig {
    /// fjall, in a directory that belongs to one process.
    Fjall(PathBuf),
    /// Redis.
    Redis(RedisConfig),
    /// RocksDB, in a directory that belongs to one process.
    #[cfg(feature = "rocksdb")]
    RocksDb(PathBuf),
    /// An object store, or a directory that several hosts share.
    #[cfg(feature = "object-store")]
    Object(Box<super::object::ObjectStoreConfig>),
}

impl fmt::Display for StateConfig {
    /// Writes the kind and the place, without an address, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateConfig::Fjall(path) => write!(f, "fjall in {}", path.display()),
            StateConfig::Redis(_) => f.write_str("Redis"),
            #[cfg(feature = "rocksdb")]
            StateConfig::RocksDb(path) => write!(f, "RocksDB in {}", path.display()),
            #[cfg(feature = "object-store")]
            StateConfig::Object(config) => write!(f, "the object store {}", config.url),
        }
    }
}

/// A Redis server as state store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisConfig {
    /// The server.
    pub server: RedisServer,
    /// The check of the server's durability settings.
    pub durability: Durability,
}

impl RedisConfig {
    /// Returns the default settings for an address.
    pub fn at(url: impl Into<Secret>) -> RedisConfig {
        RedisConfig { server: RedisServer::at("state", url), durability: Durability::Checked }
    }
}

/// The check that Redis stores data durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Verify the settings with `CONFIG GET`.
    Checked,
    /// Skip the check; the operator vouches for the settings.
    Assumed,
}
