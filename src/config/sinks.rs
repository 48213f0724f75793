//! The sinks of results.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use headwater_sinks::Secret;
use headwater_sinks::kafka::client::Options;
use headwater_sinks::kafka::progress_topic;

use super::address::Server;
use super::read::{Diagnostics, Section};
use super::tree::Node;
use super::{SourceConfig, millis, secrets};

/// A kind of output that a sink can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutputKind {
    /// Enriched events.
    Events,
    /// Alerts.
    Alerts,
    /// Window aggregates.
    Windows,
    /// Dead letters.
    DeadLetters,
}

/// The sinks of results.
#[derive(Clone, Debug, Default)]
pub struct SinksConfig {
    /// The Kafka sink.
    pub kafka: Option<KafkaSinkConfig>,
    /// The PostgreSQL sink.
    pub postgres: Option<PostgresSinkConfig>,
    /// The SQLite sink.
    pub sqlite: Option<SqliteSinkConfig>,
    /// The file sink.
    pub file: Option<FileSinkConfig>,
}

/// The settings of the Kafka sink.
#[derive(Clone, Debug)]
pub struct KafkaSinkConfig {
    /// Bootstrap servers, separated by commas.
    pub brokers: String,
    /// The outputs to write, with their topics.
    pub topics: BTreeMap<OutputKind, String>,
    /// The minimum time between the beginnings of two transactions.
    pub commit_interval: Duration,
    /// Options that are passed to the Kafka client unchanged.
    pub options: Options,
}

impl KafkaSinkConfig {
    /// Restricts the sink to these outputs. An output without a configured topic is written to its default topic.
    pub fn write_only(&mut self, outputs: &[OutputKind]) {
        let topic = |kind: &OutputKind| match self.topics.get(kind) {
            Some(name) => Some((*kind, name.clone())),
            None => Some((*kind, usual_name(*kind)?.to_owned())),
        };
        self.topics = outputs.iter().filter_map(topic).collect();
    }
}

/// The settings of the PostgreSQL sink.
#[derive(Clone, Debug)]
pub struct PostgresSinkConfig {
    /// The address of the server and database.
    pub url: Secret,
    /// The schema of the tables; None to let the connection's `search_path` decide.
    pub schema: Option<String>,
    /// The tables to write.
    pub tables: TablesConfig,
}

/// The settings of the SQLite sink.
#[derive(Clone, Debug)]
pub struct SqliteSinkConfig {
    /// The database file.
    pub path: PathBuf,
    /// The tables to write.
    pub tables: TablesConfig,
}

/// The settings of the file sink.
#[derive(Clone, Debug)]
pub struct FileSinkConfig {
    /// The directory of the files.
    pub path: PathBuf,
    /// The tables to write, each to a file.
    pub tables: TablesConfig,
}

/// The tables to write, and how often to commit.
#[derive(Clone, Debug)]
pub struct TablesConfig {
    /// The outputs to write.
    pub tables: Vec<OutputKind>,
    /// The minimum time between the beginnings of two transactions.
    pub commit_interval: Duration,
}

const TABLES: [(&str, OutputKind); 4] = [
    ("events", OutputKind::Events),
    ("alerts", OutputKind::Alerts),
    ("windows", OutputKind::Windows),
    ("dead_letters", OutputKind::DeadLetters),
];

/// The outputs, as the files of the file sink are named.
const FILES: [(&str, OutputKind); 4] = [
    ("enriched-events", OutputKind::Events),
    ("alerts", OutputKind::Alerts),
    ("windows", OutputKind::Windows),
    ("dead-letters", OutputKind::DeadLetters),
];

/// The outputs that can be written to topics, with their default topics.
const TOPICS: [(&str, OutputKind); 3] = [
    ("enriched-events", OutputKind::Events),
    ("alerts", OutputKind::Alerts),
    ("dead-letters", OutputKind::DeadLetters),
];

/// Reads the section `[sinks]`.
pub(super) fn read(top: &mut Section<'_>, diagnostics: &mut Diagnostics) -> SinksConfig {
    let mut sinks = top.section_or_default("sinks", diagnostics);
    let mut read = SinksConfig::default();
    if let Some(mut section) = sinks.section("kafka", diagnostics) {
        read.kafka = read_kafka(&mut section, diagnostics);
        section.end(diagnostics);
    }
    if let Some(mut section) = sinks.section("postgres", diagnostics) {
        let url = secrets::address(&mut section, Server::Postgres, diagnostics).map(|address| address.url);
        if url.is_none() && !section.has("url") && !section.has("url_file") {
            section.report_missing("url", diagnostics);
        }
        let schema = section.text("schema", diagnostics);
        let tables = read_tables(&mut section, "tables", &TABLES, diagnostics);
        section.end(diagnostics);
        read.postgres = (|| Some(PostgresSinkConfig { url: url?, schema, tables: tables? }))();
    }
    if let Some(mut section) = sinks.section("sqlite", diagnostics) {
        let path = section.file("path", diagnostics);
        let tables = read_tables(&mut section, "tables", &TABLES, diagnostics);
        section.end(diagnostics);
        read.sqlite = (|| Some(SqliteSinkConfig { path: path?, tables: tables? }))();
    }
    if let Some(mut section) = sinks.section("file", diagnostics) {
        let path = section.file("path", diagnostics);
        let tables = read_tables(&mut section, "outputs", &FILES, diagnostics);
        section.end(diagnostics);
        read.file = (|| Some(FileSinkConfig { path: path?, tables: tables? }))();
    }
    if read.kafka.is_none() && read.postgres.is_none() && read.sqlite.is_none() && read.file.is_none() {
        top.report_error("sinks", super::NO_SINK, diagnostics);
    }
    sinks.end(diagnostics);
    read
}

