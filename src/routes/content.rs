//! The content of a delivery: what a payload is rendered from. It is stored before the first try and then fixed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::alert::AlertChange;

/// The content of a delivery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// The fields that all alerts of the group have in common, by name. Empty without groups.
    pub group: BTreeMap<String, String>,
    /// The identity of what the receiver keeps open: the alert id, or a hash of the group.
    pub dedup_key: String,
    /// The number of active alerts: those of the group that are raised and not revoked.
    pub active: u64,
    /// True if nothing has changed since the delivery before: the active alerts are sent again.
    pub repeat: bool,
    /// The time of the delivery, in milliseconds since 1970.
    pub created_ms: i64,
    /// The time until which active alerts count as active, in milliseconds since 1970.
    pub active_until_ms: i64,
    /// The changes of alerts.
    pub alerts: Vec<AlertChange>,
}

impl Content {
    /// Returns the status: `raised` while any alert is active, then `revoked`.
    pub fn status(&self) -> &'static str {
        let is_raised = self.active > 0 || self.alerts.iter().any(AlertChange::is_raised);
        if is_raised { "raised" } else { "revoked" }
    }

    /// Returns the stable id: that of the only change of a route without groups, else a hash of the content.
    pub fn id(&self) -> String {
        match &self.alerts[..] {
            [only] if self.group.is_empty() && !self.repeat => only.id(),
            alerts => {
                let ids: Vec<_> = alerts.iter().map(AlertChange::id).collect();
                hash(&[&self.dedup_key, &self.created_ms.to_string(), &ids.join(",")])
            }
        }
    }

    /// Removes the changes of alerts that a later delivery has in a later version. Returns true if any was removed.
    pub fn remove_superseded(&mut self, later: &[AlertChange]) -> bool {
        let before = self.alerts.len();
        self.alerts.retain(|alert| later.iter().all(|later| later.alert_id != alert.alert_id));
        self.alerts.len() < before
    }
}

/// Returns the first 16 bytes of the SHA-256 of texts, in hexadecimal.
pub fn hash(texts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub mod tests {
    use super::super::alert::tests::change;
    use super::*;

    /// Returns the content of a delivery of one change.
    pub fn content(alerts: Vec<AlertChange>) -> Content {
        Content {
            group: BTreeMap::new(),
            dedup_key: alerts[0].alert_id.clone(),
            active: 0,
            repeat: false,
            created_ms: 1_772_359_201_000,
            active_until_ms: 1_772_445_601_000,
            alerts,
        }
    }

    #[test]
    fn the_id_of_a_single_change_is_that_of_the_alert() {
        let single = content(vec![change("a1", "raised", 7)]);
        assert_eq!((single.id().as_str(), single.status()), ("a1:raised:7", "raised"));
        let repeated = Content { repeat: true, ..single.clone() };
        assert_ne!(repeated.id(), single.id());
        assert_ne!(repeated.id(), Content { created_ms: 5, ..repeated.clone() }.id());
        assert_eq!(content(vec![change("a1", "revoked", 8)]).status(), "revoked");
    }

    #[test]
    fn changes_that_a_later_delivery_has_are_removed() {
        let mut both = content(vec![change("a", "raised", 1), change("b", "raised", 1)]);
        assert!(both.remove_superseded(&[change("b", "revoked", 2), change("c", "raised", 2)]));
        assert_eq!(both.alerts, [change("a", "raised", 1)]);
        assert!(!both.remove_superseded(&[change("c", "raised", 2)]));
    }
}
