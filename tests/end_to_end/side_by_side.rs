//! Two pipelines on one Kafka and one PostgreSQL: with different names they do not affect each other, with the same
//! name the second run fences the first.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use headwater_sinks::kafka::topics::{TopicSpec, Topics};

use crate::common::{Expected, FLOW, hard_settings, headwater};
use crate::kafka::{brokers, produce};
use crate::live::{Process, wait_for};
use crate::postgres::Database;

/// Creates a topic with generated records and writes them to the file `recorded`.
fn topic(name: &str, records: u64, recorded: &Path) -> String {
    let topic = format!("{name}-{}", std::process::id());
    let topics = Topics::connect(&brokers(), &BTreeMap::new()).expect("connected");
    topics.create(&[TopicSpec::new(&topic, 6)]).expect("created");
    produce(&topic, &hard_settings(31), records, recorded);
    topic
}

/// Writes the configuration of a pipeline with sink and ledger in PostgreSQL.
fn configure(dir: &Path, pipeline: &str, topic: &str, postgres: &str, flow: &str) -> PathBuf {
    let config = dir.join(format!("{pipeline}.toml"));
    let text = format!(
        "pipeline = {pipeline:?}\n[source]\nkind = \"kafka\"\ntopic = {topic:?}\nbrokers = {:?}\n\
         [sinks.postgres]\n{postgres}\ncommit_interval = \"20ms\"\n[ledger]\nkind = \"postgres\"\n{flow}",
        brokers()
    );
    fs::write(&config, text).expect("written");
    config
}

#[test]
fn two_pipelines_on_one_topic_and_database_are_isolated() {
    let dir = tempfile::tempdir().expect("a directory");
    let recorded = dir.path().join("records.ndjson");
    let topic = topic("side-by-side", 30_000, &recorded);
    let database = Database::create("side_by_side");
    let other = FLOW.replace("more_than = 20", "more_than = 15").replace("size = \"1m\"", "size = \"2m\"");
    let mut runs: Vec<_> = [("one", FLOW), ("two", &other)]
        .into_iter()
        .map(|(name, flow)| {
            let at = dir.path().join(name);
            fs::create_dir(&at).expect("a directory");
            let place = format!("url = {:?}\nschema = \"pipeline_{name}\"", database.url());
            let config = configure(&at, name, &topic, &place, flow);
            let mut command = headwater(&["run", "--bounded", "--drain", "--bindings"]);
            command.arg(at.join("bindings.ndjson")).arg(&config);
            let run = Process::start(command, at.join("run.log"));
            (name, at, config, run)
        })
        .collect();
    for (name, at, config, run) in &mut runs {
        run.expect_success();
        let tables = at.join("tables");
        database.dump(&format!("pipeline_{name}"), &tables);
        let input = ["--records", recorded.to_str().expect("UTF-8")];
        Expected::of(at, config, &input, &at.join("bindings.ndjson")).judge(&tables);
    }
}

#[test]
fn a_pipeline_does_not_write_to_the_tables_of_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic("not-mine", 600, &dir.path().join("records.ndjson"));
    let database = Database::create("not_mine");
    let place = format!("url = {:?}", database.url());
    let run = |name: &str| {
        let mut command = headwater(&["run", "--bounded"]);
        command.arg(configure(dir.path(), name, &topic, &place, FLOW));
        Process::start(command, dir.path().join(format!("{name}.log")))
    };
    run("owner").expect_success();
    let before = database.query("SELECT concat(count(*), ' ', max(epoch)) FROM events");
    let mut stranger = run("stranger");
    assert_eq!(stranger.wait().code(), Some(3), "{}", stranger.log());
    assert!(stranger.log().contains("the tables belong to pipeline \"owner\""), "{}", stranger.log());
    assert_eq!(database.query("SELECT concat(count(*), ' ', max(epoch)) FROM events"), before);
    run("owner").expect_success();
}

#[test]
fn a_second_start_of_the_same_name_fences_the_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = topic("same-name", 600, &dir.path().join("records.ndjson"));
    let database = Database::create("same_name");
    let place = format!("url = {:?}", database.url());
    let config = configure(dir.path(), "same", &topic, &place, FLOW);
    let run = |log: &str| {
        let mut command = headwater(&["run"]);
        command.arg(&config);
        Process::start(command, dir.path().join(log))
    };
    let through = |generation: u64| {
        let progress =
            format!("SELECT 1 FROM headwater_progress WHERE generation = {generation} AND through > 0");
        let made = database.query("SELECT to_regclass('headwater_progress') IS NOT NULL") == ["t"];
        (made && !database.query(&progress).is_empty()).then_some(())
    };
    let mut first = run("first.log");
    wait_for("the first one's results", || through(1));
    let mut second = run("second.log");
    // The first run is fenced as soon as it has something to write.
    produce(&topic, &hard_settings(32), 600, &dir.path().join("more.ndjson"));
    assert_eq!(first.wait().code(), Some(3), "{}", first.log());
    assert!(
        first.log().contains("generation 2"),
        "the log does not name the new generation: {}",
        first.log()
    );
    wait_for("the second one's results", || through(2));
    second.terminate();
    second.expect_success();
}
