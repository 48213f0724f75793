//! Requests about keys of other processes, forwarded to the process that owns the key.
//!
//! ```text
//!   client ─▶ this process ── not the owner ──▶ GET, the same path, http.token, Headwater-Forwarded ─▶ owner
//!          ◀──────────────── status and body ◀──────────────────────────────────────────────────────────┘
//! ```
//!
//! A forwarded request is never forwarded again, so that no loop is possible. At most [`FORWARDS`] are under way, each for
//! at most [`TIMEOUT`], on the thread of the HTTP server: neither workers nor commits take part.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use hyper::Method;
use hyper::body::{Bytes, Incoming};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::problem::{CONTENT_TYPE, Problem};
use crate::client::{Client, Endpoint, HttpOptions, SendError};
use crate::config::HttpConfig;
use crate::runtime::{Peer, PeerError, Peers};

/// The header of a forwarded request: the index of the process that has forwarded it.
const FORWARDED: HeaderName = HeaderName::from_static("headwater-forwarded");

/// The maximum number of forwarded requests under way.
const FORWARDS: usize = 8;

/// The maximum time to look up the host of another process and connect to it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The maximum time of a forwarded request. It is longer than the owner waits for its worker, so that its answer to a
/// timeout is passed on.
const TIMEOUT: Duration = Duration::from_secs(4);

/// The maximum size of an answer, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// Forwards requests to the other processes of a cluster.
pub struct Forwarder {
    /// The index of this process.
    process: usize,
    peers: Peers,
    client: Client,
    authorization: Option<HeaderValue>,
    requires_tls: bool,
    permits: Semaphore,
}

/// The part of an answer that names the process.
#[derive(Deserialize)]
struct Owner {
    process: usize,
}

/// The part of a problem that says what is wrong.
#[derive(Deserialize)]
struct Refusal {
    detail: String,
}

impl Forwarder {
    /// Creates a forwarder.
    ///
    /// # Errors
    /// If the certificate authorities cannot be read, or the token cannot be sent.
    pub fn new(config: &HttpConfig, process: usize, peers: Peers) -> std::io::Result<Forwarder> {
        let client = match &config.peer_ca_file {
            Some(file) => Client::with_authorities(file),
            None => Client::new(),
        };
        let authorization = config.token.as_ref().map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))?;
            value.set_sensitive(true);
            Ok(value)
        });
        let authorization = authorization.transpose().map_err(|_: header::InvalidHeaderValue| {
            std::io::Error::other(
                "http.token has a character that no request can send: use letters and digits",
            )
        })?;
        Ok(Forwarder {
            process,
            peers,
            client: client.map_err(std::io::Error::other)?,
            authorization,
            requires_tls: config.tls.is_some(),
            permits: Semaphore::new(FORWARDS),
        })
    }

    /// Asks the process that owns a key, and returns its answer. `uri` is that of the request.
    ///
    /// # Errors
    /// If the request was forwarded already, too many are under way, or the owner gives no answer.
    pub async fn forward(&self, owner: usize, uri: &Uri, headers: &HeaderMap) -> Result<Response, Problem> {
        if headers.contains_key(FORWARDED) {
            return Err(Problem::misdirected(format!(
                "the key belongs to process {owner}, and a forwarded request is not forwarded again: ask process {owner}; if \
                 another process has forwarded it here, ask again once all processes are ready"
            )));
        }
        let peer = self.peers.find(owner).map_err(|error| {
            let detail = format!("the key belongs to process {owner}, and {error}");
            match error {
                PeerError::Starting => Problem::unavailable(detail),
                PeerError::NoHttp => Problem::misdirected(detail),
            }
        })?;
        let _permit = self.permits.try_acquire().map_err(|_| {
            Problem::too_many(format!(
                "the key belongs to process {owner}, and {FORWARDS} requests to other processes are under way; ask again later"
            ))
        })?;
        self.ask(owner, &peer, uri).await
    }

    async fn ask(&self, owner: usize, peer: &Peer, uri: &Uri) -> Result<Response, Problem> {
        let url = peer.url();
        let gone =
            |reason: String| Problem::bad_gateway(format!("process {owner} owns the key, but {reason}"));
        if self.requires_tls && !peer.http.has_tls {
            return Err(gone(format!(
                "{url} is not encrypted, so the token is not sent: set http.tls in all processes"
            )));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let endpoint =
            Endpoint::parse(&format!("{url}{path}")).map_err(|error| gone(format!("{url}: {error}")))?;
        let mut headers = HeaderMap::from_iter([(FORWARDED, HeaderValue::from(self.process))]);
        headers.extend(self.authorization.clone().map(|value| (header::AUTHORIZATION, value)));
        let request = endpoint.request(Method::GET, headers, Bytes::new()).map_err(gone)?;
        let options = HttpOptions { allow_private: true, connect_timeout: CONNECT_TIMEOUT, timeout: TIMEOUT };
        let sent = self.client.send(&endpoint, options, request, read).await;
        let (status, body) = sent.map_err(|error| unreachable(owner, peer, &error))?.map_err(gone)?;
        check(owner, &url, status, &body).map_err(gone)?;
        let is_answer = status == StatusCode::OK;
        let kind = if is_answer { "application/json" } else { CONTENT_TYPE };
        Ok((status, [(header::CONTENT_TYPE, kind)], body).into_response())
    }
}

/// Reads the status and body of a response.
async fn read(response: hyper::Response<Incoming>) -> Result<(StatusCode, Bytes), String> {
    let status = response.status();
    match Limited::new(response.into_body(), MAX_BYTES).collect().await {
        Ok(body) => Ok((status, body.to_bytes())),
        Err(error) => Err(format!("its answer cannot be read: {error}")),
    }
}

/// Returns the problem of a process that gives no response.
fn unreachable(owner: usize, peer: &Peer, error: &SendError) -> Problem {
    let url = peer.url();
    match error {
        SendError::TimedOut(reason) => Problem::gateway_timeout(format!(
            "process {owner} owns the key, but does not answer at {url}: {reason}; it may be stopped, overloaded or \
             unreachable: see its log and its /readyz"
        )),
        SendError::Failed(reason) => Problem::bad_gateway(format!(
            "process {owner} owns the key, but cannot be asked at {url}: {reason}; it listens on {}, and the host is that of \
             the host file: see whether it runs, and can be reached from here under that name",
            peer.http.listen
        )),
    }
}

/// Checks that an answer is one of the owner, and may be passed on.
fn check(owner: usize, url: &str, status: StatusCode, body: &[u8]) -> Result<(), String> {
    if status == StatusCode::OK {
        return match serde_json::from_slice(body) {
            Ok(Owner { process }) if process == owner => Ok(()),
            Ok(Owner { process }) => Err(format!(
                "process {process} answers at {url}: give the host file and the ports of http.listen in the same order"
            )),
            Err(_) => Err(format!("what answers at {url} is not a process of this version of Headwater")),
        };
    }
    let refusal = serde_json::from_slice(body);
    match (status, refusal) {
        (
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE,
            Ok(Refusal { .. }),
        ) => Ok(()),
        (StatusCode::UNAUTHORIZED, _) => Err(format!(
            "{url} does not accept the token of this process: set the same http.token_file in all processes"
        )),
        (_, Ok(Refusal { detail })) => Err(format!("{url} answers {status}: {detail}")),
        (_, Err(_)) => Err(format!("{url} answers {status}: see its log")),
    }
}

#[cfg(test)]
mod tests;
