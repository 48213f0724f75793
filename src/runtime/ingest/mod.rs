//! Ingest: the clock that opens epochs, reading and decoding of records, their bindings to epochs, and the trace of bindings.

pub mod activity;
pub mod binding;
pub mod changes;
pub mod clock;
pub mod field_errors;
pub mod reading;
pub mod rejections;
pub mod trace;
