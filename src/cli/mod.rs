//! The command line.

pub mod args;
pub mod bench;
mod build;
pub mod command;
mod connect;
mod dead_letters;
mod demo;
mod hosts;
pub mod output;
mod status;
mod stop;
mod summary;
mod supervise;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use command::{CheckArgs, Command, ProduceArgs, RunArgs, TopicsArgs};
use headwater_sinks::Misconfigured;
use hosts::HostsError;
use output::{OutputError, out, outln};
use serde_json::json;

use crate::config::{Config, ConfigError, ConfigErrors, Origin, SourceConfig};
use crate::coordination::{AcceptedLoss, Skip};
use crate::metrics::Metrics;
use crate::runtime::{Job, Resets, RunError};
use crate::source::SourceError;
use crate::source::file::check_repeatable;
use crate::source::generator::{GeneratorSettings, RecordMaker};
use crate::source::kafka::produce;
use crate::topics;

/// The process has done what was asked.
const DONE: u8 = 0;
/// It failed; trying again may help.
const FAILED: u8 = 1;
/// The command or the configuration is wrong.
const USAGE: u8 = 2;
/// Going on would break a promise.
const REFUSED: u8 = 3;
/// Nobody reads what it prints any more: as a shell says of a command that SIGPIPE has ended.
const CLOSED: u8 = 141;

/// Runs the command of the process's arguments.
pub fn main() -> ExitCode {
    crate::logging::abort_on_panic();
    let command = match args::parse(std::env::args_os().skip(1), |name| std::env::var(name).ok()) {
        Ok(command) => command,
        Err(error) => {
            crate::logging::fatal(&error.to_string(), USAGE);
            return ExitCode::from(USAGE);
        }
    };
    match carry_out(command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = exit_code(&error);
            // Whoever has closed the standard output wants to know nothing more.
            if code != CLOSED {
                crate::logging::fatal(&format!("{error:#}"), code);
            }
            ExitCode::from(code)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let is_usage =
        |cause: &(dyn std::error::Error + 'static)| cause.is::<ConfigErrors>() || cause.is::<Misconfigured>();
    if error.is::<HostsError>() || error.chain().any(is_usage) {
        return USAGE;
    }
    if let Some(OutputError::Closed) = error.downcast_ref() {
        return CLOSED;
    }
    let refused = matches!(error.downcast_ref(), Some(SourceError::Refused(_)))
        || error.downcast_ref().is_some_and(RunError::is_refusal);
    if refused { REFUSED } else { FAILED }
}

fn carry_out(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Help(text) => out!("{text}")?,
        Command::Version => outln!("headwater {}", env!("CARGO_PKG_VERSION"))?,
        Command::Demo(args) => {
            crate::logging::init(false, "warn");
            return Ok(if demo::demo(&args)? { DONE } else { FAILED });
        }
        Command::Run(args) if args.restart => return supervise_run(&args),
        Command::Run(args) => run(&args)?,
        Command::Check(args) if args.connect => return connect(&args),
        Command::Check(args) => check(&args)?,
        Command::Status(args) => {
            let mut config = load(&args.config)?;
            permit(&mut config, &args.resets)?;
            accept_losses(&mut config, &args.accepted_losses)?;
            return status::status(&config, args.json);
        }
        Command::TopicsCreate(args) => topics_create(&args)?,
        Command::Produce(args) => produce_events(&args)?,
        Command::DeadLetters(args) => dead_letters::dead_letters(&args)?,
        Command::BenchCost(args) => bench::cost(&args)?,
        Command::BenchKeys(args) => bench::keys(&args)?,
        Command::BenchStages(args) => bench::stages(&args)?,
        Command::BenchLatency(args) => bench::latency(&args)?,
    }
    Ok(DONE)
}

/// The configuration of a command that logs warnings alone.
fn load(path: &Path) -> anyhow::Result<Config> {
    load_with(path, Config::parse, |_| "warn")
}

/// The configuration of a command that logs what the configuration says.
fn load_to_run(path: &Path) -> anyhow::Result<Config> {
    load_with(path, Config::parse, |config| &config.log.level)
}

/// The configuration of a command that writes to no sink, which it need not have.
fn load_source(path: &Path) -> anyhow::Result<Config> {
    load_with(path, Config::parse_without_sinks, |config| &config.log.level)
}

/// Reads a configuration's text with the variables of an environment.
type Parse = fn(&str, std::vec::IntoIter<(String, String)>) -> Result<Config, ConfigErrors>;

fn load_with(path: &Path, parse: Parse, level: fn(&Config) -> &str) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let environment = Config::environment()?;
    let config = parse(&text, environment.clone().into_iter());
    // From here on every error is in the log's format, also those of the configuration itself.
    match &config {
        Ok(config) => crate::logging::init(config.log.json, level(config)),
        Err(_) => crate::logging::init(Config::wants_json(&text, environment.into_iter()), "warn"),
    }
    Ok(config?)
}

