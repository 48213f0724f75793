//! Where a PostgreSQL server is, and how to be sure that it is the one: a `postgres://` address or a list of
//! `key=value`, with the parameters for TLS that libpq has and tokio-postgres does not know.

use std::net::IpAddr;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls};

use super::connect_error::ConnectError;
use crate::Misconfigured;

/// How long connecting may take unless the address has a `connect_timeout`. A server may accept a connection and then
/// say nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is demanded of a connection: `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it; the server may be anybody.
    #[default]
    Prefer,
    /// TLS; with `sslrootcert`, the same as [`VerifyCa`](Mode::VerifyCa).
    Require,
    /// TLS with a server whose certificate is signed by a CA of `sslrootcert`.
    VerifyCa,
    /// The same, for the name by which it is connected to.
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

/// How TLS is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tls {
    pub mode: Mode,
    /// `sslrootcert`: a file, or `system` for the CAs that the system trusts.
    pub root: Option<String>,
    /// `sslcert` and `sslkey`: files.
    pub certificate: Option<(String, String)>,
}

/// Where to connect to, as what, and how.
#[derive(Clone)]
pub struct Target {
    config: Config,
    tls: Tls,
}

/// Parameters of libpq that nothing here does anything for.
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
    /// Reads a `postgres://` address, or a list of `key=value`.
    ///
    /// # Errors
    /// If it is neither, or demands TLS of a program that was built without. The reason does not repeat it: it may have
    /// a password.
    pub fn parse(address: &str) -> Result<Target, Misconfigured> {
        let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| address.starts_with(scheme));
        let taken = if is_url { take_from_url(address) } else { take_from_list(address) };
        let Some((rest, parameters)) = taken else { return Err(no_address()) };
        let value =
            |name: &str| parameters.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        if let Some(name) = UNSUPPORTED.iter().find(|name| value(name).is_some()) {
            return Err(Misconfigured(format!("the parameter `{name}` is not supported: leave it out")));
        }
        let mut config: Config = rest.parse().map_err(|_| no_address())?;
        let tls = tls(&value)?;
        config.ssl_mode(match tls.mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer if cfg!(not(feature = "tls")) => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        Ok(Target { config, tls })
    }

    /// What tokio-postgres is given.
    pub fn config(&mut self) -> &mut Config {
        &mut self.config
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or("of the user's name")
    }

    /// Host and port, or those that are tried in turn.
    pub fn hosts(&self) -> String {
        let ports = self.config.get_ports();
        let hosts = self.config.get_hosts().iter().enumerate().map(|(at, host)| match host {
            Host::Tcp(host) => format!("{host}:{}", ports.get(at).or(ports.first()).unwrap_or(&5432)),
            Host::Unix(path) => path.display().to_string(),
        });
        hosts.collect::<Vec<_>>().join(", ")
    }

    /// Connects, and drives the connection until it is dropped or aborted.
    ///
    /// # Errors
    /// A sentence that names the address and what to check, within 10 s or the address's `connect_timeout`.
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
                // What goes wrong with the connection, its client is told.
                let driver = tokio::spawn(async { drop(connection.await) }).abort_handle();
                self.say_if_plain(&client).await;
                return Ok((client, driver));
            }
            let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
            let driver = tokio::spawn(async { drop(connection.await) }).abort_handle();
            if self.tls.mode == Mode::Prefer && !self.is_local() {
                self.warn_of_plain("this program was built without TLS (`--features tls`)");
            }
            Ok((client, driver))
        });
        connected.await.unwrap_or_else(|_| Err(ConnectError::Slow { hosts: self.hosts(), limit }))
    }

    /// With `sslmode=prefer` a connection may be plain; over a network somebody should know.
    #[cfg(feature = "tls")]
    async fn say_if_plain(&self, client: &Client) {
        if self.tls.mode == Mode::Prefer && !self.is_local() {
            let facts = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            if client.query_one(facts, &[]).await.is_ok_and(|row| row.get(0)) {
                return;
            }
            self.warn_of_plain("the server does not offer TLS");
        }
    }

    fn warn_of_plain(&self, because: &str) {
        tracing::warn!(
            hosts = self.hosts(),
            "the connection to PostgreSQL is not encrypted: {because}; `sslmode=require` or `verify-full` demands \
             TLS, `sslmode=disable` does without this warning"
        );
    }

    /// Whether no network lies between.
    fn is_local(&self) -> bool {
        self.config.get_hosts().iter().all(|host| match host {
            Host::Tcp(host) => {
                host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
            }
            Host::Unix(_) => true,
        })
    }
}

fn no_address() -> Misconfigured {
    Misconfigured("the url is no PostgreSQL address such as `postgres://user@host:5432/database`".to_owned())
}

