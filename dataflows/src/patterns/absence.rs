//! Absences: A, and then no matching B within D.

use std::rc::Rc;

use super::Description;
use super::sequence::{Run, Sequence, Steps};
use crate::{Event, EventTime, Pattern};

/// Events that are not followed by another event within a time: A then no B, A then B then no C. Built by
/// [`Steps::then_not`], evaluated by [`Scan::scan_absence`](crate::Scan::scan_absence).
///
/// # Matches
/// Runs start and advance as in a [`Sequence`] whose last step is the absent event. A run that has completed all other
/// steps matches at its *deadline*, the last instant at which the absent event would have counted: D − 1 ms after its
/// first event. Each run matches on its own: of several A, every one that no B follows. One event can prevent the
/// matches of several runs.
///
/// Of the runs that wait only for the absent event, the [`at_most`](Steps::at_most) that started first are kept, until
/// the event arrives or their deadline passes. The others are discarded and do not match. A key whose absent event does
/// not arrive therefore always matches, however many A it has: the earliest run is discarded only in favour of an
/// earlier one. (In a sequence, and before the last step here, the runs that started last are kept, because they have
/// the most time left.)
///
/// A match is emitted when the watermark has passed the deadline. An event that could still prevent it would be late,
/// so the match is never retracted.
pub struct Absence<E, T>(Sequence<E, T>);

/// A builder of an [`Absence`], which still needs the time [`within`](Unfollowed::within) which no event follows.
pub struct Unfollowed<E, T>(Steps<E, T>);

/// The active runs of a key.
pub type Waiting<T> = Vec<Rc<Run<T>>>;

impl<E: 'static, T: Clone + 'static> Steps<E, T> {
    /// Adds the last step: no event for which `follows` returns true. `follows` receives the run so far and the event.
    pub fn then_not(self, follows: impl Fn(&Run<T>, &E) -> bool + 'static) -> Unfollowed<E, T> {
        // The value is never read: an event that completes this step ends the run.
        let mut steps = self.then(move |run, event| follows(run, event).then(|| run.last().clone()));
        steps.absent = true;
        Unfollowed(steps)
    }
}

impl<E: 'static, T: 'static> Unfollowed<E, T> {
    /// Sets the time, in milliseconds from the first event (one or more), within which all steps must happen.
    pub fn within(self, within_ms: i64) -> Absence<E, T> {
        Absence(self.0.within(within_ms))
    }
}

