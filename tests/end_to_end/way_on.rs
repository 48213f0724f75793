//! Every refusal names a way on: that command is typed as it stands there, and goes on.

use std::fs;
use std::path::Path;
use std::process::Command;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::{Offset, TopicPartitionList};

use crate::checkpoints::{files, run_until_pruned, status};
use crate::common::{headwater, succeed};
use crate::crash::Files;
use crate::crash_points::dies_at;
use crate::kafka::{FromTopic, admin, brokers, topics};

/// What a refused start says, which `headwater status` says, too, with the same exit code.
fn refusal(run: &mut Command, config: &Path) -> String {
    let output = run.output().expect("started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    let (_, reason) = said.trim_end().rsplit_once("headwater: ").expect("a reason");
    let status = headwater(&["status"]).arg(config).output().expect("started");
    let foretold = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.status.code(), Some(3), "{foretold}");
    assert!(foretold.contains(reason), "{foretold}\n{reason}");
    reason.to_owned()
}

/// The arguments between backquotes that begin so, in what was said.
fn way_on(said: &str, begins: &str) -> Vec<String> {
    let named = said.split('`').skip(1).step_by(2).find(|command| command.starts_with(begins));
    named.unwrap_or_else(|| panic!("no {begins}: {said}")).split(' ').map(str::to_owned).collect()
}

fn number(database: &Path, query: &str) -> i64 {
    let database = rusqlite::Connection::open(database).expect("a database");
    database.query_row(query, [], |row| row.get(0)).expect("a number")
}

#[test]
fn records_that_are_gone_are_skipped_by_name_and_nothing_else_is() {
    const RECORDS: u64 = 6_000;
    let mut job = FromTopic::new("gone", 83, RECORDS);
    let topic = &*job.topic.clone();
    succeed(&mut job.command());
    let records = "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM dead_letters)";
    assert_eq!(number(&job.path("results.db"), records), RECORDS as i64);

    // Retention takes records that would be replayed, and some that were never read.
    job.stream.produce(RECORDS);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 2, Offset::Offset(400)).expect("an offset");
    list.add_partition_offset(topic, 4, Offset::Offset(1_100)).expect("an offset");
    admin(&brokers(), async |admin: &AdminClient<_>| {
        admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted");
    });

    let said = refusal(&mut job.command(), &job.path("run.toml"));
    assert!(said.contains("the 400 offsets before 400 are gone"), "{said}");
    let mut arguments = way_on(&said, "--accept-loss");
    assert_eq!(arguments, ["--accept-loss".to_owned(), format!("{topic}:2")]);
    let output = job.command().args(&arguments).output().expect("started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "the other partition is not meant: {said}");
    arguments.extend(way_on(&said, "--accept-loss"));
    succeed(headwater(&["status"]).arg(job.path("run.toml")).args(&arguments));
    succeed(job.command().args(&arguments));
    // Of what had not been read before, a hundred records are gone; all else is there, once.
    let all = 2 * RECORDS as i64 - 100;
    assert_eq!(number(&job.path("results.db"), records), all);
    assert_eq!(number(&job.path("ledger.db"), "SELECT sum(next - first) FROM headwater_losses"), 1_500);

    // It is remembered, and later starts replay the same.
    job.stream.produce(60);
    succeed(&mut job.command());
    succeed(job.command().args(&arguments));
    assert_eq!(number(&job.path("results.db"), records), all + 60);
    let status = succeed(headwater(&["status"]).arg(job.path("run.toml")));
    let printed = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(printed.contains("never read: partition 4, offsets 0 to 1099"), "{printed}");
    topics(&brokers()).delete(&[topic]).expect("deleted");
}

