//! Recovery: where a start resumes, whether its configuration fits the state, and what a cluster starts with.

pub mod bootstrap;
pub mod compatibility;
pub mod discard;
pub mod lists;
pub mod origin;
pub mod rules;
pub mod start;
