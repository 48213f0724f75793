//! Windows and event patterns as differential operators.
#![warn(missing_docs)]

mod shard;
mod time;

pub use shard::{KEY_HASH_VERSION, KeyHash, SHARDS, ShardId};
pub use time::{Epoch, EventTime, Offset, Partition, Position, millis};
