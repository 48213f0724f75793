//! The main job on a real Kafka: records in; topics, SQLite and PostgreSQL out; with one worker and with three.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::common::{Expected, FLOW, gather, hard, headwater, succeed};
use crate::crash::kill_when;
use crate::input_faults::Input;
use crate::postgres::Database;
use crate::services::{Service, Services};
use headwater::source::generator::{GeneratorSettings, RecordMaker};
use headwater::source::kafka::dead_letters::{DeadLetter, DeadLetters};
use headwater::source::kafka::produce::{Produced, Producer};
use headwater_sinks::kafka::topics::{TopicSpec, Topics};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, Producer as _};
use serde_json::json;

/// The topics that results go to.
pub const OUTPUTS: [&str; 3] = ["enriched-events", "alerts", "dead-letters"];

/// The input topic and the topics of results, under their usual names.
pub fn standard_topics() -> Vec<headwater::topics::TopicSpec> {
    use headwater::config::OutputKind;
    let names = [
        (OutputKind::Events, "enriched-events"),
        (OutputKind::Alerts, "alerts"),
        (OutputKind::DeadLetters, "dead-letters"),
    ];
    let names = names.map(|(kind, name)| (kind, name.to_owned())).into();
    let outputs = headwater::topics::outputs(&names);
    std::iter::once(headwater::topics::input("raw-events")).chain(outputs).collect()
}

/// Where the broker is that all tests share.
pub fn brokers() -> String {
    Services::shared().kafka.clone()
}

/// The topics of a cluster.
pub fn topics(brokers: &str) -> Topics {
    Topics::connect(brokers, &BTreeMap::new()).expect("connected")
}

/// Asks a cluster's admin client.
pub fn admin<T>(brokers: &str, act: impl AsyncFnOnce(&AdminClient<DefaultClientContext>) -> T) -> T {
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(act(&admin))
}

/// A producer with these options; a transactional one has an id, and how long taking that over may take.
pub fn producer(brokers: &str, options: &[(&str, &str)], id: Option<(&str, Duration)>) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    for &(key, value) in options {
        config.set(key, value);
    }
    if let Some((id, _)) = id {
        config.set("transactional.id", id);
    }
    let producer: BaseProducer = config.create().expect("a producer");
    if let Some((_, patience)) = id {
        producer.init_transactions(patience).expect("it takes the id");
    }
    producer
}

/// A record as the oracle reads it, a line of JSON.
pub fn recorded(partition: u32, offset: u64, timestamp: Option<i64>, value: Option<&[u8]>) -> String {
    let value = value.map(base64);
    let record = json!({ "partition": partition, "offset": offset, "timestamp": timestamp, "key": null, "value": value });
    format!("{record}\n")
}

/// Every committed record of a topic.
pub fn read_all(brokers: &str, topic: &str) -> Vec<DeadLetter> {
    DeadLetters::read_all(brokers, &BTreeMap::new(), topic)
        .expect("the topic is there")
        .map(|record| record.expect("readable"))
        .collect()
}

/// A generated stream that goes to a topic, and is written down for the oracle.
pub struct Stream {
    maker: RecordMaker,
    brokers: String,
    topic: String,
    partitions: u64,
    recorded: fs::File,
    next: u64,
}

impl Stream {
    /// Nothing of it yet.
    pub fn new(brokers: &str, topic: &str, settings: &GeneratorSettings, recorded: &Path) -> Stream {
        Stream {
            maker: RecordMaker::new(settings.clone()),
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
            partitions: u64::from(settings.partitions),
            recorded: fs::File::create(recorded).expect("a file"),
            next: 0,
        }
    }

    /// Where it goes.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Produces its next records.
    pub fn produce(&mut self, records: u64) {
        let mut text = String::new();
        let mut produced = Vec::new();
        for n in self.next..self.next + records {
            let (partition, offset) = ((n % self.partitions) as u32, n / self.partitions);
            self.maker.make(partition, offset, None);
            text += &recorded(partition, offset, None, Some(&self.maker.value));
            let (key, value) = (Some(self.maker.key.clone()), Some(self.maker.value.clone()));
            produced.push(Produced { partition: Some(partition), key, value, headers: Vec::new() });
        }
        self.recorded.write_all(text.as_bytes()).expect("written");
        let producer = Producer::connect(&self.brokers, &BTreeMap::new(), &self.topic).expect("connected");
        let report = producer.run(produced, None, &AtomicBool::new(false), &mut |_| {}).expect("produced");
        assert_eq!(report.acknowledged, records);
        self.next += records;
    }
}

