//! Comparison of alerts, and the labelled events that they name.

use headwater_dataflows::{Epoch, EventTime, Offset, Partition, Position};

use super::super::labels::Label;
use super::*;
use crate::outputs::{Alert, RuleMode, Severity, Status};

/// A change of the alert of a rule for the key `k` of user `ann`, triggered by the record at `offset`, whose event has the
/// offset as its id.
fn change(rule: &str, offset: i64, severity: Severity, count: u32, status: Status) -> RecentAlert {
    let alert = Alert {
        position: Position { partition: Partition(1), offset: Offset(offset) },
        rule: rule.into(),
        rule_version: 1,
        severity,
        key: "uann".into(),
        event_ids: vec![format!("e{offset}").into()],
        event_time: EventTime(1_800_000_000_000 + offset),
        settled: false,
        details: format!("{{\"count\":{count}}}").into(),
        pipeline: "p".into(),
        mode: RuleMode::Live,
    };
    RecentAlert { alert, epoch: Epoch(1), status }
}

fn store(before: &[RecentAlert], after: &[RecentAlert]) -> Store {
    let store = Store::create(None).expect("a temporary database");
    for (side, changes) in Side::ALL.into_iter().zip([before, after]) {
        // In two parts: later changes replace earlier ones.
        for change in changes {
            store.write(side, &[change]).expect("written");
        }
    }
    store.compare().expect("compared");
    store
}

use Severity::{High, Low};
use Status::{Raised, Revoked};

#[test]
fn alerts_are_compared_by_rule_key_and_position() {
    let before = [
        change("a", 1, High, 3, Raised),
        change("a", 2, High, 3, Raised),
        change("a", 3, High, 3, Raised),
        change("b", 3, Low, 1, Raised),
    ];
    let after = [
        change("a", 1, High, 3, Raised),
        change("a", 2, Low, 3, Raised),
        change("a", 4, Low, 5, Raised),
        change("c", 3, Low, 1, Raised),
    ];
    let store = store(&before, &after);
    let counts = store.counts(&["a", "b", "c", "d"].map(str::to_owned).into()).expect("read");
    let count = |rule: &str, severity: Option<Severity>, [before, after, added, gone, changed]: [u64; 5]| {
        let severity = severity.map(|severity| severity.as_str().to_owned());
        Count { rule: rule.into(), severity, before, after, added, gone, changed }
    };
    let expected = [
        count("a", Some(High), [3, 1, 0, 1, 0]),
        count("a", Some(Low), [0, 2, 1, 0, 1]),
        count("b", Some(Low), [1, 0, 0, 1, 0]),
        count("c", Some(Low), [0, 1, 1, 0, 0]),
        count("d", None, [0; 5]),
    ];
    assert_eq!(counts, expected);

    let examples = store.examples().expect("read");
    let kinds: Vec<_> = examples.iter().map(|example| (&*example.rule, &*example.kind)).collect();
    assert_eq!(kinds, [("a", "added"), ("a", "changed"), ("a", "gone"), ("b", "gone"), ("c", "added")]);
    let side = |severity: Severity, count: u32| {
        Some((severity.as_str().to_owned(), format!("{{\"count\":{count}}}")))
    };
    let changed = Difference {
        kind: "changed".into(),
        rule: "a".into(),
        key_kind: "user".into(),
        key: "ann".into(),
        event_time: "2027-01-15T08:00:00.002Z".into(),
        event_ids: "[\"e2\"]".into(),
        before: side(High, 3),
        after: side(Low, 3),
    };
    assert_eq!(examples[1], changed);
    assert_eq!((&examples[0].before, &examples[0].after), (&None, &side(Low, 5)));
}

#[test]
fn only_the_last_state_of_an_alert_counts() {
    let before = [
        change("a", 1, High, 3, Raised),
        change("a", 1, High, 4, Raised),
        change("a", 2, High, 3, Raised),
        change("a", 2, High, 3, Revoked),
    ];
    let after =
        [change("a", 1, High, 4, Raised), change("a", 2, High, 3, Raised), change("a", 3, High, 3, Revoked)];
    let store = store(&before, &after);
    let examples = store.examples().expect("read");
    let found: Vec<_> = examples.iter().map(|example| (&*example.kind, &*example.event_ids)).collect();
    assert_eq!(found, [("added", "[\"e2\"]")]);
}

#[test]
fn there_are_at_most_three_examples_of_a_kind() {
    let after: Vec<_> = (0..5).rev().map(|offset| change("a", offset, High, 3, Raised)).collect();
    let examples = store(&[], &after).examples().expect("read");
    let ids: Vec<_> = examples.iter().map(|example| &*example.event_ids).collect();
    assert_eq!(ids, ["[\"e0\"]", "[\"e1\"]", "[\"e2\"]"]);
}

#[test]
fn an_event_counts_once_for_all_rules() {
    let before = [change("a", 1, High, 3, Raised), change("b", 1, High, 3, Raised)];
    let after = [
        change("a", 1, High, 3, Revoked),
        change("a", 2, High, 3, Raised),
        change("a", 3, High, 3, Raised),
        change("a", 4, High, 3, Raised),
    ];
    let label = |is_positive, is_in_input| Label { is_positive, is_in_input };
    let labels = Labels::from([
        ("e1".to_owned(), label(true, true)),
        ("e2".to_owned(), label(false, true)),
        ("e3".to_owned(), label(true, false)),
    ]);
    let found = store(&before, &after).found(&labels).expect("read");
    let of = |rule: Option<&str>, side, positive, negative| Found {
        rule: rule.map(str::to_owned),
        side,
        positive,
        negative,
    };
    let expected = [
        of(None, Side::Before, 1, 0),
        of(Some("a"), Side::Before, 1, 0),
        of(Some("b"), Side::Before, 1, 0),
        of(None, Side::After, 0, 1),
        of(Some("a"), Side::After, 0, 1),
    ];
    assert_eq!(found, expected, "e3 is not in the input, and e4 has no label");
}

#[test]
fn a_backtest_replaces_the_tables_of_an_earlier_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.db");
    for alerts in [2, 1] {
        let store = Store::create(Some(&path)).expect("opened");
        for offset in 0..alerts {
            store.write(Side::After, &[&change("a", offset, High, 3, Raised)]).expect("written");
        }
        store.compare().expect("compared");
        store.commit().expect("committed");
        // One that fails leaves them.
        drop(Store::create(Some(&path)).expect("opened"));
        let kept = Connection::open(&path).expect("opened");
        let count: i64 =
            kept.query_row("SELECT count(*) FROM differences", [], |row| row.get(0)).expect("read");
        assert_eq!(count, alerts);
    }
    let other = folder.path().join("results.db");
    Connection::open(&other)
        .and_then(|other| other.execute_batch("CREATE TABLE alerts (x)"))
        .expect("a table");
    let error = Store::create(Some(&other)).err().expect("the results of a run");
    assert!(error.to_string().contains("has a table \"alerts\""), "{error}");
    let error = Store::create(Some(&folder.path().join("none/out.db"))).err().expect("no folder");
    assert!(error.to_string().starts_with("--out: cannot open"), "{error}");
}
