//! The command line: timely's own flags for workers and processes, so help is `--help` only.

use std::path::PathBuf;

use lexopt::prelude::*;

use crate::coordination::Skip;
use crate::runtime::{Resets, can_be_reset};

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
    TopicsCreate(PathBuf),
    /// `check CONFIG`
    Check(PathBuf),
    /// `check --connect CONFIG`: whether to print one JSON object
    Connect(PathBuf, bool),
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

const HELP: &str = "\
Headwater: stream processing on timely and differential dataflow.

  headwater demo [--seconds 20] [-w WORKERS] [--seed N] [--out DIR] [--json]
  headwater run CONFIG [-w WORKERS] [-n PROCESSES -p PROCESS -h HOSTFILE]
                       [--until-end] [--close] [--bindings FILE] [--restart]
                       [--reset windows.NAME|patterns.NAME|patterns|enrichment]... [--reset-sink SINK]...
                       [--skip SINK:EPOCH:OUTPUT]...
  headwater check CONFIG [--connect [--json]]
  headwater status CONFIG [--reset SECTION]... [--reset-sink SINK]... [--json]
  headwater topics create CONFIG
  headwater produce CONFIG [--eps 500] [--seconds N] [--seed N]
  headwater dead-letters list CONFIG [--reason REASON] [--json]
  headwater dead-letters retry CONFIG [--reason REASON] [--include-late] [--json]
  headwater bench cost [--events 2000000] [--rounds 5] [--users 50000] [--disorder-ms 0] [--disordered 1.0] [--final] [--json]
  headwater bench keys [--keys 5000000] [--json]
  headwater bench stages CONFIG [-w WORKERS] [--events 1000000] [--pace 500] [--json]
  headwater bench latency CONFIG [-w WORKERS] [--eps 20000] [--seconds 30] [--json]

`--connect` tries every connection, topic and permission that a run needs, and changes nothing.
`-h` names a host file, as timely has it; help is --help only.
`--reset` lets something forget its state that no longer fits the configuration; after a stop, with [checkpoint].
`--reset-sink` lets a sink that does not follow from the ledger be taken for having everything that is recorded.
`--skip` leaves out one output that a sink does not take, at that sink alone and for ever; the sink's refusal names it.
`--restart` starts a run again that failed, after 1 s at first and at most 60 s; codes 0, 2 and 3 are final.
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused to keep a promise.
";

