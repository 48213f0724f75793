//! The source of records.

use std::path::PathBuf;

use headwater_sinks::kafka::client::Options;

use super::read::{Diagnostics, Section};
use super::secrets;
use crate::decode::{FORMATS, Format};
use crate::source::generator::GeneratorSettings;

/// The source of records.
#[derive(Clone, Debug)]
pub enum SourceConfig {
    /// A Kafka topic.
    Kafka(KafkaSourceConfig),
    /// Files; the index of a file is its partition.
    File(Vec<PathBuf>),
    /// The generator of test records.
    Generator(GeneratorSettings),
}

/// A Kafka topic to read.
#[derive(Clone, Debug)]
pub struct KafkaSourceConfig {
    /// Bootstrap servers, separated by commas.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// The start position if no offsets are recorded.
    pub start_from: StartFrom,
    /// True if `start_from` is set explicitly.
    pub start_from_is_set: bool,
    /// Options that are passed to the Kafka client unchanged.
    pub options: Options,
}

/// The start position if no offsets are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFrom {
    /// The first record of the topic.
    Earliest,
    /// After the last record of the topic.
    Latest,
    /// The first record at or after this time, in milliseconds since 1970.
    Time(i64),
}

/// The settings that apply to every kind of source.
#[derive(Clone, Copy, Debug)]
pub(super) struct DecodeSettings {
    /// The format of records.
    pub format: Format,
    /// True if a malformed optional field makes its record a dead letter.
    pub strict_fields: bool,
    /// The number of records per partition in an epoch, for sources that are complete.
    pub epoch_records: i64,
    /// The maximum jump ahead of a record that needs no confirmation by the next one, in milliseconds; None if
    /// unbounded.
    pub max_jump_ms: Option<i64>,
}

/// Reads the section `[source]`.
pub(super) fn read(
    mut section: Section<'_>,
    diagnostics: &mut Diagnostics,
) -> Option<(SourceConfig, DecodeSettings)> {
    let format = section.choice("format", &format_names(), diagnostics);
    let strict_fields = section.bool("strict_fields", diagnostics);
    #[derive(Clone, Copy)]
    enum Kind {
        Kafka,
        File,
        Generator,
    }
    let kinds = [("kafka", Kind::Kafka), ("file", Kind::File), ("generator", Kind::Generator)];
    let kind = section.choice("kind", &kinds, diagnostics);
    let (mut epoch_records, mut max_jump_ms) = (1, None);
    if matches!(kind, Some(Kind::File | Kind::Generator)) {
        epoch_records = section.int("epoch_records", 1..=1_000_000, diagnostics).unwrap_or(1);
    }
    if matches!(kind, Some(Kind::File)) {
        max_jump_ms = section.duration("max_jump", 0, diagnostics);
    }
    let source = match kind {
        None => return None,
        Some(Kind::Kafka) => {
            let brokers = section.text("brokers", diagnostics);
            let topic = section.get_text("topic", diagnostics, super::sinks::topic_name);
            let start_from_is_set = section.has("start_from");
            let start_from = section.get_text("start_from", diagnostics, |text| {
                let from = match text {
                    Some("earliest") => Some(StartFrom::Earliest),
                    Some("latest") => Some(StartFrom::Latest),
                    time => time.and_then(|time| crate::decode::rfc3339_ms(time).ok()).map(StartFrom::Time),
                };
                from.ok_or_else(|| "\"earliest\", \"latest\" or an RFC 3339 time".to_owned())
            });
            let options = secrets::options(&mut section, diagnostics);
            (|| {
                Some(SourceConfig::Kafka(KafkaSourceConfig {
                    brokers: brokers?,
                    topic: topic?,
                    start_from: start_from?,
                    start_from_is_set,
                    options,
                }))
            })()
        }
        Some(Kind::File) => {
            let paths = section.list("paths", diagnostics);
            if paths.is_none() {
                section.report_error("paths", "a file source needs `paths`", diagnostics);
            }
            paths.map(|paths| SourceConfig::File(paths.into_iter().map(PathBuf::from).collect()))
        }
        Some(Kind::Generator) => read_generator(&mut section, diagnostics).map(SourceConfig::Generator),
    };
    section.end(diagnostics);
    Some((
        source?,
        DecodeSettings { format: format?, strict_fields: strict_fields?, epoch_records, max_jump_ms },
    ))
}

fn format_names() -> Vec<(&'static str, Format)> {
    FORMATS.iter().map(|format| (format.name, *format)).collect()
}

fn read_generator(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<GeneratorSettings> {
    let all = 1..=i64::from(u32::MAX);
    let seed = section.int("seed", 0..=i64::MAX, diagnostics);
    let partitions = section.int("partitions", 1..=1024, diagnostics);
    let users = section.int("users", all.clone(), diagnostics);
    let devices = section.int("devices", all.clone(), diagnostics);
    let pace = section.int("pace", all, diagnostics);
    let records = section.int("records", 0..=i64::MAX, diagnostics);
    let mut rates = [0.0; 5];
    for (rate, key) in rates.iter_mut().zip(["disorder", "late", "duplicates", "malformed", "invalid"]) {
        *rate = section.float(key, 0.0..=1.0, diagnostics)?;
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
        inject: section.bool("inject", diagnostics)?,
        ..GeneratorSettings::default()
    };
    if let Err(message) = settings.validate() {
        section.report_error("kind", message, diagnostics);
    }
    Some(settings)
}
