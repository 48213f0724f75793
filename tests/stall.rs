//! A test of a stalled sink, with real Kafka and sinks in memory: backpressure, memory use and recovery.
//!
//! `HEADWATER_TEST_KAFKA` names the broker, as `host:port`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use headwater::config::Config;
use headwater::lists::Lists;
use headwater::metrics::Metrics;
use headwater::outputs::SinkJob;
use headwater::outputs::{OutputMapping, SinkEncoding};
use headwater::runtime::{ChangeRequests, Job, Peers, Queries, Role, run};
use headwater::source::kafka::{KafkaSource, KafkaSourceConfig, StartFrom};
use headwater::topics::{TopicSpec, create_topics};
use headwater::wall::wall_ms;
use headwater_dataflows::Epoch;
use headwater_sinks::memory::Memory;
use headwater_sinks::{Cell, Generation, LedgerId, Shards, WriterContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// The maximum time for a condition to become true, far above the time that a correct program needs.
const PATIENCE: Duration = Duration::from_secs(180);
const PARTITIONS: i32 = 6;
const EPOCHS_IN_FLIGHT: u64 = 100;
const BYTES_IN_FLIGHT: usize = 4 << 20;
const MIB: i64 = 1 << 20;

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Produces records in another process, so that its memory is not counted.
fn produce(config: &Path, seed: u64, rate: u64, seconds: u64) -> u64 {
    let output = Command::new(env!("CARGO_BIN_EXE_headwater"))
        .arg("produce")
        .arg(config)
        .args(["--rate", &rate.to_string(), "--seconds", &seconds.to_string(), "--seed", &seed.to_string()])
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    rate * seconds
}

/// Returns the sum of the consumer group's committed offsets.
fn group_total(group: &str, topic: &str) -> u64 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", group)
        .create()
        .expect("a consumer");
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition(topic, partition);
    }
    let committed = consumer.committed_offsets(partitions, Duration::from_secs(10)).expect("a response");
    let offset = |offset| if let Offset::Offset(offset) = offset { offset as u64 } else { 0 };
    committed.elements().iter().map(|element| offset(element.offset())).sum()
}

fn brokers() -> String {
    std::env::var("HEADWATER_TEST_KAFKA")
        .expect("HEADWATER_TEST_KAFKA is not set: scripts/test starts a broker and sets it")
}

fn through(memory: &Memory) -> Epoch {
    memory.progress().map_or(Epoch(0), |progress| progress.through)
}

/// Returns the number of times that each record of the topic is stored.
fn stored(memory: &Memory) -> BTreeMap<(i64, i64), u32> {
    let mut records = BTreeMap::new();
    for (_, changes) in memory.committed() {
        for row in changes.rows.iter() {
            let mut cells = row.cells();
            match (cells.next(), cells.next()) {
                (Some(Cell::Int(partition)), Some(Cell::Int(offset))) => {
                    *records.entry((partition, offset)).or_default() += 1;
                }
                other => panic!("an event or dead letter begins with {other:?}"),
            }
        }
    }
    records
}

fn metric(metrics: &Metrics, name: &str) -> i64 {
    let text = metrics.text();
    let values =
        text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<i64>().expect("a whole number")).sum()
}

