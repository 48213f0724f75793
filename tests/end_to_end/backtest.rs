//! `headwater backtest`: the alerts of both sides are those of two runs, over files and over a topic.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use headwater_sinks::kafka::topics::TopicSpec;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rusqlite::Connection;
use serde_json::Value;

use crate::commands::Terminal;
use crate::common::{hard_settings, headwater, succeed, write_files};
use crate::kafka::{brokers, produce, topics};

/// The rules in force.
const IN_FORCE: &str = r#"
[patterns.rapid_fire_burst]
at_least = 4

[keys]
merchant = "merchant_id"

[[rules]]
id = "large"
where = "event.event_type == 'transaction' && event.amount > 150.0"
match = true
severity = "event.amount > 165.0 ? 'high' : 'low'"

[[rules]]
id = "busy_merchant"
by = "merchant"
count = { at_least = 12, within = "5m" }
suppress = "1m"

[[rules]]
id = "removed"
sum = { of = "event.amount", more_than = 300.0, within = "1h" }
emit = "final"
"#;

/// A candidate without a source: another threshold, another severity, a rule less and a rule more.
const CANDIDATE: &str = r#"
[patterns.rapid_fire_burst]
at_least = 5

[[rules]]
id = "large"
where = "event.event_type == 'transaction' && event.amount > 150.0"
match = true
severity = "event.amount > 160.0 ? 'high' : 'low'"

[[rules]]
id = "busy_merchant"
by = "merchant"
count = { at_least = 12, within = "5m" }
suppress = "1m"

[[rules]]
id = "added"
distinct = { of = "event.merchant_id", at_least = 4, within = "10m" }
"#;

/// The columns of an alert that say what it is.
const COLUMNS: &str = r#"alert_id, status, rule, rule_version, severity, key_kind, "key", event_ids, event_time, final, details"#;

/// Returns the rows of a query, as lines by their first column.
fn rows(database: &Path, query: &str) -> BTreeMap<String, Vec<String>> {
    let connection = Connection::open(database).expect("a database");
    let mut statement = connection.prepare(query).expect("a query");
    let columns = statement.column_count();
    let row = |row: &rusqlite::Row<'_>| -> rusqlite::Result<Vec<String>> {
        (0..columns).map(|at| Ok(format!("{:?}", row.get_ref(at)?))).collect()
    };
    let all = statement.query_map([], row).expect("queried").map(|row| row.expect("a row"));
    all.map(|row| (row[0].clone(), row)).collect()
}

/// Runs a backtest and returns its JSON.
fn backtest(folder: &Path, arguments: &[&str]) -> Value {
    let mut command = headwater(&["backtest", "run.toml", "--candidate", "new.toml", "--json"]);
    let output = succeed(command.args(arguments).current_dir(folder));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// Returns, by rule, how many alerts of two runs are added, gone and changed.
fn differences(before: &Path, after: &Path) -> BTreeMap<String, [u64; 3]> {
    let query = "SELECT alert_id, rule, severity, details, event_ids FROM alerts WHERE status = 'raised'";
    let [before, after] = [before, after].map(|database| rows(database, query));
    let mut differences: BTreeMap<String, [u64; 3]> = BTreeMap::new();
    for id in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let (old, new) = (before.get(id), after.get(id));
        let of_rule = differences.entry(new.or(old).expect("one of both")[1].clone()).or_default();
        of_rule[0] += u64::from(old.is_none());
        of_rule[1] += u64::from(new.is_none());
        of_rule[2] += u64::from(old.is_some() && new.is_some() && old != new);
    }
    differences
}

/// Returns, by rule, what a report says of added, gone and changed alerts.
fn reported(report: &Value) -> BTreeMap<String, [u64; 3]> {
    let mut reported: BTreeMap<String, [u64; 3]> = BTreeMap::new();
    for count in report["rules"].as_array().expect("a list") {
        let rule = format!("Text({:?})", count["rule"].as_str().expect("a rule").as_bytes());
        let of_rule = reported.entry(rule).or_default();
        for (sum, name) in of_rule.iter_mut().zip(["added", "gone", "changed"]) {
            *sum += count[name].as_u64().expect("a number");
        }
    }
    reported
}

