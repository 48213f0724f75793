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

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn parse(section: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let text = format!(
            "pipeline = 'p'\nsource = {{ kind = 'generator' }}\nsinks.sqlite.path = 'p.db'\n[cluster]\n{section}"
        );
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(&text, environment).map_err(|errors| errors.to_string())
    }

    #[test]
    fn a_secret_comes_from_a_file_or_the_environment_and_is_not_shown() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "a secret in a file\n").expect("written");
        let of_file = format!("secret_file = '{}'", file.path().display());
        let variable = ("HEADWATER__CLUSTER__SECRET", "a secret of the environment");
        for (section, environment, expected) in [
            (&*of_file, &[][..], "a secret in a file"),
            ("", &[variable], "a secret of the environment"),
            (&of_file, &[variable], "a secret of the environment"),
        ] {
            let config = parse(section, environment).expect("valid");
            let secret = config.cluster.secret.as_ref().map(|secret| secret.expose().to_owned());
            assert_eq!(secret.as_deref(), Some(expected));
            let shown = format!("{:?}{}", config.cluster, config.effective());
            assert!(!shown.contains("a secret"), "{shown}");
        }
    }

    #[test]
    fn errors_of_the_section_say_what_to_do() {
        for (section, parts) in [
            (
                "secret = 'too short'",
                ["line 5: cluster.secret: the secret has 9 bytes", "openssl rand -hex 32"],
            ),
            ("heartbeat_timeout = '10ms'", ["line 5: cluster.heartbeat_timeout", "at least 500 ms"]),
            ("tls.cert_file = 'a.pem'", ["cluster.tls.key_file", "cluster.tls.ca_file"]),
        ] {
            let message = parse(section, &[]).expect_err(section);
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
