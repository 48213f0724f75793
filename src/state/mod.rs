//! The state store, which holds the parts of checkpoints as immutable blobs.
//!
//! The store does not interpret the blobs or their relations: the ledger does. A blob that no manifest names is
//! garbage.

mod config;
mod fjall;
#[cfg(feature = "object-store")]
pub mod object;
pub mod part;
mod redis;
#[cfg(feature = "rocksdb")]
mod rocksdb;

use std::time::{Duration, Instant};

use headwater_sinks::crash;
use thiserror::Error;

pub use self::config::{Durability, RedisConfig, StateConfig};
pub use self::fjall::FjallStore;
#[cfg(feature = "object-store")]
pub use self::object::ObjectStore;
pub use self::redis::RedisStore;
#[cfg(feature = "rocksdb")]
pub use self::rocksdb::RocksStore;

/// The reason why a state store operation failed.
#[derive(Debug, Error)]
pub enum StateError {
    /// The store could not be reached or returned an error.
    #[error("state store: cannot {action}")]
    Unavailable {
        /// The operation that failed, with the name of the blob.
        action: String,
        /// The error of the store.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store must not be used, because it is not durable.
    #[error("state store: {0}")]
    Refused(String),
}

/// A store of blobs by name. Names are ASCII without wildcards, such as `9f…/7/1200/63.delta`, and no name continues
/// another one after a slash.
///
/// # Contract
/// A name is never reused for another blob, so storing a blob again stores the same bytes. A stored blob can be read
/// at once, and survives a power failure once a later [`sync`](StateStore::sync) has returned. Methods block. A store may
/// put in the background: then the error of a put is that of a later method, at the latest of `sync`.
pub trait StateStore: Send {
    /// Stores a blob.
    ///
    /// # Errors
    /// If the store fails; the blob may have been stored.
    fn put(&mut self, name: &str, blob: &[u8]) -> Result<(), StateError>;

    /// Returns a blob; None if there is no blob of that name.
    ///
    /// # Errors
    /// If the store fails.
    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, StateError>;

    /// Returns several blobs, as [`get`](StateStore::get) does, in the order of their names.
    ///
    /// # Errors
    /// If the store fails.
    fn get_all(&mut self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, StateError> {
        names.iter().map(|name| self.get(name)).collect()
    }

    /// Deletes a blob, if it exists.
    ///
    /// # Errors
    /// If the store fails; the blob may have been deleted.
    fn delete(&mut self, name: &str) -> Result<(), StateError>;

    /// Deletes several blobs, if they exist: all of them, even if one cannot be deleted.
    ///
    /// # Errors
    /// If the store fails for a blob; others may have been deleted.
    fn delete_all(&mut self, names: &[String]) -> Result<(), StateError> {
        let mut all = Ok(());
        for name in names {
            let one = self.delete(name);
            crash::point("part.deleted");
            all = all.and(one);
        }
        all
    }

    /// Returns the names that begin with `prefix`, in order.
    ///
    /// # Errors
    /// If the store fails.
    fn list(&mut self, prefix: &str) -> Result<Vec<String>, StateError>;

    /// Makes all stored blobs durable: they survive a power failure once this returns.
    ///
    /// # Errors
    /// If the store fails, or is no longer durable.
    fn sync(&mut self) -> Result<(), StateError>;
}

/// Opens the state store of a pipeline.
///
/// # Errors
/// If the store cannot be opened, or must not be used.
pub fn open(config: &StateConfig, pipeline: &str) -> Result<Box<dyn StateStore>, StateError> {
    Ok(match config {
        StateConfig::Fjall(path) => Box::new(FjallStore::open(path)?),
        StateConfig::Redis(redis) => Box::new(RedisStore::open(redis, pipeline)?),
        #[cfg(feature = "rocksdb")]
        StateConfig::RocksDb(path) => Box::new(RocksStore::open(path)?),
        #[cfg(feature = "object-store")]
        StateConfig::Object(config) => Box::new(ObjectStore::open(config, pipeline)?),
    })
}

/// The result of opening a state store without creating it or waiting for it.
pub enum ExistingStore {
    /// The store does not exist.
    Absent,
    /// Another process has the store open.
    InUse,
    /// The store can be read.
    Open(Box<dyn StateStore>),
}

/// Opens the state store of a pipeline for reading, without creating it or waiting for it.
///
/// # Errors
/// If the store cannot be read.
pub fn open_existing(config: &StateConfig, pipeline: &str) -> Result<ExistingStore, StateError> {
    Ok(match config {
        StateConfig::Fjall(path) if !path.exists() => ExistingStore::Absent,
        StateConfig::Fjall(path) => match FjallStore::try_open(path)? {
            Some(store) => ExistingStore::Open(Box::new(store)),
            None => ExistingStore::InUse,
        },
        StateConfig::Redis(redis) => ExistingStore::Open(Box::new(RedisStore::open(redis, pipeline)?)),
        #[cfg(feature = "rocksdb")]
        StateConfig::RocksDb(path) if !path.exists() => ExistingStore::Absent,
        #[cfg(feature = "rocksdb")]
        StateConfig::RocksDb(path) => ExistingStore::Open(Box::new(RocksStore::open(path)?)),
        #[cfg(feature = "object-store")]
        StateConfig::Object(config) => match ObjectStore::open_existing(config, pipeline)? {
            Some(store) => ExistingStore::Open(Box::new(store)),
            None => ExistingStore::Absent,
        },
    })
}

/// The time that another process has to close a folder.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause between attempts to open a folder.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Opens a folder, and retries while another process that may just have been replaced has it open.
fn open_with_retry<T, E>(
    mut open: impl FnMut() -> Result<T, E>,
    is_locked: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let start = Instant::now();
    loop {
        match open() {
            Err(error) if is_locked(&error) && start.elapsed() < LOCK_TIMEOUT => {
                std::thread::sleep(RETRY_INTERVAL)
            }
            outcome => return outcome,
        }
    }
}
