//! The checkpoint writer of a process: a thread that puts captured state into the state store as parts, and deletes
//! parts that no checkpoint needs any more.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use headwater_dataflows::{Epoch, Record, ShardId};
use headwater_sinks::{Generation, LedgerId, crash};
use sha2::{Digest, Sha256};
use timely::scheduling::activate::SyncActivator;

use crate::coordination::{Part, PartKind, PartName, chain, wants_base};
use crate::runtime::background::{self, Waiters};
use crate::runtime::checkpoint::contents;
use crate::runtime::failure::{Failure, RunError};
use crate::state::StateStore;
use crate::state::part::{Content, Malformed};

/// A command of a worker or of the ledger's thread.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Buffers records that a worker has captured at the end of an epoch.
    Buffer {
        /// The index of the worker.
        worker: usize,
        /// The epoch.
        epoch: Epoch,
        /// The records.
        records: Vec<Record>,
    },
    /// Puts the records that a worker has captured at the end of an epoch: they are complete.
    PutParts {
        /// The index of the worker.
        worker: usize,
        /// The epoch.
        epoch: Epoch,
    },
    /// Deletes parts that no manifest refers to.
    Delete(BTreeSet<PartName>),
    /// Puts contents of a list, by their hash, makes them durable, and keeps them at least until their epoch is recorded.
    PutContents([u8; 32], Arc<Vec<u8>>, Done),
    /// Contents are referred to by a recorded epoch.
    Recorded(Vec<[u8; 32]>),
    /// Deletes contents that neither a manifest nor a recorded epoch refers to.
    DeleteContents(BTreeSet<[u8; 32]>),
}

/// The means to say that a command is carried out.
#[derive(Debug)]
pub struct Done(SyncSender<()>);

impl PartialEq for Done {
    fn eq(&self, _: &Done) -> bool {
        true
    }
}

/// The writer has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterEnded;

/// A handle of the checkpoint writer. Its thread ends when all handles are dropped.
#[derive(Clone)]
pub struct CheckpointWriterHandle {
    sender: Sender<Command>,
    shared: Arc<Shared>,
}

struct Shared {
    first_worker: usize,
    /// The parts that were put and not yet taken, and the operator to activate, by worker of this process.
    put: Vec<PutParts>,
}

#[derive(Default)]
struct PutParts {
    parts: Mutex<Vec<(Epoch, Vec<Part>)>>,
    waiters: Waiters,
}

impl PutParts {
    fn locked(&self) -> std::sync::MutexGuard<'_, Vec<(Epoch, Vec<Part>)>> {
        self.parts.lock().expect("no thread panics while it holds the lock")
    }
}

impl CheckpointWriterHandle {
    /// Buffers records of a worker. After a failure the writer discards them: the run is about to end.
    pub fn buffer(&self, worker: usize, epoch: Epoch, records: Vec<Record>) {
        let _ = self.sender.send(Command::Buffer { worker, epoch, records });
    }

    /// Requests that all records of a worker and epoch are put and made durable.
    pub fn put(&self, worker: usize, epoch: Epoch) {
        let _ = self.sender.send(Command::PutParts { worker, epoch });
    }

    /// Requests the deletion of parts.
    pub fn delete(&self, parts: BTreeSet<PartName>) {
        let _ = self.sender.send(Command::Delete(parts));
    }

    /// Puts contents of a list; returns when they are durable.
    ///
    /// # Errors
    /// If the writer has ended.
    pub fn put_contents(&self, hash: [u8; 32], bytes: Arc<Vec<u8>>) -> Result<(), WriterEnded> {
        let (done, is_done) = sync_channel(1);
        let _ = self.sender.send(Command::PutContents(hash, bytes, Done(done)));
        is_done.recv().map_err(|_| WriterEnded)
    }

    /// Notes that recorded epochs refer to contents.
    pub fn recorded_contents(&self, hashes: Vec<[u8; 32]>) {
        let _ = self.sender.send(Command::Recorded(hashes));
    }

