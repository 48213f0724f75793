//! Liveness of final results: they do not depend on one partition or one clock, the cause of a stall is reported, and
//! no record is late because of another producer.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use headwater_sinks::kafka::topics::TopicSpec;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::Value;

use crate::common::{Expected, headwater, merge_bindings, succeed};
use crate::kafka::{self, brokers, topics};
use crate::live::{Process, get, lines_with_cause, metric, wait_for};

/// 2023-11-14T22:00:00Z: event times lie in the past.
const T: i64 = 1_699_999_200_000;

/// The timestamp that makes the producer use the wall clock.
pub const NOW: i64 = 0;

const TEN_SECONDS: Duration = Duration::from_secs(10);

const SECONDS: &str = "[[windows]]\nname = \"w\"\nkind = \"tumbling\"\nsize = \"1s\"\n";

const FINALS: &str = "SELECT count(*) FROM window_aggregates WHERE final";
pub const EVENTS: &str = "SELECT count(*) FROM events";
const HELD: &str = "headwater_partition_held_seconds{partition=\"0\"}";
const LATE: &str = "SELECT count(*) FROM dead_letters WHERE reason = 'late'";

/// The rule, key and triggering event of each alert that is not revoked.
const ALERTS: &str = "SELECT group_concat(row, ', ') FROM (SELECT rule || ' ' || \"key\" || ' ' || \
    json_extract(event_ids, '$[#-1]') AS row FROM alerts WHERE status <> 'revoked' ORDER BY row)";

pub fn event(id: &str, user: &str, time: i64) -> String {
    format!(r#"{{"event_id":"{id}","event_type":"transaction","user_id":"{user}","event_time":{time}}}"#)
}

pub fn wall_ms() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
    i64::try_from(since.as_millis()).expect("milliseconds fit")
}

pub fn producer(id: Option<&str>) -> BaseProducer {
    kafka::producer(&brokers(), &[("linger.ms", "0")], id.map(|id| (id, TEN_SECONDS)))
}

/// A pipeline from its own topic into SQLite.
pub struct Pipeline {
    dir: tempfile::TempDir,
    /// The topic that the pipeline reads.
    pub topic: String,
    producer: BaseProducer,
}

