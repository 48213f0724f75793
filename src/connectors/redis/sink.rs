//! Redis as sink: the profile of each key.

use std::time::Duration;

use headwater_sinks::redis::{RedisServer, probe, redis_place};

use super::read_server;
use crate::connectors::{Check, OutputKind, SinkConfig, SinkConnector, SinkContext, SinkKind, TablesConfig};
use crate::outputs::SinkJob;
use crate::settings::{Diagnostics, Section, keys, millis};

pub const SINK: SinkKind = SinkKind {
    name: "redis",
    keys: keys! {
        "sinks.redis.url": "URL of the server, for example `redis://user@127.0.0.1:6379/0`, or `rediss://` for TLS. A single server, or the primary of one with replicas; not a Redis Cluster. [redis.md](redis.md) says what it stores there."
        "sinks.redis.url_file": "File that contains the URL."
        "sinks.redis.password_file": "File that contains the password, for a URL without one."
        "sinks.redis.ca_file": "With TLS: PEM file of the CA that signed the server's certificate. Without it, the CAs that the system trusts."
        "sinks.redis.cert_file": "With TLS: PEM file of the client certificate, if the server requires one."
        "sinks.redis.key_file": "With TLS: PEM file of the private key of the client certificate."
        "sinks.redis.prefix" = "\"headwater\"": "Beginning of all keys. The profile of a key is the hash `PREFIX:PIPELINE:KEY_KIND:KEY`, and the progress of the sink is the hash `PREFIX:PIPELINE:progress:SINK`, which must not be deleted."
        "sinks.redis.ttl" = "\"24h\"": "Time after its last change at which Redis removes a profile, at least `1s`. It bounds the memory by the keys of that time."
        "sinks.redis.outputs" = "[\"enriched-events\", \"alerts\", \"windows\"]": "Outputs of which profiles are made."
        "sinks.redis.commit_interval" = "\"50ms\"": "Minimum time between the beginnings of two rounds. It is short because profiles are read to decide about the next event; longer intervals write a profile with many events less often."
    },
    read: |section, diagnostics| read(section, diagnostics).map(SinkConfig::Redis),
};

/// The outputs that profiles are made of.
const OUTPUTS: [(&str, OutputKind); 3] = [
    ("enriched-events", OutputKind::Events),
    ("alerts", OutputKind::Alerts),
    ("windows", OutputKind::Windows),
];

/// Profiles of keys in Redis.
#[derive(Clone, Debug)]
pub struct RedisSinkConfig {
    /// The server.
    pub server: RedisServer,
    /// The beginning of all keys.
    pub prefix: String,
    /// The time after its last change at which a profile is removed.
    pub ttl: Duration,
    /// The outputs of which profiles are made.
    pub outputs: TablesConfig,
}

fn read(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<RedisSinkConfig> {
    let server = read_server(section, "is missing: expected the address of a Redis server", diagnostics);
    let prefix = section.text("prefix", diagnostics);
    let is_printable = |prefix: &String| prefix.len() <= 100 && prefix.chars().all(|c| c.is_ascii_graphic());
    if !prefix.as_ref().is_none_or(is_printable) {
        let message = "expected at most 100 letters, digits and signs of ASCII, without spaces";
        section.report_error("prefix", message, diagnostics);
    }
    let ttl = section.duration("ttl", 1000, diagnostics).map(millis);
    let outputs = TablesConfig::read(section, "outputs", &OUTPUTS, diagnostics);
    Some(RedisSinkConfig { server: server?, prefix: prefix?, ttl: ttl?, outputs: outputs? })
}

impl RedisSinkConfig {
    fn place(&self) -> String {
        redis_place(&self.server.url).unwrap_or_else(|| "Redis".to_owned())
    }
}

impl SinkConnector for RedisSinkConfig {
    fn jobs(&self, name: &str, _context: SinkContext<'_>) -> Vec<SinkJob> {
        let RedisSinkConfig { server, prefix, ttl, outputs } = self.clone();
        let sink = headwater_sinks::redis::RedisSinkConfig { name: name.into(), server, prefix, ttl }.build();
        // Services decide by profiles.
        vec![outputs.job(Box::new(sink), false)]
    }

    fn check(&self, name: &str, _context: SinkContext<'_>) -> Vec<Check> {
        vec![Check::of(format!("sinks.{name}"), format!("Redis at {}", self.place()), probe(&self.server))]
    }

    fn targets(&self) -> Vec<String> {
        vec![format!("keys {}:… of Redis at {}", self.prefix, self.place())]
    }

    fn sharing_objection(&self, has_ledger: bool) -> Option<String> {
        let reason = "several processes need a ledger to write one Redis: add `[ledger]`, or start one process with more \
                      workers (-w)";
        (!has_ledger).then(|| reason.to_owned())
    }
}
