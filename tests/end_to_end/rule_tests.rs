//! `headwater test`: the examples pass, failing tests show the difference, and wrong files are refused with their place.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::commands::Terminal;
use crate::common::{Random, headwater, root, succeed};

/// Rules on payments: a presence, a key of two fields, an absence, a pattern.
const RULES: &str = r#"[fields]
event_id = "id"
event_time = "ts"
event_type = { const = "payment" }
user_id = "user"
amount = "amount"
opened = { path = "opened", type = "timestamp" }
ip = "ip"
merchant_id = "shop"

[time]
max_out_of_orderness = "2s"

[patterns.merchant_diversity]
at_least = 2
within = "10s"

[keys]
pair = ["user_id", "ip"]

[[rules]]
id = "three"
by = "user"
count = { at_least = 3, within = "1m" }

[[rules]]
id = "fresh_large"
by = "pair"
where = "event.amount > 100.0 && event.time - event.opened < duration('1h')"
match = true
severity = "event.amount > 1000.0 ? 'critical' : 'low'"

[[rules]]
id = "silent"
by = "user"
absence = { within = "1h" }
"#;

fn terminal_with(files: &[(&str, &str)]) -> Terminal {
    let terminal = Terminal::new();
    for (name, text) in files {
        fs::write(terminal.path(name), text).expect("written");
    }
    terminal
}

#[test]
fn the_examples_have_rules_that_pass_their_tests() {
    let folder = root().join("examples/rules");
    let junit = tempfile::NamedTempFile::new().expect("a file");
    let arguments = [folder.as_os_str(), "--junit".as_ref(), junit.path().as_os_str(), "--json".as_ref()];
    let output = headwater(&["test"]).args(arguments).output().expect("started");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    let results: serde_json::Value = serde_json::from_str(&printed).expect("one JSON object");
    let files = results["files"].as_array().expect("a list");
    assert_eq!((files.len(), results["failed"].as_u64()), (11, Some(0)));
    for file in files {
        let (name, tests) = (file["file"].as_str().expect("a path"), file["tests"].as_array());
        assert!(tests.is_some_and(|tests| tests.len() >= 2), "{name}");
        let rules = fs::read_to_string(name.replace("_test.toml", ".toml")).expect("the rules beside it");
        let comment = rules.lines().take_while(|line| line.starts_with("# ")).count();
        assert_eq!(comment, 2, "{name}: two lines say what the rule is for");
        assert!(rules.contains("[[rules]]"), "{name}");
    }
    let xml = fs::read_to_string(junit.path()).expect("written");
    let passed = results["passed"].as_u64().expect("a number");
    let suites = format!("<testsuites name=\"headwater test\" tests=\"{passed}\" failures=\"0\"");
    assert!(xml.contains(&suites), "{xml}");
    assert_eq!(xml.matches("<testcase ").count() as u64, passed);
}

#[test]
fn each_example_is_also_a_part_of_a_whole_configuration() {
    let around = "[source]\nkind = \"generator\"\n[sinks.sqlite]\npath = \"results.db\"\n";
    let terminal = Terminal::new();
    for entry in fs::read_dir(root().join("examples/rules")).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if name.ends_with("_test.toml") {
            continue;
        }
        let rules = fs::read_to_string(&path).expect("text");
        fs::write(terminal.path(&name), format!("pipeline = \"rules\"\n{rules}\n{around}")).expect("written");
        let check = headwater(&["check", &name]).current_dir(terminal.path("")).output().expect("started");
        assert!(check.status.success(), "{name}: {}", String::from_utf8_lossy(&check.stderr));
    }
}

