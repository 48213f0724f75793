//! The beginning of a version of rules or lists.

use serde::{Deserialize, Serialize};

use crate::{Epoch, EventTime, Offset, Position};

/// The beginning of a version: it is in force for events of later epochs, which are those at or after these offsets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// The epoch that the version is bound to. It is in force from the next one on.
    pub epoch: Epoch,
    /// The offset after the last event of that epoch or an earlier one, by partition. A partition that is not among them
    /// was added later.
    pub ends: Vec<Offset>,
    /// A time that no event of that epoch or an earlier one is after, unless it is final at the end of the epoch.
    pub last_time: EventTime,
}

impl Since {
    /// Returns the beginning of a version that is in force for all events.
    pub fn beginning() -> Since {
        Since { epoch: Epoch(0), ends: Vec::new(), last_time: EventTime::MIN }
    }

    /// Returns true if the version, unless a later one replaces it, is in force for the event at a position.
    #[inline]
    pub fn includes(&self, position: Position) -> bool {
        self.ends.get(position.partition.0 as usize).is_none_or(|end| *end <= position.offset)
    }
}
