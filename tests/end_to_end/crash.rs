//! Killed at any moment, started again: every result exactly once. With a ledger a start does again what was bound and
//! goes on; the oracle says what must have come of it, epoch by epoch, from the bindings of the last start, which has all
//! of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Expected, FLOW, Random, gather, hard, headwater, succeed, write_files};
use crate::live::{Running, wait_for};

/// A run of files with a ledger, in a directory of its own.
pub struct Files {
    dir: tempfile::TempDir,
    names: Vec<String>,
}

impl Files {
    /// Generated ones, and a configuration of the usual flow.
    pub fn new(seed: u64, records: u64) -> Files {
        let dir = tempfile::tempdir().expect("a directory");
        let files = write_files(dir.path(), &hard(seed), records);
        let names: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
        let files = Files { dir, names };
        files.configure(FLOW);
        files
    }

    /// Every line of the files becomes another, given its number within its file.
    fn rewrite(&self, line: impl Fn(usize, &str) -> String) {
        for name in &self.names {
            // Of what is malformed some is no UTF-8: it is none afterwards either.
            let bytes = fs::read(name).expect("readable");
            let lines = bytes.split(|&byte| byte == b'\n').enumerate();
            let rewritten = lines.map(|(n, bytes)| match std::str::from_utf8(bytes) {
                Ok(text) => line(n, text).into_bytes(),
                Err(_) => bytes.to_vec(),
            });
            fs::write(name, rewritten.collect::<Vec<_>>().join(&b'\n')).expect("written");
        }
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the configuration. The flow may end with further sections.
    pub fn configure(&self, flow: &str) {
        self.configure_limits("", flow);
    }

    /// The same, with further limits.
    pub fn configure_limits(&self, limits: &str, flow: &str) {
        let place = |name: &str| self.path(name).display().to_string();
        let text = format!(
            "pipeline = \"crash\"\n[source]\nkind = \"file\"\npaths = {:?}\n[sinks.sqlite]\npath = {:?}\n\
             commit_interval = \"20ms\"\n[limits]\nbytes_in_flight = \"1MiB\"\n{limits}[ledger]\nkind = \"sqlite\"\npath = {:?}\n{flow}",
            self.names,
            place("results.db"),
            place("ledger.db"),
        );
        fs::write(self.path("run.toml"), text).expect("written");
    }

    /// The run, which ends with the files.
    pub fn command(&self, workers: &str) -> Command {
        gather(self.dir.path(), self.frontiers().1);
        let (config, bindings) = (self.path("run.toml"), self.path("bindings.ndjson"));
        let mut command =
            headwater(&["run", config.to_str().expect("UTF-8"), "-w", workers, "--until-end", "--bindings"]);
        command.arg(bindings);
        command
    }

    /// Holds the results against the oracle's.
    pub fn judge(&self) {
        self.expected(&self.path("run.toml")).judge_sqlite(&self.path("results.db"));
    }

    /// What the oracle says of a configuration over all that was bound.
    pub fn expected(&self, config: &Path) -> Expected {
        gather(self.dir.path(), i64::MAX);
        let mut input = vec!["--files"];
        input.extend(self.names.iter().map(String::as_str));
        Expected::of(self.dir.path(), config, &input, &self.path("history.ndjson"))
    }

    /// The epochs through which the sink has results, and the ledger records; 0 for nothing.
    pub fn frontiers(&self) -> (i64, i64) {
        (
            newest(&self.path("results.db"), "SELECT max(through) FROM headwater_progress"),
            newest(
                &self.path("ledger.db"),
                "SELECT max(newest) FROM (SELECT max(through) AS newest FROM headwater_bindings
                 UNION SELECT max(epoch) FROM headwater_manifests)",
            ),
        )
    }

    /// The same, of this run.
    pub fn refused(&self, why: &str) {
        refused(&mut self.command("1"), why);
    }

    /// Through which epoch the ledger has been pruned; 0 for not at all.
    pub fn pruned(&self) -> i64 {
        newest(&self.path("ledger.db"), "SELECT max(through) FROM headwater_pruned")
    }
}

