//! A topic that no longer has what was read from it: a start says so, and does not go on with something else.

use headwater_sinks::kafka::topics::TopicSpec;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};

use crate::common::{hard, succeed};
use crate::crash::refused;
use crate::kafka::{FromTopic, admin, brokers, produce, topics};
use crate::live::wait_for;

const RECORDS: u64 = 6_000;

/// Runs over a topic, has something done to it, and expects the next start to be refused.
fn refused_after(name: &str, act: impl AsyncFnOnce(&AdminClient<DefaultClientContext>, &str), why: &str) {
    let job = FromTopic::new(name, 81, RECORDS);
    succeed(&mut job.command());
    admin(&brokers(), async |admin: &AdminClient<_>| act(admin, &job.topic).await);
    refused(&mut job.command(), why);
}

#[test]
fn records_out_of_retention_are_refused_with_what_there_is() {
    let act = async |admin: &AdminClient<_>, topic: &str| {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 2, Offset::Offset(400)).expect("an offset");
        let deleted = admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted");
        assert_eq!(deleted.count(), 1);
    };
    refused_after("retention", act, "the topic has 400 to 1000");
}

#[test]
fn a_topic_that_was_made_again_is_refused_though_it_has_as_many_records() {
    let act = async |_: &AdminClient<_>, topic: &str| {
        let topics = topics(&brokers());
        topics.delete(&[topic]).expect("deleted");
        // It goes by and by.
        wait_for("the new topic", || {
            topics.create(&[TopicSpec::new(topic, 6)]).ok().filter(|made| !made.is_empty())
        });
        let dir = tempfile::tempdir().expect("a directory");
        produce(topic, &hard(82), RECORDS, &dir.path().join("records.ndjson"));
    };
    refused_after("recreated", act, "the input was truncated or created anew");
}
