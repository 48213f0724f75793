//! The generator: record = f(seed, partition, offset), with fraud injected at known offsets.
//!
//! No state is carried from one record to the next, so a replay needs nothing but an offset. Event times do not depend
//! on the speed of reading.

mod episode;
mod record;
mod settings;

pub use record::RecordMaker;
pub use settings::GeneratorSettings;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use headwater_dataflows::{Offset, Partition, Position};

use super::{Budget, Raw, Reader, Source, SourceError};
use crate::coordination::ingest::PartitionState;

/// A source of generated records.
pub struct GeneratorSource {
    settings: GeneratorSettings,
    start: Vec<Offset>,
    ends: Arc<Ends>,
}

/// The position of each partition, and a flag that ends the input.
#[derive(Debug)]
pub struct Ends {
    stop: AtomicBool,
    positions: Vec<AtomicU64>,
}

impl Ends {
    /// Ends every partition at its current position.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Returns the offset after the last record of each partition.
    pub fn positions(&self) -> Vec<u64> {
        self.positions.iter().map(|position| position.load(Ordering::Relaxed)).collect()
    }
}

impl GeneratorSource {
    /// Creates a source that starts at the first record.
    ///
    /// # Errors
    /// If the settings are invalid.
    pub fn new(settings: GeneratorSettings) -> Result<GeneratorSource, SourceError> {
        settings.validate().map_err(SourceError::Refused)?;
        let partitions = settings.partitions as usize;
        let positions = (0..partitions).map(|_| AtomicU64::new(0)).collect();
        let ends = Arc::new(Ends { stop: AtomicBool::new(false), positions });
        Ok(GeneratorSource { settings, start: vec![Offset(0); partitions], ends })
    }

    /// Returns the handle with the positions, which can also stop the generator.
    pub fn ends(&self) -> Arc<Ends> {
        Arc::clone(&self.ends)
    }
}

impl Source for GeneratorSource {
    fn start(&self) -> &[Offset] {
        &self.start
    }

    fn reader(&self, owned: &[(Partition, Offset)]) -> Result<Box<dyn Reader>, SourceError> {
        let partitions = u64::from(self.settings.partitions);
        // The first partitions get the remainder.
        let end = |partition: Partition| match self.settings.records {
            None => u64::MAX,
            Some(records) => records / partitions + u64::from(u64::from(partition.0) < records % partitions),
        };
        let owned = owned
            .iter()
            .map(|&(partition, offset)| Owned {
                partition,
                next: offset.0 as u64,
                end: end(partition),
                paused: false,
                limit: u64::MAX,
            })
            .collect();
        Ok(Box::new(GeneratorReader {
            maker: RecordMaker::new(self.settings.clone()),
            owned,
            turn: 0,
            ends: Arc::clone(&self.ends),
        }))
    }

    fn is_counted(&self) -> bool {
        true
    }

    /// Does nothing: the generator has no consumer group.
    fn commit(&self, _offsets: &[(Partition, Offset)]) -> Result<(), SourceError> {
        Ok(())
    }
}

struct Owned {
    partition: Partition,
    next: u64,
    end: u64,
    paused: bool,
    limit: u64,
}

struct GeneratorReader {
    maker: RecordMaker,
    owned: Vec<Owned>,
    turn: usize,
    ends: Arc<Ends>,
}

/// The number of records that are read from one partition before the next partition.
const TURN: usize = 64;

impl Reader for GeneratorReader {
    fn read(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        if self.ends.stop.load(Ordering::Relaxed) {
            self.owned.iter_mut().for_each(|owned| owned.end = owned.next);
        }
        let mut read = 0;
        let mut empty_turns = 0;
        while read < budget.records && empty_turns < self.owned.len() {
            let at = self.turn % self.owned.len();
            self.turn += 1;
            let owned = &mut self.owned[at];
            let left = if owned.paused { 0 } else { owned.end.min(owned.limit).saturating_sub(owned.next) };
            let count = left.min(TURN.min(budget.records - read) as u64);
            for offset in owned.next..owned.next + count {
                let timestamp = self.maker.make(owned.partition.0, offset, None);
                each(Raw {
                    position: Position { partition: owned.partition, offset: Offset(offset as i64) },
                    timestamp,
                    key: Some(&self.maker.key),
                    value: Some(&self.maker.value),
                    retries: 0,
                    producer: None,
                });
            }
            owned.next += count;
            self.ends.positions[owned.partition.0 as usize].store(owned.next, Ordering::Relaxed);
            read += count as usize;
            empty_turns = if count == 0 { empty_turns + 1 } else { 0 };
        }
        Ok(read)
    }

    fn partitions(&self) -> Vec<PartitionState> {
        self.owned
            .iter()
            .map(|owned| {
                let ended = owned.next == owned.end;
                let position = Offset(owned.next as i64);
                PartitionState::finite(owned.partition, position, ended, owned.end - owned.next)
            })
            .collect()
    }

    fn set_paused(&mut self, partition: Partition, paused: bool) -> Result<(), SourceError> {
        self.owned
            .iter_mut()
            .filter(|owned| owned.partition == partition)
            .for_each(|owned| owned.paused = paused);
        Ok(())
    }

    fn set_limit(&mut self, partition: Partition, limit: Option<Offset>) -> Result<(), SourceError> {
        self.owned
            .iter_mut()
            .filter(|owned| owned.partition == partition)
            .for_each(|owned| owned.limit = limit.map_or(u64::MAX, |limit| limit.0 as u64));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
