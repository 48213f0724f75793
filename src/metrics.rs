//! What operators see: counters, gauges and histograms for Prometheus, and whether the process is ready.
//!
//! Labels are bounded: reasons, rules and statuses are fixed, sinks are configured, partitions are the topic's.

mod health;

use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, EventTime, Offset, Partition};
use prometheus::core::{Collector, Metric};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder, exponential_buckets,
};

pub use self::health::Unready;
use self::health::{Frontier, Health};
use crate::coordination::ingest::{Cause, Stall};
use crate::decode::{OPTIONAL_FIELDS, Reason};
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
    watermark: IntGauge,
    watermark_lag: Gauge,
    frontier: IntGauge,
    frontier_lag: Gauge,
    consumer_lag: IntGaugeVec,
    latency: Histogram,
    bytes_in_flight: IntGauge,
    keys: IntGauge,
    open_windows: IntGauge,
    sink_epoch: IntGaugeVec,
    commit_duration: HistogramVec,
    commit_retries: IntCounterVec,
    group_commit_failures: IntCounter,
    checkpoint_epoch: IntGauge,
    checkpoint_time: IntGauge,
    checkpoint_bytes: IntGauge,
    restarts: IntCounter,
    resident_memory: IntGauge,
    stalled: IntGaugeVec,
    partition_held: IntGaugeVec,
    first_rejection: OnceLock<String>,
    started: Instant,
    health: Mutex<Health>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new().expect("the metrics' names are valid and distinct")
    }
}

impl Metrics {
    fn new() -> prometheus::Result<Metrics> {
        let registry = Registry::new();
        let add = Add(&registry);
        let metrics = Metrics {
            events: add
                .to(IntCounter::new("headwater_events_total", "Events decoded, valid and not in the future")?)?,
            rejected: add.to(IntCounterVec::new(
                Opts::new("headwater_rejected_total", "Records sent to the dead letters"),
                &["reason"],
            )?)?,
            field_errors: add.to(IntCounterVec::new(
                Opts::new(
                    "headwater_field_errors_total",
                    "Optional fields of a wrong form, which were taken as absent",
                ),
                &["field"],
            )?)?,
            alerts: add.to(IntCounterVec::new(
                Opts::new("headwater_alerts_total", "Alerts raised and revoked"),
                &["rule", "status"],
            )?)?,
            epoch: add.gauge("headwater_epoch", "The latest epoch that has closed")?,
            epoch_time: add.to(Histogram::with_opts(
                HistogramOpts::new(
                    "headwater_epoch_seconds",
                    "From the beginning of an epoch to when all operators of all workers are done with it",
                )
                .buckets(exponential_buckets(0.005, 1.25, 28)?),
            )?)?,
            watermark: add.gauge("headwater_watermark_ms", "The watermark, in milliseconds since 1970")?,
            watermark_lag: add.to(Gauge::new(
                "headwater_watermark_lag_seconds",
                "How far the watermark is behind the wall clock; while there is none, how long the process has run; 0 \
                 when all input has ended",
            )?)?,
            frontier: add.gauge("headwater_frontier_epoch", "The first epoch that some sink has not committed")?,
            frontier_lag: add.to(Gauge::new(
                "headwater_frontier_lag_seconds",
                "How long ago the first epoch began that some sink has not committed",
            )?)?,
            consumer_lag: add.to(IntGaugeVec::new(
                Opts::new("headwater_consumer_lag_records", "Records known to wait that were not read yet"),
                &["partition"],
            )?)?,
            latency: add.to(Histogram::with_opts(
                HistogramOpts::new(
                    "headwater_latency_seconds",
                    "From the record's own timestamp to the commit of its epoch by the sinks that take alerts; \
                     of each worker and epoch, the record with the oldest timestamp",
                )
                .buckets(exponential_buckets(0.001, 2.0, 18)?),
            )?)?,
            bytes_in_flight: add
                .gauge("headwater_bytes_in_flight", "Bytes read that some sink has not committed")?,
            keys: add.gauge("headwater_keys", "Keys whose state is held")?,
            open_windows: add.gauge("headwater_open_windows", "Windows that are not final")?,
            sink_epoch: add.to(IntGaugeVec::new(
                Opts::new("headwater_sink_epoch", "The last epoch that a sink has committed"),
                &["sink"],
            )?)?,
            commit_duration: add.to(HistogramVec::new(
                HistogramOpts::new("headwater_commit_duration_seconds", "How long commits take")
                    .buckets(exponential_buckets(0.001, 2.0, 14)?),
                &["sink"],
            )?)?,
            commit_retries: add.to(IntCounterVec::new(
                Opts::new("headwater_commit_retries_total", "Commits that failed and were tried again"),
                &["sink"],
            )?)?,
            group_commit_failures: add.to(IntCounter::new(
                "headwater_group_commit_failures_total",
                "How often the consumer group could not be told of progress",
            )?)?,
            checkpoint_epoch: add
                .gauge("headwater_checkpoint_epoch", "The epoch of the newest checkpoint that is durable")?,
            checkpoint_time: add.gauge(
                "headwater_checkpoint_time_ms",
                "When the newest checkpoint's epoch was, in milliseconds since 1970",
            )?,
            checkpoint_bytes: add.gauge(
                "headwater_checkpoint_bytes",
                "How much a start would read to go on from the newest checkpoint",
            )?,
            restarts: add.to(IntCounter::new(
                "headwater_restarts_total",
                "How often the supervisor has started this run again after a failure",
            )?)?,
            resident_memory: add
                .gauge("process_resident_memory_bytes", "Memory of the process that is in RAM")?,
            stalled: add.to(IntGaugeVec::new(
                Opts::new("headwater_stalled", "1 if something of this kind holds results up"),
                &["cause"],
            )?)?,
            partition_held: add.to(IntGaugeVec::new(
                Opts::new(
                    "headwater_partition_held_seconds",
                    "How long an upstream transaction that is open has held the partition",
                ),
                &["partition"],
            )?)?,
            first_rejection: OnceLock::new(),
            started: Instant::now(),
            health: Mutex::default(),
            registry: registry.clone(),
        };
        metrics.watermark.set(EventTime::MIN.0);
        for reason in Reason::ALL {
            metrics.rejected.with_label_values(&[reason.as_str()]);
        }
        for cause in Cause::ALL {
            metrics.stalled.with_label_values(&[cause.as_str()]);
        }
        for field in OPTIONAL_FIELDS {
            metrics.field_errors.with_label_values(&[field]);
        }
        Ok(metrics)
    }

