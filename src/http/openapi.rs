//! The OpenAPI document.

use axum::Json;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::problem::Problem;
use super::{alerts, dead_letters, keys, rules, status, stream};
use crate::dead_letters::{Groups, Letter, Page, RetryReport};
use crate::results::{AlertRecord, Explanation};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Headwater",
        description = "Committed results and the state of a pipeline. Without a token, requests must address the server by an IP \
                       address or as localhost. Errors are problem details (RFC 9457)."
    ),
    paths(
        status::status, status::frontier, alerts::list, alerts::show, stream::stream, rules::list,
        keys::show, dead_letters::list,
        dead_letters::groups, dead_letters::show, dead_letters::retry
    ),
    components(schemas(AlertRecord, Explanation, Groups, Letter, Page, Problem, RetryReport)),
    modifiers(&Token)
)]
struct Document;

/// Adds the token to the document.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
        let no_scopes = Vec::<String>::new();
        document.security = Some(vec![SecurityRequirement::new("token", no_scopes)]);
    }
}

/// Answers with the document.
pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
