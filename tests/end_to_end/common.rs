//! What the end-to-end tests share: generated input, the program itself, and the oracle that judges it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use headwater::source::generator::{GeneratorSettings, RecordMaker};
use serde_json::Value;

/// A generated stream with more of everything that is hard than a usual one.
pub fn hard(seed: u64) -> GeneratorSettings {
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

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The `headwater` command with these arguments.
pub fn headwater(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
    command.args(arguments);
    command
}

/// Runs a command to its end.
///
/// # Panics
/// With what it printed, unless it succeeds.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the command can be started");
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

/// Writes the first `records` records of a generated stream, each partition a file.
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

/// Puts what the last start bound, `bindings.ndjson`, through an epoch, to what those before it bound,
/// `history.ndjson`: a start that goes on from a checkpoint binds only what comes after.
pub fn gather(dir: &Path, through: i64) {
    let (history, last) = (dir.join("history.ndjson"), dir.join("bindings.ndjson"));
    let mut epochs = BTreeMap::new();
    for path in [&history, &last] {
        let text = fs::read_to_string(path).unwrap_or_default();
        // A start that was killed may have left half a line, of an epoch that is not durable.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let epoch = serde_json::from_str::<Value>(line).expect("JSON")["epoch"].as_i64();
            let epoch = epoch.expect("an epoch");
            if epoch <= through {
                let before = epochs.insert(epoch, line.to_owned());
                assert!(before.is_none_or(|before| before == line), "epoch {epoch} was bound otherwise");
            }
        }
    }
    fs::write(history, epochs.into_values().collect::<String>()).expect("written");
    _ = fs::remove_file(last);
}

/// Xorshift64*: the same numbers for the same seed, which is not 0.
pub struct Random(pub u64);

impl Random {
    /// The next number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}

/// A script of the oracle, to be run.
fn oracle(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(root().join("tests/oracle").join(script));
    command
}

/// What the oracle says must come of an input.
pub struct Expected(PathBuf);

impl Expected {
    /// Has the oracle write it down in `dir`. `input` are its arguments that name the input.
    pub fn of(dir: &Path, config: &Path, input: &[&str], bindings: &Path) -> Expected {
        let out = dir.join("expected");
        let mut command = oracle("__main__.py");
        command.arg("--config").arg(config).args(input);
        succeed(command.arg("--bindings").arg(bindings).arg("--out").arg(&out));
        Expected(out)
    }

    /// Holds tables, each a file of NDJSON, against it.
    ///
    /// # Panics
    /// With the first differences, if there are any.
    pub fn judge(&self, tables: &Path) {
        succeed(oracle("compare.py").arg(&self.0).arg(tables));
    }

    /// Holds a SQLite database against it.
    ///
    /// # Panics
    /// With the first differences, if there are any.
    pub fn judge_sqlite(&self, database: &Path) {
        self.judge(&dumped(database));
    }

    /// Holds some rows of a SQLite database against the same of it.
    ///
    /// # Panics
    /// With the first differences, if there are any, or if there are no such rows.
    pub fn judge_some(&self, database: &Path, judged: impl Fn(&str, &Value) -> bool) {
        let actual = dumped(database);
        let counts = [&self.0, &actual].map(|tables| only(tables, &judged));
        assert!(counts[0] > 0, "nothing is judged");
        self.judge(&actual);
    }
}

/// The tables of a SQLite database, in a folder beside it.
fn dumped(database: &Path) -> PathBuf {
    let tables = database.with_extension("tables");
    succeed(oracle("dump.py").arg(database).arg(&tables));
    tables
}

/// Takes out of the tables of a folder what is not judged, given a table's name and a row; how much is left.
fn only(tables: &Path, judged: &impl Fn(&str, &Value) -> bool) -> usize {
    let mut count = 0;
    for table in ["events", "alerts", "windows", "dead_letters"] {
        let path = tables.join(format!("{table}.ndjson"));
        let text = fs::read_to_string(&path).expect("a table");
        let kept = |line: &&str| judged(table, &serde_json::from_str(line).expect("JSON"));
        let kept: Vec<_> = text.split_inclusive('\n').filter(kept).collect();
        count += kept.len();
        fs::write(&path, kept.concat()).expect("written");
    }
    count
}

/// The windows and patterns of the tests: one of each kind.
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
every = "1m"
emit = "revised"
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
