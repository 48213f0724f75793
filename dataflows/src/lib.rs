//! Windows and event patterns as differential operators.
#![warn(missing_docs)]

mod accumulate;
mod admit;
mod batch;
mod capture;
mod control;
mod dedup;
mod engine;
mod event;
mod frontier;
mod keyed;
mod keys;
mod load;
pub mod patterns;
mod rules;
mod scan;
mod shard;
mod time;

pub mod testing;
pub mod windows;

pub use accumulate::Accumulate;
pub use admit::{Admission, Admit, Refusal, Refused};
pub use capture::{Captured, Captures, Checkpoint, Damage, Record, RestoreError, Stored};
pub use control::{Clock, Control, ControlStream};
pub use engine::Engine;
pub use event::{Event, Key, OwnedKey};
pub use keyed::Keyed;
pub use load::Load;
pub use rules::{Missing, Rule, Rules};
pub use scan::{Emission, Pattern, Scan, with_key};
pub use shard::{KEY_HASH_VERSION, KeyHash, SHARDS, ShardId};
pub use time::{Epoch, EventTime, Offset, Partition, Position, millis};
