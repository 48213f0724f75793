//! `headwater status`: it reports the state of a pipeline without claiming the ledger.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::{hard_settings, headwater, succeed, write_files};

/// Returns the exit code and the printed JSON object.
fn status(config: &Path) -> (Option<i32>, Value) {
    let config = config.to_str().expect("UTF-8");
    let output = headwater(&["status", config, "--json"]).output().expect("started");
    let printed = String::from_utf8_lossy(&output.stderr);
    (
        output.status.code(),
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no object: {printed}")),
    )
}

#[test]
fn status_reports_a_pipeline_without_taking_it_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = write_files(dir.path(), &hard_settings(1), 600);
    let names: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
    let (config, ledger, database) =
        (dir.path().join("run.toml"), dir.path().join("ledger.db"), dir.path().join("results.db"));
    let bare = format!(
        "pipeline = \"status\"\n[source]\nkind = \"file\"\npaths = {names:?}\n[sinks.sqlite]\npath = {database:?}\n"
    );
    let text = format!("{bare}[ledger]\nkind = \"sqlite\"\npath = {ledger:?}\n");
    fs::write(&config, &text).expect("written");
    let path = config.to_str().expect("UTF-8");

    let (code, before) = status(&config);
    assert_eq!((code, &before["start"]), (Some(0), &json!({ "outcome": "begin" })));
    assert!(!ledger.exists() && !database.exists(), "status created a file");

    succeed(&mut headwater(&["run", path]));
    for _ in 0..2 {
        let (code, after) = status(&config);
        assert_eq!((code, &after["generation"]), (Some(0), &json!(1)), "status counted as a start");
        assert_eq!(after["sinks"][0]["through"], after["recorded_through"], "{after}");
        let start = &after["start"];
        assert_eq!(
            (&start["outcome"], &start["after"], &start["closed"]),
            (&json!("resume"), &json!(0), &json!(true))
        );
    }

    fs::write(&config, format!("{text}[time]\nmax_out_of_orderness = \"9s\"\n")).expect("written");
    let (code, changed) = status(&config);
    assert_eq!((code, &changed["start"]["outcome"]), (Some(3), &json!("refuse")));
    let run = headwater(&["run", path]).output().expect("started");
    assert_eq!(run.status.code(), Some(3), "status and run agree");

    fs::write(&config, bare).expect("written");
    let without = headwater(&["status", path]).output().expect("started");
    assert_eq!(without.status.code(), Some(2), "status requires a ledger");
}
