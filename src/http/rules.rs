//! `/api/v1/rules`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::api::{Answer, Api, json_body};
use super::problem::Problem;
use crate::json::rfc3339;
use crate::pipeline::{RuleDescription, RulePlan};
use crate::runtime::{RuleChangeError, RuleSetChange};

/// The maximum time until a change is bound to an epoch.
const APPLY_TIMEOUT: Duration = Duration::from_secs(8);

/// The time to answer, which is longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The rules of the pipeline.
#[derive(Serialize, ToSchema)]
pub struct Rules {
    /// The number of the set of the user's own rules that is in force: 1 for the first one of a pipeline, and one more with
    /// each change.
    version: u64,
    /// The rules in force.
    rules: Vec<RuleStatus>,
    /// The rules that wait until their past has been read, as `backfill` asks for it.
    waiting: Vec<WaitingRule>,
}

/// A rule that is not in force yet.
#[derive(Serialize, ToSchema)]
pub struct WaitingRule {
    /// The id.
    id: String,
    /// The progress of reading its past, for people. Empty in other processes than the first, which reads it.
    progress: String,
}

/// A rule and the number of its alerts.
#[derive(Serialize, ToSchema)]
pub struct RuleStatus {
    #[serde(flatten)]
    rule: RuleDescription,
    /// The number of the rule's definition, which its alerts have as `rule_version`.
    rule_version: u32,
    /// The event time after which its alerts are those of a rule that has always been there; null if they all are, or if
    /// that is not certain of any.
    complete_from: Option<String>,
    /// The event time after which it knows the events, if it looks at all earlier ones and does not know those before.
    knows_since: Option<String>,
    /// Alerts raised by this process since its start.
    raised: u64,
    /// Alerts revoked by this process since its start.
    revoked: u64,
}

/// All rules of the user's own, to come into force.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RulesBody {
    /// Each rule as an inline table in TOML, such as `{ id = "large", match = true }`.
    rules: Vec<String>,
    /// The settings, one `key = value` a line, that results depend on. If they differ from those of the run, nothing
    /// changes: only rules can be changed without a stop.
    settings: Option<String>,
    /// True to change nothing, and only say what would change.
    #[serde(default)]
    dry_run: bool,
}

/// Answers with the rules.
#[utoipa::path(get, path = "/api/v1/rules", responses((status = 200, body = Rules)))]
pub async fn list(State(api): State<Arc<Api>>) -> Json<Rules> {
    let set = api.control.live.current();
    let status = |rule: RuleDescription| {
        let (raised, revoked) = api.metrics.rule_counts(&rule.id);
        let own = set.rules.iter().find(|own| *own.id == *rule.id);
        let rule_version = own.map_or(1, |own| own.revision);
        RuleStatus {
            rule,
            rule_version,
            complete_from: own.and_then(|own| own.complete.from_ms()).map(rfc3339),
            knows_since: own.and_then(|own| own.complete.since_ms()).map(rfc3339),
            raised,
            revoked,
        }
    };
    let live = &api.control.live;
    let waits = |rule: &RulePlan| WaitingRule { id: rule.id.to_string(), progress: live.backfill() };
    let rules = api.rules().into_iter().map(status).collect();
    Json(Rules { version: set.version, rules, waiting: set.waiting.iter().map(waits).collect() })
}

/// Lets other rules of the user's own come into force, instead of all that are, without a stop. Either all are valid, or
/// nothing changes.
#[utoipa::path(
    put, path = "/api/v1/rules", request_body = RulesBody,
    responses(
        (status = 200, body = RuleSetChange), (status = 400, body = Problem), (status = 409, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem), (status = 421, body = Problem),
        (status = 503, body = Problem)
    )
)]
pub async fn apply(
    State(api): State<Arc<Api>>,
    body: Result<Json<RulesBody>, JsonRejection>,
) -> Answer<RuleSetChange> {
    let RulesBody { rules, settings, dry_run } = json_body(body)?;
    if api.run.process != 0 {
        return Err(Problem::misdirected(
            "rules are changed in process 0 of the cluster: send the request there",
        ));
    }
    let control = api.control.clone();
    let change = move || {
        settings.as_deref().map_or(Ok(()), |settings| control.check_settings(settings))?;
        let texts: Vec<_> = rules.iter().map(String::as_str).collect();
        let rules = control.compile(&texts)?;
        if dry_run { Ok(control.preview(&rules)) } else { control.apply(rules, None, APPLY_TIMEOUT) }
    };
    let change: Result<_, RuleChangeError> = api.blocking(ANSWER_TIMEOUT, change).await?;
    change.map(Json).map_err(|error| match error {
        RuleChangeError::Invalid(_) => Problem::bad_request(error.to_string()),
        RuleChangeError::NoSpace { .. } | RuleChangeError::OtherSettings(_) => {
            Problem::conflict(error.to_string())
        }
        RuleChangeError::Starting | RuleChangeError::Ended | RuleChangeError::TimedOut(_) => {
            Problem::unavailable(error.to_string())
        }
    })
}
