//! Metrics of commits and checkpoints.

use std::time::Instant;

use headwater_dataflows::Epoch;
use prometheus::{
    Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    exponential_buckets,
};

use super::Metrics;
use super::registrar::Registrar;

/// The metrics of commits and checkpoints.
pub(super) struct CommitMetrics {
    pub(super) sink_epoch: IntGaugeVec,
    pub(super) duration: HistogramVec,
    pub(super) retries: IntCounterVec,
    pub(super) outputs: IntCounterVec,
    group_failures: IntCounter,
    pub(super) checkpoint_epoch: IntGauge,
    pub(super) checkpoint_time: Gauge,
    pub(super) checkpoint_bytes: IntGauge,
}

impl CommitMetrics {
    pub(super) fn new(add: &Registrar<'_>) -> prometheus::Result<CommitMetrics> {
        Ok(CommitMetrics {
            sink_epoch: add.register(IntGaugeVec::new(
                Opts::new("headwater_sink_epoch", "The last epoch that a sink has committed"),
                &["sink"],
            )?)?,
            duration: add.register(HistogramVec::new(
                HistogramOpts::new(
                    "headwater_commit_duration_seconds",
                    "Duration of commits, with their retries",
                )
                .buckets(exponential_buckets(0.001, 2.0, 14)?),
                &["sink"],
            )?)?,
            retries: add.register(IntCounterVec::new(
                Opts::new("headwater_commit_retries_total", "Commits that failed and were retried"),
                &["sink"],
            )?)?,
            outputs: add.counters(
                "headwater_sink_outputs_total",
                "Rows and messages that a sink has committed",
                &["sink"],
            )?,
            group_failures: add.register(IntCounter::new(
                "headwater_group_commit_failures_total",
                "Failed commits of the consumer group's offsets",
            )?)?,
            checkpoint_epoch: add
                .gauge("headwater_checkpoint_epoch", "The epoch of the newest durable checkpoint")?,
            checkpoint_time: add.register(Gauge::new(
                "headwater_checkpoint_timestamp_seconds",
                "Wall time of the newest checkpoint's epoch, in seconds since 1970",
            )?)?,
            checkpoint_bytes: add.gauge(
                "headwater_checkpoint_bytes",
                "Bytes that a start would read to resume from the newest checkpoint",
            )?,
        })
    }
}

impl Metrics {
    /// Records that a sink begins a commit.
    pub fn committing(&self, sink: &str) {
        self.commits.retries.with_label_values(&[sink]);
        self.health().committing.insert(sink.to_owned(), Instant::now());
    }

    /// Counts a retry of a commit.
    pub fn commit_retried(&self, sink: &str) {
        self.commits.retries.with_label_values(&[sink]).inc();
    }

    /// Records that a sink has committed `outputs` rows and messages through this epoch.
    pub fn committed(&self, sink: &str, through: Epoch, outputs: u64) {
        self.commits.outputs.with_label_values(&[sink]).inc_by(outputs);
        self.commits.sink_epoch.with_label_values(&[sink]).set(through.0 as i64);
        if let Some(begun) = self.health().committing.remove(sink) {
            self.commits.duration.with_label_values(&[sink]).observe(begun.elapsed().as_secs_f64());
        }
    }

    /// Records that the checkpoint of an epoch is durable, with the epoch's wall time and the bytes to read to resume
    /// from it.
    pub fn checkpoint(&self, epoch: Epoch, wall_ms: i64, bytes: u64) {
        self.commits.checkpoint_epoch.set(epoch.0 as i64);
        self.commits.checkpoint_time.set(wall_ms as f64 / 1e3);
        self.commits.checkpoint_bytes.set(bytes as i64);
    }

    /// Counts a failed commit of the consumer group's offsets.
    pub fn group_commit_failed(&self) {
        self.commits.group_failures.inc();
    }

    /// Returns the sink with the longest commit in progress, and the time at which it began.
    pub fn committing_longest(&self) -> Option<(String, Instant)> {
        self.health().committing_longest().map(|(sink, since)| (sink.clone(), *since))
    }
}
