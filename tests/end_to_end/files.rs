//! NDJSON files and the generator into SQLite.

use std::fs;

use crate::common::{Expected, FLOW, hard_settings, headwater, succeed, write_files};

/// Runs a pipeline from NDJSON files into SQLite and compares the results with the oracle.
fn files_into_sqlite(seed: u64, records: u64, workers: &str, flow: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let files = write_files(dir.path(), &hard_settings(seed), records);
    let names: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
    let (config, database, bindings) =
        (dir.path().join("run.toml"), dir.path().join("results.db"), dir.path().join("bindings.ndjson"));
    let text = format!(
        "pipeline = \"files\"\n[source]\nkind = \"file\"\npaths = {names:?}\n[sinks.sqlite]\npath = {:?}\n{flow}",
        database.display().to_string()
    );
    fs::write(&config, text).expect("written");
    let arguments = ["run", config.to_str().expect("UTF-8"), "-w", workers, "--bounded", "--bindings"];
    succeed(headwater(&arguments).arg(&bindings));
    let mut input = vec!["--files"];
    input.extend(names.iter().map(String::as_str));
    Expected::of(dir.path(), &config, &input, &bindings).judge_sqlite(&database);
}

#[test]
fn files_with_one_worker_match_the_oracle() {
    files_into_sqlite(1, 60_000, "1", FLOW);
}

#[test]
fn files_with_three_workers_match_the_oracle() {
    files_into_sqlite(2, 60_000, "3", &FLOW.replace("sigmas = 2.0", "sigmas = 2.0\nper_currency = true"));
}

/// With `HEADWATER_TEST_LONG`, the full number of records; otherwise fewer.
#[test]
fn many_events_with_two_workers_match_the_oracle() {
    let records = if std::env::var_os("HEADWATER_TEST_LONG").is_some() { 600_000 } else { 150_000 };
    files_into_sqlite(3, records, "2", FLOW);
}

#[test]
fn the_demo_misses_no_injected_pattern() {
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
    let own = &report["own_rule"];
    assert_eq!((&own["events"], &own["alerts"]), (&200.into(), &1.into()), "{report}");
    assert!(out.join("payments/payments.toml").exists(), "an example to change");
}

#[test]
fn invalid_usage_and_configuration_exit_with_code_2() {
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

/// Writes a pipeline that reads these lines from a file into SQLite, and returns the paths of configuration and
/// database.
fn small_pipeline(dir: &std::path::Path, lines: &str, more: &str) -> (String, std::path::PathBuf) {
    let (input, config, database) = (dir.join("input.ndjson"), dir.join("run.toml"), dir.join("out.db"));
    fs::write(&input, lines).expect("written");
    let text = format!(
        "pipeline = \"small\"\n[source]\nkind = \"file\"\npaths = {:?}\n{more}\n[sinks.sqlite]\npath = {:?}\n",
        input.display().to_string(),
        database.display().to_string()
    );
    fs::write(&config, text).expect("written");
    (config.display().to_string(), database)
}

const TWO: &str = "{\"event_id\":\"a1\",\"event_type\":\"transaction\",\"user_id\":\"u1\",\"event_time\":1772330400000}\n\
                   {\"event_id\":\"a2\",\"event_type\":\"transaction\",\"user_id\":\"u1\",\"event_time\":1772330405000}\nno event\n";

fn table(database: &std::path::Path, columns: &str, table: &str) -> Vec<String> {
    let connection = rusqlite::Connection::open(database).expect("a database");
    let query = format!("SELECT json_array({columns}) FROM {table} ORDER BY 1");
    let mut statement = connection.prepare(&query).expect("a table");
    let rows = statement.query_map([], |row| row.get(0)).expect("rows");
    rows.collect::<Result<_, _>>().expect("text")
}

#[test]
fn rerunning_a_file_leaves_the_same_rows() {
    let dir = tempfile::tempdir().expect("a directory");
    let (config, database) = small_pipeline(dir.path(), TWO, "");
    let tables = || {
        let events = table(&database, "event_id, partition, \"offset\", epoch", "events");
        (events, table(&database, "reason, partition, \"offset\", epoch", "dead_letters"))
    };
    succeed(&mut headwater(&["run", &config]));
    let first = tables();
    assert_eq!((first.0.len(), first.1.len()), (2, 1));
    succeed(&mut headwater(&["run", &config]));
    assert_eq!(tables(), first);
}

#[test]
fn a_start_succeeds_after_the_clock_was_set_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let (config, database) = small_pipeline(dir.path(), TWO, "");
    succeed(&mut headwater(&["run", &config]));
    let connection = rusqlite::Connection::open(&database).expect("a database");
    let ahead = "UPDATE headwater_progress SET generation = generation + 3600000; DELETE FROM events";
    connection.execute_batch(ahead).expect("as if the clock had been an hour ahead");
    succeed(&mut headwater(&["run", &config]));
    assert_eq!(table(&database, "event_id", "events"), ["[\"a1\"]", "[\"a2\"]"]);
}

