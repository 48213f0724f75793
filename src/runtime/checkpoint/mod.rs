//! Checkpoints: operators that pass marks and captured state on, and the writer that stores the parts.

pub mod contents;
pub mod operators;
pub mod writer;
