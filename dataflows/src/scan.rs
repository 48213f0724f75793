//! `scan`: evaluates a pattern over the events of each key, in order, whatever the order of arrival.

mod capture;
mod rewrite;

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
use crate::{Epoch, Event, EventTime, OwnedKey};
pub use capture::forget_rules;
use rewrite::Walked;

/// A pattern: a small state machine over the events of one key.
///
/// # Contract
/// - The state is bounded by the pattern's own numbers, not by the rate of events.
/// - `step` depends on the state and the event alone.
/// - `undo` with what `step` returned brings the state back to what it was before that step. A pattern with a
///   small state may say `type Undo = Self::State` and hand back a copy.
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
    /// What it remembers of a key.
    type State: Default + Clone + 'static;
    /// What takes a state back over one step.
    type Undo: Clone + 'static;
    /// What it says of an event that matches.
    type Match;

    /// Takes in the key's next event in the order (event time, partition, offset).
    fn step(&self, state: &mut Self::State, event: &E) -> (Option<Self::Match>, Self::Undo);

    /// Goes back over the latest step.
    fn undo(&self, state: &mut Self::State, event: &E, undo: Self::Undo);

    /// Asks for the memory that a step will read and that the state points to, some time before the step: see
    /// [`prefetch`](crate::prefetch). The state itself and the event have been asked for.
    #[inline]
    fn prefetch(&self, _state: &Self::State, _event: &E) {}

    /// Whether one state may stand for the other: in every step to come, and in going back over steps to which the
    /// other led. Where history changes, the steps after that are taken again until this holds. Who cannot say says no,
    /// as it is if this is left out, and has all of them taken again.
    fn same(&self, _one: &Self::State, _other: &Self::State) -> bool {
        false
    }
}

/// When an answer is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emission {
    /// At once; retracted if an event that arrives out of order changes history.
    Immediate,
    /// When the watermark has passed the answer's time and nothing can change it any more.
    Final,
}

/// Extension trait for evaluating a pattern over the events of each key.
pub trait Scan<'scope, E: Event> {
    /// The matches of `pattern`, each turned into a result by `result`.
    ///
    /// Each event is stepped once if events arrive in order. If they do not, the key's events that are not final
    /// are stepped again from the earliest that is new, once per epoch, and the differences come out: a true
    /// collection, with retractions.
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

    /// As [`scan`](Scan::scan), but several patterns in one pass: see [`Rules`]. Cheaper than one scan for each.
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

    /// What did not follow in time, as `result` makes of the key and of what was not followed. Given when the
    /// watermark has passed the time, and never retracted.
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

/// How many runs lie between asking for memory and reading it.
const AHEAD: usize = 6;

/// What one batch's steps left behind, by entry.
struct Steps<U, D> {
    /// How to go back over each; none if the entry is not a step, or not any more.
    undos: Vec<Option<U>>,
    found: BTreeMap<u32, Vec<Found<D>>>,
}

pub(crate) struct Scanner<E: Event, R: Rules<E, D>, D> {
    rules: R,
    states: Slots<R::State>,
    /// Answers that are not given before they are final.
    waiting: Due<D>,
    history: History<E, Steps<R::Undo, D>>,
    /// A key's steps from the first change of its history on, and states that it went through in them.
    walk: Vec<Walked>,
    kept: Vec<R::State>,
    found: Vec<Found<D>>,
}

impl<E: Event, R: Rules<E, D>, D: Data> Logic<E> for Scanner<E, R, D> {
    type Out = (D, Epoch, isize);

    fn forget(&mut self, slots: &[Slot]) {
        self.states.forget(slots);
    }

    fn step(&mut self, batch: &Rc<Batch<E>>, selection: &Selection<E>, out: &mut Vec<Self::Out>) {
        let mut steps = Steps { undos: Vec::with_capacity(batch.entries.len()), found: BTreeMap::new() };
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
            // What was passed over are no steps.
            steps.undos.resize_with(run.start as usize, || None);
            for entry in run.entries() {
                let undo = self.rules.step(state, batch.event(entry), &mut self.found);
                steps.undos.push(Some(undo));
                if !self.found.is_empty() {
                    give(&mut self.waiting, self.found.iter().cloned(), batch.epoch, 1, out);
                    steps.found.insert(entry as u32, std::mem::take(&mut self.found));
                }
            }
        }
        steps.undos.resize_with(batch.entries.len(), || None);
        self.history.push(Rc::clone(batch), steps);
        if disordered {
            for run in selection.runs(batch).filter(|run| !run.in_order) {
                self.rewrite(batch, run, out);
            }
        }
    }

    fn close(&mut self, epoch: Epoch, watermark: EventTime, _keys: &Keys<E>, out: &mut Vec<Self::Out>) {
        self.history.settle(watermark);
        self.waiting.release(watermark, epoch, out);
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
        }
    }

    /// Asks for what later runs will read: state and event, then what the event points to, then what the state does.
    fn prefetch(&self, batch: &Batch<E>, at: usize) {
        let ahead = |runs: usize| {
            let run = batch.runs.get(at + runs)?;
            Some((run.slot, batch.event(run.start as usize)))
        };
        if let Some((slot, event)) = ahead(3 * AHEAD) {
            prefetch(self.states.at(slot));
            prefetch(event);
        }
        if let Some((_, event)) = ahead(2 * AHEAD) {
            event.prefetch();
        }
        if let Some((slot, event)) = ahead(AHEAD) {
            if let Some(id) = event.id() {
                prefetch(id);
            }
            self.rules.prefetch(self.states.at(slot), event);
        }
    }
}

/// Gives answers, or takes them back if `sign` is −1: out at once, or to what waits for the watermark.
fn give<D: Data>(
    waiting: &mut Due<D>,
    answers: impl Iterator<Item = Found<D>>,
    epoch: Epoch,
    sign: isize,
    out: &mut Vec<(D, Epoch, isize)>,
) {
    for Found { answer, due, diff, .. } in answers {
        match due {
            None => out.push((answer, epoch, sign * diff)),
            Some(due) => waiting.add(due, answer, sign * diff),
        }
    }
}

/// An owned key beside what was found for it: the usual result.
pub fn with_key<E: Event, M>(event: &E, found: M) -> (OwnedKey<E>, M) {
    (event.key().to_owned(), found)
}
