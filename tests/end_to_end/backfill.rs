//! Rules with a backfill: they enter a run as if they had always been there. The oracle judges all earlier events by them,
//! and compares what they raise from then on, through kills before, at and after their entry.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::api::json;
use crate::changed_rules::{Changing, address, apply, create_topic, feed, served};
use crate::cluster::Cluster;
use crate::common::{headwater, succeed};
use crate::crash::Files;
use crate::crash_points::{BACKFILL_POINTS, crash_at};
use crate::kafka::brokers;
use crate::live::{Process, wait_for};
use crate::own_rules::{Feed, OWN_FLOW, PARTITIONS, records};

/// The rules of [`OWN_FLOW`] that are there from the beginning; the others are added.
const FIRST: usize = 9;

/// Returns the rules with which a pipeline begins, and all of them: those that are added have a backfill.
fn flows() -> (String, String) {
    let (before, rules) = OWN_FLOW.split_once("[[rules]]\n").expect("rules");
    let rules: Vec<_> = rules.split("[[rules]]\n").collect();
    let text = |rules: &[&str]| rules.iter().map(|rule| format!("[[rules]]\n{rule}")).collect::<String>();
    let (first, added) = rules.split_at(FIRST);
    let added: String = added.iter().map(|rule| format!("[[rules]]\nbackfill = true\n{rule}")).collect();
    (format!("{before}{}", text(first)), format!("{before}{}{added}", text(first)))
}

/// Waits until the rules have entered with their past.
fn wait_for_entry(address: SocketAddr) {
    let count = flows().1.matches("backfill = true").count();
    wait_for("the entry of the rules", || {
        let rules = json(address, "/api/v1/rules");
        let entered = |rule: &&Value| rule["complete_from"].is_string();
        let entered = rules["rules"].as_array()?.iter().filter(entered).count();
        (entered == count && rules["waiting"] == Value::Array(Vec::new())).then_some(())
    });
}

fn pipeline(name: &str, seed: u64, count: u64) -> (Changing, std::thread::JoinHandle<()>) {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = create_topic(name);
    let feeding = feed(Feed::new(topic.clone(), dir.path()), records(seed, count));
    let changing = Changing::of_flow(Files::of_topic(dir, &brokers(), &topic, "own_rules.py"), &flows().0);
    (changing, feeding)
}

#[test]
fn rules_enter_a_run_as_if_they_had_always_been_there() {
    let (mut changing, feeding) = pipeline("backfill", 91, 12_000);
    let (_, all) = flows();
    let mut run = Process::start(changing.files.command_with("2", &[]), changing.files.path("run.log"));
    let at = address(&mut run).expect("it does not end");
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(changing.apply(&mut run, &all), "{}", run.log());
    wait_for_entry(at);
    std::thread::sleep(Duration::from_millis(500));
    run.kill();
    feeding.join().expect("produced");
    changing.write("run.toml", &all);
    succeed(&mut changing.files.command_with("3", &["--bounded", "--drain"]));
    changing.judge();
    let status = headwater(&["status"]).arg(changing.files.path("run.toml")).output().expect("started");
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("complete from") && !status.contains("waits until"), "{status}");
}

/// A start with added rules crashes before their past is durable, before they are bound, and after; the next one goes on.
#[test]
fn crashes_around_an_entry_lose_and_repeat_nothing() {
    let (changing, feeding) = pipeline("backfill_crashes", 92, 9_000);
    let (_, all) = flows();
    feeding.join().expect("produced");
    crash_at(changing.files.command_with("2", &[]), "sink.commit.after", 5);
    changing.write("run.toml", &all);
    for point in BACKFILL_POINTS {
        crash_at(changing.files.command_with("2", &[]), point, 1);
        changing.check();
    }
    // The entry is replayed, or its rules have entered in the checkpoint.
    for point in ["sink.commit.after", "parts.synced", "ledger.conclude.after"] {
        crash_at(changing.files.command_with("1", &[]), point, 1);
        changing.check();
    }
    let mut run = Process::start(changing.files.command_with("3", &[]), changing.files.path("run.log"));
    wait_for_entry(address(&mut run).expect("it does not end"));
    run.kill();
    succeed(&mut changing.files.command_with("1", &["--bounded", "--drain"]));
    changing.judge();
}

/// Two processes with two workers each; one is killed while the rules wait or enter.
#[test]
fn rules_enter_all_processes_of_a_cluster() {
    let (first, all) = flows();
    let (cluster, topic) = Cluster::of("backfill_of_all", PARTITIONS as u32, &served(&first), "");
    let begins = cluster.path("first.toml");
    fs::copy(cluster.path("run.toml"), &begins).expect("copied");
    let feeding = feed(Feed::new(topic, cluster.dir()), records(93, 9_000));
    let mut running = cluster.start_with(&[], 2, 2);
    let at = address(&mut running[0]).expect("it does not end");
    let text = fs::read_to_string(&begins).expect("readable").replace(&served(&first), &served(&all));
    let candidate = cluster.path("candidate.toml");
    fs::write(&candidate, &text).expect("written");
    wait_for("the rules to wait", || apply(&candidate, at, &[]).status.success().then_some(()));
    running.remove(1).kill();
    running.iter_mut().for_each(|run| _ = run.wait());
    fs::write(cluster.path("run.toml"), &text).expect("written");
    let mut running = cluster.start_with(&[], 2, 1);
    let addresses: Vec<_> = running.iter_mut().map(|run| address(run).expect("it does not end")).collect();
    addresses.iter().for_each(|at| wait_for_entry(*at));
    feeding.join().expect("produced");
    running.remove(0).kill();
    running.iter_mut().for_each(|run| _ = run.wait());
    let mut last = cluster.start_with(&["--bounded", "--drain"], 2, 2);
    last.iter_mut().for_each(Process::expect_success);

    cluster.judge_own_rules(&begins);
}
