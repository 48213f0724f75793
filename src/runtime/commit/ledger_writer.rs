//! The ledger writer: makes bound epochs durable in the ledger before any sink may commit them, and records manifests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use headwater_dataflows::Epoch;
use headwater_sinks::crash;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;

use crate::coordination::{EpochRecord, Manifest, Prune, prune, unreferenced, unreferenced_lists};
use crate::ledger::{Ledger, LedgerError, StoredManifest, readable};
use crate::metrics::Metrics;
use crate::rounds::{Step, Transaction};
use crate::runtime::background::{self, Waiters};
use crate::runtime::checkpoint::writer::CheckpointWriterHandle;
use crate::runtime::failure::Failure;

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
    /// A call once all epochs before it are durable.
    Durable(Callback),
}

/// A function that is called once. No two are equal.
pub struct Callback(Box<dyn FnOnce() + Send>);

impl Callback {
    /// Calls the function.
    pub fn call(self) {
        (self.0)();
    }
}

impl PartialEq for Callback {
    fn eq(&self, _: &Callback) -> bool {
        false
    }
}

impl std::fmt::Debug for Callback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Callback")
    }
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
    /// The operator that waits for durable epochs.
    waiters: Waiters,
}

impl LedgerWriterHandle {
    /// Queues an epoch to be recorded. After a failure the writer discards it: the run is about to end.
    pub fn record(&self, record: EpochRecord) {
        let _ = self.sender.send(Entry::Epoch(record));
    }

    /// Queues a call once all epochs that are queued are durable. It is never called if they do not become so.
    pub fn when_durable(&self, call: Box<dyn FnOnce() + Send>) {
        let _ = self.sender.send(Entry::Durable(Callback(call)));
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
        self.waiters.wake();
    }
}

/// Creates the handle of the writer of a ledger that ends at epoch `durable`, and the writer's queue.
fn queue(durable: Epoch) -> (LedgerWriterHandle, Receiver<Entry>) {
    let (sender, receiver) = channel();
    let shared = Arc::new(Shared {
        durable: AtomicU64::new(durable.0),
        concluded: AtomicU64::new(0),
        waiters: Waiters::default(),
    });
    (LedgerWriterHandle { sender, shared }, receiver)
}

/// The data that recording manifests needs.
pub struct ManifestRetention {
    /// The number of manifests to keep.
    pub keep: usize,
    /// The manifests in the ledger, in order.
    pub manifests: Vec<StoredManifest>,
    /// The contents of lists and the pasts of rules that recorded epochs let come into force, from the oldest kept manifest on, in order.
    pub recorded_contents: Vec<(Epoch, Vec<[u8; 32]>)>,
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
    let thread = background::spawn("ledger".into(), failure, move || {
        let result = writer.run(&receiver);
        (writer.ledger, result.map_err(Into::into))
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
            let (mut manifest, mut calls) = (None, Vec::new());
            for entry in std::iter::once(first).chain(entries.try_iter()) {
                match entry {
                    Entry::Epoch(record) => round.push(record),
                    Entry::Manifest(concluded) => manifest = Some(concluded),
                    Entry::Committed(sink) => self.ledger.committed(&sink)?,
                    Entry::Durable(call) => calls.push(call),
                }
                if manifest.is_some() || round.len() == ROUND {
                    break;
                }
            }
            if let Some(last) = round.last() {
                crash::point("ledger.append.before");
                self.metrics.writes_ledger(true);
                let begun = Instant::now();
                self.ledger.append(&round)?;
                self.metrics.writes_ledger(false);
                if let Some(rounds) = self.metrics.rounds() {
                    let step = Step { begun, ended: Instant::now() };
                    rounds.appended(Transaction { first: round[0].epoch, last: last.epoch, step });
                }
                crash::point("ledger.append.after");
                self.note_contents(&round);
                self.shared.publish(last.epoch);
            }
            calls.into_iter().for_each(Callback::call);
            if let Some(manifest) = manifest {
                self.conclude(*manifest)?;
            }
        }
        Ok(())
    }

