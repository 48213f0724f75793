//! Tests specific to PostgreSQL: rows read back through SQL, and every way in which a session, a round or a writer can
//! fail.

mod support;

use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use headwater_sinks::postgres::{Partitioning, Period, PostgresConfig};
use headwater_sinks::tables::{OUTBOX, TableSet};
use headwater_sinks::{
    Cell, Changes, CommitError, Misconfigured, OpenError, Progress, Shards, Sink, WriterContext, tables,
};

use support::{Database, add_change, add_event, alert, context, dead_letter, event, permit};

/// Selects the backends of the sink, without those of the test.
const OURS: &str =
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'headwater:%'";

fn wait_for(database: &Database, sql: &str, expected: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while database.one(sql) != expected {
        assert!(Instant::now() < deadline, "{sql} never became {expected}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn extreme_values_are_read_back_unchanged() {
    let database = Database::create();
    let mut sink = database.sink();
    sink.open(&context(1)).expect("opened");
    let amounts = [
        (0i128, "0"),
        (-1, "-0.000001"),
        (1, "0.000001"),
        (100, "0.0001"),
        (-10_000_000_000, "-10000"),
        (100_000_000_000_000, "100000000"),
        (1_000_000, "1"),
        (12_500_000, "12.5"),
        (99_999_999_999_999, "99999999.999999"),
        (10_000_000_100, "10000.0001"),
        (i128::MAX, "170141183460469231731687303715884.105727"),
        (i128::MIN, "-170141183460469231731687303715884.105728"),
    ];
    let times = [
        (0, "1970-01-01 00:00:00+00"),
        (-1, "1969-12-31 23:59:59.999+00"),
        (951_782_400_001, "2000-02-29 00:00:00.001+00"),
        (253_402_300_799_999, "9999-12-31 23:59:59.999+00"),
        (9_224_318_015_999_999, "294276-12-31 23:59:59.999+00"),
        (9_224_318_016_000_000, "infinity"),
        (i64::MAX, "infinity"),
        (-210_866_803_200_000, "4714-11-24 00:00:00+00 BC"),
        (-210_866_803_200_001, "-infinity"),
        (i64::MIN, "-infinity"),
    ];
    let documents = [
        ("{}", "{}"),
        (r#"{"b": [1, 2.50, null], "a": "é\"\\"}"#, r#"{"a": "é\"\\", "b": [1, 2.50, null]}"#),
        (r#""\\u0000""#, r#""\\u0000""#),
    ];
    let mut changes = Changes::default();
    for (at, (amount, _)) in amounts.iter().enumerate() {
        let (time, document) = (times[at % times.len()].0, documents[at % documents.len()].0);
        add_event(&mut changes, i32::MAX.into(), at as i64, "e", time, *amount, document);
    }
    sink.stage(Epoch(1), changes).expect("staged");
    sink.commit(permit(1)).expect("committed");
    let rows = database.rows(
        "SET timezone = 'UTC'; SELECT amount, event_time, attributes, key_events, lat, lon, merchant_id
         FROM events ORDER BY \"offset\"",
    );
    for (at, (_, amount)) in amounts.iter().enumerate() {
        let (time, document) = (times[at % times.len()].1, documents[at % documents.len()].1);
        assert_eq!(rows[at], format!("{amount}|{time}|{document}|{}|-0.5|179.25|∅", i64::MAX));
    }
    assert_eq!(rows.len(), amounts.len());
    assert_eq!(
        database.one("SELECT sum(amount) FROM events WHERE amount < 100 AND amount > -1"),
        "13.500100"
    );
}

#[test]
fn bytes_nulls_and_booleans_are_read_back_unchanged() {
    let database = Database::create();
    let mut sink = database.sink();
    sink.open(&context(1)).expect("opened");
    sink.stage(Epoch(1), dead_letter(3, 4)).expect("staged");
    sink.stage(Epoch(1), alert("a", "raised")).expect("staged");
    sink.commit(permit(1)).expect("committed");
    assert_eq!(
        database
            .one("SELECT partition, \"offset\", reason, field, \"key\", value, retries FROM dead_letters"),
        r"3|4|late|∅|∅|\x00ff|0"
    );
    assert_eq!(database.one("SELECT final, event_ids, details FROM alerts"), r#"f|["e"]|{}"#);
}

#[test]
fn text_that_looks_like_sql_is_stored_as_text() {
    let database = Database::create();
    let mut sink =
        PostgresConfig { name: "p'; DROP TABLE alerts; --".to_owned(), ..database.config() }.build();
    let mut quoted = context(1);
    quoted.pipeline = "fraud' OR ''='\"%_:é".to_owned();
    sink.open(&quoted).expect("opened");
    let texts = ["'; DROP TABLE events; --", "\"", "\\", "$1", "\t\n\\N", "\\.", "é😀", "%s"];
    for (at, text) in texts.iter().enumerate() {
        sink.stage(Epoch(1), event(0, at as i64, text)).expect("staged");
        sink.stage(Epoch(1), alert(text, text)).expect("staged");
    }
    sink.commit(permit(1)).expect("committed");
    assert_eq!(database.rows("SELECT event_id FROM events ORDER BY \"offset\""), texts);
    assert_eq!(database.one("SELECT count(*) FROM alerts WHERE alert_id = status"), texts.len().to_string());
    assert_eq!(sink.open(&quoted).expect("opened again").len(), 1);
}

#[test]
fn an_invalid_row_is_refused_by_stage_without_effect() {
    let database = Database::create();
    let mut sink = database.sink();
    sink.open(&context(1)).expect("opened");
    let mut nul = Changes::default();
    add_event(&mut nul, 0, 1, "e", 0, 0, r#"{"a":"\\\u0000"}"#);
    let mut short = Changes::default();
    short.rows.row(tables::ALERTS).cell(Cell::Text("a")).end();
    let mut deletion = Changes::default();
    deletion.rows.delete(tables::EVENTS).cell(Cell::Int(0)).cell(Cell::Int(1)).end();
    let mut unknown = Changes::default();
    unknown.rows.row(200).end();
    let mut mistyped = Changes::default();
    mistyped.rows.delete(tables::ALERTS).cell(Cell::Int(0)).end();
    let wide = event(i64::from(i32::MAX) + 1, 0, "e");
    for (refused, words) in [
        (nul, "NUL"),
        (event(0, 1, "a\0b"), "NUL"),
        (short, "no cell for column status"),
        (deletion, "cannot be deleted"),
        (unknown, "no table 200"),
        (mistyped, "a Text column cannot store an integer"),
        (wide, "32 bits"),
    ] {
        let error = sink.stage(Epoch(1), refused).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
    sink.stage(Epoch(1), event(0, 1, "e")).expect("staged");
    sink.commit(permit(1)).expect("committed");
    assert_eq!(database.one("SELECT count(*) FROM events"), "1");
}

#[test]
fn a_round_with_a_terminated_backend_is_rolled_back_and_retried() {
    let database = Database::create();
    let mut sink = database.sink();
    sink.open(&context(1)).expect("opened");
    sink.commit(permit(1)).expect("committed");
    sink.stage(Epoch(2), event(0, 1, "e")).expect("staged");
    sink.stage(Epoch(2), alert("a", "raised")).expect("staged");
    // The round stops at the merge of the alerts, after the COPY of the events.
    let other = database.connect();
    other.rows("BEGIN; LOCK TABLE alerts IN SHARE MODE");
    let round = std::thread::spawn(move || {
        let outcome = sink.commit(permit(2));
        (sink, outcome)
    });
    wait_for(&database, &format!("SELECT count(*) {OURS} AND wait_event_type = 'Lock'"), "1");
    database.rows(&format!("SELECT pg_terminate_backend(pid) {OURS}"));
    let (mut sink, outcome) = round.join().expect("no panic");
    let error = outcome.expect_err("its backend is gone");
    assert!(matches!(error, CommitError::Failed { .. }), "{error}");
    other.rows("ROLLBACK");
    assert_eq!(database.one("SELECT count(*) FROM events"), "0");
    assert_eq!(database.one("SELECT through FROM headwater_progress"), "1");
    sink.commit(permit(2)).expect("committed this time");
    assert_eq!(database.one("SELECT count(*) FROM events"), "1");
    assert_eq!(database.one("SELECT through FROM headwater_progress"), "2");
}

#[test]
fn a_later_start_fences_the_previous_writer_permanently() {
    let database = Database::create();
    let (mut old, mut new) = (database.sink(), database.sink());
    old.open(&context(1)).expect("opened");
    old.stage(Epoch(1), event(0, 1, "old")).expect("staged");
    old.commit(permit(1)).expect("committed");
    old.stage(Epoch(2), event(0, 2, "old")).expect("staged");
    let found = new.open(&context(2)).expect("opened");
    assert_eq!(found.iter().map(|progress| progress.through).collect::<Vec<_>>(), [Epoch(1)]);
    // The first commit fails because its backend was terminated. All later ones are fenced.
    assert!(matches!(old.commit(permit(2)), Err(CommitError::Failed { .. })));
    for _ in 0..2 {
        assert!(matches!(old.commit(permit(2)), Err(CommitError::Fenced { .. })));
    }
    new.stage(Epoch(2), event(0, 2, "new")).expect("staged");
    new.commit(permit(2)).expect("committed");
    assert_eq!(database.rows("SELECT event_id FROM events ORDER BY \"offset\""), ["old", "new"]);
}

/// The server truncates the names of sessions to 63 bytes.
#[test]
fn backends_of_older_starts_are_found_despite_long_names() {
    let database = Database::create();
    let (mut old, mut new) = (database.sink(), database.sink());
    let of = |generation| WriterContext { pipeline: "p".repeat(100), ..context(generation) };
    old.open(&of(1)).expect("opened");
    new.open(&of(2)).expect("opened");
    let names = database.rows(&format!("SELECT application_name {OURS}"));
    assert!(names.len() == 1 && names[0].ends_with(":2:0"), "{names:?}");
}

#[test]
fn a_round_of_a_stopped_start_does_not_delay_the_next_start() {
    let database = Database::create();
    let mut old = database.sink();
    old.open(&context(1)).expect("opened");
    old.stage(Epoch(1), event(0, 1, "old")).expect("staged");
    old.stage(Epoch(1), alert("a", "raised")).expect("staged");
    let other = database.connect();
    other.rows("BEGIN; LOCK TABLE alerts IN SHARE MODE");
    let round = std::thread::spawn(move || old.commit(permit(1)));
    wait_for(&database, &format!("SELECT count(*) {OURS} AND wait_event_type = 'Lock'"), "1");
    let (mut new, started) = (database.sink(), Instant::now());
    assert_eq!(
        new.open(&context(2)).expect("terminating the backend has released the locks of the round"),
        []
    );
    assert!(started.elapsed() < Duration::from_secs(5), "it waited for the timeout of the locks");
    other.rows("ROLLBACK");
    assert!(round.join().expect("no panic").is_err());
    assert_eq!(database.one("SELECT count(*) FROM events"), "0");
}

/// A session that an older start opens at the last moment is not among those that are terminated.
#[test]
fn opening_waits_for_a_round_in_progress_and_finds_it() {
    let database = Database::create();
    let (mut old, mut new) = (database.sink(), database.sink());
    old.open(&context(1)).expect("opened");
    old.commit(permit(1)).expect("committed");
    let round = database.connect();
    round.rows("BEGIN; UPDATE headwater_progress SET through = 2");
    let opening = std::thread::spawn(move || new.open(&context(2)).expect("opened"));
    wait_for(&database, &format!("SELECT count(*) {OURS} AND wait_event_type = 'Lock'"), "1");
    round.rows("COMMIT");
    let found = opening.join().expect("no panic");
    assert_eq!(found.iter().map(|progress| progress.through).collect::<Vec<_>>(), [Epoch(2)]);
}

/// Both pipelines read the progress before either has inserted its row. The second must read it again.
#[test]
fn one_of_two_pipelines_that_open_at_once_is_refused() {
    let database = Database::create();
    database.sink().open(&context(1)).expect("the tables are created");
    for _ in 0..5 {
        database.rows("DELETE FROM headwater_progress");
        let other = database.connect();
        other.rows("BEGIN; LOCK TABLE headwater_progress IN SHARE ROW EXCLUSIVE MODE");
        let opening = ["fraud", "payments"].map(|pipeline| {
            let mut sink = database.sink();
            let context = WriterContext { pipeline: pipeline.to_owned(), ..context(1) };
            std::thread::spawn(move || sink.open(&context))
        });
        wait_for(&database, &format!("SELECT count(*) {OURS} AND wait_event_type = 'Lock'"), "2");
        other.rows("COMMIT");
        let outcomes = opening.map(|opening| opening.join().expect("no panic"));
        let refused = outcomes.iter().filter(|outcome| matches!(outcome, Err(OpenError::Refused { .. })));
        assert!(refused.count() == 1 && outcomes.iter().any(Result::is_ok), "{outcomes:?}");
    }
}

/// The update that advances the progress waits for the fencing update. When it continues, it must see that it is
/// fenced, although its snapshot is older.
#[test]
fn a_round_that_waits_for_the_fencing_update_is_fenced() {
    let database = Database::create();
    let mut sink = database.sink();
    sink.open(&context(1)).expect("opened");
    sink.stage(Epoch(1), event(0, 1, "e")).expect("staged");
    let other = database.connect();
    other.rows("BEGIN; UPDATE headwater_progress SET fenced_by = 2");
    let round = std::thread::spawn(move || sink.commit(permit(1)));
    wait_for(&database, &format!("SELECT count(*) {OURS} AND wait_event_type = 'Lock'"), "1");
    other.rows("COMMIT");
    let error = round.join().expect("no panic").expect_err("fenced");
    assert!(matches!(error, CommitError::Fenced { .. }), "{error}");
    assert_eq!(database.one("SELECT count(*) FROM events"), "0");
}

#[test]
fn changed_progress_or_a_later_generation_fences_the_writer() {
    for interference in [
        "INSERT INTO headwater_progress SELECT pipeline, sink, 9, 5, lineage, shards FROM headwater_progress",
        "UPDATE headwater_progress SET through = 5",
        "DELETE FROM headwater_progress",
    ] {
        let database = Database::create();
        let mut sink = database.sink();
        sink.open(&context(1)).expect("opened");
        sink.commit(permit(1)).expect("committed");
        database.rows(interference);
        sink.stage(Epoch(2), event(0, 1, "e")).expect("staged");
        let error = sink.commit(permit(2)).expect_err(interference);
        assert!(matches!(error, CommitError::Fenced { .. }), "{interference}: {error}");
        assert_eq!(database.one("SELECT count(*) FROM events"), "0");
    }
}

#[test]
fn a_start_without_commits_hides_no_progress_of_two_writers() {
    let database = Database::create();
    let of_two = |generation, process| {
        let shards = Shards::of_workers(process..process + 1, 2);
        WriterContext { process, shards, ..context(generation) }
    };
    let (mut a, mut b) = (database.sink(), database.sink());
    a.open(&of_two(1, 0)).expect("opened");
    b.open(&of_two(1, 1)).expect("opened");
    a.stage(Epoch(1), event(0, 1, "a")).expect("staged");
    a.commit(permit(9)).expect("committed");
    b.stage(Epoch(1), event(0, 2, "b")).expect("staged");
    b.commit(permit(3)).expect("committed");
    let through =
        |found: &[Progress]| found.iter().map(|one| (one.shards, one.through.0)).collect::<Vec<_>>();
    let expected = [(Shards::of_workers(0..1, 2), 9), (Shards::of_workers(1..2, 2), 3)];
    // A start that crashes before its first commit has no progress for any shard.
    for generation in 2..4 {
        let found = database.sink().open(&context(generation)).expect("opened");
        assert_eq!(through(&found), expected);
    }
}

#[test]
fn a_replay_from_older_offsets_adds_only_missing_rows() {
    for partitioning in [None, Some(Partitioning { period: Period::Day, retention: None })] {
        replay_from_older_offsets(partitioning);
    }
}

fn replay_from_older_offsets(partitioning: Option<Partitioning>) {
    let database = Database::create();
    let config = PostgresConfig { partitioning, ..database.config() };
    let mut sink = config.clone().build();
    sink.open(&context(1)).expect("opened");
    for (offset, id) in [(1, "first"), (2, "first"), (5, "first")] {
        sink.stage(Epoch(1), event(0, offset, id)).expect("staged");
    }
    sink.stage(Epoch(1), dead_letter(0, 3)).expect("staged");
    sink.stage(Epoch(1), dead_letter(1, 8)).expect("staged");
    sink.commit(permit(1)).expect("committed");
    drop(sink);
    let mut sink = PostgresConfig { skip_stored: true, ..config }.build();
    sink.open(&context(2)).expect("opened");
    // Offset 4 belonged to another writer and was never committed. Offset 3 is stored as a dead letter.
    for offset in 1..=7 {
        sink.stage(Epoch(2), event(0, offset, "again")).expect("staged");
    }
    sink.stage(Epoch(2), dead_letter(0, 2)).expect("staged");
    sink.stage(Epoch(2), dead_letter(1, 7)).expect("staged");
    sink.stage(Epoch(2), dead_letter(1, 8)).expect("staged");
    sink.stage(Epoch(2), dead_letter(2, 1)).expect("staged");
    sink.commit(permit(2)).expect("committed");
    assert_eq!(
        database.rows("SELECT \"offset\", event_id FROM events ORDER BY 1"),
        ["1|first", "2|first", "4|again", "5|first", "6|again", "7|again"]
    );
    assert_eq!(
        database.rows("SELECT partition, \"offset\" FROM dead_letters ORDER BY 1, 2"),
        ["0|3", "1|7", "1|8", "2|1"]
    );
}

/// Unlike the table of alerts, the outbox keeps every change of a round, and its order.
#[test]
fn the_outbox_keeps_every_change_and_fences_earlier_starts() {
    let database = Database::create();
    let sink = || {
        let (schema, set) = (Some("outbox".to_owned()), TableSet::Outbox);
        PostgresConfig { schema, set, ..database.config() }.build()
    };
    let change = |status: &str| {
        let mut changes = Changes::default();
        add_change(&mut changes, OUTBOX, "a", status);
        changes
    };
    let mut first = sink();
    first.open(&context(1)).expect("opened");
    for (epoch, status) in [(1, "raised"), (1, "revoked"), (2, "raised"), (3, "revoked")] {
        first.stage(Epoch(epoch), change(status)).expect("staged");
    }
    first.commit(permit(2)).expect("committed");
    let statuses = || database.rows("SELECT status FROM outbox.headwater_outbox ORDER BY seq");
    assert_eq!(statuses(), ["raised", "revoked", "raised"]);
    let found = sink().open(&context(2)).expect("opened");
    assert_eq!(found.iter().map(|progress| progress.through).collect::<Vec<_>>(), [Epoch(2)]);
    // The first attempt may find out only that its connection was terminated.
    let errors: Vec<_> =
        (0..2).map(|_| first.commit(permit(3)).expect_err("start 2 has taken over")).collect();
    assert!(matches!(errors[1], CommitError::Fenced { .. }), "{errors:?}");
    assert_eq!(statuses().len(), 3);
    assert_eq!(database.rows("SELECT to_regclass('outbox.events')"), ["∅"]);
}

#[test]
fn a_duplicate_record_is_refused_unless_stored_are_skipped() {
    let database = Database::create();
    let mut sink = database.sink();
    sink.open(&context(1)).expect("opened");
    sink.stage(Epoch(1), event(0, 1, "e")).expect("staged");
    sink.commit(permit(1)).expect("committed");
    sink.stage(Epoch(2), event(0, 1, "e")).expect("staged");
    let error = sink.commit(permit(2)).expect_err("the key exists");
    assert!(matches!(error, CommitError::Refused { .. }), "a retry does not help: {error}");
    let error = error.to_string();
    assert!(error.contains("events_pkey") && error.contains("23505"), "{error}");
    assert!(
        error.contains("`--skip postgres:2:events/0/1`"),
        "the error shows how to skip the output: {error}"
    );
    assert_eq!(database.one("SELECT through FROM headwater_progress"), "1");
}

/// Tests a row that `stage` refuses, and a row that violates a constraint added by the owner of the table.
#[test]
fn a_refused_row_is_named_in_the_format_of_skip() {
    let database = Database::create();
    let mut sink = database.sink();
    sink.open(&context(1)).expect("opened");
    let mut changes = headwater_sinks::Changes::default();
    let mut row = changes.rows.row(headwater_sinks::tables::DEAD_LETTERS);
    row.cell(Cell::Int(3)).cell(Cell::Int(42));
    for _ in 2..9 {
        row.cell(Cell::Null);
    }
    row.cell(Cell::Int(3_000_000_000));
    row.end();
    let error = sink.stage(Epoch(7), changes).expect_err("32 bits").to_string();
    assert!(error.contains("column retries: 3000000000 exceeds 32 bits"), "{error}");
    assert!(error.contains("`--skip postgres:7:dead_letters/3/42`"), "{error}");

    database.rows("ALTER TABLE events ADD CHECK (event_id <> 'x')");
    for (epoch, offset, id) in [(8, 5, "a"), (9, 6, "x"), (10, 7, "b")] {
        sink.stage(Epoch(epoch), event(1, offset, id)).expect("staged");
    }
    let error = sink.commit(permit(10)).expect_err("the row violates the constraint").to_string();
    assert!(error.contains("`--skip postgres:9:events/1/6`"), "{error}");
}

#[test]
fn changed_migrations_are_refused() {
    let database = Database::create();
    database.sink().open(&context(1)).expect("opened");
    database.rows("UPDATE headwater_migrations SET hash = 'other'");
    let error = database.sink().open(&context(2)).expect_err("refused");
    assert!(
        matches!(&error, OpenError::Refused { reason, .. } if reason.contains("its hash differs")),
        "{error}"
    );
}

#[test]
fn invalid_addresses_are_refused_without_showing_the_password() {
    let database = Database::create();
    let (start_of_url, rest) = ("postgres://headwater:canary@", database.url());
    let (_, host) = rest.split_once('@').expect("user@host");
    for (options, refused) in [
        ("?sslmode=sometimes", true),
        ("?sslmode=verify-full", true),
        ("?canary=1", true),
        ("?connect_timeout=1", false),
    ] {
        let url = format!("{start_of_url}{}{options}", if refused { host } else { "127.0.0.1:1/none" });
        let config = PostgresConfig { url: url.into(), ..database.config() };
        assert!(!format!("{config:?}").contains("canary"));
        let error = config.build().open(&context(1)).expect_err(options);
        let mut causes =
            std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let misconfigured = causes.any(|cause| cause.is::<Misconfigured>());
        assert_eq!(misconfigured, refused, "{options}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}

#[test]
fn sessions_have_durable_settings_and_the_name_for_fencing() {
    let database = Database::create();
    database.rows("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$");
    let mut sink = database.sink();
    sink.open(&context(3)).expect("opened");
    assert_eq!(database.one(&format!("SELECT application_name {OURS}")), "headwater:fraud:postgres:3:0");
    // Only the session itself can read its settings: a trigger of the test makes it record them.
    database.rows(
        "CREATE TABLE seen (what text);
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO seen VALUES (current_setting('synchronous_commit')), (current_setting('lock_timeout')),
                 (current_setting('transaction_isolation'));
             RETURN NEW; END $$;
         CREATE TRIGGER see BEFORE UPDATE ON headwater_progress FOR EACH ROW EXECUTE FUNCTION see()",
    );
    sink.commit(permit(1)).expect("committed");
    assert_eq!(database.rows("SELECT what FROM seen"), ["on", "10s", "read committed"]);
}
