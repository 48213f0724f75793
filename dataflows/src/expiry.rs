//! Which keys have been idle for so long that they are forgotten.

use std::collections::BTreeMap;

use crate::EventTime;
use crate::batch::Slot;

/// How many points in time there are, in the time that a key lives without events, at which idle keys are looked for.
const POINTS: i64 = 64;

/// Keys by when to look at them again.
///
/// A key dies when the watermark is its time to live past its last event, neither sooner nor later: one that comes
/// back afterwards begins anew, wherever it lives. What happens at points in time, and so later, is only that memory
/// is given back.
pub(crate) struct Expiry {
    /// In milliseconds of event time.
    ttl_ms: i64,
    due: BTreeMap<EventTime, Vec<Slot>>,
}

impl Expiry {
    pub fn new(ttl_ms: i64) -> Self {
        Expiry { ttl_ms, due: BTreeMap::new() }
    }

    /// Has keys live for so long at the least, in milliseconds.
    pub fn at_least(&mut self, reach_ms: i64) {
        self.ttl_ms = self.ttl_ms.max(reach_ms);
    }

    /// When a key dies whose last event was then.
    pub fn death(&self, last: EventTime) -> EventTime {
        last.plus_ms(self.ttl_ms)
    }

    /// Has a key looked at once it is dead, if its last event was then.
    pub fn watch(&mut self, slot: Slot, last: EventTime) {
        let step = (self.ttl_ms / POINTS).max(1);
        let point = (self.death(last).0.div_euclid(step) + 1).saturating_mul(step);
        self.due.entry(EventTime(point)).or_default().push(slot);
    }

    /// Takes out some keys that are to be looked at.
    pub fn take(&mut self, watermark: EventTime) -> Option<Vec<Slot>> {
        let first = self.due.first_entry()?;
        (*first.key() <= watermark).then(|| first.remove())
    }
}
