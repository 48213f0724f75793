//! An HTTP client: one connection for each request, to an address that was checked, without redirects.
//!
//! ```text
//!   Endpoint ─▶ look up, connect ─▶ TLS, verified ─▶ request ─▶ response, to a function that reads what it needs
//!   └───── connect_timeout ──────┘                                     │
//!   └───────────────────────────── timeout ────────────────────────────┘
//! ```

mod address;
#[cfg(feature = "object-store")]
pub mod pooled;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use address::is_private;

/// The address of a server and a path. The path may be secret, so that only the host is displayed.
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
    /// True if the server may be on this machine or in a private network.
    pub allow_private: bool,
    /// The longest time to look up the host and connect.
    pub connect_timeout: Duration,
    /// The longest time of a whole request.
    pub timeout: Duration,
}

/// The reason why there is no response.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SendError {
    /// The server did not accept the connection or respond in time.
    #[error("{0}")]
    TimedOut(String),
    /// The server cannot be reached, its certificate is not trusted, or the connection failed.
    #[error("{0}")]
    Failed(String),
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

    /// Returns a request to this endpoint.
    ///
    /// # Errors
    /// If its host or its path cannot be sent.
    pub fn request(
        &self,
        method: Method,
        headers: HeaderMap,
        body: impl Into<Bytes>,
    ) -> Result<Request<Full<Bytes>>, String> {
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::builder().method(method).uri(path).body(Full::new(body.into()));
        let mut request = request.map_err(|error| format!("the request is not valid: {error}"))?;
        *request.headers_mut() = headers;
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        let host = HeaderValue::from_str(authority).map_err(|error| error.to_string())?;
        request.headers_mut().insert(HOST, host);
        Ok(request)
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

/// A client, which verifies the certificates of servers.
#[derive(Clone)]
pub struct Client {
    #[cfg(feature = "tls")]
    tls: tokio_rustls::TlsConnector,
}

impl Client {
    /// Creates a client that trusts the system's certificate authorities.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    #[cfg(feature = "tls")]
    pub fn new() -> Result<Client, String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Client::with_roots(roots)
    }

    /// Creates a client that trusts the certificate authorities in a PEM file, and no others.
    ///
    /// # Errors
    /// If the file cannot be read or has no certificate, or TLS cannot be set up; the error names the file.
    #[cfg(feature = "tls")]
    pub fn with_authorities(file: &std::path::Path) -> Result<Client, String> {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;
        let invalid = |error: &dyn fmt::Display| format!("{}: {error}", file.display());
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| invalid(&error))? {
            let certificate = certificate.map_err(|error| invalid(&error))?;
            roots.add(certificate).map_err(|error| invalid(&error))?;
        }
        if roots.is_empty() {
            return Err(invalid(&"the file has no certificate in PEM"));
        }
        Client::with_roots(roots)
    }

    #[cfg(feature = "tls")]
    fn with_roots(roots: rustls::RootCertStore) -> Result<Client, String> {
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

    /// Refuses, since the program was built without TLS.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "tls"))]
    pub fn with_authorities(file: &std::path::Path) -> Result<Client, String> {
        Err(format!("{}: this program was built without TLS: build it with `--features tls`", file.display()))
    }

    /// Sends a request. Returns what `read` makes of the response, whatever its status.
    ///
    /// # Errors
    /// If there is no response, or it is not read, within the time limit.
    pub async fn send<T, F: Future<Output = T>>(
        &self,
        endpoint: &Endpoint,
        options: HttpOptions,
        request: Request<Full<Bytes>>,
        read: impl FnOnce(Response<Incoming>) -> F,
    ) -> Result<T, SendError> {
        let whole = async {
            let connecting = timeout(options.connect_timeout, connect(endpoint, options.allow_private));
            let late = |_| SendError::TimedOut(format!("no connection within {:?}", options.connect_timeout));
            let stream = connecting.await.map_err(late)?.map_err(SendError::Failed)?;
            #[cfg(feature = "tls")]
            if endpoint.is_tls {
                let stream = self.encrypt(endpoint, stream).await.map_err(SendError::Failed)?;
                return exchange(stream, request, read).await;
            }
            exchange(stream, request, read).await
        };
        let late = |_| SendError::TimedOut(format!("no response within {:?}", options.timeout));
        timeout(options.timeout, whole).await.map_err(late)?
    }

    /// Connects to a server and sends nothing. Returns what was found.
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
                "{host} is {}, an address of this machine or a private network: `allow_private = true` permits it",
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
async fn exchange<T, F: Future<Output = T>>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
    read: impl FnOnce(Response<Incoming>) -> F,
) -> Result<T, SendError> {
    let failed = |error: hyper::Error| SendError::Failed(describe(&error));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let _driver = Driver(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(failed)?;
    Ok(read(response).await)
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
