//! Records in Avro and Protobuf by the schemas of a real registry (Apicurio): the results are those of the same records in
//! JSON, through kills and while the registry is down; records without a schema wait, and nothing is lost.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use headwater::source::generator::RecordMaker;
use headwater::source::kafka::produce::{Produced, Producer};
use headwater_sinks::kafka::topics::TopicSpec;
use serde_json::{Map, Value};

use crate::checkpoints::CHECKPOINT;
use crate::common::{Expected, FLOW, Random, hard_settings, headwater, merge_bindings, succeed};
use crate::crash::{kill_when, query_number};
use crate::encode::{CHANNEL, KIND, PROTO_EVENT, PROTO_PLACE, avro_record, avro_schema, proto_record};
use crate::kafka::{base64, brokers, oracle_line, topics};
use crate::live::{Process, get, metric, wait_for};
use crate::liveness::stop_cleanly;
use crate::registry::Registry;

/// Encodes an event: the number of the record, and its members. Returns the bytes, and the event in JSON.
type Encode<'a> = dyn Fn(u64, Map<String, Value>) -> (Vec<u8>, Map<String, Value>) + 'a;

/// A pipeline from a topic, with a ledger and checkpoints.
struct Pipeline {
    dir: tempfile::TempDir,
    topic: String,
}

impl Pipeline {
    /// Creates the pipeline; its configuration ends with these sections.
    fn new(name: &str, partitions: u32, format: &str, sections: &str) -> Pipeline {
        let (dir, brokers) = (tempfile::tempdir().expect("a directory"), brokers());
        let topic = format!("{name}-{}", std::process::id());
        topics(&brokers)
            .create(&[TopicSpec::new(&topic, partitions).with("retention.ms", "-1")])
            .expect("created");
        let pipeline = Pipeline { dir, topic };
        let [results, ledger, state] =
            ["results.db", "ledger.db", "state"].map(|name| pipeline.path(name).display().to_string());
        let topic = &pipeline.topic;
        let text = format!(
            "pipeline = {name:?}\n[source]\nkind = \"kafka\"\nformat = {format:?}\nbrokers = {brokers:?}\n\
             topic = {topic:?}\n{sections}[sinks.sqlite]\npath = {results:?}\n[ledger]\nkind = \"sqlite\"\n\
             path = {ledger:?}\n[state]\npath = {state:?}\n[http]\nlisten = \"127.0.0.1:0\"\n\
             [log]\nformat = \"json\"\n{CHECKPOINT}"
        );
        fs::write(pipeline.path("run.toml"), text).expect("written");
        pipeline
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = headwater(&["run"]);
        command.arg(self.path("run.toml")).args(arguments);
        command
    }

    fn start(&self, arguments: &[&str]) -> Process {
        Process::start(self.command(arguments), self.path("run.log"))
    }

    /// Returns the command of a run to the end of the topic that records its bindings after those of earlier runs.
    fn bounded(&self, workers: &str, arguments: &[&str]) -> Command {
        merge_bindings(self.dir.path(), self.through());
        let mut command = self.command(&["-w", workers, "--bounded", "--bindings"]);
        command.arg(self.path("bindings.ndjson")).args(arguments);
        command
    }

    /// Returns the last epoch in the ledger.
    fn through(&self) -> i64 {
        const LAST: &str = "SELECT max(newest) FROM (SELECT max(through) AS newest FROM headwater_bindings
             UNION SELECT max(epoch) FROM headwater_manifests)";
        query_number(&self.path("ledger.db"), LAST)
    }

    fn count(&self, query: &str) -> i64 {
        query_number(&self.path("results.db"), query)
    }

    fn wait_count(&self, query: &str, expected: i64) {
        wait_for(query, || (self.count(query) == expected).then_some(()));
    }

    /// Sends records: partition and value.
    fn send(&self, records: &[(u32, Vec<u8>)]) {
        let records: Vec<_> = records
            .iter()
            .map(|(partition, value)| Produced {
                partition: Some(*partition),
                key: None,
                value: Some(value.clone()),
                headers: Vec::new(),
            })
            .collect();
        let producer = Producer::connect(&brokers(), &BTreeMap::new(), &self.topic).expect("connected");
        producer.run(records, None, &AtomicBool::new(false), &mut |_| {}).expect("produced");
    }

    /// Produces a generated stream, encoded, and records it in JSON for the oracle. What is no JSON, is no record of the
    /// format either.
    fn produce(&self, seed: u64, records: u64, encode: &Encode<'_>) {
        let settings = hard_settings(seed);
        let partitions = u64::from(settings.partitions);
        let mut maker = RecordMaker::new(settings);
        let mut recorded = fs::File::create(self.path("records.ndjson")).expect("a file");
        let mut produced = Vec::new();
        for n in 0..records {
            let (partition, offset) = ((n % partitions) as u32, n / partitions);
            maker.make(partition, offset, None);
            let (bytes, json) = match serde_json::from_slice::<Map<String, Value>>(&maker.value) {
                Ok(event) => {
                    let (bytes, event) = encode(n, event);
                    (bytes, serde_json::to_vec(&event).expect("JSON"))
                }
                Err(_) => (junk(n, &maker.value, encode), maker.value.clone()),
            };
            let line = oracle_line(partition, offset, None, Some(&json));
            let mut line: Value = serde_json::from_str(&line).expect("JSON");
            line["original"] = base64(&bytes).into();
            writeln!(recorded, "{line}").expect("written");
            produced.push((partition, bytes));
        }
        self.send(&produced);
    }

    fn judge(&self) {
        merge_bindings(self.dir.path(), i64::MAX);
        let (config, records) = (self.path("run.toml"), self.path("records.ndjson"));
        let input = ["--records", records.to_str().expect("UTF-8"), "--partitions", "6"];
        let history = self.path("history.ndjson");
        Expected::of(self.dir.path(), &config, &input, &history).judge_sqlite(&self.path("results.db"));
    }
}