/// Writes a stream to files, and the configurations of two runs over them and of a backtest. Returns the sections of the
/// source.
fn write_input(folder: &Path, seed: u64, records: u64) -> String {
    let files = write_files(folder, &hard_settings(seed), records);
    let names: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
    let source = format!("[source]\nkind = \"file\"\npaths = {names:?}\nepoch_records = 100\n");
    let run = |name: &str, rules: &str| {
        let text = format!("pipeline = \"p\"\n{source}{rules}\n[sinks.sqlite]\npath = \"{name}.db\"\n");
        fs::write(folder.join(format!("{name}.toml")), text).expect("written");
        succeed(headwater(&["run", &format!("{name}.toml")]).current_dir(folder));
    };
    run("before", IN_FORCE);
    run("after", &format!("{CANDIDATE}\n[keys]\nmerchant = \"merchant_id\"\n"));
    // No variable of a sink is needed.
    let sink = "[sinks.postgres]\nurl = \"postgres://${NOT_SET}@localhost/x\"\n";
    fs::write(folder.join("run.toml"), format!("pipeline = \"p\"\n{source}{IN_FORCE}{sink}"))
        .expect("written");
    fs::write(folder.join("new.toml"), CANDIDATE).expect("written");
    source
}

#[test]
fn a_backtest_over_files_finds_what_two_runs_find() {
    let dir = tempfile::tempdir().expect("a directory");
    let folder = dir.path();
    write_input(folder, 5, 30_000);
    let report = backtest(folder, &["--out", "out.db"]);
    let out = folder.join("out.db");
    for side in ["before", "after"] {
        let of_run = rows(&folder.join(format!("{side}.db")), &format!("SELECT {COLUMNS} FROM alerts"));
        let of_backtest = rows(&out, &format!("SELECT {COLUMNS} FROM alerts_{side}"));
        assert!(of_run.len() > 100, "{side}: {}", of_run.len());
        assert!(of_run.values().any(|row| row[1] == "Text([114, 101, 118, 111, 107, 101, 100])"), "revoked");
        let different = of_run.iter().zip(&of_backtest).find(|(run, backtest)| run != backtest);
        assert!(of_run == of_backtest, "{side}: {} and {}: {different:?}", of_run.len(), of_backtest.len());

        let letters = rows(
            &folder.join(format!("{side}.db")),
            "SELECT reason, count(*) FROM dead_letters GROUP BY reason",
        );
        let rejected = report[side]["rejected"].as_object().expect("by reason");
        assert_eq!(rejected.len(), letters.len(), "{rejected:?}");
        let sum: u64 = rejected.values().map(|n| n.as_u64().expect("a number")).sum();
        assert_eq!(report[side]["events"].as_u64(), Some(30_000 - sum));
    }
    let expected = differences(&folder.join("before.db"), &folder.join("after.db"));
    let changes = reported(&report);
    for (rule, expected) in &expected {
        assert_eq!(&changes[rule], expected, "{rule}: {report}");
    }
    let sums = (0..3).map(|at| changes.values().map(|change| change[at]).sum::<u64>()).collect::<Vec<_>>();
    assert!(sums.iter().all(|&sum| sum > 0), "{sums:?}");
    let count = rows(&out, "SELECT kind, count(*) FROM differences GROUP BY kind");
    assert_eq!(count.len(), 3, "{count:?}");
}

#[test]
fn times_limit_the_alerts_and_what_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let folder = dir.path();
    write_input(folder, 6, 12_000);
    let whole = backtest(folder, &["--out", "whole.db"]);
    let times = rows(&folder.join("whole.db"), "SELECT DISTINCT event_time FROM alerts_before ORDER BY 1");
    let text = |at: usize| {
        let connection = Connection::open(folder.join("whole.db")).expect("a database");
        let query = format!("SELECT DISTINCT event_time FROM alerts_before ORDER BY 1 LIMIT 1 OFFSET {at}");
        connection.query_row(&query, [], |row| row.get::<_, String>(0)).expect("a time")
    };
    let (from, to) = (text(times.len() / 4), text(times.len() / 2));
    let part = backtest(folder, &["--out", "part.db", "--from", &from, "--to", &to]);
    for side in ["before", "after"] {
        let all = rows(
            &folder.join("whole.db"),
            &format!(
                "SELECT {COLUMNS} FROM alerts_{side} WHERE event_time >= '{from}' AND event_time < '{to}'"
            ),
        );
        let found = rows(&folder.join("part.db"), &format!("SELECT {COLUMNS} FROM alerts_{side}"));
        assert!(all == found && !all.is_empty(), "{side}: {} and {}", all.len(), found.len());
    }
    assert!(part["records"].as_u64() < whole["records"].as_u64(), "reading ends after --to: {part}");
}

