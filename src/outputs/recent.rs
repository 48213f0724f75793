//! The most recent alerts in memory, for readers where no sink stores them in a table.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use headwater_dataflows::Epoch;

use super::{Alert, RuleMode, Status};

/// The maximum number of changes in memory.
const CHANGES: usize = 10_000;

/// A change of an alert.
#[derive(Clone, Debug)]
pub struct RecentAlert {
    /// The alert.
    pub alert: Alert,
    /// The epoch of the change.
    pub epoch: Epoch,
    /// The change.
    pub status: Status,
}

/// The place of a change: its epoch and the alert's id.
type Place = (Epoch, String);

/// The last 10,000 changes of alerts. Workers add them when they compute them, so readers must leave out epochs that are
/// not committed.
#[derive(Debug)]
pub struct RecentAlerts {
    changes: Mutex<BTreeMap<Place, RecentAlert>>,
    /// The maximum number of changes.
    most: usize,
}

impl Default for RecentAlerts {
    fn default() -> RecentAlerts {
        RecentAlerts { changes: Mutex::default(), most: CHANGES }
    }
}

impl RecentAlerts {
    /// Returns a buffer that keeps all changes until they are taken.
    pub fn unbounded() -> RecentAlerts {
        RecentAlerts { changes: Mutex::default(), most: usize::MAX }
    }

    /// Removes all changes and returns them, in their order.
    pub fn take(&self) -> Vec<RecentAlert> {
        std::mem::take(&mut *self.lock()).into_values().collect()
    }

    /// Adds a change. A replayed epoch adds the same changes again.
    pub fn add(&self, alert: &Alert, epoch: Epoch, status: Status) {
        let change = RecentAlert { alert: alert.clone(), epoch, status };
        let mut changes = self.lock();
        changes.insert((epoch, alert.id()), change);
        while changes.len() > self.most {
            changes.pop_first();
        }
    }

    /// Returns the last change of every alert in epochs before `before`, in the order of the changes.
    pub fn latest(&self, before: Epoch) -> Vec<RecentAlert> {
        let changes = self.lock();
        let visible = || changes.range(..(before, String::new()));
        let last: HashMap<&str, Epoch> = visible().map(|((epoch, id), _)| (id.as_str(), *epoch)).collect();
        let is_last = |epoch: &Epoch, id: &str| last.get(id) == Some(epoch);
        visible().filter(|((epoch, id), _)| is_last(epoch, id)).map(|(_, change)| change.clone()).collect()
    }

    /// Returns at most `limit` changes of alerts of a mode after a place, in epochs before `before`, in their order.
    pub fn changes(
        &self,
        mode: Option<RuleMode>,
        after: &Place,
        before: Epoch,
        limit: usize,
    ) -> Vec<RecentAlert> {
        let changes = self.lock();
        let later = changes.iter().skip_while(|(place, _)| *place <= after);
        let visible = later.take_while(|((epoch, _), _)| *epoch < before);
        let of_mode = visible
            .map(|(_, change)| change)
            .filter(|change| mode.is_none_or(|mode| change.alert.mode == mode));
        of_mode.take(limit).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, RecentAlert>> {
        self.changes.lock().expect("no holder of the lock panics")
    }
}
