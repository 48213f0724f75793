//! A topic as source.

use std::ops::Range;
use std::sync::Arc;

use headwater_dataflows::Offset;
use headwater_sinks::kafka::client::Options;

use super::topic_name;
use crate::connectors::check::counted;
use crate::connectors::{Check, SourceConfig, SourceConnector, SourceContext, SourceKind, StartFrom};
use crate::settings::{Diagnostics, Section, keys, secrets};
use crate::source::history::RecordHistory;
use crate::source::kafka::history::{RECORDS, TopicHistory};
use crate::source::kafka::topic_ranges::{Fetch, TopicRanges};
use crate::source::kafka::{self, KafkaSource, probe};
use crate::source::{Source, SourceError};

pub const SOURCE: SourceKind = SourceKind {
    name: "kafka",
    keys: keys! {
        "source.brokers" = "\"127.0.0.1:9092\"": "Kafka: bootstrap servers, separated by commas."
        "source.topic" = "\"raw-events\"": "Kafka: the topic to read."
        "source.start_from" = "\"earliest\"": "Kafka: the position to start from if no offsets are recorded yet: `earliest`, `latest`, or an RFC 3339 time. `earliest` skips no record."
        "source.producer_header" = "\"producer\"": "Kafka: header of a record that names its producer. Dead letters in a topic are grouped by it."
    },
    identity: &["source.topic"],
    is_bounded: false,
    read: |section, diagnostics| read(section, diagnostics).map(SourceConfig::Kafka),
};

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
    /// The header of a record that names its producer.
    pub producer_header: String,
    /// Options that are passed to the Kafka client unchanged.
    pub options: Options,
}

fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<KafkaSourceConfig> {
    let brokers = section.text("brokers", diagnostics);
    let topic = section.get_text("topic", diagnostics, topic_name);
    let start_from_is_set = section.has("start_from");
    let start_from = section.get_text("start_from", diagnostics, |text| {
        let from = match text {
            Some("earliest") => Some(StartFrom::Earliest),
            Some("latest") => Some(StartFrom::Latest),
            time => time.and_then(|time| crate::decode::rfc3339_ms(time).ok()).map(StartFrom::Time),
        };
        from.ok_or_else(|| "\"earliest\", \"latest\" or an RFC 3339 time".to_owned())
    });
    let producer_header = section.text("producer_header", diagnostics);
    let options = secrets::options(section, diagnostics);
    Some(KafkaSourceConfig {
        brokers: brokers?,
        topic: topic?,
        start_from: start_from?,
        start_from_is_set,
        producer_header: producer_header?,
        options,
    })
}

impl KafkaSourceConfig {
    fn at(&self, context: SourceContext, starts: Option<Vec<Offset>>) -> kafka::KafkaSourceConfig {
        kafka::KafkaSourceConfig {
            brokers: self.brokers.clone(),
            topic: self.topic.clone(),
            group: context.pipeline,
            starts,
            start_from: self.start_from,
            ignore_group: self.start_from_is_set && context.has_ledger,
            accepted: context.accepted,
            producer_header: self.producer_header.clone(),
            options: self.options.clone(),
            until_end: context.is_bounded,
            bytes_in_flight: context.bytes_in_flight,
        }
    }
}

impl SourceConnector for KafkaSourceConfig {
    fn open(
        &self,
        context: SourceContext,
        starts: Option<Vec<Offset>>,
    ) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::new(KafkaSource::open(self.at(context, starts))?))
    }

    fn check(&self, context: &SourceContext) -> Vec<Check> {
        let probed = probe(&self.at(context.clone(), None));
        let result = |partitions| {
            let partitions = counted(u64::from(partitions), "partition");
            format!("{partitions}, not compacted; access to group {} permitted", context.pipeline)
        };
        vec![Check::of("source", format!("topic {} at {}", self.topic, self.brokers), probed.map(result))]
    }

    fn newest(&self, records: u64) -> Result<Option<Vec<Offset>>, SourceError> {
        // Markers of transactions and aborted records have offsets, too.
        let back = i64::try_from(2 * records + 64).unwrap_or(i64::MAX);
        let topic = TopicRanges::open(&self.brokers, &self.options, &self.topic, Fetch::Little)?;
        let start = |bounds: Range<i64>| Offset(bounds.end.saturating_sub(back).max(bounds.start));
        Ok(Some(topic.bounds().map(|(_, bounds)| start(bounds)).collect()))
    }

    fn history(&self, _epoch_records: i64) -> Result<Box<dyn RecordHistory>, String> {
        Ok(Box::new(TopicHistory {
            brokers: self.brokers.clone(),
            options: self.options.clone(),
            topic: self.topic.clone(),
            is_from_first: self.start_from == StartFrom::Earliest,
            max_records: RECORDS,
        }))
    }
}