    /// Notes the contents that recorded epochs refer to.
    fn note_contents(&mut self, round: &[EpochRecord]) {
        let Some(ManifestRetention { recorded_contents, checkpoint_writer, .. }) = &mut self.retention else {
            return;
        };
        for EpochRecord { epoch, change, .. } in round {
            let hashes: Vec<_> = change.hashes().collect();
            if hashes.is_empty() {
                continue;
            }
            recorded_contents.push((*epoch, hashes.clone()));
            checkpoint_writer.recorded_contents(hashes);
        }
    }

    /// Records a manifest. Deletes the parts that only older manifests refer to, once those are durably removed.
    fn conclude(&mut self, manifest: Manifest) -> Result<(), LedgerError> {
        let Some(ManifestRetention { keep, manifests, recorded_contents, checkpoint_writer }) =
            &mut self.retention
        else {
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
            // No start replays the epoch of the oldest manifest, nor one before.
            let pruned = recorded_contents.partition_point(|(epoch, _)| *epoch <= oldest);
            let pruned: Vec<_> = recorded_contents.drain(..pruned).flat_map(|(_, hashes)| hashes).collect();
            let unused = unreferenced_lists(
                (readable(&dropped), &pruned),
                (readable(manifests), recorded_contents.iter().flat_map(|(_, hashes)| hashes)),
            );
            if !unused.is_empty() {
                checkpoint_writer.delete_contents(unused);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl LedgerWriterHandle {
    /// Creates a handle without a writer: a test receives the entries, and says what is durable.
    pub fn detached(durable: Epoch) -> (LedgerWriterHandle, Receiver<Entry>) {
        queue(durable)
    }

    /// Sets the last durable epoch.
    pub fn set_durable(&self, durable: Epoch) {
        self.shared.publish(durable);
    }
}

/// Returns a stream without data whose frontier stays at the first epoch of `notices` that is not durable. On worker 0
/// of a run with a ledger, `durable` is the last durable epoch, and `notices` has all epochs; without it, nothing is
/// held back.
pub fn durable<'scope, D: Clone + 'static>(
    notices: StreamVec<'scope, Epoch, D>,
    durable: Option<DurableEpoch>,
) -> StreamVec<'scope, Epoch, ()> {
    let scope = notices.scope();
    notices.unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(
        Pipeline,
        "Record",
        move |capability, info| {
            drop(capability);
            if let Some(DurableEpoch(shared)) = &durable {
                shared.waiters.add(scope.worker().sync_activator_for(info.address.to_vec()));
            }
            let mut open = BTreeMap::new();
            move |(input, _), _output| {
                input.for_each(|stamp, data: &mut Vec<D>| {
                    data.clear();
                    let epoch = *stamp.least().expect("a notice travels with a time");
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use headwater_dataflows::{Clock, EventTime, Since};
    use timely::dataflow::operators::Probe as _;
    use timely::dataflow::operators::probe::Handle as Probe;
    use timely::dataflow::operators::vec::Map;

    use super::*;
    use crate::coordination::PartKind::{Base, Delta};
    use crate::coordination::{Change, InForce, ListVersion, Versions};
    use crate::runtime::checkpoint::writer::Command;
    use crate::runtime::fakes::{
        Calls, FakeLedger, manifest, part, part_name, record, settle, wait_until, worker,
    };
    use crate::runtime::ingest::changes::Notice;
    use crate::runtime::ingest::clock::committed;

    /// A writer, driven without its thread.
    struct Fixture {
        calls: Calls,
        writer: Writer,
        handle: LedgerWriterHandle,
        entries: Receiver<Entry>,
        deleted: Receiver<Command>,
    }

    /// Returns a writer of a ledger that ends at epoch 3 and keeps the two newest of its manifests.
    fn fixture(manifests: Vec<Manifest>) -> Fixture {
        let calls = Calls::default();
        let (handle, entries) = queue(Epoch(3));
        let (checkpoint_writer, deleted) = CheckpointWriterHandle::detached(0..1);
        let stored = |manifest: Manifest| StoredManifest { epoch: manifest.epoch, manifest: Ok(manifest) };
        let manifests = manifests.into_iter().map(stored).collect();
        let writer = Writer {
            ledger: Box::new(FakeLedger(calls.clone())),
            retention: Some(ManifestRetention {
                keep: 2,
                manifests,
                recorded_contents: Vec::new(),
                checkpoint_writer,
            }),
            shared: Arc::clone(&handle.shared),
            metrics: Arc::default(),
        };
        Fixture { calls, writer, handle, entries, deleted }
    }

    impl Fixture {
        /// Writes what is queued, as if all handles were dropped then.
        fn run(&mut self) -> Result<(), LedgerError> {
            let (other, _) = queue(Epoch(0));
            let handle = std::mem::replace(&mut self.handle, other);
            self.handle.shared = Arc::clone(&handle.shared);
            drop(handle);
            self.writer.run(&self.entries)
        }

        fn durable(&self) -> u64 {
            self.handle.shared.durable.load(Ordering::Acquire)
        }
    }

    #[test]
    fn queued_epochs_are_durable_after_one_transaction() {
        let mut fixture = fixture(Vec::new());
        (4..=6).for_each(|epoch| fixture.handle.record(record(epoch, 10)));
        assert_eq!(fixture.durable(), 3);
        fixture.run().expect("written");
        assert_eq!((fixture.calls.take(), fixture.durable()), (vec!["append 4 to 6: 3".to_owned()], 6));
    }

    #[test]
    fn a_transaction_has_a_bounded_number_of_epochs() {
        let mut fixture = fixture(Vec::new());
        let last = 3 + ROUND as u64 + 2;
        (4..=last).for_each(|epoch| fixture.handle.record(record(epoch, 10)));
        fixture.run().expect("written");
        assert_eq!(fixture.calls.take(), ["append 4 to 4099: 4096", "append 4100 to 4101: 2"]);
    }

    #[test]
    fn a_manifest_follows_the_epochs_that_were_queued_before() {
        let mut fixture = fixture(Vec::new());
        fixture.handle.record(record(4, 10));
        fixture.handle.conclude(manifest(4, Vec::new()));
        fixture.handle.record(record(5, 11));
        fixture.handle.committed("sqlite");
        fixture.run().expect("written");
        let expected = ["append [4]", "conclude 4, keep 2", "committed sqlite", "append [5]"];
        assert_eq!(fixture.calls.take(), expected);
        assert_eq!(fixture.handle.concluded(), Epoch(4));
    }

    #[test]
    fn epochs_of_a_failed_append_are_not_durable() {
        let mut fixture = fixture(Vec::new());
        fixture.handle.record(record(4, 10));
        fixture.handle.conclude(manifest(4, Vec::new()));
        fixture.calls.fail("append");
        let failed = fixture.run();
        assert!(matches!(failed, Err(LedgerError::Unavailable { .. })), "{failed:?}");
        assert_eq!((fixture.calls.take(), fixture.durable()), (vec![], 3), "no manifest is written either");
    }

    #[test]
    fn a_failure_is_reported_and_the_ledger_returned() {
        let (calls, failure) = (Calls::default(), Failure::default());
        calls.fail("append");
        let ledger = Box::new(FakeLedger(calls));
        let (handle, thread) =
            spawn(ledger, Epoch(0), None, failure.clone(), Arc::default()).expect("a thread");
        handle.record(record(1, 10));
        wait_until(|| failure.is_some());
        handle.record(record(2, 11));
        drop(handle);
        thread.join().expect("no panic");
    }

    #[test]
    fn parts_are_deleted_only_when_no_kept_manifest_has_them() {
        let base = part(1, 7, Base);
        let manifests = vec![
            manifest(1, vec![base.clone(), part(1, 8, Base)]),
            manifest(2, vec![base.clone(), part(2, 7, Delta), part(2, 8, Base)]),
        ];
        let mut fixture = fixture(manifests);
        fixture.handle.conclude(manifest(4, vec![part(4, 7, Base), part(2, 8, Base)]));
        fixture.handle.conclude(manifest(5, vec![part(4, 7, Base), part(5, 8, Base)]));
        fixture.run().expect("written");
        let first = BTreeSet::from([part_name(1, 8, Base)]);
        let second = BTreeSet::from([part_name(1, 7, Base), part_name(2, 7, Delta)]);
        let deleted: Vec<_> = fixture.deleted.try_iter().collect();
        assert_eq!(deleted, [Command::Delete(first), Command::Delete(second)]);
    }

    fn list_change(hash: u8) -> Change {
        let list = ListVersion { name: "blocked".into(), hash: [hash; 32], bytes: 1 };
        Change { rules: None, lists: vec![list], pasts: None }
    }

    /// Returns a manifest without parts, with contents of a list in force.
    fn manifest_with(epoch: u64, hash: u8) -> Manifest {
        let since = Since { epoch: Epoch(0), ends: Vec::new(), last_time: EventTime::MIN };
        let in_force = Versions::of(vec![InForce { since, change: list_change(hash) }]);
        Manifest { in_force, ..manifest(epoch, Vec::new()) }
    }

    #[test]
    fn contents_are_deleted_when_no_manifest_or_epoch_has_them() {
        let mut fixture = fixture(vec![manifest_with(1, 7), manifest_with(2, 7)]);
        let changed = |epoch, hash| EpochRecord { change: list_change(hash), ..record(epoch, 10) };
        fixture.handle.record(changed(4, 8));
        fixture.handle.record(changed(5, 7));
        fixture.handle.conclude(manifest_with(6, 7));
        fixture.handle.conclude(manifest_with(7, 7));
        fixture.handle.record(changed(8, 9));
        fixture.handle.conclude(manifest_with(9, 9));
        fixture.handle.conclude(manifest_with(10, 9));
        fixture.run().expect("written");
        let of_lists: Vec<_> =
            fixture.deleted.try_iter().filter(|command| !matches!(command, Command::Delete(_))).collect();
        let hashes = |hash: u8| [[hash; 32]];
        let expected = [
            Command::Recorded(hashes(8).to_vec()),
            Command::Recorded(hashes(7).to_vec()),
            // The manifests of epochs 6 and 7 are kept, so that nothing goes back to epoch 4.
            Command::DeleteContents(hashes(8).into()),
            Command::Recorded(hashes(9).to_vec()),
            Command::DeleteContents(hashes(7).into()),
        ];
        assert_eq!(of_lists, expected);
    }

    #[test]
    fn no_part_is_deleted_before_its_manifest_is_dropped() {
        let mut fixture = fixture(vec![manifest(1, vec![part(1, 7, Base)]), manifest(2, Vec::new())]);
        fixture.calls.fail("conclude");
        fixture.handle.conclude(manifest(4, Vec::new()));
        fixture.run().expect_err("the ledger fails");
        assert_eq!(fixture.deleted.try_iter().count(), 0);
        assert_eq!(fixture.handle.concluded(), Epoch(0));
    }

    /// Runs the operator over epochs 1 to 5; returns the last epoch that its frontier has passed after each of these
    /// epochs has become durable.
    fn passed(ledger: bool, durable_epochs: &[u64]) -> Vec<Option<u64>> {
        let mut worker = worker();
        let (handle, _entries) = queue(Epoch(1));
        let behind = Probe::new();
        let mut clock = worker.dataflow(|scope| {
            let (clock, control) = Clock::new(scope);
            let notices = control.map(|control| Notice { control, change: None });
            durable(notices, ledger.then(|| handle.durable())).probe_with(&behind);
            clock
        });
        clock.advance_to(Epoch(1));
        (1..=5).for_each(|epoch| clock.end_epoch(EventTime(epoch)));
        let mut last = Vec::new();
        for &epoch in durable_epochs {
            handle.set_durable(Epoch(epoch));
            settle(&mut worker);
            last.push((0..=9).rev().find(|&epoch| committed(&behind, Epoch(epoch))));
        }
        last
    }

    #[test]
    fn the_frontier_stays_at_the_first_epoch_not_durable() {
        assert_eq!(passed(true, &[1, 3, 5]), [Some(1), Some(3), Some(5)]);
    }

    #[test]
    fn without_a_ledger_no_epoch_is_held_back() {
        assert_eq!(passed(false, &[1]), [Some(5)]);
    }
}
