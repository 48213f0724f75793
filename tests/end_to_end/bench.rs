//! `headwater bench` on real services: it measures, and leaves nothing behind.

use std::fs;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;

use crate::common::{FLOW, headwater, succeed};
use crate::kafka::brokers;
use crate::postgres::Database;

/// The prefix of all topics and groups that a measurement creates.
const PREFIX: &str = "headwater-bench-";

fn json(arguments: &[&str]) -> Value {
    let output = succeed(&mut headwater(arguments));
    serde_json::from_slice(&output.stdout).expect("one JSON object on standard output")
}

/// Returns the topics and groups of measurements that exist in the cluster.
fn left_on_kafka() -> Vec<String> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers()).create().expect("a client");
    let timeout = Duration::from_secs(10);
    let topics = consumer.fetch_metadata(None, timeout).expect("metadata");
    let groups = consumer.fetch_group_list(None, timeout).expect("metadata");
    let topics = topics.topics().iter().map(|topic| topic.name().to_owned());
    let groups = groups.groups().iter().map(|group| group.name().to_owned()).collect::<Vec<_>>();
    let is_ours = |name: &String| name.contains(PREFIX);
    topics.chain(groups).filter(is_ours).collect()
}

fn assert_nothing_is_left(database: &Database) {
    let schemas = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'headwater_bench%'";
    assert_eq!(database.query(schemas), [""; 0]);
    assert_eq!(database.query("SELECT relname FROM pg_class WHERE relname = 'events'"), [""; 0]);
    // A topic disappears from the metadata shortly after it was deleted.
    let started = Instant::now();
    while !left_on_kafka().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(20), "left behind: {:?}", left_on_kafka());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn stages_and_latency_are_measured_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let database = Database::create("bench");
    let config = dir.path().join("bench.toml");
    let text = |brokers: &str| {
        format!(
            "pipeline = \"not-touched\"\n[source]\nkind = \"kafka\"\nbrokers = {brokers:?}\n{FLOW}\
             [sinks.kafka]\nbrokers = {brokers:?}\n[sinks.postgres]\nurl = {:?}\n",
            database.url()
        )
    };
    fs::write(&config, text(&brokers())).expect("written");
    let config = config.to_str().expect("UTF-8");

    let report = json(&["bench", "stages", config, "-w", "2", "--events", "12000", "--json"]);
    for stage in [
        "read",
        "read_decode",
        "dataflow_alerts",
        "dataflow_enriched",
        "dataflow_postgres",
        "produce",
        "copy",
    ] {
        assert!(report["cpu_s_per_million"][stage].as_f64().is_some(), "{stage}: {report}");
        assert!(report["events_per_s"][stage].as_f64() > Some(0.0), "{stage}: {report}");
    }
    for set in ["alerts", "enriched", "postgres"] {
        assert!(report["roofline_fraction"][set].as_f64() > Some(0.0), "{set}: {report}");
        assert!(report["whole_events_per_s"][set].as_f64() > Some(0.0), "{set}: {report}");
    }
    assert_eq!(report["left_out"], serde_json::json!({}));
    assert_nothing_is_left(&database);

    let small = "--only alerts --events 3000 --record-bytes 2000 --partitions 2 --users 9 --json";
    let report = json(&["bench", "stages", config].into_iter().chain(small.split(' ')).collect::<Vec<_>>());
    assert!(report["whole_events_per_s"]["alerts"].as_f64() > Some(0.0), "{report}");
    assert!(report["whole_events_per_s"]["enriched"].is_null(), "{report}");
    assert_eq!(report["cpu_s_per_million"], serde_json::json!({}));
    assert_nothing_is_left(&database);

    let report = json(&["bench", "latency", config, "--rate", "600", "--seconds", "3", "--json"]);
    let ms = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {report}"));
    assert!(report["alerts"].as_u64() > Some(0), "{report}");
    assert!(0.0 < ms("p50_ms") && ms("p50_ms") <= ms("p99_ms"), "{report}");
    assert!(ms("p999_ms") <= ms("max_ms"), "{report}");
    assert_nothing_is_left(&database);

    // Resources created before a failure are removed, too.
    let invalid = text(&brokers()).replace(&database.url(), &format!("{}_missing", database.url()));
    fs::write(config, invalid).expect("written");
    let output = headwater(&["bench", "latency", config]).output().expect("started");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("CREATE SCHEMA"), "{output:?}");
    assert_nothing_is_left(&database);
}
