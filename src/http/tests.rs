use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, EventTime, Offset, Partition, Position};
use serde_json::Value;

use super::*;
use crate::metrics::Metrics;
use crate::outputs::{Alert, RecentAlerts, RuleMode, Severity, Status};
use crate::pipeline::{LiveRules, Patterns};
use crate::results::Recent;
use crate::runtime::{ChangeRequests, Queries, RuleControl};

/// A server with recent alerts in memory.
struct Fixture {
    server: Server,
    metrics: Arc<Metrics>,
    alerts: Arc<RecentAlerts>,
    /// The permit to read the source.
    source_reads: Arc<tokio::sync::Semaphore>,
}

fn fixture(token: Option<&str>) -> Fixture {
    let metrics = Arc::new(Metrics::default());
    let alerts = Arc::new(RecentAlerts::default());
    let results = Arc::new(Recent::new(Arc::clone(&alerts), Arc::clone(&metrics)));
    let live = LiveRules::of(Vec::new());
    let run = Run {
        pipeline: "fraud".to_owned(),
        process: 0,
        processes: 1,
        workers: 2,
        source: "raw-events".to_owned(),
        windows: Vec::new(),
        spaces: vec!["device".to_owned(), "user".to_owned()],
        sinks: vec![SinkOutputs {
            name: "kafka".to_owned(),
            events: true,
            alerts: true,
            windows: false,
            dead_letters: true,
        }],
        patterns: Patterns::default(),
        control: RuleControl { live, requests: ChangeRequests::default(), semantics: "".into() },
        letters: None,
        source_events: None,
    };
    let config = HttpConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        token: token.map(|token| token.to_owned().into()),
        tls: None,
        peer_ca_file: None,
        insecure: false,
    };
    let api = Api::new(run, Arc::clone(&metrics), results, Queries::default());
    let source_reads = Arc::clone(&api.source_reads);
    let server = serve(&config, api).expect("a free port");
    Fixture { server, metrics, alerts, source_reads }
}

impl Fixture {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.address()).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("the option is set");
        stream
    }

    /// Sends a request with headers; returns status and body.
    fn request(&self, head: &str, headers: &str) -> (u16, String) {
        let mut stream = self.connect();
        write!(stream, "{head} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n").expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answered");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.request(&format!("GET {path}"), "host: localhost\r\n")
    }

    fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    fn raise(&self, offset: i64, epoch: u64, status: Status) -> String {
        self.raise_in(RuleMode::Live, offset, epoch, status)
    }

    fn raise_in(&self, mode: RuleMode, offset: i64, epoch: u64, status: Status) -> String {
        let alert = Alert {
            position: Position { partition: Partition(0), offset: Offset(offset) },
            rule: "velocity_spike".into(),
            rule_version: 1,
            severity: Severity::High,
            key: "uann".into(),
            event_ids: vec![format!("e{offset}").into()],
            event_time: EventTime(1_800_000_000_000 + 1000 * offset),
            settled: false,
            details: r#"{"count":101}"#.into(),
            pipeline: "fraud".into(),
            mode,
        };
        self.alerts.add(&alert, Epoch(epoch), status);
        alert.id()
    }
}

#[test]
fn probes_and_metrics_are_served() {
    let fixture = fixture(None);
    assert_eq!(fixture.get("/livez"), (200, "alive\n".to_owned()));
    let (status, unready) = fixture.get("/readyz");
    assert_eq!(status, 503, "{unready}");
    assert!(unready.contains("\"reason\":\"no epoch has been committed yet\""), "{unready}");
    fixture.metrics.frontier(Epoch(7), None);
    assert_eq!(fixture.get("/readyz").0, 200);
    fixture.metrics.events(3);
    assert!(fixture.get("/metrics").1.contains("headwater_events_total 3"));
    let (status, problem) = fixture.request("POST /metrics", "host: localhost\r\ncontent-length: 0\r\n");
    assert_eq!(status, 405, "{problem}");
    assert!(fixture.get("/else").1.contains("\"title\":\"Not Found\""));
}

