//! Tests of decimal numbers (stored exactly as text, compared as numbers) and of migrations. `tests/contract.rs` tests
//! the contract of all sinks.

use super::*;
use crate::tables::{EVENTS, OUTBOX, TableSet, WINDOW_AGGREGATES};

const START: i64 = 1_700_000_000_000;

fn context() -> WriterContext {
    WriterContext {
        pipeline: "fraud".to_owned(),
        ledger_id: LedgerId("00112233445566778899aabbccddeeff".to_owned()),
        generation: Generation(1),
        process: 0,
        shards: Shards::ALL,
        max_processes: 1,
        adopt: None,
    }
}

/// Creates, for each amount, an event and a window with it as minimum and maximum and 1000 times it as sum.
fn rows(micros: &[i128]) -> Changes {
    let mut changes = Changes::default();
    for (at, &amount) in (0..).zip(micros) {
        let mut row = changes.rows.row(EVENTS);
        row.cell(Cell::Int(0)).cell(Cell::Int(at)).cell(Cell::Int(1)).cell(Cell::Text("e"));
        row.cell(Cell::Text("transaction")).cell(Cell::Text("user")).cell(Cell::Text("u"));
        row.cell(Cell::Time(START)).cell(Cell::Micros(amount));
        for _ in 0..9 {
            row.cell(Cell::Null);
        }
        row.cell(Cell::Text("<10"))
            .cell(Cell::Int(1))
            .cell(Cell::Null)
            .cell(Cell::Null)
            .cell(Cell::Null)
            .end();
        let mut row = changes.rows.row(WINDOW_AGGREGATES);
        row.cell(Cell::Text("w")).cell(Cell::Text("user")).cell(Cell::Text("u"));
        row.cell(Cell::Time(START + at)).cell(Cell::Time(START + 60_000 + at));
        row.cell(Cell::Int(1)).cell(Cell::Int(1)).cell(Cell::Micros(amount * 1000)).cell(Cell::Null);
        row.cell(Cell::Micros(amount)).cell(Cell::Micros(amount)).cell(Cell::Null);
        row.cell(Cell::Int(0)).cell(Cell::Bool(true)).cell(Cell::Int(1)).end();
    }
    changes
}

fn texts(path: &std::path::Path, sql: &str) -> Vec<String> {
    let connection = Connection::open(path).expect("the file");
    let mut statement = connection.prepare(sql).expect("a statement");
    let rows = statement.query_map([], |row| {
        Ok(match row.get_ref(0)? {
            ValueRef::Integer(value) => value.to_string(),
            ValueRef::Real(value) => value.to_string(),
            other => String::from_utf8_lossy(other.as_bytes()?).into_owned(),
        })
    });
    rows.expect("rows").collect::<rusqlite::Result<_>>().expect("texts")
}

const AMOUNTS: [i128; 7] = [
    9_990_000,
    100_000,
    1_000_000_000,
    -5_000_000,
    999_999_999_999_999_999,
    1_234_567_890_000,
    25_000_000_000,
];

#[test]
fn decimals_compare_as_numbers_and_keep_all_digits() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("results.db");
    let mut sink = SqliteConfig {
        name: "sqlite".into(),
        path: path.clone(),
        skip_stored: false,
        set: TableSet::Outputs,
    }
    .build();
    sink.open(&context()).expect("opened");
    sink.stage(Epoch(1), rows(&AMOUNTS)).expect("staged");
    sink.commit(CommitPermit::granted(Epoch(1))).expect("committed");

    let ordered = ["-5", "0.1", "9.99", "1000", "25000", "1234567.89", "999999999999.999999"];
    let exact = |sql: &str| texts(&path, sql);
    assert_eq!(exact("SELECT amount_exact FROM events ORDER BY amount"), ordered);
    assert_eq!(
        exact("SELECT amount FROM events WHERE amount < 2000000 ORDER BY amount DESC LIMIT 6"),
        ["1234567.89", "25000", "1000", "9.99", "0.1", "-5"]
    );
    assert_eq!(exact("SELECT amount_exact FROM events WHERE amount > 1000 ORDER BY amount"), ordered[4..]);
    assert_eq!(exact("SELECT max(amount) FROM events WHERE amount < 1e9"), ["1234567.89"]);
    assert_eq!(exact("SELECT \"offset\" FROM events WHERE amount = 0.1"), ["1"]);
    for column in ["min", "max"] {
        let sql = format!("SELECT {column}_exact FROM window_aggregates ORDER BY {column}");
        assert_eq!(exact(&sql), ordered, "{column}");
    }
    let sums =
        exact("SELECT amount_sum_exact FROM window_aggregates WHERE amount_sum > 9990 ORDER BY amount_sum");
    assert_eq!(sums, ["1000000", "25000000", "1234567890", "999999999999999.999"]);
}

