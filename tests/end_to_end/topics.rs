//! Topics that change: added partitions are read, and a recreated or compacted topic is refused.

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, ResourceSpecifier};

use std::time::Duration;

use headwater_sinks::kafka::topics::TopicSpec;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::common::{headwater, succeed};
use crate::crash::assert_refused;
use crate::kafka::{admin, brokers, topics};
use crate::live::wait_for;
use crate::liveness::{EVENTS, Pipeline, event, stop_cleanly, wall_ms};

const RECORDED: &str = "[ledger]\nkind = \"sqlite\"\npath = \"DIR/ledger.db\"\n\
    [state]\npath = \"DIR/state\"\n";

/// Increases the number of partitions of a topic.
pub fn grow(brokers: &str, topic: &str, partitions: usize) {
    let grown = admin(brokers, async |admin: &AdminClient<_>| {
        let more = [NewPartitions::new(topic, partitions)];
        admin.create_partitions(&more, &AdminOptions::new()).await.expect("answered").len()
    });
    assert_eq!(grown, 1);
}

/// Sends one event to each partition.
fn send_to_each(pipeline: &Pipeline, round: &str, partitions: i32) {
    for partition in 0..partitions {
        // A producer refreshes its list of partitions only periodically, so each event has its own producer.
        let sender = crate::liveness::producer(None);
        let value = event(&format!("{round}-{partition}"), &format!("u{partition}"), wall_ms());
        pipeline.send_by(&sender, partition, 0, Some(&value));
        rdkafka::producer::Producer::flush(&sender, std::time::Duration::from_secs(10)).expect("written");
    }
}

#[test]
fn added_partitions_are_read_and_replayed() {
    let checkpoints = "[checkpoint]\ninterval = \"1h\"\n";
    let pipeline = Pipeline::new("grow", 2, &format!("{RECORDED}{checkpoints}"));
    let mut run = pipeline.start(&["-w", "2"]);
    send_to_each(&pipeline, "first", 2);
    pipeline.wait_count(EVENTS, 2);
    grow(&brokers(), &pipeline.topic, 4);
    send_to_each(&pipeline, "second", 4);
    pipeline.wait_count(EVENTS, 6);
    // The first records of the added partitions are replayed by another number of workers, after further partitions
    // were added.
    run.kill();
    grow(&brokers(), &pipeline.topic, 5);
    send_to_each(&pipeline, "third", 5);
    let status = succeed(headwater(&["status"]).arg(pipeline.path("run.toml")));
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    let run = pipeline.start(&["-w", "3"]);
    wait_for("all events", || {
        let count = pipeline.count(EVENTS);
        assert!(count <= 11, "{count}: {}", run.log());
        (count == 11).then_some(())
    });
    stop_cleanly(run);
    assert!(!status.contains("refuse"), "{status}");
    assert_eq!(pipeline.count("SELECT count(*) FROM dead_letters"), 0, "no record is late");
    assert_eq!(pipeline.count("SELECT count(DISTINCT partition || ':' || offset) FROM events"), 11);
    // The checkpoint has all five partitions.
    succeed(pipeline.command(&["--bounded"]).env("RUST_BACKTRACE", "0"));
    assert_eq!(pipeline.count(EVENTS), 11);
}

#[test]
fn a_recreated_topic_is_refused_after_a_checkpoint() {
    let pipeline = Pipeline::new("anew", 1, &format!("{RECORDED}[checkpoint]\ninterval = \"1s\"\n"));
    for n in 0..4 {
        pipeline.send(0, &event(&format!("old-{n}"), "u", wall_ms()));
    }
    pipeline.flush();
    succeed(&mut pipeline.command(&["--bounded"]));
    assert_eq!(pipeline.count(EVENTS), 4);
    // The topic is unchanged: the start accepts the record before its position.
    succeed(&mut pipeline.command(&["--bounded"]));
    let topic = &pipeline.topic;
    let deleted = admin(&brokers(), async |admin: &AdminClient<_>| {
        admin.delete_topics(&[topic], &AdminOptions::new()).await.expect("answered").len()
    });
    assert_eq!(deleted, 1);
    wait_for("the topic to be made again", || {
        topics(&brokers()).create(&[TopicSpec::new(topic, 1)]).ok().filter(|made| !made.is_empty())
    });
    let anew = crate::liveness::producer(None);
    for records in [4, 8] {
        for n in records - 4..records {
            let value = event(&format!("new-{n}"), "u", wall_ms());
            pipeline.send_by(&anew, 0, 0, Some(&value));
        }
        rdkafka::producer::Producer::flush(&anew, std::time::Duration::from_secs(10)).expect("written");
        // The new topic is as long as the old one, then longer.
        assert_refused(&mut pipeline.command(&["--bounded"]), "recreated");
    }
    assert_eq!(pipeline.count(EVENTS), 4);
}

