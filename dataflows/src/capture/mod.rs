//! Checkpoints: capture of the state of operators at the end of an epoch while they continue, and restore.
//!
//! ```text
//!   control ──┬─▶ operator ─▶ results             Control { checkpoint } of epoch F requests capture at the end of F
//!             │     ┆ state
//!             └─▶ Capture ─▶ records at F ─▶ …    (operator, shard, key) -> state
//! ```
//!
//! At a mark, an operator notes the keys that have changed since the previous mark, and continues. A key that is about
//! to change is captured first. The others are captured a few at a time. The frontier of the records passes F when all
//! records of F are emitted. Results are not delayed.
//!
//! Un-final events are captured once, by admission. The other operators store only the effect of final events. A
//! restored dataflow steps the un-final events again while it is built, without output.

mod captured;
mod logic;
mod operator;
mod stored;
mod tracker;

use std::borrow::Borrow;
use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use timely::dataflow::operators::Concatenate;
use timely::dataflow::{Scope, StreamVec};

use crate::batch::Slot;
use crate::keys::Keys;
use crate::{Epoch, Event, EventTime, KeyHash, OwnedKey};

pub use captured::Captured;
pub(crate) use logic::Capture;
pub(crate) use operator::{Drain, build};
use stored::hex;
pub use stored::{Damage, Record, RestoreError, STATE_VERSION, Stored};
pub(crate) use stored::{decode, decode_first, encode, encode_unless_default, key_of};
pub(crate) use tracker::{Mark, Saved, Tracker};

/// The state of a dataflow at the end of an epoch.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// The epoch.
    pub epoch: Epoch,
    /// The watermark at the end of the epoch.
    pub watermark: EventTime,
    /// The latest record of each operator, shard and key, at least for the shards that the worker owns.
    pub records: Vec<Record>,
}

/// The capture of the state of a dataflow's operators: off, on, or on after a restore.
///
/// Operators downstream of [`admit`](Captures::admit) capture and restore their state, each under its name. Cloning is
/// cheap.
///
/// ```
/// use differential_dataflow::input::InputSession;
/// use headwater_dataflows::testing::Line;
/// use headwater_dataflows::{Admission, Captures, Clock, Emission, Epoch, EventTime, patterns::Frequency};
/// use timely::dataflow::operators::Inspect;
///
/// let records = timely::execute_directly(|worker| {
///     let records = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
///     let stored = records.clone();
///     let (mut events, mut clock) = worker.dataflow::<Epoch, _, _>(|scope| {
///         let mut events = InputSession::new();
///         let (clock, control) = Clock::new(scope);
///         let captures = Captures::new(scope);
///         let lines = events.to_collection(scope);
///         let (keyed, _refused) = captures.admit("Admit", lines, control, Admission::default());
///         keyed.scan("Pair", Frequency::at_least(2, 10), Emission::Immediate, |line: &Line, _| line.offset);
///         captures.finish().expect("nothing was restored").inspect(move |record| stored.borrow_mut().push(record.clone()));
///         (events, clock)
///     });
///     events.insert(Line::from(("ann", 10, 0, "a")));
///     clock.checkpoint(EventTime(20));
///     drop((events, clock));
///     while worker.step() {}
///     records.take()
/// });
/// assert_eq!(records.len(), 1, "{records:?}");
/// assert_eq!(&*records[0].operator, "Pair");
/// ```
#[derive(Clone)]
pub struct Captures<'scope> {
    scope: Scope<'scope, Epoch>,
    /// `None` if capture is off.
    register: Option<Rc<RefCell<Register<'scope>>>>,
}

#[derive(Default)]
pub(crate) struct Register<'scope> {
    /// The epoch and watermark of the restored checkpoint.
    from: Option<(Epoch, EventTime)>,
    /// The restored records that no operator has taken yet.
    records: BTreeMap<Arc<str>, Vec<Record>>,
    operators: BTreeSet<Arc<str>>,
    streams: Vec<StreamVec<'scope, Epoch, Record>>,
    failure: Option<RestoreError>,
}

impl<'scope> Captures<'scope> {
    /// Turns capture off: checkpoint requests are ignored, and no changes are recorded.
    pub fn off(scope: Scope<'scope, Epoch>) -> Self {
        Captures { scope, register: None }
    }

