//! The routes of the API and the state that they share.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::extract::FromRequestParts;
use axum::extract::Query;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::access::{self, Access};
use super::forward::Forwarder;
use super::problem::Problem;
use super::{alerts, console, dead_letters, keys, openapi, probes, rules, status, stream};
use crate::assembly;
use crate::config::Config;
use crate::dead_letters::LetterStore;
use crate::metrics::Metrics;
use crate::outputs::SinkJob;
use crate::pipeline::{KeySpace, Plan, RuleDescription, describe};
use crate::results::{Explainer, Results, ResultsError, SourceEvents};
use crate::runtime::{Queries, RuleControl};

/// The maximum number of reads of stored results at a time.
const READS: usize = 8;

/// The maximum time to answer a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The maximum size of a request's body, in bytes.
const MAX_BODY: usize = 2 << 20;

/// A run, as far as the API describes it.
pub struct Run {
    /// The name of the pipeline.
    pub pipeline: String,
    /// The index of this process.
    pub process: usize,
    /// The number of processes.
    pub processes: usize,
    /// The number of workers of this process.
    pub workers: usize,
    /// The name of the source, for people.
    pub source: String,
    /// The names of the windows.
    pub windows: Vec<String>,
    /// The names of the key spaces: users, devices, and those that windows and rules group by.
    pub spaces: Vec<String>,
    /// The sinks: name, and the outputs that each accepts.
    pub sinks: Vec<SinkOutputs>,
    /// The patterns.
    pub patterns: crate::pipeline::Patterns,
    /// The rules of the user's own, and the means to change them.
    pub control: RuleControl,
    /// The dead letters, if a sink stores them where they can be read.
    pub letters: Option<LetterStore>,
    /// The source, from which explanations read events if no sink stores them.
    pub source_events: Option<SourceEvents>,
}

/// The outputs that a sink accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkOutputs {
    /// The name of the sink.
    pub name: String,
    /// True for enriched events.
    pub events: bool,
    /// True for alerts.
    pub alerts: bool,
    /// True for window aggregates.
    pub windows: bool,
    /// True for dead letters.
    pub dead_letters: bool,
}

/// The state that all requests share.
pub struct Api {
    /// The run.
    pub run: Run,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The rules of the user's own, and the means to change them.
    pub control: RuleControl,
    /// Explains alerts.
    pub explainer: Explainer,
    /// Queries the state of keys.
    pub queries: Queries,
    /// Forwards queries of keys to the other processes of a cluster; None in a process of its own.
    pub forwarder: Option<Forwarder>,
    results: Arc<dyn Results>,
    reads: Semaphore,
    /// Limits the number of streams.
    pub streams: Arc<Semaphore>,
    /// The dead letters, if they can be read.
    pub letters: Option<Arc<LetterStore>>,
    /// Permits one retry of dead letters at a time.
    pub retries: Semaphore,
    /// Permits one reading of the source at a time.
    pub source_reads: Arc<Semaphore>,
}

impl Run {
    /// Returns the run of a configuration.
    pub fn of_config(
        config: &Config,
        control: RuleControl,
        process: usize,
        processes: usize,
        workers: usize,
    ) -> Run {
        let plan = &config.plan;
        let outputs = |job: SinkJob| {
            let mapping = job.encoding.mapping();
            SinkOutputs {
                name: job.sink.name().to_owned(),
                events: mapping.events.is_some(),
                alerts: mapping.alerts.is_some(),
                windows: mapping.windows.is_some(),
                dead_letters: mapping.dead_letters.is_some(),
            }
        };
        Run {
            pipeline: plan.pipeline.to_string(),
            process,
            processes,
            workers,
            source: match &plan.source_topic {
                Some(topic) => topic.to_string(),
                None => config.source.kind().name.to_owned(),
            },
            windows: plan.windows.iter().map(|window| window.name.to_string()).collect(),
            spaces: spaces(plan),
            sinks: assembly::sinks(config, "").into_iter().map(outputs).collect(),
            patterns: plan.patterns.clone(),
            control,
            letters: assembly::dead_letters(config),
            source_events: Some(SourceEvents::of_config(config)),
        }
    }
}

/// Returns the names of the key spaces of a plan.
fn spaces(plan: &Plan) -> Vec<String> {
    let mut names: Vec<_> = KeySpace::built_in().iter().map(|space| space.name.to_string()).collect();
    names.extend(plan.all_spaces().iter().map(|space| space.name.to_string()));
    names.sort();
    names.dedup();
    names
}