/// Returns bytes that are no record: with another magic byte, too short, or with bytes after the record.
fn junk(n: u64, text: &[u8], encode: &Encode<'_>) -> Vec<u8> {
    match n % 3 {
        0 => text.to_vec(),
        1 => vec![0, 0, 0],
        _ => {
            let mut bytes = encode(n, event("e", "u")).0;
            // A tag of Protobuf without a value, and a byte too many of Avro.
            bytes.push(0x08);
            bytes
        }
    }
}

fn event(id: &str, user: &str) -> Map<String, Value> {
    let text = format!(
        "{{\"event_id\":{id:?},\"event_type\":\"transaction\",\"user_id\":{user:?},\
         \"event_time\":\"2026-01-02T03:04:05.678Z\",\"amount\":1.5}}"
    );
    serde_json::from_str(&text).expect("JSON")
}

/// Registers the enum and both versions of the schema; returns the ids of the versions.
fn register_avro(registry: &Registry) -> [u32; 2] {
    registry.register("kind", "AVRO", KIND, &[]);
    [1, 2].map(|version| {
        registry.register("events-value", "AVRO", &avro_schema(version), &[("shop.Kind", "kind")])
    })
}

/// Runs and kills the pipeline four times at progress, and once while the registry is down; then runs it to its end.
fn kill_and_finish(pipeline: &Pipeline, registry: &Registry) {
    let (mut random, mut kills) = (Random(5), 0);
    for kill in 0..4 {
        let before = pipeline.through();
        let delay = Duration::from_millis(random.below(200));
        let workers = ["1", "2", "3"][random.below(3) as usize];
        let mut command = pipeline.bounded(workers, &[]);
        kills += u32::from(kill_when(&mut command, || pipeline.through() > before + 3, delay));
        if kill == 1 {
            // Replay needs the schemas, too: it waits for the registry.
            registry.proxy.cut();
            let mut run = Process::start(pipeline.bounded("2", &[]), pipeline.path("down.log"));
            let is_logged = || run.log().contains("the schema registry is unavailable").then_some(());
            wait_for("the outage in the log", is_logged);
            std::thread::sleep(Duration::from_millis(500));
            run.kill();
            registry.proxy.restore();
        }
    }
    assert!(kills > 0, "no run was killed");
    succeed(&mut pipeline.bounded("2", &["--drain"]));
}

