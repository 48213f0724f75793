//! `headwater demo`: runs a rule of one's own over a file, then the generator at full speed into SQLite, and checks that every injected fraud
//! was found.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;

use super::command::DemoArgs;
use super::demo_own;
use super::output::{self, Table, note, out};
use crate::assembly;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::source::Source;
use crate::source::generator::{GeneratorSettings, GeneratorSource, RecordMaker};

/// The five patterns, in the order of the table.
const RULES: [&str; 5] =
    ["velocity_spike", "rapid_fire_burst", "merchant_diversity", "amount_anomaly", "impossible_travel"];

/// The pipeline of the demo. SQLite stores windows, alerts and dead letters; it is too slow for all events.
pub(super) const PIPELINE: &str = r#"
pipeline = "demo"
[source]
kind = "generator"
[[windows]]
name = "device_1m"
kind = "tumbling"
by = "device_id"
size = "1m"
[[windows]]
name = "user_1h"
kind = "tumbling"
by = "user_id"
size = "1h"
[patterns.velocity_spike]
[patterns.rapid_fire_burst]
[patterns.merchant_diversity]
[patterns.amount_anomaly]
[patterns.impossible_travel]
[sinks.sqlite]
path = "results.db"
tables = ["alerts", "windows", "dead_letters"]
"#;

/// The results of one pattern.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PatternResult {
    injected: u64,
    found: u64,
    uninjected: u64,
}

/// The environment variable that sets the path of the database.
pub(super) const PATH: &str = "HEADWATER__SINKS__SQLITE__PATH";

/// The duration of the demo unless another is given, in seconds.
const SECONDS: f64 = 20.0;

/// Removes the database of an earlier demo; returns the path of the new one.
pub(super) fn new_database(directory: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    for suffix in ["", "-wal", "-shm"] {
        remove(&directory.join(format!("results.db{suffix}")))?;
    }
    Ok(directory.join("results.db"))
}

