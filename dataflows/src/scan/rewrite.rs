//! When history changes: goes back over a key's later steps, and forward again, as far as that makes a difference.
//!
//! ```text
//!   steps of a key, in order          a  b  +  c  d  e  f  g  −  h  i        + is new, − is taken back
//!   back over them, newest first            ←  ←  ←  ←  ←  ←  ←  ←  ←
//!   forward again                           →  →  →  →  ·  ·  ·  →  →        after e the state is what it was
//! ```
//!
//! Of the states that go by on the way back those at *landmarks* are kept: ever further behind each change, and before
//! the next one. On the way forward a rule whose state is the [`same`](crate::Pattern::same) as the one kept there is
//! settled: its steps up to the next change would be what they were. There it goes on from the state kept before it.

use std::cmp::Reverse;
use std::rc::Rc;

use differential_dataflow::Data;

use super::{Scanner, give};
use crate::batch::{Batch, Change, EntryRef, Run};
use crate::event::order;
use crate::rules::{Live, Rules};
use crate::{Epoch, Event, EventTime, Position};

/// A step at or behind the first change.
pub(super) struct Walked {
    order: (EventTime, Position),
    entry: EntryRef,
    step: Step,
}

impl Walked {
    fn key(&self) -> ((EventTime, Position), EntryRef) {
        (self.order, self.entry)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Taken before, and to be taken again; the nth of these since a change.
    Kept(u32),
    /// Taken before, and not again.
    Retracted,
    /// Taken now for the first time.
    Inserted,
}

/// How many steps behind a change it is first looked whether states are what they were; then after twice as many, and
/// so on. Keeping a state costs about as much as taking a step again.
const FIRST_LANDMARK: u32 = 8;

/// What is kept of the states at a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Landmark {
    Nothing,
    /// To see whether a state is what it was.
    Compared,
    /// The last before a change, or of all: to go on from.
    Resumed,
}

fn landmark(walk: &[Walked], at: usize) -> Landmark {
    let Step::Kept(nth) = walk[at].step else { return Landmark::Nothing };
    let last = !matches!(walk.get(at + 1), Some(Walked { step: Step::Kept(_), .. }));
    match last {
        // Nothing can have settled before.
        true if nth <= FIRST_LANDMARK => Landmark::Nothing,
        true => Landmark::Resumed,
        false if nth >= FIRST_LANDMARK && nth.is_power_of_two() => Landmark::Compared,
        false => Landmark::Nothing,
    }
}

impl<E: Event, R: Rules<E, D>, D: Data> Scanner<E, R, D> {
    /// Takes in a run that changes history; only differences come out.
    pub(super) fn rewrite(&mut self, batch: &Rc<Batch<E>>, run: &Run, out: &mut Vec<(D, Epoch, isize)>) {
        self.collect(batch, run);
        self.go_back(run);
        self.go_forward(batch.epoch, run, out);
        self.walk.clear();
    }

    /// Fills `walk`, in order.
    fn collect(&mut self, batch: &Rc<Batch<E>>, run: &Run) {
        let Scanner { history, walk, .. } = self;
        let place = |entry: usize| match batch.change(entry) {
            Change::Insert => {
                (order(batch.event(entry)), EntryRef { batch: batch.number, entry: entry as u32 })
            }
            Change::Retract(target) => {
                let (from, _) = history.get(target.batch).expect("admission found it live");
                (order(from.event(target.entry as usize)), target)
            }
        };
        let (first, _) = run.entries().map(place).min().expect("a run is not empty");
        history.for_each(run.previous, |entry, batch, index| {
            if batch.entries[index].time < first.0 {
                return;
            }
            let order = order(batch.event(index));
            let stepped = history.get(entry.batch).is_some_and(|(_, steps)| steps.undos[index].is_some());
            if order >= first && stepped {
                walk.push(Walked { order, entry, step: Step::Kept(0) });
            }
        });
        walk.sort_unstable_by_key(Walked::key);

        // A run's retractions come first.
        for (change, (order, entry)) in run.entries().map(|entry| (batch.change(entry), place(entry))) {
            match change {
                Change::Retract(_) => {
                    let found = walk.binary_search_by_key(&(order, entry), Walked::key);
                    walk[found.expect("it was stepped")].step = Step::Retracted;
                }
                Change::Insert => walk.push(Walked { order, entry, step: Step::Inserted }),
            }
        }
        walk.sort_by_key(Walked::key);

        let mut since = 0;
        for walked in walk {
            since = if matches!(walked.step, Step::Kept(_)) { since + 1 } else { 0 };
            if since > 0 {
                walked.step = Step::Kept(since);
            }
        }
    }

    /// Back, newest first. What was found stays where it is, to be compared with what is found now.
    fn go_back(&mut self, run: &Run) {
        let Scanner { rules, states, history, walk, kept, .. } = self;
        let state = states.at_mut(run.slot);
        for (at, walked) in walk.iter().enumerate().rev().filter(|(_, walked)| walked.step != Step::Inserted)
        {
            if landmark(walk, at) != Landmark::Nothing {
                kept.push(state.clone());
            }
            let entry = walked.entry.entry as usize;
            let (batch, steps) = history.get_mut(walked.entry.batch).expect("for_each named a live batch");
            let undo = match walked.step {
                // It stands as it is for the rules that have settled by then.
                Step::Kept(nth) if nth > FIRST_LANDMARK => steps.undos[entry].clone(),
                _ => steps.undos[entry].take(),
            };
            rules.undo(state, batch.event(entry), undo.expect("only steps were collected"));
        }
    }

    fn go_forward(&mut self, epoch: Epoch, run: &Run, out: &mut Vec<(D, Epoch, isize)>) {
        let Scanner { rules, states, waiting, history, walk, kept, found, .. } = self;
        let state = states.at_mut(run.slot);
        let mut live = Live::all(R::COUNT);
        for (at, Walked { entry: EntryRef { batch, entry: number }, step, .. }) in walk.iter().enumerate() {
            // Settled are only kept steps, and all rules are live again before a change.
            if !live.is_empty() {
                let entry = *number as usize;
                let (batch, steps) = history.get_mut(*batch).expect("live");
                let undo = &mut steps.undos[entry];
                match (step, undo.as_mut()) {
                    (Step::Retracted, _) => {}
                    (_, Some(undo)) => rules.step_again(live, state, batch.event(entry), undo, found),
                    (_, None) => *undo = Some(rules.step(state, batch.event(entry), found)),
                }
                let before = steps.found.remove(number).unwrap_or_default();
                let (before, mut now): (Vec<_>, Vec<_>) =
                    before.into_iter().partition(|found| live.has(found.rule));
                if *found != before {
                    give(waiting, before.into_iter(), epoch, -1, out);
                    give(waiting, found.iter().cloned(), epoch, 1, out);
                }
                now.append(found);
                if !now.is_empty() {
                    now.sort_by_key(|found| Reverse(found.rule));
                    steps.found.insert(*number, now);
                }
            }
            match landmark(walk, at) {
                Landmark::Nothing => {}
                Landmark::Compared => {
                    let was = kept.pop().expect("one is kept at each landmark");
                    rules.settle(&mut live, state, &was);
                }
                Landmark::Resumed => {
                    let was = kept.pop().expect("one is kept at each landmark");
                    rules.restore(live, state, was);
                    live = Live::all(R::COUNT);
                }
            }
        }
    }
}
