//! The storage that survives a crash: a ledger, sinks, a state store, and writes in flight to them.

use std::collections::BTreeMap;

use headwater_dataflows::{Epoch, ShardId};
use headwater_sinks::{Generation, LedgerId, Progress, Shards};

use super::{Guards, PROCESSES, Random, SHARDED, Violation};
use crate::coordination::{EpochRecord, Manifest, PartName, Prune, chain, prune};

/// The state of all shards after some epochs: for each shard a hash of everything it has processed.
pub type State = [u64; SHARDED];

/// Returns the state after an epoch that read the records up to `end`. Each epoch changes one shard.
pub fn step(state: &State, end: i64) -> State {
    let (mut next, shard) = (*state, end as usize % SHARDED);
    next[shard] = Random::mix(next[shard] ^ end as u64);
    next
}

/// Returns the output of a shard in an epoch, from the state at the end of the epoch.
pub fn output(state: &State, shard: usize) -> u64 {
    Random::mix(state[shard])
}

/// The content of a part: a state, and for a delta the state that it follows.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    pub follows: Option<u64>,
    pub state: u64,
}

/// The incarnation of a writer that took over its id last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incarnation(u64);

#[derive(Default)]
pub struct SinkStore {
    /// The incarnation that may write, by writer.
    holders: [Incarnation; PROCESSES],
    /// The latest generation that has taken over any writer's id and recorded itself.
    pub announced_generation: Generation,
    pub progress: Vec<Progress>,
    /// The rows, by epoch and shard.
    pub rows: BTreeMap<(Epoch, usize), Vec<u64>>,
    /// True if the sink was wiped and has not reached the epoch of the newest manifest again.
    pub is_wiped: bool,
}

impl SinkStore {
    /// Returns the last epoch that the sink has committed for a shard.
    fn through_of(&self, shard: usize) -> Epoch {
        let of_shard =
            self.progress.iter().filter(|progress| progress.shards.contains(ShardId(shard as u32)));
        of_shard.map(|progress| progress.through).max().unwrap_or(Epoch(0))
    }

    /// Returns the last epoch that the sink has committed for every shard.
    pub fn through(&self) -> Epoch {
        (0..SHARDED).map(|shard| self.through_of(shard)).min().unwrap_or(Epoch(0))
    }

    /// Returns true if the progress of the shards differs.
    pub fn is_uneven(&self) -> bool {
        (0..SHARDED).any(|shard| self.through_of(shard) != self.through())
    }
}

/// A commit of a writer: the outputs of its shards, and their progress.
#[derive(Clone)]
pub struct Commit {
    pub sink: usize,
    pub writer: usize,
    pub incarnation: Incarnation,
    pub generation: Generation,
    pub shards: Shards,
    pub through: Epoch,
    pub rows: Vec<(Epoch, usize, u64)>,
}

/// A write, with its writer.
#[derive(Clone)]
pub enum Write {
    Append(Generation, Vec<EpochRecord>),
    Conclude(Generation, Manifest),
    Commit(Commit),
}

/// The result of a write, as the writer receives it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum WriteResult {
    Done,
    Fenced,
    /// The write has not been applied, and never will be.
    Failed,
    /// The outcome is unknown: the write was applied, will be applied, or is lost.
    Unknown,
}

pub struct World {
    pub guards: Guards,
    /// True if every write is applied and acknowledged.
    pub is_calm: bool,
    pub keep: usize,
    pub generation: Generation,
    /// The maximum number of processes that ever ran at once.
    pub max_processes: usize,
    incarnations: u64,
    pub rounds: Vec<Vec<EpochRecord>>,
    /// The manifests by epoch; None if a manifest is damaged.
    pub manifests: Vec<(Epoch, Option<Manifest>)>,
    pub pruned: Epoch,
    pub sinks: Vec<SinkStore>,
    pub store: BTreeMap<String, Content>,
    pub in_flight: Vec<Write>,
    /// Every epoch that was ever recorded, with the end of its input and the state after it.
    pub truth: BTreeMap<Epoch, (i64, State)>,
}

pub fn ledger_id() -> LedgerId {
    LedgerId("model".into())
}

