//! Checkpoints: a start goes on from one, whatever has happened, and does not read again what came before.

use crate::common::FLOW;
use crate::crash::{Files, kill_ten_times};

/// Generated files, and a pipeline that makes checkpoints as often as it may.
fn files(seed: u64, records: u64) -> Files {
    let files = Files::new(seed, records);
    configure(&files, FLOW);
    files
}

fn configure(files: &Files, flow: &str) {
    let state = files.path("state").display().to_string();
    let checkpoint = "[checkpoint]\ninterval = \"100ms\"\nkeep = 2\n";
    files.configure(&format!("{flow}{checkpoint}[state]\npath = {state:?}\n"));
}

#[test]
fn killed_ten_times_between_checkpoints_every_result_is_there_exactly_once() {
    let files = files(31, 120_000);
    kill_ten_times(&files);
    assert!(files.pruned() > 0, "no start can have gone on from the beginning");
}
