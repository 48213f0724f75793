use super::super::{LastRead, LetterStore, Storage};
use super::*;

/// Creates a database with these rows: offset, reason, field, timestamp. Returns its folder and its letters.
fn store(rows: &[(i64, &str, Option<&str>, &str)]) -> (tempfile::TempDir, LetterStore) {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("results.db");
    let connection = rusqlite::Connection::open(&path).expect("a database");
    let table = include_str!("../../../sinks/migrations/sqlite/0001_tables.sql");
    connection.execute_batch(table).expect("tables");
    for (offset, reason, field, timestamp) in rows {
        let insert = "INSERT INTO dead_letters VALUES (0, ?1, ?2, ?3, 'wrong', x'6b', ?4, ?5, 1, 0)";
        let value = format!("{{\"n\":{offset}}}").into_bytes();
        connection.execute(insert, (offset, reason, field, value, timestamp)).expect("a row");
    }
    let store = LetterStore {
        pipeline: "fraud".to_owned(),
        storage: Storage::Table(Database::Sqlite(path)),
        source: None,
        mask: Vec::new(),
        producer_header: String::new(),
        decoding: crate::decode::JSON.standard(),
        last_read: LastRead::default(),
    };
    (folder, store)
}

const ROWS_OF_TEST: [(i64, &str, Option<&str>, &str); 5] = [
    (1, "invalid", Some("user_id"), "2026-03-01T02:00:01.000Z"),
    (2, "malformed", None, "2026-03-01T02:00:04.000Z"),
    (3, "invalid", Some("user_id"), "2026-03-01T02:00:02.000Z"),
    (4, "malformed", Some("event_time"), "2026-03-01T02:00:02.000Z"),
    // The timestamp of a line of a file, which has none.
    (5, "invalid", Some("amount"), "292278994-08-17T07:12:55.807Z"),
];

fn at(second: u32) -> Option<i64> {
    rfc3339_ms(&format!("2026-03-01T02:00:0{second}Z")).ok()
}

#[test]
fn pages_of_a_table_are_newest_first_and_complete() {
    let (_folder, store) = store(&ROWS_OF_TEST);
    let (mut cursor, mut offsets) = (None, Vec::new());
    for _ in 0..3 {
        let page = store.page(&Filter::default(), cursor.as_deref(), 2).expect("readable");
        offsets.extend(page.dead_letters.iter().map(|letter| letter.offset));
        cursor = page.next_cursor;
    }
    assert_eq!((offsets, cursor), (vec![5, 2, 4, 3, 1], None));
    let letter = store.letter("0:4".parse().expect("an id")).expect("readable").expect("it exists");
    assert_eq!((letter.reason.as_str(), letter.value.as_deref()), ("malformed", Some("{\"n\":4}")));
    assert_eq!(letter.time.as_deref(), Some("2026-03-01T02:00:02.000Z"));
    assert_eq!(letter.sent_again, Some(false));
    assert_eq!(store.letter("0:9".parse().expect("an id")).expect("readable"), None);
    assert!(matches!(store.page(&Filter::default(), Some("x"), 2), Err(LettersError::Cursor(_))));
}

#[test]
fn a_filter_of_time_leaves_out_rows_without_time() {
    let (_folder, store) = store(&ROWS_OF_TEST);
    let offsets = |filter: Filter| -> Vec<i64> {
        let page = store.page(&filter, None, 10).expect("readable");
        page.dead_letters.iter().map(|letter| letter.offset).collect()
    };
    let reason = Some("invalid".to_owned());
    assert_eq!(offsets(Filter { reason: reason.clone(), ..Filter::default() }), [5, 3, 1]);
    assert_eq!(offsets(Filter { from_ms: at(2), ..Filter::default() }), [2, 4, 3]);
    assert_eq!(offsets(Filter { from_ms: at(1), to_ms: at(2), reason, ..Filter::default() }), [1]);
    assert_eq!(offsets(Filter { producer: Some("shop".to_owned()), ..Filter::default() }), [0; 0]);
}

#[test]
fn rows_are_grouped_and_the_newest_is_the_example() {
    let (_folder, store) = store(&ROWS_OF_TEST);
    let groups = store.groups(&Filter::default()).expect("readable");
    assert!(groups.complete);
    let first = &groups.groups[0];
    assert_eq!((first.reason.as_str(), first.field.as_deref(), first.count), ("invalid", Some("user_id"), 2));
    assert_eq!(first.first_seen.as_deref(), Some("2026-03-01T02:00:01.000Z"));
    assert_eq!(first.example.map(|id| id.offset), Some(3));
    let of_malformed = groups.groups.iter().find(|group| group.field.is_none()).expect("malformed");
    assert_eq!(of_malformed.example.map(|id| id.offset), Some(2), "not one with a field");
    assert_eq!(groups.groups.len(), 4);
}

#[test]
fn purging_a_table_keeps_new_rows_and_rows_without_time() {
    let (_folder, store) = store(&ROWS_OF_TEST);
    let before = at(2).expect("a time");
    assert_eq!(store.purge(before, false, true).expect("counted").deleted, 1);
    assert_eq!(store.purge(before + 1, false, false).expect("deleted").deleted, 3);
    let page = store.page(&Filter::default(), None, 10).expect("readable");
    assert_eq!(page.dead_letters.iter().map(|letter| letter.offset).collect::<Vec<_>>(), [5, 2]);
}

#[test]
fn letters_without_a_kafka_source_are_not_sent() {
    let (_folder, store) = store(&ROWS_OF_TEST);
    let error = store.retry(&Default::default()).expect_err("the source is not Kafka");
    assert!(matches!(error, LettersError::NoSourceTopic), "{error}");
}

#[test]
fn a_database_that_does_not_exist_is_not_created() {
    let (folder, mut store) = store(&[]);
    let path = folder.path().join("none.db");
    store.storage = Storage::Table(Database::Sqlite(path.clone()));
    let error = store.groups(&Filter::default()).expect_err("there is no file");
    assert!(error.to_string().contains("none.db") && !path.exists(), "{error}");
}

#[test]
fn a_statement_of_postgresql_has_the_conditions_of_its_filter() {
    let database = Database::Postgres("postgres://host/".to_owned().into(), None);
    let filter = Filter { reason: Some("it's".to_owned()), to_ms: Some(0), ..Filter::default() };
    let mut statement = database.statement("SELECT", &filter);
    add_rows(&mut statement, &Rows::ByPosition(Some(LetterId { partition: 1, offset: 2 })));
    assert_eq!(
        statement.numbered(),
        "SELECT WHERE reason = $1 AND timestamp < $2::text::timestamptz AND timestamp >= $3::text::timestamptz AND timestamp < \
         $4::text::timestamptz AND (partition, \"offset\") > ($5::bigint, $6::bigint) ORDER BY partition, \"offset\""
    );
}
