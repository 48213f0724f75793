//! What operators see: counters, gauges and histograms for Prometheus.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// The metrics of one process.
pub struct Metrics {
    registry: Registry,
    events: IntCounter,
    rejected: IntCounterVec,
    alerts: IntCounterVec,
    epoch: IntGauge,
    watermark: IntGauge,
    sink_epoch: IntGaugeVec,
    commit_duration: HistogramVec,
    advanced: Mutex<Option<Instant>>,
}

/// How long the frontier may stand still before the process is not ready.
const STANDSTILL: Duration = Duration::from_secs(10);

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new().expect("the metrics' names are valid and distinct")
    }
}

impl Metrics {
    fn new() -> prometheus::Result<Metrics> {
        let registry = Registry::new();
        let metrics = Metrics {
            events: IntCounter::new("headwater_events_total", "Events decoded, valid and not in the future")?,
            rejected: IntCounterVec::new(
                Opts::new("headwater_rejected_total", "Records sent to the dead letters"),
                &["reason"],
            )?,
            alerts: IntCounterVec::new(
                Opts::new("headwater_alerts_total", "Alerts raised and revoked"),
                &["rule", "status"],
            )?,
            epoch: IntGauge::new("headwater_epoch", "The latest epoch that has closed")?,
            watermark: IntGauge::new("headwater_watermark_ms", "The watermark, in milliseconds since 1970")?,
            sink_epoch: IntGaugeVec::new(
                Opts::new("headwater_sink_epoch", "The last epoch that a sink has committed"),
                &["sink"],
            )?,
            commit_duration: HistogramVec::new(
                HistogramOpts::new("headwater_commit_duration_seconds", "How long commits take")
                    .buckets(prometheus::exponential_buckets(0.001, 2.0, 14)?),
                &["sink"],
            )?,
            advanced: Mutex::new(None),
            registry,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.events.clone()))?;
        registry.register(Box::new(metrics.rejected.clone()))?;
        registry.register(Box::new(metrics.alerts.clone()))?;
        registry.register(Box::new(metrics.epoch.clone()))?;
        registry.register(Box::new(metrics.watermark.clone()))?;
        registry.register(Box::new(metrics.sink_epoch.clone()))?;
        registry.register(Box::new(metrics.commit_duration.clone()))?;
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

    /// How many records were rejected for this reason.
    pub fn rejected_count(&self, reason: &str) -> u64 {
        self.rejected.with_label_values(&[reason]).get()
    }

    /// An alert of this rule was raised or revoked.
    pub fn alert(&self, rule: &str, status: &str) {
        self.alerts.with_label_values(&[rule, status]).inc();
    }

    /// How many alerts of this rule had this status.
    pub fn alert_count(&self, rule: &str, status: &str) -> u64 {
        self.alerts.with_label_values(&[rule, status]).get()
    }

    /// An epoch has closed, with this watermark.
    pub fn closed(&self, epoch: Epoch, watermark_ms: i64) {
        self.epoch.set(epoch.0 as i64);
        self.watermark.set(watermark_ms);
        *self.advanced.lock().expect("no holder of the lock panics") = Some(Instant::now());
    }

    /// Why the process is not ready, if it is not. Epochs close all the time, also when nothing is read.
    pub fn unready(&self) -> Option<String> {
        match *self.advanced.lock().expect("no holder of the lock panics") {
            None => Some("no epoch has closed yet".into()),
            Some(at) if at.elapsed() > STANDSTILL => {
                Some(format!("the frontier has stood still for {} s", at.elapsed().as_secs()))
            }
            Some(_) => None,
        }
    }

    /// The latest epoch that has closed, and its watermark.
    pub fn latest(&self) -> (u64, i64) {
        (self.epoch.get() as u64, self.watermark.get())
    }

    /// A sink has committed through this epoch.
    pub fn committed(&self, sink: &str, through: Epoch, took: Duration) {
        self.sink_epoch.with_label_values(&[sink]).set(through.0 as i64);
        self.commit_duration.with_label_values(&[sink]).observe(took.as_secs_f64());
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut out = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        encoded.map(|()| String::from_utf8_lossy(&out).into_owned()).unwrap_or_default()
    }
}
