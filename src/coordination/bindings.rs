//! Bindings: which records an epoch holds. An epoch is closed when every worker has said so.

use std::collections::BTreeMap;

use headwater_dataflows::{Epoch, EventTime, Offset, Partition};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ingest::{Slowest, TimeRules, UnfinalBytes};

/// What one epoch took from one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Binding {
    /// The partition.
    pub partition: Partition,
    /// One more than the offset of the last record read: all before it belong to this epoch or to one before.
    pub end: Offset,
    /// That record's own timestamp, in milliseconds since 1970; none if the epoch has no record of it.
    pub timestamp: Option<i64>,
    /// The greatest event time accepted in this epoch: decoded, valid and not in the future.
    pub max_event_time: Option<EventTime>,
    /// The partition's greatest pushing time, if this epoch has raised it.
    pub pushing_time: Option<EventTime>,
    /// The partition's candidate for it at the end of this epoch: a jump that no second record has confirmed.
    pub candidate: Option<EventTime>,
    /// Whether the partition is idle: it does not hold back the watermark.
    pub idle: bool,
}

/// A worker's word that it reads no more in an epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Closed {
    /// Who says so.
    pub worker: usize,
    /// The wall time of the epoch, in milliseconds since 1970.
    pub wall_ms: i64,
    /// What it read, or what became idle or busy, by partition.
    pub bindings: Vec<Binding>,
    /// The bytes of the events that it accepted, by partition, in the order of its partitions.
    pub unfinal: Vec<(Partition, UnfinalBytes)>,
    /// Its slowest partition that is not idle.
    pub slowest: Option<Slowest>,
    /// The oldest timestamp of a record that it read, in milliseconds since 1970.
    pub oldest: Option<i64>,
    /// Whether all its partitions have come to their announced end.
    pub ended: bool,
    /// Whether its process was asked to stop.
    pub stopping: bool,
}

/// A closed epoch: what all workers read in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The epoch.
    pub epoch: Epoch,
    /// Its wall time, in milliseconds since 1970.
    pub wall_ms: i64,
    /// Bindings by partition.
    pub bindings: Vec<Binding>,
    /// The bytes of the events that were accepted, by partition.
    pub unfinal: Vec<(Partition, UnfinalBytes)>,
    /// The slowest partition that is not idle.
    pub slowest: Option<Slowest>,
    /// Whether every partition has come to its announced end.
    pub ended: bool,
    /// Whether any process was asked to stop.
    pub stopping: bool,
}

/// An epoch as it is recorded, durably: from it the epoch is done again, exactly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The epoch.
    pub epoch: Epoch,
    /// Its wall time, in milliseconds since 1970.
    pub wall_ms: i64,
    /// Bindings by partition.
    pub bindings: Vec<Binding>,
    /// Whether the watermark went to infinity at its end: the input was over.
    pub closes: bool,
    /// By which rules its records were judged.
    pub rules: TimeRules,
}

impl EpochRecord {
    /// Whether nothing happened in it: such epochs are not recorded.
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty() && !self.closes
    }
}

/// A worker broke the protocol of closing epochs.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Protocol {
    /// The frontier passed an epoch that not every worker had closed: one of them ended without a word.
    #[error("epoch {epoch} has ended, but worker {worker} never closed it")]
    NotClosed {
        /// The epoch.
        epoch: Epoch,
        /// Who is missing.
        worker: usize,
    },
    /// A worker closed an epoch twice.
    #[error("worker {worker} closed epoch {epoch} twice")]
    ClosedTwice {
        /// The epoch.
        epoch: Epoch,
        /// Who did.
        worker: usize,
    },
}

/// Collects what workers close, until the frontier says that an epoch is over.
#[derive(Debug)]
pub struct Collector {
    workers: usize,
    open: BTreeMap<Epoch, Vec<Closed>>,
}

impl Collector {
    /// For a cluster of so many workers.
    pub fn new(workers: usize) -> Collector {
        Collector { workers, open: BTreeMap::new() }
    }

    /// Takes in a worker's word.
    pub fn closed(&mut self, epoch: Epoch, closed: Closed) {
        self.open.entry(epoch).or_default().push(closed);
    }

    /// The next epoch, in order, that `passed` says is over.
    ///
    /// # Errors
    /// If the frontier has passed it but not each worker has closed it exactly once.
    pub fn next(&mut self, passed: impl Fn(Epoch) -> bool) -> Result<Option<Bound>, Protocol> {
        let Some(first) = self.open.first_entry().filter(|first| passed(*first.key())) else {
            return Ok(None);
        };
        let (epoch, mut closed) = first.remove_entry();
        closed.sort_by_key(|closed| closed.worker);
        for (worker, closed) in closed.iter().enumerate() {
            if closed.worker > worker {
                return Err(Protocol::NotClosed { epoch, worker });
            }
            if closed.worker < worker {
                return Err(Protocol::ClosedTwice { epoch, worker: closed.worker });
            }
        }
        if closed.len() < self.workers {
            return Err(Protocol::NotClosed { epoch, worker: closed.len() });
        }
        let mut bindings: Vec<Binding> =
            closed.iter().flat_map(|closed| closed.bindings.iter().copied()).collect();
        bindings.sort_unstable();
        Ok(Some(Bound {
            epoch,
            wall_ms: closed.iter().map(|closed| closed.wall_ms).max().unwrap_or_default(),
            bindings,
            unfinal: closed.iter().flat_map(|closed| closed.unfinal.iter().copied()).collect(),
            slowest: closed.iter().filter_map(|closed| closed.slowest).min(),
            ended: closed.iter().all(|closed| closed.ended),
            stopping: closed.iter().any(|closed| closed.stopping),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(worker: usize) -> Closed {
        Closed {
            worker,
            wall_ms: 5,
            bindings: vec![],
            unfinal: vec![],
            slowest: None,
            oldest: None,
            ended: worker == 0,
            stopping: worker == 1,
        }
    }

    #[test]
    fn an_epoch_is_closed_only_by_every_worker_once() {
        let mut collector = Collector::new(2);
        collector.closed(Epoch(3), closed(1));
        assert_eq!(collector.next(|_| false), Ok(None));
        collector.closed(Epoch(3), closed(0));
        let bound = collector.next(|_| true).expect("closed by both").expect("passed");
        assert_eq!((bound.epoch, bound.ended, bound.stopping), (Epoch(3), false, true));
        assert_eq!(collector.next(|_| true), Ok(None));

        collector.closed(Epoch(4), closed(0));
        assert_eq!(collector.next(|_| true), Err(Protocol::NotClosed { epoch: Epoch(4), worker: 1 }));
        collector.closed(Epoch(5), closed(1));
        assert_eq!(collector.next(|_| true), Err(Protocol::NotClosed { epoch: Epoch(5), worker: 0 }));
        for worker in [0, 1, 1] {
            collector.closed(Epoch(6), closed(worker));
        }
        assert_eq!(collector.next(|_| true), Err(Protocol::ClosedTwice { epoch: Epoch(6), worker: 1 }));
    }
}