    /// So many further events.
    pub fn events(&self, n: u64) {
        self.events.inc_by(n);
    }

    /// How many events there were.
    pub fn event_count(&self) -> u64 {
        self.events.get()
    }

    /// So many further records rejected for this reason.
    pub fn rejected(&self, reason: &str, n: u64) {
        if n > 0 {
            self.rejected.with_label_values(&[reason]).inc_by(n);
        }
    }

    /// A record was rejected; of the first one it is kept why.
    pub fn rejection(&self, words: impl FnOnce() -> String) {
        self.first_rejection.get_or_init(words);
    }

    /// Which record was rejected first, and why.
    pub fn first_rejection(&self) -> Option<&str> {
        self.first_rejection.get().map(String::as_str)
    }

    /// How many records were rejected for this reason.
    pub fn rejected_count(&self, reason: &str) -> u64 {
        self.rejected.with_label_values(&[reason]).get()
    }

    /// An optional field was of a wrong form.
    pub fn field_error(&self, field: &str) {
        self.field_errors.with_label_values(&[field]).inc();
    }

    /// How many optional fields of this name were of a wrong form.
    pub fn field_error_count(&self, field: &str) -> u64 {
        self.field_errors.with_label_values(&[field]).get()
    }

    /// An alert of this rule was raised or revoked.
    pub fn alert(&self, rule: &str, status: &str) {
        self.alerts.with_label_values(&[rule, status]).inc();
    }

    /// How many alerts of all rules had this status.
    pub fn alert_total(&self, status: &str) -> u64 {
        let families = self.alerts.collect();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        let of_status =
            metrics.filter(|metric| metric.get_label().iter().any(|label| label.value() == status));
        of_status.map(|metric| metric.get_counter().get_value()).sum::<f64>() as u64
    }

    /// How many alerts of this rule had this status.
    pub fn alert_count(&self, rule: &str, status: &str) -> u64 {
        self.alerts.with_label_values(&[rule, status]).get()
    }

    /// An epoch has closed, with this watermark.
    pub fn closed(&self, epoch: Epoch, watermark: EventTime) {
        self.epoch.set(epoch.0 as i64);
        self.watermark.set(watermark.0);
    }

