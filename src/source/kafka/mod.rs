//! A Kafka topic as a source: partitions assigned, never subscribed to, read committed.
//!
//! ```text
//!   group's offsets, or start_from ──▶ start ─┐
//!   log end (until_end)            ──▶ stop  ─┴─▶ one reader per worker ── Raw ──▶ decode
//!   frontier of all sinks          ──▶ commit ──▶ group's offsets
//! ```
//!
//! What decides where a pipeline goes on is its ledger. The group's offsets are written for Kafka's own tools, and
//! read only where the ledger says nothing yet. Nothing is guessed: an offset that the log no longer has, a topic
//! that is missing or compacted, are refused by name.

pub mod dead_letters;
mod ends;
mod group;
mod headers;
pub mod produce;
mod reader;
pub mod retry;
mod stats;

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

use self::ends::{Asking, Ends};
use self::group::Committer;
use self::reader::KafkaReader;
use super::{Reader, Source, SourceError};

/// How long one question to the cluster may take.
const ANSWER: Duration = Duration::from_secs(10);
/// For how long a question is asked again while its answer is that the cluster is in motion.
const MOTION: Duration = Duration::from_secs(30);
/// How long to wait before asking again.
const PAUSE: Duration = Duration::from_millis(100);
/// The smallest memory in which a partition can be read, in bytes.
const LEAST_BYTES: usize = 64 << 10;

/// Where to start where nothing is recorded yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFrom {
    /// At the first record that the topic still has.
    Earliest,
    /// After the last committed record.
    Latest,
    /// At the first record whose Kafka timestamp is this or later, in milliseconds since 1970.
    Time(i64),
}

/// What a Kafka source needs to know.
#[derive(Clone, Debug)]
pub struct KafkaSourceConfig {
    /// The cluster's addresses, `host:port`, separated by commas.
    pub brokers: String,
    /// The topic to read.
    pub topic: String,
    /// The consumer group whose offsets show how far the pipeline has come.
    pub group: String,
    /// Where the partitions start, by number, if that is recorded; it overrides everything else.
    pub starts: Option<Vec<Offset>>,
    /// Where to start a partition of which nothing is recorded and for which the group has no offset.
    pub start_from: StartFrom,
    /// Whether `start_from` decides even if the group has an offset: it is set, and a ledger records nothing yet.
    pub ignore_group: bool,
    /// Records that may be missing.
    pub accepted: Vec<AcceptedLoss>,
    /// Options for librdkafka.
    pub options: Options,
    /// Stop at the end of each partition as it is now: after the last record whose transaction is decided.
    pub until_end: bool,
    /// How many bytes may be fetched and not yet handed out, over all partitions of the topic.
    pub bytes_in_flight: usize,
}

/// A topic, opened for reading.
pub struct KafkaSource {
    config: KafkaSourceConfig,
    start: Vec<Offset>,
    /// By partition, the offset at which it ends; empty if it does not.
    stop: Vec<Offset>,
    /// By partition, the first offset that the log had.
    lows: Vec<i64>,
    /// See [`Source::expect_before`].
    before: Mutex<Vec<Option<i64>>>,
    ends: Ends,
    committer: Committer,
    _asking: Asking,
}

impl KafkaSource {
    /// Checks the topic, decides where each partition starts and, with `until_end`, where it ends.
    pub fn open(config: KafkaSourceConfig) -> Result<KafkaSource, SourceError> {
        let topic = &config.topic;
        let topics = connect(&config)?;
        let partitions = check_topic(&topics, topic)?;
        let group = asking_consumer(&config, partitions)?;
        // A consumer that reads committed records is told the last stable offset as the end.
        let ends = (0..partitions)
            .map(|partition| settled(|| group.fetch_watermarks(topic, kafka(partition), ANSWER)))
            .collect::<KafkaResult<Vec<_>>>()
            .map_err(|error| unavailable(format!("read the ends of topic {topic}"), error))?;
        let start = match &config.starts {
            Some(starts) => recorded(&config, starts, &ends)?,
            None => unrecorded(&config, &group, &ends)?,
        };
        let stop =
            if config.until_end { ends.iter().map(|&(_, end)| Offset(end)).collect() } else { Vec::new() };
        let group = Arc::new(group);
        let committer = Committer::start(Arc::clone(&group))?;
        let lows = ends.iter().map(|&(low, _)| low).collect();
        let known = Ends::known(ends[..start.len()].iter().map(|&(_, end)| end));
        for (partition, &(low, end)) in (0..).zip(&ends).skip(start.len()) {
            tracing::info!(
                topic,
                partition,
                offset = low,
                "partition added since: reading it from its first record"
            );
            known.add(Partition(partition), Offset(low), end);
        }
        let lasting = (!config.until_end).then_some(topics);
        let asking = Asking::start(group, lasting, topic.clone(), known.clone())?;
        let before = Mutex::default();
        Ok(KafkaSource { config, start, stop, lows, before, ends: known, committer, _asking: asking })
    }
}

