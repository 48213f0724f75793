//! The encoding of captured state.

use std::cell::RefCell;
use std::sync::Arc;

use bincode::Options;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{KeyHash, ShardId};

/// A type that can be stored in a checkpoint: serde can serialise it, and deserialising restores an equal value.
///
/// Equal values must have equal encodings, so the type must not contain a map that is iterated in a random order.
pub trait Stored: Serialize + DeserializeOwned {}

impl<T: Serialize + DeserializeOwned> Stored for T {}

/// A change of the content of a checkpoint.
///
/// Of several records with the same operator, shard and key, the latest counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Record {
    /// The name of the operator whose state this is.
    pub operator: Arc<str>,
    /// The shard of the key.
    pub shard: ShardId,
    /// Identifies the state within the operator and shard: a key, or a part of the state that the keys share.
    pub key: Vec<u8>,
    /// The state; `None` deletes it.
    pub value: Option<Vec<u8>>,
}

/// The reason why a checkpoint cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// A record differs from what its operator wrote.
    #[error("checkpoint of operator {operator:?}, key {key}: {damage}")]
    Damaged {
        /// The name of the operator.
        operator: Arc<str>,
        /// The key: as text, or in hexadecimal if it cannot be decoded.
        key: String,
        /// The defect of the record.
        damage: Damage,
    },
    /// The checkpoint contains state of an operator that the dataflow does not have.
    #[error("the checkpoint contains state of operator {0:?}, but the dataflow has no operator of that name")]
    Unclaimed(Arc<str>),
    /// Two operators have the same name, so that their states cannot be distinguished.
    #[error("two operators have the name {0:?}")]
    Ambiguous(Arc<str>),
}

/// A defect of a record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Damage {
    /// The format version is not the one that this release supports.
    #[error("the format has version {found}, and this program supports version {STATE_VERSION}")]
    Version {
        /// The version of the record.
        found: u8,
    },
    /// The key or the value cannot be decoded.
    #[error("the record cannot be decoded: {0}")]
    Undecodable(String),
    /// The record can be decoded, but its content is invalid.
    #[error("{0}")]
    Impossible(&'static str),
}

/// The version of the format of operator state: the first byte of the value of every record.
pub const STATE_VERSION: u8 = 1;

/// Encodes the version, then the value: variable-length integers, no trailing bytes.
pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    serialize_after(&[STATE_VERSION], value)
}

/// Encodes a state to be stored; `None` if it is the default state.
pub(crate) fn encode_unless_default<S: Serialize + Default>(state: &S) -> Option<Vec<u8>> {
    Some(encode(state)).filter(|value| *value != encode(&S::default()))
}

/// Decodes the result of [`encode`].
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damage> {
    match bytes.split_first() {
        Some((&STATE_VERSION, rest)) => deserialize(rest),
        Some((&found, _)) => Err(Damage::Version { found }),
        None => Err(Damage::Impossible("the value is empty")),
    }
}

/// Decodes the first part of what [`encode`] was given, a tuple.
pub(crate) fn decode_first<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damage> {
    match bytes.split_first() {
        Some((&STATE_VERSION, rest)) => {
            let decoded = bincode::options().allow_trailing_bytes().deserialize(rest);
            decoded.map_err(|error| Damage::Undecodable(error.to_string()))
        }
        Some((&found, _)) => Err(Damage::Version { found }),
        None => Err(Damage::Impossible("the value is empty")),
    }
}

/// Encodes a key for its records: its hash, then the key. The hash is stored because an event type may define its own.
pub(crate) fn key_bytes(hash: KeyHash, key: &impl Serialize) -> Vec<u8> {
    serialize_after(&hash.0.to_be_bytes(), key)
}

/// Decodes the result of [`key_bytes`].
pub(crate) fn key_of<K: DeserializeOwned>(bytes: &[u8]) -> Result<(KeyHash, K), Damage> {
    let (hash, key) = bytes.split_first_chunk().ok_or(Damage::Impossible("the key has no hash"))?;
    Ok((KeyHash(u64::from_be_bytes(*hash)), deserialize(key)?))
}

/// Returns `prefix` followed by the encoded value, without spare capacity. A checkpoint has millions of these, and
/// vectors that grow step by step would need twice the memory.
fn serialize_after(prefix: &[u8], value: &impl Serialize) -> Vec<u8> {
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        scratch.extend_from_slice(prefix);
        bincode::options()
            .serialize_into(&mut *scratch, value)
            .expect("a stored type can be serialized to memory");
        scratch.as_slice().to_vec()
    })
}

fn deserialize<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damage> {
    bincode::options().deserialize(bytes).map_err(|error| Damage::Undecodable(error.to_string()))
}

/// Returns the bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
