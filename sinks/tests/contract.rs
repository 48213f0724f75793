//! The test suite for every sink that writes tables: it tests the requirements of `SPEC.md` through the trait `Sink`
//! only.

mod support;

use std::any::Any;
use std::collections::BTreeMap;

use headwater_dataflows::Epoch;
use headwater_sinks::file::FileConfig;
use headwater_sinks::memory::{Fault, Memory};
use headwater_sinks::postgres::{Partitioning, Period, PostgresConfig};
use headwater_sinks::sqlite::SqliteConfig;
use headwater_sinks::tables::TableSet;
use headwater_sinks::{
    Cell, Changes, CommitError, Generation, LedgerId, OpenError, Sink, WriterContext, tables,
};

use support::{Database, add_alert, alert, context, dead_letter, delete_alert, event, permit};

/// A store that sinks write to, with the results as a reader of committed data sees them.
trait Store {
    fn new() -> Self;
    fn sink(&self) -> Box<dyn Sink>;
    /// Returns id and status of each alert, ordered by id.
    fn alerts(&self) -> Vec<(String, String)>;
    /// Returns partition and offset of each event.
    fn events(&self) -> Vec<(i64, i64)>;
    /// Returns partition and offset of each dead letter.
    fn dead_letters(&self) -> Vec<(i64, i64)>;
    /// Makes the next commit fail. The fault ends at the latest when the returned value is dropped.
    fn fail_next(&self) -> Box<dyn Any>;
}

impl Store for Memory {
    fn new() -> Self {
        Memory::default()
    }

    fn sink(&self) -> Box<dyn Sink> {
        Box::new(Memory::sink(self, "memory"))
    }

    fn alerts(&self) -> Vec<(String, String)> {
        let mut alerts = BTreeMap::new();
        for (_, changes) in self.committed() {
            for row in changes.rows.iter().filter(|row| row.table == tables::ALERTS as usize) {
                match row.cells().take(2).collect::<Vec<_>>()[..] {
                    [Cell::Text(id), Cell::Text(status)] => alerts.insert(id.to_owned(), status.to_owned()),
                    [Cell::Text(id)] => alerts.remove(id),
                    ref other => panic!("{other:?} is not an alert"),
                };
            }
        }
        alerts.into_iter().collect()
    }

    fn events(&self) -> Vec<(i64, i64)> {
        offsets(self, tables::EVENTS)
    }

    fn dead_letters(&self) -> Vec<(i64, i64)> {
        offsets(self, tables::DEAD_LETTERS)
    }

    fn fail_next(&self) -> Box<dyn Any> {
        Memory::fail_next(self, Fault::Failed);
        Box::new(())
    }
}

fn offsets(memory: &Memory, table: u8) -> Vec<(i64, i64)> {
    let mut found = Vec::new();
    for (_, changes) in memory.committed() {
        for row in changes.rows.iter().filter(|row| row.table == table as usize) {
            match row.cells().take(2).collect::<Vec<_>>()[..] {
                [Cell::Int(partition), Cell::Int(offset)] => found.push((partition, offset)),
                ref other => panic!("{other:?} is not a partition and offset"),
            }
        }
    }
    found.sort_unstable();
    found
}

struct Sqlite {
    folder: tempfile::TempDir,
}

impl Sqlite {
    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("results.db")
    }

    fn pairs<A: rusqlite::types::FromSql, B: rusqlite::types::FromSql>(&self, sql: &str) -> Vec<(A, B)> {
        let connection = rusqlite::Connection::open(self.path()).expect("the file");
        let mut statement = connection.prepare(sql).expect("a statement");
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
        rows.collect::<Result<_, _>>().expect("pairs")
    }
}

impl Store for Sqlite {
    fn new() -> Self {
        Sqlite { folder: tempfile::tempdir().expect("a folder") }
    }

    fn sink(&self) -> Box<dyn Sink> {
        Box::new(
            SqliteConfig {
                name: "sqlite".to_owned(),
                path: self.path(),
                skip_stored: false,
                set: TableSet::Outputs,
            }
            .build(),
        )
    }

