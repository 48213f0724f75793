//! The specification of the operators, as simple as possible.
//!
//! Speed does not matter here: all events of a key are kept, and the cost is quadratic. The answers at an epoch are the
//! answers over all events admitted up to that epoch. The final results of an operator are those answers whose time the
//! watermark has passed.

pub mod admission;
pub mod patterns;
pub mod rules;
pub mod versions;
pub mod windows;

use std::collections::BTreeMap;

use differential_dataflow::{Data, VecCollection};
use headwater_dataflows::Epoch;

use crate::event::Tx;
use crate::harness::{Snapshots, run, snapshots};
use crate::streams::Round;

/// Returns the collection of the answers of each key over its whole history, sorted by (event time, partition, offset).
///
/// This is the specification as a dataflow: a `reduce` over all events of a key.
fn over_history<D: Data>(
    admitted: VecCollection<'_, Epoch, Tx>,
    answers: impl Fn(&[Tx]) -> Vec<D> + 'static,
) -> VecCollection<'_, Epoch, D> {
    let by_key = admitted.map(|event| (event.key, event));
    let answered = by_key.reduce(move |_key, input, output| {
        let mut events = Vec::new();
        for (event, count) in input {
            events.extend((0..*count).map(|_| (*event).clone()));
        }
        events.sort_by_key(|event| (event.time, event.partition, event.offset));
        let mut counted: BTreeMap<D, isize> = BTreeMap::new();
        for answer in answers(&events) {
            *counted.entry(answer).or_default() += 1;
        }
        output.extend(counted);
    });
    answered.map(|(_key, answer)| answer)
}

/// Returns the answers at each epoch over all events admitted up to that epoch.
pub fn answers<D: Data + Send>(
    admitted: &[Round],
    answers: impl Fn(&[Tx]) -> Vec<D> + Clone + Send + Sync + 'static,
) -> Snapshots<D> {
    let changes = run(1, admitted, move |events, _control| over_history(events, answers.clone()));
    snapshots(admitted.len(), &changes)
}

/// Returns the answers at each epoch whose time the watermark has passed.
pub fn final_ones<D: Data>(
    answers: &Snapshots<D>,
    watermarks: &[i64],
    time: impl Fn(&D) -> i64,
) -> Snapshots<D> {
    let passed = answers.iter().zip(watermarks).map(|(answers, watermark)| {
        let passed = answers.iter().filter(|(answer, _)| time(answer) <= *watermark);
        passed.map(|(answer, count)| (answer.clone(), *count)).collect()
    });
    passed.collect()
}
