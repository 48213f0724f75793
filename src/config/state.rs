//! Where state is put, and how long it is kept.

use std::path::PathBuf;

use headwater_sinks::Secret;

use super::address::Server;
use super::read::{Notes, Section};
use super::secrets;
use crate::runtime::Patterns;

/// Where checkpoints are put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateConfig {
    /// In a folder, which belongs to one process.
    Fjall(PathBuf),
    /// In a Redis at this URL.
    Redis(Secret),
    /// In a folder, by RocksDB, which belongs to one process.
    #[cfg(feature = "rocksdb")]
    RocksDb(PathBuf),
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
        Some(Kind::Fjall) => section.file("path", notes).map(StateConfig::Fjall),
        #[cfg(feature = "rocksdb")]
        Some(Kind::RocksDb) => section.file("path", notes).map(StateConfig::RocksDb),
        #[cfg(not(feature = "rocksdb"))]
        Some(Kind::RocksDb) => {
            let message = "this program was built without RocksDB, which takes `--features rocksdb`";
            section.complain("kind", message, notes);
            section.file("path", notes);
            None
        }
        Some(Kind::Redis) => {
            let url = secrets::address(&mut section, Server::Redis, notes);
            if url.is_none() && !section.has("url") && !section.has("url_file") {
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
