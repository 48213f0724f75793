//! Results that wait for the watermark.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use differential_dataflow::Data;

use crate::{Epoch, EventTime};

/// Results by the time at which they are due, with the numbers of their rules and their diffs. A withdrawn result is
/// removed at once, so the memory depends only on the results that remain.
pub(crate) struct Due<D>(BTreeMap<(EventTime, D, u32), isize>);

impl<D: Data> Due<D> {
    pub fn new() -> Self {
        Due(BTreeMap::new())
    }

    /// Adds `diff` to the count of a result of a rule.
    pub fn add(&mut self, due: EventTime, answer: D, rule: u32, diff: isize) {
        match self.0.entry((due, answer, rule)) {
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

    /// Removes the results of all rules for which `is_kept` returns false.
    pub fn retain(&mut self, is_kept: impl Fn(u32) -> bool) {
        self.0.retain(|(_, _, rule), _| is_kept(*rule));
    }

    /// Emits the results that are due.
    pub fn release(&mut self, watermark: EventTime, epoch: Epoch, out: &mut Vec<(D, Epoch, isize)>) {
        while let Some(first) = self.0.first_entry().filter(|first| first.key().0 <= watermark) {
            let ((_, answer, _), diff) = first.remove_entry();
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
            waiting.add(EventTime(due), answer, 0, diff);
        }
        for (answer, due, diff) in [("b", 7, -1), ("c", 9, -1), ("d", 7, 1)] {
            waiting.add(EventTime(due), answer, 0, diff);
        }
        assert_eq!(waiting.0, BTreeMap::from([((EventTime(7), "a", 0), 2)]));
        waiting.release(EventTime(6), Epoch(2), &mut out);
        assert_eq!(out, []);
        waiting.release(EventTime(7), Epoch(3), &mut out);
        assert_eq!(out, [("a", Epoch(3), 2)]);
    }

    #[test]
    fn equal_results_of_a_removed_rule_do_not_remove_others() {
        let (mut waiting, mut out) = (Due::new(), Vec::new());
        [0, 1, 1, 2].iter().for_each(|rule| waiting.add(EventTime(7), "a", *rule, 1));
        waiting.retain(|rule| rule != 1);
        waiting.release(EventTime(7), Epoch(3), &mut out);
        assert_eq!(out, [("a", Epoch(3), 1), ("a", Epoch(3), 1)]);
    }
}
