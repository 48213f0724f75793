//! A start and its run, step by step. Between any two steps it may end, or sleep and continue after another start has
//! taken over.

use std::collections::{BTreeMap, VecDeque};

use headwater_dataflows::{Epoch, EventTime, Offset, Partition, ShardId};
use headwater_sinks::{Generation, Progress, Shards};

use super::world::{Commit, Content, Incarnation, State, World, Write, WriteResult, ledger_id, output, step};
use super::{PROCESSES, Random, SHARDED, Violation};
use crate::coordination::ingest::TimeRules;
use crate::coordination::{
    Binding, Change, Checkpoint, CommittedThrough, EpochRecord, Manifest, Marks, Part, PartKind, PartName,
    Position, Prune, Recorded, Resume, Versions, chain, left_behind, prune, resume, unreferenced, wants_base,
};

/// The checkpoint interval, in milliseconds of the epochs' wall time.
const INTERVAL_MS: i64 = 40;

/// The maximum number of epochs that are bound and not committed by every sink.
const IN_FLIGHT: usize = 8;

/// The status of a process after a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Running,
    Ended,
    /// It refused to start, because it would violate an invariant.
    Refused,
}

enum Stage {
    /// Does nothing, unless a guard is removed.
    Peek,
    Claim,
    Read,
    /// The first process takes over the ids of all processes that ever wrote, one by one.
    Fence {
        sink: usize,
        writer: usize,
    },
    Choose,
    /// The other processes take over their own ids.
    Join {
        sink: usize,
        writer: usize,
    },
    Run,
}

/// A marked epoch whose manifest is not yet written.
struct Marked {
    checkpoint: Checkpoint,
    position: Position,
    wall_ms: i64,
    /// The parts that are not stored yet, by worker.
    unstored: Vec<(Shards, Vec<(Part, Content)>)>,
}

/// All processes of a start: if one ends, all end.
pub struct Process {
    stage: Stage,
    processes: usize,
    generation: Generation,
    sink_progress: Vec<Vec<Progress>>,
    manifests: Vec<(Epoch, Option<Manifest>)>,
    /// The parts that the next deltas follow.
    before: Vec<Part>,
    /// The state at the last mark; deltas are the changes since then.
    captured_state: State,
    marks: Marks,
    marked: Option<Marked>,
    state: State,
    position: Position,
    /// The last epoch that was processed, and the greatest epoch that was ever seen.
    processed: Epoch,
    latest: Epoch,
    replay: VecDeque<EpochRecord>,
    unrecorded: Vec<EpochRecord>,
    durable: Epoch,
    outputs: BTreeMap<Epoch, State>,
    /// The progress of each sink at the start.
    committed_through: Vec<CommittedThrough>,
    /// The incarnation and the progress of each writer, by sink.
    incarnations: Vec<[Incarnation; PROCESSES]>,
    committed: Vec<Vec<Option<Epoch>>>,
    garbage: Vec<PartName>,
    pruned: Epoch,
}

impl Process {
    pub fn new(random: &mut Random) -> Process {
        Process {
            stage: Stage::Peek,
            processes: 1 + random.below(PROCESSES),
            generation: Generation(0),
            sink_progress: Vec::new(),
            manifests: Vec::new(),
            before: Vec::new(),
            captured_state: State::default(),
            marks: Marks::new(INTERVAL_MS, Epoch(0)),
            marked: None,
            state: State::default(),
            position: Position::starting(Offset(0)),
            processed: Epoch(0),
            latest: Epoch(0),
            replay: VecDeque::new(),
            unrecorded: Vec::new(),
            durable: Epoch(0),
            outputs: BTreeMap::new(),
            committed_through: Vec::new(),
            incarnations: Vec::new(),
            committed: Vec::new(),
            garbage: Vec::new(),
            pruned: Epoch(0),
        }
    }

