//! The health of a list's source, for people: when it was read, and why it could not be.

use serde::Serialize;
use utoipa::ToSchema;

use super::{LOCK, List};
use crate::json::rfc3339;
use crate::wall::wall_ms;

/// The readings of a list's source by this process.
#[derive(Clone, Debug, Default)]
pub struct ListHealth {
    /// The kind and the place of the source.
    pub source: String,
    /// True if this process reads the source.
    pub is_reader: bool,
    /// The wall time of the last reading that succeeded, in milliseconds since 1970.
    pub read_ms: Option<i64>,
    /// The number of readings that failed.
    pub errors: u64,
    /// The number of entries of the source that are malformed and left out.
    pub refused: u64,
    /// The reason why the last reading failed; None if it succeeded.
    pub error: Option<String>,
}

/// The state of a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ListStatus {
    /// The name of the list.
    name: String,
    /// The kind and the place of its source.
    source: String,
    /// `ok`, `failing` (its contents are those of the last reading that succeeded), `unread` (empty: no reading has
    /// succeeded) or `remote` (the first process reads the source).
    pub state: &'static str,
    /// The number of entries in force.
    entries: u64,
    /// The contents in force; null before the first contents.
    version: Option<ListVersionStatus>,
    /// The time of the last reading that succeeded, RFC 3339; null if there was none since the start.
    read_at: Option<String>,
    /// The seconds since then.
    age_s: Option<f64>,
    /// The number of readings that failed since the start.
    errors: u64,
    /// The number of entries of the source that are malformed and left out.
    refused: u64,
    /// The reason why the last reading failed; null if it succeeded.
    error: Option<String>,
}

/// The contents of a list that are in force.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ListVersionStatus {
    /// The SHA-256 of the contents, in hexadecimal digits.
    hash: String,
    /// The epoch after which they are in force; 0 if they are in force for all events.
    after_epoch: u64,
}

impl List {
    /// Changes what is known of the source.
    pub fn note(&self, note: impl FnOnce(&mut ListHealth)) {
        note(&mut self.health.lock().expect(LOCK));
    }

    /// Returns what is known of the source.
    pub fn health(&self) -> ListHealth {
        self.health.lock().expect(LOCK).clone()
    }

    /// Returns the state of the list.
    pub fn status(&self) -> ListStatus {
        let (health, newest) = (self.health(), self.newest());
        let state = match (&health, newest.hash) {
            (ListHealth { is_reader: false, .. }, _) => "remote",
            (ListHealth { error: Some(_), .. }, Some(_)) => "failing",
            (_, None) => "unread",
            _ => "ok",
        };
        ListStatus {
            name: self.name().to_owned(),
            source: health.source,
            state,
            entries: newest.table.len() as u64,
            version: newest
                .hash
                .map(|hash| ListVersionStatus { hash: hex(&hash), after_epoch: newest.since.epoch.0 }),
            read_at: health.read_ms.map(rfc3339),
            age_s: health.read_ms.map(|read_ms| (wall_ms() - read_ms).max(0) as f64 / 1e3),
            errors: health.errors,
            refused: health.refused,
            error: health.error,
        }
    }
}

/// Returns a hash in hexadecimal digits.
pub fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
