//! The parser of the command line.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};
use headwater_dataflows::SHARDS;

use super::command::{Command, CommandLine, RunArgs};
use super::hosts::{ProcessName, Service};

/// Options that were renamed: the old and the current name.
const RENAMED: [(&str, &str); 5] = [
    ("--until-end", "--bounded"),
    ("--close", "--drain"),
    ("--eps", "--rate"),
    ("--reset", "--discard-state"),
    ("--reset-sink", "--adopt-sink"),
];

/// The variables that are the defaults of options: path of the command, option, variable.
const VARIABLES: [(&[&str], &str, &str); 9] = [
    (&["run"], "workers", "HEADWATER_WORKERS"),
    (&["demo"], "workers", "HEADWATER_WORKERS"),
    (&["bench", "stages"], "workers", "HEADWATER_WORKERS"),
    (&["bench", "latency"], "workers", "HEADWATER_WORKERS"),
    (&["run"], "processes", "HEADWATER_PROCESSES"),
    (&["run"], "process", "HEADWATER_PROCESS"),
    (&["run"], "hostfile", "HEADWATER_HOSTFILE"),
    (&["run"], "peers", "HEADWATER_PEERS"),
    (&["run"], "settle", "HEADWATER_SETTLE"),
];

/// The arguments of a command line, in the current spelling.
pub struct Arguments {
    /// The arguments, without the name of the program.
    pub words: Vec<OsString>,
    /// A warning for each option that has another name now.
    pub warnings: Vec<String>,
}

impl Arguments {
    /// Replaces old names of options, and timely's `-h HOSTFILE` where `-n` is given.
    pub fn new(words: impl IntoIterator<Item = OsString>, is_cluster: bool) -> Arguments {
        let mut arguments = Arguments { words: words.into_iter().collect(), warnings: Vec::new() };
        let is_processes = |word: &OsString| {
            let word = word.to_string_lossy();
            word.split('=').next() == Some("--processes") || word.starts_with("-n")
        };
        let is_run = arguments.words.first().is_some_and(|word| word == "run");
        let has_hosts = is_run && (is_cluster || arguments.words.iter().any(is_processes));
        for word in &mut arguments.words {
            let Some(text) = word.to_str() else { continue };
            let (name, value) =
                text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            if let Some((old, new)) = RENAMED.iter().find(|(old, _)| *old == name) {
                arguments.warnings.push(format!("{old} is deprecated: use {new}"));
                *word = value.map_or((*new).to_owned(), |value| format!("{new}={value}")).into();
            } else if let Some(file) = text.strip_prefix("-h").filter(|_| has_hosts) {
                *word =
                    if file.is_empty() { "--hostfile".into() } else { format!("--hostfile={file}").into() };
            }
        }
        arguments
    }

    /// Reads the arguments of this process.
    pub fn of_process() -> Arguments {
        let is_cluster =
            std::env::var("HEADWATER_PROCESSES").is_ok_and(|text| !text.is_empty() && text != "1");
        Arguments::new(std::env::args_os().skip(1), is_cluster)
    }
}

/// Returns the description of the command line, with the defaults of environment variables.
pub fn description(environment: impl Fn(&str) -> Option<String>) -> clap::Command {
    let mut root = CommandLine::command();
    for (path, option, variable) in VARIABLES {
        // An empty variable counts as not set.
        if let Some(value) = environment(variable).filter(|value| !value.is_empty()) {
            root = with_default(root, path, option, value);
        }
    }
    root
}

fn with_default(command: clap::Command, path: &[&str], option: &str, value: String) -> clap::Command {
    match path.split_first() {
        Some((name, rest)) => command.mut_subcommand(*name, |inner| with_default(inner, rest, option, value)),
        None => command.mut_arg(option, |argument| argument.default_value(value)),
    }
}