    /// Requests the deletion of contents.
    pub fn delete_contents(&self, hashes: BTreeSet<[u8; 32]>) {
        let _ = self.sender.send(Command::DeleteContents(hashes));
    }

    /// Takes the parts that were put for a worker since the last call.
    pub fn take(&self, worker: usize) -> Vec<(Epoch, Vec<Part>)> {
        std::mem::take(&mut *self.shared.of(worker).locked())
    }

    /// Sets the operator of a worker that is activated after each put.
    pub fn set_activator(&self, worker: usize, activator: SyncActivator) {
        self.shared.of(worker).waiters.add(activator);
    }
}

impl Shared {
    fn of(&self, worker: usize) -> &PutParts {
        &self.put[worker - self.first_worker]
    }

    /// Publishes the durable parts of a worker and epoch, and activates the operator that waits for them.
    fn publish(&self, worker: usize, epoch: Epoch, parts: Vec<Part>) {
        self.of(worker).locked().push((epoch, parts));
        self.of(worker).waiters.wake();
    }
}

/// Creates the handle of the writer of a process's workers, and the writer's queue.
fn queue(workers: Range<usize>) -> (CheckpointWriterHandle, Receiver<Command>) {
    let (sender, receiver) = channel();
    let put = workers.clone().map(|_| PutParts::default()).collect();
    let shared = Arc::new(Shared { first_worker: workers.start, put });
    (CheckpointWriterHandle { sender, shared }, receiver)
}

/// The ids that name the parts of a writer.
#[derive(Clone, Debug)]
pub struct WriterId {
    /// The ledger id.
    pub ledger_id: LedgerId,
    /// The generation of this start.
    pub generation: Generation,
}

/// Starts the checkpoint writer for a process's workers. The first new parts of a shard extend its chain in
/// `before`.
pub fn spawn(
    store: Box<dyn StateStore>,
    writer_id: WriterId,
    before: Vec<Part>,
    workers: Range<usize>,
    failure: Failure,
) -> std::io::Result<(CheckpointWriterHandle, JoinHandle<()>)> {
    let (handle, receiver) = queue(workers);
    let shared = Arc::clone(&handle.shared);
    let (buffered, requested) = (BTreeMap::new(), BTreeMap::new());
    let checkpoint_writer = CheckpointWriter { store, writer_id, parts: before, buffered, requested, shared };
    let thread =
        background::spawn("checkpoints".into(), failure, move || ((), checkpoint_writer.run(&receiver)))?;
    Ok((handle, thread))
}

struct CheckpointWriter {
    store: Box<dyn StateStore>,
    writer_id: WriterId,
    /// The newest chain of parts of every shard.
    parts: Vec<Part>,
    /// The records that are not yet put, by epoch and worker, then by shard.
    buffered: BTreeMap<(Epoch, usize), BTreeMap<ShardId, Vec<Record>>>,
    /// The contents of lists that were put and whose epoch is not recorded yet, with their number.
    requested: BTreeMap<[u8; 32], usize>,
    shared: Arc<Shared>,
}

impl CheckpointWriter {
    fn run(mut self, commands: &Receiver<Command>) -> Result<(), RunError> {
        for command in commands {
            match command {
                Command::Buffer { worker, epoch, records } => {
                    let by_shard = self.buffered.entry((epoch, worker)).or_default();
                    records.into_iter().for_each(|record| {
                        by_shard.entry(record.shard).or_default().push(record);
                    });
                }
                Command::PutParts { worker, epoch } => {
                    let records = self.buffered.remove(&(epoch, worker)).unwrap_or_default();
                    let parts = self.put(epoch, records)?;
                    self.shared.publish(worker, epoch, parts);
                }
                Command::Delete(names) => {
                    let names: Vec<_> = names.iter().map(PartName::to_string).collect();
                    if let Err(error) = self.store.delete_all(&names) {
                        tracing::warn!(%error, "cannot delete all unused parts; a later start deletes them");
                    }
                }
                Command::PutContents(hash, bytes, Done(done)) => {
                    *self.requested.entry(hash).or_default() += 1;
                    contents::put(&mut *self.store, &self.writer_id, hash, &bytes)?;
                    // The run may be ending, so that nobody waits.
                    let _ = done.try_send(());
                }
                Command::Recorded(hashes) => hashes.iter().for_each(|hash| self.recorded(hash)),
                Command::DeleteContents(hashes) => self.delete_contents(&hashes),
            }
        }
        Ok(())
    }

