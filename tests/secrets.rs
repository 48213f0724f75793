//! Tests that no output of the program contains a secret: text, JSON logs, errors, `Debug`. They cover every form and
//! every place in which a configuration can contain one.

use std::fs;
use std::path::Path;
use std::process::Command;

use headwater::config::Config;

/// The texts that no output may contain: the secret, and the halves of a secret with a special character in the middle.
const CANARIES: [&str; 3] = ["hunter2", "hunt-er", "er-hunt"];

const GENERATOR: &str = "pipeline = \"p\"\n[log]\nformat = \"json\"\nlevel = \"trace\"\n\
                         [source]\nkind = \"generator\"\nrecords = 10\n";
const SQLITE: &str = "[sinks.sqlite]\npath = \"out.db\"\n";

/// Addresses of PostgreSQL that contain the secret. No server listens there.
const POSTGRES: &[&str] = &[
    "postgres://me:hunter2@127.0.0.1:1/x",
    "postgres://me:hunt-er%2Fer-hunt@127.0.0.1:1/x",
    "postgres://me:hunt-er/er-hunt@127.0.0.1:1/x",
    "postgres://me:hunt-er@er-hunt@127.0.0.1:1/x",
    "postgres://me:hunt-er?er-hunt@127.0.0.1:1/x",
    "postgres://me:hunt-er#er-hunt@127.0.0.1:1/x",
    "postgres://me:hunter2/x",
    "postgres://127.0.0.1:1/x?user=me&password=hunter2",
    "postgres://127.0.0.1:1/x?user=me&pasword=hunter2",
    "postgres://127.0.0.1:1/x?password=hunt-er&er-hunt",
    "postgres://127.0.0.1:1/x?password=hunt-er@er-hunt",
    "host=127.0.0.1 port=1 user=me password=hunter2 dbname=x",
    "host=127.0.0.1 port=1 user=me password='hunt-er er-hunt' dbname=x",
    "host=127.0.0.1 port=1 user=me password = hunter2",
    "host=127.0.0.1 port=1 user=me password='hunter2",
    "host=127.0.0.1 port=1 user=me password=hunt-er er-hunt",
    "host=127.0.0.1 port=1 user=me pasword=hunter2",
    "me:hunter2@127.0.0.1",
    "hunter2",
];

const REDIS: &[&str] = &[
    "redis://:hunter2@127.0.0.1:1/0",
    "redis://me:hunt-er%2Fer-hunt@127.0.0.1:1/0",
    "redis://:hunt-er/er-hunt@127.0.0.1:1/0",
    "redis://:hunt-er@er-hunt@127.0.0.1:1/0",
    "redis://:hunt-er#er-hunt@127.0.0.1:1/0",
    "redis://hunter2@127.0.0.1:1/0",
    "redis://127.0.0.1:1/0?password=hunter2",
    "redis://:hunter2/0",
    "hunter2@127.0.0.1:1",
];

const OPTIONS: &[&str] = &[
    "\"sasl.password\" = \"hunter2\"",
    "sasl.password = \"hunter2\"",
    "\"sasl.pasword\" = \"hunter2\"",
    "\"sasl.pasword\" = [\"hunter2\"]",
    "\"sasl.mechanisms\" = \"PLAIN\"\n\"sasl.username\" = \"hunter2\"",
    "\"ssl.key.pem\" = \"hunter2\"",
    "\"sasl.oauthbearer.config\" = \"hunter2\"",
    "\"no.such.thing\" = \"hunter2\"",
    "\"group.id\" = \"hunter2\"",
];

/// Keys of `[state]` in an object store that contain the secret.
const OBJECT_STORES: &[&str] = &[
    "url = \"s3://127.0.0.1/a\"\nendpoint = \"http://127.0.0.1:1\"\nallow_http = true\naccess_key_id = \"a\"\nsecret_access_key = \"hunter2\"",
    "url = \"s3://a:hunter2@b/c\"",
    "url = \"s3://b/c?secret=hunter2\"",
    "url = \"s3://b/hunt-er#er-hunt\"",
    "url = [\"hunter2\"]",
    "url = \"s3://b/c\"\nendpoint = \"https://a:hunter2@b:1\"",
    "url = \"s3://b/c\"\nsecret_access_key = \"hunter2\"",
    "url = \"s3://b/c\"\naccess_key_id = \"a\"\nsecret_access_key = [\"hunter2\"]",
    "url = \"s3://b/c\"\naccount_key = \"hunter2\"",
    "url = \"az://b/c\"\naccount = \"a\"\naccount_key = \"hunter2\"",
];