    fn alerts(&self) -> Vec<(String, String)> {
        self.pairs("SELECT alert_id, status FROM alerts ORDER BY 1")
    }

    fn events(&self) -> Vec<(i64, i64)> {
        self.pairs("SELECT partition, \"offset\" FROM events ORDER BY 1, 2")
    }

    fn dead_letters(&self) -> Vec<(i64, i64)> {
        self.pairs("SELECT partition, \"offset\" FROM dead_letters ORDER BY 1, 2")
    }

    fn fail_next(&self) -> Box<dyn Any> {
        let locker = rusqlite::Connection::open(self.path()).expect("the file");
        locker.execute_batch("BEGIN IMMEDIATE").expect("the write lock");
        Box::new(locker)
    }
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("results").join(name)
    }

    fn json(&self, name: &str) -> Option<serde_json::Value> {
        let text = std::fs::read(self.path(name)).ok()?;
        Some(serde_json::from_slice(&text).expect("JSON"))
    }

    /// Returns the committed lines of a file.
    fn lines(&self, name: &str) -> Vec<serde_json::Value> {
        let committed = self.json("progress.json").and_then(|progress| progress["committed"][name].as_u64());
        let committed = committed.unwrap_or_default() as usize;
        let bytes = std::fs::read(self.path(name)).unwrap_or_default();
        let lines = bytes[..committed].split_inclusive(|&byte| byte == b'\n');
        lines.map(|line| serde_json::from_slice(line).expect("JSON")).collect()
    }

    fn offsets(&self, name: &str) -> Vec<(i64, i64)> {
        let number = |line: &serde_json::Value, member: &str| line[member].as_i64().expect("a number");
        let lines = self.lines(name);
        let mut offsets: Vec<_> =
            lines.iter().map(|line| (number(line, "partition"), number(line, "offset"))).collect();
        offsets.sort_unstable();
        offsets
    }
}

impl Store for Files {
    fn new() -> Self {
        Files { folder: tempfile::tempdir().expect("a folder") }
    }

    fn sink(&self) -> Box<dyn Sink> {
        Box::new(FileConfig { name: "file".to_owned(), path: self.path("") }.build())
    }

    fn alerts(&self) -> Vec<(String, String)> {
        let mut alerts = BTreeMap::new();
        for line in self.lines("alerts.ndjson") {
            let text = |member: &str| line[member].as_str().map(str::to_owned);
            let id = text("alert_id").expect("an id");
            match line["deleted"].as_bool() {
                Some(true) => alerts.remove(&id),
                _ => alerts.insert(id, text("status").expect("a status")),
            };
        }
        alerts.into_iter().collect()
    }

    fn events(&self) -> Vec<(i64, i64)> {
        self.offsets("enriched-events.ndjson")
    }

    fn dead_letters(&self) -> Vec<(i64, i64)> {
        self.offsets("dead-letters.ndjson")
    }

    /// Fails after the lines are appended.
    fn fail_next(&self) -> Box<dyn Any> {
        struct Obstacle(std::path::PathBuf);
        impl Drop for Obstacle {
            fn drop(&mut self) {
                std::fs::remove_dir(&self.0).expect("removed");
            }
        }
        let obstacle = Obstacle(self.path("progress.json.new"));
        std::fs::create_dir(&obstacle.0).expect("created");
        Box::new(obstacle)
    }
}

impl Store for Database {
    fn new() -> Self {
        Database::create()
    }

    fn sink(&self) -> Box<dyn Sink> {
        Box::new(Database::sink(self))
    }

    fn alerts(&self) -> Vec<(String, String)> {
        let rows = self.rows("SELECT alert_id, status FROM alerts ORDER BY alert_id COLLATE \"C\"");
        let pair = |row: &String| row.split_once('|').map(|(id, status)| (id.to_owned(), status.to_owned()));
        rows.iter().map(|row| pair(row).expect("two fields")).collect()
    }

