//! `headwater status`: what is there, told without taking it over.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::{hard, headwater, succeed, write_files};

/// The exit code and the object that is printed.
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
fn the_status_of_a_pipeline_follows_it_and_takes_nothing_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = write_files(dir.path(), &hard(1), 600);
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
    assert_eq!((code, &before["start"]), (Some(0), &json!({ "does": "begin" })));
    assert!(!ledger.exists() && !database.exists(), "looking makes nothing");

    succeed(&mut headwater(&["run", path]));
    for _ in 0..2 {
        let (code, after) = status(&config);
        assert_eq!((code, &after["generation"]), (Some(0), &json!(1)), "looking is no start");
        assert_eq!(after["sinks"][0]["through"], after["recorded_through"], "{after}");
        let start = &after["start"];
        assert_eq!(
            (&start["does"], &start["after"], &start["closed"]),
            (&json!("go on"), &json!(0), &json!(true))
        );
    }

    fs::write(&config, format!("{text}[time]\nmax_out_of_orderness = \"9s\"\n")).expect("written");
    let (code, changed) = status(&config);
    assert_eq!((code, &changed["start"]["does"]), (Some(3), &json!("refuse")));
    let run = headwater(&["run", path]).output().expect("started");
    assert_eq!(run.status.code(), Some(3), "as was foretold");

    fs::write(&config, bare).expect("written");
    let without = headwater(&["status", path]).output().expect("started");
    assert_eq!(without.status.code(), Some(2), "there is no ledger to look at");
}
