//! The connections of the server: accepted, limited in number and in time, with TLS or without.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tower::ServiceExt;

use super::tls::Tls;

/// The maximum number of open connections. A further connection replaces the one that has been without a request for
/// longest, so that clients that never send or never read cannot block a probe.
const CONNECTIONS: usize = 64;

/// The maximum time for which a connection may send no request, or take to read a response.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The maximum time to receive the head of a request, and for the handshake of TLS.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum size of the head of a request, in bytes.
const HEAD_BYTES: usize = 16 << 10;

/// An open connection.
struct Connection {
    last_request: LastRequest,
    task: AbortHandle,
}

/// The time of a connection's last request; initially, the time at which it was accepted.
#[derive(Clone)]
pub struct LastRequest(Arc<Mutex<Instant>>);

impl LastRequest {
    /// Sets the time.
    pub fn set(&self, now: Instant) {
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

/// Accepts connections for ever.
pub async fn accept(listener: TcpListener, router: Router, tls: Option<Tls>) {
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
        let serving = serve_one(stream, router.clone(), tls.clone(), last_request.clone());
        let task = tokio::spawn(serving).abort_handle();
        open.push(Connection { last_request, task });
    }
}

async fn serve_one(stream: TcpStream, router: Router, tls: Option<Tls>, last_request: LastRequest) {
    let Some(tls) = tls else { return serve_requests(stream, router, last_request).await };
    match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => serve_requests(stream, router, last_request).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake timed out"),
    }
}

async fn serve_requests<S>(stream: S, router: Router, last_request: LastRequest)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|mut request: Request<Incoming>| {
        last_request.set(Instant::now());
        request.extensions_mut().insert(last_request.clone());
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
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
