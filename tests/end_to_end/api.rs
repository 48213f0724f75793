//! The API of a running demo: what it answers is what the tables say.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use crate::common::headwater;
use crate::live::{Process, get, wait_for};

/// Returns the JSON at a path.
pub fn json(address: SocketAddr, path: &str) -> Value {
    let (status, body) = get(address, path);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}

/// Returns the newest alerts that match the parameters.
pub fn alerts(address: SocketAddr, parameters: &str) -> Vec<Value> {
    json(address, &format!("/api/v1/alerts?{parameters}"))["alerts"].as_array().expect("a list").clone()
}

/// Starts the demo with its console; returns it and its address.
fn start_demo(dir: &Path) -> (Process, SocketAddr) {
    let mut command = headwater(&["demo", "--console", "--http", "127.0.0.1:0", "-w", "2", "--out"]);
    command.arg(dir.join("out"));
    let output = std::fs::File::create(dir.join("stdout")).expect("a file");
    let demo = Process::start_with_output(command, output, dir.join("demo.log"));
    let address = wait_for("the address of the console", || {
        let text = std::fs::read_to_string(dir.join("stdout")).ok()?;
        text.strip_prefix("console: http://")?.strip_suffix("/\n")?.parse().ok()
    });
    (demo, address)
}

/// Checks the live state of the key of an alert, and the groups of dead letters, while the run goes on.
fn expect_key_and_dead_letters(address: SocketAddr, alert: &Value) {
    let (kind, key) = (&alert["key_kind"], &alert["key"]);
    let path = format!("/api/v1/keys/{}/{}", kind.as_str().expect("text"), key.as_str().expect("text"));
    let state = json(address, &path);
    assert_eq!((&state["key"], &state["key_kind"], &state["found"]), (key, kind, &true.into()), "{state}");
    assert!(state["profile"]["events"].as_u64() > Some(0), "{state}");
    assert!(state["rules"].as_array().is_some_and(|rules| !rules.is_empty()), "{state}");
    let alerts = state["alerts"].as_array().expect("a list");
    assert!(alerts.iter().any(|listed| listed["alert_id"] == alert["alert_id"]), "{state}");

    let groups = wait_for("dead letters", || {
        let answer = json(address, "/api/v1/dead-letters/groups");
        assert_eq!(answer["complete"], true, "{answer}");
        answer["groups"].as_array().filter(|groups| !groups.is_empty()).cloned()
    });
    let counts: Vec<_> = groups.iter().map(|group| group["count"].as_u64().expect("a number")).collect();
    assert!(counts.is_sorted_by(|a, b| a >= b) && counts.iter().all(|&count| count > 0), "{groups:?}");
    let id = groups[0]["example"].as_str().expect("the id of a letter");
    assert_eq!(json(address, &format!("/api/v1/dead-letters/{id}"))["reason"], groups[0]["reason"]);
    let reason = groups[0]["reason"].as_str().expect("a reason");
    let page = json(address, &format!("/api/v1/dead-letters?reason={reason}&limit=1"));
    assert_eq!(page["dead_letters"][0]["reason"], reason, "{page}");
}

#[test]
fn the_demo_shows_alerts_and_why_one_was_revoked() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut demo, address) = start_demo(dir.path());
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("the option is set");
    stream
        .write_all(b"GET /api/v1/alerts/stream?after=0- HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .expect("sent");

    let revoked = wait_for("a revoked alert", || alerts(address, "status=revoked").pop());
    assert_eq!(revoked["rule"], "rapid_fire_burst");
    let id = revoked["alert_id"].as_str().expect("an id");
    let explained = json(address, &format!("/api/v1/alerts/{id}?explain=true"));
    let events = explained["explanation"]["events"].as_array().expect("events");
    assert_eq!(explained["explanation"]["complete"], true, "{explained}");
    assert_eq!(events.iter().filter(|event| event["arrived_after"] == true).count(), 1, "{explained}");
    let last = events.last().expect("the triggering event");
    assert_eq!((&last["trigger"], &last["before"]["count"]), (&true.into(), &10.into()), "{explained}");

    expect_key_and_dead_letters(address, &revoked);

    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(&format!("-{id}\ndata: ")) {
        let read = stream.read(&mut buffer).expect("within the timeout");
        assert!(read > 0, "the stream ended: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }

    let status = json(address, "/api/v1/status");
    assert_eq!((&status["state"], &status["pipeline"]), (&"ready".into(), &"demo".into()));
    assert!(status["sinks"][0]["outputs"].as_u64() > Some(1000), "{status}");
    let watermark = status["watermark"]["time"].as_str().expect("a watermark").to_owned();
    let is_final = || json(address, &format!("/api/v1/frontier?at={watermark}"))["final"] == true;
    wait_for("a final watermark", || is_final().then_some(()));
    assert_eq!(json(address, "/api/v1/frontier?at=2200-01-01T00:00:00Z")["final"], false);

    demo.terminate();
    demo.expect_success();
    let stored = Connection::open(dir.path().join("out/results.db")).expect("a database");
    let status: String = stored
        .query_row("SELECT status FROM alerts WHERE alert_id = ?1", [id], |row| row.get(0))
        .expect("the alert");
    assert_eq!(status, "revoked");
}