impl World {
    pub fn new(guards: Guards, sinks: usize, keep: usize) -> World {
        World {
            guards,
            is_calm: false,
            keep,
            generation: Generation(0),
            max_processes: 0,
            incarnations: 0,
            rounds: Vec::new(),
            manifests: Vec::new(),
            pruned: Epoch(0),
            sinks: (0..sinks).map(|_| SinkStore::default()).collect(),
            store: BTreeMap::new(),
            in_flight: Vec::new(),
            truth: BTreeMap::new(),
        }
    }

    /// Claims the ledger for a start of `processes` processes.
    pub fn claim(&mut self, processes: usize) -> Generation {
        self.generation.0 += 1;
        self.max_processes = self.max_processes.max(processes);
        self.generation
    }

    /// Returns the last epoch that is recorded.
    pub fn durable(&self) -> Epoch {
        self.truth.last_key_value().map_or(Epoch(0), |(&epoch, _)| epoch)
    }

    /// Returns the epoch of the newest manifest.
    pub fn newest(&self) -> Epoch {
        self.manifests.last().map_or(Epoch(0), |(epoch, _)| *epoch)
    }

    /// Returns the epochs recorded after `after`; None if some of them were pruned.
    pub fn epochs(&self, after: Epoch) -> Option<Vec<EpochRecord>> {
        let is_available = after >= self.pruned || !self.guards.reads_of_pruned_epochs_are_refused;
        is_available.then(|| self.recorded(after))
    }

    fn recorded(&self, after: Epoch) -> Vec<EpochRecord> {
        self.rounds.iter().flatten().filter(|record| record.epoch > after).cloned().collect()
    }

    /// Takes over a writer's id, and records the generation that did so.
    pub fn take_over(&mut self, sink: usize, writer: usize, generation: Generation) -> Incarnation {
        self.incarnations += 1;
        let (sink, incarnation) = (&mut self.sinks[sink], Incarnation(self.incarnations));
        sink.holders[writer] = incarnation;
        sink.announced_generation = sink.announced_generation.max(generation);
        incarnation
    }

    /// Executes a write with a random outcome.
    pub fn write(&mut self, write: Write, random: &mut Random) -> Result<WriteResult, Violation> {
        match random.below(40) + if self.is_calm { 3 } else { 0 } {
            0 => {
                self.apply(write)?;
                Ok(WriteResult::Unknown)
            }
            1 => {
                self.in_flight.push(write);
                Ok(WriteResult::Unknown)
            }
            2 => Ok(WriteResult::Failed),
            _ => Ok(if self.apply(write)? { WriteResult::Done } else { WriteResult::Fenced }),
        }
    }

    /// Applies or loses one of the writes in flight.
    pub fn arrive(&mut self, random: &mut Random) -> Result<(), Violation> {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        let write = self.in_flight.swap_remove(random.below(self.in_flight.len()));
        if random.below(3) > 0 {
            self.apply(write)?;
        }
        Ok(())
    }

    /// Returns true if the writer was not fenced.
    fn apply(&mut self, write: Write) -> Result<bool, Violation> {
        match write {
            Write::Append(generation, round) => {
                if self.guards.rounds_check_the_generation && generation != self.generation {
                    return Ok(false);
                }
                self.append(round)?;
            }
            Write::Conclude(generation, manifest) => {
                if self.guards.manifests_check_the_generation && generation != self.generation {
                    return Ok(false);
                }
                self.conclude(manifest)?;
            }
            Write::Commit(Commit { sink, writer, incarnation, generation, shards, through, rows }) => {
                let newest = self.newest();
                let sink = &mut self.sinks[sink];
                if sink.holders[writer] != incarnation && self.guards.sinks_are_fenced {
                    return Ok(false);
                }
                for (epoch, shard, row) in rows {
                    sink.rows.entry((epoch, shard)).or_default().push(row);
                }
                sink.progress
                    .retain(|progress| (progress.generation, progress.shards) != (generation, shards));
                sink.progress.push(Progress { ledger_id: ledger_id(), generation, shards, through });
                sink.is_wiped &= sink.through() < newest;
            }
        }
        Ok(true)
    }

    fn append(&mut self, round: Vec<EpochRecord>) -> Result<(), Violation> {
        for record in &round {
            let (last, (end, state)) =
                self.truth.last_key_value().map_or((Epoch(0), (0, State::default())), |(&e, &t)| (e, t));
            let binding = &record.bindings[0];
            if record.epoch <= last || binding.timestamp != Some(end) {
                return Err("a recorded epoch does not follow the last one");
            }
            self.truth.insert(record.epoch, (binding.end.0, step(&state, binding.end.0)));
        }
        self.rounds.push(round);
        Ok(())
    }

