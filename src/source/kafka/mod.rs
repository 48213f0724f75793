//! A Kafka topic as a source. Partitions are assigned rather than subscribed to, and read with `read_committed`.
//!
//! ```text
//!   group's offsets, or start_from ──▶ start ─┐
//!   log end (until_end)            ──▶ stop  ─┴─▶ one reader per worker ── Raw ──▶ decode
//!   frontier of all sinks          ──▶ commit ──▶ group's offsets
//! ```
//!
//! A pipeline resumes from the offsets in its ledger. The group's offsets are committed for Kafka's own tools, and are
//! read only while the ledger has none. The source does not guess: it refuses an offset that the log no longer has, and
//! a topic that is missing or compacted, with an error that names it.

mod batch_queue;
pub mod dead_letters;
mod ends;
mod fetched;
mod group;
pub mod history;
mod partition;
pub mod produce;
mod reader;
pub mod retry;
mod stats;
pub mod topic_ranges;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use headwater_dataflows::{Offset, Partition};
use headwater_sinks::kafka::client::{Options, Quiet, client_config, creation_error};
use headwater_sinks::kafka::topics::{TopicError, Topics};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use crate::coordination::{AcceptedLoss, go_on_at};

use self::ends::{EndsPoller, PartitionEnds};
use self::group::Committer;
use self::reader::KafkaReader;
use super::{Reader, Source, SourceError};

/// The timeout of one request to the cluster.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum time for which a request is retried after transient errors.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause before a retry.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The minimum of fetch memory per partition, in bytes.
const MIN_BYTES: usize = 64 << 10;

/// The bytes that the client keeps for a record besides its value, roughly.
const CLIENT_OVERHEAD: usize = 512;

/// The start position if the ledger has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFrom {
    /// The first record that the topic still has.
    Earliest,
    /// The offset after the last committed record.
    Latest,
    /// The first record with this Kafka timestamp or a later one, in milliseconds since 1970.
    Time(i64),
}

impl fmt::Display for StartFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartFrom::Earliest => f.write_str("earliest"),
            StartFrom::Latest => f.write_str("latest"),
            StartFrom::Time(ms) => f.write_str(&crate::json::rfc3339(*ms)),
        }
    }
}

/// The configuration of a Kafka source.
#[derive(Clone, Debug)]
pub struct KafkaSourceConfig {
    /// The bootstrap servers, `host:port`, separated by commas.
    pub brokers: String,
    /// The topic to read.
    pub topic: String,
    /// The consumer group whose offsets show the pipeline's progress.
    pub group: String,
    /// The start offsets by partition, if the ledger has them; they override everything else.
    pub starts: Option<Vec<Offset>>,
    /// The start position of a partition that has an offset neither in the ledger nor in the group.
    pub start_from: StartFrom,
    /// True if `start_from` overrides the group's offsets: it is set, and the ledger has recorded nothing yet.
    pub ignore_group: bool,
    /// Records that are allowed to be missing (`--accept-loss`).
    pub accepted: Vec<AcceptedLoss>,
    /// The header of a record that names its producer.
    pub producer_header: String,
    /// Options for librdkafka.
    pub options: Options,
    /// True if reading stops at the current end of each partition: after the last record whose transaction is decided.
    pub until_end: bool,
    /// The maximum of bytes that are fetched and not yet emitted, over all partitions of the topic.
    pub bytes_in_flight: usize,
}

/// A topic, opened for reading.
pub struct KafkaSource {
    config: KafkaSourceConfig,
    start: Vec<Offset>,
    /// By partition, the offset at which reading stops; empty for an unbounded run.
    stop: Vec<Offset>,
    /// By partition, the first offset of the log at opening.
    lows: Vec<i64>,
    /// The timestamps that [`Source::expect_before`] sets.
    before: Mutex<Vec<Option<i64>>>,
    ends: PartitionEnds,
    committer: Committer,
    _ends_poller: EndsPoller,
}

