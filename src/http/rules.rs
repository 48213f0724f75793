//! `/api/v1/rules`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::api::Api;
use crate::pipeline::RuleDescription;

/// The rules of the pipeline.
#[derive(Serialize, ToSchema)]
pub struct Rules {
    /// The rules.
    rules: Vec<RuleStatus>,
}

/// A rule and the number of its alerts.
#[derive(Serialize, ToSchema)]
pub struct RuleStatus {
    #[serde(flatten)]
    rule: RuleDescription,
    /// Alerts raised by this process since its start.
    raised: u64,
    /// Alerts revoked by this process since its start.
    revoked: u64,
}

/// Answers with the rules.
#[utoipa::path(get, path = "/api/v1/rules", responses((status = 200, body = Rules)))]
pub async fn list(State(api): State<Arc<Api>>) -> Json<Rules> {
    let status = |rule: &RuleDescription| {
        let (raised, revoked) = api.metrics.rule_counts(&rule.id);
        RuleStatus { rule: rule.clone(), raised, revoked }
    };
    Json(Rules { rules: api.rules.iter().map(status).collect() })
}
