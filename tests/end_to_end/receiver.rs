//! A receiver of deliveries: an HTTP server whose paths succeed, fail half the time, refuse, or never answer.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::common::Random;

/// A request.
#[derive(Clone, Debug)]
pub struct Received {
    /// The path.
    pub path: String,
    /// The headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Value,
    /// True if it was answered with success.
    pub accepted: bool,
}

/// A server on a loopback port, for as long as the test runs.
#[derive(Clone)]
pub struct Receiver {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    requests: Mutex<Vec<Received>>,
    count: AtomicU64,
    accepts_all: AtomicBool,
}

impl Receiver {
    /// Starts the server.
    pub fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::<State>::default();
        let of_thread = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.expect("a connection"), Arc::clone(&of_thread));
                std::thread::spawn(move || state.serve(stream));
            }
        });
        Receiver { port, state }
    }

    /// Returns the URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// Accepts every request from now on, except those that are never answered.
    pub fn accept_all(&self) {
        self.state.accepts_all.store(true, Ordering::SeqCst);
    }

    /// Returns the requests to a path so far, in order.
    pub fn requests(&self, path: &str) -> Vec<Received> {
        let requests = self.state.requests.lock().expect("no thread panics");
        requests.iter().filter(|received| received.path == format!("/{path}")).cloned().collect()
    }
}

impl State {
    /// Returns the number of requests so far with the id of these headers.
    fn attempts(&self, headers: &BTreeMap<String, String>) -> usize {
        let requests = self.requests.lock().expect("no thread panics");
        requests
            .iter()
            .filter(|received| received.headers.get("webhook-id") == headers.get("webhook-id"))
            .count()
    }

    /// Answers one request. A connection that the client has closed is ignored.
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let path = line.split(' ').nth(1)?.to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        let body = serde_json::from_slice(&body).expect("JSON");
        let nth = self.count.fetch_add(1, Ordering::SeqCst);
        let status = match path.as_str() {
            "/hang" => None,
            _ if self.accepts_all.load(Ordering::SeqCst) => Some("200 OK"),
            // Retries wait twice as long each time: the fourth succeeds, so that a test does not wait for minutes.
            "/flaky"
                if Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(nth + 1)).below(2) == 0
                    && self.attempts(&headers) < 3 =>
            {
                Some("503 Service Unavailable")
            }
            "/refuse" => Some("400 Bad Request"),
            "/redirect" => Some("302 Found\r\nlocation: /ok"),
            _ => Some("204 No Content"),
        };
        let accepted = status.is_some_and(|status| status.starts_with('2'));
        self.requests.lock().expect("no thread panics").push(Received { path, headers, body, accepted });
        match status {
            Some(status) => {
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                reader.into_inner().write_all(answer.as_bytes()).ok()
            }
            // Until the client gives up.
            None => reader.read(&mut [0]).ok().map(drop),
        }
    }
}
