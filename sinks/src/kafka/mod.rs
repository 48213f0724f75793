//! The Kafka sink. Its outputs are records of topics, which readers of committed records see exactly once.
//!
//! ```text
//!                      ┌───────────── one transaction ─────────────┐
//!   stage(epoch)* ──▶  │ outputs of epochs ≤ E ──▶ their topics     │
//!   commit(E)     ──▶  │ Progress{through: E}  ──▶ progress topic   │ ──▶ read_committed
//!                      └───────────────────────────────────────────┘
//! ```
//!
//! Two transactional ids are used in turn, so that a round does not wait until the broker has written the markers of
//! the previous round. Invariants:
//!
//! - A process that opens the sink takes over its ids and commits a *sentinel* through **each** of them. Then it reads
//!   the progress topic up to the last sentinel. A zombie can take the ids back, but it must commit its own sentinel
//!   first. It then reads the sentinels of its successor, and ends.
//! - A producer that had an error or a slow commit is replaced, by the same steps.
//! - A commit of unknown outcome is resolved by the same steps: taking over its id ends its transaction, and the
//!   progress topic then shows whether it was committed.
//! - A zombie could still commit through an id that is no longer used. Therefore process 0 takes over the ids of all
//!   processes that ever existed.

pub mod client;
pub mod contact;
mod log;
pub mod options;
pub mod probe;
mod progress;
pub mod topics;
pub mod writer;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use rdkafka::ClientConfig;

use self::client::{Options, drop_aside};
use self::log::{LogError, ProgressLog, ReadResult};
use self::progress::{Body, Record};
use self::topics::{TopicError, TopicFacts, TopicSpec, Topics};
use self::writer::{Outgoing, Trouble, Writer, producer_config};
use crate::crash;
use crate::{
    Changes, CommitError, CommitPermit, Message, MessageNames, OpenError, Progress, Sink, StageError,
    WriterContext,
};

/// The number of transactional ids that a writer uses in turn.
const SLOTS: usize = 2;
/// The timeout of resolving a commit of unknown outcome. It is long enough for a broker to restart.
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause between attempts to resolve a commit.
const OUTCOME_RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// The maximum length of the name of a sink or pipeline. Both are parts of topic names, which Kafka limits to 249
/// bytes.
const MAX_NAME_BYTES: usize = 200;

/// The configuration of a Kafka sink.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    /// The sink's name in configuration, metrics and progress.
    pub name: String,
    /// The cluster's addresses, `host:port`, separated by commas.
    pub brokers: String,
    /// The output topics, to which messages refer by index. They must exist.
    pub topics: Vec<String>,
    /// Options for librdkafka.
    pub options: Options,
}

/// Returns the transactional ids of the writer of one process.
pub fn transactional_ids(pipeline: &str, sink: &str, process: usize) -> [String; SLOTS] {
    std::array::from_fn(|slot| format!("{pipeline}-{sink}-{process}-{slot}"))
}

/// Returns the name of the progress topic of a pipeline.
pub fn progress_topic(pipeline: &str) -> String {
    format!("headwater-progress-{pipeline}")
}

/// A sink that writes to Kafka topics. See the documentation of the module.
pub struct KafkaSink {
    config: KafkaConfig,
    /// A random number. It distinguishes the sentinels of this process from those of a process that uses a copy of the
    /// ledger and has the same generation.
    nonce: u64,
    /// The number of producers created so far.
    incarnations: u64,
    staged: BTreeMap<Epoch, Vec<Changes>>,
    opened: Option<Opened>,
}

/// The state of an open sink.
struct Opened {
    context: WriterContext,
    producer: ClientConfig,
    log: ProgressLog,
    writers: [Writer; SLOTS],
    /// The index of the writer for the next round.
    next_slot: usize,
    max_message_bytes: usize,
}

impl KafkaSink {
    /// Creates a sink that is not open yet.
    pub fn new(config: KafkaConfig) -> KafkaSink {
        let nonce = RandomState::new().hash_one(std::process::id());
        KafkaSink { config, nonce, incarnations: 0, staged: BTreeMap::new(), opened: None }
    }

