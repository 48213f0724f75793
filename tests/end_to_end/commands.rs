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
use crate::postgres::Database;

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
pub struct Terminal {
    dir: tempfile::TempDir,
    /// Texts that differ from run to run, and what stands for them.
    hidden: Vec<(String, &'static str)>,
    transcript: String,
}

impl Terminal {
    /// Returns a terminal in an empty folder.
    pub fn new() -> Terminal {
        let dir = tempfile::tempdir().expect("a directory");
        let hidden = vec![(dir.path().display().to_string(), "DIR")];
        Terminal { dir, hidden, transcript: String::new() }
    }

    /// Returns the path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Types a command and records what it prints.
    pub fn type_in(&mut self, line: &str) {
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

    /// Adds a text to what was printed.
    pub fn note(&mut self, text: &str) {
        self.transcript += text;
    }

    /// Compares what was printed with a golden file.
    pub fn compare(self, name: &str) {
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

/// Returns the wall time and the speed in a report of a backtest replaced by `N`.
fn without_speed(text: &str) -> String {
    let mut text = text.to_owned();
    for (before, after) in [(" in ", " events/s\n"), ("\"events_per_s\":", ","), ("\"seconds\":", ",")] {
        let Some((head, tail)) = text.split_once(before) else { continue };
        let Some((_, tail)) = tail.split_once(after) else { continue };
        text = format!("{head}{before}N{after}{tail}");
    }
    text
}

#[test]
fn backtests_are_as_recorded() {
    let mut terminal = folder_with_events();
    let rule = "[patterns.amount_anomaly]\nat_least = 3\nsigmas = 1000.0\n[[rules]]\nid = \"large\"\n\
        where = \"event.amount / (event.amount - 10.0) > 1.0 && event.amount > 9.5\"\nmatch = true\n\
        severity = \"event.amount > 100.0 ? 'high' : 'low'\"\n";
    fs::write(terminal.path("new.toml"), rule).expect("written");
    let other = rule.replace("9.5", "11.5").replace("100.0", "9.0").replace("sigmas = 1000.0\n", "");
    fs::write(terminal.path("other.toml"), format!("pipeline = \"x\"\n{other}")).expect("written");
    fs::write(terminal.path("labels.csv"), "event_id,label\nd,1\nb,0\nx,1\n").expect("written");
    terminal.type_masked("backtest run.toml --candidate new.toml --labels labels.csv", without_speed);
    terminal.type_masked("backtest run.toml --candidate other.toml --out out.db", without_speed);
    fs::write(terminal.path("run.toml"), format!("{FROM_FILE}{}", &rule[rule.find("[[").expect("a rule")..]))
        .expect("written");
    terminal.type_masked("backtest run.toml --candidate other.toml --json", without_speed);
    let fields = "[fields]\nevent_id = \"event_id\"\nevent_time = \"event_time\"\nevent_type = \"event_type\"\n\
        user_id = \"user_id\"\namount = { path = \"amount\", type = \"decimal\", scale = 2, required = true }\n\
        currency = { path = \"currency\", required = true }\n";
    let with_fields = |fields: &str| format!("{fields}{}", &rule[rule.find("[[").expect("a rule")..]);
    fs::write(terminal.path("fields.toml"), with_fields(fields)).expect("written");
    terminal.type_masked("backtest run.toml --candidate fields.toml", without_speed);
    let optional =
        fields.replace(", required = true }\ncurrency = { path = \"currency\", required = true", "");
    fs::write(terminal.path("fields.toml"), with_fields(&optional)).expect("written");
    terminal.type_masked("backtest run.toml --candidate fields.toml", without_speed);
    terminal.compare("backtest");
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
        let header = rdkafka::message::Header { key: "producer", value: Some("shop") };
        let headers = rdkafka::message::OwnedHeaders::new().insert(header);
        let record = rdkafka::producer::BaseRecord::to(&input).key("k").payload(value).partition(0);
        let record = record.headers(headers);
        sender.send(record).expect("queued");
    }
    rdkafka::producer::Producer::flush(&sender, std::time::Duration::from_secs(10)).expect("written");
    terminal.type_in("check run.toml --connect --json");
    succeed(headwater(&["run", "run.toml", "--bounded"]).current_dir(terminal.dir.path()));
    for line in [
        "dead-letters list run.toml --json",
        "dead-letters list run.toml",
        "dead-letters list run.toml --reason invalid --mask event_id",
        "dead-letters groups run.toml",
        "dead-letters groups run.toml --producer nobody --json",
        "dead-letters show run.toml 2:1",
        "dead-letters show run.toml 2:0 --json",
        "dead-letters show run.toml 2:7",
        "dead-letters retry run.toml 2:1 --set event_type=\"api_call\"",
        "dead-letters retry run.toml --reason malformed --dry-run",
        "dead-letters retry run.toml --reason malformed",
        "dead-letters retry run.toml 2:1 --dry-run",
        "dead-letters retry run.toml --rate 100 --json",
        "dead-letters list run.toml --limit 1",
        "dead-letters purge run.toml --before 2026-03-01T00:00:00Z",
        "dead-letters purge run.toml --before 0s --dry-run",
        "dead-letters purge run.toml --before 0s --json",
        "dead-letters list run.toml",
    ] {
        terminal.type_masked(line, without_wall_times);
    }
    terminal.compare("topics");
}

/// A letter that is sent again, edited, becomes an event; the second retry sends nothing, whichever way it is chosen.
#[test]
fn an_edited_dead_letter_of_a_table_is_sent_once() {
    let terminal = folder_with_events();
    let input = format!("edited-{:08}", std::process::id());
    topics(&brokers()).create(&[TopicSpec::new(&input, 1)]).expect("created");
    let config = format!(
        "pipeline = {input:?}\n[source]\nkind = \"kafka\"\nbrokers = {:?}\ntopic = {input:?}\n\
         [ledger]\nkind = \"sqlite\"\npath = \"ledger.db\"\n[sinks.sqlite]\npath = \"results.db\"\n",
        brokers()
    );
    fs::write(terminal.path("run.toml"), config).expect("written");
    let sender = producer(&brokers(), &[], None);
    for value in [r#"{"event_id":"e","event_type":"api_call","event_time":1772330400000}"#, "oops"] {
        let record = rdkafka::producer::BaseRecord::<str, str>::to(&input).payload(value).partition(0);
        sender.send(record).expect("queued");
    }
    rdkafka::producer::Producer::flush(&sender, std::time::Duration::from_secs(10)).expect("written");
    let run = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        headwater(&words).current_dir(terminal.dir.path()).output().expect("started")
    };
    let json = |line: &str| -> serde_json::Value {
        let output = run(line);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{line}: {output:?}"))
    };
    assert!(run("run run.toml --bounded").status.success());
    let wrong = run("dead-letters retry run.toml 0:0 --set user_id=[]");
    let message = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(message.contains("would be rejected again: user_id must be"), "{message}");
    let line = "dead-letters retry run.toml 0:0 --set user_id=\"u\" --json";
    assert_eq!(json(&format!("{line} --dry-run"))["sent"], 1);
    assert_eq!((&json(line)["sent"], &json(line)["skipped"]["sent_before"]), (&1.into(), &1.into()));
    let all = json("dead-letters retry run.toml --json");
    assert_eq!((&all["sent"], &all["skipped"]["sent_before"]), (&1.into(), &1.into()), "the other one");
    assert_eq!(json("dead-letters retry run.toml --json")["sent"], 0);
    assert!(run("run run.toml --bounded").status.success());
    let connection = rusqlite::Connection::open(terminal.path("results.db")).expect("a database");
    let count = |query: &str| connection.query_row(query, [], |row| row.get::<_, i64>(0)).expect("a count");
    assert_eq!(count("SELECT count(*) FROM events WHERE \"key\" LIKE '%u' AND \"offset\" = 2"), 1);
    assert_eq!(count("SELECT count(*) FROM dead_letters WHERE retries = 1"), 1, "oops is rejected again");
    let letters = json("dead-letters list run.toml --json");
    let sent =
        letters["letters"].as_array().expect("letters").iter().filter(|letter| letter["sent_again"] == true);
    assert_eq!(sent.count(), 2, "{letters}");
}

/// The commands answer from PostgreSQL, in a schema of its own, as they do from SQLite.
#[test]
fn dead_letters_in_postgresql_are_listed_and_purged() {
    let terminal = folder_with_events();
    let database = Database::create("letters");
    let mut records = EVENTS.to_owned();
    records += r#"{"event_id":"e","event_type":"api_call","event_time":1772330400000}"#;
    fs::write(terminal.path("events.ndjson"), records + "\n").expect("written");
    let sink = format!("[sinks.postgres]\nurl = {:?}\nschema = \"shop\"\n", database.url());
    let config = FROM_FILE.replace("[sinks.sqlite]\npath = \"results.db\"\n", &sink);
    fs::write(terminal.path("run.toml"), config).expect("written");
    succeed(headwater(&["run", "run.toml"]).current_dir(terminal.dir.path()));
    let json = |line: &str| -> serde_json::Value {
        let words: Vec<_> = line.split_whitespace().chain(["--json"]).collect();
        let output = succeed(headwater(&words).current_dir(terminal.dir.path()));
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    };
    let ids = |line: &str| -> Vec<String> {
        let letters = json(line)["letters"].as_array().cloned().expect("letters");
        letters.iter().map(|letter| letter["id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(ids("dead-letters list run.toml"), ["0:5", "0:4"]);
    assert_eq!(ids("dead-letters list run.toml --limit 1"), ["0:5"]);
    assert_eq!(ids("dead-letters list run.toml --reason malformed"), ["0:4"]);
    assert_eq!(ids("dead-letters list run.toml --since 1970-01-01T00:00:00Z"), [""; 0], "lines have no time");
    assert_eq!(json("dead-letters show run.toml 0:4")["value"], "oops");
    let groups = json("dead-letters groups run.toml");
    assert_eq!(groups["groups"].as_array().map(Vec::len), Some(2), "{groups}");
    let times = "UPDATE shop.dead_letters SET timestamp = '2026-03-01 02:00:00+00' WHERE \"offset\" = 4";
    database.query(times);
    assert_eq!(ids("dead-letters list run.toml --until 2026-03-01T02:00:00.001Z"), ["0:4"]);
    assert_eq!(ids("dead-letters list run.toml"), ["0:5", "0:4"], "a page ends at the limit");
    database.query(
        "INSERT INTO shop.dead_letters SELECT 1, 2, reason, field, message, \"key\", value, timestamp, epoch, retries \
         FROM shop.dead_letters WHERE \"offset\" = 4",
    );
    let groups = json("dead-letters groups run.toml");
    let largest = &groups["groups"][0];
    assert_eq!((&largest["count"], &largest["example"]), (&2.into(), &"1:2".into()), "the newest: {groups}");
    assert_eq!(groups["groups"][1]["example"], "0:5", "a row without a time: {groups}");
    database.query("DELETE FROM shop.dead_letters WHERE partition = 1");
    assert_eq!(json("dead-letters purge run.toml --before 1d --dry-run")["deleted"], 1);
    assert_eq!(json("dead-letters purge run.toml --before 1d")["deleted"], 1);
    assert_eq!(ids("dead-letters list run.toml"), ["0:5"]);
}

#[test]
fn commands_on_a_table_are_as_recorded() {
    let mut terminal = folder_with_events();
    succeed(headwater(&["run", "run.toml"]).current_dir(terminal.dir.path()));
    let masked = FROM_FILE.to_owned() + "[dead_letters]\nmask = \"amount\"\n";
    fs::write(terminal.path("run.toml"), masked).expect("written");
    for line in [
        "dead-letters list run.toml",
        "dead-letters list run.toml --json",
        "dead-letters groups run.toml --json",
        "dead-letters show run.toml 0:4",
        "dead-letters retry run.toml",
        "dead-letters purge run.toml --before 1d",
    ] {
        terminal.type_in(line);
    }
    terminal.compare("table");
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
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let files = fs::read_dir(root().join("tests/end_to_end")).expect("a folder");
    let sources = files.map(|entry| entry.expect("an entry").path()).filter(is_source);
    let source: String = sources.map(|path| fs::read_to_string(path).expect("a source")).collect();
    for entry in fs::read_dir(dir).expect("a folder") {
        let path: PathBuf = entry.expect("an entry").path();
        let name = Path::new(&path).file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(source.contains(&format!("compare(\"{name}\")")), "{name} belongs to no test");
    }
}
