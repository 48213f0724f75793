//! `/api/v1/alerts` and `/api/v1/alerts/{id}`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::{IntoParams, ToSchema};

use super::api::{Answer, Api, Parameters, time_ms};
use super::openapi;
use super::problem::Problem;
use crate::config::is_name;
use crate::json::rfc3339;
use crate::outputs::{RuleMode, Severity, Status};
use crate::results::{AlertQuery, AlertRecord, ChangeCursor, Explanation};

/// The number of alerts in an answer, unless the request asks for another.
const LIMIT: usize = 100;

/// The maximum number of alerts in an answer.
const MAX_LIMIT: usize = 1000;

/// The maximum time to wait for another explanation that reads the source.
const SOURCE_WAIT: Duration = Duration::from_secs(3);

/// The parameters of `/api/v1/alerts`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AlertParameters {
    /// Only alerts of this rule.
    rule: Option<String>,
    /// Only alerts of this severity: `low`, `medium`, `high` or `critical`.
    #[param(schema_with = openapi::severities)]
    severity: Option<String>,
    /// Only alerts with this status: `raised` or `revoked`.
    #[param(schema_with = openapi::statuses)]
    status: Option<String>,
    /// Only alerts of rules of this mode: `live`, `shadow` or `all`; `live` by default.
    #[param(schema_with = openapi::modes)]
    mode: Option<String>,
    /// Only alerts of keys of this kind: `user` or `device`.
    #[param(schema_with = openapi::key_kinds)]
    key_kind: Option<String>,
    /// Only alerts of this key.
    key: Option<String>,
    /// The least event time, RFC 3339.
    #[param(format = DateTime)]
    from: Option<String>,
    /// The event time before which alerts lie, RFC 3339.
    #[param(format = DateTime)]
    to: Option<String>,
    /// The `next_cursor` of the answer before.
    #[param(pattern = "^[0-9]{1,18}-[0-9a-f]{32}$")]
    cursor: Option<String>,
    /// The maximum number of alerts, 1 to 1000; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

impl AlertParameters {
    fn query(self) -> Result<AlertQuery, Problem> {
        one_of("severity", self.severity.as_deref(), &severities())?;
        one_of("status", self.status.as_deref(), &statuses())?;
        if let Some(kind) = self.key_kind.as_deref().filter(|kind| !is_name(kind, "_")) {
            return Err(Problem::bad_request(format!("key_kind: {kind:?} is no name of a key space")));
        }
        let time =
            |name: &str, text: Option<String>| text.map(|text| time_ms(name, &text).map(rfc3339)).transpose();
        let limit = self.limit.unwrap_or(LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(Problem::bad_request(format!("limit: {limit} is not between 1 and {MAX_LIMIT}")));
        }
        let before = match self.cursor {
            Some(text) => Some(ChangeCursor::parse(&text).ok_or_else(|| {
                Problem::bad_request(format!("cursor: {text:?} is not the next_cursor of an answer"))
            })?),
            None => None,
        };
        for (name, text) in [("rule", &self.rule), ("key", &self.key)] {
            if text.as_ref().is_some_and(|text| text.contains('\0')) {
                return Err(Problem::bad_request(format!("{name}: it contains a NUL")));
            }
        }
        Ok(AlertQuery {
            rule: self.rule,
            severity: self.severity,
            status: self.status,
            mode: mode_of(self.mode.as_deref())?,
            key_kind: self.key_kind,
            key: self.key,
            from: time("from", self.from)?,
            to: time("to", self.to)?,
            before,
            limit,
        })
    }
}

/// Returns the names of the severities of alerts.
pub fn severities() -> [&'static str; Severity::ALL.len()] {
    Severity::ALL.map(Severity::as_str)
}

/// Returns the names of the status of an alert.
pub fn statuses() -> [&'static str; Status::ALL.len()] {
    Status::ALL.map(Status::as_str)
}