#[test]
fn labels_give_precision_and_recall() {
    let dir = tempfile::tempdir().expect("a directory");
    let folder = dir.path();
    write_input(folder, 7, 6_000);
    backtest(folder, &["--out", "out.db"]);
    let connection = Connection::open(folder.join("out.db")).expect("a database");
    let ids = |rule: &str| -> Vec<String> {
        let query = "SELECT DISTINCT value FROM alerts_before, json_each(event_ids) WHERE rule = ? \
            AND status = 'raised' ORDER BY 1";
        let mut statement = connection.prepare(query).expect("a query");
        let ids = statement.query_map([rule], |row| row.get(0)).expect("queried");
        ids.map(|id| id.expect("an id")).collect()
    };
    // Half of what `large` finds is labelled 1, a quarter 0; so is an event that is not in the input.
    let large = ids("large");
    let (half, quarter) = (large.len() / 2, large.len() / 4);
    let mut csv = "event_id,label,note\nmissing,1,not in the input\n".to_owned();
    for (at, id) in large.iter().enumerate().take(half + quarter) {
        csv += &format!("\"{id}\",{},\"a, note\"\n", if at < half { "1" } else { "false" });
    }
    fs::write(folder.join("labels.csv"), csv).expect("written");
    let report = backtest(folder, &["--labels", "labels.csv"]);
    let labels = &report["labels"];
    assert_eq!(labels["labels"].as_u64(), Some((1 + half + quarter) as u64));
    assert_eq!(labels["in_input"].as_u64(), Some((half + quarter) as u64));
    let rules = labels["rules"].as_array().expect("a list");
    let of = |rule: &str| rules.iter().find(|of| of["rule"] == rule).expect("the rule");
    let precision = half as f64 / (half + quarter) as f64;
    for side in ["before", "after"] {
        let quality = &of("large")[side];
        assert_eq!(quality["recall"], 1.0, "{quality}");
        assert!((quality["precision"].as_f64().expect("a share") - precision).abs() < 1e-4, "{quality}");
    }
    assert_eq!((&of("removed")["after"], &of("added")["before"]), (&Value::Null, &Value::Null));
}

#[test]
fn wrong_files_exit_with_code_2() {
    let terminal = Terminal::new();
    for (name, text) in [
        ("run.toml", "pipeline = \"p\"\n[source]\nkind = \"generator\"\nrecords = 100\n"),
        ("endless.toml", "pipeline = \"p\"\n[source]\nkind = \"generator\"\n"),
        ("new.toml", "[[rules]]\nid = \"a\"\nmatch = true\n"),
        ("wrong.toml", "[[rules]]\nid = \"a\"\nwhere = \"event.x\"\nmatch = true\n"),
        ("labels.csv", "event_id,label\ne1,maybe\n"),
    ] {
        fs::write(terminal.path(name), text).expect("written");
    }
    for (line, expected) in [
        ("run.toml", "--candidate <NEW>"),
        ("run.toml --candidate wrong.toml", "--candidate wrong.toml: line 3: rules[0].where"),
        (
            "run.toml --candidate new.toml --labels labels.csv",
            "labels.csv:2: label: expected 1, 0, true or false",
        ),
        ("endless.toml --candidate new.toml", "source.records: the generator has no end"),
        ("new.toml --candidate new.toml", "source: the section is missing"),
        ("run.toml --candidate new.toml --from 1h --to 2h", "--to: the time must be after that of --from"),
    ] {
        let words: Vec<_> = line.split_whitespace().collect();
        let output =
            headwater(&["backtest"]).args(words).current_dir(terminal.path("")).output().expect("started");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {error}");
        assert!(error.contains(expected), "{line}: {error}");
    }
}