    fn refused(&self, reason: impl Into<String>) -> OpenError {
        OpenError::Refused { sink: self.config.name.clone(), reason: reason.into() }
    }

    fn unavailable(
        &self,
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> OpenError {
        OpenError::Unavailable { sink: self.config.name.clone(), what: what.into(), source: source.into() }
    }

    fn topic_error(&self, error: TopicError) -> OpenError {
        match error {
            TopicError::TooFewPartitions { .. } => self.refused(error.to_string()),
            other => self.unavailable("its topics", other),
        }
    }

    fn log_error(&self, error: LogError) -> OpenError {
        match error {
            LogError::Malformed { .. } => self.refused(error.to_string()),
            LogError::Hidden { .. } | LogError::Kafka { .. } => self.unavailable("its progress topic", error),
        }
    }

    /// Checks options and topics, and creates the progress topic if it does not exist. Returns the configuration of
    /// producers, a reader of the progress topic, and the size of the largest message.
    fn prepare(&self, context: &WriterContext) -> Result<(ClientConfig, ProgressLog, usize), OpenError> {
        let KafkaConfig { name, brokers, options, topics, .. } = &self.config;
        for part in [name, &context.pipeline, &context.ledger_id.0] {
            if part.len() > MAX_NAME_BYTES {
                return Err(self.refused(format!("the name {part} is longer than {MAX_NAME_BYTES} bytes")));
            }
        }
        let defaults = [("linger.ms", "0"), ("compression.type", "lz4")];
        let mut producer = producer_config(brokers, options, &defaults)
            .map_err(|error| self.unavailable("its topics", error))?;

        let cluster = Topics::connect(brokers, options).map_err(|error| self.topic_error(error))?;
        let mut missing = Vec::new();
        let mut replication = None;
        let configured = producer.get("message.max.bytes").and_then(|bytes| bytes.parse().ok());
        let mut largest = configured.unwrap_or(usize::MAX);
        for topic in topics {
            match cluster.describe(topic).map_err(|error| self.topic_error(error))? {
                None => missing.push(topic.as_str()),
                Some(facts) => {
                    largest = facts.max_message_bytes.min(largest);
                    replication = replication.max(Some(facts.replication));
                }
            }
        }
        if !missing.is_empty() {
            return Err(self.refused(format!(
                "no such topic: {}; `headwater topics create` creates missing topics",
                missing.join(", ")
            )));
        }
        // The default limit of librdkafka is a little below that of topics. Its default batches may be larger than one
        // message is allowed to be, and brokers reject such a batch as a whole.
        producer.set("message.max.bytes", largest.clamp(1000, 1_000_000_000).to_string());
        if !options.contains_key("batch.size") {
            producer.set("batch.size", largest.clamp(1000, 1_000_000).to_string());
        }
        let progress = progress_topic(&context.pipeline);
        let log = self.progress_log(&cluster, &progress, replication)?;
        drop_aside(cluster);
        Ok((producer, log, largest))
    }

    /// Returns a reader of the progress topic. Creates the topic if it does not exist, with the replication factor of
    /// the output topics or the default of the brokers, whichever is greater.
    fn progress_log(
        &self,
        cluster: &Topics,
        topic: &str,
        outputs: Option<u32>,
    ) -> Result<ProgressLog, OpenError> {
        let mut facts = cluster.describe(topic).map_err(|error| self.topic_error(error))?;
        let wanted = cluster.default_replication().max(outputs);
        if facts.is_none() {
            // Only closed segments are compacted, and every start reads the whole topic. Small segments limit this to a
            // few megabytes.
            let spec = TopicSpec::new(topic, 1)
                .with("cleanup.policy", "compact")
                .with("segment.bytes", "4194304")
                .with("min.cleanable.dirty.ratio", "0.1");
            cluster
                .create(&[TopicSpec { replication: wanted, ..spec }])
                .map_err(|error| self.topic_error(error))?;
            facts = cluster.describe(topic).map_err(|error| self.topic_error(error))?;
        }
        if let Some(facts) = facts {
            warn_if_under_replicated(topic, &facts, wanted);
        }
        match facts {
            Some(facts) if facts.compacted => {
                ProgressLog::new(&self.config.brokers, &self.config.options, topic, facts.partitions)
                    .map_err(|error| self.unavailable("its progress topic", error))
            }
            Some(_) => Err(self.refused(format!(
                "the progress topic {topic} is not compacted, so progress in it would expire; \
                 set cleanup.policy=compact"
            ))),
            None => Err(self.refused(format!("the progress topic {topic} was deleted meanwhile"))),
        }
    }

    /// Takes over a transactional id and commits a sentinel through it. Returns the writer and the sentinel.
    fn take_over(
        &mut self,
        context: &WriterContext,
        producer: &ClientConfig,
        log: &ProgressLog,
        id: &str,
    ) -> Result<(Writer, Record), OpenError> {
        let topic = progress_topic(&context.pipeline);
        let writer = Writer::open(producer, id, Some(&topic))
            .map_err(|error| self.unavailable(format!("transactional id {id}"), error))?;
        let incarnation = self.incarnations;
        self.incarnations += 1;
        let body = Body::Sentinel { nonce: self.nonce, incarnation, id: id.to_owned() };
        let sentinel = record(&self.config.name, context, body);
        let (key, value) = (sentinel.key(), sentinel.encode());
        writer
            .transaction(|writer| {
                log.partitions().try_for_each(|partition| {
                    let partition = Some(partition);
                    let (key, value) = (Some(&*key), Some(&*value));
                    writer.send(&Outgoing { number: 0, topic: &topic, partition, key, value, headers: &[] })
                })
            })
            .map_err(|trouble| match trouble {
                Trouble::Fenced(reason) => OpenError::Fenced {
                    sink: self.config.name.clone(),
                    reason: format!("another process took over transactional id {id}: {reason}"),
                },
                other => self.unavailable(format!("transactional id {id}"), other.to_string()),
            })?;
        Ok((writer, sentinel))
    }

    /// Reads the progress topic up to `sentinel`. Returns the records of this sink in two lists. Records in the second
    /// list prove that this start must not write to the sink; unless `adopt` is true, they are an error.
    fn read(
        &self,
        context: &WriterContext,
        log: &mut ProgressLog,
        sentinel: &Record,
        adopt: bool,
    ) -> Result<(Vec<Record>, Vec<Record>), OpenError> {
        let ReadResult { records, next } = log.read_until(sentinel).map_err(|error| self.log_error(error))?;
        let of_this_sink = records.into_iter().filter(|record| record.sink == self.config.name);
        let (mine, foreign): (Vec<_>, Vec<_>) =
            of_this_sink.partition(|record| self.objection(context, record).is_none());
        match foreign.first().and_then(|record| self.objection(context, record)) {
            Some(objection) if !adopt => Err(self.refused(objection)),
            _ => {
                log.accept(next);
                Ok((mine, foreign))
            }
        }
    }

    /// Returns the reason why this start must not write, if the record proves that; otherwise `None`.
    fn objection(&self, context: &WriterContext, record: &Record) -> Option<String> {
        let objection = context.objection(&self.config.name, &record.ledger_id, record.generation);
        if objection.is_some() {
            return objection;
        }
        match record.body {
            Body::Sentinel { nonce, .. }
                if record.generation == context.generation
                    && record.process as usize == context.process
                    && nonce != self.nonce =>
            {
                Some(format!(
                    "another process also started as generation {}: two copies of one ledger are in use: stop the \
                     other process, which wrote last; if its ledger is the original, restore that ledger here, or \
                     use `--adopt-sink {} --accept-duplicates` to mark the sink as caught up with this one",
                    context.generation, self.config.name
                ))
            }
            _ => None,
        }
    }

    /// Replaces all progress, in every partition, by `adopted`.
    fn adopt<'a>(
        &self,
        context: &WriterContext,
        log: &ProgressLog,
        writer: &Writer,
        replaced: impl Iterator<Item = &'a Record> + Clone,
        adopted: &Record,
    ) -> Result<(), OpenError> {
        tracing::warn!(sink = self.config.name, "adopting the sink: replacing all its progress");
        let topic = progress_topic(&context.pipeline);
        let outcome = writer.transaction(|writer| {
            replaced.clone().try_for_each(|record| {
                let key = record.key();
                log.partitions().try_for_each(|partition| {
                    let (partition, key) = (Some(partition), Some(&*key));
                    writer.send(&Outgoing {
                        number: 0,
                        topic: &topic,
                        partition,
                        key,
                        value: None,
                        headers: &[],
                    })
                })
            })?;
            let (key, value) = (adopted.key(), adopted.encode());
            let (key, value) = (Some(&*key), Some(&*value));
            writer.send(&Outgoing { number: 0, topic: &topic, partition: None, key, value, headers: &[] })
        });
        outcome.map_err(|trouble| self.unavailable("its progress topic", trouble.to_string()))
    }

