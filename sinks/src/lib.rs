//! Transactional sinks that commit with the frontier.
//!
//! ```text
//!   workers ── Changes of an epoch ──▶ stage ─┐
//!                                             ├─▶ one transaction: outputs + Progress ──▶ readers
//!   coordination ── CommitPermit(through E) ──┘
//! ```
//!
//! A worker encodes what an epoch changed into [`Changes`]; the one writer of the process stages them and, when
//! coordination permits it, makes everything up to an epoch visible together with its [`Progress`], in one
//! transaction of the store itself. What every sink must do is in `sinks/SPEC.md` and in [`Sink`].
#![deny(missing_docs)]

mod changes;
mod contract;
pub mod crash;
pub mod kafka;
pub mod memory;
mod migrations;
mod misconfigured;
mod naming;
pub mod postgres;
pub mod private;
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
