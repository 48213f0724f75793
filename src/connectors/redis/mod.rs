//! Redis: profiles of keys as sink, and a state store.

mod sink;
mod store;

use headwater_sinks::redis::{RedisServer, is_redis_tls};

pub use sink::RedisSinkConfig;
pub(super) use sink::SINK;
pub(super) use store::STORE;

use crate::settings::secrets::{self, Address};
use crate::settings::{Diagnostics, Section, Server};

/// Reads the address of a server, and the files of TLS. Reports a missing address as `missing`.
fn read_server(
    section: &mut Section<'_>,
    missing: &str,
    diagnostics: &mut Diagnostics,
) -> Option<RedisServer> {
    let address = secrets::address(section, Server::Redis, diagnostics);
    let ca_file = section.file("ca_file", diagnostics);
    let cert_file = section.file("cert_file", diagnostics);
    let key_file = section.file("key_file", diagnostics);
    let Some(Address { key: url_key, url }) = address else {
        if !section.has("url") && !section.has("url_file") {
            section.report_error("url", missing, diagnostics);
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
    let name = section.path().trim_end_matches('.').to_owned();
    Some(RedisServer { section: name, url, ca_file, certificate })
}
