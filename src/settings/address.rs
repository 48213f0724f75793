//! Addresses of servers: redaction of secrets, and insertion of a password.
//!
//! A setting is displayed only if an allowlist names it, and only if its value has no unusual character. An ambiguous
//! address is refused, because a part of a password could be parsed as a host.

use headwater_sinks::{Misconfigured, Secret, postgres};

/// The kind of server that an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Postgres,
    Redis,
}

/// The settings of PostgreSQL and Redis whose values are not secret.
const PUBLIC_SETTINGS: &[&str] = &[
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "db",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "port",
    "protocol",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

const HIDDEN: &str = "***";

impl Server {
    fn schemes(self) -> &'static [&'static str] {
        match self {
            Server::Postgres => &["postgres://", "postgresql://"],
            Server::Redis => {
                &["redis://", "rediss://", "valkey://", "valkeys://", "redis+unix://", "unix://"]
            }
        }
    }

    /// Splits a URL after its scheme; None if the address is not a URL.
    fn split(self, address: &str) -> Option<(&'static str, &str)> {
        let scheme = self.schemes().iter().find(|scheme| address.starts_with(**scheme))?;
        Some((scheme, &address[scheme.len()..]))
    }

    /// Returns the address without its secrets.
    ///
    /// # Errors
    /// If the address is invalid. The message contains no part of it.
    pub fn redacted(self, address: &str) -> Result<String, String> {
        match (self.split(address), self) {
            (Some((scheme, rest)), _) => Ok(format!("{scheme}{}", Url::parse(self, rest)?.redacted(self))),
            (None, Server::Postgres) => redacted_settings(address),
            (None, Server::Redis) => Err("expected an address such as \"redis://127.0.0.1:6379/0\"".into()),
        }
    }

    /// Checks that this program can use the address.
    ///
    /// # Errors
    /// If it cannot: the reason, without any part of the address that may be secret.
    pub fn check(self, address: &Secret) -> Result<(), Misconfigured> {
        match self {
            Server::Postgres => postgres::Target::parse(address.expose()).map(drop),
            // The reader of `[state]` checks it together with the other keys of its section.
            Server::Redis => Ok(()),
        }
    }

    /// Returns the address with the password inserted.
    ///
    /// # Errors
    /// If the address already has a password, or is invalid.
    pub fn with_password(self, address: &Secret, password: &Secret) -> Result<Secret, String> {
        let has_password = || "the address already has a password: remove it, or `password_file`".to_owned();
        let address = address.expose();
        let Some((scheme, rest)) = self.split(address) else {
            let settings = settings(address).ok_or_else(invalid_settings)?;
            if settings.iter().any(|(key, _)| key == "password") {
                return Err(has_password());
            }
            let escaped = password.expose().replace('\\', r"\\").replace('\'', r"\'");
            return Ok(format!("{address} password='{escaped}'").into());
        };
        let url = Url::parse(self, rest)?;
        let names = ["password", "pass"];
        if url.credentials.is_some_and(|credentials| credentials.contains(':'))
            || url.parameters().any(|(key, _)| names.contains(&key))
        {
            return Err(has_password());
        }
        let encoded = percent_encoded(password.expose());
        let joint = if url.query.is_some() { '&' } else { '?' };
        Ok(match (self, scheme) {
            (Server::Postgres, _) => format!("{address}{joint}password={encoded}"),
            (Server::Redis, "unix://" | "redis+unix://") => format!("{address}{joint}pass={encoded}"),
            (Server::Redis, _) => {
                let (user, place) = rest.split_once('@').unwrap_or(("", rest));
                format!("{scheme}{user}:{encoded}@{place}")
            }
        }
        .into())
    }
}

/// The parts of a URL after its scheme.
struct Url<'a> {
    /// The user, and the password after a colon.
    credentials: Option<&'a str>,
    hosts: &'a str,
    /// The path, with the slash at its beginning.
    path: &'a str,
    query: Option<&'a str>,
}

