//! The checkpoint writer of a process: a thread that puts captured state into the state store as parts, and deletes
//! parts that no checkpoint needs any more.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use headwater_dataflows::{Epoch, Record, ShardId};
use headwater_sinks::{Generation, LedgerId, crash};
use sha2::{Digest, Sha256};
use timely::scheduling::activate::SyncActivator;

use super::failure::{Failure, RunError};
use crate::coordination::{Part, PartKind, PartName, chain, wants_base};
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
}

/// A handle of the checkpoint writer. Its thread ends when all handles are dropped.
#[derive(Clone)]
pub struct CheckpointWriterHandle {
    sender: Sender<Command>,
    shared: Arc<Shared>,
}

struct Shared {
    first_worker: usize,
    /// The parts that were put and not yet taken, and the operator to activate, by worker of this process.
    put: Vec<Mutex<PutParts>>,
}

#[derive(Default)]
struct PutParts {
    parts: Vec<(Epoch, Vec<Part>)>,
    activator: Option<SyncActivator>,
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

    /// Takes the parts that were put for a worker since the last call.
    pub fn take(&self, worker: usize) -> Vec<(Epoch, Vec<Part>)> {
        std::mem::take(&mut self.shared.of(worker).parts)
    }

    /// Sets the operator of a worker that is activated after each put.
    pub fn set_activator(&self, worker: usize, activator: SyncActivator) {
        self.shared.of(worker).activator = Some(activator);
    }
}

impl Shared {
    fn of(&self, worker: usize) -> std::sync::MutexGuard<'_, PutParts> {
        self.put[worker - self.first_worker].lock().expect("no thread panics while it holds the lock")
    }

    /// Publishes the durable parts of a worker and epoch, and activates the operator that waits for them.
    fn publish(&self, worker: usize, epoch: Epoch, parts: Vec<Part>) {
        let mut put = self.of(worker);
        put.parts.push((epoch, parts));
        if let Some(activator) = &put.activator {
            // The activation fails only if the worker has shut down.
            let _ = activator.activate();
        }
    }
}

/// Creates the handle of the writer of a process's workers, and the writer's queue.
fn queue(workers: Range<usize>) -> (CheckpointWriterHandle, Receiver<Command>) {
    let (sender, receiver) = channel();
    let put = workers.clone().map(|_| Mutex::default()).collect();
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
    let checkpoint_writer =
        CheckpointWriter { store, writer_id, parts: before, buffered: BTreeMap::new(), shared };
    let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(move || {
        if let Err(error) = checkpoint_writer.run(&receiver) {
            failure.report(error);
        }
    })?;
    Ok((handle, thread))
}

struct CheckpointWriter {
    store: Box<dyn StateStore>,
    writer_id: WriterId,
    /// The newest chain of parts of every shard.
    parts: Vec<Part>,
    /// The records that are not yet put, by epoch and worker, then by shard.
    buffered: BTreeMap<(Epoch, usize), BTreeMap<ShardId, Vec<Record>>>,
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
                // A later start deletes the parts that could not be deleted here.
                Command::Delete(names) => {
                    for name in names {
                        if let Err(error) = self.store.delete(&name.to_string()) {
                            tracing::warn!(%name, %error, "cannot delete an unused part; a later start deletes it");
                        }
                        crash::point("part.deleted");
                    }
                }
            }
        }
        Ok(())
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
    let loaded = parts.into_iter().map(|part| {
        let name = part.name.to_string();
        match store.get(&name)? {
            Some(bytes) if Sha256::digest(&bytes)[..] == part.hash => Ok(LoadedPart { name, bytes }),
            Some(_) => Err(RunError::Part {
                name,
                damage: "its content does not match the hash in the manifest".to_owned(),
            }),
            None => Err(RunError::Part { name, damage: "it is missing".to_owned() }),
        }
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
