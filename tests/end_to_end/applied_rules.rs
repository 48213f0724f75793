//! The texts of `headwater rules apply`, its request and the watcher of files: changes, refusals, and broken files.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::json as get_json;
use crate::changed_rules::{address, apply};
use crate::common::headwater;
use crate::live::{Process, get, wait_for};

/// A run that goes on for minutes, on generated events and without a ledger.
const ENDLESS: &str = r#"rules_reload = "auto"
pipeline = "play"
[source]
kind = "generator"
epoch_records = 10
[http]
listen = "127.0.0.1:0"
[log]
format = "json"
[limits]
epochs_in_flight = 2
[keys]
shop = "merchant_id"
[sinks.sqlite]
path = "results.db"
commit_interval = "200ms"
[[rules]]
id = "large"
where = "event.amount > 100.0"
match = true
[[rules]]
id = "busy"
by = "shop"
count = { at_least = 20, within = "1m" }
[[rules]]
id = "quiet"
absence = { within = "5m" }
"#;

/// A run of [`ENDLESS`].
struct Endless {
    dir: tempfile::TempDir,
    run: Process,
    address: SocketAddr,
}

impl Endless {
    fn start() -> Endless {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("run.toml"), ENDLESS).expect("written");
        let mut command = headwater(&["run", "run.toml"]);
        command.current_dir(dir.path());
        let mut run = Process::start(command, dir.path().join("run.log"));
        let address = address(&mut run).expect("it does not end");
        wait_for("readiness", || (get(address, "/readyz").0 == 200).then_some(()));
        Endless { dir, run, address }
    }

    /// Replaces the watched file.
    fn write(&self, text: &str) {
        fs::write(self.dir.path().join("new.toml"), text).expect("written");
        fs::rename(self.dir.path().join("new.toml"), self.dir.path().join("run.toml")).expect("renamed");
    }

    /// Applies the rules of another file. Returns what the command printed, and its exit code.
    fn apply(&self, text: &str, arguments: &[&str]) -> (String, Option<i32>) {
        let path = self.dir.path().join("candidate.toml");
        fs::write(&path, text).expect("written");
        let output = apply(&path, self.address, arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let errors = errors.lines().map(|line| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            format!("{}\n", line["fields"]["message"].as_str().expect("a message"))
        });
        (
            String::from_utf8_lossy(&output.stdout).into_owned() + &errors.collect::<String>(),
            output.status.code(),
        )
    }

    /// Returns the version of the rules in force, and their ids.
    fn rules(&self) -> (u64, Vec<String>) {
        let rules = get_json(self.address, "/api/v1/rules");
        let ids = rules["rules"].as_array().expect("a list").iter();
        (
            rules["version"].as_u64().expect("a number"),
            ids.map(|rule| rule["id"].as_str().expect("an id").to_owned()).collect(),
        )
    }
}

/// Replaces the epochs and times of a text, which differ from run to run.
fn without_times(text: &str) -> String {
    let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    for word in &mut words {
        if word.starts_with("2026-") {
            *word = "TIME".to_owned();
        } else if word.ends_with('\n') && word.trim_end().parse::<u64>().is_ok() {
            *word = "EPOCH\n".to_owned();
        }
    }
    words.join(" ")
}

#[test]
fn the_command_says_what_a_change_does() {
    let mut running = Endless::start();
    let changed =
        ENDLESS.replace("at_least = 20", "at_least = 30").replace("id = \"quiet\"", "id = \"silent\"");
    let summary = "1 added, 1 removed, 1 changed, 1 unchanged\n";
    let (text, code) = running.apply(&changed, &["--dry-run"]);
    let expected = format!(
        "added silent\nremoved quiet: what it has raised stays\nchanged busy, keeps its state\n{summary}nothing was changed\n"
    );
    assert_eq!((text, code), (expected, Some(0)));
    let (text, _) = running.apply(&changed, &["--dry-run", "--json"]);
    let following = |id: &str, keeps_state: bool| json!({ "id": id, "keeps_state": keeps_state, "waits": false, "complete_from": null, "knows_since": null });
    let expected = json!({
        "added": [following("silent", false)], "changed": [following("busy", true)], "epoch": null,
        "removed": ["quiet"], "unchanged": 1, "version": 1,
    });
    assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), expected);
    assert_eq!(running.rules(), (1, ["large", "busy", "quiet"].map(str::to_owned).into()));

    let (text, code) = running.apply(&changed, &[]);
    let expected = format!(
        "added silent: complete from TIME on\nremoved quiet: what it has raised stays\nchanged busy, keeps its state: complete from TIME on\n\
         {summary}version 2 is in force for events after epoch EPOCH\n"
    );
    assert_eq!((without_times(&text), code), (expected, Some(0)));
    wait_for("the rules", || {
        (running.rules() == (2, ["large", "busy", "silent"].map(str::to_owned).into())).then_some(())
    });
    let (text, _) = running.apply(&changed, &[]);
    assert_eq!(text, "0 added, 0 removed, 0 changed, 3 unchanged\nversion 2 is in force already\n");
    running.run.kill();
}

