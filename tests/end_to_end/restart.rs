//! Runs that a supervisor looks after, and stops that take too long.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{FLOW, headwater, succeed};
use crate::crash::Files;
use crate::kafka::FromTopic;
use crate::live::{Running, get, metric, wait_for};

/// A supervised run of files, with its log in JSON.
fn supervised(files: &Files, flow: &str) -> Running {
    files.configure(&format!("{flow}[log]\nformat = \"json\"\n[http]\nlisten = \"127.0.0.1:0\"\n"));
    let mut command = files.command("2");
    command.arg("--restart");
    Running::start(command, files.path("run.log"))
}

/// The process ids of the children that were started so far.
fn children(running: &Running) -> Vec<u64> {
    let log = running.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter_map(|line| line["fields"]["pid"].as_u64()).collect()
}

fn send(signal: &str, pid: u64) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(sent.expect("there is a kill").success());
}

/// Waits until the sink has results of at least one more epoch.
fn goes_on(files: &Files) {
    let before = files.frontiers().0;
    wait_for("results", || (files.frontiers().0 > before).then_some(()));
}

#[test]
fn a_killed_child_is_started_again_and_every_result_is_there_exactly_once() {
    let files = Files::new(21, 90_000);
    let mut run = supervised(&files, FLOW);
    goes_on(&files);
    let first = children(&run);
    assert_eq!(first.len(), 1, "{}", run.log());
    send("-KILL", first[0]);
    wait_for("the second child", || (children(&run).len() == 2).then_some(()));
    assert!(run.log().contains("signal: 9"), "the reason is told: {}", run.log());
    run.ends_well();
    assert_eq!(children(&run).len(), 2, "{}", run.log());
    files.judge();
}

#[test]
fn the_child_says_how_often_it_was_started_again() {
    let files = Files::new(22, 900_000);
    let mut run = supervised(&files, FLOW);
    let first = run.address();
    assert_eq!(metric(first, "headwater_restarts_total"), 0.0);
    send("-KILL", children(&run)[0]);
    let second = wait_for("the second child", || run.addresses().get(1).copied());
    assert_eq!(get(second, "/livez").0, 200);
    assert_eq!(metric(second, "headwater_restarts_total"), 1.0);
    run.terminate();
    run.ends_well();
}

#[test]
fn a_refusal_is_final() {
    let files = Files::new(23, 6_000);
    succeed(&mut files.command("1"));
    let mut run = supervised(&files, &FLOW.replace("more_than = 20", "more_than = 21"));
    assert_eq!(run.end().code(), Some(3), "{}", run.log());
    assert_eq!(children(&run).len(), 1, "{}", run.log());
}

#[test]
fn a_stop_is_passed_on_and_what_was_read_is_finished() {
    let files = Files::new(24, 120_000);
    let mut run = supervised(&files, FLOW);
    goes_on(&files);
    run.terminate();
    run.ends_well();
    assert_eq!(children(&run).len(), 1, "{}", run.log());
    let (sink, ledger) = files.frontiers();
    assert!(sink > 0 && sink <= ledger, "the sink has epoch {sink}, the ledger {ledger}");
    files.judge();
}

#[test]
fn a_child_whose_supervisor_was_killed_finishes_and_ends() {
    let files = Files::new(25, 120_000);
    let mut run = supervised(&files, FLOW);
    goes_on(&files);
    let child = children(&run)[0];
    run.kill();
    let alive = || Path::new(&format!("/proc/{child}")).exists();
    wait_for("the child's end", || (!alive()).then_some(()));
    assert!(run.log().contains("has let go of this process"), "{}", run.log());
    files.judge();
}

#[test]
fn processes_that_take_over_from_each_other_give_way() {
    let mut job = FromTopic::new("two-owners", 27, 6_000);
    let start = |job: &FromTopic, name: &str| {
        let mut command = headwater(&["run"]);
        command.arg(job.path("run.toml"));
        Running::start(command, job.path(name))
    };
    let mut owner = start(&job, "owner-0.log");
    for n in 1..=3 {
        wait_for("the owner", || owner.log().contains("claimed the ledger").then_some(()));
        let successor = start(&job, &format!("owner-{n}.log"));
        wait_for("the successor", || successor.log().contains("claimed the ledger").then_some(()));
        // Who is replaced notices when there is something to write.
        job.stream.produce(600);
        assert_eq!(owner.end().code(), Some(3), "{}", owner.log());
        owner = successor;
    }
    let mut waiting = start(&job, "waiting.log");
    wait_for("the reason", || waiting.log().contains("two processes use the pipeline name").then_some(()));
    assert!(waiting.log().contains("waiting 5 s before taking over: the last 3 runs"), "{}", waiting.log());
    waiting.terminate();
    waiting.ends_well();
    assert_eq!(owner.ended(), None, "it is left in peace: {}", owner.log());
    owner.terminate();
    owner.ends_well();
}

#[test]
fn a_stop_that_a_sink_does_not_let_finish_ends_in_time_and_names_the_sink() {
    let files = Files::new(26, 120_000);
    files.configure_limits("drain = \"2s\"\n", FLOW);
    let mut run = Running::start(files.command("2"), files.path("run.log"));
    goes_on(&files);
    let held = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    held.busy_timeout(Duration::from_secs(30)).expect("set");
    held.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let asked = Instant::now();
    run.terminate();
    let status = run.end();
    assert_eq!(status.code(), Some(1), "{}", run.log());
    assert!(asked.elapsed() >= Duration::from_secs(2), "it waits first");
    assert!(asked.elapsed() < Duration::from_secs(20), "and not for ever");
    assert!(run.log().contains("sink sqlite has not committed"), "{}", run.log());
    // It was as good as a crash: nothing is lost.
    held.execute_batch("ROLLBACK").expect("free");
    succeed(&mut files.command("2"));
    files.judge();
}
