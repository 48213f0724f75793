//! Several sinks of one kind: each has every result exactly once, through crashes that leave one behind the other.

use std::fs;

use crate::common::{FLOW, headwater, succeed};
use crate::crash::Files;
use crate::crash_points::crash_at;
use crate::kafka::{brokers, read_all};

#[test]
fn sinks_of_one_kind_each_have_every_result_once() {
    let files = Files::new(53, 30_000);
    let (archive, lines) = (files.path("archive.db"), files.path("lines"));
    files.configure(&format!(
        "{FLOW}[sinks.archive]\nkind = \"sqlite\"\npath = {archive:?}\ncommit_interval = \"50ms\"\n\
         [sinks.lines]\nkind = \"file\"\npath = {lines:?}\n"
    ));
    for (point, nth) in
        [("sink.commit.after", 1), ("sqlite.written", 2), ("file.written", 1), ("sink.open.after", 2)]
    {
        crash_at(files.command("2"), point, nth);
    }
    succeed(&mut files.command("3"));
    let expected = files.expected(&files.path("run.toml"));
    expected.judge_sqlite(&files.path("results.db"));
    expected.judge_sqlite(&archive);
    expected.judge_directory(&lines);

    // The name is the sink's identity: under another name, its store belongs to a sink that has no progress there.
    let renamed = fs::read_to_string(files.path("run.toml")).expect("readable").replace("archive]", "copy]");
    fs::write(files.path("run.toml"), renamed).expect("written");
    let status = headwater(&["status", "--json"]).arg(files.path("run.toml")).output().expect("started");
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let names: Vec<_> = status["sinks"].as_array().expect("sinks").iter().map(|sink| &sink["name"]).collect();
    assert_eq!(names, ["copy", "lines", "sqlite"], "{status}");
}

#[test]
fn topics_of_two_kafka_sinks_have_the_same_records() {
    let files = Files::new(54, 12_000);
    let unique = format!("several-{}", std::process::id());
    let sink = |name: &str| {
        let brokers = brokers();
        format!(
            "[sinks.{name}]\nkind = \"kafka\"\nbrokers = {brokers:?}\n[sinks.{name}.topics]\n\
             alerts = \"{unique}.{name}.alerts\"\ndead-letters = \"{unique}.{name}.dead\"\n"
        )
    };
    files.configure(&format!("{FLOW}{}{}", sink("kafka"), sink("second")));
    let config = fs::read_to_string(files.path("run.toml")).expect("readable");
    fs::write(files.path("run.toml"), config.replace("\"crash\"", &format!("{unique:?}"))).expect("written");
    succeed(headwater(&["topics", "create"]).arg(files.path("run.toml")));
    crash_at(files.command("2"), "kafka.produced", 3);
    succeed(&mut files.command("2"));
    for output in ["alerts", "dead"] {
        let records = |name: &str| {
            let all = read_all(&brokers(), &format!("{unique}.{name}.{output}")).into_iter();
            let mut records: Vec<_> = all.map(|record| (record.key, record.value)).collect();
            records.sort_unstable();
            records
        };
        let (first, second) = (records("kafka"), records("second"));
        assert!(first.len() > 20, "{output}: {}", first.len());
        assert!(first == second, "{output}: {} and {} records", first.len(), second.len());
    }
}
