//! Errors of the API, as problem details (RFC 9457).

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// The content type of problems.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// An error of a request.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Problem {
    /// `about:blank`: the title says what the status means.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The meaning of the status.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The error, and what to do.
    detail: String,
    /// The number of seconds after which the request can be sent again, for the header `Retry-After`.
    #[serde(skip)]
    retry_after_s: Option<u64>,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Problem {
        let title = status.canonical_reason().unwrap_or("Error");
        let (status, detail) = (status.as_u16(), detail.into());
        Problem { kind: "about:blank", title, status, detail, retry_after_s: None }
    }

    /// Returns the problem of a request with a wrong parameter.
    pub fn bad_request(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }

    /// Returns the problem of a request with a body of another type than JSON.
    pub fn unsupported_media_type(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
    }

    /// Returns the problem of a request with a body that is too large.
    pub fn too_large(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    /// Returns the problem of a request without the token.
    pub fn unauthorized() -> Problem {
        Problem::new(
            StatusCode::UNAUTHORIZED,
            "send the token of http.token_file: Authorization: Bearer TOKEN",
        )
    }

    /// Returns the problem of a request that is not permitted.
    pub fn forbidden(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, detail)
    }

    /// Returns the problem of something that does not exist.
    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, detail)
    }

    /// Returns the problem of a path that has no such method.
    pub fn method_not_allowed() -> Problem {
        Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "this path does not have this method: see /api/v1/openapi.json",
        )
    }

    /// Returns the problem of a request that the configuration does not permit.
    pub fn conflict(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::CONFLICT, detail)
    }

    /// Returns the problem of a request that another process can answer.
    pub fn misdirected(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::MISDIRECTED_REQUEST, detail)
    }

    /// Returns the problem of too many requests at a time.
    pub fn too_many(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, detail)
    }

    /// Returns the problem of a request that cannot be answered now.
    pub fn unavailable(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// Returns the problem of a request that can be answered after some time.
    pub fn busy(detail: impl Into<String>, retry_after: Duration) -> Problem {
        Problem { retry_after_s: Some(retry_after.as_secs()), ..Problem::unavailable(detail) }
    }

    /// Returns the problem of another process that cannot be asked, or gives no valid answer.
    pub fn bad_gateway(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_GATEWAY, detail)
    }

    /// Returns the problem of another process that does not answer in time.
    pub fn gateway_timeout(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::GATEWAY_TIMEOUT, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after_s = self.retry_after_s;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
