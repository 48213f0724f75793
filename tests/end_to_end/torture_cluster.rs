//! `scripts/torture --processes N`: random faults of the processes of a cluster and of the connections between them; the
//! oracle judges each stream of records.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::common::Random;
use crate::kafka::lock_output_topics;
use crate::live::{Process, wait_for};
use crate::proxy::Proxy;
use crate::torture::number;

/// The number of records of a stream.
const RECORDS: u64 = 150_000;

/// The maximum number of faults of a stream.
const FAULTS: u64 = 12;

const ARGUMENTS: [&str; 2] = ["--bounded", "--drain"];

/// A cluster of at most this number of processes.
struct Target {
    cluster: Cluster,
    most: u64,
}

/// The state of a run before its fault.
enum Work {
    Goes,
    /// It has reached the end of the input.
    IsDone,
    /// A process of an earlier run, which woke up, has ended it.
    IsFenced,
}

impl Target {
    fn start(&self, proxies: &[Proxy], random: &mut Random) -> Vec<Process> {
        let workers = 1 + random.below(2) as usize;
        self.cluster.start_through(
            proxies,
            &ARGUMENTS,
            self.processes(random).max(proxies.len() + 1),
            workers,
        )
    }

    fn processes(&self, random: &mut Random) -> usize {
        2 + random.below(self.most - 1) as usize
    }

    /// Waits until a run has committed something, and a little longer.
    fn work(&self, running: &mut [Process], random: &mut Random) -> Work {
        let before = self.cluster.through();
        let has_ended = wait_for("results", || {
            let has_ended = running.iter_mut().any(|process| process.try_wait().is_some());
            (has_ended || self.cluster.through() > before).then_some(has_ended)
        });
        if !has_ended {
            std::thread::sleep(Duration::from_millis(random.below(1500)));
            if running.iter_mut().all(|process| process.try_wait().is_none()) {
                return Work::Goes;
            }
        }
        let codes: Vec<_> = running.iter_mut().map(|process| process.wait().code()).collect();
        if codes.iter().all(|code| *code == Some(0)) {
            return Work::IsDone;
        }
        let is_fenced = |process: &Process| process.log().contains("fenced again by a zombie");
        assert!(running.iter().any(is_fenced), "{codes:?}\n{}", running[0].log());
        Work::IsFenced
    }

    /// Starts a run and injects a fault. Returns its kind, or `None` at the end of the input.
    fn fault(&self, random: &mut Random) -> Option<&'static str> {
        let kind = random.below(12);
        let proxies: Vec<_> = (0..if kind < 4 { self.most - 1 } else { 0 }).map(|_| Proxy::start()).collect();
        let mut running = self.start(&proxies, random);
        match self.work(&mut running, random) {
            Work::Goes => {}
            Work::IsDone => return None,
            Work::IsFenced => return Some("fenced by a zombie"),
        }
        let at = random.below(running.len() as u64) as usize;
        let name = match kind {
            0..=1 => {
                proxies.iter().for_each(Proxy::cut);
                "cut"
            }
            2 => {
                proxies.iter().for_each(Proxy::hold_requests);
                "requests held"
            }
            3 => {
                proxies.iter().for_each(Proxy::hold_responses);
                "responses held"
            }
            4..=6 => {
                running.remove(at).kill();
                "kill -9"
            }
            7 => {
                running.iter_mut().for_each(Process::kill);
                return Some("kill -9 of all");
            }
            8 => {
                running[at].terminate();
                running.iter_mut().for_each(Process::expect_success);
                return Some("SIGTERM");
            }
            _ => return Some(self.freeze(running, at, random)),
        };
        running.iter_mut().for_each(expect_end);
        Some(name)
    }

    /// Freezes a process until its successors are at work.
    fn freeze(&self, mut running: Vec<Process>, at: usize, random: &mut Random) -> &'static str {
        let mut frozen = running.remove(at);
        frozen.signal("STOP");
        running.iter_mut().for_each(expect_end);
        let mut successors = self.start(&[], random);
        self.work(&mut successors, random);
        frozen.signal("CONT");
        assert!(matches!(frozen.wait().code(), Some(0 | 1)), "{}", frozen.log());
        successors.iter_mut().for_each(Process::kill);
        "frozen"
    }
}

/// Checks that a process has noticed the loss of another, or was done before.
fn expect_end(process: &mut Process) {
    let code = process.wait().code();
    let log = process.log();
    assert!(
        code == Some(0) || code == Some(1) && log.contains("headwater: lost process "),
        "{code:?}\n{log}"
    );
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
#[ignore = "runs for a chosen time: scripts/torture --processes 3"]
fn torture_of_a_cluster() {
    let (minutes, seed) = (number("HEADWATER_TORTURE_MINUTES", 5), number("HEADWATER_TORTURE_SEED", 1));
    let most = number("HEADWATER_TORTURE_PROCESSES", 3);
    let started = Instant::now();
    let (mut streams, mut kinds) = (0, BTreeMap::<_, u64>::new());
    while started.elapsed() < Duration::from_secs(60 * minutes) {
        let _lock = lock_output_topics();
        let mut random = Random(seed.wrapping_mul(1_000_003).wrapping_add(streams).max(1));
        let target = Target { cluster: Cluster::new(&format!("torture_cluster_{streams}"), RECORDS), most };
        let faults: Vec<_> = (0..FAULTS).map_while(|_| target.fault(&mut random)).collect();
        faults.iter().for_each(|kind| *kinds.entry(*kind).or_default() += 1);
        let mut last = target.cluster.start(target.processes(&mut random), 1);
        while matches!(target.work(&mut last, &mut random), Work::Goes) {}
        target.cluster.start(1, 1).iter_mut().for_each(Process::expect_success);
        target.cluster.judge();
        streams += 1;
        let faults = faults.len();
        println!(
            "seed {seed}, stream {streams}: {faults} faults, every result exactly once; so far {kinds:?}"
        );
    }
    let faults: u64 = kinds.values().sum();
    println!(
        "verdict: {streams} streams, {faults} faults {kinds:?}: every result exactly once (seed {seed})"
    );
    assert!(faults > 0, "no fault was injected");
}
