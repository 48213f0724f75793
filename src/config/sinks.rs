//! Where results go.

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

/// An output that a sink may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutputKind {
    /// Events, enriched.
    Events,
    /// Alerts.
    Alerts,
    /// Window aggregates.
    Windows,
    /// Dead letters.
    DeadLetters,
}

/// Where results go.
#[derive(Clone, Debug, Default)]
pub struct SinksConfig {
    /// Topics.
    pub kafka: Option<KafkaSinkConfig>,
    /// PostgreSQL.
    pub postgres: Option<PostgresSinkConfig>,
    /// SQLite.
    pub sqlite: Option<SqliteSinkConfig>,
}

/// Topics to write.
#[derive(Clone, Debug)]
pub struct KafkaSinkConfig {
    /// Bootstrap servers, a list separated by commas.
    pub brokers: String,
    /// Which outputs to write, and the name of the topic of each.
    pub topics: BTreeMap<OutputKind, String>,
    /// Least time between two transactions.
    pub commit_interval: Duration,
    /// For the Kafka client, which takes them as they are.
    pub options: Options,
}

impl KafkaSinkConfig {
    /// Has it write these outputs, each to its topic, or to the usual one if it has none.
    pub fn write_only(&mut self, outputs: &[OutputKind]) {
        let topic = |kind: &OutputKind| match self.topics.get(kind) {
            Some(name) => Some((*kind, name.clone())),
            None => Some((*kind, usual_name(*kind)?.to_owned())),
        };
        self.topics = outputs.iter().filter_map(topic).collect();
    }
}

/// Tables of PostgreSQL to write.
#[derive(Clone, Debug)]
pub struct PostgresSinkConfig {
    /// The server and database.
    pub url: Secret,
    /// The schema that the tables are in; without it, where the connection puts tables.
    pub schema: Option<String>,
    /// Which.
    pub tables: TablesConfig,
}

/// Tables of SQLite to write.
#[derive(Clone, Debug)]
pub struct SqliteSinkConfig {
    /// The database file.
    pub path: PathBuf,
    /// Which.
    pub tables: TablesConfig,
}

/// Tables to write.
#[derive(Clone, Debug)]
pub struct TablesConfig {
    /// Which outputs to write.
    pub tables: Vec<OutputKind>,
    /// Least time between two transactions.
    pub commit_interval: Duration,
}

const TABLES: [(&str, OutputKind); 4] = [
    ("events", OutputKind::Events),
    ("alerts", OutputKind::Alerts),
    ("windows", OutputKind::Windows),
    ("dead_letters", OutputKind::DeadLetters),
];

/// The outputs that have topics, and the usual names of these.
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
        let tables = read_tables(&mut section, diagnostics);
        section.end(diagnostics);
        read.postgres = (|| Some(PostgresSinkConfig { url: url?, schema, tables: tables? }))();
    }
    if let Some(mut section) = sinks.section("sqlite", diagnostics) {
        let path = section.file("path", diagnostics);
        let tables = read_tables(&mut section, diagnostics);
        section.end(diagnostics);
        read.sqlite = (|| Some(SqliteSinkConfig { path: path?, tables: tables? }))();
    }
    if read.kafka.is_none() && read.postgres.is_none() && read.sqlite.is_none() {
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

fn read_tables(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<TablesConfig> {
    let tables = section.choices("tables", &TABLES, diagnostics);
    let interval = section.duration("commit_interval", 0, diagnostics);
    Some(TablesConfig { tables: tables?, commit_interval: millis(interval?) })
}

/// The outputs to write: a list of them, each to the topic of its name, or a table of the topics' names.
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
        // TOML's bare keys have both, and a variable of the environment has no `-`.
        let spelt = output.replace('-', "_");
        let (key, item) = match (names.item(output), names.item(&spelt)) {
            (Some(item), _) => (output, item),
            (None, Some(item)) => (&*spelt, item),
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
            names.report_error(key, format!("another output goes to the topic {name}, too"), diagnostics);
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

/// The name of a topic, as Kafka takes it.
pub(super) fn topic_name(text: Option<&str>) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name = text.filter(|name| (1..=249).contains(&name.len()) && name.chars().all(allowed));
    name.filter(|name| *name != "." && *name != "..")
        .map(str::to_owned)
        .ok_or_else(|| "the name of a topic: at most 249 letters, digits, `.`, `_` and `-`".to_owned())
}

/// The topic that an output goes to unless it is given another one.
fn usual_name(kind: OutputKind) -> Option<&'static str> {
    TOPICS.iter().find(|(_, of)| *of == kind).map(|(name, _)| *name)
}

/// Complains of topics that cannot be written beside what is read, or what progress is in.
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
            let message =
                format!("the topic {topic} is where the pipeline's progress is kept: choose another name");
            top.report_error("sinks", message, diagnostics);
        }
    }
}