/// Produces a generated stream to a topic of the broker that all tests share.
pub fn produce(topic: &str, settings: &GeneratorSettings, records: u64, recorded: &Path) {
    Stream::new(&brokers(), topic, settings, recorded).produce(records);
}

/// A pipeline from a generated stream, on a topic of its own, into SQLite.
pub struct FromTopic {
    dir: tempfile::TempDir,
    /// Its topic.
    pub topic: String,
    /// What goes to the topic.
    pub stream: Stream,
}

impl FromTopic {
    /// With so many records on its topic.
    pub fn new(name: &str, seed: u64, records: u64) -> FromTopic {
        let (dir, brokers) = (tempfile::tempdir().expect("a directory"), brokers());
        let topic = format!("{name}-{}", std::process::id());
        let path = |name: &str| dir.path().join(name);
        topics(&brokers).create(&[TopicSpec::new(&topic, 6)]).expect("created");
        let mut stream = Stream::new(&brokers, &topic, &hard(seed), &path("records.ndjson"));
        stream.produce(records);
        let text = format!(
            "pipeline = {name:?}\n[source]\nkind = \"kafka\"\ntopic = {topic:?}\nbrokers = {brokers:?}\n{FLOW}\
             [sinks.sqlite]\npath = {:?}\n[ledger]\nkind = \"sqlite\"\npath = {:?}\n",
            path("results.db"),
            path("ledger.db"),
        );
        fs::write(path("run.toml"), text).expect("written");
        FromTopic { dir, topic, stream }
    }

    /// Where a file of it is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A run to the end of the topic.
    pub fn command(&self) -> Command {
        let mut command = headwater(&["run", "--until-end"]);
        command.arg(self.path("run.toml"));
        command
    }
}

/// Base64, as the oracle reads values.
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

/// The rows that a query of a SQLite database gives, sorted.
fn rows_of(database: &Path, sql: &str) -> Vec<String> {
    let database = rusqlite::Connection::open(database).expect("a database");
    let mut statement = database.prepare(sql).expect("a query");
    let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("answered");
    rows.map(|row| row.expect("text")).collect()
}

