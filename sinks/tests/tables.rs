//! The sinks that write tables, held to the contract of `Sink` on real stores, by one suite.

use headwater_dataflows::Epoch;
use headwater_sinks::postgres::{PostgresConfig, PostgresSink};
use headwater_sinks::sqlite::SqliteConfig;
use headwater_sinks::{
    Cell, Changes, CommitError, CommitPermit, Generation, Lineage, OpenError, Shards, Sink, Start, tables,
};
use tokio_postgres::NoTls;

/// A store of its own, and how to ask it.
trait Store {
    fn sink(&self) -> Box<dyn Sink>;
    /// The only column of each row, as text, in order.
    fn ask(&self, query: &str) -> Vec<Option<String>>;
}

struct Sqlite(tempfile::TempDir);

impl Store for Sqlite {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(SqliteConfig { name: "tables".into(), path: self.0.path().join("test.db") }.build())
    }
    fn ask(&self, query: &str) -> Vec<Option<String>> {
        let connection = rusqlite::Connection::open(self.0.path().join("test.db")).expect("a database");
        let mut statement = connection.prepare(&query.replace("::text", "")).expect("a query");
        let rows = statement.query_map([], |row| {
            Ok(match row.get_ref(0)? {
                rusqlite::types::ValueRef::Null => None,
                rusqlite::types::ValueRef::Integer(value) => Some(value.to_string()),
                rusqlite::types::ValueRef::Real(value) => Some(value.to_string()),
                other => Some(String::from_utf8_lossy(other.as_bytes()?).into_owned()),
            })
        });
        rows.expect("answered").map(|row| row.expect("a row")).collect()
    }
}

struct Postgres {
    url: String,
    skip_stored: bool,
}

impl Postgres {
    fn new() -> Postgres {
        let server = std::env::var("HEADWATER_TEST_POSTGRES")
            .expect("HEADWATER_TEST_POSTGRES is not set: scripts/test starts a server and sets it");
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("tables_{}_{number}", std::process::id());
        let store = Postgres { url: server, skip_stored: false };
        store.tell(&format!("DROP DATABASE IF EXISTS {name}"));
        store.tell(&format!("CREATE DATABASE {name}"));
        let (address, _) = store.url.rsplit_once('/').expect("a url with a database");
        Postgres { url: format!("{address}/{name}"), skip_stored: false }
    }

    fn build(&self) -> PostgresSink {
        PostgresConfig { name: "tables".into(), url: self.url.clone(), skip_stored: self.skip_stored }.build()
    }

    fn with<T>(&self, what: impl AsyncFnOnce(tokio_postgres::Client) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.expect("connected");
            tokio::spawn(connection);
            what(client).await
        })
    }

    fn tell(&self, statement: &str) {
        self.with(async |client| client.batch_execute(statement).await.expect(statement));
    }
}

impl Store for Postgres {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(self.build())
    }
    fn ask(&self, query: &str) -> Vec<Option<String>> {
        self.with(async |client| {
            let rows = client.simple_query(query).await.expect(query);
            rows.iter()
                .filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
                    _ => None,
                })
                .collect()
        })
    }
}

fn on_every_store(test: impl Fn(&dyn Store)) {
    test(&Sqlite(tempfile::tempdir().expect("a directory")));
    test(&Postgres::new());
}

fn start(generation: u64) -> Start {
    Start {
        pipeline: "p".into(),
        lineage: Lineage("a".repeat(32)),
        generation: Generation(generation),
        process: 0,
        shards: Shards::ALL,
    }
}

fn letter(offset: i64, message: &str) -> Changes {
    let mut changes = Changes::default();
    changes
        .rows
        .row(tables::DEAD_LETTERS)
        .cell(Cell::Int(0))
        .cell(Cell::Int(offset))
        .cell(Cell::Text("late"))
        .cell(Cell::Null)
        .cell(Cell::Text(message))
        .cell(Cell::Null)
        .cell(Cell::Bytes(b"\x00\xff"))
        .cell(Cell::Time(1_767_323_045_678))
        .cell(Cell::Int(1))
        .cell(Cell::Int(0))
        .end();
    changes
}

