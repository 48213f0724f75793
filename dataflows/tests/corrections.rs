//! Streams by hand in which events are taken back: each of these once went wrong.

use std::cmp::Ordering;

use differential_dataflow::VecCollection;
use headwater_dataflows::testing::{Line, run_updates};
use headwater_dataflows::windows::{Aggregate, Refresh, Session, Sliding, Statistics, Summary, Tumbling};
use headwater_dataflows::{
    Admission, Admit, Emission, Epoch, Event, EventTime, Keyed, Position, Refused, Scan, patterns::Frequency,
};
use serde::{Deserialize, Serialize};

/// An epoch: changes of events as (key, time, offset, id) with their diffs, and the watermark after them.
type Round = (Vec<((&'static str, i64, i64, &'static str), isize)>, i64);

fn rounds(rounds: Vec<Round>) -> Vec<(Vec<(Line, isize)>, EventTime)> {
    let line = |(line, diff)| (Line::from(line), diff);
    let round = |(lines, watermark): Round| (lines.into_iter().map(line).collect(), EventTime(watermark));
    rounds.into_iter().map(round).collect()
}

const ADMISSION: Admission = Admission { dedup_horizon_ms: 100, ttl_ms: None };

/// The offset and id of the key's first admitted event.
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

/// Start, end and count of a window, and whether it is final.
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
fn what_cancels_within_an_epoch_was_never_there_whatever_stands_between() {
    let input = || vec![(vec![(("k", 5, 0, "a"), 1), (("k", 5, 0, "b"), 1), (("k", 5, 0, "a"), -1)], 0)];
    assert_eq!(admitted(input()), vec![((0, "b".to_owned()), 0, 1)]);
    assert_eq!(refused(input()), vec![]);
}

#[test]
fn an_event_may_be_put_in_again_with_its_id_at_an_earlier_time_in_the_epoch_that_takes_it_back() {
    let input = || {
        vec![(vec![(("k", 50, 0, "a"), 1)], 0), (vec![(("k", 50, 0, "a"), -1), (("k", 40, 1, "a"), 1)], 0)]
    };
    let moved = vec![((0, "a".to_owned()), 0, 1), ((0, "a".to_owned()), 1, -1), ((1, "a".to_owned()), 1, 1)];
    assert_eq!(admitted(input()), moved);
    assert_eq!(refused(input()), vec![]);
}

/// A line that is the same wherever it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Anywhere(Line);

impl Anywhere {
    fn what(&self) -> (&str, i64, &str) {
        (&self.0.key, self.0.time, &self.0.id)
    }
}

impl PartialEq for Anywhere {
    fn eq(&self, other: &Anywhere) -> bool {
        self.what() == other.what()
    }
}

impl Eq for Anywhere {}

impl PartialOrd for Anywhere {
    fn partial_cmp(&self, other: &Anywhere) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Anywhere {
    fn cmp(&self, other: &Anywhere) -> Ordering {
        self.what().cmp(&other.what())
    }
}

impl Event for Anywhere {
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
fn an_event_may_be_taken_back_at_another_place_than_it_was_put_in() {
    let line = |time, offset| Anywhere(Line::from(("k", time, offset, "a")));
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
                keyed.scan("Pairs", pairs, Emission::Immediate, |event: &Anywhere, _| event.0.offset)
            },
            updates,
        );
        assert_eq!(found, [(6, 0, 1), (6, 1, -1)]);
    }
}

#[test]
fn taking_back_an_event_leaves_windows_alone_that_have_closed_since() {
    // The event at 5 arrives after the one at 25, and is final when that one is taken back.
    let input = vec![
        (vec![(("k", 25, 0, "a"), 1)], 0),
        (vec![(("k", 5, 1, "b"), 1), (("k", 26, 2, "c"), 1)], 12),
        (vec![(("k", 25, 0, "a"), -1)], 12),
    ];
    let rows = windows(input, |keyed| keyed.tumbling("Tens", 10, Refresh::Final, count(), row));
    assert_eq!(rows, vec![((0, 10, 1, true), 1, 1), ((20, 30, 1, true), 3, 1)]);
}

#[test]
fn a_session_that_closes_retracts_the_rows_of_all_that_it_has_joined() {
    // Two sessions are shown, joined by the event at 18, and closed before rows are due again.
    let input = vec![
        (vec![(("k", 10, 0, "a"), 1), (("k", 25, 1, "b"), 1)], 0),
        (vec![(("k", 18, 2, "c"), 1)], 40),
        (vec![(("k", 90, 3, "d"), 1)], 50),
    ];
    let rows =
        windows(input, |keyed| keyed.session("Visits", 10, Refresh::Revised { epochs: 100 }, count(), row));
    let joined = [((10, 35, 3, true), 1, 1), ((90, 100, 1, true), 3, 1)];
    let shown = [((10, 20, 1, false), 0, 1), ((10, 20, 1, false), 1, -1)];
    let other = [((25, 35, 1, false), 0, 1), ((25, 35, 1, false), 1, -1)];
    assert_eq!(rows, [&shown[..], &joined[..1], &other, &joined[1..]].concat());
}

#[test]
fn a_session_that_loses_all_its_events_leaves_no_row_when_the_input_ends() {
    let input = vec![(vec![(("k", 10, 0, "a"), 1)], 0), (vec![(("k", 10, 0, "a"), -1)], 0)];
    let rows =
        windows(input, |keyed| keyed.session("Visits", 10, Refresh::Revised { epochs: 100 }, count(), row));
    assert_eq!(rows, vec![((10, 20, 1, false), 0, 1), ((10, 20, 1, false), 2, -1)]);
}

#[test]
fn events_at_the_ends_of_time_have_no_windows_there_and_stop_nothing() {
    const MAX: i64 = i64::MAX; // ends in 7
    let ends = vec![
        (("k", i64::MIN + 1, 0, "a"), 1),
        (("k", 5, 1, "b"), 1),
        (("k", MAX - 10, 2, "c"), 1),
        (("k", MAX - 1, 3, "d"), 1),
    ];
    let rows =
        windows(vec![(ends, i64::MIN)], |keyed| keyed.sliding("Tens", 10, 5, Refresh::Final, count(), row));
    let bounds: Vec<(i64, i64)> = rows.iter().map(|((start, end, ..), _, _)| (*start, *end)).collect();
    assert_eq!(bounds, [(0, 10), (5, 15), (MAX - 17, MAX - 7), (MAX - 12, MAX - 2)]);
}
