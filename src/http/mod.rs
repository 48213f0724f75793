//! The HTTP server: probes, metrics, the API and the console.
//!
//! ```text
//!   connections (limits, TLS) ─▶ router ─┬▶ /livez, /readyz, console
//!                                        └▶ access ─▶ /metrics, /api/v1/… ─▶ metrics, results (on a thread of their own)
//! ```
//!
//! The server has a thread of its own, and shares with workers and writers only what they publish. In a cluster it asks the
//! server of another process about that one's keys.

mod access;
mod alerts;
mod api;
mod connections;
mod console;
mod dead_letters;
mod forward;
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
pub use forward::Forwarder;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::config::HttpConfig;
use crate::runtime::HttpAddress;
use tls::Tls;

/// An HTTP server, which stops when it is dropped.
pub struct Server {
    address: HttpAddress,
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
    let address = HttpAddress { listen: listener.local_addr()?, has_tls: tls.is_some() };
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! { () = connections::accept(listener, router, tls) => {}, _ = stopped => {} }
        });
        // A query of a slow store ends by its own timeout, and delays no stop.
        runtime.shutdown_background();
    })?;
    Ok(Server { address, stop: Some(stop), thread: Some(thread) })
}

impl Server {
    /// Returns the address on which the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address.listen
    }

    /// Returns the address that other processes of the cluster need.
    pub fn http_address(&self) -> HttpAddress {
        self.address
    }

    /// Returns the URL of the console.
    pub fn url(&self) -> String {
        let HttpAddress { listen, has_tls } = self.address;
        let scheme = if has_tls { "https" } else { "http" };
        format!("{scheme}://{listen}/")
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
