//! The contents of `progress.json`: the pipeline that owns the directory, the last start that opened it, the progress
//! of each writer, and the committed length of each file.

use std::collections::BTreeMap;

use headwater_dataflows::Epoch;
use serde::{Deserialize, Serialize};

use super::directory::FILES;
use crate::contract::{Generation, LedgerId, Progress, Shards, WriterContext};

/// The version of the format.
const VERSION: u32 = 1;

/// The committed length of each file, in the order of [`FILES`].
pub(super) type Lengths = [u64; FILES.len()];

/// The contents of `progress.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The pipeline that the directory belongs to.
    pub pipeline: String,
    ledger_id: LedgerId,
    generation: Generation,
    /// The progress of each writer.
    pub writers: Vec<Writer>,
    /// The committed length of each file.
    pub committed: Lengths,
}

/// The progress of the writer of one process of one start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Writer {
    process: usize,
    progress: Progress,
}

impl Record {
    /// Creates the record of a directory in which nothing is committed, entered by this start.
    pub fn new(context: &WriterContext) -> Record {
        Record {
            pipeline: context.pipeline.clone(),
            ledger_id: context.ledger_id.clone(),
            generation: context.generation,
            writers: Vec::new(),
            committed: Lengths::default(),
        }
    }

    /// Returns the progress of all writers.
    pub fn progress(&self) -> Vec<Progress> {
        self.writers.iter().map(|writer| writer.progress.clone()).collect()
    }

    /// Returns the last start that has opened the directory.
    pub fn last_start(&self) -> (LedgerId, Generation) {
        (self.ledger_id.clone(), self.generation)
    }

    /// Enters a start as the last one.
    pub fn enter(&mut self, context: &WriterContext) {
        (self.ledger_id, self.generation) = (context.ledger_id.clone(), context.generation);
    }

    /// Returns true if this start is the last one that has opened the directory, and if the progress of its writer is as
    /// the writer left it.
    pub fn is_last_written_by(&self, context: &WriterContext, through: Option<Epoch>) -> bool {
        let own = self.writers.iter().find(|writer| writer.is_of(context));
        self.pipeline == context.pipeline
            && self.ledger_id == context.ledger_id
            && self.generation == context.generation
            && own.map(|writer| writer.progress.through) == through
    }

    /// Sets the progress of a writer, and removes that of older starts which it has reached on all their shards.
    pub fn advance(&mut self, context: &WriterContext, through: Epoch) {
        let WriterContext { ledger_id, generation, shards, process, .. } = context.clone();
        let is_passed = |Progress { generation: older, shards: of, through: reached, .. }: &Progress| {
            *older < generation && *reached <= through && of.0 & !shards.0 == 0
        };
        self.writers.retain(|writer| !writer.is_of(context) && !is_passed(&writer.progress));
        self.writers.push(Writer { process, progress: Progress { ledger_id, generation, shards, through } });
    }

    /// Encodes the record as JSON, for people to read.
    pub fn encode(&self) -> Vec<u8> {
        let start = Start { ledger_id: self.ledger_id.0.clone(), generation: self.generation.0 };
        let progress = self.writers.iter().map(|Writer { process, progress }| Entry {
            ledger_id: progress.ledger_id.0.clone(),
            generation: progress.generation.0,
            process: *process,
            shards: format!("{:016x}", progress.shards.0),
            epoch: progress.through.0,
        });
        let stored = Stored {
            version: VERSION,
            pipeline: self.pipeline.clone(),
            start,
            progress: progress.collect(),
            committed: FILES.iter().map(|name| (*name).to_owned()).zip(self.committed).collect(),
        };
        let mut bytes = serde_json::to_vec_pretty(&stored).expect("strings and numbers encode as JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Decodes the output of [`encode`](Record::encode). The error is the reason why `bytes` are not a record.
    pub fn decode(bytes: &[u8]) -> Result<Record, String> {
        let Version { version } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if version != VERSION {
            return Err(format!("it has version {version}, and this program knows version {VERSION}"));
        }
        let stored: Stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let mut committed = Lengths::default();
        for (name, length) in stored.committed {
            let at = FILES.iter().position(|file| *file == name);
            committed[at.ok_or_else(|| format!("{name:?} is no file of this sink"))?] = length;
        }
        let writer = |entry: Entry| {
            let shards = u64::from_str_radix(&entry.shards, 16)
                .map_err(|_| format!("{:?} is no set of shards", entry.shards))?;
            let progress = Progress {
                ledger_id: LedgerId(entry.ledger_id),
                generation: Generation(entry.generation),
                shards: Shards(shards),
                through: Epoch(entry.epoch),
            };
            Ok(Writer { process: entry.process, progress })
        };
        Ok(Record {
            pipeline: stored.pipeline,
            ledger_id: LedgerId(stored.start.ledger_id),
            generation: Generation(stored.start.generation),
            writers: stored.progress.into_iter().map(writer).collect::<Result<_, String>>()?,
            committed,
        })
    }
}

impl Writer {
    fn is_of(&self, context: &WriterContext) -> bool {
        let Progress { ledger_id, generation, .. } = &self.progress;
        (ledger_id, *generation, self.process) == (&context.ledger_id, context.generation, context.process)
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The format of `progress.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    pipeline: String,
    /// The last start that has opened the directory.
    start: Start,
    progress: Vec<Entry>,
    /// The number of bytes of each file that are committed.
    committed: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Start {
    ledger_id: String,
    generation: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    ledger_id: String,
    generation: u64,
    process: usize,
    /// One bit for each shard, in hexadecimal digits: many readers of JSON round large numbers.
    shards: String,
    epoch: u64,
}
