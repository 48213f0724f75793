//! A commit of the Kafka sink whose EndTxn request is delayed: the sink waits for the outcome and replaces the
//! producer.

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use headwater_sinks::kafka::client::Options;
use headwater_sinks::kafka::{KafkaConfig, KafkaSink, progress_topic};
use headwater_sinks::{CommitPermit, Generation, LedgerId, Shards, Sink, WriterContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::live::wait_for;
use crate::services::{Service, Services};

const PIPELINE: &str = "doubtful";

fn context(generation: u64) -> WriterContext {
    WriterContext {
        pipeline: PIPELINE.to_owned(),
        ledger_id: LedgerId("d".repeat(32)),
        generation: Generation(generation),
        process: 0,
        shards: Shards::ALL,
        max_processes: 1,
        adopt: None,
    }
}

/// Counts how often a transactional id was taken over: each takeover writes a sentinel with the id to the progress
/// topic.
fn takeovers(brokers: &str) -> usize {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "takeovers")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&progress_topic(PIPELINE), 0, Offset::Beginning).expect("an offset");
    consumer.assign(&list).expect("assigned");
    let mut count = 0;
    loop {
        match consumer.poll(Duration::from_secs(20)).expect("the topic has an end") {
            Ok(record) => {
                let id = format!("{PIPELINE}-kafka-0-");
                let names_id = |value: &[u8]| value.windows(id.len()).any(|part| part == id.as_bytes());
                count += usize::from(record.payload().is_some_and(names_id));
            }
            Err(KafkaError::PartitionEOF(_)) => return count,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_slow_commit_is_awaited_and_its_producer_replaced() {
    let services = Services::own();
    let mut sink = KafkaSink::new(KafkaConfig {
        name: "kafka".to_owned(),
        brokers: services.kafka_for_run(),
        topics: Vec::new(),
        options: Options::new(),
    });
    sink.open(&context(1)).expect("opened");
    let mut commit = |through| sink.commit(CommitPermit::granted(Epoch(through))).expect("committed");
    (1..=4).for_each(&mut commit);
    assert_eq!(takeovers(&services.kafka), 2, "each id is taken over once");
    let proxy = services.proxy(Service::Kafka);
    let mut through = 5;
    // The client retries after 2 s; the broker answers that the commit is in progress, and the client keeps waiting.
    for (held, takeovers_after) in [(Duration::from_millis(1500), 3), (Duration::from_millis(4500), 4)] {
        proxy.hold_end_txn();
        let started = Instant::now();
        let took = scope(|scope| {
            scope.spawn(|| {
                wait_for("the end of a transaction", || proxy.is_holding_end_txn().then_some(()));
                sleep(held);
                proxy.restore();
            });
            commit(through);
            started.elapsed()
        });
        assert!(took >= held, "committed after {took:?}, before the broker received the request");
        // Each of the two ids commits twice more, by turns.
        (through + 1..=through + 4).for_each(&mut commit);
        assert_eq!(takeovers(&services.kafka), takeovers_after, "held for {held:?}");
        through += 5;
    }
    let found = KafkaSink::new(KafkaConfig {
        name: "kafka".to_owned(),
        brokers: services.kafka.clone(),
        topics: Vec::new(),
        options: Options::new(),
    })
    .open(&context(2))
    .expect("opened");
    assert_eq!(found.iter().map(|progress| progress.through).collect::<Vec<_>>(), [Epoch(through - 1)]);
}
