//! How often checkpoints are made, and how many are kept.

use std::time::Duration;

use super::millis;
use super::read::{Diagnostics, Section};

/// How often checkpoints are made, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointConfig {
    /// The least time between two, by the epochs' wall times.
    pub interval: Duration,
    /// How many a start can go back to.
    pub keep: usize,
}

/// Reads the section `[checkpoint]`.
pub(super) fn read(top: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<CheckpointConfig> {
    let mut section = top.section("checkpoint", diagnostics)?;
    let interval = section.duration("interval", 100, diagnostics);
    let keep = section.int("keep", 1..=100, diagnostics);
    section.end(diagnostics);
    if !top.has("ledger") {
        top.report_error(
            "checkpoint",
            "checkpoints need a [ledger], which says what they consist of",
            diagnostics,
        );
    }
    Some(CheckpointConfig { interval: millis(interval?), keep: keep? as usize })
}
