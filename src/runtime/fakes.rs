//! Fakes of the contracts that a run depends on: a ledger and a state store that record their calls and fail on request,
//! a sink that refuses outputs, and a worker that the test steps.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, EventTime, Offset, Partition, Record, ShardId};
use headwater_sinks::memory::MemorySink;
use headwater_sinks::{
    Cell, Changes, CommitError, CommitPermit, Generation, LedgerId, OpenError, Progress, Shards, Sink,
    StageError, WriterContext, tables,
};
use timely::WorkerConfig;
use timely::communication::Allocator;
use timely::communication::allocator::thread::Thread;
use timely::dataflow::StreamVec;
use timely::dataflow::operators::Inspect;
use timely::worker::Worker;

use crate::coordination::ingest::TimeRules;
use crate::coordination::{
    Binding, Change, EpochRecord, Loss, Manifest, Part, PartKind, PartName, Skip, Takeovers, Versions,
};
use crate::ledger::{Claim, Genesis, Ledger, LedgerError, StoredManifest};
use crate::runtime::recovery::origin::Origin;
use crate::state::{StateError, StateStore};

/// The calls that fakes have received, in order.
#[derive(Clone, Default)]
pub struct Calls(Arc<Mutex<CallLog>>);

#[derive(Default)]
struct CallLog {
    calls: Vec<String>,
    failing: Option<String>,
}

impl Calls {
    fn log(&self) -> MutexGuard<'_, CallLog> {
        self.0.lock().expect("no holder of the lock panics")
    }

    /// Takes the calls since the last call of this function.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.log().calls)
    }

    /// Makes calls that begin with this text fail from now on.
    pub fn fail(&self, call: &str) {
        self.log().failing = Some(call.to_owned());
    }

    /// Records a call, unless it fails.
    fn record(&self, call: String) -> Result<(), String> {
        let mut log = self.log();
        match &log.failing {
            Some(failing) if call.starts_with(failing) => Err(call),
            _ => {
                log.calls.push(call);
                Ok(())
            }
        }
    }
}

/// A ledger that records appended epochs, manifests and committed sinks, and offers nothing else.
pub struct FakeLedger(pub Calls);

impl FakeLedger {
    fn record(&self, call: String) -> Result<(), LedgerError> {
        let failed = |action: String| LedgerError::Unavailable { action, source: "by the test".into() };
        self.0.record(call).map_err(failed)
    }
}

fn unused<T>() -> T {
    panic!("no test needs this call")
}

impl Ledger for FakeLedger {
    fn append(&mut self, epochs: &[EpochRecord]) -> Result<(), LedgerError> {
        let epochs: Vec<_> = epochs.iter().map(|record| record.epoch.0).collect();
        let call = match epochs[..] {
            [first, .., last] => format!("append {first} to {last}: {}", epochs.len()),
            _ => format!("append {epochs:?}"),
        };
        self.record(call)
    }
    fn conclude(&mut self, manifest: &Manifest, keep: usize) -> Result<(), LedgerError> {
        self.record(format!("conclude {}, keep {keep}", manifest.epoch))
    }
    fn committed(&mut self, sink: &str) -> Result<(), LedgerError> {
        self.record(format!("committed {sink}"))
    }
    fn claim(&mut self) -> Result<Claim, LedgerError> {
        unused()
    }
    fn register_processes(&mut self, _: usize) -> Result<usize, LedgerError> {
        unused()
    }
    fn skip(&mut self, _: &Skip) -> Result<(), LedgerError> {
        unused()
    }
    fn skips(&mut self) -> Result<Vec<Skip>, LedgerError> {
        unused()
    }
    fn lose(&mut self, _: &Loss) -> Result<(), LedgerError> {
        unused()
    }
    fn losses(&mut self) -> Result<Vec<Loss>, LedgerError> {
        unused()
    }
    fn committed_sinks(&mut self) -> Result<Vec<String>, LedgerError> {
        unused()
    }
    fn attempt(&mut self, _: Epoch) -> Result<u64, LedgerError> {
        unused()
    }
    fn attempts(&mut self, _: Epoch) -> Result<u64, LedgerError> {
        unused()
    }
    fn ended(&mut self) -> Result<(), LedgerError> {
        unused()
    }
    fn put_takeovers(&mut self, _: Takeovers) -> Result<(), LedgerError> {
        unused()
    }
    fn takeovers(&mut self) -> Result<Option<Takeovers>, LedgerError> {
        unused()
    }
    fn begin(&mut self, _: &Genesis) -> Result<(), LedgerError> {
        unused()
    }
    fn peek(&mut self) -> Result<Option<Claim>, LedgerError> {
        unused()
    }
    fn epochs(&mut self, _: Epoch) -> Result<Vec<EpochRecord>, LedgerError> {
        unused()
    }
    fn pruned(&mut self) -> Result<Epoch, LedgerError> {
        unused()
    }
    fn manifests(&mut self) -> Result<Vec<StoredManifest>, LedgerError> {
        unused()
    }
    fn amend(&mut self, _: &str, _: Option<&Manifest>) -> Result<(), LedgerError> {
        unused()
    }
}

