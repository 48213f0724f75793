//! `/api/v1/keys/{space}/{key}`: the live state of a key.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::api::Api;
use super::openapi::key_kinds;
use super::problem::Problem;
use crate::event::KeyKind;
use crate::outputs::RuleMode;
use crate::pipeline::KeyState;
use crate::results::{AlertQuery, AlertRecord};
use crate::runtime::QueryError;

/// The maximum time to wait for the worker that owns the key.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The number of alerts in an answer.
const ALERTS: usize = 50;

/// The maximum length of a key, in bytes, as in events.
const MAX_KEY: usize = 256;

/// The parameters of the path.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct KeyPath {
    /// The key space: `user`, `device` or one of `[keys]` that a window or a rule groups by.
    #[param(schema_with = key_kinds)]
    space: String,
    /// The key.
    #[param(min_length = 1, max_length = 256)]
    key: String,
}

/// The live state of a key, and its alerts.
#[derive(Serialize, ToSchema)]
pub struct Key {
    /// The key space: `user`, `device` or one of `[keys]`.
    key_kind: String,
    /// The key.
    key: String,
    /// The process that owns the key.
    process: usize,
    #[serde(flatten)]
    state: KeyState,
    /// The newest alerts of the key.
    alerts: Vec<AlertRecord>,
}

/// Answers with the live state of a key, which may be ahead of committed results, and with its committed alerts. In a
/// cluster, the process that owns the key is asked.
#[utoipa::path(
    get, path = "/api/v1/keys/{space}/{key}",
    params(KeyPath),
    responses(
        (status = 200, body = Key), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 421, body = Problem), (status = 429, body = Problem), (status = 502, body = Problem),
        (status = 503, body = Problem), (status = 504, body = Problem)
    )
)]
pub async fn show(
    State(api): State<Arc<Api>>,
    Path(KeyPath { space, key }): Path<KeyPath>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if !api.run.spaces.iter().any(|known| **known == *space) {
        let known = api.run.spaces.join(", ");
        return Err(Problem::not_found(format!("space: there is no key space {space:?}; there are {known}")));
    }
    let kind = KeyKind::parse(&space);
    if key.is_empty() || key.len() > MAX_KEY || key.contains('\0') {
        return Err(Problem::bad_request(format!("key: it must have 1 to {MAX_KEY} bytes and no NUL")));
    }
    let state = match (api.queries.ask(kind, &key, TIMEOUT).await, &api.forwarder) {
        (Err(QueryError::NotHere { process }), Some(forwarder)) => {
            return forwarder.forward(process, &uri, &headers).await;
        }
        (state, _) => state.map_err(problem)?,
    };
    let query = AlertQuery {
        key_kind: Some(kind.as_str().to_owned()),
        key: Some(key.clone()),
        mode: Some(RuleMode::Live),
        limit: ALERTS,
        ..AlertQuery::default()
    };
    let alerts = api.read(move |_, results| results.alerts(&query)).await?;
    if !state.found && alerts.is_empty() {
        let detail = format!("there is neither state nor an alert of {space} {key:?}");
        return Err(Problem::not_found(detail));
    }
    Ok(Json(Key { key_kind: space, key, process: api.run.process, state, alerts }).into_response())
}

fn problem(error: QueryError) -> Problem {
    match error {
        QueryError::NotHere { .. } => Problem::misdirected(error.to_string()),
        QueryError::TooMany { .. } => Problem::too_many(error.to_string()),
        QueryError::Starting | QueryError::Ended { .. } | QueryError::TimedOut { .. } => {
            Problem::unavailable(error.to_string())
        }
    }
}