/// Tries whether a topic can be read, by asking everything that opening it asks; says how many partitions it has.
///
/// # Errors
/// If something is missing or not permitted.
pub fn probe(config: &KafkaSourceConfig) -> Result<u32, SourceError> {
    let partitions = check_topic(&connect(config)?, &config.topic)?;
    let group = asking_consumer(config, partitions)?;
    for partition in 0..partitions {
        settled(|| group.fetch_watermarks(&config.topic, kafka(partition), ANSWER))
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
        let mut reader = KafkaReader::new(&config, &self.config.topic, &self.stop, &self.ends)?;
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        for &(partition, from) in owned {
            let at = partition.0 as usize;
            let before = before.get(at).copied().flatten();
            let is_there = self.lows.get(at).is_some_and(|&low| from.0 > low);
            reader.assign(partition, from, before.filter(|_| is_there))?;
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
            list.add_partition_offset(&self.config.topic, kafka(partition), KafkaOffset::Offset(offset))
                .map_err(failed)?;
        }
        self.committer.commit(list)
    }
}

/// The recorded starts, if the topic still has everything from there on.
fn recorded(
    config: &KafkaSourceConfig,
    starts: &[Offset],
    ends: &[(i64, i64)],
) -> Result<Vec<Offset>, SourceError> {
    let topic = &config.topic;
    if starts.len() > ends.len() {
        return Err(SourceError::Refused(format!(
            "topic {topic} has {} partitions, and {} were read: the topic was deleted and created anew; another `pipeline` \
             name, with tables of its own, reads all that it has",
            ends.len(),
            starts.len()
        )));
    }
    let found = starts.iter().zip(ends).enumerate();
    found.map(|(partition, (&start, &ends))| first_read(config, partition as u32, start, ends)).collect()
}

/// Where reading a partition begins that is to begin at `start`.
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
                "reading begins after lost records"
            );
        }
        return Ok(first);
    }
    let start = start.0;
    Err(SourceError::Refused(if start > end {
        format!(
            "{topic} partition {partition} must be read from offset {start}, and the topic has {low} to {end}: its log was \
             cut by {} offsets, or the topic was created anew; what it has now is no continuation: another `pipeline` \
             name, with tables of its own, begins with it and knows nothing of what came before",
            start - end
        )
    } else {
        format!(
            "{topic} partition {partition} must be read from offset {start}, and the topic has {low} to {end}: the {} offsets \
             before {low} are gone; `--accept-loss {topic}:{partition}` goes on at offset {low}, where results that were \
             committed stay, and windows and patterns go on without what is lost",
            low - start
        )
    }))
}

/// Where each partition starts by the group's offsets and `start_from`.
fn unrecorded(
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
                topic, partition, offset, start_from = ?config.start_from, group = config.group, group_offset,
                "the ledger has recorded nothing: starts at start_from, not at the group's offset"
            );
            first_read(config, partition as u32, Offset(offset), ends)
        }
        Some(offset) => {
            tracing::info!(topic, partition, offset, group = config.group, "starts at the group's offset");
            first_read(config, partition as u32, Offset(offset), ends)
        }
        None => {
            let offset = from[partition];
            tracing::info!(topic, partition, offset, start_from = ?config.start_from, "starts afresh");
            first_read(config, partition as u32, Offset(offset), ends)
        }
    };
    ends.iter().enumerate().map(start).collect()
}

fn connect(KafkaSourceConfig { brokers, options, .. }: &KafkaSourceConfig) -> Result<Topics, SourceError> {
    Topics::connect(brokers, options).map_err(unopened)
}

fn unopened(error: TopicError) -> SourceError {
    unavailable("open its topic", error)
}

/// How many partitions the topic has; refuses one that cannot be read exactly.
fn check_topic(topics: &Topics, topic: &str) -> Result<u32, SourceError> {
    match topics.describe(topic).map_err(unopened)? {
        None => Err(SourceError::Refused(format!(
            "there is no topic {topic}; `headwater topics create` creates what is missing"
        ))),
        Some(facts) if facts.compacted => Err(SourceError::Refused(compacted(topic))),
        Some(facts) => Ok(facts.partitions),
    }
}

