//! Results that wait for the watermark.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use differential_dataflow::Data;

use crate::{Epoch, EventTime};

/// Results by the time at which they are due, with their diffs. A withdrawn result is removed at once, so the memory
/// depends only on the results that remain.
pub(crate) struct Due<D>(BTreeMap<(EventTime, D), isize>);

impl<D: Data> Due<D> {
    pub fn new() -> Self {
        Due(BTreeMap::new())
    }

    /// Adds `diff` to the count of a result.
    pub fn add(&mut self, due: EventTime, answer: D, diff: isize) {
        match self.0.entry((due, answer)) {
            Entry::Vacant(entry) => {
                entry.insert(diff);
            }
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += diff;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }

    /// Emits the results that are due.
    pub fn release(&mut self, watermark: EventTime, epoch: Epoch, out: &mut Vec<(D, Epoch, isize)>) {
        while let Some(first) = self.0.first_entry().filter(|first| first.key().0 <= watermark) {
            let ((_, answer), diff) = first.remove_entry();
            out.push((answer, epoch, diff));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn withdrawn_results_are_removed_and_others_emitted_when_due() {
        let (mut waiting, mut out) = (Due::new(), Vec::new());
        for (answer, due, diff) in [("b", 7, 1), ("a", 7, 1), ("a", 7, 1), ("c", 9, 1), ("d", 7, -1)] {
            waiting.add(EventTime(due), answer, diff);
        }
        for (answer, due, diff) in [("b", 7, -1), ("c", 9, -1), ("d", 7, 1)] {
            waiting.add(EventTime(due), answer, diff);
        }
        assert_eq!(waiting.0, BTreeMap::from([((EventTime(7), "a"), 2)]));
        waiting.release(EventTime(6), Epoch(2), &mut out);
        assert_eq!(out, []);
        waiting.release(EventTime(7), Epoch(3), &mut out);
        assert_eq!(out, [("a", Epoch(3), 2)]);
    }
}
