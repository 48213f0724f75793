//! Profiles of keys in Redis: after kills and crashes they are those that follow from the tables, which the oracle judges,
//! and those of a run that was not disturbed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use headwater_sinks::crash::POINTS;
use redis::{Commands, Connection};

use crate::checkpoints::{CHECKPOINT, configure};
use crate::common::{FLOW, Random, headwater, succeed};
use crate::crash::{Files, kill_when};
use crate::crash_points::{REDIS_POINTS, crash_at};
use crate::live::{Process, wait_for};
use crate::proxy::Proxy;

type Hash = BTreeMap<String, String>;

/// A pipeline of files that writes tables and profiles.
struct Profiles {
    files: Files,
    url: String,
    prefix: String,
}

fn url() -> String {
    std::env::var("HEADWATER_TEST_REDIS").expect("HEADWATER_TEST_REDIS names a Redis")
}

impl Profiles {
    fn new(name: &str, seed: u64, records: u64) -> Profiles {
        let prefix = format!("profiles-{name}-{}", std::process::id());
        let profiles = Profiles { files: Files::new(seed, records), url: url(), prefix };
        profiles.configure(&profiles.url);
        profiles
    }

    fn configure(&self, url: &str) {
        let sink =
            format!("[sinks.redis]\nurl = {url:?}\nprefix = {:?}\ncommit_interval = \"20ms\"\n", self.prefix);
        configure(&self.files, &format!("{FLOW}{sink}"), CHECKPOINT);
    }

    fn config(&self) -> String {
        self.files.path("run.toml").display().to_string()
    }

    fn connection(&self) -> Connection {
        redis::Client::open(&*self.url).and_then(|client| client.get_connection()).expect("a Redis server")
    }

    fn key(&self, rest: &str) -> String {
        format!("{}:crash:{rest}", self.prefix)
    }

    /// Returns all profiles, by kind of key and key.
    fn found(&self) -> BTreeMap<String, Hash> {
        let mut connection = self.connection();
        let begin = self.key("");
        let keys: Vec<String> = connection.keys(format!("{begin}*")).expect("keys");
        let keys: Vec<_> = keys.iter().filter(|key| **key != self.key("progress:redis")).collect();
        let mut read = redis::pipe();
        if keys.is_empty() {
            return BTreeMap::new();
        }
        for key in &keys {
            read.hgetall(*key);
        }
        let hashes: Vec<Hash> = read.query(&mut connection).expect("hashes");
        keys.iter().map(|key| key[begin.len()..].to_owned()).zip(hashes).collect()
    }

    /// Returns the greatest epoch in the progress; 0 if there is none.
    fn through(&self) -> i64 {
        let fields: Hash = self.connection().hgetall(self.key("progress:redis")).expect("a hash");
        let writers = fields.iter().filter(|(field, _)| field.starts_with("writer:"));
        writers.map(|(_, record)| epoch(record.split(' ').next())).max().unwrap_or(0)
    }

    /// Checks that progress and profiles have no epoch that is not recorded, and returns the progress.
    fn check_not_ahead(&self, context: &str) -> i64 {
        let (recorded, through) = (self.files.frontiers().1, self.through());
        assert!(through <= recorded, "{context}: the sink has epoch {through}, the ledger {recorded}");
        let newest = self.found().values().map(|hash| epoch(hash.get("epoch").map(String::as_str))).max();
        assert!(newest.is_none_or(|epoch| epoch <= recorded), "{context}: {newest:?} and {recorded}");
        through
    }

    /// Checks the tables against the oracle, and the profiles against the tables.
    fn judge(&self) {
        self.files.judge();
        let (found, expected) = (self.found(), expected(&self.files.path("results.db")));
        let differs = expected.iter().find(|(key, hash)| found.get(*key) != Some(hash));
        let other = differs.map(|(key, _)| found.get(key));
        assert!(differs.is_none() && found.len() == expected.len(), "expected {differs:?}\nfound {other:?}");
        assert!(found.len() > 500, "{} profiles", found.len());
    }
}

impl Drop for Profiles {
    fn drop(&mut self) {
        let mut connection = self.connection();
        let keys: Vec<String> = connection.keys(self.key("*")).expect("keys");
        if !keys.is_empty() {
            redis::cmd("DEL").arg(&keys).exec(&mut connection).expect("deleted");
        }
    }
}

fn epoch(text: Option<&str>) -> i64 {
    text.and_then(|text| text.parse().ok()).expect("an epoch")
}

