//! The interval and number of checkpoints.

use std::time::Duration;

use crate::settings::{Diagnostics, Section, millis};

/// The interval and number of checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointConfig {
    /// The minimum time between two checkpoints, by the wall times of the epochs.
    pub interval: Duration,
    /// The number of checkpoints that a start can resume from.
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
            "checkpoints need a [ledger], which stores their manifests",
            diagnostics,
        );
    }
    Some(CheckpointConfig { interval: millis(interval?), keep: keep? as usize })
}
