//! Exactly-once results of runs that are killed at any moment and started again. With a ledger, a start replays the
//! bound epochs and continues. The oracle computes the expected results, epoch by epoch, from all bindings.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Expected, FLOW, Random, hard_settings, headwater, merge_bindings, succeed, write_files};
use crate::live::{Process, wait_for};

/// The place to which a pipeline of files writes its results.
#[derive(Clone, Copy)]
pub enum Results {
    /// The SQLite database `results.db`.
    Sqlite,
    /// The directory `results`, by the file sink.
    Directory,
}

/// A pipeline that reads files, or a topic, with a ledger, in its own directory.
pub struct Files {
    dir: tempfile::TempDir,
    names: Vec<String>,
    results: Results,
    /// The keys of the section `[source]`.
    source: String,
    /// The arguments of the oracle that name the input.
    input: Vec<String>,
    /// The script of the oracle.
    oracle: &'static str,
}

impl Files {
    /// Generates the files and writes the configuration of the standard flow, into SQLite.
    pub fn new(seed: u64, records: u64) -> Files {
        Files::into(Results::Sqlite, seed, records)
    }

    /// Generates the files and writes the configuration of the standard flow, into a directory of files.
    pub fn into_directory(seed: u64, records: u64) -> Files {
        Files::into(Results::Directory, seed, records)
    }

    fn into(results: Results, seed: u64, records: u64) -> Files {
        let dir = tempfile::tempdir().expect("a directory");
        let paths = write_files(dir.path(), &hard_settings(seed), records);
        let files = Files::of(results, dir, &paths, "", "__main__.py");
        files.configure(FLOW);
        files
    }

    /// Creates a pipeline of these files, whose results a script of the oracle judges, without a configuration.
    pub fn of(
        results: Results,
        dir: tempfile::TempDir,
        paths: &[PathBuf],
        source: &'static str,
        oracle: &'static str,
    ) -> Files {
        let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        let source = format!("kind = \"file\"\npaths = {names:?}\n{source}");
        let input = [vec!["--files".to_owned()], names.clone()].concat();
        Files { dir, names, results, source, input, oracle }
    }

    /// Creates a pipeline of a topic that is recorded in `records.ndjson`, without a configuration.
    pub fn of_topic(dir: tempfile::TempDir, brokers: &str, topic: &str, oracle: &'static str) -> Files {
        let source = format!("kind = \"kafka\"\nbrokers = {brokers:?}\ntopic = {topic:?}\n");
        let input = vec!["--records".to_owned(), dir.path().join("records.ndjson").display().to_string()];
        Files { dir, names: Vec::new(), results: Results::Directory, source, input, oracle }
    }

    /// Rewrites every line of the files; `line` receives the line's number within its file and its text.
    fn rewrite(&self, line: impl Fn(usize, &str) -> String) {
        for name in &self.names {
            // Some malformed lines are not UTF-8; they are left unchanged.
            let bytes = fs::read(name).expect("readable");
            let lines = bytes.split(|&byte| byte == b'\n').enumerate();
            let rewritten = lines.map(|(n, bytes)| match std::str::from_utf8(bytes) {
                Ok(text) => line(n, text).into_bytes(),
                Err(_) => bytes.to_vec(),
            });
            fs::write(name, rewritten.collect::<Vec<_>>().join(&b'\n')).expect("written");
        }
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the configuration. The flow may end with further sections.
    pub fn configure(&self, flow: &str) {
        self.configure_limits("", flow);
    }

    /// Writes the configuration with additional limits.
    pub fn configure_limits(&self, limits: &str, flow: &str) {
        fs::write(self.path("run.toml"), self.configuration(limits, flow)).expect("written");
    }

    /// Returns the configuration with additional limits.
    pub fn configuration(&self, limits: &str, flow: &str) -> String {
        let place = |name: &str| self.path(name).display().to_string();
        let (sink, results) = match self.results {
            Results::Sqlite => ("sqlite", place("results.db")),
            Results::Directory => ("file", place("results")),
        };
        format!(
            "pipeline = \"crash\"\n[source]\n{}[sinks.{sink}]\npath = {results:?}\n\
             commit_interval = \"20ms\"\n[limits]\nbytes_in_flight = \"1MiB\"\n{limits}[ledger]\nkind = \"sqlite\"\npath = {:?}\n{flow}",
            self.source,
            place("ledger.db"),
        )
    }

    /// Returns the command for a run that ends at the end of the files.
    pub fn command(&self, workers: &str) -> Command {
        self.command_with(workers, &["--bounded"])
    }

    /// Returns the command for a run with these arguments.
    pub fn command_with(&self, workers: &str, arguments: &[&str]) -> Command {
        merge_bindings(self.dir.path(), self.frontiers().1);
        let (config, bindings) = (self.path("run.toml"), self.path("bindings.ndjson"));
        let mut command = headwater(&["run", config.to_str().expect("UTF-8"), "-w", workers, "--bindings"]);
        command.arg(bindings).args(arguments);
        command
    }

    /// Compares the results with those of the oracle.
    pub fn judge(&self) {
        let expected = self.expected(&self.path("run.toml"));
        match self.results {
            Results::Sqlite => expected.judge_sqlite(&self.path("results.db")),
            Results::Directory => expected.judge_directory(&self.path("results")),
        }
    }

    /// Returns the results that the oracle expects for a configuration and all bindings so far.
    pub fn expected(&self, config: &Path) -> Expected {
        merge_bindings(self.dir.path(), i64::MAX);
        let input: Vec<_> = self.input.iter().map(String::as_str).collect();
        Expected::by(self.oracle, self.dir.path(), config, &input, &self.path("history.ndjson"))
    }

    /// Returns the last epochs that the sink and the ledger have stored; 0 if none.
    pub fn frontiers(&self) -> (i64, i64) {
        let through = "SELECT max(through) FROM headwater_progress";
        (
            match self.results {
                Results::Sqlite => query_number(&self.path("results.db"), through),
                Results::Directory => committed_epoch(&self.path("results")),
            },
            query_number(
                &self.path("ledger.db"),
                "SELECT max(newest) FROM (SELECT max(through) AS newest FROM headwater_bindings
                 UNION SELECT max(epoch) FROM headwater_manifests)",
            ),
        )
    }