/// The command of these arguments; `environment` gives what `-w`, `-n`, `-p` and `-h` are without them.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn parse(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Command, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut words: Vec<String> = Vec::new();
    let number = |name: &str, default: usize| match environment(name) {
        None => Ok(default),
        Some(text) => {
            text.parse().map_err(|_| lexopt::Error::from(format!("{name} must be a number, not {text:?}")))
        }
    };
    let mut run = RunArgs {
        workers: number("HEADWATER_WORKERS", 1)?,
        processes: number("HEADWATER_PROCESSES", 1)?,
        process: number("HEADWATER_PROCESS", 0)?,
        hostfile: environment("HEADWATER_HOSTFILE").map(PathBuf::from),
        ..RunArgs::default()
    };
    let (mut seconds, mut seed, mut json, mut out) = (None::<f64>, 1, false, None);
    let (mut eps, mut reason, mut include_late) = (None::<f64>, None, false);
    let (mut events, mut rounds, mut pace) = (None::<usize>, 5, 500);
    let (mut users, mut keys, mut disorder_ms, mut disordered) = (50_000, 5_000_000, 0, 1.0);
    let (mut last, mut connect) = (false, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") => return Ok(Command::Help(HELP)),
            Long("version") => return Ok(Command::Version),
            Short('w') | Long("workers") => run.workers = parser.value()?.parse()?,
            Short('n') | Long("processes") => run.processes = parser.value()?.parse()?,
            Short('p') | Long("process") => run.process = parser.value()?.parse()?,
            Short('h') | Long("hostfile") => run.hostfile = Some(parser.value()?.into()),
            Long("until-end") => run.until_end = true,
            Long("close") => run.close = true,
            Long("restart") => run.restart = true,
            Long("reset") => drop(run.resets.sections.insert(resettable(&parser.value()?.string()?)?)),
            Long("reset-sink") => drop(run.resets.sinks.insert(parser.value()?.string()?)),
            Long("skip") => run.skips.push(parser.value()?.string()?.parse::<Skip>()?),
            Long("bindings") => run.bindings = Some(parser.value()?.into()),
            Long("seconds") => seconds = Some(parser.value()?.parse()?),
            Long("seed") => seed = parser.value()?.parse()?,
            Long("json") => json = true,
            Long("out") => out = Some(PathBuf::from(parser.value()?)),
            Long("eps") => eps = Some(parser.value()?.parse()?),
            Long("reason") => reason = Some(parser.value()?.string()?),
            Long("include-late") => include_late = true,
            Long("events") => events = Some(parser.value()?.parse()?),
            Long("pace") => pace = parser.value()?.parse()?,
            Long("rounds") => rounds = parser.value()?.parse()?,
            Long("users") => users = parser.value()?.parse()?,
            Long("keys") => keys = parser.value()?.parse()?,
            Long("disorder-ms") => disorder_ms = parser.value()?.parse()?,
            Long("disordered") => disordered = parser.value()?.parse()?,
            Long("final") => last = true,
            Long("connect") => connect = true,
            Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected()),
        }
    }
    if run.workers == 0 || run.processes == 0 || run.process >= run.processes {
        return Err(
            "there must be at least one worker and one process, and -p counts processes from 0".into()
        );
    }
    if run.processes > 1 && run.hostfile.is_none() {
        return Err("several processes need a host file: -h HOSTFILE, with one host:port a line".into());
    }
    let in_time = |number: f64| number > 0.0 && number <= 1e9;
    if !eps.is_none_or(in_time) || !seconds.is_none_or(in_time) || events == Some(0) {
        return Err(
            "--eps, --seconds and --events must be above 0, and the first two at most a thousand million"
                .into(),
        );
    }
    if users == 0 || keys == 0 || disorder_ms < 0 || !(0.0..=1.0).contains(&disordered) {
        return Err(
            "--users and --keys must be above 0, --disorder-ms not below, --disordered from 0 to 1".into()
        );
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let path = |config: &str| PathBuf::from(config);
    match words.as_slice() {
        [] => Ok(Command::Help(HELP)),
        ["run", config] => Ok(Command::Run(RunArgs { config: path(config), ..run })),
        ["demo"] => Ok(Command::Demo(DemoArgs {
            seconds: seconds.unwrap_or(20.0) as u64,
            workers: run.workers,
            json,
            out: out.unwrap_or_else(|| PathBuf::from("headwater-demo")),
            seed,
        })),
        ["produce", config] => Ok(Command::Produce(ProduceArgs {
            config: path(config),
            eps: eps.unwrap_or(500.0),
            seconds,
            seed,
        })),
        ["topics", "create", config] => Ok(Command::TopicsCreate(path(config))),
        ["status", config] => {
            Ok(Command::Status(StatusArgs { config: path(config), json, resets: run.resets }))
        }
        ["check", config] if connect => Ok(Command::Connect(path(config), json)),
        ["check", config] => Ok(Command::Check(path(config))),
        ["dead-letters", what @ ("list" | "retry"), config] => Ok(Command::DeadLetters(DeadLettersArgs {
            config: path(config),
            retry: *what == "retry",
            reason,
            include_late,
            json,
        })),
        ["bench", "cost"] => Ok(Command::BenchCost(BenchArgs {
            events: events.unwrap_or(2_000_000),
            rounds,
            users,
            disorder_ms,
            disordered,
            last,
            json,
        })),
        ["bench", "keys"] => Ok(Command::BenchKeys(KeysArgs { keys, json })),
        ["bench", "stages", config] => Ok(Command::BenchStages(StagesArgs {
            config: path(config),
            events: events.unwrap_or(1_000_000),
            pace,
            workers: run.workers,
            json,
        })),
        ["bench", "latency", config] => Ok(Command::BenchLatency(LatencyArgs {
            config: path(config),
            eps: eps.unwrap_or(20_000.0),
            seconds: seconds.unwrap_or(30.0),
            workers: run.workers,
            json,
        })),
        [command @ ("run" | "produce" | "check" | "status"), ..] => {
            Err(format!("`headwater {command}` takes one configuration file; see --help").into())
        }
        other => Err(format!("there is no command `headwater {}`; see --help", other.join(" ")).into()),
    }
}

