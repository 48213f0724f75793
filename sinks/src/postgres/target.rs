//! The address of a PostgreSQL server and its TLS settings: a `postgres://` URL or a list of `key=value`, including the
//! TLS parameters of libpq that tokio-postgres does not support.

use std::net::IpAddr;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls};

use super::connect_error::ConnectError;
use crate::Misconfigured;

/// The timeout of connecting, unless the address has a `connect_timeout`. A server may accept a connection and then not
/// respond.
const PATIENCE: Duration = Duration::from_secs(10);

/// The required security of a connection: `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it, without checking its identity.
    #[default]
    Prefer,
    /// TLS; with `sslrootcert`, the same as [`VerifyCa`](Mode::VerifyCa).
    Require,
    /// TLS with a server whose certificate is signed by a CA of `sslrootcert`.
    VerifyCa,
    /// The same, and the certificate must be valid for the host name of the address.
    VerifyFull,
}

const MODES: [(&str, Mode); 6] = [
    ("disable", Mode::Disable),
    ("allow", Mode::Prefer),
    ("prefer", Mode::Prefer),
    ("require", Mode::Require),
    ("verify-ca", Mode::VerifyCa),
    ("verify-full", Mode::VerifyFull),
];

/// The TLS settings of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tls {
    pub mode: Mode,
    /// `sslrootcert`: a file, or `system` for the CAs trusted by the system.
    pub root: Option<String>,
    /// `sslcert` and `sslkey`: files.
    pub certificate: Option<(String, String)>,
}

/// The address, user and TLS settings of a connection.
#[derive(Clone)]
pub struct Target {
    config: Config,
    tls: Tls,
}

/// Parameters of libpq that are not supported.
const UNSUPPORTED: [&str; 16] = [
    "sslpassword",
    "sslcrl",
    "sslcrldir",
    "sslsni",
    "sslcompression",
    "sslcertmode",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "passfile",
    "service",
    "require_auth",
    "requirepeer",
    "gssencmode",
    "gssdelegation",
    "krbsrvname",
    "replication",
];

impl Target {
    /// Parses a `postgres://` URL or a list of `key=value`.
    ///
    /// # Errors
    /// If it is neither, or if it requires TLS and this program was built without TLS. The error does not repeat the
    /// address, because it may contain a password.
    pub fn parse(address: &str) -> Result<Target, Misconfigured> {
        let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| address.starts_with(scheme));
        let ours = if is_url { split_url(address) } else { split_list(address) };
        let Some((rest, parameters)) = ours else { return Err(invalid_address()) };
        let value =
            |name: &str| parameters.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        if let Some(name) = UNSUPPORTED.iter().find(|name| value(name).is_some()) {
            return Err(Misconfigured(format!("the parameter `{name}` is not supported: remove it")));
        }
        let mut config: Config = rest.parse().map_err(|_| invalid_address())?;
        let tls = tls(&value)?;
        config.ssl_mode(match tls.mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer if cfg!(not(feature = "tls")) => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        Ok(Target { config, tls })
    }

    /// Returns the configuration of tokio-postgres.
    pub fn config(&mut self) -> &mut Config {
        &mut self.config
    }