fn read_kafka(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<KafkaSinkConfig> {
    let brokers = section.text("brokers", diagnostics);
    let topics = read_topics(section, diagnostics);
    let interval = section.duration("commit_interval", 0, diagnostics);
    let options = secrets::options(section, diagnostics);
    Some(KafkaSinkConfig { brokers: brokers?, topics: topics?, commit_interval: millis(interval?), options })
}

fn read_tables(
    section: &mut Section<'_>,
    key: &str,
    outputs: &[(&str, OutputKind)],
    diagnostics: &mut Diagnostics,
) -> Option<TablesConfig> {
    let tables = section.choices(key, outputs, diagnostics);
    let interval = section.duration("commit_interval", 0, diagnostics);
    Some(TablesConfig { tables: tables?, commit_interval: millis(interval?) })
}

/// Reads the outputs to write: a list of outputs, each with its default topic, or a table of topic names.
fn read_topics(
    section: &mut Section<'_>,
    diagnostics: &mut Diagnostics,
) -> Option<BTreeMap<OutputKind, String>> {
    if !section.item("topics").is_some_and(|item| matches!(item.node.value(), Node::Table(_))) {
        let listed = section.choices("topics", &TOPICS, diagnostics)?;
        let named = |kind: OutputKind| Some((kind, usual_name(kind)?.to_owned()));
        return Some(listed.into_iter().filter_map(named).collect());
    }
    let mut names = section.section("topics", diagnostics)?;
    let mut topics = BTreeMap::new();
    for (output, kind) in TOPICS {
        // TOML permits `-` and `_` in bare keys; the name of an environment variable cannot contain `-`.
        let alias = output.replace('-', "_");
        let (key, item) = match (names.item(output), names.item(&alias)) {
            (Some(item), _) => (output, item),
            (None, Some(item)) => (&*alias, item),
            (None, None) => continue,
        };
        let name = match topic_name(item.node.text()) {
            Ok(name) => name,
            Err(expected) => {
                names.report_error(key, format!("expected {expected}, got {}", item.describe()), diagnostics);
                continue;
            }
        };
        if topics.values().any(|other| *other == name) {
            names.report_error(
                key,
                format!("another output is also written to the topic {name}"),
                diagnostics,
            );
        }
        diagnostics.effective.push((format!("{}{output}", names.path()), Node::Text(name.clone()).to_toml()));
        topics.insert(kind, name);
    }
    names.end(diagnostics);
    if topics.is_empty() {
        section.report_error("topics", "expected a topic for at least one output", diagnostics);
    }
    Some(topics)
}

/// Checks a topic name by Kafka's rules.
pub(super) fn topic_name(text: Option<&str>) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name = text.filter(|name| (1..=249).contains(&name.len()) && name.chars().all(allowed));
    name.filter(|name| *name != "." && *name != "..")
        .map(str::to_owned)
        .ok_or_else(|| "a topic name: at most 249 letters, digits, `.`, `_` and `-`".to_owned())
}

/// Returns the topic that an output is written to by default.
fn usual_name(kind: OutputKind) -> Option<&'static str> {
    TOPICS.iter().find(|(_, of)| *of == kind).map(|(name, _)| *name)
}

/// Reports output topics that are also the source topic or the progress topic.
pub(super) fn check_topics(
    top: &Section<'_>,
    pipeline: Option<&str>,
    source: Option<&SourceConfig>,
    sinks: &SinksConfig,
    diagnostics: &mut Diagnostics,
) {
    let Some(sink) = &sinks.kafka else { return };
    for topic in sink.topics.values() {
        if matches!(source, Some(SourceConfig::Kafka(kafka)) if kafka.topic == *topic) {
            top.report_error(
                "source",
                format!("the topic {topic} is also written by sinks.kafka"),
                diagnostics,
            );
        }
        if pipeline.is_some_and(|pipeline| progress_topic(pipeline) == *topic) {
            let message = format!("the topic {topic} stores the pipeline's progress: choose another name");
            top.report_error("sinks", message, diagnostics);
        }
    }
}
