//! The logic of windows whose bounds do not depend on the events: tumbling and sliding.

use std::collections::BTreeMap;
use std::rc::Rc;

use differential_dataflow::Data;

use super::{Aggregate, Refresh, Render, Row, Window};
use crate::batch::{Batch, Change, EntryRef, History, Run, Slot};
use crate::keyed::{Logic, Selection};
use crate::keys::Keys;
use crate::{Epoch, Event, EventTime};

pub(crate) struct Aligned<E: Event, A: Aggregate<E>, D, F> {
    bounds: Bounds,
    refresh: Refresh,
    aggregate: A,
    result: F,
    open: OpenWindows<A::State, D>,
    /// How to take each event out of its windows again: for each entry, once per window that holds it.
    history: History<E, Vec<Option<A::Undo>>>,
    refreshed: Option<Epoch>,
}

/// Where windows begin and end.
#[derive(Clone, Copy)]
struct Bounds {
    size_ms: i64,
    every_ms: i64,
}

impl Bounds {
    /// At most so many windows hold an event.
    fn overlap(self) -> usize {
        (self.size_ms as u64).div_ceil(self.every_ms as u64) as usize
    }

    /// The starts of the windows that hold an event of this time, latest first.
    fn starts(self, time: EventTime) -> impl Iterator<Item = EventTime> {
        let latest = time.0.div_euclid(self.every_ms) * self.every_ms;
        let starts = (0..).map(move |i| latest - i * self.every_ms);
        starts.take_while(move |start| start + self.size_ms > time.0).map(EventTime)
    }

    fn window(self, start: EventTime) -> Window {
        Window { start, end: start.plus_ms(self.size_ms) }
    }
}

/// The windows that are not final, by slot.
struct OpenWindows<S, D> {
    bounds: Bounds,
    windows: Vec<Vec<Open<S, D>>>,
    /// Which keys have a window that ends then.
    due: BTreeMap<EventTime, Vec<Slot>>,
    /// Windows to show anew; none if nothing is shown before the end.
    changed: Option<Vec<(Slot, EventTime)>>,
}

struct Open<S, D> {
    start: EventTime,
    state: S,
    /// How many events it has: one that has lost them all has no row.
    events: u64,
    /// The row given last.
    shown: Option<D>,
    changed: bool,
}

impl<S: Default, D> OpenWindows<S, D> {
    /// The window that starts then, new if need be, about to be changed.
    fn change(&mut self, slot: Slot, start: EventTime) -> &mut Open<S, D> {
        if self.windows.len() <= slot.index() {
            self.windows.resize_with(slot.index() + 1, Vec::new);
        }
        let open = &mut self.windows[slot.index()];
        let at = open.iter().rposition(|window| window.start == start).unwrap_or_else(|| {
            self.due.entry(self.bounds.window(start).end).or_default().push(slot);
            open.push(Open { start, state: S::default(), events: 0, shown: None, changed: false });
            open.len() - 1
        });
        if let Some(changed) = &mut self.changed
            && !std::mem::replace(&mut open[at].changed, true)
        {
            changed.push((slot, start));
        }
        &mut open[at]
    }

    /// Takes out a window that is due.
    fn take(&mut self, slot: Slot, start: EventTime) -> Option<Open<S, D>> {
        let open = &mut self.windows[slot.index()];
        let at = open.iter().position(|window| window.start == start)?;
        Some(open.swap_remove(at))
    }
}

impl<E: Event, A: Aggregate<E>, D: Data, F: Render<E, A::State, D>> Aligned<E, A, D, F> {
    pub fn new(size_ms: i64, every_ms: i64, refresh: Refresh, aggregate: A, result: F) -> Self {
        assert!(
            (1..=size_ms).contains(&every_ms),
            "windows of {size_ms} ms cannot start every {every_ms} ms"
        );
        let bounds = Bounds { size_ms, every_ms };
        let changed = (refresh != Refresh::Final).then(Vec::new);
        let open = OpenWindows { bounds, windows: Vec::new(), due: BTreeMap::new(), changed };
        Aligned { bounds, refresh, aggregate, result, open, history: History::new(), refreshed: None }
    }

    fn add(&mut self, slot: Slot, event: &E, entry: usize, undos: &mut [Option<A::Undo>]) {
        let undos = &mut undos[entry * self.bounds.overlap()..];
        for (start, undo) in self.bounds.starts(event.time()).zip(undos) {
            let window = self.open.change(slot, start);
            window.events += 1;
            *undo = Some(self.aggregate.add(&mut window.state, event));
        }
    }