#[test]
fn a_stalled_sink_causes_backpressure_and_no_loss() {
    let name = format!("stall-{}", std::process::id());
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("run.toml");
    let text = format!(
        "pipeline = {name:?}\n[source]\nkind = \"kafka\"\nbrokers = {:?}\ntopic = {name:?}\n\
         [time]\nepoch = \"5ms\"\n[limits]\nbytes_in_flight = \"4MiB\"\nepochs_in_flight = {EPOCHS_IN_FLIGHT}\n\
         [sinks.sqlite]\npath = \"not used\"\n",
        brokers()
    );
    std::fs::write(&config, &text).expect("written");
    create_topics(&brokers(), &BTreeMap::new(), &[TopicSpec::new(&name, PARTITIONS as u32)])
        .expect("created");
    let parsed = Config::parse(&text, std::iter::empty()).expect("a configuration");
    let (rules, plan) = (parsed.live_rules(), parsed.plan);
    assert_eq!(plan.limits.bytes_in_flight, BYTES_IN_FLIGHT);

    let (stalled, free) = (Memory::default(), Memory::default());
    let mapping = OutputMapping { events: Some(0), dead_letters: Some(1), ..OutputMapping::default() };
    let sink = |name: &str, memory: &Memory| SinkJob {
        sink: Box::new(memory.sink(name)),
        encoding: SinkEncoding::Rows(mapping),
        commit_interval: Duration::ZERO,
    };
    let source = KafkaSourceConfig {
        brokers: brokers(),
        topic: name.clone(),
        group: name.clone(),
        starts: None,
        start_from: StartFrom::Earliest,
        ignore_group: false,
        producer_header: "producer".to_owned(),
        accepted: Vec::new(),
        options: BTreeMap::new(),
        until_end: false,
        bytes_in_flight: BYTES_IN_FLIGHT,
    };
    let metrics = Arc::new(Metrics::default());
    let stopping = Arc::new(AtomicBool::new(false));
    let job = Job {
        plan,
        source: Box::new(|_| Ok(Arc::new(KafkaSource::open(source).expect("the topic is there")))),
        sinks: vec![sink("stalled", &stalled), sink("free", &free)],
        context: WriterContext {
            pipeline: name.clone(),
            ledger_id: LedgerId("0".repeat(32)),
            generation: Generation(wall_ms() as u64),
            process: 0,
            shards: Shards::ALL,
            max_processes: 1,
            adopt: None,
        },
        role: Role::Unrecorded,
        workers: timely::Config::process(2),
        cluster: None,
        stopping: Arc::clone(&stopping),
        rescaling: Arc::default(),
        metrics: Arc::clone(&metrics),
        recent: None,
        queries: Queries::default(),
        rules,
        requests: ChangeRequests::default(),
        reopen: Err("no rule has a backfill".to_owned()),
        lists: Lists::default(),
        list_configs: Vec::new(),
        peers: Peers::default(),
        deliveries: None,
        otlp: None,
    };
    let running = std::thread::spawn(move || run(job));

    // Both sinks commit.
    let before = produce(&config, 1, 10_000, 1);
    wait_for("the first records", || group_total(&name, &name) == before);
    assert_eq!(metrics.unready(), None);

    // One sink stalls while records continue to arrive, until the engine stops reading.
    stalled.stall(true);
    let mut produced = before + produce(&config, 2, 20_000, 1);
    let ahead = || metrics.latest().0.saturating_sub(metrics.frontier_epoch().0);
    wait_for("the engine to stop reading", || ahead() + 1 >= EPOCHS_IN_FLIGHT);
    let stand = (through(&stalled), through(&free), metrics.latest().0);
    let memory = metric(&metrics, "process_resident_memory_bytes");

    // Far more records arrive than may be in flight, for longer than a process may stall and remain ready.
    produced += produce(&config, 3, 50_000, 6);
    wait_for("the process to be not ready", || metrics.unready().is_some());
    let unready = metrics.unready().expect("it does not become ready again");
    assert_eq!(unready.committing.as_deref(), Some("stalled"), "{unready:?}");
    assert_eq!(group_total(&name, &name), before, "the group's offsets do not advance");
    let bytes = metric(&metrics, "headwater_bytes_in_flight");
    assert!((1..2 * BYTES_IN_FLIGHT as i64).contains(&bytes), "{bytes} bytes are in flight");
    let growth = metric(&metrics, "process_resident_memory_bytes") - memory;
    assert!(growth < 48 * MIB, "memory has grown by {growth} bytes");
    assert_eq!((through(&stalled), metrics.latest().0), (stand.0, stand.2), "the engine does not advance");
    let frontier = metrics.frontier_epoch();
    assert!(through(&stalled) < frontier && stand.1 <= through(&free));
    let bound = frontier.0 + EPOCHS_IN_FLIGHT;
    assert!(through(&free) > frontier, "the other sink has committed further epochs");
    assert!(through(&free).0 <= bound, "{:?} is beyond {bound}", through(&free));
    let lag = |metrics: &Metrics| metric(metrics, "headwater_consumer_lag_records");
    wait_for("the lag to include all records", || lag(&metrics) > 200_000);

    // The stalled sink resumes.
    stalled.stall(false);
    wait_for("both sinks to catch up", || group_total(&name, &name) == produced);
    assert_eq!(metrics.unready(), None);
    wait_for("the lag to be zero", || lag(&metrics) == 0);
    stopping.store(true, Ordering::Relaxed);
    running.join().expect("no panic").expect("the run ends well");
    let stored = [&stalled, &free].map(stored);
    assert_eq!(stored[0].len() as u64, produced, "every record is stored");
    assert!(stored[0].values().all(|&times| times == 1), "once");
    assert!(stored[0] == stored[1], "in both sinks");
}
