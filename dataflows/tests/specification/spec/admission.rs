//! The specification of admission.
//!
//! - The updates of an epoch are summed up. Updates that cancel have no effect.
//! - An event is *late* if its time is at or below the watermark of the previous epoch.
//! - A retraction is refused as late if its event is late or is not among the admitted events.
//! - An event is a *duplicate* if an admitted event of the same key has the same id and lies within the horizon. In an
//!   epoch, all retractions come first, then the insertions in the order (event time, partition, offset).

use std::collections::BTreeMap;

use headwater_dataflows::{Refusal, Refused};

use crate::event::Tx;
use crate::streams::Round;

/// The outcome of admission for a stream.
#[derive(Debug)]
pub struct Admitted {
    /// The same epochs with the updates that were admitted.
    pub rounds: Vec<Round>,
    /// The changes of the collection of refused events.
    pub refused: Vec<(Refused<Tx>, u64, isize)>,
}

pub fn admit(rounds: &[Round], dedup_horizon: i64) -> Admitted {
    let mut admitted_events: Vec<Tx> = Vec::new();
    let mut watermark = i64::MIN;
    let mut admitted = Admitted { rounds: Vec::new(), refused: Vec::new() };
    for (epoch, round) in rounds.iter().enumerate() {
        let mut net: BTreeMap<&Tx, isize> = BTreeMap::new();
        round.updates.iter().for_each(|(event, diff)| *net.entry(event).or_default() += diff);
        let mut ones: Vec<(&Tx, isize)> = Vec::new();
        for (event, diff) in net {
            ones.extend((0..diff.abs()).map(|_| (event, diff.signum())));
        }
        ones.sort_by_key(|(event, diff)| (*diff, event.time, event.partition, event.offset));

        let mut updates = Vec::new();
        for (event, diff) in ones {
            let there = admitted_events.iter().position(|other| other == event);
            let refusal = match there {
                _ if event.time <= watermark => Some(Refusal::Late),
                None if diff < 0 => Some(Refusal::Late),
                _ if diff > 0 && is_duplicate(event, &admitted_events, dedup_horizon) => {
                    Some(Refusal::Duplicate)
                }
                _ => None,
            };
            match (refusal, there) {
                (Some(refusal), _) => {
                    admitted.refused.push((Refused { event: event.clone(), refusal }, epoch as u64, diff));
                    continue;
                }
                (None, Some(there)) if diff < 0 => {
                    admitted_events.remove(there);
                }
                (None, _) => admitted_events.push(event.clone()),
            }
            updates.push((event.clone(), diff));
        }
        admitted.rounds.push(Round { updates, ..round.clone() });
        watermark = round.watermark.unwrap_or(watermark);
    }
    admitted
}

fn is_duplicate(event: &Tx, admitted_events: &[Tx], horizon: i64) -> bool {
    let same_id = |other: &&Tx| event.id.is_some() && other.key == event.key && other.id == event.id;
    horizon > 0
        && admitted_events.iter().filter(same_id).any(|other| (other.time - event.time).abs() <= horizon)
}