/// Why a compacted topic is refused.
fn compacted(topic: &str) -> String {
    format!(
        "topic {topic} is compacted: records vanish from it, so nothing could be read twice; \
         set cleanup.policy=delete or choose another topic (what compaction has removed is not read)"
    )
}

/// The configuration of every consumer of the topic.
fn consumer_config(config: &KafkaSourceConfig, partitions: u32) -> Result<ClientConfig, SourceError> {
    // A partition's queue is refilled when it is below its bound, by at most one fetch more: half each.
    let share = (config.bytes_in_flight / (partitions.max(1) as usize)).max(LEAST_BYTES) / 2;
    let queued = (share >> 10).to_string();
    let fetched = share.min(1 << 20).to_string();
    let defaults = [
        // With its default of a second, a partition whose queue was full is not fetched for that long.
        ("fetch.queue.backoff.ms", "10"),
        ("queued.min.messages", "1000000"),
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

/// A consumer that is never assigned a partition: it asks, and commits.
fn asking_consumer(config: &KafkaSourceConfig, partitions: u32) -> Result<BaseConsumer<Quiet>, SourceError> {
    let client = consumer_config(config, partitions)?;
    client
        .create_with_context(Quiet)
        .map_err(|error| unavailable("set up a consumer", creation_error(&client, error)))
}

/// By partition, the group's offset, if it has one.
fn committed(
    group: &BaseConsumer<Quiet>,
    topic: &str,
    partitions: u32,
) -> Result<Vec<Option<i64>>, SourceError> {
    let failed = |error| unavailable("read the group's offsets", error);
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition(topic, kafka(partition));
    }
    let answer = settled(|| sound(group.committed_offsets(list.clone(), ANSWER)?)).map_err(failed)?;
    let offset = |partition| match answer.find_partition(topic, kafka(partition))?.offset() {
        KafkaOffset::Offset(offset) => Some(offset),
        _ => None,
    };
    Ok((0..partitions).map(offset).collect())
}

/// By partition, the offset that `start_from` means.
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
        list.add_partition_offset(topic, kafka(partition), KafkaOffset::Offset(time)).map_err(failed)?;
    }
    let answer = settled(|| sound(group.offsets_for_times(list.clone(), ANSWER)?)).map_err(failed)?;
    let found = |(partition, &(_, end)): (usize, &(i64, i64))| {
        match answer.find_partition(topic, kafka(partition as u32)).map(|element| element.offset()) {
            Some(KafkaOffset::Offset(offset)) => offset.min(end),
            // Nothing is as late as that.
            _ => end,
        }
    };
    Ok(ends.iter().enumerate().map(found).collect())
}

/// Asks until the answer is not that the cluster is in motion: a group's coordinator that was just found may answer
/// that it is not the coordinator yet, and a partition's leader likewise.
fn settled<T>(mut ask: impl FnMut() -> KafkaResult<T>) -> KafkaResult<T> {
    use RDKafkaErrorCode as Code;
    let begun = Instant::now();
    loop {
        match ask() {
            Err(error)
                if begun.elapsed() < MOTION
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
                tracing::debug!(%error, "the cluster is in motion: asking again");
                std::thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// The list, unless one of its partitions has an error.
fn sound(list: TopicPartitionList) -> KafkaResult<TopicPartitionList> {
    list.elements().iter().try_for_each(|element| element.error())?;
    Ok(list)
}

/// A partition as Kafka numbers it.
fn kafka(partition: u32) -> i32 {
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
    fn a_cluster_in_motion_is_asked_again_and_other_errors_are_answers() {
        let mut answers = [
            Err(KafkaError::MetadataFetch(RDKafkaErrorCode::NotCoordinator)),
            Err(KafkaError::OffsetFetch(RDKafkaErrorCode::CoordinatorLoadInProgress)),
            Ok(7),
        ]
        .into_iter();
        assert_eq!(settled(|| answers.next().expect("asked three times")), Ok(7));
        let refused = KafkaError::MetadataFetch(RDKafkaErrorCode::GroupAuthorizationFailed);
        let mut asked = 0;
        let answer: KafkaResult<()> = settled(|| {
            asked += 1;
            Err(refused.clone())
        });
        assert_eq!((answer, asked), (Err(refused), 1));
    }
}