    fn conclude(&mut self, manifest: Manifest) -> Result<(), Violation> {
        if self.manifests.last().is_some_and(|(last, _)| *last >= manifest.epoch) {
            return Err("a manifest is not newer than the previous ones");
        }
        self.manifests.push((manifest.epoch, Some(manifest)));
        let epochs: Vec<_> = self.manifests.iter().map(|(epoch, _)| *epoch).collect();
        if let Prune::Before(oldest) = prune(&epochs, self.keep) {
            self.manifests.retain(|(epoch, _)| *epoch >= oldest);
            self.pruned = match self.guards.rounds_are_pruned_to_the_oldest {
                true => oldest,
                false => epochs[epochs.len() - 1],
            };
            let pruned = self.pruned;
            self.rounds.retain(|round| round.last().is_some_and(|last| last.epoch > pruned));
        }
        Ok(())
    }

    /// Returns the state of a checkpoint, built from its parts.
    pub fn rebuild(&self, manifest: &Manifest) -> Result<State, Violation> {
        let mut rebuilt = State::default();
        for (shard, state) in rebuilt.iter_mut().enumerate() {
            for part in chain(&manifest.parts, ShardId(shard as u32)) {
                let content = self.store.get(&part.name.to_string()).ok_or("a part is missing")?;
                if content.follows.is_some_and(|follows| follows != *state) {
                    return Err("a delta does not follow the previous part");
                }
                *state = content.state;
            }
        }
        Ok(rebuilt)
    }

    pub fn put(&mut self, name: &PartName, content: Content) {
        self.store.insert(name.to_string(), content);
    }

    /// Damages the newest manifest, if there is another one to go back to.
    pub fn damage(&mut self) {
        let readable = self.manifests.iter().filter(|(_, manifest)| manifest.is_some()).count();
        if (readable > 1 || self.pruned == Epoch(0))
            && let Some((_, manifest)) = self.manifests.last_mut()
        {
            *manifest = None;
        }
    }

    pub fn wipe(&mut self, sink: usize) {
        let sink = &mut self.sinks[sink];
        sink.is_wiped |= !sink.progress.is_empty();
        sink.progress.clear();
        sink.rows.clear();
    }

    /// Checks the invariants, which must hold after every step.
    pub fn check(&self) -> Result<(), Violation> {
        let durable = self.durable();
        for sink in &self.sinks {
            if sink.progress.iter().any(|progress| progress.through > durable) {
                return Err("a sink is ahead of the ledger");
            }
            if sink.rows.values().any(|rows| rows.len() > 1) {
                return Err("a result is duplicated");
            }
            for shard in 0..SHARDED {
                let mut rows = sink.rows.iter().filter(|((_, of), _)| *of == shard);
                for (epoch, (_, state)) in self.truth.range(..=sink.through_of(shard)) {
                    match rows.next() {
                        Some(((of, _), rows)) if of == epoch && rows[0] == output(state, shard) => {}
                        Some(((of, _), _)) if of == epoch => return Err("a result is wrong"),
                        _ => return Err("a result is lost"),
                    }
                }
                if rows.next().is_some() {
                    return Err("a result is not of a recorded epoch");
                }
            }
            let through = sink.through();
            if self.manifests.iter().any(|(epoch, _)| *epoch > through && !sink.is_wiped) {
                return Err("a manifest is ahead of a sink");
            }
        }
        for (epoch, manifest) in &self.manifests {
            if !self
                .recorded(*epoch)
                .iter()
                .map(|record| &record.epoch)
                .eq(self.truth.range(epoch.next()..).map(|(e, _)| e))
            {
                return Err("the epochs after a manifest are not recorded any more");
            }
            let Some(manifest) = manifest else { continue };
            let Some((end, state)) = self.truth.get(epoch) else {
                return Err("a manifest's epoch is not recorded");
            };
            if manifest.positions[0].next.0 != *end || self.rebuild(manifest)? != *state {
                return Err("a checkpoint differs from the recorded state");
            }
        }
        Ok(())
    }
}