    /// Notes that a recorded epoch refers to contents: from now on, the ledger's writer knows when they can be deleted.
    fn recorded(&mut self, hash: &[u8; 32]) {
        if let Some(count) = self.requested.get_mut(hash) {
            *count -= 1;
            if *count == 0 {
                self.requested.remove(hash);
            }
        }
    }

    /// Deletes contents, except those that have been requested again.
    fn delete_contents(&mut self, hashes: &BTreeSet<[u8; 32]>) {
        for hash in hashes.iter().filter(|hash| !self.requested.contains_key(*hash)) {
            if let Err(error) = contents::delete(&mut *self.store, &self.writer_id, *hash) {
                tracing::warn!(%error, "cannot delete unused contents of a list; a later start deletes them");
            }
        }
    }

    /// Puts records as parts, one for each shard that has any. They are durable when it returns.
    fn put(&mut self, epoch: Epoch, by_shard: BTreeMap<ShardId, Vec<Record>>) -> Result<Vec<Part>, RunError> {
        let mut parts = Vec::new();
        for (shard, records) in by_shard {
            parts.push(self.part(epoch, shard, Content::of(&records))?);
        }
        self.store.sync()?;
        crash::point("parts.synced");
        Ok(parts)
    }

    /// Puts the changes of a shard as a delta or, if its chain has too many deltas, all of its state as a base.
    fn part(&mut self, epoch: Epoch, shard: ShardId, changes: Content<'_>) -> Result<Part, RunError> {
        let WriterId { ledger_id, generation } = self.writer_id.clone();
        let base = wants_base(chain(&self.parts, shard));
        let bytes = if base {
            let before = read(&mut *self.store, chain(&self.parts, shard))?;
            let mut all = merge(&before)?;
            all.over(changes);
            all.settle();
            self.parts.retain(|part| part.name.shard != shard);
            all.encode()
        } else {
            changes.encode()
        };
        let kind = if base { PartKind::Base } else { PartKind::Delta };
        let part = put(&mut *self.store, PartName { ledger_id, generation, epoch, shard, kind }, &bytes)?;
        self.parts.push(part.clone());
        Ok(part)
    }
}

#[cfg(test)]
impl CheckpointWriterHandle {
    /// Creates a handle without a writer: a test receives the commands, and says what is durable.
    pub fn detached(workers: Range<usize>) -> (CheckpointWriterHandle, Receiver<Command>) {
        queue(workers)
    }

    /// Adds durable parts of a worker and epoch.
    pub fn add_parts(&self, worker: usize, epoch: Epoch, parts: Vec<Part>) {
        self.shared.publish(worker, epoch, parts);
    }
}

/// Puts the content of a part. It is durable after the store's next sync.
///
/// # Errors
/// If the store fails.
pub fn put(store: &mut dyn StateStore, name: PartName, bytes: &[u8]) -> Result<Part, RunError> {
    crash::point("part.put.before");
    store.put(&name.to_string(), bytes)?;
    crash::point("part.put.after");
    Ok(Part { name, hash: Sha256::digest(bytes).into(), bytes: bytes.len() as u64 })
}

/// A part that was read from the state store.
pub struct LoadedPart {
    name: String,
    bytes: Vec<u8>,
}

