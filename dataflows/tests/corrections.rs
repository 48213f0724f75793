//! Streams by hand in which events are taken back: each of these once went wrong.

use headwater_dataflows::testing::{Line, run_updates};
use headwater_dataflows::{Admission, Admit, Emission, EventTime, Refused, Scan, patterns::Frequency};

/// An epoch: changes of events as (key, time, offset, id) with their diffs, and the watermark after them.
type Round = (Vec<((&'static str, i64, i64, &'static str), isize)>, i64);

fn rounds(rounds: Vec<Round>) -> Vec<(Vec<(Line, isize)>, EventTime)> {
    let line = |(line, diff)| (Line::from(line), diff);
    let round = |(lines, watermark): Round| (lines.into_iter().map(line).collect(), EventTime(watermark));
    rounds.into_iter().map(round).collect()
}

const ADMISSION: Admission = Admission { dedup_horizon_ms: 100 };

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
