//! The start data of a cluster, sent by its first process, the leader, to the others.

use std::sync::Arc;

use bincode::Options;
use headwater_dataflows::Epoch;
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, ClusterSettings, ClusterStart};
use crate::coordination::{CommittedThrough, ListVersion, Owners, Positions, Skip, StoredPasts};
use crate::metrics::Metrics;
use crate::runtime::failure::RunError;

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
    /// The workers that read the partitions.
    pub owners: Owners,
}

/// Returns the number of processes.
pub fn processes(workers: &timely::Config) -> usize {
    match &workers.communication {
        timely::CommunicationConfig::Cluster { addresses, .. } => addresses.len(),
        _ => 1,
    }
}

/// Returns the number of workers of this process.
pub fn local_workers(workers: &timely::Config) -> usize {
    match &workers.communication {
        timely::CommunicationConfig::Thread => 1,
        timely::CommunicationConfig::Process(threads)
        | timely::CommunicationConfig::ProcessBinary(threads)
        | timely::CommunicationConfig::Cluster { threads, .. } => *threads,
    }
}

/// Joins the cluster and sends the start data to all of its processes, or receives it if `bootstrap` is None.
///
/// # Errors
/// If this process cannot be part of the cluster, or the data cannot be decoded.
pub fn exchange_bootstrap(
    settings: Option<&ClusterSettings>,
    bootstrap: Option<&ClusterBootstrap>,
    metrics: &Arc<Metrics>,
) -> Result<(Cluster, ClusterBootstrap), RunError> {
    let failed = |reason: String| RunError::Workers(reason);
    let settings =
        settings.ok_or_else(|| failed("no start data: the process is not part of a cluster".into()))?;
    let start = bootstrap.map(|bootstrap| ClusterStart {
        generation: Some(bootstrap.generation),
        data: bincode::options().serialize(bootstrap).expect("start data can be encoded"),
    });
    let cluster = Cluster::join(settings, start, metrics)?;
    let cannot_decode = |error| failed(format!("cannot decode the start data of the first process: {error}"));
    let bootstrap = bincode::options().deserialize(&cluster.start).map_err(cannot_decode)?;
    Ok((cluster, bootstrap))
}
