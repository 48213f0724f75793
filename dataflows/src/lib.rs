//! Windows and event patterns as differential operators.
//!
//! The same events and watermarks in the same epochs give the same changes on any number of workers. The changes that
//! an operator emits for one key in one epoch also have the same order. Changes of different keys have no order.
#![deny(missing_docs)]

mod accumulate;
mod admit;
mod anchor;
mod batch;
mod capture;
mod control;
mod dedup;
mod due;
mod engine;
mod event;
mod events;
mod exchanged;
mod expiry;
mod frontier;
mod key_states;
mod keyed;
mod keys;
mod load;
pub mod patterns;
mod prefetch;
mod refused;
mod rule_set;
mod rules;
mod scan;
mod shard;
mod since;
mod slots;
mod time;
mod undos;

pub mod testing;
pub mod windows;

pub use accumulate::Accumulate;
pub use admit::{Admission, Admit, Refusal, Refused, ids_of};
pub use anchor::Anchor;
pub use capture::{Captured, Captures, Checkpoint, Damage, Record, RestoreError, STATE_VERSION, Stored};
pub use control::{Clock, Control, ControlStream};
pub use engine::Engine;
pub use event::{Event, Key, OwnedKey};
pub use events::{EventUse, Events};
pub use key_states::{AsOf, KeyStates, StatePart};
pub use keyed::Keyed;
pub use load::Load;
pub use prefetch::prefetch;
pub use refused::{RefusedEvents, RefusedLog};
pub use rule_set::{
    Backfill, Condition, Course, Finding, Locate, Number, Predicate, ResultOf, ResultOfAbsence, RuleSet,
    RuleSetError, RuleVersions, SetRule, SetState, Step, Value, forget_rules_by_id, last_of, shard_of,
};
pub use rules::{Entering, KeyedState, Missing, Rule, Rules, UndoSink};
pub use scan::{Emission, Pattern, Scan, forget_rules, with_key};
pub use shard::{KEY_HASH_VERSION, KeyHash, SHARDS, ShardId};
pub use since::Since;
pub use time::{Epoch, EventTime, Offset, Partition, Position, millis};
