//! The commands and their arguments, as `headwater --help` describes them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use headwater_dataflows::Epoch;

use super::backtest::BacktestArgs;
use super::hosts::{ProcessName, Service};
use super::rules::RulesCommand;
use super::test::TestArgs;
use crate::coordination::{AcceptedLoss, Skip};
use crate::dead_letters::{Filter, LetterId};
use crate::decode::rfc3339_ms;
use crate::pipeline::Resets;
use crate::runtime::is_discardable;
use crate::settings::duration_ms;
use crate::wall::wall_ms;

/// The text below the list of commands.
const AFTER_HELP: &str = "\
Each option of `run` for workers and processes has a variable as its default: HEADWATER_WORKERS,
HEADWATER_PROCESSES, HEADWATER_PROCESS, HEADWATER_HOSTFILE, HEADWATER_PEERS, HEADWATER_SETTLE.
HEADWATER__SECTION__KEY overrides a key of the configuration, and HEADWATER_LOG the level of the log.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused to protect results,
141 the reader closed standard output.";

/// Embedded stream processing: windows and event patterns, exact under crashes.
#[derive(Clone, Debug, PartialEq, Parser)]
#[command(name = "headwater", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub struct CommandLine {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// A command with its arguments.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum Command {
    /// Run a rule of your own on a file, and the five patterns on generated events, and check that all injected fraud is found.
    Demo(DemoArgs),
    /// Run a pipeline until it is stopped, or to the end of its input.
    Run(RunArgs),
    /// Print the effective configuration, or every error in it.
    Check(CheckArgs),
    /// Test rules: events at virtual times, and the alerts that they raise and revoke.
    Test(TestArgs),
    /// List the rules of a configuration, or compare them with those of a changed one.
    #[command(subcommand)]
    Rules(RulesCommand),
    /// Evaluate other rules on retained records: the alerts that they add, lose and change.
    Backtest(BacktestArgs),
    /// Print how far a pipeline is, and what its next start would do.
    Status(StatusArgs),
    /// Manage the topics of a pipeline.
    #[command(subcommand)]
    Topics(TopicsCommand),
    /// Send generated events to the source topic.
    Produce(ProduceArgs),
    /// List, group and show dead letters, send them to the source topic again, or delete them.
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// List the deliveries of routes that wait or were given up, or send these again.
    #[command(subcommand)]
    Deliveries(DeliveriesCommand),
    /// Measure cost, memory, throughput and latency.
    #[command(subcommand)]
    Bench(super::bench::BenchCommand),
    /// Print the completions of the command line for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Commands on topics.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum TopicsCommand {
    /// Create the topics of a configuration that do not exist.
    Create(TopicsArgs),
}

/// Commands on dead letters.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum DeadLettersCommand {
    /// List the dead letters of the pipeline, one per line, the newest first.
    List(ListArgs),
    /// Count the dead letters by reason, field and producer.
    Groups(GroupsArgs),
    /// Show one dead letter: its headers, and its payload with the offending part marked.
    Show(ShowArgs),
    /// Send the records of dead letters, as they came or edited, to the source topic, at most 3 times each.
    Retry(RetryArgs),
    /// Delete old dead letters, sent again or not.
    Purge(PurgeArgs),
}

/// Commands on the deliveries of routes.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum DeliveriesCommand {
    /// List the deliveries that wait or were given up, one per line.
    List(ListDeliveriesArgs),
    /// Let the run send deliveries again that were given up or rejected.
    Retry(RetryDeliveriesArgs),
}

/// Arguments of `run`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct RunArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The number of workers per process, at most 64 for all processes together.
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = parse_workers)]
    pub workers: usize,
    /// The number of processes of the cluster, which then does not change. With it, -h means --hostfile, as in timely.
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_processes)]
    pub processes: Option<usize>,
    /// This process of the cluster: its index from 0, its pod such as headwater-3, or its own HOST:PORT.
    #[arg(short, long, value_name = "PROCESS", default_value = "0", value_parser = ProcessName::parse)]
    pub process: ProcessName,
    /// The file with one `host:port` per line, for each process of the cluster. Without -n, changes of it are followed.
    #[arg(long, alias = "hosts", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub hostfile: Option<PathBuf>,
    /// The headless Service of a StatefulSet, whose pods are the processes of the cluster. Changes are followed.
    #[arg(long, value_name = "dns:NAME:PORT", value_parser = Service::parse, conflicts_with = "hostfile")]
    pub peers: Option<Service>,
    /// The time for which a changed list of processes has to stay the same before the cluster follows it.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = parse_settle)]
    pub settle: Duration,
    /// Stop at the end that the input has at the start.
    #[arg(long)]
    pub bounded: bool,
    /// Close all windows at the end of the input. The pipeline then stays closed.
    #[arg(long)]
    pub drain: bool,
    /// Restart a failed run after 1 s to 60 s. Exit codes 0, 2 and 3 are final.
    #[arg(long)]
    pub restart: bool,
    /// State, progress and input that the start may give up.
    #[command(flatten)]
    pub permissions: PermissionArgs,
    /// Skip one output that a sink rejects, at that sink, for good. The sink's error names the output.
    #[arg(long, value_name = "SINK:EPOCH:OUTPUT")]
    pub skip: Vec<Skip>,
    /// Write the bindings of epochs to offsets to this file, for tests.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub bindings: Option<PathBuf>,
}

