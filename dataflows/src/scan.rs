//! `scan`: evaluates a pattern over the events of each key in event-time order, regardless of the order of arrival.

mod capture;
mod enter;
mod rewrite;
mod sweep;

use std::collections::BTreeMap;
use std::rc::Rc;

use differential_dataflow::{AsCollection, Data, VecCollection};

use crate::batch::{Batch, History, Slot};
use crate::due::Due;
use crate::keyed::{Keyed, Logic, Selection};
use crate::keys::Keys;
use crate::patterns;
use crate::prefetch::prefetch;
use crate::rules::{Found, Missing, Rule, Rules};
use crate::slots::Slots;
use crate::undos::Undos;
use crate::{Epoch, Event, EventTime, OwnedKey, StatePart};
pub use capture::forget_rules;
use enter::Placed;
use rewrite::Walked;
use sweep::Sweep;

/// A pattern: a small state machine over the events of one key.
///
/// # Contract
/// - The size of the state is bounded by the parameters of the pattern, not by the rate of events.
/// - `step` depends only on the state and the event.
/// - `undo` with the value that `step` returned restores the state before that step. A pattern with a small state can
///   use `type Undo = Self::State` and return a copy.
///
/// ```
/// use headwater_dataflows::{Pattern, testing::Line};
///
/// /// Matches every third event of a key.
/// struct EveryThird;
///
/// impl Pattern<Line> for EveryThird {
///     type State = u64;
///     type Undo = u64;
///     type Match = u64;
///     fn step(&self, seen: &mut u64, _event: &Line) -> (Option<u64>, u64) {
///         let before = *seen;
///         *seen += 1;
///         ((*seen % 3 == 0).then_some(*seen), before)
///     }
///     fn undo(&self, seen: &mut u64, _event: &Line, before: u64) {
///         *seen = before;
///     }
/// }
/// ```
pub trait Pattern<E>: 'static {
    /// The state of a key.
    type State: Default + Clone + 'static;
    /// The data needed to undo one step.
    type Undo: Clone + 'static;
    /// The details of a match.
    type Match;

    /// Processes the key's next event in the order (event time, partition, offset).
    fn step(&self, state: &mut Self::State, event: &E) -> (Option<Self::Match>, Self::Undo);

    /// Undoes the latest step.
    fn undo(&self, state: &mut Self::State, event: &E, undo: Self::Undo);

    /// Prefetches the memory that the state points to and that a step will read, some time before the step: see
    /// [`prefetch`](crate::prefetch). The state itself and the event are already prefetched.
    #[inline]
    fn prefetch(&self, _state: &Self::State, _event: &E) {}

    /// Returns true if one state can replace the other: in all later steps, and when steps that led to the other state
    /// are undone. After a change of history, the later steps are repeated until this returns true. The default returns
    /// false, so that all later steps are repeated.
    fn same(&self, _one: &Self::State, _other: &Self::State) -> bool {
        false
    }

    /// Returns a description of a state for people; `None` (the default) if the pattern has none. `watermark` is the
    /// operator's: later events are above it.
    fn describe(&self, _state: &Self::State, _watermark: EventTime) -> Option<patterns::Description> {
        None
    }
}

/// The time at which a result is emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emission {
    /// At once. The result is retracted if an out-of-order event changes history.
    Immediate,
    /// After the watermark has passed the time of the result, so that the result cannot change any more.
    Final,
}

