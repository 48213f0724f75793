//! A configuration that changes while a pipeline stands still: what is not concerned goes on as if nothing had happened,
//! and what no longer fits its numbers forgets, if it is told to.

use std::fs;

use serde_json::Value;

use crate::checkpoints::{CHECKPOINT, configure, files, run_until_pruned, status};
use crate::common::{FLOW, headwater, succeed};
use crate::crash::{Files, kill_when, refused};
use crate::crash_points::{AMENDING, dies_at};

const RESETS: [&str; 4] = ["--reset", "patterns.velocity_spike", "--reset", "windows.visit"];

/// What is changed: a window's and a pattern's numbers, a severity, and one window more.
fn otherwise() -> String {
    let flow = FLOW
        .replace("gap = \"30s\"", "gap = \"10s\"")
        .replace("more_than = 20\nwithin = \"10m\"", "more_than = 4\nwithin = \"20s\"");
    let flow =
        flow.replace("[patterns.impossible_travel]", "[patterns.impossible_travel]\nseverity = \"low\"");
    flow.replacen(
        "[patterns",
        "[[windows]]\nname = \"new\"\nkind = \"tumbling\"\nsize = \"10s\"\n[patterns",
        1,
    )
}

/// A minute after the greatest event time so far: in milliseconds, and as tables have it.
fn in_a_minute(files: &Files) -> (i64, String) {
    let database = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    let time = "SELECT unixepoch(max(event_time)) * 1000 + 60000, \
                strftime('%Y-%m-%dT%H:%M:%S.000Z', max(event_time), '+60 seconds') FROM events";
    database.query_row(time, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("a time")
}

#[test]
fn what_a_changed_configuration_does_not_concern_goes_on_and_the_rest_forgets_if_it_may() {
    let files = files(51, 120_000);
    fs::copy(files.path("run.toml"), files.path("before.toml")).expect("copied");
    let resetting = || {
        let mut command = files.command("2");
        command.args(RESETS);
        command
    };
    assert!(kill_when(&mut files.command("2"), || files.pruned() > 0, std::time::Duration::ZERO));
    configure(&files, &otherwise(), CHECKPOINT);
    refused(&mut resetting(), "is in a checkpoint and in every sink");

    configure(&files, FLOW, CHECKPOINT);
    let mut run = run_until_pruned(&files, "1");
    run.terminate();
    run.ends_well();
    let begun = in_a_minute(&files);
    configure(&files, &otherwise(), CHECKPOINT);
    files.refused("`--reset patterns.velocity_spike`");
    fs::copy(files.path("run.toml"), files.path("after.toml")).expect("copied");

    // Either all of it is done or nothing, wherever it ends.
    dies_at(resetting(), AMENDING[0], 1);
    files.refused("`--reset patterns.velocity_spike`");
    dies_at(resetting(), AMENDING[1], 1);
    assert_eq!(status(&files)["start"]["forgets"], Value::Null, "it is done");
    dies_at(resetting(), "ledger.conclude.after", 2);
    succeed(&mut files.command("3"));

    let concerned = |row: &Value| {
        ["velocity_spike", "impossible_travel"].iter().any(|rule| row["rule"] == *rule)
            || ["visit", "new"].iter().any(|window| row["window_name"] == *window)
    };
    let results = files.path("results.db");
    files.expected(&files.path("before.toml")).judge_some(&results, |_, row| !concerned(row));
    // Once nothing of before is looked back on, it is as if it had never been otherwise.
    let after = |row: &Value, time: &str| match &row[time] {
        Value::String(text) => *text > begun.1,
        time => time.as_i64() > Some(begun.0),
    };
    files.expected(&files.path("after.toml")).judge_some(&results, |table, row| match table {
        "alerts" => row["rule"] == "velocity_spike" && after(row, "event_time"),
        "windows" => concerned(row) && after(row, "start"),
        _ => false,
    });
}

#[test]
fn what_a_pipeline_reads_never_changes() {
    let files = files(52, 6_000);
    succeed(&mut files.command("1"));
    let text = fs::read_to_string(files.path("run.toml")).expect("readable");
    fs::write(files.path("run.toml"), text.replace("part-5", "part-4")).expect("written");
    let mut command = files.command("1");
    refused(command.args(RESETS), "its input cannot change");
    let config = files.path("run.toml");
    let status = headwater(&["status", config.to_str().expect("UTF-8")]).output().expect("started");
    assert_eq!(status.status.code(), Some(3), "as was foretold");
}

/// A sink that is new, or that lost what it had, is given what comes from now on, if it is said to.
#[test]
fn a_sink_that_lost_everything_is_refused_until_it_may_go_on_from_where_the_ledger_is() {
    let files = files(53, 60_000);
    let mut run = run_until_pruned(&files, "2");
    run.terminate();
    run.ends_well();
    for suffix in ["", "-wal", "-shm"] {
        _ = fs::remove_file(files.path(&format!("results.db{suffix}")));
    }
    files.refused("`--reset-sink sqlite`");
    let through = files.frontiers().1;
    let mut wrong = files.command("1");
    let output = wrong.args(["--reset-sink", "postgres"]).output().expect("started");
    assert_eq!(output.status.code(), Some(2), "there is no such sink");

    let resetting = || {
        let mut command = files.command("2");
        command.args(["--reset-sink", "sqlite"]);
        command
    };
    dies_at(resetting(), "start.loaded", 1);
    assert_eq!(files.frontiers().0, through, "it is durable at once");
    // A permission that is not needed any more does nothing.
    dies_at(resetting(), "sink.commit.after", 3);
    succeed(&mut resetting());
    files.expected(&files.path("run.toml")).judge_some(&files.path("results.db"), |table, row| {
        table != "dead_letters" && row["epoch"].as_i64() > Some(through)
    });
}

/// A pipeline that begins again, with a new ledger, into the sink that it had: its epochs go on, and never back.
#[test]
fn a_sink_of_a_ledger_that_is_gone_can_be_adopted_and_its_epochs_never_go_back() {
    let files = files(54, 6_000);
    succeed(&mut files.command("1"));
    let before = files.frontiers().0;
    for file in ["ledger.db", "ledger.db-wal", "ledger.db-shm", "history.ndjson", "bindings.ndjson"] {
        _ = fs::remove_file(files.path(file));
    }
    fs::remove_dir_all(files.path("state")).expect("removed");
    files.refused("`--reset-sink sqlite --accept-duplicates` goes on with this one");
    refused(files.command("2").args(["--reset-sink", "sqlite"]), "gives them a second time");
    // What is there already is not overwritten, nor tried for ever.
    let doubling = ["--reset-sink", "sqlite", "--accept-duplicates"];
    refused(files.command("2").args(doubling), "UNIQUE constraint failed");
    let results = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    let empty =
        "DELETE FROM events; DELETE FROM alerts; DELETE FROM window_aggregates; DELETE FROM dead_letters;";
    results.execute_batch(empty).expect("emptied");
    succeed(files.command("2").args(doubling));
    let first: i64 =
        results.query_row("SELECT min(epoch) FROM events", [], |row| row.get(0)).expect("an epoch");
    assert!(first > before, "{first} after {before}");
    files.judge();
}
