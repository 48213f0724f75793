//! The operator logic of windows whose bounds do not depend on the events: tumbling and sliding windows.

mod capture;
mod open;

use std::collections::BTreeMap;
use std::rc::Rc;

use differential_dataflow::Data;

use open::{OfKey, Open};

use super::{Aggregate, EmitPolicy, MAX_VISITED, Render, Row, Window};
use crate::batch::{Batch, Change, EntryRef, History, Run, Slot};
use crate::keyed::{Logic, Selection};
use crate::keys::Keys;
use crate::prefetch::prefetch;
use crate::slots::Slots;
use crate::{Epoch, Event, EventTime, Load, OwnedKey, StatePart};

/// The number of runs between prefetching memory and reading it.
const AHEAD: usize = 8;

pub(crate) struct Aligned<E: Event, A: Aggregate<E>, D, F> {
    bounds: Bounds,
    emit: EmitPolicy,
    aggregate: A,
    result: F,
    open: OpenWindows<A::State, D>,
    /// The batches, and for each entry the undo data of its event in each window that contains it.
    history: History<E, Vec<Option<A::Undo>>>,
    refreshed: Option<Epoch>,
}

/// The size of windows and the interval between their starts.
#[derive(Clone, Copy)]
struct Bounds {
    size_ms: i64,
    slide_ms: i64,
}

impl Bounds {
    /// Returns the maximum number of windows that contain one event.
    fn overlap(self) -> usize {
        (self.size_ms as u64).div_ceil(self.slide_ms as u64) as usize
    }

    /// Returns the starts of the windows that contain an event of this time, latest first and numbered from the
    /// latest. Windows whose bounds overflow [`EventTime`] (292 million years from 1970) are left out.
    fn starts(self, time: EventTime) -> impl Iterator<Item = (usize, EventTime)> {
        let latest = time.0.div_euclid(self.slide_ms);
        (0..self.overlap()).filter_map(move |nth| {
            let start = latest.checked_sub(nth as i64)?.checked_mul(self.slide_ms)?;
            let end = start.checked_add(self.size_ms)?;
            (time.0 < end).then_some((nth, EventTime(start)))
        })
    }

    /// Returns the number that [`starts`](Bounds::starts) gives to the window that begins at `start`; `None` if the
    /// window does not contain `time`.
    fn nth(self, time: EventTime, start: EventTime) -> Option<usize> {
        let holds = start <= time && time < self.window(start).end;
        holds.then(|| (time.0.div_euclid(self.slide_ms) - start.0.div_euclid(self.slide_ms)) as usize)
    }

    fn window(self, start: EventTime) -> Window {
        Window { start, end: start.plus_ms(self.size_ms) }
    }
}

/// The windows that are not final, by the slot of their key.
struct OpenWindows<S, D> {
    bounds: Bounds,
    windows: Slots<OfKey<S, D>>,
    /// The keys that have an open window, by the end of the window.
    due: BTreeMap<EventTime, Vec<Slot>>,
    /// The windows whose rows must be emitted again. `None` if rows are emitted only when they are final, or never.
    changed: Option<Vec<(Slot, EventTime)>>,
    load: Load,
}

impl<S: Default, D> OpenWindows<S, D> {
    /// Returns the window that begins at `start` and marks it as changed. Creates the window if it does not exist.
    fn change(&mut self, slot: Slot, start: EventTime) -> &mut Open<S, D> {
        let (window, new) = self.windows.made(slot).made(start);
        if new {
            self.due.entry(self.bounds.window(start).end).or_default().push(slot);
            self.load.windows(0, 1);
        }
        if let Some(changed) = &mut self.changed
            && !std::mem::replace(&mut window.changed, true)
        {
            changed.push((slot, start));
        }
        window
    }

    /// Removes a window that is due.
    fn take(&mut self, slot: Slot, start: EventTime) -> Option<Open<S, D>> {
        let taken = self.windows.at_mut(slot).remove(start)?;
        self.load.windows(1, 0);
        Some(taken)
    }
}

