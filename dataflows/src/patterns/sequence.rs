//! Sequences: A, then a matching B, then a C that matches both, all within D.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::Description;
use crate::event::order;
use crate::{Event, EventTime, Pattern, Position};

/// Events that follow one another within a time: A then B, n times A then B, and so on.
///
/// # Matches
/// - Every event that matches the first step starts a *run* of its own.
/// - A run waits for its next step and takes the first later event (in the order of evaluation) that matches this step
///   and the run so far. Other events are ignored. This strategy is known as *skip till next match*.
/// - All events of a run lie within D: the time from the first to the last is below D, as in "the last D". A run that
///   can no longer satisfy this is discarded.
/// - Every run that an event matches takes it. The event may also start a run, but no run takes an event twice.
/// - An event that completes several runs matches once, with the run that started last. All of these runs end: their
///   events do not match again with a later event.
/// - Of a key's runs with the same number of events, the [`at_most`](Steps::at_most) that started last are kept. If no
///   step depends on the events of the run so far, a limit of one gives the same matches: every event that matches the
///   earlier of two such runs also matches the later.
///
/// None of this depends on the order of arrival, so the matches are a function of the key's events alone.
///
/// ```
/// use headwater_dataflows::{patterns::Sequence, testing::{Kit, Line}};
///
/// // Two failures, then a success, within 60 ms. The run stores the time of each event.
/// let guessed = Sequence::first(|line: &Line| line.id.starts_with("fail").then_some(line.time))
///     .times(2)
///     .then(|_failures, line| line.id.starts_with("ok").then_some(line.time))
///     .within(60);
/// let mut kit = Kit::scan(guessed, |_, run| run.iter().copied().collect::<Vec<_>>());
/// kit.push_at(10, Line::of("ann", "fail"));
/// kit.push_at(40, Line::of("ann", "ok"));
/// kit.expect_raised([]);
/// kit.push_at(30, Line::of("ann", "fail again")); // earlier than the success
/// kit.expect_raised([vec![10, 30, 40]]);
/// kit.push_at(35, Line::of("ann", "ok again")); // earlier than the first success: it takes the failures
/// kit.expect_revoked([vec![10, 30, 40]]);
/// kit.expect_raised([vec![10, 30, 35]]);
/// kit.finish();
/// ```
pub struct Sequence<E, T> {
    steps: Steps<E, T>,
    within_ms: i64,
}

/// Returns the value to store of an event that starts a run; `None` if the event does not start one.
type First<E, T> = Rc<dyn Fn(&E) -> Option<T>>;

/// Returns the value to store of an event that a run takes; `None` if the run does not take it.
type Next<E, T> = Rc<dyn Fn(&Run<T>, &E) -> Option<T>>;

/// A builder of a [`Sequence`], which still needs the time [`within`](Steps::within) which it happens.
pub struct Steps<E, T> {
    first: First<E, T>,
    /// The steps after the first, each as often as it is repeated.
    then: Vec<Next<E, T>>,
    at_most: usize,
    /// True if the last step is an absent event: see [`Absence`](super::Absence).
    pub(super) absent: bool,
}

/// The events that a sequence has taken so far, at least one: the values that its steps returned for them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Run<T> {
    start: (EventTime, Position),
    first: T,
    more: Vec<T>,
}

impl<T> Run<T> {
    /// Returns the event time of the first event.
    pub fn start(&self) -> EventTime {
        self.start.0
    }

    /// Returns the value of the first event.
    pub fn first(&self) -> &T {
        &self.first
    }

    /// Returns the value of the latest event.
    pub fn last(&self) -> &T {
        self.more.last().unwrap_or(&self.first)
    }

    /// Returns the values of all events, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.first).chain(&self.more)
    }
}

impl<T: Clone> Run<T> {
    fn and(&self, taken: T) -> Run<T> {
        let more = self.more.iter().cloned().chain([taken]).collect();
        Run { start: self.start, first: self.first.clone(), more }
    }
}

impl<E, T> Sequence<E, T> {
    /// Starts a run at every event for which `first` returns a value. The run stores this value.
    pub fn first(first: impl Fn(&E) -> Option<T> + 'static) -> Steps<E, T> {
        Steps { first: Rc::new(first), then: Vec::new(), at_most: 8, absent: false }
    }

    /// Returns true if a run waits for the last step.
    pub(super) fn lacks_one(&self, run: &Run<T>) -> bool {
        run.more.len() + 1 == self.steps.then.len()
    }

