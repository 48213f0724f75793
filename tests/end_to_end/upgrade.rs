//! Ledgers, checkpoints and tables that earlier versions wrote are resumed.
//!
//! `golden/DATE.tar.gz` is the folder of a run that was killed: two input files, configuration, ledger, state store and
//! tables, with a checkpoint, epochs to replay of which the sink has some, and input that was not read yet.

use std::path::Path;
use std::process::Command;

use crate::common::{headwater, succeed};

/// All rows of a table, sorted, without the time at which a dead letter was read.
fn rows(folder: &Path, table: &str) -> Vec<String> {
    let database = rusqlite::Connection::open(folder.join("results.db")).expect("a database");
    let all = database.prepare(&format!("SELECT * FROM {table}")).expect("a table");
    let columns: Vec<_> = all
        .column_names()
        .filter(|name| *name != "timestamp")
        .map(|name| format!("quote(\"{name}\")"))
        .collect();
    let query = format!("SELECT {} FROM {table} ORDER BY 1", columns.join(" || '|' || "));
    let mut statement = database.prepare(&query).expect("a query");
    let rows = statement.query_map([], |row| row.get(0)).expect("rows");
    rows.collect::<Result<_, _>>().expect("text")
}

fn run(folder: &Path) {
    succeed(headwater(&["run", "run.toml"]).current_dir(folder));
}

#[test]
fn ledger_and_checkpoint_of_2026_11_28_are_resumed() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/end_to_end/golden/2026-11-28.tar.gz");
    let (resumed, fresh) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    for folder in [&resumed, &fresh] {
        succeed(Command::new("tar").arg("-xzf").arg(&golden).arg("-C").arg(folder.path()));
    }
    for made in ["ledger.db", "results.db"] {
        std::fs::remove_file(fresh.path().join(made)).expect("removed");
    }
    std::fs::remove_dir_all(fresh.path().join("state")).expect("removed");

    let status = succeed(headwater(&["status", "run.toml", "--json"]).current_dir(&resumed));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!((&status["start"]["after"], &status["start"]["replay"]), (&27.into(), &35.into()), "{status}");
    let before = rows(resumed.path(), "events").len();
    run(resumed.path());
    run(fresh.path());
    assert!(rows(resumed.path(), "events").len() > before + 500, "most of the input was not read yet");
    for table in ["events", "alerts", "window_aggregates", "dead_letters"] {
        let (resumed, fresh) = (rows(resumed.path(), table), rows(fresh.path(), table));
        assert!(fresh.len() > 50, "{table}");
        assert_eq!(resumed, fresh, "{table}");
    }
}
