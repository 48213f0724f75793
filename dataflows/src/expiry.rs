//! Expiry of keys that have had no events for a long time.

use std::collections::BTreeMap;

use crate::EventTime;
use crate::batch::Slot;

/// The number of points in time, within the time to live, at which keys are checked for expiry.
const POINTS: i64 = 64;

/// Keys by the time at which to check them for expiry.
///
/// A key expires exactly when the watermark reaches the time of its last event plus the time to live. If it has events
/// afterwards, it starts without state, the same on every worker. The checks only free memory, and happen later, at
/// fixed intervals.
pub(crate) struct Expiry {
    /// The time to live, in milliseconds of event time.
    ttl_ms: i64,
    due: BTreeMap<EventTime, Vec<Slot>>,
}

impl Expiry {
    pub fn new(ttl_ms: i64) -> Self {
        Expiry { ttl_ms, due: BTreeMap::new() }
    }

    /// Raises the time to live to at least `reach_ms` milliseconds.
    pub fn at_least(&mut self, reach_ms: i64) {
        self.ttl_ms = self.ttl_ms.max(reach_ms);
    }

    /// Returns the time at which a key with this last event time expires.
    pub fn death(&self, last: EventTime) -> EventTime {
        last.plus_ms(self.ttl_ms)
    }

    /// Schedules a check of a key after its expiry, given the time of its last event.
    pub fn watch(&mut self, slot: Slot, last: EventTime) {
        let step = (self.ttl_ms / POINTS).max(1);
        let point = (self.death(last).0.div_euclid(step) + 1).saturating_mul(step);
        self.due.entry(EventTime(point)).or_default().push(slot);
    }

    /// Removes and returns some keys that are due for a check; `None` if there are none.
    pub fn take(&mut self, watermark: EventTime) -> Option<Vec<Slot>> {
        let first = self.due.first_entry()?;
        (*first.key() <= watermark).then(|| first.remove())
    }
}
