//! Runs that continue until they are stopped: their HTTP endpoints meanwhile, and their results afterwards.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use headwater_sinks::kafka::topics::{TopicSpec, Topics};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::api::{alerts, json};
use crate::common::{FLOW, headwater};
use crate::kafka::brokers;
use crate::postgres::Database;

/// The timeout for any condition; only a broken program reaches it.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Waits until the condition returns a value.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < TIMEOUT, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A child process, with its log in a file.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the command and redirects its standard error to a file.
    pub fn start(command: Command, log: PathBuf) -> Process {
        Process::start_with_output(command, Stdio::null(), log)
    }

    /// Starts the command, redirects its standard error to a file, and its standard output to `output`.
    pub fn start_with_output(mut command: Command, output: impl Into<Stdio>, log: PathBuf) -> Process {
        let stderr = File::create(&log).expect("a file");
        let child = command.stdout(output).stderr(stderr).spawn().expect("started");
        Process { child, log }
    }

    /// Returns the log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    /// Waits until the process serves HTTP and returns the address.
    pub fn address(&mut self) -> SocketAddr {
        wait_for("the address in the log", || {
            let ended = self.child.try_wait().expect("the status of a child");
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            self.addresses().first().copied()
        })
    }

    /// Returns the HTTP addresses so far of the process, or of its children.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
        lines.filter_map(|line: serde_json::Value| line["fields"]["address"].as_str()?.parse().ok()).collect()
    }

    /// Requests a stop with SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal to the process, which must still exist.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("the command kill").success());
    }

    /// Returns the exit status if the process has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the status of a child")
    }

    /// Kills the process and returns true, or returns false if it has already exited with success.
    pub fn kill_if_alive(&mut self) -> bool {
        if let Some(status) = self.try_wait() {
            assert_eq!(status.code(), Some(0), "{}", self.log());
            return false;
        }
        self.kill();
        true
    }

    /// Kills the process.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited");
    }

    /// Waits until the process ends.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the end of the process", || self.child.try_wait().expect("the status of a child"))
    }

    /// Waits until the process ends.
    ///
    /// # Panics
    /// Panics with the log unless the exit code is 0.
    pub fn expect_success(&mut self) {
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Only a failed test leaves the process running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the lines of a log with this cause and message.
pub fn lines_with_cause(log: &str, cause: &str, message: &str) -> impl Iterator<Item = serde_json::Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(move |line| line["fields"]["message"] == message && line["fields"]["cause"] == cause)
}

/// Returns the status and body of an HTTP response.
pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connected");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    (status, body.to_owned())
}

/// Returns the value of a metric; `name` includes its labels.
pub fn metric(address: SocketAddr, name: &str) -> f64 {
    let (status, text) = get(address, "/metrics");
    assert_eq!(status, 200);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().expect("a number")
}

fn wait_until_ready(address: SocketAddr) {
    wait_for("readiness", || (get(address, "/readyz") == (200, "{\"ready\":true}\n".into())).then_some(()));
}

fn wait_for_new_epochs(address: SocketAddr) {
    for name in ["headwater_epoch", "headwater_frontier_epoch"] {
        let before = metric(address, name);
        wait_for(name, || (metric(address, name) > before).then_some(()));
    }
}

/// The number of records and the offset after the last one, of each partition in the tables.
type Stored = BTreeMap<i32, (i64, i64)>;

const STORED: &str = "SELECT partition, count(*), max(\"offset\") + 1 FROM \
    (SELECT partition, \"offset\" FROM events UNION ALL SELECT partition, \"offset\" FROM dead_letters) AS records \
    GROUP BY partition";

fn in_sqlite(database: &Path) -> Stored {
    let database = rusqlite::Connection::open(database).expect("a database");
    let mut statement = database.prepare(STORED).expect("a query");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))));
    rows.expect("answered").map(|row| row.expect("numbers")).collect()
}