impl<'a> Url<'a> {
    fn parse(server: Server, rest: &'a str) -> Result<Url<'a>, String> {
        let encode = |what: &str| Err(format!("{what} in a user or password must be percent-encoded"));
        let (credentials, place) = match rest.split_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, rest),
        };
        if place.contains('@') {
            return encode("`@` (as %40)");
        }
        if credentials.is_some_and(|credentials| credentials.contains('?')) {
            return encode("`?` (as %3F), and `@` after it (as %40),");
        }
        if server == Server::Redis && credentials.is_some_and(|credentials| credentials.contains(['/', '#']))
        {
            return encode("`/` (as %2F) or `#` (as %23)");
        }
        let place = match (server, place.split_once('#')) {
            (Server::Redis, Some((place, _))) => place,
            _ => place,
        };
        let (place, query) = match place.split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (place, None),
        };
        let (hosts, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        if !hosts.split(',').all(is_host) {
            return Err(
                "expected host:port after `@` or `//`: a user and password must be followed by `@`".into()
            );
        }
        Ok(Url { credentials, hosts, path, query })
    }

    fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.query
            .into_iter()
            .flat_map(|query| query.split('&'))
            .map(|parameter| parameter.split_once('=').unwrap_or(("", parameter)))
    }

    fn redacted(&self, server: Server) -> String {
        let mut redacted =
            match self.credentials.map(|credentials| (credentials, credentials.split_once(':'))) {
                None => String::new(),
                Some((_, Some(("", _)))) => format!(":{HIDDEN}@"),
                Some((_, Some((user, _)))) => format!("{}:{HIDDEN}@", visible(user)),
                Some((user, None)) if server == Server::Postgres => format!("{}@", visible(user)),
                // Some clients interpret a single name as the password.
                Some((_, None)) => format!("{HIDDEN}@"),
            };
        redacted.push_str(self.hosts);
        redacted.push_str(if self.path.is_empty() { "" } else { visible(self.path) });
        for (at, (key, value)) in self.parameters().enumerate() {
            redacted.push(if at == 0 { '?' } else { '&' });
            redacted.push_str(&redacted_setting(key, value));
        }
        redacted
    }
}

/// Returns true for `name`, `name:port`, `1.2.3.4`, `[::1]:port`, and the percent-encoded path of a socket.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.rfind(']') {
        Some(end) => text.split_at(end + 1),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_port = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    let name = match name.strip_prefix('[') {
        Some(address) => address.strip_suffix(']').unwrap_or("?"),
        None => name,
    };
    is_port && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_%:".contains(&byte))
}

/// Returns the text if it looks like a name or a path, and otherwise a placeholder.
fn visible(text: &str) -> &str {
    let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || b"_.,:/%-".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_usual) { text } else { HIDDEN }
}

fn redacted_setting(key: &str, value: &str) -> String {
    match PUBLIC_SETTINGS.contains(&key) {
        true => format!("{key}={}", visible(value)),
        false if key == "password" => format!("{key}={HIDDEN}"),
        // This may be a part of a password that was not quoted, or a misspelt setting.
        false => HIDDEN.to_owned(),
    }
}

fn redacted_settings(address: &str) -> Result<String, String> {
    let settings = settings(address).ok_or_else(invalid_settings)?;
    let redacted: Vec<_> = settings.iter().map(|(key, value)| redacted_setting(key, value)).collect();
    Ok(redacted.join(" "))
}

fn invalid_settings() -> String {
    "expected an address such as \"postgres://user@host/database\", or settings such as \"host=127.0.0.1 user=me\"".into()
}

