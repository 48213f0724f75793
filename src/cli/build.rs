//! From a configuration to a run: sources are opened, sinks are made.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use headwater_dataflows::Offset;
use headwater_sinks::kafka::{KafkaConfig, KafkaSink};
use headwater_sinks::postgres::PostgresConfig;
use headwater_sinks::sqlite::SqliteConfig;
use headwater_sinks::{Generation, LedgerId, OpenError, Shards, Sink, WriterContext, crash, tables};

use crate::config::{
    CheckpointConfig, Config, LedgerConfig, OutputKind, PostgresSinkConfig, SourceConfig, StartFrom,
    StateConfig, TablesConfig, changes,
};
use crate::coordination::{TAKEOVERS_WITHIN_MS, Takeovers};
use crate::ledger::{Claim, Genesis, Ledger, LedgerError, PostgresLedger, SqliteLedger};
use crate::metrics::Metrics;
use crate::outputs::{OutputMapping, SinkEncoding};
use crate::runtime::{
    Checkpoints, ConfigChange, Following, History, Job, Role, RunError, SinkJob, processes,
};
use crate::source::file::{FileSource, check_repeatable};
use crate::source::generator::GeneratorSource;
use crate::source::kafka::{self, KafkaSource, KafkaSourceConfig};
use crate::source::{Opening, Source, SourceError};
use crate::wall::wall_ms;

/// The source of a configuration, to be opened.
pub fn source(config: &Config, until_end: bool) -> Opening {
    let config = config.clone();
    Box::new(move |starts| open_source(&config, until_end, starts))
}

fn open_source(
    config: &Config,
    until_end: bool,
    starts: Option<Vec<Offset>>,
) -> Result<Arc<dyn Source>, SourceError> {
    Ok(match &config.source {
        SourceConfig::Generator(settings) => Arc::new(GeneratorSource::new(settings.clone())?),
        SourceConfig::File(paths) => Arc::new(FileSource::open(paths.clone())?),
        SourceConfig::Kafka(source) => Arc::new(KafkaSource::open(KafkaSourceConfig {
            starts,
            until_end,
            ..kafka_source(config, source)
        })?),
    })
}

/// What a source needs to know of its topic, which nothing is recorded of.
pub fn kafka_source(config: &Config, source: &crate::config::KafkaSourceConfig) -> KafkaSourceConfig {
    KafkaSourceConfig {
        brokers: source.brokers.clone(),
        topic: source.topic.clone(),
        group: config.plan.pipeline.to_string(),
        starts: None,
        start_from: match source.start_from {
            StartFrom::Earliest => kafka::StartFrom::Earliest,
            StartFrom::Latest => kafka::StartFrom::Latest,
            StartFrom::Time(ms) => kafka::StartFrom::Time(ms),
        },
        ignore_group: source.start_from_is_set && config.ledger.is_some(),
        accepted: config.accepted_losses.clone(),
        options: source.options.clone(),
        until_end: false,
        bytes_in_flight: config.plan.limits.bytes_in_flight,
    }
}

/// The sinks of a configuration; `prefix` goes before the names of topics.
pub fn sinks(config: &Config, prefix: &str) -> Vec<SinkJob> {
    let mut jobs = Vec::new();
    if let Some(kafka) = &config.sinks.kafka {
        // Alerts have a writer of their own, so that they do not wait for the mass of events.
        for (name, kinds) in [
            ("kafka-alerts", &[OutputKind::Alerts][..]),
            ("kafka-events", &[OutputKind::Events, OutputKind::DeadLetters]),
        ] {
            let taken: Vec<_> = kinds.iter().filter_map(|kind| kafka.topics.get_key_value(kind)).collect();
            if taken.is_empty() {
                continue;
            }
            let mut mapping = OutputMapping::default();
            for (at, (kind, _)) in taken.iter().enumerate() {
                *place(&mut mapping, **kind) = Some(at as u8);
            }
            let sink = KafkaSink::new(KafkaConfig {
                name: name.to_owned(),
                brokers: kafka.brokers.clone(),
                topics: taken.iter().map(|(_, topic)| format!("{prefix}{topic}")).collect(),
                options: kafka.options.clone(),
            });
            jobs.push(SinkJob {
                sink: Box::new(sink),
                encoding: SinkEncoding::Messages(mapping, usize::MAX),
                commit_interval: kafka.commit_interval,
            });
        }
    }
    if let Some(postgres) = &config.sinks.postgres {
        let PostgresSinkConfig { url, schema, tables } = postgres.clone();
        let (name, skip_stored) = ("postgres".into(), config.ledger.is_none());
        let sink = PostgresConfig { name, url, schema, skip_stored }.build();
        jobs.push(tables_job(Box::new(sink), &tables));
    }
    if let Some(sqlite) = &config.sinks.sqlite {
        let (name, path) = ("sqlite".into(), sqlite.path.clone());
        let sink = SqliteConfig { name, path, skip_stored: config.ledger.is_none() }.build();
        jobs.push(tables_job(Box::new(sink), &sqlite.tables));
    }
    jobs
}

