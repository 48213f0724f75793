//! Windows over random streams, compared with the specification.

use std::collections::BTreeMap;

use differential_dataflow::VecCollection;
use headwater_dataflows::windows::{EmitPolicy, Row, Session, Sliding, Statistics, Summary, Tumbling};
use headwater_dataflows::{Admit, Epoch, Keyed};
use proptest::prelude::*;

use crate::event::Tx;
use crate::harness::{Seen, Snapshots, check, equal, run, snapshots, watermarks};
use crate::scan::ADMISSION;
use crate::spec::admission::admit;
use crate::spec::windows::{self, Summed};
use crate::spec::{answers, final_ones};
use crate::streams::{Round, streams};

pub fn statistics() -> Statistics<impl Fn(&Tx) -> Option<i64>, impl Fn(&Tx) -> Option<u64>> {
    Statistics::new(|event: &Tx| event.amount, |event: &Tx| event.merchant)
}

/// Converts a row to the form of the specification, and true if the window is final.
pub fn row(row: Row<'_, u16, Summary>) -> (Summed, bool) {
    let Row { key, window, summary, closed } = row;
    let n = summary.amounts.count() as f64;
    let spread = summary.amounts.stddev().map_or(0, |s| (s * s * n * (n - 1.0)).round() as i64);
    let summed = Summed {
        key: *key,
        start: window.start.0,
        end: window.end.0,
        count: summary.count,
        amounts: summary.amounts.count(),
        sum: i64::try_from(summary.amounts.sum()).expect("amounts are small"),
        spread,
        extremes: summary.extremes,
        merchants: summary.distinct(),
    };
    (summed, closed)
}

type Rows<'scope> = VecCollection<'scope, Epoch, (Summed, bool)>;
type Windows = fn(Keyed<'_, Tx>, EmitPolicy) -> Rows<'_>;

fn windowed(
    workers: usize,
    rounds: &[Round],
    emit: EmitPolicy,
    windows: Windows,
) -> Vec<((Summed, bool), u64, isize)> {
    run(workers, rounds, move |events, control| windows(events.admit(control, ADMISSION).0, emit))
}

/// Returns the rows of all windows at each epoch, each with true if it is final.
fn rows(rounds: &[Round], expected: fn(&[Tx]) -> Vec<Summed>) -> Snapshots<(Summed, bool)> {
    let summed = answers(&admit(rounds, ADMISSION.dedup_horizon_ms).rounds, expected);
    let marked = summed.into_iter().zip(watermarks(rounds)).map(|(rows, watermark)| {
        let mark = |(row, count): (Summed, isize)| {
            let closed = row.last() <= watermark;
            ((row, closed), count)
        };
        rows.into_iter().map(mark).collect()
    });
    marked.collect()
}

/// Returns, for each epoch, the contents at the latest epoch so far for which `shown` returns true.
fn held<D: Clone + Ord>(snapshots: &Snapshots<D>, mut shown: impl FnMut(usize) -> bool) -> Snapshots<D> {
    let mut latest = BTreeMap::new();
    let held = snapshots.iter().enumerate().map(|(epoch, rows)| {
        if shown(epoch) {
            latest = rows.clone();
        }
        latest.clone()
    });
    held.collect()
}

/// Checks final and revised rows against the specification, on any number of workers.
fn windows_are(what: &'static str, expected: fn(&[Tx]) -> Vec<Summed>, windows: Windows) {
    let (finals_seen, revised_seen) = (Seen::default(), Seen::default());
    check(file!(), (streams(), 2..5u64), |((rounds, workers), epochs)| {
        let all = rows(&rounds, expected);
        let control = |epoch: usize| rounds.get(epoch).is_none_or(|round| round.watermark.is_some());

        let got = windowed(workers, &rounds, EmitPolicy::Final, windows);
        finals_seen.note(&got);
        prop_assert!(got.iter().all(|(_, _, diff)| *diff > 0), "a final result was retracted: {got:?}");
        let finals = final_ones(&all, &watermarks(&rounds), |(row, _)| row.last());
        equal(what, &snapshots(rounds.len(), &got), &finals)?;

        let got = windowed(workers, &rounds, EmitPolicy::Early { epochs: 1 }, windows);
        revised_seen.note(&got);
        equal(what, &snapshots(rounds.len(), &got), &held(&all, control))?;

        // With less frequent revisions, final rows are still emitted at once, and other rows at the epochs when they
        // are due.
        let got = windowed(workers, &rounds, EmitPolicy::Early { epochs }, windows);
        let mut last = None;
        let mut due = |epoch: usize| {
            let round = epoch as u64 / epochs;
            let due = control(epoch) && last.is_none_or(|last| last < round);
            last = if due { Some(round) } else { last };
            due || epoch == rounds.len()
        };
        let due: Vec<bool> = (0..=rounds.len()).map(&mut due).collect();
        let open = got.iter().filter(|((_, closed), _, diff)| !closed && *diff > 0);
        let untimely: Vec<_> = open.filter(|(_, epoch, _)| !due[*epoch as usize]).collect();
        prop_assert!(untimely.is_empty(), "rows emitted before they are due: {untimely:?}");
        let got = snapshots(rounds.len(), &got);
        let closed = |rows: &Snapshots<(Summed, bool)>| -> Snapshots<(Summed, bool)> {
            let closed = |rows: &BTreeMap<(Summed, bool), isize>| {
                rows.iter().filter(|((_, closed), _)| *closed).map(|(row, n)| (row.clone(), *n)).collect()
            };
            rows.iter().map(closed).collect()
        };
        equal(what, &closed(&got), &finals)?;
        let at = |rows: &Snapshots<(Summed, bool)>| -> Snapshots<(Summed, bool)> {
            rows.iter().zip(&due).filter(|(_, due)| **due).map(|(rows, _)| rows.clone()).collect()
        };
        equal(what, &at(&got), &at(&all))
    });
    finals_seen.demand(&format!("{what}, final"), 300, 0);
    revised_seen.demand(&format!("{what}, revised"), 600, 300);
}

#[test]
fn tumbling_windows_match_the_specification() {
    windows_are(
        "tumbling",
        |events| windows::sliding(16, 16, events),
        |keyed, emit| keyed.tumbling("Tumbling", 16, emit, statistics(), row),
    );
}

#[test]
fn sliding_windows_match_the_specification() {
    windows_are(
        "sliding",
        |events| windows::sliding(20, 10, events),
        |keyed, emit| keyed.sliding("Sliding", 20, 10, emit, statistics(), row),
    );
}

#[test]
fn hopping_windows_match_the_specification() {
    windows_are(
        "hopping",
        |events| windows::sliding(25, 7, events),
        |keyed, emit| keyed.sliding("Hopping", 25, 7, emit, statistics(), row),
    );
}

#[test]
fn session_windows_match_the_specification() {
    windows_are(
        "session",
        |events| windows::sessions(9, events),
        |keyed, emit| keyed.session("Session", 9, emit, statistics(), row),
    );
}
