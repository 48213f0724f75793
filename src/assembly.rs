//! Construction of a run from a configuration: its source, sinks, ledger and state store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use headwater_sinks::postgres::{self, PostgresConfig};
use headwater_sinks::sqlite::SqliteConfig;
use headwater_sinks::tables::{OUTBOX, TableSet};
use headwater_sinks::{Generation, LedgerId, OpenError, Shards, Sink, WriterContext, crash};

use crate::cluster::{ClusterError, ClusterSettings};
use crate::config::{
    CheckpointConfig, Config, KafkaSourceConfig, LedgerConfig, OutputKind, SinkConfig, SourceConfig,
    TablesConfig, changes,
};
use crate::connectors::{Check, SinkContext, SourceContext, causes, writable};
use crate::coordination::{TAKEOVERS_WITHIN_MS, Takeovers};
use crate::dead_letters::{Database, KafkaTopic, LastRead, LetterStore, Storage};
use crate::ledger::{Claim, Genesis, Ledger, LedgerError, PostgresLedger, SqliteLedger};
use crate::metrics::Metrics;
use crate::outputs::{OutputMapping, SinkEncoding, SinkJob};
use crate::pipeline::ConfigChange;
use crate::routes::{self, DeliverySettings, OutboxPlace, Route};
use crate::runtime::{
    ChangeRequests, Checkpoints, Following, History, Job, Peers, Queries, Role, RunError, processes,
};
use crate::source::kafka::StartFrom;
use crate::source::{Opening, Reopening};
use crate::wall::wall_ms;

/// Returns a function that opens the source of a configuration.
pub fn source(config: &Config, is_bounded: bool) -> Opening {
    let (source, context) = (config.source.clone(), source_context(config, is_bounded));
    Box::new(move |starts| source.connector().open(context, starts))
}

/// Returns a function that opens the source of a configuration again, beside a run or without one, without the offsets of a
/// consumer group: a topic from the first record with a given timestamp or a later one, other sources from their first
/// record. It has its present end if it is bounded.
pub fn reopening(config: &Config, is_bounded: bool) -> Reopening {
    let (source, context) = (config.source.clone(), source_context(config, is_bounded));
    Arc::new(move |since_ms| {
        let (mut source, mut context) = (source.clone(), context.clone());
        if let SourceConfig::Kafka(kafka) = &mut source {
            kafka.start_from = since_ms.map_or(StartFrom::Earliest, StartFrom::Time);
            // Together, they make the start independent of the group's offsets.
            (kafka.start_from_is_set, context.has_ledger) = (true, true);
        }
        source.connector().open(context, None)
    })
}

/// Returns the circumstances in which the source of a configuration is opened.
pub fn source_context(config: &Config, is_bounded: bool) -> SourceContext {
    SourceContext {
        pipeline: config.plan.pipeline.to_string(),
        has_ledger: config.ledger.is_some(),
        is_bounded,
        accepted: config.accepted_losses.clone(),
        bytes_in_flight: config.plan.limits.bytes_in_flight,
    }
}

/// Returns the circumstances in which the sinks of a configuration are built. `topic_prefix` is prepended to the names of
/// topics.
pub fn sink_context<'a>(config: &'a Config, topic_prefix: &'a str) -> SinkContext<'a> {
    SinkContext { pipeline: &config.plan.pipeline, has_ledger: config.ledger.is_some(), topic_prefix }
}

/// Builds the sinks of a configuration, the outbox of its routes included. `topic_prefix` is prepended to the names of
/// topics.
pub fn sinks(config: &Config, topic_prefix: &str) -> Vec<SinkJob> {
    let mut jobs = config.sinks.jobs(sink_context(config, topic_prefix));
    jobs.extend(outbox(config).map(|place| outbox_job(&place)));
    jobs
}

/// Returns the sink that writes the outbox.
fn outbox_job(place: &OutboxPlace) -> SinkJob {
    let (name, skip_stored, set) = (routes::SINK.to_owned(), false, TableSet::Outbox);
    let sink: Box<dyn Sink> = match place.clone() {
        OutboxPlace::Sqlite(path) => Box::new(SqliteConfig { name, path, skip_stored, set }.build()),
        OutboxPlace::Postgres { url, schema } => {
            let (schema, partitioning, dashboards) = (Some(schema), None, None);
            Box::new(PostgresConfig { name, url, schema, skip_stored, set, partitioning, dashboards }.build())
        }
    };
    let mapping = OutputMapping { alerts: Some(OUTBOX), ..OutputMapping::default() };
    SinkJob { sink, encoding: SinkEncoding::Rows(mapping), commit_interval: OUTBOX_INTERVAL }
}