    fn events(&self) -> Vec<(i64, i64)> {
        numbers(&self.rows("SELECT partition, \"offset\" FROM events ORDER BY 1, 2"))
    }

    fn dead_letters(&self) -> Vec<(i64, i64)> {
        numbers(&self.rows("SELECT partition, \"offset\" FROM dead_letters ORDER BY 1, 2"))
    }

    fn fail_next(&self) -> Box<dyn Any> {
        let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name LIKE 'headwater:%'";
        assert_eq!(self.one(terminate), "1");
        Box::new(())
    }
}

/// A database whose tables are partitioned.
struct Partitioned(Database);

impl Store for Partitioned {
    fn new() -> Self {
        Partitioned(Database::create())
    }

    fn sink(&self) -> Box<dyn Sink> {
        let partitioning = Some(Partitioning { period: Period::Day, retention: None });
        Box::new(PostgresConfig { partitioning, ..self.0.config() }.build())
    }

    fn alerts(&self) -> Vec<(String, String)> {
        self.0.alerts()
    }

    fn events(&self) -> Vec<(i64, i64)> {
        Store::events(&self.0)
    }

    fn dead_letters(&self) -> Vec<(i64, i64)> {
        self.0.dead_letters()
    }

    /// Terminates the session of the writer, not that of the maintenance.
    fn fail_next(&self) -> Box<dyn Any> {
        let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name LIKE 'headwater:%'
                      AND application_name NOT LIKE '%:tables'";
        assert_eq!(self.0.one(terminate), "1");
        Box::new(())
    }
}

fn numbers(rows: &[String]) -> Vec<(i64, i64)> {
    let pair = |row: &String| row.split_once('|').map(|(a, b)| (a.parse().ok(), b.parse().ok()));
    rows.iter()
        .map(|row| match pair(row) {
            Some((Some(a), Some(b))) => (a, b),
            _ => panic!("{row} is not a pair of numbers"),
        })
        .collect()
}

fn opened(store: &impl Store, generation: u64) -> Box<dyn Sink> {
    let mut sink = store.sink();
    sink.open(&context(generation)).expect("the sink opens");
    sink
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|&(id, status)| (id.to_owned(), status.to_owned())).collect()
}

fn a_round_becomes_visible_with_its_commit<S: Store>() {
    let store = S::new();
    let mut sink = opened(&store, 1);
    sink.stage(Epoch(2), alert("b", "raised")).expect("staged");
    sink.stage(Epoch(1), event(0, 1, "e")).expect("staged");
    sink.stage(Epoch(1), dead_letter(0, 2)).expect("staged");
    sink.stage(Epoch(3), event(0, 3, "e")).expect("staged");
    assert_eq!((store.events(), store.dead_letters(), store.alerts()), (vec![], vec![], vec![]));
    sink.commit(permit(2)).expect("committed");
    assert_eq!(store.events(), [(0, 1)]);
    assert_eq!(store.dead_letters(), [(0, 2)]);
    assert_eq!(store.alerts(), pairs(&[("b", "raised")]));
    sink.commit(permit(3)).expect("committed");
    assert_eq!(store.events(), [(0, 1), (0, 3)]);
}

fn the_last_change_of_a_key_by_epoch_and_staging_counts<S: Store>() {
    let store = S::new();
    let mut sink = opened(&store, 1);
    sink.stage(Epoch(2), alert("a", "revoked")).expect("staged");
    sink.stage(Epoch(1), alert("a", "raised")).expect("staged");
    let mut both = alert("b", "raised");
    add_alert(&mut both, "b", "revoked");
    sink.stage(Epoch(1), both).expect("staged");
    sink.stage(Epoch(1), alert("c", "revoked")).expect("staged");
    sink.stage(Epoch(1), alert("c", "raised")).expect("staged");
    sink.commit(permit(2)).expect("committed");
    assert_eq!(store.alerts(), pairs(&[("a", "revoked"), ("b", "revoked"), ("c", "raised")]));
    sink.stage(Epoch(3), alert("b", "raised")).expect("staged");
    sink.commit(permit(3)).expect("committed");
    assert_eq!(store.alerts(), pairs(&[("a", "revoked"), ("b", "raised"), ("c", "raised")]));
}