impl KafkaSource {
    /// Checks the topic, and determines the start offset of each partition and, with `until_end`, its end offset.
    pub fn open(config: KafkaSourceConfig) -> Result<KafkaSource, SourceError> {
        let topic = &config.topic;
        let topics = connect(&config)?;
        let partitions = check_topic(&topics, topic)?;
        let group = query_consumer(&config, partitions)?;
        // With `read_committed`, the end offset is the last stable offset.
        let ends = (0..partitions)
            .map(|partition| {
                retry_transient(|| group.fetch_watermarks(topic, kafka_partition(partition), REQUEST_TIMEOUT))
            })
            .collect::<KafkaResult<Vec<_>>>()
            .map_err(|error| unavailable(format!("read the ends of topic {topic}"), error))?;
        let start = match &config.starts {
            Some(starts) => check_recorded_starts(&config, starts, &ends)?,
            None => resolve_starts(&config, &group, &ends)?,
        };
        let stop =
            if config.until_end { ends.iter().map(|&(_, end)| Offset(end)).collect() } else { Vec::new() };
        let group = Arc::new(group);
        let committer = Committer::start(Arc::clone(&group))?;
        let lows = ends.iter().map(|&(low, _)| low).collect();
        let known = PartitionEnds::new(ends[..start.len()].iter().map(|&(_, end)| end));
        for (partition, &(low, end)) in (0..).zip(&ends).skip(start.len()) {
            tracing::info!(
                topic,
                partition,
                offset = low,
                "partition added: reading it from its first record"
            );
            known.add(Partition(partition), Offset(low), end);
        }
        let poller = EndsPoller::start(group, topics, config.until_end, topic.clone(), known.clone())?;
        let before = Mutex::default();
        Ok(KafkaSource { config, start, stop, lows, before, ends: known, committer, _ends_poller: poller })
    }
}

/// Checks that a topic can be read, with the same requests as opening it. Returns its number of partitions.
///
/// # Errors
/// If the topic is missing, or a request fails or is not permitted.
pub fn probe(config: &KafkaSourceConfig) -> Result<u32, SourceError> {
    let partitions = check_topic(&connect(config)?, &config.topic)?;
    let group = query_consumer(config, partitions)?;
    for partition in 0..partitions {
        let watermarks =
            || group.fetch_watermarks(&config.topic, kafka_partition(partition), REQUEST_TIMEOUT);
        retry_transient(watermarks)
            .map_err(|error| unavailable(format!("read the ends of topic {}", config.topic), error))?;
    }
    committed(&group, &config.topic, partitions)?;
    Ok(partitions)
}

impl Source for KafkaSource {
    fn start(&self) -> &[Offset] {
        &self.start
    }

    fn reader(&self, owned: &[(Partition, Offset)]) -> Result<Box<dyn Reader>, SourceError> {
        let config = consumer_config(&self.config, self.start.len() as u32)?;
        let mut reader = KafkaReader::new(&config, &self.config.topic, &self.stop, &self.ends)?
            .with_producer_header(&self.config.producer_header);
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        for &(partition, from) in owned {
            let at = partition.0 as usize;
            let before = before.get(at).copied().flatten();
            let is_retained = self.lows.get(at).is_some_and(|&low| from.0 > low);
            reader.assign(partition, from, before.filter(|_| is_retained))?;
        }
        Ok(Box::new(reader))
    }

    fn added(&self) -> Vec<(Partition, Offset)> {
        self.ends.added()
    }

    fn expect_before(&self, timestamps_ms: &[Option<i64>]) {
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) = timestamps_ms.to_vec();
    }

    fn ends(&self) -> Option<(&str, Vec<Offset>)> {
        let ends = (0..self.start.len() as u32).map(|partition| Offset(self.ends.of(Partition(partition))));
        Some((&self.config.topic, ends.collect()))
    }

    fn commit(&self, offsets: &[(Partition, Offset)]) -> Result<(), SourceError> {
        let failed = |error| unavailable(format!("commit the offsets of group {}", self.config.group), error);
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for &(Partition(partition), Offset(offset)) in offsets {
            list.add_partition_offset(
                &self.config.topic,
                kafka_partition(partition),
                KafkaOffset::Offset(offset),
            )
            .map_err(failed)?;
        }
        self.committer.commit(list)
    }
}

/// Returns the recorded start offsets, if the topic still has all records from there on.
fn check_recorded_starts(
    config: &KafkaSourceConfig,
    starts: &[Offset],
    ends: &[(i64, i64)],
) -> Result<Vec<Offset>, SourceError> {
    let topic = &config.topic;
    if starts.len() > ends.len() {
        return Err(SourceError::Refused(format!(
            "topic {topic} has {} partitions, but {} were read before: the topic was deleted and recreated; use another \
             `pipeline` name, with its own tables, to read the new topic from its start",
            ends.len(),
            starts.len()
        )));
    }
    let found = starts.iter().zip(ends).enumerate();
    found.map(|(partition, (&start, &ends))| first_read(config, partition as u32, start, ends)).collect()
}

