//! Decisions about reading: what pushes the watermark, when a partition is idle or held, who pauses, what holds time up.
//!
//! ```text
//!   record ──▶ Clocks ──▶ future? ──▶ PushTime: greatest pushing time, candidate ─┐
//!   client ──▶ PartitionTracker: idle timer, held transaction ───────────────────┴─▶ Binding, Slowest
//!   bindings, W ──▶ Pace ─┬▶ Unfinal: bytes above W ──▶ ReadPermission          (worker 0)
//!                         └▶ Liveness ──▶ Stall: who holds final results up
//! ```
//!
//! Pure: time comes in as a [`Duration`](std::time::Duration) since the start, so that simulations run it faster
//! than any clock.

mod clocks;
mod liveness;
mod pace;
mod partition;
#[cfg(test)]
mod simulation;
mod unfinal;

pub use clocks::{Clocks, PushTime, TimeRules, WallClock};
pub use liveness::{Cause, Liveness, Stall};
pub use pace::{Pace, Paced};
pub use partition::{PartitionTracker, Slowest, Timing, Waiting};
pub use unfinal::{ReadPermission, Unfinal, UnfinalBytes};