impl<E: Event, A: Aggregate<E>, D: Data, F: Render<E, A::State, D>> Aligned<E, A, D, F> {
    pub fn new(size_ms: i64, slide_ms: i64, emit: EmitPolicy, aggregate: A, result: F, load: Load) -> Self {
        assert!(
            (1..=size_ms).contains(&slide_ms),
            "window interval must be between 1 ms and the window size of {size_ms} ms, but is {slide_ms} ms"
        );
        let bounds = Bounds { size_ms, slide_ms };
        let changed = emit.is_early().then(Vec::new);
        let open = OpenWindows { bounds, windows: Slots::default(), due: BTreeMap::new(), changed, load };
        Aligned { bounds, emit, aggregate, result, open, history: History::new(), refreshed: None }
    }

    /// Prefetches the windows and the first events of later runs, one pointer after the other.
    fn prefetch(&self, batch: &Batch<E>, at: usize) {
        let event = |run: &Run| batch.event(run.start as usize);
        if let Some(run) = batch.runs.get(at + 3 * AHEAD) {
            prefetch(event(run));
        }
        if let Some(run) = batch.runs.get(at + 2 * AHEAD) {
            prefetch(self.open.windows.at(run.slot));
            event(run).prefetch();
        }
        if let Some(run) = batch.runs.get(at + AHEAD) {
            self.open.windows.at(run.slot).prefetch();
            prefetch(event(run).key());
        }
    }

    fn add(&mut self, slot: Slot, event: &E, entry: usize, undos: &mut [Option<A::Undo>]) {
        let undos = &mut undos[entry * self.bounds.overlap()..];
        for (nth, start) in self.bounds.starts(event.time()) {
            let window = self.open.change(slot, start);
            window.events += 1;
            undos[nth] = Some(self.aggregate.add(&mut window.state, event));
        }
    }

    /// Removes one event of a key: in each window that contains it, undoes all later additions and the event itself,
    /// then adds the other events again.
    ///
    /// Those windows are open, because the event is not final. Other windows of the later events may have closed.
    fn retract(&mut self, run: &Run, target: EntryRef) {
        let mut later = Vec::new();
        self.history.for_each(run.previous, |entry, _, _| later.push(entry));
        let depth = later.iter().position(|&entry| entry == target).expect("admission found a live entry");
        later.truncate(depth + 1);
        let (from, _) = self.history.get(target.batch).expect("admission found a live entry");
        for (_, start) in self.bounds.starts(from.entries[target.entry as usize].time) {
            let window = self.open.change(run.slot, start);
            let mut undone = Vec::with_capacity(later.len());
            for &at in &later {
                let Some((batch, undo)) = addition(&mut self.history, self.bounds, at, start) else {
                    continue;
                };
                let Some(undo) = undo.take() else { continue };
                window.events -= 1;
                self.aggregate.undo(&mut window.state, batch.event(at.entry as usize), undo);
                undone.push(at);
            }
            for at in undone.into_iter().rev().filter(|&at| at != target) {
                let Some((batch, undo)) = addition(&mut self.history, self.bounds, at, start) else {
                    continue;
                };
                window.events += 1;
                *undo = Some(self.aggregate.add(&mut window.state, batch.event(at.entry as usize)));
            }
        }
    }

    /// Emits the rows of the windows that have changed.
    fn emit(&mut self, epoch: Epoch, keys: &Keys<E>, out: &mut Vec<(D, Epoch, isize)>) {
        for (slot, start) in self.open.changed.iter_mut().flat_map(|changed| changed.drain(..)) {
            // The window may have closed after it changed.
            let Some(open) = self.open.windows.at_mut(slot).get_mut(start) else { continue };
            open.changed = false;
            let row = (open.events > 0).then(|| {
                let window = self.bounds.window(start);
                (self.result)(Row { key: keys.key(slot), window, summary: &open.state, closed: false })
            });
            let shown = std::mem::replace(&mut open.shown, row.clone().map(Box::new));
            give(row, shown.map(|shown| *shown), epoch, out);
        }
    }
}