    /// Takes one event of a key out again: goes back over all that was added since, and adds the rest anew.
    fn retract(
        &mut self,
        batch: &Batch<E>,
        run: &Run,
        entry: usize,
        target: EntryRef,
        now: &mut [Option<A::Undo>],
    ) {
        let overlap = self.bounds.overlap();
        let mut since: Vec<EntryRef> = (run.entries().start..entry)
            .rev()
            .map(|entry| EntryRef { batch: batch.number, entry: entry as u32 })
            .collect();
        self.history.for_each(run.previous, |entry, _, _| since.push(entry));
        let depth = since.iter().position(|&entry| entry == target).expect("admission found it live") + 1;
        since.truncate(depth);
        since.retain(|entry| {
            // Neither a retraction nor what was retracted before has anything to go back over.
            let Some((from, undos)) = self.history.get(entry.batch) else {
                return now[entry.entry as usize * overlap].is_some();
            };
            debug_assert_eq!(from.number, entry.batch);
            undos[entry.entry as usize * overlap].is_some()
        });
        for &at in &since {
            let live = self.history.get(at.batch).map(|(from, _)| Rc::clone(from));
            let event = live.as_deref().unwrap_or(batch).event(at.entry as usize);
            let undos = self.history.log_mut(at.batch).map_or(&mut *now, |undos| undos.as_mut_slice());
            let undos = &mut undos[at.entry as usize * overlap..][..overlap];
            for (start, undo) in self.bounds.starts(event.time()).zip(undos) {
                let window = self.open.change(run.slot, start);
                window.events -= 1;
                self.aggregate.undo(&mut window.state, event, undo.take().expect("once per window"));
            }
        }
        for &at in since.iter().rev().filter(|&&at| at != target) {
            match self.history.get(at.batch).map(|(from, _)| Rc::clone(from)) {
                None => self.add(run.slot, batch.event(at.entry as usize), at.entry as usize, now),
                Some(from) => {
                    let mut undos = std::mem::take(self.history.log_mut(at.batch).expect("live"));
                    self.add(run.slot, from.event(at.entry as usize), at.entry as usize, &mut undos);
                    *self.history.log_mut(at.batch).expect("live") = undos;
                }
            }
        }
    }

    /// Gives the rows that have changed.
    fn refresh(&mut self, epoch: Epoch, keys: &Keys<E>, out: &mut Vec<(D, Epoch, isize)>) {
        for (slot, start) in self.open.changed.iter_mut().flat_map(|changed| changed.drain(..)) {
            let open = &mut self.open.windows[slot.index()];
            // A window that has closed since is not open any more.
            let Some(open) = open.iter_mut().find(|open| open.start == start) else { continue };
            open.changed = false;
            let row = (open.events > 0).then(|| {
                let window = self.bounds.window(start);
                (self.result)(Row { key: keys.key(slot), window, summary: &open.state, closed: false })
            });
            give(row.clone(), std::mem::replace(&mut open.shown, row), epoch, out);
        }
    }
}

/// Retracts the row shown before, if there is one and it differs, in favour of a new one.
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

    fn step(&mut self, batch: &Rc<Batch<E>>, selection: &Selection<E>, _out: &mut Vec<Self::Out>) {
        let mut undos = Vec::new();
        undos.resize_with(batch.entries.len() * self.bounds.overlap(), || None);
        for run in selection.runs(batch) {
            for entry in run.entries() {
                match batch.entries[entry].change {
                    Change::Insert => self.add(run.slot, batch.event(entry), entry, &mut undos),
                    Change::Retract(target) => self.retract(batch, run, entry, target, &mut undos),
                }
            }
        }
        self.history.push(Rc::clone(batch), undos);
    }

    fn close(&mut self, epoch: Epoch, watermark: EventTime, keys: &Keys<E>, out: &mut Vec<Self::Out>) {
        while let Some(due) = self.open.due.first_entry().filter(|due| due.key().minus_ms(1) <= watermark) {
            let end = *due.key();
            let start = end.minus_ms(self.bounds.size_ms);
            for slot in due.remove() {
                let Some(open) = self.open.take(slot, start) else { continue };
                let row = (open.events > 0).then(|| {
                    let window = Window { start, end };
                    (self.result)(Row { key: keys.key(slot), window, summary: &open.state, closed: true })
                });
                give(row, open.shown, epoch, out);
            }
        }
        if self.refresh.due(self.refreshed, epoch) {
            self.refresh(epoch, keys, out);
            self.refreshed = Some(epoch);
        }
        self.history.settle(watermark);
    }
}