fn a_deletion_removes_only_its_row_which_may_be_added_again<S: Store>() {
    let store = S::new();
    let mut sink = opened(&store, 1);
    for id in ["a", "b", "c"] {
        sink.stage(Epoch(1), alert(id, "raised")).expect("staged");
    }
    sink.commit(permit(1)).expect("committed");
    let mut changes = Changes::default();
    delete_alert(&mut changes, "a");
    delete_alert(&mut changes, "nonexistent");
    delete_alert(&mut changes, "c");
    add_alert(&mut changes, "c", "revoked");
    add_alert(&mut changes, "d", "raised");
    delete_alert(&mut changes, "d");
    sink.stage(Epoch(2), changes).expect("staged");
    sink.commit(permit(2)).expect("committed");
    assert_eq!(store.alerts(), pairs(&[("b", "raised"), ("c", "revoked")]));
}

fn a_failed_commit_shows_nothing_and_can_be_retried<S: Store>() {
    let store = S::new();
    let mut sink = opened(&store, 1);
    sink.stage(Epoch(1), event(0, 1, "e")).expect("staged");
    sink.commit(permit(1)).expect("committed");
    sink.stage(Epoch(2), event(0, 2, "e")).expect("staged");
    sink.stage(Epoch(2), alert("a", "raised")).expect("staged");
    let fault = store.fail_next();
    let error = sink.commit(permit(2)).expect_err("the commit fails");
    assert!(matches!(error, CommitError::Failed { through: Epoch(2), .. }), "{error}");
    assert_eq!((store.events(), store.alerts()), (vec![(0, 1)], vec![]));
    drop(fault);
    sink.commit(permit(2)).expect("committed this time");
    assert_eq!((store.events(), store.alerts()), (vec![(0, 1), (0, 2)], pairs(&[("a", "raised")])));
}

fn reopening_returns_the_committed_progress<S: Store>() {
    let store = S::new();
    let mut sink = store.sink();
    assert_eq!(sink.open(&context(1)).expect("opened"), []);
    sink.commit(permit(4)).expect("a commit of progress alone");
    sink.stage(Epoch(5), alert("a", "raised")).expect("staged");
    sink.commit(permit(7)).expect("committed");
    sink.stage(Epoch(8), alert("b", "raised")).expect("staged, never committed");
    drop(sink);
    let mut sink = store.sink();
    let progress = sink.open(&context(2)).expect("opened");
    assert_eq!(progress.len(), 1);
    assert_eq!((progress[0].through, progress[0].generation), (Epoch(7), Generation(1)));
    assert_eq!((&progress[0].ledger_id, progress[0].shards), (&context(1).ledger_id, context(1).shards));
    assert_eq!(store.alerts(), pairs(&[("a", "raised")]));
}

fn another_ledger_and_an_older_start_are_refused<S: Store>() {
    let store = S::new();
    let mut sink = opened(&store, 5);
    sink.commit(permit(1)).expect("committed");
    let mut other_context = context(6);
    other_context.ledger_id = LedgerId("ffffffffffffffffffffffffffffffff".to_owned());
    for refused in [other_context, context(4)] {
        let error = store.sink().open(&refused).expect_err("refused");
        assert!(matches!(error, OpenError::Refused { .. }), "{error}");
    }
    sink.stage(Epoch(2), event(0, 1, "e")).expect("staged");
    sink.commit(permit(2)).expect("the refused starts have not affected this one");
}

