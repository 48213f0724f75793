//! Random streams with disorder, ties, duplicates, corrections, a hot key, and a randomly rising watermark.

use proptest::prelude::*;

use crate::event::{PLACES, Tx};

/// One epoch of input.
#[derive(Clone, Debug)]
pub struct Round {
    /// The updates read in the epoch, distributed over the workers round-robin.
    pub updates: Vec<(Tx, isize)>,
    /// The watermark at the end of the epoch; `None` if the epoch has no control message.
    pub watermark: Option<i64>,
    /// The number of steps of each worker before the next epoch is read.
    pub steps: u8,
    /// True if the control message, if there is one, requests a checkpoint.
    pub checkpoint: bool,
}

impl Round {
    /// Returns an epoch of insertions that ends with this watermark.
    pub fn of(events: &[Tx], watermark: i64) -> Round {
        Round::changing(events.iter().map(|event| (event.clone(), 1)).collect(), watermark)
    }

    /// Returns an epoch of updates that ends with this watermark.
    pub fn changing(updates: Vec<(Tx, isize)>, watermark: i64) -> Round {
        Round { updates, watermark: Some(watermark), steps: 1, checkpoint: false }
    }
}

/// Generates a stream, and the number of workers that process it.
pub fn streams() -> impl Strategy<Value = (Vec<Round>, usize)> {
    (rounds(), 1..=3usize)
}

/// Generates some epochs, most of them with events.
pub fn rounds() -> impl Strategy<Value = Vec<Round>> {
    prop::collection::vec(script(), 1..16).prop_map(play)
}

/// The actions of an epoch, relative to earlier epochs.
#[derive(Clone, Debug)]
struct Script {
    advance: i64,
    acts: Vec<Act>,
    watermark: Watermark,
    steps: u8,
}

#[derive(Clone, Debug)]
enum Watermark {
    Absent,
    Unchanged,
    /// This far behind the time of the epoch, unless the watermark would decrease.
    Lags(i64),
}

/// An action. `nth` counts backwards over the events so far, modulo their number.
#[derive(Clone, Debug)]
enum Act {
    /// A new event, this long before the time of the epoch.
    New { behind: i64, event: Tx },
    /// The same event again.
    Again { nth: usize },
    /// An event with the same id at another time.
    SameId { nth: usize, later: i64 },
    /// Retracts an event, whether or not it was admitted.
    Retract { nth: usize },
    /// Retracts an event and inserts it again with another time and amount, at the same position in the input.
    Correct { nth: usize, later: i64, amount: i64 },
    /// Like `Correct`, but the new form is also retracted in the same epoch and replaced by a third form.
    CorrectTwice { nth: usize, amount: i64 },
}

fn script() -> impl Strategy<Value = Script> {
    let advance = prop_oneof![6 => 0..15i64, 1 => 50..120i64];
    let acts = prop::collection::vec(act(), 0..20);
    let watermark = prop_oneof![
        1 => Just(Watermark::Absent),
        2 => Just(Watermark::Unchanged),
        6 => (0..45i64).prop_map(Watermark::Lags),
    ];
    (advance, acts, watermark, 0..3u8).prop_map(|(advance, acts, watermark, steps)| Script {
        advance,
        acts,
        watermark,
        steps,
    })
}

fn act() -> impl Strategy<Value = Act> {
    let nth = || prop_oneof![3 => 0..6usize, 1 => 0..60usize];
    prop_oneof![
        16 => (-5..40i64, event()).prop_map(|(behind, event)| Act::New { behind, event }),
        1 => nth().prop_map(|nth| Act::Again { nth }),
        2 => (nth(), -15..15i64).prop_map(|(nth, later)| Act::SameId { nth, later }),
        2 => nth().prop_map(|nth| Act::Retract { nth }),
        1 => (nth(), -4..4i64, -9..9i64).prop_map(|(nth, later, amount)| Act::Correct { nth, later, amount }),
        1 => (nth(), -9..9i64).prop_map(|(nth, amount)| Act::CorrectTwice { nth, amount }),
    ]
}

/// Generates an event without its time and offset.
fn event() -> impl Strategy<Value = Tx> {
    let key = prop_oneof![3 => Just(1u16), 2 => 0..12u16];
    let id = prop::option::weighted(0.5, 0..5u8);
    let amount = prop::option::weighted(0.8, prop_oneof![8 => -9..9i64, 1 => 40..50i64]);
    let merchant = prop::option::weighted(0.7, 0..5u64);
    let place = prop::option::weighted(0.5, 0..PLACES.len() as u8);
    (key, 0..3u32, id, amount, merchant, place).prop_map(|(key, partition, id, amount, merchant, place)| {
        // The key is part of the id: deduplication identifies a key by its hash, which two keys share here.
        let id = id.map(|id| [key as u8, id]);
        Tx { key, time: 0, partition, offset: 0, id, amount, merchant, place }
    })
}

/// An event that was in the input.
struct Seen {
    event: Tx,
    /// True if the event may be in the input more than once. It cannot be corrected then, because two forms would have
    /// the same position.
    repeated: bool,
}

/// Generates the epochs of scripts.
fn play(scripts: Vec<Script>) -> Vec<Round> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut now = 0;
    let mut newest_watermark = i64::MIN;
    let mut rounds = Vec::new();
    for Script { advance, acts, watermark, steps } in scripts {
        now += advance;
        let mut updates = Vec::new();
        for act in acts {
            perform(act, now, &mut seen, &mut updates);
        }
        let watermark = match watermark {
            Watermark::Absent => None,
            Watermark::Unchanged => Some(newest_watermark),
            Watermark::Lags(lag) => Some(newest_watermark.max(now - lag)),
        };
        newest_watermark = watermark.unwrap_or(newest_watermark);
        rounds.push(Round { updates, watermark, steps, checkpoint: false });
    }
    rounds
}

fn perform(act: Act, now: i64, seen: &mut Vec<Seen>, updates: &mut Vec<(Tx, isize)>) {
    let offset = seen.len() as i64;
    if let Act::New { behind, event } = act {
        let event = Tx { time: now - behind, offset, ..event };
        seen.push(Seen { event: event.clone(), repeated: false });
        updates.push((event, 1));
        return;
    }
    let Some(newest) = seen.len().checked_sub(1) else { return };
    let count = seen.len();
    let back = |nth: usize| newest - nth % count;
    match act {
        Act::New { .. } => unreachable!("done above"),
        Act::Again { nth } => {
            let at = back(nth);
            seen[at].repeated = true;
            updates.push((seen[at].event.clone(), 1));
        }
        Act::Retract { nth } => updates.push((seen[back(nth)].event.clone(), -1)),
        Act::SameId { nth, later } => {
            let old = &seen[back(nth)].event;
            let event = Tx { time: old.time + later, offset, ..old.clone() };
            updates.push((event.clone(), 1));
            seen.push(Seen { event, repeated: false });
        }
        Act::Correct { nth, later, amount } => {
            let Seen { event, repeated: false } = &mut seen[back(nth)] else { return };
            let new = Tx { time: event.time + later, amount: Some(amount), ..event.clone() };
            updates.extend([(new.clone(), 1), (std::mem::replace(event, new), -1)]);
        }
        Act::CorrectTwice { nth, amount } => {
            let Seen { event, repeated: false } = &mut seen[back(nth)] else { return };
            let second = Tx { amount: Some(100), ..event.clone() };
            let third = Tx { amount: Some(amount), ..event.clone() };
            let first = std::mem::replace(event, third.clone());
            updates.extend([(second.clone(), 1), (first, -1), (third, 1), (second, -1)]);
        }
    }
}
