//! A reader that withholds records whose schemas are not known yet, and those behind them in their partitions.
//!
//! ```text
//!   Reader ─▶ gate open, nothing withheld of the partition? ─ yes ─▶ record
//!                  └─ no ─▶ withheld, partition paused ─ once the gate is open ─▶ record
//! ```
//!
//! To whoever reads, a withheld record is one that was not read: the position of its partition stands before it. The
//! other partitions are read on, and nobody waits for the registry.

use std::collections::VecDeque;

use headwater_dataflows::{Offset, Partition, Position};

use super::SchemaGate;
use crate::coordination::ingest::PartitionState;
use crate::rounds::TraceContext;
use crate::source::{Budget, Raw, Reader, SourceError, Wake};

/// The maximum number of bytes that are withheld: at it, no partition is read.
const MAX_BYTES: usize = 32 << 20;

/// A record, with its bytes.
struct OwnedRecord {
    position: Position,
    timestamp: i64,
    key: Option<Box<[u8]>>,
    value: Option<Box<[u8]>>,
    retries: u32,
    producer: Option<Box<[u8]>>,
}

impl OwnedRecord {
    fn new(raw: Raw<'_>) -> OwnedRecord {
        let Raw { position, timestamp, key, value, retries, producer } = raw;
        let [key, value, producer] = [key, value, producer].map(|bytes| bytes.map(Box::from));
        OwnedRecord { position, timestamp, key, value, retries, producer }
    }

    fn raw(&self) -> Raw<'_> {
        let OwnedRecord { position, timestamp, key, value, retries, producer } = self;
        Raw {
            position: *position,
            timestamp: *timestamp,
            key: key.as_deref(),
            value: value.as_deref(),
            retries: *retries,
            producer: producer.as_deref(),
        }
    }
}

fn size(raw: &Raw<'_>) -> usize {
    raw.key.map_or(0, <[u8]>::len) + raw.value.map_or(0, <[u8]>::len)
}

/// The withheld records of a partition, and the last settings of the partition.
struct Withheld {
    partition: Partition,
    records: VecDeque<OwnedRecord>,
    is_paused: bool,
    limit: Option<Offset>,
}

struct Withholding {
    reader: Box<dyn Reader>,
    gates: Vec<SchemaGate>,
    partitions: Vec<Withheld>,
    bytes: usize,
}

/// Returns a reader that withholds records until all of these gates are open to them.
pub fn withholding(reader: Box<dyn Reader>, gates: Vec<SchemaGate>) -> Box<dyn Reader> {
    if gates.is_empty() {
        return reader;
    }
    let partitions = reader.partitions().iter().map(|state| Withheld::new(state.partition)).collect();
    Box::new(Withholding { reader, gates, partitions, bytes: 0 })
}

impl Withheld {
    fn new(partition: Partition) -> Withheld {
        Withheld { partition, records: VecDeque::new(), is_paused: false, limit: None }
    }

    /// Returns the first record, if it may be read.
    fn next(&self) -> Option<&OwnedRecord> {
        let first = self.records.front().filter(|_| !self.is_paused)?;
        self.limit.is_none_or(|limit| first.position.offset < limit).then_some(first)
    }
}

/// Returns true if all gates are open.
fn is_open(gates: &mut [SchemaGate], raw: &Raw<'_>) -> bool {
    gates.iter_mut().all(|gate| gate.is_open(raw))
}

impl Withholding {
    fn withheld(&mut self, partition: Partition) -> Result<&mut Withheld, SourceError> {
        let found = self.partitions.iter_mut().find(|withheld| withheld.partition == partition);
        found.ok_or_else(|| {
            SourceError::Refused(format!("partition {} is not assigned to this reader", partition.0))
        })
    }

    /// Emits withheld records whose gates are open now; returns what is left of the budget.
    fn release(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<Budget, SourceError> {
        let Withholding { reader, gates, partitions, bytes } = self;
        let mut left = budget;
        for withheld in partitions.iter_mut().filter(|withheld| !withheld.records.is_empty()) {
            while left.records > 0
                && left.bytes > 0
                && let Some(record) = withheld.next()
                && is_open(gates, &record.raw())
            {
                let size = size(&record.raw());
                each(record.raw());
                withheld.records.pop_front();
                *bytes -= size;
                left = Budget { records: left.records - 1, bytes: left.bytes.saturating_sub(size) };
            }
            if withheld.records.is_empty() {
                reader.set_paused(withheld.partition, withheld.is_paused)?;
            }
        }
        Ok(left)
    }
}

impl Reader for Withholding {
    fn wake_with(&mut self, wake: Wake) -> bool {
        self.reader.wake_with(wake)
    }

    fn read(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        let left = self.release(budget, each)?;
        let Withholding { reader, gates, partitions, bytes } = self;
        let allowed = match MAX_BYTES.saturating_sub(*bytes) {
            0 => Budget::NONE,
            room if left.records == 0 || left.bytes == 0 => {
                Budget { bytes: left.bytes.min(room), ..Budget::NONE }
            }
            room => Budget { bytes: left.bytes.min(room), ..left },
        };
        let mut emitted = budget.records - left.records;
        let mut newly = Vec::new();
        reader.read(allowed, &mut |raw| {
            let partition = raw.position.partition;
            let withheld = partitions.iter_mut().find(|withheld| withheld.partition == partition);
            let withheld = withheld.expect("only assigned partitions are read");
            if is_open(gates, &raw) && withheld.records.is_empty() {
                emitted += 1;
                each(raw);
                return;
            }
            if withheld.records.is_empty() {
                newly.push(partition);
            }
            *bytes += size(&raw);
            withheld.records.push_back(OwnedRecord::new(raw));
        })?;
        for partition in newly {
            reader.set_paused(partition, true)?;
        }
        Ok(emitted)
    }

    fn set_order(&mut self, places: &[usize]) {
        self.reader.set_order(places);
    }

    fn collect_contexts(&mut self, most: usize) {
        self.reader.collect_contexts(most);
    }

    fn take_contexts(&mut self) -> Vec<TraceContext> {
        self.reader.take_contexts()
    }

    fn partitions(&self) -> Vec<PartitionState> {
        let mut states = self.reader.partitions();
        for (state, withheld) in states.iter_mut().zip(&self.partitions) {
            if let Some(first) = withheld.records.front() {
                state.position = first.position.offset;
                state.is_withheld = true;
                state.ended = false;
                state.backlog += withheld.records.len() as u64;
            }
        }
        states
    }

    fn add(&mut self, partition: Partition, from: Offset) -> Result<(), SourceError> {
        self.reader.add(partition, from)?;
        self.partitions.push(Withheld::new(partition));
        Ok(())
    }

    fn set_paused(&mut self, partition: Partition, paused: bool) -> Result<(), SourceError> {
        let withheld = self.withheld(partition)?;
        withheld.is_paused = paused;
        let is_withheld = !withheld.records.is_empty();
        self.reader.set_paused(partition, paused || is_withheld)
    }

    fn set_limit(&mut self, partition: Partition, limit: Option<Offset>) -> Result<(), SourceError> {
        self.withheld(partition)?.limit = limit;
        self.reader.set_limit(partition, limit)
    }
}

#[cfg(test)]
mod tests;