impl Pipeline {
    /// Creates the pipeline. Its configuration ends with these sections, in which DIR stands for its directory.
    pub fn new(name: &str, partitions: u32, sections: &str) -> Pipeline {
        let (dir, topic) =
            (tempfile::tempdir().expect("a directory"), format!("{name}-{}", std::process::id()));
        // Retention must not remove records with old timestamps.
        let spec = TopicSpec::new(&topic, partitions).with("retention.ms", "-1");
        topics(&brokers()).create(&[spec]).expect("created");
        let place = dir.path().to_str().expect("UTF-8");
        let text = format!(
            "pipeline = {topic:?}\n[source]\nkind = \"kafka\"\nbrokers = {:?}\ntopic = {topic:?}\n\
             [sinks.sqlite]\npath = \"{place}/results.db\"\ncommit_interval = \"20ms\"\n\
             [http]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n{}",
            brokers(),
            sections.replace("DIR", place)
        );
        fs::write(dir.path().join("run.toml"), text).expect("written");
        Pipeline { dir, topic, producer: producer(None) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = headwater(&["run"]);
        command.arg(self.path("run.toml")).args(arguments);
        command
    }

    pub fn start(&self, arguments: &[&str]) -> Process {
        Process::start(self.command(arguments), self.path("run.log"))
    }

    pub fn send_by(&self, producer: &BaseProducer, partition: i32, timestamp: i64, value: Option<&str>) {
        let record = BaseRecord::<[u8], str>::to(&self.topic).partition(partition).timestamp(timestamp);
        let record = value.into_iter().fold(record, BaseRecord::payload);
        producer.send(record).map_err(|(error, _)| error).expect("queued");
        producer.poll(Duration::ZERO);
    }

    pub fn send(&self, partition: i32, value: &str) {
        self.send_by(&self.producer, partition, NOW, Some(value));
    }

    pub fn flush(&self) {
        self.producer.flush(TEN_SECONDS).expect("written");
    }

    /// Returns the first column of a query that selects one row.
    fn query<X: rusqlite::types::FromSql>(&self, database: &str, query: &str) -> Option<X> {
        let connection = rusqlite::Connection::open(self.path(database)).expect("a database");
        connection.busy_timeout(TEN_SECONDS).expect("set");
        // The tables do not exist before the first commit.
        connection.query_row(query, [], |row| row.get::<_, Option<X>>(0)).ok().flatten()
    }

    pub fn count(&self, query: &str) -> i64 {
        self.query("results.db", query).unwrap_or(0)
    }

    pub fn wait_count(&self, query: &str, expected: i64) {
        wait_for(query, || (self.count(query) == expected).then_some(()));
    }
}

pub fn stop_cleanly(mut run: Process) {
    run.terminate();
    run.expect_success();
}

fn wait_until_ready(run: &mut Process) {
    let address = run.address();
    wait_for("readiness", || (get(address, "/readyz").0 == 200).then_some(()));
}

/// Counts the lines of a log that have this level and message and the cause `transaction`.
fn logged(run: &Process, level: &str, message: &str) -> usize {
    lines_with_cause(&run.log(), "transaction", message).filter(|line| line["level"] == level).count()
}

#[test]
fn a_partition_of_rejected_records_does_not_hold_windows() {
    let pipeline = Pipeline::new("junk", 2, &format!("[time]\nmax_out_of_orderness = \"1s\"\n{SECONDS}"));
    let mut run = pipeline.start(&["-w", "2"]);
    let junk = |n: i64| match n % 3 {
        0 => pipeline.send(1, "heartbeat"),
        1 => pipeline.send_by(&pipeline.producer, 1, NOW, None),
        _ => pipeline.send(1, &event(&format!("future-{n}"), "b", wall_ms() + 3_600_000)),
    };
    for n in 0..50 {
        pipeline.send(0, &event(&format!("a{n}"), "a", T + 200 * n));
        junk(n);
        std::thread::sleep(Duration::from_millis(100));
    }
    // The last event of partition 0 is at T + 9.8 s.
    let mut n = 50;
    wait_for("final windows while the junk goes on", || {
        n += 1;
        junk(n);
        (pipeline.count(&format!("{FINALS} AND \"key\" = 'a' AND count = 5")) >= 8).then_some(())
    });
    wait_until_ready(&mut run);
    stop_cleanly(run);
    assert_eq!(pipeline.count(EVENTS), 50);
    assert_eq!(pipeline.count("SELECT count(*) FROM dead_letters WHERE partition = 0 OR reason = 'late'"), 0);
    assert_eq!(pipeline.count(FINALS), 8);
}

/// Starts a pipeline with an open transaction at offset 1 of partition 0, and 30 s of events in partition 1.
fn with_an_open_transaction(name: &str, sections: &str) -> (Pipeline, Process, BaseProducer) {
    let pipeline = Pipeline::new(name, 2, &format!("{sections}{SECONDS}[patterns.rapid_fire_burst]\n"));
    let mut run = pipeline.start(&["-w", "2"]);
    pipeline.send(0, &event("p0", "other", T));
    pipeline.flush();
    let upstream = producer(Some(&pipeline.topic));
    upstream.begin_transaction().expect("begun");
    pipeline.send_by(&upstream, 0, NOW, Some(&event("open", "other", T + 1)));
    upstream.flush(TEN_SECONDS).expect("written");
    // Behind an open transaction, partition 0 stops being idle after a second.
    wait_until_ready(&mut run);
    let address = run.address();
    wait_for("the held partition", || (metric(address, HELD) >= 1.0).then_some(()));
    for n in 0..120 {
        pipeline.send(1, &event(&format!("p1-{n}"), "thief", T + 250 * n));
    }
    pipeline.flush();
    pipeline.wait_count(EVENTS, 121);
    wait_for("the alert", || {
        (pipeline.query::<String>("results.db", ALERTS)? == "rapid_fire_burst thief p1-9").then_some(())
    });
    (pipeline, run, upstream)
}

#[test]
fn an_open_transaction_holds_only_final_results() {
    let (pipeline, mut run, upstream) = with_an_open_transaction("held", "[time]\nheld_warning = \"2s\"\n");
    assert_eq!(pipeline.count(FINALS), 0);
    let address = run.address();
    let body = wait_for("503 for the transaction", || {
        let (status, body) = get(address, "/readyz");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        (status == 503 && body["stalled"].to_string().contains("transaction")).then_some(body)
    });
    let reason = body["reason"].as_str().expect("text");
    let names = "source partition 0 is held by a transaction that is open at offset 1 for ";
    assert!(reason.contains(names), "{reason}");
    assert_eq!(metric(address, "headwater_stalled{cause=\"transaction\"}"), 1.0);
    assert!(metric(address, HELD) > 0.0);
    assert_eq!(metric(address, "headwater_partition_held_seconds{partition=\"1\"}"), 0.0);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(logged(&run, "WARN", "stalled"), 1, "{}", run.log());
    assert_eq!(logged(&run, "INFO", "no longer stalled"), 0, "{}", run.log());
    assert_eq!(pipeline.count(FINALS), 0);

    upstream.abort_transaction(TEN_SECONDS).expect("aborted");
    wait_until_ready(&mut run);
    wait_for("the end of the stall in the log", || {
        (logged(&run, "INFO", "no longer stalled") == 1).then_some(())
    });
    // The watermark is 5 s and 1 ms behind the last event.
    pipeline.wait_count(&format!("{FINALS} AND \"key\" = 'thief'"), 24);
    assert_eq!(metric(address, "headwater_stalled{cause=\"transaction\"}"), 0.0);
    assert_eq!(metric(address, HELD), 0.0);
    stop_cleanly(run);
    assert_eq!(pipeline.count(EVENTS), 121);
    assert_eq!(pipeline.count("SELECT count(*) FROM dead_letters"), 0);
}

#[test]
fn after_held_timeout_records_of_the_transaction_are_late() {
    let started = Instant::now();
    let (pipeline, run, upstream) = with_an_open_transaction("timeout", "[time]\nheld_timeout = \"4s\"\n");
    pipeline.wait_count(&format!("{FINALS} AND \"key\" = 'thief'"), 24);
    assert!(started.elapsed() >= Duration::from_secs(4), "final results did not wait for the transaction");
    assert_eq!(pipeline.count("SELECT count(*) FROM dead_letters"), 0);
    upstream.commit_transaction(TEN_SECONDS).expect("committed");
    pipeline.wait_count(LATE, 1);
    for n in 120..160 {
        pipeline.send(1, &event(&format!("p1-{n}"), "thief", T + 250 * n));
    }
    pipeline.wait_count(&format!("{FINALS} AND \"key\" = 'thief'"), 34);
    stop_cleanly(run);
    assert_eq!(pipeline.count(&format!("{LATE} AND partition = 0 AND \"offset\" = 1")), 1);
    assert_eq!(pipeline.count("SELECT count(*) FROM dead_letters"), 1);
}

#[test]
fn a_fast_clock_does_not_make_other_records_late() {
    let pipeline = Pipeline::new("fast", 2, "[patterns.rapid_fire_burst]\n");
    let run = pipeline.start(&["-w", "2"]);
    let send = |id: &str, user: &str, turn: i64, begin: i64, ahead: i64| {
        for partition in 0..2 {
            let (id, written) = (format!("{id}{partition}-{turn}"), T + begin + 100 * turn);
            let value = event(&id, user, written + ahead);
            pipeline.send_by(&pipeline.producer, partition, written, Some(&value));
        }
        pipeline.flush();
    };
    (0..5).for_each(|turn| send("h", "honest", turn, 0, 0));
    send("fast", "fast", 0, 500, 290_000);
    pipeline.wait_count(EVENTS, 12);
    // Both partitions become idle.
    std::thread::sleep(Duration::from_millis(1500));
    (0..20).for_each(|turn| send("t", "thief", turn, 2000, 0));
    pipeline.wait_count(EVENTS, 52);
    stop_cleanly(run);
    assert_eq!(pipeline.count("SELECT count(*) FROM dead_letters"), 0);
    let alerts: Option<String> = pipeline.query("results.db", ALERTS);
    assert_eq!(alerts.as_deref(), Some("rapid_fire_burst honest h1-4, rapid_fire_burst thief t1-4"));
}

#[test]
fn records_without_a_timestamp_use_the_wall_clock() {
    let pipeline = Pipeline::new("untimed", 1, "");
    let now = wall_ms();
    for (id, timestamp, time) in [
        ("none", -1, T),
        ("oldest", 1, T + 1),
        ("seconds", T / 1000, T + 2),
        ("right", T, T + 3),
        ("ahead-of-wall", -1, now + 3_600_000),
        ("ahead-of-record", T, T + 300_001),
    ] {
        pipeline.send_by(&pipeline.producer, 0, timestamp, Some(&event(id, "u1", time)));
        pipeline.flush();
    }
    succeed(&mut pipeline.command(&["--bounded", "--drain"]));
    let ids = "SELECT group_concat(event_id) FROM (SELECT event_id FROM events ORDER BY \"offset\")";
    let ids: Option<String> = pipeline.query("results.db", ids);
    assert_eq!(ids.as_deref(), Some("none,oldest,seconds,right"));
    let letter = |offset: i64, column: &str| -> String {
        let query =
            format!("SELECT {column} FROM dead_letters WHERE \"offset\" = {offset} AND reason = 'future'");
        pipeline.query("results.db", &query).expect("a dead letter")
    };
    assert_eq!(letter(4, "timestamp"), "1969-12-31T23:59:59.999Z", "the timestamp -1 was not preserved");
    let beyond = "more than 300000 ms (time.max_future_skew) beyond";
    let message = letter(4, "message");
    assert!(message.contains(&format!("{beyond} the wall time when it was read, 2")), "{message}");
    assert_eq!(
        letter(5, "message"),
        format!(
            "event_time 2023-11-14T22:05:00.001Z lies in the future, {beyond} its record's timestamp, \
             2023-11-14T22:00:00.000Z"
        )
    );
}

#[test]
fn idle_advance_closes_windows_also_after_kills() {
    let sections = format!(
        "[time]\nmax_out_of_orderness = \"1s\"\nidle_advance = \"2s\"\n{SECONDS}[patterns.rapid_fire_burst]\n\
         [ledger]\nkind = \"sqlite\"\n\
         path = \"DIR/ledger.db\"\n[checkpoint]\ninterval = \"1s\"\n[state]\npath = \"DIR/state\"\n"
    );
    let pipeline = Pipeline::new("silence", 2, &sections);
    let mut records = String::new();
    let mut offsets = [0; 2];
    let mut send = |partition: usize, time: i64| {
        let offset = offsets[partition];
        offsets[partition] += 1;
        let value = event(&format!("{partition}-{offset}"), &format!("user-{partition}"), time);
        pipeline.send_by(&pipeline.producer, partition as i32, time, Some(&value));
        records += &kafka::oracle_line(partition as u32, offset, Some(time), Some(value.as_bytes()));
    };
    let bindings = pipeline.path("bindings.ndjson").display().to_string();
    let start = |workers: &str| {
        let recorded = "SELECT max(newest) FROM (SELECT max(through) AS newest FROM headwater_bindings
             UNION SELECT max(epoch) FROM headwater_manifests)";
        merge_bindings(pipeline.dir.path(), pipeline.query("ledger.db", recorded).unwrap_or(0));
        pipeline.start(&["-w", workers, "--bindings", &bindings])
    };

