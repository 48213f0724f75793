//! Checkpoints: a start goes on from one, whatever has happened, and does not read again what came before.

use std::fs;
use std::time::Duration;

use headwater::config::StateConfig;
use headwater::state::{StateStore, open};
use serde_json::Value;

use crate::common::{FLOW, headwater, succeed};
use crate::crash::{Files, kill_ten_times, kill_when};
use crate::crash_points::dies_at;
use crate::live::Running;

pub const CHECKPOINT: &str = "[checkpoint]\ninterval = \"100ms\"\nkeep = 2\n";

/// Generated files, and a pipeline that makes checkpoints as often as it may.
pub fn files(seed: u64, records: u64) -> Files {
    let files = Files::new(seed, records);
    configure(&files, FLOW, CHECKPOINT);
    files
}

/// Writes the configuration of a flow with checkpoints or without.
pub fn configure(files: &Files, flow: &str, checkpoint: &str) {
    let state = files.path("state").display().to_string();
    files.configure(&format!("{flow}{checkpoint}[state]\npath = {state:?}\n"));
}

/// What `headwater status` says of a start that would not be refused.
pub fn status(files: &Files) -> Value {
    let config = files.path("run.toml");
    let output = succeed(&mut headwater(&["status", config.to_str().expect("UTF-8"), "--json"]));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Starts a run and waits until it has made some checkpoints that a start can go back to.
pub fn run_until_pruned(files: &Files, workers: &str) -> Running {
    let run = Running::start(files.command(workers), files.path("run.log"));
    let before = files.pruned();
    crate::live::wait_for("checkpoints", || (files.pruned() > before).then_some(()));
    run
}

/// The state store, while nobody runs, and the names of the parts of an epoch.
fn parts_of(files: &Files, epoch: u64) -> (Box<dyn StateStore>, Vec<String>) {
    let mut store = open(&StateConfig::Fjall(files.path("state")), "crash").expect("it can be opened");
    let mut names = store.list("").expect("an answer");
    names.retain(|name| name.contains(&format!("/{epoch}/")));
    (store, names)
}

#[test]
fn killed_ten_times_between_checkpoints_every_result_is_there_exactly_once() {
    let files = files(31, 120_000);
    kill_ten_times(&files);
    assert!(files.pruned() > 0, "no start can have gone on from the beginning");
}

#[test]
fn a_stop_leaves_nothing_to_be_done_again_and_another_number_of_workers_goes_on() {
    let files = files(32, 150_000);
    for workers in ["2", "3", "1"] {
        let mut run = run_until_pruned(&files, workers);
        run.terminate();
        run.ends_well();
        let status = status(&files);
        assert_eq!(status["start"]["replay"], 0, "{status}");
        assert_eq!(status["start"]["after"], status["recorded_through"], "{status}");
        assert_eq!(status["sinks"][0]["through"], status["recorded_through"], "{status}");
    }
    succeed(&mut files.command("3"));
    files.judge();
    assert_eq!(status(&files)["start"]["closed"], true);
}

/// As soon as it has taken over; it may have nothing open yet.
#[test]
fn a_stop_that_comes_while_a_run_starts_is_one() {
    let files = files(37, 60_000);
    for delay in [0, 5, 20, 60] {
        let mut run = Running::start(files.command("2"), files.path("run.log"));
        crate::live::wait_for("the ledger", || run.log().contains("claimed the ledger").then_some(()));
        std::thread::sleep(Duration::from_millis(delay));
        run.terminate();
        run.ends_well();
        assert_eq!(status(&files)["start"]["replay"], 0, "nothing is to be done again");
    }
    succeed(&mut files.command("1"));
    files.judge();
}

#[test]
fn a_checkpoint_that_cannot_be_read_costs_time_and_nothing_else() {
    let files = files(33, 150_000);
    run_until_pruned(&files, "2").kill();
    let ledger = rusqlite::Connection::open(files.path("ledger.db")).expect("a database");
    let spoil =
        "UPDATE headwater_manifests SET manifest = CAST(substr(manifest, 1, length(manifest) - 1) AS BLOB)
                 WHERE epoch = (SELECT max(epoch) FROM headwater_manifests)";
    assert_eq!(ledger.execute(spoil, []).expect("spoilt"), 1);
    drop(ledger);
    let status = status(&files);
    assert!(status["checkpoints"][0]["error"].is_string(), "{status}");
    assert_eq!(status["start"]["after"], status["checkpoints"][1]["epoch"], "{status}");
    // Another version may be able to read it: a start leaves its parts where they are.
    let newest = status["checkpoints"][0]["epoch"].as_u64().expect("an epoch");
    let (store, parts) = parts_of(&files, newest);
    drop(store);
    dies_at(files.command("1"), "start.begun", 1);
    assert!(!parts.is_empty() && parts_of(&files, newest).1 == parts);
    let killed = kill_when(&mut files.command("1"), || files.pruned() > 0, Duration::from_millis(300));
    assert!(killed, "it was to be killed on its way");
    succeed(&mut files.command("2"));
    files.judge();
}

#[test]
fn a_part_that_is_not_what_was_put_is_found_out_and_the_checkpoint_before_is_as_right() {
    let files = files(35, 150_000);
    run_until_pruned(&files, "2").kill();
    let newest = status(&files)["checkpoints"][0]["epoch"].as_u64().expect("an epoch");
    let (mut store, parts) = parts_of(&files, newest);
    let mut bytes = store.get(&parts[0]).expect("an answer").expect("it is there");
    // A well-formed part that says nothing: only its hash tells.
    bytes.truncate(1);
    bytes.push(0);
    store.put(&parts[0], &bytes).expect("put");
    store.sync().expect("synced");
    drop(store);
    let mut run = Running::start(files.command("3"), files.path("run.log"));
    run.ends_well();
    assert!(run.log().contains("it is not what was put"), "{}", run.log());
    files.judge();
}

/// A start could not go on from what is above a sink, and what is below it may have been pruned by then.
#[test]
fn no_checkpoint_is_above_a_sink_that_cannot_commit() {
    let files = files(37, 150_000);
    let mut run = run_until_pruned(&files, "2");
    let results = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    results.busy_timeout(Duration::from_secs(5)).expect("set");
    results.execute_batch("BEGIN IMMEDIATE").expect("the write lock");
    // Time for a checkpoint, and less than the sink waits for the lock.
    std::thread::sleep(Duration::from_secs(1));
    let (sink, _) = files.frontiers();
    let ledger = rusqlite::Connection::open(files.path("ledger.db")).expect("a database");
    let newest = "SELECT max(epoch) FROM headwater_manifests";
    let newest: i64 = ledger.query_row(newest, [], |row| row.get(0)).expect("a checkpoint");
    assert_eq!(run.ended(), None, "there was nothing more to do: {}", run.log());
    assert!(newest <= sink, "the sink has epoch {sink}, and there is a checkpoint of epoch {newest}");
    run.kill();
    drop((results, ledger));
    succeed(&mut files.command("1"));
    files.judge();
}

#[test]
fn a_second_start_takes_the_folder_over_from_the_first_which_ends_with_3() {
    let files = files(36, 150_000);
    let mut first = run_until_pruned(&files, "2");
    let mut second = Running::start(files.command("1"), files.path("second.log"));
    assert_eq!(first.end().code(), Some(3), "{}", first.log());
    assert!(first.log().contains("was taken over by a later start"), "{}", first.log());
    second.ends_well();
    files.judge();
}

#[test]
fn a_start_whose_state_is_gone_is_refused_and_says_what_is_missing() {
    let files = files(34, 150_000);
    run_until_pruned(&files, "2").kill();
    configure(&files, FLOW, "");
    files.refused("it cannot go on without [checkpoint]");
    configure(&files, FLOW, CHECKPOINT);
    fs::rename(files.path("state"), files.path("elsewhere")).expect("moved");
    files.refused("no checkpoint can be read");
    fs::remove_dir_all(files.path("state")).expect("removed");
    fs::rename(files.path("elsewhere"), files.path("state")).expect("moved back");
    succeed(&mut files.command("2"));
    files.judge();
}
