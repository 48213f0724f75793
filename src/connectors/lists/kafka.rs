//! A list that is the newest record of each key in a topic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use headwater_sinks::kafka::client::{Options, Quiet, creation_error, reader_config};
use headwater_sinks::kafka::topics::Topics;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::values::{Raw, key, member, object, row};
use super::{Defaults, ListBounds, ListReader, ListReading};
use crate::connectors::causes;
use crate::connectors::kafka::topic_name;
use crate::lists::{Entries, Key, Row, Schema};
use crate::settings::{Diagnostics, Section, secrets};

/// The time between two versions, in which changes are collected.
const EVERY: Duration = Duration::from_secs(1);

/// The maximum time of the first reading, from the beginning of the topic to its end.
const FIRST: Duration = Duration::from_secs(600);

/// The maximum time of a request.
const REQUEST: Duration = Duration::from_secs(5);

/// The time between two looks at the partitions of the topic, which also show whether the cluster can be reached.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A compacted topic.
#[derive(Clone, Debug)]
pub struct KafkaListConfig {
    /// Bootstrap servers, separated by commas.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    options: Options,
}

pub(super) fn read(
    section: &mut Section<'_>,
    defaults: &Defaults,
    diagnostics: &mut Diagnostics,
) -> Option<KafkaListConfig> {
    let topic = section.get_text("topic", diagnostics, topic_name);
    if topic.is_none() && !section.has("topic") {
        section.report_missing("topic", diagnostics);
    }
    let own = section.text("brokers", diagnostics);
    let mut options = secrets::options(section, diagnostics);
    let brokers = match (own, &defaults.kafka) {
        (Some(brokers), _) => Some(brokers),
        (None, Some((brokers, of_source))) => {
            if options.is_empty() {
                options = of_source.clone();
            }
            Some(brokers.clone())
        }
        (None, None) => {
            if !section.has("brokers") {
                let message =
                    "is missing: the source of the pipeline is not Kafka, whose brokers are the default";
                section.report_error("brokers", message, diagnostics);
            }
            None
        }
    };
    Some(KafkaListConfig { brokers: brokers?, topic: topic?, options })
}

impl KafkaListConfig {
    pub(super) fn reader(
        &self,
        schema: Schema,
        bounds: ListBounds,
        stopping: Arc<AtomicBool>,
    ) -> KafkaReader {
        KafkaReader { config: self.clone(), schema, bounds, stopping, open: None }
    }

    /// Checks that the topic keeps the newest record of each key.
    ///
    /// # Errors
    /// If it does not, or cannot be looked at.
    pub(super) fn check_topic(&self) -> Result<(), String> {
        let topics = Topics::connect(&self.brokers, &self.options).map_err(|error| causes(&error))?;
        match topics.describe(&self.topic).map_err(|error| causes(&error))? {
            None => Err(format!("topic {} does not exist", self.topic)),
            Some(facts) if !facts.compacted => Err(format!(
                "topic {} is not compacted, so entries expire: set cleanup.policy=compact",
                self.topic
            )),
            Some(_) => Ok(()),
        }
    }
}

pub(super) struct KafkaReader {
    config: KafkaListConfig,
    schema: Schema,
    bounds: ListBounds,
    stopping: Arc<AtomicBool>,
    open: Option<OpenTopic>,
}

/// A topic that is being read.
struct OpenTopic {
    consumer: BaseConsumer<Quiet>,
    /// The next offset of each partition, and whether its end was reached.
    partitions: BTreeMap<i32, (i64, bool)>,
    looked: Instant,
    entries: Entries,
    /// The keys whose newest record is malformed, with its place and error.
    malformed: BTreeMap<Option<Key>, String>,
    is_changed: bool,
}

impl ListReader for KafkaReader {
    fn read(&mut self) -> Result<ListReading, String> {
        let read = self.follow();
        if read.is_err() {
            // The next reading begins anew, so that no record is missed.
            self.open = None;
        }
        read
    }

    fn pause(&self) -> Duration {
        if self.open.is_some() { Duration::ZERO } else { EVERY }
    }
}

impl KafkaReader {
    fn follow(&mut self) -> Result<ListReading, String> {
        let is_first = self.open.is_none();
        let topic = match self.open.take() {
            Some(open) => open,
            None => self.connect()?,
        };
        let topic = self.open.insert(topic);
        if topic.looked.elapsed() >= LOOK_EVERY {
            topic.refresh(&self.config.topic)?;
        }
        let deadline = Instant::now() + if is_first { FIRST } else { EVERY };
        // Beyond the deadline until the end, so that contents are those of a moment of the topic, if it pauses at all.
        let latest = deadline + 10 * EVERY;
        while if topic.is_read() { !is_first && Instant::now() < deadline } else { Instant::now() < latest } {
            if self.stopping.load(Ordering::Relaxed) {
                return Err("the run ends".to_owned());
            }
            topic.poll(&self.schema, self.bounds)?;
        }
        if is_first && !topic.is_read() {
            return Err(format!("the topic was not read to its end within {} s", FIRST.as_secs()));
        }
        topic.is_changed |= is_first;
        let mut reading = ListReading { refused: topic.malformed.len() as u64, ..ListReading::default() };
        if std::mem::take(&mut topic.is_changed) {
            reading.entries = Some(topic.entries.clone());
            reading.warnings.extend(topic.malformed.values().next().map(
                |first| match topic.malformed.len() {
                    1 => first.clone(),
                    n => format!("{first}; so are {} more entries", n - 1),
                },
            ));
        }
        Ok(reading)
    }