/// A section of the configuration that can forget its state.
fn resettable(section: &str) -> Result<String, lexopt::Error> {
    if can_be_reset(section) {
        return Ok(section.to_owned());
    }
    let message =
        format!("--reset takes windows.NAME, patterns.NAME, patterns or enrichment, not {section:?}");
    Err(message.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        let environment = |name: &str| (name == "HEADWATER_WORKERS").then(|| "3".to_owned());
        parse(line.split_whitespace().map(Into::into), environment).map_err(|error| error.to_string())
    }

    #[test]
    fn commands_take_their_arguments_in_any_order() {
        let run = RunArgs {
            config: "a.toml".into(),
            workers: 2,
            processes: 1,
            until_end: true,
            ..RunArgs::default()
        };
        assert_eq!(parsed("run -w 2 a.toml --until-end"), Ok(Command::Run(run.clone())));
        let resets = Resets {
            sections: ["windows.w", "patterns"].map(str::to_owned).into(),
            sinks: ["postgres".to_owned()].into(),
        };
        let resetting = RunArgs { resets, ..run.clone() };
        assert_eq!(
            parsed("run -w 2 a.toml --reset windows.w --until-end --reset patterns --reset-sink postgres"),
            Ok(Command::Run(resetting))
        );
        assert_eq!(parsed("run a.toml --until-end"), Ok(Command::Run(RunArgs { workers: 3, ..run })));
        assert!(matches!(
            parsed("demo --seconds 5 --json"),
            Ok(Command::Demo(DemoArgs { seconds: 5, json: true, .. }))
        ));
        assert_eq!(
            parsed("status --json x"),
            Ok(Command::Status(StatusArgs { config: "x".into(), json: true, resets: Resets::default() }))
        );
        assert_eq!(parsed("check x --connect --json"), Ok(Command::Connect("x".into(), true)));
        assert_eq!(parsed("topics create x"), Ok(Command::TopicsCreate("x".into())));
        assert_eq!(
            parsed("bench latency x --eps 500"),
            Ok(Command::BenchLatency(LatencyArgs {
                config: "x".into(),
                eps: 500.0,
                seconds: 30.0,
                workers: 3,
                json: false
            }))
        );
        assert!(matches!(
            parsed("dead-letters retry x"),
            Ok(Command::DeadLetters(DeadLettersArgs { retry: true, .. }))
        ));
    }

    #[test]
    fn wrong_usage_is_one_sentence() {
        for line in [
            "run",
            "fly",
            "run a b",
            "run a -w 0",
            "run a -w x",
            "run a -n 2",
            "run a -p 1",
            "run a --reset Rules",
            "run a --skip postgres:events/3/42",
            "demo --fast",
            "bench",
            "bench latency",
            "bench cost --events 0",
            "bench latency a --eps 0",
            "produce a --eps nan",
            "produce a --seconds inf",
        ] {
            let message = parsed(line).expect_err(line);
            assert!(!message.is_empty() && !message.contains('\n'), "{line}: {message}");
        }
    }
}