#[test]
fn a_topic_is_refused_while_it_is_compacted() {
    let pipeline = Pipeline::new("compacted", 1, RECORDED);
    pipeline.send(0, &event("first", "u", wall_ms()));
    pipeline.flush();
    let mut run = pipeline.start(&[]);
    pipeline.wait_count(EVENTS, 1);
    let set = |policy: &str| {
        let topic = AlterConfig::new(ResourceSpecifier::Topic(&pipeline.topic)).set("cleanup.policy", policy);
        admin(&brokers(), async |admin: &AdminClient<_>| {
            let answers = admin.alter_configs([&topic], &AdminOptions::new()).await.expect("answered");
            assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        });
    };
    set("compact");
    assert_eq!(run.wait().code(), Some(3), "{}", run.log());
    assert!(run.log().contains("is compacted: records vanish from it"), "{}", run.log());
    set("delete");
    pipeline.send(0, &event("second", "u", wall_ms()));
    pipeline.flush();
    let run = pipeline.start(&[]);
    pipeline.wait_count(EVENTS, 2);
    stop_cleanly(run);
}

/// A sample has the newest records, wherever the group of the pipeline is, and leaves it there.
#[test]
fn a_sample_has_the_newest_records_of_a_topic() {
    let dir = tempfile::tempdir().expect("a directory");
    let name = format!("sample-{}", std::process::id());
    topics(&brokers()).create(&[TopicSpec::new(&name, 3)]).expect("created");
    let text = format!(
        "pipeline = {name:?}\n[source]\nkind = \"kafka\"\ntopic = {name:?}\nbrokers = {:?}\n",
        brokers()
    );
    std::fs::write(
        dir.path().join("run.toml"),
        format!("{text}start_from = \"latest\"\n[sinks.file]\npath = \"out\"\n"),
    )
    .expect("written");
    let sample = |records: &str| {
        let mut command = headwater(&["check", "run.toml", "--json", "--sample", records]);
        let output = succeed(command.current_dir(dir.path()));
        let sample: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let ids = sample["sample"]
            .as_array()
            .expect("records")
            .iter()
            .map(|one| one["event"]["event_id"].as_str().expect("an event").to_owned());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(sample("5"), [""; 0], "an empty topic");

    // One record a transaction, so that every second offset is a marker; the second half is in one partition.
    let timeout = Duration::from_secs(30);
    let sender = crate::kafka::producer(&brokers(), &[], Some((&name, timeout)));
    let first = wall_ms() - 60_000;
    for n in 0..60 {
        sender.begin_transaction().expect("begun");
        let (value, partition) =
            (event(&format!("e{n}"), "ann", first + n), if n < 30 { n as i32 % 3 } else { 1 });
        let record =
            BaseRecord::<[u8], str>::to(&name).partition(partition).payload(&value).timestamp(first + n);
        sender.send(record).expect("queued");
        sender.commit_transaction(timeout).expect("committed");
    }
    let mut group = ClientConfig::new();
    group.set("bootstrap.servers", brokers()).set("group.id", &name);
    let consumer: BaseConsumer = group.create().expect("a client");
    let mut committed = TopicPartitionList::new();
    for (partition, offset) in [(0, 20), (1, 3), (2, 0)] {
        committed.add_partition_offset(&name, partition, Offset::Offset(offset)).expect("an offset");
    }
    consumer.commit(&committed, CommitMode::Sync).expect("committed");

    let ids = |from: usize| (from..60).map(|n| format!("e{n}")).collect::<Vec<_>>();
    assert_eq!(sample("1"), ids(59));
    assert_eq!(sample("5"), ids(55));
    assert_eq!(sample("45"), ids(15), "of all partitions");
    assert_eq!(sample("1000"), ids(0));
    let found = consumer.committed_offsets(committed.clone(), timeout).expect("asked");
    assert_eq!(found, committed);
}
