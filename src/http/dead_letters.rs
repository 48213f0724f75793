//! `/api/v1/dead-letters`: read, grouped, and sent again.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::api::{Answer, Api, Parameters, json_body, time_ms};
use super::problem::Problem;
use crate::connectors::causes;
use crate::dead_letters::{
    Edit, Filter, Groups, Letter, LetterId, LetterStore, LettersError, MAX_PAGE, Page, RetryReport,
    RetryRequest,
};

/// The number of letters in an answer, unless the request asks for another.
const LIMIT: usize = 100;

/// The maximum number of letters that one request sends again.
const MAX_RETRIES: u64 = 10_000;

/// The maximum time to read letters.
const READ_TIMEOUT: Duration = Duration::from_secs(25);

/// The maximum time to wait for letters that are sent again. What was sent by then stays sent.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

/// The parameters of `/api/v1/dead-letters`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LetterParameters {
    /// Only letters with this reason.
    reason: Option<String>,
    /// Only letters with this field.
    field: Option<String>,
    /// Only letters of this producer.
    producer: Option<String>,
    /// The first time of the letters, RFC 3339.
    #[param(format = DateTime)]
    from: Option<String>,
    /// The time before which the letters lie, RFC 3339.
    #[param(format = DateTime)]
    to: Option<String>,
    /// The `next_cursor` of the answer before.
    cursor: Option<String>,
    /// The maximum number of letters, 1 to 1000; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// The letters to send again: one by its id, all that the filters choose, or all.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryBody {
    /// The id of a letter.
    #[schema(pattern = "^[0-9]{1,9}:[0-9]{1,18}$")]
    id: Option<String>,
    /// The value to send instead of the original one; for one letter.
    value: Option<String>,
    /// Only letters with this reason.
    reason: Option<String>,
    /// Only letters with this field.
    field: Option<String>,
    /// Only letters of this producer.
    producer: Option<String>,
    /// The first time of the letters, RFC 3339.
    #[schema(format = DateTime)]
    from: Option<String>,
    /// The time before which the letters lie, RFC 3339.
    #[schema(format = DateTime)]
    to: Option<String>,
    /// True to send all letters, without a filter.
    all: bool,
    /// True to send nothing, and only count.
    dry_run: bool,
    /// True to send late records, too, which will be late again.
    include_late: bool,
}

/// Answers with the dead letters of the pipeline that match all parameters, the newest first.
#[utoipa::path(
    get, path = "/api/v1/dead-letters", params(LetterParameters),
    responses(
        (status = 200, body = Page), (status = 400, body = Problem), (status = 409, body = Problem),
        (status = 503, body = Problem)
    )
)]
pub async fn list(
    State(api): State<Arc<Api>>,
    Parameters(parameters): Parameters<LetterParameters>,
) -> Answer<Page> {
    let LetterParameters { reason, field, producer, from, to, cursor, limit } = parameters;
    let limit = limit.unwrap_or(LIMIT);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::bad_request(format!("limit: {limit} is not between 1 and {MAX_PAGE}")));
    }
    let filter = filter(reason, field, producer, from, to)?;
    read(&api, READ_TIMEOUT, move |letters| letters.page(&filter, cursor.as_deref(), limit)).await
}

/// Answers with the groups of dead letters by reason, field and producer, the largest first.
#[utoipa::path(
    get, path = "/api/v1/dead-letters/groups",
    responses((status = 200, body = Groups), (status = 409, body = Problem), (status = 503, body = Problem))
)]
pub async fn groups(State(api): State<Arc<Api>>) -> Answer<Groups> {
    read(&api, READ_TIMEOUT, |letters| letters.groups(&Filter::default())).await
}

