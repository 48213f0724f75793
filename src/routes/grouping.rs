//! Grouping as Alertmanager has it: the first delivery of a group waits for `group_wait`, further changes for
//! `group_interval`, and what has not changed is repeated after `repeat_interval`. Decisions without I/O.

use super::alert::{AlertChange, Label, labels_of};
use super::content::{Content, hash};

/// The grouping of a route. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// The fields that the alerts of a group have in common. Empty: each alert is delivered on its own.
    pub by: Vec<Label>,
    /// The time from a group's first change to its first delivery.
    pub wait_ms: i64,
    /// The least time from one delivery of a group to the next one with changes.
    pub interval_ms: i64,
    /// The time after which active alerts are delivered again; None if they are not.
    pub repeat_ms: Option<i64>,
    /// The time for which an alert that is not revoked counts as active.
    pub active_for_ms: i64,
}

/// The most alerts in one delivery.
pub const MOST_ALERTS: usize = 100;

impl Grouping {
    /// Returns true if the alerts of the route have state: a group to be collected or repeated.
    pub fn is_stateful(&self) -> bool {
        !self.by.is_empty() || self.repeat_ms.is_some()
    }

    /// Returns the key of an alert's group. Without groups, each alert is one.
    pub fn key(&self, alert: &AlertChange) -> String {
        if self.by.is_empty() {
            return alert.alert_id.clone();
        }
        let labels = labels_of(&self.by, alert);
        serde_json::to_string(&labels).expect("texts encode as JSON")
    }

    /// Returns the time from a change in a new group, and from a delivery in an older group, to the next delivery.
    pub fn delays_ms(&self) -> (i64, i64) {
        if self.by.is_empty() { (0, 0) } else { (self.wait_ms, self.interval_ms) }
    }

    /// Returns the content of a delivery of changes.
    pub fn content(&self, alerts: Vec<AlertChange>, active: u64, repeat: bool, now_ms: i64) -> Content {
        let first = alerts.first().expect("a delivery has alerts");
        let group = labels_of(&self.by, first);
        let dedup_key = match self.by.is_empty() {
            true => first.alert_id.clone(),
            false => hash(&[&self.key(first)]),
        };
        let active_until_ms = now_ms.saturating_add(self.active_for_ms);
        Content { group, dedup_key, active, repeat, created_ms: now_ms, active_until_ms, alerts }
    }
}

/// An alert of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupAlert {
    /// The latest change of the alert.
    pub alert: AlertChange,
    /// True if no delivery has this change.
    pub is_changed: bool,
    /// True if a delivery has an earlier change of the alert.
    pub is_notified: bool,
    /// The time of the latest change, in milliseconds since 1970.
    pub since_ms: i64,
}

/// The result of a group's turn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    /// The deliveries to be made.
    pub deliveries: Vec<Content>,
    /// The ids of alerts to be forgotten. All others are unchanged and notified from now on.
    pub forgotten: Vec<String>,
    /// The time of the next turn; None if the group has no alerts left.
    pub next_ms: Option<i64>,
}

/// Decides what a group that is due delivers. `sent_ms` is the time of its last delivery, or 0. With `send_revoked`,
/// revocations are delivered.
pub fn take_turn(
    grouping: &Grouping,
    send_revoked: bool,
    sent_ms: i64,
    alerts: Vec<GroupAlert>,
    now_ms: i64,
) -> Turn {
    let mut turn = Turn::default();
    let (mut changes, mut active) = (Vec::new(), Vec::new());
    let mut expiry_ms = i64::MAX;
    for GroupAlert { alert, is_changed, is_notified, since_ms } in alerts {
        let ends_ms = since_ms.saturating_add(grouping.active_for_ms);
        let is_active = alert.is_raised() && (is_changed || now_ms < ends_ms);
        if is_active {
            expiry_ms = expiry_ms.min(ends_ms.max(now_ms + 1));
            active.push(alert.clone());
        } else {
            turn.forgotten.push(alert.alert_id.clone());
        }
        // What was revoked before anyone learned of it is not worth a delivery.
        if is_changed && (is_active || send_revoked && is_notified) {
            changes.push(alert);
        }
    }
    let remaining = active.len() as u64;
    let is_repeat_due =
        grouping.repeat_ms.is_some_and(|repeat_ms| sent_ms > 0 && now_ms >= sent_ms + repeat_ms);
    let repeat = changes.is_empty() && is_repeat_due;
    let delivered = if repeat { active } else { changes };
    for part in delivered.chunks(MOST_ALERTS) {
        turn.deliveries.push(grouping.content(part.to_vec(), remaining, repeat, now_ms));
    }
    if remaining > 0 {
        let sent_ms = if turn.deliveries.is_empty() { sent_ms } else { now_ms };
        let repeat_ms = grouping.repeat_ms.map_or(i64::MAX, |repeat_ms| sent_ms.saturating_add(repeat_ms));
        turn.next_ms = Some(expiry_ms.min(repeat_ms));
    }
    turn
}

