//! Shared helpers of the end-to-end tests: generated input, the program, and the oracle that judges its results.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use headwater::source::generator::{GeneratorSettings, RecordMaker};
use serde_json::Value;

/// Returns the settings of a generated stream with more disorder, duplicates and broken records than by default.
pub fn hard_settings(seed: u64) -> GeneratorSettings {
    GeneratorSettings {
        seed,
        users: 3000,
        devices: 1000,
        disorder: 0.1,
        late: 0.005,
        duplicates: 0.01,
        malformed: 0.01,
        invalid: 0.005,
        ..GeneratorSettings::default()
    }
}

/// Returns the root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the `headwater` command with these arguments.
pub fn headwater(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
    command.args(arguments);
    command
}

/// Runs a command to completion.
///
/// # Panics
/// Panics with the command's output if it fails.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the command starts");
    let printed = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        printed(&output.stdout),
        printed(&output.stderr)
    );
    output
}

/// Writes the first `records` records of a generated stream, one file per partition.
pub fn write_files(dir: &Path, settings: &GeneratorSettings, records: u64) -> Vec<PathBuf> {
    let mut maker = RecordMaker::new(settings.clone());
    let per_partition = records / u64::from(settings.partitions);
    (0..settings.partitions)
        .map(|partition| {
            let path = dir.join(format!("part-{partition}.ndjson"));
            let mut out = std::io::BufWriter::new(fs::File::create(&path).expect("a file"));
            for offset in 0..per_partition {
                maker.make(partition, offset, None);
                out.write_all(&maker.value).and_then(|()| out.write_all(b"\n")).expect("written");
            }
            out.flush().expect("written");
            path
        })
        .collect()
}

/// Appends the bindings of the last start, `bindings.ndjson`, up to an epoch, to those of earlier starts,
/// `history.ndjson`: a start that resumes from a checkpoint writes only the bindings after it.
pub fn merge_bindings(dir: &Path, through: i64) {
    let (history, last) = (dir.join("history.ndjson"), dir.join("bindings.ndjson"));
    let mut epochs = BTreeMap::new();
    for path in [&history, &last] {
        let text = fs::read_to_string(path).unwrap_or_default();
        // A killed start may leave a partial line, for an epoch that is not durable.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let epoch = serde_json::from_str::<Value>(line).expect("JSON")["epoch"].as_i64();
            let epoch = epoch.expect("an epoch");
            if epoch <= through {
                let before = epochs.insert(epoch, line.to_owned());
                assert!(
                    before.is_none_or(|before| before == line),
                    "epoch {epoch} has two different bindings"
                );
            }
        }
    }
    fs::write(history, epochs.into_values().collect::<String>()).expect("written");
    _ = fs::remove_file(last);
}

/// The generator xorshift64*: the same numbers for the same seed, which must not be 0.
pub struct Random(pub u64);

impl Random {
    /// Returns the next number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}

/// Returns the command that runs a script of the oracle.
fn oracle(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(root().join("tests/oracle").join(script));
    command
}

/// The directory with the results that the oracle expects.
pub struct Expected(PathBuf);

impl Expected {
    /// Runs the oracle, which writes the expected results to `dir`. `input` are its arguments that name the input.
    pub fn of(dir: &Path, config: &Path, input: &[&str], bindings: &Path) -> Expected {
        Expected::by("__main__.py", dir, config, input, bindings)
    }

    /// Runs this script of the oracle like [`of`](Expected::of).
    pub fn by(script: &str, dir: &Path, config: &Path, input: &[&str], bindings: &Path) -> Expected {
        let out = dir.join("expected");
        let mut command = oracle(script);
        command.arg("--config").arg(config).args(input);
        succeed(command.arg("--bindings").arg(bindings).arg("--out").arg(&out));
        Expected(out)
    }

    /// Compares tables, each a file of NDJSON, with the expected results.
    ///
    /// # Panics
    /// Panics with the first differences, if there are any.
    pub fn judge(&self, tables: &Path) {
        succeed(oracle("compare.py").arg(&self.0).arg(tables));
    }

    /// Compares a SQLite database with the expected results.
    ///
    /// # Panics
    /// Panics with the first differences, if there are any.
    pub fn judge_sqlite(&self, database: &Path) {
        self.judge(&dump(database));
    }

    /// Compares the directory of a file sink with the expected results: the rows, and every change of an alert.
    ///
    /// # Panics
    /// Panics with the first differences, if there are any.
    pub fn judge_directory(&self, directory: &Path) {
        let lines = dump(directory);
        let tables = ["events", "alerts", "alert_changes", "windows", "dead_letters"];
        succeed(oracle("compare.py").arg(&self.0).arg(lines).arg("--tables").args(tables));
    }

    /// Compares the selected rows of a SQLite database with the same selection of the expected results.
    ///
    /// # Panics
    /// Panics with the first differences, if there are any, or if no row is selected.
    pub fn judge_some(&self, database: &Path, is_selected: impl Fn(&str, &Value) -> bool) {
        let actual = dump(database);
        let counts = [&self.0, &actual].map(|tables| retain_rows(tables, &is_selected));
        assert!(counts[0] > 0, "no expected row is selected");
        self.judge(&actual);
    }
}

/// Writes the tables of a SQLite database, or of a file sink's directory, to a directory beside it, and returns that
/// directory.
fn dump(results: &Path) -> PathBuf {
    let tables = results.with_extension("tables");
    succeed(oracle("dump.py").arg(results).arg(&tables));
    tables
}

/// Removes the rows of a directory's tables that are not selected, and returns how many rows are left.
fn retain_rows(tables: &Path, is_selected: &impl Fn(&str, &Value) -> bool) -> usize {
    let mut count = 0;
    for table in ["events", "alerts", "windows", "dead_letters"] {
        let path = tables.join(format!("{table}.ndjson"));
        let text = fs::read_to_string(&path).expect("a table");
        let selected = |line: &&str| is_selected(table, &serde_json::from_str(line).expect("JSON"));
        let selected: Vec<_> = text.split_inclusive('\n').filter(selected).collect();
        count += selected.len();
        fs::write(&path, selected.concat()).expect("written");
    }
    count
}

/// The windows and patterns of the tests, one of each kind.
pub const FLOW: &str = r#"
[[windows]]
name = "user_1m"
kind = "tumbling"
size = "1m"
[[windows]]
name = "device_5m"
kind = "sliding"
by = "device_id"
size = "5m"
slide = "1m"
emit = "early"
[[windows]]
name = "visit"
kind = "session"
by = "key"
gap = "30s"
[patterns.velocity_spike]
more_than = 20
within = "10m"
[patterns.rapid_fire_burst]
at_least = 4
[patterns.merchant_diversity]
at_least = 4
[patterns.amount_anomaly]
sigmas = 2.0
emit = "final"
[patterns.impossible_travel]
"#;
