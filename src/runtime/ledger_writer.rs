//! Recording: bound epochs become durable in the ledger before any sink may commit them; checkpoints are concluded there.

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

/// How many epochs one round may hold: what the queue has, but not for ever.
const ROUND: usize = 4096;

/// What is to be written.
enum Entry {
    Epoch(EpochRecord),
    Manifest(Box<Manifest>),
    /// A sink that has committed.
    Committed(String),
}

/// Worker 0's end of the thread that writes the ledger.
#[derive(Clone)]
pub struct LedgerWriterHandle {
    sender: Sender<Entry>,
    shared: Arc<Shared>,
}

struct Shared {
    /// The last epoch that is durable.
    durable: AtomicU64,
    /// The epoch of the newest manifest that was written; 0 if none was.
    concluded: AtomicU64,
    activator: Mutex<Option<SyncActivator>>,
}

impl LedgerWriterHandle {
    /// Gives an epoch to be recorded. A writer that has failed takes everything: the run is about to end.
    pub fn record(&self, record: EpochRecord) {
        let _ = self.sender.send(Entry::Epoch(record));
    }

    /// Gives a manifest to be recorded. Rounds through its epoch are durable already: sinks have committed them.
    pub fn conclude(&self, manifest: Manifest) {
        let _ = self.sender.send(Entry::Manifest(Box::new(manifest)));
    }

    /// Has it recorded that a sink has committed.
    pub fn committed(&self, sink: &str) {
        let _ = self.sender.send(Entry::Committed(sink.to_owned()));
    }

    /// The epoch of the newest manifest that was recorded since the start; 0 if none was.
    pub fn concluded(&self) -> Epoch {
        Epoch(self.shared.concluded.load(Ordering::Acquire))
    }

    /// What tells how far the ledger is.
    pub fn durable(&self) -> Durable {
        Durable(Arc::clone(&self.shared))
    }
}

/// Tells how far the ledger is.
pub struct Durable(Arc<Shared>);

/// What it takes to conclude checkpoints.
pub struct Concluding {
    /// How many a start can go back to.
    pub keep: usize,
    /// Those that the ledger has, in order.
    pub manifests: Vec<StoredManifest>,
    /// Deletes what they consisted of once they are gone.
    pub checkpoint_writer: CheckpointWriterHandle,
}

/// Starts the thread that writes the ledger, which has everything through `durable`. It ends when all handles are gone,
/// and gives the ledger back.
pub fn spawn(
    ledger: Box<dyn Ledger>,
    durable: Epoch,
    concluding: Option<Concluding>,
    failure: Failure,
    metrics: Arc<Metrics>,
) -> std::io::Result<(LedgerWriterHandle, JoinHandle<Box<dyn Ledger>>)> {
    let (sender, receiver) = channel();
    let shared = Arc::new(Shared {
        durable: AtomicU64::new(durable.0),
        concluded: AtomicU64::new(0),
        activator: Mutex::default(),
    });
    let handle = LedgerWriterHandle { sender, shared: Arc::clone(&shared) };
    let mut writer = Writer { ledger, concluding, shared, metrics };
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
    concluding: Option<Concluding>,
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
                self.shared.durable.store(last.epoch.0, Ordering::Release);
                if let Some(activator) = &*self.shared.activator.lock().expect("no holder of the lock panics")
                {
                    // A worker that has shut down needs no waking.
                    let _ = activator.activate();
                }
            }
            if let Some(manifest) = manifest {
                self.conclude(*manifest)?;
            }
        }
        Ok(())
    }

    /// Records a manifest; what only those before it needed is deleted once they are durably gone.
    fn conclude(&mut self, manifest: Manifest) -> Result<(), LedgerError> {
        let Some(Concluding { keep, manifests, checkpoint_writer }) = &mut self.concluding else {
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

/// A stream without data whose frontier is behind every epoch of `control` that is not durable. `control` comes from
/// worker 0 alone, which has `durable`; elsewhere, and without a ledger, nothing is held.
pub fn durable<'scope>(
    control: ControlStream<'scope>,
    durable: Option<Durable>,
) -> StreamVec<'scope, Epoch, ()> {
    let scope = control.scope();
    control.unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(
        Pipeline,
        "Record",
        move |capability, info| {
            drop(capability);
            if let Some(Durable(shared)) = &durable {
                let activator = scope.worker().sync_activator_for(info.address.to_vec());
                *shared.activator.lock().expect("no holder of the lock panics") = Some(activator);
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
                if let Some(Durable(shared)) = &durable {
                    open = open.split_off(&Epoch(shared.durable.load(Ordering::Acquire)).next());
                }
            }
        },
    )
}
