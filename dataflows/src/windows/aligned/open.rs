//! The windows of a key that are not final.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::EventTime;

/// A window that is not final.
pub(super) struct Open<S, D> {
    pub start: EventTime,
    pub state: S,
    /// How many events it has: one that has lost them all has no row.
    pub events: u64,
    /// The row given last.
    pub shown: Option<D>,
    pub changed: bool,
}

impl<S: Default, D> Open<S, D> {
    fn new(start: EventTime) -> Self {
        Open { start, state: S::default(), events: 0, shown: None, changed: false }
    }
}

/// So many windows are looked through one by one. Most keys have one at a time.
const FEW: usize = 32;

/// A key's open windows: a list of a few, and by their starts where they are many, so that what an event costs grows with
/// the windows that hold it and no further.
pub(super) enum OfKey<S, D> {
    /// In no order.
    Few(Vec<Open<S, D>>),
    /// Boxed, so that keys with few cost no more.
    #[expect(clippy::box_collection, reason = "a map in place would make every key's list larger")]
    Many(Box<BTreeMap<EventTime, Open<S, D>>>),
}

impl<S, D> Default for OfKey<S, D> {
    fn default() -> Self {
        OfKey::Few(Vec::new())
    }
}

impl<S: Default, D> OfKey<S, D> {
    /// The window that starts then, and whether it is new.
    pub fn made(&mut self, start: EventTime) -> (&mut Open<S, D>, bool) {
        if let OfKey::Few(windows) = self
            && windows.len() >= FEW
            && !windows.iter().any(|window| window.start == start)
        {
            let windows = std::mem::take(windows).into_iter().map(|window| (window.start, window));
            *self = OfKey::Many(Box::new(windows.collect()));
        }
        match self {
            OfKey::Few(windows) => {
                // The newest are the likeliest.
                let known = windows.iter().rposition(|window| window.start == start);
                let at = known.unwrap_or_else(|| {
                    if windows.capacity() == 0 {
                        // Idle keys have none: no room is kept for more than there are.
                        windows.reserve_exact(1);
                    }
                    windows.push(Open::new(start));
                    windows.len() - 1
                });
                (&mut windows[at], known.is_none())
            }
            OfKey::Many(windows) => match windows.entry(start) {
                Entry::Occupied(known) => (known.into_mut(), false),
                Entry::Vacant(new) => (new.insert(Open::new(start)), true),
            },
        }
    }
}

impl<S, D> OfKey<S, D> {
    /// The window that starts then.
    pub fn get_mut(&mut self, start: EventTime) -> Option<&mut Open<S, D>> {
        match self {
            OfKey::Few(windows) => windows.iter_mut().find(|window| window.start == start),
            OfKey::Many(windows) => windows.get_mut(&start),
        }
    }

    /// Takes out the window that starts then. Memory is given back with the last one.
    pub fn remove(&mut self, start: EventTime) -> Option<Open<S, D>> {
        let (taken, is_empty) = match self {
            OfKey::Few(windows) => {
                let at = windows.iter().position(|window| window.start == start)?;
                (windows.swap_remove(at), windows.is_empty())
            }
            OfKey::Many(windows) => (windows.remove(&start)?, windows.is_empty()),
        };
        if is_empty {
            *self = OfKey::default();
        }
        Some(taken)
    }

    /// When each window starts.
    pub fn starts(&self) -> Vec<EventTime> {
        match self {
            OfKey::Few(windows) => windows.iter().map(|window| window.start).collect(),
            OfKey::Many(windows) => windows.keys().copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Windows made, found and taken out, few and many, against a map of counts.
        #[test]
        fn few_or_many_windows_are_those_of_a_map(moves in prop::collection::vec((0i64..120, 0u8..4), 1..400)) {
            let mut windows: OfKey<u64, ()> = OfKey::default();
            let mut map = BTreeMap::new();
            for (start, what) in moves {
                let start = EventTime(start);
                if what == 0 {
                    prop_assert_eq!(windows.remove(start).map(|window| window.state), map.remove(&start));
                    continue;
                }
                let (window, new) = windows.made(start);
                prop_assert_eq!((window.start, new), (start, !map.contains_key(&start)));
                window.state += 1;
                *map.entry(start).or_insert(0) += 1;
                prop_assert_eq!(windows.get_mut(start).map(|window| window.state), map.get(&start).copied());
            }
            let mut starts = windows.starts();
            starts.sort_unstable();
            prop_assert_eq!(starts, map.keys().copied().collect::<Vec<_>>());
            prop_assert!(!map.is_empty() || matches!(windows, OfKey::Few(list) if list.capacity() == 0));
        }
    }
}
