//! How captured state is written down.

use std::cell::RefCell;
use std::sync::Arc;

use bincode::Options;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{KeyHash, ShardId};

/// What can be part of a checkpoint: everything that serde can write and read back, and that is the same afterwards.
///
/// Equal values must be written alike, so there is to be no map in it that is iterated in a random order.
pub trait Stored: Serialize + DeserializeOwned {}

impl<T: Serialize + DeserializeOwned> Stored for T {}

/// A change of what a checkpoint holds.
///
/// Of several with the same operator, shard and key the latest counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Record {
    /// Which operator's state it is.
    pub operator: Arc<str>,
    /// Where the key belongs.
    pub shard: ShardId,
    /// Names the state among those of the operator and shard: a key, or a part of what an operator knows of all.
    pub key: Vec<u8>,
    /// The state, or none if there is no state any more.
    pub value: Option<Vec<u8>>,
}

/// Why a checkpoint cannot be gone on from.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// A record is not what its operator wrote.
    #[error("checkpoint of operator {operator:?}, key {key}: {damage}")]
    Damaged {
        /// The operator.
        operator: Arc<str>,
        /// The key: as text, or in hexadecimal if it cannot be read.
        key: String,
        /// What is wrong.
        damage: Damage,
    },
    /// There is state of an operator that the dataflow does not have.
    #[error("the checkpoint holds state of operator {0:?}, which is not there any more")]
    Unclaimed(Arc<str>),
    /// Two operators have the same name, so that their state cannot be told apart.
    #[error("two operators are called {0:?}")]
    Ambiguous(Arc<str>),
}

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Damage {
    /// It has another version than this release writes and reads.
    #[error("its format has version {found}, and {STATE_VERSION} is expected")]
    Version {
        /// The version of the record.
        found: u8,
    },
    /// It cannot be decoded.
    #[error("it cannot be decoded: {0}")]
    Undecodable(String),
    /// It is well-formed and cannot be true.
    #[error("{0}")]
    Impossible(&'static str),
}

/// The version of what operators store: the first byte of every record's value.
pub const STATE_VERSION: u8 = 1;

/// The version and then the value: integers of variable length, no trailing bytes.
pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    written(&[STATE_VERSION], value)
}

/// What [`encode`] has written.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damage> {
    match bytes.split_first() {
        Some((&STATE_VERSION, rest)) => read(rest),
        Some((&found, _)) => Err(Damage::Version { found }),
        None => Err(Damage::Impossible("it is empty")),
    }
}

/// The bytes that name a key in its records: its hash, which the event may have made in a way of its own, and the key.
pub(crate) fn key_bytes(hash: KeyHash, key: &impl Serialize) -> Vec<u8> {
    written(&hash.0.to_be_bytes(), key)
}

/// What [`key_bytes`] has written.
pub(crate) fn key_of<K: DeserializeOwned>(bytes: &[u8]) -> Result<(KeyHash, K), Damage> {
    let (hash, key) = bytes.split_first_chunk().ok_or(Damage::Impossible("its key has no hash"))?;
    Ok((KeyHash(u64::from_be_bytes(*hash)), read(key)?))
}

/// A value behind some bytes, in as much memory as it takes: a checkpoint is millions of them, and lists that grow by and
/// by would take twice as much.
fn written(before: &[u8], value: &impl Serialize) -> Vec<u8> {
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        scratch.extend_from_slice(before);
        bincode::options()
            .serialize_into(&mut *scratch, value)
            .expect("what is stored can be written to memory");
        scratch.as_slice().to_vec()
    })
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damage> {
    bincode::options().deserialize(bytes).map_err(|error| Damage::Undecodable(error.to_string()))
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
