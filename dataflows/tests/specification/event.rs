//! The event type of these tests, with every kind of attribute that an operator may read.

use headwater_dataflows::patterns::Location;
use headwater_dataflows::{Event, EventTime, KeyHash, Offset, Partition, Position};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tx {
    pub key: u16,
    pub time: i64,
    pub partition: u32,
    pub offset: i64,
    pub id: Option<[u8; 2]>,
    pub amount: Option<i64>,
    pub merchant: Option<u64>,
    /// An index into [`PLACES`].
    pub place: Option<u8>,
}

impl Tx {
    /// Returns an event with only a key, a time and an offset.
    pub fn plain(key: u16, time: i64, offset: i64) -> Tx {
        Tx { key, time, partition: 0, offset, id: None, amount: None, merchant: None, place: None }
    }

    pub fn location(&self) -> Option<Location> {
        self.place.map(|place| PLACES[usize::from(place)])
    }
}

impl Event for Tx {
    type Key = u16;

    fn key(&self) -> &u16 {
        &self.key
    }

    /// Returns a hash that two keys share, so that the tests find code that confuses equal hashes with equal keys.
    fn key_hash(&self) -> KeyHash {
        KeyHash::of(&(self.key / 2).to_le_bytes())
    }

    fn time(&self) -> EventTime {
        EventTime(self.time)
    }

    fn position(&self) -> Position {
        Position { partition: Partition(self.partition), offset: Offset(self.offset) }
    }

    fn id(&self) -> Option<&[u8]> {
        self.id.as_ref().map(<[u8; 2]>::as_slice)
    }
}

/// Places that are a few metres, some kilometres, or half the world apart.
pub const PLACES: [Location; 6] = [
    Location { lat: 48.8566, lon: 2.3522 },
    Location { lat: 48.8567, lon: 2.3523 },
    Location { lat: 49.2000, lon: 2.3522 },
    Location { lat: 49.4000, lon: 2.3522 },
    Location { lat: 51.5074, lon: -0.1278 },
    Location { lat: -36.8500, lon: 174.7600 },
];