fn tables_job(sink: Box<dyn Sink>, config: &TablesConfig) -> SinkJob {
    let mut mapping = OutputMapping::default();
    for &kind in &config.tables {
        *place(&mut mapping, kind) = Some(match kind {
            OutputKind::Events => tables::EVENTS,
            OutputKind::Alerts => tables::ALERTS,
            OutputKind::Windows => tables::WINDOW_AGGREGATES,
            OutputKind::DeadLetters => tables::DEAD_LETTERS,
        });
    }
    SinkJob { sink, encoding: SinkEncoding::Rows(mapping), commit_interval: config.commit_interval }
}

fn place(mapping: &mut OutputMapping, kind: OutputKind) -> &mut Option<u8> {
    match kind {
        OutputKind::Events => &mut mapping.events,
        OutputKind::Alerts => &mut mapping.alerts,
        OutputKind::Windows => &mut mapping.windows,
        OutputKind::DeadLetters => &mut mapping.dead_letters,
    }
}

/// Opens the ledger.
pub fn ledger(config: &LedgerConfig, pipeline: &str) -> Result<Box<dyn Ledger>, LedgerError> {
    Ok(match config {
        LedgerConfig::Sqlite(path) => Box::new(SqliteLedger::open(path, pipeline)?),
        LedgerConfig::Postgres(url) => Box::new(PostgresLedger::open(url.expose(), pipeline)?),
    })
}

/// Opens where checkpoints are put, if any are made.
fn checkpoints(config: &Config) -> Result<Option<Checkpoints>, RunError> {
    Ok(match &config.checkpoint {
        Some(CheckpointConfig { interval, keep }) => Some(Checkpoints {
            store: {
                tracing::info!(state = ?config.state, "opening the state store");
                crate::state::open(&config.state, &config.plan.pipeline)?
            },
            interval_ms: i64::try_from(interval.as_millis()).unwrap_or(i64::MAX),
            keep: *keep,
        }),
        None => None,
    })
}

/// Whether several processes can share what a configuration has.
///
/// # Errors
/// If not: what they cannot.
fn can_be_shared(config: &Config) -> Result<(), RunError> {
    let refused = |reason: &str| Err(LedgerError::Refused(reason.into()).into());
    if config.ledger.is_none() {
        if config.sinks.postgres.is_some() {
            let reason = "several processes write one database only with a ledger: add `[ledger]`, or start one \
                          process with more workers";
            return Err(OpenError::Refused { sink: "postgres".into(), reason: reason.into() }.into());
        }
        return Ok(());
    }
    if config.sinks.sqlite.is_some() {
        return refused(
            "several processes with a ledger cannot write SQLite files: progress must be in one place; take out \
             `sinks.sqlite`, or start one process with more workers (-w)",
        );
    }
    if !config.resets.sinks.is_empty() || config.resets.all.is_some() {
        return refused(
            "a sink, and all state, is reset by one process alone: start one (without -n), have that stop, and then \
             start several",
        );
    }
    if config.checkpoint.is_some() && !matches!(config.state, StateConfig::Redis(_)) {
        return refused(
            "several processes need a state store that they share: set `state.kind = \"redis\"`, or start one process",
        );
    }
    Ok(())
}

/// The sinks that must have progress: those that have committed, unless what they may have may be written again.
///
/// # Errors
/// If the ledger cannot be read.
pub fn committed(ledger: &mut dyn Ledger, config: &Config) -> Result<Vec<String>, LedgerError> {
    if config.resets.accept_duplicates { Ok(Vec::new()) } else { ledger.committed_sinks() }
}

/// Records in the ledger that a later start has taken over from this run, which was alive: two processes that do so to each
/// other, again and again, are to show.
///
/// # Errors
/// If the ledger cannot be used.
pub fn replaced(config: &Config) -> Result<(), LedgerError> {
    match &config.ledger {
        Some(ledger_config) => ledger(ledger_config, &config.plan.pipeline)?.replaced(wall_ms()),
        None => Ok(()),
    }
}

/// Waits before it takes over from a process that takes over from this one, again and again.
fn give_way(ledger: &mut dyn Ledger, pipeline: &str, metrics: &Metrics) -> Result<(), LedgerError> {
    let Some(takeovers) = ledger.takeovers()? else { return Ok(()) };
    let Some(wait) = takeovers.wait(wall_ms()) else { return Ok(()) };
    let Takeovers { count, .. } = takeovers;
    let (wait_s, within_min) = (wait.as_secs(), TAKEOVERS_WITHIN_MS / 60_000);
    let reason = format!(
        "waiting {wait_s} s before taking over: the last {count} runs were replaced while they went on, each within \
         {within_min} minutes of the one before: two processes use the pipeline name {pipeline}; end one of them, or give it \
         another name"
    );
    tracing::error!("{reason}");
    metrics.starting(reason);
    std::thread::sleep(wait);
    Ok(())
}

