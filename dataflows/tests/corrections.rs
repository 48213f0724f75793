//! Regression tests: streams with retracted events that once gave wrong results.

use std::cmp::Ordering;

use differential_dataflow::VecCollection;
use headwater_dataflows::testing::{Line, run_updates};
use headwater_dataflows::windows::{Aggregate, EmitPolicy, Session, Sliding, Statistics, Summary, Tumbling};
use headwater_dataflows::{
    Admission, Admit, Emission, Epoch, Event, EventTime, Keyed, Position, Refused, Scan, patterns::Frequency,
};
use serde::{Deserialize, Serialize};

/// An epoch: updates of events, given as (key, time, offset, id), with their diffs, and the watermark at its end.
type Round = (Vec<((&'static str, i64, i64, &'static str), isize)>, i64);

fn rounds(rounds: Vec<Round>) -> Vec<(Vec<(Line, isize)>, EventTime)> {
    let line = |(line, diff)| (Line::from(line), diff);
    let round = |(lines, watermark): Round| (lines.into_iter().map(line).collect(), EventTime(watermark));
    rounds.into_iter().map(round).collect()
}

const ADMISSION: Admission = Admission { dedup_horizon_ms: 100, ttl_ms: None };

/// Returns the changes of the first admitted event of the key, as offset and id.
fn admitted(input: Vec<Round>) -> Vec<((i64, String), u64, isize)> {
    let first = Frequency::at_least(1, 1);
    run_updates(
        1,
        move |events, control| {
            let result = |event: &Line, _| (event.offset, event.id.clone());
            events.admit(control, ADMISSION).0.scan("First", first, Emission::Immediate, result)
        },
        rounds(input),
    )
}

fn refused(input: Vec<Round>) -> Vec<(Refused<Line>, u64, isize)> {
    run_updates(1, |events, control| events.admit(control, ADMISSION).1, rounds(input))
}

/// Start, end and count of a window, and true if it is final.
type Row = (i64, i64, u64, bool);
type Rows<'scope> = VecCollection<'scope, Epoch, Row>;

fn windows(
    input: Vec<Round>,
    windows: impl for<'s> Fn(Keyed<'s, Line>) -> Rows<'s> + Send + Sync + 'static,
) -> Vec<(Row, u64, isize)> {
    run_updates(1, move |events, control| windows(events.admit(control, ADMISSION).0), rounds(input))
}

fn row(row: headwater_dataflows::windows::Row<'_, String, Summary>) -> Row {
    (row.window.start.0, row.window.end.0, row.summary.count, row.closed)
}

fn count() -> impl Aggregate<Line, State = Summary> {
    Statistics::new(|_: &Line| None, |_: &Line| None)
}

#[test]
fn updates_that_cancel_within_an_epoch_have_no_effect() {
    let input = || vec![(vec![(("k", 5, 0, "a"), 1), (("k", 5, 0, "b"), 1), (("k", 5, 0, "a"), -1)], 0)];
    assert_eq!(admitted(input()), vec![((0, "b".to_owned()), 0, 1)]);
    assert_eq!(refused(input()), vec![]);
}

#[test]
fn an_id_can_be_reused_in_the_epoch_that_retracts_it() {
    let input = || {
        vec![(vec![(("k", 50, 0, "a"), 1)], 0), (vec![(("k", 50, 0, "a"), -1), (("k", 40, 1, "a"), 1)], 0)]
    };
    let moved = vec![((0, "a".to_owned()), 0, 1), ((0, "a".to_owned()), 1, -1), ((1, "a".to_owned()), 1, 1)];
    assert_eq!(admitted(input()), moved);
    assert_eq!(refused(input()), vec![]);
}

/// A line that is equal to the same line at any other offset.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct OffsetFree(Line);

impl OffsetFree {
    fn content(&self) -> (&str, i64, &str) {
        (&self.0.key, self.0.time, &self.0.id)
    }
}

impl PartialEq for OffsetFree {
    fn eq(&self, other: &OffsetFree) -> bool {
        self.content() == other.content()
    }
}

impl Eq for OffsetFree {}

