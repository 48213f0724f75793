//! The identity of an event, small enough to be kept in the state of a rule.

use serde::{Deserialize, Serialize};

use crate::event::order;
use crate::{Event, EventTime, Position};

/// An event that a rule refers to after it has been stepped: an earlier one, or one that no other followed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Anchor {
    /// The event time.
    pub time: EventTime,
    /// The position in the input.
    pub position: Position,
    /// The id for deduplication, if the event has one.
    pub id: Option<Box<[u8]>>,
}

impl Anchor {
    /// Returns the anchor of an event.
    pub fn of<E: Event>(event: &E) -> Anchor {
        let (time, position) = order(event);
        Anchor { time, position, id: event.id().map(Box::from) }
    }
}