    /// Captures state at each epoch whose control message requests a checkpoint.
    ///
    /// Between checkpoints, changes are recorded: each changed key, and each id that deduplication accepted.
    pub fn new(scope: Scope<'scope, Epoch>) -> Self {
        Captures { scope, register: Some(Rc::default()) }
    }

    /// Like [`new`](Captures::new), and resumes from a checkpoint: the next epoch is the one after it.
    ///
    /// Records of shards that other workers own are ignored. The dataflow must have every operator of the checkpoint,
    /// built with the same parameters. The number of workers may differ.
    pub fn restore(scope: Scope<'scope, Epoch>, checkpoint: Checkpoint) -> Self {
        let mut register =
            Register { from: Some((checkpoint.epoch, checkpoint.watermark)), ..Register::default() };
        for record in checkpoint.records {
            if record.shard.worker(scope.peers()) == scope.index() {
                register.records.entry(Arc::clone(&record.operator)).or_default().push(record);
            }
        }
        Captures { scope, register: Some(Rc::new(RefCell::new(register))) }
    }

    /// Returns the names of the operators whose state is captured, each with the version of its state.
    pub fn operators(&self) -> Vec<(Arc<str>, u32)> {
        let operators = self.register().map(|register| register.operators.clone()).unwrap_or_default();
        operators.into_iter().map(|operator| (operator, STATE_VERSION.into())).collect()
    }

    /// Returns the register; `None` if capture is off.
    pub(crate) fn register(&self) -> Option<RefMut<'_, Register<'scope>>> {
        self.register.as_deref().map(RefCell::borrow_mut)
    }

    /// Returns the captured state, as records in the epoch whose end they describe. Call it after all operators are
    /// built.
    ///
    /// # Errors
    /// Fails if the checkpoint cannot be restored. The dataflow must not be run then.
    pub fn finish(self) -> Result<StreamVec<'scope, Epoch, Record>, RestoreError> {
        let register = self.register.map(|register| register.take()).unwrap_or_default();
        if let Some(failure) = register.failure {
            return Err(failure);
        }
        match register.records.into_keys().next() {
            Some(operator) => Err(RestoreError::Unclaimed(operator)),
            None => Ok(self.scope.concatenate(register.streams)),
        }
    }
}

impl<'scope> Register<'scope> {
    /// Returns the epoch and watermark of the restored checkpoint; `None` if there is none.
    pub fn from(&self) -> Option<(Epoch, EventTime)> {
        self.from
    }

    /// Adds the records that an operator captures.
    pub fn add(&mut self, captured: StreamVec<'scope, Epoch, Record>) {
        self.streams.push(captured);
    }

    /// Registers an operator. Returns its name, and its records from the checkpoint.
    pub fn enter(&mut self, operator: &str) -> (Arc<str>, Vec<Record>) {
        let operator = Arc::from(operator);
        if !self.operators.insert(Arc::clone(&operator)) {
            self.report(RestoreError::Ambiguous(Arc::clone(&operator)));
        }
        let records = self.records.remove(&operator).unwrap_or_default();
        (operator, records)
    }

    /// Restores the records of keys of an operator. The first damaged record is reported by
    /// [`finish`](Captures::finish).
    pub fn load<E>(
        &mut self,
        records: Vec<Record>,
        keys: &mut Keys<E>,
        mut load: impl FnMut(Slot, &OwnedKey<E>, &[u8]) -> Result<(), Damage>,
    ) where
        E: Event<Key: ToOwned<Owned: Stored>>,
    {
        for record in records {
            let key: Result<(KeyHash, OwnedKey<E>), Damage> = key_of(&record.key);
            let name = key.as_ref().map_or_else(|_| hex(&record.key), |(_, key)| format!("{key:?}"));
            let loaded = key.and_then(|(hash, key)| match &record.value {
                _ if hash.shard() != record.shard => {
                    Err(Damage::Impossible("the key belongs to another shard"))
                }
                Some(value) => load(keys.slot_of(hash, key.borrow()), &key, value),
                None => Ok(()),
            });
            if let Err(damage) = loaded {
                self.report(RestoreError::Damaged { operator: record.operator, key: name, damage });
            }
        }
    }

    /// Reports damage of a record that does not belong to a key.
    pub fn damaged(&mut self, record: &Record, damage: Damage) {
        let (operator, key) = (Arc::clone(&record.operator), hex(&record.key));
        self.report(RestoreError::Damaged { operator, key, damage });
    }

    fn report(&mut self, failure: RestoreError) {
        self.failure.get_or_insert(failure);
    }
}
