//! Sequences: A, then B that fits it, then C that fits both, all within D.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::event::order;
use crate::{Event, EventTime, Pattern, Position};

/// Events that follow one another within a time: A then B, so many A then B, and so on.
///
/// # What matches
/// - Every event that fits the first step begins a *run* of its own.
/// - A run waits for its next step and takes the first later event (in the order of evaluation) that fits it, given
///   what the run has taken; events that do not fit are passed over. The field calls this *skip till next match*.
/// - All events of a run lie within D of its first: the last one's time less the first one's is below D, as in "the
///   last D". A run that can no longer keep to this is over.
/// - An event is taken by every run that it fits, and may begin one besides, but is never taken twice by one run.
/// - An event that completes runs matches once, with the one that began last. All runs that it completes are over: what
///   they took does not match again with a later event.
/// - Of a key's runs that have taken equally many events, the [`at_most`](Steps::at_most) that began last are
///   remembered. Where no step looks at what a run has taken, even one is enough and the bound changes nothing: of two
///   such runs all that fits the earlier fits the later.
///
/// None of this refers to arrival, so that the matches are a function of the key's events alone.
///
/// ```
/// use headwater_dataflows::{patterns::Sequence, testing::{Kit, Line}};
///
/// // Two failures, then a success, within 60 ms. Of each event its time is remembered.
/// let guessed = Sequence::first(|line: &Line| line.id.starts_with("fail").then_some(line.time))
///     .times(2)
///     .then(|_failures, line| line.id.starts_with("ok").then_some(line.time))
///     .within(60);
/// let mut kit = Kit::scan(guessed, |_, run| run.iter().copied().collect::<Vec<_>>());
/// kit.push_at(10, Line::of("ann", "fail"));
/// kit.push_at(40, Line::of("ann", "ok"));
/// kit.expect_raised([]);
/// kit.push_at(30, Line::of("ann", "fail again")); // before the success
/// kit.expect_raised([vec![10, 30, 40]]);
/// kit.push_at(35, Line::of("ann", "ok again")); // and so is this: the two failures are taken by it
/// kit.expect_revoked([vec![10, 30, 40]]);
/// kit.expect_raised([vec![10, 30, 35]]);
/// kit.finish();
/// ```
pub struct Sequence<E, T> {
    steps: Steps<E, T>,
    within_ms: i64,
}

/// What is remembered of an event that begins a run, if it does.
type First<E, T> = Rc<dyn Fn(&E) -> Option<T>>;

/// What is remembered of an event that a run takes, if it does.
type Next<E, T> = Rc<dyn Fn(&Run<T>, &E) -> Option<T>>;

/// A [`Sequence`] in the making: it wants the time [`within`](Steps::within) which it happens.
pub struct Steps<E, T> {
    first: First<E, T>,
    /// The steps after the first, each as often as it is to be taken.
    then: Vec<Next<E, T>>,
    at_most: usize,
    /// Whether the last step is one that shall not come: see [`Absence`](super::Absence).
    pub(super) absent: bool,
}

/// What a sequence has taken: one event or more, each as the step that took it remembers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Run<T> {
    start: (EventTime, Position),
    first: T,
    more: Vec<T>,
}

impl<T> Run<T> {
    /// When its first event happened.
    pub fn start(&self) -> EventTime {
        self.start.0
    }

    /// The first event.
    pub fn first(&self) -> &T {
        &self.first
    }

    /// The latest event.
    pub fn last(&self) -> &T {
        self.more.last().unwrap_or(&self.first)
    }

    /// All events, in order.
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
    /// Begins with every event of which `first` gives something to remember.
    pub fn first(first: impl Fn(&E) -> Option<T> + 'static) -> Steps<E, T> {
        Steps { first: Rc::new(first), then: Vec::new(), at_most: 8, absent: false }
    }

    /// Whether a run waits for the last step.
    pub(super) fn lacks_one(&self, run: &Run<T>) -> bool {
        run.more.len() + 1 == self.steps.then.len()
    }

    /// The last instant at which a run can take an event.
    pub(super) fn deadline(&self, run: &Run<T>) -> EventTime {
        run.start().plus_ms(self.within_ms - 1)
    }
}

impl<E: 'static, T: 'static> Steps<E, T> {
    /// Then the next event of which `next`, which sees what the run has taken, gives something to remember.
    pub fn then(mut self, next: impl Fn(&Run<T>, &E) -> Option<T> + 'static) -> Steps<E, T> {
        self.then.push(Rc::new(next));
        self
    }