#[test]
fn a_place_that_kills_run_after_run_is_named_and_can_be_passed() {
    let mut job = FromTopic::new("deadly", 84, 600);
    let topic = &*job.topic.clone();
    succeed(&mut job.command());
    // Without anything to read it is no matter how often it is killed.
    for _ in 0..11 {
        dies_at(job.command(), "start.begun", 1);
    }
    job.stream.produce(600);
    let config = job.path("run.toml");
    let status = || headwater(&["status"]).arg(&config).output().expect("started");
    let foretold = String::from_utf8_lossy(&status().stdout).into_owned();
    assert_eq!(status().status.code(), Some(3), "{foretold}");
    let output = job.command().output().expect("started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("the last 11 runs were killed") && said.contains(&format!("{topic}:0:100")),
        "{said}"
    );
    // The refusal permits another try, which may die, too.
    assert_eq!(status().status.code(), Some(0));
    for _ in 0..10 {
        dies_at(job.command(), "ledger.append.before", 1);
    }
    assert_eq!(status().status.code(), Some(3));
    succeed(job.command().args(["--accept-loss", &format!("{topic}:0:149")]));
    let records = "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM dead_letters)";
    assert_eq!(number(&job.path("results.db"), records), 1_200 - 50, "those from 100 to 149 are lost");
    succeed(&mut job.command());
    assert_eq!(number(&job.path("results.db"), records), 1_200 - 50);
    topics(&brokers()).delete(&[topic]).expect("deleted");
}

#[test]
fn lost_state_is_forgotten_by_name_and_nothing_is_read_again() {
    let files = files(91, 150_000);
    run_until_pruned(&files, "2").kill();
    fs::remove_dir_all(files.path("state")).expect("removed");
    let said = refusal(&mut files.command("2"), &files.path("run.toml"));
    assert!(said.contains("no checkpoint can be read"), "{said}");
    let arguments = way_on(&said, "--reset all:");
    let events = "SELECT count(*) FROM events";
    let before = number(&files.path("results.db"), events);
    let read = number(&files.path("results.db"), "SELECT count(*) FROM dead_letters");
    let foretold = succeed(headwater(&["status"]).arg(files.path("run.toml")).args(&arguments));
    let foretold = String::from_utf8_lossy(&foretold.stdout).into_owned();
    assert!(
        foretold.contains("with nothing to replay, with a changed configuration: all state is forgotten"),
        "{foretold}"
    );
    succeed(files.command("2").args(&arguments));
    let after = number(&files.path("results.db"), events);
    let both = after + number(&files.path("results.db"), "SELECT count(*) FROM dead_letters");
    assert!(before + read <= both && both <= 150_000, "{before} and {read}, then {both} of 150000");
    let (has, recorded) = files.frontiers();
    assert_eq!(has, recorded, "the sink goes on with the ledger");
    // It is no permission to forget again what came after.
    let start = status(&files)["start"].clone();
    succeed(files.command("1").args(&arguments));
    assert_eq!((&start["replay"], &start["closed"]), (&0.into(), &true.into()));
    assert_eq!(number(&files.path("results.db"), events), after);
}

#[test]
fn a_sink_whose_progress_is_gone_is_not_given_everything_twice() {
    let files = Files::new(92, 6_000);
    succeed(&mut files.command("1"));
    let events = "SELECT count(*) FROM events";
    let before = number(&files.path("results.db"), events);
    let results = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    results.execute("DELETE FROM headwater_progress", []).expect("deleted");
    drop(results);
    let said = refusal(&mut files.command("1"), &files.path("run.toml"));
    assert!(said.contains("its progress is gone"), "{said}");
    succeed(files.command("1").args(way_on(&said, "--reset-sink")));
    assert_eq!(number(&files.path("results.db"), events), before);
    succeed(&mut files.command("2"));
    files.judge();
}

#[test]
fn a_ledger_of_yesterday_goes_on_only_where_duplicates_are_accepted() {
    let files = Files::new(93, 6_000);
    succeed(&mut files.command("1"));
    let ledger = rusqlite::Connection::open(files.path("ledger.db")).expect("a database");
    ledger.execute("DELETE FROM headwater_bindings", []).expect("deleted");
    drop(ledger);
    let said = refusal(&mut files.command("1"), &files.path("run.toml"));
    let arguments = way_on(&said, "--reset-sink");
    assert_eq!(arguments, ["--reset-sink", "sqlite", "--accept-duplicates"]);
    crate::crash::refused(files.command("1").args(&arguments[..2]), "gives them a second time");
    // The rows are there already, so they are to be emptied first, as it says.
    let results = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    let empty =
        "DELETE FROM events; DELETE FROM alerts; DELETE FROM window_aggregates; DELETE FROM dead_letters;";
    results.execute_batch(empty).expect("emptied");
    drop(results);
    _ = fs::remove_file(files.path("history.ndjson"));
    _ = fs::remove_file(files.path("bindings.ndjson"));
    succeed(files.command("1").args(&arguments));
    files.judge();
}
