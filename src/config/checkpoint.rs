//! How often checkpoints are made, and how many are kept.

use std::time::Duration;

use super::millis;
use super::read::{Notes, Section};

/// How often checkpoints are made, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointConfig {
    /// The least time between two, by the epochs' wall times.
    pub interval: Duration,
    /// How many a start can go back to.
    pub keep: usize,
}

/// Reads the section `[checkpoint]`.
pub(super) fn read(top: &mut Section<'_>, notes: &mut Notes) -> Option<CheckpointConfig> {
    let mut section = top.section("checkpoint", notes)?;
    let interval = section.duration("interval", 100, notes);
    let keep = section.int("keep", 1..=100, notes);
    section.end(notes);
    if !top.has("ledger") {
        top.complain("checkpoint", "checkpoints need a [ledger], which says what they consist of", notes);
    }
    Some(CheckpointConfig { interval: millis(interval?), keep: keep? as usize })
}
