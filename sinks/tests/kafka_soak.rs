//! A soak test of the Kafka sink while another program stops, kills and restarts the broker: every message arrives
//! exactly once.
//!
//! `HEADWATER_TEST_KAFKA` is the broker, `HEADWATER_TEST_SECONDS` the duration (default 5). The test uses the sink as
//! coordination does: it retries a failed round. After any other error, a new start reads the progress and resumes
//! after it.

use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use headwater_sinks::kafka::client::Options;
use headwater_sinks::kafka::topics::{TopicSpec, Topics};
use headwater_sinks::kafka::{KafkaConfig, KafkaSink};
use headwater_sinks::{
    Changes, CommitError, CommitPermit, Generation, LedgerId, Shards, Sink, WriterContext,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

const MESSAGES: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(120);

fn brokers() -> String {
    std::env::var("HEADWATER_TEST_KAFKA")
        .expect("this test needs a Kafka broker: set HEADWATER_TEST_KAFKA to its host:port")
}

/// Opens the sink as a new start, and retries until the broker is available. Returns the last committed epoch.
fn open(pipeline: &str, topic: &str, generation: &mut u64) -> (KafkaSink, Option<Epoch>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        *generation += 1;
        let mut sink = KafkaSink::new(KafkaConfig {
            name: "kafka".to_owned(),
            brokers: brokers(),
            topics: vec![topic.to_owned()],
            options: Options::new(),
        });
        let context = WriterContext {
            pipeline: pipeline.to_owned(),
            ledger_id: LedgerId("c".repeat(32)),
            generation: Generation(*generation),
            process: 0,
            shards: Shards::ALL,
            max_processes: 1,
            adopt: None,
        };
        match sink.open(&context) {
            Ok(found) => return (sink, found.iter().map(|progress| progress.through).max()),
            Err(error) => {
                assert!(Instant::now() < deadline, "{error}");
                eprintln!("start {generation}: {error}");
            }
        }
    }
}

fn read(topic: &str) -> Vec<u64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", "soak")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).expect("a valid offset");
    consumer.assign(&list).expect("it is assigned");
    let mut values = Vec::new();
    loop {
        match consumer.poll(PATIENCE).expect("the partition ends") {
            Ok(message) => {
                let value = message.payload().and_then(|bytes| bytes.try_into().ok()).expect("eight bytes");
                values.push(u64::from_be_bytes(value));
            }
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return values,
            Err(error) => eprintln!("{error}"),
        }
    }
}

#[test]
fn broker_failures_neither_lose_nor_duplicate_messages() {
    let seconds = std::env::var("HEADWATER_TEST_SECONDS").map_or(5, |text| text.parse().expect("a number"));
    let pipeline = format!("soak-{}", std::process::id());
    let topic = format!("out-{pipeline}");
    let topics = Topics::connect(&brokers(), &Options::new()).expect("the options are valid");
    topics.create(&[TopicSpec::new(&topic, 1)]).expect("the topic is new");

    let mut generation = 0;
    let (mut sink, _) = open(&pipeline, &topic, &mut generation);
    let (mut failed, mut unknown, mut fenced) = (0, 0, 0);
    let mut next = 0;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let mut changes = Changes::default();
        for n in 0..MESSAGES {
            let value = (next * MESSAGES + n).to_be_bytes();
            changes.messages.push(0, Some(b"key"), &[], |out| out.extend_from_slice(&value));
        }
        sink.stage(Epoch(next), changes).expect("it is staged");
        next += 1;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match sink.commit(CommitPermit::granted(Epoch(next - 1))) {
                Ok(()) => break,
                Err(CommitError::Failed { reason, .. }) => {
                    assert!(Instant::now() < deadline, "{reason}");
                    eprintln!("epoch {next}: retried after {reason}");
                    failed += 1;
                }
                Err(error) => {
                    eprintln!("epoch {next}: restarted after {error}");
                    unknown += usize::from(matches!(error, CommitError::Indeterminate { .. }));
                    fenced += usize::from(matches!(error, CommitError::Fenced { .. }));
                    drop(sink);
                    let through;
                    (sink, through) = open(&pipeline, &topic, &mut generation);
                    next = through.map_or(0, |epoch| epoch.next().0);
                    break;
                }
            }
        }
    }
    let seen = read(&topic);
    println!("{next} rounds, {failed} failed, {unknown} unknown, {fenced} fenced, {generation} starts");
    assert_eq!(seen.len() as u64, next * MESSAGES);
    assert!(seen.iter().zip(0..).all(|(&value, n)| value == n), "each once, in order");
}
