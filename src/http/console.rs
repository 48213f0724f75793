//! The console: a page, its style and its scripts, which are part of the program.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::api::{Api, text};

/// The content security policy: the page loads its own files and the API of the same server, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

macro_rules! files {
    ($($name:literal: $kind:literal,)*) => {
        &[$(($name, $kind, include_str!(concat!("console/", $name)))),*]
    };
}

/// The files: path below `/console/`, type, and contents.
const FILES: &[(&str, &str, &str)] = files! {
    "alert_detail.js": "text/javascript; charset=utf-8",
    "alert_list.js": "text/javascript; charset=utf-8",
    "alerts.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "chart.js": "text/javascript; charset=utf-8",
    "dead_letters.js": "text/javascript; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "drawer.js": "text/javascript; charset=utf-8",
    "favicon.svg": "image/svg+xml",
    "findings.js": "text/javascript; charset=utf-8",
    "flow.js": "text/javascript; charset=utf-8",
    "format.js": "text/javascript; charset=utf-8",
    "history.js": "text/javascript; charset=utf-8",
    "keys.js": "text/javascript; charset=utf-8",
    "layout.js": "text/javascript; charset=utf-8",
    "letter_detail.js": "text/javascript; charset=utf-8",
    "main.js": "text/javascript; charset=utf-8",
    "narrow.css": "text/css; charset=utf-8",
    "overview.js": "text/javascript; charset=utf-8",
    "panels.css": "text/css; charset=utf-8",
    "payload.js": "text/javascript; charset=utf-8",
    "poll.js": "text/javascript; charset=utf-8",
    "retry.js": "text/javascript; charset=utf-8",
    "rules.js": "text/javascript; charset=utf-8",
    "stream.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "tables.css": "text/css; charset=utf-8",
    "timeline.js": "text/javascript; charset=utf-8",
};

/// The page.
const PAGE: &str = include_str!("console/index.html");

/// Returns the routes of the console. They need no token: the files have no data.
pub fn routes() -> Router<Arc<Api>> {
    let page = || async { file("text/html; charset=utf-8", PAGE) };
    let mut router = Router::new().route("/", get(page));
    for &(name, kind, contents) in FILES {
        router = router.route(&format!("/console/{name}"), get(move || async move { file(kind, contents) }));
    }
    router
}

fn file(kind: &'static str, contents: &'static str) -> Response {
    let mut response = text(kind, contents).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
