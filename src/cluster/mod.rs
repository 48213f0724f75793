//! The connections between the processes of a cluster: one for each pair, from the start to the end of a run.
//!
//! ```text
//!   connect, accept ─▶ TLS, if configured ─▶ handshake: secret, identity ─▶ Link ─ frames, heartbeats ─▶ the other process
//!        │ refused: one line in both logs        (handshake.rs)              │
//!        ▼                                                                   ├─ before the run: Start, Prepared, Go
//!   wait_for_all ─▶ start data of process 0 ─▶ state is read ─▶ prepared ────┴─ in the run: messages of timely (stream.rs)
//!                                                  │
//!   a connection closes, is silent, or says so ────┴─▶ PeerLost: the run ends in order
//! ```
//!
//! - Nothing reaches timely before both ends have proved who they are, and no failure of a connection either.
//! - Until all processes have joined and process 0 has sent its start data, a lost connection is made again. After that,
//!   it ends the run: the state of the lost process is gone.
//! - Heartbeats travel on the connection of the data, so that they prove what matters: that data arrives. Data counts as a
//!   heartbeat. timely always reads, so that neither waits behind the other for long.

mod handshake;
mod identity;
mod join;
mod link;
mod loss;
mod members;
mod opening;
pub mod proof;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod transport;

pub use loss::{Noticed, PeerLost};

use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use thiserror::Error;
use timely::communication::allocator::zero_copy::initialize::{
    CommsGuard, initialize_networking_from_sockets,
};
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::{Hooks, WorkerGuards};
use timely::worker::Worker;

use crate::config::ClusterConfig;
use crate::metrics::Metrics;
pub use handshake::{HandshakeError, printable};
use identity::Identity;
pub use join::ReasonLog;
use members::Members;
pub use opening::{Accepted, Halves, open_from, open_to};
use stream::PeerStream;
pub use tls::TlsIdentity;
pub use transport::WriteHalf;

/// The settings of a cluster, as one process has them.
#[derive(Clone)]
pub struct ClusterSettings {
    /// The name of the pipeline.
    pub pipeline: String,
    /// The settings that the results depend on.
    pub semantics: String,
    /// The addresses of the processes, by index.
    pub addresses: Vec<String>,
    /// The index of this process.
    pub process: usize,
    /// The number of workers of each process.
    pub workers: usize,
    config: ClusterConfig,
    tls: Option<Arc<TlsIdentity>>,
}

/// The data with which the first process starts a run.
pub struct ClusterStart {
    /// The generation of the start; None without a ledger.
    pub generation: Option<u64>,
    /// The data that the other processes need.
    pub data: Vec<u8>,
}

/// The reason why a process cannot be part of a cluster.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// The process cannot listen on its address.
    #[error("cannot listen on {address} for the processes of the cluster: {error}")]
    Listen {
        /// The address.
        address: String,
        /// The error.
        error: std::io::Error,
    },
    /// A file of `cluster.tls` cannot be used.
    #[error("cluster.tls: {0}")]
    Tls(String),
    /// A thread cannot be started, or timely cannot use the connections.
    #[error("cannot start the connections of the cluster: {0}")]
    Start(String),
}

/// The cluster that a process has joined. Dropping it ends its connections.
pub struct Cluster {
    members: Arc<Members>,
    /// The start data of the first process.
    pub start: Vec<u8>,
    accepting: Option<JoinHandle<()>>,
}

impl ClusterSettings {
    /// Returns the settings of a process.
    ///
    /// # Errors
    /// If a file of `cluster.tls` cannot be used.
    pub fn new(
        config: &ClusterConfig,
        (pipeline, semantics): (&str, String),
        addresses: &[String],
        (process, workers): (usize, usize),
    ) -> Result<ClusterSettings, ClusterError> {
        let tls = tls_identity(config)?;
        // It takes a while, in which the start has other things to do.
        thread::spawn(identity::of_program);
        Ok(ClusterSettings {
            pipeline: pipeline.to_owned(),
            semantics,
            addresses: addresses.to_vec(),
            process,
            workers,
            config: config.clone(),
            tls,
        })
    }

    fn identity(&self, generation: Option<u64>) -> Identity {
        Identity {
            pipeline: self.pipeline.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            binary: identity::of_program().to_owned(),
            config: identity::fingerprint(self.semantics.as_bytes()),
            processes: self.addresses.len(),
            workers: self.workers,
            process: self.process,
            generation,
        }
    }
}

/// Returns the certificates of this process; None if connections are not encrypted.
///
/// # Errors
/// If a file of `cluster.tls` cannot be used.
pub fn tls_identity(config: &ClusterConfig) -> Result<Option<Arc<TlsIdentity>>, ClusterError> {
    let tls = config.tls.as_ref().map(TlsIdentity::read).transpose().map_err(ClusterError::Tls)?;
    Ok(tls.map(Arc::new))
}

