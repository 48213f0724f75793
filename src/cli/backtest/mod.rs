//! `headwater backtest`: the alerts that other rules raise on the same records.
//!
//! ```text
//!   CONFIG, NEW ─▶ Plan in force, Plan of the candidate
//!   topic or files ─▶ Rereading ─────┬▶ VirtualRun, rules in force ──────┬▶ Store: alerts_before, alerts_after
//!        (read once)                 └▶ VirtualRun, rules of the candidate ┘     └─▶ differences ─▶ Report
//! ```
//!
//! The dataflow is that of a run, without sinks, ledger, consumer group and clock. Each side has a thread of its own, and
//! waits for records in a short queue, so that memory is bounded by the operators.

mod labels;
mod report;
mod side;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueHint};
use headwater_dataflows::Since;
use labels::Labels;
use report::{Admitted, Labelled, Report};
use side::{Refused, Side, evaluate};
use store::Store;

use super::command::parse_time;
use super::{config_error, output, warn};
use crate::assembly;
use crate::config::{Candidate, Config, SourceConfig};
use crate::lists::{Table, Version};
use crate::pipeline::Plan;
use crate::runtime::rereading::{self, EpochInput, RereadSettings, Rereading};
use crate::source::SourceError;

/// Arguments of `backtest`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct BacktestArgs {
    /// The configuration file with the source and the rules in force.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The candidate: a configuration, or a file with rules, patterns, keys and fields only.
    #[arg(long, value_name = "NEW", value_hint = ValueHint::FilePath)]
    pub candidate: PathBuf,
    /// Compare only alerts from this event time on: RFC 3339, or a time ago such as `30d`.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub from: Option<i64>,
    /// Compare only alerts before this event time.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub to: Option<i64>,
    /// Compare alerts with labels of events: a file with the columns event_id and label, which is 1 or 0.
    #[arg(long, value_name = "CSV", value_hint = ValueHint::FilePath)]
    pub labels: Option<PathBuf>,
    /// Keep the alerts and their differences in this SQLite database.
    #[arg(long, value_name = "DB", value_hint = ValueHint::FilePath)]
    pub out: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// The maximum number of epochs that wait for a side.
const QUEUED: usize = 4;

/// The interval between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Evaluates both sides and prints their differences.
///
/// # Errors
/// If a file is wrong, the source cannot be read, or the database cannot be written.
pub fn backtest(args: &BacktestArgs) -> anyhow::Result<()> {
    let (config, candidate) = load(args)?;
    warn(&config);
    let times = args.from.unwrap_or(i64::MIN)..args.to.unwrap_or(i64::MAX);
    if times.is_empty() {
        return Err(config_error("--to", "the time must be after that of --from").into());
    }
    if let SourceConfig::Generator(generator) = &config.source
        && generator.records.is_none()
        && args.to.is_none()
    {
        let message = "the generator has no end: set the number of records, or --to";
        return Err(config_error("source.records", message).into());
    }
    let mut labels = args.labels.as_deref().map(labels::read).transpose()?;
    let store = Mutex::new(Store::create(args.out.as_deref())?);
    let started = Instant::now();
    read_lists(&config)?;
    read_lists(&candidate.config)?;
    let plans = [plan(&config), plan(&candidate.config)];
    let decoders = if candidate.has_fields { 2 } else { 1 };
    let decoded_by: Vec<&Plan> = plans.iter().take(decoders).collect();
    let mut input = open(&config, &decoded_by, since_ms(args, &plans))?;
    let refused = evaluate_both(&plans, &mut input, &times, &store, labels.as_mut())?;
    let took = started.elapsed();
    let store = store.into_inner().expect("no holder of the lock panics");
    store.compare()?;
    let report = report(&plans, &input, refused, took, &store, labels.as_ref(), args.out.as_deref())?;
    store.commit()?;
    Ok(output::report(args.json, || report.json(), || report.text())?)
}

/// Reads both configurations.
fn load(args: &BacktestArgs) -> anyhow::Result<(Config, Candidate)> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (text, environment) = (read(&args.config)?, Config::environment()?);
    let config = Config::parse_to_backtest(&text, environment.clone().into_iter());
    let has_json_log = Config::has_json_log(&text, environment.clone().into_iter());
    crate::logging::init(has_json_log, "warn");
    let config = config?;
    let candidate = Candidate::parse(&read(&args.candidate)?, &text, environment.into_iter())
        .with_context(|| format!("--candidate {}", args.candidate.display()))?;
    Ok((config, candidate))
}

/// Reads the lists of a side once: their contents are in force for all events.
fn read_lists(config: &Config) -> anyhow::Result<()> {
    for list_config in &config.lists {
        let name = &list_config.name;
        let entries = list_config.read_once().map_err(|error| anyhow::anyhow!("list {name}: {error}"))?;
        let list = config.rule_scope.lists().get(name).expect("each list is in the registry");
        let (since, table) = (Since::beginning(), Arc::new(Table::new(entries)));
        list.begin([Version { since, hash: None, table }]);
    }
    Ok(())
}

/// Returns the computation of a side. Windows raise no alerts.
fn plan(config: &Config) -> Plan {
    Plan { windows: Vec::new(), ..config.plan.clone() }
}