    /// Checks that a run of this pipeline is refused with this reason.
    pub fn assert_refused(&self, reason: &str) {
        assert_refused(&mut self.command("1"), reason);
    }

    /// Returns the last epoch that the ledger has pruned; 0 if none.
    pub fn pruned_through(&self) -> i64 {
        query_number(&self.path("ledger.db"), "SELECT max(through) FROM headwater_pruned")
    }
}

/// Checks that a start is refused with exit code 3 and this reason.
pub fn assert_refused(command: &mut Command, reason: &str) {
    let output = command.output().expect("started");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains(reason), "{stderr}");
}

/// Returns every row of every table as text, sorted.
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

/// Returns the number that a query selects; 0 if there is none or the table does not exist yet.
pub fn query_number(database: &Path, query: &str) -> i64 {
    let connection = rusqlite::Connection::open(database).expect("a database");
    connection.query_row(query, [], |row| row.get::<_, Option<i64>>(0)).ok().flatten().unwrap_or(0)
}

/// Returns the last epoch that is committed in the directory of a file sink; 0 if there is none.
fn committed_epoch(directory: &Path) -> i64 {
    let Ok(text) = fs::read(directory.join("progress.json")) else { return 0 };
    let progress: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let writers = progress["progress"].as_array().expect("a list");
    writers.iter().filter_map(|writer| writer["epoch"].as_i64()).max().unwrap_or(0)
}