#[cfg(test)]
mod tests {
    use super::super::alert::tests::change;
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn grouping() -> Grouping {
        Grouping {
            by: vec![Label::Key],
            wait_ms: 10_000,
            interval_ms: 300_000,
            repeat_ms: Some(4 * HOUR),
            active_for_ms: 24 * HOUR,
        }
    }

    fn of(alert: AlertChange, is_changed: bool, is_notified: bool, since_ms: i64) -> GroupAlert {
        GroupAlert { alert, is_changed, is_notified, since_ms }
    }

    fn ids(turn: &Turn) -> Vec<String> {
        turn.deliveries.iter().flat_map(|content| content.alerts.iter().map(AlertChange::id)).collect()
    }

    #[test]
    fn a_turn_delivers_changes_and_repeats_what_is_active() {
        let (a, b) = (change("a", "raised", 1), change("b", "raised", 2));
        let first = take_turn(
            &grouping(),
            true,
            0,
            vec![of(a.clone(), true, false, 1000), of(b.clone(), true, false, 2000)],
            11_000,
        );
        assert_eq!(ids(&first), ["a:raised:1", "b:raised:2"]);
        assert_eq!(first.deliveries.len(), 1);
        assert_eq!((first.deliveries[0].active, first.deliveries[0].repeat), (2, false));
        assert_eq!(first.deliveries[0].group["key"], "ann");
        assert_eq!((first.next_ms, first.forgotten.len()), (Some(11_000 + 4 * HOUR), 0));

        let revoked = change("a", "revoked", 3);
        let alerts = vec![of(revoked, true, true, 50_000), of(b.clone(), false, true, 2000)];
        let second = take_turn(&grouping(), true, 11_000, alerts.clone(), 311_000);
        assert_eq!(ids(&second), ["a:revoked:3"], "only the change");
        assert_eq!((second.deliveries[0].active, second.deliveries[0].status()), (1, "raised"));
        assert_eq!(second.forgotten, ["a"]);
        assert_eq!(ids(&take_turn(&grouping(), false, 11_000, alerts, 311_000)), [""; 0]);

        let unchanged = vec![of(b.clone(), false, true, 2000)];
        let early = take_turn(&grouping(), true, 311_000, unchanged.clone(), 311_000 + 4 * HOUR - 1);
        assert_eq!((ids(&early).len(), early.next_ms), (0, Some(311_000 + 4 * HOUR)));
        let repeated = take_turn(&grouping(), true, 311_000, unchanged.clone(), 311_000 + 4 * HOUR);
        assert_eq!(ids(&repeated), ["b:raised:2"]);
        assert!(repeated.deliveries[0].repeat);

        let expired = take_turn(&grouping(), true, 311_000, unchanged, 2000 + 24 * HOUR);
        assert_eq!((ids(&expired).len(), expired.next_ms), (0, None));
        assert_eq!(expired.forgotten, ["b"]);
    }

    #[test]
    fn the_last_revocation_ends_the_group() {
        let alerts = vec![of(change("a", "revoked", 3), true, true, 5)];
        let turn = take_turn(&grouping(), true, 1, alerts, 10);
        assert_eq!((turn.deliveries[0].status(), turn.next_ms), ("revoked", None));
    }

    #[test]
    fn an_alert_revoked_before_its_first_delivery_is_dropped() {
        let turn = take_turn(&grouping(), true, 0, vec![of(change("a", "revoked", 3), true, false, 5)], 10);
        assert_eq!((turn.deliveries.len(), turn.next_ms), (0, None));
        assert_eq!(turn.forgotten, ["a"]);
    }

    #[test]
    fn many_changes_are_divided_into_deliveries() {
        let many = (0..250).map(|at| of(change(&format!("a{at}"), "raised", 1), true, false, 0)).collect();
        let turn = take_turn(&grouping(), true, 0, many, 10_000);
        let sizes: Vec<_> = turn.deliveries.iter().map(|content| content.alerts.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
        assert!(turn.deliveries.iter().all(|content| content.active == 250));
    }

    #[test]
    fn alerts_that_are_only_repeated_are_delivered_at_once() {
        let alone = Grouping { by: Vec::new(), ..grouping() };
        assert!(alone.is_stateful());
        assert_eq!((alone.delays_ms(), alone.key(&change("a", "raised", 1))), ((0, 0), "a".to_owned()));
        assert_eq!(grouping().key(&change("a", "raised", 1)), r#"{"key":"ann"}"#);
        assert!(!Grouping { repeat_ms: None, ..alone }.is_stateful());
    }
}
