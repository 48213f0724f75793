//! The main job on a real Kafka, into topics, SQLite and PostgreSQL, with one worker and with three.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::common::{Expected, FLOW, hard_settings, headwater, merge_bindings, succeed};
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

/// The topics that receive results.
pub const OUTPUTS: [&str; 3] = ["enriched-events", "alerts", "dead-letters"];

/// Returns the input topic and the output topics under their default names.
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

/// Returns the address of the broker that all tests share.
pub fn brokers() -> String {
    Services::shared().kafka.clone()
}

/// Connects to a cluster to manage its topics.
pub fn topics(brokers: &str) -> Topics {
    Topics::connect(brokers, &BTreeMap::new()).expect("connected")
}

/// Runs a function with a cluster's admin client.
pub fn admin<T>(brokers: &str, act: impl AsyncFnOnce(&AdminClient<DefaultClientContext>) -> T) -> T {
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(act(&admin))
}

/// Creates a producer with these options. For a transactional producer, `id` has its id and the timeout for
/// initialising it.
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
    if let Some((_, timeout)) = id {
        producer.init_transactions(timeout).expect("initialised");
    }
    producer
}

/// Returns a record in the oracle's input format, a line of JSON.
pub fn oracle_line(partition: u32, offset: u64, timestamp: Option<i64>, value: Option<&[u8]>) -> String {
    let value = value.map(base64);
    let record = json!({ "partition": partition, "offset": offset, "timestamp": timestamp, "key": null, "value": value });
    format!("{record}\n")
}

/// Reads every committed record of a topic.
pub fn read_all(brokers: &str, topic: &str) -> Vec<DeadLetter> {
    DeadLetters::read_all(brokers, &BTreeMap::new(), topic)
        .expect("the topic exists")
        .map(|record| record.expect("readable"))
        .collect()
}

/// A generated stream that is produced to a topic and recorded in a file for the oracle.
pub struct Stream {
    maker: RecordMaker,
    brokers: String,
    topic: String,
    partitions: u64,
    recorded: fs::File,
    next: u64,
}

impl Stream {
    /// Creates the stream without producing any records.
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

