//! Every refusal suggests a command to continue, and that command, as printed, succeeds.

use std::fs;
use std::path::Path;
use std::process::Command;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::{Offset, TopicPartitionList};

use crate::checkpoints::{checkpointed_files, run_until_pruned, status};
use crate::common::{headwater, succeed};
use crate::crash::Files;
use crate::crash_points::crash_at;
use crate::kafka::{TopicPipeline, admin, brokers, topics};

/// Returns the reason of a refused start, and checks that `headwater status` reports it with the same exit code.
fn refusal(run: &mut Command, config: &Path) -> String {
    let output = run.output().expect("started");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    let (_, reason) = stderr.trim_end().rsplit_once("headwater: ").expect("a reason");
    let status = headwater(&["status"]).arg(config).output().expect("started");
    let status_output = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.status.code(), Some(3), "{status_output}");
    assert!(status_output.contains(reason), "{status_output}\n{reason}");
    reason.to_owned()
}

/// Returns the suggested arguments: the first quoted text in a message that starts with `begins`.
fn suggested_arguments(stderr: &str, begins: &str) -> Vec<String> {
    let named = stderr.split('`').skip(1).step_by(2).find(|command| command.starts_with(begins));
    named.unwrap_or_else(|| panic!("no {begins}: {stderr}")).split(' ').map(str::to_owned).collect()
}

fn number(database: &Path, query: &str) -> i64 {
    let database = rusqlite::Connection::open(database).expect("a database");
    database.query_row(query, [], |row| row.get(0)).expect("a number")
}

#[test]
fn accept_loss_skips_only_the_named_partitions() {
    const RECORDS: u64 = 6_000;
    let mut job = TopicPipeline::new("gone", 83, RECORDS);
    let topic = &*job.topic.clone();
    succeed(&mut job.command());
    let records = "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM dead_letters)";
    assert_eq!(number(&job.path("results.db"), records), RECORDS as i64);

    // Retention removes records that would be replayed, and some that were never read.
    job.stream.produce(RECORDS);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 2, Offset::Offset(400)).expect("an offset");
    list.add_partition_offset(topic, 4, Offset::Offset(1_100)).expect("an offset");
    admin(&brokers(), async |admin: &AdminClient<_>| {
        admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted");
    });

    let stderr = refusal(&mut job.command(), &job.path("run.toml"));
    assert!(stderr.contains("the 400 offsets before 400 are gone"), "{stderr}");
    let mut arguments = suggested_arguments(&stderr, "--accept-loss");
    assert_eq!(arguments, ["--accept-loss".to_owned(), format!("{topic}:2")]);
    let output = job.command().args(&arguments).output().expect("started");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "the loss of one partition was accepted for another: {stderr}");
    arguments.extend(suggested_arguments(&stderr, "--accept-loss"));
    succeed(headwater(&["status"]).arg(job.path("run.toml")).args(&arguments));
    succeed(job.command().args(&arguments));
    // A hundred records were removed unread; all others are stored once.
    let all = 2 * RECORDS as i64 - 100;
    assert_eq!(number(&job.path("results.db"), records), all);
    assert_eq!(number(&job.path("ledger.db"), "SELECT sum(next - first) FROM headwater_losses"), 1_500);

    // The loss is recorded, and later starts replay the same epochs.
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
fn a_record_that_kills_every_run_is_named_and_can_be_skipped() {
    let mut job = TopicPipeline::new("deadly", 84, 600);
    let topic = &*job.topic.clone();
    succeed(&mut job.command());
    // With nothing to read, the number of kills does not matter.
    for _ in 0..11 {
        crash_at(job.command(), "start.begun", 1);
    }
    job.stream.produce(600);
    let config = job.path("run.toml");
    let status = || headwater(&["status"]).arg(&config).output().expect("started");
    let status_output = String::from_utf8_lossy(&status().stdout).into_owned();
    assert_eq!(status().status.code(), Some(3), "{status_output}");
    let output = job.command().output().expect("started");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(
        stderr.contains("the last 11 runs were killed") && stderr.contains(&format!("{topic}:0:100")),
        "{stderr}"
    );
    // After a refusal, another attempt is permitted, which may be killed, too.
    assert_eq!(status().status.code(), Some(0));
    for _ in 0..10 {
        crash_at(job.command(), "ledger.append.before", 1);
    }
    assert_eq!(status().status.code(), Some(3));
    succeed(job.command().args(["--accept-loss", &format!("{topic}:0:149")]));
    let records = "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM dead_letters)";
    assert_eq!(number(&job.path("results.db"), records), 1_200 - 50, "offsets 100 to 149 are lost");
    succeed(&mut job.command());
    assert_eq!(number(&job.path("results.db"), records), 1_200 - 50);
    topics(&brokers()).delete(&[topic]).expect("deleted");
}