/// Parses `key=value` settings, with the quotes and escapes of libpq. Returns None if the text is not a list of
/// settings.
fn settings(text: &str) -> Option<Vec<(String, String)>> {
    let mut settings = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        rest = after.trim_start();
        let quoted = rest.starts_with('\'');
        let mut value = String::new();
        let mut chars = rest.char_indices().skip(usize::from(quoted));
        let end = loop {
            match chars.next() {
                Some((_, '\\')) => value.push(chars.next()?.1),
                Some((at, '\'')) if quoted => break at + 1,
                Some((at, c)) if !quoted && c.is_whitespace() => break at,
                Some((_, c)) => value.push(c),
                None if quoted => return None,
                None => break rest.len(),
            }
        };
        settings.push((key.to_owned(), value));
        rest = rest[end..].trim_start();
    }
    (!settings.is_empty()).then_some(settings)
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_an_address_are_redacted() {
        for (address, redacted) in [
            ("postgres://me:s3cret@host:1/db?sslmode=prefer", "postgres://me:***@host:1/db?sslmode=prefer"),
            ("postgres://me@a:1,b:2/db", "postgres://me@a:1,b:2/db"),
            ("postgresql://me:hun/ter2@[::1]:5/db", "postgresql://me:***@[::1]:5/db"),
            ("postgres://h/x?user=me&password=hunter2", "postgres://h/x?user=me&password=***"),
            ("postgres://h/x?pasword=hunter2", "postgres://h/x?***"),
            ("postgres://h/x?password=hun&ter2", "postgres://h/x?password=***&***"),
            (
                "host=h port=1 user=me password=hunter2 dbname=x",
                "host=h port=1 user=me password=*** dbname=x",
            ),
            (r"host = 'h' password = 'hun \'ter2 host=x'", "host=h password=***"),
            ("pasword=hunter2 host=h", "*** host=h"),
        ] {
            assert_eq!(Server::Postgres.redacted(address).as_deref(), Ok(redacted), "{address}");
        }
        for (address, redacted) in [
            ("redis://127.0.0.1/0?password=hunter2", "redis://127.0.0.1/0?password=***"),
            ("rediss://:hunter2@h:6379/0#insecure", "rediss://:***@h:6379/0"),
            ("redis://hunter2@h", "redis://***@h"),
            ("unix:///run/redis.sock?db=1&pass=hunter2", "unix:///run/redis.sock?db=1&***"),
        ] {
            assert_eq!(Server::Redis.redacted(address).as_deref(), Ok(redacted), "{address}");
        }
    }

    #[test]
    fn errors_about_ambiguous_addresses_do_not_repeat_them() {
        for (server, address) in [
            (Server::Postgres, "postgres://me:hun@ter2@h/x"),
            (Server::Postgres, "postgres://me:hun?ter2@h/x"),
            (Server::Postgres, "postgres://h:1/x?password=hun@ter2"),
            (Server::Postgres, "postgres://me:hunter2/x"),
            (Server::Postgres, "me:hunter2@h/x"),
            (Server::Postgres, "host=h password='hunter2"),
            (Server::Postgres, "password=hun ter2"),
            (Server::Redis, "redis://:hun/ter2@h"),
            (Server::Redis, "hunter2@h:6379"),
        ] {
            let error = server.redacted(address).expect_err(address);
            assert!(!error.contains("hun") && !error.contains("ter2"), "{error}");
        }
    }

    #[test]
    fn a_password_is_inserted_into_every_form_of_address() {
        let password = "a b'\\@%/".into();
        for address in ["postgres://me@h/x", "postgres://h/x?user=me", "host=h user=me dbname=x"] {
            let whole = Server::Postgres.with_password(&address.into(), &password).expect(address);
            let config: tokio_postgres::Config = whole.expose().parse().expect("an address");
            assert_eq!(config.get_password(), Some(&b"a b'\\@%/"[..]), "{address}");
            assert_eq!((config.get_user(), config.get_dbname()), (Some("me"), Some("x")), "{address}");
        }
        for address in ["redis://h/3", "redis://me@h/3", "unix:///run/redis.sock?db=3"] {
            let whole = Server::Redis.with_password(&address.into(), &password).expect(address);
            let info = redis::IntoConnectionInfo::into_connection_info(whole.expose()).expect("an address");
            assert_eq!(info.redis_settings().password(), Some("a b'\\@%/"), "{address}");
        }
        for address in ["postgres://me:x@h/x", "postgres://h/x?password=x", "password=x"] {
            assert!(Server::Postgres.with_password(&address.into(), &password).is_err(), "{address}");
        }
    }
}
