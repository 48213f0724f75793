//! The command line.

pub mod args;
pub mod bench;
mod build;
mod connect;
mod demo;
mod status;
mod stop;
mod supervise;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use args::{Command, DeadLettersArgs, ProduceArgs, RunArgs};
use headwater_sinks::Misconfigured;

use crate::config::{Complaint, Complaints, Config, Origin, SourceConfig};
use crate::coordination::Skip;
use crate::metrics::Metrics;
use crate::runtime::{Job, Resets, RunError};
use crate::source::SourceError;
use crate::source::generator::{GeneratorSettings, RecordMaker};
use crate::source::kafka::{dead_letters, produce};

/// The process has done what was asked.
const DONE: u8 = 0;
/// It failed; trying again may help.
const FAILED: u8 = 1;
/// The command or the configuration is wrong.
const USAGE: u8 = 2;
/// Going on would break a promise.
const REFUSED: u8 = 3;

/// Runs the command of the process's arguments.
pub fn main() -> ExitCode {
    // A worker that panics would leave its peers waiting for ever.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        std::process::abort();
    }));
    let command = match args::parse(std::env::args_os().skip(1), |name| std::env::var(name).ok()) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("headwater: {error}");
            return ExitCode::from(USAGE);
        }
    };
    match carry_out(command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("headwater: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<Complaints>() || cause.is::<Misconfigured>()) {
        return USAGE;
    }
    let refused = matches!(error.downcast_ref(), Some(SourceError::Refused(_)))
        || error.downcast_ref().is_some_and(RunError::is_refusal);
    if refused { REFUSED } else { FAILED }
}

fn carry_out(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Help(text) => print!("{text}"),
        Command::Version => println!("headwater {}", env!("CARGO_PKG_VERSION")),
        Command::Demo(args) => {
            crate::logging::init(false, "warn");
            return Ok(if demo::demo(&args)? { DONE } else { FAILED });
        }
        Command::Run(args) if args.restart => return supervise_run(&args),
        Command::Run(args) => run(&args)?,
        Command::Check(path) => print!("{}", load(&path)?.effective()),
        Command::Connect(path, json) => {
            // What librdkafka says of its connections becomes the failure's words.
            crate::logging::init(false, "warn,librdkafka=off");
            return Ok(connect::check(&load(&path)?, json));
        }
        Command::Status(args) => {
            let mut config = load(&args.config)?;
            permit(&mut config, &args.resets)?;
            return status::status(&config, args.json);
        }
        Command::TopicsCreate(path) => topics_create(&path)?,
        Command::Produce(args) => produce_events(&args)?,
        Command::DeadLetters(args) => dead_letters_command(&args)?,
        Command::BenchCost(args) => bench::cost(&args),
        Command::BenchKeys(args) => bench::keys(&args)?,
        Command::BenchStages(args) => bench::stages(&args)?,
        Command::BenchLatency(args) => bench::latency(&args)?,
    }
    Ok(DONE)
}

fn load(path: &Path) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Config::parse(&text, std::env::vars())?)
}

/// Lets a start reset what the command line says it may.
fn permit(config: &mut Config, resets: &Resets) -> Result<(), Complaints> {
    config.resets.clone_from(resets);
    are_sinks(config, resets.sinks.iter(), "to reset")
}

/// Has outputs left out that the command line names.
fn leave_out(config: &mut Config, skips: &[Skip]) -> Result<(), Complaints> {
    skips.clone_into(&mut config.skips);
    if config.ledger.is_none() && !skips.is_empty() {
        return Err(complaint("ledger", "an output is left out by way of the ledger, and there is none"));
    }
    are_sinks(config, skips.iter().map(|skip| &skip.sink), "to leave anything out of")
}

/// Whether the configuration has these sinks.
fn are_sinks<'a>(
    config: &Config,
    mut named: impl Iterator<Item = &'a String>,
    what_for: &str,
) -> Result<(), Complaints> {
    let sinks: Vec<_> = build::sinks(config, "").iter().map(|job| job.sink.name().to_owned()).collect();
    let Some(unknown) = named.find(|&sink| !sinks.contains(sink)) else { return Ok(()) };
    Err(complaint(
        "sinks",
        format!("there is no sink {unknown:?} {what_for}: there are {}", sinks.join(", ")),
    ))
}

/// What a command needs of a key and does not find there.
fn complaint(key: &str, message: impl Into<String>) -> Complaints {
    Complaints(vec![Complaint { origin: Origin::Default, key: key.into(), message: message.into() }])
}

/// Has a child run what the arguments say without `--restart`.
fn supervise_run(args: &RunArgs) -> anyhow::Result<u8> {
    let config = load(&args.config)?;
    crate::logging::init(config.log.json, &config.log.level);
    let arguments: Vec<_> = std::env::args_os().skip(1).filter(|argument| argument != "--restart").collect();
    supervise::supervise(&arguments)
}