/// Returns the first offset to read of a partition that starts at `start`: after the lost records, if they are
/// accepted.
fn first_read(
    KafkaSourceConfig { topic, accepted, .. }: &KafkaSourceConfig,
    partition: u32,
    start: Offset,
    (low, end): (i64, i64),
) -> Result<Offset, SourceError> {
    if let Some(first) = go_on_at(accepted, topic, Partition(partition), start, (Offset(low), Offset(end))) {
        if first > start {
            let offsets = first.0 - start.0;
            tracing::warn!(
                topic,
                partition,
                first = start.0,
                next = first.0,
                offsets,
                "reading starts after lost records"
            );
        }
        return Ok(first);
    }
    let start = start.0;
    Err(SourceError::Refused(if start > end {
        format!(
            "{topic} partition {partition} must be read from offset {start}, but the topic has {low} to {end}: its log was \
             truncated by {} offsets, or the topic was recreated; its records do not continue those that were read; use \
             another `pipeline` name, with its own tables, to read the topic without what came before",
            start - end
        )
    } else {
        format!(
            "{topic} partition {partition} must be read from offset {start}, but the topic has {low} to {end}: the {} offsets \
             before {low} are gone; `--accept-loss {topic}:{partition}` resumes at offset {low}: committed results stay, \
             and windows and patterns continue without the lost records",
            low - start
        )
    }))
}

/// Returns the start offset of each partition, from the group's offsets and `start_from`.
fn resolve_starts(
    config: &KafkaSourceConfig,
    group: &BaseConsumer<Quiet>,
    ends: &[(i64, i64)],
) -> Result<Vec<Offset>, SourceError> {
    let topic = &config.topic;
    let committed = committed(group, topic, ends.len() as u32)?;
    let from = start_from(group, config, ends)?;
    let start = |(partition, &ends): (usize, &(i64, i64))| match committed[partition] {
        Some(group_offset) if config.ignore_group => {
            let offset = from[partition];
            tracing::info!(
                topic, partition, offset, start_from = %config.start_from, group = config.group, group_offset,
                "the ledger has no offsets yet: starting at start_from, not at the group's offset"
            );
            first_read(config, partition as u32, Offset(offset), ends)
        }
        Some(offset) => {
            tracing::info!(topic, partition, offset, group = config.group, "starting at the group's offset");
            first_read(config, partition as u32, Offset(offset), ends)
        }
        None => {
            let offset = from[partition];
            tracing::info!(topic, partition, offset, start_from = %config.start_from, "no recorded offset: starting at start_from");
            first_read(config, partition as u32, Offset(offset), ends)
        }
    };
    ends.iter().enumerate().map(start).collect()
}

fn connect(KafkaSourceConfig { brokers, options, .. }: &KafkaSourceConfig) -> Result<Topics, SourceError> {
    Topics::connect(brokers, options).map_err(open_error)
}

fn open_error(error: TopicError) -> SourceError {
    unavailable("open the topic", error)
}

/// Returns the number of partitions of the topic; refuses a topic that is missing or compacted.
fn check_topic(topics: &Topics, topic: &str) -> Result<u32, SourceError> {
    match topics.describe(topic).map_err(open_error)? {
        None => Err(SourceError::Refused(format!(
            "topic {topic} does not exist; `headwater topics create` creates missing topics"
        ))),
        Some(facts) if facts.compacted => Err(SourceError::Refused(compacted_error(topic))),
        Some(facts) => Ok(facts.partitions),
    }
}

/// Returns the error for a compacted topic.
fn compacted_error(topic: &str) -> String {
    format!(
        "topic {topic} is compacted: records vanish from it, so epochs cannot be replayed; \
         set cleanup.policy=delete or choose another topic (records that compaction has removed are not read)"
    )
}

/// Returns the client configuration of every consumer of the topic.
fn consumer_config(config: &KafkaSourceConfig, partitions: u32) -> Result<ClientConfig, SourceError> {
    // A partition's queue is refilled below its bound, and may then exceed it by one fetch: each gets half.
    let share = (config.bytes_in_flight / (partitions.max(1) as usize)).max(MIN_BYTES) / 2;
    let queued = (share >> 10).to_string();
    let fetched = share.min(1 << 20).to_string();
    // The client counts the bytes of values only, but what it keeps for each record takes as much as a small one.
    let records = (share / CLIENT_OVERHEAD).to_string();
    let defaults = [
        // With the default, a partition whose queue was full is not fetched for a second.
        ("fetch.queue.backoff.ms", "10"),
        ("queued.min.messages", &*records),
        ("queued.max.messages.kbytes", &*queued),
        ("fetch.message.max.bytes", &*fetched),
    ];
    let owned = [
        ("group.id", &*config.group),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("auto.offset.reset", "error"),
        ("isolation.level", "read_committed"),
        ("enable.partition.eof", "false"),
        ("fetch.wait.max.ms", stats::FETCH_WAIT_MS),
    ];
    client_config(&config.brokers, &config.options, &defaults, &owned)
        .map_err(|error| unavailable("set up a consumer", error))
}

