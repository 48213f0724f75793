//! A topic, read by ranges of offsets outside of a run: dead letters backwards in parts, one by one or all of them, and the
//! source's records around an alert.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use headwater_dataflows::Partition;
use headwater_sinks::kafka::client::{Options, Quiet, creation_error, reader_config};
use headwater_sinks::kafka::topics::Topics;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::dead_letters::DeadLetter;
use super::fetched::Fetched;
use super::{REQUEST_TIMEOUT, check_topic, kafka_partition, open_error, retry_transient, unavailable};
use crate::source::SourceError;

/// A topic, with the offsets that it had when it was opened.
pub struct TopicRanges {
    consumer: BaseConsumer<Quiet>,
    topics: Topics,
    topic: String,
    bounds: Vec<Range<i64>>,
}

/// The amount that is fetched ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// Little: the ranges are short, and behind their ends nothing is needed.
    Little,
    /// Much: the ranges are long.
    Much,
}

impl Fetch {
    fn options(self) -> &'static [(&'static str, &'static str)] {
        // The end of a partition is reported when a fetch returns nothing.
        const WAIT: (&str, &str) = ("fetch.wait.max.ms", "20");
        match self {
            Fetch::Little => &[WAIT, ("queued.min.messages", "256"), ("queued.max.messages.kbytes", "4096")],
            Fetch::Much => &[
                WAIT,
                // With the default, a partition whose queue was full is not fetched for a second.
                ("fetch.queue.backoff.ms", "10"),
                ("queued.min.messages", "100000"),
                ("queued.max.messages.kbytes", "2048"),
            ],
        }
    }
}

/// A range of offsets of a partition.
pub type Offsets = (Partition, Range<i64>);

impl TopicRanges {
    /// Opens a topic.
    ///
    /// # Errors
    /// If the topic is missing, or cannot be read.
    pub fn open(
        brokers: &str,
        options: &Options,
        topic: &str,
        fetch: Fetch,
    ) -> Result<TopicRanges, SourceError> {
        let failed = |error| unavailable(format!("read the ends of topic {topic}"), error);
        let topics = Topics::connect(brokers, options).map_err(open_error)?;
        let partitions = check_topic(&topics, topic)?;
        let config = reader_config(brokers, options, topic, fetch.options())
            .map_err(|error| unavailable("set up a consumer", error))?;
        let consumer: BaseConsumer<Quiet> = config
            .create_with_context(Quiet)
            .map_err(|error| unavailable("set up a consumer", creation_error(&config, error)))?;
        let ends = |partition| consumer.fetch_watermarks(topic, kafka_partition(partition), REQUEST_TIMEOUT);
        let bounds = (0..partitions).map(|partition| retry_transient(|| ends(partition)));
        let bounds: Vec<_> =
            bounds.map(|ends| ends.map(|(low, end)| low..end).map_err(failed)).collect::<Result<_, _>>()?;
        Ok(TopicRanges { consumer, topics, topic: topic.to_owned(), bounds })
    }

    /// Returns the offsets that each partition had when the topic was opened.
    pub fn bounds(&self) -> impl Iterator<Item = Offsets> + '_ {
        (0..).map(Partition).zip(self.bounds.iter().cloned())
    }

    /// Returns, for each partition, the first offset whose timestamp is at or after a time in milliseconds; the end if
    /// there is none.
    ///
    /// # Errors
    /// If the cluster cannot be asked.
    pub fn offsets_at(&self, time_ms: i64) -> Result<Vec<i64>, SourceError> {
        let failed = |error| unavailable(format!("read the times of topic {}", self.topic), error);
        let mut times = TopicPartitionList::new();
        for (Partition(partition), _) in self.bounds() {
            let time = Offset::Offset(time_ms.max(0));
            times.add_partition_offset(&self.topic, kafka_partition(partition), time).map_err(failed)?;
        }
        let found = retry_transient(|| self.consumer.offsets_for_times(times.clone(), REQUEST_TIMEOUT));
        let found = found.map_err(failed)?;
        let offset = |(Partition(partition), bounds): Offsets| {
            let element = found.find_partition(&self.topic, kafka_partition(partition));
            match element.map(|element| element.offset()) {
                Some(Offset::Offset(offset)) => offset.clamp(bounds.start, bounds.end),
                _ => bounds.end,
            }
        };
        Ok(self.bounds().map(offset).collect())
    }

    /// Reads ranges of offsets, at most one of each partition, and passes on each letter, in the order of offsets within
    /// a partition. Returns false if the deadline came first.
    ///
    /// # Errors
    /// If the topic cannot be read.
    pub fn read_letters(
        &self,
        ranges: &[Offsets],
        deadline: Instant,
        each: &mut dyn FnMut(DeadLetter),
    ) -> Result<bool, SourceError> {
        self.read(ranges, deadline, &mut |partition, message| {
            each(DeadLetter::of(partition, message));
            true
        })
    }

    /// Reads ranges of offsets, at most one of each partition, and passes on each record, in the order of offsets within
    /// a partition, until `each` returns false. Returns true if all were read.
    ///
    /// # Errors
    /// If the topic cannot be read.
    pub(super) fn read(
        &self,
        ranges: &[Offsets],
        deadline: Instant,
        each: &mut dyn FnMut(Partition, &Fetched<'_>) -> bool,
    ) -> Result<bool, SourceError> {
        let failed = |error| unavailable(format!("read topic {}", self.topic), error);
        let mut open: BTreeMap<i32, i64> = BTreeMap::new();
        let mut assignment = TopicPartitionList::new();
        for (Partition(partition), range) in ranges.iter().filter(|(_, range)| !range.is_empty()) {
            let from = Offset::Offset(range.start);
            assignment
                .add_partition_offset(&self.topic, kafka_partition(*partition), from)
                .map_err(failed)?;
            open.insert(kafka_partition(*partition), range.end);
        }
        if open.is_empty() {
            return Ok(true);
        }
        self.consumer.assign(&assignment).map_err(failed)?;
        while !open.is_empty() && Instant::now() < deadline {
            match self.consumer.poll(Duration::from_millis(50)) {
                Some(Ok(message)) => {
                    let Some(&end) = open.get(&message.partition()) else { continue };
                    let partition = Partition(message.partition().unsigned_abs());
                    if message.offset() < end && !each(partition, &Fetched::from(&message)) {
                        break;
                    }
                    if message.offset() + 1 >= end {
                        self.close(message.partition(), &mut open).map_err(failed)?;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.close(partition, &mut open).map_err(failed)?;
                }
                Some(Err(error)) if is_transient(&error) => {}
                Some(Err(error)) => return Err(failed(error)),
                None => {}
            }
        }
        self.consumer.unassign().map_err(failed)?;
        Ok(open.is_empty())
    }

    fn close(&self, partition: i32, open: &mut BTreeMap<i32, i64>) -> Result<(), KafkaError> {
        if open.remove(&partition).is_none() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        self.consumer.incremental_unassign(&list)
    }

    /// Deletes all records before an offset of each partition.
    ///
    /// # Errors
    /// If the cluster does not delete them.
    pub fn delete_before(&self, offsets: &[(Partition, i64)]) -> Result<(), SourceError> {
        let offsets: Vec<_> = offsets
            .iter()
            .map(|&(Partition(partition), offset)| (kafka_partition(partition), offset))
            .collect();
        self.topics.delete_records(&self.topic, &offsets).map_err(open_error)
    }
}

/// Returns true for errors from which the client recovers by itself.
fn is_transient(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
        )
    )
}