impl RunArgs {
    /// Returns true if the members of the cluster change while it runs.
    pub fn is_elastic(&self) -> bool {
        self.peers.is_some() || (self.hostfile.is_some() && self.processes.is_none())
    }
}

/// Arguments that permit a start to give up state, progress or input. Each takes effect only where the start would be
/// refused otherwise.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct PermissionArgs {
    /// Discard state that does not fit the changed configuration, or all state after this last epoch of the ledger.
    #[arg(long, value_name = "windows.NAME|patterns[.NAME]|enrichment|all:EPOCH", value_parser = parse_discard)]
    pub discard_state: Vec<DiscardState>,
    /// Mark a sink whose progress does not match the ledger as caught up with the ledger.
    #[arg(long, value_name = "SINK")]
    pub adopt_sink: Vec<String>,
    /// Permit --adopt-sink even if results that are missing from the ledger may be written twice.
    #[arg(long)]
    pub accept_duplicates: bool,
    /// Resume at the first available record, or after OFFSET. The ledger records the loss.
    #[arg(long, value_name = "TOPIC[:PARTITION[:OFFSET]]")]
    pub accept_loss: Vec<AcceptedLoss>,
}

impl PermissionArgs {
    /// Returns the resets that are permitted.
    pub fn resets(&self) -> Resets {
        let mut resets = Resets {
            sections: BTreeSet::new(),
            sinks: self.adopt_sink.iter().cloned().collect(),
            joining: BTreeSet::new(),
            accept_duplicates: self.accept_duplicates,
            all: None,
        };
        for discard in &self.discard_state {
            match discard {
                DiscardState::Section(section) => drop(resets.sections.insert(section.clone())),
                DiscardState::All(epoch) => resets.all = Some(*epoch),
            }
        }
        resets
    }
}

/// State that may be discarded.
#[derive(Clone, Debug, PartialEq)]
pub enum DiscardState {
    /// The state of a section of the configuration.
    Section(String),
    /// All state, if this is the last epoch of the ledger.
    All(Epoch),
}

/// Arguments of `check`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct CheckArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Test every connection, topic and permission that a run needs, and change nothing.
    #[arg(long)]
    pub connect: bool,
    /// Decode the newest N records of the topic (of other sources the first N), or the lines of a file, and print each
    /// event or why it is refused.
    #[arg(long, value_name = "N|FILE", conflicts_with = "connect", value_hint = ValueHint::FilePath)]
    pub sample: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `topics create`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct TopicsArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `status`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct StatusArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// State, progress and input that the start may give up.
    #[command(flatten)]
    pub permissions: PermissionArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `demo`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct DemoArgs {
    /// The duration, in seconds: 20 by default, and until interrupted with `--console`.
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub seconds: Option<f64>,
    /// Generate events in real time, and serve the console at an address that is printed.
    #[arg(long)]
    pub console: bool,
    /// The address of the console; port 0 takes a free port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464", requires = "console")]
    pub http: std::net::SocketAddr,
    /// The number of events per second with `--console`.
    #[arg(long, value_name = "N", default_value = "1000", requires = "console", value_parser = parse_positive)]
    pub rate: f64,
    /// The number of workers per process, at most 64 for all processes together.
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = parse_workers)]
    pub workers: usize,
    /// The seed of the generator.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// The directory of the results.
    #[arg(long, value_name = "DIR", default_value = "headwater-demo", value_hint = ValueHint::DirPath)]
    pub out: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `produce`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct ProduceArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The number of events per second.
    #[arg(long, value_name = "N", default_value = "500", value_parser = parse_positive)]
    pub rate: f64,
    /// The duration, in seconds; without it, until stopped.
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub seconds: Option<f64>,
    /// The seed of the generator.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// The dead letters to choose.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct FilterArgs {
    /// Choose only the dead letters with this reason, such as `malformed`.
    #[arg(long)]
    pub reason: Option<String>,
    /// Choose only the dead letters with this field.
    #[arg(long)]
    pub field: Option<String>,
    /// Choose only the dead letters of this producer. Tables do not store producers.
    #[arg(long)]
    pub producer: Option<String>,
    /// Choose only the dead letters from this time on: RFC 3339, or a time ago such as `1h`.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub since: Option<i64>,
    /// Choose only the dead letters before this time.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub until: Option<i64>,
}

impl FilterArgs {
    /// Returns the filter.
    pub fn filter(&self) -> Filter {
        let FilterArgs { reason, field, producer, since, until } = self.clone();
        Filter { reason, field, producer, from_ms: since, to_ms: until }
    }
}

