//! General patterns, over any event type.
//!
//! "The last D" at an event of time t is the half-open interval (t − D, t]. A condition pattern matches on its
//! *rising edge*: the condition holds at this event and did not hold at the previous event that the pattern considers.

mod absence;
mod average;
mod bound;
mod description;
mod diversity;
mod every;
mod frequency;
mod grouped;
mod located;
mod moments;
mod outlier;
mod sequence;
mod share;
mod sum;
mod trailing;
mod travel;

pub(crate) use absence::Waiting;
pub use absence::{Absence, Unfollowed};
pub use average::Average;
pub use bound::Bound;
pub use description::Description;
pub(crate) use diversity::{Displaced, LastSeen};
pub use diversity::{Diversity, Variety};
pub use every::Every;
pub use frequency::{Frequency, Rate};
pub(crate) use frequency::{Overwritten, Recent};
pub(crate) use grouped::all;
pub use grouped::{Grouped, Groups, Stepped};
pub(crate) use located::Located;
pub use moments::Moments;
pub use outlier::{Deviation, Outlier};
pub use sequence::{Run, Sequence, Steps};
pub use share::{Part, Share};
pub use sum::{Sum, Total};
pub(crate) use trailing::{Evicted, Trailing};
pub(crate) use travel::Anchored;
pub use travel::{Location, Travel, Trip, haversine_km};

use crate::Pattern;

/// A pattern whose condition can hold at several events one after the other, and that matches the first of them.
pub(crate) trait Holding<E>: Pattern<E> {
    /// Like [`step`](Pattern::step), for every event that the pattern considers and at which the condition holds: the
    /// match, and true on the rising edge.
    fn step_holding(&self, state: &mut Self::State, event: &E) -> (Option<(Self::Match, bool)>, Self::Undo);

    /// Steps, and returns the match on the rising edge.
    #[inline]
    fn step_edge(&self, state: &mut Self::State, event: &E) -> (Option<Self::Match>, Self::Undo) {
        let (held, undo) = self.step_holding(state, event);
        (held.and_then(|(found, rises)| rises.then_some(found)), undo)
    }
}