    /// Returns the index of the writer for the next round. Replaces the writer first if it is not usable.
    fn usable_writer(&mut self, opened: &mut Opened) -> Result<usize, Trouble> {
        let slot = opened.next_slot;
        opened.next_slot = (slot + 1) % SLOTS;
        if !opened.writers[slot].is_usable() {
            self.replace(opened, slot)?;
        }
        Ok(slot)
    }

    /// Replaces a writer. Returns the records of this sink since the last read.
    fn replace(&mut self, opened: &mut Opened, slot: usize) -> Result<Vec<Record>, Trouble> {
        // The limits of the topics may have changed since the sink was opened.
        let (producer, _, max_message_bytes) =
            self.prepare(&opened.context).map_err(|error| Trouble::Failed(error.to_string()))?;
        (opened.producer, opened.max_message_bytes) = (producer, max_message_bytes);
        let Opened { context, producer, log, .. } = opened;
        let id = &transactional_ids(&context.pipeline, &self.config.name, context.process)[slot];
        tracing::info!(sink = self.config.name, id, "replacing a producer");
        let refused_is_fenced = |error| match error {
            OpenError::Refused { reason, .. } | OpenError::Fenced { reason, .. } => Trouble::Fenced(reason),
            OpenError::Unavailable { what, source, .. } => Trouble::Failed(format!("{what}: {source}")),
        };
        let (writer, sentinel) = self.take_over(context, producer, log, id).map_err(refused_is_fenced)?;
        let (mine, _) = self.read(context, log, &sentinel, false).map_err(refused_is_fenced)?;
        opened.writers[slot] = writer;
        Ok(mine)
    }

