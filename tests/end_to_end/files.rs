//! NDJSON files and the generator into SQLite.

use std::fs;

use crate::common::{Expected, FLOW, hard, headwater, succeed, write_files};

/// Runs NDJSON files into SQLite and judges the result.
fn files_into_sqlite(seed: u64, records: u64, workers: &str, flow: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let files = write_files(dir.path(), &hard(seed), records);
    let names: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
    let (config, database, bindings) =
        (dir.path().join("run.toml"), dir.path().join("results.db"), dir.path().join("bindings.ndjson"));
    let text = format!(
        "pipeline = \"files\"\n[source]\nkind = \"file\"\npaths = {names:?}\n[sinks.sqlite]\npath = {:?}\n{flow}",
        database.display().to_string()
    );
    fs::write(&config, text).expect("written");
    let arguments = ["run", config.to_str().expect("UTF-8"), "-w", workers, "--until-end", "--bindings"];
    succeed(headwater(&arguments).arg(&bindings));
    let mut input = vec!["--files"];
    input.extend(names.iter().map(String::as_str));
    Expected::of(dir.path(), &config, &input, &bindings).judge_sqlite(&database);
}

#[test]
fn files_into_sqlite_with_one_worker_are_what_the_oracle_says() {
    files_into_sqlite(1, 60_000, "1", FLOW);
}

#[test]
fn files_into_sqlite_with_three_workers_are_what_the_oracle_says() {
    files_into_sqlite(2, 60_000, "3", &FLOW.replace("sigmas = 2.0", "sigmas = 2.0\nper_currency = true"));
}

/// The size that was promised; the usual run does with less.
#[test]
fn six_hundred_thousand_events_with_two_workers_are_what_the_oracle_says() {
    let records = if std::env::var_os("HEADWATER_TEST_LONG").is_some() { 600_000 } else { 150_000 };
    files_into_sqlite(3, records, "2", FLOW);
}

#[test]
fn the_demo_misses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("demo");
    let output = succeed(headwater(&["demo", "--seconds", "4", "-w", "2", "--json", "--out"]).arg(&out));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let patterns = report["patterns"].as_object().expect("patterns");
    assert_eq!(patterns.len(), 5);
    for (rule, counts) in patterns {
        assert_eq!(counts["missed"], 0, "{rule}: {report}");
    }
    assert!(patterns.values().any(|counts| counts["injected"].as_u64() > Some(0)), "{report}");
}

#[test]
fn wrong_usage_and_wrong_configuration_exit_with_two() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("wrong.toml");
    fs::write(&config, "pipeline = \"p\"\n[time]\nepoch = \"soon\"\n").expect("written");
    for arguments in [vec!["fly"], vec!["run"], vec!["check", config.to_str().expect("UTF-8")]] {
        let output = headwater(&arguments).output().expect("started");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
    let output = headwater(&["check", config.to_str().expect("UTF-8")]).output().expect("started");
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 3: time.epoch: expected a duration"));
}
