//! The traits of a user's key and event types.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Epoch, EventTime, KeyHash, Position};

/// A key by which events are grouped. Keys are hashed once, and compared by hash first.
///
/// Implemented for `str`, `[u8]` and unsigned integers. A custom type needs a hash that is the same in every process
/// and release, preferably made by [`KeyHash::of`].
pub trait Key: Ord + ToOwned<Owned: Debug + Clone + Ord + 'static> + 'static {
    /// Returns the hash of this key.
    fn key_hash(&self) -> KeyHash;
}

impl Key for str {
    fn key_hash(&self) -> KeyHash {
        KeyHash::of(self.as_bytes())
    }
}

impl Key for [u8] {
    fn key_hash(&self) -> KeyHash {
        KeyHash::of(self)
    }
}

macro_rules! integer_keys {
    ($($integer:ty)*) => {$(
        impl Key for $integer {
            fn key_hash(&self) -> KeyHash {
                KeyHash::of(&self.to_le_bytes())
            }
        }
    )*};
}

integer_keys!(u16 u32 u64 u128);

/// An event of a key at a time.
///
/// ```
/// use headwater_dataflows::{Event, EventTime, Offset, Partition, Position};
///
/// #[derive(Clone, Debug, PartialEq, Eq)]
/// struct Click { user: String, at: i64, line: i64 }
///
/// impl Event for Click {
///     type Key = str;
///     fn key(&self) -> &str { &self.user }
///     fn time(&self) -> EventTime { EventTime(self.at) }
///     fn position(&self) -> Position { Position { partition: Partition(0), offset: Offset(self.line) } }
/// }
///
/// let click = Click { user: "ann".into(), at: 1_000, line: 7 };
/// assert_eq!(click.id(), None);
/// assert_eq!(click.key_hash(), headwater_dataflows::KeyHash::of(b"ann"));
/// ```
pub trait Event: Clone + Debug + Eq + 'static {
    /// The type of the key.
    type Key: Key + ?Sized;

    /// Returns the key.
    fn key(&self) -> &Self::Key;

    /// Returns the hash of the key. Override this if the event already contains the hash.
    fn key_hash(&self) -> KeyHash {
        self.key().key_hash()
    }

    /// Returns the event time.
    fn time(&self) -> EventTime;

    /// Returns the position in the input. It breaks ties between equal times, so it must be unique.
    fn position(&self) -> Position;

    /// Returns the id for deduplication. An event without an id (`None`) is never a duplicate.
    fn id(&self) -> Option<&[u8]> {
        None
    }

    /// Prefetches the memory that the event points to and that operators will read: see [`prefetch`](crate::prefetch).
    /// Worth implementing for an event that is little more than a pointer.
    #[inline]
    fn prefetch(&self) {}

    /// Appends events, with their epochs and multiplicities, in the form in which they are sent to another process. Override
    /// both this and [`unpack`](Event::unpack) for a form that is smaller or faster than bincode.
    fn pack(batch: &[(Self, Epoch, isize)], out: &mut Vec<u8>)
    where
        Self: Serialize,
    {
        bincode::serialize_into(out, batch).expect("bytes can be written to memory");
    }

    /// Reads the output of [`pack`](Event::pack). There may be further bytes after it.
    ///
    /// # Errors
    /// If the bytes are anything else.
    fn unpack(bytes: &[u8]) -> Result<Vec<(Self, Epoch, isize)>, String>
    where
        Self: DeserializeOwned,
    {
        bincode::deserialize(bytes)
            .map_err(|error| format!("events from another process are malformed: {error}"))
    }
}

/// The owned form of the key, used in results.
pub type OwnedKey<E> = <<E as Event>::Key as ToOwned>::Owned;

/// Returns the position of an event in the order of evaluation: event time, then partition, then offset.
pub(crate) fn order<E: Event>(event: &E) -> (EventTime, Position) {
    (event.time(), event.position())
}
