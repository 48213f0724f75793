//! The share of time that each worker is busy: it runs, or waits for a processor. The rest it sleeps, until there is work.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use prometheus::Gauge;
use prometheus::core::Collector;

use super::Metrics;

impl Metrics {
    /// Returns a meter of the calling thread, for the worker with this index.
    pub fn worker_busy(&self, worker: usize) -> BusyMeter {
        let gauge = self.worker_busy.with_label_values(&[&worker.to_string()]);
        BusyMeter { gauge, last: busy_time().map(|busy| (Instant::now(), busy)) }
    }

    /// Returns the share of time in which each worker is busy.
    pub(super) fn workers_busy(&self) -> BTreeMap<String, f64> {
        let families = self.worker_busy.collect();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        let worker = |metric: &prometheus::proto::Metric| metric.get_label()[0].value().to_owned();
        metrics.map(|metric| (worker(metric), metric.get_gauge().get_value())).collect()
    }
}

/// A meter of the time in which one thread is busy.
pub struct BusyMeter {
    gauge: Gauge,
    /// The last reading, and its time; None where the operating system does not say.
    last: Option<(Instant, Duration)>,
}

impl BusyMeter {
    /// Sets the share since the last call. Must be called by the thread that is measured.
    pub fn measure(&mut self) {
        let (Some((at, before)), Some(busy)) = (self.last, busy_time()) else { return };
        let now = Instant::now();
        let elapsed = now.duration_since(at);
        if !elapsed.is_zero() {
            let share = busy.saturating_sub(before).as_secs_f64() / elapsed.as_secs_f64();
            self.gauge.set(share.min(1.0));
            self.last = Some((now, busy));
        }
    }
}

impl Drop for BusyMeter {
    fn drop(&mut self) {
        self.gauge.set(0.0);
    }
}

/// Returns the time for which the calling thread has run or has waited for a processor; None where Linux does not say.
fn busy_time() -> Option<Duration> {
    parse(&std::fs::read_to_string("/proc/thread-self/schedstat").ok()?)
}

/// Parses the times on and before a processor, in nanoseconds.
fn parse(schedstat: &str) -> Option<Duration> {
    let mut fields = schedstat.split_whitespace().map(|field| field.parse().ok());
    let (ran, waited): (u64, u64) = (fields.next()??, fields.next()??);
    Some(Duration::from_nanos(ran.saturating_add(waited)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_and_waiting_for_a_processor_are_busy_time() {
        assert_eq!(parse("1500 500 7\n"), Some(Duration::from_nanos(2_000)));
        for wrong in ["", "7", "x y z"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_thread_that_computes_is_busier_than_one_that_sleeps() {
        let metrics = Metrics::default();
        let mut meter = metrics.worker_busy(3);
        let share = || metrics.snapshot().workers_busy.get("3").copied().expect("measured");
        std::thread::sleep(Duration::from_millis(200));
        meter.measure();
        let asleep = share();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(200) {
            std::hint::black_box(begun);
        }
        meter.measure();
        assert!(asleep < 0.5 && share() > 0.9, "{asleep} and {}", share());
        drop(meter);
        assert_eq!(share(), 0.0);
    }
}