impl PartialOrd for OffsetFree {
    fn partial_cmp(&self, other: &OffsetFree) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OffsetFree {
    fn cmp(&self, other: &OffsetFree) -> Ordering {
        self.content().cmp(&other.content())
    }
}

impl Event for OffsetFree {
    type Key = str;
    fn key(&self) -> &str {
        self.0.key()
    }
    fn time(&self) -> EventTime {
        self.0.time()
    }
    fn position(&self) -> Position {
        self.0.position()
    }
}

#[test]
fn an_event_can_be_retracted_with_a_different_offset() {
    let line = |time, offset| OffsetFree(Line::from(("k", time, offset, "a")));
    for offset in [1, 9] {
        let updates = vec![
            (vec![(line(50, 5), 1), (line(55, 6), 1), (line(60, 7), 1)], EventTime(0)),
            (vec![(line(55, offset), -1)], EventTime(0)),
        ];
        let found = run_updates(
            1,
            |events, control| {
                let pairs = Frequency::at_least(2, 8);
                let keyed = events.admit(control, ADMISSION).0;
                keyed.scan("Pairs", pairs, Emission::Immediate, |event: &OffsetFree, _| event.0.offset)
            },
            updates,
        );
        assert_eq!(found, [(6, 0, 1), (6, 1, -1)]);
    }
}

#[test]
fn a_retraction_does_not_change_closed_windows() {
    // The event at 5 arrives after the one at 25, and is final when the latter is retracted.
    let input = vec![
        (vec![(("k", 25, 0, "a"), 1)], 0),
        (vec![(("k", 5, 1, "b"), 1), (("k", 26, 2, "c"), 1)], 12),
        (vec![(("k", 25, 0, "a"), -1)], 12),
    ];
    let rows = windows(input, |keyed| keyed.tumbling("Tens", 10, EmitPolicy::Final, count(), row));
    assert_eq!(rows, vec![((0, 10, 1, true), 1, 1), ((20, 30, 1, true), 3, 1)]);
}

#[test]
fn a_closing_session_retracts_the_rows_it_merged() {
    // The rows of two sessions are emitted. The event at 18 merges them, and they close before rows are due again.
    let input = vec![
        (vec![(("k", 10, 0, "a"), 1), (("k", 25, 1, "b"), 1)], 0),
        (vec![(("k", 18, 2, "c"), 1)], 40),
        (vec![(("k", 90, 3, "d"), 1)], 50),
    ];
    let rows =
        windows(input, |keyed| keyed.session("Visits", 10, EmitPolicy::Early { epochs: 100 }, count(), row));
    let merged = [((10, 35, 3, true), 1, 1), ((90, 100, 1, true), 3, 1)];
    let first = [((10, 20, 1, false), 0, 1), ((10, 20, 1, false), 1, -1)];
    let second = [((25, 35, 1, false), 0, 1), ((25, 35, 1, false), 1, -1)];
    assert_eq!(rows, [&first[..], &merged[..1], &second, &merged[1..]].concat());
}

#[test]
fn a_session_without_events_has_no_row_at_the_end() {
    let input = vec![(vec![(("k", 10, 0, "a"), 1)], 0), (vec![(("k", 10, 0, "a"), -1)], 0)];
    let rows =
        windows(input, |keyed| keyed.session("Visits", 10, EmitPolicy::Early { epochs: 100 }, count(), row));
    assert_eq!(rows, vec![((10, 20, 1, false), 0, 1), ((10, 20, 1, false), 2, -1)]);
}

#[test]
fn events_at_the_limits_of_time_have_no_windows() {
    const MAX: i64 = i64::MAX; // the last digit is 7
    let ends = vec![
        (("k", i64::MIN + 1, 0, "a"), 1),
        (("k", 5, 1, "b"), 1),
        (("k", MAX - 10, 2, "c"), 1),
        (("k", MAX - 1, 3, "d"), 1),
    ];
    let rows = windows(vec![(ends, i64::MIN)], |keyed| {
        keyed.sliding("Tens", 10, 5, EmitPolicy::Final, count(), row)
    });
    let bounds: Vec<(i64, i64)> = rows.iter().map(|((start, end, ..), _, _)| (*start, *end)).collect();
    assert_eq!(bounds, [(0, 10), (5, 15), (MAX - 17, MAX - 7), (MAX - 12, MAX - 2)]);
}
