//! The command line.

mod apply_rules;
pub mod args;
pub mod backtest;
pub mod bench;
pub mod command;
mod connect;
mod dead_letters;
mod deliveries;
mod demo;
mod demo_console;
mod demo_own;
mod elastic;
pub mod hosts;
pub mod output;
mod rule_watcher;
pub mod rules;
mod sample;
mod status;
mod stop;
mod summary;
mod supervise;
pub mod test;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use args::Arguments;
use clap::error::ErrorKind;
use command::{
    CheckArgs, Command, DeliveriesCommand, ProduceArgs, RunArgs, StatusArgs, TopicsArgs, TopicsCommand,
};
use headwater_sinks::Misconfigured;
use hosts::{HostsError, Placement};
use output::{OutputError, Table, note, out};
use rule_watcher::RuleWatcher;
use serde_json::json;

use crate::assembly;
use crate::config::{Config, ConfigError, ConfigErrors, Origin, SourceConfig};
use crate::coordination::{AcceptedLoss, Skip};
use crate::dead_letters::LettersError;
use crate::http;
use crate::metrics::Metrics;
use crate::outputs::RecentAlerts;
use crate::pipeline::Resets;
use crate::results;
use crate::runtime::{Job, Peers, Queries, RuleControl, RunError};
use crate::source::SourceError;
use crate::source::generator::{GeneratorSettings, RecordMaker};
use crate::source::kafka::produce;
use crate::topics;

/// Exit code: success.
const DONE: u8 = 0;
/// Exit code: failure; a retry may succeed.
const FAILED: u8 = 1;
/// Exit code: wrong usage or configuration.
const USAGE: u8 = 2;
/// Exit code: refused, because continuing would violate a guarantee.
const REFUSED: u8 = 3;
/// Exit code: the reader closed standard output. It is the shell's code for a command that SIGPIPE ended.
const CLOSED: u8 = 141;

/// Parses the arguments of the process and runs the command.
pub fn main() -> ExitCode {
    crate::logging::abort_on_panic();
    let Arguments { words, warnings } = Arguments::of_process();
    warnings.iter().for_each(|warning| note!("warning: {warning}"));
    let result = match args::parse(words, |name| std::env::var(name).ok()) {
        Ok(command) => execute(command),
        Err(error) => explain(&error),
    };
    ExitCode::from(result.unwrap_or_else(|error| {
        let code = exit_code(&error);
        // No message if the reader closed standard output.
        if code != CLOSED {
            crate::logging::fatal(&format!("{error:#}"), code);
        }
        code
    }))
}

/// Prints the help or the version that was asked for, or what is wrong with the arguments. Returns the exit code.
fn explain(error: &clap::Error) -> anyhow::Result<u8> {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        out!("{}", error.render())?;
        return Ok(DONE);
    }
    crate::logging::progress(format_args!("{}", error.render()));
    Ok(USAGE)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let is_usage = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<ConfigErrors>() || cause.is::<Misconfigured>() || cause.is::<test::WrongFiles>()
    };
    let letters = error.downcast_ref::<LettersError>();
    if error.is::<HostsError>() || error.chain().any(is_usage) || letters.is_some_and(LettersError::is_usage)
    {
        return USAGE;
    }
    if let Some(OutputError::Closed) = error.downcast_ref() {
        return CLOSED;
    }
    let refused = letters.is_some_and(LettersError::is_refusal)
        || matches!(error.downcast_ref(), Some(SourceError::Refused(_)))
        || error.downcast_ref().is_some_and(RunError::is_refusal);
    if refused { REFUSED } else { FAILED }
}