/// Tries what is in force.
fn connect(args: &CheckArgs) -> anyhow::Result<u8> {
    // What librdkafka says of its connections becomes the failure's words.
    let config = load_with(&args.config, Config::parse, |_| "warn,librdkafka=off")?;
    warn(&config);
    connect::check(&config, args.json)
}

/// Prints what is valid, and probably not what is meant.
fn warn(config: &Config) {
    config.warnings.iter().for_each(|warning| output::progress(format_args!("warning: {warning}\n")));
}

/// Prints what is in force.
fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let config = load(&args.config)?;
    warn(&config);
    if args.json {
        outln!("{}", config.effective_json())?;
    } else {
        out!("{}", config.effective())?;
    }
    Ok(())
}

/// Lets a start reset what the command line says it may.
fn permit(config: &mut Config, resets: &Resets) -> Result<(), ConfigErrors> {
    config.resets.clone_from(resets);
    are_sinks(config, resets.sinks.iter(), "to reset")
}

/// Has outputs left out that the command line names.
fn leave_out(config: &mut Config, skips: &[Skip]) -> Result<(), ConfigErrors> {
    skips.clone_into(&mut config.skips);
    if config.ledger.is_none() && !skips.is_empty() {
        return Err(config_error("ledger", "an output is left out by way of the ledger, and there is none"));
    }
    are_sinks(config, skips.iter().map(|skip| &skip.sink), "to leave anything out of")
}

/// Has records be missing that the command line names.
fn accept_losses(config: &mut Config, losses: &[AcceptedLoss]) -> Result<(), ConfigErrors> {
    let topic = match &config.source {
        SourceConfig::Kafka(kafka) => Some(&kafka.topic),
        _ => None,
    };
    if let Some(other) = losses.iter().find(|loss| Some(&loss.topic) != topic) {
        let message = format!(
            "there is no topic {:?} to lose records of: {}",
            other.topic,
            match topic {
                Some(topic) => format!("the source is {topic}"),
                None => "the source is not Kafka".to_owned(),
            }
        );
        return Err(config_error("source.topic", message));
    }
    losses.clone_into(&mut config.accepted_losses);
    Ok(())
}

/// Whether the configuration has these sinks.
fn are_sinks<'a>(
    config: &Config,
    mut named: impl Iterator<Item = &'a String>,
    what_for: &str,
) -> Result<(), ConfigErrors> {
    let sinks: Vec<_> = build::sinks(config, "").iter().map(|job| job.sink.name().to_owned()).collect();
    let Some(unknown) = named.find(|&sink| !sinks.contains(sink)) else { return Ok(()) };
    Err(config_error(
        "sinks",
        format!("there is no sink {unknown:?} {what_for}: there are {}", sinks.join(", ")),
    ))
}

/// What a command needs of a key and does not find there.
fn config_error(key: &str, message: impl Into<String>) -> ConfigErrors {
    ConfigErrors(vec![ConfigError { origin: Origin::Default, key: key.into(), message: message.into() }])
}

/// Has a child run what the arguments say without `--restart`.
fn supervise_run(args: &RunArgs) -> anyhow::Result<u8> {
    let config = load_to_run(&args.config)?;
    let arguments: Vec<_> = std::env::args_os().skip(1).filter(|argument| argument != "--restart").collect();
    if let SourceConfig::File(paths) = &config.source {
        // Nor is the standard input that of the child.
        check_repeatable(paths, "by --restart")?;
    }
    supervise::supervise(&arguments)
}