/// Creates a consumer without assigned partitions, which sends requests and commits offsets.
fn query_consumer(config: &KafkaSourceConfig, partitions: u32) -> Result<BaseConsumer<Quiet>, SourceError> {
    let client = consumer_config(config, partitions)?;
    client
        .create_with_context(Quiet)
        .map_err(|error| unavailable("set up a consumer", creation_error(&client, error)))
}

/// Returns the group's offset by partition, if it has one.
fn committed(
    group: &BaseConsumer<Quiet>,
    topic: &str,
    partitions: u32,
) -> Result<Vec<Option<i64>>, SourceError> {
    let failed = |error| unavailable("read the group's offsets", error);
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition(topic, kafka_partition(partition));
    }
    let offsets = || check_elements(group.committed_offsets(list.clone(), REQUEST_TIMEOUT)?);
    let answer = retry_transient(offsets).map_err(failed)?;
    let offset = |partition| match answer.find_partition(topic, kafka_partition(partition))?.offset() {
        KafkaOffset::Offset(offset) => Some(offset),
        _ => None,
    };
    Ok((0..partitions).map(offset).collect())
}

/// Returns the offset of `start_from` by partition.
fn start_from(
    group: &BaseConsumer<Quiet>,
    config: &KafkaSourceConfig,
    ends: &[(i64, i64)],
) -> Result<Vec<i64>, SourceError> {
    let time = match config.start_from {
        StartFrom::Earliest => return Ok(ends.iter().map(|&(low, _)| low).collect()),
        StartFrom::Latest => return Ok(ends.iter().map(|&(_, end)| end).collect()),
        StartFrom::Time(time) => time,
    };
    let topic = &config.topic;
    let failed = |error| unavailable(format!("find the time {time} in topic {topic}"), error);
    let mut list = TopicPartitionList::new();
    for partition in 0..ends.len() as u32 {
        list.add_partition_offset(topic, kafka_partition(partition), KafkaOffset::Offset(time))
            .map_err(failed)?;
    }
    let offsets = || check_elements(group.offsets_for_times(list.clone(), REQUEST_TIMEOUT)?);
    let answer = retry_transient(offsets).map_err(failed)?;
    let found = |(partition, &(_, end)): (usize, &(i64, i64))| {
        match answer.find_partition(topic, kafka_partition(partition as u32)).map(|element| element.offset())
        {
            Some(KafkaOffset::Offset(offset)) => offset.min(end),
            // No record has this timestamp or a later one.
            _ => end,
        }
    };
    Ok(ends.iter().enumerate().map(found).collect())
}

/// Sends a request, and retries it after transient errors: a newly elected group coordinator or partition leader may
/// respond that it is not ready yet.
fn retry_transient<T>(mut request: impl FnMut() -> KafkaResult<T>) -> KafkaResult<T> {
    use RDKafkaErrorCode as Code;
    let begun = Instant::now();
    loop {
        match request() {
            Err(error)
                if begun.elapsed() < RETRY_TIMEOUT
                    && matches!(
                        error.rdkafka_error_code(),
                        Some(
                            Code::NotCoordinator
                                | Code::CoordinatorNotAvailable
                                | Code::CoordinatorLoadInProgress
                                | Code::NotLeaderForPartition
                                | Code::LeaderNotAvailable
                                | Code::OffsetNotAvailable
                                | Code::BrokerTransportFailure
                        )
                    ) =>
            {
                tracing::debug!(%error, "transient error of the cluster: retrying");
                std::thread::sleep(RETRY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Returns the list, unless one of its partitions has an error.
fn check_elements(list: TopicPartitionList) -> KafkaResult<TopicPartitionList> {
    list.elements().iter().try_for_each(|element| element.error())?;
    Ok(list)
}

/// Converts a partition number to Kafka's type.
fn kafka_partition(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

fn unavailable(
    action: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> SourceError {
    SourceError::Unavailable { action: action.into(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use rdkafka::error::KafkaError;

    use super::*;

    #[test]
    fn transient_errors_are_retried_and_others_returned() {
        let mut answers = [
            Err(KafkaError::MetadataFetch(RDKafkaErrorCode::NotCoordinator)),
            Err(KafkaError::OffsetFetch(RDKafkaErrorCode::CoordinatorLoadInProgress)),
            Ok(7),
        ]
        .into_iter();
        assert_eq!(retry_transient(|| answers.next().expect("three requests")), Ok(7));
        let refused = KafkaError::MetadataFetch(RDKafkaErrorCode::GroupAuthorizationFailed);
        let mut requests = 0;
        let answer: KafkaResult<()> = retry_transient(|| {
            requests += 1;
            Err(refused.clone())
        });
        assert_eq!((answer, requests), (Err(refused), 1));
    }
}