/// The minimum time between the beginnings of two transactions of the outbox.
const OUTBOX_INTERVAL: Duration = Duration::from_millis(50);

/// Tests what a run needs of the outbox and the receivers of routes.
pub fn check_routes(config: &Config) -> Vec<Check> {
    let Some(place) = outbox(config) else { return Vec::new() };
    let outcome = match &place {
        OutboxPlace::Sqlite(path) => writable(path),
        OutboxPlace::Postgres { url, schema } => {
            let set = TableSet::Outbox;
            let wanted =
                postgres::probe::Wanted { sink: routes::SINK, set, partitioning: None, dashboards: None };
            postgres::probe::sink(url.expose(), Some(schema), wanted).map_err(Into::into)
        }
    };
    let mut checks = vec![Check::of("routes", place.to_string(), outcome)];
    for Route { name, target, .. } in &config.routes {
        checks.push(Check::of(format!("routes.{name}"), target.endpoint.to_string(), target.probe()));
    }
    checks
}

/// Returns the place of the outbox; None if the configuration has no routes.
pub fn outbox(config: &Config) -> Option<OutboxPlace> {
    let place = || match config.ledger.as_ref()? {
        LedgerConfig::Sqlite(path) => Some(OutboxPlace::beside(path)),
        LedgerConfig::Postgres(url) => Some(OutboxPlace::in_database(url.clone(), &config.plan.pipeline)),
    };
    if config.routes.is_empty() { None } else { place() }
}

/// Returns the dead letters of a configuration: those in a topic if a sink writes one, else those in a table. None if no
/// sink stores dead letters that can be read again.
pub fn dead_letters(config: &Config) -> Option<LetterStore> {
    let mut kafka = config.sinks.kafka();
    let topic = kafka.find_map(|sink| {
        let topic = sink.topics.get(&OutputKind::DeadLetters)?.clone();
        Some(Storage::Topic(KafkaTopic {
            brokers: sink.brokers.clone(),
            options: sink.options.clone(),
            topic,
        }))
    });
    let has_table = |tables: &TablesConfig| tables.tables.contains(&OutputKind::DeadLetters);
    let table = || {
        config.sinks.0.values().find_map(|sink| match sink {
            SinkConfig::Postgres(sink) if has_table(&sink.tables) => {
                Some(Storage::Table(Database::Postgres(sink.url.clone(), sink.schema.clone())))
            }
            SinkConfig::Sqlite(sink) if has_table(&sink.tables) => {
                Some(Storage::Table(Database::Sqlite(sink.path.clone())))
            }
            _ => None,
        })
    };
    let (source, producer_header) = match &config.source {
        SourceConfig::Kafka(KafkaSourceConfig { brokers, topic, options, producer_header, .. }) => {
            let (brokers, topic, options) = (brokers.clone(), topic.clone(), options.clone());
            (Some(KafkaTopic { brokers, options, topic }), producer_header.clone())
        }
        _ => (None, String::new()),
    };
    Some(LetterStore {
        pipeline: config.plan.pipeline.to_string(),
        storage: topic.or_else(table)?,
        source,
        mask: config.masked_fields.clone(),
        producer_header,
        decoding: config.plan.decoding.clone(),
        last_read: LastRead::default(),
    })
}

/// Opens the ledger.
pub fn ledger(config: &LedgerConfig, pipeline: &str) -> Result<Box<dyn Ledger>, LedgerError> {
    Ok(match config {
        LedgerConfig::Sqlite(path) => Box::new(SqliteLedger::open(path, pipeline)?),
        LedgerConfig::Postgres(url) => Box::new(PostgresLedger::open(url.expose(), pipeline)?),
    })
}

/// Opens the state store, if checkpoints are enabled.
fn checkpoints(config: &Config) -> Result<Option<Checkpoints>, RunError> {
    Ok(match &config.checkpoint {
        Some(CheckpointConfig { interval, keep }) => Some(Checkpoints {
            store: {
                tracing::info!(state = %config.state, "opening the state store");
                crate::state::open(&config.state, &config.plan.pipeline)?
            },
            interval_ms: i64::try_from(interval.as_millis()).unwrap_or(i64::MAX),
            keep: *keep,
        }),
        None => None,
    })
}

