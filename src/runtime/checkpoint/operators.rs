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

use crate::coordination::{self, Checkpoint, Manifest, Part};
use crate::runtime::checkpoint::writer::CheckpointWriterHandle;
use crate::runtime::commit::ledger_writer::LedgerWriterHandle;
use crate::runtime::failure::Failure;

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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use headwater_dataflows::{Clock, EventTime};
    use timely::dataflow::operators::probe::{Handle as Probe, Probe as _};
    use timely::dataflow::operators::vec::Input;
    use timely::dataflow::operators::vec::input::Handle;
    use timely::worker::Worker;

    use super::*;
    use crate::coordination::PartKind::{Base, Delta};
    use crate::runtime::checkpoint::writer::Command;
    use crate::runtime::commit::ledger_writer::Entry;
    use crate::runtime::fakes::{Collected, captured, collect, manifest, part, settle, worker};
    use crate::runtime::ingest::clock::committed;

    #[test]
    fn only_marked_epochs_make_a_sink_commit_its_progress() {
        let mut worker = worker();
        let (mut clock, found) = worker.dataflow(|scope| {
            let (clock, control) = Clock::new(scope);
            (clock, collect(marks(control)).1)
        });
        clock.end_epoch(EventTime(1));
        clock.checkpoint(EventTime(2));
        clock.end_epoch(EventTime(3));
        settle(&mut worker);
        assert_eq!(found.take(), [(Epoch(1), (Epoch(1), Changes::default()))]);
    }

    /// The operator that stores parts, with a writer that the test plays.
    struct StoreFixture {
        worker: Worker,
        records: Handle<Epoch, Record>,
        clock: Clock,
        writer: CheckpointWriterHandle,
        commands: Receiver<Command>,
        stored: Collected<StoredParts>,
        behind: Probe<Epoch>,
    }

    fn stores() -> StoreFixture {
        let mut worker = worker();
        let (writer, commands) = CheckpointWriterHandle::detached(0..1);
        let behind = Probe::new();
        let (records, clock, stored) = worker.dataflow(|scope| {
            let (records, stream) = scope.new_input();
            let (clock, control) = Clock::new(scope);
            let (parts, stored) = collect(store(stream, control, writer.clone()));
            parts.probe_with(&behind);
            (records, clock, stored)
        });
        StoreFixture { worker, records, clock, writer, commands, stored, behind }
    }

    impl StoreFixture {
        fn commands(&mut self) -> Vec<Command> {
            settle(&mut self.worker);
            self.commands.try_iter().collect()
        }
    }

    #[test]
    fn parts_are_put_once_all_records_of_the_epoch_are_captured() {
        let mut stores = stores();
        let (before, record) = (captured(5, "ann", Some("1")), captured(6, "bob", Some("1")));
        stores.records.send(before.clone());
        stores.clock.checkpoint(EventTime(1));
        stores.records.send(record.clone());
        stores.records.flush();
        let records = vec![before, record];
        assert_eq!(stores.commands(), [Command::Buffer { worker: 0, epoch: Epoch(0), records }]);
        stores.records.advance_to(Epoch(1));
        assert_eq!(stores.commands(), [Command::PutParts { worker: 0, epoch: Epoch(0) }]);
    }

    #[test]
    fn an_epoch_that_is_not_marked_has_no_parts() {
        let mut stores = stores();
        stores.clock.end_epoch(EventTime(1));
        stores.records.advance_to(Epoch(1));
        assert_eq!(stores.commands(), []);
        assert!(committed(&stores.behind, Epoch(0)), "it is not held open");
    }

    #[test]
    fn a_marked_epoch_stays_open_until_its_parts_are_durable() {
        let mut stores = stores();
        stores.clock.checkpoint(EventTime(1));
        stores.records.advance_to(Epoch(3));
        stores.clock.advance_to(Epoch(3));
        stores.commands();
        assert!(!committed(&stores.behind, Epoch(0)) && stores.stored.borrow().is_empty());
        let parts = vec![part(0, 5, Base)];
        stores.writer.add_parts(0, Epoch(0), parts.clone());
        settle(&mut stores.worker);
        let [(Epoch(0), stored)] = &stores.stored.take()[..] else { panic!("the parts of epoch 0") };
        assert_eq!((stored.shards, &stored.parts), (Shards::ALL.0, &parts), "this worker has all shards");
        assert!(committed(&stores.behind, Epoch(2)));
    }

    /// The operator that writes manifests, with a ledger that the test reads.
    struct ConcludeFixture {
        worker: Worker,
        stored: Handle<Epoch, StoredParts>,
        committed: Handle<Epoch, ()>,
        marked: Marked,
        entries: Receiver<Entry>,
        failure: Failure,
    }

    fn concludes(before: Vec<Part>) -> ConcludeFixture {
        let mut worker = worker();
        let (ledger, entries) = LedgerWriterHandle::detached(Epoch(0));
        let (marked, failure) = (Marked::default(), Failure::default());
        let operators = vec![coordination::Operator { name: "Admit".to_owned(), version: 1 }];
        let concluder =
            Concluder { marked: Rc::clone(&marked), operators, before, ledger, failure: failure.clone() };
        let (stored, committed) = worker.dataflow(|scope| {
            let (stored, stream) = scope.new_input();
            let (committed, frontier) = scope.new_input();
            conclude(stream, frontier, Some(concluder));
            (stored, committed)
        });
        ConcludeFixture { worker, stored, committed, marked, entries, failure }
    }

    const LOW: Shards = Shards(u64::MAX >> 32);
    const HIGH: Shards = Shards(!LOW.0);

    impl ConcludeFixture {
        /// Marks the current epoch.
        fn mark(&mut self, epoch: u64) {
            self.marked.borrow_mut().push_back(manifest(epoch, Vec::new()));
            self.stored.advance_to(Epoch(epoch));
        }

        fn store(&mut self, Shards(shards): Shards, parts: Vec<Part>) {
            self.stored.send(StoredParts { shards, parts });
            self.stored.flush();
        }

        /// Returns the manifests that are written, each with its epoch and parts.
        fn concluded(&mut self) -> Vec<(u64, Vec<Part>)> {
            settle(&mut self.worker);
            let manifests = self.entries.try_iter().map(|entry| match entry {
                Entry::Manifest(manifest) => {
                    assert_eq!(manifest.operators.len(), 1, "the operators that captured it");
                    (manifest.epoch.0, manifest.parts)
                }
                other => panic!("{other:?}"),
            });
            manifests.collect()
        }
    }

    #[test]
    fn a_manifest_needs_the_parts_of_all_shards_and_all_sinks() {
        let mut concludes = concludes(Vec::new());
        concludes.mark(4);
        concludes.committed.advance_to(Epoch(9));
        concludes.store(LOW, vec![part(4, 5, Base)]);
        assert_eq!(concludes.concluded(), [], "another worker has the other shards");
        concludes.store(HIGH, vec![part(4, 40, Base)]);
        assert_eq!(concludes.concluded(), [(4, vec![part(4, 5, Base), part(4, 40, Base)])]);

        concludes.mark(9);
        concludes.store(Shards::ALL, Vec::new());
        assert_eq!(concludes.concluded(), [], "some sink has not committed epoch 9");
        concludes.committed.advance_to(Epoch(10));
        let unchanged = vec![part(4, 5, Base), part(4, 40, Base)];
        assert_eq!(concludes.concluded(), [(9, unchanged)], "the state has not changed");
    }

    #[test]
    fn deltas_follow_the_parts_of_the_manifest_before() {
        let mut concludes = concludes(vec![part(1, 5, Base), part(1, 6, Base)]);
        concludes.committed.advance_to(Epoch(99));
        concludes.mark(4);
        concludes.store(Shards::ALL, vec![part(4, 5, Delta)]);
        let first = vec![part(1, 5, Base), part(4, 5, Delta), part(1, 6, Base)];
        assert_eq!(concludes.concluded(), [(4, first)]);
        concludes.mark(7);
        concludes.store(Shards::ALL, vec![part(7, 5, Delta), part(7, 6, Base)]);
        let second = vec![part(1, 5, Base), part(4, 5, Delta), part(7, 5, Delta), part(7, 6, Base)];
        assert_eq!(concludes.concluded(), [(7, second)]);
    }

    #[test]
    fn the_last_manifest_is_written_when_all_sinks_have_ended() {
        let mut concludes = concludes(Vec::new());
        concludes.mark(4);
        concludes.store(Shards::ALL, Vec::new());
        assert_eq!(concludes.concluded(), []);
        std::mem::replace(&mut concludes.committed, Handle::new()).close();
        assert_eq!(concludes.concluded(), [(4, vec![])]);
    }

    #[test]
    fn contradicting_parts_end_the_run_without_a_manifest() {
        for parts in [vec![part(4, 5, Delta)], vec![part(3, 5, Base)]] {
            let mut concludes = concludes(Vec::new());
            concludes.committed.advance_to(Epoch(9));
            concludes.mark(4);
            concludes.store(Shards::ALL, parts);
            assert_eq!(concludes.concluded(), []);
            assert!(concludes.failure.is_some(), "a delta without a base, or a part of another epoch");
        }
    }
}
