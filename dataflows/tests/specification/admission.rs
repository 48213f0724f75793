//! Admission over random streams, compared with the specification.

use std::cell::Cell;

use headwater_dataflows::{Admission, Admit, Emission, Pattern, Refusal, Scan};
use proptest::prelude::*;

use crate::event::Tx;
use crate::harness::{Seen, check, demand, equal, run, snapshots};
use crate::spec::admission::admit;
use crate::streams::streams;

/// Matches every event, so that the results are the admitted events.
struct Every;

impl Pattern<Tx> for Every {
    type State = ();
    type Undo = ();
    type Match = ();
    fn step(&self, _: &mut (), _: &Tx) -> (Option<()>, ()) {
        (Some(()), ())
    }
    fn undo(&self, _: &mut (), _: &Tx, _: ()) {}
}

#[test]
fn admitted_and_refused_events_match_the_specification() {
    let (seen, counts) = (Seen::default(), [(); 3].map(|()| Cell::new(0)));
    check(file!(), (streams(), prop_oneof![Just(0i64), 1..25i64]), |((rounds, workers), horizon)| {
        let want = admit(&rounds, horizon);
        let admission = Admission { dedup_horizon_ms: horizon, ..Admission::default() };

        let got = run(workers, &rounds, move |events, control| {
            events
                .admit(control, admission)
                .0
                .scan("Every", Every, Emission::Immediate, |event, ()| event.clone())
        });
        seen.note(&got);
        let updates = want.rounds.iter().enumerate().flat_map(|(epoch, round)| {
            round.updates.iter().map(move |(event, diff)| (event.clone(), epoch as u64, *diff))
        });
        let updates: Vec<_> = updates.collect();
        equal("admitted", &snapshots(rounds.len(), &got), &snapshots(rounds.len(), &updates))?;

        let got = run(workers, &rounds, move |events, control| events.admit(control, admission).1);
        equal("refused", &snapshots(rounds.len(), &got), &snapshots(rounds.len(), &want.refused))?;
        for (refused, _, diff) in got {
            let kind = match refused.refusal {
                Refusal::Duplicate => 0,
                Refusal::Late if diff > 0 => 1,
                Refusal::Late => 2,
            };
            counts[kind].set(counts[kind].get() + 1);
        }
        Ok(())
    });
    let [duplicates, late, retractions] = counts.map(Cell::into_inner);
    seen.demand("admitted", 600, 30);
    let refused =
        [("duplicates", duplicates, 30), ("late", late, 200), ("late retractions", retractions, 50)];
    demand("refused", seen.streams(), &refused);
}
