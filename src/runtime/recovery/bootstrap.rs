//! The start data of a cluster, sent by its first process, the leader, to the others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bincode::Options;
use headwater_dataflows::Epoch;
use serde::{Deserialize, Serialize};
use timely::CommunicationConfig::Cluster;
use timely::dataflow::operators::vec::{Broadcast, ToStream};
use timely::dataflow::operators::{Inspect, Probe};

use crate::coordination::{CommittedThrough, ListVersion, Positions, Skip, StoredPasts};
use crate::runtime::failure::RunError;
use crate::runtime::recovery::joining::{self, JoinPhase};

/// The data that the followers need to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterBootstrap {
    /// The ledger id.
    pub ledger_id: String,
    /// The generation of this start.
    pub generation: u64,
    /// The settings that the results depend on.
    pub semantics: String,
    /// The encoded manifest of the checkpoint to resume from; None at the beginning of the pipeline.
    pub manifest: Option<Vec<u8>>,
    /// The texts of all rules that may be in force, those at the point to resume from without a manifest first.
    pub rules: Vec<String>,
    /// The contents of lists that the replay lets come into force.
    pub lists: Vec<ListVersion>,
    /// The pasts of rules that enter in the replay.
    pub pasts: Vec<StoredPasts>,
    /// The positions to read from.
    pub positions: Positions,
    /// The last epoch of the ledger.
    pub durable: Epoch,
    /// The progress of each sink, by its name.
    pub committed_through: Vec<(String, CommittedThrough)>,
    /// The outputs that sinks do not receive.
    pub skips: Vec<Skip>,
}

/// Returns the number of processes.
pub fn processes(workers: &timely::Config) -> usize {
    match &workers.communication {
        Cluster { addresses, .. } => addresses.len(),
        _ => 1,
    }
}

/// Returns the number of workers of this process.
pub fn local_workers(workers: &timely::Config) -> usize {
    match &workers.communication {
        timely::CommunicationConfig::Thread => 1,
        timely::CommunicationConfig::Process(threads)
        | timely::CommunicationConfig::ProcessBinary(threads)
        | Cluster { threads, .. } => *threads,
    }
}

/// Sends the start data to all processes of a cluster, or receives it if `bootstrap` is None. Uses a temporary
/// cluster with one worker per process.
///
/// # Errors
/// If the processes cannot connect, or the data cannot be decoded.
pub fn exchange_bootstrap(
    workers: &timely::Config,
    bootstrap: Option<&ClusterBootstrap>,
) -> Result<ClusterBootstrap, RunError> {
    let failed = |reason: String| RunError::Workers(reason);
    let Cluster { process, addresses, report, .. } = &workers.communication else {
        return bootstrap
            .cloned()
            .ok_or_else(|| failed("no start data: the process is not part of a cluster".into()));
    };
    // In reverse order, so that a process that listens here connects in the run: if the first process dies after it has
    // sent the data, a follower that waits for the run does not accept this connection.
    let last = addresses.len() - 1;
    let one_each = timely::Config {
        communication: Cluster {
            threads: 1,
            process: last - process,
            addresses: addresses.iter().rev().cloned().collect(),
            report: *report,
            zerocopy: false,
        },
        worker: timely::WorkerConfig::default(),
    };
    let message = bootstrap
        .map(|bootstrap| bincode::options().serialize(bootstrap).expect("start data can be encoded"));
    let received = Arc::new(Mutex::new(None));
    let sink = Arc::clone(&received);
    let guards = joining::execute(one_each, JoinPhase::ClusterBootstrap, move |worker| {
        let sink = Arc::clone(&sink);
        let message = message.clone();
        let probe = worker.dataflow::<u64, _, _>(|scope| {
            let store = move |bootstrap: &Vec<u8>| {
                *sink.lock().expect("no thread panics while it holds the lock") = Some(bootstrap.clone())
            };
            let (probe, _) = message.to_stream(scope).broadcast().inspect(store).probe();
            probe
        });
        worker.step_while(|| !probe.done());
    });
    drop(guards?.join());
    let bootstrap = received.lock().expect("no thread panics while it holds the lock").take();
    let bootstrap =
        bootstrap.ok_or_else(|| failed("the first process of the cluster has sent no start data".into()))?;
    let cannot_decode = |error| failed(format!("cannot decode the start data of the first process: {error}"));
    bincode::options().deserialize(&bootstrap).map_err(cannot_decode)
}

/// The maximum time from the exchange of start data until all processes have read their state and connected.
const JOIN_TIMEOUT: Duration = Duration::from_secs(300);

/// Starts a watchdog that exits the process unless the returned flag is set in time. Otherwise, if another process has
/// died since the exchange of start data, this one would wait forever; its next start exchanges the data again.
pub fn spawn_join_watchdog() -> Arc<AtomicBool> {
    let has_joined = Arc::new(AtomicBool::new(false));
    let joined = Arc::clone(&has_joined);
    std::thread::spawn(move || {
        std::thread::sleep(JOIN_TIMEOUT);
        if !joined.load(Ordering::Relaxed) {
            tracing::error!(
                "not all processes of the cluster have connected within {JOIN_TIMEOUT:?}; exiting"
            );
            std::process::exit(1);
        }
    });
    has_joined
}
