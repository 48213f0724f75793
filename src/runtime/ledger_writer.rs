//! The ledger writer: makes bound epochs durable in the ledger before any sink may commit them, and records manifests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use headwater_dataflows::{Control, ControlStream, Epoch};
use headwater_sinks::crash;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;
use timely::scheduling::activate::SyncActivator;

use super::checkpoint_writer::CheckpointWriterHandle;
use super::failure::Failure;
use crate::coordination::{EpochRecord, Manifest, Prune, prune, unreferenced};
use crate::ledger::{Ledger, LedgerError, StoredManifest, readable};
use crate::metrics::Metrics;

/// The maximum number of epochs in one transaction of the ledger; it bounds the time of a transaction if the queue is
/// long.
const ROUND: usize = 4096;

/// An entry of the writer's queue.
#[derive(Debug, PartialEq)]
pub enum Entry {
    /// An epoch that is bound.
    Epoch(EpochRecord),
    /// The manifest of a checkpoint.
    Manifest(Box<Manifest>),
    /// The name of a sink that has committed.
    Committed(String),
}

/// Worker 0's handle of the thread that writes the ledger.
#[derive(Clone)]
pub struct LedgerWriterHandle {
    sender: Sender<Entry>,
    shared: Arc<Shared>,
}

struct Shared {
    /// The last epoch that is durable.
    durable: AtomicU64,
    /// The epoch of the newest manifest that was recorded since the start; 0 if none was.
    concluded: AtomicU64,
    activator: Mutex<Option<SyncActivator>>,
}

impl LedgerWriterHandle {
    /// Queues an epoch to be recorded. After a failure the writer discards it: the run is about to end.
    pub fn record(&self, record: EpochRecord) {
        let _ = self.sender.send(Entry::Epoch(record));
    }

    /// Queues a manifest to be recorded. The epochs through its own are durable already, since sinks have committed
    /// them.
    pub fn conclude(&self, manifest: Manifest) {
        let _ = self.sender.send(Entry::Manifest(Box::new(manifest)));
    }

    /// Queues the record that a sink has committed.
    pub fn committed(&self, sink: &str) {
        let _ = self.sender.send(Entry::Committed(sink.to_owned()));
    }

    /// Returns the epoch of the newest manifest that was recorded since the start; 0 if none was.
    pub fn concluded(&self) -> Epoch {
        Epoch(self.shared.concluded.load(Ordering::Acquire))
    }

    /// Returns a reader of the last durable epoch.
    pub fn durable(&self) -> DurableEpoch {
        DurableEpoch(Arc::clone(&self.shared))
    }
}

/// A reader of the last durable epoch.
pub struct DurableEpoch(Arc<Shared>);

impl Shared {
    /// Publishes the last durable epoch, and activates the operator that waits for it.
    fn publish(&self, durable: Epoch) {
        self.durable.store(durable.0, Ordering::Release);
        if let Some(activator) = &*self.activator.lock().expect("no thread panics while it holds the lock") {
            // The activation fails only if the worker has shut down.
            let _ = activator.activate();
        }
    }
}

/// Creates the handle of the writer of a ledger that ends at epoch `durable`, and the writer's queue.
fn queue(durable: Epoch) -> (LedgerWriterHandle, Receiver<Entry>) {
    let (sender, receiver) = channel();
    let shared = Arc::new(Shared {
        durable: AtomicU64::new(durable.0),
        concluded: AtomicU64::new(0),
        activator: Mutex::default(),
    });
    (LedgerWriterHandle { sender, shared }, receiver)
}

/// The data that recording manifests needs.
pub struct ManifestRetention {
    /// The number of manifests to keep.
    pub keep: usize,
    /// The manifests in the ledger, in order.
    pub manifests: Vec<StoredManifest>,
    /// Deletes the parts that only dropped manifests refer to.
    pub checkpoint_writer: CheckpointWriterHandle,
}

