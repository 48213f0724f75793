//! The offsets to commit for the consumer group: those of epochs that every sink has committed.

use std::collections::{BTreeMap, VecDeque};

use headwater_dataflows::{Epoch, Offset, Partition};

use super::Binding;

/// Tracks the bindings of epochs that not every sink has committed yet.
#[derive(Debug, Default)]
pub struct GroupOffsets {
    in_flight: VecDeque<(Epoch, Vec<(Partition, Offset)>)>,
    committed: BTreeMap<Partition, Offset>,
    changed: bool,
}

impl GroupOffsets {
    /// Adds the bindings of an epoch. Epochs must be added in ascending order.
    pub fn bound(&mut self, epoch: Epoch, bindings: &[Binding]) {
        if !bindings.is_empty() {
            let ends = bindings.iter().map(|binding| (binding.partition, binding.end)).collect();
            self.in_flight.push_back((epoch, ends));
        }
    }

    /// Notes that every sink has committed all epochs for which `passed` returns true.
    pub fn completed(&mut self, passed: impl Fn(Epoch) -> bool) {
        while let Some((_, ends)) = self.in_flight.pop_front_if(|(epoch, _)| passed(*epoch)) {
            for (partition, end) in ends {
                self.changed |= self.committed.insert(partition, end) != Some(end);
            }
        }
    }

    /// Returns the offsets of the epochs that every sink has committed, if they differ from those returned last.
    pub fn take(&mut self) -> Option<Vec<(Partition, Offset)>> {
        std::mem::take(&mut self.changed).then(|| self.committed.iter().map(|(&p, &o)| (p, o)).collect())
    }

    /// Returns the oldest epoch that some sink has not committed.
    pub fn oldest_in_flight(&self) -> Option<Epoch> {
        self.in_flight.front().map(|(epoch, _)| *epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(partition: u32, end: i64) -> Binding {
        let (partition, end) = (Partition(partition), Offset(end));
        Binding {
            partition,
            end,
            timestamp: None,
            max_event_time: None,
            pushing_time: None,
            candidate: None,
            idle: false,
        }
    }

    #[test]
    fn offsets_follow_the_slowest_sink() {
        let mut offsets = GroupOffsets::default();
        offsets.bound(Epoch(1), &[binding(0, 10), binding(1, 5)]);
        offsets.bound(Epoch(2), &[binding(0, 20)]);
        assert_eq!(offsets.take(), None);
        offsets.completed(|epoch| epoch < Epoch(2));
        assert_eq!(offsets.take(), Some(vec![(Partition(0), Offset(10)), (Partition(1), Offset(5))]));
        assert_eq!(offsets.take(), None, "returned once");
        assert_eq!(offsets.oldest_in_flight(), Some(Epoch(2)));
        offsets.completed(|_| true);
        assert_eq!(offsets.take(), Some(vec![(Partition(0), Offset(20)), (Partition(1), Offset(5))]));
    }
}
