//! Decisions about reading: the pushing times, idle and held partitions, paused partitions, and stalls.
//!
//! ```text
//!   record ──▶ Clocks ──▶ future? ──▶ PushTime: greatest pushing time, candidate ─┐
//!   client ──▶ PartitionTracker: idle timer, held transaction ───────────────────┴─▶ Binding, Slowest
//!   bindings, W ──▶ Pace ─┬▶ Unfinal: bytes above W ──▶ ReadPermission          (worker 0)
//!                         └▶ Liveness ──▶ Stall: the partition that holds up final results
//! ```
//!
//! All of it is pure: time is passed in as a [`Duration`](std::time::Duration) since the start, so that simulations
//! run faster than real time.

mod clocks;
mod liveness;
mod pace;
mod partition;
#[cfg(test)]
mod simulation;
mod state;
mod unfinal;

pub use clocks::{Clocks, PushTime, TimeRules, WallClock};
pub use liveness::{Cause, Liveness, Stall};
pub use pace::{Pace, Paced};
pub use partition::{PartitionTracker, Slowest, Timing, Waiting};
pub use state::PartitionState;
pub use unfinal::{RECORD_OVERHEAD, ReadPermission, UNFINAL_OVERHEAD, UNFINAL_PART, Unfinal, UnfinalBytes};