#[test]
fn stuck_clients_do_not_block_a_probe() {
    let fixture = fixture(None);
    let stuck: Vec<_> = (0..200)
        .map(|n| {
            let mut stream = fixture.connect();
            match n % 3 {
                // Silent from the beginning, silent in the middle of a head, and sending requests without reading
                // responses.
                0 => {}
                1 => stream.write_all(b"GET /livez HTTP/1.1\r\nhost:").expect("sent"),
                _ => {
                    stream.set_nonblocking(true).expect("the option is set");
                    let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(1000);
                    // As much as fits into the buffer, unless the connection has already been replaced by another.
                    let _ = stream.write(&request);
                }
            }
            stream
        })
        .collect();
    let begun = Instant::now();
    assert_eq!(fixture.get("/livez").0, 200);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    drop(stuck);
}

#[test]
fn everything_but_probes_and_console_needs_the_token() {
    let fixture = fixture(Some("correct-horse-battery"));
    for open in ["/livez", "/", "/console/style.css"] {
        assert_eq!(fixture.request(&format!("GET {open}"), "host: h\r\n").0, 200, "{open}");
    }
    for path in
        ["/metrics", "/api/v1/status", "/api/v1/alerts", "/api/v1/alerts/stream", "/api/v1/openapi.json"]
    {
        let (status, problem) = fixture.get(path);
        assert_eq!(status, 401, "{path}: {problem}");
        assert!(problem.contains("Authorization: Bearer"), "{problem}");
    }
    let headers = "host: any.example\r\nauthorization: Bearer correct-horse-battery\r\n";
    assert_eq!(fixture.request("GET /api/v1/status", headers).0, 200);
}

#[test]
fn a_page_of_another_site_cannot_read_a_local_server() {
    let fixture = fixture(None);
    let (status, problem) = fixture.request("GET /api/v1/status", "host: evil.example\r\n");
    assert_eq!(status, 403, "{problem}");
    assert!(problem.contains("http.token_file"), "{problem}");
}

#[test]
fn the_status_has_flow_sinks_and_frontier() {
    let fixture = fixture(None);
    fixture.metrics.events(90);
    fixture.metrics.rejected("malformed", 7);
    fixture.metrics.rejected("late", 3);
    fixture.metrics.committed("kafka", Epoch(6), 12);
    fixture.metrics.watermark_at(Epoch(5), EventTime(1_800_000_000_000));
    fixture.metrics.frontier(Epoch(7), None);
    let status = fixture.json("/api/v1/status");
    assert_eq!(status["state"], "ready");
    assert_eq!((&status["events"], &status["dead_letters"]["malformed"]), (&90.into(), &7.into()));
    assert_eq!(status["sinks"][0]["through_epoch"], 6);
    assert_eq!(status["sinks"][0]["outputs"], 12);
    let edges = status["flow"]["edges"].as_array().expect("edges");
    let total = |from: &str, to: &str| {
        edges.iter().find(|edge| edge["from"] == from && edge["to"] == to).map(|edge| edge["total"].clone())
    };
    assert_eq!(total("source", "decode"), Some(97.into()));
    assert_eq!(total("admit", "enrich"), Some(87.into()));
    assert_eq!(total("dead_letters", "sink:kafka"), Some(10.into()));

    let frontier = fixture.json("/api/v1/frontier?at=2027-01-15T08:00:00Z");
    assert_eq!((&frontier["final"], &frontier["sinks"][0]["final"]), (&true.into(), &true.into()));
    let frontier = fixture.json("/api/v1/frontier?at=2027-01-15T08:00:00.001Z");
    assert_eq!(frontier["final"], false, "{frontier}");
    assert_eq!(fixture.get("/api/v1/frontier?at=yesterday").0, 400);
    assert_eq!(fixture.get("/api/v1/frontier").0, 400);
}

