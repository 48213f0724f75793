//! `headwater bench latency`: from when a record should have been sent to when a reader of alerts has its alert.
//!
//! ```text
//!   schedule: record n is due at begun + n / rate
//!      │
//!      ├─▶ producer ──▶ input topic ──▶ the job ──▶ alerts ──▶ read_committed reader ── id ──▶ n ─┐
//!      └──────────────────────────────────────────────────────────── now − due(n) ◀──────────────┘
//! ```
//!
//! The loop is open: records are due whatever became of those before, so a stall counts for every record that it made
//! wait. Producer, job and reader share a process and its clock. The stream is in order and without duplicates, so that
//! each alert is caused by the record that it names and by no later one.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use headwater_dataflows::{Offset, Partition};
use serde::Deserialize;
use serde_json::json;

use super::scratch::Scratch;
use crate::cli::command::LatencyArgs;
use crate::cli::output::{note, outln};
use crate::cli::{build, kafka_source, load, stop};
use crate::config::{Config, KafkaSinkConfig, OutputKind};
use crate::decode::Reason;
use crate::metrics::{Metrics, Times};
use crate::source::generator::{GeneratorSettings, RecordMaker};
use crate::source::kafka::produce::{Produced, Producer};
use crate::source::kafka::{KafkaSource, KafkaSourceConfig, StartFrom};
use crate::source::{Budget, Source};

/// Connections are made and memory is taken in this time: alerts of records due in it do not count.
const WARM_UP: Duration = Duration::from_secs(5);

/// How long after the job has ended the reader of alerts waits for more.
const SILENCE: Duration = Duration::from_secs(1);

/// How often is looked for news.
const PAUSE: Duration = Duration::from_millis(1);

/// Runs the job under a constant load and prints percentiles of its alerts' latency.
///
/// # Errors
/// If the configuration is not fit, or something fails on the way.
pub fn latency(args: &LatencyArgs) -> anyhow::Result<()> {
    let mut config = load(&args.config)?;
    let mut scratch = Scratch::new();
    let measured = measure(args, &mut config, &mut scratch);
    let removed = scratch.remove();
    let Measured { mut latencies, behind, epochs } = measured?;
    removed?;
    anyhow::ensure!(!latencies.is_empty(), "no alert came: are patterns configured, and is it long enough?");
    latencies.sort_unstable();
    let ms = |share: f64| percentile(&latencies, share).as_secs_f64() * 1000.0;
    let epoch_ms = |share: f64| epochs.quantile(share).unwrap_or_default() * 1000.0;
    let report = json!({
        "rate": args.eps,
        "seconds": args.seconds,
        "workers": args.workers,
        "alerts": latencies.len(),
        "p50_ms": ms(0.5), "p90_ms": ms(0.9), "p99_ms": ms(0.99), "p999_ms": ms(0.999), "max_ms": ms(1.0),
        "producer_behind_ms": behind.as_secs_f64() * 1000.0,
        "epoch_p50_ms": epoch_ms(0.5), "epoch_p99_ms": epoch_ms(0.99), "epoch_p999_ms": epoch_ms(0.999),
    });
    if args.json {
        return Ok(outln!("{report}")?);
    }
    outln!("{} alerts at {} events/s, from when the record was due:", latencies.len(), args.eps)?;
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
        outln!("{name:>6} {:>9.1} ms", ms(share))?;
    }
    outln!(
        "Epochs, from their beginning to when all operators were done: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms.",
        epoch_ms(0.5),
        epoch_ms(0.99),
        epoch_ms(0.999)
    )?;
    outln!("The producer was at most {:.1} ms behind its schedule.", behind.as_secs_f64() * 1000.0)?;
    Ok(())
}

/// What was measured.
struct Measured {
    /// One for each alert, in the order in which they came.
    latencies: Vec<Duration>,
    /// By how much the producer was late at worst, as looked at once a second.
    behind: Duration,
    /// How long epochs took after the warm-up.
    epochs: Times,
}

/// When records are due.
struct Schedule {
    /// Since 1970; set when the first record is asked for.
    begun: OnceLock<Duration>,
    eps: f64,
    partitions: u64,
}

impl Schedule {
    fn begin(&self) -> Duration {
        *self.begun.get_or_init(since_1970)
    }

    /// When record `n` is due, since 1970.
    fn due(&self, n: u64) -> Duration {
        self.begin().saturating_add(self.after(n))
    }

    fn after(&self, n: u64) -> Duration {
        Duration::try_from_secs_f64(n as f64 / self.eps).unwrap_or(Duration::MAX)
    }

    /// Whether what is due by now does not count yet.
    fn is_warming(&self) -> bool {
        since_1970() < self.begin() + WARM_UP
    }

