//! Admitted events, sorted by key, and the driver that runs every operator over them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;

use crate::batch::{Batch, Change, EntryRef, History, Run, RunRef, Slot};
use crate::control::ControlStream;
use crate::frontier::{passed, reached};
use crate::key_states::{KeyStates, StatePart};
use crate::keys::Keys;
use crate::{Control, Epoch, Event, EventTime, Load, OwnedKey};

/// Admitted events, sorted once and shared by every operator of their key.
///
/// Made by [`Admit`](crate::Admit); consumed by [`Scan`](crate::Scan), the windows and
/// [`Accumulate`](crate::Accumulate). Cloning is cheap: all clones read the same batches.
pub struct Keyed<'scope, E: Event> {
    pub(crate) batches: StreamVec<'scope, Epoch, Rc<Batch<E>>>,
    pub(crate) control: ControlStream<'scope>,
    pub(crate) keys: Rc<RefCell<Keys<E>>>,
    pub(crate) selection: Selection<E>,
    states: KeyStates<E>,
}

impl<E: Event> Clone for Keyed<'_, E> {
    fn clone(&self) -> Self {
        Keyed {
            batches: self.batches.clone(),
            control: self.control.clone(),
            keys: Rc::clone(&self.keys),
            selection: self.selection.clone(),
            states: self.states.clone(),
        }
    }
}

type Predicate<K> = Rc<dyn Fn(&K) -> bool>;

/// The keys that an operator processes: those for which the predicate holds, or all if there is none.
pub(crate) struct Selection<E: Event>(Option<Predicate<E::Key>>);

impl<E: Event> Clone for Selection<E> {
    fn clone(&self) -> Self {
        Selection(self.0.clone())
    }
}

impl<E: Event> Selection<E> {
    /// Returns the runs of the selected keys.
    pub fn runs<'a>(&'a self, batch: &'a Batch<E>) -> impl Iterator<Item = &'a Run> {
        self.numbered_runs(batch).map(|(_, run)| run)
    }

    /// Returns the runs of the selected keys, each with its reference.
    pub fn numbered_runs<'a>(&'a self, batch: &'a Batch<E>) -> impl Iterator<Item = (RunRef, &'a Run)> {
        batch.numbered_runs().filter(move |(_, run)| self.holds(batch, run))
    }

    /// Returns the events of the selected keys in a history that are later than a time and not retracted, each with the slot
    /// of its key and its reference.
    pub fn live_after<'a, L>(
        &'a self,
        history: &'a History<E, L>,
        after: EventTime,
    ) -> impl Iterator<Item = (Slot, EntryRef, &'a E)> {
        let retracted: HashSet<EntryRef> =
            history.iter().flat_map(|(batch, _)| batch.targets.iter().copied()).collect();
        let batches = history.iter().map(|(batch, _)| batch).filter(move |batch| batch.max_time > after);
        let entries = batches.flat_map(move |batch| {
            self.runs(batch).flat_map(move |run| run.entries().map(move |entry| (batch, run.slot, entry)))
        });
        entries.filter_map(move |(batch, slot, index)| {
            let entry = EntryRef { batch: batch.number, entry: index as u32 };
            let is_live = batch.entries[index].time > after
                && batch.change(index) == Change::Insert
                && !retracted.contains(&entry);
            is_live.then(|| (slot, entry, batch.event(index)))
        })
    }

    /// Returns true if a run belongs to a selected key.
    pub fn holds(&self, batch: &Batch<E>, run: &Run) -> bool {
        self.0.as_deref().is_none_or(|only| only(batch.event(run.start as usize).key()))
    }

    /// Returns true if a key is selected.
    pub fn selects(&self, key: &E::Key) -> bool {
        self.0.as_deref().is_none_or(|only| only(key))
    }
}

/// The logic of an operator, which processes the batches of its worker epoch by epoch in ascending order.
///
/// # Contract
/// For each epoch the driver calls `step` at most once, then `close` once if the epoch has a control message, then
/// `mark` if that message requests a checkpoint. `step` and `close` append the changes of that epoch to `out`. During
/// `step` of epoch e the watermark is that of the last `close`, which was of an epoch before e: every event of the
/// batch is above it.
pub(crate) trait Logic<E: Event>: 'static {
    /// An item of the output stream.
    type Out: Clone + 'static;

    /// Removes the state of these keys, which have expired. Their slots may be given to other keys.
    fn forget(&mut self, slots: &[Slot]);

    /// Processes the events of an epoch.
    fn step(&mut self, batch: &Rc<Batch<E>>, selection: &Selection<E>, out: &mut Vec<Self::Out>);

    /// Prepares for the end of an epoch: the only time at which an operator adds keys that admission does not know.
    fn prepare(&mut self, _epoch: Epoch, _keys: &mut Keys<E>, _selection: &Selection<E>) {}

    /// Ends an epoch with its watermark, and evicts what is final.
    fn close(&mut self, epoch: Epoch, watermark: EventTime, keys: &Keys<E>, out: &mut Vec<Self::Out>);

    /// Requests capture of the current state, if capture is on.
    fn mark(&mut self, _epoch: Epoch, _keys: &Keys<E>) {}

    /// Passes the state of a key to `visitor`, after the steps so far. `watermark` is that of the last `close`.
    fn visit(
        &self,
        slot: Slot,
        key: &OwnedKey<E>,
        watermark: EventTime,
        visitor: &mut dyn FnMut(StatePart<'_>),
    );
}