#[test]
fn failing_tests_show_the_difference() {
    let tests = r#"rules = "rules.toml"

[[test]]
name = "passes: decimals, times and keys of several fields"
events = [
    { at = "30m", user_id = "ann", ip = "10.0.0.1", amount = "100.01", opened = "1m" },
    { at = "30m", user_id = "bob", ip = "10.0.0.1", amount = 5000, opened = "2030-01-01T00:00:00Z", event_type = "payment" },
    { at = "30m", user_id = "bob", ip = "10.0.0.1", amount = 5000, opened = "-2h" },
]
expect = [
    { rule = "fresh_large", key = ["ann", "10.0.0.1"], key_kind = "pair", at = "30m", severity = "low", event_ids = ["e1"] },
    { rule = "fresh_large", key = '["bob","10.0.0.1"]', at = "30m", severity = "critical" },
    { rule = "silent", key = "ann", at = "1h30m", details = { since = "30m" } },
    { rule = "silent", key = "bob", at = "1h30m" },
]

[[test]]
name = "passes: a pattern, and the lateness of the configuration"
events = [
    { at = "10s", user_id = "ann", merchant_id = "a" },
    { at = "15s", user_id = "ann", merchant_id = "b" },
    { at = "13s", arrives = "15s", user_id = "bob" },
    { at = "12999ms", arrives = "16s", user_id = "bob", event_id = "slow" },
]
expect = [
    { rule = "merchant_diversity", key = "ann", at = "15s", severity = "medium", details = { distinct = 2 } },
    { rule = "silent", key = "ann", at = "1h15s" },
    { rule = "silent", key = "bob", at = "1h13s" },
]
dead_letters = [{ reason = "late", at = "12s999ms", event_id = "slow" }]

[[test]]
name = "fails: other details, severity and ids"
events = [{ at = "0s", repeat = 3, every = "1s", user_id = "ann" }]
expect = [
    { rule = "three", key = "ann", at = "2s", severity = "high", event_ids = ["e2"], details = { count = 4, distinct = 1, within_ms = "60000" } },
    { rule = "silent", key = "ann", at = "1h2s" },
]

[[test]]
name = "fails: missing, unexpected and revoked"
events = [
    { at = "0s", repeat = 3, every = "1s", user_id = "ann", event_id = "x" },
    { at = "10s", repeat = 3, every = "1s", user_id = "ann" },
    { at = "10500ms", arrives = "13s", user_id = "ann" },
    { at = "1s", arrives = "14s", user_id = "ann" },
]
expect = [{ rule = "three", key = "bob", at = "2s" }, { rule = "three", key = "ann", at = "11s", status = "revoked" }, { rule = "silent", key = "ann", at = "1h12s" }]
dead_letters = [{ reason = "late", at = "2s" }, { reason = "duplicate", at = "1s", event_id = "y" }]
"#;
    let mut terminal = terminal_with(&[("rules.toml", RULES), ("some_test.toml", tests)]);
    terminal.type_in("test some_test.toml --junit results.xml");
    terminal.type_in("test . --json");
    let junit = fs::read_to_string(terminal.path("results.xml")).expect("written");
    let mut masked = String::new();
    for part in junit.split_inclusive(" time=\"") {
        let rest = part.find('"').filter(|_| !masked.is_empty()).map_or(part, |end| &part[end..]);
        masked += rest;
    }
    terminal.note(&masked);
    terminal.compare("rule_tests");
}

#[test]
fn wrong_files_are_refused_with_their_place() {
    let wrong_keys = r#"rules = "rules.toml"
[[test]]
name = "a"
evnets = []
events = [
    { at = "soon", user_id = "ann" },
    { at = "1m", arrives = "30s", user_id = "ann" },
    { at = "1m", repeat = 0, user = "ann" },
    { at = "1m", amount = "much" },
    { at = "1m", opened = "yesterday" },
    { at = "1m", event_type = "login", event_time = "2030-01-01T00:00:00Z" },
]
expect = [
    { rule = "tree", key = "ann", at = "2s" },
    { rule = "three", at = "2s", status = "lost", severity = "bad", detials = {} },
    { rule = "three", key = "ann", at = "2s", key_kind = "card", details = { count = [3] } },
]
dead_letters = [{ reason = "future" }]
[[test]]
name = "a"
"#;
    let standard = "rules = \"standard.toml\"\n[[test]]\nname = \"a\"\nexpect = []\n\
        events = [{ at = \"0s\", event_type = \"payment\", card = \"c\", location = { lat = 91, lon = 0 } }]\n";
    let mut terminal = terminal_with(&[
        ("rules.toml", RULES),
        ("wrong_test.toml", wrong_keys),
        ("standard.toml", "[[rules]]\nid = \"a\"\nmatch = true\n"),
        ("standard_test.toml", standard),
        ("syntax.test.toml", "rules = \n"),
        ("empty_test.toml", "rules = \"standard.toml\"\n"),
        ("typo.toml", "[[rules]]\nid = \"a\"\nwhere = \"event.amuont > 1.0\"\ncuont = 1\n[[rule]]\n"),
        ("typo_test.toml", "rules = \"typo.toml\"\n"),
        ("missing_test.toml", "rules = \"none.toml\"\n"),
    ]);
    fs::create_dir(terminal.path("folder")).expect("created");
    for line in [
        "test",
        "test wrong_test.toml",
        "test standard_test.toml syntax.test.toml empty_test.toml typo_test.toml missing_test.toml",
        "test rules.toml",
        "test folder none_test.toml",
        "test .",
    ] {
        terminal.type_in(line);
    }
    terminal.compare("rule_test_errors");
}

/// A whole configuration, whose rules raise, revoke, suppress and wait.
const WHOLE: &str = r#"pipeline = "shop"