fn in_postgres(database: &Database) -> Stored {
    let rows = database.query(&format!("SELECT concat_ws(' ', a, b, c) FROM ({STORED}) AS stored (a, b, c)"));
    let number = |text: Option<&str>| text.and_then(|text| text.parse().ok()).expect("a number");
    rows.iter()
        .map(|row| {
            let mut fields = row.split(' ');
            let partition = number(fields.next());
            (partition as i32, (number(fields.next()), number(fields.next())))
        })
        .collect()
}

/// Returns the committed offsets of a consumer group.
fn group_offsets(group: &str, topic: &str, partitions: i32) -> BTreeMap<i32, i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", group)
        .create()
        .expect("a consumer");
    let mut queried = TopicPartitionList::new();
    for partition in 0..partitions {
        queried.add_partition(topic, partition);
    }
    let committed = consumer.committed_offsets(queried, Duration::from_secs(10)).expect("answered");
    let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
    committed
        .elements()
        .iter()
        .filter_map(|committed| Some((committed.partition(), offset(committed.offset())?)))
        .collect()
}

const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n";

/// Checks that the API explains an alert by the events in PostgreSQL.
fn expect_explained_alert(address: SocketAddr, database: &Database) {
    let query = "rule=rapid_fire_burst&status=raised&limit=1";
    let alert = wait_for("an alert", || alerts(address, query).pop());
    let id = alert["alert_id"].as_str().expect("an id");
    let stored = database.query(&format!("SELECT details::text FROM alerts WHERE alert_id = '{id}'"));
    let stored: serde_json::Value = serde_json::from_str(&stored[0]).expect("JSON");
    assert_eq!(alert["details"], stored);
    let explained = json(address, &format!("/api/v1/alerts/{id}?explain=true"));
    let events = explained["explanation"]["events"].as_array().expect("events");
    let count = alert["details"]["count"].as_u64().expect("a count") as usize;
    assert!(events.len() >= count && explained["explanation"]["complete"] == true, "{explained}");
    let trigger = events.last().expect("the triggering event");
    assert_eq!((&trigger["trigger"], &trigger["event_time"]), (&true.into(), &alert["event_time"]));
    let from = alert["event_time"].as_str().expect("a time");
    assert!(!alerts(address, &format!("from={from}&key_kind=user")).is_empty());
    assert!(alerts(address, &format!("to={from}&key={}", alert["key"].as_str().expect("a key"))).is_empty());
}

