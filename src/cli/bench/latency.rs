//! `headwater bench latency`: measures the time from the due time of a record to the arrival of its alert at a reader.
//!
//! ```text
//!   schedule: record n is due at start + n / rate
//!      │
//!      ├─▶ producer ──▶ input topic ──▶ the job ──▶ alerts ──▶ read_committed reader ── id ──▶ n ─┐
//!      └──────────────────────────────────────────────────────────── now − due(n) ◀──────────────┘
//! ```
//!
//! The load is open-loop: the due time of a record does not depend on earlier records, so a stall counts for every
//! record that it delays. Producer, job and reader share a process and its clock. The stream is ordered and has no
//! duplicates, so that each alert is caused by the last record that it names.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use headwater_dataflows::{Offset, Partition};
use serde::Deserialize;
use serde_json::json;

use super::args::LatencyArgs;
use super::scratch::Scratch;
use crate::assembly;
use crate::cli::output::{self, Table, note};
use crate::cli::{kafka_source, load, stop};
use crate::config::{Config, KafkaSinkConfig, OutputKind};
use crate::decode::Reason;
use crate::metrics::{Metrics, Times};
use crate::source::generator::{GeneratorSettings, RecordMaker};
use crate::source::kafka::produce::{Produced, Producer};
use crate::source::kafka::{KafkaSource, KafkaSourceConfig, StartFrom};
use crate::source::{Budget, Source};

/// The warm-up, in which connections are opened and memory is allocated. Alerts for records that are due in it do not
/// count.
const WARM_UP: Duration = Duration::from_secs(5);

/// The time for which the reader waits for further alerts after the job has ended.
const QUIET_PERIOD: Duration = Duration::from_secs(1);

/// The polling interval.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Runs the job under a constant load and prints percentiles of the latency of its alerts.
///
/// # Errors
/// If the configuration is unsuitable, or the run fails.
pub fn latency(args: &LatencyArgs) -> anyhow::Result<()> {
    let mut config = load(&args.config)?;
    config.routes.clear();
    let mut scratch = Scratch::new();
    let measured = measure(args, &mut config, &mut scratch);
    let removed = scratch.remove();
    let LatencyMeasurement { mut latencies, behind, epochs } = measured?;
    removed?;
    anyhow::ensure!(!latencies.is_empty(), "no alert was emitted: configure patterns, or increase --seconds");
    latencies.sort_unstable();
    let ms = |share: f64| percentile(&latencies, share).as_secs_f64() * 1000.0;
    let epoch_ms = |share: f64| epochs.quantile(share).unwrap_or_default() * 1000.0;
    let behind_ms = behind.as_secs_f64() * 1000.0;
    let json = || {
        json!({
            "rate": args.rate,
            "seconds": args.seconds,
            "workers": args.workers,
            "alerts": latencies.len(),
            "p50_ms": ms(0.5), "p90_ms": ms(0.9), "p99_ms": ms(0.99), "p999_ms": ms(0.999), "max_ms": ms(1.0),
            "producer_behind_ms": behind_ms,
            "epoch_p50_ms": epoch_ms(0.5), "epoch_p99_ms": epoch_ms(0.99), "epoch_p999_ms": epoch_ms(0.999),
        })
    };
    let text = || {
        let mut table = Table::new(&["percentile", "alert, ms", "epoch, ms"]);
        for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
            table.add([name.to_owned(), format!("{:.1}", ms(share)), format!("{:.1}", epoch_ms(share))]);
        }
        let (alerts, rate) = (latencies.len(), args.rate);
        format!(
            "{alerts} alerts at {rate} events/s\n\n{table}\n\
             Alert: from when the record was due to when a reader has its alert. Epoch: from its beginning to its \
             completion by all operators.\nThe producer was at most {behind_ms:.1} ms behind its schedule.\n"
        )
    };
    Ok(output::report(args.json, json, text)?)
}

/// The results of a measurement.
struct LatencyMeasurement {
    /// The latency of each alert, in order of arrival.
    latencies: Vec<Duration>,
    /// The maximum delay of the producer behind its schedule, sampled once per second.
    behind: Duration,
    /// The durations of epochs after the warm-up.
    epochs: Times,
}

/// The due times of records.
struct Schedule {
    /// The start time since 1970, set when the first record is requested.
    start: OnceLock<Duration>,
    rate: f64,
    partitions: u64,
}

impl Schedule {
    fn begin(&self) -> Duration {
        *self.start.get_or_init(since_1970)
    }

    /// Returns the due time of record `n`, since 1970.
    fn due(&self, n: u64) -> Duration {
        self.begin().saturating_add(self.after(n))
    }

    fn after(&self, n: u64) -> Duration {
        Duration::try_from_secs_f64(n as f64 / self.rate).unwrap_or(Duration::MAX)
    }

    /// Returns true during the warm-up.
    fn is_warming_up(&self) -> bool {
        since_1970() < self.begin() + WARM_UP
    }

