//! The section `[cluster]`: how the processes of a cluster prove that they belong together, and when one is lost.

use std::path::PathBuf;
use std::time::Duration;

use headwater_sinks::Secret;

use super::TlsFiles;
use super::http::read_tls;
use crate::settings::{Diagnostics, Section, millis, secrets};

/// The settings of the connections between the processes of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The secret that each process proves to know; None if the connections stay on this machine.
    pub secret: Option<Secret>,
    /// The time without a sign of life after which a process is lost.
    pub heartbeat_timeout: Duration,
    /// The certificates of both ends of a connection; None for connections without TLS.
    pub tls: Option<ClusterTls>,
}

/// The files by which the processes of a cluster know each other, in PEM.
#[derive(Clone, Debug)]
pub struct ClusterTls {
    /// The certificate and key of this process.
    pub identity: TlsFiles,
    /// The certificate authorities that the other processes are verified with.
    pub ca_file: PathBuf,
}

/// The minimum length of a secret, in bytes.
const MIN_SECRET: usize = 16;

/// The minimum of `heartbeat_timeout`, in milliseconds. A process under load may not run for so long.
const MIN_TIMEOUT_MS: i64 = 500;

/// Reads the section.
pub fn read(mut section: Section<'_>, diagnostics: &mut Diagnostics) -> Option<ClusterConfig> {
    let secret = secrets::text(&mut section, "secret", diagnostics);
    if let Some(short) = secret.as_ref().filter(|secret| secret.expose().len() < MIN_SECRET) {
        let message = format!(
            "the secret has {} bytes; use at least {MIN_SECRET}, as `openssl rand -hex 32` makes them",
            short.expose().len()
        );
        section.report_error("secret", message, diagnostics);
    }
    let heartbeat_timeout = section.duration("heartbeat_timeout", MIN_TIMEOUT_MS, diagnostics);
    let tls = section.section("tls", diagnostics).map(|mut section| {
        let ca_file = section.file("ca_file", diagnostics);
        let identity = read_tls(section, "cluster.tls", diagnostics);
        Some(ClusterTls { identity: identity?, ca_file: ca_file? })
    });
    section.end(diagnostics);
    let tls = match tls {
        Some(tls) => Some(tls?),
        None => None,
    };
    Some(ClusterConfig { secret, heartbeat_timeout: millis(heartbeat_timeout?), tls })
}
