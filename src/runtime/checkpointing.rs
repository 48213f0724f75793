//! Checkpoints: operators capture state, which is stored as parts. When every sink has committed the epoch, a manifest is
//! written.
//!
//! ```text
//!   control ──┬─▶ mark ─▶ Deliver (each sink): commits its progress through F, if nothing else
//!             └─▶ Store ──▶ parts ──▶ Conclude (worker 0) ─▶ manifest F in the ledger
//!   records ────▶                       ▲
//!   frontier of all sinks ──────────────┘
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use headwater_dataflows::{ControlStream, Epoch, Record};
use headwater_sinks::{Changes, Shards};
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::Operator;

use super::checkpoint_writer::CheckpointWriterHandle;
use super::failure::Failure;
use super::ledger_writer::LedgerWriterHandle;
use crate::coordination::{self, Checkpoint, Manifest, Part};

/// The marked epochs, on worker 0, as manifests without parts.
pub type Marked = Rc<RefCell<VecDeque<Manifest>>>;

/// A message of a worker that its parts of a checkpoint are durable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredParts {
    shards: u64,
    parts: Vec<Part>,
}

/// Emits an empty change for each marked epoch, which makes a sink commit its progress through that epoch.
pub fn marks<'scope>(control: ControlStream<'scope>) -> StreamVec<'scope, Epoch, (Epoch, Changes)> {
    control.unary::<CapacityContainerBuilder<Vec<(Epoch, Changes)>>, _, _, _>(
        Pipeline,
        "Mark",
        |capability, _| {
            drop(capability);
            |input, output| {
                input.for_each(|stamp, data| {
                    let epoch = *stamp.least().expect("control travels with a time");
                    if data.drain(..).any(|control| control.checkpoint) {
                        output.session(&stamp).give((epoch, Changes::default()));
                    }
                });
            }
        },
    )
}

/// Puts captured records into the state store, and emits the parts of each epoch once they are durable.
pub fn store<'scope>(
    records: StreamVec<'scope, Epoch, Record>,
    control: ControlStream<'scope>,
    checkpoint_writer: CheckpointWriterHandle,
) -> StreamVec<'scope, Epoch, StoredParts> {
    let scope = records.scope();
    let worker = scope.index();
    let shards = Shards::of_workers(worker..worker + 1, scope.peers()).0;
    records.binary_frontier::<_, CapacityContainerBuilder<Vec<StoredParts>>, _, _, _, _>(
        control,
        Pipeline,
        Pipeline,
        "Store",
        move |capability, info| {
            drop(capability);
            checkpoint_writer.set_activator(worker, scope.worker().sync_activator_for(info.address.to_vec()));
            let mut marked = BTreeMap::new();
            // Epochs whose records have all been sent to the checkpoint writer.
            let mut put = BTreeMap::new();
            move |(records, captured), (control, _), output| {
                records.for_each(|stamp, data| {
                    let epoch = *stamp.least().expect("data travels with a time");
                    checkpoint_writer.buffer(worker, epoch, std::mem::take(data));
                });
                control.for_each(|stamp, data| {
                    let epoch = *stamp.least().expect("control travels with a time");
                    if data.drain(..).any(|control| control.checkpoint) {
                        marked.insert(epoch, stamp.delayed(&epoch, 0));
                    }
                });
                while let Some(first) = marked.first_entry().filter(|first| !captured.less_equal(first.key()))
                {
                    let (epoch, capability) = first.remove_entry();
                    checkpoint_writer.put(worker, epoch);
                    put.insert(epoch, capability);
                }
                for (epoch, parts) in checkpoint_writer.take(worker) {
                    let capability = put.remove(&epoch).expect("each epoch is put once");
                    output.session(&capability).give(StoredParts { shards, parts });
                }
            }
        },
    )
}

/// The state of worker 0 that writes manifests.
pub struct Concluder {
    /// The epochs that await their manifests.
    pub marked: Marked,
    /// The operators whose state is captured.
    pub operators: Vec<coordination::Operator>,
    /// The parts of the previous manifest, which the parts of the next one extend.
    pub before: Vec<Part>,
    /// Writes the manifests.
    pub ledger: LedgerWriterHandle,
    /// Receives failures.
    pub failure: Failure,
}

/// Writes the manifest of a marked epoch once all its parts and every sink's progress through it are durable. The
/// frontier of `committed` is that progress. Only worker 0 has a concluder.
pub fn conclude<'scope>(
    stored: StreamVec<'scope, Epoch, StoredParts>,
    committed: StreamVec<'scope, Epoch, ()>,
    mut concluder: Option<Concluder>,
) {
    let to_first = Exchange::new(|_: &StoredParts| 0);
    let mut checkpoints = BTreeMap::new();
    stored.binary_frontier::<_, CapacityContainerBuilder<Vec<()>>, _, _, _, _>(
        committed,
        to_first,
        Pipeline,
        "Conclude",
        move |capability, _| {
            drop(capability);
            move |(stored, _), (nothing, committed), _output| {
                nothing.for_each(|_, _| {});
                stored.for_each(|stamp, data| {
                    let epoch = *stamp.least().expect("data travels with a time");
                    let checkpoint = checkpoints.entry(epoch).or_insert_with(|| Checkpoint::of(epoch));
                    for StoredParts { shards, parts } in data.drain(..) {
                        if let (Err(error), Some(concluder)) =
                            (checkpoint.stored(Shards(shards), parts), &concluder)
                        {
                            concluder.failure.report(error.into());
                        }
                    }
                });
                let Some(concluder) = &mut concluder else { return };
                // Every sink commits its progress at a marked epoch, so the frontier is the durable progress.
                let sinks = match committed.frontier().first() {
                    Some(reached) => reached.0.checked_sub(1).map(Epoch),
                    None => Some(Epoch(u64::MAX)),
                };
                while let Some(first) =
                    checkpoints.first_entry().filter(|first| first.get().is_complete(&[sinks]))
                {
                    concluder.conclude(&first.remove());
                }
            }
        },
    );
}

impl Concluder {
    fn conclude(&mut self, checkpoint: &Checkpoint) {
        let marked = self.marked.borrow_mut().pop_front();
        let mut manifest = marked.expect("every stored epoch was marked");
        debug_assert_eq!(manifest.epoch, checkpoint.epoch());
        match checkpoint.parts_after(&self.before) {
            Ok(parts) => {
                self.before.clone_from(&parts);
                manifest.parts = parts;
                manifest.operators.clone_from(&self.operators);
                self.ledger.conclude(manifest);
            }
            Err(error) => self.failure.report(error.into()),
        }
    }
}
