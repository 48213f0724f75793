//! Changes of what events are judged by: rules, and the contents of lists.
//!
//! ```text
//!   request ─▶ bound to epoch E, in its record ─▶ durable ─▶ in force for events of epochs after E
//!                                                   └─ manifests keep what is in force, and what un-final events need
//! ```
//!
//! An epoch takes a contiguous range of offsets from each partition, so the position of an event decides which changes
//! were in force when it was admitted. An event is judged by those, now and whenever it is evaluated again.

use headwater_dataflows::{EventTime, Since};
use serde::{Deserialize, Serialize};

/// A change, as the record of an epoch has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Change {
    /// All rules from then on, as text; None if they are as before.
    pub rules: Option<String>,
    /// The lists that have other contents from then on.
    pub lists: Vec<ListVersion>,
    /// The pasts of rules that enter as if they had always been there.
    pub pasts: Option<StoredPasts>,
}

/// The pasts of rules: their states of all events before they enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoredPasts {
    /// The SHA-256 of their bytes, under which the state store has them.
    pub hash: [u8; 32],
    /// The number of bytes.
    pub bytes: u64,
}

/// The contents of a list at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListVersion {
    /// The name of the list.
    pub name: String,
    /// The SHA-256 of the contents, under which the state store has them.
    pub hash: [u8; 32],
    /// The length of the contents, in bytes.
    pub bytes: u64,
}

impl Change {
    /// Returns true if nothing changes.
    pub fn is_empty(&self) -> bool {
        self.rules.is_none() && self.lists.is_empty() && self.pasts.is_none()
    }

    /// Returns the hashes of the contents in the state store that it needs.
    pub fn hashes(&self) -> impl Iterator<Item = [u8; 32]> + '_ {
        self.lists.iter().map(|list| list.hash).chain(self.pasts.map(|pasts| pasts.hash))
    }
}

/// A change that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The events from which on it is in force.
    pub since: Since,
    /// The change.
    pub change: Change,
}

/// The changes that are in force, and those before them that un-final events may still need, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions(Vec<InForce>);

impl Versions {
    /// Returns these changes, which are in order.
    pub fn of(changes: Vec<InForce>) -> Versions {
        Versions(changes)
    }

    /// Returns the changes, in order.
    pub fn as_slice(&self) -> &[InForce] {
        &self.0
    }

    /// Returns true if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the newest rules, if any are known.
    pub fn rules(&self) -> Option<&str> {
        self.0.iter().rev().find_map(|in_force| in_force.change.rules.as_deref())
    }

    /// Replaces the text of each set of rules.
    ///
    /// # Errors
    /// If `replace` fails.
    pub fn replace_rules<E>(&mut self, replace: impl Fn(&str) -> Result<String, E>) -> Result<(), E> {
        for text in self.0.iter_mut().filter_map(|in_force| in_force.change.rules.as_mut()) {
            *text = replace(text)?;
        }
        Ok(())
    }

    /// Adds a change. Once it is in force, operators have the pasts of its rules.
    pub fn add(&mut self, in_force: InForce) {
        let InForce { since, change } = in_force;
        self.0.push(InForce { since, change: Change { pasts: None, ..change } });
    }

    /// Removes what no un-final event needs at a watermark: rules or contents that a later change has replaced, if every
    /// event before that change is final.
    pub fn settle(&mut self, watermark: EventTime) {
        for at in 1..self.0.len() {
            let (change, later) = self.0.split_at_mut(at);
            let change = &mut change[at - 1].change;
            let settled = || later.iter().filter(|later| later.since.last_time <= watermark);
            change.rules.take_if(|_| settled().any(|later| later.change.rules.is_some()));
            change.lists.retain(|list| {
                let replaces = |later: &InForce| later.change.lists.iter().any(|by| by.name == list.name);
                !settled().any(replaces)
            });
        }
        self.0.retain(|in_force| !in_force.change.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::{Epoch, Offset};

    use super::*;

    fn in_force(epoch: u64, last_time: i64, rules: Option<&str>, lists: &[&str]) -> InForce {
        let list = |name: &&str| ListVersion { name: (*name).to_owned(), hash: [epoch as u8; 32], bytes: 1 };
        let lists = lists.iter().map(list).collect();
        let change = Change { rules: rules.map(str::to_owned), lists, pasts: None };
        let since =
            Since { epoch: Epoch(epoch), ends: vec![Offset(epoch as i64)], last_time: EventTime(last_time) };
        InForce { since, change }
    }

    #[test]
    fn replaced_changes_are_kept_while_events_need_them() {
        let mut versions = Versions::of(vec![
            in_force(0, i64::MIN, Some("a"), &[]),
            in_force(3, 10, Some("b"), &["x", "y"]),
            in_force(5, 20, None, &["x"]),
            in_force(7, 30, Some("c"), &[]),
        ]);
        assert_eq!(versions.rules(), Some("c"));
        let all = versions.clone();
        versions.settle(EventTime(9));
        assert_eq!(versions, all, "an event at 10 is judged by the rules a");
        versions.settle(EventTime(10));
        assert_eq!(versions.as_slice(), &all.as_slice()[1..]);
        versions.settle(EventTime(20));
        assert_eq!(versions.as_slice()[0], in_force(3, 10, Some("b"), &["y"]));
        versions.settle(EventTime(30));
        let left =
            [in_force(3, 10, None, &["y"]), in_force(5, 20, None, &["x"]), in_force(7, 30, Some("c"), &[])];
        assert_eq!(versions.as_slice(), left);
        versions.settle(EventTime::MAX);
        assert_eq!(versions.as_slice(), left);
    }
}
