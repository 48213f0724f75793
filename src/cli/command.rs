//! The commands and their arguments.

use std::path::PathBuf;

use crate::coordination::{AcceptedLoss, Skip};
use crate::pipeline::Resets;

/// A command with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `run CONFIG`
    Run(RunArgs),
    /// `demo`
    Demo(DemoArgs),
    /// `produce CONFIG --eps N`
    Produce(ProduceArgs),
    /// `topics create CONFIG`
    TopicsCreate(TopicsArgs),
    /// `check CONFIG`
    Check(CheckArgs),
    /// `status CONFIG`
    Status(StatusArgs),
    /// `dead-letters list|retry CONFIG`
    DeadLetters(DeadLettersArgs),
    /// `bench cost`
    BenchCost(CostArgs),
    /// `bench keys`
    BenchKeys(KeysArgs),
    /// `bench stages CONFIG`
    BenchStages(StagesArgs),
    /// `bench latency CONFIG`
    BenchLatency(LatencyArgs),
    /// `--help`: the text to print.
    Help(&'static str),
    /// `--version`
    Version,
}

/// Arguments of `run`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// The number of workers per process.
    pub workers: usize,
    /// The number of processes.
    pub processes: usize,
    /// The index of this process, from 0.
    pub process: usize,
    /// The file with one `host:port` per line.
    pub hostfile: Option<PathBuf>,
    /// True to stop at the end offsets at the time of the start.
    pub until_end: bool,
    /// True to close all windows at the end.
    pub close: bool,
    /// The file to write the bindings to.
    pub bindings: Option<PathBuf>,
    /// True to run in a child process and to restart it when it fails.
    pub restart: bool,
    /// The resets that are permitted.
    pub resets: Resets,
    /// The outputs to skip.
    pub skips: Vec<Skip>,
    /// The records that may be missing from the source.
    pub accepted_losses: Vec<AcceptedLoss>,
}

/// Arguments of `check`.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// True to test connections, topics and permissions.
    pub connect: bool,
    /// True to print one JSON object.
    pub json: bool,
}

/// Arguments of `topics create`.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicsArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// True to print one JSON object.
    pub json: bool,
}

/// Arguments of `status`.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// True to print one JSON object.
    pub json: bool,
    /// The resets that the start would be permitted.
    pub resets: Resets,
    /// The records that may be missing from the source.
    pub accepted_losses: Vec<AcceptedLoss>,
}

/// Arguments of `demo`.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoArgs {
    /// The duration of the demo, in seconds.
    pub seconds: u64,
    /// The number of workers.
    pub workers: usize,
    /// True to print one JSON object.
    pub json: bool,
    /// The directory of the database.
    pub out: PathBuf,
    /// The generator's seed.
    pub seed: u64,
}

/// Arguments of `produce`.
#[derive(Clone, Debug, PartialEq)]
pub struct ProduceArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// The number of events per second.
    pub eps: f64,
    /// The duration in seconds; None to run until stopped.
    pub seconds: Option<f64>,
    /// The generator's seed.
    pub seed: u64,
    /// True to print one JSON object at the end.
    pub json: bool,
}

/// Arguments of `dead-letters`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLettersArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// True to send the dead letters to the source topic; false to list them.
    pub retry: bool,
    /// The reason to filter by.
    pub reason: Option<String>,
    /// True to send late dead letters too.
    pub include_late: bool,
    /// True to print JSON.
    pub json: bool,
}

/// Arguments of `bench cost`.
#[derive(Clone, Debug, PartialEq)]
pub struct CostArgs {
    /// The number of events.
    pub events: usize,
    /// The number of repetitions.
    pub rounds: usize,
    /// The number of users. Each user is a key; devices are further keys.
    pub users: u32,
    /// The maximum disorder of events, in milliseconds of event time.
    pub disorder_ms: i64,
    /// The share of events that are out of order.
    pub disordered: f64,
    /// True to emit results only when they are final.
    pub final_only: bool,
    /// True to print one JSON object.
    pub json: bool,
}

/// Arguments of `bench keys`.
#[derive(Clone, Debug, PartialEq)]
pub struct KeysArgs {
    /// The number of keys.
    pub keys: usize,
    /// True to print one JSON object.
    pub json: bool,
}

/// Arguments of `bench stages`.
#[derive(Clone, Debug, PartialEq)]
pub struct StagesArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// The number of records.
    pub events: usize,
    /// The number of records per second of event time.
    pub pace: u32,
    /// The number of workers.
    pub workers: usize,
    /// True to print one JSON object.
    pub json: bool,
}

/// Arguments of `bench latency`.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// The number of events per second.
    pub eps: f64,
    /// The duration in seconds, without the warm-up.
    pub seconds: f64,
    /// The number of workers.
    pub workers: usize,
    /// True to print one JSON object.
    pub json: bool,
}