/// Returns the first of these addresses that other machines can reach.
pub fn exposed_address(addresses: &[String]) -> Option<&String> {
    let is_exposed = |address: &&String| {
        address.to_socket_addrs().is_ok_and(|mut resolved| resolved.any(|at| !at.ip().is_loopback()))
    };
    addresses.iter().find(is_exposed)
}

impl Cluster {
    /// Waits until all processes have joined. The first process gives the start data, which all others receive.
    ///
    /// # Errors
    /// If this process cannot listen. Others that do not fit, or no process at all, only make it wait.
    pub fn join(
        settings: &ClusterSettings,
        start: Option<ClusterStart>,
        metrics: &Arc<Metrics>,
    ) -> Result<Cluster, ClusterError> {
        let process = settings.process;
        let (generation, data) = start.map(|start| (start.generation, start.data)).unzip();
        let own = settings.identity(generation.flatten());
        let members = Arc::new(Members::new(settings.clone(), own, Arc::clone(metrics)));
        let accepting = join::listen(&members)
            .map_err(|error| ClusterError::Listen { address: members.address(process).to_owned(), error })?;
        let mut cluster = Cluster { members, start: Vec::new(), accepting: Some(accepting) };
        for before in 0..process {
            let members = Arc::clone(&cluster.members);
            let connecting = thread::Builder::new().name(format!("cluster:connect-{before}"));
            let spawned = connecting.spawn(move || join::connect_to(&members, before));
            spawned.map_err(|error| ClusterError::Start(error.to_string()))?;
        }
        cluster.start = cluster.members.wait_for_all(data);
        Ok(cluster)
    }

    /// Returns an error if a process was lost since all have joined.
    ///
    /// # Errors
    /// The process.
    pub fn check(&self) -> Result<(), PeerLost> {
        self.members.check()
    }

    /// Calls a function with the first process that is lost.
    pub fn on_loss(&self, on_loss: impl Fn(PeerLost) + Send + 'static) {
        self.members.on_loss(Box::new(on_loss));
    }

    /// Says that this process has all that it needs for the run, and waits until all have.
    ///
    /// # Errors
    /// If a process is lost.
    pub fn prepare(&self) -> Result<PreparedCluster, PeerLost> {
        let readers = self.members.wait_for_prepared()?;
        let stream = |reader| PeerStream::new(Arc::clone(&self.members), reader);
        let streams = readers.into_iter().map(|reader| reader.map(stream)).collect();
        Ok(PreparedCluster { members: Arc::clone(&self.members), streams })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let has_run = self.members.have_workers_ended();
        self.members.end((!has_run).then_some("it cannot start: its log says why"));
        // It has logged a panic.
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

/// The connections of a cluster whose processes are all prepared for the run.
pub struct PreparedCluster {
    members: Arc<Members>,
    streams: Vec<Option<PeerStream>>,
}

impl PreparedCluster {
    /// Runs `work` on every worker of this process. Once they have ended, `failure` says why the run failed, if it did,
    /// which the other processes learn.
    ///
    /// # Errors
    /// If threads cannot be started.
    pub fn execute<T: Send + 'static>(
        self,
        worker: timely::WorkerConfig,
        failure: impl FnOnce() -> Option<String> + Send + 'static,
        work: impl Fn(&mut Worker) -> T + Send + Sync + 'static,
    ) -> Result<WorkerGuards<T>, ClusterError> {
        let PreparedCluster { members, streams } = self;
        let (process, threads) = (members.own.process, members.own.workers);
        let hooks = Hooks::default();
        let builders = ProcessBuilder::new_typed_vector(threads, hooks.refill.clone(), hooks.spill.clone());
        let (builders, guard) =
            initialize_networking_from_sockets(builders, streams, process, threads, hooks)
                .map_err(|error| ClusterError::Start(error.to_string()))?;
        let builders = builders.into_iter().map(AllocatorBuilder::Tcp).collect();
        let ending = Ending { members, failure: Some(Box::new(failure)), _threads: guard };
        timely::execute::execute_from(builders, Box::new(ending), worker, work).map_err(ClusterError::Start)
    }
}

/// Ends the connections of a run after its workers: timely drops it once they have ended.
struct Ending {
    members: Arc<Members>,
    failure: Option<Box<dyn FnOnce() -> Option<String> + Send>>,
    /// The threads of timely that read and write. They are waited for when it is dropped, after everything else.
    _threads: CommsGuard,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(reason) = self.failure.take().and_then(|failure| failure()) {
            self.members.end(Some(&reason));
        }
        self.members.end_workers();
    }
}