/// Returns the batch of an entry and the undo data of its event in the window that begins at `start`; `None` if the
/// window does not contain the event.
fn addition<E: Event, U>(
    history: &mut History<E, Vec<Option<U>>>,
    bounds: Bounds,
    at: EntryRef,
    start: EventTime,
) -> Option<(&Batch<E>, &mut Option<U>)> {
    let (batch, undos) = history.get_mut(at.batch)?;
    let nth = bounds.nth(batch.entries[at.entry as usize].time, start)?;
    Some((batch, &mut undos[at.entry as usize * bounds.overlap() + nth]))
}

/// Emits a row and retracts the one emitted before (`shown`), unless both are equal.
pub(super) fn give<D: Data>(
    row: Option<D>,
    shown: Option<D>,
    epoch: Epoch,
    out: &mut Vec<(D, Epoch, isize)>,
) {
    if row != shown {
        out.extend(shown.map(|shown| (shown, epoch, -1)));
        out.extend(row.map(|row| (row, epoch, 1)));
    }
}

impl<E: Event, A: Aggregate<E>, D: Data, F: Render<E, A::State, D>> Logic<E> for Aligned<E, A, D, F> {
    type Out = (D, Epoch, isize);

    fn forget(&mut self, slots: &[Slot]) {
        // Their windows have closed: a key is kept until then.
        self.open.windows.forget(slots);
    }

    fn step(&mut self, batch: &Rc<Batch<E>>, selection: &Selection<E>, _out: &mut Vec<Self::Out>) {
        let mut undos = Vec::new();
        undos.resize_with(batch.entries.len() * self.bounds.overlap(), || None);
        if let Some(last) = batch.runs.last() {
            self.open.windows.make(last.slot);
        }
        for (at, run) in batch.runs.iter().enumerate() {
            self.prefetch(batch, at);
            if !selection.holds(batch, run) {
                continue;
            }
            for entry in run.entries() {
                match batch.change(entry) {
                    Change::Insert => self.add(run.slot, batch.event(entry), entry, &mut undos),
                    Change::Retract(target) => self.retract(run, target),
                }
            }
        }
        self.history.push(Rc::clone(batch), undos);
    }

    fn close(&mut self, epoch: Epoch, watermark: EventTime, keys: &Keys<E>, out: &mut Vec<Self::Out>) {
        while let Some(due) = self.open.due.first_entry().filter(|due| due.key().minus_ms(1) <= watermark) {
            let end = *due.key();
            let start = EventTime(end.0 - self.bounds.size_ms);
            for slot in due.remove() {
                let open = self.open.take(slot, start);
                let Some(open) = open.filter(|_| self.emit != EmitPolicy::Never) else { continue };
                let row = (open.events > 0).then(|| {
                    let window = Window { start, end };
                    (self.result)(Row { key: keys.key(slot), window, summary: &open.state, closed: true })
                });
                give(row, open.shown.map(|shown| *shown), epoch, out);
            }
        }
        if self.emit.due(self.refreshed, epoch) {
            self.emit(epoch, keys, out);
            self.refreshed = Some(epoch);
        }
        self.history.settle(watermark);
    }

    fn visit(&self, slot: Slot, key: &OwnedKey<E>, _: EventTime, visitor: &mut dyn FnMut(StatePart<'_>)) {
        let Some(windows) = self.open.windows.get(slot) else { return };
        let (latest, others) = windows.latest(MAX_VISITED);
        for open in latest.into_iter().filter(|open| open.events > 0) {
            let window = self.bounds.window(open.start);
            visitor(StatePart::Window(&(self.result)(Row {
                key,
                window,
                summary: &open.state,
                closed: false,
            })));
        }
        if others > 0 {
            visitor(StatePart::MoreWindows(others));
        }
    }
}
