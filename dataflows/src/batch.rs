//! The admitted events of one epoch on one worker, shared by all operators that read them.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::rc::Rc;

use crate::{Epoch, Event, EventTime};

/// A key's number on its worker: dense, so that operators keep their state in vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(pub u32);

impl Slot {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One entry of one batch of this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryRef {
    /// The batch's number.
    pub batch: u64,
    /// The entry's index there.
    pub entry: u32,
}

/// What an entry does to the collection of admitted events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The event joins it.
    Insert,
    /// The event that joined it by the named entry leaves it.
    Retract(EntryRef),
}

/// One change of one event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub time: EventTime,
    /// Which container of the batch holds the event, and where in it.
    pub container: u32,
    pub index: u32,
    /// If it retracts, where among the batch's targets what it retracts stands.
    pub retracts: Option<TargetIndex>,
}

/// One more than an index of [`Batch::targets`].
pub(crate) type TargetIndex = NonZeroU32;

/// One run of one batch of this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunRef {
    /// The batch's number.
    batch: u64,
    /// One more than the run's index there, so that there may be none at no cost.
    nth: NonZeroU32,
}

impl RunRef {
    /// The run at this index of a batch's runs.
    pub fn new(batch: u64, index: usize) -> RunRef {
        let nth = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        RunRef { batch, nth: nth.expect("a batch has fewer than 2^32 runs") }
    }

    fn index(self) -> usize {
        self.nth.get() as usize - 1
    }
}

/// The entries of one key, a range of the batch's entries: first what is retracted, then what is inserted, each in
/// the order of evaluation.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub slot: Slot,
    pub start: u32,
    pub end: u32,
    /// Whether all entries are insertions that come after everything admitted for the key before.
    pub in_order: bool,
    /// The key's run before this one.
    pub previous: Option<RunRef>,
}

impl Run {
    pub fn entries(&self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// Updates as timely delivered them.
pub(crate) type Containers<E> = Vec<Vec<(E, Epoch, isize)>>;

/// What timely delivered for one epoch, as it came, and the order in which to look at it.
pub(crate) struct Batch<E> {
    /// Consecutive on its worker.
    pub number: u64,
    pub epoch: Epoch,
    /// The greatest event time of any entry.
    pub max_time: EventTime,
    pub entries: Vec<Entry>,
    /// What is retracted.
    pub targets: Vec<EntryRef>,
    /// By slot.
    pub runs: Vec<Run>,
    /// Slots whose keys begin anew, or are no more, before the events of this batch.
    pub expired: Vec<Slot>,
    pub containers: Containers<E>,
}

impl<E: Event> Batch<E> {
    pub fn event(&self, entry: usize) -> &E {
        let entry = &self.entries[entry];
        &self.containers[entry.container as usize][entry.index as usize].0
    }

    /// What an entry does.
    pub fn change(&self, entry: usize) -> Change {
        match self.entries[entry].retracts {
            None => Change::Insert,
            Some(target) => Change::Retract(self.targets[target.get() as usize - 1]),
        }
    }

    /// The runs, each with what names it.
    pub fn numbered_runs(&self) -> impl Iterator<Item = (RunRef, &Run)> {
        self.runs.iter().enumerate().map(|(at, run)| (RunRef::new(self.number, at), run))
    }
}

/// The batches whose events are not all final yet, each with what an operator remembers beside it.
pub(crate) struct History<E, L> {
    batches: VecDeque<(Rc<Batch<E>>, L)>,
    /// What was not final at this watermark is wanted still.
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

    /// The batch with this number, unless all of its events are final.
    pub fn get(&self, number: u64) -> Option<&(Rc<Batch<E>>, L)> {
        let first = self.batches.front()?.0.number;
        self.batches.get(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    /// As [`get`](History::get), to change what is remembered beside the batch.
    pub fn get_mut(&mut self, number: u64) -> Option<(&Batch<E>, &mut L)> {
        let first = self.batches.front()?.0.number;
        let at = usize::try_from(number.checked_sub(first)?).ok()?;
        self.batches.get_mut(at).map(|(batch, log)| (&**batch, log))
    }

    /// Every insertion of a key that is not final, newest batch first, from a run backwards.
    pub fn for_each(&self, from: Option<RunRef>, mut each: impl FnMut(EntryRef, &Batch<E>, usize)) {
        let mut next = from;
        while let Some(at) = next {
            let Some((batch, _)) = self.get(at.batch) else { return };
            let run = &batch.runs[at.index()];
            for entry in run.entries().rev() {
                if batch.entries[entry].retracts.is_none() {
                    each(EntryRef { batch: at.batch, entry: entry as u32 }, batch, entry);
                }
            }
            next = run.previous;
        }
    }

    /// The oldest batch that is remembered.
    pub fn oldest(&self) -> Option<&Rc<Batch<E>>> {
        self.batches.front().map(|(batch, _)| batch)
    }

    /// Lets go of the oldest batch.
    pub fn pop(&mut self) {
        self.batches.pop_front();
    }

    /// Keeps what is not final at `watermark` until it is told otherwise; [`EventTime::MAX`] lets it go.
    pub fn hold(&mut self, watermark: EventTime) {
        self.hold = watermark;
    }

    /// The watermark, or the one at which history is held if that is less.
    pub fn held(&self, watermark: EventTime) -> EventTime {
        watermark.min(self.hold)
    }

    /// Lets go of leading batches whose events are all at or below the watermark.
    pub fn settle(&mut self, watermark: EventTime) {
        let watermark = self.held(watermark);
        while self.oldest().is_some_and(|batch| batch.max_time <= watermark) {
            self.pop();
        }
    }
}
