//! The state of a process for the API, from its metrics.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use headwater_dataflows::{Epoch, EventTime, Partition};
use prometheus::core::Collector;
use prometheus::proto::Metric as Sample;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Metrics, PartitionTime, Times, resident_bytes};
use crate::json::rfc3339;
use crate::wall::wall_ms;

/// The watermark.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct WatermarkStatus {
    /// The watermark, RFC 3339 in UTC; null before the first one and at the end of all input.
    pub time: Option<String>,
    /// Its lag behind the wall clock, in seconds.
    pub lag_s: f64,
    /// True if all input has ended.
    pub ended: bool,
}

/// The frontier behind all sinks.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FrontierStatus {
    /// The first epoch that not all sinks have committed.
    pub epoch: u64,
    /// The age of that epoch, in seconds; 0 if no epoch is open.
    pub age_s: f64,
    /// The reason why the frontier stands still; null if nothing holds it up.
    pub held_by: Option<String>,
}

/// A partition of the source.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PartitionStatus {
    /// The number of the partition.
    pub partition: u32,
    /// The number of known records that have not been read; null if another process reads the partition.
    pub lag_records: Option<i64>,
    /// The offset after the last record of the closed epochs, from which a client computes the rate; null if it is not
    /// known in this process.
    pub next_offset: Option<i64>,
    /// The partition's own watermark, RFC 3339 in UTC; null if it is not known in this process.
    pub watermark: Option<String>,
    /// `live`, `idle` or `held` (by an open transaction).
    pub state: &'static str,
    /// The time for which an open transaction has held the partition, in seconds.
    pub held_s: i64,
}

/// A sink.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SinkStatus {
    /// The name.
    pub name: String,
    /// The last epoch that it has committed; null if it has committed none in this run.
    pub through_epoch: Option<u64>,
    /// The time for which the commit in progress lasts, in seconds; null if there is none.
    pub committing_s: Option<f64>,
    /// The number of commits in this run.
    pub commits: u64,
    /// The number of commits that failed and were retried.
    pub retries: u64,
    /// The mean duration of a commit, in milliseconds; null if there was none.
    pub mean_commit_ms: Option<f64>,
    /// The number of rows and messages that it has committed in this run.
    pub outputs: u64,
}

/// The newest checkpoint.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CheckpointStatus {
    /// Its epoch.
    pub epoch: u64,
    /// The wall time of its epoch, RFC 3339 in UTC.
    pub time: String,
    /// Its age in seconds.
    pub age_s: f64,
    /// The bytes that a start would read to resume from it.
    pub bytes: i64,
}

/// The latency from a record's timestamp to the commit of its alerts, since the start.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LatencyStatus {
    /// The number of measurements.
    pub count: u64,
    /// The median in milliseconds; null if nothing was measured.
    pub p50_ms: Option<f64>,
    /// The 99th percentile in milliseconds; null if nothing was measured.
    pub p99_ms: Option<f64>,
}

/// The state of a process.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Snapshot {
    /// Seconds since the process started.
    pub uptime_s: f64,
    /// Restarts by the supervisor.
    pub restarts: u64,
    /// `starting`, `ready` or `stalled`.
    pub state: &'static str,
    /// The reason why the process is not ready; null if it is.
    pub reason: Option<String>,
    /// The causes that delay results.
    pub stalled: Vec<&'static str>,
    /// The generation of this start; null without a ledger.
    pub generation: Option<u64>,
    /// The latest epoch that has closed.
    pub epoch: u64,
    /// The frontier behind all sinks.
    pub frontier: FrontierStatus,
    /// The watermark.
    pub watermark: WatermarkStatus,
    /// The number of events since the start.
    pub events: u64,
    /// The number of unread records in this process's partitions.
    pub lag_records: i64,
    /// The number of keys with state.
    pub keys: i64,
    /// The number of windows that are not final.
    pub open_windows: i64,
    /// The share of time in which each worker of this process is busy, by its index, where the system measures it.
    pub workers_busy: BTreeMap<String, f64>,
    /// The bytes that were read and not yet committed.
    pub bytes_in_flight: i64,
    /// The resident memory of the process in bytes; null if it is not known.
    pub resident_bytes: Option<i64>,
    /// Errors of optional fields since the start, by field; fields without an error are left out.
    pub field_errors: BTreeMap<String, u64>,
    /// Dead letters since the start, by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// The latency.
    pub latency: LatencyStatus,
    /// The partitions of the source.
    pub partitions: Vec<PartitionStatus>,
    /// The newest checkpoint; null if there is none.
    pub checkpoint: Option<CheckpointStatus>,
}