    /// All operators of all workers are done with an epoch, so long after it began.
    pub fn computed(&self, time: Duration) {
        self.epoch_time.observe(time.as_secs_f64());
    }

    /// How long epochs have taken so far.
    pub fn epoch_times(&self) -> Times {
        let metric = self.epoch_time.metric();
        let buckets = metric.get_histogram().get_bucket();
        Times(buckets.iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count())).collect())
    }

    /// The latest epoch that has closed, and its watermark.
    pub fn latest(&self) -> (u64, i64) {
        (self.epoch.get() as u64, self.watermark.get())
    }

    /// Some sink waits so long between two commits.
    pub fn commits_every(&self, interval: Duration) {
        let mut health = self.health();
        health.interval = health.interval.max(interval);
    }

    /// How long the frontier may stand, and a transaction hold a partition, before the process is not ready.
    pub fn stalls_after(&self, standstill: Duration, held_warning: Duration) {
        let mut health = self.health();
        (health.standstill, health.held_warning) = (standstill, held_warning);
    }

    /// What holds the watermark up, if anything does.
    pub fn watermark_stalls(&self, stall: Option<&Stall>) {
        self.health().watermark = stall.copied();
    }

    /// The gauge of how long a transaction has held a partition, in seconds.
    pub fn partition_held(&self, partition: Partition) -> IntGauge {
        self.partition_held.with_label_values(&[&partition.0.to_string()])
    }

    /// A transaction has held a partition at this offset for so long, or none does.
    pub fn partition_holds(&self, partition: Partition, held: Option<(Offset, Duration)>) {
        let mut health = self.health();
        match held.and_then(|(offset, time)| Some((offset, Instant::now().checked_sub(time)?))) {
            Some(held) => drop(health.held.insert(partition, held)),
            None => drop(health.held.remove(&partition)),
        }
    }

    /// Something is wrong with the source's topic, or no longer.
    pub fn topic_stalls(&self, reason: Option<String>) {
        self.health().topic = reason;
    }

    /// The ledger begins to write, or has written.
    pub fn writes_ledger(&self, writing: bool) {
        self.health().writes_ledger = writing.then(Instant::now);
    }

    /// Logs what holds the process up, once, and when it no longer does.
    pub fn log_stalls(&self) {
        self.health().log(Instant::now());
    }

    /// The frontier behind all sinks has moved to this epoch, which began then, if it has begun.
    pub fn frontier(&self, epoch: Epoch, begun: Option<Instant>) {
        self.frontier.set(epoch.0 as i64);
        self.health().frontier = Some(Frontier { begun, moved: Instant::now() });
    }

    /// The epoch that the frontier behind all sinks stands at.
    pub fn frontier_epoch(&self) -> Epoch {
        Epoch(self.frontier.get() as u64)
    }

    /// So much time has passed between a record's own timestamp and the commit of its epoch's alerts.
    pub fn latency(&self, latency: Duration) {
        self.latency.observe(latency.as_secs_f64());
    }

    /// How many records are known to wait in a partition.
    pub fn consumer_lag(&self, partition: Partition) -> IntGauge {
        self.consumer_lag.with_label_values(&[&partition.0.to_string()])
    }

    /// A share of the bytes that were read and not committed.
    pub fn bytes_in_flight(&self) -> Share {
        Share::of(&self.bytes_in_flight)
    }

    /// A share of the keys.
    pub fn keys(&self) -> Share {
        Share::of(&self.keys)
    }

    /// A share of the open windows.
    pub fn open_windows(&self) -> Share {
        Share::of(&self.open_windows)
    }

    /// A sink begins to commit.
    pub fn committing(&self, sink: &str) {
        self.commit_retries.with_label_values(&[sink]);
        self.health().committing.insert(sink.to_owned(), Instant::now());
    }

    /// A commit has failed and is tried again.
    pub fn commit_retried(&self, sink: &str) {
        self.commit_retries.with_label_values(&[sink]).inc();
    }

    /// A sink has committed through this epoch.
    pub fn committed(&self, sink: &str, through: Epoch) {
        self.sink_epoch.with_label_values(&[sink]).set(through.0 as i64);
        if let Some(begun) = self.health().committing.remove(sink) {
            self.commit_duration.with_label_values(&[sink]).observe(begun.elapsed().as_secs_f64());
        }
    }

    /// The checkpoint of an epoch, which has this wall time, is durable; so many bytes are to be read to go on from it.
    pub fn checkpoint(&self, epoch: Epoch, wall_ms: i64, bytes: u64) {
        self.checkpoint_epoch.set(epoch.0 as i64);
        self.checkpoint_time.set(wall_ms);
        self.checkpoint_bytes.set(bytes as i64);
    }

    /// The consumer group could not be told of progress.
    pub fn group_commit_failed(&self) {
        self.group_commit_failures.inc();
    }

    /// The start is about this now; nothing has been read yet.
    pub fn starting(&self, what: impl Into<String>) {
        self.health().starting = Some((what.into(), Instant::now()));
    }

    /// The start is over: workers run.
    pub fn started(&self) {
        self.health().starting = None;
    }

    /// What the start is about, until it is over.
    pub fn start(&self) -> Option<String> {
        self.health().starting.as_ref().map(|(what, _)| what.clone())
    }

    /// The supervisor has started this run so many times again.
    pub fn restarted(&self, times: u64) {
        self.restarts.inc_by(times);
    }

    /// The sink that has been committing for longest, and since when.
    pub fn committing_longest(&self) -> Option<(String, Instant)> {
        self.health().committing_longest().map(|(sink, since)| (sink.clone(), *since))
    }

    /// Why the process is not ready, if it is not.
    pub fn unready(&self) -> Option<Unready> {
        self.unready_at(Instant::now())
    }

    fn unready_at(&self, now: Instant) -> Option<Unready> {
        let waiting = self.waiting();
        self.health().unready(now, waiting)
    }

    /// How many records are known to wait, over all partitions of this process.
    fn waiting(&self) -> i64 {
        let families = self.consumer_lag.collect();
        let lags = families.iter().flat_map(|family| family.get_metric());
        lags.map(|metric| metric.get_gauge().get_value()).sum::<f64>() as i64
    }

    /// The text that Prometheus reads.
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
        self.frontier_lag.set(begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64()));
        self.watermark_lag.set(match EventTime(self.watermark.get()) {
            EventTime::MIN => self.started.elapsed().as_secs_f64(),
            EventTime::MAX => 0.0,
            EventTime(watermark) => wall_ms().saturating_sub(watermark) as f64 / 1e3,
        });
        if let Some(bytes) = resident_bytes() {
            self.resident_memory.set(bytes);
        }
        let mut out = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        encoded.map(|()| String::from_utf8_lossy(&out).into_owned()).unwrap_or_default()
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().expect("no holder of the lock panics")
    }
}

