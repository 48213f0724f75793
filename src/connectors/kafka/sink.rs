//! Topics as sink.

use std::collections::BTreeMap;
use std::time::Duration;

use headwater_sinks::kafka::client::Options;
use headwater_sinks::kafka::probe::{self, Obstacle};
use headwater_sinks::kafka::{KafkaConfig, KafkaSink, progress_topic};

use super::topic_name;
use crate::connectors::{Check, OutputKind, SinkConfig, SinkConnector, SinkContext, SinkKind, index_of};
use crate::outputs::{OutputMapping, SinkEncoding, SinkJob};
use crate::settings::{Diagnostics, Node, Section, keys, millis, secrets};

pub const SINK: SinkKind = SinkKind {
    name: "kafka",
    keys: keys! {
        "sinks.kafka.brokers" = "\"127.0.0.1:9092\"": "Bootstrap servers, separated by commas."
        "sinks.kafka.topics" = "[\"enriched-events\", \"alerts\", \"dead-letters\"]": "Outputs to write, each to the topic of the same name. Alternatively a table of topic names, such as `[sinks.kafka.topics]` with `alerts = \"fraud.alerts\"`: then only the outputs in the table are written."
        "sinks.kafka.commit_interval" = "\"0ms\"": "Minimum time between the beginnings of two transactions. The length of transactions adapts to the load, so the default is none."
        "sinks.kafka.topics.enriched-events": "Topic of the enriched events. `enriched_events` is another spelling of this key."
        "sinks.kafka.topics.alerts": "Topic of the alerts."
        "sinks.kafka.topics.dead-letters": "Topic of the dead letters. `dead_letters` is another spelling of this key."
    },
    read: |section, diagnostics| read(section, diagnostics).map(SinkConfig::Kafka),
};

/// Kafka topics to write.
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

/// The outputs that can be written to topics, with their default topics.
const TOPICS: [(&str, OutputKind); 3] = [
    ("enriched-events", OutputKind::Events),
    ("alerts", OutputKind::Alerts),
    ("dead-letters", OutputKind::DeadLetters),
];

fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<KafkaSinkConfig> {
    let brokers = section.text("brokers", diagnostics);
    let topics = read_topics(section, diagnostics);
    let interval = section.duration("commit_interval", 0, diagnostics);
    let options = secrets::options(section, diagnostics);
    Some(KafkaSinkConfig { brokers: brokers?, topics: topics?, commit_interval: millis(interval?), options })
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

/// Returns the topic that an output is written to by default.
fn usual_name(kind: OutputKind) -> Option<&'static str> {
    TOPICS.iter().find(|(_, of)| *of == kind).map(|(name, _)| *name)
}

impl SinkConnector for KafkaSinkConfig {
    fn jobs(&self, name: &str, context: SinkContext<'_>) -> Vec<SinkJob> {
        // Alerts have a separate writer, so that they do not wait for the much larger number of events.
        let writers = [
            ("alerts", &[OutputKind::Alerts][..]),
            ("events", &[OutputKind::Events, OutputKind::DeadLetters]),
        ];
        let mut jobs = Vec::new();
        for (writer, kinds) in writers {
            let outputs: Vec<_> = kinds.iter().filter_map(|kind| self.topics.get_key_value(kind)).collect();
            if outputs.is_empty() {
                continue;
            }
            let mut mapping = OutputMapping::default();
            for (at, (kind, _)) in outputs.iter().enumerate() {
                *index_of(&mut mapping, **kind) = Some(at as u8);
            }
            let sink = KafkaSink::new(KafkaConfig {
                name: format!("{name}-{writer}"),
                brokers: self.brokers.clone(),
                topics: outputs.iter().map(|(_, topic)| format!("{}{topic}", context.topic_prefix)).collect(),
                options: self.options.clone(),
            });
            jobs.push(SinkJob {
                sink: Box::new(sink),
                encoding: SinkEncoding::Messages(mapping, usize::MAX),
                commit_interval: self.commit_interval,
            });
        }
        jobs
    }

    /// Checks topics and transactions. Stops at the first failure of the cluster itself, because each further check
    /// would wait for the same timeout.
    fn check(&self, name: &str, context: SinkContext<'_>) -> Vec<Check> {
        let (brokers, options, pipeline) = (&*self.brokers, &self.options, context.pipeline);
        let mut checks = Vec::new();
        let mut record = |what: String, outcome: Result<String, Obstacle>| {
            let can_continue = !matches!(outcome, Err(Obstacle::Topics(_)));
            checks.push(Check::of(format!("sinks.{name}"), format!("{what} at {brokers}"), outcome));
            can_continue
        };
        let jobs = self.jobs(name, context);
        let mut topics = jobs.iter().flat_map(|job| job.sink.topics());
        let all_reached = topics
            .all(|topic| record(format!("topic {topic}"), probe::output_topic(brokers, options, topic)));
        if all_reached {
            let progress = format!("topic {}", progress_topic(pipeline));
            record(progress, probe::progress(brokers, options, pipeline));
            record("transactions".to_owned(), probe::transactions(brokers, options, pipeline));
        }
        checks
    }

    fn targets(&self) -> Vec<String> {
        self.topics.values().map(|topic| format!("topic {topic} at {}", self.brokers)).collect()
    }

    fn sharing_objection(&self, _has_ledger: bool) -> Option<String> {
        None
    }
}
