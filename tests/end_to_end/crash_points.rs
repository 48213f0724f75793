//! Every crash point is come to, and come to again by the start that follows; and every result is there exactly once.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use headwater_sinks::crash::POINTS;

use crate::checkpoints::files;
use crate::common::{Random, succeed};
use crate::kafka::Killed;

/// Those that need Kafka and PostgreSQL. There, what stands between a sink and the ledger is come to as well.
const SERVICES: [&str; 7] = [
    "postgres.written",
    "kafka.produced",
    "sink.commit.before",
    "sink.commit.after",
    "ledger.append.after",
    "ledger.conclude.after",
    "group.commit.after",
];

/// Those of a start whose configuration has changed.
pub const AMENDING: [&str; 2] = ["ledger.amend.before", "ledger.amend.after"];

/// Those that any run comes to.
pub fn usual() -> Vec<&'static str> {
    POINTS.into_iter().filter(|point| !AMENDING.contains(point)).collect()
}

/// Whether files and SQLite alone never come to a point.
pub fn needs_services(point: &str) -> bool {
    point.starts_with("kafka") || point.starts_with("postgres")
}

const SIGABRT: i32 = 6;

/// Has a run end when it comes to a point for the nth time.
pub fn dies_at(mut command: Command, point: &str, nth: u64) {
    command.env("HEADWATER_CRASH_AT", format!("{point}:{nth}"));
    let output = command.stdout(Stdio::null()).output().expect("started");
    let (status, log) = (output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(status.signal(), Some(SIGABRT), "it did not come to {point} {nth} times: {status}\n{log}");
}

#[test]
fn a_run_that_dies_at_every_point_and_there_again_gives_every_result_once() {
    let files = files(41, 300_000);
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for point in usual().into_iter().filter(|point| !needs_services(point)) {
        let workers = ["1", "2", "3"][random.below(3) as usize];
        let once = point.starts_with("start") || point.starts_with("sink.open");
        dies_at(files.command(workers), point, if once { 1 } else { 1 + random.below(3) });
        let before = files.frontiers();
        dies_at(files.command("2"), point, 1);
        let after = files.frontiers();
        assert!(after.0 >= before.0 && after.1 >= before.1, "frontiers never go back: {point}");
        assert!(after.0 <= after.1, "{point}: the sink has epoch {}, the ledger {}", after.0, after.1);
    }
    assert!(files.pruned() > 0, "starts went on from checkpoints");
    succeed(&mut files.command("2"));
    files.judge();
}

#[test]
fn a_run_on_services_that_dies_at_every_point_and_there_again_gives_every_result_once() {
    let killed = Killed::new("points", 90_000, 9);
    for point in SERVICES {
        for nth in [2, 1] {
            dies_at(killed.command("2"), point, nth);
        }
    }
    succeed(&mut killed.command("2"));
    killed.judge();
    assert!(POINTS.iter().all(|point| SERVICES.contains(point) || !needs_services(point)));
}