    /// Resolves the commit of the last round, whose outcome is unknown.
    fn resolve(&mut self, opened: &mut Opened, through: Epoch, reason: String) -> Result<(), Trouble> {
        let slot = (opened.next_slot + SLOTS - 1) % SLOTS;
        tracing::warn!(sink = self.config.name, %through, reason, "the outcome of a commit is unknown; resolving it");
        let deadline = Instant::now() + OUTCOME_TIMEOUT;
        loop {
            // If a later start has already written, this one must not fence its producers.
            let seen = opened.log.read_to_end().unwrap_or_default();
            let mut seen = seen.iter().filter(|record| record.sink == self.config.name);
            if let Some(objection) = seen.find_map(|record| self.objection(&opened.context, record)) {
                return Err(Trouble::Fenced(objection));
            }
            match self.replace(opened, slot) {
                Ok(records) => {
                    let WriterContext { generation, process, .. } = opened.context;
                    let is_committed = records.iter().any(|record| {
                        record.generation == generation
                            && record.process as usize == process
                            && record.progress().is_some_and(|progress| progress.through >= through)
                    });
                    tracing::info!(sink = self.config.name, %through, is_committed, "outcome of a commit resolved");
                    return if is_committed { Ok(()) } else { Err(Trouble::Failed(reason)) };
                }
                Err(Trouble::Failed(_)) if Instant::now() < deadline => {
                    std::thread::sleep(OUTCOME_RETRY_INTERVAL)
                }
                Err(Trouble::Failed(_)) => return Err(Trouble::Indeterminate(reason)),
                Err(other) => return Err(other),
            }
        }
    }

