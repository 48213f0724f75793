//! From a configuration to a run: sources are opened, sinks are made.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use headwater_sinks::kafka::{KafkaConfig, KafkaSink};
use headwater_sinks::postgres::PostgresConfig;
use headwater_sinks::sqlite::SqliteConfig;
use headwater_sinks::{Generation, Lineage, Shards, Sink, Start, tables};

use crate::config::{Config, OutputKind, SourceConfig, StartFrom, TablesConfig};
use crate::metrics::Metrics;
use crate::outputs::{Takes, Tongue};
use crate::runtime::{Job, SinkJob};
use crate::source::file::FileSource;
use crate::source::generator::GeneratorSource;
use crate::source::kafka::{self, KafkaSource, KafkaSourceConfig};
use crate::source::{Source, SourceError};

/// Opens the source.
///
/// # Errors
/// If it cannot be opened.
pub fn source(config: &Config, until_end: bool) -> Result<Arc<dyn Source>, SourceError> {
    Ok(match &config.source {
        SourceConfig::Generator(settings) => Arc::new(GeneratorSource::new(settings.clone())?),
        SourceConfig::File(paths) => Arc::new(FileSource::open(paths.clone())?),
        SourceConfig::Kafka(source) => Arc::new(KafkaSource::open(KafkaSourceConfig {
            brokers: source.brokers.clone(),
            topic: source.topic.clone(),
            group: config.plan.pipeline.to_string(),
            start_from: match source.start_from {
                StartFrom::Earliest => kafka::StartFrom::Earliest,
                StartFrom::Latest => kafka::StartFrom::Latest,
                StartFrom::Time(ms) => kafka::StartFrom::Time(ms),
            },
            options: source.options.clone(),
            until_end,
            bytes_in_flight: config.plan.limits.bytes_in_flight,
        })?),
    })
}

/// The sinks of a configuration.
pub fn sinks(config: &Config) -> Vec<SinkJob> {
    let mut jobs = Vec::new();
    if let Some(kafka) = &config.sinks.kafka {
        // Alerts have a writer of their own, so that they do not wait for the mass of events.
        for (name, kinds) in [
            ("kafka-alerts", &[(OutputKind::Alerts, "alerts")][..]),
            (
                "kafka-events",
                &[(OutputKind::Events, "enriched-events"), (OutputKind::DeadLetters, "dead-letters")],
            ),
        ] {
            let taken: Vec<_> = kinds.iter().filter(|(kind, _)| kafka.topics.contains(kind)).collect();
            if taken.is_empty() {
                continue;
            }
            let mut takes = Takes::default();
            for (at, (kind, _)) in taken.iter().enumerate() {
                *place(&mut takes, *kind) = Some(at as u8);
            }
            let sink = KafkaSink::new(KafkaConfig {
                name: name.to_owned(),
                brokers: kafka.brokers.clone(),
                topics: taken.iter().map(|(_, topic)| (*topic).to_owned()).collect(),
                options: kafka.options.clone(),
                adopt: false,
            });
            jobs.push(SinkJob {
                sink: Box::new(sink),
                tongue: Tongue::Messages(takes),
                commit_interval: kafka.commit_interval,
            });
        }
    }
    if let Some(postgres) = &config.sinks.postgres {
        let (name, url) = ("postgres".into(), postgres.place.clone());
        let sink = PostgresConfig { name, url, skip_stored: true }.build();
        jobs.push(tables_job(Box::new(sink), postgres));
    }
    if let Some(sqlite) = &config.sinks.sqlite {
        let sink = SqliteConfig { name: "sqlite".into(), path: sqlite.place.clone().into() }.build();
        jobs.push(tables_job(Box::new(sink), sqlite));
    }
    jobs
}

fn tables_job(sink: Box<dyn Sink>, config: &TablesConfig) -> SinkJob {
    let mut takes = Takes::default();
    for &kind in &config.tables {
        *place(&mut takes, kind) = Some(match kind {
            OutputKind::Events => tables::EVENTS,
            OutputKind::Alerts => tables::ALERTS,
            OutputKind::Windows => tables::WINDOW_AGGREGATES,
            OutputKind::DeadLetters => tables::DEAD_LETTERS,
        });
    }
    SinkJob { sink, tongue: Tongue::Rows(takes), commit_interval: config.commit_interval }
}

fn place(takes: &mut Takes, kind: OutputKind) -> &mut Option<u8> {
    match kind {
        OutputKind::Events => &mut takes.events,
        OutputKind::Alerts => &mut takes.alerts,
        OutputKind::Windows => &mut takes.windows,
        OutputKind::DeadLetters => &mut takes.dead_letters,
    }
}

/// The run of a configuration, on these workers.
///
/// # Errors
/// If the source cannot be opened.
pub fn job(
    config: &Config,
    until_end: bool,
    workers: timely::Config,
    metrics: Arc<Metrics>,
) -> Result<Job, SourceError> {
    let (process, peers) = match &workers.communication {
        timely::CommunicationConfig::Cluster { threads, process, addresses, .. } => {
            (*process, threads * addresses.len())
        }
        timely::CommunicationConfig::Process(threads)
        | timely::CommunicationConfig::ProcessBinary(threads) => (0, *threads),
        timely::CommunicationConfig::Thread => (0, 1),
    };
    let local = peers / workers_processes(&workers);
    let start = Start {
        pipeline: config.plan.pipeline.to_string(),
        lineage: lineage(&config.plan.pipeline),
        generation: generation(),
        process,
        shards: Shards::of_workers(process * local..(process + 1) * local, peers),
    };
    Ok(Job {
        plan: config.plan.clone(),
        source: source(config, until_end)?,
        sinks: sinks(config),
        start,
        workers,
        stopping: Arc::new(AtomicBool::new(false)),
        metrics,
    })
}

fn workers_processes(workers: &timely::Config) -> usize {
    match &workers.communication {
        timely::CommunicationConfig::Cluster { addresses, .. } => addresses.len(),
        _ => 1,
    }
}

/// Until a ledger records a random one, the lineage follows from the pipeline's name.
fn lineage(pipeline: &str) -> Lineage {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(format!("headwater lineage of {pipeline}"));
    Lineage(hash[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Until a ledger counts starts, the generation is the wall time in milliseconds: higher than that of any start
/// before, as long as the clock does not go back.
fn generation() -> Generation {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Generation(since.as_millis() as u64)
}
