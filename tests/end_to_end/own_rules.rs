//! Rules of one's own over events of one's own, by keys of one's own, judged by an oracle of their own: the same results
//! for any number of workers and processes, from files and from Kafka, through crashes and changes of the configuration.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headwater_sinks::kafka::topics::TopicSpec;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::types::RDKafkaErrorCode;
use serde_json::Value;

use crate::checkpoints::{CHECKPOINT, run_until_pruned, status};
use crate::cluster::Cluster;
use crate::common::{Random, succeed};
use crate::crash::{Files, Results, kill_when, rows};
use crate::crash_points::{CONFIG_CHANGE_POINTS, common_points, crash_at, needs_services};
use crate::kafka::{assert_alerts_match_table, brokers, oracle_line, producer, topics};
use crate::live::{Process, wait_for};
use crate::liveness::wall_ms;

/// Fields, keys, windows and rules.
pub const OWN_FLOW: &str = include_str!("own_rules/flow.toml");

const SOURCE: &str = "epoch_records = 25\n";

pub const PARTITIONS: u64 = 4;

/// 2026-01-01, in milliseconds.
const BASE: u64 = 1_767_225_600_000;

/// Returns records of a schema of its own, each with its partition: few shops and many cards, events out of order and at
/// the same instant, late and repeated ones, and some that are no events.
pub fn records(seed: u64, count: u64) -> Vec<(usize, String)> {
    let mut random = Random(seed);
    let mut made: Vec<(usize, String)> = Vec::new();
    for n in 0..count {
        let partition = random.below(PARTITIONS) as usize;
        let line = match random.below(100) {
            0..3 if n > 50 => made[made.len() - 1 - random.below(50) as usize].1.clone(),
            3 => "{\"id\":\"broken\",".to_owned(),
            4 => format!("{{\"id\":\"e{n}\",\"meta\":{{\"ts\":{},\"kind\":\"login\"}}}}", BASE / 1000),
            5 => format!("{{\"id\":\"e{n}\",\"meta\":{{\"ts\":\"soon\"}},\"geo\":{{\"cc\":\"FR\"}}}}"),
            _ => record(&mut random, n),
        };
        made.push((partition, line));
    }
    made
}

fn record(random: &mut Random, n: u64) -> String {
    let behind = match random.below(100) {
        0..2 => 200_000,
        2..12 => random.below(40_000),
        _ => random.below(6_000),
    };
    let mut ms = (BASE + 200_000 + n * 500).saturating_sub(behind);
    if random.below(2) == 0 {
        ms -= ms % 1000;
    }
    let user = random.below(300).min(random.below(300));
    let kind = ["payment", "payment", "payment", "login", "refund"][random.below(5) as usize];
    // Most cards belong to one user; some are used by many.
    let card = if random.below(10) == 0 { random.below(7) } else { user * 3 + random.below(2) };
    let cents = [random.below(2_000), random.below(30_000), random.below(100_000)][random.below(3) as usize];
    let mut line =
        format!("{{\"id\":\"e{n}\",\"meta\":{{\"ts\":{}.{:03},\"kind\":\"{kind}\"}}", ms / 1000, ms % 1000);
    let mut add = |percent: u64, member: String| {
        if random.below(100) < percent {
            line.push(',');
            line.push_str(&member);
        }
    };
    add(95, format!("\"acct\":{{\"no\":{user}}}"));
    add(90, format!("\"dev\":[null,\"d-{}\"]", user % 60));
    add(92, format!("\"sum\":{{\"cents\":{cents},\"cur\":\"{}\"}}", ["EUR", "USD"][(card % 2) as usize]));
    add(60, format!("\"fee\":\"0.{:02}\"", n % 100));
    add(90, format!("\"shop\":{{\"id\":\"m{}\"}}", (n * n + card) % 11));
    add(90, format!("\"card\":{{\"hash\":\"c\\\"é{card}\"}}"));
    add(70, format!("\"resp\":{{\"ok\":{}}}", n.is_multiple_of(3)));
    add(80, format!("\"n\":{}", (n * 7) % 11));
    let away = if n.is_multiple_of(10) { n % 60 } else { 0 };
    let (lat, lon) = (40 + user % 20 + away / 6, n % 3 + away);
    let place =
        if n.is_multiple_of(4) { String::new() } else { format!("\"lat\":{lat}.25,\"lng\":-{lon}.5,") };
    line.push_str(&format!(",\"geo\":{{{place}\"cc\":\"{}\"}}}}", ["FR", "DE", "KP"][(n % 3) as usize]));
    line
}

