//! Prometheus metrics, and the readiness of the process.
//!
//! Labels are bounded: reasons, rules and statuses are fixed, sinks are configured, partitions are the topic's.

mod commits;
mod deliveries;
mod health;
mod lists;
mod progress;
mod registrar;
mod renamed;
mod rules;
mod snapshot;
mod spans;
mod workers;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, EventTime, Offset, Partition};
use prometheus::core::{Collector, Metric};
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, TextEncoder, exponential_buckets,
};

use self::commits::CommitMetrics;
use self::deliveries::DeliveryMetrics;
pub use self::deliveries::DeliveryOutcome;
pub use self::health::Unready;
use self::health::{Frontier, Health};
use self::lists::ListMetrics;
pub use self::progress::PartitionTime;
use self::progress::Progress;
use self::registrar::Registrar;
pub use self::rules::RuleErrors;
pub use self::snapshot::{
    CheckpointStatus, FrontierStatus, LatencyStatus, PartitionStatus, SinkStatus, Snapshot, WatermarkStatus,
    time_text,
};
pub use self::workers::BusyMeter;
use crate::coordination::ingest::{Cause, Stall};
use crate::decode::{OPTIONAL_FIELDS, Reason};
use crate::rounds::RoundRecorder;
use crate::wall::wall_ms;

/// The metrics of one process.
pub struct Metrics {
    registry: Registry,
    events: IntCounter,
    rejected: IntCounterVec,
    field_errors: IntCounterVec,
    alerts: IntCounterVec,
    epoch: IntGauge,
    epoch_time: Histogram,
    watermark_ms: AtomicI64,
    watermark: Gauge,
    watermark_lag: Gauge,
    frontier: IntGauge,
    frontier_lag: Gauge,
    ready: IntGauge,
    consumer_lag: IntGaugeVec,
    latency: Histogram,
    bytes_in_flight: IntGauge,
    keys: IntGauge,
    open_windows: IntGauge,
    worker_busy: GaugeVec,
    commits: CommitMetrics,
    deliveries: DeliveryMetrics,
    peer_silence: GaugeVec,
    restarts: IntCounter,
    spans_dropped: IntCounter,
    rule_errors: IntCounterVec,
    rule_error_counts: Mutex<Vec<RuleErrors>>,
    lists: ListMetrics,
    resident_memory: IntGauge,
    stalled: IntGaugeVec,
    partition_held: IntGaugeVec,
    partition_withheld: IntGaugeVec,
    first_rejection: OnceLock<String>,
    started: Instant,
    health: Mutex<Health>,
    progress: Mutex<Progress>,
    rounds: OnceLock<RoundRecorder>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new().expect("the metrics' names are valid and distinct")
    }
}

