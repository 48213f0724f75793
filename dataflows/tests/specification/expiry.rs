//! Keys that are forgotten: what comes after is as if it were of another key.

use std::cell::Cell;
use std::collections::BTreeMap;

use differential_dataflow::AsCollection;
use headwater_dataflows::windows::{Refresh, Session, Sliding, Tumbling};
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

/// Times to live. The first is shorter than the steps in time that streams make now and then, and keys are forgotten to
/// the millisecond; with the second memory is given back later than a key dies.
fn ttls() -> impl Strategy<Value = i64> {
    prop_oneof![Just(45), Just(130)]
}

fn mortal(ttl: i64) -> Admission {
    Admission { ttl_ms: Some(ttl), ..ADMISSION }
}

/// Each life of a key as a key of its own: a key dies when the watermark is `ttl` past the time of its last event. Says
/// also how many died and came back.
fn lives(admitted: &[Round], ttl: i64) -> (Vec<Round>, usize) {
    let mut last = BTreeMap::new();
    let mut watermark = i64::MIN;
    let mut deaths = 0;
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
                    deaths += 1;
                    (*known, *newest) = (life, i64::MIN);
                }
                *newest = (*newest).max(event.time);
            }
        }
        watermark = round.watermark.unwrap_or(watermark);
    }
    (rounds, deaths)
}

/// Lies between two lives of a key.
const LIFE: u16 = 100;

/// Forgets which life of its key each is of.
fn merged<D: Ord + Clone>(snapshots: Snapshots<D>, key: impl Fn(&mut D) -> &mut u16) -> Snapshots<D> {
    let merge = |standing: BTreeMap<D, isize>| {
        let mut all = BTreeMap::new();
        for (mut data, count) in standing {
            *key(&mut data) %= LIFE;
            *all.entry(data).or_default() += count;
        }
        all
    };
    snapshots.into_iter().map(merge).collect()
}

#[test]
fn a_pattern_begins_anew_with_a_key_that_was_forgotten() {
    let (seen, died) = (Seen::default(), Cell::new(0));
    check(file!(), (streams(), ttls()), |((rounds, workers), ttl)| {
        let got = run(workers, &rounds, move |events, control| {
            events.admit(control, mortal(ttl)).0.scan("Trail", Trail, Emission::Immediate, trail)
        });
        seen.note(&got);
        let (lives, deaths) = lives(&admit(&rounds, ADMISSION.dedup_horizon_ms).rounds, ttl);
        died.set(died.get() + deaths);
        let want = merged(answers(&lives, patterns::trail), |answer| &mut answer.key);
        equal("trail", &snapshots(rounds.len(), &got), &want)
    });
    seen.demand("trail of mortal keys", 800, 150);
    demand("keys that came back", seen.streams(), &[("came back", died.get(), 25)]);
}

#[test]
fn running_states_begin_anew_too() {
    check(file!(), (streams(), ttls()), |((rounds, workers), ttl)| {
        let got = run(workers, &rounds, move |events, control| {
            let counted = events.admit(control, mortal(ttl)).0.accumulate(
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
fn a_window_is_never_forgotten_before_it_has_closed() {
    // Longer than keys would live, if nothing waited for them.
    const SIZE: i64 = 64;
    const SHORT: Admission = Admission { ttl_ms: Some(1), ..ADMISSION };
    let seen = Seen::default();
    check(file!(), streams(), |(rounds, workers)| {
        let admitted = admit(&rounds, ADMISSION.dedup_horizon_ms).rounds;
        for refresh in [Refresh::Final, Refresh::Revised { epochs: 1 }] {
            let got = run(workers, &rounds, move |events, control| {
                let keyed = events.admit(control, SHORT).0;
                let tumbling = keyed.clone().tumbling("Tumbling", SIZE, refresh, statistics(), row);
                let sliding = keyed.clone().sliding("Sliding", SIZE, 16, refresh, statistics(), row);
                tumbling.concat(sliding).concat(keyed.session("Session", 9, refresh, statistics(), row))
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
    seen.demand("windows of mortal keys", 2000, 600);
}
