//! Checkpoints: what operators know at the end of an epoch, written down while they go on, and gone on from.
//!
//! ```text
//!   control ──┬─▶ operator ─▶ results             Control { checkpoint } of epoch F marks the end of F
//!             │     ┆ state
//!             └─▶ Capture ─▶ records at F ─▶ …    (operator, shard, key) -> state
//! ```
//!
//! At a mark an operator notes which keys have changed since the mark before, and goes on. A key that is about to
//! change is captured first; the others are captured a few at a time. The records' frontier passes F when all of F
//! is out, while results go on unhindered.
//!
//! Events that are not final are captured by admission, once; the other operators store what the final ones have
//! left. A restored dataflow steps the rest again while it is built, and says nothing of it.

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
pub use stored::{Damage, Record, RestoreError, STATE_VERSION, Stored};
pub(crate) use stored::{decode, encode};
use stored::{hex, key_of};
pub(crate) use tracker::{Mark, Saved, Tracker};

/// The state of a dataflow at the end of an epoch.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// The epoch.
    pub epoch: Epoch,
    /// The watermark at its end.
    pub watermark: EventTime,
    /// The latest record of each operator, shard and key; at least those of the worker's own shards.
    pub records: Vec<Record>,
}

/// Whether and where the operators of a dataflow capture their state, and what they go on from.
///
/// [`admit`](Captures::admit) takes events in; every operator behind it captures and restores what it knows under its
/// name. Cloning it costs nothing.
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
    /// None if nothing is captured.
    register: Option<Rc<RefCell<Register<'scope>>>>,
}

#[derive(Default)]
pub(crate) struct Register<'scope> {
    /// Where to go on from: epoch and watermark.
    from: Option<(Epoch, EventTime)>,
    /// What nobody has asked for yet.
    records: BTreeMap<Arc<str>, Vec<Record>>,
    operators: BTreeSet<Arc<str>>,
    streams: Vec<StreamVec<'scope, Epoch, Record>>,
    failure: Option<RestoreError>,
}

impl<'scope> Captures<'scope> {
    /// Nothing is captured, whatever the control says, and nothing is remembered for it.
    pub fn off(scope: Scope<'scope, Epoch>) -> Self {
        Captures { scope, register: None }
    }

    /// State is captured at each epoch whose control asks for it.
    ///
    /// Until then, what has changed is remembered: each key, and each id that deduplication has accepted.
    pub fn new(scope: Scope<'scope, Epoch>) -> Self {
        Captures { scope, register: Some(Rc::default()) }
    }

    /// As [`new`](Captures::new), going on after a checkpoint: the next epoch is the one after it.
    ///
    /// Records of other workers' shards are passed over. Every operator of the checkpoint must be there, built as it
    /// was; the number of workers may be another.
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

    /// The operators whose state is captured, by name; each with the version of its state.
    pub fn operators(&self) -> Vec<(Arc<str>, u32)> {
        let operators = self.register().map(|register| register.operators.clone()).unwrap_or_default();
        operators.into_iter().map(|operator| (operator, STATE_VERSION.into())).collect()
    }

    /// None if nothing is captured.
    pub(crate) fn register(&self) -> Option<RefMut<'_, Register<'scope>>> {
        self.register.as_deref().map(RefCell::borrow_mut)
    }

    /// What is captured, as records of the epoch whose end they describe. To be called once all operators are built.
    ///
    /// # Errors
    /// If the checkpoint cannot be gone on from. The dataflow is not to be run then.
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
    /// Where to go on from: epoch and watermark.
    pub fn from(&self) -> Option<(Epoch, EventTime)> {
        self.from
    }

    /// Adds what an operator captures.
    pub fn add(&mut self, captured: StreamVec<'scope, Epoch, Record>) {
        self.streams.push(captured);
    }

    /// Enters an operator: its name, and what the checkpoint has of it.
    pub fn enter(&mut self, operator: &str) -> (Arc<str>, Vec<Record>) {
        let operator = Arc::from(operator);
        if !self.operators.insert(Arc::clone(&operator)) {
            self.failed(RestoreError::Ambiguous(Arc::clone(&operator)));
        }
        let records = self.records.remove(&operator).unwrap_or_default();
        (operator, records)
    }

    /// Restores from an operator's records of keys; the first that is damaged is remembered.
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
                _ if hash.shard() != record.shard => Err(Damage::Impossible("its key is of another shard")),
                Some(value) => load(keys.slot_of(hash, key.borrow()), &key, value),
                None => Ok(()),
            });
            if let Err(damage) = loaded {
                self.failed(RestoreError::Damaged { operator: record.operator, key: name, damage });
            }
        }
    }

    /// Remembers a record that is no key's and that is damaged.
    pub fn damaged(&mut self, record: &Record, damage: Damage) {
        let (operator, key) = (Arc::clone(&record.operator), hex(&record.key));
        self.failed(RestoreError::Damaged { operator, key, damage });
    }

    fn failed(&mut self, failure: RestoreError) {
        self.failure.get_or_insert(failure);
    }
}
