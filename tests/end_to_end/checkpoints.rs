//! Checkpoints: a start resumes from a checkpoint and does not read earlier records again.

use std::fs;
use std::time::Duration;

use headwater::state::StateConfig;
use headwater::state::{StateStore, open};
use serde_json::Value;

use crate::common::{FLOW, headwater, succeed};
use crate::crash::{Files, kill_ten_times, kill_when};
use crate::crash_points::crash_at;
use crate::live::Process;

pub const CHECKPOINT: &str = "[checkpoint]\ninterval = \"100ms\"\nkeep = 2\n";

/// Creates generated files and a pipeline that makes checkpoints as often as it may.
pub fn checkpointed_files(seed: u64, records: u64) -> Files {
    let files = Files::new(seed, records);
    configure(&files, FLOW, CHECKPOINT);
    files
}

/// Writes the configuration of a flow, with a section for checkpoints or an empty one.
pub fn configure(files: &Files, flow: &str, checkpoint: &str) {
    let state = files.path("state").display().to_string();
    files.configure(&format!("{flow}{checkpoint}[state]\npath = {state:?}\n"));
}

/// Returns the JSON output of `headwater status`, for a start that would not be refused.
pub fn status(files: &Files) -> Value {
    let config = files.path("run.toml");
    let output = succeed(&mut headwater(&["status", config.to_str().expect("UTF-8"), "--json"]));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Starts a run and waits until it has made enough checkpoints to prune the ledger.
pub fn run_until_pruned(files: &Files, workers: &str) -> Process {
    let run = Process::start(files.command(workers), files.path("run.log"));
    let before = files.pruned_through();
    crate::live::wait_for("checkpoints", || (files.pruned_through() > before).then_some(()));
    run
}

/// Opens the state store, which no run may use meanwhile, and lists the parts of an epoch.
fn parts_of(files: &Files, epoch: u64) -> (Box<dyn StateStore>, Vec<String>) {
    let mut store = open(&StateConfig::Fjall(files.path("state")), "crash").expect("the state store");
    let mut names = store.list("").expect("readable");
    names.retain(|name| name.contains(&format!("/{epoch}/")));
    (store, names)
}

#[test]
fn kills_between_checkpoints_lose_and_repeat_nothing() {
    let files = checkpointed_files(31, 120_000);
    kill_ten_times(&files);
    assert!(files.pruned_through() > 0, "no checkpoint was used: the ledger was never pruned");
}

#[test]
fn after_a_stop_any_number_of_workers_resumes_without_replay() {
    let files = checkpointed_files(32, 150_000);
    for workers in ["2", "3", "1"] {
        let mut run = run_until_pruned(&files, workers);
        run.terminate();
        run.expect_success();
        let status = status(&files);
        assert_eq!(status["start"]["replay"], 0, "{status}");
        assert_eq!(status["start"]["after"], status["recorded_through"], "{status}");
        assert_eq!(status["sinks"][0]["through"], status["recorded_through"], "{status}");
    }
    succeed(&mut files.command("3"));
    files.judge();
    assert_eq!(status(&files)["start"]["closed"], true);
}

/// The stop arrives right after the claim, possibly before any source or sink is open.
#[test]
fn a_stop_during_startup_leaves_nothing_to_replay() {
    let files = checkpointed_files(37, 60_000);
    for delay in [0, 5, 20, 60] {
        let mut run = Process::start(files.command("2"), files.path("run.log"));
        crate::live::wait_for("the ledger", || run.log().contains("claimed the ledger").then_some(()));
        std::thread::sleep(Duration::from_millis(delay));
        run.terminate();
        run.expect_success();
        assert_eq!(status(&files)["start"]["replay"], 0, "nothing to replay");
    }
    succeed(&mut files.command("1"));
    files.judge();
}

#[test]
fn an_unreadable_checkpoint_falls_back_to_the_one_before() {
    let files = checkpointed_files(33, 150_000);
    run_until_pruned(&files, "2").kill();
    let ledger = rusqlite::Connection::open(files.path("ledger.db")).expect("a database");
    let corrupt =
        "UPDATE headwater_manifests SET manifest = CAST(substr(manifest, 1, length(manifest) - 1) AS BLOB)
                 WHERE epoch = (SELECT max(epoch) FROM headwater_manifests)";
    assert_eq!(ledger.execute(corrupt, []).expect("corrupted"), 1);
    drop(ledger);
    let status = status(&files);
    assert!(status["checkpoints"][0]["error"].is_string(), "{status}");
    assert_eq!(status["start"]["after"], status["checkpoints"][1]["epoch"], "{status}");
    // Another version may be able to read it, so a start does not delete its parts.
    let newest = status["checkpoints"][0]["epoch"].as_u64().expect("an epoch");
    let (store, parts) = parts_of(&files, newest);
    drop(store);
    crash_at(files.command("1"), "start.begun", 1);
    assert!(!parts.is_empty() && parts_of(&files, newest).1 == parts);
    let killed =
        kill_when(&mut files.command("1"), || files.pruned_through() > 0, Duration::from_millis(300));
    assert!(killed, "the run ended before it was killed");
    succeed(&mut files.command("2"));
    files.judge();
}

#[test]
fn a_corrupt_part_falls_back_to_the_checkpoint_before() {
    let files = checkpointed_files(35, 150_000);
    run_until_pruned(&files, "2").kill();
    let newest = status(&files)["checkpoints"][0]["epoch"].as_u64().expect("an epoch");
    let (mut store, parts) = parts_of(&files, newest);
    let mut bytes = store.get(&parts[0]).expect("readable").expect("a part");
    // A well-formed but empty part: only its hash reveals the change.
    bytes.truncate(1);
    bytes.push(0);
    store.put(&parts[0], &bytes).expect("put");
    store.sync().expect("synced");
    drop(store);
    let mut run = Process::start(files.command("3"), files.path("run.log"));
    run.expect_success();
    assert!(run.log().contains("its content does not match the hash in the manifest"), "{}", run.log());
    files.judge();
}

/// A start cannot resume from a checkpoint above a sink's progress, and older ones may have been pruned by then.
#[test]
fn no_checkpoint_is_above_a_sink_that_cannot_commit() {
    let files = checkpointed_files(37, 150_000);
    let mut run = run_until_pruned(&files, "2");
    let results = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    results.busy_timeout(Duration::from_secs(5)).expect("set");
    results.execute_batch("BEGIN IMMEDIATE").expect("the write lock");
    // Long enough for a checkpoint, and shorter than the sink's timeout for the lock.
    std::thread::sleep(Duration::from_secs(1));
    let (sink, _) = files.frontiers();
    let ledger = rusqlite::Connection::open(files.path("ledger.db")).expect("a database");
    let newest = "SELECT max(epoch) FROM headwater_manifests";
    let newest: i64 = ledger.query_row(newest, [], |row| row.get(0)).expect("a checkpoint");
    assert_eq!(run.try_wait(), None, "the run ended before the check: {}", run.log());
    assert!(newest <= sink, "the checkpoint of epoch {newest} is above the sink's epoch {sink}");
    run.kill();
    drop((results, ledger));
    succeed(&mut files.command("1"));
    files.judge();
}

#[test]
fn a_second_start_takes_over_the_state_directory() {
    let files = checkpointed_files(36, 150_000);
    let mut first = run_until_pruned(&files, "2");
    let mut second = Process::start(files.command("1"), files.path("second.log"));
    assert_eq!(first.wait().code(), Some(3), "{}", first.log());
    assert!(first.log().contains("was taken over by a later start"), "{}", first.log());
    second.expect_success();
    files.judge();
}

#[test]
fn a_start_without_its_state_is_refused() {
    let files = checkpointed_files(34, 150_000);
    run_until_pruned(&files, "2").kill();
    configure(&files, FLOW, "");
    files.assert_refused("it cannot resume without [checkpoint]");
    configure(&files, FLOW, CHECKPOINT);
    fs::rename(files.path("state"), files.path("elsewhere")).expect("moved");
    files.assert_refused("no checkpoint can be read");
    fs::remove_dir_all(files.path("state")).expect("removed");
    fs::rename(files.path("elsewhere"), files.path("state")).expect("moved back");
    succeed(&mut files.command("2"));
    files.judge();
}