fn execute(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Demo(args) if args.console => {
            crate::logging::init(false, "warn");
            demo_console::demo_console(&args)?;
        }
        Command::Demo(args) => {
            crate::logging::init(false, "warn");
            return Ok(if demo::demo(&args)? { DONE } else { FAILED });
        }
        Command::Run(args) if args.is_elastic() && !hosts::is_placed() => return run_member(args),
        Command::Run(args) if args.restart => return supervise_run(&args),
        Command::Run(args) => run(&args)?,
        Command::Check(args) if args.connect => return connect(&args),
        Command::Check(args) => check(&args)?,
        Command::Test(args) => {
            crate::logging::init(false, "warn");
            return Ok(if test::test(&args)? { DONE } else { FAILED });
        }
        Command::Rules(command) => rules::run(&command)?,
        Command::Backtest(args) => backtest::backtest(&args)?,
        Command::Status(args) => return status(&args),
        Command::Topics(TopicsCommand::Create(args)) => topics_create(&args)?,
        Command::Produce(args) => produce_events(&args)?,
        Command::DeadLetters(command) => dead_letters::run(&command)?,
        Command::Deliveries(DeliveriesCommand::List(args)) => deliveries::list(&args)?,
        Command::Deliveries(DeliveriesCommand::Retry(args)) => deliveries::retry(&args)?,
        Command::Bench(bench::BenchCommand::Cost(args)) => bench::cost(&args)?,
        Command::Bench(bench::BenchCommand::Keys(args)) => bench::keys(&args)?,
        Command::Bench(bench::BenchCommand::Rules(args)) => bench::bench_rules(&args)?,
        Command::Bench(bench::BenchCommand::Stages(args)) => bench::stages(&args)?,
        Command::Bench(bench::BenchCommand::Latency(args)) => bench::latency(&args)?,
        Command::Completions { shell } => completions(shell)?,
    }
    Ok(DONE)
}

/// Loads the configuration of a command that logs only warnings and errors.
fn load(path: &Path) -> anyhow::Result<Config> {
    load_with(path, Config::parse, |_| "warn")
}

/// Loads the configuration of a command that logs at the configured level.
fn load_to_run(path: &Path) -> anyhow::Result<Config> {
    load_with(path, Config::parse, |config| &config.log.level)
}

/// Loads the configuration of a command that needs no sink.
fn load_source(path: &Path) -> anyhow::Result<Config> {
    load_with(path, Config::parse_without_sinks, |config| &config.log.level)
}

/// A function that parses a configuration with environment variables.
type Parse = fn(&str, std::vec::IntoIter<(String, String)>) -> Result<Config, ConfigErrors>;

fn load_with(path: &Path, parse: Parse, level: fn(&Config) -> &str) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let environment = Config::environment()?;
    let config = parse(&text, environment.clone().into_iter());
    // From here on, all errors are in the format of the log, including those of the configuration.
    match &config {
        Ok(config) => crate::logging::init(config.log.json, level(config)),
        Err(_) => crate::logging::init(Config::has_json_log(&text, environment.into_iter()), "warn"),
    }
    Ok(config?)
}

/// Tests the connections of a configuration.
fn connect(args: &CheckArgs) -> anyhow::Result<u8> {
    // The messages of librdkafka about its connections are part of the reported failure.
    let config = load_with(&args.config, Config::parse, |_| "warn,librdkafka=off")?;
    warn(&config);
    connect::check(&config, args.json)
}

/// Prints the completions of the command line for a shell.
fn completions(shell: clap_complete::Shell) -> Result<(), OutputError> {
    let mut text = Vec::new();
    // No variables: their values would become defaults in the completions of every user.
    clap_complete::generate(shell, &mut args::description(|_| None), "headwater", &mut text);
    out!("{}", String::from_utf8_lossy(&text))
}

fn status(args: &StatusArgs) -> anyhow::Result<u8> {
    let mut config = load(&args.config)?;
    warn(&config);
    apply_resets(&mut config, args.permissions.resets())?;
    accept_losses(&mut config, &args.permissions.accept_loss)?;
    status::status(&config, args.json)
}

/// Prints the warnings of a configuration.
fn warn(config: &Config) {
    config.warnings.iter().for_each(|warning| crate::logging::progress(format_args!("warning: {warning}\n")));
}

/// Prints the effective configuration.
fn check(args: &CheckArgs) -> anyhow::Result<()> {
    if let Some(sample) = &args.sample {
        return sample::sample(&load_source(&args.config)?, sample, args.json);
    }
    let config = load(&args.config)?;
    warn(&config);
    Ok(output::report(args.json, || config.effective_json(), || config.effective())?)
}

/// Applies the resets of the command line.
fn apply_resets(config: &mut Config, resets: Resets) -> Result<(), ConfigErrors> {
    config.resets = Resets { joining: std::mem::take(&mut config.resets.joining), ..resets };
    check_sink_names(config, config.resets.sinks.iter(), "--adopt-sink")
}

