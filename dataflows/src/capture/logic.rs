//! A logic whose state is captured as it goes on.

use std::cell::RefCell;
use std::rc::Rc;

use super::operator::Drain;
use super::stored::Damage;
use super::tracker::{Mark, Saved, Tracker};
use crate::batch::{Batch, RunRef, Slot};
use crate::keyed::{Logic, Selection};
use crate::keys::Keys;
use crate::{Epoch, Event, EventTime, OwnedKey};

/// A logic whose state can be captured and restored, key by key.
///
/// # Contract
/// What `save` gives of a key is what its final events have left. After `load` of every key and `resume` with the
/// events that are not final, the logic answers what follows as the one that was saved.
pub(crate) trait Capture<E: Event>: Logic<E> {
    /// Keeps what is not final at `watermark` until it is told otherwise; [`EventTime::MAX`] lets it go.
    fn hold(&mut self, watermark: EventTime);

    /// Appends the keys whose state [`close`](Logic::close) may change, beyond that events become final.
    fn closes(&self, epoch: Epoch, watermark: EventTime, keys: &mut Vec<Slot>);

    /// A key's state without its events above the watermark, which `newest` and the runs before it hold.
    fn save(&mut self, slot: Slot, newest: Option<RunRef>, watermark: EventTime) -> Saved;

    /// Puts in what was saved of a key.
    fn load(
        &mut self,
        slot: Slot,
        key: &OwnedKey<E>,
        watermark: EventTime,
        saved: &[u8],
    ) -> Result<(), Damage>;

    /// Takes in, at the end of `epoch`, what is not final, and says nothing of it.
    fn resume(&mut self, epoch: Epoch, batch: Option<&Rc<Batch<E>>>, selection: &Selection<E>);
}

/// A logic, and what is captured of it.
pub(crate) struct Capturing<E: Event, L> {
    pub logic: L,
    pub tracker: Tracker<E>,
    pub keys: Rc<RefCell<Keys<E>>>,
    /// The greatest that there has been.
    pub watermark: EventTime,
    /// Keys that are about to change.
    pub closing: Vec<Slot>,
}

impl<E: Event, L: Capture<E>> Capturing<E, L> {
    fn save(&mut self, slot: Slot, keys: &Keys<E>) {
        let logic = &mut self.logic;
        self.tracker.before(slot, keys, |newest, watermark| logic.save(slot, newest, watermark));
    }

    /// Captures so many keys more of the mark, if there is one.
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

    fn mark(&mut self, epoch: Epoch, keys: &Keys<E>) {
        let this = &mut *self.borrow_mut();
        // Two at a time would want two states.
        this.save_some(keys, usize::MAX);
        this.logic.hold(this.watermark);
        this.tracker.mark(Mark { epoch, watermark: this.watermark });
    }
}
