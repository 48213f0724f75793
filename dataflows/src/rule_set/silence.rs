//! Absences in a set of rules: results that are due by time, and their suppression.
//!
//! Of the runs that wait for an absent event, each has a time at which it becomes a result unless the event comes. A
//! result suppresses those that follow too soon, so which of the waiting runs become results is decided in the order of
//! these times. When a run ends, those that it would have suppressed are decided anew.

use std::rc::Rc;

use super::finding::{Course, Finding, Milestone};
use crate::patterns::{Absence, Description, Run, Waiting};
use crate::{Anchor, Event, EventTime};

/// An [`Absence`] whose results can be suppressed.
pub(super) struct Silence<E> {
    absence: Absence<E, Milestone>,
    /// The number of events that the first step takes.
    first_times: u32,
}

/// A result: the event that it is named after, what was found, and the watermark that it waits for.
pub(super) struct Due {
    pub anchor: Rc<Anchor>,
    pub finding: Finding,
    pub due: EventTime,
}

impl<E: Event> Silence<E> {
    pub fn new(absence: Absence<E, Milestone>, first_times: u32) -> Silence<E> {
        Silence { absence, first_times }
    }

    /// Processes the key's next event. Calls `emit` with 1 for each result that is now expected, and with −1 for each
    /// that is not expected any more. `until` is the time up to which results are suppressed.
    pub fn step(
        &self,
        runs: &mut Waiting<Milestone>,
        until: &mut i64,
        suppress_ms: Option<i64>,
        event: &E,
        mut emit: impl FnMut(Due, isize),
    ) -> Option<Waiting<Milestone>> {
        let before = self.absence.advance(runs, event)?;
        let now = event.time();
        let were = self.results(&before, *until, suppress_ms);
        let passed = |run: &&Rc<Run<_>>| self.absence.deadline(run) < now;
        if let Some(last) = were.iter().copied().rfind(passed) {
            *until = self.suppressed_until(last, suppress_ms);
        }
        let are = self.results(runs, *until, suppress_ms);
        let among = |runs: &[&Rc<Run<_>>], run: &Rc<Run<_>>| runs.iter().any(|other| Rc::ptr_eq(other, run));
        let ended = were.iter().filter(|run| !passed(run) && !among(&are, run));
        let begun = are.iter().filter(|run| !among(&were, run));
        let changes = ended.map(|run| (run, -1)).chain(begun.map(|run| (run, 1)));
        for (due, diff) in changes.filter_map(|(run, diff)| Some((self.due(run)?, diff))) {
            emit(due, diff);
        }
        Some(before)
    }

    /// Returns the results that are not due at `watermark`, given a state of final events only.
    pub fn waiting(
        &self,
        runs: &Waiting<Milestone>,
        until: i64,
        suppress_ms: Option<i64>,
        watermark: EventTime,
    ) -> impl Iterator<Item = Due> {
        let results = self.results(runs, until, suppress_ms).into_iter();
        results.filter_map(|run| self.due(run)).filter(move |due| due.due > watermark)
    }

    /// Describes the active runs.
    pub fn describe(&self, runs: &Waiting<Milestone>, watermark: EventTime) -> Description {
        self.absence.describe(runs, watermark)
    }

    pub fn adopt(&self, runs: Waiting<Milestone>) -> Waiting<Milestone> {
        self.absence.adopt(runs)
    }

    /// Returns the runs that become results if no absent event comes, in the order in which they are due.
    fn results<'a>(
        &self,
        runs: &'a Waiting<Milestone>,
        mut until: i64,
        suppress_ms: Option<i64>,
    ) -> Vec<&'a Rc<Run<Milestone>>> {
        let mut results = Vec::new();
        for run in self.absence.candidates(runs) {
            if self.end(run).0 >= until {
                until = self.suppressed_until(run, suppress_ms);
                results.push(run);
            }
        }
        results
    }

    /// Returns the time of the result of a run.
    fn end(&self, run: &Run<Milestone>) -> EventTime {
        self.absence.deadline(run).plus_ms(1)
    }

    fn suppressed_until(&self, run: &Run<Milestone>, suppress_ms: Option<i64>) -> i64 {
        suppress_ms.map_or(i64::MIN, |suppress_ms| self.end(run).plus_ms(suppress_ms).0)
    }

    fn due(&self, run: &Run<Milestone>) -> Option<Due> {
        let course = Course::of(run, self.first_times)?;
        let anchor = Rc::clone(&course.first);
        let finding = Finding::Absence { course, at: self.end(run) };
        Some(Due { anchor, finding, due: self.absence.deadline(run) })
    }
}
