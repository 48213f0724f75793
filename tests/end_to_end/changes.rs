//! A configuration that changes between two runs: operators that are not affected continue unchanged, and operators
//! whose state does not fit the new configuration discard it, if `--discard-state` permits it.

use std::fs;

use serde_json::Value;

use crate::checkpoints::{CHECKPOINT, checkpointed_files, configure, run_until_pruned, status};
use crate::common::{FLOW, headwater, succeed};
use crate::crash::{Files, assert_refused, kill_when};
use crate::crash_points::{CONFIG_CHANGE_POINTS, crash_at};

const RESETS: [&str; 4] = ["--discard-state", "patterns.velocity_spike", "--discard-state", "windows.visit"];

/// The flow with changed parameters of a window and of a pattern, a changed severity, and an additional window.
fn changed_flow() -> String {
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

/// Returns the time one minute after the greatest stored event time: in milliseconds, and in the format of the tables.
fn one_minute_later(files: &Files) -> (i64, String) {
    let database = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    let time = "SELECT unixepoch(max(event_time)) * 1000 + 60000, \
                strftime('%Y-%m-%dT%H:%M:%S.000Z', max(event_time), '+60 seconds') FROM events";
    database.query_row(time, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("a time")
}

#[test]
fn a_changed_configuration_resets_only_affected_operators() {
    let files = checkpointed_files(51, 120_000);
    fs::copy(files.path("run.toml"), files.path("before.toml")).expect("copied");
    let with_resets = || {
        let mut command = files.command("2");
        command.args(RESETS);
        command
    };
    assert!(kill_when(&mut files.command("2"), || files.pruned_through() > 0, std::time::Duration::ZERO));
    configure(&files, &changed_flow(), CHECKPOINT);
    assert_refused(&mut with_resets(), "is in a checkpoint and in every sink");

    configure(&files, FLOW, CHECKPOINT);
    let mut run = run_until_pruned(&files, "1");
    run.terminate();
    run.expect_success();
    let changed_at = one_minute_later(&files);
    configure(&files, &changed_flow(), CHECKPOINT);
    files.assert_refused("`--discard-state patterns.velocity_spike`");
    fs::copy(files.path("run.toml"), files.path("after.toml")).expect("copied");

    // The change is atomic: a crash leaves all of it or none of it.
    crash_at(with_resets(), CONFIG_CHANGE_POINTS[0], 1);
    files.assert_refused("`--discard-state patterns.velocity_spike`");
    crash_at(with_resets(), CONFIG_CHANGE_POINTS[1], 1);
    assert_eq!(status(&files)["start"]["discards"], Value::Null, "the change is complete");
    crash_at(with_resets(), "ledger.conclude.after", 2);
    succeed(&mut files.command("3"));

    let is_affected = |row: &Value| {
        ["velocity_spike", "impossible_travel"].iter().any(|rule| row["rule"] == *rule)
            || ["visit", "new"].iter().any(|window| row["window_name"] == *window)
    };
    let results = files.path("results.db");
    files.expected(&files.path("before.toml")).judge_some(&results, |_, row| !is_affected(row));
    // Once no event before the change is within reach, the results are those of the new configuration alone.
    let after = |row: &Value, time: &str| match &row[time] {
        Value::String(text) => *text > changed_at.1,
        time => time.as_i64() > Some(changed_at.0),
    };
    files.expected(&files.path("after.toml")).judge_some(&results, |table, row| match table {
        "alerts" => row["rule"] == "velocity_spike" && after(row, "event_time"),
        "windows" => is_affected(row) && after(row, "start"),
        _ => false,
    });
}

#[test]
fn a_changed_input_is_refused() {
    let files = checkpointed_files(52, 6_000);
    succeed(&mut files.command("1"));
    let text = fs::read_to_string(files.path("run.toml")).expect("readable");
    fs::write(files.path("run.toml"), text.replace("part-5", "part-4")).expect("written");
    let mut command = files.command("1");
    assert_refused(command.args(RESETS), "its input cannot change");
    let config = files.path("run.toml");
    let status = headwater(&["status", config.to_str().expect("UTF-8")]).output().expect("started");
    assert_eq!(status.status.code(), Some(3), "status and run agree");
}

/// With `--adopt-sink`, a sink that is new or was emptied receives only later outputs.
#[test]
fn an_emptied_sink_needs_reset_sink_to_continue() {
    let files = checkpointed_files(53, 60_000);
    let mut run = run_until_pruned(&files, "2");
    run.terminate();
    run.expect_success();
    for suffix in ["", "-wal", "-shm"] {
        _ = fs::remove_file(files.path(&format!("results.db{suffix}")));
    }
    files.assert_refused("`--adopt-sink sqlite`");
    let through = files.frontiers().1;
    let mut wrong = files.command("1");
    let output = wrong.args(["--adopt-sink", "postgres"]).output().expect("started");
    assert_eq!(output.status.code(), Some(2), "an unknown sink is a usage error");

    let with_resets = || {
        let mut command = files.command("2");
        command.args(["--adopt-sink", "sqlite"]);
        command
    };
    crash_at(with_resets(), "start.loaded", 1);
    assert_eq!(files.frontiers().0, through, "the adoption is durable at once");
    // A permission that is no longer needed has no effect.
    crash_at(with_resets(), "sink.commit.after", 1);
    succeed(&mut with_resets());
    files.expected(&files.path("run.toml")).judge_some(&files.path("results.db"), |table, row| {
        table != "dead_letters" && row["epoch"].as_i64() > Some(through)
    });
}

/// A pipeline that starts over, with a new ledger and the old sink, continues the numbering of epochs.
#[test]
fn a_sink_of_a_lost_ledger_can_be_adopted() {
    let files = checkpointed_files(54, 6_000);
    succeed(&mut files.command("1"));
    let before = files.frontiers().0;
    for file in ["ledger.db", "ledger.db-wal", "ledger.db-shm", "history.ndjson", "bindings.ndjson"] {
        _ = fs::remove_file(files.path(file));
    }
    fs::remove_dir_all(files.path("state")).expect("removed");
    files.assert_refused("`--adopt-sink sqlite --accept-duplicates` to mark the sink as caught up");
    assert_refused(files.command("2").args(["--adopt-sink", "sqlite"]), "writes them a second time");
    // Existing rows are neither overwritten nor retried for ever.
    let accepting = ["--adopt-sink", "sqlite", "--accept-duplicates"];
    assert_refused(files.command("2").args(accepting), "UNIQUE constraint failed");
    let results = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    let empty =
        "DELETE FROM events; DELETE FROM alerts; DELETE FROM window_aggregates; DELETE FROM dead_letters;";
    results.execute_batch(empty).expect("emptied");
    succeed(files.command("2").args(accepting));
    let first: i64 =
        results.query_row("SELECT min(epoch) FROM events", [], |row| row.get(0)).expect("an epoch");
    assert!(first > before, "{first} after {before}");
    files.judge();
}
