//! `headwater bench`: measuring the engine with itself.

mod cost;
pub mod drive;
pub mod usage;

pub use cost::cost;
