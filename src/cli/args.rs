//! The parser of the command line. It uses timely's flags for workers and processes: `-h` names a host file, so help is
//! `--help` only.

use std::path::PathBuf;

use headwater_dataflows::SHARDS;
use lexopt::prelude::*;

use super::command::{
    CheckArgs, Command, CostArgs, DeadLettersArgs, DemoArgs, KeysArgs, LatencyArgs, ProduceArgs, RunArgs,
    StagesArgs, StatusArgs, TopicsArgs,
};
use crate::coordination::{AcceptedLoss, Skip};
use crate::pipeline::Resets;
use crate::runtime::can_be_reset;
use headwater_dataflows::Epoch;

const HELP: &str = "\
Headwater: stream processing on timely and differential dataflow.

  headwater demo [--seconds 20] [-w WORKERS] [--seed N] [--out DIR] [--json]
  headwater run CONFIG [-w WORKERS] [-n PROCESSES -p PROCESS -h HOSTFILE]
                       [--until-end] [--close] [--bindings FILE] [--restart]
                       [--reset windows.NAME|patterns.NAME|patterns|enrichment|all:EPOCH]...
                       [--reset-sink SINK [--accept-duplicates]]... [--skip SINK:EPOCH:OUTPUT]...
                       [--accept-loss TOPIC[:PARTITION[:OFFSET]]]...
  headwater check CONFIG [--connect] [--json]
  headwater status CONFIG [--reset SECTION]... [--reset-sink SINK [--accept-duplicates]]...
                       [--accept-loss TOPIC[:PARTITION[:OFFSET]]]... [--json]
  headwater topics create CONFIG [--json]
  headwater produce CONFIG [--eps 500] [--seconds N] [--seed N] [--json]
  headwater dead-letters list CONFIG [--reason REASON] [--json]
  headwater dead-letters retry CONFIG [--reason REASON] [--include-late] [--json]
  headwater bench cost [--events 2000000] [--rounds 5] [--users 50000] [--disorder-ms 0] [--disordered 1.0] [--final] [--json]
  headwater bench keys [--keys 5000000] [--json]
  headwater bench stages CONFIG [-w WORKERS] [--events 1000000] [--pace 500] [--json]
  headwater bench latency CONFIG [-w WORKERS] [--eps 20000] [--seconds 30] [--json]

`--connect` tests every connection, topic and permission that a run needs, and changes nothing.
`-h` names a host file, as in timely; help is --help only.
`--reset` discards state that does not fit a changed configuration; it needs a clean stop and [checkpoint].
`--reset all:EPOCH` discards all state if EPOCH is the last epoch in the ledger; no input is read again.
`--reset-sink` marks a sink whose progress does not match the ledger as caught up with the ledger.
`--accept-duplicates` permits --reset-sink even if results that are missing from the ledger may be written twice.
`--accept-loss` resumes at the first available record, or after OFFSET; the ledger records the loss.
`--skip` permanently skips one output that a sink rejects, at that sink only; the sink's error names the output.
`--restart` restarts a failed run after a delay of 1 s to 60 s; exit codes 0, 2 and 3 are final.
Defaults of `-w`, `-n`, `-p`, `-h`: HEADWATER_WORKERS, HEADWATER_PROCESSES, HEADWATER_PROCESS, HEADWATER_HOSTFILE.
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused to protect results, 141 reader closed the output.
";

