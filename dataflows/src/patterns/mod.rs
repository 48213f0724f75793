//! General patterns, over any event type.
//!
//! "The last D" at an event of time t is the half-open interval (t − D, t]. A condition pattern matches on its
//! *rising edge*: the condition holds at this event and did not hold at the previous event that the pattern considers.

mod absence;
mod description;
mod diversity;
mod frequency;
mod grouped;
mod moments;
mod outlier;
mod sequence;
mod travel;

pub(crate) use absence::Waiting;
pub use absence::{Absence, Unfollowed};
pub use description::Description;
pub use diversity::{Diversity, Variety};
pub use frequency::{Frequency, Rate};
pub use grouped::{Grouped, Groups, Stepped};
pub use moments::Moments;
pub use outlier::{Deviation, Outlier};
pub use sequence::{Run, Sequence, Steps};
pub use travel::{Location, Travel, Trip, haversine_km};
