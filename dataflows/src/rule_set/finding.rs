//! The results of conditions.

use std::rc::Rc;

use crate::patterns::{Deviation, Part, Rate, Run, Total, Trip, Variety};
use crate::{Anchor, EventTime};

/// The finding of a [`Condition`](super::Condition) at an event, or at a time without one.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// An event.
    Match,
    /// A number of events.
    Count(Rate),
    /// A sum.
    Sum(Total),
    /// An average: its sum and count.
    Average(Total),
    /// A number of distinct values.
    Distinct(Variety),
    /// A share of the events.
    Share(Part),
    /// A number far from the mean of all earlier ones.
    Outlier(Deviation),
    /// Movement faster than is possible, from the named event.
    Travel(Trip<Anchor>),
    /// Events one after the other.
    Sequence(Course),
    /// Events that no event followed.
    Absence {
        /// The events.
        course: Course,
        /// The end of the time in which no event followed: the time of the first event plus `within_ms`.
        at: EventTime,
    },
}

/// The events of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    /// The first event.
    pub first: Rc<Anchor>,
    /// The event that completed each step, in order. Of a step of one event it is this event.
    pub completed: Vec<Rc<Anchor>>,
}

/// The value that a run stores of an event: its anchor, if it is the first of the run or completes a step.
pub(super) type Milestone = Option<Rc<Anchor>>;

impl Course {
    /// Returns the course of a run whose first step takes `first_times` events; `None` if the run has no first event.
    pub(super) fn of(run: &Run<Milestone>, first_times: u32) -> Option<Course> {
        let first = Rc::clone(run.first().as_ref()?);
        let skipped = usize::from(first_times > 1);
        let completed = run.iter().skip(skipped).flatten().map(Rc::clone).collect();
        Some(Course { first, completed })
    }
}