    /// Returns the last instant at which a run can take an event.
    pub(super) fn deadline(&self, run: &Run<T>) -> EventTime {
        run.start().plus_ms(self.within_ms - 1)
    }

    /// Returns stored runs without those that have taken more events than this sequence has steps, which other
    /// parameters may have left.
    pub(crate) fn adopt(&self, mut runs: Vec<Rc<Run<T>>>) -> Vec<Rc<Run<T>>> {
        runs.retain(|run| run.more.len() < self.steps.then.len());
        runs
    }

    /// Describes the runs that an event above the watermark can still advance.
    pub(super) fn describe_runs(&self, runs: &[Rc<Run<T>>], watermark: EventTime) -> Description {
        let live = runs.iter().filter(|run| self.deadline(run) > watermark);
        let runs = live.map(|run| (run.start(), run.more.len() as u64 + 1)).collect();
        Description::Runs { runs, steps: self.steps.then.len() as u64 + 1 }
    }
}

impl<E: 'static, T: 'static> Steps<E, T> {
    /// Adds a step: the next event for which `next` returns a value to store. `next` receives the run so far and the
    /// event.
    pub fn then(mut self, next: impl Fn(&Run<T>, &E) -> Option<T> + 'static) -> Steps<E, T> {
        self.then.push(Rc::new(next));
        self
    }

    /// Requires the latest step `n` times (one or more) instead of once. Runs overlap, one for each number of events
    /// taken, so the cost of an event grows with n². To count many events, use [`Frequency`](super::Frequency).
    pub fn times(mut self, n: usize) -> Steps<E, T> {
        let latest = self.then.last().cloned().unwrap_or_else(|| {
            let first = Rc::clone(&self.first);
            Rc::new(move |_, event| first(event))
        });
        self.then.extend(std::iter::repeat_n(latest, n.saturating_sub(1)));
        self
    }

    /// Sets the number (one or more, 8 by default) of runs of a key with the same number of events that are kept: those
    /// that started last, or, of runs that wait for an [absent event](Steps::then_not), those that started first.
    pub fn at_most(mut self, runs: usize) -> Steps<E, T> {
        self.at_most = runs.max(1);
        self
    }

    /// Sets the time, in milliseconds from the first event (one or more), within which all steps must happen.
    pub fn within(self, within_ms: i64) -> Sequence<E, T> {
        Sequence { steps: self, within_ms: within_ms.max(1) }
    }
}

impl<E: Event, T: Clone + PartialEq + 'static> Pattern<E> for Sequence<E, T> {
    /// The active runs, by their start.
    type State = Vec<Rc<Run<T>>>;
    /// The previous state, if the step changed it.
    type Undo = Option<Self::State>;
    type Match = Run<T>;

    fn step(&self, runs: &mut Self::State, event: &E) -> (Option<Run<T>>, Self::Undo) {
        let now = event.time();
        let taken = |run: &Run<T>| self.steps.then[run.more.len()](run, event);
        let live = |(_, run): &(usize, &Rc<Run<T>>)| now <= self.deadline(run);
        let takes: Vec<(usize, T)> =
            runs.iter().enumerate().filter(live).filter_map(|(at, run)| Some((at, taken(run)?))).collect();
        let begins = (self.steps.first)(event);
        if takes.is_empty() && begins.is_none() {
            return (None, None);
        }

        let mut found = None;
        let mut after = Vec::with_capacity(runs.len() + 1);
        let mut go_on = |run: Rc<Run<T>>| {
            if run.more.len() == self.steps.then.len() { found = Some(run) } else { after.push(run) }
        };
        let mut takes = takes.into_iter().peekable();
        for (at, run) in runs.iter().enumerate().filter(live) {
            go_on(match takes.next_if(|(taker, _)| *taker == at) {
                Some((_, taken)) => Rc::new(run.and(taken)),
                None => Rc::clone(run),
            });
        }
        if let Some(first) = begins {
            go_on(Rc::new(Run { start: order(event), first, more: Vec::new() }));
        }
        self.steps.forget(&mut after);
        (found.map(Rc::unwrap_or_clone), Some(std::mem::replace(runs, after)))
    }

    fn undo(&self, runs: &mut Self::State, _event: &E, undo: Self::Undo) {
        if let Some(before) = undo {
            *runs = before;
        }
    }

    fn same(&self, one: &Self::State, other: &Self::State) -> bool {
        one == other
    }

    fn describe(&self, runs: &Self::State, watermark: EventTime) -> Option<Description> {
        Some(self.describe_runs(runs, watermark))
    }
}