/// Opens the source, to be read to its present end and decoded by these plans.
fn open(config: &Config, plans: &[&Plan], since_ms: Option<i64>) -> Result<Rereading, SourceError> {
    let source = assembly::reopening(config, true)(since_ms)?;
    let is_topic = matches!(config.source, SourceConfig::Kafka(_));
    let settings = RereadSettings { is_topic, closes: config.source.is_bounded(), ends: None };
    let starts = source.start().to_vec();
    Rereading::begin(source, &starts, plans, settings)
}

/// Returns the timestamp from which on a topic is read.
fn since_ms(args: &BacktestArgs, plans: &[Plan]) -> Option<i64> {
    let look_back = |plan: &Plan| Plan::longest_look_back_ms(&plan.patterns, &plan.rules);
    let longest = plans.iter().map(look_back).max().unwrap_or(0);
    args.from.map(|from| rereading::since_ms(from, longest, &plans[0].time))
}

/// Evaluates both sides, each in a thread. Returns the events that each has refused.
fn evaluate_both(
    plans: &[Plan; 2],
    input: &mut Rereading,
    times: &Range<i64>,
    store: &Mutex<Store>,
    labels: Option<&mut Labels>,
) -> anyhow::Result<[Refused; 2]> {
    std::thread::scope(|scope| {
        let sides = plans.iter().zip(Side::ALL).map(|(plan, side)| {
            let (sender, receiver) = sync_channel(QUEUED);
            let name = format!("backtest-{}", side.as_str());
            let thread = std::thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, move || evaluate(plan, &receiver, times, store, side))?;
            Ok::<_, anyhow::Error>((sender, thread))
        });
        let (senders, threads): (Vec<_>, Vec<_>) = sides.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let read = feed(input, senders, times, labels);
        let mut refused = Vec::new();
        for thread in threads {
            refused.push(thread.join().expect("a panic ends the process")?);
        }
        read?;
        let [before, after] = <[Refused; 2]>::try_from(refused).expect("there are two sides");
        Ok([before, after])
    })
}

/// Reads the input, and sends each epoch to both sides, until the end of the input or of the times.
fn feed(
    input: &mut Rereading,
    senders: Vec<SyncSender<EpochInput>>,
    times: &Range<i64>,
    mut labels: Option<&mut Labels>,
) -> anyhow::Result<()> {
    let mut reported = Instant::now();
    while let Some(mut epoch) = input.next_epoch()? {
        if let Some(labels) = &mut labels {
            note_labelled(&epoch[0], times, labels);
        }
        // All later events in the times would be late.
        let is_over = epoch.iter().all(|epoch| epoch.watermark.0 >= times.end);
        let after = if epoch.len() > 1 { epoch.pop() } else { epoch.first().cloned() };
        let both = epoch.pop().into_iter().chain(after);
        // A side that has failed reports it when its thread is joined.
        if senders.iter().zip(both).any(|(sender, epoch)| sender.send(epoch).is_err()) || is_over {
            break;
        }
        if reported.elapsed() >= PROGRESS_EVERY {
            reported = Instant::now();
            crate::logging::progress(format_args!("{} records read\n", input.records()));
        }
    }
    Ok(())
}

/// Notes which labelled events are in an epoch.
fn note_labelled(epoch: &EpochInput, times: &Range<i64>, labels: &mut Labels) {
    for event in epoch.events.iter().filter(|event| times.contains(&event.event_time().0)) {
        if let Some(label) = labels.get_mut(event.id()) {
            label.is_in_input = true;
        }
    }
}

fn report(
    plans: &[Plan; 2],
    input: &Rereading,
    refused: [Refused; 2],
    took: Duration,
    store: &Store,
    labels: Option<&Labels>,
    out: Option<&Path>,
) -> anyhow::Result<Report> {
    let rules = plans.each_ref().map(Plan::rule_ids);
    // Without fields of its own, the candidate has the same events.
    let decoded: Vec<_> = input.decoded().collect();
    let mut decoded = decoded.iter().chain(decoded.last());
    let mut plans = plans.iter();
    let admitted = refused.map(|refused| {
        let rules = plans.next().map(|plan| plan.rules.as_slice()).unwrap_or_default();
        let rule_errors = rules.iter().map(|rule| (rule.id.to_string(), rule.errors()));
        let decoded = decoded.next().expect("there is one for each side");
        let mut rejected: BTreeMap<String, u64> = refused;
        let late = rejected.values().sum::<u64>();
        rejected.extend(decoded.rejected.iter().map(|(reason, n)| ((*reason).to_owned(), *n)));
        Admitted {
            events: decoded.accepted - late,
            rejected,
            rule_errors: rule_errors.filter(|(_, n)| *n > 0).collect(),
        }
    });
    let in_input = |is_positive| {
        let is_counted = |label: &&labels::Label| label.is_in_input && label.is_positive == is_positive;
        labels.map_or(0, |labels| labels.values().filter(is_counted).count() as u64)
    };
    let labelled = |labels: &Labels| -> anyhow::Result<Labelled> {
        Ok(Labelled {
            labels: labels.len() as u64,
            positive: in_input(true),
            negative: in_input(false),
            found: store.found(labels)?,
        })
    };
    let all_rules: BTreeSet<_> = rules.iter().flatten().cloned().collect();
    Ok(Report {
        records: input.records(),
        admitted,
        took,
        counts: store.counts(&all_rules)?,
        examples: store.examples()?,
        rules,
        labelled: labels.map(labelled).transpose()?,
        out: out.map(|path| path.display().to_string()),
    })
}
