//! The threads of a run that are not workers: the writers of sinks, of the ledger and of parts, and the commits of the
//! consumer group. Each ends when the workers have dropped its handles.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use headwater_sinks::{WriterContext, crash};

use super::{Offsets, SinkJob};
use crate::coordination::{Skip, Skips};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::outputs::{Provenance, SinkRoute};
use crate::runtime::checkpoint::writer::WriterId;
use crate::runtime::commit::ledger_writer::{self, LedgerWriterHandle, ManifestRetention};
use crate::runtime::commit::sink_writer::{self, WriterHandle, WriterOptions};
use crate::runtime::failure::{Failure, RunError};
use crate::runtime::flow::CheckpointSettings;
use crate::runtime::recovery::origin::{Checkpoints, Origin};
use crate::source::Source;

/// The threads that were started.
pub struct Threads {
    workers: Range<usize>,
    failure: Failure,
    metrics: Arc<Metrics>,
    /// The writers of sinks and of parts.
    writers: Vec<JoinHandle<()>>,
    ledger: Option<JoinHandle<Box<dyn Ledger>>>,
    group: Option<JoinHandle<()>>,
}

impl Threads {
    /// Returns the threads of these workers' process, of which none is started.
    pub fn new(workers: Range<usize>, failure: Failure, metrics: Arc<Metrics>) -> Threads {
        Threads { workers, failure, metrics, writers: Vec::new(), ledger: None, group: None }
    }

    /// Starts the writer of parts.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start_checkpoint_writer(
        &mut self,
        checkpoints: Checkpoints,
        origin: &mut Origin,
        context: &WriterContext,
    ) -> Result<(CheckpointSettings, ManifestRetention), RunError> {
        let Checkpoints { store, interval_ms, keep } = checkpoints;
        let generation = context.generation;
        let writer_id = WriterId { ledger_id: context.ledger_id.clone(), generation };
        let (before, workers) = (origin.parts().to_vec(), self.workers.clone());
        let spawned = crate::runtime::checkpoint::writer::spawn(
            store,
            writer_id,
            before,
            workers,
            self.failure.clone(),
        );
        let (checkpoint_writer, thread) = spawned.map_err(cannot_start)?;
        self.writers.push(thread);
        let manifests = std::mem::take(&mut origin.manifests);
        let recorded_contents = std::mem::take(&mut origin.recorded_contents);
        let checkpoint_writer_of_ledger = checkpoint_writer.clone();
        let retention = ManifestRetention {
            keep,
            manifests,
            recorded_contents,
            checkpoint_writer: checkpoint_writer_of_ledger,
        };
        Ok((CheckpointSettings { checkpoint_writer, interval_ms, generation }, retention))
    }

    /// Starts the writer of the ledger, which ends at epoch `origin.durable`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start_ledger_writer(
        &mut self,
        ledger: Box<dyn Ledger>,
        origin: &Origin,
        retention: Option<ManifestRetention>,
    ) -> Result<LedgerWriterHandle, RunError> {
        let (failure, metrics) = (self.failure.clone(), Arc::clone(&self.metrics));
        let spawned = ledger_writer::spawn(ledger, origin.durable, retention, failure, metrics);
        let (handle, thread) = spawned.map_err(cannot_start)?;
        self.ledger = Some(thread);
        Ok(handle)
    }

    /// Starts the writer of each sink. Returns their handles, and the routes to them.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start_sink_writers(
        &mut self,
        sinks: Vec<SinkJob>,
        origin: &Origin,
        context: &WriterContext,
        skips: &[Skip],
        ledger: Option<&LedgerWriterHandle>,
        provenance: &Provenance,
    ) -> Result<Vec<(WriterHandle, SinkRoute)>, RunError> {
        let mut writers = Vec::new();
        for (SinkJob { sink, encoding, commit_interval }, committed_through) in
            sinks.into_iter().zip(&origin.committed_through)
        {
            self.metrics.commits_every(commit_interval);
            let largest = sink.largest_message().unwrap_or(usize::MAX);
            let options = WriterOptions {
                committed_through: committed_through.least_of(context.shards),
                skips: Skips::of(sink.name(), skips),
                ledger: ledger.cloned(),
            };
            let (failure, metrics) = (self.failure.clone(), Arc::clone(&self.metrics));
            let spawned =
                sink_writer::spawn(sink, options, self.workers.clone(), commit_interval, failure, metrics);
            let (writer, thread) = spawned.map_err(cannot_start)?;
            self.writers.push(thread);
            let encoding = encoding.within(largest);
            writers.push((writer, SinkRoute::new(encoding, committed_through.clone(), provenance.clone())));
        }
        Ok(writers)
    }

    /// Starts the thread that commits offsets to the consumer group.
    pub fn start_group_commits(&mut self, source: Arc<dyn Source>) -> Sender<Offsets> {
        let (group_offsets, offsets_to_commit) = channel::<Offsets>();
        let metrics = Arc::clone(&self.metrics);
        self.group = Some(std::thread::spawn(move || {
            for offsets in offsets_to_commit {
                crash::point("group.commit.before");
                if let Err(error) = source.commit(&offsets) {
                    metrics.group_commit_failed();
                    tracing::warn!(%error, "cannot commit offsets to the consumer group");
                }
                crash::point("group.commit.after");
            }
        }));
        group_offsets
    }

    /// Waits until all threads have ended, and reports those that panicked. Returns the ledger, if there is one.
    pub fn join(self) -> Option<Box<dyn Ledger>> {
        let Threads { failure, writers, ledger, group, .. } = self;
        for thread in writers {
            if thread.join().is_err() {
                failure.report(RunError::Workers("a sink or state store thread panicked".into()));
            }
        }
        let ledger = match ledger.map(JoinHandle::join) {
            Some(Ok(ledger)) => Some(ledger),
            Some(Err(_)) => {
                failure.report(RunError::Workers("the ledger thread panicked".into()));
                None
            }
            None => None,
        };
        // This thread only commits offsets for information; a panic in it has been logged.
        let _ = group.map(JoinHandle::join);
        ledger
    }
}

/// Returns the failure of a run whose thread cannot be started.
pub fn cannot_start(error: std::io::Error) -> RunError {
    RunError::Workers(error.to_string())
}