#[test]
fn alerts_are_served_once_they_are_committed() {
    let fixture = fixture(None);
    let first = fixture.raise(1, 3, Status::Raised);
    let second = fixture.raise(2, 4, Status::Raised);
    fixture.raise(1, 5, Status::Revoked);
    assert_eq!(fixture.json("/api/v1/alerts")["alerts"], Value::Array(Vec::new()));
    fixture.metrics.frontier(Epoch(5), None);
    let alerts = fixture.json("/api/v1/alerts");
    assert_eq!(alerts["alerts"][0]["alert_id"], second.as_str(), "the newest change first");
    assert_eq!(alerts["alerts"][1]["status"], "raised", "the revocation is not committed");
    fixture.metrics.frontier(Epoch(6), None);
    assert_eq!(fixture.json("/api/v1/alerts?status=revoked")["alerts"][0]["alert_id"], first.as_str());
    let page = fixture.json("/api/v1/alerts?limit=1");
    let cursor = page["next_cursor"].as_str().expect("a further page");
    let page = fixture.json(&format!("/api/v1/alerts?limit=1&cursor={cursor}"));
    assert_eq!(page["alerts"][0]["alert_id"], second.as_str());

    let alert = fixture.json(&format!("/api/v1/alerts/{first}?explain=true"));
    assert_eq!((&alert["status"], &alert["explanation"]["complete"]), (&"revoked".into(), &false.into()));
    assert_eq!(fixture.get(&format!("/api/v1/alerts/{}", "0".repeat(32))).0, 404);
    for wrong in [
        "severity=huge",
        "status=open",
        "mode=dark",
        "limit=0",
        "limit=x",
        "cursor=1",
        "from=now",
        "colour=red",
    ] {
        let (status, problem) = fixture.get(&format!("/api/v1/alerts?{wrong}"));
        assert_eq!(status, 400, "{wrong}: {problem}");
        assert!(problem.contains("\"status\":400"), "{problem}");
    }
}

