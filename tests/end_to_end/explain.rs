//! Explanations where no sink stores events: they are read from the source topic again, apart from the run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use headwater_sinks::kafka::topics::{TopicSpec, Topics};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::Value;

use crate::api::{alerts, json};
use crate::common::headwater;
use crate::kafka::{brokers, producer, topics};
use crate::live::{Process, metric, wait_for};
use crate::liveness::{stop_cleanly, wall_ms};

/// A source topic with two partitions, whose records have explicit timestamps.
struct Input {
    topic: String,
    producer: BaseProducer,
    /// The event time to which others are relative.
    base: i64,
}

impl Input {
    fn new(name: &str) -> Input {
        let topic = format!("{name}-{}", std::process::id());
        let alerts = TopicSpec::new(&format!("alerts-{topic}"), 1);
        topics(&brokers()).create(&[TopicSpec::new(&topic, 2), alerts]).expect("created");
        let producer = producer(&brokers(), &[("linger.ms", "0")], None);
        Input { topic, producer, base: wall_ms() - 120_000 }
    }

    /// Sends an event of a user whose event time is `ms` after the base, in a record with the timestamp `at`.
    fn send(&self, partition: i32, (id, user): (&str, &str), ms: i64, at: i64) {
        let time = self.base + ms;
        let value = format!(
            r#"{{"event_id":"{id}","event_type":"transaction","user_id":"{user}","event_time":{time},"amount":1}}"#
        );
        let record = BaseRecord::<[u8], str>::to(&self.topic).partition(partition).payload(&value);
        let sent = self.producer.send(record.timestamp(self.base + at)).map_err(|(error, _)| error);
        sent.expect("queued");
        self.producer.flush(Duration::from_secs(10)).expect("written");
    }

    /// Starts a pipeline with these sinks.
    fn start(&self, dir: &Path, name: &str, sinks: &str) -> Process {
        let (topic, brokers) = (&self.topic, brokers());
        let text = format!(
            "pipeline = \"{topic}-{name}\"\n[source]\nkind = \"kafka\"\nbrokers = {brokers:?}\ntopic = {topic:?}\n\
             [patterns.rapid_fire_burst]\nat_least = 4\n[patterns.amount_anomaly]\nat_least = 30\n\
             [http]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n{sinks}"
        );
        let config = dir.join(format!("{name}.toml"));
        std::fs::write(&config, text).expect("written");
        let mut command = headwater(&["run"]);
        command.arg(&config);
        Process::start(command, dir.join(format!("{name}.log")))
    }
}

/// Waits for an alert with these parameters, and returns it with its explanation.
fn explained(address: SocketAddr, parameters: &str, trigger: &str) -> Value {
    let is_of = |alert: &Value| {
        alert["event_ids"].as_array().and_then(|ids| ids.last()) == Some(&Value::from(trigger))
    };
    let alert = wait_for(parameters, || alerts(address, parameters).into_iter().find(is_of));
    let id = alert["alert_id"].as_str().expect("an id");
    json(address, &format!("/api/v1/alerts/{id}?explain=true"))["explanation"].clone()
}

/// Returns the ids of the explained events with a flag of each.
fn flags<'a>(explanation: &'a Value, name: &str) -> Vec<(&'a str, bool)> {
    let events = explanation["events"].as_array().expect("a list");
    events
        .iter()
        .map(|event| (event["event_id"].as_str().expect("an id"), event[name].as_bool().expect("a flag")))
        .collect()
}

fn wait_for_events(address: SocketAddr, count: f64) {
    wait_for("events", || (metric(address, "headwater_events_total") >= count).then_some(()));
}

