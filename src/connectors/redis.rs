//! Redis as state store.

use super::StoreKind;
use crate::settings::secrets::{self, Address};
use crate::settings::{Diagnostics, Section, Server, keys};
use crate::state::{Durability, RedisConfig, StateConfig, is_redis_tls};

pub const STORE: StoreKind = StoreKind {
    name: "redis",
    keys: keys! {
        "state.url": "Redis: URL of the server, for example `redis://user@127.0.0.1:6379/0`, or `rediss://` for TLS. The server must have `appendonly yes`, `appendfsync always` and `maxmemory-policy noeviction`; otherwise the start is refused, because stored state could be lost in a crash."
        "state.url_file": "Redis: file that contains the URL."
        "state.password_file": "Redis: file that contains the password, for a URL without one."
        "state.ca_file": "Redis with TLS: PEM file of the CA that signed the server's certificate. Without it, the CAs that the system trusts."
        "state.cert_file": "Redis with TLS: PEM file of the client certificate, if the server requires one."
        "state.key_file": "Redis with TLS: PEM file of the private key of the client certificate."
        "state.durability" = "\"checked\"": "Redis: `checked` verifies the server's durability settings with `CONFIG GET`; `assumed` skips the check, for a server that does not permit `CONFIG`. If the assumption is wrong, a crash can lose checkpoints."
    },
    read: |section, diagnostics| read(section, diagnostics).map(StateConfig::Redis),
};

fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<RedisConfig> {
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