/// Writes one file for each partition.
fn write(dir: &Path, records: &[(usize, String)]) -> Vec<PathBuf> {
    let write_one = |partition: u64| {
        let path = dir.join(format!("part-{partition}.ndjson"));
        let mut out = std::io::BufWriter::new(fs::File::create(&path).expect("a file"));
        let of_partition = records.iter().filter(|(at, _)| *at == partition as usize);
        of_partition.for_each(|(_, line)| writeln!(out, "{line}").expect("written"));
        out.flush().expect("written");
        path
    };
    (0..PARTITIONS).map(write_one).collect()
}

/// Returns a pipeline that reads such records, without a configuration.
pub fn own_files(results: Results, seed: u64, count: u64) -> Files {
    let mut dir = tempfile::tempdir().expect("a directory");
    dir.disable_cleanup(std::env::var_os("KEEP").is_some());
    let paths = write(dir.path(), &records(seed, count));
    Files::of(results, dir, &paths, SOURCE, "own_rules.py")
}

/// Writes the configuration with these fields, keys, windows and rules, and with checkpoints.
fn configure(files: &Files, flow: &str) {
    let state = files.path("state").display().to_string();
    // Few epochs at once, so that a run can be disturbed often before the end of the input.
    let flow = format!("{flow}{CHECKPOINT}[state]\npath = {state:?}\n");
    files.configure_limits("epochs_in_flight = 6\n", &flow);
}

/// Checks that the stored alerts of each rule are many, and that some of those that can be revoked are.
fn assert_rules_are_met(database: &Path) {
    let database = rusqlite::Connection::open(database).expect("a database");
    let count = |sql: String| database.query_row(&sql, [], |row| row.get::<_, i64>(0)).expect("a number");
    let of = |condition: &str| count(format!("SELECT count(*) FROM alerts WHERE {condition}"));
    for rule in OWN_FLOW.lines().filter_map(|line| line.strip_prefix("id = \"")?.strip_suffix('"')) {
        assert!(of(&format!("rule = '{rule}' AND status = 'raised'")) > 10, "{rule} has few alerts");
    }
    let revoked = count("SELECT count(DISTINCT rule) FROM alerts WHERE status = 'revoked'".to_owned());
    assert!(revoked >= 12 && of("status = 'revoked'") > 300, "{revoked} rules have revoked alerts");
    for reason in ["late", "duplicate", "malformed", "invalid"] {
        let letters = count(format!("SELECT count(*) FROM dead_letters WHERE reason = '{reason}'"));
        assert!(letters > 100, "{letters} {reason}");
    }
}

/// Every change of an alert is judged of a run with two workers; with one and with three, the tables are the same.
#[test]
fn own_rules_match_the_oracle_with_any_number_of_workers() {
    let files = own_files(Results::Directory, 71, 20_000);
    files.configure(OWN_FLOW);
    succeed(&mut files.command("2"));
    let expected = files.expected(&files.path("run.toml"));
    expected.judge_directory(&files.path("results"));
    let tables = ["1", "3"].map(|workers| {
        let files = own_files(Results::Sqlite, 71, 20_000);
        files.configure(OWN_FLOW);
        succeed(&mut files.command(workers));
        let database = files.path("results.db");
        if workers == "1" {
            expected.judge_sqlite(&database);
            assert_rules_are_met(&database);
        }
        rows(&database)
    });
    let differs = tables[0].iter().zip(&tables[1]).find(|(one, three)| one != three);
    assert_eq!((differs, tables[0].len()), (None, tables[1].len()));
}

#[test]
fn own_rules_survive_kills_and_crash_points() {
    let files = own_files(Results::Sqlite, 72, 16_000);
    configure(&files, OWN_FLOW);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut workers = || ["1", "2", "3"][random.below(3) as usize];
    let mut delays = Random(7);
    let mut kills = 0;
    for _ in 0..4 {
        let before = files.frontiers().0;
        let delay = Duration::from_millis(delays.below(80));
        let has_progress = || files.frontiers().0 > before;
        kills += u32::from(kill_when(&mut files.command(workers()), has_progress, delay));
        let (sink, ledger) = files.frontiers();
        assert!(sink >= before && sink <= ledger, "the sink has epoch {sink}, the ledger {ledger}");
    }
    for point in common_points().into_iter().filter(|point| !needs_services(point)) {
        crash_at(files.command(workers()), point, 1);
    }
    assert!(kills > 0, "no run was killed after new epochs were committed");
    assert!(files.pruned_through() > 0, "no checkpoint was used: the ledger was never pruned");
    succeed(&mut files.command(workers()));
    files.judge();
}

