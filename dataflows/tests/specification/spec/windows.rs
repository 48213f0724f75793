//! The specification of windows, over all events of a key in sorted order.

use std::collections::BTreeSet;

use super::patterns::sum_and_spread;
use crate::event::Tx;

/// A window that has events, and the aggregates of its events.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Summed {
    pub key: u16,
    pub start: i64,
    pub end: i64,
    pub count: u64,
    pub amounts: u64,
    pub sum: i64,
    /// The value n·Σx² − (Σx)² of the n amounts.
    pub spread: i64,
    pub extremes: Option<(i64, i64)>,
    pub merchants: u64,
}

impl Summed {
    /// Returns the last instant of the window. The window is final when the watermark reaches it.
    pub fn last(&self) -> i64 {
        self.end - 1
    }
}

fn summed<'a>(start: i64, end: i64, events: impl Iterator<Item = &'a Tx>) -> Option<Summed> {
    let events: Vec<&Tx> = events.collect();
    let amounts: Vec<i64> = events.iter().filter_map(|event| event.amount).collect();
    let (sum, spread) = sum_and_spread(amounts.iter().copied());
    Some(Summed {
        key: events.first()?.key,
        start,
        end,
        count: events.len() as u64,
        amounts: amounts.len() as u64,
        sum,
        spread,
        extremes: amounts.iter().copied().min().zip(amounts.iter().copied().max()),
        merchants: events.iter().filter_map(|event| event.merchant).collect::<BTreeSet<u64>>().len() as u64,
    })
}

/// Returns the windows of `size` that start at multiples of `every`.
pub fn sliding(size: i64, every: i64, events: &[Tx]) -> Vec<Summed> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return Vec::new() };
    let starts = (first.time - size..=last.time).filter(|start| start % every == 0);
    let window = |start: i64| {
        let inside = events.iter().filter(|event| start <= event.time && event.time < start + size);
        summed(start, start + size, inside)
    };
    starts.filter_map(window).collect()
}

/// Returns the sessions: two events belong to one session if they are less than `gap` apart.
pub fn sessions(gap: i64, events: &[Tx]) -> Vec<Summed> {
    let sessions = events.chunk_by(|before, after| after.time - before.time < gap);
    let session = |events: &[Tx]| {
        let (first, last) = (events.first()?, events.last()?);
        summed(first.time, last.time + gap, events.iter())
    };
    sessions.filter_map(session).collect()
}
