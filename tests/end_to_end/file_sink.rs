//! Results in the directory of a file sink: exactly once through kills and crashes, and refused where they cannot be.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use headwater_sinks::crash::POINTS;

use crate::checkpoints::{CHECKPOINT, configure};
use crate::common::{FLOW, headwater, succeed};
use crate::crash::{Files, assert_refused, kill_ten_times};
use crate::crash_points::{FILE_POINTS, crash_at};

/// Returns the lines of each file, sorted: workers append the lines of an epoch in any order. Checks that all of them
/// are committed.
fn lines(directory: &Path) -> BTreeMap<String, Vec<String>> {
    let progress = fs::read(directory.join("progress.json")).expect("readable");
    let progress: serde_json::Value = serde_json::from_slice(&progress).expect("JSON");
    let committed = progress["committed"].as_object().expect("lengths");
    assert_eq!(committed.len(), 4);
    let of_file = |(name, length): (&String, &serde_json::Value)| {
        let text = fs::read_to_string(directory.join(name)).expect("readable");
        assert_eq!(Some(text.len() as u64), length.as_u64(), "{name}");
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        assert!(!lines.is_empty(), "{name}");
        lines.sort_unstable();
        (name.clone(), lines)
    };
    committed.iter().map(of_file).collect()
}

#[test]
fn killed_runs_leave_the_lines_of_an_undisturbed_run() {
    let (killed, undisturbed) = (Files::into_directory(51, 45_000), Files::into_directory(51, 45_000));
    kill_ten_times(&killed);
    succeed(&mut undisturbed.command("1"));
    let (found, expected) = (lines(&killed.path("results")), lines(&undisturbed.path("results")));
    for (name, expected) in &expected {
        let differs = found[name].iter().zip(expected).find(|(found, expected)| found != expected);
        assert_eq!((differs, found[name].len()), (None, expected.len()), "{name}");
    }
}

#[test]
fn crashes_within_a_commit_lose_and_repeat_nothing_in_files() {
    assert!(POINTS.iter().all(|point| point.starts_with("file.") == FILE_POINTS.contains(point)));
    let files = Files::into_directory(52, 90_000);
    configure(&files, FLOW, CHECKPOINT);
    let around = ["sink.open.before", "sink.open.after", "sink.commit.before", "sink.commit.after"];
    for point in FILE_POINTS.into_iter().chain(around) {
        for nth in if point.starts_with("sink.open") { [1, 1] } else { [2, 1] } {
            let before = files.frontiers();
            crash_at(files.command("2"), point, nth);
            let after = files.frontiers();
            assert!(after.0 >= before.0 && after.1 >= before.1, "frontiers never go back: {point}");
            assert!(after.0 <= after.1, "{point}: the sink has epoch {}, the ledger {}", after.0, after.1);
        }
    }
    succeed(&mut files.command("3"));
    files.judge();
}

#[test]
fn a_directory_that_cannot_be_trusted_is_refused() {
    let files = Files::into_directory(53, 6_000);
    let config = files.path("run.toml").display().to_string();
    let (check, status) =
        (|| headwater(&["check", "--connect", &config]), || headwater(&["status", &config]));
    let printed =
        |command: &mut Command| String::from_utf8(command.output().expect("started").stdout).expect("UTF-8");
    assert!(printed(&mut check()).contains("results: can be created"));
    assert!(printed(&mut status()).contains("sink file: nothing yet"));
    assert!(!files.path("results").exists(), "neither creates anything");
    succeed(&mut files.command("1"));
    assert!(printed(&mut check()).contains("results: writable"));
    assert!(printed(&mut status()).contains("sink file: through epoch "));

    let (alerts, progress) = (files.path("results/alerts.ndjson"), files.path("results/progress.json"));
    let whole = fs::read(&alerts).expect("readable");
    fs::write(&alerts, &whole[1..]).expect("written");
    files.assert_refused("it was truncated, replaced or moved");
    fs::write(&alerts, &whole).expect("written");

    let text = fs::read(&progress).expect("readable");
    fs::write(&progress, &text[..text.len() / 2]).expect("written");
    assert_refused(
        &mut headwater(&["run", &config]),
        "move the directory away and start with `--adopt-sink file`",
    );
    assert_eq!(status().output().expect("started").status.code(), Some(3), "status and run agree");
    let failed = printed(&mut check());
    assert!(failed.contains("failed sinks.file") && failed.contains("progress.json: EOF"), "{failed}");
    fs::write(&progress, &text).expect("written");

    let hosts = files.path("hosts").display().to_string();
    fs::write(&hosts, "127.0.0.1:1\n127.0.0.1:2\n").expect("written");
    let mut cluster = headwater(&["run", &config, "-n", "2", "-p", "0", "-h", &hosts]);
    assert_refused(&mut cluster, "several processes cannot share the directory of a file sink");
    succeed(&mut files.command("1"));
    files.judge();

    // What the message says: the sink goes on in a new directory.
    fs::rename(files.path("results"), files.path("results-before")).expect("moved");
    files.assert_refused("its progress is gone");
    succeed(files.command("1").args(["--adopt-sink", "file"]));
    assert!(files.frontiers().0 > 0);
}
