//! The main job on a real Kafka: records in; topics, SQLite and PostgreSQL out; with one worker and with three.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::common::{Expected, FLOW, gather, hard, headwater, succeed};
use crate::crash::kill_when;
use crate::postgres::Database;
use headwater::source::generator::{GeneratorSettings, RecordMaker};
use headwater::source::kafka::dead_letters::{DeadLetter, DeadLetters};
use headwater::source::kafka::produce::{Produced, Producer};
use headwater_sinks::kafka::topics::{TopicSpec, Topics};

const OUTPUTS: [&str; 3] = ["enriched-events", "alerts", "dead-letters"];

/// Where the broker is.
pub fn brokers() -> String {
    std::env::var("HEADWATER_TEST_KAFKA")
        .expect("HEADWATER_TEST_KAFKA is not set: scripts/test starts a broker and sets it")
}

fn read_all(topic: &str) -> Vec<DeadLetter> {
    DeadLetters::read_all(&brokers(), &BTreeMap::new(), topic)
        .expect("the topic is there")
        .map(|record| record.expect("readable"))
        .collect()
}

/// Produces a generated stream, and writes it down for the oracle.
pub fn produce(topic: &str, settings: &GeneratorSettings, records: u64, recorded: &Path) {
    use std::fmt::Write;
    let mut maker = RecordMaker::new(settings.clone());
    let partitions = u64::from(settings.partitions);
    let mut text = String::new();
    let mut produced = Vec::new();
    for n in 0..records {
        let (partition, offset) = ((n % partitions) as u32, n / partitions);
        maker.make(partition, offset, None);
        writeln!(
            text,
            "{{\"partition\":{partition},\"offset\":{offset},\"timestamp\":null,\"key\":null,\"value\":\"{}\"}}",
            base64(&maker.value)
        )
        .expect("a string takes everything");
        let (key, value) = (Some(maker.key.clone()), Some(maker.value.clone()));
        produced.push(Produced { partition: Some(partition), key, value, headers: Vec::new() });
    }
    fs::write(recorded, text).expect("written");
    let producer = Producer::connect(&brokers(), &BTreeMap::new(), topic).expect("connected");
    let report = producer.run(produced, None, &AtomicBool::new(false), &mut |_| {}).expect("produced");
    assert_eq!(report.acknowledged, records);
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// What the tables hold, in the words that the topics have for it.
struct Tables(rusqlite::Connection);

impl Tables {
    fn rows(&self, sql: &str) -> Vec<String> {
        let mut statement = self.0.prepare(sql).expect("a query");
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("answered");
        let mut rows: Vec<_> = rows.map(|row| row.expect("text")).collect();
        rows.sort();
        rows
    }
}

fn json(record: &DeadLetter) -> serde_json::Value {
    serde_json::from_slice(record.value.as_deref().unwrap_or_default()).expect("JSON")
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The topics say what the tables say.
fn topics_agree(tables: &Tables) {
    let mut enriched: Vec<_> = read_all("enriched-events")
        .iter()
        .map(|record| {
            let event = json(record);
            assert_eq!(record.key.as_deref(), event["key"].as_str().map(str::as_bytes));
            ["event_id", "key_kind", "key", "epoch", "key_events", "amount_band", "event_time"]
                .map(|name| text(&event[name]))
                .join("|")
        })
        .collect();
    enriched.sort();
    assert_eq!(
        enriched,
        tables.rows("SELECT concat_ws('|', event_id, key_kind, \"key\", epoch, key_events, amount_band, event_time) FROM events")
    );

    // Each change is a message; the table has each alert's last one.
    let mut alerts = BTreeMap::new();
    let mut changes = BTreeSet::new();
    for record in read_all("alerts") {
        let alert = json(&record);
        let (id, epoch) = (text(&alert["alert_id"]), alert["epoch"].as_u64().expect("a number"));
        assert!(changes.insert((id.clone(), epoch)), "two changes of {id} in epoch {epoch}");
        let row =
            ["alert_id", "status", "rule", "severity", "epoch"].map(|name| text(&alert[name])).join("|");
        let last = alerts.entry(id).or_insert((epoch, String::new()));
        if epoch >= last.0 {
            *last = (epoch, row);
        }
    }
    let revoked = alerts.values().filter(|(_, row)| row.contains("|revoked|")).count();
    let mut alerts: Vec<_> = alerts.into_values().map(|(_, row)| row).collect();
    alerts.sort();
    assert_eq!(
        alerts,
        tables.rows("SELECT concat_ws('|', alert_id, status, rule, severity, epoch) FROM alerts")
    );
    assert!(revoked > 0, "the stream is to exercise revocations");

    let mut letters: Vec<_> = read_all("dead-letters")
        .iter()
        .map(|letter| {
            let header = |name| letter.header(name).unwrap_or_default().to_owned();
            let value = letter.value.as_deref().map_or(0, <[u8]>::len);
            [
                header("source-partition"),
                header("source-offset"),
                letter.reason().to_owned(),
                value.to_string(),
            ]
            .join("|")
        })
        .collect();
    letters.sort();
    assert_eq!(
        letters,
        tables.rows("SELECT concat_ws('|', partition, \"offset\", reason, length(value)) FROM dead_letters")
    );
}

/// What a run that is to be killed has beside: little at a time, a ledger, and checkpoints.
const KILLED: &str = "commit_interval = \"0ms\"\n[limits]\nbytes_in_flight = \"1MiB\"\n[ledger]\nkind = \"postgres\"\n\
     [checkpoint]\ninterval = \"100ms\"\nkeep = 2\n[state]\nkind = \"redis\"\nurl = ";

/// Where Redis is.
fn redis() -> String {
    std::env::var("HEADWATER_TEST_REDIS")
        .expect("HEADWATER_TEST_REDIS is not set: scripts/test starts a Redis and sets it")
}

#[test]
fn topics_and_tables_are_what_the_oracle_says_with_one_worker_with_three_and_after_kills() {
    let records = if std::env::var_os("HEADWATER_TEST_LONG").is_some() { 200_000 } else { 60_000 };
    let dir = tempfile::tempdir().expect("a directory");
    let recorded = dir.path().join("records.ndjson");
    let (brokers, options) = (brokers(), BTreeMap::new());
    let topics = Topics::connect(&brokers, &options).expect("connected");
    topics.create(&[TopicSpec::new("raw-flow", 6)]).expect("created");
    produce("raw-flow", &hard(7), records, &recorded);

    for (workers, kills) in [("1", 0), ("3", 0), ("2", 6)] {
        topics.create(&headwater::topics::standard()).expect("created");
        let at = dir.path().join(workers);
        fs::create_dir(&at).expect("a directory");
        let (config, database, bindings) =
            (at.join("run.toml"), at.join("results.db"), at.join("bindings.ndjson"));
        let postgres = Database::create(&format!("flow_{workers}"));
        let text = format!(
            "pipeline = \"flow-{workers}\"\n[source]\nkind = \"kafka\"\ntopic = \"raw-flow\"\nbrokers = {brokers:?}\n{FLOW}\
             [sinks.kafka]\nbrokers = {brokers:?}\n[sinks.sqlite]\npath = {:?}\n[sinks.postgres]\nurl = {:?}\n{}",
            database.display().to_string(),
            postgres.url(),
            if kills > 0 { format!("{KILLED}{:?}\n", redis()) } else { String::new() }
        );
        fs::write(&config, text).expect("written");
        let arguments =
            ["run", config.to_str().expect("UTF-8"), "-w", workers, "--until-end", "--close", "--bindings"];
        let newest = |table: &str, column: &str| match postgres
            .ask(&format!("SELECT to_regclass('{table}') IS NOT NULL"))[0]
            .as_str()
        {
            "t" => postgres.ask(&format!("SELECT coalesce(max({column}), 0) FROM {table}"))[0]
                .parse::<i64>()
                .expect("a number"),
            _ => 0,
        };
        let through = || newest("headwater_progress", "through");
        for attempt in 0..kills {
            let before = through();
            let killed = kill_when(
                headwater(&arguments).arg(&bindings),
                || through() > before,
                Duration::from_millis(40 * attempt),
            );
            assert!(killed || attempt > 0, "it was to be killed on its way");
            gather(&at, newest("headwater_bindings", "through").max(newest("headwater_manifests", "epoch")));
        }
        assert_eq!(kills > 0, newest("headwater_pruned", "through") > 0, "starts go on from checkpoints");
        succeed(headwater(&arguments).arg(&bindings));
        let input = ["--records", recorded.to_str().expect("UTF-8")];
        gather(&at, i64::MAX);
        let expected = Expected::of(&at, &config, &input, &at.join("history.ndjson"));
        expected.judge_sqlite(&database);
        postgres.dump("public", &at.join("postgres"));
        expected.judge(&at.join("postgres"));
        topics_agree(&Tables(rusqlite::Connection::open(&database).expect("a database")));

        let topics = Topics::connect(&brokers, &options).expect("connected");
        topics.delete(&OUTPUTS).expect("deleted");
        headwater::topics::create_topics(&brokers, &options, &headwater::topics::standard())
            .expect("created again");
    }
}

/// Without a ledger each run reads again some of what the one before it has stored.
#[test]
fn every_record_is_in_postgresql_once_though_runs_were_killed() {
    let records = 60_000;
    let dir = tempfile::tempdir().expect("a directory");
    let brokers = brokers();
    let topics = Topics::connect(&brokers, &BTreeMap::new()).expect("connected");
    topics.create(&[TopicSpec::new("raw-killed", 6)]).expect("created");
    produce("raw-killed", &hard(8), records, &dir.path().join("records.ndjson"));
    let postgres = Database::create("killed");
    let config = dir.path().join("run.toml");
    let text = format!(
        "pipeline = \"killed\"\n[source]\nkind = \"kafka\"\ntopic = \"raw-killed\"\nbrokers = {brokers:?}\n\
         [limits]\nbytes_in_flight = \"1MiB\"\n[sinks.postgres]\nurl = {:?}\ncommit_interval = \"0ms\"\n",
        postgres.url()
    );
    fs::write(&config, text).expect("written");
    let arguments = ["run", config.to_str().expect("UTF-8"), "-w", "2", "--until-end", "--close"];

    let stored = || match postgres.ask("SELECT to_regclass('dead_letters') IS NOT NULL")[0].as_str() {
        "t" => postgres.ask("SELECT count(*) FROM events")[0].parse::<u64>().expect("a number"),
        _ => 0,
    };
    for _ in 0..2 {
        let before = stored();
        let mut run = headwater(&arguments).stderr(Stdio::null()).spawn().expect("started");
        while stored() == before {
            assert_eq!(run.try_wait().expect("asked"), None, "it was to be killed on its way");
        }
        run.kill().expect("killed");
        run.wait().expect("gone");
    }
    succeed(&mut headwater(&arguments));

    let both =
        "(SELECT partition, \"offset\" FROM events UNION ALL SELECT partition, \"offset\" FROM dead_letters)";
    let counts = format!(
        "SELECT concat(count(*), ' ', count(DISTINCT (partition, \"offset\"))) FROM {both} AS stored"
    );
    assert_eq!(postgres.ask(&counts), [format!("{records} {records}")]);
    assert_eq!(
        postgres.ask("SELECT count(DISTINCT generation) FROM headwater_progress WHERE through > 0"),
        ["3"]
    );
}
