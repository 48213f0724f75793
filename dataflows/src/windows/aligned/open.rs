//! The windows of a key that are not final.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::EventTime;
use crate::prefetch::prefetch;

/// A window that is not final.
pub(super) struct Open<S, D> {
    pub start: EventTime,
    pub state: S,
    /// The number of its events. A window whose events were all retracted has no row.
    pub events: u64,
    /// The row emitted last. Boxed, because most windows have none before they close.
    pub shown: Option<Box<D>>,
    pub changed: bool,
}

impl<S: Default, D> Open<S, D> {
    fn new(start: EventTime) -> Self {
        Open { start, state: S::default(), events: 0, shown: None, changed: false }
    }
}

/// The largest number of windows that are searched linearly. Most keys have one window at a time.
const FEW: usize = 32;

/// The open windows of a key: a list if they are few, a map by start if they are many, so that the cost of an event
/// depends only on the number of windows that contain it.
pub(super) enum OfKey<S, D> {
    /// Unordered.
    Few(Vec<Open<S, D>>),
    /// Boxed, so that keys with few windows need no more memory.
    #[expect(clippy::box_collection, reason = "a map in place would make every key's list larger")]
    Many(Box<BTreeMap<EventTime, Open<S, D>>>),
}

impl<S, D> Default for OfKey<S, D> {
    fn default() -> Self {
        OfKey::Few(Vec::new())
    }
}

impl<S: Default, D> OfKey<S, D> {
    /// Returns the window that begins at `start`, creating it if necessary, and true if it is new.
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
                // The newest windows are the likeliest.
                let known = windows.iter().rposition(|window| window.start == start);
                let at = known.unwrap_or_else(|| {
                    if windows.capacity() == 0 {
                        // Most keys have at most one window, so no more capacity is reserved.
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
    /// Prefetches the newest windows, if they are few.
    pub fn prefetch(&self) {
        if let OfKey::Few(windows) = self
            && let Some(newest) = windows.last()
        {
            prefetch(newest);
        }
    }

    /// Returns the window that begins at `start`.
    pub fn get_mut(&mut self, start: EventTime) -> Option<&mut Open<S, D>> {
        match self {
            OfKey::Few(windows) => windows.iter_mut().find(|window| window.start == start),
            OfKey::Many(windows) => windows.get_mut(&start),
        }
    }

    /// Removes the window that begins at `start`. Frees the memory with the last window.
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

    /// Returns the windows that start last, latest first and up to `most`, and the number of the others.
    pub fn latest(&self, most: usize) -> (Vec<&Open<S, D>>, usize) {
        let (latest, count): (Vec<_>, _) = match self {
            OfKey::Few(windows) => {
                let mut sorted: Vec<_> = windows.iter().collect();
                sorted.sort_unstable_by_key(|window| Reverse(window.start));
                sorted.truncate(most);
                (sorted, windows.len())
            }
            OfKey::Many(windows) => (windows.values().rev().take(most).collect(), windows.len()),
        };
        let others = count - latest.len();
        (latest, others)
    }

    /// Returns the starts of all windows.
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
        /// Creates, finds and removes windows, few and many, and compares them with a map of counts.
        #[test]
        fn open_windows_behave_like_a_map(moves in prop::collection::vec((0i64..120, 0u8..4), 1..400)) {
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
            let (latest, others) = windows.latest(40);
            let latest: Vec<_> = latest.into_iter().map(|window| window.start).collect();
            prop_assert_eq!(&latest, &map.keys().rev().take(40).copied().collect::<Vec<_>>());
            prop_assert_eq!(latest.len() + others, map.len());
            prop_assert!(!map.is_empty() || matches!(windows, OfKey::Few(list) if list.capacity() == 0));
        }
    }
}