/// Returns complete configurations, each with the secret in a different place.
fn configurations() -> Vec<String> {
    let ledger = "[ledger]\nkind = \"sqlite\"\npath = \"ledger.db\"\n[checkpoint]\n";
    let kafka = "pipeline = \"p\"\n[source]\nkind = \"kafka\"\nbrokers = \"127.0.0.1:1\"\ntopic = \"t\"\n";
    let mut configurations = Vec::new();
    for address in POSTGRES {
        configurations.push(format!("{GENERATOR}[sinks.postgres]\nurl = {address:?}\n"));
        configurations.push(format!("{GENERATOR}{SQLITE}[ledger]\nkind = \"postgres\"\nurl = {address:?}\n"));
        configurations.push(format!("{GENERATOR}[sinks]\npostgres = {address:?}\n"));
        if *address != "hunter2" {
            configurations.push(format!("{GENERATOR}{SQLITE}[ledger]\nkind = {address:?}\n"));
        }
        configurations.push(format!("{GENERATOR}[sinks.postgres]\nurl = {address}\n"));
        configurations.push(format!("{GENERATOR}[sinks.postgres]\nurl = [{address:?}]\n"));
    }
    for address in REDIS {
        configurations
            .push(format!("{GENERATOR}{SQLITE}{ledger}[state]\nkind = \"redis\"\nurl = {address:?}\n"));
    }
    for keys in OBJECT_STORES {
        configurations.push(format!("{GENERATOR}{SQLITE}{ledger}[state]\nkind = \"object_store\"\n{keys}\n"));
    }
    let of_cluster = "[cluster]\nsecret = \"hunter2 of a cluster\"\n";
    configurations.push(format!("{GENERATOR}{SQLITE}{of_cluster}"));
    for option in OPTIONS {
        configurations.push(format!("{kafka}[source.options]\n{option}\n{SQLITE}"));
        configurations.push(format!(
            "{GENERATOR}[sinks.kafka]\nbrokers = \"127.0.0.1:1\"\n[sinks.kafka.options]\n{option}\n"
        ));
    }
    for key in ["time.epoch", "source.seed", "sinks.postgres.url"] {
        let (section, key) = key.rsplit_once('.').expect("section.key");
        let text = format!("[{section}]\n{key} = \"${{CANARY}}\"\n");
        configurations.push(match section {
            "source" => format!("pipeline = \"p\"\n{text}kind = \"generator\"\n{SQLITE}"),
            _ => format!("{GENERATOR}{SQLITE}{text}"),
        });
    }
    configurations
}

/// Runs a command; returns its standard output and standard error, and its exit code.
fn run(dir: &Path, arguments: &[&str]) -> (String, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
    command.args(arguments).current_dir(dir).env("CANARY", "hunter2").env("HEADWATER_LOG", "trace");
    let output = command.output().expect("the command starts");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (text, output.status.code())
}

fn assert_no_secret(output: &str, context: &str) {
    for canary in CANARIES {
        assert!(!output.contains(canary), "{context}\n{output}");
    }
}

#[test]
fn check_and_debug_print_no_secret() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut valid = 0;
    for text in configurations() {
        fs::write(dir.path().join("c.toml"), &text).expect("written");
        let (output, code) = run(dir.path(), &["check", "c.toml"]);
        assert_no_secret(&output, &format!("check: {text}"));
        assert!(matches!(code, Some(0 | 2)), "{text}\n{output}");
        valid += usize::from(code == Some(0));
        let environment = [("CANARY".to_owned(), "hunter2".to_owned())].into_iter();
        assert_no_secret(&format!("{:?}", Config::parse(&text, environment)), &format!("Debug: {text}"));
    }
    assert!(valid > 20, "only {valid} configurations are valid; valid ones print more");
}