impl<E: Event, T: Clone + PartialEq + 'static> Absence<E, T> {
    /// Processes the key's next event. Calls `emit` with 1 for each run that now waits only for the absent event, and
    /// with −1 for each run that did so and can no longer match.
    pub(crate) fn step(
        &self,
        runs: &mut Waiting<T>,
        event: &E,
        mut emit: impl FnMut(&Run<T>, isize),
    ) -> Option<Waiting<T>> {
        let (_, undo) = self.0.step(runs, event);
        if let Some(before) = &undo {
            let waits = |run: &&Rc<Run<T>>| self.0.lacks_one(run) && event.time() <= self.deadline(run);
            let among = |runs: &[Rc<Run<T>>], run| runs.iter().any(|other| Rc::ptr_eq(other, run));
            before.iter().filter(waits).filter(|run| !among(runs, run)).for_each(|run| emit(run, -1));
            runs.iter().filter(waits).filter(|run| !among(before, run)).for_each(|run| emit(run, 1));
        }
        undo
    }

    /// Processes the key's next event. Returns the runs before it, if they changed.
    pub(crate) fn advance(&self, runs: &mut Waiting<T>, event: &E) -> Option<Waiting<T>> {
        self.0.step(runs, event).1
    }

    /// Returns the runs that wait only for the absent event, by their deadlines.
    pub(crate) fn candidates<'a>(&self, runs: &'a Waiting<T>) -> impl Iterator<Item = &'a Rc<Run<T>>> {
        runs.iter().filter(|run| self.0.lacks_one(run))
    }

    /// Returns stored runs in a form that this absence can process: see [`Sequence::adopt`].
    pub(crate) fn adopt(&self, runs: Waiting<T>) -> Waiting<T> {
        self.0.adopt(runs)
    }

    /// Returns the runs that wait only for the absent event and whose deadline is above the watermark.
    pub(crate) fn waiting<'a>(
        &self,
        runs: &'a Waiting<T>,
        watermark: EventTime,
    ) -> impl Iterator<Item = &'a Run<T>> {
        let waits = move |run: &&Run<T>| self.0.lacks_one(run) && self.deadline(run) > watermark;
        runs.iter().map(Rc::as_ref).filter(waits)
    }

    /// Describes the active runs.
    pub(crate) fn describe(&self, runs: &Waiting<T>, watermark: EventTime) -> Description {
        self.0.describe_runs(runs, watermark)
    }

    /// Undoes the latest step.
    pub(crate) fn undo(&self, runs: &mut Waiting<T>, undo: Option<Waiting<T>>) {
        if let Some(before) = undo {
            *runs = before;
        }
    }

    /// Returns the last instant at which the absent event would prevent a match.
    pub(crate) fn deadline(&self, run: &Run<T>) -> EventTime {
        self.0.deadline(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scan;
    use crate::testing::{Kit, Line};

    /// Matches each a that no b follows within 10 ms, and gives the time of a.
    fn unanswered() -> Kit<Line, i64> {
        let absence = Sequence::first(|line: &Line| line.id.starts_with('a').then_some(line.time))
            .then_not(|_, line| line.id.starts_with('b'))
            .within(10);
        Kit::new(|keyed| keyed.scan_absence("Unanswered", absence, |_, run| *run.first()))
    }

    #[test]
    fn only_an_event_up_to_the_deadline_prevents_a_match() {
        let mut kit = unanswered();
        kit.push_at(10, Line::of("in time", "a1"));
        kit.push_at(11, Line::of("too late", "a2"));
        kit.push_at(19, Line::of("in time", "b1"));
        kit.push_at(21, Line::of("too late", "b2"));
        kit.advance_watermark(20);
        kit.expect_raised([11]);
        kit.advance_watermark(100);
        kit.finish();
    }

    #[test]
    fn an_out_of_order_event_prevents_a_match() {
        let mut kit = unanswered();
        kit.push_at(10, Line::of("ann", "a"));
        kit.push_at(40, Line::of("ann", "c"));
        kit.advance_watermark(14);
        kit.push_at(15, Line::of("ann", "b"));
        kit.advance_watermark(40);
        kit.finish();
    }

    #[test]
    fn retracted_events_neither_prevent_nor_start_a_match() {
        let mut kit = unanswered();
        kit.push_at(10, Line::of("ann", "a"));
        kit.push_at(15, Line::of("ann", "b"));
        kit.push_at(16, Line::of("ann", "a"));
        kit.retract(Line::from(("ann", 15, 1, "b")));
        kit.retract(Line::from(("ann", 16, 2, "a")));
        kit.advance_watermark(100);
        kit.expect_raised([10]);
        kit.finish();
    }

    #[test]
    fn a_key_with_more_runs_than_the_limit_still_matches() {
        let absence = Sequence::first(|line: &Line| line.id.starts_with('a').then_some(line.time))
            .at_most(2)
            .then_not(|_, line| line.id.starts_with('b'))
            .within(10);
        let mut kit = Kit::new(|keyed| keyed.scan_absence("Unanswered", absence, |_, run| *run.first()));
        // Runs 0 and 1 are kept. Their deadlines leave room for 10 and 11, and the arrival of b leaves room for 14.
        for time in 1..=14 {
            kit.push_at(time, Line::of("ann", "a"));
        }
        kit.push_at(0, Line::of("ann", "a, before all others"));
        kit.advance_watermark(12);
        kit.expect_raised([0, 1]);
        kit.push_at(13, Line::of("ann", "b"));
        kit.advance_watermark(100);
        kit.expect_raised([14]);
        kit.finish();
    }

    #[test]
    fn prevented_runs_are_freed_before_their_deadline() {
        let absence = Sequence::first(|line: &Line| line.id.starts_with('a').then_some(()))
            .then_not(|_, line| line.id.starts_with('b'))
            .within(1000);
        let answer = Rc::new(());
        let result = Rc::clone(&answer);
        let mut kit =
            Kit::new(|keyed| keyed.scan_absence("Unanswered", absence, move |_, _| Rc::clone(&result)));
        let others = Rc::strong_count(&answer);
        for time in 0..50 {
            kit.push_at(2 * time, Line::of("ann", "a"));
            kit.push_at(2 * time + 1, Line::of("ann", "b"));
        }
        kit.push_at(100, Line::of("ann", "a"));
        kit.advance_watermark(200);
        assert_eq!(Rc::strong_count(&answer), others + 1, "only the last run waits");
        kit.advance_watermark(1099);
        kit.expect_raised([Rc::clone(&answer)]);
        kit.finish();
    }

    #[test]
    fn one_event_prevents_the_matches_of_several_runs() {
        let mut kit = unanswered();
        kit.push_at(10, Line::of("ann", "a1"));
        kit.push_at(11, Line::of("ann", "a2"));
        kit.push_at(12, Line::of("bob", "a3"));
        kit.push_at(15, Line::of("ann", "b"));
        kit.advance_watermark(100);
        kit.expect_raised([12]);
        kit.finish();
    }
}
