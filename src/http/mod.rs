//! The HTTP server: probes, metrics, the API and the console.
//!
//! ```text
//!   connections (limits, TLS) ─▶ router ─┬▶ /livez, /readyz, console
//!                                        └▶ access ─▶ /metrics, /api/v1/… ─▶ metrics, results (on a thread of their own)
//! ```
//!
//! The server has a thread of its own, and shares with workers and writers only what they publish.

mod access;
mod alerts;
mod api;
mod connections;
mod console;
mod dead_letters;
mod keys;
mod openapi;
mod probes;
mod problem;
mod rules;
mod status;
mod stream;
mod tls;

pub use access::Access;
pub use api::{Api, Run, SinkOutputs};

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::config::HttpConfig;
use tls::Tls;

/// An HTTP server, which stops when it is dropped.
pub struct Server {
    address: SocketAddr,
    has_tls: bool,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Starts the server.
///
/// # Errors
/// If the address cannot be bound, or the certificate or key cannot be read.
pub fn serve(config: &HttpConfig, api: Api) -> std::io::Result<Server> {
    let tls = config.tls.as_ref().map(Tls::read).transpose()?;
    let access = match &config.token {
        Some(token) => Access::Token(token.clone()),
        None if config.insecure => Access::Everyone,
        None => Access::Local,
    };
    let router = api::router(Arc::new(api), access);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind(config.listen))?;
    let (address, has_tls) = (listener.local_addr()?, tls.is_some());
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! { () = connections::accept(listener, router, tls) => {}, _ = stopped => {} }
        });
        // A query of a slow store ends by its own timeout, and delays no stop.
        runtime.shutdown_background();
    })?;
    Ok(Server { address, has_tls, stop: Some(stop), thread: Some(thread) })
}

impl Server {
    /// Returns the address on which the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL of the console.
    pub fn url(&self) -> String {
        let scheme = if self.has_tls { "https" } else { "http" };
        format!("{scheme}://{}/", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A panic of the thread has been logged, and no client waits for a response any more.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[cfg(test)]
mod tests;
