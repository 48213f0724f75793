//! The numbers of a key's events in the last D, and their sum.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::description::present;
use crate::EventTime;

/// The state of a pattern over the numbers in an interval: those of the last D at the last event with a number.
///
/// Its size is the number of such events in D, because any of them can decide the sum after the others have left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trailing {
    /// The times and numbers, oldest first.
    numbers: VecDeque<(i64, i64)>,
    sum: i128,
    held: bool,
}

/// The data needed to undo one step with a [`Trailing`] state.
#[derive(Clone, Debug, Default)]
pub struct Evicted {
    /// True if the event had a number.
    pub(crate) has_number: bool,
    pub(crate) held: bool,
    /// The numbers that left the interval, oldest first.
    pub(crate) numbers: Box<[(i64, i64)]>,
}

/// The state is below this capacity, or at least a quarter of its capacity is used.
const SMALL: usize = 16;

impl Trailing {
    /// Adds the number of an event, if it has one, and removes those that leave the interval. `holds` judges the new
    /// state. Returns true if there is a number and the condition holds, true if it did not hold before, and the data to
    /// undo the step.
    pub(super) fn step(
        &mut self,
        now: i64,
        number: Option<i64>,
        within_ms: i64,
        holds: impl FnOnce(&Trailing) -> bool,
    ) -> (bool, bool, Evicted) {
        let Some(number) = number else { return (false, false, Evicted::default()) };
        let start = now.saturating_sub(within_ms);
        let leaving = self.numbers.partition_point(|&(time, _)| time <= start);
        let numbers: Box<[(i64, i64)]> = self.numbers.drain(..leaving).collect();
        self.sum -= numbers.iter().map(|&(_, number)| i128::from(number)).sum::<i128>();
        if self.numbers.capacity() > SMALL && self.numbers.len() < self.numbers.capacity() / 4 {
            self.numbers.shrink_to(SMALL / 2 + 2 * self.numbers.len());
        }
        self.numbers.push_back((now, number));
        self.sum += i128::from(number);
        let undo = Evicted { has_number: true, held: self.held, numbers };
        self.held = holds(self);
        (self.held, !undo.held, undo)
    }

    /// Undoes the latest step.
    pub(super) fn undo(&mut self, undo: Evicted) {
        if !undo.has_number {
            return;
        }
        self.held = undo.held;
        if let Some((_, number)) = self.numbers.pop_back() {
            self.sum -= i128::from(number);
        }
        for &(time, number) in undo.numbers.iter().rev() {
            self.sum += i128::from(number);
            self.numbers.push_front((time, number));
        }
    }

    /// Returns the sum of the numbers.
    pub(super) fn sum(&self) -> i128 {
        self.sum
    }

    /// Returns the count of the numbers.
    pub(super) fn count(&self) -> u64 {
        self.numbers.len() as u64
    }

    /// Returns the time between the first and the last number, in milliseconds.
    pub(super) fn span(&self) -> i64 {
        let ends = self.numbers.front().zip(self.numbers.back());
        ends.map_or(0, |((first, _), (last, _))| last.saturating_sub(*first))
    }

    /// Returns the count and the sum of the numbers in the last `within_ms`: see [`Description`](super::Description).
    pub(super) fn present(&self, within_ms: i64, watermark: EventTime) -> (u64, i128) {
        let Some(&(last, _)) = self.numbers.back() else { return (0, 0) };
        let start = present(watermark, last).saturating_sub(within_ms);
        let inside = self.numbers.iter().filter(|(time, _)| *time > start);
        inside.fold((0, 0), |(count, sum), (_, number)| (count + 1, sum + i128::from(*number)))
    }
}
