//! The HTTP addresses of the processes of a cluster. They send them to each other over the connections of the cluster, at
//! the beginning of a run.
//!
//! ```text
//!   HTTP server ─ serve_at ─▶ Peers ─▶ first worker ── broadcast ──▶ first worker of each process ─▶ Peers
//!                                      host file: names of the hosts ──────────────────────────────▶   │
//!   HTTP server ◀── URL of a process ──────────────────────────────────────────────────────── find ────┘
//! ```
//!
//! A process listens on a port of its own choice, often on all interfaces. The others reach it under the name that the host
//! file has for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bincode::Options;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use timely::CommunicationConfig::Cluster;
use timely::dataflow::operators::Inspect;
use timely::dataflow::operators::vec::{Broadcast, ToStream};
use timely::worker::Worker;

/// The HTTP addresses of the processes of a cluster during a run. Cloning is cheap; all clones are of the same run.
#[derive(Clone, Default)]
pub struct Peers(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// The address of this process; None if it serves no HTTP.
    own: Option<HttpAddress>,
    /// The hosts of the processes, by index. Empty if there is one process.
    hosts: Vec<String>,
    /// The addresses that have been received, by index; None of a process that serves no HTTP.
    received: BTreeMap<usize, Option<HttpAddress>>,
}

/// The address at which a process serves HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpAddress {
    /// The address on which it listens.
    pub listen: SocketAddr,
    /// True if it serves HTTPS only.
    pub has_tls: bool,
}

/// Another process of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its host in the host file.
    pub host: String,
    /// The address at which it serves HTTP.
    pub http: HttpAddress,
}

/// The reason why a process has no address.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PeerError {
    /// The address has not been received.
    #[error("its address is not known yet, because the run is starting; ask again once it is ready")]
    Starting,
    /// The process serves no HTTP.
    #[error("it serves no HTTP: add the section [http] to its configuration")]
    NoHttp,
}

impl Peer {
    /// Returns the URL of the server.
    pub fn url(&self) -> String {
        let scheme = if self.http.has_tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host, self.http.listen.port())
    }
}

impl Peers {
    /// Sets the address at which this process serves HTTP. Call it before the run.
    pub fn serve_at(&self, address: HttpAddress) {
        self.lock().own = Some(address);
    }

    /// Returns a process of the cluster.
    ///
    /// # Errors
    /// If its address is not known.
    pub fn find(&self, process: usize) -> Result<Peer, PeerError> {
        let known = self.lock();
        let received = known.received.get(&process).ok_or(PeerError::Starting)?;
        let http = received.ok_or(PeerError::NoHttp)?;
        let host = known.hosts.get(process).ok_or(PeerError::Starting)?.clone();
        Ok(Peer { host, http })
    }

    /// Takes the hosts of the processes from the configuration of the workers. Call it before the run.
    pub fn take_hosts(&self, workers: &timely::Config) {
        if let Cluster { addresses, .. } = &workers.communication {
            let host = |address: &String| match address.rsplit_once(':') {
                Some((host, _port)) => host.to_owned(),
                None => address.clone(),
            };
            self.lock().hosts = addresses.iter().map(host).collect();
        }
    }

    /// Sends the address of this process to all processes, and takes theirs, by a dataflow that ends when all have it. Every
    /// worker has to call this before it builds its next dataflow. `local_workers` is the number of workers of a process.
    pub(super) fn exchange(&self, worker: &mut Worker, local_workers: usize) {
        if worker.peers() == local_workers {
            return;
        }
        let (process, local) = (worker.index() / local_workers, worker.index() % local_workers);
        let own = (local == 0).then(|| self.clone());
        let encode =
            |message: &Message| bincode::options().serialize(message).expect("an address can be encoded");
        let message = own.as_ref().map(|peers| encode(&(process, peers.lock().own)));
        worker.dataflow::<u64, _, _>(|scope| {
            message.to_stream(scope).broadcast().inspect(move |message: &Vec<u8>| {
                if let Some(peers) = &own {
                    peers.receive(message);
                }
            });
        });
    }

    fn receive(&self, message: &[u8]) {
        match bincode::options().deserialize::<Message>(message) {
            Ok((process, address)) => drop(self.lock().received.insert(process, address)),
            Err(error) => tracing::warn!(%error, "cannot decode the HTTP address of a process"),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().expect("no thread panics while it holds the lock")
    }

    /// Returns the addresses of a cluster, as after an exchange.
    #[cfg(test)]
    pub fn of_addresses(addresses: &[(&str, Option<HttpAddress>)]) -> Peers {
        let hosts = addresses.iter().map(|(host, _)| (*host).to_owned()).collect();
        let received = addresses.iter().map(|&(_, address)| address).enumerate().collect();
        Peers(Arc::new(Mutex::new(Known { own: None, hosts, received })))
    }
}

/// The index of a process and its address.
type Message = (usize, Option<HttpAddress>);
