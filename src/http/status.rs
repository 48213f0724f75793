//! `/api/v1/status` and `/api/v1/frontier`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use headwater_dataflows::EventTime;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::api::{Answer, Api, Parameters, SinkOutputs, time_ms};
use super::problem::Problem;
use crate::decode::Reason;
use crate::json::rfc3339;
use crate::lists::ListStatus;
use crate::metrics::{SinkStatus, Snapshot, time_text};
use crate::outputs::RuleMode;

/// The state of a process and its run.
#[derive(Serialize, ToSchema)]
pub struct Status {
    /// The name of the pipeline.
    pipeline: String,
    /// The version of the program.
    version: &'static str,
    /// The index of this process.
    process: usize,
    /// The number of processes.
    processes: usize,
    /// The number of workers of this process.
    workers: usize,
    /// The names of the key spaces: users, devices, and those that windows and rules group by.
    key_spaces: Vec<String>,
    #[serde(flatten)]
    snapshot: Snapshot,
    /// The sinks.
    sinks: Vec<SinkStatus>,
    /// The lists that rules look values up in.
    lists: Vec<ListStatus>,
    /// The flow of records.
    flow: Flow,
}

/// The flow of records through the pipeline, as a graph.
#[derive(Serialize, ToSchema)]
pub struct Flow {
    /// The nodes.
    nodes: Vec<Node>,
    /// The edges.
    edges: Vec<Edge>,
}

/// A node of the flow.
#[derive(Serialize, ToSchema)]
pub struct Node {
    /// The id, by which edges name it.
    id: String,
    /// The name for people.
    label: String,
    /// `source`, `operator`, `output` or `sink`.
    kind: &'static str,
    /// True if it holds the frontier up.
    held: bool,
}

/// An edge of the flow.
#[derive(Serialize, ToSchema)]
pub struct Edge {
    /// The node that records come from.
    from: String,
    /// The node that they go to.
    to: String,
    /// The number of records since the start; null if it is not counted. A client computes the rate.
    total: Option<u64>,
}

/// Answers with the state of the process.
#[utoipa::path(get, path = "/api/v1/status", responses((status = 200, body = Status)))]
pub async fn status(State(api): State<Arc<Api>>) -> Json<Status> {
    let snapshot = api.metrics.snapshot();
    let sinks: Vec<_> = api.run.sinks.iter().map(|sink| api.metrics.sink_status(&sink.name)).collect();
    Json(Status {
        pipeline: api.run.pipeline.clone(),
        version: env!("CARGO_PKG_VERSION"),
        process: api.run.process,
        processes: api.run.processes,
        workers: api.run.workers,
        key_spaces: api.run.spaces.clone(),
        flow: flow(&api, &snapshot, &sinks),
        snapshot,
        sinks,
        lists: api.metrics.list_status(),
    })
}

