//! A located event, in one allocation.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Location;
use super::travel::Sighting;
use crate::event::order;
use crate::prefetch::prefetch;
use crate::{Anchor, Event, EventTime, Offset, Partition, Position};

/// A [`Sighting`] of an [`Anchor`]. Each located event makes one, and the one before is freed when it is final, long after
/// it was last read. So it is one allocation, which is freed without being read.
///
/// Its bytes: latitude, longitude, time, partition, offset (little endian), and the id after a 1, or 0 without one.
#[derive(Clone, Debug, PartialEq)]
pub struct Located(Box<[u8]>);

/// The bytes before the id.
const FIXED: usize = 37;

impl Located {
    /// Returns an event with its location.
    pub fn of<E: Event>(location: Location, event: &E) -> Located {
        let (time, position) = order(event);
        Located::new(location, time, position, event.id())
    }

    #[inline]
    fn new(location: Location, time: EventTime, position: Position, id: Option<&[u8]>) -> Located {
        let mut bytes = Vec::with_capacity(FIXED + id.map_or(0, <[u8]>::len));
        bytes.extend_from_slice(&location.lat.to_le_bytes());
        bytes.extend_from_slice(&location.lon.to_le_bytes());
        bytes.extend_from_slice(&time.0.to_le_bytes());
        bytes.extend_from_slice(&position.partition.0.to_le_bytes());
        bytes.extend_from_slice(&position.offset.0.to_le_bytes());
        bytes.push(u8::from(id.is_some()));
        bytes.extend_from_slice(id.unwrap_or_default());
        Located(bytes.into_boxed_slice())
    }

    /// Prefetches what a step will read.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(&*self.0);
    }

    #[inline]
    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        *self.0[at..].first_chunk().expect("it has all of its numbers")
    }

    /// Returns the location.
    #[inline]
    pub fn location(&self) -> Location {
        Location { lat: f64::from_le_bytes(self.read(0)), lon: f64::from_le_bytes(self.read(8)) }
    }

    /// Returns the event time.
    #[inline]
    pub fn time(&self) -> EventTime {
        EventTime(i64::from_le_bytes(self.read(16)))
    }

    /// Returns the identity of the event.
    pub fn anchor(&self) -> Anchor {
        let partition = Partition(u32::from_le_bytes(self.read(24)));
        let offset = Offset(i64::from_le_bytes(self.read(28)));
        let id = (self.0[FIXED - 1] == 1).then(|| self.0[FIXED..].into());
        Anchor { time: self.time(), position: Position { partition, offset }, id }
    }
}

impl Serialize for Located {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Sighting { location: self.location(), time: self.time(), name: self.anchor() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Located, D::Error> {
        let Sighting { location, time, name } = Sighting::<Anchor>::deserialize(deserializer)?;
        Ok(Located::new(location, time, name.position, name.id.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{decode, encode};

    #[test]
    fn it_is_stored_as_a_sighting() {
        let location = Location { lat: 52.52, lon: -13.405 };
        for (offset, id) in [(7, None), (-1, Some(Box::from(*b""))), (i64::MAX, Some(Box::from(*b"evt-1")))] {
            let position = Position { partition: Partition(3), offset: Offset(offset) };
            let time = EventTime(1_700_000_000_123);
            let name = Anchor { time, position, id };
            let located = Located::new(location, time, position, name.id.as_deref());
            assert_eq!(
                (located.location(), located.time(), located.anchor()),
                (location, time, name.clone())
            );
            let stored = encode(&located);
            assert_eq!(stored, encode(&Sighting { location, time, name }));
            assert_eq!(decode::<Located>(&stored).expect("whole"), located);
        }
    }
}