/// Parses the arguments. `environment` returns the variables that are the defaults of `-w`, `-n`, `-p` and `-h`.
///
/// # Errors
/// If the arguments are invalid: one sentence.
pub fn parse(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Command, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut words: Vec<String> = Vec::new();
    let mut flags: Vec<String> = Vec::new();
    let mut run = RunArgs::default();
    let (mut workers, mut processes, mut process) = (None, None, None);
    // An empty variable counts as not set.
    let environment = |name: &str| environment(name).filter(|text| !text.is_empty());
    let (mut seconds, mut seed, mut json, mut out) = (None::<f64>, 1, false, None);
    let (mut eps, mut reason, mut include_late) = (None::<f64>, None, false);
    let (mut events, mut rounds, mut pace) = (None::<usize>, 5, 500);
    let (mut users, mut keys, mut disorder_ms, mut disordered) = (50_000, 5_000_000, 0, 1.0);
    let (mut final_only, mut connect) = (false, false);
    while let Some(argument) = parser.next()? {
        match &argument {
            Short(letter) => flags.push(format!("-{letter}")),
            Long(name) => flags.push(format!("--{name}")),
            Value(_) => {}
        }
        match argument {
            Long("help") => return Ok(Command::Help(HELP)),
            Long("version") => return Ok(Command::Version),
            Short('w') | Long("workers") => workers = Some(parser.value()?.parse()?),
            Short('n') | Long("processes") => processes = Some(parser.value()?.parse()?),
            Short('p') | Long("process") => process = Some(parser.value()?.parse()?),
            Short('h') | Long("hostfile") => run.hostfile = Some(parser.value()?.into()),
            Long("until-end") => run.until_end = true,
            Long("close") => run.close = true,
            Long("restart") => run.restart = true,
            Long("reset") => add_reset(&mut run.resets, &parser.value()?.string()?)?,
            Long("accept-duplicates") => run.resets.accept_duplicates = true,
            Long("accept-loss") => {
                run.accepted_losses.push(parser.value()?.string()?.parse::<AcceptedLoss>()?)
            }
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
            Long("final") => final_only = true,
            Long("connect") => connect = true,
            Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected()),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let allowed = flags_of(&words).ok_or_else(|| no_command(&words))?;
    if let Some(other) = flags.iter().find(|flag| !allowed.contains(&flag.as_str())) {
        let command = ["headwater"].into_iter().chain(command_of(&words).iter().copied()).collect::<Vec<_>>();
        return Err(format!("`{}` has no flag {other}; see --help", command.join(" ")).into());
    }
    let number = |flag: &str, value: Option<usize>, name: &str, default: usize| match value {
        Some(number) => Ok(number),
        None if !allowed.contains(&flag) => Ok(default),
        None => environment(name).map_or(Ok(default), |text| {
            text.parse().map_err(|_| lexopt::Error::from(format!("{name} must be a number, not {text:?}")))
        }),
    };
    run.workers = number("-w", workers, "HEADWATER_WORKERS", 1)?;
    run.processes = number("-n", processes, "HEADWATER_PROCESSES", 1)?;
    run.process = number("-p", process, "HEADWATER_PROCESS", 0)?;
    if run.hostfile.is_none() && allowed.contains(&"-h") {
        run.hostfile = environment("HEADWATER_HOSTFILE").map(PathBuf::from);
    }
    check_workers(&run)?;
    let is_valid_rate = |number: f64| number > 0.0 && number <= 1e9;
    if !eps.is_none_or(is_valid_rate) || !seconds.is_none_or(is_valid_rate) || events == Some(0) {
        return Err(
            "--eps, --seconds and --events must be greater than 0; --eps and --seconds must be at most 1,000,000,000"
                .into(),
        );
    }
    if users == 0 || keys == 0 || disorder_ms < 0 || !(0.0..=1.0).contains(&disordered) {
        return Err(
            "--users and --keys must be greater than 0, --disorder-ms at least 0, --disordered from 0 to 1"
                .into(),
        );
    }
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
            json,
        })),
        ["topics", "create", config] => Ok(Command::TopicsCreate(TopicsArgs { config: path(config), json })),
        ["status", config] => {
            let (resets, accepted_losses) = (run.resets, run.accepted_losses);
            Ok(Command::Status(StatusArgs { config: path(config), json, resets, accepted_losses }))
        }
        ["check", config] => Ok(Command::Check(CheckArgs { config: path(config), connect, json })),
        ["dead-letters", action @ ("list" | "retry"), config] => Ok(Command::DeadLetters(DeadLettersArgs {
            config: path(config),
            retry: *action == "retry",
            reason,
            include_late,
            json,
        })),
        ["bench", "cost"] => Ok(Command::BenchCost(CostArgs {
            events: events.unwrap_or(2_000_000),
            rounds,
            users,
            disorder_ms,
            disordered,
            final_only,
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
            Err(format!("`headwater {command}` needs exactly one configuration file; see --help").into())
        }
        other => Err(no_command(other)),
    }
}

/// Returns the words that name the command.
fn command_of<'a>(words: &'a [&'a str]) -> &'a [&'a str] {
    let has_two_words = matches!(words.first(), Some(&("topics" | "dead-letters" | "bench")));
    &words[..words.len().min(if has_two_words { 2 } else { 1 })]
}

fn no_command(words: &[&str]) -> lexopt::Error {
    format!("unknown command `headwater {}`; see --help", words.join(" ")).into()
}

/// Returns the flags of a command; None if the command is unknown.
fn flags_of(words: &[&str]) -> Option<&'static [&'static str]> {
    Some(match words {
        [] => &[],
        ["run", ..] => &[
            "-w",
            "--workers",
            "-n",
            "--processes",
            "-p",
            "--process",
            "-h",
            "--hostfile",
            "--until-end",
            "--close",
            "--bindings",
            "--restart",
            "--reset",
            "--reset-sink",
            "--accept-duplicates",
            "--accept-loss",
            "--skip",
        ],
        ["demo", ..] => &["-w", "--workers", "--seconds", "--seed", "--out", "--json"],
        ["check", ..] => &["--connect", "--json"],
        ["topics", "create", ..] => &["--json"],
        ["status", ..] => &["--reset", "--reset-sink", "--accept-duplicates", "--accept-loss", "--json"],
        ["produce", ..] => &["--eps", "--seconds", "--seed", "--json"],
        ["dead-letters", "list", ..] => &["--reason", "--json"],
        ["dead-letters", "retry", ..] => &["--reason", "--include-late", "--json"],
        ["bench", "cost", ..] => {
            &["--events", "--rounds", "--users", "--disorder-ms", "--disordered", "--final", "--json"]
        }
        ["bench", "keys", ..] => &["--keys", "--json"],
        ["bench", "stages", ..] => &["-w", "--workers", "--events", "--pace", "--json"],
        ["bench", "latency", ..] => &["-w", "--workers", "--eps", "--seconds", "--json"],
        _ => return None,
    })
}

