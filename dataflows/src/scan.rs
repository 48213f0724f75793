//! `scan`: evaluates a pattern over the events of each key, in order, whatever the order of arrival.

use std::collections::BTreeMap;
use std::rc::Rc;

use differential_dataflow::{AsCollection, Data, VecCollection, consolidation};

use crate::batch::{Batch, Change, EntryRef, History, Run};
use crate::event::order;
use crate::keyed::{Keyed, Logic, Selection};
use crate::keys::Keys;
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
        let answers = match emission {
            Emission::Immediate => Answers::Immediate,
            Emission::Final => Answers::Final(BTreeMap::new()),
        };
        let machine = Machine { pattern, result, states: Vec::new() };
        self.run(name, Scanner { machine, answers, history: History::new(), walk: Vec::new() })
            .as_collection()
    }
}

/// What one batch's steps left behind, by entry.
struct Steps<U, D> {
    /// How to go back over each; none if the entry is not a step, or not any more.
    undos: Vec<Option<U>>,
    matches: BTreeMap<u32, D>,
}

/// The pattern and its state for every key.
struct Machine<E, P: Pattern<E>, F> {
    pattern: P,
    result: F,
    states: Vec<P::State>,
}

impl<E: Event, P: Pattern<E>, F> Machine<E, P, F> {
    fn state(&mut self, run: &Run) -> (&P, &F, &mut P::State) {
        if self.states.len() <= run.slot.index() {
            self.states.resize_with(run.slot.index() + 1, P::State::default);
        }
        (&self.pattern, &self.result, &mut self.states[run.slot.index()])
    }
}

struct Scanner<E: Event, P: Pattern<E>, D, F> {
    machine: Machine<E, P, F>,
    answers: Answers<D>,
    history: History<E, Steps<P::Undo, D>>,
    walk: Vec<Walked>,
}

/// A step to take again, or for the first time.
struct Walked {
    order: (EventTime, Position),
    entry: EntryRef,
}

impl<E, P, D, F> Logic<E> for Scanner<E, P, D, F>
where
    E: Event,
    P: Pattern<E>,
    D: Data,
    F: Fn(&E, P::Match) -> D + 'static,
{
    type Out = (D, Epoch, isize);

    fn step(&mut self, batch: &Rc<Batch<E>>, selection: &Selection<E>, out: &mut Vec<Self::Out>) {
        let undos = std::iter::repeat_with(|| None).take(batch.entries.len()).collect();
        let mut steps = Steps { undos, matches: BTreeMap::new() };
        let mut disordered = false;
        for run in selection.runs(batch) {
            if !run.in_order {
                disordered = true;
                continue;
            }
            let (pattern, result, state) = self.machine.state(run);
            for entry in run.entries() {
                let event = batch.event(entry);
                let (found, undo) = pattern.step(state, event);
                steps.undos[entry] = Some(undo);
                if let Some(found) = found {
                    let found = result(event, found);
                    self.answers.give(found.clone(), batch.entries[entry].time, batch.epoch, 1, out);
                    steps.matches.insert(entry as u32, found);
                }
            }
        }
        self.history.push(Rc::clone(batch), steps);
        if disordered {
            for run in selection.runs(batch).filter(|run| !run.in_order) {
                self.rewrite(batch, run, out);
            }
        }
    }

    fn close(&mut self, epoch: Epoch, watermark: EventTime, _keys: &Keys<E>, out: &mut Vec<Self::Out>) {
        self.history.settle(watermark);
        self.answers.settle(epoch, watermark, out);
    }
}

