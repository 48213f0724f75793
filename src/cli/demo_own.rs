//! The beginning of `headwater demo`: a rule of one's own over events of one's own, which stay there to be changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use serde_json::{Value, json};

use super::demo::remove;
use crate::assembly;
use crate::config::Config;
use crate::metrics::Metrics;

/// The pipeline, which the README begins with as well.
const PIPELINE: &str = include_str!("../../examples/payments/payments.toml");

/// The events, as their owner has them.
const EVENTS: &str = include_str!("../../examples/payments/payments.ndjson");

/// The files that the sink leaves in its directory.
const RESULTS: [&str; 4] = ["alerts.ndjson", "enriched-events.ndjson", "progress.json", "progress.lock"];

/// The events and alerts of the pipeline.
pub(super) struct OwnRule {
    /// The directory with the pipeline, its events and its results.
    directory: PathBuf,
    /// The number of events that it read.
    events: u64,
    /// The alerts, as they are in the results.
    alerts: Vec<Value>,
}

/// Writes the pipeline and its events below the directory, and runs it.
///
/// # Errors
/// If a file cannot be written or read, or the run fails.
pub(super) fn run(directory: &Path) -> anyhow::Result<OwnRule> {
    let directory = directory.join("payments");
    let results = directory.join("results");
    std::fs::create_dir_all(&results).with_context(|| format!("cannot create {}", results.display()))?;
    for name in RESULTS {
        remove(&results.join(name))?;
    }
    let (pipeline, events) = (directory.join("payments.toml"), directory.join("payments.ndjson"));
    for (path, text) in [(&pipeline, PIPELINE), (&events, EVENTS)] {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }

    let paths = [("SOURCE__PATHS", &events), ("SINKS__FILE__PATH", &results)];
    let variables = paths.map(|(key, path)| (format!("HEADWATER__{key}"), path.display().to_string()));
    let config = Config::parse(PIPELINE, variables.into_iter())?;
    let metrics = Arc::new(Metrics::default());
    crate::runtime::run(assembly::job(&config, true, timely::Config::thread(), Arc::clone(&metrics))?)?;

    let alerts = results.join(RESULTS[0]);
    let alerts =
        std::fs::read_to_string(&alerts).with_context(|| format!("cannot read {}", alerts.display()))?;
    let alerts = alerts.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(OwnRule { directory, events: metrics.event_count(), alerts })
}

impl OwnRule {
    /// Returns the numbers of events and alerts, and the directory.
    pub(super) fn json(&self) -> Value {
        let Self { directory, events, alerts } = self;
        json!({ "directory": directory, "events": events, "alerts": alerts.len() })
    }

    /// Returns an event, the pipeline, its alerts, and how to go on.
    pub(super) fn text(&self) -> String {
        let event = EVENTS.lines().next().unwrap_or_default();
        let alerts = self.alerts.iter().map(|alert| {
            let [rule, key, details, time] = ["rule", "key", "details", "event_time"].map(|key| &alert[key]);
            format!("{} by {} at {}: {details}\n", text(rule), text(key), text(time))
        });
        format!(
            "A rule of your own. {} events like\n  {event}\nand this pipeline\n{}raise {} alert(s):\n  {}\
             They are in {directory}. Change them, and run `headwater run payments.toml` there.\n",
            self.events,
            PIPELINE.lines().map(|line| format!("  {line}\n")).collect::<String>(),
            self.alerts.len(),
            alerts.collect::<String>(),
            directory = self.directory.display(),
        )
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