    /// The latest step `n` times (one or more) in place of once. Runs overlap, one for each number of events taken, so
    /// the cost of an event grows with n²: to count many, see [`Frequency`](super::Frequency).
    pub fn times(mut self, n: usize) -> Steps<E, T> {
        let latest = self.then.last().cloned().unwrap_or_else(|| {
            let first = Rc::clone(&self.first);
            Rc::new(move |_, event| first(event))
        });
        self.then.extend(std::iter::repeat_n(latest, n.saturating_sub(1)));
        self
    }

    /// How many runs of a key that have taken equally many events are remembered (one or more), in place of 8: those
    /// that began last; of runs that wait for [what shall not come](Steps::then_not) those that began first.
    pub fn at_most(mut self, runs: usize) -> Steps<E, T> {
        self.at_most = runs.max(1);
        self
    }

    /// All within so many milliseconds (one or more) of the first event.
    pub fn within(self, within_ms: i64) -> Sequence<E, T> {
        Sequence { steps: self, within_ms: within_ms.max(1) }
    }
}

impl<E: Event, T: Clone + PartialEq + 'static> Pattern<E> for Sequence<E, T> {
    /// The runs that wait, by their beginning.
    type State = Vec<Rc<Run<T>>>;
    /// What the state was, if the step changed it.
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
}

impl<E, T> Steps<E, T> {
    /// Forgets, of the runs that have taken equally many events, those that began before the latest; of those that lack
    /// an event that shall not come, those that began after the earliest.
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

    /// Steps through events given as (time, what it is), at offsets counted from 0, and gives the times of each match.
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
    fn what_lies_between_is_passed_over_and_the_end_of_the_time_is_outside() {
        let ab = || Sequence::first(is("a")).then(then("b")).within(10);
        assert_eq!(matches(ab(), &[(0, "b"), (1, "a"), (2, "c"), (10, "b")]), [[1, 10]]);
        assert_eq!(matches(ab(), &[(1, "a"), (11, "b")]), [[0; 0]; 0]);
    }

    #[test]
    fn an_event_completes_the_run_that_began_last_and_ends_all_that_it_fits() {
        let ab = Sequence::first(is("a")).then(then("b")).within(10);
        assert_eq!(matches(ab, &[(0, "a"), (1, "a"), (2, "b"), (3, "b")]), [[1, 2]]);
    }

    #[test]
    fn a_run_goes_on_after_others_are_too_old() {
        let ab = Sequence::first(is("a")).then(then("b")).within(10);
        assert_eq!(matches(ab, &[(0, "a"), (9, "a"), (11, "b")]), [[9, 11]]);
    }

    #[test]
    fn an_event_that_fits_two_steps_ends_one_run_and_begins_another_but_is_no_pair_with_itself() {
        let aa = Sequence::first(is("a")).times(2).within(10);
        assert_eq!(matches(aa, &[(0, "a"), (1, "a"), (2, "a")]), [[0, 1], [1, 2]]);
    }

    #[test]
    fn a_repetition_before_another_step_counts_the_latest() {
        let aaab = Sequence::first(is("a")).times(3).then(then("b")).within(10);
        let events = [(0, "a"), (1, "a"), (2, "b"), (3, "a"), (4, "a"), (5, "b"), (6, "b")];
        assert_eq!(matches(aaab, &events), [[1, 3, 4, 5]]);
    }

    /// Twice the same amount (here: time modulo 10).
    fn pair() -> Steps<Line, i64> {
        let same = |run: &Run<i64>, line: &Line| (run.last() % 10 == line.time % 10).then_some(line.time);
        Sequence::first(|line: &Line| Some(line.time)).then(same)
    }

    #[test]
    fn a_step_sees_what_its_run_has_taken() {
        assert_eq!(
            matches(pair().within(50), &[(1, ""), (2, ""), (3, ""), (12, ""), (22, "")]),
            [[2, 12], [12, 22]]
        );
    }

    #[test]
    fn of_the_runs_that_have_taken_equally_many_those_that_began_last_are_remembered() {
        let events = [(1, ""), (2, ""), (3, ""), (11, "")];
        assert_eq!(matches(pair().at_most(3).within(50), &events), [[1, 11]]);
        assert_eq!(matches(pair().at_most(2).within(50), &events), [[0; 0]; 0]);
    }

    #[test]
    fn a_sequence_of_one_step_matches_at_every_event_that_fits() {
        assert_eq!(matches(Sequence::first(is("a")).within(1), &[(0, "a"), (0, "b"), (0, "a")]), [[0], [0]]);
    }
}