/// Starts a command and kills it, like `kill -9`, a time `after` `due` became true. Returns false if the command ended
/// before.
pub fn kill_when(command: &mut Command, mut due: impl FnMut() -> bool, after: Duration) -> bool {
    let mut child: Child = command.stderr(Stdio::null()).spawn().expect("started");
    let started = Instant::now();
    let mut since = None;
    while since.is_none_or(|since: Instant| since.elapsed() < after) {
        if child.try_wait().expect("the status of a child").is_some() {
            return false;
        }
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "the command neither ended nor reached the condition for the kill"
        );
        if since.is_none() && due() {
            since = Some(Instant::now());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("killed");
    child.wait().expect("waited");
    true
}

/// Bound epochs give the same rows, each in the same epoch, for any number of workers that replay them.
#[test]
fn replay_is_byte_identical_for_any_number_of_workers() {
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

/// Kills a run ten times, during startup, during replay and later, and checks that every result is stored exactly once.
pub fn kill_ten_times(files: &Files) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut kills_after_progress = 0;
    for attempt in 0..10_u64 {
        let delay = Duration::from_millis(random.below(250));
        let workers = ["1", "2", "3"][attempt as usize % 3];
        let before = files.frontiers();
        // Alternates between kills during startup or replay and kills after new epochs were committed.
        let awaits_progress = attempt % 2 == 1;
        if !kill_when(
            &mut files.command(workers),
            || !awaits_progress || files.frontiers().0 > before.0,
            delay,
        ) {
            break;
        }
        let (sink, ledger) = files.frontiers();
        assert!(sink <= ledger, "the sink has epoch {sink}, and only {ledger} is durable");
        assert!(sink >= before.0 && ledger >= before.1, "frontiers never go back");
        kills_after_progress += u32::from(awaits_progress);
    }
    assert!(kills_after_progress > 0, "no kill happened after new epochs were committed");
    succeed(&mut files.command("2"));
    files.judge();
    // Another start at the end of the input changes nothing.
    succeed(&mut files.command("1"));
    files.judge();
}

#[test]
fn kills_lose_and_repeat_nothing() {
    kill_ten_times(&Files::new(11, 90_000));
}

/// Some clocks are a day ahead or behind, and half of all events are at whole seconds, so that many keys have ties.
#[test]
fn wrong_clocks_and_ties_keep_results_exactly_once() {
    let files = Files::new(14, 60_000);
    files.rewrite(|n, line| {
        let skewed = match n % 400 {
            // A day ahead: it makes no other event late, since the next line does not confirm the jump.
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

/// A sink commits no epoch before its bindings are durable.
#[test]
fn no_sink_commits_ahead_of_a_blocked_ledger() {
    let files = Files::new(14, 150_000);
    let mut run = Process::start(files.command("2"), files.path("run.log"));
    wait_for("results", || (files.frontiers().0 > 0).then_some(()));
    let ledger = rusqlite::Connection::open(files.path("ledger.db")).expect("a database");
    ledger.busy_timeout(Duration::from_secs(5)).expect("set");
    ledger.execute_batch("BEGIN IMMEDIATE").expect("the write lock");
    // Long enough for many commits, and shorter than the ledger's timeout for the lock.
    std::thread::sleep(Duration::from_secs(1));
    let (sink, recorded) = files.frontiers();
    assert_eq!(run.try_wait(), None, "the run ended before the check: {}", run.log());
    assert!(sink <= recorded, "the sink has epoch {sink}, and only {recorded} is durable");
    run.kill();
    drop(ledger);
    succeed(&mut files.command("1"));
    files.judge();
}

/// A limit on file sizes, in KiB, simulates a full disk.
#[test]
fn a_run_on_a_full_disk_fails_and_resumes_later() {
    let files = Files::new(13, 30_000);
    for kib in [64, 700] {
        let run = files.command("2");
        let arguments: Vec<_> = run.get_args().collect();
        let mut limited = Command::new("sh");
        // The signal SIGXFSZ is ignored, so that the write fails as on a full disk.
        limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", kib * 2)).arg("sh");
        let output = limited.arg(run.get_program()).args(arguments).output().expect("started");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let last = stderr.lines().rfind(|line| line.starts_with("headwater: ")).expect("a reason");
        assert!(last.contains("disk") || last.contains("full") || last.contains("large"), "{last}");
    }
    succeed(&mut files.command("2"));
    files.judge();
}

#[test]
fn a_start_that_cannot_be_exactly_once_is_refused() {
    let files = Files::new(12, 6_000);
    succeed(&mut files.command("1"));
    let assert_refused = |reason: &str| files.assert_refused(reason);

    // A setting that affects results has changed.
    files.configure(&FLOW.replace("more_than = 20", "more_than = 21"));
    assert_refused("`patterns.velocity_spike.more_than = 20`");
    files.configure(FLOW);

    // A record that was read has changed.
    let first = fs::read(&files.names[0]).expect("readable");
    let lines = first.split_inclusive(|&byte| byte == b'\n');
    let corrupted: Vec<u8> = lines.clone().flat_map(|line| [b"!", &line[1..]].concat()).collect();
    fs::write(&files.names[0], corrupted).expect("written");
    assert_refused("diverged from the ledger");
    // A record that was read is gone.
    fs::write(&files.names[0], lines.take(10).flatten().copied().collect::<Vec<_>>()).expect("written");
    assert_refused("is missing");
    fs::write(&files.names[0], &first).expect("written");

    // The ledger is an older copy, or was wiped.
    let ledger = rusqlite::Connection::open(files.path("ledger.db")).expect("a database");
    ledger.execute("DELETE FROM headwater_bindings", []).expect("deleted");
    assert_refused("restored from an older copy");
    ledger.execute("DELETE FROM headwater_ledger", []).expect("deleted");
    assert_refused("sqlite");
}
