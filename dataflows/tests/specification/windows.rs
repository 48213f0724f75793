//! Windows over random streams, against the specification.

use std::cell::Cell;
use std::collections::BTreeMap;

use differential_dataflow::VecCollection;
use headwater_dataflows::windows::{Refresh, Row, Session, Sliding, Statistics, Summary, Tumbling};
use headwater_dataflows::{Admission, Admit, Epoch, Keyed};
use proptest::prelude::*;

use crate::event::Tx;
use crate::harness::{Snapshots, check, equal, run, snapshots, watermarks};
use crate::scan::ADMISSION;
use crate::spec::admission::admit;
use crate::spec::windows::{self, Summed};
use crate::spec::{answers, final_ones};
use crate::streams::{Round, streams};

pub fn statistics() -> Statistics<impl Fn(&Tx) -> Option<i64>, impl Fn(&Tx) -> Option<u64>> {
    Statistics::new(|event: &Tx| event.amount, |event: &Tx| event.merchant)
}

/// A row as the specification writes it, and whether the window is final.
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
type Windows = fn(Keyed<'_, Tx>, Refresh) -> Rows<'_>;

fn windowed(
    workers: usize,
    rounds: &[Round],
    refresh: Refresh,
    windows: Windows,
) -> Vec<((Summed, bool), u64, isize)> {
    run(workers, rounds, move |events, control| windows(events.admit(control, ADMISSION).0, refresh))
}

/// The rows of all windows at each epoch, those that are final marked so.
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

/// At each epoch, what stood there at the latest epoch so far that is `shown`.
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

/// Final and revised rows are what the specification says, on any number of workers.
fn windows_are(what: &'static str, expected: fn(&[Tx]) -> Vec<Summed>, windows: Windows) {
    let (given, revised) = (Cell::new(0), Cell::new(0));
    check(file!(), (streams(), 2..5u64), |((rounds, workers), epochs)| {
        let all = rows(&rounds, expected);
        let control = |epoch: usize| rounds.get(epoch).is_none_or(|round| round.watermark.is_some());

        let got = windowed(workers, &rounds, Refresh::Final, windows);
        given.set(given.get() + got.len());
        prop_assert!(got.iter().all(|(_, _, diff)| *diff > 0), "what is final is never retracted: {got:?}");
        let finals = final_ones(&all, &watermarks(&rounds), |(row, _)| row.last());
        equal(what, &snapshots(rounds.len(), &got), &finals)?;

        let got = windowed(workers, &rounds, Refresh::Revised { epochs: 1 }, windows);
        revised.set(revised.get() + got.iter().filter(|(_, _, diff)| *diff < 0).count());
        equal(what, &snapshots(rounds.len(), &got), &held(&all, control))?;

        // Revised less often: what is final is given at once all the same, and the rest at the epochs it is due.
        let got = windowed(workers, &rounds, Refresh::Revised { epochs }, windows);
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
        prop_assert!(untimely.is_empty(), "rows before they are due: {untimely:?}");
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
    println!("{what}: {} final rows, {} revised", given.get(), revised.get());
    assert!(given.get() > 0 && revised.get() > 0, "the streams exercise nothing");
}

#[test]
fn tumbling_windows_are_what_the_specification_says() {
    windows_are(
        "tumbling",
        |events| windows::sliding(16, 16, events),
        |keyed, refresh| keyed.tumbling("Tumbling", 16, refresh, statistics(), row),
    );
}

#[test]
fn sliding_windows_are_what_the_specification_says() {
    windows_are(
        "sliding",
        |events| windows::sliding(20, 10, events),
        |keyed, refresh| keyed.sliding("Sliding", 20, 10, refresh, statistics(), row),
    );
}

#[test]
fn sliding_windows_whose_size_is_no_multiple_of_the_step_are_what_the_specification_says() {
    windows_are(
        "hopping",
        |events| windows::sliding(25, 7, events),
        |keyed, refresh| keyed.sliding("Hopping", 25, 7, refresh, statistics(), row),
    );
}

#[test]
fn session_windows_are_what_the_specification_says() {
    windows_are(
        "session",
        |events| windows::sessions(9, events),
        |keyed, refresh| keyed.session("Session", 9, refresh, statistics(), row),
    );
}

#[test]
fn one_two_and_three_workers_give_the_same_rows_in_each_epoch() {
    check(file!(), crate::streams::rounds(), |rounds| {
        let all = |workers| {
            let mut changes = run(workers, &rounds, |events, control| {
                let (keyed, _) = events.admit(control, Admission::default());
                let revised = Refresh::Revised { epochs: 2 };
                let sessions = keyed.clone().session("Session", 9, revised, statistics(), row);
                sessions.concat(keyed.sliding("Sliding", 20, 10, revised, statistics(), row))
            });
            differential_dataflow::consolidation::consolidate_updates(&mut changes);
            changes
        };
        let one = all(1);
        prop_assert_eq!(&one, &all(2));
        prop_assert_eq!(&one, &all(3));
        Ok(())
    });
}
