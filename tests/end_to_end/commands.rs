//! Every command as a user types it: its text and its JSON, against golden files.
//!
//! `UPDATE_GOLDEN=1` writes the files anew. Read the difference before you commit it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use headwater::cli::args::description;
use headwater_sinks::kafka::topics::TopicSpec;

use crate::common::{headwater, root, succeed};
use crate::kafka::{brokers, producer, topics};

/// Returns the time stamps of a text replaced by `TIME`.
fn without_times(text: &str) -> String {
    const SHAPE: &str = "0000-00-00T00:00:00";
    let is_time = |at: usize| {
        let bytes = text.as_bytes().get(at..at + SHAPE.len());
        bytes.is_some_and(|bytes| {
            bytes.iter().zip(SHAPE.bytes()).all(|(byte, shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                other => *byte == other,
            })
        })
    };
    let mut out = String::new();
    let mut at = 0;
    while at < text.len() {
        if is_time(at) {
            at += SHAPE.len();
            at += text[at..].bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
            at += usize::from(text[at..].starts_with('Z'));
            out += "TIME";
        } else {
            let next = text[at..].chars().next().expect("not at the end");
            out.push(next);
            at += next.len_utf8();
        }
    }
    out
}

/// Returns the numbers of a text replaced by `N`, and runs of blanks by one, since columns depend on numbers.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let after_number = out.ends_with('N');
        match c {
            '0'..='9' if after_number => {}
            '0'..='9' if !out.ends_with(|c: char| c.is_alphanumeric() || c == '_') => out.push('N'),
            '.' if after_number => {}
            ' ' if out.ends_with(' ') => {}
            c => out.push(c),
        }
    }
    out
}

/// Returns the numbers of at least 13 digits of a text, which are wall times in milliseconds, replaced by `MS`.
fn without_wall_times(text: &str) -> String {
    let (mut out, mut digits) = (String::new(), String::new());
    for c in text.chars().chain(['\0']) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        out += if digits.len() >= 13 { "MS" } else { &digits };
        digits.clear();
        out.push(c);
    }
    out.pop();
    out
}

