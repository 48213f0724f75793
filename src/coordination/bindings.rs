//! Bindings: the records that belong to an epoch. An epoch is closed when every worker has closed it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use headwater_dataflows::{Epoch, EventTime, Offset, Partition};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Change;
use super::ingest::{Slowest, TimeRules, UnfinalBytes};

/// The records that one epoch read from one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Binding {
    /// The partition.
    pub partition: Partition,
    /// The offset after the last record read: all records before it belong to this epoch or to an earlier one.
    pub end: Offset,
    /// The timestamp of that record, in milliseconds since 1970; None if the epoch has no record of the partition.
    pub timestamp: Option<i64>,
    /// The greatest event time accepted in this epoch: decoded, valid and not in the future.
    pub max_event_time: Option<EventTime>,
    /// The greatest pushing time of the partition, if this epoch has raised it.
    pub pushing_time: Option<EventTime>,
    /// The candidate for the greatest pushing time at the end of this epoch: a jump that no second record has
    /// confirmed.
    pub candidate: Option<EventTime>,
    /// True if the partition is idle: it does not hold back the watermark.
    pub idle: bool,
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Binding { partition, end, timestamp, max_event_time, pushing_time, candidate, idle } = self;
        let time = |ms: Option<i64>| ms.map_or("none".to_owned(), crate::json::rfc3339);
        let event_time = |time_ms: &Option<EventTime>| time(time_ms.map(|event_time| event_time.0));
        write!(
            f,
            "partition {} to offset {} (timestamp {}, greatest event time {}, pushing time {}, unconfirmed {}, {})",
            partition.0,
            end.0,
            time(*timestamp),
            event_time(max_event_time),
            event_time(pushing_time),
            event_time(candidate),
            if *idle { "idle" } else { "not idle" }
        )
    }
}

/// A worker's message that it reads no more records in an epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Closed {
    /// The worker that sent the message.
    pub worker: usize,
    /// The wall time of the epoch, in milliseconds since 1970.
    pub wall_ms: i64,
    /// The records it read and the partitions that became idle or active, by partition.
    pub bindings: Vec<Binding>,
    /// The bytes of the accepted events, by partition, in the order of the worker's partitions.
    pub unfinal: Vec<(Partition, UnfinalBytes)>,
    /// The slowest partition of the worker that is not idle.
    pub slowest: Option<Slowest>,
    /// The oldest timestamp of a record that the worker read, in milliseconds since 1970.
    pub oldest: Option<i64>,
    /// The time that the worker needs for the records that wait to be read, at the pace of the epoch; zero if it read
    /// nothing.
    pub lag: Duration,
    /// True if all partitions of the worker have reached their announced end.
    pub ended: bool,
    /// True if the process of the worker was asked to stop.
    pub stopping: bool,
}

/// A closed epoch: the records that all workers read in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The epoch.
    pub epoch: Epoch,
    /// The wall time of the epoch, in milliseconds since 1970.
    pub wall_ms: i64,
    /// The bindings, by partition.
    pub bindings: Vec<Binding>,
    /// The bytes of the accepted events, by partition.
    pub unfinal: Vec<(Partition, UnfinalBytes)>,
    /// The slowest partition that is not idle.
    pub slowest: Option<Slowest>,
    /// The longest time that a worker needs for the records that wait to be read.
    pub lag: Duration,
    /// True if every partition has reached its announced end.
    pub ended: bool,
    /// True if any process was asked to stop.
    pub stopping: bool,
}

/// The durable record of an epoch, from which the epoch can be replayed exactly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The epoch.
    pub epoch: Epoch,
    /// The wall time of the epoch, in milliseconds since 1970.
    pub wall_ms: i64,
    /// The bindings, by partition.
    pub bindings: Vec<Binding>,
    /// True if the watermark went to infinity at the end of the epoch, because the input had ended.
    pub closes: bool,
    /// The time rules that were applied to the records of the epoch.
    pub rules: TimeRules,
    /// The change of rules and lists that later epochs are judged by, if there is one.
    pub change: Change,
}

impl EpochRecord {
    /// Returns true if nothing happened in the epoch. Such epochs are not recorded.
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty() && !self.closes && self.change.is_empty()
    }
}

/// A violation of the protocol by which workers close epochs.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Protocol {
    /// The frontier passed an epoch that not every worker had closed: a worker ended without closing it.
    #[error("epoch {epoch} has ended, but worker {worker} never closed it")]
    NotClosed {
        /// The epoch.
        epoch: Epoch,
        /// The worker that did not close the epoch.
        worker: usize,
    },
    /// A worker closed an epoch twice.
    #[error("worker {worker} closed epoch {epoch} twice")]
    ClosedTwice {
        /// The epoch.
        epoch: Epoch,
        /// The worker that closed the epoch twice.
        worker: usize,
    },
}

/// Collects the messages of workers that close an epoch, until the frontier has passed the epoch.
#[derive(Debug)]
pub struct Collector {
    workers: usize,
    open: BTreeMap<Epoch, Vec<Closed>>,
}

impl Collector {
    /// Returns a collector for a cluster of `workers` workers.
    pub fn new(workers: usize) -> Collector {
        Collector { workers, open: BTreeMap::new() }
    }

    /// Adds the message of a worker.
    pub fn closed(&mut self, epoch: Epoch, closed: Closed) {
        self.open.entry(epoch).or_default().push(closed);
    }

    /// Returns the next epoch, in order, for which `passed` returns true.
    ///
    /// # Errors
    /// If the frontier has passed the epoch but some worker has not closed it exactly once.
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
            lag: closed.iter().map(|closed| closed.lag).max().unwrap_or_default(),
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
            lag: Duration::from_secs(worker as u64),
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