/// The profiles that follow from the tables: a field for each column of a row, in SQL: whole milliseconds, and numbers as
/// the program writes them.
fn expected(database: &Path) -> BTreeMap<String, Hash> {
    let ms = |column: &str| format!("CAST(round(unixepoch({column}, 'subsec') * 1000) AS INTEGER)");
    let time = ms("event_time");
    let newest = |table: &str, by: &str, order: &str| {
        format!(
            "(SELECT *, row_number() OVER (PARTITION BY {by} key_kind, \"key\" ORDER BY {order}) AS nth FROM {table})"
        )
    };
    let queries = [
        format!(
            "SELECT key_kind || ':' || \"key\", '', event_id AS \"event:id\", event_type AS \"event:type\",
               {time} AS \"event:time_ms\", amount_exact AS \"event:amount\", currency AS \"event:currency\",
               merchant_id AS \"event:merchant_id\", ip_address AS \"event:ip_address\",
               device_id AS \"event:device_id\", key_events AS events, key_amount_mean AS amount_mean,
               since_previous_ms, km_from_previous
             FROM {} WHERE nth = 1",
            newest("events", "", "epoch DESC, key_events DESC")
        ),
        format!(
            "SELECT key_kind || ':' || \"key\", '', {time} AS \"location:time_ms\", lat AS \"location:lat_deg\",
               lon AS \"location:lon_deg\"
             FROM {} WHERE nth = 1",
            newest("(SELECT * FROM events WHERE lat IS NOT NULL)", "", "epoch DESC, key_events DESC")
        ),
        format!(
            "SELECT key_kind || ':' || \"key\", 'window:' || window_name || ':', {} AS start_ms, {} AS end_ms, count,
               amount_sum_exact AS amount_sum, mean AS amount_mean, min_exact AS amount_min, max_exact AS amount_max,
               stddev AS amount_stddev, distinct_merchants, final
             FROM {} WHERE nth = 1",
            ms("start"),
            ms("\"end\""),
            newest("window_aggregates", "window_name,", "start DESC")
        ),
        format!(
            "SELECT key_kind || ':' || \"key\", 'alert:' || rule || ':', {time} AS event_time_ms, alert_id AS id, status,
               severity, final
             FROM {} WHERE nth = 1",
            newest("alerts", "rule,", "event_time DESC, alert_id DESC")
        ),
        "SELECT key_kind || ':' || \"key\", '', max(epoch) AS epoch FROM (
           SELECT key_kind, \"key\", epoch FROM events UNION ALL SELECT key_kind, \"key\", epoch FROM alerts
           UNION ALL SELECT key_kind, \"key\", epoch FROM window_aggregates) GROUP BY key_kind, \"key\""
            .to_owned(),
    ];
    let connection = rusqlite::Connection::open(database).expect("a database");
    let mut profiles = BTreeMap::<String, Hash>::new();
    for query in queries {
        let mut statement = connection.prepare(&query).expect("a query");
        let names: Vec<_> = statement.column_names().map(str::to_owned).collect();
        let mut rows = statement.query([]).expect("rows");
        while let Some(row) = rows.next().expect("a row") {
            let (key, prefix): (String, String) = (row.get_unwrap(0), row.get_unwrap(1));
            let hash = profiles.entry(key).or_default();
            for (at, name) in names.iter().enumerate().skip(2) {
                use rusqlite::types::Value;
                let value = match row.get_unwrap::<_, Value>(at) {
                    Value::Null => continue,
                    Value::Integer(value) => value.to_string(),
                    Value::Real(value) => value.to_string(),
                    Value::Text(value) => value,
                    Value::Blob(_) => unreachable!("no column has bytes"),
                };
                hash.insert(format!("{prefix}{name}"), value);
            }
        }
    }
    profiles
}

#[test]
fn crashes_within_rounds_leave_the_profiles_of_an_undisturbed_run() {
    assert!(POINTS.iter().all(|point| point.starts_with("redis.") == REDIS_POINTS.contains(point)));
    let (crashed, undisturbed) = (Profiles::new("crashed", 71, 150_000), Profiles::new("whole", 71, 150_000));
    let around = ["sink.open.before", "sink.open.after", "sink.commit.before", "sink.commit.after"];
    for point in REDIS_POINTS.into_iter().chain(around) {
        // An epoch has several chunks.
        let last = if point == "redis.chunk" { 9 } else { 2 };
        for (workers, nth) in [("1", 1), ("3", last)] {
            let before = crashed.through();
            crash_at(crashed.files.command(workers), point, nth);
            assert!(crashed.check_not_ahead(point) >= before, "progress never goes back: {point}");
        }
    }
    succeed(&mut crashed.files.command("2"));
    crashed.judge();
    succeed(&mut undisturbed.files.command("1"));
    undisturbed.judge();
    assert!(crashed.found() == undisturbed.found());
}

#[test]
fn kills_leave_the_profiles_of_the_tables() {
    let profiles = Profiles::new("killed", 72, 90_000);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut kills = 0;
    for attempt in 0..10_usize {
        let before = profiles.through();
        let mut command = profiles.files.command(["1", "2", "3"][attempt % 3]);
        let after = Duration::from_millis(random.below(120));
        if !kill_when(&mut command, || profiles.through() > before, after) {
            break;
        }
        profiles.check_not_ahead("kill");
        kills += 1;
    }
    assert!(kills > 2, "{kills} kills after progress");
    succeed(&mut profiles.files.command("2"));
    profiles.judge();
    succeed(&mut profiles.files.command("1"));
    profiles.judge();
}