fn json(record: &DeadLetter) -> serde_json::Value {
    serde_json::from_slice(record.value.as_deref().unwrap_or_default()).expect("JSON")
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The topics say what the tables say, of which `rows` answers queries; `time` is the event time as the topics have it.
pub fn topics_agree(brokers: &str, time: &str, rows: impl Fn(&str) -> Vec<String>) {
    let rows = |sql: &str| {
        let mut rows = rows(sql);
        rows.sort();
        rows
    };
    let mut enriched: Vec<_> = read_all(brokers, "enriched-events")
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
    agree(
        &enriched,
        &rows(&format!(
            "SELECT concat_ws('|', event_id, key_kind, \"key\", epoch, key_events, amount_band, {time}) FROM events"
        )),
    );

    // Each change is a message; the table has each alert's last one.
    let mut alerts = BTreeMap::new();
    let mut changes = BTreeSet::new();
    for record in read_all(brokers, "alerts") {
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
    agree(&alerts, &rows("SELECT concat_ws('|', alert_id, status, rule, severity, epoch) FROM alerts"));
    assert!(revoked > 0, "the stream is to exercise revocations");

    let mut letters: Vec<_> = read_all(brokers, "dead-letters")
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
    agree(
        &letters,
        &rows(
            "SELECT concat_ws('|', partition, \"offset\", reason, coalesce(length(value), 0)) FROM dead_letters",
        ),
    );
}

/// A topic and a table have the same rows; else says the first few that only one of them has.
fn agree(topic: &[String], table: &[String]) {
    let beyond = |these: &[String], those: &[String]| {
        let those: BTreeSet<_> = those.iter().collect();
        these.iter().filter(|row| !those.contains(row)).take(10).cloned().collect::<Vec<_>>()
    };
    let only = [beyond(topic, table), beyond(table, topic)];
    assert!(
        topic == table,
        "only in the topic, only in the table: {only:?}; {} {}",
        topic.len(),
        table.len()
    );
}

/// What a run that is to be killed has beside: little at a time, a ledger, and checkpoints.
pub const KILLED: &str = "commit_interval = \"0ms\"\n[limits]\nbytes_in_flight = \"1MiB\"\n[ledger]\nkind = \"postgres\"\n\
     [checkpoint]\ninterval = \"100ms\"\nkeep = 2\n[state]\nkind = \"redis\"\nurl = ";

/// The names of the topics that results go to are fixed: one run at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static TOPICS: Mutex<()> = Mutex::new(());
    TOPICS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run from Kafka into every sink that is to be killed, with checkpoints in Redis.
pub struct Killed {
    run: Everywhere,
    records: PathBuf,
    _alone: Option<MutexGuard<'static, ()>>,
}

impl Killed {
    /// Over so many generated records, on the services that all tests share.
    pub fn new(name: &str, records: u64, seed: u64) -> Killed {
        let alone = alone();
        let (killed, mut stream) = Killed::on(Services::shared(), name, seed);
        stream.produce(records);
        Killed { _alone: Some(alone), ..killed }
    }

    /// On some services, over what is still to be produced.
    pub fn on(services: Services, name: &str, seed: u64) -> (Killed, Stream) {
        let (killed, topic) = Killed::reading(services, name, |topic| TopicSpec::new(topic, 6));
        let stream = Stream::new(&killed.run.services.kafka, &topic, &hard(seed), &killed.records);
        (killed, stream)
    }

    /// On services of its own, over an input that things befall.
    pub fn with_input(name: &str, seed: u64) -> (Killed, Input) {
        let (killed, topic) = Killed::reading(Services::own(), name, Input::spec);
        let input = Input::new(&killed.run.services.kafka, &topic, seed);
        (killed, input)
    }

    fn reading(services: Services, name: &str, spec: impl Fn(&str) -> TopicSpec) -> (Killed, String) {
        let topic = format!("raw-{name}-{}", std::process::id());
        topics(&services.kafka).create(&[spec(&topic)]).expect("created");
        let run = Everywhere::to_be_killed(services, name, &topic);
        let records = run.path("records.ndjson");
        (Killed { run, records, _alone: None }, topic)
    }

    /// The run, to the end of the topic and of the stream.
    pub fn command(&self, workers: &str) -> Command {
        self.run.command(workers)
    }

    /// The run to the end of the topic, which is not the end of the stream.
    pub fn to_end(&self, workers: &str) -> Command {
        self.run.run(&["-w", workers, "--until-end"])
    }

    /// The run, until it is stopped.
    pub fn live(&self, workers: &str) -> Command {
        self.run.run(&["-w", workers])
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.run.path(name)
    }

    /// The services that it runs on.
    pub fn services(&self) -> &Services {
        &self.run.services
    }

    /// Has PostgreSQL end a backend of the run that is in the middle of such a statement: it looks until there is one, for
    /// 20 s at the most, and says whether there was.
    pub fn end_backends(&self, doing: &str) -> bool {
        let ended = self.run.postgres.ask(&format!(
            "CREATE OR REPLACE FUNCTION end_backends() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
               WHILE clock_timestamp() < now() + interval '20 s' LOOP
                 PERFORM pg_stat_clear_snapshot();
                 PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()
                     AND state = 'active' AND query LIKE '{doing}%';
                 IF FOUND THEN RETURN true; END IF;
               END LOOP;
               RETURN false;
             END $$;
             SELECT end_backends()"
        ));
        ended == ["t"]
    }

    /// How many records are in PostgreSQL, as events or dead letters.
    pub fn stored(&self) -> u64 {
        self.run.stored()
    }

    /// Every sink has every result once.
    pub fn judge(&self) {
        self.run.judge(&self.records);
    }
}

/// A run from a topic into every sink, in a directory of its own.
struct Everywhere {
    dir: tempfile::TempDir,
    postgres: Database,
    services: Services,
}

impl Everywhere {
    /// Reads `topic`, and has `beside` in its configuration.
    fn new(services: Services, name: &str, topic: &str, beside: &str) -> Everywhere {
        headwater::topics::create_topics(&services.kafka, &BTreeMap::new(), &standard_topics())
            .expect("created");
        let everywhere = Everywhere {
            dir: tempfile::tempdir().expect("a directory"),
            postgres: Database::create_on(&services.postgres, &format!("flow_{name}")),
            services,
        };
        let brokers = everywhere.services.kafka_of_run();
        let text = format!(
            "pipeline = \"flow-{name}\"\n[source]\nkind = \"kafka\"\ntopic = {topic:?}\nbrokers = {brokers:?}\n{FLOW}\
             [sinks.kafka]\nbrokers = {brokers:?}\n[sinks.sqlite]\npath = {:?}\n[sinks.postgres]\nurl = {:?}\n{beside}",
            everywhere.path("results.db").display().to_string(),
            everywhere.services.of_run(Service::Postgres, &everywhere.postgres.url()),
        );
        fs::write(everywhere.path("run.toml"), text).expect("written");
        everywhere
    }

    /// The same, with a ledger, and checkpoints in Redis.
    fn to_be_killed(services: Services, name: &str, topic: &str) -> Everywhere {
        let redis = services.of_run(Service::Redis, &services.redis);
        Everywhere::new(services, name, topic, &format!("{KILLED}{redis:?}\n"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn stored(&self) -> u64 {
        match self.postgres.has("dead_letters") {
            true => {
                let count = "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM dead_letters)";
                self.postgres.number(count) as u64
            }
            false => 0,
        }
    }

    /// The run, to the end of the topic.
    fn command(&self, workers: &str) -> Command {
        self.run(&["-w", workers, "--until-end", "--close"])
    }

    /// A run with further arguments, which writes down its bindings.
    fn run(&self, arguments: &[&str]) -> Command {
        let durable = self.postgres.recorded();
        gather(self.dir.path(), durable);
        let (config, bindings) = (self.path("run.toml"), self.path("bindings.ndjson"));
        let config = config.to_str().expect("UTF-8");
        let mut command = headwater(&["run", config, "--bindings"]);
        command.arg(bindings).args(arguments);
        command
    }

    /// Every sink has what the oracle says of these records. The topics are empty afterwards.
    fn judge(&self, records: &Path) {
        gather(self.dir.path(), i64::MAX);
        let input = ["--records", records.to_str().expect("UTF-8"), "--partitions", "6"];
        let (config, history) = (self.path("run.toml"), self.path("history.ndjson"));
        let expected = Expected::of(self.dir.path(), &config, &input, &history);
        let database = self.path("results.db");
        expected.judge_sqlite(&database);
        self.postgres.dump("public", &self.path("postgres"));
        expected.judge(&self.path("postgres"));
        topics_agree(&self.services.kafka, "event_time", |sql| rows_of(&database, sql));
        topics(&self.services.kafka).delete(&OUTPUTS).expect("deleted");
    }
}

#[test]
fn topics_and_tables_are_what_the_oracle_says_with_one_worker_with_three_and_after_kills() {
    let records = if std::env::var_os("HEADWATER_TEST_LONG").is_some() { 200_000 } else { 60_000 };
    let dir = tempfile::tempdir().expect("a directory");
    let recorded = dir.path().join("records.ndjson");
    let topic = format!("raw-flow-{}", std::process::id());
    topics(&brokers()).create(&[TopicSpec::new(&topic, 6)]).expect("created");
    produce(&topic, &hard(7), records, &recorded);

    let _alone = alone();
    for workers in ["1", "3"] {
        let run = Everywhere::new(Services::shared(), workers, &topic, "");
        succeed(&mut run.command(workers));
        run.judge(&recorded);
    }
    let run = Everywhere::to_be_killed(Services::shared(), "2", &topic);
    let through = || run.postgres.newest("headwater_progress", "through");
    let pruned = || run.postgres.newest("headwater_pruned", "through");
    for attempt in 0..6 {
        let before = through();
        let delay = Duration::from_millis(40 * attempt);
        // The later ones go on from checkpoints, however slow the machine is.
        let due = || through() > before && (attempt < 3 || pruned() > 0);
        let killed = kill_when(&mut run.command("2"), due, delay);
        assert!(killed || attempt > 0, "it was to be killed on its way");
    }
    assert!(pruned() > 0, "starts go on from checkpoints");
    succeed(&mut run.command("2"));
    run.judge(&recorded);
}

/// Without a ledger each run reads again some of what the one before it has stored.
#[test]
fn every_record_is_in_postgresql_once_though_runs_were_killed() {
    let records = 60_000;
    let dir = tempfile::tempdir().expect("a directory");
    let brokers = brokers();
    topics(&brokers).create(&[TopicSpec::new("raw-killed", 6)]).expect("created");
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

    let stored = || match postgres.has("dead_letters") {
        true => postgres.number("SELECT count(*) FROM events"),
        false => 0,
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
