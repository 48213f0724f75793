//! The OpenAPI document.

use axum::Json;
use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr};

use super::problem::{self, Problem};
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
        status::status,
        status::frontier,
        alerts::list,
        alerts::show,
        stream::stream,
        rules::list,
        rules::apply,
        keys::show,
        dead_letters::list,
        dead_letters::groups,
        dead_letters::show,
        dead_letters::retry
    ),
    components(schemas(AlertRecord, Explanation, Groups, Letter, Page, Problem, RetryReport))
)]
struct Document;

/// Returns the document of a server that requires a token, or does not.
pub fn document(requires_token: bool) -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    for item in document.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post, &mut item.put].into_iter().flatten() {
            describe_problems(operation, if requires_token { "401" } else { "403" });
        }
    }
    if requires_token {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
        let no_scopes = Vec::<String>::new();
        document.security = Some(vec![SecurityRequirement::new("token", no_scopes)]);
    }
    document
}

/// Gives the problems of an operation their content type, and adds that of a request that has no access.
fn describe_problems(operation: &mut Operation, no_access: &str) {
    let problem = || RefOr::T(ResponseBuilder::new().build());
    let responses = &mut operation.responses.responses;
    responses.entry(no_access.to_owned()).or_insert_with(problem);
    for (status, response) in responses {
        let RefOr::T(response) = response else { continue };
        if status.starts_with('2') {
            "The answer".clone_into(&mut response.description);
        } else {
            "Problem details".clone_into(&mut response.description);
            let schema = Ref::from_schema_name("Problem");
            response.content = [(problem::CONTENT_TYPE.to_owned(), Content::new(Some(schema)))].into();
        }
    }
}

/// Answers with the document.
pub async fn show(requires_token: bool) -> Json<utoipa::openapi::OpenApi> {
    Json(document(requires_token))
}

fn one_of(values: &[&str]) -> Schema {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(values.iter().copied())).build().into()
}

/// Returns the schema of severities.
pub fn severities() -> Schema {
    one_of(&alerts::severities())
}

/// Returns the schema of the status of an alert.
pub fn statuses() -> Schema {
    one_of(&alerts::statuses())
}

/// Returns the schema of the modes of alerts.
pub fn modes() -> Schema {
    one_of(&alerts::modes())
}

/// Returns the schema of the names of key spaces.
pub fn key_kinds() -> Schema {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[a-z0-9_]{1,63}$")).build().into()
}
