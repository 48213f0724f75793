//! The HTTP client of object stores: connections that are kept for later requests, and responses that are read to their end.
//!
//! ```text
//!   request ─▶ kept connection, or: look up, connect, TLS (CONNECT_TIMEOUT) ─▶ response (RESPONSE_TIMEOUT and the upload)
//!                    ▲                                                               │
//!                    └─────────────── read to its end, each piece within READ_TIMEOUT ┘
//! ```
//!
//! Each request is sent once: the caller decides from [`RequestFailure`] whether it sends it again. A response that is not a
//! success is a failure, except that an object does not exist.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Response, StatusCode, Uri};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpService,
};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::{Client, Endpoint, connect};

/// The longest time to look up a host, connect and agree on TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest time from a request to the beginning of its response, beside the time to send the body.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

/// The slowest upload that is waited for, in bytes a second.
const SLOWEST_UPLOAD: u64 = 128 << 10;

/// The longest time without a byte of a response.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// The time for which a connection is kept without a request. Servers close idle ones, some after 5 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The reason why a request has failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RequestFailure {
    /// There is no response, or not all of it.
    #[error("{0}")]
    NoResponse(String),
    /// The request cannot be sent as the settings are.
    #[error("{0}")]
    NotAllowed(String),
    /// The server refused the request, or failed.
    #[error("{server} answers {status}{detail}")]
    Status {
        /// The scheme, host and port of the server.
        server: String,
        /// The status.
        status: StatusCode,
        /// The code and message of the response, after a separator.
        detail: String,
    },
}

impl RequestFailure {
    /// Returns the failure that is the cause of an error.
    pub fn cause_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a RequestFailure> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(failure) = error.downcast_ref::<RequestFailure>() {
                return Some(failure);
            }
            cause = error.source();
        }
        None
    }

    /// Returns true if the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            RequestFailure::NoResponse(_) => true,
            RequestFailure::NotAllowed(_) => false,
            RequestFailure::Status { status, .. } => {
                status.is_server_error()
                    || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(status)
            }
        }
    }

    /// Returns true if the server does not accept the credentials, or they do not permit the request.
    pub fn is_denied(&self) -> bool {
        matches!(
            self,
            RequestFailure::Status { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. }
        )
    }
}

impl From<RequestFailure> for HttpError {
    fn from(failure: RequestFailure) -> HttpError {
        // The kind by which `object_store` does not send the request again.
        HttpError::new(HttpErrorKind::Unknown, failure)
    }
}

/// Creates clients for the requests of object stores.
#[derive(Clone)]
pub struct PooledConnector {
    pool: Pool<Dialer, HttpRequestBody>,
}

impl fmt::Debug for PooledConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PooledConnector")
    }
}

impl PooledConnector {
    /// Creates a connector whose clients share their connections and what `client` trusts.
    pub fn new(client: Client) -> PooledConnector {
        let mut builder = Pool::builder(TokioExecutor::new());
        builder.pool_idle_timeout(IDLE_TIMEOUT);
        PooledConnector { pool: builder.build(Dialer { client }) }
    }
}

impl HttpConnector for PooledConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allow_http = options.get_config_value(&ClientConfigKey::AllowHttp);
        let allow_http = allow_http.as_deref() == Some("true");
        Ok(HttpClient::new(PooledClient { pool: self.pool.clone(), allow_http }))
    }
}

struct PooledClient {
    pool: Pool<Dialer, HttpRequestBody>,
    /// True if requests need not be encrypted.
    allow_http: bool,
}

impl fmt::Debug for PooledClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PooledClient")
    }
}

#[async_trait]
impl HttpService for PooledClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let server = server(request.uri());
        if !self.allow_http && request.uri().scheme_str() != Some("https") {
            let reason = format!(
                "requests to {server} are not encrypted: use https, or set `state.allow_http = true`"
            );
            return Err(RequestFailure::NotAllowed(reason).into());
        }
        let no_response = |reason: String| RequestFailure::NoResponse(format!("{server}: {reason}"));
        let upload = Duration::from_secs(request.body().content_length() as u64 / SLOWEST_UPLOAD);
        let limit = CONNECT_TIMEOUT + RESPONSE_TIMEOUT + upload;
        let late = |_| no_response(format!("no response within {limit:?}"));
        let response = timeout(limit, self.pool.request(request)).await.map_err(late)?;
        // The pool's own words say no more than that there is an error.
        let response = response.map_err(|error| no_response(describe(error.source().unwrap_or(&error))))?;
        let response = read(response).await.map_err(no_response)?;
        judge(server, &response)?;
        let (parts, body) = response.into_parts();
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

/// Returns the scheme, host and port of a URL.
fn server(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    format!("{}://{authority}", uri.scheme_str().unwrap_or_default())
}

