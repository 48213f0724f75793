//! `headwater check --connect`: tests every connection and permission that a run needs. It does not write, create,
//! claim or fence anything, and leaves nothing behind.

use std::error::Error;
use std::path::Path;

use headwater_sinks::Sink;
use headwater_sinks::file::FileConfig;
use headwater_sinks::kafka::probe::Obstacle;
use headwater_sinks::kafka::{probe as kafka, progress_topic};
use headwater_sinks::{Misconfigured, Secret, postgres};
use serde_json::{Value, json};

use super::output::{out, outln};
use super::{DONE, FAILED, USAGE, build};
use crate::config::{Config, KafkaSinkConfig, LedgerConfig, SourceConfig};
use crate::ledger::postgres_tables;
use crate::source::kafka::probe;
use crate::state::StateConfig;

type Outcome = Result<String, Box<dyn Error + Send + Sync>>;

/// The result of one check.
struct Check {
    /// The section of the configuration that was checked.
    section: &'static str,
    /// The resource that was checked, and its location.
    what: String,
    outcome: Outcome,
}

impl Check {
    fn of<E>(section: &'static str, what: impl Into<String>, outcome: Result<String, E>) -> Check
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        Check { section, what: what.into(), outcome: outcome.map_err(Into::into) }
    }

    fn text(&self) -> String {
        let (word, detail) = self.result();
        format!("{word:<6} {:<14} {}: {detail}\n", self.section, self.what)
    }

    fn json(&self) -> Value {
        let (_, detail) = self.result();
        json!({ "section": self.section, "what": self.what, "ok": self.outcome.is_ok(), "detail": detail })
    }

    fn result(&self) -> (&'static str, String) {
        match &self.outcome {
            Ok(detail) => ("ok", detail.clone()),
            Err(error) => ("failed", causes(&**error)),
        }
    }

    /// Returns true if the configuration is the cause of the failure.
    fn is_misconfigured(&self) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = match &self.outcome {
            Ok(_) => None,
            Err(error) => Some(&**error),
        };
        while let Some(error) = cause {
            if error.is::<Misconfigured>() {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Returns an error with its causes, without repetitions.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text += &format!(": {message}");
        }
        cause = error.source();
    }
    text
}

/// Runs all checks and prints one line for each. Returns the exit code.
///
/// # Errors
/// If the results cannot be printed.
pub fn check(config: &Config, json: bool) -> anyhow::Result<u8> {
    let mut checks = source(config);
    sinks(config, &mut checks);
    checks.extend(ledger(config));
    checks.extend(state(config));
    let ok = checks.iter().all(|check| check.outcome.is_ok());
    if json {
        let checks: Vec<_> = checks.iter().map(Check::json).collect();
        outln!("{}", json!({ "ok": ok, "checks": checks }))?;
    } else {
        out!("{}", checks.iter().map(Check::text).collect::<String>())?;
    }
    Ok(match checks.iter().any(Check::is_misconfigured) {
        true => USAGE,
        false if ok => DONE,
        false => FAILED,
    })
}

fn source(config: &Config) -> Vec<Check> {
    match &config.source {
        SourceConfig::Generator(_) => Vec::new(),
        SourceConfig::File(paths) => paths
            .iter()
            .map(|path| {
                let opened = std::fs::File::open(path).map(|_| "readable".to_owned());
                Check::of("source", format!("file {}", path.display()), opened)
            })
            .collect(),
        SourceConfig::Kafka(kafka) => {
            let what = format!("topic {} at {}", kafka.topic, kafka.brokers);
            let probed = probe(&build::kafka_source(config, kafka));
            let result = |partitions| {
                format!(
                    "{partitions} partitions, not compacted; access to group {} permitted",
                    config.plan.pipeline
                )
            };
            vec![Check::of("source", what, probed.map(result))]
        }
    }
}