fn adopting_replaces_the_progress_and_fences_other_writers<S: Store>() {
    let store = S::new();
    opened(&store, 5).commit(permit(9)).expect("committed");
    let mut idle = opened(&store, 6);
    idle.stage(Epoch(10), event(0, 1, "e")).expect("staged");
    let mut other_context = context(1);
    other_context.ledger_id = LedgerId("ffffffffffffffffffffffffffffffff".to_owned());
    other_context.adopt = Some(Epoch(3));
    let mut adopting = store.sink();
    let progress = adopting.open(&other_context).expect("adopted");
    assert_eq!(progress.len(), 1);
    assert_eq!((progress[0].through, &progress[0].ledger_id), (Epoch(3), &other_context.ledger_id));
    let outcome = loop {
        match idle.commit(permit(10)) {
            Err(CommitError::Failed { .. }) => {}
            other => break other,
        }
    };
    assert!(matches!(outcome, Err(CommitError::Fenced { .. })), "{outcome:?}");
    // The adopted progress is durable before the first commit. After it, the sink works as usual.
    adopting.stage(Epoch(4), event(0, 2, "e")).expect("staged");
    adopting.commit(permit(4)).expect("committed");
    let next = WriterContext { generation: Generation(2), adopt: None, ..other_context };
    assert_eq!(store.sink().open(&next).expect("it opens after adoption")[0].through, Epoch(4));
    assert_eq!(store.events(), [(0, 2)]);
}

fn opening_fences_older_starts<S: Store>() {
    let store = S::new();
    let mut old = opened(&store, 1);
    old.commit(permit(1)).expect("committed");
    old.stage(Epoch(2), event(0, 1, "old")).expect("staged");
    let mut new = store.sink();
    assert_eq!(new.open(&context(2)).expect("opened")[0].through, Epoch(1));
    // The progress that the new start received does not include epoch 2, so epoch 2 must not be committed.
    let outcome = loop {
        match old.commit(permit(2)) {
            // Its session was terminated. The next session is fenced.
            Err(CommitError::Failed { .. }) => {}
            other => break other,
        }
    };
    assert!(matches!(outcome, Err(CommitError::Fenced { .. })), "{outcome:?}");
    assert_eq!(store.events(), []);
    let late = store.sink().open(&context(1)).expect_err("a later start has opened the sink");
    assert!(matches!(late, OpenError::Refused { .. }), "{late}");
    new.stage(Epoch(2), event(0, 2, "new")).expect("staged");
    new.commit(permit(2)).expect("committed");
    assert_eq!(store.events(), [(0, 2)]);
}

fn the_second_of_two_starts_with_one_generation_is_fenced<S: Store>() {
    let store = S::new();
    // This happens with copies of one ledger: neither start is later than the other.
    let (mut one, mut other) = (opened(&store, 1), opened(&store, 1));
    one.stage(Epoch(1), event(0, 1, "one")).expect("staged");
    one.commit(permit(1)).expect("committed");
    other.stage(Epoch(1), event(0, 2, "other")).expect("staged");
    let outcome = other.commit(permit(1));
    assert!(matches!(outcome, Err(CommitError::Fenced { .. })), "{outcome:?}");
    assert_eq!(store.events(), [(0, 1)]);
}

fn peeking_returns_the_progress_and_fences_no_writer<S: Store>() {
    let store = S::new();
    assert_eq!(store.sink().peek_progress("fraud").expect("nothing was ever written"), []);
    let mut sink = opened(&store, 1);
    assert_eq!(
        store.sink().peek_progress(&context(1).pipeline).expect("readable"),
        [],
        "opening commits no progress"
    );
    sink.commit(permit(4)).expect("committed");
    let progress = store.sink().peek_progress(&context(1).pipeline).expect("readable");
    assert_eq!(progress.len(), 1);
    assert_eq!((progress[0].through, progress[0].generation), (Epoch(4), Generation(1)));
    assert_eq!((&progress[0].ledger_id, progress[0].shards), (&context(1).ledger_id, context(1).shards));
    sink.stage(Epoch(5), event(0, 1, "e")).expect("staged");
    sink.commit(permit(5)).expect("no other start has taken over");
}

fn text_that_looks_like_sql_is_stored_as_text<S: Store>() {
    let store = S::new();
    let mut sink = opened(&store, 1);
    let mut texts = ["'; DROP TABLE alerts; --", "\"", "\\", "$1", "?", "\t\n\\N", "\\.", "é😀", "\u{1}"];
    for text in texts {
        sink.stage(Epoch(1), alert(text, text)).expect("staged");
    }
    sink.commit(permit(1)).expect("committed");
    texts.sort_unstable();
    assert_eq!(store.alerts(), texts.map(|text| (text.to_owned(), text.to_owned())));
}

