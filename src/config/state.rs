//! The state store and the time to live of keys.

use crate::pipeline::Patterns;
use crate::settings::secrets::{self, Address};
use crate::settings::{Diagnostics, Section, Server};
use crate::state::{Durability, RedisConfig, StateConfig, is_redis_tls};

/// The kinds of state stores.
#[derive(Clone, Copy)]
enum Kind {
    Fjall,
    Redis,
    RocksDb,
}

/// Reads the section `[state]`: the state store, and the time to live of a key after its last event, in milliseconds of
/// event time.
pub(super) fn read(
    mut section: Section<'_>,
    patterns: &Patterns,
    diagnostics: &mut Diagnostics,
) -> Option<(StateConfig, i64)> {
    let kinds = [("fjall", Kind::Fjall), ("redis", Kind::Redis), ("rocksdb", Kind::RocksDb)];
    let store = match section.choice("kind", &kinds, diagnostics) {
        None => None,
        Some(Kind::Fjall) => section.file("path", diagnostics).map(StateConfig::Fjall),
        #[cfg(feature = "rocksdb")]
        Some(Kind::RocksDb) => section.file("path", diagnostics).map(StateConfig::RocksDb),
        #[cfg(not(feature = "rocksdb"))]
        Some(Kind::RocksDb) => {
            let message = "this program was built without RocksDB: build it with `cargo build --release --features rocksdb`";
            section.report_error("kind", message, diagnostics);
            section.file("path", diagnostics);
            None
        }
        Some(Kind::Redis) => read_redis(&mut section, diagnostics).map(StateConfig::Redis),
    };
    let ttl_ms = section.duration("ttl", 1, diagnostics);
    let longest = longest_span(patterns);
    if ttl_ms.is_some_and(|ttl_ms| ttl_ms < longest) {
        let message = format!("the longest pattern spans {longest} ms: `ttl` must not be shorter");
        section.report_error("ttl", message, diagnostics);
    }
    section.end(diagnostics);
    Some((store?, ttl_ms?))
}

fn read_redis(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<RedisConfig> {
    let address = secrets::address(section, Server::Redis, diagnostics);
    let ca_file = section.file("ca_file", diagnostics);
    let cert_file = section.file("cert_file", diagnostics);
    let key_file = section.file("key_file", diagnostics);
    let durability = [("checked", Durability::Checked), ("assumed", Durability::Assumed)];
    let durability = section.choice("durability", &durability, diagnostics);
    let Some(Address { key: url_key, url }) = address else {
        if !section.has("url") && !section.has("url_file") {
            section.report_error("url", "state in Redis needs a url", diagnostics);
        }
        return None;
    };
    let has_tls = is_redis_tls(&url);
    if has_tls && cfg!(not(feature = "tls")) {
        let message = "`rediss://` needs TLS, and this program was built without it: build it with \
                       `cargo build --release --features tls`";
        section.report_error(&url_key, message, diagnostics);
    } else if redis::IntoConnectionInfo::into_connection_info(url.expose()).is_err() {
        section.report_error(
            &url_key,
            "expected an address such as `redis://user:password@host:6379/0`",
            diagnostics,
        );
    }
    for (key, file) in [("ca_file", &ca_file), ("cert_file", &cert_file), ("key_file", &key_file)] {
        if file.is_some() && !has_tls {
            section.report_error(
                key,
                "applies to TLS only: use a url that begins with `rediss://`, or remove this key",
                diagnostics,
            );
        }
    }
    let certificate = match (cert_file, key_file) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            section.report_error("cert_file", "`cert_file` and `key_file` must be set together", diagnostics);
            None
        }
    };
    Some(RedisConfig { url, ca_file, certificate, durability: durability? })
}

/// Returns the longest time span of the patterns that have one, in milliseconds.
fn longest_span(patterns: &Patterns) -> i64 {
    let Patterns { velocity_spike, rapid_fire_burst, merchant_diversity, .. } = patterns;
    let frequencies = [velocity_spike, rapid_fire_burst].into_iter().flatten().map(|plan| plan.within_ms);
    frequencies.chain(merchant_diversity.iter().map(|plan| plan.within_ms)).max().unwrap_or(0)
}