#[test]
fn a_file_of_the_first_version_is_migrated_with_its_rows() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("results.db");
    let first = MIGRATIONS[0];
    let old = Connection::open(&path).expect("a file");
    old.execute_batch(first.sql).expect("the first version");
    old.execute_batch("CREATE TABLE headwater_migrations (number INTEGER PRIMARY KEY, hash TEXT NOT NULL)")
        .expect("a table");
    old.execute("INSERT INTO headwater_migrations VALUES (1, ?)", [first.hash()]).expect("recorded");
    for (at, amount) in ["9.99", "99.99", "1000", "25000"].into_iter().enumerate() {
        let insert = "INSERT INTO events (partition, \"offset\", epoch, event_id, event_type, key_kind, \"key\", \
             event_time, amount, amount_band, key_events) VALUES (0, ?, 1, 'e', 't', 'user', 'u', 't', ?, '<10', 1)";
        old.execute(insert, params![at as i64, amount]).expect("a row");
    }
    old.execute(
        "INSERT INTO window_aggregates VALUES ('w', 'user', 'u', 's', 'e', 1, 1, '10.5', 1.0, '9.99', NULL, 0, 1, 1, 1)",
        [],
    )
    .expect("a row");
    drop(old);

    let mut sink = SqliteConfig {
        name: "sqlite".into(),
        path: path.clone(),
        skip_stored: false,
        set: TableSet::Outputs,
    }
    .build();
    sink.open(&context()).expect("migrated");
    assert_eq!(texts(&path, "SELECT \"offset\" FROM events WHERE amount > 1000"), ["3"]);
    assert_eq!(texts(&path, "SELECT max(amount) FROM events"), ["25000"]);
    let row = "SELECT amount_sum || ' ' || amount_sum_exact || ' ' || min || ' ' || (max IS NULL) FROM window_aggregates";
    assert_eq!(texts(&path, row), ["10.5 10.5 9.99 1"]);
    assert_eq!(texts(&path, "SELECT number FROM headwater_migrations ORDER BY 1"), ["1", "2", "3", "4", "5"]);
}

/// Unlike the table of alerts, the outbox keeps every change of a round, and its order.
#[test]
fn the_outbox_keeps_every_change_and_fences_earlier_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("outbox.db");
    let sink = || {
        let (name, set) = ("routes".into(), TableSet::Outbox);
        SqliteConfig { name, path: path.clone(), skip_stored: false, set }.build()
    };
    let change = |status: &str| {
        let mut changes = Changes::default();
        let mut row = changes.rows.row(OUTBOX);
        row.cell(Cell::Text("a")).cell(Cell::Text(status)).cell(Cell::Text("r")).cell(Cell::Int(1));
        row.cell(Cell::Text("high")).cell(Cell::Text("user")).cell(Cell::Text("u")).cell(Cell::Json("[]"));
        row.cell(Cell::Time(START)).cell(Cell::Int(1)).cell(Cell::Bool(false)).cell(Cell::Json("{}")).end();
        changes
    };
    let mut first = sink();
    assert_eq!(first.open(&context()).expect("opened"), []);
    for (epoch, status) in [(1, "raised"), (1, "revoked"), (2, "raised"), (3, "revoked")] {
        first.stage(Epoch(epoch), change(status)).expect("staged");
    }
    first.commit(CommitPermit::granted(Epoch(2))).expect("committed");
    let statuses = || texts(&path, "SELECT status FROM headwater_outbox ORDER BY seq");
    assert_eq!(statuses(), ["raised", "revoked", "raised"]);

    let mut second = sink();
    let found = second.open(&WriterContext { generation: Generation(2), ..context() }).expect("opened");
    assert_eq!(found.iter().map(|progress| progress.through).collect::<Vec<_>>(), [Epoch(2)]);
    let fenced = first.commit(CommitPermit::granted(Epoch(3))).expect_err("fenced");
    assert!(matches!(fenced, CommitError::Fenced { .. }), "{fenced}");
    assert_eq!(statuses().len(), 3);
    assert_eq!(texts(&path, "SELECT name FROM sqlite_schema WHERE name = 'events'"), [""; 0]);
}