    pub fn step(&mut self, world: &mut World, random: &mut Random) -> Result<Status, Violation> {
        match self.stage {
            Stage::Peek => {
                if !world.guards.manifests_are_read_after_the_claim {
                    self.read(world);
                }
                self.stage = Stage::Claim;
            }
            Stage::Claim => {
                // Some time passes between the two.
                if world.guards.manifests_are_read_after_the_claim || random.below(30) == 0 {
                    self.generation = world.claim(self.processes);
                    self.stage = Stage::Read;
                }
            }
            Stage::Read => {
                if world.guards.manifests_are_read_after_the_claim {
                    self.read(world);
                }
                self.incarnations = vec![Default::default(); world.sinks.len()];
                self.stage = Stage::Fence { sink: 0, writer: 0 };
            }
            Stage::Fence { sink, writer } => {
                self.take_over(world, sink, writer);
                let all =
                    if world.guards.former_writers_are_fenced { world.max_processes } else { self.processes };
                self.stage = if writer + 1 < all {
                    Stage::Fence { sink, writer: writer + 1 }
                } else {
                    // The progress is read only now, after fencing.
                    self.sink_progress.push(world.sinks[sink].progress.clone());
                    match sink + 1 < world.sinks.len() {
                        true => Stage::Fence { sink: sink + 1, writer: 0 },
                        false => Stage::Choose,
                    }
                };
            }
            Stage::Choose => {
                self.stage = if self.processes > 1 { Stage::Join { sink: 0, writer: 1 } } else { Stage::Run };
                return self.select_origin(world);
            }
            Stage::Join { sink, writer } => {
                if !self.take_over(world, sink, writer) {
                    return Ok(Status::Ended);
                }
                self.stage = match (writer + 1 < self.processes, sink + 1 < world.sinks.len()) {
                    (true, _) => Stage::Join { sink, writer: writer + 1 },
                    (false, true) => Stage::Join { sink: sink + 1, writer: 1 },
                    (false, false) => Stage::Run,
                };
            }
            Stage::Run => return self.run(world, random),
        }
        Ok(Status::Running)
    }

    /// Takes over a writer's id; returns true if the sink has no data of a later start.
    fn take_over(&mut self, world: &mut World, sink: usize, writer: usize) -> bool {
        self.incarnations[sink][writer] = world.take_over(sink, writer, self.generation);
        world.sinks[sink].announced_generation <= self.generation
            || !world.guards.takeovers_check_announced_generations
    }

    /// Returns the shards of a process.
    fn shards(&self, writer: usize) -> Shards {
        Shards::of_workers(writer..writer + 1, self.processes)
    }

    /// Returns the last epoch that every writer of a sink has committed.
    fn least(&self, sink: usize) -> Option<Epoch> {
        self.committed[sink].iter().copied().min().flatten()
    }