/// Checks that several processes can share the resources of a configuration.
///
/// # Errors
/// If they cannot: the resource, and an alternative.
pub fn check_shareable(config: &Config) -> Result<(), RunError> {
    let refused = |reason: &str| Err(LedgerError::Refused(reason.into()).into());
    let has_ledger = config.ledger.is_some();
    for (name, sink) in &config.sinks.0 {
        if let Some(reason) = sink.connector().sharing_objection(has_ledger) {
            return Err(OpenError::Refused { sink: name.clone(), reason }.into());
        }
    }
    if !has_ledger {
        return Ok(());
    }
    if let Some(OutboxPlace::Sqlite(_)) = outbox(config) {
        return refused(
            "several processes need a shared outbox of their routes, in the database of a ledger with `kind = \
             \"postgres\"`; or start one process with more workers (-w)",
        );
    }
    if !config.resets.sinks.is_empty() || config.resets.all.is_some() {
        return refused(
            "only a single process can reset a sink or all state: start one process (without -n), stop it, and then start \
             several",
        );
    }
    if config.checkpoint.is_some() && !config.state.is_shareable() {
        return refused(
            "several processes need a shared state store: set `state.kind = \"redis\"` or `\"object_store\"`, or start one process",
        );
    }
    Ok(())
}

/// Returns the sinks that must have progress: those that have committed before. None if duplicates are accepted.
///
/// # Errors
/// If the ledger cannot be read.
pub fn sinks_with_progress(ledger: &mut dyn Ledger, config: &Config) -> Result<Vec<String>, LedgerError> {
    if config.resets.accept_duplicates { Ok(Vec::new()) } else { ledger.committed_sinks() }
}

/// Records in the ledger that a later start took over from this run while it was alive. The record makes visible that
/// two processes keep taking over from each other.
///
/// # Errors
/// If the ledger cannot be used.
pub fn record_takeover(config: &Config) -> Result<(), LedgerError> {
    match &config.ledger {
        Some(ledger_config) => ledger(ledger_config, &config.plan.pipeline)?.replaced(wall_ms()),
        None => Ok(()),
    }
}

/// Delays the takeover if two processes keep taking over from each other.
fn delay_takeover(ledger: &mut dyn Ledger, pipeline: &str, metrics: &Metrics) -> Result<(), LedgerError> {
    let Some(takeovers) = ledger.takeovers()? else { return Ok(()) };
    let Some(wait) = takeovers.wait(wall_ms()) else { return Ok(()) };
    let Takeovers { count, .. } = takeovers;
    let (wait_s, within_min) = (wait.as_secs(), TAKEOVERS_WITHIN_MS / 60_000);
    let reason = format!(
        "waiting {wait_s} s before taking over: the last {count} runs were fenced while they were running, each within \
         {within_min} minutes of the previous one: two processes use the pipeline name {pipeline}; stop one of them, or give \
         it another name"
    );
    tracing::error!("{reason}");
    metrics.starting(reason);
    std::thread::sleep(wait);
    Ok(())
}

/// Claims the ledger, reads its records and opens the state store.
fn open_history(
    config: &Config,
    ledger_config: &LedgerConfig,
    metrics: &Metrics,
) -> Result<History, RunError> {
    let mut ledger = ledger(ledger_config, &config.plan.pipeline)?;
    let semantics = config.semantics();
    // Check the configuration before claiming: a start that is refused must not fence the current run.
    let before = ledger.peek()?.and_then(|claim| claim.genesis);
    config_changes(before.as_ref(), &semantics, &config.resets.sections)?;
    delay_takeover(&mut *ledger, &config.plan.pipeline, metrics)?;
    let claim = ledger.claim()?;
    crash::point("start.claimed");
    for skip in &config.skips {
        ledger.skip(skip)?;
    }
    let (skips, losses, committed) =
        (ledger.skips()?, ledger.losses()?, sinks_with_progress(&mut *ledger, config)?);
    let config_change = config_changes(claim.genesis.as_ref(), &semantics, &config.resets.sections)?;
    let checkpoints = checkpoints(config)?;
    tracing::info!(generation = %claim.generation, "claimed the ledger");
    let resets = config.resets.clone();
    Ok(History {
        ledger,
        claim,
        semantics,
        first_rules: String::new(),
        config_change,
        resets,
        skips,
        losses,
        committed,
        checkpoints,
    })
}

