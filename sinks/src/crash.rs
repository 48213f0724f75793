//! Crash points: places at which a test can abort the process immediately, as `kill -9` does.
//!
//! A debug build counts how often it reaches the point that `HEADWATER_CRASH_AT` names. With `sink.commit.before:3` it
//! aborts the third time, without running any cleanup. A release build contains no crash points.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The names of all crash points.
pub const POINTS: [&str; 37] = [
    "start.claimed",
    "sink.open.before",
    "sink.open.after",
    "ledger.amend.before",
    "ledger.amend.after",
    "start.loaded",
    "start.begun",
    "rules.requested",
    "rules.bound",
    "ledger.append.before",
    "ledger.append.after",
    "sink.stage",
    "sink.commit.before",
    "sqlite.written",
    "file.appended",
    "file.written",
    "postgres.written",
    "kafka.produced",
    "redis.chunk",
    "redis.written",
    "sink.commit.after",
    "part.put.before",
    "part.put.after",
    "parts.synced",
    "ledger.conclude.before",
    "ledger.conclude.after",
    "part.deleted",
    "backfill.read",
    "backfill.stored",
    "backfill.offered",
    "backfill.bound",
    "lists.stored",
    "lists.requested",
    "lists.bound",
    "lists.deleted",
    "group.commit.before",
    "group.commit.after",
];

/// Aborts the process if this is the crash point of `HEADWATER_CRASH_AT` and its count has been reached.
#[inline]
pub fn point(name: &'static str) {
    if cfg!(debug_assertions) {
        abort_if_armed(name);
    }
}

fn abort_if_armed(name: &'static str) {
    static ARMED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    debug_assert!(POINTS.contains(&name), "{name} is not in POINTS");
    let armed = ARMED.get_or_init(|| {
        let armed = std::env::var("HEADWATER_CRASH_AT").ok()?;
        let (name, times) = armed.split_once(':')?;
        Some((name.to_owned(), AtomicU64::new(times.parse().ok()?)))
    });
    if let Some((_, left)) = armed.as_ref().filter(|(armed, _)| armed == name)
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}