/// Answers with one dead letter.
#[utoipa::path(
    get, path = "/api/v1/dead-letters/{id}", 
    params(("id" = String, Path, description = "PARTITION:OFFSET", pattern = "^[0-9]{1,9}:[0-9]{1,18}$")),
    responses(
        (status = 200, body = Letter), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 503, body = Problem)
    )
)]
pub async fn show(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Answer<Letter> {
    let id: LetterId = id.parse().map_err(Problem::bad_request)?;
    let found = read(&api, READ_TIMEOUT, move |letters| letters.letter(id)).await?;
    found.0.map(Json).ok_or_else(|| Problem::not_found(LettersError::NotFound(id).to_string()))
}

/// Sends dead letters to the source topic again, each at most once; or counts them, with `dry_run`.
#[utoipa::path(
    post, path = "/api/v1/dead-letters/retry", request_body = RetryBody,
    responses(
        (status = 200, body = RetryReport), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem),
        (status = 503, body = Problem)
    )
)]
pub async fn retry(
    State(api): State<Arc<Api>>,
    body: Result<Json<RetryBody>, JsonRejection>,
) -> Answer<RetryReport> {
    let request = retry_request(json_body(body)?)?;
    // Two retries at a time would fence each other.
    let Ok(_only) = api.retries.try_acquire() else {
        return Err(Problem::unavailable(
            "dead letters are being sent again: wait for the end of that request",
        ));
    };
    read(&api, RETRY_TIMEOUT, move |letters| letters.retry(&request)).await
}

fn retry_request(body: RetryBody) -> Result<RetryRequest, Problem> {
    let RetryBody { id, value, reason, field, producer, from, to, all, dry_run, include_late } = body;
    let ids: Vec<LetterId> =
        id.iter().map(|id| id.parse().map_err(Problem::bad_request)).collect::<Result<_, _>>()?;
    let filter = filter(reason, field, producer, from, to)?;
    if ids.is_empty() && filter == Filter::default() && !all {
        return Err(Problem::bad_request(
            "choose letters by id, reason, field, producer, from or to, or set \"all\": true",
        ));
    }
    let edit = value.map(|value| Edit::Value(value.into_bytes()));
    let limit = Some(MAX_RETRIES);
    Ok(RetryRequest { ids, filter, limit, edit, dry_run, include_late, per_second: None })
}

fn filter(
    reason: Option<String>,
    field: Option<String>,
    producer: Option<String>,
    from: Option<String>,
    to: Option<String>,
) -> Result<Filter, Problem> {
    let ms = |name: &str, text: Option<String>| text.map(|text| time_ms(name, &text)).transpose();
    for (name, text) in [("reason", &reason), ("field", &field), ("producer", &producer)] {
        if text.as_ref().is_some_and(|text| text.contains('\0')) {
            return Err(Problem::bad_request(format!("{name}: it contains a NUL")));
        }
    }
    Ok(Filter { reason, field, producer, from_ms: ms("from", from)?, to_ms: ms("to", to)? })
}

/// Calls the store of dead letters on another thread.
async fn read<T: Send + 'static>(
    api: &Arc<Api>,
    timeout: Duration,
    call: impl FnOnce(&LetterStore) -> Result<T, LettersError> + Send + 'static,
) -> Answer<T> {
    let Some(letters) = api.letters.clone() else {
        return Err(Problem::conflict(
            "no sink stores dead letters: add `dead_letters` to the tables of a SQLite or PostgreSQL sink, or `dead-letters` \
             to the topics of a Kafka sink",
        ));
    };
    let answer = api.blocking(timeout, move || call(&letters)).await?;
    answer.map(Json).map_err(|error| problem(&error))
}

fn problem(error: &LettersError) -> Problem {
    let text = causes(error);
    match error {
        LettersError::NotFound(_) => Problem::not_found(text),
        LettersError::NoSourceTopic => Problem::conflict(text),
        LettersError::Cursor(_) | LettersError::Request(_) | LettersError::Edit { .. } => {
            Problem::bad_request(text)
        }
        error if error.is_refusal() => Problem::conflict(text),
        _ => Problem::unavailable(text),
    }
}