fn printed(command: &mut Command) -> String {
    String::from_utf8(command.output().expect("started").stdout).expect("UTF-8")
}

#[test]
fn lost_profiles_are_refused_and_can_be_adopted() {
    let profiles = Profiles::new("lost", 73, 9_000);
    let config = profiles.config();
    let (check, status) = (
        || printed(&mut headwater(&["check", "--connect", &config])),
        || printed(&mut headwater(&["status", &config])),
    );
    assert!(check().contains("database 0: reachable, version "), "{}", check());
    assert!(status().contains("sink redis: nothing yet"), "{}", status());
    assert_eq!(profiles.found().len() as i64 + profiles.through(), 0, "neither writes anything");
    succeed(&mut profiles.files.command("1"));
    assert!(status().contains("sink redis: through epoch "), "{}", status());
    profiles.judge();

    let mut connection = profiles.connection();
    let keys: Vec<String> = connection.keys(profiles.key("*")).expect("keys");
    redis::cmd("DEL").arg(&keys).exec(&mut connection).expect("deleted");
    profiles.files.assert_refused("its progress is gone");
    succeed(profiles.files.command("1").args(["--adopt-sink", "redis"]));
    assert!(profiles.through() > 0);
    succeed(&mut profiles.files.command("1"));
}

/// Starts a run through a proxy in front of Redis, and waits for its first progress.
fn start_behind_proxy(profiles: &Profiles) -> (Proxy, Process) {
    let proxy = Proxy::start();
    proxy.forward_to(profiles.url.trim_start_matches("redis://").trim_end_matches('/'));
    profiles.configure(&format!("redis://{}/", proxy.address()));
    let run = Process::start(profiles.files.command("2"), profiles.files.path("run.log"));
    wait_for("profiles", || (profiles.through() > 0).then_some(()));
    (proxy, run)
}

#[test]
fn a_run_waits_for_redis_and_says_so() {
    let profiles = Profiles::new("away", 74, 150_000);
    let (proxy, mut run) = start_behind_proxy(&profiles);
    proxy.cut();
    wait_for("a warning", || run.log().contains("retrying the round").then_some(()));
    assert!(run.log().contains("Redis at 127.0.0.1:"), "{}", run.log());
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(run.try_wait(), None, "the run ended instead of waiting: {}", run.log());
    let through = profiles.through();
    proxy.restore();
    run.expect_success();
    assert!(profiles.through() > through);
    profiles.judge();
}

#[test]
fn a_round_that_arrives_after_a_takeover_changes_nothing() {
    let profiles = Profiles::new("late", 75, 150_000);
    let (proxy, mut run) = start_behind_proxy(&profiles);
    proxy.hold_requests();
    let before = profiles.through();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(profiles.through(), before, "a round is held");
    run.kill();
    profiles.configure(&profiles.url);
    succeed(&mut profiles.files.command("1"));
    let found = profiles.found();
    proxy.restore();
    std::thread::sleep(Duration::from_millis(500));
    assert!(profiles.found() == found);
    profiles.judge();
}

#[test]
fn settings_of_profiles_are_checked() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("run.toml");
    let base = "pipeline = \"p\"\n[source]\nkind = \"generator\"\nrecords = 10\n";
    for (sinks, code, expected) in [
        ("[sinks.redis]\n", 2, "sinks.redis.url: is missing: expected the address of a Redis server"),
        (
            "[sinks.redis]\nurl = \"redis://h\"\noutputs = [\"dead-letters\"]\n",
            2,
            "expected a list of some of",
        ),
        ("[sinks.redis]\nurl = \"redis://h\"\nprefix = \"a b\"\n", 2, "expected at most 100 letters"),
        ("[sinks.redis]\nurl = \"redis://h\"\nttl = \"10ms\"\n", 2, "a duration of at least 1000 ms"),
        (
            "[sinks.redis]\nurl = \"redis://h\"\n[sinks.b]\nkind = \"redis\"\nurl = \"redis://u:p@h\"\n",
            2,
            "both write keys headwater:… of Redis at h:6379, database 0",
        ),
        ("[sinks.redis]\nurl = \"redis://127.0.0.1:1\"\n", 1, "Redis at 127.0.0.1:1 refuses connections"),
    ] {
        fs::write(&config, format!("{base}{sinks}")).expect("written");
        let output = headwater(&["check", "--connect"]).arg(&config).output().expect("started");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains(expected), "{text}\nexpected {expected}");
        assert_eq!(output.status.code(), Some(code), "{text}");
    }
}
