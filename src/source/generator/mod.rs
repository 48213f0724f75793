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
use std::time::Instant;

use headwater_dataflows::{Offset, Partition, Position};

use super::{Budget, Raw, Reader, Source, SourceError};
use crate::coordination::ingest::PartitionState;
use crate::wall::wall_ms;

/// A source of generated records.
pub struct GeneratorSource {
    settings: GeneratorSettings,
    start: Vec<Offset>,
    ends: Arc<Ends>,
    pacing: Option<Pacing>,
}

/// The pacing of a source whose records appear as time passes, with the time at which they appear.
#[derive(Clone, Copy, Debug)]
struct Pacing {
    started: Instant,
    /// Records per second, over all partitions.
    rate: f64,
}

impl Pacing {
    /// Returns the number of records that each of so many partitions has by now.
    fn records(&self, partitions: usize) -> u64 {
        (self.started.elapsed().as_secs_f64() * self.rate / partitions as f64) as u64
    }
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
        Ok(GeneratorSource { settings, start: vec![Offset(0); partitions], ends, pacing: None })
    }

    /// Creates a source whose records appear at `rate` records per second from now on, with the time at which they are
    /// read. They are not the same when they are read again.
    ///
    /// # Errors
    /// If the settings are invalid.
    pub fn live(settings: GeneratorSettings, rate: f64) -> Result<GeneratorSource, SourceError> {
        let pacing = Some(Pacing { started: Instant::now(), rate });
        Ok(GeneratorSource { pacing, ..GeneratorSource::new(settings)? })
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
            pacing: self.pacing,
        }))
    }

    fn is_counted(&self) -> bool {
        self.pacing.is_none()
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
    pacing: Option<Pacing>,
}

/// The number of records that are read from one partition before the next partition.
const TURN: usize = 64;

impl Reader for GeneratorReader {
    fn read(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        if self.ends.stop.load(Ordering::Relaxed) {
            self.owned.iter_mut().for_each(|owned| owned.end = owned.next);
        }
        let appeared = self.pacing.map_or(u64::MAX, |pacing| pacing.records(self.ends.positions.len()));
        let now = self.pacing.map(|_| wall_ms());
        let mut read = 0;
        let mut empty_turns = 0;
        while read < budget.records && empty_turns < self.owned.len() {
            let at = self.turn % self.owned.len();
            self.turn += 1;
            let owned = &mut self.owned[at];
            let left = if owned.paused {
                0
            } else {
                owned.end.min(owned.limit).min(appeared).saturating_sub(owned.next)
            };
            let count = left.min(TURN.min(budget.records - read) as u64);
            for offset in owned.next..owned.next + count {
                let timestamp = self.maker.make(owned.partition.0, offset, now);
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
        let appeared = self.pacing.map_or(u64::MAX, |pacing| pacing.records(self.ends.positions.len()));
        self.owned
            .iter()
            .map(|owned| {
                let ended = owned.next == owned.end;
                let position = Offset(owned.next as i64);
                let known = owned.end.min(appeared).max(owned.next);
                let state = PartitionState::finite(owned.partition, position, ended, known - owned.next);
                let high_watermark = self.pacing.map(|_| Offset(known as i64)).or(state.high_watermark);
                PartitionState { high_watermark, ..state }
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