    /// Writes and commits a round.
    fn round(&mut self, opened: &mut Opened, through: Epoch) -> Result<(), Trouble> {
        let slot = self.usable_writer(opened)?;
        let Opened { context, writers, .. } = &*opened;
        let body = Body::Progress { shards: context.shards, through };
        let progress = record(&self.config.name, context, body);
        let (key, value) = (progress.key(), progress.encode());
        let outcome = writers[slot].transaction(|writer| {
            for (number, (_, message)) in (1..).zip(self.staged(through)) {
                writer.send(&Outgoing {
                    number,
                    topic: &self.config.topics[message.topic],
                    partition: None,
                    key: message.key,
                    value: message.value,
                    headers: &message.headers,
                })?;
            }
            let topic = &progress_topic(&context.pipeline);
            let (key, value) = (Some(&*key), Some(&*value));
            writer.send(&Outgoing { number: 0, topic, partition: None, key, value, headers: &[] })?;
            crash::point("kafka.produced");
            Ok(())
        });
        outcome.map_err(|trouble| match trouble {
            Trouble::Refused(number, reason) => {
                Trouble::Refused(number, reason + &self.skip_hint(number, through))
            }
            other => other,
        })
    }

    /// Returns the messages staged through an epoch, in the order in which they are sent.
    fn staged(&self, through: Epoch) -> impl Iterator<Item = (Epoch, Message<'_>)> {
        self.staged.range(..=through).flat_map(|(epoch, changes)| {
            changes.iter().flat_map(|changes| changes.messages.iter()).map(|message| (*epoch, message))
        })
    }

    /// Returns the hint for skipping the message with this number, counted from 1, of a round.
    fn skip_hint(&self, number: usize, through: Epoch) -> String {
        let Some((epoch, refused)) = self.staged(through).nth(number.wrapping_sub(1)) else {
            return String::new();
        };
        let (mut names, mut name) = (MessageNames::default(), String::new());
        for (_, message) in self.staged(through).take(number).filter(|(of, _)| *of == epoch) {
            name = names.next(&message, &self.config.topics);
        }
        let bytes = refused.value.map_or(0, <[u8]>::len);
        format!(" ({bytes} bytes); `--skip {}:{epoch}:{name}` leaves it out", self.config.name)
    }
}

/// Logs a warning if the progress topic has fewer replicas than the output topics: losing progress is as bad as losing
/// outputs.
fn warn_if_under_replicated(topic: &str, facts: &TopicFacts, wanted: Option<u32>) {
    let TopicFacts { replication, min_insync_replicas, .. } = facts;
    if wanted > Some(*replication) {
        tracing::warn!(
            topic,
            replication,
            wanted,
            "the progress topic has fewer replicas than the output topics or the brokers' \
             default.replication.factor: add replicas with kafka-reassign-partitions.sh"
        );
    }
    if min_insync_replicas > replication {
        tracing::warn!(
            topic,
            replication,
            min_insync_replicas,
            "the progress topic has fewer replicas than min.insync.replicas requires: the brokers will reject all \
             writes to it"
        );
    }
}

fn record(sink: &str, context: &WriterContext, body: Body) -> Record {
    Record {
        sink: sink.to_owned(),
        process: u32::try_from(context.process).unwrap_or(u32::MAX),
        ledger_id: context.ledger_id.clone(),
        generation: context.generation,
        body,
    }
}

impl Sink for KafkaSink {
    fn name(&self) -> &str {
        &self.config.name
    }