fn tables_of_another_pipeline_are_refused_and_unchanged<S: Store>() {
    let store = S::new();
    let mut sink = opened(&store, 1);
    sink.stage(Epoch(1), event(0, 1, "e")).expect("staged");
    sink.commit(permit(1)).expect("committed");
    let mut other_context = context(2);
    other_context.pipeline += "-2";
    let refused = store.sink().open(&other_context).expect_err("the tables belong to another pipeline");
    assert!(matches!(refused, OpenError::Refused { .. }), "{refused:?}");
    let owner = format!("belong to pipeline {:?}", context(1).pipeline);
    assert!(refused.to_string().contains(&owner), "{refused}");
    assert!(
        matches!(store.sink().peek_progress(&other_context.pipeline), Err(OpenError::Refused { .. })),
        "peeking is refused, too"
    );
    sink.stage(Epoch(2), event(0, 2, "e")).expect("staged");
    sink.commit(permit(2)).expect("no other start has taken over");
    assert_eq!(store.events(), [(0, 1), (0, 2)]);
}

fn the_second_of_two_pipelines_that_open_at_once_is_fenced<S: Store>() {
    let store = S::new();
    let mut second = store.sink();
    let other_context = WriterContext { pipeline: "payments".to_owned(), ..context(1) };
    let mut first = opened(&store, 1);
    second.open(&other_context).expect("nothing has been written yet");
    first.stage(Epoch(1), event(0, 1, "first")).expect("staged");
    first.commit(permit(1)).expect("committed");
    second.stage(Epoch(1), event(0, 2, "second")).expect("staged");
    let outcome = second.commit(permit(1));
    assert!(matches!(outcome, Err(CommitError::Fenced { .. })), "{outcome:?}");
    assert_eq!(store.events(), [(0, 1)]);
    first.commit(permit(2)).expect("no other start has taken over");
}

macro_rules! suite {
    ($name:ident, $store:ty, [$($test:ident),* $(,)?]) => {
        mod $name {
            $(#[test] fn $test() { super::$test::<$store>(); })*
        }
    };
    ($($name:ident: $store:ty),*) => {
        $(suite!($name, $store, [
            a_round_becomes_visible_with_its_commit,
            the_last_change_of_a_key_by_epoch_and_staging_counts,
            a_deletion_removes_only_its_row_which_may_be_added_again,
            a_failed_commit_shows_nothing_and_can_be_retried,
            reopening_returns_the_committed_progress,
            another_ledger_and_an_older_start_are_refused,
            adopting_replaces_the_progress_and_fences_other_writers,
            opening_fences_older_starts,
            peeking_returns_the_progress_and_fences_no_writer,
            text_that_looks_like_sql_is_stored_as_text,
        ]);)*
    };
}

suite!(
    memory: super::Memory,
    sqlite: super::Sqlite,
    files: super::Files,
    postgres: super::Database,
    postgres_partitioned: super::Partitioned
);
suite!(
    sqlite_by_pipeline,
    super::Sqlite,
    [
        tables_of_another_pipeline_are_refused_and_unchanged,
        the_second_of_two_pipelines_that_open_at_once_is_fenced,
    ]
);
suite!(files_by_pipeline, super::Files, [tables_of_another_pipeline_are_refused_and_unchanged]);
suite!(postgres_by_pipeline, super::Database, [tables_of_another_pipeline_are_refused_and_unchanged]);
suite!(sqlite_by_writer, super::Sqlite, [the_second_of_two_starts_with_one_generation_is_fenced]);
suite!(files_by_writer, super::Files, [the_second_of_two_starts_with_one_generation_is_fenced]);
suite!(postgres_by_writer, super::Database, [the_second_of_two_starts_with_one_generation_is_fenced]);
