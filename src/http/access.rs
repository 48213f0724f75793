//! Access to the API: the token, and the name by which a browser may address a server without one.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use headwater_sinks::Secret;
use sha2::{Digest, Sha256};

use super::problem::Problem;

/// The requests that may use the API.
#[derive(Clone)]
pub enum Access {
    /// Requests with this token.
    Token(Secret),
    /// Requests that address this machine by its own name. A page of another site can make a browser send requests to
    /// 127.0.0.1 under its own name (DNS rebinding), and could then read the answers.
    Local,
    /// Everyone.
    Everyone,
}

impl Access {
    /// Checks a request's headers.
    fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        match self {
            Access::Everyone => Ok(()),
            Access::Token(token) => {
                let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
                let sent = sent.and_then(|value| value.split_once(' '));
                let sent = sent.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
                // The time of comparing hashes says nothing about the token.
                let is_ours = |sent: &str| Sha256::digest(sent.trim()) == Sha256::digest(token.expose());
                if sent.is_some_and(|(_, sent)| is_ours(sent)) {
                    Ok(())
                } else {
                    Err(Problem::unauthorized())
                }
            }
            Access::Local => {
                let host =
                    headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
                if is_local_name(host) {
                    return Ok(());
                }
                Err(Problem::forbidden(format!(
                    "without a token, the server answers under the names localhost and 127.0.0.1 only, not {host:?}: set \
                     http.token_file, or http.insecure = true"
                )))
            }
        }
    }
}

/// Returns true if a host with an optional port is `localhost` or an IP address, which no site owns.
fn is_local_name(host: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) && (!name.contains(':') || name.ends_with(']')) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok()
}

/// Refuses requests that have no access.
pub async fn check(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    match access.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn allows(access: &Access, name: header::HeaderName, value: &'static str) -> bool {
        let headers = HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
        access.check(&headers).is_ok()
    }

    #[test]
    fn a_token_must_be_sent_as_it_is() {
        let access = Access::Token("correct horse battery".to_owned().into());
        let sends = |value| allows(&access, header::AUTHORIZATION, value);
        assert!(sends("Bearer correct horse battery") && sends("bearer correct horse battery"));
        assert!(!sends("Bearer correct horse") && !sends("Basic correct horse battery") && !sends(""));
        assert!(access.check(&HeaderMap::new()).is_err());
    }

    #[test]
    fn without_a_token_only_local_names_are_answered() {
        let addresses = |host| allows(&Access::Local, header::HOST, host);
        for host in ["localhost", "LOCALHOST:9464", "127.0.0.1:9464", "[::1]:9464", "[::1]", "10.0.0.7:1"] {
            assert!(addresses(host), "{host}");
        }
        for host in
            ["evil.example", "evil.example:9464", "localhost.evil.example", "", "127.0.0.1.evil.example:1"]
        {
            assert!(!addresses(host), "{host}");
        }
    }
}