    /// Returns the name of the database.
    pub fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or("named after the user")
    }

    /// Returns host and port; if there are several, in the order in which they are tried.
    pub fn hosts(&self) -> String {
        let ports = self.config.get_ports();
        let hosts = self.config.get_hosts().iter().enumerate().map(|(at, host)| match host {
            Host::Tcp(host) => format!("{host}:{}", ports.get(at).or(ports.first()).unwrap_or(&5432)),
            Host::Unix(path) => path.display().to_string(),
        });
        hosts.collect::<Vec<_>>().join(", ")
    }

    /// Connects, and runs the connection in a task until it is dropped or aborted.
    ///
    /// # Errors
    /// If connecting fails or times out (10 s, or the `connect_timeout` of the address). The error names the address
    /// and what to check.
    pub async fn connect(&self) -> Result<(Client, AbortHandle), ConnectError> {
        let limit = self.config.get_connect_timeout().copied().unwrap_or(PATIENCE);
        let mut config = self.config.clone();
        config.connect_timeout(limit);
        let failed = |source| ConnectError::Failed { hosts: self.hosts(), source };
        let connected = timeout(limit, async {
            #[cfg(feature = "tls")]
            if self.tls.mode > Mode::Disable {
                let connector = super::tls::connector(&self.tls)?;
                let (client, connection) = config.connect(connector).await.map_err(failed)?;
                // The client reports errors of the connection.
                let driver = tokio::spawn(async { drop(connection.await) }).abort_handle();
                self.warn_if_unencrypted(&client).await;
                return Ok((client, driver));
            }
            let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
            let driver = tokio::spawn(async { drop(connection.await) }).abort_handle();
            if self.tls.mode == Mode::Prefer && !self.is_local() {
                self.warn_unencrypted("this program was built without TLS (`--features tls`)");
            }
            Ok((client, driver))
        });
        connected.await.unwrap_or_else(|_| Err(ConnectError::TimedOut { hosts: self.hosts(), limit }))
    }

    /// Logs a warning if `sslmode=prefer` has led to an unencrypted connection over a network.
    #[cfg(feature = "tls")]
    async fn warn_if_unencrypted(&self, client: &Client) {
        if self.tls.mode == Mode::Prefer && !self.is_local() {
            let facts = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            if client.query_one(facts, &[]).await.is_ok_and(|row| row.get(0)) {
                return;
            }
            self.warn_unencrypted("the server does not offer TLS");
        }
    }

    fn warn_unencrypted(&self, reason: &str) {
        tracing::warn!(
            hosts = self.hosts(),
            "the connection to PostgreSQL is not encrypted: {reason}; set `sslmode` to `require` or `verify-full` to \
             require TLS, or to `disable` to turn off this warning"
        );
    }

    /// Returns true if the connection does not use a network.
    fn is_local(&self) -> bool {
        self.config.get_hosts().iter().all(|host| match host {
            Host::Tcp(host) => {
                host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
            }
            Host::Unix(_) => true,
        })
    }
}

fn invalid_address() -> Misconfigured {
    Misconfigured(
        "the URL is not a PostgreSQL address such as `postgres://user@host:5432/database`".to_owned(),
    )
}

/// Returns the TLS settings of the parameters.
fn tls(value: &impl Fn(&str) -> Option<String>) -> Result<Tls, Misconfigured> {
    let wrong = |reason: &str| Err(Misconfigured(reason.to_owned()));
    let root = value("sslrootcert");
    let system = root.as_deref() == Some("system");
    let mode = match value("sslmode") {
        None if system => Mode::VerifyFull,
        None => Mode::Prefer,
        Some(word) => match MODES.iter().find(|(name, _)| *name == word) {
            Some(&(_, mode)) => mode,
            None => {
                return wrong("`sslmode` must be disable, allow, prefer, require, verify-ca or verify-full");
            }
        },
    };
    if system && mode < Mode::VerifyFull {
        return wrong(
            "`sslrootcert=system` needs `sslmode=verify-full`: anyone can get a certificate from these CAs",
        );
    }
    let mode = if mode == Mode::Require && root.is_some() { Mode::VerifyCa } else { mode };
    if mode >= Mode::VerifyCa && root.is_none() {
        return wrong("this `sslmode` needs `sslrootcert`: a file with the CA's certificates, or `system`");
    }
    let certificate = match (value("sslcert"), value("sslkey")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return wrong("`sslcert` and `sslkey` must be set together"),
    };
    if mode >= Mode::Require && cfg!(not(feature = "tls")) {
        return wrong(
            "this `sslmode` requires TLS, but this program was built without it: build it with \
             `cargo build --release --features tls`",
        );
    }
    Ok(Tls { mode, root, certificate })
}

/// Names and values.
type Parameters = Vec<(String, String)>;

/// Returns true if a parameter is not passed on to tokio-postgres.
fn is_ours(name: &str) -> bool {
    ["sslmode", "sslrootcert", "sslcert", "sslkey"].contains(&name) || UNSUPPORTED.contains(&name)
}

/// Separates our parameters from a URL. Returns the remaining URL and the parameters.
fn split_url(url: &str) -> Option<(String, Parameters)> {
    // A password may contain a question mark.
    let authority = url.find('@').unwrap_or(0);
    let Some(at) = url[authority..].find('?').map(|at| authority + at) else {
        return Some((url.to_owned(), Vec::new()));
    };
    let (mut remaining, mut ours) = (Vec::new(), Vec::new());
    for pair in url[at + 1..].split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        match is_ours(name) {
            true => ours.push((name.to_owned(), percent_decoded(value)?)),
            false => remaining.push(pair),
        }
    }
    let separator = if remaining.is_empty() { "" } else { "?" };
    Some((format!("{}{separator}{}", &url[..at], remaining.join("&")), ours))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Separates our parameters from a list of `key=value`, whose values may be in single quotes, with backslash escapes.