/// Parses arguments. `environment` returns the variables that are the defaults of options.
///
/// # Errors
/// If the arguments are invalid, or ask for help or the version.
pub fn parse(
    words: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Command, clap::Error> {
    let mut description = description(environment);
    let words = std::iter::once(OsString::from("headwater")).chain(words);
    let matches = description.try_get_matches_from_mut(words)?;
    let command = CommandLine::from_arg_matches(&matches)?.command;
    if let Command::Run(run) = &command {
        check_cluster(run).map_err(|message| {
            let run = description.find_subcommand_mut("run").expect("`run` is a command");
            run.error(ErrorKind::ValueValidation, message)
        })?;
    }
    Ok(command)
}

/// Checks the numbers of workers and processes.
fn check_cluster(run: &RunArgs) -> Result<(), String> {
    let RunArgs { workers, processes, process, hostfile, peers, .. } = run;
    if let (Some(Service { name, port }), Some(processes)) = (peers, processes) {
        return Err(format!(
            "--peers dns:{name}:{port} finds the number of processes itself: leave out --processes {processes} (also as \
             HEADWATER_PROCESSES), or use --hostfile"
        ));
    }
    if peers.is_some() && !matches!(process, ProcessName::Pod { .. }) {
        return Err(format!(
            "--peers needs the name of this pod, such as --process headwater-0 or HEADWATER_PROCESS from the field \
             metadata.name, not {process:?}"
        ));
    }
    // The members of a cluster that changes are not known yet.
    let is_elastic = run.is_elastic();
    let processes = &processes.unwrap_or(1);
    match process.index() {
        _ if is_elastic => {}
        None => {
            return Err("--process HOST:PORT needs a host file whose changes are followed: give the index, or leave out \
                        --processes"
                .to_owned());
        }
        Some(process) if process >= *processes => {
            return Err(format!(
                "--process is from 0 to the number of processes minus 1, not {process} of {processes}"
            ));
        }
        Some(_) => {}
    }
    if workers.checked_mul(*processes).is_none_or(|all| all > SHARDS as usize) {
        return Err(format!(
            "--workers is at most {SHARDS} for all processes together, but there are {processes} with {workers} each: \
             state is divided into {SHARDS} shards, so further workers would have none"
        ));
    }
    if *processes > 1 && hostfile.is_none() {
        return Err("several processes need --hostfile FILE, with one host:port per line".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::Epoch;

    use super::*;
    use crate::cli::bench::BenchCommand;
    use crate::cli::command::{DeadLettersCommand, DiscardState, TopicsCommand};

    fn parsed_with(line: &str, variables: &[(&str, &str)]) -> Result<Command, String> {
        let value = |name: &str| variables.iter().find(|(known, _)| *known == name);
        let words = line.split_whitespace().map(Into::into);
        let arguments = Arguments::new(words, value("HEADWATER_PROCESSES").is_some());
        parse(arguments.words, |name| value(name).map(|(_, value)| (*value).to_owned()))
            .map_err(|error| error.render().to_string())
    }

    fn parsed(line: &str) -> Result<Command, String> {
        parsed_with(line, &[])
    }

    fn run(line: &str) -> RunArgs {
        match parsed(line) {
            Ok(Command::Run(run)) => run,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_description_of_the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn options_can_be_in_any_order() {
        let args = run("run -w 2 a.toml --bounded --discard-state windows.w --discard-state patterns \
                        --adopt-sink postgres");
        assert_eq!((args.workers, args.bounded, args.drain), (2, true, false));
        let sections = ["windows.w", "patterns"].map(|name| DiscardState::Section(name.to_owned()));
        assert_eq!(args.permissions.discard_state, sections);
        assert!(args.permissions.resets().sinks.contains("postgres"));
        let args = run("run --discard-state=all:7 a.toml");
        assert_eq!(args.permissions.resets().all, Some(Epoch(7)));
        assert!(matches!(parsed("status --json x"), Ok(Command::Status(args)) if args.json));
        assert!(
            matches!(parsed("check x --connect"), Ok(Command::Check(args)) if args.connect && !args.json)
        );
        assert!(matches!(parsed("topics create x"), Ok(Command::Topics(TopicsCommand::Create(_)))));
        let latency = parsed("bench latency x --rate 500");
        assert!(
            matches!(latency, Ok(Command::Bench(BenchCommand::Latency(args))) if args.rate == 500.0 && args.seconds == 30.0)
        );
        assert!(matches!(
            parsed("dead-letters retry x --include-late"),
            Ok(Command::DeadLetters(DeadLettersCommand::Retry(args))) if args.include_late
        ));
    }

    #[test]
    fn old_names_of_options_work_with_a_warning() {
        for (old, new) in [
            ("run a --until-end --close", "run a --bounded --drain"),
            ("run a --reset patterns --reset-sink b", "run a --discard-state patterns --adopt-sink b"),
            ("status a --reset=all:7", "status a --discard-state=all:7"),
            ("produce a --eps 5", "produce a --rate 5"),
        ] {
            let arguments = Arguments::new(old.split_whitespace().map(Into::into), false);
            assert_eq!(arguments.words.join(" ".as_ref()), new);
            assert_eq!(arguments.warnings.len(), old.matches("--").count(), "{:?}", arguments.warnings);
            assert_eq!(parsed(old), parsed(new));
            assert!(parsed(new).is_ok(), "{new}");
        }
    }

    #[test]
    fn h_names_the_host_file_only_in_a_cluster() {
        let hosts = |line: &str| run(line).hostfile.map(|path| path.display().to_string());
        for line in [
            "run -h hosts a -n 2",
            "run a -n2 -hhosts",
            "run a --processes=2 -h hosts",
            "run a -n 2 --hosts hosts",
        ] {
            assert_eq!(hosts(line).as_deref(), Some("hosts"), "{line}");
        }
        assert!(parsed_with("run a -h hosts", &[("HEADWATER_PROCESSES", "2")]).is_ok());
        for line in ["run -h", "run a -h", "status -h", "-h", "bench stages -h"] {
            assert!(parsed(line).is_err_and(|help| help.contains("Usage: headwater")), "{line}");
        }
    }

    #[test]
    fn members_follow_a_host_file_or_a_service() {
        let is_elastic = |line: &str, variables: &[(&str, &str)]| match parsed_with(line, variables) {
            Ok(Command::Run(run)) => run.is_elastic(),
            other => panic!("{line}: {other:?}"),
        };
        assert!(is_elastic("run a --hostfile hosts -p 7", &[]), "it may have more lines later");
        assert!(is_elastic("run a --hostfile hosts -p 10.0.0.7:2101", &[]));
        assert!(!is_elastic("run a --hostfile hosts -n 2 -p 1", &[]) && !is_elastic("run a", &[]));
        let pod = [("HEADWATER_PEERS", "dns:peers:2101"), ("HEADWATER_PROCESS", "headwater-3")];
        assert!(is_elastic("run a", &pod) && is_elastic("run a --settle 10s", &pod));
        for (line, expected) in [
            ("run a --processes 2", "finds the number of processes itself"),
            ("run a -p 3", "needs the name of this pod"),
            ("run a --settle soon", "expected a duration"),
            ("run a --peers peers:2101", "dns:NAME:PORT"),
        ] {
            assert!(parsed_with(line, &pod).is_err_and(|message| message.contains(expected)), "{line}");
        }
        assert!(
            parsed("run a --peers dns:b:1 --hostfile c -p d-0")
                .is_err_and(|m| m.contains("cannot be used with"))
        );
        let fixed = "run a -n 2 --hostfile hosts -p 10.0.0.7:2101";
        assert!(parsed(fixed).is_err_and(|message| message.contains("give the index")));
    }

    #[test]
    fn options_of_other_commands_are_refused() {
        for (line, unexpected) in [
            ("run a --json", "--json"),
            ("check a --rate 5", "--rate"),
            ("check a --skip a:1:b", "--skip"),
            ("topics create a -w 2", "-w"),
            ("dead-letters list a --include-late", "--include-late"),
            ("--json", "--json"),
        ] {
            let message = parsed(line).expect_err(line);
            assert!(message.contains(&format!("unexpected argument '{unexpected}'")), "{message}");
            assert!(message.contains("Usage: headwater"), "{message}");
        }
    }

    #[test]
    fn variables_apply_only_to_commands_with_the_option() {
        let workers = |value, line| parsed_with(line, &[("HEADWATER_WORKERS", value)]);
        assert!(matches!(workers("3", "run a"), Ok(Command::Run(args)) if args.workers == 3));
        assert!(matches!(workers("3", "run a -w 1"), Ok(Command::Run(args)) if args.workers == 1));
        assert!(matches!(workers("3", "demo"), Ok(Command::Demo(args)) if args.workers == 3));
        assert!(matches!(workers("", "run a"), Ok(Command::Run(args)) if args.workers == 1));
        assert!(workers("many", "run a").is_err_and(|error| error.contains("HEADWATER_WORKERS")));
        assert!(
            workers("18446744073709551615", "run a")
                .is_err_and(|error| error.contains("--workers is at most 64"))
        );
        assert!(workers("many", "run a -w 1").is_ok() && workers("many", "check a").is_ok());
    }

    #[test]
    fn invalid_values_are_refused_with_what_is_expected() {
        for (line, expected) in [
            ("run", "CONFIG"),
            ("fly", "unrecognized subcommand 'fly'"),
            ("run a b", "unexpected argument 'b'"),
            ("run a -w 0", "at least 1"),
            ("run a -w x", "at least 1"),
            ("run a -n 2", "need --hostfile"),
            ("run a -p 1", "not 1 of 1"),
            ("run a --discard-state Rules", "expected windows.NAME"),
            ("run a --skip postgres:events/3/42", "expected SINK:EPOCH:OUTPUT"),
            ("run a --accept-loss t:x", "expected TOPIC"),
            ("demo --fast", "unexpected argument '--fast'"),
            ("bench", "Usage: headwater bench"),
            ("bench latency", "CONFIG"),
            ("bench cost --events 0", "is not in 1.."),
            ("bench cost --disordered 1.5", "from 0 to 1"),
            ("bench latency a --rate 0", "above 0"),
            ("produce a --rate nan", "above 0"),
            ("produce a --seconds inf", "above 0"),
            ("run a -w 65", "at most 64"),
            ("run a -w 18446744073709551615 -n 2 -h hosts", "at most 64"),
            ("run a -w 33 -n 2 -h hosts", "at most 64"),
        ] {
            let message = parsed(line).expect_err(line);
            assert!(message.contains(expected), "{line}: {message}");
        }
    }
}