impl<E, P, D, F> Scanner<E, P, D, F>
where
    E: Event,
    P: Pattern<E>,
    D: Data,
    F: Fn(&E, P::Match) -> D + 'static,
{
    /// Takes in a run that changes history: goes back over the key's later steps, and forward again.
    fn rewrite(&mut self, batch: &Rc<Batch<E>>, run: &Run, out: &mut Vec<(D, Epoch, isize)>) {
        let first = run.entries().map(|entry| order(batch.event(entry))).min().expect("a run is not empty");
        let (pattern, result, state) = self.machine.state(run);

        // What stands at or after the first change, earliest first.
        self.walk.clear();
        let walk = &mut self.walk;
        let history = &self.history;
        history.for_each(run.previous, |entry, batch, index| {
            let order = order(batch.event(index));
            let stepped = history.get(entry.batch).is_some_and(|(_, steps)| steps.undos[index].is_some());
            if order >= first && stepped {
                walk.push(Walked { order, entry });
            }
        });
        walk.sort_unstable_by_key(|walked| (walked.order, walked.entry));

        // Back, newest first. The old matches stay where they are, to be compared with the new ones.
        for Walked { entry, .. } in walk.iter().rev() {
            let steps = self.history.log_mut(entry.batch).expect("for_each named a live batch");
            let undo = steps.undos[entry.entry as usize].take().expect("only steps were collected");
            let (from, _) = self.history.get(entry.batch).expect("as before");
            pattern.undo(state, from.event(entry.entry as usize), undo);
        }

        // The changes: what is retracted is not stepped again, what is inserted is.
        let mut change =
            |entry: EntryRef, before: Option<D>, after: Option<&D>, time: EventTime, out: &mut Vec<_>| {
                debug_assert!(entry.batch <= batch.number);
                if before.as_ref() != after {
                    if let Some(before) = before {
                        self.answers.give(before, time, batch.epoch, -1, out);
                    }
                    if let Some(after) = after {
                        self.answers.give(after.clone(), time, batch.epoch, 1, out);
                    }
                }
            };
        for entry in run.entries() {
            match batch.entries[entry].change {
                Change::Insert => {
                    let here = EntryRef { batch: batch.number, entry: entry as u32 };
                    walk.push(Walked { order: order(batch.event(entry)), entry: here });
                }
                Change::Retract(target) => {
                    walk.retain(|walked| walked.entry != target);
                    let steps = self.history.log_mut(target.batch).expect("admission found it live");
                    let before = steps.matches.remove(&target.entry);
                    change(target, before, None, batch.entries[entry].time, out);
                }
            }
        }
        walk.sort_unstable_by_key(|walked| (walked.order, walked.entry));

        // Forward.
        for Walked { entry, order: (time, _) } in walk.drain(..) {
            let (from, _) = self.history.get(entry.batch).expect("live");
            let event = from.event(entry.entry as usize);
            let (found, undo) = pattern.step(state, event);
            let after = found.map(|found| result(event, found));
            let steps = self.history.log_mut(entry.batch).expect("live");
            steps.undos[entry.entry as usize] = Some(undo);
            let before = steps.matches.remove(&entry.entry);
            change(entry, before, after.as_ref(), time, out);
            if let Some(after) = after {
                steps.matches.insert(entry.entry, after);
            }
        }
    }
}

/// Where answers go: out at once, or into what waits for the watermark.
enum Answers<D> {
    Immediate,
    Final(BTreeMap<EventTime, Vec<(D, isize)>>),
}

impl<D: Data> Answers<D> {
    fn give(
        &mut self,
        answer: D,
        time: EventTime,
        epoch: Epoch,
        diff: isize,
        out: &mut Vec<(D, Epoch, isize)>,
    ) {
        match self {
            Answers::Immediate => out.push((answer, epoch, diff)),
            Answers::Final(waiting) => waiting.entry(time).or_default().push((answer, diff)),
        }
    }

    fn settle(&mut self, epoch: Epoch, watermark: EventTime, out: &mut Vec<(D, Epoch, isize)>) {
        let Answers::Final(waiting) = self else { return };
        while let Some(first) = waiting.first_entry().filter(|first| *first.key() <= watermark) {
            let mut answers = first.remove();
            consolidation::consolidate(&mut answers);
            out.extend(answers.into_iter().map(|(answer, diff)| (answer, epoch, diff)));
        }
    }
}

/// An owned key beside what was found for it: the usual result.
pub fn with_key<E: Event, M>(event: &E, found: M) -> (OwnedKey<E>, M) {
    (event.key().to_owned(), found)
}