    fn connect(&self) -> Result<OpenTopic, String> {
        let KafkaListConfig { brokers, topic, options } = &self.config;
        let defaults = [("fetch.queue.backoff.ms", "10"), ("fetch.wait.max.ms", "100")];
        let config = reader_config(brokers, options, topic, &defaults).map_err(|error| causes(&error))?;
        let consumer: BaseConsumer<Quiet> =
            config.create_with_context(Quiet).map_err(|error| causes(&creation_error(&config, error)))?;
        let mut open = OpenTopic {
            consumer,
            partitions: BTreeMap::new(),
            looked: Instant::now(),
            entries: Entries::new(),
            malformed: BTreeMap::new(),
            is_changed: false,
        };
        open.refresh(topic)?;
        Ok(open)
    }
}

impl OpenTopic {
    /// Finds the partitions of the topic, and reads those that were added from their beginning.
    fn refresh(&mut self, topic: &str) -> Result<(), String> {
        let failed = |error: KafkaError| format!("cannot read topic {topic}: {error}");
        let metadata = self.consumer.fetch_metadata(Some(topic), REQUEST).map_err(failed)?;
        let of_topic = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions =
            of_topic.filter(|found| found.error().is_none()).map_or(0, |found| found.partitions().len());
        if partitions == 0 {
            return Err(format!("topic {topic} does not exist"));
        }
        let mut added = TopicPartitionList::new();
        for partition in 0..partitions as i32 {
            let (_, end) = self.consumer.fetch_watermarks(topic, partition, REQUEST).map_err(failed)?;
            match self.partitions.get(&partition) {
                Some((next, _)) if end < *next => {
                    return Err(format!("topic {topic} was created anew: it is read again"));
                }
                Some(_) => {}
                None => {
                    added.add_partition_offset(topic, partition, Offset::Beginning).map_err(failed)?;
                    self.partitions.insert(partition, (0, false));
                }
            }
        }
        if added.count() > 0 {
            self.consumer.incremental_assign(&added).map_err(failed)?;
        }
        self.looked = Instant::now();
        Ok(())
    }

    /// Returns true if every partition was read to its end.
    fn is_read(&self) -> bool {
        self.partitions.values().all(|(_, is_at_end)| *is_at_end)
    }

    fn poll(&mut self, schema: &Schema, bounds: ListBounds) -> Result<(), String> {
        match self.consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let partition = message.partition();
                self.partitions.insert(partition, (message.offset() + 1, false));
                let place = format!("partition {partition}, offset {}", message.offset());
                let (key, row) = entry(schema, message.key(), message.payload());
                self.apply(key, row.map_err(|error| format!("{place}: {error}")));
                bounds.check_entries(self.entries.len())
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                if let Some((_, is_at_end)) = self.partitions.get_mut(&partition) {
                    *is_at_end = true;
                }
                Ok(())
            }
            // The client connects again; whether it can is seen when the partitions are looked at.
            Some(Err(error)) => {
                tracing::debug!(%error, "the topic of a list");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Applies a record: an entry, a deletion, or an error, which leaves the entry out.
    fn apply(&mut self, key: Option<Key>, row: Result<Option<Row>, String>) {
        self.is_changed = true;
        self.malformed.remove(&key);
        match (key, row) {
            (Some(key), Ok(Some(row))) => drop(self.entries.insert(key, row)),
            (Some(key), Ok(None)) => drop(self.entries.remove(&key)),
            (key, Err(error)) => {
                key.iter().for_each(|key| drop(self.entries.remove(key)));
                self.malformed.insert(key, error);
            }
            (None, Ok(_)) => {}
        }
    }
}

/// Returns the key and the values of a record; no values if it deletes the entry. A record without a valid key has only an
/// error.
fn entry(
    schema: &Schema,
    record_key: Option<&[u8]>,
    value: Option<&[u8]>,
) -> (Option<Key>, Result<Option<Row>, String>) {
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned());
    let key_text = record_key.ok_or_else(|| "the record has no key".to_owned()).and_then(text);
    let key = match key_text.and_then(|text| key(schema.key, &Raw::Text(text.into()))) {
        Ok(key) => key,
        Err(error) => return (None, Err(error)),
    };
    let row = match value {
        None => Ok(None),
        Some(_) if schema.columns.is_empty() => Ok(Some(Box::default())),
        Some(value) => text(value).and_then(|text| {
            let object = object(text)?;
            row(schema, |_, column| member(&object, column)).map(Some)
        }),
    };
    (Some(key), row)
}

#[cfg(test)]
mod tests;
