//! Capture of the state of an operator's logic while it runs.

use std::cell::RefCell;
use std::rc::Rc;

use super::operator::Drain;
use super::stored::Damage;
use super::tracker::{Mark, Saved, Tracker};
use crate::batch::{Batch, RunRef, Slot};
use crate::keyed::{Logic, Selection};
use crate::keys::Keys;
use crate::{Epoch, Event, EventTime, OwnedKey, StatePart};

/// The logic of an operator whose state can be captured and restored, key by key.
///
/// # Contract
/// `save` returns the effect of the final events of a key. After `begin_restore`, `load` of every key and `resume` with the un-final
/// events, the logic has the same output for later events as the logic that was saved.
pub(crate) trait Capture<E: Event>: Logic<E> {
    /// Keeps the events that are un-final at `watermark`, until the next call. [`EventTime::MAX`] keeps none.
    fn hold(&mut self, watermark: EventTime);

    /// Appends the keys whose state [`close`](Logic::close) may change other than by events becoming final.
    fn closes(&self, epoch: Epoch, watermark: EventTime, keys: &mut Vec<Slot>);

    /// Returns the state of a key without the effect of its events above the watermark. These events are in the run
    /// `newest` and the runs before it.
    fn save(&mut self, slot: Slot, newest: Option<RunRef>, watermark: EventTime) -> Saved;

    /// Prepares for the restore of the state at the end of `epoch`.
    fn begin_restore(&mut self, _epoch: Epoch) {}

    /// Restores the saved state of a key.
    fn load(
        &mut self,
        slot: Slot,
        key: &OwnedKey<E>,
        watermark: EventTime,
        saved: &[u8],
    ) -> Result<(), Damage>;

    /// Processes the restored un-final events, at the end of `epoch`, without output.
    fn resume(&mut self, epoch: Epoch, batch: Option<&Rc<Batch<E>>>, selection: &Selection<E>);
}

/// A logic, and the tracker of its captured state.
pub(crate) struct Capturing<E: Event, L> {
    pub logic: L,
    pub tracker: Tracker<E>,
    pub keys: Rc<RefCell<Keys<E>>>,
    /// The greatest watermark so far.
    pub watermark: EventTime,
    /// A buffer for the keys that `close` may change.
    pub closing: Vec<Slot>,
}

impl<E: Event, L: Capture<E>> Capturing<E, L> {
    fn save(&mut self, slot: Slot, keys: &Keys<E>) {
        let logic = &mut self.logic;
        self.tracker.before(slot, keys, |newest, watermark| logic.save(slot, newest, watermark));
    }

    /// Captures up to `count` more keys of the mark, if there is a mark.
    fn save_some(&mut self, keys: &Keys<E>, count: usize) {
        for _ in 0..count {
            match self.tracker.next() {
                Some(slot) => self.save(slot, keys),
                None => {
                    self.logic.hold(EventTime::MAX);
                    return self.tracker.finish();
                }
            }
        }
    }
}

impl<E: Event, L: Capture<E>> Drain<E> for Capturing<E, L> {
    fn tracker(&mut self) -> &mut Tracker<E> {
        &mut self.tracker
    }

    fn drain(&mut self, count: usize) {
        let keys = Rc::clone(&self.keys);
        self.save_some(&keys.borrow(), count);
    }
}

impl<E: Event, L: Capture<E>> Logic<E> for Rc<RefCell<Capturing<E, L>>> {
    type Out = L::Out;

    fn forget(&mut self, slots: &[Slot]) {
        let this = &mut *self.borrow_mut();
        let keys = Rc::clone(&this.keys);
        let keys = keys.borrow();
        for &slot in slots {
            this.save(slot, &keys);
            this.tracker.removed(slot, &keys);
        }
        this.logic.forget(slots);
    }

    fn step(&mut self, batch: &Rc<Batch<E>>, selection: &Selection<E>, out: &mut Vec<Self::Out>) {
        let this = &mut *self.borrow_mut();
        let keys = Rc::clone(&this.keys);
        let keys = keys.borrow();
        for (at, run) in selection.numbered_runs(batch) {
            this.save(run.slot, &keys);
            this.tracker.touch(run.slot, Some(at));
        }
        this.logic.step(batch, selection, out);
    }

    fn prepare(&mut self, epoch: Epoch, keys: &mut Keys<E>, selection: &Selection<E>) {
        self.borrow_mut().logic.prepare(epoch, keys, selection);
    }

    fn close(&mut self, epoch: Epoch, watermark: EventTime, keys: &Keys<E>, out: &mut Vec<Self::Out>) {
        let this = &mut *self.borrow_mut();
        this.watermark = this.watermark.max(watermark);
        let mut closing = std::mem::take(&mut this.closing);
        this.logic.closes(epoch, watermark, &mut closing);
        for slot in closing.drain(..) {
            this.save(slot, keys);
            this.tracker.touch(slot, None);
        }
        this.closing = closing;
        this.logic.close(epoch, watermark, keys, out);
    }

    fn visit(
        &self,
        slot: Slot,
        key: &OwnedKey<E>,
        watermark: EventTime,
        visitor: &mut dyn FnMut(StatePart<'_>),
    ) {
        self.borrow().logic.visit(slot, key, watermark, visitor);
    }

    fn mark(&mut self, epoch: Epoch, keys: &Keys<E>) {
        let this = &mut *self.borrow_mut();
        // Only one mark is captured at a time: two would need two copies of the state.
        this.save_some(keys, usize::MAX);
        this.logic.hold(this.watermark);
        this.tracker.mark(Mark { epoch, watermark: this.watermark });
    }
}