fn window(start: i64, sum: i128) -> Changes {
    let mut changes = Changes::default();
    changes
        .rows
        .row(tables::WINDOW_AGGREGATES)
        .cell(Cell::Text("w"))
        .cell(Cell::Text("user"))
        .cell(Cell::Text("k"))
        .cell(Cell::Time(start))
        .cell(Cell::Time(start + 1))
        .cell(Cell::Int(2))
        .cell(Cell::Int(1))
        .cell(Cell::Micros(sum))
        .cell(Cell::Float(0.5))
        .cell(Cell::Micros(-1))
        .cell(Cell::Null)
        .cell(Cell::Null)
        .cell(Cell::Int(3))
        .cell(Cell::Bool(true))
        .cell(Cell::Int(9))
        .end();
    changes
}

fn no_window(start: i64) -> Changes {
    let mut changes = Changes::default();
    changes
        .rows
        .delete(tables::WINDOW_AGGREGATES)
        .cell(Cell::Text("w"))
        .cell(Cell::Text("user"))
        .cell(Cell::Text("k"))
        .cell(Cell::Time(start))
        .end();
    changes
}

fn through(epoch: u64) -> CommitPermit {
    CommitPermit::granted(Epoch(epoch))
}

fn text(values: &[&str]) -> Vec<Option<String>> {
    values.iter().map(|value| Some((*value).to_owned())).collect()
}

#[test]
fn a_round_shows_its_epochs_and_its_progress_and_nothing_more() {
    on_every_store(|store| {
        let mut sink = store.sink();
        assert_eq!(sink.open(&start(1)).expect("opened"), []);
        sink.stage(Epoch(3), letter(2, "three")).expect("staged");
        sink.stage(Epoch(1), letter(0, "one")).expect("staged");
        sink.stage(Epoch(2), letter(1, "'; DROP TABLE dead_letters; --\u{1}\"\\")).expect("staged");
        let messages = "SELECT message FROM dead_letters ORDER BY \"offset\"";
        assert_eq!(store.ask(messages), []);
        sink.commit(through(2)).expect("committed");
        assert_eq!(store.ask(messages), text(&["one", "'; DROP TABLE dead_letters; --\u{1}\"\\"]));
        assert_eq!(store.ask("SELECT max(through) FROM headwater_progress"), text(&["2"]));
        sink.commit(through(3)).expect("committed");
        assert_eq!(store.ask(messages).len(), 3);
        drop(sink);
        let found = store.sink().open(&start(2)).expect("opened again");
        assert!(
            found.iter().any(|progress| progress.through == Epoch(3) && progress.generation == Generation(1))
        );
    });
}

#[test]
fn keyed_tables_have_each_keys_last_change() {
    on_every_store(|store| {
        let mut sink = store.sink();
        sink.open(&start(1)).expect("opened");
        for (epoch, changes) in
            [(1, window(10, 1)), (2, window(10, 2_500_000)), (2, window(20, 0)), (3, no_window(20))]
        {
            sink.stage(Epoch(epoch), changes).expect("staged");
        }
        sink.commit(through(3)).expect("committed");
        let sums = "SELECT amount_sum::text FROM window_aggregates ORDER BY start";
        assert_eq!(store.ask(sums), text(&["2.5"]));
        sink.stage(Epoch(4), no_window(10)).expect("staged");
        sink.stage(Epoch(5), window(30, -1)).expect("staged");
        sink.commit(through(5)).expect("committed");
        assert_eq!(store.ask(sums), text(&["-0.000001"]));
    });
}