/// An epoch that is not complete.
struct PendingEpoch<E> {
    capability: Capability<Epoch>,
    batches: Vec<Rc<Batch<E>>>,
    control: Option<Control>,
    stepped: bool,
}

impl<E> PendingEpoch<E> {
    fn new(capability: Capability<Epoch>) -> Self {
        PendingEpoch { capability, batches: Vec::new(), control: None, stepped: false }
    }
}

impl<'scope, E: Event> Keyed<'scope, E> {
    pub(crate) fn new(
        batches: StreamVec<'scope, Epoch, Rc<Batch<E>>>,
        control: ControlStream<'scope>,
        keys: Rc<RefCell<Keys<E>>>,
        restored: Option<(Epoch, EventTime)>,
    ) -> Self {
        let states = KeyStates::new(Rc::clone(&keys), restored);
        Keyed { batches, control, keys, selection: Selection(None), states }
    }

    /// Requires that every key is kept for at least `reach_ms` milliseconds after its last event.
    pub(crate) fn keep_for(&self, reach_ms: i64) {
        self.keys.borrow_mut().keep_for(reach_ms);
    }

    /// Returns the counts of the keys and windows that the operators of these events hold, regardless of selections.
    pub fn load(&self) -> Load {
        self.keys.borrow().load().clone()
    }

    /// Returns a handle that reads the state of one key in the operators of these events, between steps of the worker.
    pub fn key_states(&self) -> KeyStates<E> {
        self.states.clone()
    }

    /// Selects the keys for which `only` returns true. Operators of the result ignore all other keys.
    pub fn only(mut self, only: impl Fn(&E::Key) -> bool + 'static) -> Self {
        self.selection = match self.selection.0.take() {
            None => Selection(Some(Rc::new(only))),
            Some(before) => Selection(Some(Rc::new(move |key| before(key) && only(key)))),
        };
        self
    }

    /// Runs the logic of an operator: steps each epoch once its events are complete and the watermark of the previous
    /// epoch is known, and closes it once its own watermark is known.
    pub(crate) fn run<L: Logic<E>>(self, name: &str, logic: L) -> StreamVec<'scope, Epoch, L::Out> {
        let Keyed { keys, selection, states, .. } = self;
        let logic = Rc::new(RefCell::new(logic));
        let progress = states.add(name, Rc::clone(&logic), selection.clone());
        let mut pending: BTreeMap<Epoch, PendingEpoch<E>> = BTreeMap::new();
        let mut out = Vec::new();
        self.batches.binary_frontier::<_, CapacityContainerBuilder<Vec<L::Out>>, _, _, _, _>(
            self.control,
            Pipeline,
            Pipeline,
            name,
            |capability, _| {
                drop(capability);
                move |(batches, batch_frontier), (control, control_frontier), output| {
                    batches.for_each(|stamp, data| {
                        let epoch = *stamp.least().expect("a message has a timestamp");
                        let current = pending
                            .entry(epoch)
                            .or_insert_with(|| PendingEpoch::new(stamp.delayed(&epoch, 0)));
                        current.batches.append(data);
                    });
                    control.for_each(|stamp, data| {
                        let epoch = *stamp.least().expect("a message has a timestamp");
                        let current = pending
                            .entry(epoch)
                            .or_insert_with(|| PendingEpoch::new(stamp.delayed(&epoch, 0)));
                        current.control = data.pop().or(current.control);
                    });
                    let logic = &mut *logic.borrow_mut();
                    while let Some(mut entry) = pending.first_entry() {
                        let epoch = *entry.key();
                        let current = entry.get_mut();
                        if !current.stepped {
                            if !passed(batch_frontier, epoch) || !reached(control_frontier, epoch) {
                                break;
                            }
                            for batch in current.batches.drain(..) {
                                logic.forget(&batch.expired);
                                logic.step(&batch, &selection, &mut out);
                            }
                            current.stepped = true;
                            progress.stepped(epoch);
                        }
                        let closed = passed(control_frontier, epoch);
                        if let Some(control) = current.control.take_if(|_| closed) {
                            logic.prepare(epoch, &mut keys.borrow_mut(), &selection);
                            let keys = keys.borrow();
                            logic.close(epoch, control.watermark, &keys, &mut out);
                            progress.closed(control.watermark);
                            if control.checkpoint {
                                logic.mark(epoch, &keys);
                            }
                        }
                        if !out.is_empty() {
                            output.session(&current.capability).give_container(&mut out);
                            out.clear();
                        }
                        if !closed {
                            break;
                        }
                        entry.remove();
                    }
                }
            },
        )
    }
}