fn run(args: &RunArgs) -> anyhow::Result<()> {
    let mut config = load(&args.config)?;
    crate::logging::init(config.log.json, &config.log.level);
    config.plan.close_at_end = args.close || !matches!(config.source, SourceConfig::Kafka(_));
    config.plan.record_bindings = args.bindings.clone();
    permit(&mut config, &args.resets)?;
    leave_out(&mut config, &args.skips)?;
    let metrics = Arc::new(Metrics::default());
    // Whoever asks before the run has begun is heard, too: it begins then, and stops as it should.
    let restarts = std::env::var(supervise::RESTARTS).ok();
    let requests = if restarts.is_some() { stop::signals_and_end_of_input() } else { stop::signals() };
    let (stopping, bound) =
        (Arc::default(), stop::Bound { drain: config.drain, metrics: Arc::clone(&metrics) });
    stop::on(requests.context("cannot handle signals")?, &stopping, Some(bound));
    let job = build::job(&config, args.until_end, timely_config(args)?, Arc::clone(&metrics))?;
    let job = Job { stopping, ..job };
    metrics.restarted(restarts.and_then(|restarts| restarts.parse().ok()).unwrap_or(0));
    let server = match config.http {
        Some(listen) => Some(crate::http::serve(listen, Arc::clone(&metrics)).context("cannot serve HTTP")?),
        None => None,
    };
    if let Some(server) = &server {
        tracing::info!(address = %server.address(), "serving /livez, /readyz and /metrics");
    }
    tracing::info!(pipeline = %config.plan.pipeline, workers = args.workers, processes = args.processes, "running");
    if matches!(config.source, SourceConfig::Kafka(_)) && config.ledger.is_none() {
        tracing::info!("without a ledger: starting at the group's committed offsets with empty state");
    }
    let begun = Instant::now();
    crate::runtime::run(job)?;
    let events = metrics.event_count();
    let seconds = begun.elapsed().as_secs_f64();
    tracing::info!(events, seconds, events_per_s = (events as f64 / seconds).round(), "done");
    drop(server);
    Ok(())
}

fn timely_config(args: &RunArgs) -> anyhow::Result<timely::Config> {
    let Some(hostfile) = args.hostfile.as_ref().filter(|_| args.processes > 1) else {
        return Ok(timely::Config::process(args.workers));
    };
    let text =
        std::fs::read_to_string(hostfile).with_context(|| format!("cannot read {}", hostfile.display()))?;
    let hosts: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    anyhow::ensure!(
        hosts.len() >= args.processes,
        "{} names fewer than {} hosts",
        hostfile.display(),
        args.processes
    );
    let communication = timely::CommunicationConfig::Cluster {
        threads: args.workers,
        process: args.process,
        addresses: hosts[..args.processes].to_vec(),
        report: false,
        zerocopy: false,
    };
    Ok(timely::Config { communication, worker: timely::WorkerConfig::default() })
}

fn kafka_source(config: &Config) -> anyhow::Result<&crate::config::KafkaSourceConfig> {
    match &config.source {
        SourceConfig::Kafka(kafka) => Ok(kafka),
        _ => anyhow::bail!("this needs a configuration whose source is Kafka"),
    }
}

fn topics_create(path: &Path) -> anyhow::Result<()> {
    let config = load(path)?;
    let kafka = kafka_source(&config)?;
    let mut topics = crate::topics::standard();
    if !topics.iter().any(|topic| topic.name == kafka.topic) {
        let mut own = topics[0].clone();
        own.name.clone_from(&kafka.topic);
        topics.push(own);
    }
    crate::topics::create_topics(&kafka.brokers, &kafka.options, &topics)?;
    topics.iter().for_each(|topic| println!("{} ({} partitions)", topic.name, topic.partitions));
    Ok(())
}

fn produce_events(args: &ProduceArgs) -> anyhow::Result<()> {
    let config = load(&args.config)?;
    crate::logging::init(config.log.json, &config.log.level);
    let kafka = kafka_source(&config)?;
    let producer = produce::Producer::connect(&kafka.brokers, &kafka.options, &kafka.topic)?;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    stop::on(stop::signals()?, &stop, None);
    let settings = GeneratorSettings { seed: args.seed, ..GeneratorSettings::default() };
    let partitions = settings.partitions;
    let mut maker = RecordMaker::new(settings);
    let total = args.seconds.map_or(u64::MAX, |seconds| (seconds * args.eps) as u64);
    let records = (0..total).map(move |n| {
        let (partition, offset) = ((n % u64::from(partitions)) as u32, n / u64::from(partitions));
        maker.make(partition, offset, Some(crate::wall::wall_ms()));
        let (key, value) = (Some(maker.key.clone()), Some(maker.value.clone()));
        produce::Produced { partition: Some(partition), key, value, headers: Vec::new() }
    });
    let mut told = Instant::now();
    let report = producer.run(records, Some(args.eps), &stop, &mut |report| {
        if told.elapsed() >= Duration::from_secs(5) {
            told = Instant::now();
            tracing::info!(?report, "producing");
        }
    })?;
    tracing::info!(?report, "done");
    Ok(())
}

fn dead_letters_command(args: &DeadLettersArgs) -> anyhow::Result<()> {
    let config = load(&args.config)?;
    let kafka = kafka_source(&config)?;
    let letters = dead_letters::DeadLetters::read_all(&kafka.brokers, &kafka.options, "dead-letters")?;
    let chosen = letters.filter(|letter| match (letter, &args.reason) {
        (Ok(letter), Some(reason)) => letter.reason() == reason,
        _ => true,
    });
    if args.retry {
        let letters = chosen.collect::<Result<Vec<_>, _>>()?;
        let retried =
            dead_letters::retry(&kafka.brokers, &kafka.options, &kafka.topic, letters, args.include_late)?;
        println!("{retried:?}");
        return Ok(());
    }
    for letter in chosen {
        let letter = letter?;
        println!("{letter:?}");
    }
    Ok(())
}