/// Both sides name files of rules; what is wrong in one is reported with the name of the file.
#[test]
fn files_of_rules_are_read_for_both_sides() {
    let dir = tempfile::tempdir().expect("a directory");
    let folder = dir.path();
    write_input(folder, 9, 6_000);
    let whole = backtest(folder, &[]);
    assert!(
        whole["total"]["added"].as_u64() > Some(0) && whole["total"]["gone"].as_u64() > Some(0),
        "{whole}"
    );
    for (name, rules) in [("run", "rules"), ("new", "stricter")] {
        let text = fs::read_to_string(folder.join(format!("{name}.toml"))).expect("readable");
        let at = text.find("[[rules]]").expect("rules");
        let (others, of_files) = (&text[..at], &text[at..]);
        let (of_files, sinks) = of_files.split_at(of_files.find("[sinks").unwrap_or(of_files.len()));
        fs::write(
            folder.join(format!("{name}.toml")),
            format!("rules = [\"{rules}/*.toml\"]\n{others}{sinks}"),
        )
        .expect("written");
        fs::create_dir(folder.join(rules)).expect("made");
        for (n, rule) in of_files.split("[[rules]]").skip(1).enumerate() {
            fs::write(folder.join(rules).join(format!("{n}.toml")), format!("[[rules]]{rule}"))
                .expect("written");
        }
    }
    let of_files = backtest(folder, &[]);
    for member in ["records", "before", "after", "rules", "total"] {
        assert_eq!(of_files[member], whole[member], "{member}");
    }

    for (rules, expected) in [
        (
            "stricter",
            "--candidate new.toml: stricter/0.toml line 3: rules[0].where: column 7: unknown field amuont",
        ),
        ("rules", "headwater: rules/0.toml line 3: rules[0].where: column 7: unknown field amuont"),
    ] {
        let path = folder.join(rules).join("0.toml");
        let rule = fs::read_to_string(&path).expect("readable");
        let start = rule.find("where").expect("a filter");
        let end = start + rule[start..].find('\n').expect("a line");
        fs::write(&path, format!("{}where = \"event.amuont > 1.0\"{}", &rule[..start], &rule[end..]))
            .expect("written");
        let mut command = headwater(&["backtest", "run.toml", "--candidate", "new.toml"]);
        let output = command.current_dir(folder).output().expect("started");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

/// The offset that the group of a pipeline has committed is neither used nor changed.
#[test]
fn a_backtest_over_a_topic_finds_what_one_over_files_finds() {
    let dir = tempfile::tempdir().expect("a directory");
    let folder = dir.path();
    // Without late events: which events are late depends on the order across partitions.
    let settings =
        headwater::source::generator::GeneratorSettings { late: 0.0, disorder: 0.0, ..hard_settings(8) };
    let files = write_files(folder, &settings, 12_000);
    let names: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
    let topic = format!("backtest-{}", std::process::id());
    let brokers = brokers();
    topics(&brokers).create(&[TopicSpec::new(&topic, 6)]).expect("created");
    produce(&topic, &settings, 12_000, &folder.join("records.ndjson"));
    fs::write(folder.join("new.toml"), CANDIDATE).expect("written");
    let mut reports = Vec::new();
    for (name, source) in [
        ("files", format!("kind = \"file\"\npaths = {names:?}\n")),
        (
            "topic",
            format!("kind = \"kafka\"\ntopic = {topic:?}\nbrokers = {brokers:?}\nstart_from = \"latest\"\n"),
        ),
    ] {
        let text = format!("pipeline = {topic:?}\n[source]\n{source}{IN_FORCE}");
        fs::write(folder.join("run.toml"), text).expect("written");
        reports.push(backtest(folder, &["--out", &format!("{name}.db")]));
    }
    assert_eq!(reports[0]["records"], 12_000);
    for member in ["records", "before", "after"] {
        assert_eq!(reports[0][member], reports[1][member], "{member}");
    }
    // At the end of files, the watermark goes to infinity, and final alerts come.
    let query = |side: &str| format!("SELECT {COLUMNS} FROM alerts_{side} WHERE rule <> 'removed'");
    for side in ["before", "after"] {
        let [files, topic] = ["files.db", "topic.db"].map(|name| rows(&folder.join(name), &query(side)));
        assert!(!files.is_empty() && files == topic, "{side}: {} and {}", files.len(), topic.len());
    }
    // The records were written after all event times, and before the year 2100.
    let part = backtest(folder, &["--from", "2000-01-01T00:00:00Z"]);
    assert_eq!(part["total"], reports[1]["total"], "{part}");
    let none = backtest(folder, &["--from", "2100-01-01T00:00:00Z"]);
    assert_eq!((&none["records"], &none["total"]["before"]), (&0.into(), &0.into()), "{none}");

    let mut group = ClientConfig::new();
    group.set("bootstrap.servers", &brokers).set("group.id", &topic);
    let consumer: BaseConsumer = group.create().expect("a client");
    let mut list = rdkafka::TopicPartitionList::new();
    for partition in 0..6 {
        list.add_partition(&topic, partition);
    }
    let committed = consumer.committed_offsets(list, std::time::Duration::from_secs(10)).expect("asked");
    let is_none = |offset| offset == rdkafka::Offset::Invalid;
    assert!(committed.elements().iter().all(|partition| is_none(partition.offset())), "{committed:?}");
}
