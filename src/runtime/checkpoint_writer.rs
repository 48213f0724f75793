//! The keeper of a process: one thread that puts captured state into the state store as parts, and deletes what no
//! checkpoint needs any more.

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

/// What workers and the ledger's thread ask for.
enum Order {
    /// To keep what a worker captured at the end of an epoch.
    Keep { worker: usize, epoch: Epoch, records: Vec<Record> },
    /// To put what a worker has captured at the end of an epoch: it is all.
    Put { worker: usize, epoch: Epoch },
    /// To delete parts that no manifest needs.
    Delete(BTreeSet<PartName>),
}

/// An end of the keeper's thread, which lasts as long as there is one.
#[derive(Clone)]
pub struct CheckpointWriterHandle {
    sender: Sender<Order>,
    shared: Arc<Shared>,
}

struct Shared {
    first_worker: usize,
    /// By worker of this process: what was put and not yet taken, and who is to be woken.
    put: Vec<Mutex<Put>>,
}

#[derive(Default)]
struct Put {
    parts: Vec<(Epoch, Vec<Part>)>,
    activator: Option<SyncActivator>,
}

impl CheckpointWriterHandle {
    /// Gives records of a worker. A keeper that has failed takes everything: the run is about to end.
    pub fn keep(&self, worker: usize, epoch: Epoch, records: Vec<Record>) {
        let _ = self.sender.send(Order::Keep { worker, epoch, records });
    }

    /// Has all records of a worker and epoch put, durably.
    pub fn put(&self, worker: usize, epoch: Epoch) {
        let _ = self.sender.send(Order::Put { worker, epoch });
    }

    /// Has parts deleted.
    pub fn delete(&self, parts: BTreeSet<PartName>) {
        let _ = self.sender.send(Order::Delete(parts));
    }

    /// What was put of a worker since the last call.
    pub fn take(&self, worker: usize) -> Vec<(Epoch, Vec<Part>)> {
        std::mem::take(&mut self.shared.of(worker).parts)
    }

    /// Has an operator of a worker scheduled whenever something of its was put.
    pub fn wakes(&self, worker: usize, activator: SyncActivator) {
        self.shared.of(worker).activator = Some(activator);
    }
}

impl Shared {
    fn of(&self, worker: usize) -> std::sync::MutexGuard<'_, Put> {
        self.put[worker - self.first_worker].lock().expect("no holder of the lock panics")
    }
}

/// Who names the parts.
#[derive(Clone, Debug)]
pub struct WriterId {
    /// The ledger's.
    pub ledger_id: LedgerId,
    /// This start's.
    pub generation: Generation,
}

/// Starts the keeper for a process's workers. The next parts follow those of `before`.
pub fn spawn(
    store: Box<dyn StateStore>,
    writer_id: WriterId,
    before: Vec<Part>,
    workers: Range<usize>,
    failure: Failure,
) -> std::io::Result<(CheckpointWriterHandle, JoinHandle<()>)> {
    let (sender, receiver) = channel();
    let put = workers.clone().map(|_| Mutex::default()).collect();
    let shared = Arc::new(Shared { first_worker: workers.start, put });
    let handle = CheckpointWriterHandle { sender, shared: Arc::clone(&shared) };
    let checkpoint_writer =
        CheckpointWriter { store, writer_id, parts: before, kept: BTreeMap::new(), shared };
    let thread = std::thread::Builder::new().name("keeper".into()).spawn(move || {
        if let Err(error) = checkpoint_writer.run(&receiver) {
            failure.report(error);
        }
    })?;
    Ok((handle, thread))
}

struct CheckpointWriter {
    store: Box<dyn StateStore>,
    writer_id: WriterId,
    /// The newest chain of every shard.
    parts: Vec<Part>,
    /// By epoch and worker, what is not put yet, by shard.
    kept: BTreeMap<(Epoch, usize), BTreeMap<ShardId, Vec<Record>>>,
    shared: Arc<Shared>,
}

impl CheckpointWriter {
    fn run(mut self, orders: &Receiver<Order>) -> Result<(), RunError> {
        for order in orders {
            match order {
                Order::Keep { worker, epoch, records } => {
                    let by_shard = self.kept.entry((epoch, worker)).or_default();
                    records.into_iter().for_each(|record| {
                        by_shard.entry(record.shard).or_default().push(record);
                    });
                }
                Order::Put { worker, epoch } => {
                    let records = self.kept.remove(&(epoch, worker)).unwrap_or_default();
                    let parts = self.put(epoch, records)?;
                    let mut put = self.shared.of(worker);
                    put.parts.push((epoch, parts));
                    if let Some(activator) = &put.activator {
                        // A worker that has shut down needs no waking.
                        let _ = activator.activate();
                    }
                }
                // What could not be deleted is deleted by a later start.
                Order::Delete(names) => {
                    for name in names {
                        if let Err(error) = self.store.delete(&name.to_string()) {
                            tracing::warn!(%name, %error, "an old part of a checkpoint stays");
                        }
                        crash::point("part.deleted");
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts records as parts, one for each shard that has any; when it returns they survive the loss of power.
    fn put(&mut self, epoch: Epoch, by_shard: BTreeMap<ShardId, Vec<Record>>) -> Result<Vec<Part>, RunError> {
        let mut parts = Vec::new();
        for (shard, records) in by_shard {
            parts.push(self.part(epoch, shard, Content::of(&records))?);
        }
        self.store.sync()?;
        crash::point("parts.synced");
        Ok(parts)
    }

    /// Puts what has changed of a shard: as a delta or, when there are too many of them, all in one base.
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

/// A part, as it was put.
pub struct LoadedPart {
    name: String,
    bytes: Vec<u8>,
}

/// Reads parts.
///
/// # Errors
/// If one is missing or is not what was put, or the store fails.
pub fn read<'a>(
    store: &mut dyn StateStore,
    parts: impl IntoIterator<Item = &'a Part>,
) -> Result<Vec<LoadedPart>, RunError> {
    let kept = parts.into_iter().map(|part| {
        let name = part.name.to_string();
        match store.get(&name)? {
            Some(bytes) if Sha256::digest(&bytes)[..] == part.hash => Ok(LoadedPart { name, bytes }),
            Some(_) => Err(RunError::Part { name, damage: "it is not what was put".to_owned() }),
            None => Err(RunError::Part { name, damage: "it is missing".to_owned() }),
        }
    });
    kept.collect()
}

/// What the parts of a shard say together, given in order.
///
/// # Errors
/// If one is of a version that is not known here.
pub fn merge(parts: &[LoadedPart]) -> Result<Content<'_>, RunError> {
    let mut all = Content::default();
    for LoadedPart { name, bytes } in parts {
        let content = Content::decode(bytes);
        let damaged = |damage: Malformed| RunError::Part { name: name.clone(), damage: damage.to_string() };
        all.over(content.map_err(damaged)?);
    }
    Ok(all)
}