/// Checks the numbers of workers and processes.
fn check_workers(run: &RunArgs) -> Result<(), lexopt::Error> {
    let RunArgs { workers, processes, process, hostfile, .. } = run;
    if *workers == 0 || *processes == 0 || process >= processes {
        return Err(
            "there must be at least one worker and one process, and -p must be from 0 to the number of processes minus 1".into()
        );
    }
    if workers.checked_mul(*processes).is_none_or(|all| all > SHARDS as usize) {
        let message = format!(
            "-w is at most {SHARDS} for all processes together, but there are {processes} with {workers} each: state is \
             divided into {SHARDS} shards, so further workers would have none"
        );
        return Err(message.into());
    }
    if *processes > 1 && hostfile.is_none() {
        return Err("several processes need a host file: -h HOSTFILE, with one host:port per line".into());
    }
    Ok(())
}

/// Adds a reset: of a section of the configuration, or of all state.
fn add_reset(resets: &mut Resets, target: &str) -> Result<(), lexopt::Error> {
    let all = target.strip_prefix("all:").and_then(|epoch| epoch.parse().ok());
    if let Some(epoch) = all {
        resets.all = Some(Epoch(epoch));
    } else if can_be_reset(target) {
        resets.sections.insert(target.to_owned());
    } else {
        let message = format!(
            "--reset expects windows.NAME, patterns.NAME, patterns, enrichment or all:EPOCH, not {target:?}"
        );
        return Err(message.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        let environment = |name: &str| (name == "HEADWATER_WORKERS").then(|| "3".to_owned());
        parse(line.split_whitespace().map(Into::into), environment).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_can_be_in_any_order() {
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
            ..Resets::default()
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
            Ok(Command::Status(StatusArgs {
                config: "x".into(),
                json: true,
                resets: Resets::default(),
                accepted_losses: Vec::new()
            }))
        );
        assert_eq!(
            parsed("topics create x"),
            Ok(Command::TopicsCreate(TopicsArgs { config: "x".into(), json: false }))
        );
        assert_eq!(
            parsed("check x --connect --json"),
            Ok(Command::Check(CheckArgs { config: "x".into(), connect: true, json: true }))
        );
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
    fn flags_of_other_commands_are_refused() {
        for (line, message) in [
            ("run a --json", "`headwater run` has no flag --json; see --help"),
            ("check a --eps 5", "`headwater check` has no flag --eps; see --help"),
            ("check a --skip a:1:b", "`headwater check` has no flag --skip; see --help"),
            ("topics create a -w 2", "`headwater topics create` has no flag -w; see --help"),
            ("--json", "`headwater` has no flag --json; see --help"),
        ] {
            assert_eq!(parsed(line), Err(message.to_owned()));
        }
        assert_eq!(parsed("--help run --json"), Ok(Command::Help(HELP)));
    }

    #[test]
    fn variables_apply_only_to_commands_with_the_flag() {
        let with = |value: &'static str, line: &str| {
            parse(line.split_whitespace().map(Into::into), |name| {
                (name == "HEADWATER_WORKERS").then(|| value.to_owned())
            })
            .map_err(|error| error.to_string())
        };
        assert_eq!(with("many", "run a"), Err("HEADWATER_WORKERS must be a number, not \"many\"".to_owned()));
        assert!(
            with("18446744073709551615", "run a").is_err_and(|error| error.starts_with("-w is at most 64"))
        );
        assert!(with("many", "run a -w 1").is_ok() && with("many", "check a").is_ok());
        assert_eq!(with("many", "--version"), Ok(Command::Version));
    }

    #[test]
    fn empty_variables_count_as_not_set() {
        let command = parse(["run", "a.toml"].map(Into::into), |_| Some(String::new()));
        let run = RunArgs { config: "a.toml".into(), workers: 1, processes: 1, ..RunArgs::default() };
        assert_eq!(command.map_err(|error| error.to_string()), Ok(Command::Run(run)));
    }

    #[test]
    fn usage_errors_are_one_line() {
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
            "run a -w 65",
            "run a -w 18446744073709551615",
            "run a -w 18446744073709551615 -n 2 -h hosts",
            "run a -w 33 -n 2 -h hosts",
        ] {
            let message = parsed(line).expect_err(line);
            assert!(!message.is_empty() && !message.contains('\n'), "{line}: {message}");
        }
    }
}
