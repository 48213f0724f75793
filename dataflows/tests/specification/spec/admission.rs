//! Which events take part.
//!
//! - The updates of an epoch are summed up; what cancels was never there.
//! - An event is *late* if its time is at or below the watermark of the epoch before.
//! - A retraction is refused, as late, if its event is late or is not among the admitted ones.
//! - An event is a *duplicate* if an admitted one of its key has its id and lies within the horizon. In an epoch all
//!   retractions come first, then the insertions in the order (event time, partition, offset).

use std::collections::BTreeMap;

use headwater_dataflows::{Refusal, Refused};

use crate::event::Tx;
use crate::streams::Round;

/// What becomes of a stream.
#[derive(Debug)]
pub struct Admitted {
    /// The same epochs with the updates that were admitted.
    pub rounds: Vec<Round>,
    /// What was refused, by epoch.
    pub refused: Vec<(Refused<Tx>, u64, isize)>,
}

pub fn admit(rounds: &[Round], dedup_horizon: i64) -> Admitted {
    let mut standing: Vec<Tx> = Vec::new();
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
            let there = standing.iter().position(|other| other == event);
            let refusal = match there {
                _ if event.time <= watermark => Some(Refusal::Late),
                None if diff < 0 => Some(Refusal::Late),
                _ if diff > 0 && is_duplicate(event, &standing, dedup_horizon) => Some(Refusal::Duplicate),
                _ => None,
            };
            match (refusal, there) {
                (Some(refusal), _) => {
                    admitted.refused.push((Refused { event: event.clone(), refusal }, epoch as u64, diff));
                    continue;
                }
                (None, Some(there)) if diff < 0 => {
                    standing.remove(there);
                }
                (None, _) => standing.push(event.clone()),
            }
            updates.push((event.clone(), diff));
        }
        admitted.rounds.push(Round { updates, ..round.clone() });
        watermark = round.watermark.unwrap_or(watermark);
    }
    admitted
}

fn is_duplicate(event: &Tx, standing: &[Tx], horizon: i64) -> bool {
    let same_id = |other: &&Tx| event.id.is_some() && other.key == event.key && other.id == event.id;
    horizon > 0 && standing.iter().filter(same_id).any(|other| (other.time - event.time).abs() <= horizon)
}