#[test]
fn shadow_alerts_are_served_to_who_asks_for_them() {
    let fixture = fixture(None);
    let live = fixture.raise(1, 3, Status::Raised);
    let shadow = fixture.raise_in(RuleMode::Shadow, 2, 4, Status::Raised);
    fixture.metrics.frontier(Epoch(5), None);
    let ids = |parameters: &str| -> Vec<Value> {
        let alerts = fixture.json(&format!("/api/v1/alerts{parameters}"));
        alerts["alerts"].as_array().expect("alerts").iter().map(|alert| alert["alert_id"].clone()).collect()
    };
    assert_eq!(ids(""), [live.as_str()]);
    assert_eq!(ids("?mode=live"), [live.as_str()]);
    assert_eq!(ids("?mode=shadow"), [shadow.as_str()]);
    assert_eq!(ids("?mode=all"), [shadow.as_str(), live.as_str()]);
    assert_eq!(fixture.json(&format!("/api/v1/alerts/{shadow}"))["mode"], "shadow");
    assert_eq!(fixture.get("/api/v1/alerts/stream?mode=dark").0, 400);

    let stream_of = |mode: &str, last: &str| {
        let mut stream = fixture.connect();
        let after = format!("0-{}", "0".repeat(32));
        let head =
            format!("GET /api/v1/alerts/stream?after={after}{mode} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("sent");
        read_until(&mut stream, last)
    };
    let later = fixture.raise(3, 5, Status::Raised);
    fixture.metrics.frontier(Epoch(6), None);
    assert!(!stream_of("", &later).contains(&shadow));
    assert!(stream_of("&mode=all", &later).contains(&shadow));
    assert!(!stream_of("&mode=shadow", &shadow).contains(&live));
}

#[test]
fn the_stream_is_resumed_after_the_last_event() {
    let fixture = fixture(None);
    fixture.metrics.frontier(Epoch(3), None);
    let mut stream = fixture.connect();
    let head = "GET /api/v1/alerts/stream HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("sent");
    assert!(read_until(&mut stream, "retry: 1000").contains("text/event-stream"));
    let first = fixture.raise(1, 3, Status::Raised);
    let second = fixture.raise(2, 4, Status::Raised);
    fixture.metrics.frontier(Epoch(5), None);
    let text = read_until(&mut stream, &second);
    assert!(text.find(&first) < text.find(&second), "{text}");
    assert!(text.contains(&format!("event: alert\nid: 3-{first}\ndata: {{")), "{text}");

    let mut stream = fixture.connect();
    let head =
        format!("GET /api/v1/alerts/stream HTTP/1.1\r\nhost: localhost\r\nlast-event-id: 3-{first}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    assert!(!read_until(&mut stream, &second).contains(&first), "only what follows");
    assert_eq!(fixture.get("/api/v1/alerts/stream?after=x").0, 400);
}

/// Reads until the text contains `end`.
fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(end) {
        let read = stream.read(&mut buffer).expect("within the timeout");
        assert!(read > 0, "the stream ended: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    text
}

#[test]
fn keys_are_answered_once_the_run_has_started() {
    let fixture = fixture(None);
    assert_eq!(fixture.get("/api/v1/keys/card/1").0, 404);
    assert_eq!(fixture.get(&format!("/api/v1/keys/user/{}", "x".repeat(257))).0, 400);
    let (status, problem) = fixture.get("/api/v1/keys/user/ann");
    assert_eq!(status, 503, "{problem}");
    assert!(problem.contains("the run is starting"), "{problem}");
}

#[test]
fn dead_letters_that_no_sink_stores_are_a_conflict() {
    let fixture = fixture(None);
    for path in ["/api/v1/dead-letters", "/api/v1/dead-letters/groups", "/api/v1/dead-letters/0:9"] {
        let (status, problem) = fixture.get(path);
        assert_eq!(status, 409, "{problem}");
        assert!(problem.contains("add `dead_letters` to the tables"), "{problem}");
    }
    assert_eq!(fixture.get("/api/v1/dead-letters/nine").0, 400);
    let post = |body: &str| {
        let mut stream = fixture.connect();
        let length = body.len();
        write!(
            stream,
            "POST /api/v1/dead-letters/retry HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: \
             application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answered");
        text
    };
    assert!(post("{}").contains("choose letters by id"), "all letters must be asked for");
    assert!(post("{\"colour\":1}").contains("unknown field `colour`"));
    assert!(post("{\"all\":true}").starts_with("HTTP/1.1 409"));
}

#[test]
fn the_document_describes_every_path() {
    let fixture = fixture(None);
    let document = fixture.json("/api/v1/openapi.json");
    let paths: Vec<_> = document["paths"].as_object().expect("paths").keys().cloned().collect();
    let expected = [
        "/api/v1/alerts",
        "/api/v1/alerts/stream",
        "/api/v1/alerts/{id}",
        "/api/v1/dead-letters",
        "/api/v1/dead-letters/groups",
        "/api/v1/dead-letters/retry",
        "/api/v1/dead-letters/{id}",
        "/api/v1/frontier",
        "/api/v1/keys/{space}/{key}",
        "/api/v1/rules",
        "/api/v1/status",
    ];
    assert_eq!(paths, expected);
}

#[test]
fn the_document_has_the_token_and_the_type_of_problems() {
    let document = |requires| serde_json::to_value(super::openapi::document(requires)).expect("JSON");
    let (open, closed) = (document(false), document(true));
    let responses = |document: &Value| document["paths"]["/api/v1/frontier"]["get"]["responses"].clone();
    assert_eq!((&open["security"], responses(&open)["401"].is_null()), (&Value::Null, true));
    assert_eq!(closed["security"][0]["token"], serde_json::json!([]));
    let problem = &responses(&closed)["401"]["content"]["application/problem+json"]["schema"]["$ref"];
    assert_eq!(problem, "#/components/schemas/Problem");
    assert!(responses(&open)["403"]["content"]["application/problem+json"].is_object());
    assert!(responses(&open)["200"]["content"]["application/json"].is_object());
    let at = &open["paths"]["/api/v1/frontier"]["get"]["parameters"][0];
    assert_eq!((&at["in"], &at["schema"]["format"]), (&"query".into(), &"date-time".into()));
}

#[test]
fn one_explanation_at_a_time_reads_the_source() {
    let fixture = fixture(None);
    let id = fixture.raise(1, 2, Status::Raised);
    fixture.metrics.frontier(Epoch(7), None);
    let path = format!("/api/v1/alerts/{id}?explain=true");
    let permit = fixture.source_reads.try_acquire().expect("no other request");
    let mut stream = fixture.connect();
    write!(stream, "GET {path} HTTP/1.1\r\nconnection: close\r\nhost: localhost\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered");
    assert!(text.starts_with("HTTP/1.1 503") && text.contains("\r\nretry-after: 3\r\n"), "{text}");
    assert_eq!(
        fixture.get(&format!("/api/v1/alerts/{id}")).0,
        200,
        "without an explanation it is not needed"
    );
    drop(permit);
    let explained = fixture.json(&path);
    assert_eq!(explained["explanation"]["complete"], false, "{explained}");
}
