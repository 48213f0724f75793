//! What the first process of a cluster has found and decided at its start, handed out to the others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bincode::Options;
use headwater_dataflows::Epoch;
use serde::{Deserialize, Serialize};
use timely::CommunicationConfig::Cluster;
use timely::dataflow::operators::vec::{Broadcast, ToStream};
use timely::dataflow::operators::{Inspect, Probe};

use super::failure::RunError;
use super::joining::{self, Round};
use crate::coordination::{CommittedThrough, Positions, Skip};

/// What the others need to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterBootstrap {
    /// The ledger's identity.
    pub ledger_id: String,
    /// This start's generation.
    pub generation: u64,
    /// What decides the pipeline's answers.
    pub semantics: String,
    /// The manifest that is gone on from, as the ledger has it; none at the beginning.
    pub manifest: Option<Vec<u8>>,
    /// Where reading goes on.
    pub positions: Positions,
    /// The ledger's end.
    pub durable: Epoch,
    /// By name, what each sink has.
    pub committed_through: Vec<(String, CommittedThrough)>,
    /// What sinks are not given.
    pub skips: Vec<Skip>,
}

/// How many processes there are.
pub fn processes(workers: &timely::Config) -> usize {
    match &workers.communication {
        Cluster { addresses, .. } => addresses.len(),
        _ => 1,
    }
}

/// Hands a word out to all processes of a cluster, or waits for it: a cluster of one worker a process, which is gone
/// when this returns.
///
/// # Errors
/// If the processes do not come together, or the word cannot be read.
pub fn exchange_bootstrap(
    workers: &timely::Config,
    word: Option<&ClusterBootstrap>,
) -> Result<ClusterBootstrap, RunError> {
    let failed = |reason: String| RunError::Workers(reason);
    let Cluster { process, addresses, report, .. } = &workers.communication else {
        return word.cloned().ok_or_else(|| failed("there is nobody to hand anything out".into()));
    };
    // Counted backwards, so that who listens here connects there: a process that was handed something out before the first
    // one died never takes this for the run that it waits for.
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
    let spoken =
        word.map(|word| bincode::options().serialize(word).expect("a word can be written to memory"));
    let heard = Arc::new(Mutex::new(None));
    let hears = Arc::clone(&heard);
    let guards = joining::execute(one_each, Round::ClusterBootstrap, move |worker| {
        let hears = Arc::clone(&hears);
        let said = spoken.clone();
        let probe = worker.dataflow::<u64, _, _>(|scope| {
            let keep = move |word: &Vec<u8>| {
                *hears.lock().expect("no holder of the lock panics") = Some(word.clone())
            };
            let (probe, _) = said.to_stream(scope).broadcast().inspect(keep).probe();
            probe
        });
        worker.step_while(|| !probe.done());
    });
    drop(guards?.join());
    let word = heard.lock().expect("no holder of the lock panics").take();
    let word = word.ok_or_else(|| failed("the first process has handed nothing out".into()))?;
    bincode::options().deserialize(&word).map_err(|error| failed(format!("what was handed out: {error}")))
}

/// How long after a handout all processes may take to read their state and come together.
const PATIENCE: Duration = Duration::from_secs(300);

/// Ends the process if what is returned is not set in time: another one has died since the handout, and its next start
/// waits for all to come and hear again.
pub fn spawn_join_watchdog() -> Arc<AtomicBool> {
    let together = Arc::new(AtomicBool::new(false));
    let awaited = Arc::clone(&together);
    std::thread::spawn(move || {
        std::thread::sleep(PATIENCE);
        if !awaited.load(Ordering::Relaxed) {
            tracing::error!("the cluster did not come together within {PATIENCE:?}");
            std::process::exit(1);
        }
    });
    together
}
