//! The probes and metrics.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::api::{Api, text};

/// Answers that the process is alive.
pub async fn livez() -> Response {
    text("text/plain; charset=utf-8", "alive\n")
}

/// Answers whether the process is ready, and why not.
pub async fn readyz(State(api): State<Arc<Api>>) -> Response {
    let Some(unready) = api.metrics.unready() else {
        return text("application/json", "{\"ready\":true}\n");
    };
    let body = json!({
        "ready": false,
        "reason": unready.reason,
        "stalled": unready.causes.iter().map(|cause| cause.as_str()).collect::<Vec<_>>(),
        "standstill_s": unready.standstill_s,
        "lag_records": unready.lag_records,
        "committing": unready.committing,
    });
    (StatusCode::SERVICE_UNAVAILABLE, text("application/json", format!("{body}\n"))).into_response()
}

/// Answers with the metrics in the Prometheus text format.
pub async fn metrics(State(api): State<Arc<Api>>) -> Response {
    text("text/plain; version=0.0.4", api.metrics.text())
}