/// Removes a file of an earlier demo, if there is one.
pub(super) fn remove(old: &Path) -> anyhow::Result<()> {
    if old.exists() {
        std::fs::remove_file(old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    Ok(())
}

/// Runs the demo; returns true if every injected fraud was found.
///
/// # Errors
/// If the demo cannot run.
pub fn demo(args: &DemoArgs) -> anyhow::Result<bool> {
    let own = demo_own::run(&args.out)?;
    if !args.json {
        out!("{}", own.text())?;
    }
    let database = new_database(&args.out)?;
    let path = (PATH.to_owned(), database.display().to_string());
    let mut config = Config::parse(PIPELINE, [path].into_iter())?;
    config.plan.close_at_end = true;
    let settings = GeneratorSettings { seed: args.seed, ..GeneratorSettings::default() };
    let source = Arc::new(GeneratorSource::new(settings.clone())?);
    let ends = source.ends();
    let metrics = Arc::new(Metrics::default());
    let workers = timely::Config::process(args.workers);
    let mut job = assembly::job(&config, false, workers, Arc::clone(&metrics))?;
    job.source = Box::new(move |_| Ok(source as Arc<dyn Source>));

    let seconds = args.seconds.unwrap_or(SECONDS);
    note!("Generating for {seconds} s with {} worker(s) …", args.workers);
    let done = Arc::new(AtomicBool::new(false));
    let monitor = {
        let (done, ends, metrics) = (Arc::clone(&done), Arc::clone(&ends), Arc::clone(&metrics));
        std::thread::spawn(move || {
            let started = Instant::now();
            let mut before = 0;
            let mut last_report = Instant::now();
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                if started.elapsed() >= Duration::from_secs_f64(seconds) {
                    ends.stop();
                }
                if last_report.elapsed() >= Duration::from_secs(1) {
                    progress(&metrics, &mut before, last_report.elapsed());
                    last_report = Instant::now();
                }
            }
        })
    };
    let started = Instant::now();
    let result = crate::runtime::run(job);
    let elapsed = started.elapsed();
    done.store(true, Ordering::Relaxed);
    // The thread only prints, so its result does not matter.
    let _ = monitor.join();
    result?;

    let found = compare(&database, &settings, &ends.positions())?;
    let events = metrics.event_count();
    let rate = events as f64 / elapsed.as_secs_f64();
    let missed: u64 = found.values().map(|found| found.injected - found.found).sum();
    let json = || {
        let patterns = found.iter().map(|(rule, found)| {
            let PatternResult { injected, found, uninjected } = *found;
            let missed = injected - found;
            (
                (*rule).to_owned(),
                json!({ "injected": injected, "found": found, "missed": missed, "uninjected": uninjected }),
            )
        });
        let patterns = patterns.collect::<serde_json::Map<_, _>>();
        json!({ "events": events, "events_per_s": rate.round(), "patterns": patterns, "own_rule": own.json() })
    };
    output::report(args.json, json, || text(&found, events, rate, elapsed, &database))?;
    Ok(missed == 0)
}

fn progress(metrics: &Metrics, before: &mut u64, elapsed: Duration) {
    let events = metrics.event_count();
    let (epoch, watermark) = metrics.latest();
    let alerts: Vec<_> =
        RULES.iter().map(|rule| format!("{} {}", rule, metrics.alert_count(rule, "raised"))).collect();
    let dead: u64 =
        crate::decode::Reason::ALL.iter().map(|reason| metrics.rejected_count(reason.as_str())).sum();
    let watermark =
        if (0..i64::MAX).contains(&watermark) { crate::json::rfc3339(watermark) } else { "-".to_owned() };
    let end = if std::io::stderr().is_terminal() { "\x1b[K\r" } else { "\n" };
    crate::logging::progress(format_args!(
        "{:>9.0} events/s · epoch {epoch} · watermark {watermark} · {} · dead letters {dead}{end}",
        (events - *before) as f64 / elapsed.as_secs_f64(),
        alerts.join(" · "),
    ));
    *before = events;
}

/// Compares the alerts in the database with the injected frauds.
fn compare(
    database: &Path,
    settings: &GeneratorSettings,
    ends: &[u64],
) -> anyhow::Result<BTreeMap<&'static str, PatternResult>> {
    let maker = RecordMaker::new(settings.clone());
    let mut expected = BTreeMap::new();
    for (partition, &end) in ends.iter().enumerate() {
        for (rule, offset) in maker.injections(partition as u32, end) {
            expected.insert((rule, format!("{partition}-{offset}")), false);
        }
    }
    let mut found: BTreeMap<&'static str, PatternResult> =
        RULES.iter().map(|&rule| (rule, PatternResult::default())).collect();
    for (rule, event) in headwater_sinks::sqlite::alerts(database)? {
        let Some(&rule) = RULES.iter().find(|known| **known == rule) else { continue };
        let counts = found.entry(rule).or_default();
        match expected.get_mut(&(rule, event)) {
            Some(is_found) => *is_found = true,
            None => counts.uninjected += 1,
        }
    }
    for ((rule, _), is_found) in expected {
        let counts = found.entry(rule).or_default();
        counts.injected += 1;
        counts.found += u64::from(is_found);
    }
    Ok(found)
}

fn text(
    found: &BTreeMap<&'static str, PatternResult>,
    events: u64,
    rate: f64,
    elapsed: Duration,
    database: &Path,
) -> String {
    let mut table = Table::new(&["pattern", "injected", "found", "missed", "found, not injected"]);
    for rule in RULES {
        let PatternResult { injected, found, uninjected } = found[rule];
        let counts = [injected, found, injected - found, uninjected].map(|count| count.to_string());
        let [injected, found, missed, uninjected] = counts;
        table.add([rule.to_owned(), injected, found, missed, uninjected]);
    }
    let (seconds, database) = (elapsed.as_secs_f64(), database.display());
    format!(
        "\n{events} events in {seconds:.1} s: {rate:.0} events/s\n\n{table}\n\
         Alerts that were not injected are correct as well: random events of a busy key can match a pattern.\n\
         The results are in {database}. Try:\n\n  \
         sqlite3 {database} 'SELECT rule, severity, \"key\", event_time, details FROM alerts LIMIT 10'\n"
    )
}
