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
    /// In a Redis.
    Redis(RedisConfig),
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
            StateConfig::Redis(redis) => write!(f, "Redis({})", values::without_password(&redis.url)),
        }
    }
}

/// A Redis, and how to connect to it.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// Its address, with user and password; `rediss://` for TLS.
    pub url: String,
    /// The file of the CA that signed its certificate; without it, those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// The files of the client's certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Whether it is asked if it keeps what it is given.
    pub durability: Durability,
}

impl RedisConfig {
    /// At an address, and otherwise as by default.
    pub fn at(url: impl Into<String>) -> RedisConfig {
        RedisConfig { url: url.into(), ca_file: None, certificate: None, durability: Durability::Checked }
    }
}

/// How it is known that a Redis keeps what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It says so, by `CONFIG GET`.
    Checked,
    /// The operator says so.
    Assumed,
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
        Some(Kind::Redis) => read_redis(&mut section, notes).map(StateConfig::Redis),
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

fn read_redis(section: &mut Section<'_>, notes: &mut Notes) -> Option<RedisConfig> {
    let url = section.text("url", notes);
    let ca_file = section.text("ca_file", notes).map(PathBuf::from);
    let cert_file = section.text("cert_file", notes).map(PathBuf::from);
    let key_file = section.text("key_file", notes).map(PathBuf::from);
    let durability = [("checked", Durability::Checked), ("assumed", Durability::Assumed)];
    let durability = section.choice("durability", &durability, notes);
    let Some(url) = url else {
        section.complain("url", "state in Redis needs its url", notes);
        return None;
    };
    let has_tls = url.starts_with("rediss://");
    if has_tls && cfg!(not(feature = "tls")) {
        let message = "`rediss://` needs TLS, and this program was built without it: build it with \
                       `cargo build --release --features tls`";
        section.complain("url", message, notes);
    } else if redis::parse_redis_url(&url).is_none() {
        section.complain("url", "expected an address such as `redis://user:password@host:6379/0`", notes);
    }
    for (key, file) in [("ca_file", &ca_file), ("cert_file", &cert_file), ("key_file", &key_file)] {
        if file.is_some() && !has_tls {
            section.complain(key, "is for TLS, which a url that begins with `rediss://` has", notes);
        }
    }
    let certificate = match (cert_file, key_file) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            section.complain("cert_file", "`cert_file` and `key_file` are given together", notes);
            None
        }
    };
    Some(RedisConfig { url, ca_file, certificate, durability: durability? })
}

/// How far back any pattern looks that has a time for it.
fn longest_within(patterns: &Patterns) -> i64 {
    let Patterns { velocity_spike, rapid_fire_burst, merchant_diversity, .. } = patterns;
    let frequencies = [velocity_spike, rapid_fire_burst].into_iter().flatten().map(|plan| plan.within_ms);
    frequencies.chain(merchant_diversity.iter().map(|plan| plan.within_ms)).max().unwrap_or(0)
}