/// Applies the skips of the command line.
fn apply_skips(config: &mut Config, skips: &[Skip]) -> Result<(), ConfigErrors> {
    skips.clone_into(&mut config.skips);
    if config.ledger.is_none() && !skips.is_empty() {
        return Err(config_error("ledger", "--skip needs a [ledger], which records the skipped output"));
    }
    check_sink_names(config, skips.iter().map(|skip| &skip.sink), "--skip")
}

/// Applies the accepted losses of the command line.
fn accept_losses(config: &mut Config, losses: &[AcceptedLoss]) -> Result<(), ConfigErrors> {
    let topic = match &config.source {
        SourceConfig::Kafka(kafka) => Some(&kafka.topic),
        _ => None,
    };
    if let Some(other) = losses.iter().find(|loss| Some(&loss.topic) != topic) {
        let message = format!(
            "--accept-loss names the topic {:?}, but {}",
            other.topic,
            match topic {
                Some(topic) => format!("the source topic is {topic:?}"),
                None => "the source is not Kafka".to_owned(),
            }
        );
        return Err(config_error("source.topic", message));
    }
    losses.clone_into(&mut config.accepted_losses);
    Ok(())
}

/// Checks that the configuration has the sinks that a flag names.
fn check_sink_names<'a>(
    config: &Config,
    mut named: impl Iterator<Item = &'a String>,
    flag: &str,
) -> Result<(), ConfigErrors> {
    let sinks: Vec<_> = assembly::sinks(config, "").iter().map(|job| job.sink.name().to_owned()).collect();
    let Some(unknown) = named.find(|&sink| !sinks.contains(sink)) else { return Ok(()) };
    Err(config_error(
        "sinks",
        format!("{flag} names the unknown sink {unknown:?}; known sinks: {}", sinks.join(", ")),
    ))
}

/// Returns an error about a configuration key that a command needs.
fn config_error(key: &str, message: impl Into<String>) -> ConfigErrors {
    ConfigErrors(vec![ConfigError { origin: Origin::Default, key: key.into(), message: message.into() }])
}

/// Runs the command without `--restart` in a supervised child process.
fn supervise_run(args: &RunArgs) -> anyhow::Result<u8> {
    let config = load_to_run(&args.config)?;
    // The child does not inherit standard input, so it cannot read a file from there.
    config.source.connector().check_repeatable("by --restart")?;
    supervise::supervise(child_arguments())
}

/// Returns the arguments of this process for a child that it supervises.
fn child_arguments() -> Vec<OsString> {
    Arguments::of_process().words.into_iter().filter(|argument| argument != "--restart").collect()
}

/// Runs this process's part of a cluster whose members change, each run in a child process.
fn run_member(args: RunArgs) -> anyhow::Result<u8> {
    let config = load_to_run(&args.config)?;
    let has_checkpoints = config.ledger.is_some() && config.checkpoint.is_some();
    if !has_checkpoints {
        let message = "a cluster whose members change needs [ledger] and [checkpoint], from which it goes on after a \
                       change; add them, or fix the number of processes with --processes";
        return Err(config_error("ledger", message).into());
    }
    assembly::check_shareable(&config)?;
    elastic::run(args, config, child_arguments())
}

