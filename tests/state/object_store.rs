//! Behaviour that only object stores have: outages, credentials, and servers that are something else.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headwater::state::object::{Access, ObjectStoreConfig, ObjectUrl};
use headwater::state::{StateConfig, StateError, open};

use crate::pipeline;

/// Returns the settings of a directory.
pub fn directory(dir: &Path) -> StateConfig {
    let url = ObjectUrl::parse(&format!("file://{}", dir.display())).expect("valid");
    let config = ObjectStoreConfig {
        url,
        endpoint: None,
        access: Access::Directory,
        allow_http: false,
        ca_file: None,
        retry_timeout: Duration::from_secs(1),
    };
    StateConfig::Object(Box::new(config))
}

/// Returns the settings of the S3 server of the tests.
pub fn s3() -> StateConfig {
    let endpoint = std::env::var("HEADWATER_TEST_S3").expect("HEADWATER_TEST_S3 names an S3 server");
    of_config(config(endpoint, "states/contract", "headwater-secret"))
}

fn config(endpoint: String, place: &str, secret: &str) -> ObjectStoreConfig {
    ObjectStoreConfig {
        url: ObjectUrl::parse(&format!("s3://{place}")).expect("valid"),
        endpoint: Some(endpoint),
        access: Access::S3 { region: None, keys: Some(("headwater".to_owned(), secret.into())) },
        allow_http: true,
        ca_file: None,
        retry_timeout: Duration::from_secs(20),
    }
}

fn of_config(config: ObjectStoreConfig) -> StateConfig {
    StateConfig::Object(Box::new(config))
}

/// Returns an error with its causes.
fn text(error: &StateError) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {source}")
}

fn opening(config: ObjectStoreConfig) -> String {
    match open(&of_config(config), &pipeline("refused")) {
        Ok(_) => panic!("it was opened"),
        Err(error) => text(&error),
    }
}

/// A server that passes connections on, and misbehaves while it has a fault.
struct Gate {
    address: String,
    fault: Arc<Mutex<Fault>>,
    requests: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Connections are closed at once.
    Closed,
    /// Requests are answered with this status, header and body.
    Answer(&'static str, &'static str, &'static str),
    /// The request is passed on, and the connection is closed instead of the response: it was carried out.
    LostResponse,
}

impl Gate {
    fn before(server: &str) -> Gate {
        let server = server.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let (fault, requests) = (Arc::new(Mutex::new(Fault::None)), Arc::new(AtomicUsize::new(0)));
        let gate = Gate { address, fault: Arc::clone(&fault), requests: Arc::clone(&requests) };
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (server, fault) = (server.clone(), Arc::clone(&fault));
                requests.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || serve(client.expect("accepted"), &server, &fault));
            }
        });
        gate
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().expect("unlocked") = fault;
    }
}

/// Serves one connection. Its end is not an error: the client may close it.
fn serve(mut client: std::net::TcpStream, server: &str, fault: &Mutex<Fault>) {
    let fault = *fault.lock().expect("unlocked");
    if fault == Fault::Closed {
        return;
    }
    if let Fault::Answer(status, header, body) = fault {
        let _ = client.read(&mut [0; 65536]);
        let length = body.len();
        let _ = write!(
            client,
            "HTTP/1.1 {status}\r\n{header}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        return;
    }
    let mut server = std::net::TcpStream::connect(server).expect("the server runs");
    let (mut from, mut to) = (client.try_clone().expect("cloned"), server.try_clone().expect("cloned"));
    let copying = std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    if fault == Fault::LostResponse {
        let _ = server.read(&mut [0; 65536]);
    } else {
        let _ = std::io::copy(&mut server, &mut client);
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
    let _ = copying.join();
}

fn gate() -> Gate {
    Gate::before(&std::env::var("HEADWATER_TEST_S3").expect("HEADWATER_TEST_S3 names an S3 server"))
}

#[test]
fn requests_are_repeated_until_the_store_answers() {
    let answer = |status| Fault::Answer(status, "", "");
    for fault in
        [Fault::Closed, answer("503 Slow Down"), answer("429 Too Many Requests"), Fault::LostResponse]
    {
        let gate = gate();
        let config = config(gate.address.clone(), "states/outage", "headwater-secret");
        let mut store = open(&of_config(config), &pipeline("outage")).expect("it answers");
        // Connections that are kept do not meet the fault.
        std::thread::sleep(Duration::from_secs(5));
        gate.set(fault);
        let before = gate.requests.load(Ordering::SeqCst);
        let closer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(2));
            gate.set(Fault::None);
            gate
        });
        for name in ["1", "2", "3"] {
            store.put(name, name.as_bytes()).expect("put");
        }
        let start = Instant::now();
        store.sync().expect("it answers again");
        assert!(start.elapsed() > Duration::from_secs(1), "the fault was not met");
        let gate = closer.join().expect("no panic");
        assert!(gate.requests.load(Ordering::SeqCst) - before > 6, "requests were not repeated");
        assert_eq!(store.list("").expect("an answer"), ["1", "2", "3"]);
        assert_eq!(store.get("2").expect("an answer").as_deref(), Some(&b"2"[..]));
    }
}

