//! Running states over random streams, compared with a simple fold in order of arrival.

use std::collections::BTreeMap;

use differential_dataflow::AsCollection;
use headwater_dataflows::{Accumulate, Admit};
use timely::dataflow::operators::vec::Map;

use crate::event::Tx;
use crate::harness::{Seen, check, equal, run, snapshots};
use crate::scan::ADMISSION;
use crate::spec::admission::admit;
use crate::streams::streams;

/// The output for an event: its epoch, its key, and the offsets of the key's events up to it in order of arrival.
type Said = (u64, u16, Vec<i64>);

#[test]
fn each_event_updates_the_state_at_its_arrival() {
    let seen = Seen::default();
    check(file!(), streams(), |(rounds, workers)| {
        let got = run(workers, &rounds, |events, control| {
            let (keyed, _) = events.admit(control, ADMISSION);
            let step =
                |epoch: headwater_dataflows::Epoch, seen: &mut Vec<i64>, event: &Tx, out: &mut Vec<Said>| {
                    seen.push(event.offset);
                    out.push((epoch.0, event.key, seen.clone()));
                };
            let said = keyed.accumulate("Seen", step);
            said.flat_map(|(epoch, all)| all.into_iter().map(move |one| (one, epoch, 1))).as_collection()
        });

        seen.note(&got);
        let mut arrivals: BTreeMap<u16, Vec<i64>> = BTreeMap::new();
        let mut want = Vec::new();
        for (epoch, round) in (0u64..).zip(admit(&rounds, ADMISSION.dedup_horizon_ms).rounds) {
            let mut arrived: Vec<Tx> =
                round.updates.into_iter().filter(|(_, diff)| *diff > 0).map(|(event, _)| event).collect();
            arrived.sort_by_key(|event| (event.time, event.partition, event.offset));
            for event in arrived {
                let before = arrivals.entry(event.key).or_default();
                before.push(event.offset);
                want.push(((epoch, event.key, before.clone()), epoch, 1));
            }
        }
        equal("said", &snapshots(rounds.len(), &got), &snapshots(rounds.len(), &want))
    });
    seen.demand("running state", 600, 0);
}