#[test]
fn reset_all_discards_lost_state_without_reading_again() {
    let files = checkpointed_files(91, 150_000);
    run_until_pruned(&files, "2").kill();
    fs::remove_dir_all(files.path("state")).expect("removed");
    let stderr = refusal(&mut files.command("2"), &files.path("run.toml"));
    assert!(stderr.contains("no checkpoint can be read"), "{stderr}");
    let arguments = suggested_arguments(&stderr, "--discard-state all:");
    let events = "SELECT count(*) FROM events";
    let before = number(&files.path("results.db"), events);
    let read = number(&files.path("results.db"), "SELECT count(*) FROM dead_letters");
    let status_output = succeed(headwater(&["status"]).arg(files.path("run.toml")).args(&arguments));
    let status_output = String::from_utf8_lossy(&status_output.stdout).into_owned();
    assert!(
        status_output
            .contains("with nothing to replay, with a changed configuration: all state is discarded"),
        "{status_output}"
    );
    succeed(files.command("2").args(&arguments));
    let after = number(&files.path("results.db"), events);
    let both = after + number(&files.path("results.db"), "SELECT count(*) FROM dead_letters");
    assert!(before + read <= both && both <= 150_000, "{before} and {read}, then {both} of 150000");
    let (has, recorded) = files.frontiers();
    assert_eq!(has, recorded, "the sink does not continue with the ledger");
    // The same arguments do not permit discarding later state.
    let start = status(&files)["start"].clone();
    succeed(files.command("1").args(&arguments));
    assert_eq!((&start["replay"], &start["closed"]), (&0.into(), &true.into()));
    assert_eq!(number(&files.path("results.db"), events), after);
}

#[test]
fn a_sink_without_progress_receives_nothing_twice() {
    let files = Files::new(92, 6_000);
    succeed(&mut files.command("1"));
    let events = "SELECT count(*) FROM events";
    let before = number(&files.path("results.db"), events);
    let results = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    results.execute("DELETE FROM headwater_progress", []).expect("deleted");
    drop(results);
    let stderr = refusal(&mut files.command("1"), &files.path("run.toml"));
    assert!(stderr.contains("its progress is gone"), "{stderr}");
    succeed(files.command("1").args(suggested_arguments(&stderr, "--adopt-sink")));
    assert_eq!(number(&files.path("results.db"), events), before);
    succeed(&mut files.command("2"));
    files.judge();
}

#[test]
fn an_older_ledger_needs_accept_duplicates() {
    let files = Files::new(93, 6_000);
    succeed(&mut files.command("1"));
    let ledger = rusqlite::Connection::open(files.path("ledger.db")).expect("a database");
    ledger.execute("DELETE FROM headwater_bindings", []).expect("deleted");
    drop(ledger);
    let stderr = refusal(&mut files.command("1"), &files.path("run.toml"));
    let arguments = suggested_arguments(&stderr, "--adopt-sink");
    assert_eq!(arguments, ["--adopt-sink", "sqlite", "--accept-duplicates"]);
    crate::crash::assert_refused(files.command("1").args(&arguments[..2]), "writes them a second time");
    // The rows exist already, so the tables must be emptied first, as the message says.
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
