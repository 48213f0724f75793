//! Transactional sinks that commit with the frontier.
//!
//! ```text
//!   workers ── Changes of an epoch ──▶ stage ─┐
//!                                             ├─▶ one transaction: outputs + Progress ──▶ readers
//!   coordination ── CommitPermit(through E) ──┘
//! ```
//!
//! A worker encodes the outputs of an epoch as [`Changes`]. The writer of the process stages them. When coordination
//! permits it, the writer commits everything up to an epoch together with its [`Progress`], in one transaction of the
//! store itself. `sinks/SPEC.md` and [`Sink`] define the contract of every sink.
#![deny(missing_docs)]

mod changes;
mod contract;
pub mod crash;
pub mod file;
pub mod kafka;
pub mod memory;
mod migrations;
mod misconfigured;
mod naming;
pub mod postgres;
pub mod private;
pub mod redis;
mod secret;
pub mod sqlite;
pub mod tables;
mod text;

pub use changes::{Cell, Changes, Header, Message, Messages, Row, RowWriter, Rows};
pub use contract::{
    CommitError, CommitPermit, Generation, LedgerId, OpenError, Progress, Shards, Sink, StageError,
    WriterContext,
};
pub use misconfigured::Misconfigured;
pub use naming::{MessageNames, row_name};
pub use secret::Secret;