#[test]
fn the_summary_counts_accepted_and_rejected_records() {
    let dir = tempfile::tempdir().expect("a directory");
    let (config, _) = small_pipeline(dir.path(), &format!("{TWO}{TWO}"), "");
    let output = succeed(&mut headwater(&["run", &config]));
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let counts =
        "events=2 dead_letters=4 malformed=2 invalid=0 late=0 future=0 duplicate=2 alerts=0 revoked=0";
    assert!(log.contains(counts), "{log}");

    let (config, _) = small_pipeline(dir.path(), "\nno event\n", "");
    let output = succeed(&mut headwater(&["run", &config]));
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        log.contains("WARN") && log.contains("no record was an event; first record: partition 0, offset "),
        "{log}"
    );
}

#[test]
fn every_line_of_a_json_log_is_json() {
    let dir = tempfile::tempdir().expect("a directory");
    let (config, _) = small_pipeline(dir.path(), TWO, "[log]\nformat = \"json\"");
    let last_of = |arguments: &[&str], code| {
        let output = headwater(arguments).output().expect("started");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let log = String::from_utf8(output.stderr).expect("UTF-8");
        let lines: Vec<serde_json::Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
        lines.last().cloned().expect("a line")
    };
    assert_eq!(last_of(&["run", &config], 0)["level"], "INFO");
    fs::remove_file(dir.path().join("input.ndjson")).expect("removed");
    let last = last_of(&["run", &config], 1);
    assert_eq!(last["level"], "ERROR");
    assert_eq!(last["fields"]["exit_code"], 1);
    fs::write(&config, "[log]\nformat = \"json\"\n").expect("written");
    assert_eq!(last_of(&["check", &config], 2)["fields"]["exit_code"], 2);
}

#[test]
fn a_full_or_closed_stdout_does_not_panic() {
    let dir = tempfile::tempdir().expect("a directory");
    let (config, _) = small_pipeline(dir.path(), TWO, "");
    let full = fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let output = headwater(&["check", &config]).stdout(full).output().expect("started");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.starts_with("headwater: cannot write") && stderr.lines().count() == 1, "{stderr}");

    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = headwater(&["check", &config]).stdout(writer).output().expect("started");
    assert_eq!((output.status.code(), output.stderr.len()), (Some(141), 0));
}

#[test]
fn a_process_that_waits_for_its_peers_stops_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (config, _) = small_pipeline(dir.path(), TWO, "");
    let hosts = dir.path().join("hosts");
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("a local address")
    };
    fs::write(&hosts, format!("{}\n{}\n", free(), free())).expect("written");
    for process in ["0", "1"] {
        let arguments = ["run", &config, "-n", "2", "-p", process, "-h", hosts.to_str().expect("UTF-8")];
        let child = headwater(&arguments)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("started");
        std::thread::sleep(std::time::Duration::from_secs(1));
        let requested = std::time::Instant::now();
        succeed(std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]));
        let output = child.wait_with_output().expect("exited");
        assert!(requested.elapsed() < std::time::Duration::from_secs(1), "{:?}", requested.elapsed());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{output:?}");
    }
    fs::write(&hosts, "localhost\nlocalhost:2101\n").expect("written");
    let arguments = ["run", &config, "-n", "2", "-p", "0", "-h", hosts.to_str().expect("UTF-8")];
    let output = headwater(&arguments).output().expect("started");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("hosts, line 1: expected host:port"));
}