/// Claims the ledger and opens what goes with it.
fn history(config: &Config, ledger_config: &LedgerConfig, metrics: &Metrics) -> Result<History, RunError> {
    let mut ledger = ledger(ledger_config, &config.plan.pipeline)?;
    let semantics = config.semantics();
    // A start that its configuration keeps from going on must not end the one that runs.
    let before = ledger.peek()?.and_then(|claim| claim.genesis);
    changed(before.as_ref(), &semantics, &config.resets.sections)?;
    give_way(&mut *ledger, &config.plan.pipeline, metrics)?;
    let claim = ledger.claim()?;
    crash::point("start.claimed");
    for skip in &config.skips {
        ledger.skip(skip)?;
    }
    let (skips, losses, committed) = (ledger.skips()?, ledger.losses()?, committed(&mut *ledger, config)?);
    let config_change = changed(claim.genesis.as_ref(), &semantics, &config.resets.sections)?;
    let checkpoints = checkpoints(config)?;
    tracing::info!(generation = %claim.generation, "claimed the ledger");
    let resets = config.resets.clone();
    Ok(History { ledger, claim, semantics, config_change, resets, skips, losses, committed, checkpoints })
}

/// What the configuration no longer says as it did when the pipeline's answers were made, if anything.
///
/// # Errors
/// If it cannot be gone on with.
pub fn changed(
    genesis: Option<&Genesis>,
    semantics: &str,
    resets: &BTreeSet<String>,
) -> Result<Option<ConfigChange>, LedgerError> {
    match genesis {
        Some(genesis) => changes(&genesis.semantics, semantics, resets)
            .map_err(|unchangeable| LedgerError::Refused(unchangeable.to_string())),
        None => Ok(None),
    }
}

/// The run of a configuration, on these workers.
///
/// # Errors
/// If the ledger or the state store cannot be opened, or must not be.
pub fn job(
    config: &Config,
    until_end: bool,
    workers: timely::Config,
    metrics: Arc<Metrics>,
) -> Result<Job, RunError> {
    let (process, peers) = match &workers.communication {
        timely::CommunicationConfig::Cluster { threads, process, addresses, .. } => {
            (*process, threads * addresses.len())
        }
        timely::CommunicationConfig::Process(threads)
        | timely::CommunicationConfig::ProcessBinary(threads) => (0, *threads),
        timely::CommunicationConfig::Thread => (0, 1),
    };
    let processes = processes(&workers);
    let local = peers / processes;
    if processes > 1 {
        can_be_shared(config)?;
    }
    let mut context = WriterContext {
        pipeline: config.plan.pipeline.to_string(),
        ledger_id: ledger_id(&config.plan.pipeline),
        generation: generation(),
        process,
        shards: Shards::of_workers(process * local..(process + 1) * local, peers),
        max_processes: processes,
        adopt: None,
    };
    if let (SourceConfig::File(paths), Some(_)) = (&config.source, &config.ledger) {
        // Before anything is claimed.
        check_repeatable(paths, "with [ledger]")?;
    }
    let role = match &config.ledger {
        None => Role::Unrecorded,
        // It is told who writes.
        Some(_) if process > 0 => Role::Follower(Box::new(Following {
            semantics: config.semantics(),
            checkpoints: checkpoints(config)?,
        })),
        Some(ledger) => {
            let mut history = history(config, ledger, &metrics)?;
            let Claim { ledger_id, generation, .. } = &history.claim;
            (context.ledger_id, context.generation) = (ledger_id.clone(), *generation);
            context.max_processes = history.ledger.register_processes(processes)?;
            Role::Leader(Box::new(history))
        }
    };
    Ok(Job {
        plan: config.plan.clone(),
        source: source(config, until_end),
        sinks: sinks(config, ""),
        context,
        role,
        workers,
        stopping: Arc::new(AtomicBool::new(false)),
        metrics,
    })
}

/// Without a ledger, which has a random one, the lineage follows from the pipeline's name.
fn ledger_id(pipeline: &str) -> LedgerId {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(format!("headwater lineage of {pipeline}"));
    LedgerId(hash[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Without a ledger, which counts starts, the generation is the wall time in milliseconds, or one more than the greatest
/// that a sink has, if the clock was ahead then.
fn generation() -> Generation {
    Generation(wall_ms().unsigned_abs())
}