/// Checks the topics and transactions of a Kafka sink. Stops at the first failure of the cluster itself, because each
/// further check would wait for the same timeout.
fn kafka_sink(config: &Config, sink: &KafkaSinkConfig, checks: &mut Vec<Check>) {
    let (brokers, options, pipeline) = (&*sink.brokers, &sink.options, &*config.plan.pipeline);
    let mut record = |what: String, outcome: Result<String, Obstacle>| {
        let can_continue = !matches!(outcome, Err(Obstacle::Topics(_)));
        checks.push(Check::of("sinks.kafka", format!("{what} at {brokers}"), outcome));
        can_continue
    };
    let topics: Vec<_> = build::sinks(config, "").iter().flat_map(|job| job.sink.topics().to_vec()).collect();
    let all_reached = topics
        .iter()
        .all(|topic| record(format!("topic {topic}"), kafka::output_topic(brokers, options, topic)));
    if all_reached {
        let progress = format!("topic {}", progress_topic(pipeline));
        record(progress, kafka::progress(brokers, options, pipeline));
        record("transactions".to_owned(), kafka::transactions(brokers, options, pipeline));
    }
}

fn sinks(config: &Config, checks: &mut Vec<Check>) {
    if let Some(sink) = &config.sinks.kafka {
        kafka_sink(config, sink, checks);
    }
    if let Some(sink) = &config.sinks.postgres {
        let outcome = postgres::probe::sink(sink.url.expose(), sink.schema.as_deref());
        checks.push(Check::of("sinks.postgres", tables_at(&sink.url), outcome));
    }
    if let Some(sink) = &config.sinks.sqlite {
        let path = &sink.path;
        checks.push(Check::of("sinks.sqlite", format!("file {}", path.display()), writable(path)));
    }
    if let Some(sink) = &config.sinks.file {
        let path = &sink.path;
        let outcome = directory_of_files(path, &config.plan.pipeline);
        checks.push(Check::of("sinks.file", format!("directory {}", path.display()), outcome));
    }
}

/// Checks that the directory of a file sink can be written, and that it belongs to this pipeline.
fn directory_of_files(path: &Path, pipeline: &str) -> Outcome {
    if path.exists() && !path.is_dir() {
        return Err("it is not a directory: set `sinks.file.path` to another path".into());
    }
    FileConfig { name: "file".to_owned(), path: path.to_owned() }.build().peek_progress(pipeline)?;
    writable(path)
}

/// Describes a database without its password.
fn tables_at(url: &Secret) -> String {
    match postgres::Target::parse(url.expose()) {
        Ok(target) => format!("tables in database {} at {}", target.database(), target.hosts()),
        Err(_) => "tables".to_owned(),
    }
}

fn ledger(config: &Config) -> Option<Check> {
    Some(match config.ledger.as_ref()? {
        LedgerConfig::Postgres(url) => {
            let names: Vec<_> = postgres_tables().collect();
            Check::of("ledger", tables_at(url), postgres::probe::tables(url.expose(), &names))
        }
        LedgerConfig::Sqlite(path) => Check::of("ledger", format!("file {}", path.display()), writable(path)),
    })
}

/// Checks the state store, if checkpoints are enabled.
fn state(config: &Config) -> Option<Check> {
    config.checkpoint.as_ref()?;
    let directory = |path: &Path| Check::of("state", format!("directory {}", path.display()), writable(path));
    Some(match &config.state {
        StateConfig::Fjall(path) => directory(path),
        #[cfg(feature = "rocksdb")]
        StateConfig::RocksDb(path) => directory(path),
        StateConfig::Redis(_) => {
            let opened = crate::state::open(&config.state, &config.plan.pipeline);
            Check::of("state", "Redis", opened.map(|_| "reachable, with durable settings".to_owned()))
        }
    })
}

/// Checks that a file or directory can be written or created. The file that the check creates is removed.
fn writable(path: &Path) -> Outcome {
    if path.is_file() {
        let opened = std::fs::OpenOptions::new().append(true).open(path);
        return opened.map(|_| "writable".to_owned()).map_err(|error| format!("{error}").into());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let (directory, result) = match path.is_dir() {
        true => (path, "writable"),
        false => (parent.unwrap_or(Path::new(".")), "can be created"),
    };
    let probe = directory.join(format!(".headwater-check-{}", std::process::id()));
    let created = std::fs::File::create_new(&probe).and_then(|_| std::fs::remove_file(&probe));
    created.map(|()| result.to_owned()).map_err(|error| {
        format!(
            "cannot create a file in {}: {error}; create the directory, or grant write permission",
            directory.display()
        )
        .into()
    })
}