/// The first rule is new; one rule and the only rule of a key space are gone; one has another severity, one another mode,
/// and one other keys.
fn changed_flow() -> String {
    let fresh =
        "[[rules]]\nid = \"fresh\"\nby = \"card\"\ncount = { at_least = 2, within = \"1m\" }\n[[rules]]";
    let flow = OWN_FLOW.replacen("[[rules]]", fresh, 1);
    let (flow, _) = flow.split_once("[[rules]]\nid = \"corridor_rush\"").expect("the last rule");
    let flow = flow.replace("corridor = [\"country\", \"currency\"]\n", "");
    let flow = flow.replace("till = \"currency\"", "till = \"country\"");
    let (before, removed) = flow.split_once("[[rules]]\nid = \"user_shops\"").expect("a rule");
    let (_, after) = removed.split_once("[[rules]]").expect("another rule");
    let after = format!("{before}[[rules]]{after}");
    let after = after.replace("'high' : 'low'\"\nmode = \"shadow\"", "'high' : 'low'\"\nmode = \"live\"");
    let high = "count = { more_than = 15, within = \"1m\" }\nseverity = \"";
    after.replace(&format!("{high}high"), &format!("{high}critical"))
}

/// Rules that do not change go on with their state, and others judge the events that arrive after the change; nothing needs
/// a permission.
#[test]
fn changed_rules_leave_the_others_as_they_are() {
    let files = own_files(Results::Directory, 73, 16_000);
    configure(&files, OWN_FLOW);
    fs::copy(files.path("run.toml"), files.path("before.toml")).expect("copied");
    let mut run = run_until_pruned(&files, "2");
    run.terminate();
    run.expect_success();
    let changed = files.frontiers().0;
    configure(&files, &changed_flow());
    let discards = status(&files)["start"]["discards"].to_string();
    for section in ["keys.corridor", "rules.corridor", "keys.till", "rules.till"] {
        assert!(discards.contains(section), "{discards}");
    }
    crash_at(files.command("2"), CONFIG_CHANGE_POINTS[0], 1);
    crash_at(files.command("1"), CONFIG_CHANGE_POINTS[1], 1);
    assert_eq!(status(&files)["start"]["discards"], Value::Null, "the change is complete");
    crash_at(files.command("1"), "ledger.conclude.after", 2);
    succeed(&mut files.command("3"));

    let results = files.path("results");
    // The oracle does not know that keys have changed, only that rules have.
    let has_other_keys = |row: &Value| row["rule"] == "corridor_rush" || row["rule"] == "till_cards";
    let is_later = |row: &Value| row["epoch"].as_i64() > Some(changed);
    files.expected(&files.path("before.toml")).judge_some(&results, |_, row| !has_other_keys(row));
    let started = changes(&results).iter().filter(|row| row["rule"] == "fresh" && is_later(row)).count();
    assert!(started > 100, "{started} alerts of the new rule");
    let last = changes(&results).into_iter().filter(|row| !is_later(row));
    let last = last.filter_map(|row| row["event_time"].as_str().map(str::to_owned)).max().expect("alerts");
    let text = fs::read_to_string(files.path("before.toml")).expect("readable");
    fs::write(files.path("keys.toml"), text.replace("till = \"currency\"", "till = \"country\""))
        .expect("written");
    files
        .expected(&files.path("keys.toml"))
        .judge_some(&results, |_, row| row["rule"] == "till_cards" && is_after(row, &last));
    // The first new epoch has the change, which is in force from the next one on.
    let is_judged_anew = |row: &&Value| row["epoch"].as_i64() > Some(changed + 1);
    for row in changes(&results).iter().filter(is_judged_anew) {
        assert!(row["rule"] != "user_shops" && row["rule"] != "corridor_rush", "{row}");
    }
    let went_live = changes(&results).iter().filter(|row| row["rule"] == "user_sum" && is_later(row)).count();
    assert!(went_live > 50, "{went_live} alerts of the rule that is no longer in shadow");
    assert_raised_before_revoked(&changes(&results));
}

