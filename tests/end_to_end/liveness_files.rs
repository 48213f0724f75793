//! Determinism of files: epochs are counts of records, so the same files give byte-identical results in every run, with
//! any number of workers, after kills, and with any memory limit; and a fast clock makes no other record late.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{Random, headwater, succeed};
use crate::crash::{kill_when, query_number, rows};
use crate::crash_points::crash_at;

/// 2023-11-14T22:00:00Z.
const T: i64 = 1_699_999_200_000;

const SECOND: i64 = 1000;
const HOUR: i64 = 3600 * SECOND;

/// A set of files, and pipelines that read them.
struct Backfill {
    dir: tempfile::TempDir,
    files: Vec<String>,
}

fn line(text: &mut String, id: &str, user: &str, time: i64) {
    writeln!(
        text,
        r#"{{"event_id":"{id}","event_type":"transaction","user_id":"{user}","event_time":{time},"amount":1}}"#
    )
    .expect("written to a string");
}

impl Backfill {
    fn new(files: &[String]) -> Backfill {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |(n, text): (usize, &String)| {
            let path = dir.path().join(format!("{n}.ndjson"));
            fs::write(&path, text).expect("written");
            path.display().to_string()
        };
        let files = files.iter().enumerate().map(write).collect();
        Backfill { dir, files }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the command for a run into a database of this name, with further limits and sections, in which DATABASE
    /// stands for its path. The run commits a few epochs at a time, so that it can be killed before it ends.
    fn command(&self, name: &str, workers: &str, sections: &str) -> Command {
        let (config, database) = (self.path(&format!("{name}.toml")), self.path(name).display().to_string());
        let text = format!(
            "pipeline = \"backfill\"\n[source]\nkind = \"file\"\npaths = {:?}\nepoch_records = 100\n\
             [sinks.sqlite]\npath = {database:?}\ncommit_interval = \"20ms\"\n\
             [limits]\nepochs_in_flight = 4\n{}",
            self.files,
            sections.replace("DATABASE", &database)
        );
        fs::write(&config, text).expect("written");
        headwater(&["run", config.to_str().expect("UTF-8"), "-w", workers, "--bounded"])
    }

    /// Completes such a run and returns every row that it has stored.
    fn rows(&self, name: &str, workers: &str, sections: &str) -> Vec<String> {
        succeed(&mut self.command(name, workers, sections));
        rows(&self.path(name))
    }

    /// Returns every row of a run with a ledger and checkpoints that is killed several times and restarted with another
    /// number of workers.
    fn rows_after_kills(&self, name: &str, sections: &str) -> Vec<String> {
        let sections = format!(
            "{sections}[ledger]\nkind = \"sqlite\"\npath = \"DATABASE.ledger\"\n[checkpoint]\ninterval = \"1s\"\n\
             [state]\npath = \"DATABASE.state\"\n"
        );
        crash_at(self.command(name, "2", &sections), "sink.commit.after", 6);
        let through = || query_number(&self.path(name), "SELECT max(through) FROM headwater_progress");
        for workers in ["1", "3"] {
            let before = through();
            assert!(before > 0, "nothing was committed before the kill");
            kill_when(&mut self.command(name, workers, &sections), || through() > before, Duration::ZERO);
        }
        self.rows(name, "2", &sections)
    }
}

/// Returns the number of rows by table.
fn counts(rows: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for row in rows {
        *counts.entry(row.split(' ').next().unwrap_or_default()).or_default() += 1;
    }
    counts
}

fn windows(size: &str) -> String {
    format!("[[windows]]\nname = \"w\"\nkind = \"tumbling\"\nsize = \"{size}\"\n")
}

#[test]
fn a_fast_clock_in_a_file_makes_no_record_late() {
    let mut text = String::new();
    for n in 0..4000 {
        if n == 2047 {
            line(&mut text, "fast", "fastclock", T + n * 10 * SECOND + 48 * HOUR);
        }
        line(&mut text, &format!("h{n}"), &format!("u{}", n % 10), T + n * 10 * SECOND);
    }
    let backfill = Backfill::new(&[text]);
    let stored = backfill.rows("results.db", "1", &windows("1h"));
    let counts = counts(&stored);
    assert_eq!((counts.get("events"), counts.get("dead_letters")), (Some(&4001), None));
    assert_eq!(counts.get("window_aggregates"), Some(&(10 * 12 + 1)), "4000 events take 11.1 hours");
}

/// Returns lines of which 3% are 1 to 30 s out of order, where 5 s are allowed.
fn disordered_lines(file: i64, random: &mut Random) -> String {
    let mut text = String::new();
    for n in 0..3000 {
        let behind = if random.below(100) < 3 { 1000 + random.below(29_000) as i64 } else { 0 };
        line(&mut text, &format!("{file}-{n}"), &format!("u{}", n % 20), T + 200 * n + 70 * file - behind);
    }
    text
}

#[test]
fn disordered_files_give_the_same_rows_with_every_run() {
    let mut random = Random(7);
    let backfill = Backfill::new(&[disordered_lines(0, &mut random), disordered_lines(1, &mut random)]);
    let sections = windows("1s");
    let once = backfill.rows("once.db", "1", &sections);
    let found = counts(&once);
    let late =
        query_number(&backfill.path("once.db"), "SELECT count(*) FROM dead_letters WHERE reason = 'late'");
    assert!(late > 20, "{found:?}");
    assert_eq!(found["events"] + found["dead_letters"], 6000);
    for workers in ["1", "1", "2", "2", "2", "3", "3", "3"] {
        let name = "again.db";
        _ = fs::remove_file(backfill.path(name));
        assert_same_rows(&once, &backfill.rows(name, workers, &sections), workers);
    }
    for name in ["killed.db", "killed-again.db"] {
        assert_same_rows(&once, &backfill.rows_after_kills(name, &sections), name);
    }
}

/// Checks that both sides have the same rows, and otherwise panics with the first row that differs.
fn assert_same_rows(expected: &[String], actual: &[String], what: &str) {
    let differ = expected.iter().zip(actual).find(|(expected, actual)| expected != actual);
    assert_eq!(differ, None, "{what}");
    assert_eq!(expected.len(), actual.len(), "{what}");
}

/// Returns the stored events, windows and dead letters without their epochs.
fn without_epochs(database: &Path) -> Vec<String> {
    let connection = rusqlite::Connection::open(database).expect("a database");
    let mut statement = connection
        .prepare(
            "SELECT concat_ws(' ', partition, \"offset\", event_id, key_events, since_previous_ms) FROM events
             UNION ALL SELECT concat_ws(' ', \"key\", start, count, amount_sum, final) FROM window_aggregates
             UNION ALL SELECT concat_ws(' ', partition, \"offset\", reason) FROM dead_letters ORDER BY 1",
        )
        .expect("a query");
    let rows = statement.query_map([], |row| row.get(0)).expect("answered");
    rows.map(|row| row.expect("text")).collect()
}

#[test]
fn files_far_apart_give_the_same_rows_with_little_memory() {
    let file = |file: i64| {
        let mut text = String::new();
        (0..6000).for_each(|n| {
            let time = T + file * 10 * HOUR + n * SECOND;
            line(&mut text, &format!("{file}-{n}"), &format!("u{file}-{}", n % 20), time);
        });
        text
    };
    let backfill = Backfill::new(&[file(0), file(1)]);
    let unlimited = windows("1m");
    let limited = format!("unfinal_bytes = \"1MiB\"\n{unlimited}");
    let once = backfill.rows("once.db", "1", &unlimited);
    assert_eq!(counts(&once)["events"], 12_000);
    assert_eq!(counts(&once).get("dead_letters"), None);
    assert_same_rows(&once, &backfill.rows("twice.db", "2", &unlimited), "two workers");
    let little = backfill.rows("little.db", "1", &limited);
    assert_same_rows(
        &little,
        &backfill.rows("little-twice.db", "2", &limited),
        "two workers with little memory",
    );
    assert_same_rows(&little, &backfill.rows_after_kills("killed.db", &limited), "killed with little memory");
    let (once, little) = (backfill.path("once.db"), backfill.path("little.db"));
    assert_same_rows(&without_epochs(&once), &without_epochs(&little), "little memory");
    let last_epoch =
        |database: &Path| query_number(database, "SELECT max(epoch) FROM events WHERE partition = 1");
    let last = [last_epoch(&once), last_epoch(&little)];
    assert!(last[1] > last[0] + 10, "the file that is ahead did not wait: {last:?}");
}