#[test]
fn alerts_are_explained_from_the_topic_without_tables() {
    let dir = tempfile::tempdir().expect("a directory");
    let input = Input::new("explain");
    let kafka = format!(
        "[sinks.kafka]\nbrokers = {:?}\n[sinks.kafka.topics]\nalerts = \"alerts-{}\"\n",
        brokers(),
        input.topic
    );
    let mut run = input.start(dir.path(), "run", &kafka);
    // Alerts of a table have no position: the record is searched.
    let table =
        format!("[sinks.sqlite]\npath = {:?}\ntables = [\"alerts\"]\n", dir.path().join("results.db"));
    let mut other = input.start(dir.path(), "other", &table);
    let (address, other_address) = (run.address(), other.address());

    for (id, ms) in [("a0", -30_000), ("a1", 0), ("a2", 1000), ("a2", 1000)] {
        input.send(0, (id, "ann"), ms, ms);
    }
    input.send(0, ("b0", "bob"), 8000, 8000);
    input.send(1, ("b1", "bob"), 8000, 8000);
    wait_for_events(address, 6.0);
    // The watermark is at 3 s.
    std::thread::sleep(Duration::from_secs(1));
    input.send(0, ("late", "ann"), 500, 8100);
    for (id, ms) in [("a3", 8500), ("a4", 8600)] {
        input.send(0, (id, "ann"), ms, ms);
    }
    let raised = explained(address, "status=raised&key=ann", "a4");
    let expected = [("a1", false), ("a2", false), ("a3", false), ("a4", true)];
    assert_eq!(flags(&raised, "trigger"), expected, "{raised}");
    assert_eq!((&raised["complete"], &raised["events_from"]), (&true.into(), &"source".into()), "{raised}");
    assert!(raised["note"].as_str().is_some_and(|note| note.starts_with("1 event is left out")), "{raised}");
    assert_eq!(raised["events"][3]["before"]["count"], 3, "{raised}");
    assert_eq!((&raised["events"][3]["epoch"], &raised["events"][3]["amount"]), (&Value::Null, &"1".into()));

    // An event out of order moves the rising edge to a3.
    input.send(0, ("a5", "ann"), 7000, 8700);
    for address in [address, other_address] {
        let revoked = explained(address, "status=revoked&key=ann", "a4");
        let expected = [("a1", false), ("a2", false), ("a5", true), ("a3", false), ("a4", false)];
        assert_eq!(flags(&revoked, "arrived_after"), expected, "{revoked}");
        assert_eq!(
            (&revoked["complete"], &revoked["events"][4]["before"]["count"]),
            (&true.into(), &4.into())
        );
        assert!(revoked["summary"].as_str().is_some_and(|text| text.contains("1 event with an earlier")));
    }
    let group = format!("{}-run", input.topic);
    assert_group_is_not_touched(&group, &input.topic);
    stop_cleanly(run);
    stop_cleanly(other);
}

/// Checks that reading for explanations created no consumer group besides those of the pipelines.
fn assert_group_is_not_touched(group: &str, topic: &str) {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    let client: BaseConsumer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", brokers()).create().expect("a client");
    let groups = client.fetch_group_list(None, Duration::from_secs(10)).expect("answered");
    let names: Vec<_> = groups.groups().iter().map(|group| group.name().to_owned()).collect();
    assert!(!names.iter().any(|name| name == topic), "{group}: {names:?}");
}

#[test]
fn an_explanation_says_that_retention_has_taken_events() {
    let dir = tempfile::tempdir().expect("a directory");
    let input = Input::new("retained");
    let kafka = format!(
        "[sinks.kafka]\nbrokers = {:?}\n[sinks.kafka.topics]\nalerts = \"alerts-{}\"\n",
        brokers(),
        input.topic
    );
    for n in 0..6 {
        input.send(0, (&format!("a{n}"), "ann"), 1000 * n, 1000 * n);
    }
    let mut run = input.start(dir.path(), "run", &kafka);
    let address = run.address();
    let whole = explained(address, "status=raised", "a3");
    assert_eq!(whole["complete"], true, "{whole}");

    let client = Topics::connect(&brokers(), &BTreeMap::new()).expect("connected");
    client.delete_records(&input.topic, &[(0, 2)]).expect("deleted");
    let cut = explained(address, "status=raised", "a3");
    assert_eq!(flags(&cut, "trigger"), [("a2", false), ("a3", true)], "{cut}");
    assert_eq!((&cut["complete"], &cut["events"][1]["before"]), (&false.into(), &Value::Null), "{cut}");
    assert!(cut["note"].as_str().is_some_and(|note| note.contains("by its retention")), "{cut}");

    client.delete_records(&input.topic, &[(0, 6)]).expect("deleted");
    let gone = explained(address, "status=raised", "a3");
    assert_eq!((flags(&gone, "trigger").len(), &gone["complete"]), (0, &false.into()), "{gone}");
    let note = gone["note"].as_str().expect("a note");
    assert!(note.contains("was not found in topic") && note.contains("by its retention"), "{note}");
    stop_cleanly(run);
}