#[test]
fn changes_that_a_run_cannot_take_are_refused() {
    let mut running = Endless::start();
    let outlier = "outlier = { of = \"amount\" }";
    for (from, to, code, error) in [
        (
            "event.amount > 100.0",
            "event.amont > 100.0",
            2,
            "line 19: rules[0].where: column 7: unknown field amont; did you mean amount?, in: event.amont > 100.0\n",
        ),
        (
            "by = \"shop\"",
            "by = \"till\"",
            2,
            "line 23: rules[1].by: expected \"key\" or a key of [keys]: \"user\", \"device\", \"shop\", got \"till\"\n",
        ),
        (
            "by = \"shop\"",
            "by = \"user\"",
            1,
            "cannot apply the rules to the run of play: rule busy: the run does not group by \"user\", which is built in and no rule or window used at its start; stop it and start it with the new configuration\n",
        ),
        (
            "shop = \"merchant_id\"",
            "shop = \"currency\"",
            1,
            "cannot apply the rules to the run of play: the pipeline was configured with `keys.shop = \"merchant_id\"` and is now configured with `keys.shop = \"currency\"`; only [[rules]] are changed while a run goes on: stop it and start it with the new configuration\n",
        ),
        (
            "[keys]",
            "[patterns.velocity_spike]\n[keys]",
            1,
            "cannot apply the rules to the run of play: the pipeline was configured with no `patterns.velocity_spike.emit` and is now configured with `patterns.velocity_spike.emit = \"immediate\"`; only [[rules]] are changed while a run goes on: stop it and start it with the new configuration\n",
        ),
        (
            "[keys]",
            "[[windows]]\nname = \"w\"\nkind = \"tumbling\"\nsize = \"1m\"\n[keys]",
            1,
            "cannot apply the rules to the run of play: the pipeline was configured with no `windows.w.by` and is now configured with `windows.w.by = \"user_id\"`; only [[rules]] are changed while a run goes on: stop it and start it with the new configuration\n",
        ),
    ] {
        // Another rule has changed, too: it does not come into force either.
        let changed = ENDLESS.replace(from, to).replace("absence = { within = \"5m\" }", outlier);
        assert_eq!(running.apply(&changed, &[]), (error.to_owned(), Some(code)));
    }
    let fields = "[fields]\nevent_id = \"event_id\"\nevent_time = \"timestamp\"\nuser_id = \"user_id\"\n[keys]\nshop = \"user_id\"\n";
    let (text, code) = running.apply(
        &ENDLESS
            .replace("[keys]\nshop = \"merchant_id\"\n", fields)
            .replace("event.amount > 100.0", "event.user_id != ''"),
        &[],
    );
    assert!(text.contains("only [[rules]] are changed while a run goes on") && code == Some(1), "{text}");
    for (body, status, detail) in [
        (
            "{\"rules\": [\"{ id = \\\"large\\\", match = true, colour = 1 }\"]}",
            400,
            "rules[0].colour: unknown key",
        ),
        ("{\"rules\": [\"{ id = \\\"large\\\" match = true }\"]}", 400, "rules[0]: missing comma"),
        (
            "{\"rules\": [\"{ id = \\\"x\\\", match = true }\", \"{ id = \\\"x\\\", match = true }\"]}",
            400,
            "rules[1].id: two rules have the id x",
        ),
        (
            "{\"rules\": [\"{ id = \\\"x\\\", count = { at_least = 2, within = \\\"900d\\\" } }\"]}",
            400,
            "rules[0].count: the rule spans",
        ),
        ("{\"rules\": [], \"force\": true}", 400, "unknown field `force`"),
    ] {
        let (got, text) = put(running.address, body);
        assert!(got == status && text.contains(detail), "{body}: {got} {text}");
    }
    assert_eq!(running.rules(), (1, ["large", "busy", "quiet"].map(str::to_owned).into()));
    running.run.kill();
}

/// Returns the status and the body of an answer to a request for other rules.
fn put(address: SocketAddr, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connected");
    write!(
        stream,
        "PUT /api/v1/rules HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, answer.split_once("\r\n\r\n").expect("a body").1.to_owned())
}

#[test]
fn a_broken_watched_file_leaves_the_rules_as_they_are() {
    let mut running = Endless::start();
    for (text, said) in [
        (
            ENDLESS.replace("event.amount >", "event.amont >"),
            "has changed and is not valid, so the rules stay as they are: line 19",
        ),
        (
            ENDLESS.replace("[[rules]]", "[[rules"),
            "has changed and is not valid, so the rules stay as they are: line 17",
        ),
        (
            ENDLESS.replace("\"merchant_id\"", "\"currency\""),
            "has changed in more than rules, so the rules stay as they are",
        ),
        (ENDLESS.replace("by = \"shop\"", "by = \"user\""), "rule busy: the run does not group by"),
        (
            format!("rules = [\"missing.toml\"]\n{}", ENDLESS.split("[[rules]]").next().expect("text")),
            "missing.toml",
        ),
    ] {
        running.write(&text);
        wait_for("the log", || running.run.log().contains(said).then_some(()));
        assert_eq!(running.rules().0, 1);
    }
    fs::remove_file(running.dir.path().join("run.toml")).expect("removed");
    wait_for("the log", || running.run.log().contains("cannot be read: run.toml").then_some(()));
    // A comment changes no rule.
    running.write(&format!("# A comment.\n{ENDLESS}"));
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(running.rules().0, 1);
    running.write(&ENDLESS.replace("100.0", "200.0"));
    wait_for("the rules", || (running.rules().0 == 2).then_some(()));
    wait_for("the log", || running.run.log().contains("the changed rules are in force").then_some(()));
    // And back.
    running.write(ENDLESS);
    wait_for("the rules", || (running.rules().0 == 3).then_some(()));
    running.run.terminate();
    running.run.expect_success();
}
