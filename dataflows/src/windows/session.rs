//! Session windows: groups of events of a key, each less than a gap after the one before.

mod capture;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use differential_dataflow::{AsCollection, Data, VecCollection};
use serde::{Deserialize, Serialize};

use super::aligned::give;
use super::{Aggregate, EmitPolicy, MAX_VISITED, Render, Row, Window};
use crate::batch::{Batch, Change, EntryRef, History, Slot};
use crate::keyed::{Keyed, Logic, Selection};
use crate::keys::Keys;
use crate::slots::Slots;
use crate::{Epoch, Event, EventTime, Load, OwnedKey, StatePart};

/// Extension trait for session windows.
pub trait Session<'scope, E: Event> {
    /// Emits one row for each session. Two events of a key belong to one session if they are less than `gap_ms` apart.
    /// A session starts at its first event and ends `gap_ms` after its last.
    ///
    /// # Panics
    /// Panics if `gap_ms` is below 1.
    ///
    /// ```
    /// use headwater_dataflows::{Admission, Admit, testing};
    /// use headwater_dataflows::windows::{EmitPolicy, Session, Statistics};
    ///
    /// let sessions = testing::run(1, |events, control| {
    ///     let (keyed, _) = events.admit(control, Admission::default());
    ///     let count = Statistics::new(|_: &testing::Line| None, |_: &testing::Line| None);
    ///     keyed.session("Visit", 30, EmitPolicy::Final, count, |row| (row.window.start.0, row.window.end.0, row.summary.count))
    /// }, vec![
    ///     (vec![("ann", 10, 0, "a"), ("ann", 60, 1, "b"), ("ann", 95, 2, "c")], 5),
    ///     (vec![("ann", 35, 3, "d")], 89), // merges the first two sessions
    /// ]);
    /// assert_eq!(sessions, vec![((10, 90, 3), 1, 1), ((95, 125, 1), 2, 1)]);
    /// ```
    fn session<A, D, F>(
        self,
        name: &str,
        gap_ms: i64,
        emit: EmitPolicy,
        aggregate: A,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        A: Aggregate<E>,
        D: Data,
        F: Fn(Row<'_, OwnedKey<E>, A::State>) -> D + 'static;
}

impl<'scope, E: Event> Session<'scope, E> for Keyed<'scope, E> {
    fn session<A, D, F>(
        self,
        name: &str,
        gap_ms: i64,
        emit: EmitPolicy,
        aggregate: A,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        A: Aggregate<E>,
        D: Data,
        F: Fn(Row<'_, OwnedKey<E>, A::State>) -> D + 'static,
    {
        self.keep_for(gap_ms);
        let load = self.load();
        self.run(name, Sessions::new(gap_ms, emit, aggregate, result, load)).as_collection()
    }
}

/// The maximum number of un-final events that are aggregated when a key's state is visited. Bounds the time for which a
/// visit holds up the worker.
const MAX_ADDED: usize = 10_000;

pub(crate) struct Sessions<E: Event, A: Aggregate<E>, D, F> {
    gap_ms: i64,
    emit: EmitPolicy,
    aggregate: A,
    result: F,
    keys: Slots<KeySessions<A::State, D>>,
    /// The watermarks at which a session of a key may become final.
    due: BTreeSet<(EventTime, Slot)>,
    history: History<E, ()>,
    changed: Vec<Slot>,
    refreshed: Option<Epoch>,
    load: Load,
}

/// The sessions of a key that are not final, earliest first.
struct KeySessions<S, D> {
    open: Vec<Open<S>>,
    /// The rows emitted and not final, by start.
    shown: BTreeMap<EventTime, D>,
    changed: bool,
    /// The earliest time at which `due` contains this key.
    scheduled: Option<EventTime>,
}

/// A session: the aggregate of its final events, and its un-final events, earliest first.
struct Open<S> {
    settled: Option<Settled<S>>,
    recent: Vec<(EventTime, EntryRef)>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Settled<S> {
    first: EventTime,
    last: EventTime,
    state: S,
}

impl<S> Open<S> {
    fn first(&self) -> EventTime {
        match &self.settled {
            Some(settled) => settled.first,
            None => self.recent[0].0,
        }
    }

    fn last(&self) -> EventTime {
        match (self.recent.last(), &self.settled) {
            (Some(&(time, _)), _) => time,
            (None, Some(settled)) => settled.last,
            (None, None) => unreachable!("a session has events"),
        }
    }
}

impl<S, D> Default for KeySessions<S, D> {
    fn default() -> Self {
        KeySessions { open: Vec::new(), shown: BTreeMap::new(), changed: false, scheduled: None }
    }
}

impl<S, D> KeySessions<S, D> {
    /// Adds an event, and merges the sessions that it connects.
    fn insert(&mut self, time: EventTime, entry: EntryRef, gap_ms: i64) {
        let near =
            |open: &Open<S>| open.first().minus_ms(gap_ms) < time && time < open.last().plus_ms(gap_ms);
        let from = self.open.iter().position(near);
        let Some(from) = from else {
            let at = self.open.partition_point(|open| open.first() < time);
            self.open.insert(at, Open { settled: None, recent: vec![(time, entry)] });
            return;
        };
        // At most two sessions lie within the gap of one event. Only the first can have final events, because they all
        // lie before this event.
        if self.open.get(from + 1).is_some_and(near) {
            let later = self.open.remove(from + 1);
            self.open[from].recent.extend(later.recent);
        }
        let recent = &mut self.open[from].recent;
        let at = recent.partition_point(|other| *other <= (time, entry));
        recent.insert(at, (time, entry));
    }

    /// Removes an event, and splits the session if only this event connected its parts.
    fn retract(&mut self, entry: EntryRef, gap_ms: i64) {
        let holds = |open: &Open<S>| open.recent.iter().any(|&(_, other)| other == entry);
        let at = self.open.iter().position(holds).expect("admission found a live entry");
        let Open { settled, recent } = self.open.remove(at);
        let mut parts: Vec<Open<S>> =
            settled.map(|s| Open { settled: Some(s), recent: vec![] }).into_iter().collect();
        for (time, other) in recent.into_iter().filter(|&(_, other)| other != entry) {
            match parts.last_mut().filter(|part| time < part.last().plus_ms(gap_ms)) {
                Some(part) => part.recent.push((time, other)),
                None => parts.push(Open { settled: None, recent: vec![(time, other)] }),
            }
        }
        self.open.splice(at..at, parts);
    }
}

impl<E: Event, A: Aggregate<E>, D: Data, F: Render<E, A::State, D>> Sessions<E, A, D, F> {
    /// # Panics
    /// Panics if `gap_ms` is below 1.
    pub fn new(gap_ms: i64, emit: EmitPolicy, aggregate: A, result: F, load: Load) -> Self {
        assert!(gap_ms > 0, "session gap must be at least 1 ms, but is {gap_ms} ms");
        Sessions {
            gap_ms,
            emit,
            aggregate,
            result,
            keys: Slots::default(),
            due: BTreeSet::new(),
            history: History::new(),
            changed: Vec::new(),
            refreshed: None,
            load,
        }
    }

    fn change(&mut self, slot: Slot) -> &mut KeySessions<A::State, D> {
        let key = self.keys.made(slot);
        if self.emit.is_early() && !std::mem::replace(&mut key.changed, true) {
            self.changed.push(slot);
        }
        key
    }

    /// Schedules the key for the time at which its earliest session becomes final, unless it grows.
    fn schedule(&mut self, slot: Slot) {
        let key = self.keys.at_mut(slot);
        let Some(open) = key.open.first() else { return };
        let time = open.last().plus_ms(self.gap_ms).minus_ms(1);
        if key.scheduled.is_none_or(|scheduled| time < scheduled) {
            key.scheduled = Some(time);
            self.due.insert((time, slot));
        }
    }

    /// Closes the final sessions of a key and emits their rows.
    fn close_key(
        &mut self,
        slot: Slot,
        watermark: EventTime,
        epoch: Epoch,
        keys: &Keys<E>,
        out: &mut Vec<(D, Epoch, isize)>,
    ) {
        let key = self.keys.at_mut(slot);
        let last = |open: &Open<A::State>| open.last().plus_ms(self.gap_ms).minus_ms(1);
        while key.open.first().is_some_and(|open| last(open) <= watermark) {
            let open = key.open.remove(0);
            self.load.windows(1, 0);
            if self.emit == EmitPolicy::Never {
                continue;
            }
            let (window, state) = summed(&self.aggregate, &self.history, &open, self.gap_ms);
            let shown = key.shown.remove(&window.start);
            let row = (self.result)(Row { key: keys.key(slot), window, summary: &state, closed: true });
            give(Some(row), shown, epoch, out);
            // Other rows emitted up to its end belong to sessions that were merged into it or have lost all events.
            let later = key.shown.split_off(&window.end);
            out.extend(std::mem::replace(&mut key.shown, later).into_values().map(|row| (row, epoch, -1)));
        }
    }

    /// Returns true if rows are due, also at the end of all input: a session that has lost its events never closes, so
    /// its row must be retracted here.
    fn shows(&self, epoch: Epoch, watermark: EventTime) -> bool {
        self.emit.due(self.refreshed, epoch)
            || (watermark == EventTime::MAX && self.emit != EmitPolicy::Never)
    }

    fn show(&mut self, epoch: Epoch, keys: &Keys<E>, out: &mut Vec<(D, Epoch, isize)>) {
        for slot in self.changed.drain(..) {
            let key = self.keys.at_mut(slot);
            key.changed = false;
            let mut before = std::mem::take(&mut key.shown);
            for open in &key.open {
                let (window, state) = summed(&self.aggregate, &self.history, open, self.gap_ms);
                let row = (self.result)(Row { key: keys.key(slot), window, summary: &state, closed: false });
                give(Some(row.clone()), before.remove(&window.start), epoch, out);
                key.shown.insert(window.start, row);
            }
            out.extend(before.into_values().map(|row| (row, epoch, -1)));
        }
    }
}

/// Returns the bounds of a session and the aggregate of all its events.
fn summed<E: Event, A: Aggregate<E>>(
    aggregate: &A,
    history: &History<E, ()>,
    open: &Open<A::State>,
    gap_ms: i64,
) -> (Window, A::State) {
    let mut state = open.settled.as_ref().map(|settled| settled.state.clone()).unwrap_or_default();
    for &(_, entry) in &open.recent {
        let (batch, _) = history.get(entry.batch).expect("a recent event is in a live batch");
        aggregate.add(&mut state, batch.event(entry.entry as usize));
    }
    (Window { start: open.first(), end: open.last().plus_ms(gap_ms) }, state)
}

impl<E: Event, A: Aggregate<E>, D: Data, F: Render<E, A::State, D>> Logic<E> for Sessions<E, A, D, F> {
    type Out = (D, Epoch, isize);

    fn forget(&mut self, slots: &[Slot]) {
        for &slot in slots {
            // Its sessions have closed. A row whose events were all retracted must still be retracted itself.
            if let Some(key) = self.keys.get_mut(slot).filter(|key| key.shown.is_empty()) {
                key.open = Vec::new();
            }
        }
    }

    fn step(&mut self, batch: &Rc<Batch<E>>, selection: &Selection<E>, _out: &mut Vec<Self::Out>) {
        self.history.push(Rc::clone(batch), ());
        for run in selection.runs(batch) {
            let before = self.change(run.slot).open.len();
            for entry in run.entries() {
                let gap_ms = self.gap_ms;
                let time = batch.entries[entry].time;
                match batch.change(entry) {
                    Change::Insert => {
                        let entry = EntryRef { batch: batch.number, entry: entry as u32 };
                        self.change(run.slot).insert(time, entry, gap_ms);
                    }
                    Change::Retract(target) => self.change(run.slot).retract(target, gap_ms),
                }
            }
            self.load.windows(before, self.keys.at(run.slot).open.len());
            self.schedule(run.slot);
        }
    }

    fn close(&mut self, epoch: Epoch, watermark: EventTime, keys: &Keys<E>, out: &mut Vec<Self::Out>) {
        while let Some(&(time, slot)) = self.due.first()
            && time <= watermark
        {
            self.due.pop_first();
            self.keys.at_mut(slot).scheduled.take_if(|scheduled| *scheduled == time);
            self.close_key(slot, watermark, epoch, keys, out);
            self.schedule(slot);
        }
        if self.shows(epoch, watermark) {
            self.show(epoch, keys, out);
            self.refreshed = Some(epoch);
        }
        // Before a batch is dropped, its events become part of the settled state of the sessions that are still open.
        let watermark = self.history.held(watermark);
        while let Some(batch) = self.history.oldest().filter(|batch| batch.max_time <= watermark) {
            let batch = Rc::clone(batch);
            for run in &batch.runs {
                let Some(key) = self.keys.get_mut(run.slot) else { continue };
                key.open.iter_mut().for_each(|open| fold(&self.aggregate, &self.history, open, watermark));
            }
            self.history.pop();
        }
    }

    fn visit(&self, slot: Slot, key: &OwnedKey<E>, _: EventTime, visitor: &mut dyn FnMut(StatePart<'_>)) {
        let open = self.keys.get(slot).map_or(&[][..], |key| &key.open);
        let mut unsettled = 0;
        let count = open.iter().rev().take(MAX_VISITED).take_while(|open| {
            unsettled += open.recent.len();
            unsettled <= MAX_ADDED
        });
        let count = count.count();
        for open in open.iter().rev().take(count) {
            let (window, state) = summed(&self.aggregate, &self.history, open, self.gap_ms);
            visitor(StatePart::Window(&(self.result)(Row { key, window, summary: &state, closed: false })));
        }
        if count < open.len() {
            visitor(StatePart::MoreWindows(open.len() - count));
        }
    }
}

/// Moves the final events of a session from `recent` to `settled`.
fn fold<E: Event, A: Aggregate<E>>(
    aggregate: &A,
    history: &History<E, ()>,
    open: &mut Open<A::State>,
    watermark: EventTime,
) {
    let count = open.recent.partition_point(|&(time, _)| time <= watermark);
    for (time, entry) in open.recent.drain(..count) {
        let (batch, _) = history.get(entry.batch).expect("a recent event is in a live batch");
        let settled = open.settled.get_or_insert_with(|| Settled {
            first: time,
            last: time,
            state: A::State::default(),
        });
        settled.last = time;
        aggregate.add(&mut settled.state, batch.event(entry.entry as usize));
    }
}
