//! The wall clock, for measurements only: no result depends on it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the wall time in milliseconds since 1970.
pub fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
