//! Absences: A, and then no B that fits it within D.

use std::rc::Rc;

use super::sequence::{Run, Sequence, Steps};
use crate::{Event, EventTime, Pattern};

/// Events that are not followed by another within a time: A then no B, A then B then no C. Made by
/// [`Steps::then_not`]; given by [`Scan::scan_absence`](crate::Scan::scan_absence).
///
/// # What matches
/// Runs begin and go on as in a [`Sequence`] with the absent event as its last step. A run that has taken all steps but
/// that matches at its *deadline*, the last instant at which the absent event would have fitted: D − 1 ms after its first
/// event. Each run matches on its own: of several A, each that no B follows; an event that fits several runs prevents
/// them all.
///
/// Of the runs that wait for the absent event only, the [`at_most`](Steps::at_most) that began first are remembered,
/// until they are prevented or their deadline is past; the others are forgotten and do not match. So a key that lacks
/// something is never silent, however many A it has: the earliest run is only forgotten in favour of an earlier one. (In a
/// sequence, and before the last step here, those that began last are remembered: they have the most time left.)
///
/// The answer is given when the watermark has passed the deadline. An event that could still prevent it would be
/// late by then, so what is given stands.
pub struct Absence<E, T>(Sequence<E, T>);

/// An [`Absence`] in the making: it wants the time [`within`](Unfollowed::within) which nothing follows.
pub struct Unfollowed<E, T>(Steps<E, T>);

/// The runs of a key, as the sequence keeps them.
pub type Waiting<T> = Vec<Rc<Run<T>>>;

impl<E: 'static, T: Clone + 'static> Steps<E, T> {
    /// Then no event for which `follows`, which sees what the run has taken, holds.
    pub fn then_not(self, follows: impl Fn(&Run<T>, &E) -> bool + 'static) -> Unfollowed<E, T> {
        // What is taken ends the run, and nobody looks at it any more.
        let mut steps = self.then(move |run, event| follows(run, event).then(|| run.last().clone()));
        steps.absent = true;
        Unfollowed(steps)
    }
}

impl<E: 'static, T: 'static> Unfollowed<E, T> {
    /// All within so many milliseconds (one or more) of the first event.
    pub fn within(self, within_ms: i64) -> Absence<E, T> {
        Absence(self.0.within(within_ms))
    }
}

impl<E: Event, T: Clone + PartialEq + 'static> Absence<E, T> {
    /// Takes in the key's next event. `emit` hears of each run that lacks nothing but the absent event from now on,
    /// with 1, and of each that did and will not match, with −1.
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

    /// The runs that lack nothing but the absent event, and whose deadline is above the watermark.
    pub(crate) fn waiting<'a>(
        &self,
        runs: &'a Waiting<T>,
        watermark: EventTime,
    ) -> impl Iterator<Item = &'a Run<T>> {
        let waits = move |run: &&Run<T>| self.0.lacks_one(run) && self.deadline(run) > watermark;
        runs.iter().map(Rc::as_ref).filter(waits)
    }

    /// Goes back over the latest step.
    pub(crate) fn undo(&self, runs: &mut Waiting<T>, undo: Option<Waiting<T>>) {
        if let Some(before) = undo {
            *runs = before;
        }
    }

    /// The last instant at which the absent event would prevent a match.
    pub(crate) fn deadline(&self, run: &Run<T>) -> EventTime {
        self.0.deadline(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scan;
    use crate::testing::{Kit, Line};

    /// Within 10 ms of each a no b: the times of a.
    fn unanswered() -> Kit<Line, i64> {
        let absence = Sequence::first(|line: &Line| line.id.starts_with('a').then_some(line.time))
            .then_not(|_, line| line.id.starts_with('b'))
            .within(10);
        Kit::new(|keyed| keyed.scan_absence("Unanswered", absence, |_, run| *run.first()))
    }

    #[test]
    fn an_event_at_the_deadline_prevents_a_match_and_one_after_it_does_not() {
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
    fn what_arrives_out_of_order_but_before_the_watermark_prevents_a_match() {
        let mut kit = unanswered();
        kit.push_at(10, Line::of("ann", "a"));
        kit.push_at(40, Line::of("ann", "c"));
        kit.advance_watermark(14);
        kit.push_at(15, Line::of("ann", "b"));
        kit.advance_watermark(40);
        kit.finish();
    }

    #[test]
    fn what_is_taken_back_no_longer_prevents_a_match_and_no_longer_lacks_anything() {
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
    fn a_key_with_more_runs_than_are_remembered_is_not_silent() {
        let absence = Sequence::first(|line: &Line| line.id.starts_with('a').then_some(line.time))
            .at_most(2)
            .then_not(|_, line| line.id.starts_with('b'))
            .within(10);
        let mut kit = Kit::new(|keyed| keyed.scan_absence("Unanswered", absence, |_, run| *run.first()));
        // 0 and 1 are remembered; when their time is past there is room for 10 and 11; when b has come, for 14.
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
    fn what_is_prevented_is_let_go_of_long_before_its_deadline() {
        let absence = Sequence::first(|line: &Line| line.id.starts_with('a').then_some(()))
            .then_not(|_, line| line.id.starts_with('b'))
            .within(1000);
        let answer = Rc::new(());
        let held = Rc::clone(&answer);
        let mut kit =
            Kit::new(|keyed| keyed.scan_absence("Unanswered", absence, move |_, _| Rc::clone(&held)));
        let others = Rc::strong_count(&answer);
        for time in 0..50 {
            kit.push_at(2 * time, Line::of("ann", "a"));
            kit.push_at(2 * time + 1, Line::of("ann", "b"));
        }
        kit.push_at(100, Line::of("ann", "a"));
        kit.advance_watermark(200);
        assert_eq!(Rc::strong_count(&answer), others + 1, "only the last one waits");
        kit.advance_watermark(1099);
        kit.expect_raised([Rc::clone(&answer)]);
        kit.finish();
    }

    #[test]
    fn one_event_prevents_every_match_that_it_fits() {
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
