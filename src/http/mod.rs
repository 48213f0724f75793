//! Health probes and metrics over HTTP: `/livez`, `/readyz`, `/metrics`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::metrics::Metrics;

/// An HTTP server, which stops when it is dropped.
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The maximum number of open connections. A further connection replaces the one that has been without a request for
/// longest, so that clients that never send or never read cannot block a probe.
const CONNECTIONS: usize = 64;

/// The maximum time for which a connection may send no request, or take to read a response.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The maximum time to receive the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts the server.
///
/// # Errors
/// If the address cannot be bound.
pub fn serve(listen: SocketAddr, metrics: Arc<Metrics>) -> std::io::Result<Server> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind(listen))?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! { () = accept(listener, metrics) => {}, _ = stopped => {} }
        });
    })?;
    Ok(Server { address, stop: Some(stop), thread: Some(thread) })
}

impl Server {
    /// Returns the address on which the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A panic of the thread has been logged, and no client waits for a response any more.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// An open connection.
struct Connection {
    last_request: LastRequest,
    task: AbortHandle,
}

/// The time of a connection's last request; initially, the time at which it was accepted.
#[derive(Clone)]
struct LastRequest(Arc<Mutex<Instant>>);

impl LastRequest {
    fn set(&self, now: Instant) {
        *self.0.lock().expect("no holder of the lock panics") = now;
    }

    fn get(&self) -> Instant {
        *self.0.lock().expect("no holder of the lock panics")
    }

    /// Waits until there has been no request for `timeout`.
    async fn idle_for(&self, timeout: Duration) {
        while let Some(left) = timeout.checked_sub(self.get().elapsed()) {
            tokio::time::sleep(left + Duration::from_millis(1)).await;
        }
    }
}

async fn accept(listener: TcpListener, metrics: Arc<Metrics>) {
    let mut open: Vec<Connection> = Vec::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        open.retain(|connection| !connection.task.is_finished());
        while open.len() >= CONNECTIONS
            && let Some((idlest, _)) =
                open.iter().enumerate().min_by_key(|(_, connection)| connection.last_request.get())
        {
            open.swap_remove(idlest).task.abort();
        }
        let last_request = LastRequest(Arc::new(Mutex::new(Instant::now())));
        let task = tokio::spawn(serve_one(stream, Arc::clone(&metrics), last_request.clone())).abort_handle();
        open.push(Connection { last_request, task });
    }
}

async fn serve_one(stream: TcpStream, metrics: Arc<Metrics>, last_request: LastRequest) {
    let service = service_fn(|request| {
        last_request.set(Instant::now());
        let response = respond(&request, &metrics);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "HTTP connection failed");
            }
        }
        () = last_request.idle_for(IDLE_TIMEOUT) => {}
    }
}

fn respond<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/livez") => (StatusCode::OK, "text/plain; charset=utf-8", "alive\n".to_owned()),
        (&Method::GET, "/readyz") => match metrics.unready() {
            None => (StatusCode::OK, "application/json", "{\"ready\":true}\n".to_owned()),
            Some(unready) => {
                let body = serde_json::json!({
                    "ready": false,
                    "reason": unready.reason,
                    "stalled": unready.causes.iter().map(|cause| cause.as_str()).collect::<Vec<_>>(),
                    "standstill_s": unready.standstill_s,
                    "lag_records": unready.lag_records,
                    "committing": unready.committing,
                });
                (StatusCode::SERVICE_UNAVAILABLE, "application/json", format!("{body}\n"))
            }
        },
        (&Method::GET, "/metrics") => (StatusCode::OK, "text/plain; version=0.0.4", metrics.text()),
        (_, "/livez" | "/readyz" | "/metrics") => {
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", "only GET is allowed\n".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn probes_and_metrics_are_served() {
        let metrics = Arc::new(Metrics::default());
        let server = serve(([127, 0, 0, 1], 0).into(), Arc::clone(&metrics)).expect("a free port");
        let get = |head: &str| {
            let mut stream = std::net::TcpStream::connect(server.address()).expect("it listens");
            write!(stream, "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("answered");
            text
        };
        assert!(get("GET /livez").starts_with("HTTP/1.1 200"));
        let unready = get("GET /readyz");
        assert!(unready.starts_with("HTTP/1.1 503"), "{unready}");
        assert!(unready.contains("\"reason\":\"no epoch has been committed yet\""), "{unready}");
        metrics.frontier(headwater_dataflows::Epoch(7), None);
        assert!(get("GET /readyz").starts_with("HTTP/1.1 200"));
        metrics.events(3);
        assert!(get("GET /metrics").contains("headwater_events_total 3"));
        assert!(get("POST /metrics").starts_with("HTTP/1.1 405"));
        assert!(get("GET /else").starts_with("HTTP/1.1 404"));
    }

    #[test]
    fn stuck_clients_do_not_block_a_probe() {
        let server = serve(([127, 0, 0, 1], 0).into(), Arc::new(Metrics::default())).expect("a free port");
        let stuck: Vec<_> = (0..200)
            .map(|n| {
                let mut stream = std::net::TcpStream::connect(server.address()).expect("it listens");
                match n % 3 {
                    // Silent from the beginning, silent in the middle of a head, and sending requests without reading
                    // responses.
                    0 => {}
                    1 => stream.write_all(b"GET /livez HTTP/1.1\r\nhost:").expect("sent"),
                    _ => {
                        stream.set_nonblocking(true).expect("the option is set");
                        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
                        // As much as fits into the buffer, unless the connection has already been replaced by another.
                        let _ = stream.write(&request);
                    }
                }
                stream
            })
            .collect();
        let begun = Instant::now();
        let mut stream = std::net::TcpStream::connect(server.address()).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("the option is set");
        write!(stream, "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answered");
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        drop(stuck);
    }
}