    /// Returns true if it has started.
    pub fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Run)
    }

    /// Returns true if it resumed from a checkpoint.
    pub fn is_restored(&self) -> bool {
        !self.before.is_empty()
    }

    fn read(&mut self, world: &World) {
        self.manifests.clone_from(&world.manifests);
        self.pruned = world.pruned;
    }

    fn readable(&self) -> Vec<Manifest> {
        self.manifests.iter().filter_map(|(_, manifest)| manifest.clone()).collect()
    }

    /// Decides how to resume.
    fn select_origin(&mut self, world: &World) -> Result<Status, Violation> {
        let guards = &world.guards;
        let last_round = world.rounds.last().and_then(|round| round.last()).map(|last| last.epoch);
        let epochs: Vec<_> = self.manifests.iter().map(|(epoch, _)| *epoch).collect();
        let readable = self.readable();
        let recorded = Recorded {
            last_round,
            manifests: if guards.manifests_count_as_durable { &epochs[..] } else { &[] },
            readable: &readable.iter().map(|manifest| manifest.epoch).collect::<Vec<_>>(),
            pruned: self.pruned,
            committed: &[],
        };
        let sinks: Vec<_> = self.sink_progress.iter().map(|progress| ("sink", &progress[..])).collect();
        let Ok(Resume { durable, committed_through, origins }) = resume(recorded, &sinks) else {
            return Ok(Status::Refused);
        };
        self.durable = durable;
        let of_writers = |committed_through: &CommittedThrough| {
            (0..self.processes).map(|writer| committed_through.least_of(self.shards(writer))).collect()
        };
        self.committed = committed_through.iter().map(of_writers).collect();
        self.committed_through = committed_through;
        let origin = match guards.origins_are_not_above_a_sink {
            true => origins[0],
            false => recorded.readable.last().copied().unwrap_or(origins[0]),
        };
        let manifest = readable.iter().find(|manifest| manifest.epoch == origin);
        if let Some(manifest) = manifest {
            self.state = match world.rebuild(manifest) {
                // A successor has deleted parts that it does not need.
                Err(_) if world.generation > self.generation => return Ok(Status::Ended),
                rebuilt => rebuilt?,
            };
            if guards.positions_come_from_the_manifest {
                self.position = manifest.positions[0];
            }
        }
        let before = if guards.deltas_follow_the_origin { manifest } else { readable.last() };
        self.before = before.map(|before| before.parts.clone()).unwrap_or_default();
        self.captured_state = self.state;
        let Some(replay) = world.epochs(origin) else { return Ok(Status::Ended) };
        self.replay = replay.into();
        let newest = self.manifests.last().map_or(Epoch(0), |(epoch, _)| *epoch);
        let above = if guards.marks_are_above_every_manifest { newest } else { Epoch(0) };
        self.marks = Marks::new(INTERVAL_MS, above);
        (self.processed, self.latest) = (origin, self.durable);
        if !guards.sinks_skip_committed_epochs {
            self.committed = vec![vec![Some(origin); self.processes]; self.committed.len()];
        }
        if !(guards.sinks_skip_committed_epochs && guards.shards_skip_committed_epochs) {
            self.committed_through.fill(CommittedThrough::nothing());
        }
        Ok(Status::Running)
    }

    fn run(&mut self, world: &mut World, random: &mut Random) -> Result<Status, Violation> {
        match random.below(60) {
            0..18 => self.bind(world, random),
            18..24 => self.append(world, random),
            24..42 => self.commit(world, random),
            42..48 => {
                self.put(world);
                Ok(Status::Running)
            }
            48..54 => self.conclude(world, random),
            54..59 => {
                self.collect_garbage(world, random);
                Ok(Status::Running)
            }
            // An unexpected error of a writer's connection makes it acquire its id again.
            _ => {
                let (sink, writer) = (random.below(world.sinks.len()), random.below(self.processes));
                Ok(if self.take_over(world, sink, writer) { Status::Running } else { Status::Ended })
            }
        }
    }

    /// Replays an epoch, or binds a new one.
    fn bind(&mut self, world: &World, random: &mut Random) -> Result<Status, Violation> {
        let record = match self.replay.pop_front() {
            Some(record) => record,
            None if self.outputs.len() >= IN_FLIGHT => return Ok(Status::Running),
            None => {
                self.latest = Epoch(self.latest.0 + 1 + random.below(2) as u64);
                let start = self.position.next.0;
                let end = start + 1 + random.below(3) as i64;
                let binding = Binding {
                    partition: Partition(0),
                    end: Offset(end),
                    // The beginning of the epoch's input, which is the end of the previous epoch's input.
                    timestamp: Some(start),
                    max_event_time: None,
                    pushing_time: None,
                    candidate: None,
                    idle: false,
                };
                let wall_ms = self.latest.0 as i64 * 10;
                let record = EpochRecord {
                    epoch: self.latest,
                    wall_ms,
                    bindings: vec![binding],
                    closes: false,
                    rules: TimeRules::default(),
                    change: Change::default(),
                };
                self.unrecorded.push(record.clone());
                record
            }
        };
        let binding = &record.bindings[0];
        if binding.timestamp != Some(self.position.next.0) {
            return Err("a replayed epoch does not follow the restored state");
        }
        self.position.next = binding.end;
        self.state = step(&self.state, binding.end.0);
        self.processed = record.epoch;
        if self.committed.iter().flatten().any(|writer| *writer < Some(record.epoch)) {
            self.outputs.insert(record.epoch, self.state);
        }
        if !world.guards.one_mark_is_in_flight {
            self.marks.concluded(Epoch(u64::MAX));
        }
        if self.marks.mark(&record) {
            self.mark(world, &record, random);
        }
        Ok(Status::Running)
    }

    /// Captures the changes since the last mark. Each worker has one shard with state.
    fn mark(&mut self, world: &World, record: &EpochRecord, random: &mut Random) {
        let own = if world.guards.names_have_the_generation { self.generation } else { Generation(1) };
        let unstored = (0..SHARDED).map(|shard| {
            let shards = Shards::of_workers(shard..shard + 1, SHARDED);
            let shard_id = ShardId(shard as u32);
            let base = wants_base(chain(&self.before, shard_id));
            let (before, now) = (self.captured_state[shard], self.state[shard]);
            if before == now {
                return (shards, Vec::new());
            }
            let (kind, follows) = if base { (PartKind::Base, None) } else { (PartKind::Delta, Some(before)) };
            let name = PartName {
                ledger_id: ledger_id(),
                generation: own,
                epoch: record.epoch,
                shard: shard_id,
                kind,
            };
            let part = Part { name, hash: [0; 32], bytes: 1 + random.below(9) as u64 };
            (shards, vec![(part, Content { follows, state: now })])
        });
        self.marked = Some(Marked {
            unstored: unstored.collect(),
            checkpoint: Checkpoint::of(record.epoch),
            position: self.position,
            wall_ms: record.wall_ms,
        });
        self.captured_state = self.state;
    }

    fn append(&mut self, world: &mut World, random: &mut Random) -> Result<Status, Violation> {
        let Some(last) = self.unrecorded.last().map(|last| last.epoch) else { return Ok(Status::Running) };
        let round = self.unrecorded.clone();
        Ok(match world.write(Write::Append(self.generation, round), random)? {
            WriteResult::Done => {
                self.unrecorded.clear();
                self.durable = last;
                Status::Running
            }
            WriteResult::Fenced | WriteResult::Failed | WriteResult::Unknown => Status::Ended,
        })
    }

    fn commit(&mut self, world: &mut World, random: &mut Random) -> Result<Status, Violation> {
        let (sink, writer) = (random.below(self.committed.len()), random.below(self.processes));
        let (shards, after) = (self.shards(writer), self.committed[sink][writer].unwrap_or(Epoch(0)));
        let limit = if world.guards.bindings_come_before_commits { self.durable } else { self.processed };
        let ready: Vec<_> = self
            .outputs
            .range(after.next()..=limit.max(after.next()))
            .filter(|(epoch, _)| **epoch <= limit)
            .collect();
        if ready.is_empty() {
            return Ok(Status::Running);
        }
        let round = &ready[..1 + random.below(ready.len())];
        let own = (0..SHARDED).filter(|&shard| shards.contains(ShardId(shard as u32)));
        let rows = round
            .iter()
            .flat_map(|&(&epoch, state)| own.clone().map(move |shard| (epoch, shard, output(state, shard))));
        let has = |shard: usize, epoch| self.committed_through[sink].has(ShardId(shard as u32), epoch);
        let rows: Vec<_> = rows.filter(|&(epoch, shard, _)| !has(shard, epoch)).collect();
        let (through, incarnation) = (*round[round.len() - 1].0, self.incarnations[sink][writer]);
        let generation = self.generation;
        let commit = Commit { sink, writer, incarnation, generation, shards, through, rows };
        Ok(match world.write(Write::Commit(commit), random)? {
            WriteResult::Done => {
                self.committed[sink][writer] = Some(through);
                let least = self.committed.iter().flatten().min().copied().flatten().unwrap_or(Epoch(0));
                self.outputs = self.outputs.split_off(&least.next());
                Status::Running
            }
            WriteResult::Failed => Status::Running,
            WriteResult::Fenced | WriteResult::Unknown => Status::Ended,
        })
    }

    /// Stores the parts of one worker.
    fn put(&mut self, world: &mut World) {
        let Some(Marked { checkpoint, unstored, .. }) = &mut self.marked else { return };
        let Some((shards, parts)) = unstored.pop() else { return };
        for (part, content) in &parts {
            world.put(&part.name, *content);
        }
        let parts = parts.into_iter().map(|(part, _)| part).collect();
        let stored = checkpoint.stored(shards, parts);
        // Without the guard, they may have been reported before.
        assert!(
            stored.is_ok() || !world.guards.parts_come_before_the_manifest,
            "each worker once: {stored:?}"
        );
    }

    fn conclude(&mut self, world: &mut World, random: &mut Random) -> Result<Status, Violation> {
        let committed: Vec<_> = (0..self.committed.len()).map(|sink| self.least(sink)).collect();
        let Some(marked) = &mut self.marked else { return Ok(Status::Running) };
        if !world.guards.parts_come_before_the_manifest {
            for (shards, parts) in &marked.unstored {
                let parts = parts.iter().map(|(part, _)| part.clone()).collect();
                // Parts that were reported before are reported again.
                let _ = marked.checkpoint.stored(*shards, parts);
            }
        }
        let sinks: Vec<_> = match world.guards.manifests_wait_for_sinks {
            true => committed,
            false => Vec::new(),
        };
        if !marked.checkpoint.is_complete(&sinks) {
            return Ok(Status::Running);
        }
        let manifest = Manifest {
            epoch: marked.checkpoint.epoch(),
            generation: self.generation,
            wall_ms: marked.wall_ms,
            watermark: EventTime::MIN,
            positions: vec![marked.position],
            unfinal: Vec::new(),
            all_idle: None,
            in_force: Versions::default(),
            operators: Vec::new(),
            keys: None,
            parts: marked
                .checkpoint
                .parts_after(&self.before)
                .map_err(|_| "a delta has no base, or does not follow the previous part")?,
        };
        let mut manifests = self.manifests.clone();
        manifests.push((manifest.epoch, Some(manifest.clone())));
        let epochs: Vec<_> = manifests.iter().map(|(epoch, _)| *epoch).collect();
        let dropped: Vec<_> = match prune(&epochs, world.keep) {
            Prune::Before(oldest) => manifests.extract_if(.., |(epoch, _)| *epoch < oldest).collect(),
            Prune::Nothing => Vec::new(),
        };
        let dropped: Vec<_> = dropped.into_iter().filter_map(|(_, manifest)| manifest).collect();
        let kept: Vec<_> = manifests.iter().filter_map(|(_, manifest)| manifest.clone()).collect();
        let kept = if world.guards.kept_parts_are_not_deleted { &kept[..] } else { &[] };
        let garbage = unreferenced(&dropped, kept);
        if !world.guards.parts_are_deleted_after_the_manifest {
            world.store.retain(|name, _| garbage.iter().all(|garbage| garbage.to_string() != *name));
        }
        let (epoch, parts) = (manifest.epoch, manifest.parts.clone());
        Ok(match world.write(Write::Conclude(self.generation, manifest), random)? {
            WriteResult::Done => {
                self.manifests = manifests;
                self.before = parts;
                self.garbage.extend(garbage);
                self.marked = None;
                self.marks.concluded(epoch);
                Status::Running
            }
            WriteResult::Fenced | WriteResult::Failed | WriteResult::Unknown => Status::Ended,
        })
    }

    /// Deletes a part that is not needed, or searches for such parts.
    fn collect_garbage(&mut self, world: &mut World, random: &mut Random) {
        if let Some(name) = self.garbage.pop() {
            world.store.remove(&name.to_string());
        } else if random.below(4) == 0 && self.manifests.iter().all(|(_, manifest)| manifest.is_some()) {
            let mine = match world.guards.only_parts_of_older_starts_are_deleted {
                true => self.generation,
                false => Generation(u64::MAX),
            };
            let found = world.store.keys().map(String::as_str);
            self.garbage = left_behind(found, &ledger_id(), mine, &self.readable());
        }
    }
}