#[test]
fn a_stop_completes_records_and_commits_group_offsets() {
    let name = format!("live_{}", std::process::id());
    let dir = tempfile::tempdir().expect("a directory");
    let (config, sqlite) = (dir.path().join("run.toml"), dir.path().join("results.db"));
    let database = Database::create(&name);
    let url = database.url();
    let brokers = brokers();
    let topics = Topics::connect(&brokers, &BTreeMap::new()).expect("connected");
    topics.create(&[TopicSpec::new(&name, 6)]).expect("created");
    let text = format!(
        "pipeline = {name:?}\n[source]\nkind = \"kafka\"\nbrokers = {brokers:?}\ntopic = {name:?}\n{FLOW}{HTTP}\
         [sinks.sqlite]\npath = {:?}\n[sinks.postgres]\nurl = {url:?}\ncommit_interval = \"50ms\"\n",
        sqlite.display().to_string(),
    );
    fs::write(&config, text).expect("written");
    let config = config.to_str().expect("UTF-8");

    let producing = headwater(&["produce", config, "--rate", "2000"]);
    let mut producing = Process::start(producing, dir.path().join("produce.log"));
    let mut run = Process::start(headwater(&["run", config, "-w", "2"]), dir.path().join("run.log"));
    let address = run.address();
    assert_eq!(get(address, "/livez"), (200, "alive\n".into()));
    wait_until_ready(address);
    wait_for("events", || (metric(address, "headwater_events_total") > 5000.0).then_some(()));
    wait_for_new_epochs(address);

    for (name, range) in [
        ("headwater_latency_seconds_count", 1.0..1e9),
        ("headwater_latency_seconds_sum", 0.001..1e6),
        ("headwater_frontier_lag_seconds", 0.0..60.0),
        ("headwater_watermark_lag_seconds", 1.0..600.0),
        ("headwater_consumer_lag_records{partition=\"5\"}", 0.0..1e6),
        ("headwater_bytes_in_flight", 0.0..1e8),
        ("headwater_keys", 1000.0..1e6),
        ("headwater_open_windows", 1000.0..1e7),
        ("headwater_dead_letters_total{reason=\"malformed\"}", 0.0..5000.0),
        ("headwater_sink_epoch{sink=\"sqlite\"}", 1.0..1e9),
        ("headwater_commit_duration_seconds_count{sink=\"postgres\"}", 1.0..1e9),
        ("headwater_commit_retries_total{sink=\"postgres\"}", 0.0..1.0),
        ("headwater_group_commit_failures_total", 0.0..10.0),
        ("process_resident_memory_bytes", 1e6..4e9),
    ] {
        let value = metric(address, name);
        assert!(range.contains(&value), "{name} is {value}");
    }

    expect_explained_alert(address, &database);

    run.terminate();
    run.expect_success();
    producing.terminate();
    producing.expect_success();

    let stored = in_sqlite(&sqlite);
    assert!(stored.values().map(|(records, _)| records).sum::<i64>() > 5000);
    for (partition, (records, end)) in &stored {
        assert_eq!(records, end, "partition {partition}: a record is missing or stored twice");
    }
    assert_eq!(in_postgres(&database), stored, "the sinks differ");
    let ends: BTreeMap<_, _> = stored.iter().map(|(&partition, &(_, end))| (partition, end)).collect();
    assert_eq!(
        group_offsets(&name, &name, 6),
        ends,
        "the offsets of the group differ from the stored records"
    );
}

#[test]
fn stopping_one_ready_process_stops_the_whole_cluster() {
    let dir = tempfile::tempdir().expect("a directory");
    let hosts = dir.path().join("hosts");
    // Both listeners stay open until both ports are chosen, so that the ports differ.
    let free = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let lines = free.each_ref().map(|free| format!("{}\n", free.local_addr().expect("bound")));
    fs::write(&hosts, lines.concat()).expect("written");
    drop(free);

    let mut processes: Vec<_> = (0..2)
        .map(|process| {
            let at = |name: &str| dir.path().join(format!("{name}-{process}"));
            let text = format!(
                "pipeline = \"cluster\"\n[source]\nkind = \"generator\"\n{FLOW}{HTTP}[sinks.sqlite]\npath = {:?}\n",
                at("results").display().to_string(),
            );
            fs::write(at("config"), text).expect("written");
            let mut command = headwater(&["run"]);
            command.arg(at("config")).args(["-n", "2", "-p", &process.to_string(), "-h"]).arg(&hosts);
            Process::start(command, at("log"))
        })
        .collect();
    for process in &mut processes {
        let address = process.address();
        wait_until_ready(address);
        wait_for_new_epochs(address);
        wait_for("events", || (metric(address, "headwater_events_total") > 1000.0).then_some(()));
        assert!(metric(address, "headwater_keys") > 100.0);
    }
    processes[1].terminate();
    processes.iter_mut().for_each(Process::expect_success);

    let stored = [0, 1].map(|process| in_sqlite(&dir.path().join(format!("results-{process}"))));
    for partition in 0..6 {
        let both = stored.each_ref().map(|stored| stored.get(&partition).copied().unwrap_or_default());
        let (records, end) = (both[0].0 + both[1].0, both[0].1.max(both[1].1));
        assert!(records > 0);
        assert_eq!(records, end, "partition {partition}: a record is missing or stored twice");
    }
}