impl Metrics {
    fn new() -> prometheus::Result<Metrics> {
        let registry = Registry::new();
        let add = Registrar(&registry);
        let metrics = Metrics {
            events: add
                .register(IntCounter::new("headwater_events_total", "Events decoded, valid and not in the future")?)?,
            rejected: add.counters(
                "headwater_dead_letters_total",
                "Records sent to the dead letters",
                &["reason"],
            )?,
            field_errors: add.counters(
                "headwater_field_errors_total",
                "Optional fields with a wrong type or value, which were treated as absent",
                &["field"],
            )?,
            rule_errors: add.counters(
                "headwater_rule_errors_total",
                "Evaluations of a rule's expressions that ended with an error",
                &["rule"],
            )?,
            rule_error_counts: Mutex::default(),
            alerts: add.counters("headwater_alerts_total", "Alerts raised and revoked", &["rule", "status", "mode"])?,
            epoch: add.gauge("headwater_epoch", "The latest epoch that has closed")?,
            epoch_time: add.register(Histogram::with_opts(
                HistogramOpts::new(
                    "headwater_epoch_seconds",
                    "Time from the opening of an epoch until all operators of all workers have completed it",
                )
                .buckets(exponential_buckets(0.005, 1.25, 28)?),
            )?)?,
            watermark_ms: AtomicI64::new(EventTime::MIN.0),
            watermark: add.float_gauge("headwater_watermark_timestamp_seconds", "The watermark, in seconds since 1970; -Inf while there is none, +Inf when all input has ended")?,
            watermark_lag: add.float_gauge("headwater_watermark_lag_seconds", "Lag of the watermark behind the wall clock; the uptime while there is no watermark; 0 when all input \
                 has ended")?,
            frontier: add.gauge("headwater_frontier_epoch", "The first epoch that not all sinks have committed")?,
            frontier_lag: add.float_gauge("headwater_frontier_lag_seconds", "Age of the first epoch that not all sinks have committed")?,
            ready: add.gauge("headwater_ready", "1 if the process is ready, as /readyz reports it")?,
            consumer_lag: add.gauges("headwater_consumer_lag_records", "Known records that have not been read yet", &["partition"])?,
            latency: add.register(Histogram::with_opts(
                HistogramOpts::new(
                    "headwater_latency_seconds",
                    "Time from the record timestamp to the commit of its epoch by all sinks that accept alerts, for \
                     the record with the oldest timestamp of each worker and epoch",
                )
                .buckets(exponential_buckets(0.001, 2.0, 18)?),
            )?)?,
            bytes_in_flight: add
                .gauge("headwater_bytes_in_flight", "Bytes that were read and not yet committed by all sinks")?,
            keys: add.gauge("headwater_keys", "Keys with state")?,
            open_windows: add.gauge("headwater_open_windows", "Windows that are not final")?,
            worker_busy: add.float_gauges("headwater_worker_busy_ratio", "Share of time in which a worker runs or waits for a processor", &["worker"])?,
            commits: CommitMetrics::new(&add)?,
            deliveries: DeliveryMetrics {
                total: add.counters("headwater_deliveries_total", "Attempts to deliver alerts, and deliveries given up", &["route", "outcome"])?,
                waiting: add.gauges("headwater_deliveries_waiting", "Deliveries that wait to be sent", &["route"])?,
                oldest: add.gauges("headwater_delivery_oldest_seconds", "Age of the oldest delivery that waits; 0 if none does", &["route"])?,
                condition_errors: add.counters("headwater_route_errors_total", "Errors of conditions of routes", &["route"])?,
            },
            peer_silence: add.float_gauges("headwater_peer_silence_seconds", "Time since another process of the cluster last sent something", &["process"])?,
            restarts: add.register(IntCounter::new(
                "headwater_restarts_total",
                "Restarts of this run by the supervisor after a failure",
            )?)?,
            spans_dropped: add.register(IntCounter::new("headwater_spans_dropped_total", "Spans that were not exported")?)?,
            lists: ListMetrics::new(&add)?,
            resident_memory: add
                .gauge("process_resident_memory_bytes", "Resident memory of the process, in bytes")?,
            stalled: add.gauges("headwater_stalled", "1 if this cause delays results", &["cause"])?,
            partition_withheld: add.gauges("headwater_partition_withheld_seconds", "Time for which records of the partition have waited for a schema", &["partition"])?,
            partition_held: add.gauges("headwater_partition_held_seconds", "Time for which an open upstream transaction has held the partition", &["partition"])?,
            first_rejection: OnceLock::new(),
            started: Instant::now(),
            health: Mutex::default(),
            progress: Mutex::default(),
            rounds: OnceLock::new(),
            registry: registry.clone(),
        };
        metrics.initialize();
        Ok(metrics)
    }

    /// Sets the values of metrics that exist before anything has happened.
    fn initialize(&self) {
        self.watermark.set(f64::NEG_INFINITY);
        for reason in Reason::ALL {
            self.rejected.with_label_values(&[reason.as_str()]);
        }
        for cause in Cause::ALL {
            self.stalled.with_label_values(&[cause.as_str()]);
        }
        for field in OPTIONAL_FIELDS {
            self.field_errors.with_label_values(&[field]);
        }
    }

    /// Adds `n` events.
    pub fn events(&self, n: u64) {
        self.events.inc_by(n);
    }

    /// Returns the number of events.
    pub fn event_count(&self) -> u64 {
        self.events.get()
    }

    /// Adds `n` records that were rejected for this reason.
    pub fn rejected(&self, reason: &str, n: u64) {
        if n > 0 {
            self.rejected.with_label_values(&[reason]).inc_by(n);
        }
    }

    /// Stores the description of a rejected record, if it is the first one.
    pub fn rejection(&self, describe: impl FnOnce() -> String) {
        self.first_rejection.get_or_init(describe);
    }

    /// Returns the description of the first rejected record, with the reason.
    pub fn first_rejection(&self) -> Option<&str> {
        self.first_rejection.get().map(String::as_str)
    }

    /// Returns the number of records that were rejected for this reason.
    pub fn rejected_count(&self, reason: &str) -> u64 {
        self.rejected.with_label_values(&[reason]).get()
    }

    /// Counts an error of an optional field.
    pub fn field_error(&self, field: &str) {
        self.field_errors.with_label_values(&[field]).inc();
    }

    /// Returns the number of errors of an optional field.
    pub fn field_error_count(&self, field: &str) -> u64 {
        self.field_errors.with_label_values(&[field]).get()
    }

    /// Counts an alert of this rule that was raised or revoked.
    pub fn alert(&self, rule: &str, status: &str, mode: &str) {
        self.alerts.with_label_values(&[rule, status, mode]).inc();
    }

