//! `headwater check --connect`: tries every connection and permission that a run needs. Nothing is written, made, taken
//! over or fenced, and nothing is left behind.

use std::error::Error;
use std::path::Path;

use headwater_sinks::kafka::probe::Obstacle;
use headwater_sinks::kafka::{probe as kafka, progress_topic};
use headwater_sinks::{Misconfigured, Secret, postgres};
use serde_json::{Value, json};

use super::output::{out, outln};
use super::{DONE, FAILED, USAGE, build};
use crate::config::{Config, KafkaSinkConfig, LedgerConfig, SourceConfig, StateConfig};
use crate::ledger::postgres_tables;
use crate::source::kafka::probe;

type Outcome = Result<String, Box<dyn Error + Send + Sync>>;

/// One thing that was tried.
struct Check {
    /// The section of the configuration.
    section: &'static str,
    /// What was tried, and where.
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

    /// Whether the configuration is to blame.
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

/// An error with its causes, each once.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text += &format!(": {words}");
        }
        cause = error.source();
    }
    text
}

/// Tries everything, and prints one line for each. Returns the process's exit code.
///
/// # Errors
/// If it cannot be printed.
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
                let opened = std::fs::File::open(path).map(|_| "can be read".to_owned());
                Check::of("source", format!("file {}", path.display()), opened)
            })
            .collect(),
        SourceConfig::Kafka(kafka) => {
            let what = format!("topic {} at {}", kafka.topic, kafka.brokers);
            let probed = probe(&build::kafka_source(config, kafka));
            let result = |partitions| {
                format!("{partitions} partitions, not compacted; group {} may be asked", config.plan.pipeline)
            };
            vec![Check::of("source", what, probed.map(result))]
        }
    }
}

/// Ends with the first failure of the cluster itself: each further one would be waited for as long.
fn kafka_sink(config: &Config, sink: &KafkaSinkConfig, checks: &mut Vec<Check>) {
    let (brokers, options, pipeline) = (&*sink.brokers, &sink.options, &*config.plan.pipeline);
    let mut tried = |what: String, outcome: Result<String, Obstacle>| {
        let goes_on = !matches!(outcome, Err(Obstacle::Topics(_)));
        checks.push(Check::of("sinks.kafka", format!("{what} at {brokers}"), outcome));
        goes_on
    };
    let topics: Vec<_> = build::sinks(config, "").iter().flat_map(|job| job.sink.topics().to_vec()).collect();
    let all_asked = topics
        .iter()
        .all(|topic| tried(format!("topic {topic}"), kafka::output_topic(brokers, options, topic)));
    if all_asked {
        let progress = format!("topic {}", progress_topic(pipeline));
        tried(progress, kafka::progress(brokers, options, pipeline));
        tried("transactions".to_owned(), kafka::transactions(brokers, options, pipeline));
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
}

/// Names a database without its password.
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

/// The state store, if checkpoints are made.
fn state(config: &Config) -> Option<Check> {
    config.checkpoint.as_ref()?;
    let folder = |path: &Path| Check::of("state", format!("folder {}", path.display()), writable(path));
    Some(match &config.state {
        StateConfig::Fjall(path) => folder(path),
        #[cfg(feature = "rocksdb")]
        StateConfig::RocksDb(path) => folder(path),
        StateConfig::Redis(_) => {
            let opened = crate::state::open(&config.state, &config.plan.pipeline);
            Check::of("state", "Redis", opened.map(|_| "answers, and keeps what it is given".to_owned()))
        }
    })
}

/// Whether a file or folder can be written or made. What is written to find out is removed.
fn writable(path: &Path) -> Outcome {
    if path.is_file() {
        let opened = std::fs::OpenOptions::new().append(true).open(path);
        return opened.map(|_| "can be written".to_owned()).map_err(|error| format!("{error}").into());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let (folder, word) = match path.is_dir() {
        true => (path, "can be written"),
        false => (parent.unwrap_or(Path::new(".")), "can be made"),
    };
    let trial = folder.join(format!(".headwater-check-{}", std::process::id()));
    let tried = std::fs::File::create_new(&trial).and_then(|_| std::fs::remove_file(&trial));
    tried.map(|()| word.to_owned()).map_err(|error| {
        format!("nothing can be made in {}: {error}; make the folder, or permit it", folder.display()).into()
    })
}
