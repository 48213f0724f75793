//! Expiry of keys: after a key has expired, its events are processed like those of a new key.

use std::cell::Cell;
use std::collections::BTreeMap;

use differential_dataflow::AsCollection;
use headwater_dataflows::windows::{EmitPolicy, Session, Sliding, Tumbling};
use headwater_dataflows::{Accumulate, Admission, Admit, Emission, Scan};
use proptest::prelude::*;
use timely::dataflow::operators::vec::Map;

use crate::event::Tx;
use crate::harness::{Seen, Snapshots, check, demand, equal, run, snapshots, watermarks};
use crate::scan::{ADMISSION, Trail, trail};
use crate::spec::admission::admit;
use crate::spec::windows::{self, Summed};
use crate::spec::{answers, final_ones, patterns};
use crate::streams::{Round, streams};
use crate::windows::{row, statistics};

/// Generates times to live. The first is shorter than some time steps of the streams, and keys are evicted at the
/// millisecond of their expiry. With the second, memory is freed some time after the expiry.
fn ttls() -> impl Strategy<Value = i64> {
    prop_oneof![Just(45), Just(130)]
}

fn with_ttl(ttl: i64) -> Admission {
    Admission { ttl_ms: Some(ttl), ..ADMISSION }
}

/// Replaces each life of a key by a separate key: a key expires when the watermark is `ttl` past the time of its last
/// event. Also returns the number of keys that had events after their expiry.
fn lives(admitted: &[Round], ttl: i64) -> (Vec<Round>, usize) {
    let mut last = BTreeMap::new();
    let mut watermark = i64::MIN;
    let mut expirations = 0;
    let mut rounds = admitted.to_vec();
    for round in &mut rounds {
        let before = last.clone();
        for (event, diff) in &mut round.updates {
            let key = event.key;
            let (mut life, newest) = before.get(&key).copied().unwrap_or((0, i64::MIN));
            if newest != i64::MIN && newest + ttl <= watermark {
                life += 1;
            }
            event.key += LIFE * life;
            if *diff > 0 {
                let (known, newest) = last.entry(key).or_insert((0, i64::MIN));
                if *known < life {
                    expirations += 1;
                    (*known, *newest) = (life, i64::MIN);
                }
                *newest = (*newest).max(event.time);
            }
        }
        watermark = round.watermark.unwrap_or(watermark);
    }
    (rounds, expirations)
}

/// The distance between the keys that represent two successive lives of a key.
const LIFE: u16 = 100;

/// Replaces the keys that represent lives by the original keys.
fn merged<D: Ord + Clone>(snapshots: Snapshots<D>, key: impl Fn(&mut D) -> &mut u16) -> Snapshots<D> {
    let merge = |contents: BTreeMap<D, isize>| {
        let mut all = BTreeMap::new();
        for (mut data, count) in contents {
            *key(&mut data) %= LIFE;
            *all.entry(data).or_default() += count;
        }
        all
    };
    snapshots.into_iter().map(merge).collect()
}

#[test]
fn a_pattern_starts_without_state_after_expiry() {
    let (seen, expired) = (Seen::default(), Cell::new(0));
    check(file!(), (streams(), ttls()), |((rounds, workers), ttl)| {
        let got = run(workers, &rounds, move |events, control| {
            events.admit(control, with_ttl(ttl)).0.scan("Trail", Trail, Emission::Immediate, trail)
        });
        seen.note(&got);
        let (lives, expirations) = lives(&admit(&rounds, ADMISSION.dedup_horizon_ms).rounds, ttl);
        expired.set(expired.get() + expirations);
        let want = merged(answers(&lives, patterns::trail), |answer| &mut answer.key);
        equal("trail", &snapshots(rounds.len(), &got), &want)
    });
    seen.demand("trail with expiry", 800, 150);
    demand("keys with events after expiry", seen.streams(), &[("returned", expired.get(), 25)]);
}

#[test]
fn a_running_state_starts_empty_after_expiry() {
    check(file!(), (streams(), ttls()), |((rounds, workers), ttl)| {
        let got = run(workers, &rounds, move |events, control| {
            let counted = events.admit(control, with_ttl(ttl)).0.accumulate(
                "Count",
                |_, seen: &mut i64, event: &Tx, out: &mut Vec<(u16, i64, i64)>| {
                    *seen += 1;
                    out.push((event.key, event.offset, *seen));
                },
            );
            counted.flat_map(|(epoch, all)| all.into_iter().map(move |one| (one, epoch, 1))).as_collection()
        });
        let mut counts = BTreeMap::new();
        let mut want = Vec::new();
        let (lives, _) = lives(&admit(&rounds, ADMISSION.dedup_horizon_ms).rounds, ttl);
        for (epoch, round) in (0..).zip(lives) {
            let mut arrived: Vec<Tx> =
                round.updates.into_iter().filter(|(_, diff)| *diff > 0).map(|(event, _)| event).collect();
            arrived.sort_by_key(|event| (event.time, event.partition, event.offset));
            for event in arrived {
                let count = counts.entry(event.key).or_insert(0);
                *count += 1;
                want.push(((event.key % LIFE, event.offset, *count), epoch, 1));
            }
        }
        equal("counts", &snapshots(rounds.len(), &got), &snapshots(rounds.len(), &want))
    });
}

type Expected = fn(&[Tx]) -> Vec<Summed>;

#[test]
fn a_key_does_not_expire_before_its_windows_close() {
    // Longer than the time to live, which open windows extend.
    const SIZE: i64 = 64;
    const SHORT: Admission = Admission { ttl_ms: Some(1), ..ADMISSION };
    let seen = Seen::default();
    check(file!(), streams(), |(rounds, workers)| {
        let admitted = admit(&rounds, ADMISSION.dedup_horizon_ms).rounds;
        for emit in [EmitPolicy::Final, EmitPolicy::Early { epochs: 1 }] {
            let got = run(workers, &rounds, move |events, control| {
                let keyed = events.admit(control, SHORT).0;
                let tumbling = keyed.clone().tumbling("Tumbling", SIZE, emit, statistics(), row);
                let sliding = keyed.clone().sliding("Sliding", SIZE, 16, emit, statistics(), row);
                tumbling.concat(sliding).concat(keyed.session("Session", 9, emit, statistics(), row))
            });
            seen.note(&got);
            let closed = |rows: &Snapshots<(Summed, bool)>| -> Snapshots<Summed> {
                let closed = rows.iter().map(|rows| {
                    let closed = rows.iter().filter(|((_, closed), _)| *closed);
                    closed.map(|((row, _), count)| (row.clone(), *count)).collect()
                });
                closed.collect()
            };
            let mut want: Snapshots<Summed> = vec![Default::default(); rounds.len() + 1];
            let each: [Expected; 3] = [
                |events| windows::sliding(SIZE, SIZE, events),
                |events| windows::sliding(SIZE, 16, events),
                |events| windows::sessions(9, events),
            ];
            for expected in each {
                let finals = final_ones(&answers(&admitted, expected), &watermarks(&rounds), Summed::last);
                for (all, finals) in want.iter_mut().zip(finals) {
                    finals.into_iter().for_each(|(row, count)| *all.entry(row).or_default() += count);
                }
            }
            equal("windows", &closed(&snapshots(rounds.len(), &got)), &want)?;
        }
        Ok(())
    });
    seen.demand("windows with expiry", 2000, 600);
}
