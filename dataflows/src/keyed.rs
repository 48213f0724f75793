//! Events admitted and sorted by key, and the one driver that runs every operator over them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;

use crate::batch::{Batch, Run, RunRef, Slot};
use crate::control::ControlStream;
use crate::frontier::{passed, reached};
use crate::keys::Keys;
use crate::{Control, Epoch, Event, EventTime, Load};

/// Admitted events, sorted once and shared by every operator of their key.
///
/// Made by [`Admit`](crate::Admit); consumed by [`Scan`](crate::Scan), the windows and
/// [`Accumulate`](crate::Accumulate). Cloning it costs nothing: all clones read the same batches.
pub struct Keyed<'scope, E: Event> {
    batches: StreamVec<'scope, Epoch, Rc<Batch<E>>>,
    pub(crate) control: ControlStream<'scope>,
    pub(crate) keys: Rc<RefCell<Keys<E>>>,
    pub(crate) selection: Selection<E>,
}

impl<E: Event> Clone for Keyed<'_, E> {
    fn clone(&self) -> Self {
        Keyed {
            batches: self.batches.clone(),
            control: self.control.clone(),
            keys: Rc::clone(&self.keys),
            selection: self.selection.clone(),
        }
    }
}

type Predicate<K> = Rc<dyn Fn(&K) -> bool>;

/// Which keys an operator looks at: those for which the predicate holds, or all.
pub(crate) struct Selection<E: Event>(Option<Predicate<E::Key>>);

impl<E: Event> Clone for Selection<E> {
    fn clone(&self) -> Self {
        Selection(self.0.clone())
    }
}

impl<E: Event> Selection<E> {
    /// The runs of the selected keys.
    pub fn runs<'a>(&'a self, batch: &'a Batch<E>) -> impl Iterator<Item = &'a Run> {
        self.numbered_runs(batch).map(|(_, run)| run)
    }

    /// The runs of the selected keys, each with what names it.
    pub fn numbered_runs<'a>(&'a self, batch: &'a Batch<E>) -> impl Iterator<Item = (RunRef, &'a Run)> {
        batch.numbered_runs().filter(move |(_, run)| self.holds(batch, run))
    }

    /// Whether a run is of a selected key.
    pub fn holds(&self, batch: &Batch<E>, run: &Run) -> bool {
        self.0.as_deref().is_none_or(|only| only(batch.event(run.start as usize).key()))
    }
}

/// What an operator does with the batches of its worker, epoch by epoch in ascending order.
///
/// # Contract
/// For each epoch the driver calls `step` at most once, then `close` once if the epoch has a control; both append
/// to `out` what they change at that epoch; and then `mark` if the control asks for a checkpoint. The watermark in force during `step` of epoch e is that of the last
/// `close`, which is of an epoch before e: every event of the batch is above it.
pub(crate) trait Logic<E: Event>: 'static {
    /// An item of the output stream.
    type Out: Clone + 'static;

    /// Lets go of what is remembered of these keys: they have died, and their slots may go to others.
    fn forget(&mut self, slots: &[Slot]);

    /// Takes in the events of an epoch.
    fn step(&mut self, batch: &Rc<Batch<E>>, selection: &Selection<E>, out: &mut Vec<Self::Out>);

    /// Ends an epoch with its watermark: what is final leaves.
    fn close(&mut self, epoch: Epoch, watermark: EventTime, keys: &Keys<E>, out: &mut Vec<Self::Out>);

    /// Has the state as it is now captured, if it is to be captured at all.
    fn mark(&mut self, _epoch: Epoch, _keys: &Keys<E>) {}
}

/// An epoch that has begun.
struct Round<E> {
    capability: Capability<Epoch>,
    batches: Vec<Rc<Batch<E>>>,
    control: Option<Control>,
    stepped: bool,
}

impl<E> Round<E> {
    fn new(capability: Capability<Epoch>) -> Self {
        Round { capability, batches: Vec::new(), control: None, stepped: false }
    }
}

impl<'scope, E: Event> Keyed<'scope, E> {
    pub(crate) fn new(
        batches: StreamVec<'scope, Epoch, Rc<Batch<E>>>,
        control: ControlStream<'scope>,
        keys: Rc<RefCell<Keys<E>>>,
    ) -> Self {
        Keyed { batches, control, keys, selection: Selection(None) }
    }

    /// Has every key kept for so long after its last event at the least, in milliseconds.
    pub(crate) fn keep_for(&self, reach_ms: i64) {
        self.keys.borrow_mut().keep_for(reach_ms);
    }

    /// What the operators of these events hold, whichever keys they look at.
    pub fn load(&self) -> Load {
        self.keys.borrow().load().clone()
    }

    /// Only the keys for which `only` holds: what follows looks at no other.
    pub fn only(mut self, only: impl Fn(&E::Key) -> bool + 'static) -> Self {
        self.selection = match self.selection.0.take() {
            None => Selection(Some(Rc::new(only))),
            Some(before) => Selection(Some(Rc::new(move |key| before(key) && only(key)))),
        };
        self
    }

    /// Runs an operator's logic: steps each epoch once its events are complete and the watermark of the epoch
    /// before is known, and closes it once its own watermark is.
    pub(crate) fn run<L: Logic<E>>(self, name: &str, mut logic: L) -> StreamVec<'scope, Epoch, L::Out> {
        let Keyed { keys, selection, .. } = self;
        let mut rounds: BTreeMap<Epoch, Round<E>> = BTreeMap::new();
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
                        let epoch = *stamp.least().expect("data travels with a time");
                        let round =
                            rounds.entry(epoch).or_insert_with(|| Round::new(stamp.delayed(&epoch, 0)));
                        round.batches.append(data);
                    });
                    control.for_each(|stamp, data| {
                        let epoch = *stamp.least().expect("control travels with a time");
                        let round =
                            rounds.entry(epoch).or_insert_with(|| Round::new(stamp.delayed(&epoch, 0)));
                        round.control = data.pop().or(round.control);
                    });
                    while let Some(mut entry) = rounds.first_entry() {
                        let epoch = *entry.key();
                        let round = entry.get_mut();
                        if !round.stepped {
                            if !passed(batch_frontier, epoch) || !reached(control_frontier, epoch) {
                                break;
                            }
                            for batch in round.batches.drain(..) {
                                logic.forget(&batch.expired);
                                logic.step(&batch, &selection, &mut out);
                            }
                            round.stepped = true;
                        }
                        let closed = passed(control_frontier, epoch);
                        if let Some(control) = round.control.take_if(|_| closed) {
                            let keys = keys.borrow();
                            logic.close(epoch, control.watermark, &keys, &mut out);
                            if control.checkpoint {
                                logic.mark(epoch, &keys);
                            }
                        }
                        if !out.is_empty() {
                            output.session(&round.capability).give_container(&mut out);
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