/// Returns the names of the modes of alerts, and of all of them.
pub fn modes() -> [&'static str; 3] {
    [RuleMode::Live.as_str(), RuleMode::Shadow.as_str(), "all"]
}

/// Returns the mode that a request asks for: live alerts if it does not say; None for all.
pub fn mode_of(parameter: Option<&str>) -> Result<Option<RuleMode>, Problem> {
    one_of("mode", parameter, &modes())?;
    let mode = parameter.unwrap_or(RuleMode::Live.as_str());
    Ok(RuleMode::ALL.into_iter().find(|known| known.as_str() == mode))
}

/// Checks that a parameter has one of these values, if it is there.
fn one_of(name: &str, value: Option<&str>, values: &[&str]) -> Result<(), Problem> {
    match value {
        Some(value) if !values.contains(&value) => {
            Err(Problem::bad_request(format!("{name}: {value:?} is none of {}", values.join(", "))))
        }
        _ => Ok(()),
    }
}

/// Alerts, the newest change first.
#[derive(Serialize, ToSchema)]
pub struct Alerts {
    /// The alerts.
    alerts: Vec<AlertRecord>,
    /// The cursor of the next page; null if this is the last.
    next_cursor: Option<String>,
}

/// Answers with the alerts that match all parameters, the newest change first.
#[utoipa::path(
    get, path = "/api/v1/alerts", params(AlertParameters),
    responses((status = 200, body = Alerts), (status = 400, body = Problem), (status = 503, body = Problem))
)]
pub async fn list(
    State(api): State<Arc<Api>>,
    Parameters(parameters): Parameters<AlertParameters>,
) -> Answer<Alerts> {
    let query = parameters.query()?;
    let limit = query.limit;
    let alerts = api.read(move |_, results| results.alerts(&query)).await?;
    let last = alerts.last().filter(|_| alerts.len() == limit);
    let next_cursor = last.map(|last| last.cursor().to_string());
    Ok(Json(Alerts { alerts, next_cursor }))
}

/// The parameters of `/api/v1/alerts/{id}`.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ShowParameters {
    /// `true` adds the explanation.
    #[serde(default)]
    explain: bool,
}

/// An alert, with its explanation if it was asked for.
#[derive(Serialize, ToSchema)]
pub struct ExplainedAlert {
    #[serde(flatten)]
    alert: AlertRecord,
    /// The explanation.
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<Explanation>,
}

/// Answers with an alert and, with `explain=true`, with the events that took part and the rule's state before each.
#[utoipa::path(
    get, path = "/api/v1/alerts/{id}", params(("id" = String, Path, description = "The alert's id"), ShowParameters),
    responses(
        (status = 200, body = ExplainedAlert), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 503, body = Problem)
    )
)]
pub async fn show(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    Parameters(ShowParameters { explain }): Parameters<ShowParameters>,
) -> Answer<ExplainedAlert> {
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let missing = format!("there is no alert {id:?}");
    if !is_id {
        return Err(Problem::not_found(missing));
    }
    let permit = if explain && !api.has_events() { Some(source_permit(&api).await?) } else { None };
    let found = api.read(move |api, results| {
        // Until reading has ended, also for a client that does not wait for it.
        let _permit = permit;
        let Some(alert) = results.alert(&id)? else { return Ok(None) };
        let explanation = if explain { Some(api.explainer.explain(results, &alert)?) } else { None };
        Ok(Some(ExplainedAlert { alert, explanation }))
    });
    found.await?.map(Json).ok_or_else(|| Problem::not_found(missing))
}

/// Waits for the permit to read the source, which one request has at a time.
async fn source_permit(api: &Api) -> Result<OwnedSemaphorePermit, Problem> {
    let permit = Arc::clone(&api.source_reads).acquire_owned();
    match tokio::time::timeout(SOURCE_WAIT, permit).await {
        Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
        Err(_) => Err(Problem::busy(
            "the events of another alert are being read from the source: send the request again later, or store events in a \
             table (`events` of a SQLite or PostgreSQL sink)",
            SOURCE_WAIT,
        )),
    }
}