/// A state store in memory.
#[derive(Clone, Default)]
pub struct FakeStore {
    /// The calls that change the store.
    pub calls: Calls,
    /// The blobs, by name.
    pub blobs: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl FakeStore {
    fn record(&self, call: String) -> Result<(), StateError> {
        let failed = |action: String| StateError::Unavailable { action, source: "by the test".into() };
        self.calls.record(call).map_err(failed)
    }

    fn blobs(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.blobs.lock().expect("no holder of the lock panics")
    }
}

impl StateStore for FakeStore {
    fn put(&mut self, name: &str, blob: &[u8]) -> Result<(), StateError> {
        self.record(format!("put {name}"))?;
        self.blobs().insert(name.to_owned(), blob.to_vec());
        Ok(())
    }
    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.blobs().get(name).cloned())
    }
    fn delete(&mut self, name: &str) -> Result<(), StateError> {
        self.record(format!("delete {name}"))?;
        self.blobs().remove(name);
        Ok(())
    }
    fn list(&mut self, prefix: &str) -> Result<Vec<String>, StateError> {
        Ok(self.blobs().keys().filter(|name| name.starts_with(prefix)).cloned().collect())
    }
    fn sync(&mut self) -> Result<(), StateError> {
        self.record("sync".to_owned())
    }
}

/// A sink in memory that refuses to stage or to commit outputs. It panics if a refused commit is retried.
pub struct RefusingSink {
    /// The sink behind it.
    pub inner: MemorySink,
    /// True if staging is refused, false if the commit is.
    pub refuses_stage: bool,
    /// True once it has refused a commit.
    pub has_refused: bool,
}

impl Sink for RefusingSink {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn open(&mut self, context: &WriterContext) -> Result<Vec<Progress>, OpenError> {
        self.inner.open(context)
    }
    fn peek_progress(&mut self, pipeline: &str) -> Result<Vec<Progress>, OpenError> {
        self.inner.peek_progress(pipeline)
    }
    fn stage(&mut self, epoch: Epoch, changes: Changes) -> Result<(), StageError> {
        if self.refuses_stage {
            return Err(StageError { sink: self.name().to_owned(), epoch, reason: "by the test".into() });
        }
        self.inner.stage(epoch, changes)
    }
    fn commit(&mut self, permit: CommitPermit) -> Result<(), CommitError> {
        assert!(!std::mem::replace(&mut self.has_refused, true), "a refused commit is retried");
        let (sink, through) = (self.name().to_owned(), permit.through());
        Err(CommitError::Refused { sink, through, reason: "by the test".into() })
    }
}

/// Returns the identity of a writer of generation 1.
pub fn context() -> WriterContext {
    WriterContext {
        pipeline: "fraud".to_owned(),
        ledger_id: LedgerId("a".to_owned()),
        generation: Generation(1),
        process: 0,
        shards: Shards::ALL,
        max_processes: 1,
        adopt: None,
    }
}