#[test]
fn avro_records_survive_kills_with_the_results_of_json() {
    let registry = Registry::start();
    let ids = register_avro(&registry);
    let pipeline = Pipeline::new("avro", 6, "avro", &format!("{}{FLOW}", registry.section()));
    pipeline.produce(81, 200_000, &|n, mut event| {
        let version = if n % 7 < 4 { 1 } else { 2 };
        let bytes = avro_record(ids[version as usize - 1], version, &event);
        if version == 2 {
            event.insert("channel".to_owned(), CHANNEL.into());
        }
        (bytes, event)
    });
    // At first, the registry is down: nothing is committed, and nothing becomes a dead letter.
    registry.proxy.cut();
    let mut run = Process::start(pipeline.bounded("2", &[]), pipeline.path("run.log"));
    wait_for("the outage in the log", || {
        run.log().contains("the schema registry is unavailable").then_some(())
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(pipeline.count("SELECT (SELECT count(*) FROM events)"), 0);
    registry.proxy.restore();
    wait_for("events", || (pipeline.through() > 0).then_some(()));
    run.kill();
    kill_and_finish(&pipeline, &registry);
    let of = |reason: &str| {
        pipeline.count(&format!("SELECT count(*) FROM dead_letters WHERE reason = '{reason}'"))
    };
    for reason in ["malformed", "invalid", "late", "duplicate"] {
        assert!(of(reason) > 100, "{} {reason}", of(reason));
    }
    pipeline.judge();
}

#[test]
fn protobuf_records_survive_kills_with_the_results_of_json() {
    let registry = Registry::start();
    registry.register("place", "PROTOBUF", PROTO_PLACE, &[]);
    let id = registry.register("events-value", "PROTOBUF", PROTO_EVENT, &[("place.proto", "place")]);
    let pipeline = Pipeline::new("protobuf", 6, "protobuf", &format!("{}{FLOW}", registry.section()));
    pipeline.produce(82, 40_000, &|_, event| (proto_record(id, &event), event));
    kill_and_finish(&pipeline, &registry);
    pipeline.judge();
}

const EVENTS: &str = "SELECT count(*) FROM events";
const LETTERS: &str = "SELECT count(*) FROM dead_letters";

/// The time for which partition 0 has been waiting for a schema.
const WITHHELD: &str = "headwater_partition_withheld_seconds{partition=\"0\"}";

fn record(id: u32, name: &str) -> Vec<u8> {
    avro_record(id, 1, &event(name, "u"))
}

/// Registers a schema under another subject, with another name of a type; returns its id.
fn register_another(registry: &Registry, name: &str) -> u32 {
    let schema = avro_schema(1).replace("\"Place\"", &format!("{name:?}"));
    registry.register(&format!("{name}-value"), "AVRO", &schema, &[("shop.Kind", "kind")])
}

fn wait_withheld(address: SocketAddr, is_expected: impl Fn(f64) -> bool) {
    wait_for("the metric", || is_expected(metric(address, WITHHELD)).then_some(()));
}

#[test]
fn records_wait_for_their_schema_while_others_go_on() {
    let registry = Registry::start();
    let [one, two] = register_avro(&registry);
    let pipeline = Pipeline::new("withheld", 2, "avro", &registry.section());
    pipeline.send(&[(0, record(one, "a"))]);
    let sample = succeed(headwater(&["check", "--sample", "1"]).arg(pipeline.path("run.toml")));
    let sample = String::from_utf8(sample.stdout).expect("UTF-8");
    assert!(sample.contains("\"event_id\":\"a\"") && sample.contains("1 events, 0 refused"), "{sample}");
    let unknown = two + 1;
    pipeline.send(&[(0, record(unknown, "b")), (0, record(one, "c")), (1, record(one, "d"))]);

    let mut run = pipeline.start(&[]);
    let address = run.address();
    pipeline.wait_count(EVENTS, 2);
    pipeline.send(&[(1, record(one, "e"))]);
    pipeline.wait_count(EVENTS, 3);
    let reason = wait_for("the stall", || {
        let (status, reason) = get(address, "/readyz");
        (status == 503).then_some(reason)
    });
    assert!(reason.contains("offset 1 of source partition 0 has been waiting for its schema"), "{reason}");
    wait_withheld(address, |seconds| seconds >= 2.0);
    assert_eq!(metric(address, "headwater_stalled{cause=\"schema\"}"), 1.0);
    let named = format!("schema {unknown} is not known to the schema registry");
    assert!(run.log().contains(&named), "{}", run.log());
    assert_eq!((pipeline.count(EVENTS), pipeline.count(LETTERS)), (3, 0));

    // Once the schema is registered, the records behind it come, in order.
    assert_eq!(register_another(&registry, "Spot"), unknown);
    pipeline.wait_count(EVENTS, 5);
    wait_for("readiness", || (get(address, "/readyz").0 == 200).then_some(()));
    wait_withheld(address, |seconds| seconds == 0.0);

    // While the registry is down, only records wait whose schemas are new.
    registry.proxy.cut();
    let newest = register_another(&registry, "Stop");
    pipeline.send(&[(0, record(newest, "f")), (0, record(one, "g")), (1, record(one, "h"))]);
    pipeline.wait_count(EVENTS, 6);
    wait_withheld(address, |seconds| seconds >= 1.0);
    assert!(run.log().contains("the schema registry is unavailable"), "{}", run.log());
    registry.proxy.restore();
    pipeline.wait_count(EVENTS, 8);

    // While a record waits, a run stops in order; the way on is a setting.
    pipeline.send(&[(0, record(newest + 1, "i")), (0, record(one, "j"))]);
    wait_withheld(address, |seconds| seconds >= 1.0);
    stop_cleanly(run);
    reject_unknown_ids(&pipeline, newest + 1);
}

/// Runs with `unknown_id = "dead_letter"` over two records, the first of which has an unknown id.
fn reject_unknown_ids(pipeline: &Pipeline, unknown: u32) {
    let config = fs::read_to_string(pipeline.path("run.toml")).expect("a file");
    let config = config.replace("timeout = \"1s\"\n", "timeout = \"1s\"\nunknown_id = \"dead_letter\"\n");
    fs::write(pipeline.path("run.toml"), config).expect("written");
    succeed(&mut pipeline.command(&["--bounded"]));
    assert_eq!((pipeline.count(EVENTS), pipeline.count(LETTERS)), (9, 1));
    let letter = format!(
        "{LETTERS} WHERE partition = 0 AND \"offset\" = 5 AND reason = 'malformed' AND message LIKE 'schema {unknown} is not known%'"
    );
    assert_eq!(pipeline.count(&letter), 1);
}