    /// Returns the number of the record whose event has this id. The generator's ids are `partition-offset`.
    fn number(&self, event_id: &str) -> Option<u64> {
        let (partition, offset) = event_id.split_once('-')?;
        let (partition, offset): (u64, u64) = (partition.parse().ok()?, offset.parse().ok()?);
        offset.checked_mul(self.partitions)?.checked_add(partition)
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Returns the generator's settings for a rate. The number of users is proportional to the rate, with the default
/// number at 20,000 events per second, so that alerts are equally frequent at any rate: about one in a hundred events
/// is the tenth of its user within 10 s.
fn settings(rate: f64) -> GeneratorSettings {
    let default = GeneratorSettings::default();
    let least = f64::from(default.partitions);
    let scaled = |count: u32| (f64::from(count) * rate / 20_000.0).max(least) as u32;
    GeneratorSettings {
        users: scaled(default.users),
        devices: scaled(default.devices),
        disorder: 0.0,
        late: 0.0,
        duplicates: 0.0,
        ..default
    }
}

fn measure(
    args: &LatencyArgs,
    config: &mut Config,
    scratch: &mut Scratch,
) -> anyhow::Result<LatencyMeasurement> {
    let alerts = |sink: &KafkaSinkConfig| sink.topics.contains_key(&OutputKind::Alerts);
    anyhow::ensure!(
        config.sinks.kafka().any(alerts),
        "this command needs a configuration with [sinks.kafka] whose topics include \"alerts\""
    );
    let settings = settings(args.rate);
    let input = scratch.input(config, settings.partitions)?;
    scratch.isolate(config, "job")?;
    let prefix = scratch.topic_prefix("job");
    let metrics = Arc::new(Metrics::default());
    let mut job = assembly::job(config, false, timely::Config::process(args.workers), Arc::clone(&metrics))?;
    job.sinks = assembly::sinks(config, &prefix);
    let stopping = Arc::clone(&job.stopping);
    let reader = AlertReader::open(config, &prefix)?;
    let producer = connect(config, &input)?;

    let partitions = settings.partitions;
    let schedule = Schedule { start: OnceLock::new(), rate: args.rate, partitions: partitions.into() };
    let total = ((WARM_UP.as_secs_f64() + args.seconds) * args.rate) as u64;
    let records = records(settings, total, &schedule);

    note!("{} events/s for {} s, after a warm-up of {} s …", args.rate, args.seconds, WARM_UP.as_secs());
    // When the job has ended, the producer stops.
    let is_over = AtomicBool::new(false);
    let is_interrupted = Arc::new(AtomicBool::new(false));
    stop::handle_requests(stop::signals()?, &is_interrupted, None);
    let has_ended = AtomicBool::new(false);
    let mut behind = Duration::ZERO;
    let mut warm_up_epochs = metrics.epoch_times();
    let (job_result, produced, read) = thread::scope(|scope| {
        let running = scope.spawn(|| {
            let result = crate::runtime::run(job);
            is_over.store(true, Ordering::Relaxed);
            result
        });
        let reading = scope.spawn(|| reader.latencies(&schedule, &has_ended));
        let produced = producer.run(
            records.take_while(|_| !is_interrupted.load(Ordering::Relaxed)),
            Some(args.rate),
            &is_over,
            &mut |report| {
                behind = behind.max(report.behind);
                if schedule.is_warming_up() {
                    warm_up_epochs = metrics.epoch_times();
                }
            },
        );
        if let Ok(report) = &produced {
            let is_done = || is_over.load(Ordering::Relaxed) || is_interrupted.load(Ordering::Relaxed);
            while processed_records(&metrics) < report.sent && !is_done() {
                thread::sleep(POLL_INTERVAL);
            }
        }
        stopping.store(true, Ordering::Relaxed);
        let job_result = running.join();
        has_ended.store(true, Ordering::Relaxed);
        (job_result, produced, reading.join())
    });
    job_result.expect(JOINED)?;
    let report = produced?;
    anyhow::ensure!(!is_interrupted.load(Ordering::Relaxed), "interrupted");
    anyhow::ensure!(report.sent == total, "the job ended before all records were sent");
    let epochs = metrics.epoch_times().since(&warm_up_epochs);
    Ok(LatencyMeasurement { latencies: read.expect(JOINED)?, behind: behind.max(report.behind), epochs })
}

/// Returns the first `total` records of a generated stream, each with the time at which it is due.
fn records(settings: GeneratorSettings, total: u64, schedule: &Schedule) -> impl Iterator<Item = Produced> {
    let partitions = u64::from(settings.partitions);
    let mut maker = RecordMaker::new(settings);
    (0..total).map(move |n| {
        let partition = (n % partitions) as u32;
        maker.make(partition, n / partitions, Some(schedule.due(n).as_millis() as i64));
        let (key, value) = (Some(maker.key.clone()), Some(maker.value.clone()));
        Produced { partition: Some(partition), key, value, headers: Vec::new() }
    })
}

/// The reason why joining a thread does not fail.
const JOINED: &str = "a panic ends the process";

/// Connects a producer to the source topic of a configuration.
fn connect(config: &Config, topic: &str) -> anyhow::Result<Producer> {
    let source = kafka_source(config)?;
    Ok(Producer::connect(&source.brokers, &source.options, topic)?)
}

/// Returns the number of records that were decoded to events or rejected.
fn processed_records(metrics: &Metrics) -> u64 {
    let refused = [Reason::Malformed, Reason::Invalid, Reason::Future];
    metrics.event_count() + refused.map(|reason| metrics.rejected_count(reason.as_str())).iter().sum::<u64>()
}

/// A reader of the committed records of the topic of alerts.
struct AlertReader {
    source: KafkaSource,
}

impl AlertReader {
    fn open(config: &Config, prefix: &str) -> anyhow::Result<AlertReader> {
        let mut sinks = config.sinks.kafka();
        let found = sinks.find_map(|sink| Some((sink, sink.topics.get(&OutputKind::Alerts)?)));
        let (kafka, alerts) = found.context("alerts have no topic")?;
        let source = KafkaSource::open(KafkaSourceConfig {
            ignore_group: false,
            producer_header: "producer".to_owned(),
            accepted: Vec::new(),
            brokers: kafka.brokers.clone(),
            topic: format!("{prefix}{alerts}"),
            // No offset is ever committed to this group, so Kafka never creates it.
            group: format!("{prefix}reader"),
            starts: None,
            start_from: StartFrom::Earliest,
            options: kafka.options.clone(),
            until_end: false,
            bytes_in_flight: config.plan.limits.bytes_in_flight,
        })?;
        Ok(AlertReader { source })
    }

    /// Reads until no further alert can arrive. Returns the latency of each alert from the due time of its record.
    fn latencies(&self, schedule: &Schedule, has_ended: &AtomicBool) -> anyhow::Result<Vec<Duration>> {
        let starts: Vec<(Partition, Offset)> =
            (0..).map(Partition).zip(self.source.start().iter().copied()).collect();
        let mut reader = self.source.reader(&starts)?;
        let mut seen = HashSet::new();
        let mut latencies = Vec::new();
        let mut last = Instant::now();
        while !(has_ended.load(Ordering::Relaxed) && last.elapsed() > QUIET_PERIOD) {
            let read = reader.read(Budget::records(1000), &mut |raw| {
                let now = since_1970();
                let alert = raw.value.and_then(|value| serde_json::from_slice::<AlertRecord>(value).ok());
                let Some(number) = alert.and_then(|alert| alert.number(schedule, &mut seen)) else { return };
                if schedule.after(number) >= WARM_UP {
                    latencies.push(now.saturating_sub(schedule.due(number)));
                }
            })?;
            if read > 0 {
                last = Instant::now();
            } else {
                thread::sleep(POLL_INTERVAL);
            }
        }
        Ok(latencies)
    }
}

/// The fields of an alert that the measurement uses.
#[derive(Deserialize)]
struct AlertRecord {
    alert_id: String,
    status: String,
    event_ids: Vec<String>,
}

impl AlertRecord {
    /// Returns the number of the record that caused the alert; None unless it is raised for the first time.
    fn number(self, schedule: &Schedule, seen: &mut HashSet<String>) -> Option<u64> {
        if self.status != "raised" || !seen.insert(self.alert_id) {
            return None;
        }
        schedule.number(self.event_ids.last()?)
    }
}

/// Returns the smallest of the sorted `values` that is not exceeded by at least this share of them.
fn percentile(values: &[Duration], share: f64) -> Duration {
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.clamp(1, values.len().max(1)) - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let values: Vec<_> = (1..=1000).map(Duration::from_millis).collect();
        for (share, ms) in [(0.5, 500), (0.99, 990), (0.999, 999), (1.0, 1000), (0.0, 1)] {
            assert_eq!(percentile(&values, share), Duration::from_millis(ms), "{share}");
        }
        assert_eq!(percentile(&values[..1], 0.5), Duration::from_millis(1));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn an_alert_is_measured_once_from_the_due_time_of_its_last_event() {
        let schedule =
            Schedule { start: OnceLock::from(Duration::from_secs(100)), rate: 60.0, partitions: 6 };
        let alert = |status: &str, events: &[&str]| AlertRecord {
            alert_id: "a".into(),
            status: status.into(),
            event_ids: events.iter().map(|id| (*id).to_owned()).collect(),
        };
        let mut seen = HashSet::new();
        assert_eq!(alert("revoked", &["0-0"]).number(&schedule, &mut seen), None);
        let number = alert("raised", &["0-0", "5-19"]).number(&schedule, &mut seen);
        assert_eq!(number, Some(119));
        assert_eq!(schedule.due(119).as_millis(), 101_983);
        assert_eq!(alert("raised", &["5-19"]).number(&schedule, &mut seen), None);
        assert_eq!(schedule.number("not a generated id"), None);
        assert_eq!(schedule.number("1-18446744073709551615"), None);
    }

    #[test]
    fn settings_are_valid_for_any_rate() {
        for rate in [0.5, 500.0, 20_000.0, 1e9] {
            assert_eq!(settings(rate).validate(), Ok(()), "{rate}");
        }
        assert_eq!(settings(20_000.0).users, GeneratorSettings::default().users);
    }
}
