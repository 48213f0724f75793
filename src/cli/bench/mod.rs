//! `headwater bench`: measuring the engine with itself.

mod cost;

pub use cost::cost;
