//! Commit: complete epochs go to the writers of sinks, and bindings to the writer of the ledger, each in its own thread.

pub mod delivery;
pub mod ledger_writer;
pub mod sink_writer;