[source]
kind = "file"
paths = "events.ndjson"
epoch_records = 1

[sinks.file]
path = "results"

[keys]
merchant = "merchant_id"

[patterns.rapid_fire_burst]
at_least = 4
within = "10s"

[[rules]]
id = "sum_by_user"
where = "event.amount > 2.0"
sum = { of = "amount", more_than = 60, within = "1m" }
severity = "event.amount > 15.0 ? 'critical' : 'low'"

[[rules]]
id = "users_of_merchant"
by = "merchant"
distinct = { of = "user_id", at_least = 3, within = "20s" }
suppress = "30s"

[[rules]]
id = "share_final"
by = "user"
share = { of = "event.amount > 10.0", more_than = 0.5, at_least_events = 5, within = "40s" }
emit = "final"

[[rules]]
id = "small_then_large"
sequence = { steps = [{ where = "event.amount < 5.0", times = 2 }, { where = "event.amount > 17.0" }], within = "30s" }

[[rules]]
id = "outlier_amount"
outlier = { of = "amount", sigmas = 1.5, at_least = 8 }

[[rules]]
id = "silent_user"
absence = { within = "25s" }
suppress = "1m"

[[rules]]
id = "no_large_after_small"
sequence = { steps = [{ where = "event.amount < 3.0" }, { not = "event.amount > 10.0" }], within = "20s" }
severity = "high"
"#;

/// Returns events of five users, out of order and late, as records in the order of arrival, and as events of a test.
fn disordered_events(seed: u64) -> (String, Vec<toml::Value>) {
    let mut random = Random(seed);
    let (mut records, mut events) = (String::new(), Vec::new());
    for number in 0..400 {
        let arrives_ms = 10_000 + 600 * number;
        let delay_ms = if random.below(3) == 0 { random.below(8000) } else { 0 };
        let at_ms = arrives_ms - delay_ms;
        let user = format!("u{}", random.below(5));
        let merchant = format!("m{}", random.below(3));
        let amount = format!("{}.{:02}", random.below(20), random.below(100));
        // A tenth of the events has an id that was used before.
        let id = format!("i{}", if random.below(10) == 0 { number.saturating_sub(4) } else { number });
        let (minutes, seconds, ms) = (at_ms / 60_000, at_ms / 1000 % 60, at_ms % 1000);
        let mut members = serde_json::json!({
            "event_id": id, "event_type": "transaction", "user_id": user, "merchant_id": merchant, "amount": amount,
        });
        let mut record = members.clone();
        record["event_time"] = format!("2030-01-01T00:{minutes:02}:{seconds:02}.{ms:03}Z").into();
        writeln!(records, "{record}").expect("written");
        members["at"] = format!("{at_ms}ms").into();
        members["arrives"] = format!("{arrives_ms}ms").into();
        events.push(toml_of(&members));
    }
    (records, events)
}

fn toml_of(json: &serde_json::Value) -> toml::Value {
    toml::Value::try_from(json).expect("JSON without null is TOML")
}

/// Returns the lines of a file of results as expectations, with only these members, and with the time after the
/// beginning of tests.
fn expectations(path: &Path, members: &[&str]) -> Vec<toml::Value> {
    let text = fs::read_to_string(path).expect("results");
    let of_line = |line: &str| {
        let mut result: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let record = result["value"].as_str().and_then(|value| serde_json::from_str(value).ok());
        let record: serde_json::Value = record.unwrap_or_else(|| result.clone());
        let time = record["event_time"].as_str().expect("a time");
        let digits = |from: usize, to: usize| time[from..to].parse::<i64>().expect("digits");
        let at_ms = ((digits(11, 13) * 60 + digits(14, 16)) * 60 + digits(17, 19)) * 1000 + digits(20, 23);
        result["at"] = format!("{at_ms}ms").into();
        let members = members.iter().map(|&member| (member.to_owned(), result[member].take()));
        toml_of(&members.collect())
    };
    text.lines().map(of_line).collect()
}

