//! Uneven load: a hot partition of one hot key, and a slow host. Memory stays within the bounds, other partitions are read
//! meanwhile, and results are exact.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use headwater::source::generator::{GeneratorSettings, RecordMaker};
use headwater::source::kafka::produce::{Produced, Producer};

use crate::cluster::Cluster;
use crate::common::{FLOW, hard_settings};
use crate::kafka::{brokers, oracle_line};
use crate::live::{Process, get, wait_for};

/// `limits.bytes_in_flight` of the configuration.
const LIMIT: f64 = 1_048_576.0;

/// Produces records to a topic: many of one user to the partition 0, and few of many users to each of the others.
fn produce_skewed(cluster: &Cluster, topic: &str, hot: u64, others: u64) {
    let (mut text, mut produced) = (String::new(), Vec::new());
    for partition in 0..6 {
        let (records, users, devices) = if partition == 0 { (hot, 1, 1) } else { (others, 3000, 1000) };
        let mut maker = RecordMaker::new(GeneratorSettings { users, devices, ..hard_settings(31) });
        for offset in 0..records {
            maker.make(partition, offset, None);
            text += &oracle_line(partition, offset, None, Some(&maker.value));
            let (key, value) = (Some(maker.key.clone()), Some(maker.value.clone()));
            produced.push(Produced { partition: Some(partition), key, value, headers: Vec::new() });
        }
    }
    fs::write(cluster.path("records.ndjson"), text).expect("written");
    let producer = Producer::connect(&brokers(), &BTreeMap::new(), topic).expect("connected");
    producer.run(produced, None, &AtomicBool::new(false), &mut |_| {}).expect("produced");
}

/// Returns the sum of a metric over its labels.
fn sum(text: &str, name: &str, label: impl Fn(&str) -> bool) -> f64 {
    let lines = text.lines().filter(|line| line.starts_with(name) && label(line));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

#[test]
fn skew_and_a_slow_host_stay_within_the_bounds() {
    let (cluster, topic) =
        Cluster::of("skew", 6, FLOW, "[http]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n");
    produce_skewed(&cluster, &topic, 30_000, 1_000);
    let mut processes = cluster.start(2, 1);
    let addresses: Vec<SocketAddr> = processes.iter_mut().map(Process::address).collect();
    let (mut is_ahead, mut has_busy, mut most) = (false, false, 0.0_f64);
    wait_for("the end of the topic", || {
        // The second host is slow: it runs for a third of the time.
        if processes[1].try_wait().is_none() {
            processes[1].signal("STOP");
            std::thread::sleep(Duration::from_millis(100));
            processes[1].signal("CONT");
        }
        if processes[0].try_wait().is_some() {
            return Some(());
        }
        // The servers of processes that end do not answer.
        let texts =
            addresses.iter().map(|&address| std::panic::catch_unwind(|| get(address, "/metrics").1).ok());
        let texts: Vec<_> = texts.collect::<Option<_>>()?;
        for text in &texts {
            most = most.max(sum(text, "headwater_bytes_in_flight ", |_| true));
            has_busy |= sum(text, "headwater_worker_busy_ratio{", |_| true) > 0.0;
        }
        let lag = |is_hot: bool| -> f64 {
            let label = |line: &str| line.contains("partition=\"0\"") == is_hot;
            texts.iter().map(|text| sum(text, "headwater_consumer_lag_records{", label)).sum()
        };
        is_ahead |= lag(true) > 10_000.0 && lag(false) == 0.0;
        None
    });
    processes.iter_mut().for_each(Process::expect_success);
    assert!(most > 0.0 && most < 1.5 * LIMIT, "{most} bytes in flight");
    assert!(is_ahead, "the hot partition held the others up");
    assert!(has_busy, "no worker was ever busy");
    cluster.judge_tables();
}
