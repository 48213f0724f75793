//! Redis as state store.

use super::read_server;
use crate::connectors::StoreKind;
use crate::settings::{Diagnostics, Section, keys};
use crate::state::{Durability, RedisConfig, StateConfig};

pub const STORE: StoreKind = StoreKind {
    name: "redis",
    keys: keys! {
        "state.url": "Object store: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `file:///DIRECTORY`. Redis: URL of the server, for example `redis://user@127.0.0.1:6379/0`, or `rediss://` for TLS. The server must have `appendonly yes`, `appendfsync always` and `maxmemory-policy noeviction`; otherwise the start is refused, because stored state could be lost in a crash."
        "state.url_file": "Redis: file that contains the URL."
        "state.password_file": "Redis: file that contains the password, for a URL without one."
        "state.ca_file": "Redis with TLS, and object store: PEM file of the CA that signed the server's certificate. Without it, the CAs that the system trusts."
        "state.cert_file": "Redis with TLS: PEM file of the client certificate, if the server requires one."
        "state.key_file": "Redis with TLS: PEM file of the private key of the client certificate."
        "state.durability" = "\"checked\"": "Redis: `checked` verifies the server's durability settings with `CONFIG GET`; `assumed` skips the check, for a server that does not permit `CONFIG`. If the assumption is wrong, a crash can lose checkpoints."
    },
    read: |section, diagnostics| read(section, diagnostics).map(StateConfig::Redis),
};

fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<RedisConfig> {
    let server = read_server(section, "state in Redis needs a url", diagnostics);
    let durability = [("checked", Durability::Checked), ("assumed", Durability::Assumed)];
    let durability = section.choice("durability", &durability, diagnostics);
    Some(RedisConfig { server: server?, durability: durability? })
}