impl Metrics {
    /// Returns the state of the process.
    pub fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let unready = self.unready();
        let (frontier, holder) = {
            let health = self.health();
            (health.frontier, health.stalls(now).into_values().next())
        };
        let state = match (&unready, frontier) {
            (None, _) => "ready",
            (Some(_), None) => "starting",
            (Some(_), Some(_)) => "stalled",
        };
        let begun = frontier.and_then(|frontier| frontier.begun);
        let latency = times_of(&self.latency);
        // Each lock is released at the end of its statement, before another is taken.
        let generation = self.progress().generation;
        Snapshot {
            uptime_s: self.started.elapsed().as_secs_f64(),
            restarts: self.restarts.get(),
            state,
            stalled: unready
                .as_ref()
                .map(|unready| unready.causes.iter().map(|cause| cause.as_str()).collect())
                .unwrap_or_default(),
            reason: unready.map(|unready| unready.reason),
            generation,
            epoch: self.epoch.get() as u64,
            frontier: FrontierStatus {
                epoch: self.frontier.get() as u64,
                age_s: begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64()),
                held_by: holder,
            },
            watermark: self.watermark_status(),
            events: self.events.get(),
            lag_records: self.waiting(),
            keys: self.keys.get(),
            open_windows: self.open_windows.get(),
            workers_busy: self.workers_busy(),
            bytes_in_flight: self.bytes_in_flight.get(),
            resident_bytes: resident_bytes(),
            field_errors: by_label(&self.field_errors).into_iter().filter(|(_, count)| *count > 0).collect(),
            dead_letters: by_label(&self.rejected),
            latency: LatencyStatus {
                count: latency.count(),
                p50_ms: latency.quantile(0.5).map(|seconds| seconds * 1e3),
                p99_ms: latency.quantile(0.99).map(|seconds| seconds * 1e3),
            },
            partitions: self.partition_statuses(),
            checkpoint: self.checkpoint_status(),
        }
    }

    fn watermark_status(&self) -> WatermarkStatus {
        let watermark = EventTime(self.watermark_ms.load(Ordering::Relaxed));
        let lag_s = match watermark {
            EventTime::MIN => self.started.elapsed().as_secs_f64(),
            EventTime::MAX => 0.0,
            EventTime(ms) => wall_ms().saturating_sub(ms) as f64 / 1e3,
        };
        WatermarkStatus { time: time_text(watermark), lag_s, ended: watermark == EventTime::MAX }
    }

    fn checkpoint_status(&self) -> Option<CheckpointStatus> {
        let epoch = self.commits.checkpoint_epoch.get();
        let time_ms = (self.commits.checkpoint_time.get() * 1e3) as i64;
        (epoch > 0).then(|| CheckpointStatus {
            epoch: epoch as u64,
            time: rfc3339(time_ms),
            age_s: wall_ms().saturating_sub(time_ms).max(0) as f64 / 1e3,
            bytes: self.commits.checkpoint_bytes.get(),
        })
    }

    fn partition_statuses(&self) -> Vec<PartitionStatus> {
        let lags = by_label_of(&self.consumer_lag, |sample| sample.get_gauge().get_value() as i64);
        let held = self.health().held.clone();
        let times = self.progress().partitions.clone();
        let known = lags.keys().filter_map(|partition| partition.parse::<u32>().ok()).max();
        let count = known.map_or(0, |last| last + 1).max(times.len() as u32);
        let status = |partition: u32| {
            let held_s = held.get(&Partition(partition)).map(|(_, since)| since.elapsed().as_secs() as i64);
            let time: Option<&PartitionTime> = times.get(partition as usize);
            let state = match (held_s, time) {
                (Some(_), _) => "held",
                (None, Some(PartitionTime { idle: true, .. })) => "idle",
                (None, _) => "live",
            };
            PartitionStatus {
                partition,
                lag_records: lags.get(&partition.to_string()).copied(),
                next_offset: time.map(|time| time.next_offset),
                watermark: time.and_then(|time| time_text(time.watermark)),
                state,
                held_s: held_s.unwrap_or(0),
            }
        };
        (0..count).map(status).collect()
    }

    /// Returns the state of a sink.
    pub fn sink_status(&self, name: &str) -> SinkStatus {
        let commits = &self.commits;
        let duration = commits.duration.with_label_values(&[name]);
        let count = duration.get_sample_count();
        let through = commits.sink_epoch.with_label_values(&[name]).get();
        let committing = self.health().committing.get(name).copied();
        SinkStatus {
            name: name.to_owned(),
            through_epoch: (through > 0).then_some(through as u64),
            committing_s: committing.map(|since| since.elapsed().as_secs_f64()),
            commits: count,
            retries: commits.retries.with_label_values(&[name]).get(),
            mean_commit_ms: (count > 0).then(|| duration.get_sample_sum() / count as f64 * 1e3),
            outputs: commits.outputs.with_label_values(&[name]).get(),
        }
    }

    /// Returns the watermark up to which a sink has committed everything; None if it is not known yet.
    pub fn committed_watermark(&self, sink: &str) -> Option<EventTime> {
        let through = self.commits.sink_epoch.with_label_values(&[sink]).get() as u64;
        // A sink without outputs commits nothing, and has all epochs before the frontier.
        let all = self.frontier_epoch().0.saturating_sub(1);
        self.progress().watermark_at(Epoch(through.max(all)))
    }

    /// Returns the watermark up to which all sinks have committed everything; None if it is not known yet.
    pub fn final_watermark(&self) -> Option<EventTime> {
        self.progress().watermark_at(Epoch(self.frontier_epoch().0.checked_sub(1)?))
    }

    /// Returns the number of alerts of all rules with this status and of this mode.
    pub fn alert_total(&self, status: &str, mode: &str) -> u64 {
        self.alerts_with(&[("status", status), ("mode", mode)])
    }

    /// Returns the number of alerts of this rule with this status, of any mode.
    pub fn alert_count(&self, rule: &str, status: &str) -> u64 {
        self.alerts_with(&[("rule", rule), ("status", status)])
    }

    fn alerts_with(&self, labels: &[(&str, &str)]) -> u64 {
        let families = self.alerts.collect();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        let has = |metric: &Sample, (name, value): &(&str, &str)| {
            metric.get_label().iter().any(|label| label.name() == *name && label.value() == *value)
        };
        let selected = metrics.filter(|metric| labels.iter().all(|label| has(metric, label)));
        selected.map(|metric| metric.get_counter().get_value()).sum::<f64>() as u64
    }

    /// Returns the number of alerts of each rule: raised and revoked.
    pub fn rule_counts(&self, rule: &str) -> (u64, u64) {
        (self.alert_count(rule, "raised"), self.alert_count(rule, "revoked"))
    }
}

/// Returns the text of a watermark; None for one without a time.
pub fn time_text(watermark: EventTime) -> Option<String> {
    (watermark != EventTime::MIN && watermark != EventTime::MAX).then(|| rfc3339(watermark.0))
}

fn times_of(histogram: &prometheus::Histogram) -> Times {
    use prometheus::core::Metric;
    let metric = histogram.metric();
    let buckets = metric.get_histogram().get_bucket();
    Times(buckets.iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count())).collect())
}

fn by_label(counters: &prometheus::IntCounterVec) -> BTreeMap<String, u64> {
    by_label_of(counters, |sample| sample.get_counter().get_value() as u64)
}

/// Returns the values of metrics with one label, by its value.
fn by_label_of<T>(collector: &impl Collector, value: impl Fn(&Sample) -> T) -> BTreeMap<String, T> {
    let families = collector.collect();
    let samples = families.iter().flat_map(|family| family.get_metric());
    samples
        .filter_map(|sample| Some((sample.get_label().first()?.value().to_owned(), value(sample))))
        .collect()
}