#[test]
fn failing_commands_print_no_secret() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ledger = "[ledger]\nkind = \"sqlite\"\npath = \"ledger.db\"\n[checkpoint]\n";
    let kafka = "pipeline = \"p\"\n[source]\nkind = \"kafka\"\nbrokers = \"127.0.0.1:1\"\n[source.options]\n";
    for (text, command) in [
        (format!("{GENERATOR}[sinks.postgres]\nurl = {:?}\n", POSTGRES[2]), &["run", "c.toml"][..]),
        (format!("{GENERATOR}[sinks.postgres]\nurl = {:?}\n", POSTGRES[11]), &["run", "c.toml"]),
        (
            format!("{GENERATOR}[sinks.postgres]\nurl = {:?}\n[ledger]\nkind = \"postgres\"\n", POSTGRES[7]),
            &["status", "c.toml"],
        ),
        (
            format!("{GENERATOR}{SQLITE}{ledger}[state]\nkind = \"redis\"\nurl = {:?}\n", REDIS[1]),
            &["run", "c.toml"],
        ),
        (
            format!("{GENERATOR}{SQLITE}{ledger}[state]\nkind = \"object_store\"\n{}\n", OBJECT_STORES[0]),
            &["run", "c.toml"],
        ),
        (format!("{kafka}{}\n{SQLITE}", OPTIONS[0]), &["topics", "create", "c.toml"]),
        (format!("{kafka}{}\n{SQLITE}", OPTIONS[2]), &["run", "c.toml"]),
    ] {
        fs::write(dir.path().join("c.toml"), &text).expect("written");
        let (output, code) = run(dir.path(), command);
        assert_ne!(code, Some(0), "{text}\n{output}");
        assert_no_secret(&output, &format!("{command:?}: {text}"));
    }
}

#[test]
fn secrets_can_be_in_files_that_errors_name() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("secret");
    fs::write(&file, "postgres://me:hunter2@127.0.0.1:1/x\n").expect("written");
    let text = format!("{GENERATOR}[sinks.postgres]\nurl_file = {file:?}\n");
    let Ok(config) = Config::parse(&text, std::iter::empty()) else { panic!("{text}") };
    let url = config.sinks.postgres().next().expect("a sink").url.clone();
    assert_eq!(url.expose(), "postgres://me:hunter2@127.0.0.1:1/x", "the line end is ignored");
    fs::write(&file, "hun%ter2\r\n").expect("written");
    let text = format!("{GENERATOR}[sinks.postgres]\nurl = \"host=h user=me\"\npassword_file = {file:?}\n");
    let config = Config::parse(&text, std::iter::empty()).expect("valid");
    let url = &config.sinks.postgres().next().expect("a sink").url;
    assert_eq!(url.expose(), "host=h user=me password='hun%ter2'");
    let option = format!("{GENERATOR}[sinks.kafka]\n[sinks.kafka.options]\n\"client.id_file\" = {file:?}\n");
    let config = Config::parse(&option, std::iter::empty()).expect("valid");
    let kafka = config.sinks.kafka().next().expect("a sink");
    assert_eq!(kafka.options["client.id"].expose(), "hun%ter2");
    let missing = format!("{GENERATOR}[sinks.postgres]\nurl_file = \"/no/such/file\"\n{SQLITE}");
    let errors = Config::parse(&missing, std::iter::empty()).expect_err("no file").to_string();
    assert!(
        errors.starts_with("line 9: sinks.postgres.url_file: cannot read the file /no/such/file: "),
        "{errors}"
    );
    fs::write(&file, "redis://127.0.0.1/no-number\n").expect("written");
    let wrong = format!("{GENERATOR}{SQLITE}[state]\nkind = \"redis\"\nurl_file = {file:?}\n");
    let errors = Config::parse(&wrong, std::iter::empty()).expect_err("no database").to_string();
    assert!(errors.starts_with("line 12: state.url_file: expected an address"), "{errors}");
}
