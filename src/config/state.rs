//! Where state is put, and how long it is kept.

use std::fmt;
use std::path::PathBuf;

use super::read::{Notes, Section};
use super::values;
use crate::runtime::Patterns;

/// Where checkpoints are put.
#[derive(Clone, PartialEq, Eq)]
pub enum StateConfig {
    /// In a folder, which belongs to one process.
    Fjall(PathBuf),
    /// In a Redis at this URL.
    Redis(String),
    /// In a folder, by RocksDB, which belongs to one process.
    #[cfg(feature = "rocksdb")]
    RocksDb(PathBuf),
}

impl fmt::Debug for StateConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateConfig::Fjall(path) => write!(f, "Fjall({})", path.display()),
            #[cfg(feature = "rocksdb")]
            StateConfig::RocksDb(path) => write!(f, "RocksDb({})", path.display()),
            StateConfig::Redis(url) => write!(f, "Redis({})", values::without_password(url)),
        }
    }
}

/// Kinds of state stores.
#[derive(Clone, Copy)]
enum Kind {
    Fjall,
    Redis,
    RocksDb,
}

/// Reads the section `[state]`: where checkpoints are put, and how long a key is remembered after its last event, in
/// milliseconds of event time.
pub(super) fn read(
    mut section: Section<'_>,
    patterns: &Patterns,
    notes: &mut Notes,
) -> Option<(StateConfig, i64)> {
    let kinds = [("fjall", Kind::Fjall), ("redis", Kind::Redis), ("rocksdb", Kind::RocksDb)];
    let place = match section.choice("kind", &kinds, notes) {
        None => None,
        Some(Kind::Fjall) => section.text("path", notes).map(|path| StateConfig::Fjall(path.into())),
        #[cfg(feature = "rocksdb")]
        Some(Kind::RocksDb) => section.text("path", notes).map(|path| StateConfig::RocksDb(path.into())),
        #[cfg(not(feature = "rocksdb"))]
        Some(Kind::RocksDb) => {
            let message = "this program was built without RocksDB, which takes `--features rocksdb`";
            section.complain("kind", message, notes);
            section.text("path", notes);
            None
        }
        Some(Kind::Redis) => {
            let url = section.text("url", notes);
            if url.is_none() {
                section.complain("url", "state in Redis needs its url", notes);
            }
            url.map(StateConfig::Redis)
        }
    };
    let ttl_ms = section.duration("ttl", 1, notes);
    let longest = longest_within(patterns);
    if ttl_ms.is_some_and(|ttl_ms| ttl_ms < longest) {
        let message = format!("a pattern looks back on {longest} ms: keys must be remembered for as long");
        section.complain("ttl", message, notes);
    }
    section.end(notes);
    Some((place?, ttl_ms?))
}

/// How far back any pattern looks that has a time for it.
fn longest_within(patterns: &Patterns) -> i64 {
    let Patterns { velocity_spike, rapid_fire_burst, merchant_diversity, .. } = patterns;
    let frequencies = [velocity_spike, rapid_fire_burst].into_iter().flatten().map(|plan| plan.within_ms);
    frequencies.chain(merchant_diversity.iter().map(|plan| plan.within_ms)).max().unwrap_or(0)
}
