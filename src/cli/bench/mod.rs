//! `headwater bench`: measuring the engine with itself.

mod cost;
pub mod drive;
mod latency;
mod scratch;
pub mod usage;

pub use cost::cost;
pub use latency::latency;