impl<E, T> Steps<E, T> {
    /// Applies the limit `at_most`: of the runs with the same number of events, discards those that started first. Of
    /// the runs that wait for an absent event, discards those that started last.
    fn forget(&self, runs: &mut Vec<Rc<Run<T>>>) {
        if runs.len() <= self.at_most {
            return;
        }
        let mut counts = vec![0; self.then.len()];
        runs.iter().for_each(|run| counts[run.more.len()] += 1);
        let mut seen = vec![0; self.then.len()];
        runs.retain(|run| {
            let taken = run.more.len();
            let (count, before) = (counts[taken], seen[taken]);
            seen[taken] += 1;
            let earliest = self.absent && taken + 1 == self.then.len();
            if earliest { before < self.at_most } else { count - before <= self.at_most }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Line;

    /// Evaluates events given as (time, id), at offsets counted from 0, and returns the event times of each match.
    fn matches(sequence: Sequence<Line, i64>, events: &[(i64, &str)]) -> Vec<Vec<i64>> {
        let mut runs = Vec::new();
        let step = |(offset, &(time, what)): (usize, &(i64, &str))| {
            let found = sequence.step(&mut runs, &Line::from(("ann", time, offset as i64, what))).0;
            found.map(|run| run.iter().copied().collect())
        };
        events.iter().enumerate().filter_map(step).collect()
    }

    fn is(what: &'static str) -> impl Fn(&Line) -> Option<i64> {
        move |line| (line.id == what).then_some(line.time)
    }

    fn then(what: &'static str) -> impl Fn(&Run<i64>, &Line) -> Option<i64> {
        move |_, line| is(what)(line)
    }

    #[test]
    fn other_events_are_ignored_and_the_end_is_exclusive() {
        let ab = || Sequence::first(is("a")).then(then("b")).within(10);
        assert_eq!(matches(ab(), &[(0, "b"), (1, "a"), (2, "c"), (10, "b")]), [[1, 10]]);
        assert_eq!(matches(ab(), &[(1, "a"), (11, "b")]), [[0; 0]; 0]);
    }

    #[test]
    fn a_match_has_the_latest_run_and_ends_all_completed_runs() {
        let ab = Sequence::first(is("a")).then(then("b")).within(10);
        assert_eq!(matches(ab, &[(0, "a"), (1, "a"), (2, "b"), (3, "b")]), [[1, 2]]);
    }

    #[test]
    fn a_run_continues_after_older_runs_expire() {
        let ab = Sequence::first(is("a")).then(then("b")).within(10);
        assert_eq!(matches(ab, &[(0, "a"), (9, "a"), (11, "b")]), [[9, 11]]);
    }

    #[test]
    fn an_event_can_end_one_run_and_start_another() {
        let aa = Sequence::first(is("a")).times(2).within(10);
        assert_eq!(matches(aa, &[(0, "a"), (1, "a"), (2, "a")]), [[0, 1], [1, 2]]);
    }

    #[test]
    fn a_repeated_step_takes_the_latest_events() {
        let aaab = Sequence::first(is("a")).times(3).then(then("b")).within(10);
        let events = [(0, "a"), (1, "a"), (2, "b"), (3, "a"), (4, "a"), (5, "b"), (6, "b")];
        assert_eq!(matches(aaab, &events), [[1, 3, 4, 5]]);
    }

    /// Matches two events with the same amount (here: time modulo 10).
    fn pair() -> Steps<Line, i64> {
        let same = |run: &Run<i64>, line: &Line| (run.last() % 10 == line.time % 10).then_some(line.time);
        Sequence::first(|line: &Line| Some(line.time)).then(same)
    }

    #[test]
    fn a_step_can_depend_on_earlier_events() {
        assert_eq!(
            matches(pair().within(50), &[(1, ""), (2, ""), (3, ""), (12, ""), (22, "")]),
            [[2, 12], [12, 22]]
        );
    }

    #[test]
    fn runs_beyond_the_limit_are_discarded_oldest_first() {
        let events = [(1, ""), (2, ""), (3, ""), (11, "")];
        assert_eq!(matches(pair().at_most(3).within(50), &events), [[1, 11]]);
        assert_eq!(matches(pair().at_most(2).within(50), &events), [[0; 0]; 0]);
    }

    #[test]
    fn a_sequence_of_one_step_matches_at_every_matching_event() {
        assert_eq!(matches(Sequence::first(is("a")).within(1), &[(0, "a"), (0, "b"), (0, "a")]), [[0], [0]]);
    }
}
