//! `scan`: evaluates a pattern over the events of each key, in order, whatever the order of arrival.

mod capture;

use std::collections::BTreeMap;
use std::rc::Rc;

use differential_dataflow::{AsCollection, Data, VecCollection, consolidation};

use crate::batch::{Batch, Change, EntryRef, History, Run, RunRef, Slot};
use crate::event::order;
use crate::keyed::{Keyed, Logic, Selection};
use crate::keys::Keys;
use crate::patterns;
use crate::rules::{Found, Missing, Rule, Rules};
use crate::{Epoch, Event, EventTime, OwnedKey, Position};

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
    type State: Default + 'static;
    /// What takes a state back over one step.
    type Undo: 'static;
    /// What it says of an event that matches.
    type Match;

    /// Takes in the key's next event in the order (event time, partition, offset).
    fn step(&self, state: &mut Self::State, event: &E) -> (Option<Self::Match>, Self::Undo);

    /// Goes back over the latest step.
    fn undo(&self, state: &mut Self::State, event: &E, undo: Self::Undo);
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
        T: Clone + 'static,
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
        T: Clone + 'static,
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

/// What one batch's steps left behind, by entry.
struct Steps<U, D> {
    /// How to go back over each; none if the entry is not a step, or not any more.
    undos: Vec<Option<U>>,
    found: BTreeMap<u32, Vec<Found<D>>>,
}

pub(crate) struct Scanner<E: Event, R: Rules<E, D>, D> {
    rules: R,
    /// By slot.
    states: Vec<R::State>,
    /// Answers that are not given before they are final, by their time.
    waiting: BTreeMap<EventTime, Vec<(D, isize)>>,
    history: History<E, Steps<R::Undo, D>>,
    walk: Vec<Walked>,
    found: Vec<Found<D>>,
}

/// A step to take again, or for the first time.
struct Walked {
    order: (EventTime, Position),
    entry: EntryRef,
}

impl<E: Event, R: Rules<E, D>, D: Data> Logic<E> for Scanner<E, R, D> {
    type Out = (D, Epoch, isize);

    fn step(&mut self, batch: &Rc<Batch<E>>, selection: &Selection<E>, out: &mut Vec<Self::Out>) {
        let mut steps = Steps { undos: Vec::with_capacity(batch.entries.len()), found: BTreeMap::new() };
        let mut disordered = false;
        for run in selection.runs(batch) {
            if self.states.len() <= run.slot.index() {
                self.states.resize_with(run.slot.index() + 1, R::State::default);
            }
            if !run.in_order {
                disordered = true;
                continue;
            }
            let state = &mut self.states[run.slot.index()];
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
        while let Some(first) = self.waiting.first_entry().filter(|first| *first.key() <= watermark) {
            let mut answers = first.remove();
            consolidation::consolidate(&mut answers);
            out.extend(answers.into_iter().map(|(answer, diff)| (answer, epoch, diff)));
        }
    }
}

impl<E: Event, R: Rules<E, D>, D: Data> Scanner<E, R, D> {
    pub fn new(rules: R) -> Self {
        Scanner {
            rules,
            states: Vec::new(),
            waiting: BTreeMap::new(),
            history: History::new(),
            walk: Vec::new(),
            found: Vec::new(),
        }
    }

    /// Goes back over a key's steps at or after `first`, found from its run `newest` backwards, and leaves them in
    /// `walk`, earliest first. What was found stays where it is, to be compared with what is found again.
    fn go_back(&mut self, slot: Slot, newest: Option<RunRef>, first: (EventTime, Position)) {
        let Scanner { rules, states, history, walk, .. } = self;
        let state = &mut states[slot.index()];
        history.for_each(newest, |entry, batch, index| {
            let order = order(batch.event(index));
            let stepped = history.get(entry.batch).is_some_and(|(_, steps)| steps.undos[index].is_some());
            if order >= first && stepped {
                walk.push(Walked { order, entry });
            }
        });
        walk.sort_unstable_by_key(|walked| (walked.order, walked.entry));
        for &Walked { entry, .. } in walk.iter().rev() {
            let from = Rc::clone(&history.get(entry.batch).expect("for_each named a live batch").0);
            let steps = history.log_mut(entry.batch).expect("as before");
            let undo = steps.undos[entry.entry as usize].take().expect("only steps were collected");
            rules.undo(state, from.event(entry.entry as usize), undo);
        }
    }

    /// Takes in a run that changes history: goes back over the key's later steps, and forward again.
    fn rewrite(&mut self, batch: &Rc<Batch<E>>, run: &Run, out: &mut Vec<(D, Epoch, isize)>) {
        let first = run.entries().map(|entry| order(batch.event(entry))).min().expect("a run is not empty");
        self.go_back(run.slot, run.previous, first);
        let Scanner { rules, states, waiting, history, walk, found } = self;
        let state = &mut states[run.slot.index()];

        // What is retracted is not stepped again, what is inserted is.
        for entry in run.entries() {
            match batch.entries[entry].change {
                Change::Insert => {
                    let here = EntryRef { batch: batch.number, entry: entry as u32 };
                    walk.push(Walked { order: order(batch.event(entry)), entry: here });
                }
                Change::Retract(target) => {
                    walk.retain(|walked| walked.entry != target);
                    let steps = history.log_mut(target.batch).expect("admission found it live");
                    let before = steps.found.remove(&target.entry).into_iter().flatten();
                    give(waiting, before, batch.epoch, -1, out);
                }
            }
        }
        walk.sort_unstable_by_key(|walked| (walked.order, walked.entry));

        // Forward; only differences come out.
        for Walked { entry, .. } in walk.drain(..) {
            let from = Rc::clone(&history.get(entry.batch).expect("live").0);
            let undo = rules.step(state, from.event(entry.entry as usize), found);
            let steps = history.log_mut(entry.batch).expect("live");
            steps.undos[entry.entry as usize] = Some(undo);
            let before = steps.found.remove(&entry.entry).unwrap_or_default();
            if *found != before {
                give(waiting, before.into_iter(), batch.epoch, -1, out);
                give(waiting, found.iter().cloned(), batch.epoch, 1, out);
            }
            if !found.is_empty() {
                steps.found.insert(entry.entry, std::mem::take(found));
            }
        }
    }
}

/// Gives answers, or takes them back if `sign` is −1: out at once, or to what waits for the watermark.
fn give<D: Data>(
    waiting: &mut BTreeMap<EventTime, Vec<(D, isize)>>,
    answers: impl Iterator<Item = Found<D>>,
    epoch: Epoch,
    sign: isize,
    out: &mut Vec<(D, Epoch, isize)>,
) {
    for Found { answer, due, diff } in answers {
        match due {
            None => out.push((answer, epoch, sign * diff)),
            Some(time) => waiting.entry(time).or_default().push((answer, sign * diff)),
        }
    }
}

/// An owned key beside what was found for it: the usual result.
pub fn with_key<E: Event, M>(event: &E, found: M) -> (OwnedKey<E>, M) {
    (event.key().to_owned(), found)
}
