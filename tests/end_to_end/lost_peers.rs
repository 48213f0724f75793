//! Processes of a cluster that hang or cannot be reached: the others notice, end in order, and their successors go on; what
//! wakes up later changes nothing.

use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::kafka::lock_output_topics;
use crate::live::{Process, wait_for};
use crate::proxy::Proxy;

/// The longest time in which processes notice a loss and end, with a timeout of 2 s, on a machine that does other work.
const NOTICED: Duration = Duration::from_secs(20);

/// Waits until a cluster commits results.
pub fn wait_for_results(cluster: &Cluster, running: &mut [Process]) {
    let before = cluster.through();
    wait_for("results", || {
        for process in &mut *running {
            assert!(process.try_wait().is_none(), "it has ended\n{}", process.log());
        }
        (cluster.through() > before).then_some(())
    });
}

/// Checks that a process ends with exit code 1 and says which other one it lost.
pub fn expect_loss(process: &mut Process, expected: &str) {
    let begun = Instant::now();
    assert_eq!(process.wait().code(), Some(1), "{}", process.log());
    assert!(begun.elapsed() < NOTICED, "{:?}\n{}", begun.elapsed(), process.log());
    let log = process.log();
    let lines: Vec<_> = log.lines().filter(|line| line.starts_with("headwater: ")).collect();
    assert!(matches!(lines[..], [line] if line.contains(expected)), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_process_that_wakes_up_after_its_successors_changes_nothing() {
    let _lock = lock_output_topics();
    let cluster = Cluster::new("frozen_host", 250_000);
    let mut running = cluster.start(3, 1);
    for frozen in [1, 0, 2] {
        wait_for_results(&cluster, &mut running);
        let mut frozen = running.remove(frozen);
        frozen.signal("STOP");
        for process in &mut running {
            expect_loss(process, "lost process ");
        }
        // The bindings of the frozen process stay apart from those of its successors.
        running = cluster.start(3, 1);
        wait_for_results(&cluster, &mut running);
        frozen.signal("CONT");
        assert_eq!(frozen.wait().code(), Some(1), "{}", frozen.log());
        // Where it was about to replace a producer of Kafka, it takes the transactional id from a successor once more before
        // it notices that it is alone. That ends their run, and nothing else.
        std::thread::sleep(Duration::from_secs(2));
        if running.iter_mut().any(|process| process.try_wait().is_some()) {
            let codes: Vec<_> = running.iter_mut().map(|process| process.wait().code()).collect();
            if codes == [Some(0); 3] {
                // They have reached the end of the input.
                return cluster.judge();
            }
            assert_eq!(codes, [Some(1); 3], "{}", running[0].log());
            let is_fenced = |process: &Process| process.log().contains("fenced again by a zombie");
            assert!(running.iter().any(is_fenced), "{}", running[0].log());
            running = cluster.start(3, 1);
        }
    }
    running.iter_mut().for_each(Process::expect_success);
    cluster.judge();
}

#[test]
fn a_cut_in_both_directions_or_one_ends_the_run() {
    let _lock = lock_output_topics();
    let cluster = Cluster::new("cut", 150_000);
    let cuts: [fn(&Proxy); 3] = [Proxy::cut, Proxy::hold_responses, Proxy::hold_requests];
    for (at, cut) in cuts.into_iter().enumerate() {
        let proxies = [Proxy::start(), Proxy::start()];
        let mut running = cluster.start_through(&proxies, &["--bounded", "--drain"], 3, 1);
        wait_for_results(&cluster, &mut running);
        proxies.iter().for_each(cut);
        for process in &mut running {
            expect_loss(process, "lost process ");
        }
        let silence = "no sign of life for 2s (cluster.heartbeat_timeout)";
        let is_silent = running.iter().any(|process| process.log().contains(silence));
        assert_eq!(is_silent, at > 0, "{}", running[2].log());
    }
    cluster.start(3, 1).iter_mut().for_each(Process::expect_success);
    cluster.judge();
}
