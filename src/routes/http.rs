//! Requests to receivers: one connection for each, to an address that was checked, without redirects.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::address::is_private;

/// The address of a receiver. Its path may be secret, so that only the host is displayed.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    uri: Uri,
    host: String,
    port: u16,
    is_tls: bool,
}

/// The limits of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// True if the receiver may be on this machine or in a private network.
    pub allow_private: bool,
    /// The longest time to look up the host and connect.
    pub connect_timeout: Duration,
    /// The longest time of a whole request.
    pub timeout: Duration,
}

/// The reason why a request did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostError {
    /// A later try may succeed, not before the wait that the receiver asks for, in milliseconds.
    Failed(String, Option<i64>),
    /// The receiver does not accept this request, now or later.
    Rejected(String),
}

impl Endpoint {
    /// Parses a URL. The error does not repeat it.
    ///
    /// # Errors
    /// If it is not an `http` or `https` URL with a host, or `https` in a build without TLS.
    pub fn parse(url: &str) -> Result<Endpoint, String> {
        let expected = || "expected a URL such as \"https://example.com/hook\"".to_owned();
        let uri: Uri = url.parse().map_err(|_| expected())?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(expected()),
        };
        if is_tls && cfg!(not(feature = "tls")) {
            return Err(
                "this build has no TLS, which https needs: build with `--features tls`, as the image is, or use http"
                    .to_owned(),
            );
        }
        let authority = uri.authority().ok_or_else(expected)?;
        if authority.as_str().contains('@') {
            return Err("the URL contains a user: set `headers.authorization` instead".to_owned());
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(expected());
        }
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Endpoint { uri, host, port, is_tls })
    }

    /// Returns the endpoint with this path, if it has none.
    #[must_use]
    pub fn with_default_path(self, path: &'static str) -> Endpoint {
        if self.uri.path() != "/" || self.uri.query().is_some() {
            return self;
        }
        let mut parts = self.uri.clone().into_parts();
        parts.path_and_query = Some(hyper::http::uri::PathAndQuery::from_static(path));
        let uri = Uri::from_parts(parts).expect("only the path has changed");
        Endpoint { uri, ..self }
    }

    /// Returns the address if the host is one.
    pub fn literal(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.uri.authority().map_or("", |authority| authority.as_str()))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}/***")
    }
}

/// The client of all routes, and of the exporter of traces.
#[derive(Clone)]
pub struct Client {
    #[cfg(feature = "tls")]
    tls: tokio_rustls::TlsConnector,
}

/// The most bytes of a response that are read.
const MOST_BYTES: usize = 16 << 10;

impl Client {
    /// Creates a client that trusts the system's certificate authorities.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    #[cfg(feature = "tls")]
    pub fn new() -> Result<Client, String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Client { tls: std::sync::Arc::new(config).into() })
    }

    /// Creates a client without TLS.
    ///
    /// # Errors
    /// None: the signature is that of the client with TLS.
    #[cfg(not(feature = "tls"))]
    pub fn new() -> Result<Client, String> {
        Ok(Client {})
    }

    /// Sends a request and waits for the response.
    ///
    /// # Errors
    /// If there is none within the time limit, or it does not report success.
    pub async fn post(
        &self,
        endpoint: &Endpoint,
        options: HttpOptions,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(), PostError> {
        let failed = |reason: String| PostError::Failed(reason, None);
        let whole = async {
            let stream = timeout(options.connect_timeout, connect(endpoint, options.allow_private))
                .await
                .unwrap_or_else(|_| Err(format!("no connection within {:?}", options.connect_timeout)))
                .map_err(failed)?;
            self.exchange(endpoint, stream, headers, body).await
        };
        let late = || Err(failed(format!("no response within {:?}", options.timeout)));
        timeout(options.timeout, whole).await.unwrap_or_else(|_| late())
    }

    /// Connects to a receiver and sends nothing. Returns what was found.
    ///
    /// # Errors
    /// If it cannot be reached, or its certificate is not trusted.
    pub async fn probe(&self, endpoint: &Endpoint, options: HttpOptions) -> Result<String, String> {
        let whole = async {
            let stream = connect(endpoint, options.allow_private).await?;
            #[cfg(feature = "tls")]
            if endpoint.is_tls {
                self.encrypt(endpoint, stream).await?;
                return Ok("reachable, with a trusted certificate".to_owned());
            }
            drop(stream);
            Ok("reachable, not encrypted".to_owned())
        };
        let late = || Err(format!("no connection within {:?}", options.connect_timeout));
        timeout(options.connect_timeout, whole).await.unwrap_or_else(|_| late())
    }

    #[cfg(feature = "tls")]
    async fn encrypt(
        &self,
        endpoint: &Endpoint,
        stream: TcpStream,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
        let name = rustls::pki_types::ServerName::try_from(endpoint.host.clone());
        let name = name.map_err(|error| format!("TLS: {error}"))?;
        self.tls.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))
    }

    async fn exchange(
        &self,
        endpoint: &Endpoint,
        stream: TcpStream,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(), PostError> {
        #[cfg(feature = "tls")]
        if endpoint.is_tls {
            let stream = self.encrypt(endpoint, stream).await;
            let stream = stream.map_err(|error| PostError::Failed(error, None))?;
            return request(endpoint, stream, headers, body).await;
        }
        request(endpoint, stream, headers, body).await
    }
}

/// Looks up the host and connects to one of its addresses. The address that is checked is the one that is connected to,
/// so that a name which resolves differently the next time gains nothing.
async fn connect(endpoint: &Endpoint, allow_private: bool) -> Result<TcpStream, String> {
    let Endpoint { host, port, .. } = endpoint;
    let found: Vec<SocketAddr> = match endpoint.literal() {
        Some(address) => vec![(address, *port).into()],
        None => {
            let found = tokio::net::lookup_host((host.as_str(), *port)).await;
            found.map_err(|error| format!("cannot look up {host}: {error}"))?.collect()
        }
    };
    let mut last = format!("{host} has no address");
    for address in found {
        if !allow_private && is_private(address.ip()) {
            last = format!(
                "{host} is {}, an address of this machine or a private network: `allow_private = true` permits the \
                 route to reach it",
                address.ip()
            );
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("cannot connect to {address}: {error}"),
        }
    }
    Err(last)
}

/// Sends the request on a connection that is closed afterwards.
async fn request(
    endpoint: &Endpoint,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(), PostError> {
    let failed = |error: hyper::Error| PostError::Failed(describe(&error), None);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let driver = Driver(tokio::spawn(connection));
    let mut request = Request::post(endpoint.uri.path_and_query().map_or("/", |path| path.as_str()))
        .body(Full::new(body))
        .map_err(|error| PostError::Rejected(format!("the request is not valid: {error}")))?;
    *request.headers_mut() = headers;
    let authority = endpoint.uri.authority().map_or("", |authority| authority.as_str());
    let host = HeaderValue::from_str(authority).map_err(|error| PostError::Rejected(error.to_string()))?;
    request.headers_mut().insert(HOST, host);
    let response = sender.send_request(request).await.map_err(failed)?;
    let outcome = judge(response).await;
    drop(driver);
    outcome
}

/// The task that drives a connection. It ends when this is dropped, also when a request runs out of time.
struct Driver(tokio::task::JoinHandle<hyper::Result<()>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The longest wait that a receiver can ask for, in milliseconds.
const LONGEST_RETRY_AFTER_MS: i64 = 3_600_000;

async fn judge<B>(response: Response<B>) -> Result<(), PostError>
where
    B: hyper::body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (status, headers) = (response.status(), response.headers().clone());
    if status.is_success() {
        return Ok(());
    }
    let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
    let said = if text.trim().is_empty() { String::new() } else { format!(": {:?}", text.trim()) };
    let reason = format!("the receiver answered {status}{said}");
    if status.is_redirection() {
        return Err(PostError::Failed(format!("{reason}; redirects are not followed"), None));
    }
    // The same request will be rejected again. Other errors, such as a secret that has changed, can be repaired.
    if matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY
    ) {
        return Err(PostError::Rejected(reason));
    }
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse::<i64>().ok());
    let wait_ms = seconds
        .filter(|&seconds| seconds >= 0)
        .map(|seconds| seconds.saturating_mul(1000).min(LONGEST_RETRY_AFTER_MS));
    Err(PostError::Failed(reason, wait_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_of_an_endpoint_is_displayed() {
        let endpoint = Endpoint::parse("http://hooks.example.com:8080/T0/B0/secret?token=x").expect("valid");
        assert_eq!(endpoint.to_string(), "http://hooks.example.com:8080");
        assert_eq!(format!("{endpoint:?}"), "http://hooks.example.com:8080/***");
        for wrong in ["", "hooks.example.com", "ftp://a/b", "http:///x", "http://u:secret@a/"] {
            let message = Endpoint::parse(wrong).expect_err(wrong);
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn an_endpoint_without_a_path_gets_the_default() {
        let path = |url| {
            let endpoint = Endpoint::parse(url).expect("valid").with_default_path("/api/v2/alerts");
            endpoint.uri.path().to_owned()
        };
        assert_eq!(path("http://alertmanager:9093"), "/api/v2/alerts");
        assert_eq!(path("http://alertmanager:9093/"), "/api/v2/alerts");
        assert_eq!(path("http://proxy/am/api/v2/alerts"), "/am/api/v2/alerts");
        let loopback = Endpoint::parse("http://[::1]:80/x").expect("valid");
        assert_eq!(loopback.literal(), Some("::1".parse().expect("an address")));
    }

    #[test]
    fn a_private_address_is_not_connected_to() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
            let endpoint = Endpoint::parse(&format!("http://{host}:{port}/")).expect("valid");
            let message = runtime.block_on(connect(&endpoint, false)).expect_err(host);
            assert!(message.contains("`allow_private = true`"), "{message}");
        }
        let endpoint = Endpoint::parse(&format!("http://127.0.0.1:{port}/")).expect("valid");
        assert!(runtime.block_on(connect(&endpoint, true)).is_ok());
    }
}
