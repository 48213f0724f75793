//! A topic that no longer has the records that were read from it: the next start is refused.

use headwater_sinks::kafka::topics::TopicSpec;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};

use crate::common::{hard_settings, succeed};
use crate::crash::assert_refused;
use crate::kafka::{TopicPipeline, admin, brokers, produce, topics};
use crate::live::wait_for;

const RECORDS: u64 = 6_000;

/// Runs a pipeline over a topic, changes the topic, and checks that the next start is refused.
fn assert_refused_after(
    name: &str,
    change: impl AsyncFnOnce(&AdminClient<DefaultClientContext>, &str),
    reason: &str,
) {
    let job = TopicPipeline::new(name, 81, RECORDS);
    succeed(&mut job.command());
    admin(&brokers(), async |admin: &AdminClient<_>| change(admin, &job.topic).await);
    assert_refused(&mut job.command(), reason);
}

#[test]
fn records_removed_by_retention_are_refused() {
    let change = async |admin: &AdminClient<_>, topic: &str| {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 2, Offset::Offset(400)).expect("an offset");
        let deleted = admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted");
        assert_eq!(deleted.count(), 1);
    };
    assert_refused_after("retention", change, "the topic has 400 to 1000");
}

#[test]
fn a_recreated_topic_of_the_same_length_is_refused() {
    let change = async |_: &AdminClient<_>, topic: &str| {
        let topics = topics(&brokers());
        topics.delete(&[topic]).expect("deleted");
        // The deletion of a topic takes a while.
        wait_for("the new topic", || {
            topics.create(&[TopicSpec::new(topic, 6)]).ok().filter(|made| !made.is_empty())
        });
        let dir = tempfile::tempdir().expect("a directory");
        produce(topic, &hard_settings(82), RECORDS, &dir.path().join("records.ndjson"));
    };
    assert_refused_after("recreated", change, "the input was truncated or recreated");
}