    /// Returns the newest progress of each writer of each generation, without progress that later generations have
    /// reached or passed.
    fn open(&mut self, context: &WriterContext) -> Result<Vec<Progress>, OpenError> {
        let (producer, mut log, max_message_bytes) = self.prepare(context)?;
        // The other processes open the sink after this has returned.
        for other in (1..context.max_processes).filter(|_| context.process == 0) {
            for id in transactional_ids(&context.pipeline, &self.config.name, other) {
                self.take_over(context, &producer, &log, &id)?;
            }
        }
        let ids = transactional_ids(&context.pipeline, &self.config.name, context.process);
        let (first, _) = self.take_over(context, &producer, &log, &ids[0])?;
        let (second, last) = self.take_over(context, &producer, &log, &ids[1])?;
        let (mut mine, foreign) = self.read(context, &mut log, &last, context.adopt.is_some())?;
        if let Some(through) = context.adopt {
            let adopted =
                record(&self.config.name, context, Body::Progress { shards: context.shards, through });
            // The sentinels of this start are not removed: a process that uses a copy of the ledger must find them.
            mine.retain(|record| record.generation < context.generation);
            self.adopt(context, &log, &first, mine.iter().chain(&foreign), &adopted)?;
            mine = vec![adopted];
        }
        let writers = [first, second];
        self.staged.clear();
        let context = context.clone();
        self.opened = Some(Opened { context, producer, log, writers, next_slot: 0, max_message_bytes });
        Ok(progress::newest(&mine))
    }

    /// Reads up to the last stable offset. Progress after an open transaction of another producer is not included.
    fn peek_progress(&mut self, pipeline: &str) -> Result<Vec<Progress>, OpenError> {
        let KafkaConfig { name, brokers, options, .. } = &self.config;
        let topic = progress_topic(pipeline);
        let cluster = Topics::connect(brokers, options).map_err(|error| self.topic_error(error))?;
        let partitions = cluster.partitions(&topic).map_err(|error| self.topic_error(error))?;
        let Some(partitions) = partitions else { return Ok(Vec::new()) };
        let log = ProgressLog::new(brokers, options, &topic, partitions)
            .map_err(|error| self.unavailable("its progress topic", error))?;
        let mut records = log.read_to_end().map_err(|error| self.log_error(error))?;
        records.retain(|record| record.sink == *name);
        Ok(progress::newest(&records))
    }

    fn topics(&self) -> &[String] {
        &self.config.topics
    }

    /// Returns the size of the largest message that every output topic accepts.
    fn largest_message(&self) -> Option<usize> {
        self.opened.as_ref().map(|opened| opened.max_message_bytes)
    }

    fn stage(&mut self, epoch: Epoch, changes: Changes) -> Result<(), StageError> {
        let refused = |reason| StageError { sink: self.config.name.clone(), epoch, reason };
        if !changes.rows.is_empty() {
            return Err(refused("a Kafka sink accepts messages, not rows".to_owned()));
        }
        let topics = self.config.topics.len();
        if let Some(message) = changes.messages.iter().find(|message| message.topic >= topics) {
            return Err(refused(format!(
                "there is no topic with index {}: the sink has {topics} topics",
                message.topic
            )));
        }
        self.staged.entry(epoch).or_default().push(changes);
        Ok(())
    }

    fn commit(&mut self, permit: CommitPermit) -> Result<(), CommitError> {
        let through = permit.through();
        let sink = self.config.name.clone();
        let Some(mut opened) = self.opened.take() else {
            return Err(CommitError::Failed { sink, through, reason: "the sink is not open".to_owned() });
        };
        let outcome = match self.round(&mut opened, through) {
            Err(Trouble::Indeterminate(reason)) => self.resolve(&mut opened, through, reason),
            known => known,
        };
        self.opened = Some(opened);
        match outcome {
            Ok(()) => {
                self.staged = self.staged.split_off(&through.next());
                Ok(())
            }
            Err(Trouble::Failed(reason)) => Err(CommitError::Failed { sink, through, reason }),
            Err(Trouble::Refused(_, reason)) => Err(CommitError::Refused { sink, through, reason }),
            Err(Trouble::Indeterminate(reason)) => Err(CommitError::Indeterminate { sink, through, reason }),
            Err(Trouble::Fenced(reason)) => Err(CommitError::Fenced { sink, reason }),
        }
    }
}
