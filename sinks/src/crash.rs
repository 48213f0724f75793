//! Crash points: places where a test ends the process at once, as `kill -9` does.
//!
//! A debug build counts how often it comes to the point that `HEADWATER_CRASH_AT` names, as in `sink.commit.before:3`,
//! and aborts the third time, running nothing on the way out. A release build has none of it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every crash point there is.
pub const POINTS: [&str; 23] = [
    "start.claimed",
    "sink.open.before",
    "sink.open.after",
    "ledger.amend.before",
    "ledger.amend.after",
    "start.loaded",
    "start.begun",
    "ledger.append.before",
    "ledger.append.after",
    "sink.stage",
    "sink.commit.before",
    "sqlite.written",
    "postgres.written",
    "kafka.produced",
    "sink.commit.after",
    "part.put.before",
    "part.put.after",
    "parts.synced",
    "ledger.conclude.before",
    "ledger.conclude.after",
    "part.deleted",
    "group.commit.before",
    "group.commit.after",
];

/// Ends the process if this is the point that it is to end at.
#[inline]
pub fn point(name: &'static str) {
    if cfg!(debug_assertions) {
        reached(name);
    }
}

fn reached(name: &'static str) {
    static ARMED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    debug_assert!(POINTS.contains(&name), "{name} is not in the table");
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