/// The alerts of a run on a file are those of a test with the same events.
#[test]
fn a_test_raises_what_a_run_raises() {
    let mut raised = BTreeSet::new();
    for seed in 1..=3 {
        let (records, events) = disordered_events(seed);
        let terminal = terminal_with(&[("shop.toml", WHOLE), ("events.ndjson", &records)]);
        succeed(headwater(&["run", "shop.toml"]).current_dir(terminal.path("")));
        let of_alerts =
            ["status", "rule", "severity", "key_kind", "key", "event_ids", "at", "details"].as_slice();
        let alerts = expectations(&terminal.path("results/alerts.ndjson"), of_alerts);
        let letters = expectations(&terminal.path("results/dead-letters.ndjson"), &["reason", "at"]);
        raised.extend(alerts.iter().map(|alert| alert["rule"].to_string()));
        let revoked = alerts.iter().filter(|alert| alert["status"].as_str() == Some("revoked")).count();
        assert!(
            revoked > 10 && letters.len() > 20,
            "seed {seed}: {revoked} revoked, {} refused",
            letters.len()
        );
        let test = toml::Table::from_iter([
            ("name".to_owned(), "as in a run".into()),
            ("events".to_owned(), events.into()),
            ("expect".to_owned(), alerts.into()),
            ("dead_letters".to_owned(), letters.into()),
        ]);
        let file = toml::Table::from_iter([
            ("rules".to_owned(), "shop.toml".into()),
            ("test".to_owned(), vec![toml::Value::Table(test)].into()),
        ]);
        fs::write(terminal.path("shop_test.toml"), file.to_string()).expect("written");
        let output = headwater(&["test", "."]).current_dir(terminal.path("")).output().expect("started");
        let printed = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success(), "seed {seed}: {}", printed.concat());
    }
    for rule in WHOLE.lines().filter_map(|line| line.strip_prefix("id = ")) {
        assert!(raised.contains(rule), "{rule} raises nothing");
    }
}

/// Rules in files of their own: a run, its tests, an error in a file, and what is listed and compared.
#[test]
fn rules_are_read_from_files_of_their_own() {
    let around = "pipeline = \"shop\"\nrules = [\"rules/*.toml\"]\n[source]\nkind = \"file\"\npaths = \"events.ndjson\"\n\
        [sinks.file]\npath = \"results\"\n[patterns.rapid_fire_burst]\nat_least = 4\n";
    let two = "[[rules]]\nid = \"two\"\ncount = { at_least = 2, within = \"1m\" }\ndescription = \"${TEAM}: two events\"\n";
    let large =
        "[[rules]]\nid = \"large\"\nwhere = \"event.amount > 100.0\"\nmatch = true\nsuppress = \"1h\"\n";
    let test = "rules = \"../shop.toml\"\n[[test]]\nname = \"large\"\n\
        events = [{ at = \"0s\", user_id = \"ann\", amount = 101 }]\n\
        expect = [{ rule = \"large\", key = \"ann\", at = \"0s\" }]\n";
    let (events, _) = disordered_events(1);
    let mut terminal = terminal_with(&[
        ("shop.toml", around),
        ("events.ndjson", &events),
        (
            "new.toml",
            "[[rules]]\nid = \"large\"\nwhere = \"event.amount > 200.0\"\nmatch = true\nsuppress = \"2h\"\n",
        ),
    ]);
    fs::create_dir(terminal.path("rules")).expect("created");
    for (name, text) in [("two.toml", two), ("large.toml", large), ("large_test.toml", test)] {
        fs::write(terminal.path("rules").join(name), text).expect("written");
    }
    terminal.type_in("check shop.toml");
    let two = two.replace("${TEAM}", "risk");
    fs::write(terminal.path("rules/two.toml"), &two).expect("written");
    for line in
        ["test rules", "rules list shop.toml", "rules list shop.toml --json", "rules diff shop.toml new.toml"]
    {
        terminal.type_in(line);
    }
    terminal.type_in("rules diff shop.toml new.toml --json");
    terminal.type_in("rules diff shop.toml shop.toml");
    fs::write(terminal.path("rules/wrong.toml"), "\n[[rules]]\nid = \"wrong\"\ncuont = 1\n")
        .expect("written");
    for line in [
        "check shop.toml",
        "run shop.toml",
        "test rules",
        "rules list shop.toml",
        "rules diff new.toml shop.toml",
    ] {
        terminal.type_in(line);
    }
    fs::remove_file(terminal.path("rules/wrong.toml")).expect("removed");
    succeed(headwater(&["run", "shop.toml"]).current_dir(terminal.path("")));
    let alerts = fs::read_to_string(terminal.path("results/alerts.ndjson")).expect("alerts");
    let whole = around.replace("rules = [\"rules/*.toml\"]\n", "").replace("results", "whole") + large + &two;
    fs::write(terminal.path("whole.toml"), whole).expect("written");
    succeed(headwater(&["run", "whole.toml"]).current_dir(terminal.path("")));
    let of_whole = fs::read_to_string(terminal.path("whole/alerts.ndjson")).expect("alerts");
    let rules = |text: &str| -> Vec<_> { text.lines().map(|line| line.contains("\"two\"")).collect() };
    assert!(rules(&alerts).contains(&true), "{alerts}");
    assert_eq!(rules(&alerts).len(), rules(&of_whole).len());
    terminal.compare("rule_files");
}
