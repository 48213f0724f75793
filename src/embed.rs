//! Embedding: a whole pipeline in a Rust program.
//!
//! ```text
//!   configuration (TOML) ──▶ Pipeline ──▶ run() ──▶ the sinks of the configuration
//!                               ▲                └─▶ sinks of the program: a Memory, or a Sink of its own
//!                               └─ Stopper: ends a run whose input does not end, or one that another run follows
//! ```
//!
//! A run in a program gives the same guarantees as `headwater run`. `examples/embed.rs` and `examples/own_sink.rs` show
//! both kinds of sinks. To use the operators without a pipeline, see [`Engine`](headwater_dataflows::Engine).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use headwater_sinks::{OpenError, Sink};

use crate::config::{Config, ConfigErrors, OutputKind};
use crate::connectors::{index_of, table_of};
use crate::metrics::Metrics;
use crate::outputs::{OutputMapping, SinkEncoding, SinkJob};
use crate::runtime::{Job, Queries, RunError};

/// A pipeline that is ready to run.
///
/// ```
/// use headwater::Pipeline;
/// use headwater::config::OutputKind;
/// use headwater::sinks::memory::Memory;
///
/// let memory = Memory::default();
/// let configuration = "pipeline = 'docs'\nsource = { kind = 'generator', records = 100 }";
/// Pipeline::from_toml(configuration)?.message_sink(memory.sink("memory"), &[OutputKind::Events]).run().map(drop)?;
/// let events: usize = memory.committed().iter().map(|(_, changes)| changes.messages.len()).sum();
/// assert!(events > 90);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pipeline {
    config: Config,
    sinks: Vec<SinkJob>,
    workers: usize,
    stopper: Stopper,
    metrics: Arc<Metrics>,
    queries: Queries,
}

/// The outcome of a run that has not failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The input has ended, or the run was stopped.
    Done,
    /// The run was stopped by [`Stopper::rescale`]: the program is to run the pipeline again.
    Rescale,
}

impl Pipeline {
    /// Creates a pipeline from the text of a configuration, without the environment variables that override it. The
    /// configuration needs no sink.
    ///
    /// # Errors
    /// All errors of the configuration, with keys and lines.
    pub fn from_toml(text: &str) -> Result<Pipeline, ConfigErrors> {
        Ok(Pipeline::from_config(Config::parse_without_sinks(text, std::iter::empty())?))
    }

    /// Creates a pipeline from a configuration. Its input is closed at its end, except that a topic has no end.
    pub fn from_config(mut config: Config) -> Pipeline {
        config.plan.close_at_end = config.source.is_bounded();
        let (sinks, workers) = (Vec::new(), 1);
        let (stopper, metrics, queries) = Default::default();
        Pipeline { config, sinks, workers, stopper, metrics, queries }
    }

    /// Sets the number of worker threads. The results do not depend on it. The default is one.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Pipeline {
        self.workers = workers.max(1);
        self
    }

    /// Adds a sink that receives these outputs as messages: a key and a JSON text each. The topic of a message is the
    /// position of its kind in `outputs`. Windows have no messages: see [`row_sink`](Pipeline::row_sink).
    #[must_use]
    pub fn message_sink(self, sink: impl Sink + 'static, outputs: &[OutputKind]) -> Pipeline {
        let mut mapping = OutputMapping::default();
        for (topic, &kind) in (0..).zip(outputs) {
            *index_of(&mut mapping, kind) = Some(topic);
        }
        self.sink(sink, SinkEncoding::Messages(mapping, usize::MAX))
    }

    /// Adds a sink that receives these outputs as rows of [`TABLES`](headwater_sinks::tables::TABLES), alerts of shadow
    /// rules included.
    #[must_use]
    pub fn row_sink(self, sink: impl Sink + 'static, outputs: &[OutputKind]) -> Pipeline {
        let mut mapping = OutputMapping { shadow_alerts: true, ..OutputMapping::default() };
        for &kind in outputs {
            *index_of(&mut mapping, kind) = Some(table_of(kind));
        }
        self.sink(sink, SinkEncoding::Rows(mapping))
    }

    fn sink(mut self, sink: impl Sink + 'static, encoding: SinkEncoding) -> Pipeline {
        self.sinks.push(SinkJob { sink: Box::new(sink), encoding, commit_interval: Duration::ZERO });
        self
    }

    /// Returns a handle that stops the run from another thread.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Returns the metrics, which the run updates.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Returns a handle that queries the state of keys during the run.
    pub fn queries(&self) -> Queries {
        self.queries.clone()
    }

    /// Runs the pipeline until its input ends or it is stopped, and all sinks have committed all results. Blocks.
    ///
    /// With `[ledger]` and `[checkpoint]`, the next run of the same configuration resumes from here with any number of
    /// workers. So a program changes that number with [`Stopper::rescale`], after which it builds the pipeline again.
    ///
    /// A worker that panics leaves the others waiting. The command therefore aborts the process then; a program does
    /// so with [`abort_on_panic`](crate::logging::abort_on_panic).
    ///
    /// # Errors
    /// The failure that ended the run, or the refusal to start it: see [`RunError::is_refusal`].
    pub fn run(self) -> Result<Outcome, RunError> {
        let Pipeline { config, sinks, workers, stopper, metrics, queries } = self;
        for SinkJob { sink, encoding, .. } in &sinks {
            if matches!(encoding, SinkEncoding::Messages(mapping, _) if mapping.windows.is_some()) {
                let reason = "windows have no messages: add the sink with `row_sink`".to_owned();
                return Err(OpenError::Refused { sink: sink.name().to_owned(), reason }.into());
            }
        }
        let mut job = Job::of_config(&config, timely::Config::process(workers), Arc::clone(&metrics))?;
        job.sinks.extend(sinks);
        (job.stopping, job.queries) = (Arc::clone(&stopper.stopping), queries);
        crate::runtime::run(job)?;
        Ok(match stopper.rescaling.load(Ordering::Relaxed) {
            true => Outcome::Rescale,
            false => Outcome::Done,
        })
    }
}

/// A handle that stops a run.
#[derive(Clone, Debug, Default)]
pub struct Stopper {
    stopping: Arc<AtomicBool>,
    rescaling: Arc<AtomicBool>,
}

impl Stopper {
    /// Stops the run: it reads no more, finishes what it has read, and ends.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Stops the run as [`stop`](Stopper::stop) does, with [`Outcome::Rescale`].
    pub fn rescale(&self) {
        self.rescaling.store(true, Ordering::Relaxed);
        self.stop();
    }
}