/// Starts the thread that writes the ledger, which ends at epoch `durable`. The thread ends when all handles are
/// dropped, and returns the ledger.
pub fn spawn(
    ledger: Box<dyn Ledger>,
    durable: Epoch,
    retention: Option<ManifestRetention>,
    failure: Failure,
    metrics: Arc<Metrics>,
) -> std::io::Result<(LedgerWriterHandle, JoinHandle<Box<dyn Ledger>>)> {
    let (handle, receiver) = queue(durable);
    let mut writer = Writer { ledger, retention, shared: Arc::clone(&handle.shared), metrics };
    let thread = std::thread::Builder::new().name("ledger".into()).spawn(move || {
        if let Err(error) = writer.run(&receiver) {
            failure.report(error.into());
        }
        writer.ledger
    })?;
    Ok((handle, thread))
}

struct Writer {
    ledger: Box<dyn Ledger>,
    retention: Option<ManifestRetention>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
}

impl Writer {
    fn run(&mut self, entries: &Receiver<Entry>) -> Result<(), LedgerError> {
        while let Ok(first) = entries.recv() {
            let mut round = Vec::new();
            let mut manifest = None;
            for entry in std::iter::once(first).chain(entries.try_iter()) {
                match entry {
                    Entry::Epoch(record) => round.push(record),
                    Entry::Manifest(concluded) => manifest = Some(concluded),
                    Entry::Committed(sink) => self.ledger.committed(&sink)?,
                }
                if manifest.is_some() || round.len() == ROUND {
                    break;
                }
            }
            if let Some(last) = round.last() {
                crash::point("ledger.append.before");
                self.metrics.writes_ledger(true);
                self.ledger.append(&round)?;
                self.metrics.writes_ledger(false);
                crash::point("ledger.append.after");
                self.shared.publish(last.epoch);
            }
            if let Some(manifest) = manifest {
                self.conclude(*manifest)?;
            }
        }
        Ok(())
    }

    /// Records a manifest. Deletes the parts that only older manifests refer to, once those are durably removed.
    fn conclude(&mut self, manifest: Manifest) -> Result<(), LedgerError> {
        let Some(ManifestRetention { keep, manifests, checkpoint_writer }) = &mut self.retention else {
            return Ok(());
        };
        crash::point("ledger.conclude.before");
        self.ledger.conclude(&manifest, *keep)?;
        crash::point("ledger.conclude.after");
        let epoch = manifest.epoch;
        tracing::info!(%epoch, parts = manifest.parts.len(), bytes = manifest.bytes(), "checkpoint");
        self.metrics.checkpoint(epoch, manifest.wall_ms, manifest.bytes());
        self.shared.concluded.store(epoch.0, Ordering::Release);
        manifests.push(StoredManifest { epoch, manifest: Ok(manifest) });
        let epochs: Vec<_> = manifests.iter().map(|stored| stored.epoch).collect();
        if let Prune::Before(oldest) = prune(&epochs, *keep) {
            let kept = manifests.split_off(manifests.partition_point(|stored| stored.epoch < oldest));
            let dropped = std::mem::replace(manifests, kept);
            checkpoint_writer.delete(unreferenced(readable(&dropped), readable(manifests)));
        }
        Ok(())
    }
}

/// Returns a stream without data whose frontier stays at the first epoch of `control` that is not durable. On worker 0
/// of a run with a ledger, `durable` is the last durable epoch, and `control` has all epochs; without it, nothing is
/// held back.
pub fn durable<'scope>(
    control: ControlStream<'scope>,
    durable: Option<DurableEpoch>,
) -> StreamVec<'scope, Epoch, ()> {
    let scope = control.scope();
    control.unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(
        Pipeline,
        "Record",
        move |capability, info| {
            drop(capability);
            if let Some(DurableEpoch(shared)) = &durable {
                let activator = scope.worker().sync_activator_for(info.address.to_vec());
                *shared.activator.lock().expect("no thread panics while it holds the lock") = Some(activator);
            }
            let mut open = BTreeMap::new();
            move |(input, _), _output| {
                input.for_each(|stamp, data: &mut Vec<Control>| {
                    data.clear();
                    let epoch = *stamp.least().expect("control travels with a time");
                    if durable.is_some() {
                        open.entry(epoch).or_insert_with(|| stamp.delayed(&epoch, 0));
                    }
                });
                if let Some(DurableEpoch(shared)) = &durable {
                    open = open.split_off(&Epoch(shared.durable.load(Ordering::Acquire)).next());
                }
            }
        },
    )
}
