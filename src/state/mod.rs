//! The state store: where the parts of checkpoints lie, as immutable blobs.
//!
//! It does not know what they hold, nor which belong together: that is written in the ledger. What a store holds and no
//! manifest names is of no use.

mod fjall;
pub mod part;
mod redis;
#[cfg(feature = "rocksdb")]
mod rocksdb;

use std::time::{Duration, Instant};

use thiserror::Error;

pub use self::fjall::FjallStore;
pub use self::redis::RedisStore;
#[cfg(feature = "rocksdb")]
pub use self::rocksdb::RocksStore;
use crate::config::StateConfig;

/// Why the state store could not be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// It could not be reached or answered with an error.
    #[error("state store: cannot {action}")]
    Unavailable {
        /// What was being done, to which blob.
        action: String,
        /// The store's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It must not be used: it does not keep what it is given.
    #[error("state store: {0}")]
    Refused(String),
}

/// A place that keeps blobs under names: ASCII without wildcards, such as `9f…/7/1200/63.delta`.
///
/// # Contract
/// A name is given once, so putting it again puts the same. What was put is to be found at once, and survives the loss
/// of power once a [`sync`](StateStore::sync) that came after it has returned. Calls block.
pub trait StateStore: Send {
    /// Puts a blob.
    ///
    /// # Errors
    /// If the store fails; it may have been put.
    fn put(&mut self, name: &str, blob: &[u8]) -> Result<(), StateError>;

    /// A blob; none if there is none of that name.
    ///
    /// # Errors
    /// If the store fails.
    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, StateError>;

    /// Deletes a blob, if it is there.
    ///
    /// # Errors
    /// If the store fails; it may have been deleted.
    fn delete(&mut self, name: &str) -> Result<(), StateError>;

    /// The names that begin so, in order.
    ///
    /// # Errors
    /// If the store fails.
    fn list(&mut self, prefix: &str) -> Result<Vec<String>, StateError>;

    /// Returns when all that was put survives the loss of power.
    ///
    /// # Errors
    /// If the store fails, or does not keep what it is given any more.
    fn sync(&mut self) -> Result<(), StateError>;
}

/// Opens a pipeline's state store.
///
/// # Errors
/// If it cannot be opened, or must not be.
pub fn open(config: &StateConfig, pipeline: &str) -> Result<Box<dyn StateStore>, StateError> {
    Ok(match config {
        StateConfig::Fjall(path) => Box::new(FjallStore::open(path)?),
        StateConfig::Redis(redis) => Box::new(RedisStore::open(redis, pipeline)?),
        #[cfg(feature = "rocksdb")]
        StateConfig::RocksDb(path) => Box::new(RocksStore::open(path)?),
    })
}

/// A state store, as it is found without being made or waited for.
pub enum ExistingStore {
    /// It is not there.
    Absent,
    /// Another process has it.
    InUse,
    /// It can be read.
    Open(Box<dyn StateStore>),
}

/// Opens a pipeline's state store to look at it.
///
/// # Errors
/// If it cannot be read.
pub fn open_existing(config: &StateConfig, pipeline: &str) -> Result<ExistingStore, StateError> {
    Ok(match config {
        StateConfig::Fjall(path) if !path.exists() => ExistingStore::Absent,
        StateConfig::Fjall(path) => match FjallStore::open_now(path)? {
            Some(store) => ExistingStore::Open(Box::new(store)),
            None => ExistingStore::InUse,
        },
        StateConfig::Redis(redis) => ExistingStore::Open(Box::new(RedisStore::open(redis, pipeline)?)),
        #[cfg(feature = "rocksdb")]
        StateConfig::RocksDb(path) if !path.exists() => ExistingStore::Absent,
        #[cfg(feature = "rocksdb")]
        StateConfig::RocksDb(path) => ExistingStore::Open(Box::new(RocksStore::open(path)?)),
    })
}

/// How long another process may take to let go of a folder.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait before it is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// Opens a folder that another process may have, which may just have been replaced and is given time to let go.
fn patiently<T, E>(mut open: impl FnMut() -> Result<T, E>, is_locked: impl Fn(&E) -> bool) -> Result<T, E> {
    let begun = Instant::now();
    loop {
        match open() {
            Err(error) if is_locked(&error) && begun.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
}
