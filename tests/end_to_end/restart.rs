//! Supervised runs, takeovers, and stops that take too long.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{FLOW, headwater, succeed};
use crate::crash::Files;
use crate::kafka::TopicPipeline;
use crate::live::{Process, get, metric, wait_for};

/// Starts a supervised run of files, with its log in JSON.
fn supervised(files: &Files, flow: &str) -> Process {
    files.configure(&format!("{flow}[log]\nformat = \"json\"\n[http]\nlisten = \"127.0.0.1:0\"\n"));
    let mut command = files.command("2");
    command.arg("--restart");
    Process::start(command, files.path("run.log"))
}

/// Returns the process ids of all children so far.
fn children(running: &Process) -> Vec<u64> {
    let log = running.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter_map(|line| line["fields"]["pid"].as_u64()).collect()
}

fn send(signal: &str, pid: u64) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(sent.expect("the command kill").success());
}

/// Waits until the sink has committed at least one more epoch.
fn wait_for_progress(files: &Files) {
    let before = files.frontiers().0;
    wait_for("results", || (files.frontiers().0 > before).then_some(()));
}

#[test]
fn a_killed_child_is_restarted_without_loss_or_repetition() {
    let files = Files::new(21, 90_000);
    let mut run = supervised(&files, FLOW);
    wait_for_progress(&files);
    let first = children(&run);
    assert_eq!(first.len(), 1, "{}", run.log());
    send("-KILL", first[0]);
    wait_for("the second child", || (children(&run).len() == 2).then_some(()));
    assert!(run.log().contains("signal: 9"), "the log does not name the signal: {}", run.log());
    run.expect_success();
    assert_eq!(children(&run).len(), 2, "{}", run.log());
    files.judge();
}

#[test]
fn the_child_reports_the_number_of_restarts() {
    let files = Files::new(22, 900_000);
    let mut run = supervised(&files, FLOW);
    let first = run.address();
    assert_eq!(metric(first, "headwater_restarts_total"), 0.0);
    send("-KILL", children(&run)[0]);
    let second = wait_for("the second child", || run.addresses().get(1).copied());
    assert_eq!(get(second, "/livez").0, 200);
    assert_eq!(metric(second, "headwater_restarts_total"), 1.0);
    run.terminate();
    run.expect_success();
}

#[test]
fn a_refused_start_is_not_restarted() {
    let files = Files::new(23, 6_000);
    succeed(&mut files.command("1"));
    let mut run = supervised(&files, &FLOW.replace("more_than = 20", "more_than = 21"));
    assert_eq!(run.wait().code(), Some(3), "{}", run.log());
    assert_eq!(children(&run).len(), 1, "{}", run.log());
}

#[test]
fn a_stop_is_forwarded_and_completes_records() {
    let files = Files::new(24, 120_000);
    let mut run = supervised(&files, FLOW);
    wait_for_progress(&files);
    run.terminate();
    run.expect_success();
    assert_eq!(children(&run).len(), 1, "{}", run.log());
    let (sink, ledger) = files.frontiers();
    assert!(sink > 0 && sink <= ledger, "the sink has epoch {sink}, the ledger {ledger}");
    files.judge();
}

#[test]
fn a_child_stops_cleanly_after_its_supervisor_is_killed() {
    let files = Files::new(25, 120_000);
    let mut run = supervised(&files, FLOW);
    wait_for_progress(&files);
    let child = children(&run)[0];
    run.kill();
    let alive = || Path::new(&format!("/proc/{child}")).exists();
    wait_for("the child's end", || (!alive()).then_some(()));
    assert!(run.log().contains("the supervisor requested the stop or has exited"), "{}", run.log());
    files.judge();
}

#[test]
fn repeated_takeovers_make_a_start_wait() {
    let mut job = TopicPipeline::new("two-owners", 27, 6_000);
    let start = |job: &TopicPipeline, name: &str| {
        let mut command = headwater(&["run"]);
        command.arg(job.path("run.toml"));
        Process::start(command, job.path(name))
    };
    let mut owner = start(&job, "owner-0.log");
    for n in 1..=3 {
        wait_for("the owner", || owner.log().contains("claimed the ledger").then_some(()));
        let successor = start(&job, &format!("owner-{n}.log"));
        wait_for("the successor", || successor.log().contains("claimed the ledger").then_some(()));
        // A fenced run notices the takeover when it has something to write.
        job.stream.produce(600);
        assert_eq!(owner.wait().code(), Some(3), "{}", owner.log());
        owner = successor;
    }
    let mut waiting = start(&job, "waiting.log");
    wait_for("the reason", || waiting.log().contains("two processes use the pipeline name").then_some(()));
    assert!(waiting.log().contains("waiting 5 s before taking over: the last 3 runs"), "{}", waiting.log());
    waiting.terminate();
    waiting.expect_success();
    assert_eq!(owner.try_wait(), None, "the owner was replaced: {}", owner.log());
    owner.terminate();
    owner.expect_success();
}

#[test]
fn a_stop_blocked_by_a_sink_ends_in_time_and_names_it() {
    let files = Files::new(26, 120_000);
    files.configure_limits("drain = \"2s\"\n", FLOW);
    let mut run = Process::start(files.command("2"), files.path("run.log"));
    wait_for_progress(&files);
    let held = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    held.busy_timeout(Duration::from_secs(30)).expect("set");
    held.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let requested = Instant::now();
    run.terminate();
    let status = run.wait();
    assert_eq!(status.code(), Some(1), "{}", run.log());
    assert!(requested.elapsed() >= Duration::from_secs(2), "the run did not wait for `limits.drain`");
    assert!(requested.elapsed() < Duration::from_secs(20), "the run waited far longer than `limits.drain`");
    assert!(run.log().contains("sink sqlite has not committed"), "{}", run.log());
    // The stop is equivalent to a crash: nothing is lost.
    held.execute_batch("ROLLBACK").expect("unlocked");
    succeed(&mut files.command("2"));
    files.judge();
}