/// A start is refused, and says why.
pub fn refused(command: &mut Command, why: &str) {
    let output = command.output().expect("started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(why), "{said}");
}

/// Every row of every table, as text, sorted.
pub fn rows(database: &Path) -> Vec<String> {
    let connection = rusqlite::Connection::open(database).expect("a database");
    let mut all = Vec::new();
    for table in ["events", "alerts", "window_aggregates", "dead_letters"] {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table}")).expect("a table");
        let columns = statement.column_count();
        let mut rows = statement.query([]).expect("rows");
        while let Some(row) = rows.next().expect("a row") {
            let cells: Vec<_> = (0..columns).map(|at| format!("{:?}", row.get_ref_unwrap(at))).collect();
            all.push(format!("{table} {}", cells.join(" ")));
        }
    }
    all.sort_unstable();
    all
}

/// The number that a query gives; 0 for none, also before there is a table.
pub fn newest(database: &Path, query: &str) -> i64 {
    let connection = rusqlite::Connection::open(database).expect("a database");
    connection.query_row(query, [], |row| row.get::<_, Option<i64>>(0)).ok().flatten().unwrap_or(0)
}

/// Starts a command and kills it, as `kill -9` does, so long after `due` was true; says whether it was still running.
pub fn kill_when(command: &mut Command, mut due: impl FnMut() -> bool, after: Duration) -> bool {
    let mut child: Child = command.stderr(Stdio::null()).spawn().expect("started");
    let begun = Instant::now();
    let mut since = None;
    while since.is_none_or(|since: Instant| since.elapsed() < after) {
        if child.try_wait().expect("asked").is_some() {
            return false;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "it neither ends nor comes to where it is to be killed"
        );
        if since.is_none() && due() {
            since = Some(Instant::now());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("killed");
    child.wait().expect("gone");
    true
}

/// What was bound once gives the same rows, each in the same epoch, however many workers do it again.
#[test]
fn recorded_epochs_done_again_with_two_and_with_three_workers_are_the_same_to_the_byte() {
    let files = Files::new(61, 20_000);
    succeed(&mut files.command("1"));
    files.judge();
    let once = rows(&files.path("results.db"));
    assert!(once.len() > 20_000, "{} rows", once.len());
    for workers in ["2", "3"] {
        for suffix in ["", "-wal", "-shm"] {
            _ = fs::remove_file(files.path(&format!("results.db{suffix}")));
        }
        succeed(files.command(workers).arg("--accept-duplicates"));
        let again = rows(&files.path("results.db"));
        let differs = once.iter().zip(&again).find(|(once, again)| once != again);
        assert_eq!((differs, again.len()), (None, once.len()), "{workers} workers");
    }
}

/// Kills a run ten times, at its start, while it does again what was done, and further on; at the end every result is
/// there exactly once.
pub fn kill_ten_times(files: &Files) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut halfway = 0;
    for attempt in 0..10_u64 {
        let delay = Duration::from_millis(random.below(250));
        let workers = ["1", "2", "3"][attempt as usize % 3];
        let before = files.frontiers();
        // Now while it starts or does again what was done, now once it has gone further than before.
        let further = attempt % 2 == 1;
        if !kill_when(&mut files.command(workers), || !further || files.frontiers().0 > before.0, delay) {
            break;
        }
        let (sink, ledger) = files.frontiers();
        assert!(sink <= ledger, "the sink has epoch {sink}, and only {ledger} is durable");
        assert!(sink >= before.0 && ledger >= before.1, "frontiers never go back");
        halfway += u32::from(further);
    }
    assert!(halfway > 0, "no kill fell into the middle of a run");
    succeed(&mut files.command("2"));
    files.judge();
    // Once more from the end: nothing changes.
    succeed(&mut files.command("1"));
    files.judge();
}

#[test]
fn killed_ten_times_every_result_is_there_exactly_once() {
    kill_ten_times(&Files::new(11, 90_000));
}

/// Clocks that are a day ahead or behind, and half of all events at whole seconds, so that many keys have several at once.
#[test]
fn clocks_that_are_off_by_a_day_and_ties_change_nothing_about_it() {
    let files = Files::new(14, 60_000);
    files.rewrite(|n, line| {
        let skewed = match n % 400 {
            // A day ahead: nothing else is late for it, since the next line does not confirm the jump.
            0 if n > 8_000 => line.replace("\"2026-01-01T", "\"2026-01-02T"),
            200 => line.replace("\"2026-01-01T", "\"2025-12-31T"),
            _ => line.to_owned(),
        };
        match skewed.split_once("Z\"") {
            Some((before, after))
                if n % 2 == 0 && before.len() > 4 && before.is_char_boundary(before.len() - 3) =>
            {
                format!("{}000Z\"{after}", &before[..before.len() - 3])
            }
            _ => skewed,
        }
    });
    kill_ten_times(&files);
    let results = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    let count = |sql: &str| results.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a number");
    let late = count("SELECT count(*) FROM dead_letters WHERE reason = 'late'");
    let tied =
        count("SELECT count(*) FROM (SELECT 1 FROM events GROUP BY \"key\", event_time HAVING count(*) > 1)");
    assert!((100..1_000).contains(&late) && tied > 100, "{late} late, {tied} ties");
}

/// Whatever is complete, nothing is shown before it can be done again.
#[test]
fn no_sink_goes_ahead_of_a_ledger_that_cannot_write() {
    let files = Files::new(14, 150_000);
    let mut run = Running::start(files.command("2"), files.path("run.log"));
    wait_for("results", || (files.frontiers().0 > 0).then_some(()));
    let ledger = rusqlite::Connection::open(files.path("ledger.db")).expect("a database");
    ledger.busy_timeout(Duration::from_secs(5)).expect("set");
    ledger.execute_batch("BEGIN IMMEDIATE").expect("the write lock");
    // Time for many commits, and less than the ledger waits for the lock.
    std::thread::sleep(Duration::from_secs(1));
    let (sink, recorded) = files.frontiers();
    assert_eq!(run.ended(), None, "there was nothing more to do: {}", run.log());
    assert!(sink <= recorded, "the sink has epoch {sink}, and only {recorded} is durable");
    run.kill();
    drop(ledger);
    succeed(&mut files.command("1"));
    files.judge();
}

/// As on a full disk: no file may grow beyond so many KiB.
#[test]
fn a_run_that_cannot_write_any_more_fails_with_a_reason_and_goes_on_when_it_can() {
    let files = Files::new(13, 30_000);
    for kib in [64, 700] {
        let run = files.command("2");
        let arguments: Vec<_> = run.get_args().collect();
        let mut limited = Command::new("sh");
        // The signal that comes with it is ignored, as it is on a full disk: the write fails.
        limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", kib * 2)).arg("sh");
        let output = limited.arg(run.get_program()).args(arguments).output().expect("started");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let last = said.lines().rfind(|line| line.starts_with("headwater: ")).expect("a reason");
        assert!(last.contains("disk") || last.contains("full") || last.contains("large"), "{last}");
    }
    succeed(&mut files.command("2"));
    files.judge();
}

#[test]
fn a_start_that_could_not_keep_the_promise_is_refused() {
    let files = Files::new(12, 6_000);
    succeed(&mut files.command("1"));
    let refused = |why: &str| files.refused(why);

    // What decides answers has changed.
    files.configure(&FLOW.replace("more_than = 20", "more_than = 21"));
    refused("`patterns.velocity_spike.more_than = 20`");
    files.configure(FLOW);

    // A record that was read is another one now.
    let first = fs::read(&files.names[0]).expect("readable");
    let lines = first.split_inclusive(|&byte| byte == b'\n');
    let spoilt: Vec<u8> = lines.clone().flat_map(|line| [b"!", &line[1..]].concat()).collect();
    fs::write(&files.names[0], spoilt).expect("written");
    refused("diverged from the ledger");
    // Or it is gone.
    fs::write(&files.names[0], lines.take(10).flatten().copied().collect::<Vec<_>>()).expect("written");
    refused("is missing");
    fs::write(&files.names[0], &first).expect("written");

    // The ledger is one of yesterday, or was wiped.
    let ledger = rusqlite::Connection::open(files.path("ledger.db")).expect("a database");
    ledger.execute("DELETE FROM headwater_bindings", []).expect("deleted");
    refused("restored from an older copy");
    ledger.execute("DELETE FROM headwater_ledger", []).expect("deleted");
    refused("sqlite");
}
