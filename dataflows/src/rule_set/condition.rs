//! The conditions of rules, as a configuration describes them.

use std::rc::Rc;

use crate::Event;
use crate::patterns::{Bound, Location};

/// A predicate over events.
pub type Predicate<E> = Box<dyn Fn(&E) -> bool>;

/// A number of an event, if it has one.
pub type Number<E> = Box<dyn Fn(&E) -> Option<i64>>;

/// A value of an event as a number that identifies it (a 64-bit hash or an index), if it has one.
pub type Value<E> = Box<dyn Fn(&E) -> Option<u64>>;

/// The location of an event, if it is known.
pub type Locate<E> = Box<dyn Fn(&E) -> Option<Location>>;

/// The condition of a [`SetRule`](super::SetRule): one of the [`patterns`](crate::patterns), with its parameters.
///
/// A condition sees only the events that the rule's filter accepts. "Within" is the half-open interval (t − within, t]
/// at an event of time t. `Count`, `Sum`, `Average`, `Distinct` and `Share` match on the rising edge, the others at each
/// event for which they hold. [Suppression](super::SetRule::suppress_ms) changes that.
pub enum Condition<E> {
    /// Each event: [`Every`](crate::patterns::Every).
    Match,
    /// At least `at_least` events: [`Frequency`](crate::patterns::Frequency).
    Count {
        /// The number of events.
        at_least: usize,
        /// The length of the interval, in milliseconds.
        within_ms: i64,
    },
    /// A sum: [`Sum`](crate::patterns::Sum).
    Sum {
        /// The numbers that are added.
        of: Number<E>,
        /// The bound that their sum must satisfy.
        bound: Bound,
        /// The length of the interval, in milliseconds.
        within_ms: i64,
    },
    /// An average: [`Average`](crate::patterns::Average).
    Average {
        /// The numbers whose average it is.
        of: Number<E>,
        /// The bound that their average must satisfy.
        bound: Bound,
        /// The least count of numbers.
        at_least_events: u64,
        /// The length of the interval, in milliseconds.
        within_ms: i64,
    },
    /// At least `at_least` distinct values: [`Diversity`](crate::patterns::Diversity).
    Distinct {
        /// The values.
        of: Value<E>,
        /// The number of distinct values.
        at_least: usize,
        /// The length of the interval, in milliseconds.
        within_ms: i64,
    },
    /// More than a share of the events: [`Share`](crate::patterns::Share).
    Share {
        /// True for the events that are a part of the share.
        of: Predicate<E>,
        /// The share, in millionths.
        more_than_ppm: u32,
        /// The least number of events.
        at_least_events: u64,
        /// The length of the interval, in milliseconds.
        within_ms: i64,
    },
    /// A number far from the mean of all earlier ones: [`Outlier`](crate::patterns::Outlier), for each group if there is
    /// `group_by` ([`Grouped`](crate::patterns::Grouped)).
    Outlier {
        /// The numbers.
        of: Number<E>,
        /// The distance from the mean that must be exceeded, in standard deviations.
        sigmas: f64,
        /// The number of earlier numbers from which on one can match.
        at_least: u64,
        /// The least standard deviation.
        min_sigma: f64,
        /// The least standard deviation, as a share of the absolute value of the mean.
        min_relative_sigma: f64,
        /// The group of an event.
        group_by: Option<Value<E>>,
    },
    /// Movement faster than is possible: [`Travel`](crate::patterns::Travel).
    Travel {
        /// The distance in kilometres that must be exceeded.
        km: f64,
        /// The speed in kilometres per hour that must be exceeded.
        kmh: f64,
        /// The location of an event, if it is known.
        location: Locate<E>,
    },
    /// Events one after the other: [`Sequence`](crate::patterns::Sequence), or, if `absent` is a predicate, an
    /// [`Absence`](crate::patterns::Absence).
    ///
    /// # Overlaps
    /// - Each event of the first step starts a run of its own. A run takes each later event of the step that it waits
    ///   for, `times` events for each step. All runs that wait for a step take its event, and one event advances a run by
    ///   one place only.
    /// - All events of a run lie in `within_ms`: the time from the first to the last is below it.
    /// - An event that completes several runs raises one result, of the run that started last. All of these runs end, so
    ///   their events do not match again; runs that are not complete go on.
    /// - With `absent`, a run that has completed all steps waits. It is raised when no event satisfied `absent` up to the
    ///   end, exclusive, of the `within_ms` from its first event on. Each waiting run is raised on its own: after the steps
    ///   a, a, b without a c there are two results, one for each a. Of the waiting runs of a key, the eight that started
    ///   first are kept, and of those with the same number of events before, the eight that started last. One event of
    ///   `absent` ends all waiting runs.
    /// - Runs overlap, one for each number of events taken, so the cost of an event and the memory of a key grow with the
    ///   square of `times`. To wait for many events, use `Count`.
    Sequence {
        /// The steps, at least one.
        steps: Vec<Step<E>>,
        /// The time from the first event on within which all steps are met, in milliseconds.
        within_ms: i64,
        /// The events of which none may follow the last step.
        absent: Option<Predicate<E>>,
    },
    /// No event for `within_ms` after one: each event starts the wait anew, and each silence is raised once.
    ///
    /// An event exactly `within_ms` after the last one comes too late to prevent the result.
    Absence {
        /// The length of the silence, in milliseconds.
        within_ms: i64,
    },
}

/// A step of a [`Condition::Sequence`].
pub struct Step<E> {
    /// True for the events that the step takes.
    pub filter: Predicate<E>,
    /// The number of events that the step takes, one or more.
    pub times: u32,
}

impl<E: Event> Condition<E> {
    /// Returns true if the results are absences, which no event triggers.
    pub fn is_absence(&self) -> bool {
        matches!(self, Condition::Absence { .. } | Condition::Sequence { absent: Some(_), .. })
    }

    /// Returns the time before an event that decides about it, in milliseconds; 0 if no such time is defined: `Match`
    /// needs no other events, and `Outlier` and `Travel` need any earlier ones.
    pub fn look_back_ms(&self) -> i64 {
        match self {
            Condition::Match | Condition::Outlier { .. } | Condition::Travel { .. } => 0,
            Condition::Count { within_ms, .. }
            | Condition::Sum { within_ms, .. }
            | Condition::Average { within_ms, .. }
            | Condition::Distinct { within_ms, .. }
            | Condition::Share { within_ms, .. }
            | Condition::Sequence { within_ms, .. }
            | Condition::Absence { within_ms } => *within_ms,
        }
    }
}

/// A predicate that several steps of a run share.
pub(super) type Shared<E> = Rc<dyn Fn(&E) -> bool>;