/// Arguments of `dead-letters list`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct ListArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The dead letters to choose.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// List at most the newest N.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Hide the values of these fields, besides those of `dead_letters.mask`.
    #[arg(long, value_name = "FIELD", value_delimiter = ',')]
    pub mask: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `dead-letters groups`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct GroupsArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The dead letters to choose.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `dead-letters show`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct ShowArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The id of the dead letter, as `list` prints it.
    #[arg(value_name = "PARTITION:OFFSET")]
    pub id: LetterId,
    /// Hide the values of these fields, besides those of `dead_letters.mask`.
    #[arg(long, value_name = "FIELD", value_delimiter = ',')]
    pub mask: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `dead-letters retry`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct RetryArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The ids of the dead letters, as `list` prints them; without one, all that the options choose.
    #[arg(value_name = "PARTITION:OFFSET")]
    pub ids: Vec<LetterId>,
    /// The dead letters to choose.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Look at no more than N dead letters.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Send the content of this file instead of the record of the one dead letter.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "set")]
    pub edit: Option<PathBuf>,
    /// Set a field of each record that is sent, such as `user_id="u1"` or `location.lat=52.5`.
    #[arg(long, value_name = "FIELD=JSON", value_parser = parse_set)]
    pub set: Vec<(String, String)>,
    /// Send nothing; only count what would be sent.
    #[arg(long)]
    pub dry_run: bool,
    /// Send at most N records a second.
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub rate: Option<f64>,
    /// Send late records too, although they will be late again.
    #[arg(long)]
    pub include_late: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `dead-letters purge`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct PurgeArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Delete dead letters before this time: RFC 3339, or a time ago such as `30d`. In a table, that is the timestamp of the
    /// record; rows without one are kept. In a topic, each partition is deleted up to the first letter written since then.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub before: i64,
    /// Delete dead letters of other pipelines in the same topic, too.
    #[arg(long)]
    pub all_pipelines: bool,
    /// Delete nothing; only count what would be deleted.
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `deliveries list`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct ListDeliveriesArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// List only deliveries that were given up or rejected.
    #[arg(long)]
    pub dead: bool,
    /// The most deliveries to list.
    #[arg(long, value_name = "N", default_value = "100", value_parser = at_least_one())]
    pub limit: usize,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `deliveries retry`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct RetryDeliveriesArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Send only deliveries of this route.
    #[arg(long, value_name = "NAME")]
    pub route: Option<String>,
    /// Send only the delivery with this id.
    #[arg(long)]
    pub id: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

pub(super) fn parse_workers(text: &str) -> Result<usize, String> {
    parse_count(text, 1, "HEADWATER_WORKERS")
}

fn parse_processes(text: &str) -> Result<usize, String> {
    parse_count(text, 1, "HEADWATER_PROCESSES")
}

fn parse_settle(text: &str) -> Result<Duration, String> {
    let ms = duration_ms(text).and_then(|ms| u64::try_from(ms).ok());
    ms.map(Duration::from_millis).ok_or_else(|| "expected a duration such as 3s or 500ms".to_owned())
}

/// Parses a number that an environment variable may have given.
fn parse_count(text: &str, min: usize, variable: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|&number| number >= min);
    number.ok_or_else(|| format!("expected a number of at least {min} (its default is {variable})"))
}

pub(super) fn parse_positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|&number| number > 0.0 && number <= 1e9);
    number.ok_or_else(|| "expected a number above 0, at most 1,000,000,000".to_owned())
}

/// Parses a time, or a duration before now; returns milliseconds since 1970.
pub(super) fn parse_time(text: &str) -> Result<i64, String> {
    let ago = duration_ms(text).map(|ms| wall_ms().saturating_sub(ms));
    let time = ago.or_else(|| rfc3339_ms(text).ok());
    time.ok_or_else(|| "expected an RFC 3339 time, or a time ago such as 1h or 30d".to_owned())
}

fn parse_set(text: &str) -> Result<(String, String), String> {
    let set = text.split_once('=').filter(|(field, _)| !field.is_empty());
    let (field, json) = set.ok_or("expected FIELD=JSON")?;
    match serde_json::from_str::<serde::de::IgnoredAny>(json) {
        Ok(_) => Ok((field.to_owned(), json.to_owned())),
        Err(error) => Err(format!("{json} is no JSON ({error}); a text needs quotes: {field}=\"{json}\"")),
    }
}

fn parse_discard(text: &str) -> Result<DiscardState, String> {
    match text.strip_prefix("all:").map(str::parse) {
        Some(Ok(epoch)) => Ok(DiscardState::All(Epoch(epoch))),
        None if is_discardable(text) => Ok(DiscardState::Section(text.to_owned())),
        _ => Err(
            "expected windows.NAME, keys.NAME, rules.KEY, patterns.NAME, patterns, enrichment or all:EPOCH"
                .to_owned(),
        ),
    }
}