/// Returns changes with a row for each of these offsets of partition 3.
pub fn rows(offsets: impl IntoIterator<Item = i64>) -> Changes {
    let mut changes = Changes::default();
    for offset in offsets {
        changes.rows.row(tables::EVENTS).cell(Cell::Int(3)).cell(Cell::Int(offset)).end();
    }
    changes
}

/// Returns a binding of partition 0 that ends at an offset, with an event of that time.
pub fn binding(end: i64) -> Binding {
    Binding {
        partition: Partition(0),
        end: Offset(end),
        timestamp: Some(end),
        max_event_time: Some(EventTime(end)),
        pushing_time: Some(EventTime(end)),
        candidate: None,
        idle: false,
    }
}

/// Returns the record of an epoch that reads through an offset.
pub fn record(epoch: u64, end: i64) -> EpochRecord {
    let bindings = vec![binding(end)];
    let (rules, change) = (TimeRules::default(), Change::default());
    EpochRecord { epoch: Epoch(epoch), wall_ms: 0, bindings, closes: false, rules, change }
}

/// Returns the name of a part of generation 1.
pub fn part_name(epoch: u64, shard: u32, kind: PartKind) -> PartName {
    let (ledger_id, generation) = (LedgerId("a".to_owned()), Generation(1));
    PartName { ledger_id, generation, epoch: Epoch(epoch), shard: ShardId(shard), kind }
}

/// Returns a part of 100 bytes.
pub fn part(epoch: u64, shard: u32, kind: PartKind) -> Part {
    Part { name: part_name(epoch, shard, kind), hash: [0; 32], bytes: 100 }
}

/// Returns a manifest with these parts.
pub fn manifest(epoch: u64, parts: Vec<Part>) -> Manifest {
    Manifest {
        epoch: Epoch(epoch),
        generation: Generation(1),
        wall_ms: 0,
        watermark: EventTime::MIN,
        positions: Vec::new(),
        unfinal: Vec::new(),
        all_idle: None,
        in_force: Versions::default(),
        operators: Vec::new(),
        keys: None,
        parts,
    }
}

/// Returns the origin of a run that resumes from a checkpoint and replays epochs.
pub fn origin(manifest: Option<Manifest>, replay: Vec<EpochRecord>) -> Arc<Origin> {
    let mut origin = Origin::unrecorded(0);
    (origin.manifest, origin.replay) = (manifest, replay);
    Arc::new(origin)
}

/// Returns a captured record; without a value the state of the key is removed.
pub fn captured(shard: u32, key: &str, value: Option<&str>) -> Record {
    let (operator, shard) = ("Rules".into(), ShardId(shard));
    Record {
        operator,
        shard,
        key: key.as_bytes().to_vec(),
        value: value.map(|value| value.as_bytes().to_vec()),
    }
}

/// Returns a worker that the test steps. It has no timer: delayed activations take effect in the next step.
pub fn worker() -> Worker {
    Worker::new(WorkerConfig::default(), Allocator::Thread(Thread::default()), None)
}

/// Steps a worker until messages and frontiers have arrived everywhere.
pub fn settle(worker: &mut Worker) {
    for _ in 0..20 {
        worker.step();
    }
}

/// The data of a stream that the test has not taken yet, with their times.
pub type Collected<D> = Rc<RefCell<Vec<(Epoch, D)>>>;

/// Returns the stream, and collects its data.
pub fn collect<'scope, D: Clone + 'static>(
    stream: StreamVec<'scope, Epoch, D>,
) -> (StreamVec<'scope, Epoch, D>, Collected<D>) {
    let collected = Collected::default();
    let data = Rc::clone(&collected);
    let stream = stream.inspect_core(move |event| {
        let Ok((stamp, container)) = event else { return };
        let epoch = *stamp.least().expect("data travels with a time");
        data.borrow_mut().extend(container.iter().map(|one| (epoch, one.clone())));
    });
    (stream, collected)
}

/// Waits until another thread has made a condition true.
///
/// # Panics
/// Panics after 10 s.
#[track_caller]
pub fn wait_until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the condition is still false");
        std::thread::sleep(Duration::from_millis(1));
    }
}
