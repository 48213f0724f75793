//! Checkpoints in an S3 server: runs that are killed, an outage, and credentials that are refused.

use std::fs;
use std::time::Duration;

use crate::common::{FLOW, headwater, succeed};
use crate::crash::{Files, kill_ten_times};
use crate::crash_points::crash_at;
use crate::live::{Process, wait_for};
use crate::proxy::Proxy;

const CHECKPOINT: &str = "[checkpoint]\ninterval = \"100ms\"\nkeep = 2\n";

/// The address of the S3 server that all tests share.
pub fn server() -> String {
    let url = std::env::var("HEADWATER_TEST_S3").expect("HEADWATER_TEST_S3 names an S3 server");
    url.trim_start_matches("http://").to_owned()
}

/// Returns the section of a state store that only this test uses; the secret is in a file.
pub fn section(dir: &std::path::Path, address: &str, name: &str) -> String {
    let secret = dir.join("secret");
    fs::write(&secret, "headwater-secret\n").expect("written");
    format!(
        "[state]\nkind = \"object_store\"\nurl = \"s3://states/{name}-{}\"\nendpoint = \"http://{address}\"\n\
         allow_http = true\naccess_key_id = \"headwater\"\nsecret_access_key_file = {secret:?}\n",
        std::process::id()
    )
}

fn files(seed: u64, records: u64, address: &str, name: &str, more: &str) -> Files {
    let files = Files::new(seed, records);
    let state = section(files.dir(), address, name);
    files.configure(&format!("{FLOW}{CHECKPOINT}{state}{more}"));
    files
}

#[test]
fn kills_between_checkpoints_in_s3_lose_and_repeat_nothing() {
    let files = files(231, 80_000, &server(), "kills", "");
    kill_ten_times(&files);
    assert!(files.pruned_through() > 0, "no checkpoint was used: the ledger was never pruned");
}

#[test]
fn crashes_at_points_of_checkpoints_in_s3_repeat_nothing() {
    let files = files(241, 120_000, &server(), "points", "");
    let points = ["part.put.before", "part.put.after", "parts.synced", "part.deleted"];
    for (point, workers) in points.into_iter().zip(["1", "3", "2", "3"]) {
        crash_at(files.command(workers), point, 3);
        crash_at(files.command("2"), point, 1);
    }
    succeed(&mut files.command("1"));
    files.judge();
}

#[test]
fn a_run_outlasts_an_outage_of_s3_and_says_so() {
    let proxy = Proxy::start();
    proxy.forward_to(&server());
    let files = files(251, 100_000, &proxy.address().to_string(), "outage", "");
    let mut run = Process::start(files.command("2"), files.path("run.log"));
    wait_for("a checkpoint", || (files.pruned_through() > 0).then_some(()));
    proxy.cut();
    wait_for("a warning", || run.log().contains("checkpoints wait").then_some(()));
    let before = files.frontiers();
    std::thread::sleep(Duration::from_secs(2));
    proxy.restore();
    run.expect_success();
    assert!(files.frontiers() > before, "nothing was committed after the outage");
    assert!(run.log().contains("state store: answers again after"), "{}", run.log());
    assert!(!run.log().contains("headwater-secret"), "{}", run.log());
    files.judge();
}

#[test]
fn an_outage_that_does_not_end_ends_the_run_and_a_start_resumes() {
    let proxy = Proxy::start();
    proxy.forward_to(&server());
    let address = proxy.address().to_string();
    let files = files(261, 100_000, &address, "ended", "retry_timeout = \"1s\"\n");
    let mut run = Process::start(files.command("2"), files.path("run.log"));
    wait_for("a checkpoint", || (files.pruned_through() > 0).then_some(()));
    proxy.cut();
    assert_eq!(run.wait().code(), Some(1), "{}", run.log());
    let place = format!("in s3://states/ended-{}/crash at http://{address}: ", std::process::id());
    assert!(run.log().contains(&place), "{}", run.log());
    let output = files.command("1").output().expect("started");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && log.contains(&place), "{log}");
    proxy.restore();
    succeed(&mut files.command("3"));
    files.judge();
}

#[test]
fn credentials_that_s3_refuses_end_a_start_and_are_not_printed() {
    let files = files(271, 100, &server(), "denied", "");
    fs::write(files.path("secret"), "hunter2").expect("written");
    let config = files.path("run.toml");
    let config = config.to_str().expect("UTF-8");
    for arguments in [&["run", config][..], &["check", "--connect", config]] {
        let output = headwater(arguments).env("HEADWATER_LOG", "trace").output().expect("started");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("403 Forbidden") && text.contains("check `state.access_key_id`"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
