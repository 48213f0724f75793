//! The states of a backfill, from the records that a dataflow with its rules alone has captured.

use super::state::SetState;
use crate::capture::{Damage, Stored, decode, decode_first, key_of};
use crate::rules::KeyedState;
use crate::{Event, EventTime, KeyHash, OwnedKey, Position, ShardId};

impl<E: Event<Key: ToOwned<Owned: Stored>>> KeyedState<E, SetState> {
    /// Decodes the states of the rules of a set for one key: the key and the value of a [`Record`](crate::Record) of the
    /// set, and the time that [`last_of`] returns for the key's record of admission.
    ///
    /// # Errors
    /// Fails if they cannot be decoded.
    pub fn decode(key: &[u8], last: EventTime, value: &[u8]) -> Result<Self, Damage> {
        let (hash, key): (KeyHash, OwnedKey<E>) = key_of(key)?;
        Ok(KeyedState { hash, key, last, state: decode(value)? })
    }
}

/// Returns the shard of a key, given the key of one of its records.
///
/// # Errors
/// Fails if it is not the key of a record.
pub fn shard_of(key: &[u8]) -> Result<ShardId, Damage> {
    let hash = key.first_chunk().ok_or(Damage::Impossible("the key has no hash"))?;
    Ok(KeyHash(u64::from_be_bytes(*hash)).shard())
}

/// Returns the time of the last event of a key, given the value of its record of admission.
///
/// # Errors
/// Fails if it is not such a value.
pub fn last_of(admitted: &[u8]) -> Result<EventTime, Damage> {
    decode_first::<(EventTime, Position)>(admitted).map(|(last, _)| last)
}