/// A folder in which commands are typed, and what they printed.
struct Terminal {
    dir: tempfile::TempDir,
    /// Texts that differ from run to run, and what stands for them.
    hidden: Vec<(String, &'static str)>,
    transcript: String,
}

impl Terminal {
    fn new() -> Terminal {
        let dir = tempfile::tempdir().expect("a directory");
        let hidden = vec![(dir.path().display().to_string(), "DIR")];
        Terminal { dir, hidden, transcript: String::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Types a command and records what it prints.
    fn type_in(&mut self, line: &str) {
        self.type_masked(line, str::to_owned);
    }

    fn type_masked(&mut self, line: &str, mask: fn(&str) -> String) {
        let words: Vec<_> = line.split_whitespace().collect();
        let output = headwater(&words).current_dir(self.dir.path()).output().expect("started");
        let printed = |bytes: &[u8]| {
            let mut text = without_times(&String::from_utf8_lossy(bytes));
            for (hidden, name) in &self.hidden {
                text = text.replace(hidden, name);
            }
            mask(&text)
        };
        let (out, err) = (printed(&output.stdout), printed(&output.stderr));
        let code = output.status.code().map_or("signal".to_owned(), |code| code.to_string());
        write!(self.transcript, "$ headwater {line}\n{out}").expect("written");
        // A slow machine prints progress, a line a second.
        let lasting = err.lines().filter(|line| !line.contains(" events/s · epoch "));
        lasting.for_each(|line| writeln!(self.transcript, "2> {line}").expect("written"));
        writeln!(self.transcript, "exit code {code}\n").expect("written");
    }

    /// Compares what was printed with a golden file.
    fn compare(self, name: &str) {
        let path = root().join("tests/end_to_end/golden/commands").join(format!("{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &self.transcript).expect("written");
            return;
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        let differs = golden.lines().zip(self.transcript.lines()).find(|(golden, now)| golden != now);
        assert!(
            golden == self.transcript,
            "{} differs, at first: {differs:#?}; if that is intended: UPDATE_GOLDEN=1\n{}",
            path.display(),
            self.transcript
        );
    }
}

/// Four events of one user and a record that is not JSON; the amount of the fourth makes an alert.
const EVENTS: &str = r#"{"event_id":"a","event_type":"transaction","user_id":"u","event_time":"2026-03-01T02:00:00Z","amount":10}
{"event_id":"b","event_type":"transaction","user_id":"u","event_time":"2026-03-01T02:00:01Z","amount":11}
{"event_id":"c","event_type":"transaction","user_id":"u","event_time":"2026-03-01T02:00:02Z","amount":12}
{"event_id":"d","event_type":"transaction","user_id":"u","event_time":"2026-03-01T02:00:03Z","amount":9000}
oops
"#;

const FROM_FILE: &str = "pipeline = \"shop\"\n[source]\nkind = \"file\"\npaths = \"events.ndjson\"\n\
    [patterns.amount_anomaly]\nat_least = 3\n[[windows]]\nname = \"user_1m\"\nkind = \"tumbling\"\nby = \"user_id\"\n\
    size = \"1m\"\n[ledger]\nkind = \"sqlite\"\npath = \"ledger.db\"\n[sinks.sqlite]\npath = \"results.db\"\n";

fn folder_with_events() -> Terminal {
    let terminal = Terminal::new();
    fs::write(terminal.path("events.ndjson"), EVENTS).expect("written");
    fs::write(terminal.path("run.toml"), FROM_FILE).expect("written");
    terminal
}

#[test]
fn help_is_as_recorded() {
    fn commands(command: &clap::Command, path: &str, all: &mut Vec<String>) {
        all.push(format!("{path}--help"));
        let inner = command.get_subcommands().filter(|command| command.get_name() != "help");
        inner.for_each(|command| commands(command, &format!("{path}{} ", command.get_name()), all));
    }
    let mut all = Vec::new();
    commands(&description(|_| None), "", &mut all);
    assert!(all.len() > 14, "{all:?}");
    let mut terminal = Terminal::new();
    all.iter().for_each(|line| terminal.type_in(line));
    terminal.compare("help");
}

#[test]
fn usage_errors_are_as_recorded() {
    let mut terminal = folder_with_events();
    fs::write(terminal.path("wrong.toml"), "pipeline = 3\nsuorce = 4\n[limits]\ndrain = \"1s\"\n")
        .expect("written");
    for line in [
        "",
        "demos",
        "run",
        "run run.toml --json",
        "run run.toml --workers many",
        "run run.toml -n 2",
        "run missing.toml --until-end",
        "run run.toml --discard-state rules",
        "check wrong.toml",
        "dead-letters list run.toml",
        "produce run.toml",
        "topics create run.toml",
        "status run.toml --adopt-sink kafka",
    ] {
        terminal.type_in(line);
    }
    terminal.compare("usage_errors");
}

#[test]
fn check_status_and_run_are_as_recorded() {
    let mut terminal = folder_with_events();
    for line in [
        "check run.toml",
        "check run.toml --json",
        "check run.toml --connect",
        "check run.toml --connect --json",
    ] {
        terminal.type_in(line);
    }
    terminal.type_in("status run.toml");
    terminal.type_in("status run.toml --json");
    terminal.type_masked("run run.toml", without_numbers);
    let ledger = rusqlite::Connection::open(terminal.path("ledger.db")).expect("the ledger");
    let id: String =
        ledger.query_row("SELECT lineage FROM headwater_ledger", [], |row| row.get(0)).expect("its id");
    terminal.hidden.push((id, "LEDGER"));
    terminal.type_in("status run.toml");
    terminal.type_in("status run.toml --json");
    terminal.type_masked("run run.toml", without_numbers);
    let json_log = FROM_FILE.to_owned() + "[log]\nformat = \"json\"\n";
    fs::write(terminal.path("run.toml"), json_log.replace("\"1m\"", "\"2m\"")).expect("written");
    terminal.type_in("status run.toml --json");
    terminal.type_masked("run run.toml", without_numbers);
    terminal.compare("check_status_run");
}

#[test]
fn demo_and_bench_are_as_recorded() {
    let mut terminal = Terminal::new();
    for line in [
        "demo --seconds 0.3",
        "demo --seconds 0.3 --json",
        "bench cost --events 20000 --rounds 1",
        "bench cost --events 20000 --rounds 1 --json",
        "bench keys --keys 1000",
        "bench keys --keys 1000 --json",
    ] {
        terminal.type_masked(line, without_numbers);
    }
    terminal.compare("demo_bench");
}

#[test]
fn commands_on_topics_are_as_recorded() {
    let mut terminal = folder_with_events();
    let unique = format!("commands-{:08}", std::process::id());
    let config = format!(
        "pipeline = {unique:?}\n[source]\nkind = \"kafka\"\nbrokers = {:?}\ntopic = \"{unique}.in\"\n\
         [ledger]\nkind = \"sqlite\"\npath = \"ledger.db\"\n[sinks.kafka]\nbrokers = {:?}\n[sinks.kafka.topics]\n\
         alerts = \"{unique}.alerts\"\ndead-letters = \"{unique}.dead\"\n",
        brokers(),
        brokers()
    );
    fs::write(terminal.path("run.toml"), config).expect("written");
    terminal.hidden.extend([(brokers(), "BROKERS"), (unique.clone(), "PIPELINE")]);
    terminal.type_in("check run.toml --connect");
    terminal.type_in("topics create run.toml");
    terminal.type_in("topics create run.toml --json");
    terminal.type_masked("produce run.toml --rate 1000 --seconds 0.02", without_numbers);
    terminal.type_masked("produce run.toml --rate 1000 --seconds 0.02 --json", without_numbers);

    // Further records that become dead letters, in a topic of their own, so that their places are known.
    let input = format!("{unique}.in2");
    let spec = TopicSpec { name: input.clone(), partitions: 1, replication: None, config: Vec::new() };
    topics(&brokers()).create(&[spec]).expect("created");
    let config = fs::read_to_string(terminal.path("run.toml")).expect("readable");
    fs::write(terminal.path("run.toml"), config.replace(&format!("{unique}.in"), &input)).expect("written");
    let sender = producer(&brokers(), &[], None);
    for value in [&b"oops"[..], b"{\"event_id\":\"e\"}", b"\xff\xfe"] {
        let record = rdkafka::producer::BaseRecord::to(&input).key("k").payload(value).partition(0);
        sender.send(record).expect("queued");
    }
    rdkafka::producer::Producer::flush(&sender, std::time::Duration::from_secs(10)).expect("written");
    terminal.type_in("check run.toml --connect --json");
    succeed(headwater(&["run", "run.toml", "--bounded"]).current_dir(terminal.dir.path()));
    terminal.type_masked("dead-letters list run.toml --json", without_wall_times);
    for line in [
        "dead-letters list run.toml",
        "dead-letters list run.toml --reason invalid",
        "dead-letters retry run.toml --reason malformed",
        "dead-letters retry run.toml --json",
    ] {
        terminal.type_in(line);
    }
    terminal.compare("topics");
}

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = succeed(&mut headwater(&["completions", shell]));
        let script = String::from_utf8(output.stdout).expect("UTF-8");
        for word in ["dead-letters", "status", "bounded", "adopt-sink"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn masks_hide_only_times_and_numbers() {
    assert_eq!(without_times("at 2026-11-29T01:02:03.456Z, 2026-11"), "at TIME, 2026-11");
    assert_eq!(without_numbers("p99    12.5 ms; 3 of  4 in user_1m"), "p99 N ms; N of N in user_1m");
    assert_eq!(without_wall_times("7 at 1795915809492"), "7 at MS");
}

#[test]
fn golden_files_are_those_of_tests() {
    let dir = root().join("tests/end_to_end/golden/commands");
    let source = include_str!("commands.rs");
    for entry in fs::read_dir(dir).expect("a folder") {
        let path: PathBuf = entry.expect("an entry").path();
        let name = Path::new(&path).file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(source.contains(&format!("compare(\"{name}\")")), "{name} belongs to no test");
    }
}