    /// Records that an epoch has closed, with this watermark.
    pub fn closed(&self, epoch: Epoch, watermark: EventTime) {
        self.epoch.set(epoch.0 as i64);
        self.watermark_ms.store(watermark.0, Ordering::Relaxed);
        self.watermark.set(match watermark {
            EventTime::MIN => f64::NEG_INFINITY,
            EventTime::MAX => f64::INFINITY,
            EventTime(ms) => ms as f64 / 1e3,
        });
    }

    /// Records the time from the opening of an epoch until all operators of all workers have completed it.
    pub fn computed(&self, time: Duration) {
        self.epoch_time.observe(time.as_secs_f64());
    }

    /// Returns the distribution of the epochs' durations so far.
    pub fn epoch_times(&self) -> Times {
        let metric = self.epoch_time.metric();
        let buckets = metric.get_histogram().get_bucket();
        Times(buckets.iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count())).collect())
    }

    /// Returns the latest epoch that has closed, and its watermark.
    pub fn latest(&self) -> (u64, i64) {
        (self.epoch.get() as u64, self.watermark_ms.load(Ordering::Relaxed))
    }

    /// Registers the commit interval of a sink.
    pub fn commits_every(&self, interval: Duration) {
        let mut health = self.health();
        health.interval = health.interval.max(interval);
    }

    /// Sets the time without progress of the frontier, and the time for which a transaction may hold a partition, after
    /// which the process is not ready.
    pub fn stalls_after(&self, standstill: Duration, held_warning: Duration) {
        let mut health = self.health();
        (health.standstill, health.held_warning) = (standstill, held_warning);
    }

    /// Sets the cause that holds the watermark; None if there is none.
    pub fn watermark_stalls(&self, stall: Option<&Stall>) {
        self.health().watermark = stall.copied();
    }

    /// Returns the gauges of the time, in seconds, for which a transaction has held a partition, and for which records of it
    /// have waited for a schema.
    pub fn partition_waits(&self, partition: Partition) -> [IntGauge; 2] {
        let number = partition.0.to_string();
        [&self.partition_held, &self.partition_withheld].map(|gauge| gauge.with_label_values(&[&number]))
    }

    /// Sets the offset and duration for which a transaction has held a partition; None if none holds it.
    pub fn partition_holds(&self, partition: Partition, held: Option<(Offset, Duration)>) {
        let mut health = self.health();
        match held.and_then(|(offset, time)| Some((offset, Instant::now().checked_sub(time)?))) {
            Some(held) => drop(health.held.insert(partition, held)),
            None => drop(health.held.remove(&partition)),
        }
    }

    /// Sets the problem of the source's topic; None if there is none.
    pub fn topic_stalls(&self, reason: Option<String>) {
        self.health().topic = reason;
    }

    /// Records that a write to the ledger has begun or ended.
    pub fn writes_ledger(&self, writing: bool) {
        self.health().writes_ledger = writing.then(Instant::now);
    }

    /// Logs each stall once, and its end.
    pub fn log_stalls(&self) {
        self.health().log(Instant::now());
    }

    /// Records that all sinks have committed all epochs before `epoch`, which was opened at `begun`, if it is open.
    pub fn frontier(&self, epoch: Epoch, begun: Option<Instant>) {
        self.frontier.set(epoch.0 as i64);
        self.health().frontier = Some(Frontier { begun, moved: Instant::now() });
    }

    /// Records the watermark at the end of an epoch, as all operators see it.
    pub fn watermark_at(&self, epoch: Epoch, watermark: EventTime) {
        let frontier = self.frontier_epoch();
        self.progress().watermark(epoch, watermark, frontier);
    }

    /// Records the watermark and state of each partition.
    pub fn partition_times(&self, partitions: impl Iterator<Item = PartitionTime>) {
        let known = &mut self.progress().partitions;
        known.clear();
        known.extend(partitions);
    }

    /// Sets the generation of this start.
    pub fn claimed(&self, generation: u64) {
        self.progress().generation = Some(generation);
    }

    /// Returns the first epoch that not all sinks have committed.
    pub fn frontier_epoch(&self) -> Epoch {
        Epoch(self.frontier.get() as u64)
    }

    /// Records the time from a record timestamp to the commit of the alerts of its epoch.
    pub fn latency(&self, latency: Duration) {
        self.latency.observe(latency.as_secs_f64());
    }

    /// Returns the gauge of the number of unread records of a partition.
    pub fn consumer_lag(&self, partition: Partition) -> IntGauge {
        self.consumer_lag.with_label_values(&[&partition.0.to_string()])
    }

    /// Returns a share of the bytes that were read and not committed.
    pub fn bytes_in_flight(&self) -> Share {
        Share::of(&self.bytes_in_flight)
    }

    /// Returns a share of the number of keys.
    pub fn keys(&self) -> Share {
        Share::of(&self.keys)
    }

    /// Returns a share of the number of open windows.
    pub fn open_windows(&self) -> Share {
        Share::of(&self.open_windows)
    }

    /// Sets the current step of the start, before anything is read.
    pub fn starting(&self, what: impl Into<String>) {
        self.health().starting = Some((what.into(), Instant::now()));
    }

    /// Records that the start is complete and the workers run.
    pub fn started(&self) {
        self.health().starting = None;
    }

    /// Returns the current step of the start, until it is complete.
    pub fn start(&self) -> Option<String> {
        self.health().starting.as_ref().map(|(what, _)| what.clone())
    }

    /// Returns the gauge of the time since another process of the cluster last sent something.
    pub fn peer_silence(&self, process: usize) -> Gauge {
        self.peer_silence.with_label_values(&[&process.to_string()])
    }

    /// Adds restarts of this run by the supervisor.
    pub fn restarted(&self, times: u64) {
        self.restarts.inc_by(times);
    }

    /// Returns the reasons for which the process is not ready; None if it is ready.
    pub fn unready(&self) -> Option<Unready> {
        self.unready_at(Instant::now())
    }

    fn unready_at(&self, now: Instant) -> Option<Unready> {
        let waiting = self.waiting();
        self.health().unready(now, waiting)
    }

    /// Returns the number of unread records, over all partitions of this process.
    fn waiting(&self) -> i64 {
        let families = self.consumer_lag.collect();
        let lags = families.iter().flat_map(|family| family.get_metric());
        lags.map(|metric| metric.get_gauge().get_value()).sum::<f64>() as i64
    }

    /// Returns the metrics in the Prometheus text format.
    pub fn text(&self) -> String {
        let now = Instant::now();
        let (begun, stalls, held) = {
            let health = self.health();
            let begun = health.frontier.and_then(|frontier| frontier.begun);
            (begun, health.stalls(now), health.is_held(now))
        };
        for cause in Cause::ALL {
            let stalls = stalls.contains_key(&cause) || (cause == Cause::Transaction && held);
            self.stalled.with_label_values(&[cause.as_str()]).set(stalls.into());
        }
        self.ready.set(self.unready_at(now).is_none().into());
        self.frontier_lag.set(begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64()));
        self.watermark_lag.set(match EventTime(self.watermark_ms.load(Ordering::Relaxed)) {
            EventTime::MIN => self.started.elapsed().as_secs_f64(),
            EventTime::MAX => 0.0,
            EventTime(watermark) => wall_ms().saturating_sub(watermark) as f64 / 1e3,
        });
        if let Some(bytes) = resident_bytes() {
            self.resident_memory.set(bytes);
        }
        self.update_rule_errors();
        self.update_lists();
        let mut out = Vec::new();
        let families = renamed::with_old_names(self.registry.gather());
        let encoded = TextEncoder::new().encode(&families, &mut out);
        encoded.map(|()| String::from_utf8_lossy(&out).into_owned()).unwrap_or_default()
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().expect("no holder of the lock panics")
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("no holder of the lock panics")
    }
}

