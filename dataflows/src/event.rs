//! What the operators ask of a user's key and event types.

use std::fmt::Debug;

use crate::{EventTime, KeyHash, Position};

/// What events are grouped by: hashed once, compared by hash first.
///
/// Implemented for `str`, `[u8]` and the unsigned integers; a type of one's own needs only a hash that is the
/// same in every process and release, best made by [`KeyHash::of`].
pub trait Key: Ord + ToOwned<Owned: Debug + Clone + Ord + 'static> + 'static {
    /// The hash of this key.
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

/// An event: something that happened to a key at a time.
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
    /// What it is grouped by.
    type Key: Key + ?Sized;

    /// The key.
    fn key(&self) -> &Self::Key;

    /// The key's hash; override it where the event carries it already.
    fn key_hash(&self) -> KeyHash {
        self.key().key_hash()
    }

    /// When it happened.
    fn time(&self) -> EventTime;

    /// Where it stood in the input: breaks ties between equal times, so it must be unique.
    fn position(&self) -> Position;

    /// What makes two records the same event to deduplication; none is never a duplicate.
    fn id(&self) -> Option<&[u8]> {
        None
    }

    /// Asks for the memory that an event points to and that operators will read: see [`prefetch`](crate::prefetch).
    /// Worth writing for an event that is little more than a pointer.
    #[inline]
    fn prefetch(&self) {}
}

/// The key in its owned form, as results carry it.
pub type OwnedKey<E> = <<E as Event>::Key as ToOwned>::Owned;

/// The order in which events of a key are evaluated: event time, then partition, then offset.
pub(crate) fn order<E: Event>(event: &E) -> (EventTime, Position) {
    (event.time(), event.position())
}
