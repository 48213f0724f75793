//! Coordination: decides when results become final or durable. These are pure functions without network or clock.
//!
//! ```text
//!   readers ── Closed(e): what each worker read in epoch e ──▶ Bindings ── W(e) ──▶ Control, broadcast
//!                                                                 │
//!   sinks ── every sink has committed through E ──────────────────┴──▶ the consumer group's offsets at E
//! ```

mod bindings;
mod changes;
mod checkpoints;
pub mod ingest;
mod losses;
mod manifest;
#[cfg(test)]
mod model;
mod offsets;
mod owners;
mod recovery;
mod skips;
mod takeovers;
#[cfg(test)]
mod trials;
mod watermark;

pub use bindings::{Binding, Bound, Closed, Collector, EpochRecord, Protocol};
pub use changes::{Change, InForce, ListVersion, StoredPasts, Versions};
pub use checkpoints::{
    Checkpoint, InvalidPart, Marks, NoOrigin, Prune, are_chains, chain, durable, is_closed, left_behind,
    lists_of, origins, prune, unreferenced, unreferenced_lists, wants_base,
};
pub use losses::{AcceptedLoss, Loss, apply_losses, go_on_at};
pub use manifest::{Manifest, Operator, Part, PartKind, PartName, Position, Positions};
pub use offsets::GroupOffsets;
pub use owners::Owners;
pub use recovery::{CommittedThrough, Mismatch, NoResume, Recorded, Resume, committed_through, resume};
pub use skips::{Skip, Skips};
pub use takeovers::{TAKEOVERS_WITHIN_MS, Takeovers};
pub use watermark::{AllIdle, Watermark, WatermarkRule};
