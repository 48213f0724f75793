//! Every crash point is reached, and reached again by the next start; every result is stored exactly once.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use headwater_sinks::crash::POINTS;

use crate::checkpoints::checkpointed_files;
use crate::common::{Random, succeed};
use crate::kafka::CrashPipeline;

/// The crash points that need Kafka or PostgreSQL, and those between a sink and the ledger.
const SERVICE_POINTS: [&str; 7] = [
    "postgres.written",
    "kafka.produced",
    "sink.commit.before",
    "sink.commit.after",
    "ledger.append.after",
    "ledger.conclude.after",
    "group.commit.after",
];

/// The crash points of a start whose configuration has changed.
pub const CONFIG_CHANGE_POINTS: [&str; 2] = ["ledger.amend.before", "ledger.amend.after"];

/// The crash points of a change of rules.
pub const RULE_POINTS: [&str; 2] = ["rules.requested", "rules.bound"];

/// The crash points of the entry of rules with a backfill.
pub const BACKFILL_POINTS: [&str; 4] =
    ["backfill.read", "backfill.stored", "backfill.offered", "backfill.bound"];

/// The crash points of the file sink.
pub const FILE_POINTS: [&str; 2] = ["file.appended", "file.written"];

/// The crash points of the Redis sink.
pub const REDIS_POINTS: [&str; 2] = ["redis.chunk", "redis.written"];

/// The crash points of lists.
pub const LIST_POINTS: [&str; 4] = ["lists.stored", "lists.requested", "lists.bound", "lists.deleted"];

/// Returns the crash points that any run reaches, except those of lists and of the sinks of files and Redis.
pub fn common_points() -> Vec<&'static str> {
    let others = [
        &CONFIG_CHANGE_POINTS[..],
        &RULE_POINTS,
        &BACKFILL_POINTS,
        &FILE_POINTS,
        &REDIS_POINTS,
        &LIST_POINTS,
    ]
    .concat();
    POINTS.into_iter().filter(|point| !others.contains(point)).collect()
}

/// Returns true if a pipeline of files and SQLite never reaches the point.
pub fn needs_services(point: &str) -> bool {
    point.starts_with("kafka") || point.starts_with("postgres")
}

const SIGABRT: i32 = 6;

/// Makes a run crash when it reaches a point for the nth time.
pub fn crash_at(mut command: Command, point: &str, nth: u64) {
    command.env("HEADWATER_CRASH_AT", format!("{point}:{nth}"));
    let output = command.stdout(Stdio::null()).output().expect("started");
    let (status, log) = (output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(status.signal(), Some(SIGABRT), "the run did not reach {point} {nth} times: {status}\n{log}");
}

#[test]
fn crashes_at_every_point_lose_and_repeat_nothing() {
    let files = checkpointed_files(41, 300_000);
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for point in common_points().into_iter().filter(|point| !needs_services(point)) {
        let workers = ["1", "2", "3"][random.below(3) as usize];
        let once = point.starts_with("start") || point.starts_with("sink.open");
        crash_at(files.command(workers), point, if once { 1 } else { 1 + random.below(3) });
        let before = files.frontiers();
        crash_at(files.command("2"), point, 1);
        let after = files.frontiers();
        assert!(after.0 >= before.0 && after.1 >= before.1, "frontiers never go back: {point}");
        assert!(after.0 <= after.1, "{point}: the sink has epoch {}, the ledger {}", after.0, after.1);
    }
    assert!(files.pruned_through() > 0, "no checkpoint was used: the ledger was never pruned");
    succeed(&mut files.command("2"));
    files.judge();
}

#[test]
fn crashes_at_service_points_lose_and_repeat_nothing() {
    let pipeline = CrashPipeline::new("points", 90_000, 9);
    for point in SERVICE_POINTS {
        for nth in [2, 1] {
            crash_at(pipeline.command("2"), point, nth);
        }
    }
    succeed(&mut pipeline.command("2"));
    pipeline.judge();
    assert!(POINTS.iter().all(|point| SERVICE_POINTS.contains(point) || !needs_services(point)));
}