/// Reads a response to its end.
async fn read(response: Response<Incoming>) -> Result<Response<Bytes>, String> {
    let (parts, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    loop {
        let late = |_| format!("it sends nothing for {READ_TIMEOUT:?} within a response");
        let Some(frame) = timeout(READ_TIMEOUT, body.frame()).await.map_err(late)? else { break };
        let frame = frame.map_err(|error| describe(&error))?;
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(data);
        }
    }
    Ok(Response::from_parts(parts, bytes.into()))
}

/// Checks that a response is a success, or says that an object does not exist.
fn judge(server: String, response: &Response<Bytes>) -> Result<(), RequestFailure> {
    let status = response.status();
    let text = String::from_utf8_lossy(response.body());
    let code = element(&text, "Code");
    let has_no_bucket = code.is_some_and(|code| ["NoSuchBucket", "ContainerNotFound"].contains(&code));
    if status.is_success() || (status == StatusCode::NOT_FOUND && !has_no_bucket) {
        return Ok(());
    }
    let mut detail = String::new();
    // Some servers answer with text instead of XML.
    let plain = if code.is_none() && !text.starts_with('<') { text.get(..200.min(text.len())) } else { None };
    for part in [code, element(&text, "Message"), plain].into_iter().flatten().filter(|part| !part.is_empty())
    {
        detail += &format!(": {}", part.lines().next().unwrap_or_default());
    }
    if let Some(region) = response.headers().get("x-amz-bucket-region").and_then(|name| name.to_str().ok()) {
        detail += &format!(" (the bucket is in the region {region})");
    }
    Err(RequestFailure::Status { server, status, detail })
}

/// Returns the text of an element of an XML document.
fn element<'a>(document: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = document.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// Returns an error and its causes, without repetitions.
fn describe(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text += if text.is_empty() { "" } else { ": " };
            text += &message;
        }
        cause = error.source();
    }
    text
}

/// Creates the connections of a pool.
#[derive(Clone)]
struct Dialer {
    client: Client,
}

impl tower::Service<Uri> for Dialer {
    type Response = Stream;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let client = self.client.clone();
        Box::pin(async move {
            let late = |_| format!("no connection within {CONNECT_TIMEOUT:?}");
            Ok(timeout(CONNECT_TIMEOUT, dial(&client, &uri)).await.map_err(late)??)
        })
    }
}

async fn dial(client: &Client, uri: &Uri) -> Result<Stream, String> {
    let endpoint = Endpoint::parse(&uri.to_string())?;
    let stream = connect(&endpoint, true).await?;
    // Small requests would otherwise wait for the acknowledgement of their headers.
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    if endpoint.is_tls {
        return Ok(Stream::of(client.encrypt(&endpoint, stream).await?));
    }
    Ok(Stream::of(stream))
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection, encrypted or not.
struct Stream(TokioIo<Box<dyn Duplex>>);

impl Stream {
    fn of(stream: impl Duplex + 'static) -> Stream {
        Stream(TokioIo::new(Box::new(stream)))
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, body: &'static str) -> Response<Bytes> {
        Response::builder().status(status).body(body.into()).expect("valid")
    }

    #[test]
    fn responses_are_judged_by_status_and_code() {
        let denied = "<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>No.\nx</Message></Error>";
        let no_bucket = "<Error><Code>NoSuchBucket</Code></Error>";
        for (status, body, expected) in [
            (200, "", None),
            (404, "<Error><Code>NoSuchKey</Code></Error>", None),
            (404, no_bucket, Some(("404 Not Found: NoSuchBucket", false))),
            (403, denied, Some(("403 Forbidden: SignatureDoesNotMatch: No.", false))),
            (301, "", Some(("301 Moved Permanently", false))),
            (503, "<html>", Some(("503 Service Unavailable", true))),
            (429, "", Some(("429 Too Many Requests", true))),
            (400, "no such API\n", Some(("400 Bad Request: no such API", false))),
        ] {
            match (judge("http://s3".to_owned(), &response(status, body)), expected) {
                (Ok(()), None) => {}
                (Err(failure), Some((text, is_transient))) => {
                    assert_eq!(failure.to_string(), format!("http://s3 answers {text}"));
                    assert_eq!(failure.is_transient(), is_transient, "{failure}");
                    assert_eq!(failure.is_denied(), status == 403);
                }
                (outcome, _) => panic!("{status} {body}: {outcome:?}"),
            }
        }
    }

    #[test]
    fn a_bucket_in_another_region_is_named() {
        let mut moved = response(301, "");
        moved.headers_mut().insert("x-amz-bucket-region", "eu-north-1".parse().expect("valid"));
        let failure = judge("http://s3".to_owned(), &moved).expect_err("it is elsewhere").to_string();
        assert!(failure.ends_with("(the bucket is in the region eu-north-1)"), "{failure}");
    }
}