#[test]
fn decimals_keep_every_digit() {
    on_every_store(|store| {
        let mut sink = store.sink();
        sink.open(&start(1)).expect("opened");
        let sums: [(i128, &str); 9] = [
            (0, "0"),
            (1, "0.000001"),
            (-10_000, "-0.01"),
            (999_999, "0.999999"),
            (10_000_000_000, "10000"),
            (100_000_000_010_000, "100000000.01"),
            (-123_456_789_012_345_678, "-123456789012.345678"),
            (1_000_000_000_000_000_000_000_000_000, "1000000000000000000000"),
            (123_400_000_000, "123400"),
        ];
        for (at, (sum, _)) in sums.iter().enumerate() {
            sink.stage(Epoch(1), window(at as i64, *sum)).expect("staged");
        }
        sink.commit(through(1)).expect("committed");
        let expected: Vec<_> = sums.iter().map(|(_, text)| Some((*text).to_owned())).collect();
        assert_eq!(store.ask("SELECT amount_sum::text FROM window_aggregates ORDER BY start"), expected);
    });
}

#[test]
fn a_later_start_fences_an_earlier_one_and_another_ledger_is_refused() {
    on_every_store(|store| {
        let mut old = store.sink();
        old.open(&start(1)).expect("opened");
        old.stage(Epoch(1), letter(0, "old")).expect("staged");
        let mut new = store.sink();
        new.open(&start(2)).expect("opened");
        new.stage(Epoch(1), letter(0, "new")).expect("staged");
        new.commit(through(1)).expect("committed");
        let fenced = loop {
            match old.commit(through(1)) {
                // Its backend was ended: it finds out at the next attempt.
                Err(CommitError::Failed { .. }) => {}
                other => break other,
            }
        };
        assert!(matches!(fenced, Err(CommitError::Fenced { .. })), "{fenced:?}");
        assert_eq!(store.ask("SELECT message FROM dead_letters"), text(&["new"]));
        assert!(matches!(store.sink().open(&start(1)), Err(OpenError::Refused { .. })));
        let other = Start { lineage: Lineage("b".repeat(32)), ..start(3) };
        assert!(matches!(store.sink().open(&other), Err(OpenError::Refused { .. })));
    });
}

#[test]
fn a_round_whose_backend_is_ended_is_tried_again_without_loss_or_repetition() {
    let store = Postgres::new();
    let mut sink = store.build();
    sink.open(&start(1)).expect("opened");
    for epoch in 1..=5 {
        sink.stage(Epoch(epoch), letter(epoch as i64, "x")).expect("staged");
        store.tell("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'headwater:%' AND datname = current_database()");
        let mut attempts = 0;
        while let Err(error) = sink.commit(through(epoch)) {
            assert!(matches!(error, CommitError::Failed { .. }), "{error}");
            attempts += 1;
            assert!(attempts < 5, "{error}");
        }
    }
    assert_eq!(store.ask("SELECT count(*) FROM dead_letters"), text(&["5"]));
    assert_eq!(store.ask("SELECT max(through) FROM headwater_progress"), text(&["5"]));
}

#[test]
fn what_an_earlier_start_stored_is_left_out_on_request() {
    let mut store = Postgres::new();
    let mut sink = store.build();
    sink.open(&start(1)).expect("opened");
    sink.stage(Epoch(1), letter(7, "first")).expect("staged");
    sink.commit(through(1)).expect("committed");
    drop(sink);
    store.skip_stored = true;
    let mut sink = store.build();
    sink.open(&start(2)).expect("opened");
    sink.stage(Epoch(2), letter(7, "again")).expect("staged");
    sink.stage(Epoch(2), letter(8, "new")).expect("staged");
    sink.commit(through(2)).expect("committed");
    assert_eq!(store.ask("SELECT message FROM dead_letters ORDER BY \"offset\""), text(&["first", "new"]));
}

#[test]
fn a_url_that_demands_tls_is_refused() {
    let store = Postgres::new();
    let url = format!("{}?sslmode=require", store.url);
    let mut sink = PostgresConfig { name: "tables".into(), url, skip_stored: false }.build();
    assert!(matches!(sink.open(&start(1)), Err(OpenError::Refused { .. })));
}