    let mut run = start("1");
    (0..10).for_each(|n| send(0, T + 200 * n));
    send(1, T + 500);
    pipeline.wait_count(EVENTS, 11);
    // Both partitions are idle, and `idle_advance` has not passed yet.
    std::thread::sleep(Duration::from_millis(1500));
    run.kill();
    let mut run = start("2");
    pipeline.wait_count(FINALS, 3);
    run.kill();
    let run = start("1");
    send(0, T + 1_900);
    pipeline.wait_count(LATE, 1);
    send(1, T + 600_000);
    pipeline.wait_count(EVENTS, 12);
    // `idle_advance` closes the last window, too.
    pipeline.wait_count(FINALS, 4);
    stop_cleanly(run);
    merge_bindings(pipeline.dir.path(), i64::MAX);
    fs::write(pipeline.path("records.ndjson"), records).expect("written");
    let path = pipeline.path("records.ndjson").display().to_string();
    let history = pipeline.path("history.ndjson");
    Expected::of(pipeline.dir.path(), &pipeline.path("run.toml"), &["--records", &path], &history)
        .judge_sqlite(&pipeline.path("results.db"));
}

#[test]
fn late_records_do_not_end_idleness() {
    let pipeline = Pipeline::new("back", 2, &format!("[time]\nmax_out_of_orderness = \"1s\"\n{SECONDS}"));
    let run = pipeline.start(&["-w", "2"]);
    let ahead = |second: i64| pipeline.send(0, &event(&format!("a{second}"), "a", T + 1000 * second));
    let back = |second: i64| pipeline.send(1, &event(&format!("b{second}"), "b", T + 1000 * second));
    let finals = format!("{FINALS} AND \"key\" = 'a'");
    back(0);
    (0..=10).for_each(ahead);
    pipeline.wait_count(&finals, 8 + 1);
    // Late records do not end the idleness of partition 1: windows close while they arrive.
    let mut late = 1;
    back(1);
    pipeline.wait_count(LATE, late);
    for second in 11..=20 {
        late += 1;
        back(1 + late % 7);
        ahead(second);
        std::thread::sleep(Duration::from_millis(150));
    }
    wait_for("windows while late records come", || {
        late += 1;
        back(1 + late % 7);
        (pipeline.count(&finals) == 19).then_some(())
    });
    pipeline.wait_count(LATE, late);
    // A record on time ends the idleness; when the partition is silent again, it holds nothing.
    back(20);
    // An idle partition holds nothing back: the record must be read before those that would make it late.
    pipeline.wait_count(&format!("{EVENTS} WHERE partition = 1"), 2);
    (21..=30).for_each(ahead);
    pipeline.wait_count(&finals, 29);
    back(30);
    pipeline.wait_count(&format!("{EVENTS} WHERE partition = 1"), 3);
    stop_cleanly(run);
    assert_eq!(pipeline.count(&format!("{LATE} AND partition = 1")), late);
    assert_eq!(pipeline.count("SELECT count(*) FROM dead_letters"), late);
    assert_eq!(pipeline.count(&format!("{EVENTS} WHERE partition = 0")), 31);
}
