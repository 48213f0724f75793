//! A separate pipeline for each test on the broker, and reading of its topics.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use headwater_dataflows::Epoch;
use headwater_sinks::kafka::client::Options;
use headwater_sinks::kafka::topics::{TopicSpec, Topics};
use headwater_sinks::kafka::{KafkaConfig, KafkaSink};
use headwater_sinks::{
    Changes, CommitError, CommitPermit, Generation, LedgerId, OpenError, Progress, Shards, Sink,
    WriterContext,
};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

pub fn brokers() -> String {
    std::env::var("HEADWATER_TEST_KAFKA")
        .expect("these tests need a Kafka broker: set HEADWATER_TEST_KAFKA to its host:port")
}

pub fn topics() -> Topics {
    Topics::connect(&brokers(), &Options::new()).expect("the options are valid")
}

/// A pipeline with one output topic. Both names contain the name of the test.
pub struct Bench {
    pub pipeline: String,
    pub topic: String,
}

impl Bench {
    pub fn new(test: &str, partitions: u32, config: &[(&str, &str)]) -> Bench {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let pipeline = format!("{test}-{}-{count}", std::process::id());
        let topic = format!("out-{pipeline}");
        let spec = TopicSpec::new(&topic, partitions);
        let spec = config.iter().fold(spec, |spec, (key, value)| spec.with(key, value));
        topics().create(&[spec]).expect("the topic is new");
        Bench { pipeline, topic }
    }

    pub fn context(&self, generation: u64) -> WriterContext {
        WriterContext {
            pipeline: self.pipeline.clone(),
            ledger_id: LedgerId("a".repeat(32)),
            generation: Generation(generation),
            process: 0,
            shards: Shards::ALL,
            max_processes: 1,
            adopt: None,
        }
    }

    pub fn config(&self) -> KafkaConfig {
        KafkaConfig {
            name: "kafka".to_owned(),
            brokers: brokers(),
            topics: vec![self.topic.clone()],
            options: Options::new(),
        }
    }

    pub fn try_open(&self, generation: u64) -> Result<Vec<Progress>, OpenError> {
        KafkaSink::new(self.config()).open(&self.context(generation))
    }

    pub fn opened(&self, generation: u64) -> KafkaSink {
        let mut sink = KafkaSink::new(self.config());
        sink.open(&self.context(generation)).expect("it opens");
        sink
    }

    pub fn peek_progress(&self) -> Vec<Progress> {
        KafkaSink::new(self.config()).peek_progress(&self.pipeline).expect("readable")
    }

    pub fn committed(&self) -> Vec<Record> {
        read(&self.topic, "read_committed")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// Reads everything in a topic up to its current end, with this isolation level.
pub fn read(topic: &str, isolation: &str) -> Vec<Record> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", "reader")
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let partitions = topics().partitions(topic).expect("the cluster responds").expect("the topic exists");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions as i32 {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("a valid offset");
    }
    consumer.assign(&list).expect("it is assigned");
    let mut ended = 0;
    let mut records = Vec::new();
    while ended < partitions {
        match consumer.poll(Duration::from_secs(20)).expect("every partition ends within 20 s") {
            Ok(message) => records.push(Record {
                partition: message.partition(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                headers: message.headers().map_or_else(Vec::new, |headers| {
                    let owned = |value: Option<&[u8]>| value.unwrap_or_default().to_vec();
                    headers.iter().map(|header| (header.key.to_owned(), owned(header.value))).collect()
                }),
            }),
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => panic!("{error}"),
        }
    }
    records
}

pub fn values(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| String::from_utf8(record.value.clone().unwrap_or_default()).expect("text");
    records.iter().map(text).collect()
}

pub fn messages(pairs: &[(&str, &str)]) -> Changes {
    let mut changes = Changes::default();
    for (key, value) in pairs {
        changes.messages.push(0, Some(key.as_bytes()), &[], |out| out.extend_from_slice(value.as_bytes()));
    }
    changes
}

/// Returns text that cannot be compressed.
pub fn noise(len: usize) -> String {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'!' + (state >> 33) as u8 % 90)
    };
    (0..len).map(|_| next()).collect()
}

pub fn commit(sink: &mut KafkaSink, through: u64) -> Result<(), CommitError> {
    sink.commit(CommitPermit::granted(Epoch(through)))
}

pub fn assert_fenced(outcome: Result<(), CommitError>) -> String {
    let error = outcome.expect_err("it is fenced");
    assert!(matches!(error, CommitError::Fenced { .. }), "{error}");
    error.to_string()
}

/// Sets the size of the largest message that a topic accepts, in bytes.
pub fn set_largest_message(topic: &str, bytes: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers()).create().expect("a client");
    let alter = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", bytes);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let answers = runtime.block_on(admin.alter_configs(&[alter], &AdminOptions::new()));
    answers.expect("a response")[0].as_ref().expect("it is altered");
}

pub fn other_producer(id: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("transactional.id", id)
        .create()
        .expect("a producer");
    producer.init_transactions(Duration::from_secs(20)).expect("it takes the id over");
    producer
}