    /// Returns the topic of the stream.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Produces the next records of the stream.
    pub fn produce(&mut self, records: u64) {
        let mut text = String::new();
        let mut produced = Vec::new();
        for n in self.next..self.next + records {
            let (partition, offset) = ((n % self.partitions) as u32, n / self.partitions);
            self.maker.make(partition, offset, None);
            text += &oracle_line(partition, offset, None, Some(&self.maker.value));
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

/// Produces a generated stream to a topic of the shared broker.
pub fn produce(topic: &str, settings: &GeneratorSettings, records: u64, recorded: &Path) {
    Stream::new(&brokers(), topic, settings, recorded).produce(records);
}

/// A pipeline from a generated stream, on its own topic, into SQLite.
pub struct TopicPipeline {
    dir: tempfile::TempDir,
    /// The topic that the pipeline reads.
    pub topic: String,
    /// The stream that is produced to the topic.
    pub stream: Stream,
}

impl TopicPipeline {
    /// Creates the pipeline and produces `records` records to its topic.
    pub fn new(name: &str, seed: u64, records: u64) -> TopicPipeline {
        let (dir, brokers) = (tempfile::tempdir().expect("a directory"), brokers());
        let topic = format!("{name}-{}", std::process::id());
        let path = |name: &str| dir.path().join(name);
        topics(&brokers).create(&[TopicSpec::new(&topic, 6)]).expect("created");
        let mut stream = Stream::new(&brokers, &topic, &hard_settings(seed), &path("records.ndjson"));
        stream.produce(records);
        let text = format!(
            "pipeline = {name:?}\n[source]\nkind = \"kafka\"\ntopic = {topic:?}\nbrokers = {brokers:?}\n{FLOW}\
             [sinks.sqlite]\npath = {:?}\n[ledger]\nkind = \"sqlite\"\npath = {:?}\n",
            path("results.db"),
            path("ledger.db"),
        );
        fs::write(path("run.toml"), text).expect("written");
        TopicPipeline { dir, topic, stream }
    }

    /// Returns the path of a file in the pipeline's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the command for a run to the end of the topic.
    pub fn command(&self) -> Command {
        let mut command = headwater(&["run", "--bounded"]);
        command.arg(self.path("run.toml"));
        command
    }
}

/// Encodes bytes in Base64, the oracle's format for values.
pub fn base64(bytes: &[u8]) -> String {
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

/// Returns the rows that a query of a SQLite database selects.
fn sqlite_rows(database: &Path, sql: &str) -> Vec<String> {
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

/// Checks that the topics have the same contents as the tables. `rows` runs queries on the tables; `time` is the SQL
/// expression for event times in the format of the topics.
pub fn assert_topics_match_tables(brokers: &str, time: &str, rows: impl Fn(&str) -> Vec<String>) {
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
    assert_same_rows(
        &enriched,
        &rows(&format!(
            "SELECT concat_ws('|', event_id, key_kind, \"key\", epoch, key_events, amount_band, {time}) FROM events"
        )),
    );

    assert_alerts_match_table(brokers, "alerts", rows);

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
    assert_same_rows(
        &letters,
        &rows(
            "SELECT concat_ws('|', partition, \"offset\", reason, coalesce(length(value), 0)) FROM dead_letters",
        ),
    );
}

/// Checks that a topic has each live alert of the table `alerts`, and no others.
pub fn assert_alerts_match_table(brokers: &str, topic: &str, rows: impl Fn(&str) -> Vec<String>) {
    // The topic has a message for each change of an alert, the table only the last change.
    let mut alerts = BTreeMap::new();
    let mut changes = BTreeSet::new();
    for record in read_all(brokers, topic) {
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
    let live =
        "SELECT concat_ws('|', alert_id, status, rule, severity, epoch) FROM alerts WHERE mode = 'live'";
    let mut table = rows(live);
    table.sort();
    assert_same_rows(&alerts, &table);
    assert!(revoked > 0, "the stream has no revocations");
}

/// Checks that a topic and a table have the same rows, and otherwise reports the first rows that only one of them has.
fn assert_same_rows(topic: &[String], table: &[String]) {
    let only_in = |these: &[String], those: &[String]| {
        let those: BTreeSet<_> = those.iter().collect();
        these.iter().filter(|row| !those.contains(row)).take(10).cloned().collect::<Vec<_>>()
    };
    let differing = [only_in(topic, table), only_in(table, topic)];
    assert!(
        topic == table,
        "only in the topic, only in the table: {differing:?}; {} {}",
        topic.len(),
        table.len()
    );
}

/// Sections for a run that is to be killed: small epochs in flight, a ledger, and frequent checkpoints.
pub const CRASH_SECTIONS: &str = "commit_interval = \"0ms\"\n[limits]\nbytes_in_flight = \"1MiB\"\n[ledger]\nkind = \"postgres\"\n\
     [checkpoint]\ninterval = \"100ms\"\nkeep = 2\n[state]\nkind = \"redis\"\nurl = ";

/// Locks the output topics: their names are fixed, so only one run may use them at a time.
pub fn lock_output_topics() -> MutexGuard<'static, ()> {
    static TOPICS: Mutex<()> = Mutex::new(());
    TOPICS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pipeline from Kafka into every sink whose runs are killed, with checkpoints in Redis.
pub struct CrashPipeline {
    run: AllSinksPipeline,
    records: PathBuf,
    _lock: Option<MutexGuard<'static, ()>>,
}

impl CrashPipeline {
    /// Creates the pipeline on the shared services, with `records` generated records.
    pub fn new(name: &str, records: u64, seed: u64) -> CrashPipeline {
        let lock = lock_output_topics();
        let (pipeline, mut stream) = CrashPipeline::on(Services::shared(), name, seed);
        stream.produce(records);
        CrashPipeline { _lock: Some(lock), ..pipeline }
    }

    /// Creates the pipeline on the given services, with a stream that has produced no records yet.
    pub fn on(services: Services, name: &str, seed: u64) -> (CrashPipeline, Stream) {
        let (pipeline, topic) = CrashPipeline::with_topic(services, name, |topic| TopicSpec::new(topic, 6));
        let stream =
            Stream::new(&pipeline.run.services.kafka, &topic, &hard_settings(seed), &pipeline.records);
        (pipeline, stream)
    }

    /// Creates the pipeline on its own services, with an input for fault injection.
    pub fn with_input(name: &str, seed: u64) -> (CrashPipeline, Input) {
        let (pipeline, topic) = CrashPipeline::with_topic(Services::own(), name, Input::spec);
        let input = Input::new(&pipeline.run.services.kafka, &topic, seed);
        (pipeline, input)
    }

    fn with_topic(
        services: Services,
        name: &str,
        spec: impl Fn(&str) -> TopicSpec,
    ) -> (CrashPipeline, String) {
        let topic = format!("raw-{name}-{}", std::process::id());
        topics(&services.kafka).create(&[spec(&topic)]).expect("created");
        let run = AllSinksPipeline::with_checkpoints(services, name, &topic);
        let records = run.path("records.ndjson");
        (CrashPipeline { run, records, _lock: None }, topic)
    }

    /// Returns the command for a run to the end of the topic that also closes the stream.
    pub fn command(&self, workers: &str) -> Command {
        self.run.command(workers)
    }

    /// Returns the command for a run to the end of the topic that does not close the stream.
    pub fn until_end_command(&self, workers: &str) -> Command {
        self.run.run(&["-w", workers, "--bounded"])
    }

    /// Returns the command for a run that continues until it is stopped.
    pub fn live_command(&self, workers: &str) -> Command {
        self.run.run(&["-w", workers])
    }

    /// Returns the path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.run.path(name)
    }

    /// Returns the services that the pipeline uses.
    pub fn services(&self) -> &Services {
        &self.run.services
    }

    /// Terminates a PostgreSQL backend of the run while it executes such a statement. Waits up to 20 s for one, and
    /// returns false if there was none.
    pub fn terminate_backends(&self, statement: &str) -> bool {
        let ended = self.run.postgres.query(&format!(
            "CREATE OR REPLACE FUNCTION end_backends() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
               WHILE clock_timestamp() < now() + interval '20 s' LOOP
                 PERFORM pg_stat_clear_snapshot();
                 PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()
                     AND state = 'active' AND query LIKE '{statement}%';
                 IF FOUND THEN RETURN true; END IF;
               END LOOP;
               RETURN false;
             END $$;
             SELECT end_backends()"
        ));
        ended == ["t"]
    }

    /// Returns the number of records in PostgreSQL, as events or dead letters.
    pub fn stored(&self) -> u64 {
        self.run.stored()
    }

    /// Checks that every sink has every result exactly once.
    pub fn judge(&self) {
        self.run.judge(&self.records);
    }
}

/// A pipeline from a topic into every sink, in its own directory.
struct AllSinksPipeline {
    dir: tempfile::TempDir,
    postgres: Database,
    services: Services,
}

impl AllSinksPipeline {
    /// Creates a pipeline that reads `topic`, with additional sections in its configuration.
    fn new(services: Services, name: &str, topic: &str, sections: &str) -> AllSinksPipeline {
        headwater::topics::create_topics(&services.kafka, &BTreeMap::new(), &standard_topics())
            .expect("created");
        let pipeline = AllSinksPipeline {
            dir: tempfile::tempdir().expect("a directory"),
            postgres: Database::create_on(&services.postgres, &format!("flow_{name}")),
            services,
        };
        let brokers = pipeline.services.kafka_for_run();
        let text = format!(
            "pipeline = \"flow-{name}\"\n[source]\nkind = \"kafka\"\ntopic = {topic:?}\nbrokers = {brokers:?}\n{FLOW}\
             [sinks.kafka]\nbrokers = {brokers:?}\n[sinks.sqlite]\npath = {:?}\n[sinks.postgres]\nurl = {:?}\n{sections}",
            pipeline.path("results.db").display().to_string(),
            pipeline.services.url_for_run(Service::Postgres, &pipeline.postgres.url()),
        );
        fs::write(pipeline.path("run.toml"), text).expect("written");
        pipeline
    }

    /// Creates a pipeline with a ledger, and with checkpoints in Redis.
    fn with_checkpoints(services: Services, name: &str, topic: &str) -> AllSinksPipeline {
        let redis = services.url_for_run(Service::Redis, &services.redis);
        AllSinksPipeline::new(services, name, topic, &format!("{CRASH_SECTIONS}{redis:?}\n"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn stored(&self) -> u64 {
        match self.postgres.has_table("dead_letters") {
            true => {
                let count = "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM dead_letters)";
                self.postgres.number(count) as u64
            }
            false => 0,
        }
    }

    /// Returns the command for a run to the end of the topic that also closes the stream.
    fn command(&self, workers: &str) -> Command {
        self.run(&["-w", workers, "--bounded", "--drain"])
    }

    /// Returns the command for a run with further arguments that records its bindings.
    fn run(&self, arguments: &[&str]) -> Command {
        let durable = self.postgres.recorded();
        merge_bindings(self.dir.path(), durable);
        let (config, bindings) = (self.path("run.toml"), self.path("bindings.ndjson"));
        let config = config.to_str().expect("UTF-8");
        let mut command = headwater(&["run", config, "--bindings"]);
        command.arg(bindings).args(arguments);
        command
    }

    /// Compares every sink with the oracle's results for these records, and deletes the output topics.
    fn judge(&self, records: &Path) {
        merge_bindings(self.dir.path(), i64::MAX);
        let input = ["--records", records.to_str().expect("UTF-8"), "--partitions", "6"];
        let (config, history) = (self.path("run.toml"), self.path("history.ndjson"));
        let expected = Expected::of(self.dir.path(), &config, &input, &history);
        let database = self.path("results.db");
        expected.judge_sqlite(&database);
        self.postgres.dump("public", &self.path("postgres"));
        expected.judge(&self.path("postgres"));
        assert_topics_match_tables(&self.services.kafka, "event_time", |sql| sqlite_rows(&database, sql));
        topics(&self.services.kafka).delete(&OUTPUTS).expect("deleted");
    }
}

#[test]
fn topics_and_tables_match_the_oracle_also_after_kills() {
    let records = if std::env::var_os("HEADWATER_TEST_LONG").is_some() { 200_000 } else { 60_000 };
    let dir = tempfile::tempdir().expect("a directory");
    let recorded = dir.path().join("records.ndjson");
    let topic = format!("raw-flow-{}", std::process::id());
    topics(&brokers()).create(&[TopicSpec::new(&topic, 6)]).expect("created");
    produce(&topic, &hard_settings(7), records, &recorded);

    let _lock = lock_output_topics();
    for workers in ["1", "3"] {
        let run = AllSinksPipeline::new(Services::shared(), workers, &topic, "");
        succeed(&mut run.command(workers));
        run.judge(&recorded);
    }
    let run = AllSinksPipeline::with_checkpoints(Services::shared(), "2", &topic);
    let through = || run.postgres.max_of("headwater_progress", "through");
    let pruned = || run.postgres.max_of("headwater_pruned", "through");
    for attempt in 0..6 {
        let before = through();
        let delay = Duration::from_millis(40 * attempt);
        // The later attempts resume from checkpoints, even on a slow machine.
        let due = || through() > before && (attempt < 3 || pruned() > 0);
        let killed = kill_when(&mut run.command("2"), due, delay);
        assert!(killed || attempt > 0, "the run ended before it was killed");
    }
    assert!(pruned() > 0, "no checkpoint was used: the ledger was never pruned");
    succeed(&mut run.command("2"));
    run.judge(&recorded);
}

/// Without a ledger, each run reads some of the records again that the previous run has stored.
#[test]
fn killed_runs_store_each_record_in_postgresql_once() {
    let records = 60_000;
    let dir = tempfile::tempdir().expect("a directory");
    let brokers = brokers();
    topics(&brokers).create(&[TopicSpec::new("raw-killed", 6)]).expect("created");
    produce("raw-killed", &hard_settings(8), records, &dir.path().join("records.ndjson"));
    let postgres = Database::create("killed");
    let config = dir.path().join("run.toml");
    let text = format!(
        "pipeline = \"killed\"\n[source]\nkind = \"kafka\"\ntopic = \"raw-killed\"\nbrokers = {brokers:?}\n\
         [limits]\nbytes_in_flight = \"1MiB\"\n[sinks.postgres]\nurl = {:?}\ncommit_interval = \"0ms\"\n",
        postgres.url()
    );
    fs::write(&config, text).expect("written");
    let arguments = ["run", config.to_str().expect("UTF-8"), "-w", "2", "--bounded", "--drain"];

    let stored = || match postgres.has_table("dead_letters") {
        true => postgres.number("SELECT count(*) FROM events"),
        false => 0,
    };
    for _ in 0..2 {
        let before = stored();
        let mut run = headwater(&arguments).stderr(Stdio::null()).spawn().expect("started");
        while stored() == before {
            assert_eq!(
                run.try_wait().expect("the status of a child"),
                None,
                "the run ended before it was killed"
            );
        }
        run.kill().expect("killed");
        run.wait().expect("waited");
    }
    succeed(&mut headwater(&arguments));

    let both =
        "(SELECT partition, \"offset\" FROM events UNION ALL SELECT partition, \"offset\" FROM dead_letters)";
    let counts = format!(
        "SELECT concat(count(*), ' ', count(DISTINCT (partition, \"offset\"))) FROM {both} AS stored"
    );
    assert_eq!(postgres.query(&counts), [format!("{records} {records}")]);
    assert_eq!(
        postgres.query("SELECT count(DISTINCT generation) FROM headwater_progress WHERE through > 0"),
        ["3"]
    );
}