/// Extension trait for evaluating a pattern over the events of each key.
pub trait Scan<'scope, E: Event> {
    /// Returns the matches of `pattern` as results made by `result`.
    ///
    /// If events arrive in order, each is stepped once. Otherwise the un-final events of the key are stepped again from
    /// the earliest new event on, once per epoch, and only the differences are emitted. The result is a collection with
    /// retractions.
    ///
    /// ```
    /// use headwater_dataflows::{Admission, Admit, Emission, Scan, patterns::Frequency, testing};
    ///
    /// // Two events within 10 ms; the second arrives an epoch before the first.
    /// let matches = testing::run(1, |events, control| {
    ///     let (keyed, _) = events.admit(control, Admission::default());
    ///     keyed.scan("Pair", Frequency::at_least(2, 10), Emission::Immediate, |event, found| (event.offset, found.count))
    /// }, vec![
    ///     (vec![("ann", 10, 0, "a"), ("ann", 15, 1, "b")], 5),
    ///     (vec![("ann", 8, 2, "c")], 20),
    /// ]);
    /// assert_eq!(matches, vec![((0, 2), 1, 1), ((1, 2), 0, 1), ((1, 2), 1, -1)]);
    /// ```
    fn scan<P, D, F>(
        self,
        name: &str,
        pattern: P,
        emission: Emission,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        P: Pattern<E>,
        D: Data,
        F: Fn(&E, P::Match) -> D + 'static;

    /// Evaluates several patterns in one pass: see [`Rules`]. Costs less than one [`scan`](Scan::scan) for each.
    ///
    /// ```
    /// use headwater_dataflows::{Admission, Admit, Emission, Rule, Scan, patterns::Frequency, testing};
    ///
    /// let matches = testing::run(1, |events, control| {
    ///     let (keyed, _) = events.admit(control, Admission::default());
    ///     let pair = Rule::new(Frequency::at_least(2, 10), Emission::Immediate, |e: &testing::Line, _| e.offset);
    ///     let three = Rule::new(Frequency::at_least(3, 10), Emission::Final, |e: &testing::Line, _| 10 * e.offset);
    ///     keyed.scan_all("Rules", (pair, (three, ())))
    /// }, vec![
    ///     (vec![("ann", 1, 0, "a"), ("ann", 2, 1, "b"), ("ann", 3, 2, "c")], 0),
    ///     (vec![], 3),
    /// ]);
    /// assert_eq!(matches, vec![(1, 0, 1), (20, 1, 1)]);
    /// ```
    fn scan_all<R, D>(self, name: &str, rules: R) -> VecCollection<'scope, Epoch, D>
    where
        R: Rules<E, D>,
        D: Data;

    /// Returns the matches of an absence, as results that `result` makes of the key and the run that no event followed.
    /// They are emitted when the watermark has passed the deadline, and never retracted.
    ///
    /// ```
    /// use headwater_dataflows::{Scan, patterns::Sequence, testing::{Kit, Line}};
    ///
    /// let mut kit = Kit::new(|keyed| {
    ///     let unpaid = Sequence::first(|line: &Line| line.id.strip_prefix("order ").map(str::to_owned))
    ///         .then_not(|run, line| line.id.strip_prefix("payment ") == Some(run.first()))
    ///         .within(30);
    ///     keyed.scan_absence("Unpaid", unpaid, |key, run| (key.to_owned(), run.first().clone()))
    /// });
    /// kit.push_at(10, Line::of("ann", "order 1"));
    /// kit.push_at(15, Line::of("ann", "order 2"));
    /// kit.push_at(35, Line::of("ann", "payment 2"));
    /// kit.advance_watermark(38);
    /// kit.expect_raised([]);
    /// kit.advance_watermark(39);
    /// kit.expect_raised([("ann".to_owned(), "1".to_owned())]);
    /// kit.finish();
    /// ```
    fn scan_absence<T, D, F>(
        self,
        name: &str,
        absence: patterns::Absence<E, T>,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        T: Clone + PartialEq + 'static,
        D: Data,
        F: Fn(&E::Key, &patterns::Run<T>) -> D + 'static;
}

impl<'scope, E: Event> Scan<'scope, E> for Keyed<'scope, E> {
    fn scan<P, D, F>(
        self,
        name: &str,
        pattern: P,
        emission: Emission,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        P: Pattern<E>,
        D: Data,
        F: Fn(&E, P::Match) -> D + 'static,
    {
        self.scan_all(name, (Rule::new(pattern, emission, result), ()))
    }

    fn scan_absence<T, D, F>(
        self,
        name: &str,
        absence: patterns::Absence<E, T>,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        T: Clone + PartialEq + 'static,
        D: Data,
        F: Fn(&E::Key, &patterns::Run<T>) -> D + 'static,
    {
        self.scan_all(name, (Missing::new(absence, result), ()))
    }

    fn scan_all<R, D>(self, name: &str, rules: R) -> VecCollection<'scope, Epoch, D>
    where
        R: Rules<E, D>,
        D: Data,
    {
        self.run(name, Scanner::new(rules)).as_collection()
    }
}

/// The number of runs between prefetching memory and reading it.
const AHEAD: usize = 6;

/// The maximum number of spare stores.
const SPARE: usize = 2;

/// The undo data and results of the steps of a batch, by entry.
struct Steps<U, D> {
    undos: Undos<U>,
    found: BTreeMap<u32, Vec<Found<D>>>,
}

pub(crate) struct Scanner<E: Event, R: Rules<E, D>, D> {
    rules: R,
    states: Slots<R::State>,
    /// Results that are emitted when they are final.
    waiting: Due<D>,
    history: History<E, Steps<R::Undo, D>>,
    /// A key's steps from the first change of its history on.
    walk: Vec<Walked>,
    /// The states of the key at landmarks among these steps.
    kept: Vec<R::State>,
    found: Vec<Found<D>>,
    /// A buffer for the undo data of a step that is made again.
    again: Vec<Option<R::Undo>>,
    /// The numbers of entries and of items of undo data of the last batch.
    last: (usize, usize),
    /// Stores of settled batches, whose memory is used again: the system clears the pages of new memory.
    spare: Vec<Undos<R::Undo>>,
    sweep: Sweep,
    /// The states of rules that enter at the end of this epoch.
    entering: Option<Placed<E, R::State>>,
}

impl<E: Event, R: Rules<E, D>, D: Data> Logic<E> for Scanner<E, R, D> {
    type Out = (D, Epoch, isize);

    fn forget(&mut self, slots: &[Slot]) {
        self.states.forget(slots);
    }

    fn step(&mut self, batch: &Rc<Batch<E>>, selection: &Selection<E>, out: &mut Vec<Self::Out>) {
        self.begin(batch.epoch);
        // Without rules, no event is stepped. Rules that enter later need the events.
        if self.rules.all().is_empty() {
            let steps = Steps { undos: Undos::default(), found: BTreeMap::new() };
            return self.history.push(Rc::clone(batch), steps);
        }
        let mut steps = self.new_steps(batch.entries.len());
        let mut disordered = false;
        if let Some(last) = batch.runs.last() {
            self.states.make(last.slot);
        }
        for (at, run) in batch.runs.iter().enumerate() {
            self.prefetch(batch, at);
            if !selection.holds(batch, run) {
                continue;
            }
            if !run.in_order {
                disordered = true;
                continue;
            }
            let state = self.states.at_mut(run.slot);
            for entry in run.entries() {
                steps.undos.push(entry, |items| {
                    self.rules.step(state, batch.event(entry), items, &mut self.found);
                });
                if !self.found.is_empty() {
                    give(&self.rules, &mut self.waiting, self.found.iter().cloned(), batch.epoch, 1, out);
                    steps.found.insert(entry as u32, std::mem::take(&mut self.found));
                }
            }
        }
        self.last = (batch.entries.len().max(1), steps.undos.items());
        self.history.push(Rc::clone(batch), steps);
        if disordered {
            for run in selection.runs(batch).filter(|run| !run.in_order) {
                self.rewrite(batch, run, out);
            }
        }
    }

    fn prepare(&mut self, epoch: Epoch, keys: &mut Keys<E>, selection: &Selection<E>) {
        self.begin(epoch);
        if let Some(entering) = self.rules.entering(epoch) {
            self.entering = Some(Placed::new(entering, keys, selection));
        }
    }

    fn close(&mut self, epoch: Epoch, watermark: EventTime, keys: &Keys<E>, out: &mut Vec<Self::Out>) {
        self.begin(epoch);
        if let Some(entering) = self.entering.take() {
            self.enter(epoch, entering, keys, out);
        }
        while let Some(Steps { mut undos, .. }) = self.history.settle_one(watermark) {
            undos.clear();
            if self.spare.len() < SPARE {
                self.spare.push(undos);
            }
        }
        self.waiting.release(watermark, epoch, out);
        // Captures in progress undo steps of events above the watermark of their mark.
        if self.rules.forget(self.history.held(watermark)) {
            self.sweep.start();
        }
        let rules = &self.rules;
        self.sweep.advance(&mut self.states, |state| rules.sweep(state));
    }

    fn visit(
        &self,
        slot: Slot,
        _: &OwnedKey<E>,
        watermark: EventTime,
        visitor: &mut dyn FnMut(StatePart<'_>),
    ) {
        if let Some(state) = self.states.get(slot) {
            let visitor = &mut |rule, description| visitor(StatePart::Rule { rule, description });
            self.rules.describe(state, watermark, visitor);
        }
    }
}

impl<E: Event, R: Rules<E, D>, D: Data> Scanner<E, R, D> {
    pub fn new(rules: R) -> Self {
        Scanner {
            rules,
            states: Slots::default(),
            waiting: Due::new(),
            history: History::new(),
            walk: Vec::new(),
            kept: Vec::new(),
            found: Vec::new(),
            again: Vec::new(),
            last: (1, 1),
            spare: Vec::new(),
            sweep: Sweep::default(),
            entering: None,
        }
    }

    /// Takes over changes of the rules, before an epoch is processed.
    fn begin(&mut self, epoch: Epoch) {
        if self.rules.begin(epoch) {
            let rules = &self.rules;
            self.waiting.retain(|rule| !rules.is_removed(rule));
        }
    }

    /// Returns a store for the steps of a batch with this number of entries.
    fn new_steps(&mut self, entries: usize) -> Steps<R::Undo, D> {
        let (last_entries, last_items) = self.last;
        let items = entries * last_items / last_entries;
        let spare = self.spare.pop().filter(|spare| !spare.is_oversized(entries, items));
        let mut undos = spare.unwrap_or_default();
        undos.reserve(entries, items + items / 8);
        Steps { undos, found: BTreeMap::new() }
    }

    /// Prefetches the memory of later runs: state and event, then the memory that they point to, in two steps for the
    /// state.
    fn prefetch(&self, batch: &Batch<E>, at: usize) {
        let ahead = |runs: usize| {
            let run = batch.runs.get(at + runs)?;
            Some((run.slot, batch.event(run.start as usize)))
        };
        if let Some((slot, event)) = ahead(3 * AHEAD) {
            prefetch(self.states.at(slot));
            prefetch(event);
        }
        if let Some((slot, event)) = ahead(2 * AHEAD) {
            event.prefetch();
            self.rules.prefetch_ahead(self.states.at(slot));
        }
        if let Some((slot, event)) = ahead(AHEAD) {
            if let Some(id) = event.id() {
                prefetch(id);
            }
            self.rules.prefetch(self.states.at(slot), event);
        }
    }
}

/// Emits results, or revokes them if `sign` is −1: to `out`, or to `waiting` if they wait for the watermark. Those that
/// were removed are not emitted.
fn give<E: Event, D: Data>(
    rules: &impl Rules<E, D>,
    waiting: &mut Due<D>,
    answers: impl Iterator<Item = Found<D>>,
    epoch: Epoch,
    sign: isize,
    out: &mut Vec<(D, Epoch, isize)>,
) {
    for Found { rule, answer, due, diff } in answers {
        match due {
            None => out.push((answer, epoch, sign * diff)),
            Some(_) if rules.is_removed(rule) => {}
            Some(due) => waiting.add(due, answer, rule, sign * diff),
        }
    }
}

/// Returns the owned key of an event together with a match: the usual result.
pub fn with_key<E: Event, M>(event: &E, found: M) -> (OwnedKey<E>, M) {
    (event.key().to_owned(), found)
}