/// Reads parts.
///
/// # Errors
/// If a part is missing or its hash differs, or the store fails.
pub fn read<'a>(
    store: &mut dyn StateStore,
    parts: impl IntoIterator<Item = &'a Part>,
) -> Result<Vec<LoadedPart>, RunError> {
    let parts: Vec<_> = parts.into_iter().collect();
    let names: Vec<_> = parts.iter().map(|part| part.name.to_string()).collect();
    let blobs = store.get_all(&names)?;
    let loaded = parts.iter().zip(names).zip(blobs).map(|((part, name), blob)| match blob {
        Some(bytes) if Sha256::digest(&bytes)[..] == part.hash => Ok(LoadedPart { name, bytes }),
        Some(_) => Err(RunError::Part {
            name,
            damage: "its content does not match the hash in the manifest".to_owned(),
        }),
        None => Err(RunError::Part { name, damage: "it is missing".to_owned() }),
    });
    loaded.collect()
}

/// Merges the parts of a shard, which are given in order.
///
/// # Errors
/// If a part has an unknown version.
pub fn merge(parts: &[LoadedPart]) -> Result<Content<'_>, RunError> {
    let mut all = Content::default();
    for LoadedPart { name, bytes } in parts {
        let content = Content::decode(bytes);
        let damaged = |damage: Malformed| RunError::Part { name: name.clone(), damage: damage.to_string() };
        all.over(content.map_err(damaged)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use PartKind::{Base, Delta};

    use super::*;
    use crate::runtime::fakes::{FakeStore, captured, part_name, wait_until};

    /// A writer of workers 2 and 3, driven without its thread.
    struct Fixture {
        store: FakeStore,
        writer: CheckpointWriter,
        shared: Arc<Shared>,
    }

    fn fixture(before: Vec<Part>) -> Fixture {
        let store = FakeStore::default();
        let (handle, _) = queue(2..4);
        let shared = handle.shared;
        let writer_id = WriterId { ledger_id: LedgerId("a".to_owned()), generation: Generation(1) };
        let writer = CheckpointWriter {
            store: Box::new(store.clone()),
            writer_id,
            parts: before,
            buffered: BTreeMap::new(),
            requested: BTreeMap::new(),
            shared: Arc::clone(&shared),
        };
        Fixture { store, writer, shared }
    }

    impl Fixture {
        /// Carries out these commands, and ends.
        fn run(self, commands: impl IntoIterator<Item = Command>) -> (Result<(), RunError>, FakeStore, Put) {
            let Fixture { store, writer, shared } = self;
            let (sender, receiver) = channel();
            commands.into_iter().for_each(|command| sender.send(command).expect("the receiver is here"));
            drop(sender);
            let outcome = writer.run(&receiver);
            let put = [2, 3].map(|worker| std::mem::take(&mut *shared.of(worker).locked()));
            (outcome, store, put)
        }
    }

    /// The parts that were put for each worker.
    type Put = [Vec<(Epoch, Vec<Part>)>; 2];

    fn buffer(worker: usize, epoch: u64, records: Vec<Record>) -> Command {
        Command::Buffer { worker, epoch: Epoch(epoch), records }
    }

    fn put_parts(worker: usize, epoch: u64) -> Command {
        Command::PutParts { worker, epoch: Epoch(epoch) }
    }

    fn names(parts: &[Part]) -> Vec<PartName> {
        parts.iter().map(|part| part.name.clone()).collect()
    }

    /// Returns what a start would read from these parts of shard 5.
    fn state(store: &mut FakeStore, parts: &[Part]) -> Vec<Record> {
        let loaded = read(store, parts).expect("whole");
        merge(&loaded).expect("valid").records(ShardId(5)).collect()
    }

    #[test]
    fn parts_have_the_records_of_one_worker_epoch_and_shard() {
        let (outcome, mut store, [second, third]) = fixture(Vec::new()).run([
            buffer(2, 1, vec![captured(5, "ann", Some("1")), captured(6, "bob", Some("1"))]),
            buffer(3, 1, vec![captured(7, "eve", Some("1"))]),
            buffer(2, 2, vec![captured(5, "ann", Some("2"))]),
            buffer(2, 1, vec![captured(5, "cid", Some("1"))]),
            put_parts(2, 1),
        ]);
        outcome.expect("stored");
        assert_eq!(third, [], "the records of worker 3 may be incomplete");
        let [(Epoch(1), parts)] = &second[..] else { panic!("{second:?}") };
        assert_eq!(names(parts), [part_name(1, 5, Base), part_name(1, 6, Base)]);
        let expected = [captured(5, "ann", Some("1")), captured(5, "cid", Some("1"))];
        assert_eq!(state(&mut store, &parts[..1]), expected);
    }

    #[test]
    fn parts_are_published_only_after_a_sync() {
        let (outcome, store, put) =
            fixture(Vec::new()).run([buffer(2, 1, vec![captured(5, "ann", Some("1"))]), put_parts(2, 1)]);
        outcome.expect("stored");
        assert_eq!(store.calls.take(), ["put a/1/1/5.base", "sync"]);
        assert_eq!(put[0].len(), 1);

        for failing in ["put", "sync"] {
            let fixture = fixture(Vec::new());
            fixture.store.calls.fail(failing);
            let commands =
                [buffer(2, 1, vec![captured(5, "ann", Some("1"))]), put_parts(2, 1), put_parts(3, 1)];
            let (outcome, _, put) = fixture.run(commands);
            assert!(matches!(outcome, Err(RunError::State(_))), "{failing}: {outcome:?}");
            assert_eq!(put, [vec![], vec![]], "{failing}: nothing is durable");
        }
    }

    #[test]
    fn a_worker_without_changes_has_an_epoch_without_parts() {
        let (outcome, store, put) = fixture(Vec::new()).run([put_parts(3, 4)]);
        outcome.expect("stored");
        assert_eq!(put, [vec![], vec![(Epoch(4), vec![])]]);
        assert_eq!(store.calls.take(), ["sync"]);
    }

    #[test]
    fn deltas_are_merged_into_a_base_without_removed_keys() {
        let large = "x".repeat(1000);
        let mut commands =
            vec![buffer(2, 1, vec![captured(5, "ann", Some(&large)), captured(5, "bob", Some("1"))])];
        commands.push(put_parts(2, 1));
        commands.extend([buffer(2, 2, vec![captured(5, "bob", None)]), put_parts(2, 2)]);
        for epoch in 3..=11 {
            let value = epoch.to_string();
            commands.extend([buffer(2, epoch, vec![captured(5, "cid", Some(&value))]), put_parts(2, epoch)]);
        }
        let (outcome, mut store, [put, _]) = fixture(Vec::new()).run(commands);
        outcome.expect("stored");
        let parts: Vec<_> = put.into_iter().flat_map(|(_, parts)| parts).collect();
        let bases: Vec<_> =
            parts.iter().filter(|part| part.name.kind == Base).map(|part| part.name.epoch).collect();
        assert_eq!(bases, [Epoch(1), Epoch(11)], "too many deltas follow the first");
        let all = state(&mut store, &parts[..parts.len() - 1]);
        assert!(all.contains(&captured(5, "bob", None)) && all.contains(&captured(5, "cid", Some("10"))));
        let merged = [captured(5, "ann", Some(&large)), captured(5, "cid", Some("11"))];
        assert_eq!(state(&mut store, &parts[parts.len() - 1..]), merged);
    }

    #[test]
    fn the_first_parts_of_a_start_follow_those_it_resumed_from() {
        let mut fixture = fixture(Vec::new());
        let records = [captured(5, "ann", Some(&"x".repeat(100)))];
        let bytes = Content::of(&records).encode();
        let base = put(&mut fixture.store, part_name(1, 5, Base), &bytes).expect("stored");
        fixture.writer.parts = vec![base];
        let change = |shard| vec![captured(shard, "bob", Some("2"))];
        let commands = [buffer(2, 9, change(5)), buffer(2, 9, change(6)), put_parts(2, 9)];
        let (outcome, _, [second, _]) = fixture.run(commands);
        outcome.expect("stored");
        assert_eq!(names(&second[0].1), [part_name(9, 5, Delta), part_name(9, 6, Base)]);
    }

    #[test]
    fn a_base_is_not_written_over_damaged_parts() {
        let missing = Part { name: part_name(1, 5, Base), hash: [0; 32], bytes: 1 };
        let large = Part { name: part_name(2, 5, Delta), hash: [0; 32], bytes: 2 };
        let commands = [buffer(2, 3, vec![captured(5, "ann", Some("1"))]), put_parts(2, 3)];
        let (outcome, store, put) = fixture(vec![missing, large]).run(commands);
        assert!(matches!(outcome, Err(RunError::Part { .. })), "{outcome:?}");
        assert_eq!((store.calls.take(), put), (vec![], [vec![], vec![]]));
    }

    #[test]
    fn a_part_that_cannot_be_deleted_does_not_end_the_run() {
        let fixture = fixture(Vec::new());
        fixture.store.calls.fail("delete a/1/1/5.base");
        let unused = [part_name(1, 5, Base), part_name(1, 6, Base)].into();
        let (outcome, store, put) = fixture.run([Command::Delete(unused), put_parts(2, 4)]);
        outcome.expect("a later start deletes it");
        assert_eq!(store.calls.take(), ["delete a/1/1/6.base", "sync"]);
        assert_eq!(put[0].len(), 1);
    }

    /// A deletion that was decided before contents were requested again must not delete them.
    #[test]
    fn requested_contents_are_kept_until_their_epoch_is_recorded() {
        let hash = [7; 32];
        let (done, _is_done) = sync_channel(9);
        let put = || Command::PutContents(hash, Arc::new(vec![1]), Done(done.clone()));
        let delete = || Command::DeleteContents([hash].into());
        let recorded = || Command::Recorded(vec![hash]);
        for (commands, is_kept) in [
            (vec![put(), delete()], true),
            (vec![put(), recorded(), delete()], false),
            (vec![put(), recorded(), put(), delete()], true),
            (vec![put(), put(), recorded(), delete()], true),
            (vec![put(), recorded(), put(), recorded(), delete()], false),
            // Of an earlier start, which had requested them.
            (vec![recorded(), put(), delete()], true),
        ] {
            let (outcome, store, _) = fixture(Vec::new()).run(commands);
            outcome.expect("stored");
            assert_eq!(!store.blobs.lock().expect("unlocked").is_empty(), is_kept);
        }
    }

    #[test]
    fn missing_and_damaged_parts_are_named() {
        let mut store = FakeStore::default();
        let part = put(&mut store, part_name(1, 5, Base), b"\x02").expect("stored");
        assert_eq!(part.bytes, 1);
        let loaded = read(&mut store, [&part]).expect("its hash is right");
        let damage = |error: RunError| match error {
            RunError::Part { name, damage } => format!("{name}: {damage}"),
            other => panic!("{other:?}"),
        };
        let unknown = merge(&loaded).map(|_| ()).map_err(damage).expect_err("an unknown version");
        assert!(unknown.starts_with("a/1/1/5.base: its format has version 2"), "{unknown}");
        store.blobs.lock().expect("unlocked").insert(part.name.to_string(), b"\x01".to_vec());
        let changed = read(&mut store, [&part]).map(|_| ()).map_err(damage);
        assert_eq!(
            changed,
            Err("a/1/1/5.base: its content does not match the hash in the manifest".to_owned())
        );
        store.delete("a/1/1/5.base").expect("deleted");
        let missing = read(&mut store, [&part]).map(|_| ()).map_err(damage);
        assert_eq!(missing, Err("a/1/1/5.base: it is missing".to_owned()));
    }

    #[test]
    fn a_failed_store_is_reported_and_later_commands_discarded() {
        let (store, failure) = (FakeStore::default(), Failure::default());
        store.calls.fail("sync");
        let writer_id = WriterId { ledger_id: LedgerId("a".to_owned()), generation: Generation(1) };
        let (handle, thread) =
            spawn(Box::new(store), writer_id, Vec::new(), 0..1, failure.clone()).expect("a thread");
        handle.put(0, Epoch(1));
        wait_until(|| failure.is_some());
        handle.buffer(0, Epoch(2), Vec::new());
        handle.put(0, Epoch(2));
        thread.join().expect("no panic");
        assert_eq!(handle.take(0), []);
    }
}
