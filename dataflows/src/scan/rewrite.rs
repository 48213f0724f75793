//! Changes of history: undoes the later steps of a key, then repeats them as far as they have a different effect.
//!
//! ```text
//!   steps of a key, in order          a  b  +  c  d  e  f  g  −  h  i        + is new, − is retracted
//!   undone, newest first                    ←  ←  ←  ←  ←  ←  ←  ←  ←
//!   repeated                                →  →  →  →  ·  ·  ·  →  →        after e the state is the same
//! ```
//!
//! While steps are undone, the states at *landmarks* are kept: at growing distances after each change, and before the
//! next one. While steps are repeated, a rule whose state at a landmark is the [`same`](crate::Pattern::same) as the
//! kept state has converged: its steps up to the next change would have the same effect as before, and are skipped. At the
//! next change it resumes from the state kept before that change.

use std::cmp::Reverse;
use std::rc::Rc;

use differential_dataflow::Data;

use super::{Scanner, give};
use crate::batch::{Batch, Change, EntryRef, Run};
use crate::event::order;
use crate::rules::Rules;
use crate::{Epoch, Event, EventTime, Position};

/// A step at or after the first change.
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
    /// A step made in an earlier epoch, to be repeated. Contains its number among such steps since a change, from 1.
    Existing(u32),
    /// A step made in an earlier epoch, not to be repeated because its event is retracted.
    Retracted,
    /// A new step.
    Inserted,
}

/// The number of steps after a change at which states are first compared; the number doubles for each later comparison.
/// Keeping a state costs about as much as repeating a step.
const FIRST_LANDMARK: u32 = 8;

const COLLECTED: &str = "only steps were collected";

/// The use of the state kept at a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Landmark {
    Nothing,
    /// The state is compared with the new state.
    Compared,
    /// Rules resume from the state: it is the last one before a change, or the last of all.
    Resumed,
}

fn landmark(walk: &[Walked], at: usize) -> Landmark {
    let Step::Existing(nth) = walk[at].step else { return Landmark::Nothing };
    let last = !matches!(walk.get(at + 1), Some(Walked { step: Step::Existing(_), .. }));
    match last {
        // No rule can have converged before.
        true if nth <= FIRST_LANDMARK => Landmark::Nothing,
        true => Landmark::Resumed,
        false if nth >= FIRST_LANDMARK && nth.is_power_of_two() => Landmark::Compared,
        false => Landmark::Nothing,
    }
}

impl<E: Event, R: Rules<E, D>, D: Data> Scanner<E, R, D> {
    /// Processes a run that changes history, and emits only the differences.
    pub(super) fn rewrite(&mut self, batch: &Rc<Batch<E>>, run: &Run, out: &mut Vec<(D, Epoch, isize)>) {
        self.collect(batch, run);
        self.undo_steps(run);
        self.repeat_steps(batch.epoch, run, out);
        self.walk.clear();
    }

    /// Fills `walk`, in the order of evaluation.
    fn collect(&mut self, batch: &Rc<Batch<E>>, run: &Run) {
        let Scanner { history, walk, .. } = self;
        // An event that was not stepped had no rules.
        let place = |entry: usize| match batch.change(entry) {
            Change::Insert => {
                Some((order(batch.event(entry)), EntryRef { batch: batch.number, entry: entry as u32 }))
            }
            Change::Retract(target) => {
                let (from, steps) = history.get(target.batch)?;
                steps.undos.is_step(target.entry as usize).then_some(())?;
                Some((order(from.event(target.entry as usize)), target))
            }
        };
        let Some((first, _)) = run.entries().filter_map(place).min() else { return };
        history.for_each_since(run.previous, first.0, |entry, batch, index| {
            if batch.entries[index].time < first.0 {
                return;
            }
            let order = order(batch.event(index));
            let stepped = history.get(entry.batch).is_some_and(|(_, steps)| steps.undos.is_step(index));
            if order >= first && stepped {
                walk.push(Walked { order, entry, step: Step::Existing(0) });
            }
        });
        walk.sort_unstable_by_key(Walked::key);

        // The retractions of a run come first.
        for (change, placed) in run.entries().map(|entry| (batch.change(entry), place(entry))) {
            let Some((order, entry)) = placed else { continue };
            match change {
                Change::Retract(_) => {
                    let found = walk.binary_search_by_key(&(order, entry), Walked::key);
                    walk[found.expect("the entry was stepped")].step = Step::Retracted;
                }
                Change::Insert => walk.push(Walked { order, entry, step: Step::Inserted }),
            }
        }
        walk.sort_by_key(Walked::key);

        let mut since = 0;
        for walked in walk {
            since = if matches!(walked.step, Step::Existing(_)) { since + 1 } else { 0 };
            if since > 0 {
                walked.step = Step::Existing(since);
            }
        }
    }

    /// Undoes the steps, newest first. Keeps their results for comparison with the new results.
    fn undo_steps(&mut self, run: &Run) {
        let Scanner { rules, states, history, walk, kept, .. } = self;
        let state = states.at_mut(run.slot);
        for (at, walked) in walk.iter().enumerate().rev().filter(|(_, walked)| walked.step != Step::Inserted)
        {
            if landmark(walk, at) != Landmark::Nothing {
                kept.push(state.clone());
            }
            let entry = walked.entry.entry as usize;
            let (batch, steps) = history.get_mut(walked.entry.batch).expect("for_each named a live batch");
            let event = batch.event(entry);
            match walked.step {
                // Rules that have converged by then keep this undo data.
                Step::Existing(nth) if nth > FIRST_LANDMARK => {
                    rules.undo(state, event, steps.undos.copy(entry).expect(COLLECTED));
                }
                _ => rules.undo(state, event, steps.undos.take(entry).expect(COLLECTED)),
            }
        }
    }

    /// Repeats the steps in order, with the changes of the run, and emits the differences between old and new results.
    fn repeat_steps(&mut self, epoch: Epoch, run: &Run, out: &mut Vec<(D, Epoch, isize)>) {
        let Scanner { rules, states, waiting, history, walk, kept, found, again, .. } = self;
        let state = states.at_mut(run.slot);
        let all = rules.all();
        let mut live = all;
        for (at, Walked { entry: EntryRef { batch, entry: number }, step, .. }) in walk.iter().enumerate() {
            // Only steps that were made before are skipped: all rules are live again before a change. If there are no rules,
            // no step is skipped.
            if !live.is_empty() || all.is_empty() {
                let entry = *number as usize;
                let (batch, steps) = history.get_mut(*batch).expect("for_each named a live batch");
                if *step != Step::Retracted {
                    let event = batch.event(entry);
                    match steps.undos.take(entry) {
                        Some(before) => rules.step_again(live, state, event, before, again, found),
                        None => rules.step(state, event, again, found),
                    }
                    steps.undos.set(entry, again);
                }
                let before = steps.found.remove(number).unwrap_or_default();
                let (mut before, mut now): (Vec<_>, Vec<_>) =
                    before.into_iter().partition(|found| live.has(found.rule));
                before.sort_by_key(|found| Reverse(found.rule));
                found.sort_by_key(|found| Reverse(found.rule));
                if *found != before {
                    give(rules, waiting, before.into_iter(), epoch, -1, out);
                    give(rules, waiting, found.iter().cloned(), epoch, 1, out);
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
                    let was = kept.pop().expect("a state is kept at each landmark");
                    rules.settle(&mut live, state, &was);
                }
                Landmark::Resumed => {
                    let was = kept.pop().expect("a state is kept at each landmark");
                    rules.restore(live, state, was);
                    live = all;
                }
            }
        }
    }
}