/// How often something took how long: by bound, in seconds, how often it took at most so long.
#[derive(Clone, Debug, PartialEq)]
pub struct Times(Vec<(f64, u64)>);

impl Times {
    /// Those since `earlier`, which is of the same bounds.
    pub fn since(&self, earlier: &Times) -> Times {
        let both = self.0.iter().zip(&earlier.0);
        Times(both.map(|(&(bound, count), &(_, before))| (bound, count.saturating_sub(before))).collect())
    }

    /// The time, in seconds, that this share of them did not exceed, taken as evenly spread between two bounds, as
    /// Prometheus does (`histogram_quantile`); the greatest bound beyond it, and none if there are none.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let &(greatest, all) = self.0.last()?;
        let rank = share * all as f64;
        let at = self.0.iter().position(|&(_, count)| count > 0 && count as f64 >= rank)?;
        let (below, before) = if at == 0 { (0.0, 0) } else { self.0[at - 1] };
        let (bound, count) = self.0[at];
        Some((below + (bound - below) * (rank - before as f64) / (count - before) as f64).min(greatest))
    }
}

/// Registers what it is given.
struct Add<'a>(&'a Registry);

impl Add<'_> {
    fn to<C: Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.to(IntGauge::new(name, help)?)
    }
}

/// One worker's share of a gauge that sums up all workers; given back when it is dropped.
pub struct Share {
    gauge: IntGauge,
    value: i64,
}

impl Share {
    fn of(gauge: &IntGauge) -> Share {
        Share { gauge: gauge.clone(), value: 0 }
    }

    /// The share is this much now.
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

/// How much of this process is in RAM, in bytes; none where the system does not tell.
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests;