/// Returns true if an alert is of a time at least two minutes after another.
fn is_after(row: &Value, time: &str) -> bool {
    let milliseconds = |text: &str| {
        let parsed: jiff::Timestamp = text.parse().expect("a time");
        parsed.as_millisecond()
    };
    let of_row = row["event_time"].as_i64().or_else(|| row["event_time"].as_str().map(milliseconds));
    of_row > Some(milliseconds(time) + 120_000)
}

/// Returns the changes of alerts in the directory of a file sink.
fn changes(results: &Path) -> Vec<Value> {
    let text = fs::read_to_string(results.join("alerts.ndjson")).expect("readable");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Checks that no alert is revoked that is not raised, also of a rule that was new at a start.
fn assert_raised_before_revoked(changes: &[Value]) {
    let mut raised = std::collections::BTreeSet::new();
    for row in changes {
        let id = row["alert_id"].as_str().expect("an id");
        if row["status"] == "raised" {
            raised.insert(id);
        } else {
            assert!(raised.remove(id), "revoked and not raised: {row}");
        }
    }
}

/// Produces records to a topic, records them for the oracle, and counts the offsets.
pub struct Feed {
    producer: BaseProducer,
    topic: String,
    recorded: fs::File,
    offsets: [u64; PARTITIONS as usize],
    now: i64,
}

impl Feed {
    /// Creates a feed of a topic that is recorded in `records.ndjson` of a directory.
    pub fn new(topic: String, dir: &Path) -> Feed {
        Feed {
            producer: producer(&brokers(), &[("linger.ms", "5")], None),
            topic,
            recorded: fs::File::create(dir.join("records.ndjson")).expect("a file"),
            offsets: [0; PARTITIONS as usize],
            now: wall_ms() - 60_000,
        }
    }

    pub fn produce(&mut self, records: &[(usize, String)]) {
        for (partition, line) in records {
            self.now += 1;
            let record = BaseRecord::<[u8], str>::to(&self.topic).partition(*partition as i32).payload(line);
            let mut queued = self.producer.send(record.timestamp(self.now));
            while let Err((error, record)) = queued {
                assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull), "{error}");
                self.producer.poll(Duration::from_millis(20));
                queued = self.producer.send(record);
            }
            let offset = self.offsets[*partition];
            let line = oracle_line(*partition as u32, offset, Some(self.now), Some(line.as_bytes()));
            self.recorded.write_all(line.as_bytes()).expect("written");
            self.offsets[*partition] += 1;
        }
        self.producer.flush(Duration::from_secs(10)).expect("written");
    }
}

/// From Kafka into PostgreSQL and a topic of alerts, in pieces: after each, other numbers of processes and workers go on, and one is killed.
#[test]
fn own_rules_from_kafka_survive_kills_of_any_process() {
    let alerts = format!("alerts-own-rules-{}", std::process::id());
    topics(&brokers()).create(&[TopicSpec::new(&alerts, 2)]).expect("created");
    let sink = format!("[sinks.kafka]\nbrokers = {:?}\ntopics = {{ alerts = {alerts:?} }}\n", brokers());
    let (cluster, topic) = Cluster::of("own_rules", PARTITIONS as u32, OWN_FLOW, &sink);
    let mut feed = Feed::new(topic, cluster.dir());
    let records = records(74, 12_000);
    let mut random = Random(74);
    for (piece, (processes, workers)) in records.chunks(3_000).zip([(1, 1), (1, 3), (2, 1), (1, 2)]) {
        feed.produce(piece);
        let before = cluster.through();
        let mut running = cluster.start_with(&["--bounded"], processes, workers);
        let ended = |running: &mut Vec<Process>| running.iter_mut().any(|run| run.try_wait().is_some());
        wait_for("results", || (cluster.through() > before || ended(&mut running)).then_some(()));
        std::thread::sleep(Duration::from_millis(random.below(60)));
        running.remove(random.below(processes as u64) as usize).kill_if_alive();
        running.iter_mut().for_each(|run| _ = run.wait());
    }
    let mut last = cluster.start_with(&["--bounded", "--drain"], 2, 2);
    last.iter_mut().for_each(Process::expect_success);

    cluster.judge_own_rules(&cluster.path("run.toml"));
    assert!(cluster.postgres.number("SELECT count(*) FROM alerts WHERE status = 'revoked'") > 50);
    assert!(cluster.postgres.number("SELECT count(*) FROM alerts WHERE mode = 'shadow'") > 500);
    assert_alerts_match_table(&brokers(), &alerts, |sql| cluster.postgres.query(sql));
}
