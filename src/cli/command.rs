//! The commands, each with what it was given.

use std::path::PathBuf;

use crate::coordination::{AcceptedLoss, Skip};
use crate::runtime::Resets;

/// What the user asked for.
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
    BenchCost(BenchArgs),
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
    /// Workers a process.
    pub workers: usize,
    /// Processes in all.
    pub processes: usize,
    /// Which process this is.
    pub process: usize,
    /// A file with one `host:port` a line.
    pub hostfile: Option<PathBuf>,
    /// Stop at the end offsets seen at the start.
    pub until_end: bool,
    /// Close all windows at the end.
    pub close: bool,
    /// Where to write down the bindings.
    pub bindings: Option<PathBuf>,
    /// Supervise a child that runs, and start it again when it fails.
    pub restart: bool,
    /// What may be reset where it has to.
    pub resets: Resets,
    /// What sinks are not to be given any more.
    pub skips: Vec<Skip>,
    /// Records that may be missing from the source.
    pub accepted_losses: Vec<AcceptedLoss>,
}

/// Arguments of `check`.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// Whether to try connections, topics and permissions.
    pub connect: bool,
    /// Print one JSON object.
    pub json: bool,
}

/// Arguments of `topics create`.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicsArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// Print one JSON object.
    pub json: bool,
}

/// Arguments of `status`.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// Print one JSON object.
    pub json: bool,
    /// What a start would be told that it may reset.
    pub resets: Resets,
    /// And what may be missing.
    pub accepted_losses: Vec<AcceptedLoss>,
}

/// Arguments of `demo`.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoArgs {
    /// How long to read.
    pub seconds: u64,
    /// How many workers.
    pub workers: usize,
    /// Print one JSON object.
    pub json: bool,
    /// Where the database goes.
    pub out: PathBuf,
    /// The generator's seed.
    pub seed: u64,
}

/// Arguments of `produce`.
#[derive(Clone, Debug, PartialEq)]
pub struct ProduceArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// Events a second.
    pub eps: f64,
    /// How long; without it until stopped.
    pub seconds: Option<f64>,
    /// The generator's seed.
    pub seed: u64,
    /// Print one JSON object at the end.
    pub json: bool,
}

/// Arguments of `dead-letters`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLettersArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// Send them back, instead of listing them.
    pub retry: bool,
    /// Only those of this reason.
    pub reason: Option<String>,
    /// Also those that were late.
    pub include_late: bool,
    /// Print JSON.
    pub json: bool,
}

/// Arguments of `bench cost`.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchArgs {
    /// How many events.
    pub events: usize,
    /// How often.
    pub rounds: usize,
    /// How many users: so many keys, and some devices.
    pub users: u32,
    /// How far events may be out of order, in milliseconds of event time.
    pub disorder_ms: i64,
    /// Which share of the events is.
    pub disordered: f64,
    /// Whether answers are given when they are final.
    pub last: bool,
    /// Print one JSON object.
    pub json: bool,
}

/// Arguments of `bench keys`.
#[derive(Clone, Debug, PartialEq)]
pub struct KeysArgs {
    /// How many keys.
    pub keys: usize,
    /// Print one JSON object.
    pub json: bool,
}

/// Arguments of `bench stages`.
#[derive(Clone, Debug, PartialEq)]
pub struct StagesArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// How many records.
    pub events: usize,
    /// Records per second of event time.
    pub pace: u32,
    /// How many workers.
    pub workers: usize,
    /// Print one JSON object.
    pub json: bool,
}

/// Arguments of `bench latency`.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyArgs {
    /// The configuration's path.
    pub config: PathBuf,
    /// Events a second.
    pub eps: f64,
    /// For how long, in seconds, beside the warm-up.
    pub seconds: f64,
    /// How many workers.
    pub workers: usize,
    /// Print one JSON object.
    pub json: bool,
}