impl Api {
    /// Returns the API of a run.
    pub fn new(mut run: Run, metrics: Arc<Metrics>, results: Arc<dyn Results>, queries: Queries) -> Api {
        Api {
            metrics,
            explainer: Explainer::new(
                run.patterns.clone(),
                run.control.live.clone(),
                run.source_events.take(),
            ),
            control: run.control.clone(),
            letters: run.letters.clone().map(Arc::new),
            run,
            results,
            queries,
            forwarder: None,
            reads: Semaphore::new(READS),
            streams: Arc::new(Semaphore::new(stream::STREAMS)),
            retries: Semaphore::new(1),
            source_reads: Arc::new(Semaphore::new(1)),
        }
    }

    /// Returns the API, with queries of keys of other processes forwarded to those.
    #[must_use]
    pub fn with_forwarder(self, forwarder: Option<Forwarder>) -> Api {
        Api { forwarder, ..self }
    }

    /// Returns the rules in force: those of patterns in the order of the reference, then the user's own.
    pub fn rules(&self) -> Vec<RuleDescription> {
        describe(&self.run.patterns, &self.control.live.current().rules)
    }

    /// Returns true if events are stored, so that the source need not be read for an explanation.
    pub fn has_events(&self) -> bool {
        self.results.has_events()
    }

    /// Reads results on another thread, so that slow storage delays no other request.
    ///
    /// # Errors
    /// If the results cannot be read, or not in time.
    pub async fn read<T: Send + 'static>(
        self: &Arc<Api>,
        query: impl FnOnce(&Api, &dyn Results) -> Result<T, ResultsError> + Send + 'static,
    ) -> Result<T, Problem> {
        let api = Arc::clone(self);
        let answer = self.blocking(ANSWER_TIMEOUT, move || query(&api, &*api.results)).await?;
        answer.map_err(|error| Problem::unavailable(error.to_string()))
    }

    /// Calls a function that blocks on another thread.
    ///
    /// # Errors
    /// If it does not return in time. It goes on then, and its result is lost.
    pub async fn blocking<T: Send + 'static>(
        &self,
        timeout: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let answer = async {
            let _permit = self.reads.acquire().await.expect("the semaphore is never closed");
            tokio::task::spawn_blocking(call).await
        };
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Problem::unavailable("the request failed: the log says why")),
            Err(_) => Err(Problem::unavailable(format!("no answer within {} s", timeout.as_secs()))),
        }
    }
}

/// Returns the router of all paths.
pub fn router(api: Arc<Api>, access: Access) -> Router {
    let requires_token = matches!(access, Access::Token(_));
    let access = Arc::new(access);
    let protected = Router::new()
        .route("/metrics", get(probes::metrics))
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/frontier", get(status::frontier))
        .route("/api/v1/alerts", get(alerts::list))
        .route("/api/v1/alerts/stream", get(stream::stream))
        .route("/api/v1/alerts/{id}", get(alerts::show))
        .route("/api/v1/rules", get(rules::list).put(rules::apply))
        .route("/api/v1/keys/{space}/{key}", get(keys::show))
        .route("/api/v1/dead-letters", get(dead_letters::list))
        .route("/api/v1/dead-letters/groups", get(dead_letters::groups))
        .route("/api/v1/dead-letters/retry", post(dead_letters::retry))
        .route("/api/v1/dead-letters/{id}", get(dead_letters::show))
        .route("/api/v1/openapi.json", get(move || openapi::show(requires_token)))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(access, access::check));
    Router::new()
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz))
        .merge(console::routes())
        .merge(protected)
        .fallback(|| async { Problem::not_found("there is no such path: see /api/v1/openapi.json") })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(middleware::map_response(with_security_headers))
        .with_state(api)
}

/// Adds the headers that keep a browser from interpreting or storing what it gets.
async fn with_security_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// The parameters of a query. An unknown or wrong one is a problem.
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        query.map(|Query(parameters)| Parameters(parameters)).map_err(|rejection| {
            let text = rejection.body_text();
            Problem::bad_request(text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text))
        })
    }
}

/// The answer to a request.
pub type Answer<T> = Result<Json<T>, Problem>;

/// Returns the JSON object that a request has as its body.
///
/// # Errors
/// If it has none that can be read.
pub fn json_body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Problem> {
    body.map(|Json(body)| body).map_err(|rejection| match rejection.status() {
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Problem::unsupported_media_type(
            "send a JSON object with the header Content-Type: application/json",
        ),
        StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large("the body is too large: the limit is 2 MB"),
        _ => Problem::bad_request(rejection.body_text()),
    })
}

/// Parses a time. Returns it in milliseconds since 1970.
pub fn time_ms(name: &str, text: &str) -> Result<i64, Problem> {
    crate::decode::rfc3339_ms(text).map_err(|reason| {
        Problem::bad_request(format!(
            "{name}: {text:?} is not a time such as 2026-11-29T08:00:00Z ({reason}); write a + in a URL as %2B"
        ))
    })
}

/// Returns a response of text with a type.
pub fn text(kind: &'static str, text: impl Into<axum::body::Body>) -> Response {
    ([(header::CONTENT_TYPE, kind)], text.into()).into_response()
}