fn run(args: &RunArgs) -> anyhow::Result<()> {
    let mut config = load_to_run(&args.config)?;
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    config.plan.close_at_end = args.close || !matches!(config.source, SourceConfig::Kafka(_));
    config.plan.record_bindings = args.bindings.clone();
    permit(&mut config, &args.resets)?;
    leave_out(&mut config, &args.skips)?;
    accept_losses(&mut config, &args.accepted_losses)?;
    let metrics = Arc::new(Metrics::default());
    // Whoever asks before the run has begun is heard, too: it begins then, and stops as it should.
    let restarts = std::env::var(supervise::RESTARTS).ok();
    let requests = if restarts.is_some() { stop::signals_and_end_of_input() } else { stop::signals() };
    let (stopping, bound) =
        (Arc::default(), stop::Bound { drain: config.drain, metrics: Arc::clone(&metrics) });
    stop::on(requests.context("cannot handle signals")?, &stopping, Some(bound));
    metrics.restarted(restarts.and_then(|restarts| restarts.parse().ok()).unwrap_or(0));
    // Served before anything is opened that may not answer, so that whoever asks is told what is waited for.
    let server = match config.http {
        Some(listen) => Some(crate::http::serve(listen, Arc::clone(&metrics)).context("cannot serve HTTP")?),
        None => None,
    };
    if let Some(server) = &server {
        tracing::info!(address = %server.address(), "serving /livez, /readyz and /metrics");
    }
    tracing::info!(pipeline = %config.plan.pipeline, workers = args.workers, processes = args.processes, "running");
    metrics.starting("looking up the hosts of the cluster");
    let workers = hosts::timely_config(args)?;
    metrics.starting("opening the ledger");
    let mut begun = Instant::now();
    let ran = build::job(&config, args.until_end, workers, Arc::clone(&metrics)).and_then(|job| {
        if matches!(config.source, SourceConfig::Kafka(_)) && config.ledger.is_none() {
            tracing::info!("without a ledger: starting at the group's committed offsets with empty state");
        }
        begun = Instant::now();
        crate::runtime::run(Job { stopping, ..job })
    });
    // Of a cluster, one process says it for all.
    if args.process == 0
        && ran.as_ref().is_err_and(RunError::is_replacement)
        && let Err(error) = build::replaced(&config)
    {
        tracing::warn!(%error, "the takeover is not recorded");
    }
    ran?;
    summary::log(&metrics, begun.elapsed());
    drop(server);
    Ok(())
}

fn kafka_source(config: &Config) -> anyhow::Result<&crate::config::KafkaSourceConfig> {
    match &config.source {
        SourceConfig::Kafka(kafka) => Ok(kafka),
        _ => anyhow::bail!("this needs a configuration whose source is Kafka"),
    }
}

fn topics_create(args: &TopicsArgs) -> anyhow::Result<()> {
    let config = load(&args.config)?;
    let mut made = Vec::new();
    if let SourceConfig::Kafka(source) = &config.source {
        made.push((&source.brokers, &source.options, vec![topics::input(&source.topic)]));
    }
    if let Some(sink) = &config.sinks.kafka {
        made.push((&sink.brokers, &sink.options, topics::outputs(&sink.topics)));
    }
    if made.is_empty() {
        return Err(
            config_error("source", "there are no topics: neither the source nor a sink is Kafka").into()
        );
    }
    for (brokers, options, specs) in &made {
        topics::create_topics(brokers, options, specs)?;
    }
    let all = || made.iter().flat_map(|(_, _, specs)| specs);
    if args.json {
        let all = all().map(|topic| (topic.name.clone(), json!({ "partitions": topic.partitions })));
        return Ok(outln!("{}", json!({ "topics": all.collect::<serde_json::Map<_, _>>() }))?);
    }
    for topic in all() {
        outln!("{} ({} partitions)", topic.name, topic.partitions)?;
    }
    Ok(())
}

fn produce_events(args: &ProduceArgs) -> anyhow::Result<()> {
    let config = load_source(&args.config)?;
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
    let mut last_report = Instant::now();
    let report = producer.run(records, Some(args.eps), &stop, &mut |report| {
        if last_report.elapsed() >= Duration::from_secs(5) {
            last_report = Instant::now();
            log_produced(report, "producing");
        }
    })?;
    if args.json {
        outln!(
            "{}",
            json!({
                "sent": report.sent,
                "acknowledged": report.acknowledged,
                "behind_ms": millis(report.behind),
                "slowest_ms": millis(report.slowest),
            })
        )?;
    } else {
        log_produced(&report, "done");
    }
    Ok(())
}

fn log_produced(report: &produce::Report, what: &str) {
    let produce::Report { sent, acknowledged, behind, slowest } = report;
    let (behind_ms, slowest_ms) = (millis(*behind), millis(*slowest));
    tracing::info!(sent, acknowledged, behind_ms, slowest_ms, "{what}");
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
