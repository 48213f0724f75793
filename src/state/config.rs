//! Settings of state stores.

use std::fmt;
use std::path::PathBuf;

use headwater_sinks::Secret;

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
}

impl fmt::Display for StateConfig {
    /// Writes the kind and the place, without an address, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateConfig::Fjall(path) => write!(f, "fjall in {}", path.display()),
            StateConfig::Redis(_) => f.write_str("Redis"),
            #[cfg(feature = "rocksdb")]
            StateConfig::RocksDb(path) => write!(f, "RocksDB in {}", path.display()),
        }
    }
}

/// A Redis server and its connection settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisConfig {
    /// The address, with user and password; `rediss://` for TLS.
    pub url: Secret,
    /// The file of the CA that signed the server's certificate; None for the CAs that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// The files of the client certificate and its private key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The check of the server's durability settings.
    pub durability: Durability,
}

impl RedisConfig {
    /// Returns the default settings for an address.
    pub fn at(url: impl Into<Secret>) -> RedisConfig {
        RedisConfig { url: url.into(), ca_file: None, certificate: None, durability: Durability::Checked }
    }

    /// Returns true if the connection uses TLS.
    pub fn is_tls(&self) -> bool {
        is_redis_tls(&self.url)
    }
}

/// Returns true if the address of a Redis server demands TLS.
pub fn is_redis_tls(url: &Secret) -> bool {
    ["rediss://", "valkeys://"].iter().any(|scheme| url.expose().starts_with(scheme))
}

/// The check that Redis stores data durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Verify the settings with `CONFIG GET`.
    Checked,
    /// Skip the check; the operator vouches for the settings.
    Assumed,
}
