//! Where records come from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::read::{Notes, Section};
use super::tree;
use crate::source::generator::GeneratorSettings;

/// Where records come from.
#[derive(Clone)]
pub enum SourceConfig {
    /// A topic.
    Kafka(KafkaSourceConfig),
    /// Files, in the order of their partitions.
    File(Vec<PathBuf>),
    /// The generator.
    Generator(GeneratorSettings),
}

/// A topic to read.
#[derive(Clone)]
pub struct KafkaSourceConfig {
    /// The brokers to ask first.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// Where to start if nothing is recorded.
    pub start_from: StartFrom,
    /// Passed on as they are. They may hold secrets, so this has no `Debug`.
    pub options: BTreeMap<String, String>,
}

/// Where to start if nothing is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFrom {
    /// At the first record there is.
    Earliest,
    /// Behind the last record there is.
    Latest,
    /// At the first record of this time, in milliseconds since 1970, or later.
    Time(i64),
}

impl fmt::Debug for SourceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceConfig::Kafka(kafka) => write!(f, "Kafka({} at {})", kafka.topic, kafka.brokers),
            SourceConfig::File(paths) => f.debug_tuple("File").field(paths).finish(),
            SourceConfig::Generator(settings) => f.debug_tuple("Generator").field(settings).finish(),
        }
    }
}

/// Reads the section `[source]`.
pub(super) fn read(mut section: Section<'_>, notes: &mut Notes) -> Option<SourceConfig> {
    #[derive(Clone, Copy)]
    enum Kind {
        Kafka,
        File,
        Generator,
    }
    let kinds = [("kafka", Kind::Kafka), ("file", Kind::File), ("generator", Kind::Generator)];
    let source = match section.choice("kind", &kinds, notes) {
        None => return None,
        Some(Kind::Kafka) => {
            let brokers = section.text("brokers", notes);
            let topic = section.text("topic", notes);
            let start_from = section.get("start_from", notes, |node| {
                let expected = || "\"earliest\", \"latest\" or an RFC 3339 time".to_owned();
                match node {
                    tree::Node::Text(text) if text == "earliest" => Ok(StartFrom::Earliest),
                    tree::Node::Text(text) if text == "latest" => Ok(StartFrom::Latest),
                    tree::Node::Text(text) => {
                        crate::decode::rfc3339_ms(text).map(StartFrom::Time).map_err(|_| expected())
                    }
                    _ => Err(expected()),
                }
            });
            let options = match section.section("options", notes) {
                Some(mut section) => section.kafka_options(notes),
                None => BTreeMap::new(),
            };
            (|| {
                Some(SourceConfig::Kafka(KafkaSourceConfig {
                    brokers: brokers?,
                    topic: topic?,
                    start_from: start_from?,
                    options,
                }))
            })()
        }
        Some(Kind::File) => {
            let paths = section.list("paths", notes);
            if paths.is_none() {
                section.complain("paths", "a file source needs paths", notes);
            }
            paths.map(|paths| SourceConfig::File(paths.into_iter().map(PathBuf::from).collect()))
        }
        Some(Kind::Generator) => read_generator(&mut section, notes).map(SourceConfig::Generator),
    };
    section.end(notes);
    source
}

fn read_generator(section: &mut Section<'_>, notes: &mut Notes) -> Option<GeneratorSettings> {
    let all = 1..=i64::from(u32::MAX);
    let seed = section.int("seed", 0..=i64::MAX, notes);
    let partitions = section.int("partitions", 1..=1024, notes);
    let users = section.int("users", all.clone(), notes);
    let devices = section.int("devices", all.clone(), notes);
    let pace = section.int("pace", all, notes);
    let records = section.int("records", 0..=i64::MAX, notes);
    let mut rates = [0.0; 5];
    for (rate, key) in rates.iter_mut().zip(["disorder", "late", "duplicates", "malformed", "invalid"]) {
        *rate = section.float(key, 0.0..=1.0, notes)?;
    }
    let [disorder, late, duplicates, malformed, invalid] = rates;
    let settings = GeneratorSettings {
        seed: seed? as u64,
        partitions: partitions? as u32,
        users: users? as u32,
        devices: devices? as u32,
        pace: pace? as u32,
        records: records.map(|records| records as u64),
        disorder,
        late,
        duplicates,
        malformed,
        invalid,
        inject: section.bool("inject", notes)?,
        ..GeneratorSettings::default()
    };
    if let Err(message) = settings.validate() {
        section.complain("kind", message, notes);
    }
    Some(settings)
}
