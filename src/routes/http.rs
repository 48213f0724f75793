//! Requests to receivers, and what their responses mean.

use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;
use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Method, Response, StatusCode};

use crate::client::{Client, Endpoint, HttpOptions};

/// The reason why a request did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostError {
    /// A later try may succeed, not before the wait that the receiver asks for, in milliseconds.
    Failed(String, Option<i64>),
    /// The receiver does not accept this request, now or later.
    Rejected(String),
}

/// The most bytes of a response that are read.
const MOST_BYTES: usize = 16 << 10;

/// Sends a body and waits for the response.
///
/// # Errors
/// If there is none within the time limit, or it does not report success.
pub async fn post(
    client: &Client,
    endpoint: &Endpoint,
    options: HttpOptions,
    headers: HeaderMap,
    body: impl Into<Bytes>,
) -> Result<(), PostError> {
    let request = endpoint.request(Method::POST, headers, body);
    let request = request.map_err(PostError::Rejected)?;
    let response = client.send(endpoint, options, request, judge).await;
    response.unwrap_or_else(|error| Err(PostError::Failed(error.to_string(), None)))
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
