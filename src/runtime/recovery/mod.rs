//! Recovery: where a start resumes, whether its configuration fits the state, and how the processes of a cluster join.

pub mod bootstrap;
pub mod compatibility;
pub mod discard;
pub mod joining;
pub mod lists;
pub mod origin;
pub mod rules;
pub mod start;
