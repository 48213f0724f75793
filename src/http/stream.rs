//! `/api/v1/alerts/stream`: changes of alerts as server-sent events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use headwater_dataflows::Epoch;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::IntoParams;

use super::alerts::mode_of;
use super::api::{Api, Parameters};
use super::connections::LastRequest;
use super::openapi;
use super::problem::Problem;
use crate::outputs::RuleMode;
use crate::results::{AlertRecord, ChangeCursor};

/// The maximum number of streams at a time.
pub const STREAMS: usize = 16;

/// The interval at which new changes are looked for.
const POLL: Duration = Duration::from_millis(250);

/// The maximum time without a message. A comment is sent then, so that neither side takes the connection for lost.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The maximum number of changes in one message.
const PAGE: usize = 500;

/// The parameters of the stream.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamParameters {
    /// The id of the last event that was received, like the header `Last-Event-ID`.
    #[param(pattern = "^[0-9]{1,18}-[0-9a-f]{32}$")]
    after: Option<String>,
    /// Only alerts of rules of this mode: `live`, `shadow` or `all`; `live` by default.
    #[param(schema_with = openapi::modes)]
    mode: Option<String>,
}

/// A stream to one client.
struct Changes {
    api: Arc<Api>,
    last_request: LastRequest,
    cursor: ChangeCursor,
    mode: Option<RuleMode>,
    /// The frontier at the last poll.
    polled: Epoch,
    sent: Instant,
    is_first: bool,
    _permit: OwnedSemaphorePermit,
}

/// Answers with the changes of alerts as they are committed, in the order of epoch and id, each as an event `alert`. The
/// stream is resumed by `Last-Event-ID`; without it, it begins now.
#[utoipa::path(
    get, path = "/api/v1/alerts/stream",
    params(StreamParameters, ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was received")),
    responses(
        (status = 200, content_type = "text/event-stream", body = String), (status = 400, body = Problem),
        (status = 503, body = Problem)
    )
)]
pub async fn stream(
    State(api): State<Arc<Api>>,
    Extension(last_request): Extension<LastRequest>,
    headers: HeaderMap,
    Parameters(StreamParameters { after, mode }): Parameters<StreamParameters>,
) -> Result<Response, Problem> {
    let mode = mode_of(mode.as_deref())?;
    let sent = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?").to_owned());
    let cursor = match after.or(sent) {
        Some(text) => ChangeCursor::parse(&text).ok_or_else(|| {
            Problem::bad_request(format!("{text:?} is not the id of an event of this stream"))
        })?,
        None => ChangeCursor::before(api.metrics.frontier_epoch()),
    };
    let Ok(permit) = Arc::clone(&api.streams).try_acquire_owned() else {
        let detail = format!("{STREAMS} streams are open already: close one, or read /api/v1/alerts");
        return Err(Problem::unavailable(detail));
    };
    let (polled, sent) = (Epoch(0), Instant::now());
    let changes = Changes { api, last_request, cursor, mode, polled, sent, is_first: true, _permit: permit };
    let body = Body::from_stream(stream::unfold(changes, |mut changes| async move {
        let text = changes.next().await;
        Some((Ok::<_, std::convert::Infallible>(text), changes))
    }));
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], body).into_response())
}

impl Changes {
    /// Waits for the next changes. Returns them as events, or a comment if there are none for a while. A client that
    /// cannot be served gets no event until the results can be read again.
    async fn next(&mut self) -> String {
        loop {
            // A client that reads is not idle.
            self.last_request.set(Instant::now());
            if std::mem::take(&mut self.is_first) {
                return "retry: 1000\n\n".to_owned();
            }
            let changes = self.poll().await;
            if !changes.is_empty() {
                self.sent = Instant::now();
                return changes.iter().map(event).collect();
            }
            if self.sent.elapsed() >= KEEP_ALIVE {
                self.sent = Instant::now();
                return ": no change\n\n".to_owned();
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Returns the changes after the cursor that all sinks have committed, and advances the cursor.
    async fn poll(&mut self) -> Vec<AlertRecord> {
        let frontier = self.api.metrics.frontier_epoch();
        if frontier == self.polled {
            return Vec::new();
        }
        let (mode, after) = (self.mode, self.cursor.clone());
        let read = self.api.read(move |_, results| results.changes(mode, &after, frontier, PAGE)).await;
        let Ok(changes) = read else { return Vec::new() };
        if changes.len() < PAGE {
            self.polled = frontier;
        }
        if let Some(last) = changes.last() {
            self.cursor = last.cursor();
        }
        changes
    }
}

/// Returns the text of an event.
fn event(alert: &AlertRecord) -> String {
    let data = serde_json::to_string(alert).expect("an alert encodes as JSON");
    format!("event: alert\nid: {}\ndata: {data}\n\n", alert.cursor())
}
