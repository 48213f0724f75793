//! Operators of differential dataflow on the output of `scan`, including revocations.

use std::collections::BTreeMap;

use differential_dataflow::VecCollection;
use differential_dataflow::input::Input;
use differential_dataflow::operators::Iterate;
use headwater_dataflows::{Admit, ControlStream, Emission, Epoch, Scan};

use crate::event::Tx;
use crate::harness::{Seen, Snapshots, check, equal, run, snapshots};
use crate::scan::{ADMISSION, frequency, rate};
use crate::spec::admission::admit;
use crate::spec::{answers, patterns};
use crate::streams::streams;

/// A minimal alert: key and offset.
type Alert = (u16, i64);

fn alerts<'s>(
    events: VecCollection<'s, Epoch, Tx>,
    control: ControlStream<'s>,
) -> VecCollection<'s, Epoch, Alert> {
    let (keyed, _) = events.admit(control, ADMISSION);
    let found = keyed.scan("Frequency", frequency(), Emission::Immediate, rate);
    found.map(|answer| (answer.key, answer.offset))
}

/// Computes a result at each epoch from all alerts that hold at that epoch.
fn recomputed<D: Ord>(
    alerts: &Snapshots<Alert>,
    compute: impl Fn(&BTreeMap<Alert, isize>) -> Vec<D>,
) -> Snapshots<D> {
    let at_epoch = |alerts: &BTreeMap<Alert, isize>| {
        let mut counted = BTreeMap::new();
        compute(alerts).into_iter().for_each(|one| *counted.entry(one).or_default() += 1);
        counted
    };
    alerts.iter().map(at_epoch).collect()
}

fn halvings(offset: i64) -> impl Iterator<Item = i64> {
    std::iter::successors(Some(offset), |n| (*n > 0).then(|| n / 2))
}

#[test]
fn differential_operators_follow_revocations() {
    let [alerts_seen, counts, joined, iterated] = [(); 4].map(|()| Seen::default());
    check(file!(), streams(), |(rounds, workers)| {
        let admitted = admit(&rounds, ADMISSION.dedup_horizon_ms).rounds;
        let found = answers(&admitted, |events| patterns::frequency(3, 12, events));
        let standing: Snapshots<Alert> = found
            .into_iter()
            .map(|found| found.into_iter().map(|(answer, n)| ((answer.key, answer.offset), n)).collect())
            .collect();

        let got = run(workers, &rounds, |events, control| alerts(events, control).consolidate());
        alerts_seen.note(&got);
        equal("consolidate", &snapshots(rounds.len(), &got), &standing)?;

        let got =
            run(workers, &rounds, |events, control| alerts(events, control).map(|(key, _)| key).count());
        counts.note(&got);
        let want = recomputed(&standing, |alerts| {
            let mut counts: BTreeMap<u16, isize> = BTreeMap::new();
            alerts.iter().for_each(|((key, _), n)| *counts.entry(*key).or_default() += n);
            counts.into_iter().collect()
        });
        equal("count", &snapshots(rounds.len(), &got), &want)?;

        let got = run(workers, &rounds, |events, control| {
            let scope = events.scope();
            // One worker inserts the names of some keys. Keys without names are not in the join.
            let named = if scope.index() == 0 { 8 } else { 0 };
            let (_, names) = scope.new_collection_from((0..named).map(|key: u16| (key, 100 + key)));
            alerts(events, control).join(names)
        });
        joined.note(&got);
        let want = recomputed(&standing, |alerts| {
            let known = alerts.keys().filter(|(key, _)| *key < 8);
            known.map(|(key, offset)| (*key, (*offset, 100 + key))).collect()
        });
        equal("join", &snapshots(rounds.len(), &got), &want)?;

        let got = run(workers, &rounds, |events, control| {
            let offsets = alerts(events, control).map(|(_, offset)| offset);
            offsets.clone().iterate(move |scope, reached| {
                let halved = reached.filter(|n| *n > 0).map(|n| n / 2);
                halved.concat(offsets.enter(scope)).distinct()
            })
        });
        iterated.note(&got);
        let want = recomputed(&standing, |alerts| {
            let mut reached: Vec<i64> = alerts.keys().flat_map(|(_, offset)| halvings(*offset)).collect();
            reached.sort_unstable();
            reached.dedup();
            reached
        });
        equal("iterate", &snapshots(rounds.len(), &got), &want)
    });
    alerts_seen.demand("alerts, consolidated", 60, 15);
    counts.demand("counted", 60, 30);
    joined.demand("joined", 40, 10);
    iterated.demand("iterated", 60, 15);
}