/// Returns the flow with its totals.
fn flow(api: &Api, snapshot: &Snapshot, sinks: &[SinkStatus]) -> Flow {
    let rejected = |reasons: &[Reason]| -> u64 {
        reasons.iter().filter_map(|reason| snapshot.dead_letters.get(reason.as_str())).sum()
    };
    let undecoded = rejected(&[Reason::Malformed, Reason::Invalid, Reason::Future]);
    let refused = rejected(&[Reason::Late, Reason::Duplicate]);
    let admitted = snapshot.events.saturating_sub(refused);
    let [raised, revoked] =
        ["raised", "revoked"].map(|status| api.metrics.alert_total(status, RuleMode::Live.as_str()));
    let mut graph = Flow { nodes: Vec::new(), edges: Vec::new() };
    graph.node("source", &api.run.source, "source", false);
    graph.node("decode", "Decode", "operator", false);
    graph.node("admit", "Admit", "operator", false);
    graph.edge("source", "decode", Some(snapshot.events + undecoded));
    graph.edge("decode", "admit", Some(snapshot.events));
    let outputs = &api.run.sinks;
    let any = |accepts: fn(&SinkOutputs) -> bool| outputs.iter().any(accepts);
    if any(|sink| sink.events) {
        graph.node("enrich", "Enrich", "operator", false);
        graph.edge("admit", "enrich", Some(admitted));
    }
    let has_rules = !api.rules().is_empty();
    if has_rules {
        graph.node("rules", "Rules", "operator", false);
        graph.node("alerts", "Alerts", "output", false);
        graph.edge("admit", "rules", Some(admitted));
        graph.edge("rules", "alerts", Some(raised + revoked));
    }
    if !api.run.windows.is_empty() {
        graph.node("windows", "Windows", "operator", false);
        graph.edge("admit", "windows", Some(admitted));
    }
    graph.node("dead_letters", "Dead letters", "output", false);
    graph.edge("decode", "dead_letters", Some(undecoded));
    graph.edge("admit", "dead_letters", Some(refused));
    for (sink, progress) in outputs.iter().zip(sinks) {
        let id = format!("sink:{}", sink.name);
        let held = snapshot.stalled.contains(&"sink") && progress.committing_s.is_some();
        graph.node(&id, &sink.name, "sink", held);
        let inputs = [
            ("enrich", sink.events, Some(admitted)),
            ("alerts", sink.alerts && has_rules, Some(raised + revoked)),
            ("windows", sink.windows && !api.run.windows.is_empty(), None),
            ("dead_letters", sink.dead_letters, Some(undecoded + refused)),
        ];
        for (from, _, total) in inputs.into_iter().filter(|(_, accepts, _)| *accepts) {
            graph.edge(from, &id, total);
        }
    }
    graph
}

impl Flow {
    fn node(&mut self, id: &str, label: &str, kind: &'static str, held: bool) {
        self.nodes.push(Node { id: id.to_owned(), label: label.to_owned(), kind, held });
    }

    fn edge(&mut self, from: &str, to: &str, total: Option<u64>) {
        self.edges.push(Edge { from: from.to_owned(), to: to.to_owned(), total });
    }
}

/// The parameters of `/api/v1/frontier`.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FrontierParameters {
    /// A time, RFC 3339.
    #[param(format = DateTime)]
    at: String,
}

/// The answer whether everything up to a time is final and committed.
#[derive(Serialize, ToSchema)]
pub struct FrontierAnswer {
    /// The time that was asked for, in UTC.
    at: String,
    /// True if everything up to it is final and committed by every sink.
    r#final: bool,
    /// The watermark up to which every sink has committed everything; null if there is none.
    watermark: Option<String>,
    /// True if all input has ended and everything is committed.
    ended: bool,
    /// The same for each sink of this process.
    sinks: Vec<SinkFrontier>,
}

/// The answer whether everything up to a time is final and committed by a sink.
#[derive(Serialize, ToSchema)]
pub struct SinkFrontier {
    /// The name of the sink.
    name: String,
    /// The watermark up to which it has committed everything; null if there is none.
    watermark: Option<String>,
    /// True if everything up to the time is final and committed.
    r#final: bool,
}

/// Answers whether everything up to a time is final and committed, in every sink.
#[utoipa::path(
    get, path = "/api/v1/frontier", params(FrontierParameters),
    responses((status = 200, body = FrontierAnswer), (status = 400, body = Problem))
)]
pub async fn frontier(
    State(api): State<Arc<Api>>,
    Parameters(FrontierParameters { at }): Parameters<FrontierParameters>,
) -> Answer<FrontierAnswer> {
    let at_ms = time_ms("at", &at)?;
    let is_final = |watermark: Option<EventTime>| watermark.is_some_and(|watermark| watermark.0 >= at_ms);
    let all = api.metrics.final_watermark();
    let sinks = api.run.sinks.iter().map(|sink| {
        let watermark = api.metrics.committed_watermark(&sink.name);
        SinkFrontier {
            name: sink.name.clone(),
            watermark: watermark.and_then(time_text),
            r#final: is_final(watermark),
        }
    });
    Ok(Json(FrontierAnswer {
        at: rfc3339(at_ms),
        r#final: is_final(all),
        watermark: all.and_then(time_text),
        ended: all == Some(EventTime::MAX),
        sinks: sinks.collect(),
    }))
}