#[test]
fn an_outage_is_an_error_after_the_time_limit() {
    let gate = gate();
    let mut config = config(gate.address.clone(), "states/outage", "headwater-secret");
    config.retry_timeout = Duration::from_secs(1);
    let mut store = open(&of_config(config), &pipeline("limit")).expect("it answers");
    std::thread::sleep(Duration::from_secs(5));
    gate.set(Fault::Closed);
    store.put("a/1", b"x").expect("it is put in the background");
    let error = text(&store.sync().expect_err("nothing answers"));
    assert!(error.starts_with("state store: cannot put a/1 in s3://states/outage/limit-"), "{error}");
    assert!(error.contains(&format!("at {}: {}: ", gate.address, gate.address)), "{error}");
    for outcome in [store.list("").map(drop), store.get("a/1").map(drop), store.delete("a/1")] {
        outcome.expect_err("nothing answers");
    }
    gate.set(Fault::None);
    store.put("a/1", b"x").expect("put");
    store.sync().expect("it answers again");
}

#[test]
fn refusals_are_errors_at_once_that_say_what_to_do() {
    let endpoint = std::env::var("HEADWATER_TEST_S3").expect("HEADWATER_TEST_S3 names an S3 server");
    let start = Instant::now();
    let wrong = opening(config(endpoint.clone(), "states", "hunter2"));
    assert!(wrong.contains("403 Forbidden") && wrong.contains("check `state.access_key_id`"), "{wrong}");
    assert!(!wrong.contains("hunter2"), "{wrong}");
    let unencrypted =
        opening(ObjectStoreConfig { allow_http: false, ..config(endpoint, "states", "headwater-secret") });
    assert!(unencrypted.contains("set `state.allow_http = true`"), "{unencrypted}");
    let gate = gate();
    for (fault, expected) in [
        (Fault::Answer("301 Moved", "x-amz-bucket-region: eu-north-1\r\n", ""), "in the region eu-north-1"),
        (
            Fault::Answer("404 Not Found", "", "<Error><Code>NoSuchBucket</Code></Error>"),
            "404 Not Found: NoSuchBucket",
        ),
        (Fault::Answer("400 Bad Request", "", "<Error><Code>Wrong</Code></Error>"), "400 Bad Request: Wrong"),
    ] {
        gate.set(fault);
        let reason = opening(config(gate.address.clone(), "states", "headwater-secret"));
        assert!(reason.contains(expected) && reason.contains("s3://states/refused-"), "{reason}");
    }
    assert!(start.elapsed() < Duration::from_secs(4), "a refusal is not repeated");
}

#[test]
fn a_server_that_forgets_what_it_stores_is_refused() {
    let gate = gate();
    gate.set(Fault::Answer(
        "200 OK",
        "etag: \"1\"\r\nlast-modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n",
        "old",
    ));
    let reason = opening(config(gate.address.clone(), "states", "headwater-secret"));
    assert!(reason.contains("something other than what was just written"), "{reason}");
}