fn run(args: &RunArgs) -> anyhow::Result<()> {
    let mut config = load_to_run(&args.config)?;
    let placement = Placement::of(args)?;
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    config.plan.close_at_end = args.drain || config.source.is_bounded();
    config.plan.record_bindings = args.bindings.clone();
    apply_resets(&mut config, args.permissions.resets())?;
    apply_skips(&mut config, &args.skip)?;
    accept_losses(&mut config, &args.permissions.accept_loss)?;
    let metrics = Arc::new(Metrics::default());
    // Handle requests before the run begins, so that a request during the start also stops the run cleanly. It must be known by
    // then that the run is starting.
    metrics.starting("preparing the start");
    let restarts = std::env::var(supervise::RESTARTS_VARIABLE).ok();
    let rescaling = Arc::default();
    let requests = match restarts {
        Some(_) => stop::signals_and_supervisor(Arc::clone(&rescaling)),
        None => stop::signals(),
    };
    let (stopping, limit) = (
        Arc::default(),
        stop::ShutdownLimit { timeout: config.shutdown_timeout, metrics: Arc::clone(&metrics) },
    );
    stop::handle_requests(requests.context("cannot handle signals")?, &stopping, Some(limit));
    metrics.restarted(restarts.and_then(|restarts| restarts.parse().ok()).unwrap_or(0));
    // Start the HTTP server before opening services that may not respond, so that it can report what the start waits
    // for.
    let (queries, peers) = (Queries::default(), Peers::default());
    let control = RuleControl::of_config(&config);
    let (server, recent) = serve_http(&config, &placement, &control, &metrics, &queries, &peers)?;
    let watcher = RuleWatcher::start(&args.config, &config, placement.process, &control);
    let (workers, processes) = (placement.workers, placement.processes());
    tracing::info!(pipeline = %config.plan.pipeline, workers, processes, "running");
    metrics.starting("looking up the hosts of the cluster");
    let workers = placement.timely_config()?;
    check_cluster_secret(&config, &workers)?;
    peers.take_hosts(&workers);
    metrics.starting("opening the ledger");
    let mut started = Instant::now();
    let changes = control.requests.clone();
    let result = assembly::job(&config, args.bounded, workers, Arc::clone(&metrics)).and_then(|job| {
        if matches!(config.source, SourceConfig::Kafka(_)) && config.ledger.is_none() {
            tracing::info!("without a ledger: starting at the group's committed offsets with empty state");
        }
        started = Instant::now();
        let RuleControl { live: rules, requests, .. } = control;
        crate::runtime::run(Job { stopping, rescaling, recent, queries, rules, requests, peers, ..job })
    });
    // Nobody waits for a change that no epoch will have.
    changes.end();
    // In a cluster, only process 0 records the takeover.
    if placement.process == 0
        && result.as_ref().is_err_and(RunError::is_replacement)
        && let Err(error) = assembly::record_takeover(&config)
    {
        tracing::warn!(%error, "cannot record the takeover in the ledger");
    }
    result?;
    summary::log(&metrics, started.elapsed());
    drop((server, watcher));
    Ok(())
}

/// Checks that the processes of a cluster that other machines can reach have a secret.
fn check_cluster_secret(config: &Config, workers: &timely::Config) -> Result<(), ConfigErrors> {
    match &workers.communication {
        timely::CommunicationConfig::Cluster { addresses, .. } => check_secret(config, addresses),
        _ => Ok(()),
    }
}

/// Checks that processes with these addresses have a secret, if other machines can reach one of them.
fn check_secret(config: &Config, addresses: &[String]) -> Result<(), ConfigErrors> {
    match crate::cluster::exposed_address(addresses).filter(|_| config.cluster.secret.is_none()) {
        None => Ok(()),
        Some(address) => Err(config_error(
            "cluster.secret_file",
            format!(
                "{address} in the host file can be reached from other machines, and the processes of the cluster need a \
                 secret by which they know each other: write one to a file (`openssl rand -hex 32`), the same for all \
                 processes, and name it here, or set HEADWATER__CLUSTER__SECRET"
            ),
        )),
    }
}

/// The HTTP server of a run, and the buffer of recent alerts that the run fills for it.
type HttpServer = (Option<http::Server>, Option<Arc<RecentAlerts>>);

/// Starts the HTTP server, if the configuration has one.
fn serve_http(
    config: &Config,
    placement: &Placement,
    control: &RuleControl,
    metrics: &Arc<Metrics>,
    queries: &Queries,
    peers: &Peers,
) -> anyhow::Result<HttpServer> {
    let Some(http) = &config.http else { return Ok((None, None)) };
    let (process, processes) = (placement.process, placement.processes());
    let run = http::Run::of_config(config, control.clone(), process, processes, placement.workers);
    let (results, recent) = results::of_config(config, metrics);
    let forwarder = || http::Forwarder::new(http, process, peers.clone());
    let forwarder = (processes > 1).then(forwarder).transpose();
    let forwarder = forwarder.context("cannot ask the other processes of the cluster over HTTP")?;
    let api = http::Api::new(run, Arc::clone(metrics), results, queries.clone()).with_forwarder(forwarder);
    let server = http::serve(http, api).with_context(|| format!("cannot serve HTTP on {}", http.listen))?;
    peers.serve_at(server.http_address());
    tracing::info!(address = %server.address(), url = server.url(), "serving the console, the API, metrics and probes");
    Ok((Some(server), recent))
}

