//! Embedding: the programs in `examples/` run, and print what their first comment says; and what they leave out.
//!
//! `cargo test` builds the examples. If it runs this test only, `cargo build --examples` must come first.

use std::path::{Path, PathBuf};
use std::process::Command;

use headwater::Pipeline;
use headwater::config::OutputKind;
use headwater::sinks::memory::Memory;

/// Returns the names of all examples.
fn names() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let programs = files.filter(|file| file.extension().is_some_and(|extension| extension == "rs"));
    let mut names: Vec<_> =
        programs.filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    names
}

/// Returns the executable of an example: this test's is target/PROFILE/deps/examples-HASH.
fn executable(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the path of this test");
    let profile = own.ancestors().nth(2).expect("a folder above deps");
    let example = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(example.exists(), "{} is missing: run `cargo build --examples` first", example.display());
    example
}

/// Returns the output that the first comment of an example announces: its text block.
fn announced(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(format!("{name}.rs"));
    let source = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let comment = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim_start);
    assert!(source.contains(&format!("`cargo run --example {name}`")), "{name} says how to run it");
    let block = comment.skip_while(|line| *line != "```text").skip(1).take_while(|line| *line != "```");
    block.map(|line| format!("{line}\n")).collect()
}

#[test]
fn every_example_prints_what_its_comment_says() {
    let names = names();
    assert!(names.len() >= 3, "{names:?}");
    for name in names {
        let output = Command::new(executable(&name)).output().expect("started");
        let (printed, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name} failed:\n{printed}{errors}");
        assert_eq!(printed, announced(&name), "{name}");
    }
}

/// The README begins with a rule of one's own over events of one's own.
#[test]
fn the_payments_of_the_readme_raise_an_alert() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: &str| std::fs::read_to_string(root.join(path)).expect("readable");
    let toml = text("examples/payments/payments.toml");
    assert!(
        text("README.md").contains(&format!("```toml\n{toml}```")),
        "the README has another configuration"
    );
    assert!(toml.lines().count() <= 15);

    let dir = tempfile::tempdir().expect("a directory");
    for file in ["payments.toml", "payments.ndjson"] {
        std::fs::copy(root.join("examples/payments").join(file), dir.path().join(file)).expect("copied");
    }
    let headwater = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
        let output = command.args(arguments).current_dir(dir.path()).output().expect("started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let sample = headwater(&["check", "payments.toml", "--sample", "3"]);
    assert!(sample.ends_with("3 records: 3 events, 0 refused\n"), "{sample}");
    headwater(&["run", "payments.toml"]);
    let alerts = std::fs::read_to_string(dir.path().join("results/alerts.ndjson")).expect("alerts");
    let alerts: Vec<serde_json::Value> =
        alerts.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let [alert] = &alerts[..] else { panic!("{alerts:?}") };
    assert_eq!((&alert["key_kind"], &alert["key"]), (&"ip".into(), &"203.0.113.9".into()));
    assert_eq!(alert["details"], serde_json::json!({ "count": 20, "within_ms": 300_000 }));
}

const ENDLESS: &str = "pipeline = 'endless'\nsource = { kind = 'generator' }";

#[test]
fn a_stopped_run_commits_what_it_has_read() {
    let memory = Memory::default();
    let pipeline = Pipeline::from_toml(ENDLESS).expect("valid");
    let pipeline = pipeline.workers(2).message_sink(memory.sink("memory"), &[OutputKind::Events]);
    let (stopper, metrics) = (pipeline.stopper(), pipeline.metrics());
    let run = std::thread::spawn(move || pipeline.run());
    while memory.commits() == 0 {
        assert!(!run.is_finished(), "the generator has no end");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    stopper.stop();
    let outcome = run.join().expect("no panic").expect("a stop is no failure");
    assert_eq!(outcome, headwater::Outcome::Done);
    let committed: usize = memory.committed().iter().map(|(_, changes)| changes.messages.len()).sum();
    let rejected = metrics.rejected_count("late") + metrics.rejected_count("duplicate");
    assert_eq!(committed as u64, metrics.event_count() - rejected);
}

#[test]
fn a_program_goes_on_with_more_workers() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let configuration = format!(
        "pipeline = 'rescaled'\nsource = {{ kind = 'generator', records = 200000 }}\n\
         ledger = {{ kind = 'sqlite', path = {:?} }}\ncheckpoint = {{}}\nstate = {{ kind = 'fjall', path = {:?} }}\n\
         sinks = {{ sqlite = {{ path = {:?} }} }}",
        path("ledger.db"),
        path("state"),
        path("results.db")
    );
    let run = |workers| {
        let pipeline = Pipeline::from_toml(&configuration).expect("valid").workers(workers);
        let (stopper, metrics) = (pipeline.stopper(), pipeline.metrics());
        let run = std::thread::spawn(move || pipeline.run().expect("no failure"));
        (run, stopper, metrics)
    };
    let (first, stopper, metrics) = run(1);
    while metrics.event_count() < 1_000 {
        assert!(!first.is_finished(), "there are many more");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    stopper.rescale();
    assert_eq!(first.join().expect("no panic"), headwater::Outcome::Rescale);
    let read = metrics.event_count();
    let (second, _, metrics) = run(3);
    assert_eq!(second.join().expect("no panic"), headwater::Outcome::Done);
    let (all, later) = (read + metrics.event_count(), metrics.event_count());
    assert!(later > 0 && (190_000..=200_000).contains(&all), "{read} and {later} events");
}

#[test]
fn windows_are_refused_as_messages() {
    let pipeline = Pipeline::from_toml(ENDLESS).expect("valid");
    let sink = Memory::default().sink("memory");
    let error = pipeline.message_sink(sink, &[OutputKind::Windows]).run().expect_err("a refusal");
    assert!(error.is_refusal() && error.to_string().contains("row_sink"), "{error}");
}

#[test]
fn errors_of_a_configuration_name_line_and_key() {
    let errors = Pipeline::from_toml("pipeline = 'p'\nsource = { kind = 'tape' }").err().expect("an error");
    assert!(errors.to_string().contains("line 2: source.kind"), "{errors}");
}