fn split_list(list: &str) -> Option<(String, Parameters)> {
    let (mut remaining, mut ours) = (String::new(), Vec::new());
    let mut rest = list.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = list_value(after.trim_start())?;
        let name = name.trim_end();
        if is_ours(name) {
            ours.push((name.to_owned(), value));
        } else {
            remaining += &rest[..rest.len() - after.len()];
            remaining.push(' ');
        }
        rest = after.trim_start();
    }
    Some((remaining, ours))
}

/// Returns the first value of `text`, and the rest.
fn list_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.push(characters.next()?.1),
            '\'' if quoted => return Some((value, &text[at + 1..])),
            space if space.is_whitespace() && !quoted => return Some((value, &text[at..])),
            other => value.push(other),
        }
    }
    (!quoted).then_some((value, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(address: &str) -> String {
        Target::parse(address).err().expect(address).to_string()
    }

    #[test]
    fn tls_parameters_are_parsed_from_urls_and_lists() {
        for address in [
            "postgres://u:p%3F@h:1/d?sslmode=disable&application_name=a&sslrootcert=%2Fca%20s.pem",
            "host=h port = 1 user=u password='p?' dbname=d sslmode=disable application_name=a sslrootcert='/ca s.pem'",
        ] {
            let mut target = Target::parse(address).expect(address);
            assert_eq!(target.tls.mode, Mode::Disable);
            assert_eq!(target.tls.root.as_deref(), Some("/ca s.pem"));
            assert_eq!(target.hosts(), "h:1");
            assert_eq!(target.config().get_password(), Some(&b"p?"[..]));
            assert_eq!(target.config().get_application_name(), Some("a"));
        }
        let escaped = split_list(r"password='a \'sslmode=x\\' sslmode = prefer").expect("a list");
        let expected = (r"password='a \'sslmode=x\\' ".to_owned(), vec![("sslmode".into(), "prefer".into())]);
        assert_eq!(escaped, expected);
    }

    #[test]
    fn errors_name_the_parameter_but_not_the_secrets() {
        for (address, text) in [
            ("postgres://u:canary@h/d?sslmode=verify", "`sslmode` must be disable, "),
            ("postgres://u:canary@h/d?sslmode=verify-full", "needs `sslrootcert`"),
            ("postgres://u:canary@h/d?sslmode=require&sslrootcert=system", "needs `sslmode=verify-full`"),
            ("postgres://u:canary@h/d?sslcert=a", "`sslcert` and `sslkey` must be set together"),
            ("postgres://u:canary@h/d?sslcrl=a", "`sslcrl` is not supported"),
            ("postgres://u:canary@h/d?canary=a", "is not a PostgreSQL address"),
            ("host=h password='canary", "is not a PostgreSQL address"),
            ("host=h password=a canary", "is not a PostgreSQL address"),
        ] {
            let reason = rejected(address);
            assert!(reason.contains(text) && !reason.contains("canary"), "{address}: {reason}");
        }
    }

    #[test]
    #[cfg(not(feature = "tls"))]
    fn required_tls_is_rejected_by_a_build_without_it() {
        for mode in ["require", "verify-ca&sslrootcert=a", "verify-full&sslrootcert=system"] {
            let reason = rejected(&format!("postgres://h/d?sslmode={mode}"));
            assert!(reason.contains("--features tls"), "{reason}");
        }
    }

    #[test]
    #[cfg(feature = "tls")]
    fn modes_match_libpq() {
        let mode = |parameters: &str| {
            Target::parse(&format!("postgres://h/d?{parameters}")).expect(parameters).tls.mode
        };
        assert_eq!(mode(""), Mode::Prefer);
        assert_eq!(mode("sslmode=allow"), Mode::Prefer);
        assert_eq!(mode("sslmode=require"), Mode::Require);
        assert_eq!(mode("sslmode=require&sslrootcert=a"), Mode::VerifyCa);
        assert_eq!(mode("sslrootcert=system"), Mode::VerifyFull);
    }
}