/// Returns the changes of the configuration since the pipeline's settings were recorded; None if there are none.
///
/// # Errors
/// If the pipeline cannot resume with the changes.
pub fn config_changes(
    genesis: Option<&Genesis>,
    semantics: &str,
    resets: &BTreeSet<String>,
) -> Result<Option<ConfigChange>, LedgerError> {
    match genesis {
        Some(genesis) => changes(&genesis.semantics, semantics, resets)
            .map_err(|incompatible| LedgerError::Refused(incompatible.to_string())),
        None => Ok(None),
    }
}

/// Returns the settings of the cluster; None if the process is the only one.
fn cluster_settings(
    config: &Config,
    workers: &timely::Config,
) -> Result<Option<ClusterSettings>, ClusterError> {
    let timely::CommunicationConfig::Cluster { threads, process, addresses, .. } = &workers.communication
    else {
        return Ok(None);
    };
    let results = (&*config.plan.pipeline, config.semantics());
    ClusterSettings::new(&config.cluster, results, addresses, (*process, *threads)).map(Some)
}

/// Builds the run of a configuration on these workers.
///
/// # Errors
/// If the ledger or the state store cannot be opened, or if the start is refused.
pub fn job(
    config: &Config,
    is_bounded: bool,
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
    let cluster = cluster_settings(config, &workers)?;
    if processes > 1 {
        check_shareable(config)?;
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
    if config.ledger.is_some() {
        // Check before claiming the ledger.
        config.source.connector().check_repeatable("with [ledger]")?;
    }
    let role = match &config.ledger {
        None => Role::Unrecorded,
        // The leader sends the identity of the writer to the followers.
        Some(_) if process > 0 => Role::Follower(Box::new(Following {
            semantics: config.semantics(),
            checkpoints: checkpoints(config)?,
        })),
        Some(ledger) => {
            let mut history = open_history(config, ledger, &metrics)?;
            let Claim { ledger_id, generation, .. } = &history.claim;
            (context.ledger_id, context.generation) = (ledger_id.clone(), *generation);
            context.max_processes = history.ledger.register_processes(processes)?;
            Role::Leader(Box::new(history))
        }
    };
    let deliveries = outbox(config).filter(|_| process == 0).map(|place| DeliverySettings {
        pipeline: config.plan.pipeline.to_string(),
        place,
        routes: config.routes.clone(),
    });
    Ok(Job {
        plan: config.plan.clone(),
        source: source(config, is_bounded),
        sinks: sinks(config, ""),
        context,
        role,
        workers,
        cluster,
        stopping: Arc::new(AtomicBool::new(false)),
        rescaling: Arc::default(),
        metrics,
        recent: None,
        queries: Queries::default(),
        rules: config.live_rules(),
        requests: ChangeRequests::default(),
        reopen: match config.source.connector().check_repeatable("with rules that have a backfill") {
            Ok(()) => Ok(reopening(config, false)),
            Err(error) => Err(causes(&error)),
        },
        lists: config.rule_scope.lists().clone(),
        list_configs: if process == 0 { config.lists.clone() } else { Vec::new() },
        peers: Peers::default(),
        deliveries,
        otlp: config.otlp.clone(),
    })
}

/// Returns the ledger id of a pipeline without a ledger: a hash of its name. A ledger has a random id.
fn ledger_id(pipeline: &str) -> LedgerId {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(format!("headwater lineage of {pipeline}"));
    LedgerId(hash[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns the generation of a pipeline without a ledger: the wall time in milliseconds. If a sink has a greater
/// generation, because the clock was ahead, the generation is raised to one more. A ledger counts starts instead.
fn generation() -> Generation {
    Generation(wall_ms().unsigned_abs())
}

impl Job {
    /// Builds the run of a configuration on these workers, until the end of its input.
    ///
    /// # Errors
    /// If the ledger or the state store cannot be opened, or if the start is refused.
    pub fn of_config(
        config: &Config,
        workers: timely::Config,
        metrics: Arc<Metrics>,
    ) -> Result<Job, RunError> {
        job(config, false, workers, metrics)
    }
}
