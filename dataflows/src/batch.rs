//! Batches: the admitted events of one epoch on one worker, shared by all operators that read them.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::rc::Rc;

use crate::{Epoch, Event, EventTime};

/// The number of a key on its worker. Slots are dense, so that operators keep their state in vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(pub u32);

impl Slot {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A reference to an entry of a batch of this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryRef {
    /// The number of the batch.
    pub batch: u64,
    /// The index of the entry in the batch.
    pub entry: u32,
}

/// The effect of an entry on the collection of admitted events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Adds the event.
    Insert,
    /// Removes the event that the given entry added.
    Retract(EntryRef),
}

/// A change of one event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub time: EventTime,
    /// The container of the batch that holds the event, and the index of the event in it.
    pub container: u32,
    pub index: u32,
    /// The position in [`Batch::targets`] of the entry that this entry retracts; `None` for an insertion.
    pub retracts: Option<TargetIndex>,
}

/// An index of [`Batch::targets`] plus one.
pub(crate) type TargetIndex = NonZeroU32;

/// A reference to a run of a batch of this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunRef {
    /// The number of the batch.
    batch: u64,
    /// The index of the run in the batch plus one, so that an `Option` needs no more memory.
    nth: NonZeroU32,
}

impl RunRef {
    /// Returns a reference to the run at this index of the batch.
    pub fn new(batch: u64, index: usize) -> RunRef {
        let nth = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        RunRef { batch, nth: nth.expect("a batch has fewer than 2^32 runs") }
    }

    fn index(self) -> usize {
        self.nth.get() as usize - 1
    }
}

/// The entries of one key in a batch: first the retractions, then the insertions, each in the order of evaluation.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub slot: Slot,
    pub start: u32,
    pub end: u32,
    /// True if all entries are insertions that come after all events admitted for the key before.
    pub in_order: bool,
    /// The greatest event time of the key in this and all earlier runs.
    pub newest: EventTime,
    /// The previous run of the key.
    pub previous: Option<RunRef>,
}

impl Run {
    pub fn entries(&self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// Updates in the containers in which timely delivered them.
pub(crate) type Containers<E> = Vec<Vec<(E, Epoch, isize)>>;

/// The updates of one epoch as timely delivered them, and the order in which to process them.
pub(crate) struct Batch<E> {
    /// The number of the batch, consecutive on its worker.
    pub number: u64,
    pub epoch: Epoch,
    /// The greatest event time of any entry.
    pub max_time: EventTime,
    pub entries: Vec<Entry>,
    /// The entries that the retractions of this batch retract.
    pub targets: Vec<EntryRef>,
    /// The runs, sorted by slot.
    pub runs: Vec<Run>,
    /// The slots whose keys expired before the events of this batch. A slot may also have events in this batch: its key
    /// then starts without state.
    pub expired: Vec<Slot>,
    pub containers: Containers<E>,
}

impl<E: Event> Batch<E> {
    pub fn event(&self, entry: usize) -> &E {
        let entry = &self.entries[entry];
        &self.containers[entry.container as usize][entry.index as usize].0
    }

    /// Returns the effect of an entry.
    pub fn change(&self, entry: usize) -> Change {
        match self.entries[entry].retracts {
            None => Change::Insert,
            Some(target) => Change::Retract(self.targets[target.get() as usize - 1]),
        }
    }

    /// Returns the runs, each with its reference.
    pub fn numbered_runs(&self) -> impl Iterator<Item = (RunRef, &Run)> {
        self.runs.iter().enumerate().map(|(at, run)| (RunRef::new(self.number, at), run))
    }
}

/// The batches that have un-final events, each with the data that an operator stores with it.
pub(crate) struct History<E, L> {
    batches: VecDeque<(Rc<Batch<E>>, L)>,
    /// Events that were un-final at this watermark are kept.
    hold: EventTime,
}

impl<E: Event, L> History<E, L> {
    pub fn new() -> Self {
        History { batches: VecDeque::new(), hold: EventTime::MAX }
    }

    pub fn push(&mut self, batch: Rc<Batch<E>>, log: L) {
        debug_assert!(self.batches.back().is_none_or(|(last, _)| last.number + 1 == batch.number));
        self.batches.push_back((batch, log));
    }

    /// Returns the batch with this number; `None` if all of its events are final.
    pub fn get(&self, number: u64) -> Option<&(Rc<Batch<E>>, L)> {
        let first = self.batches.front()?.0.number;
        self.batches.get(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    /// Like [`get`](History::get), with mutable access to the data stored with the batch.
    pub fn get_mut(&mut self, number: u64) -> Option<(&Batch<E>, &mut L)> {
        let first = self.batches.front()?.0.number;
        let at = usize::try_from(number.checked_sub(first)?).ok()?;
        self.batches.get_mut(at).map(|(batch, log)| (&**batch, log))
    }

    /// Calls `each` for every un-final insertion of a key, newest batch first, starting at the run `from`.
    pub fn for_each(&self, from: Option<RunRef>, each: impl FnMut(EntryRef, &Batch<E>, usize)) {
        self.for_each_since(from, EventTime::MIN, each);
    }

    /// Like [`for_each`](History::for_each), for all insertions at or after a time, and some of those before: an event that
    /// is a little late does not cost the time of all un-final events of its key.
    pub fn for_each_since(
        &self,
        from: Option<RunRef>,
        time: EventTime,
        mut each: impl FnMut(EntryRef, &Batch<E>, usize),
    ) {
        let mut next = from;
        while let Some(at) = next {
            let Some((batch, _)) = self.get(at.batch) else { return };
            let run = &batch.runs[at.index()];
            if run.newest < time {
                return;
            }
            for entry in run.entries().rev() {
                if batch.entries[entry].retracts.is_none() {
                    each(EntryRef { batch: at.batch, entry: entry as u32 }, batch, entry);
                }
            }
            next = run.previous;
        }
    }

    /// Returns the batches, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &(Rc<Batch<E>>, L)> {
        self.batches.iter()
    }

    /// Returns the oldest batch.
    pub fn oldest(&self) -> Option<&Rc<Batch<E>>> {
        self.batches.front().map(|(batch, _)| batch)
    }

    /// Removes the oldest batch.
    pub fn pop(&mut self) {
        self.batches.pop_front();
    }

    /// Keeps the events that are un-final at `watermark`, until the next call. [`EventTime::MAX`] keeps none.
    pub fn hold(&mut self, watermark: EventTime) {
        self.hold = watermark;
    }

    /// Returns the lesser of `watermark` and the watermark at which history is [held](History::hold).
    pub fn held(&self, watermark: EventTime) -> EventTime {
        watermark.min(self.hold)
    }

    /// Evicts the oldest batches while all of their events are at or below the watermark.
    pub fn settle(&mut self, watermark: EventTime) {
        while self.settle_one(watermark).is_some() {}
    }

    /// Evicts the oldest batch if all of its events are at or below the watermark. Returns the data stored with it.
    pub fn settle_one(&mut self, watermark: EventTime) -> Option<L> {
        let watermark = self.held(watermark);
        self.oldest().filter(|batch| batch.max_time <= watermark)?;
        self.batches.pop_front().map(|(_, log)| log)
    }
}