/// How the parameters have TLS used.
fn tls(value: &impl Fn(&str) -> Option<String>) -> Result<Tls, Misconfigured> {
    let wrong = |reason: &str| Err(Misconfigured(reason.to_owned()));
    let root = value("sslrootcert");
    let system = root.as_deref() == Some("system");
    let mode = match value("sslmode") {
        None if system => Mode::VerifyFull,
        None => Mode::Prefer,
        Some(word) => match MODES.iter().find(|(name, _)| *name == word) {
            Some(&(_, mode)) => mode,
            None => return wrong("`sslmode` is disable, allow, prefer, require, verify-ca or verify-full"),
        },
    };
    if system && mode < Mode::VerifyFull {
        return wrong(
            "`sslrootcert=system` needs `sslmode=verify-full`: anybody can have a certificate of such a CA",
        );
    }
    let mode = if mode == Mode::Require && root.is_some() { Mode::VerifyCa } else { mode };
    if mode >= Mode::VerifyCa && root.is_none() {
        return wrong("this `sslmode` needs `sslrootcert`: the file of the CA's certificates, or `system`");
    }
    let certificate = match (value("sslcert"), value("sslkey")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return wrong("`sslcert` and `sslkey` are given together"),
    };
    if mode >= Mode::Require && cfg!(not(feature = "tls")) {
        return wrong(
            "this `sslmode` demands TLS, and this program was built without it: build it with \
             `cargo build --release --features tls`",
        );
    }
    Ok(Tls { mode, root, certificate })
}

/// Names and values.
type Parameters = Vec<(String, String)>;

/// Whether a parameter is not for tokio-postgres.
fn is_ours(name: &str) -> bool {
    ["sslmode", "sslrootcert", "sslcert", "sslkey"].contains(&name) || UNSUPPORTED.contains(&name)
}

/// Takes our parameters out of a URL.
fn take_from_url(url: &str) -> Option<(String, Parameters)> {
    // A password may have a question mark in it.
    let authority = url.find('@').unwrap_or(0);
    let Some(at) = url[authority..].find('?').map(|at| authority + at) else {
        return Some((url.to_owned(), Vec::new()));
    };
    let (mut kept, mut taken) = (Vec::new(), Vec::new());
    for pair in url[at + 1..].split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        match is_ours(name) {
            true => taken.push((name.to_owned(), percent_decoded(value)?)),
            false => kept.push(pair),
        }
    }
    let joint = if kept.is_empty() { "" } else { "?" };
    Some((format!("{}{joint}{}", &url[..at], kept.join("&")), taken))
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

/// Takes our parameters out of a list of `key=value`, whose values may be in single quotes, with backslashes.
fn take_from_list(list: &str) -> Option<(String, Parameters)> {
    let (mut kept, mut taken) = (String::new(), Vec::new());
    let mut rest = list.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = list_value(after.trim_start())?;
        let name = name.trim_end();
        if is_ours(name) {
            taken.push((name.to_owned(), value));
        } else {
            kept += &rest[..rest.len() - after.len()];
            kept.push(' ');
        }
        rest = after.trim_start();
    }
    Some((kept, taken))
}

/// A value, and what comes after it.
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
    fn parameters_for_tls_are_taken_out_of_urls_and_lists() {
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
        let escaped = take_from_list(r"password='a \'sslmode=x\\' sslmode = prefer").expect("a list");
        let expected = (r"password='a \'sslmode=x\\' ".to_owned(), vec![("sslmode".into(), "prefer".into())]);
        assert_eq!(escaped, expected);
    }

    #[test]
    fn what_cannot_be_used_is_named_and_secrets_are_not() {
        for (address, words) in [
            ("postgres://u:canary@h/d?sslmode=verify", "`sslmode` is disable, "),
            ("postgres://u:canary@h/d?sslmode=verify-full", "needs `sslrootcert`"),
            ("postgres://u:canary@h/d?sslmode=require&sslrootcert=system", "needs `sslmode=verify-full`"),
            ("postgres://u:canary@h/d?sslcert=a", "`sslcert` and `sslkey` are given together"),
            ("postgres://u:canary@h/d?sslcrl=a", "`sslcrl` is not supported"),
            ("postgres://u:canary@h/d?canary=a", "is no PostgreSQL address"),
            ("host=h password='canary", "is no PostgreSQL address"),
            ("host=h password=a canary", "is no PostgreSQL address"),
        ] {
            let reason = rejected(address);
            assert!(reason.contains(words) && !reason.contains("canary"), "{address}: {reason}");
        }
    }

    #[test]
    #[cfg(not(feature = "tls"))]
    fn tls_is_demanded_in_vain_of_a_program_without_it() {
        for mode in ["require", "verify-ca&sslrootcert=a", "verify-full&sslrootcert=system"] {
            let reason = rejected(&format!("postgres://h/d?sslmode={mode}"));
            assert!(reason.contains("--features tls"), "{reason}");
        }
    }

    #[test]
    #[cfg(feature = "tls")]
    fn modes_are_those_of_libpq() {
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
