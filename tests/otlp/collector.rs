//! A collector that receives traces by OTLP over HTTP, decodes and stores them; or that refuses, or never responds.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

/// The collector's response to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    Accept,
    /// It cannot accept requests at the moment.
    Unavailable,
    /// It never accepts the request.
    Reject,
    /// It does not respond.
    Hang,
}

/// A request that was accepted.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    /// The headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
    pub request: ExportTraceServiceRequest,
}

/// A server on a loopback port, for as long as the test runs.
#[derive(Clone)]
pub struct Collector {
    port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    response: Response,
    requests: u64,
    accepted: Vec<Received>,
}

impl Collector {
    /// Starts the server.
    pub fn start(response: Response) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(Mutex::new(State { response, requests: 0, accepted: Vec::new() }));
        let of_thread = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.expect("a connection"), Arc::clone(&of_thread));
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Collector { port, state }
    }

    /// Returns the address, without a path.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Changes the response to further requests.
    pub fn respond(&self, response: Response) {
        self.state.lock().expect("no thread panics").response = response;
    }

    /// Returns the number of requests, also those that were not accepted.
    pub fn requests(&self) -> u64 {
        self.state.lock().expect("no thread panics").requests
    }

    /// Returns the accepted requests so far.
    pub fn accepted(&self) -> Vec<Received> {
        self.state.lock().expect("no thread panics").accepted.clone()
    }
}

/// Serves one request. A connection that the client has closed is ignored.
fn serve(stream: TcpStream, state: &Mutex<State>) -> Option<()> {
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
    let request = ExportTraceServiceRequest::decode(&*body).expect("an export request in protobuf");
    let response = {
        let mut state = state.lock().expect("no thread panics");
        state.requests += 1;
        if state.response == Response::Accept {
            state.accepted.push(Received { path, headers, request });
        }
        state.response
    };
    let status = match response {
        Response::Accept => "200 OK",
        Response::Unavailable => "503 Service Unavailable",
        Response::Reject => "400 Bad Request",
        // Until the client gives up.
        Response::Hang => return reader.read(&mut [0]).ok().map(drop),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    reader.into_inner().write_all(answer.as_bytes()).ok()
}