fn kafka_source(config: &Config) -> anyhow::Result<&crate::config::KafkaSourceConfig> {
    match &config.source {
        SourceConfig::Kafka(kafka) => Ok(kafka),
        _ => {
            let message =
                "this command needs a Kafka source: set `kind = \"kafka\"`, with `brokers` and `topic`";
            Err(config_error("source.kind", message).into())
        }
    }
}

fn topics_create(args: &TopicsArgs) -> anyhow::Result<()> {
    let config = load(&args.config)?;
    let mut new_topics = Vec::new();
    if let SourceConfig::Kafka(source) = &config.source {
        new_topics.push((&source.brokers, &source.options, vec![topics::input(&source.topic)]));
    }
    for sink in config.sinks.kafka() {
        new_topics.push((&sink.brokers, &sink.options, topics::outputs(&sink.topics)));
    }
    if new_topics.is_empty() {
        return Err(config_error(
            "source",
            "there are no topics to create: neither the source nor a sink is Kafka",
        )
        .into());
    }
    for (brokers, options, specs) in &new_topics {
        topics::create_topics(brokers, options, specs)?;
    }
    let all = || new_topics.iter().flat_map(|(_, _, specs)| specs);
    let json = || {
        let topics = all().map(|topic| (topic.name.clone(), json!({ "partitions": topic.partitions })));
        json!({ "topics": topics.collect::<serde_json::Map<_, _>>() })
    };
    let text = || {
        let mut table = Table::new(&["topic", "partitions"]);
        all().for_each(|topic| table.add([topic.name.clone(), topic.partitions.to_string()]));
        table.to_string()
    };
    Ok(output::report(args.json, json, text)?)
}

fn produce_events(args: &ProduceArgs) -> anyhow::Result<()> {
    let config = load_source(&args.config)?;
    let kafka = kafka_source(&config)?;
    let producer = produce::Producer::connect(&kafka.brokers, &kafka.options, &kafka.topic)?;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    stop::handle_requests(stop::signals()?, &stop, None);
    let settings = GeneratorSettings { seed: args.seed, ..GeneratorSettings::default() };
    let partitions = settings.partitions;
    let mut maker = RecordMaker::new(settings);
    let total = args.seconds.map_or(u64::MAX, |seconds| (seconds * args.rate) as u64);
    let records = (0..total).map(move |n| {
        let (partition, offset) = ((n % u64::from(partitions)) as u32, n / u64::from(partitions));
        maker.make(partition, offset, Some(crate::wall::wall_ms()));
        let (key, value) = (Some(maker.key.clone()), Some(maker.value.clone()));
        produce::Produced { partition: Some(partition), key, value, headers: Vec::new() }
    });
    let mut last_report = Instant::now();
    let report = producer.run(records, Some(args.rate), &stop, &mut |report| {
        if last_report.elapsed() >= Duration::from_secs(5) {
            last_report = Instant::now();
            log_produced(report);
        }
    })?;
    let produce::Report { sent, acknowledged, behind, slowest } = report;
    let (behind_ms, slowest_ms) = (millis(behind), millis(slowest));
    let json = || json!({ "sent": sent, "acknowledged": acknowledged, "behind_ms": behind_ms, "slowest_ms": slowest_ms });
    let text = || {
        format!(
            "{sent} events sent, {acknowledged} acknowledged; at most {behind_ms} ms behind the schedule; the slowest \
             acknowledgement took {slowest_ms} ms\n"
        )
    };
    Ok(output::report(args.json, json, text)?)
}

fn log_produced(report: &produce::Report) {
    let produce::Report { sent, acknowledged, behind, slowest } = report;
    let (behind_ms, slowest_ms) = (millis(*behind), millis(*slowest));
    tracing::info!(sent, acknowledged, behind_ms, slowest_ms, "producing");
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