    /// The number of the record whose event has this id: the generator's are `partition-offset`.
    fn number(&self, event_id: &str) -> Option<u64> {
        let (partition, offset) = event_id.split_once('-')?;
        let (partition, offset): (u64, u64) = (partition.parse().ok()?, offset.parse().ok()?);
        offset.checked_mul(self.partitions)?.checked_add(partition)
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// As many users for each event a second as there are by default for 20,000, so that alerts are as frequent at any
/// rate: about one in a hundred events is the tenth of its user within 10 s.
fn settings(eps: f64) -> GeneratorSettings {
    let default = GeneratorSettings::default();
    let least = f64::from(default.partitions);
    let scaled = |count: u32| (f64::from(count) * eps / 20_000.0).max(least) as u32;
    GeneratorSettings {
        users: scaled(default.users),
        devices: scaled(default.devices),
        disorder: 0.0,
        late: 0.0,
        duplicates: 0.0,
        ..default
    }
}

fn measure(args: &LatencyArgs, config: &mut Config, scratch: &mut Scratch) -> anyhow::Result<Measured> {
    let alerts = |sink: &KafkaSinkConfig| sink.topics.contains_key(&OutputKind::Alerts);
    anyhow::ensure!(
        config.sinks.kafka.as_ref().is_some_and(alerts),
        "this needs a configuration with [sinks.kafka] whose topics include \"alerts\""
    );
    let input = scratch.input(config)?;
    scratch.isolate(config, "job")?;
    let prefix = scratch.topics_of("job");
    let metrics = Arc::new(Metrics::default());
    let mut job = build::job(config, false, timely::Config::process(args.workers), Arc::clone(&metrics))?;
    job.sinks = build::sinks(config, &prefix);
    let stopping = Arc::clone(&job.stopping);
    let reader = Alerts::open(config, &prefix)?;
    let producer = {
        let source = kafka_source(config)?;
        Producer::connect(&source.brokers, &source.options, &input)?
    };

    let settings = settings(args.eps);
    let partitions = settings.partitions;
    let schedule = Schedule { begun: OnceLock::new(), eps: args.eps, partitions: partitions.into() };
    let total = ((WARM_UP.as_secs_f64() + args.seconds) * args.eps) as u64;
    let mut maker = RecordMaker::new(settings);
    let records = (0..total).map(|n| {
        let (partition, offset) = ((n % u64::from(partitions)) as u32, n / u64::from(partitions));
        maker.make(partition, offset, Some(schedule.due(n).as_millis() as i64));
        let (key, value) = (Some(maker.key.clone()), Some(maker.value.clone()));
        Produced { partition: Some(partition), key, value, headers: Vec::new() }
    });

    note!("{} events/s for {} s, after {} s that do not count …", args.eps, args.seconds, WARM_UP.as_secs());
    // When the job has ended, nothing is produced any more: nobody would read it.
    let over = AtomicBool::new(false);
    let interrupted = Arc::new(AtomicBool::new(false));
    stop::on(stop::signals()?, &interrupted, None);
    let ended = AtomicBool::new(false);
    let mut behind = Duration::ZERO;
    let mut warming = metrics.epoch_times();
    let (ran, produced, read) = thread::scope(|scope| {
        let running = scope.spawn(|| {
            let ran = crate::runtime::run(job);
            over.store(true, Ordering::Relaxed);
            ran
        });
        let reading = scope.spawn(|| reader.latencies(&schedule, &ended));
        let produced = producer.run(
            records.take_while(|_| !interrupted.load(Ordering::Relaxed)),
            Some(args.eps),
            &over,
            &mut |report| {
                behind = behind.max(report.behind);
                if schedule.is_warming() {
                    warming = metrics.epoch_times();
                }
            },
        );
        if let Ok(report) = &produced {
            while handled(&metrics) < report.sent && !over.load(Ordering::Relaxed) {
                if interrupted.load(Ordering::Relaxed) {
                    break;
                }
                thread::sleep(PAUSE);
            }
        }
        stopping.store(true, Ordering::Relaxed);
        let ran = running.join();
        ended.store(true, Ordering::Relaxed);
        (ran, produced, reading.join())
    });
    let joined = "a panic ends the process";
    ran.expect(joined)?;
    let report = produced?;
    anyhow::ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
    anyhow::ensure!(report.sent == total, "the job ended before its input did");
    let epochs = metrics.epoch_times().since(&warming);
    Ok(Measured { latencies: read.expect(joined)?, behind: behind.max(report.behind), epochs })
}

/// How many records have become events or were refused while they were read.
fn handled(metrics: &Metrics) -> u64 {
    let refused = [Reason::Malformed, Reason::Invalid, Reason::Future];
    metrics.event_count() + refused.map(|reason| metrics.rejected_count(reason.as_str())).iter().sum::<u64>()
}

/// The topic of alerts, read as far as it is committed.
struct Alerts {
    source: KafkaSource,
}

impl Alerts {
    fn open(config: &Config, prefix: &str) -> anyhow::Result<Alerts> {
        let kafka = config.sinks.kafka.as_ref().context("there is no [sinks.kafka]")?;
        let alerts = kafka.topics.get(&OutputKind::Alerts).context("alerts have no topic")?;
        let source = KafkaSource::open(KafkaSourceConfig {
            ignore_group: false,
            accepted: Vec::new(),
            brokers: kafka.brokers.clone(),
            topic: format!("{prefix}{alerts}"),
            // Never committed to, so it never comes to be.
            group: format!("{prefix}reader"),
            starts: None,
            start_from: StartFrom::Earliest,
            options: kafka.options.clone(),
            until_end: false,
            bytes_in_flight: config.plan.limits.bytes_in_flight,
        })?;
        Ok(Alerts { source })
    }

    /// Reads until nothing more can come, and says for each alert how long after its record was due it was here.
    fn latencies(&self, schedule: &Schedule, ended: &AtomicBool) -> anyhow::Result<Vec<Duration>> {
        let starts: Vec<(Partition, Offset)> =
            (0..).map(Partition).zip(self.source.start().iter().copied()).collect();
        let mut reader = self.source.reader(&starts)?;
        let mut seen = HashSet::new();
        let mut latencies = Vec::new();
        let mut last = Instant::now();
        while !(ended.load(Ordering::Relaxed) && last.elapsed() > SILENCE) {
            let read = reader.read(Budget::records(1000), &mut |raw| {
                let now = since_1970();
                let alert = raw.value.and_then(|value| serde_json::from_slice::<Raised>(value).ok());
                let Some(number) = alert.and_then(|alert| alert.number(schedule, &mut seen)) else { return };
                if schedule.after(number) >= WARM_UP {
                    latencies.push(now.saturating_sub(schedule.due(number)));
                }
            })?;
            if read > 0 {
                last = Instant::now();
            } else {
                thread::sleep(PAUSE);
            }
        }
        Ok(latencies)
    }
}

/// What is looked at of an alert.
#[derive(Deserialize)]
struct Raised {
    alert_id: String,
    status: String,
    event_ids: Vec<String>,
}

impl Raised {
    /// The number of the record that caused it, the first time that it is raised.
    fn number(self, schedule: &Schedule, seen: &mut HashSet<String>) -> Option<u64> {
        if self.status != "raised" || !seen.insert(self.alert_id) {
            return None;
        }
        schedule.number(self.event_ids.last()?)
    }
}

/// The least of the sorted `values` that at least this share of them does not exceed.
fn percentile(values: &[Duration], share: f64) -> Duration {
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.clamp(1, values.len().max(1)) - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<_> = (1..=1000).map(Duration::from_millis).collect();
        for (share, ms) in [(0.5, 500), (0.99, 990), (0.999, 999), (1.0, 1000), (0.0, 1)] {
            assert_eq!(percentile(&values, share), Duration::from_millis(ms), "{share}");
        }
        assert_eq!(percentile(&values[..1], 0.5), Duration::from_millis(1));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn an_alert_is_measured_from_when_its_last_event_was_due_and_only_once() {
        let schedule = Schedule { begun: OnceLock::from(Duration::from_secs(100)), eps: 60.0, partitions: 6 };
        let raised = |status: &str, events: &[&str]| Raised {
            alert_id: "a".into(),
            status: status.into(),
            event_ids: events.iter().map(|id| (*id).to_owned()).collect(),
        };
        let mut seen = HashSet::new();
        assert_eq!(raised("revoked", &["0-0"]).number(&schedule, &mut seen), None);
        let number = raised("raised", &["0-0", "5-19"]).number(&schedule, &mut seen);
        assert_eq!(number, Some(119));
        assert_eq!(schedule.due(119).as_millis(), 101_983);
        assert_eq!(raised("raised", &["5-19"]).number(&schedule, &mut seen), None);
        assert_eq!(schedule.number("not one of ours"), None);
        assert_eq!(schedule.number("1-18446744073709551615"), None);
    }

    #[test]
    fn any_rate_has_settings_that_can_be_carried_out() {
        for eps in [0.5, 500.0, 20_000.0, 1e9] {
            assert_eq!(settings(eps).validate(), Ok(()), "{eps}");
        }
        assert_eq!(settings(20_000.0).users, GeneratorSettings::default().users);
    }
}
