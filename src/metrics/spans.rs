//! The recorder of rounds, and the metric of the spans that are made from them.

use prometheus::IntCounter;

use super::Metrics;
use crate::rounds::RoundRecorder;

impl Metrics {
    /// Records rounds from now on. Only the first recorder of a process is used.
    pub fn record_rounds(&self, recorder: RoundRecorder) {
        let _ = self.rounds.set(recorder);
    }

    /// Returns the recorder of rounds; None if traces are not exported.
    pub fn rounds(&self) -> Option<&RoundRecorder> {
        self.rounds.get()
    }

    /// Returns the counter of spans that were not exported.
    pub fn spans_dropped(&self) -> IntCounter {
        self.spans_dropped.clone()
    }
}
