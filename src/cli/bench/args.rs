//! The command line of `headwater bench`.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueHint};

use super::rules::form_names;
use crate::cli::command::{at_least_one, parse_positive, parse_workers};

/// Measurements.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum BenchCommand {
    /// Compare the operators with a hand-written loop.
    Cost(CostArgs),
    /// Measure the memory of idle keys.
    Keys(KeysArgs),
    /// Compare rules of one's own with the five patterns: of the same meaning, many, and by several keys.
    Rules(RulesBenchArgs),
    /// Measure the CPU time of each stage, and the throughput of whole jobs, from Kafka.
    Stages(StagesArgs),
    /// Measure the time from when a record is due until its alert can be read.
    Latency(LatencyArgs),
}

/// Arguments of `bench cost`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct CostArgs {
    /// The number of events.
    #[arg(long, value_name = "N", default_value = "2000000", value_parser = at_least_one())]
    pub events: usize,
    /// The number of repetitions.
    #[arg(long, value_name = "N", default_value = "5", value_parser = at_least_one())]
    pub rounds: usize,
    /// The number of users. Each user is a key; devices are further keys.
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub users: u32,
    /// The maximum disorder of events, in milliseconds of event time.
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    pub disorder_ms: i64,
    /// The share of events that are out of order, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value = "1.0", value_parser = parse_share)]
    pub disordered: f64,
    /// Emit results only when they are final.
    #[arg(long = "final")]
    pub final_only: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench rules`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct RulesBenchArgs {
    /// The number of events.
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = at_least_one())]
    pub events: usize,
    /// The number of repetitions.
    #[arg(long, value_name = "N", default_value = "3", value_parser = at_least_one())]
    pub rounds: usize,
    /// The number of users. Each user is a key; devices are further keys.
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub users: u32,
    /// Measure only this form, beside the patterns.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(form_names()))]
    pub form: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench keys`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct KeysArgs {
    /// The number of keys.
    #[arg(long, value_name = "N", default_value = "5000000", value_parser = at_least_one())]
    pub keys: usize,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench stages`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct StagesArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The number of workers per process, at most 64 for all processes together.
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = parse_workers)]
    pub workers: usize,
    /// The number of records.
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = at_least_one())]
    pub events: usize,
    /// The number of records per second of event time.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub pace: u32,
    /// The number of users. Each user is a key; devices are further keys.
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub users: u32,
    /// The number of partitions of the topic.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub partitions: u32,
    /// The least size of a record, in bytes: shorter ones get an attribute that makes them as long.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub record_bytes: u32,
    /// Measure only the whole job with this set of sinks, and no stages.
    #[arg(long, value_name = "SET", value_parser = ["alerts", "enriched", "postgres"])]
    pub only: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench latency`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct LatencyArgs {
    /// The configuration file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The number of workers per process, at most 64 for all processes together.
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = parse_workers)]
    pub workers: usize,
    /// The number of events per second.
    #[arg(long, value_name = "N", default_value = "20000", value_parser = parse_positive)]
    pub rate: f64,
    /// The duration without the warm-up, in seconds.
    #[arg(long, value_name = "N", default_value = "30", value_parser = parse_positive)]
    pub seconds: f64,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}
