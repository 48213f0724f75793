//! Health probes and metrics over HTTP: `/livez`, `/readyz`, `/metrics`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

use crate::metrics::Metrics;

/// Serves as long as it is kept.
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// No more connections than this are served at a time.
const CONNECTIONS: usize = 64;

/// How long a request's head may take to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Begins to serve.
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
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A panic there has been printed, and nobody waits for an answer any more.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

async fn accept(listener: TcpListener, metrics: Arc<Metrics>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP connection ended badly");
            }
            drop(place);
        });
    }
}

fn answer<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
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
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", "only GET\n".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "there is nothing here\n".to_owned()),
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
}