/// A distribution of durations: pairs of an upper bound, in seconds, and the number of durations up to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Times(Vec<(f64, u64)>);

impl Times {
    /// Returns the distribution since `earlier`, which must have the same bounds.
    pub fn since(&self, earlier: &Times) -> Times {
        let both = self.0.iter().zip(&earlier.0);
        Times(both.map(|(&(bound, count), &(_, before))| (bound, count.saturating_sub(before))).collect())
    }

    /// Returns the number of durations.
    pub fn count(&self) -> u64 {
        self.0.last().map_or(0, |(_, count)| *count)
    }

    /// Returns a quantile in seconds, interpolated linearly between two bounds like Prometheus' `histogram_quantile`.
    /// The result is at most the greatest bound; None if there are no durations.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let &(greatest, all) = self.0.last()?;
        let rank = share * all as f64;
        let at = self.0.iter().position(|&(_, count)| count > 0 && count as f64 >= rank)?;
        let (below, before) = if at == 0 { (0.0, 0) } else { self.0[at - 1] };
        let (bound, count) = self.0[at];
        Some((below + (bound - below) * (rank - before as f64) / (count - before) as f64).min(greatest))
    }
}

/// One worker's share of a gauge that is the sum over all workers. Dropping the share removes it from the sum.
pub struct Share {
    gauge: IntGauge,
    value: i64,
}

impl Share {
    fn of(gauge: &IntGauge) -> Share {
        Share { gauge: gauge.clone(), value: 0 }
    }

    /// Sets the share.
    pub fn set(&mut self, value: usize) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.gauge.add(value - std::mem::replace(&mut self.value, value));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Returns the resident memory of this process, in bytes; None where `/proc` does not exist.
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests;
