//! Tables of years in PostgreSQL: partitions by time, retention, and views of dashboards, all beside running rounds.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use headwater_dataflows::Epoch;
use headwater_sinks::postgres::{Partitioning, Period, PostgresConfig, PostgresSink};
use headwater_sinks::{Cell, Changes, CommitError, OpenError, Sink, tables};

use support::{Database, add_event, alert, context, dead_letter, event, permit};

const DAY: i64 = 86_400_000;

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    since.as_millis() as i64
}

fn days(retention: Option<u64>) -> Option<Partitioning> {
    let retention = retention.map(|days| Duration::from_secs(days * 86_400));
    Some(Partitioning { period: Period::Day, retention })
}

fn sink(database: &Database, partitioning: Option<Partitioning>) -> PostgresSink {
    PostgresConfig { partitioning, ..database.config() }.build()
}

fn opened(database: &Database, partitioning: Option<Partitioning>, generation: u64) -> PostgresSink {
    let mut sink = sink(database, partitioning);
    sink.open(&context(generation)).expect("opened");
    sink
}

/// Returns events with these times, at offsets from `first` on.
fn events(first: i64, times: &[i64]) -> Changes {
    let mut changes = Changes::default();
    for (offset, &time) in (first..).zip(times) {
        add_event(&mut changes, 0, offset, "e", time, 1_000_000, "{}");
    }
    changes
}

fn add_alert_at(changes: &mut Changes, id: &str, status: &str, mode: &str, key: &str, time: i64) {
    let mut row = changes.rows.row(tables::ALERTS);
    row.cell(Cell::Text(id)).cell(Cell::Text(status)).cell(Cell::Text("velocity_spike")).cell(Cell::Int(1));
    row.cell(Cell::Text("high")).cell(Cell::Text("user")).cell(Cell::Text(key)).cell(Cell::Json("[\"e\"]"));
    row.cell(Cell::Time(time)).cell(Cell::Int(1)).cell(Cell::Bool(false)).cell(Cell::Json("{}"));
    row.cell(Cell::Text(mode)).end();
}

fn wait_for(database: &Database, sql: &str, expected: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = database.one(sql);
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{sql} is {found}, not {expected}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Selects the partitions of `events`.
const PARTITIONS: &str = "SELECT inhrelid::regclass::text FROM pg_inherits
                          WHERE inhparent = 'events'::regclass ORDER BY 1";

/// Selects the sessions of the maintenance.
const MAINTENANCE: &str =
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'headwater:%:tables'";

/// Returns the name of the partition of `events` for a time.
fn partition(database: &Database, ms: i64) -> String {
    database.one(&format!(
        "SELECT to_char(to_timestamp({ms} / 1000) AT TIME ZONE 'UTC', '\"events\"_YYYY_MM_DD')"
    ))
}

/// Tables that were made before alerts had a mode, and the views over them.
#[test]
fn alerts_of_earlier_versions_are_live() {
    for partitioning in [None, days(None)] {
        let database = Database::create();
        let mut sink = opened(&database, partitioning, 1);
        sink.stage(Epoch(1), alert("a", "raised")).expect("staged");
        sink.commit(permit(1)).expect("committed");
        drop(sink);
        database
            .rows("ALTER TABLE alerts DROP COLUMN mode; DELETE FROM headwater_migrations WHERE number = 3");

        let mut sink = opened(&database, partitioning, 2);
        assert_eq!(database.rows("SELECT alert_id, status, mode FROM alerts"), ["a|raised|live"]);
        sink.stage(Epoch(2), alert("a", "revoked")).expect("staged");
        sink.commit(permit(2)).expect("committed");
        assert_eq!(database.rows("SELECT alert_id, status, mode FROM alerts"), ["a|revoked|live"]);
        let index =
            "SELECT count(*) FROM pg_indexes WHERE tablename = 'alerts' AND indexname = 'alerts_shadow'";
        assert_eq!(database.one(index), "1");
    }
}

#[test]
fn partitions_are_made_ahead_and_for_the_rows_that_arrive() {
    let database = Database::create();
    let mut sink = opened(&database, days(None), 1);
    let now = now();
    let ahead: Vec<_> = (0..8).map(|day| partition(&database, now + day * DAY)).collect();
    let all = "SELECT count(*) FROM pg_inherits WHERE inhparent IN
               ('events'::regclass, 'alerts'::regclass, 'window_aggregates'::regclass, 'dead_letters'::regclass)";
    wait_for(&database, all, &(4 * (8 + 2)).to_string());
    let others = ["events_default", "events_infinite"].map(str::to_owned);
    let expected: Vec<_> = ahead.iter().cloned().chain(others).collect();
    assert_eq!(database.rows(PARTITIONS), expected);

    // 2023-11-14, today, a year ahead, before 1970, never.
    let times = [1_700_000_000_000, now, now + 365 * DAY, -1, i64::MAX];
    sink.stage(Epoch(1), events(0, &times)).expect("staged");
    sink.stage(Epoch(1), dead_letter(0, 9)).expect("staged");
    sink.stage(Epoch(1), alert("a", "raised")).expect("staged");
    sink.commit(permit(1)).expect("committed");
    sink.stage(Epoch(2), alert("a", "revoked")).expect("staged");
    sink.commit(permit(2)).expect("committed");
    let placed = "SELECT tableoid::regclass::text FROM events ORDER BY \"offset\"";
    let expected = ["events_2023_11_14", &ahead[0], "events_default", "events_default", "events_infinite"];
    assert_eq!(database.rows(placed), expected);
    assert_eq!(
        database.rows("SELECT tableoid::regclass, status FROM alerts"),
        ["alerts_2023_11_14|revoked"],
        "an alert is replaced in its partition"
    );
    assert_eq!(database.one("SELECT tableoid::regclass FROM dead_letters"), "dead_letters_1970_01_01");
}

#[test]
fn months_are_partitions_as_days_are() {
    let database = Database::create();
    let months = |retention| {
        Some(Partitioning { period: Period::Month, retention: Some(Duration::from_secs(retention)) })
    };
    let years = 60 * 365 * 86_400;
    let mut sink = opened(&database, months(years), 1);
    let (middle, end) = (1_700_000_000_000, 1_701_388_799_999);
    sink.stage(Epoch(1), events(0, &[middle, end, end + 1, now()])).expect("staged");
    sink.commit(permit(1)).expect("committed");
    let placed = "SELECT tableoid::regclass::text FROM events WHERE \"offset\" < 3 ORDER BY \"offset\"";
    assert_eq!(database.rows(placed), ["events_2023_11", "events_2023_11", "events_2023_12"]);
    drop(sink);
    let _sink = opened(&database, months(86_400), 2);
    wait_for(&database, "SELECT count(*) FROM events", "1");
}

#[test]
fn partitioned_tables_have_the_columns_and_indexes_of_plain_ones() {
    let (plain, partitioned) = (Database::create(), Database::create());
    let _sinks = (opened(&plain, None, 1), opened(&partitioned, days(None), 1));
    let columns = "SELECT table_name, column_name, data_type, is_nullable, ordinal_position
                   FROM information_schema.columns
                   WHERE table_name IN ('events', 'alerts', 'window_aggregates', 'dead_letters') ORDER BY 1, 5";
    assert_eq!(plain.rows(columns), partitioned.rows(columns));
    let indexes = "SELECT indexname, regexp_replace(indexdef, ' ON (ONLY )?', ' ON ') FROM pg_indexes
                   WHERE tablename IN ('events', 'alerts', 'window_aggregates', 'dead_letters')
                     AND indexname NOT LIKE '%_pkey' ORDER BY 1";
    assert_eq!(plain.rows(indexes), partitioned.rows(indexes));
    let keys = "SELECT indexrelid::regclass, pg_get_constraintdef(pg_constraint.oid) FROM pg_index
                JOIN pg_constraint ON conindid = indexrelid JOIN pg_class ON pg_class.oid = indrelid
                WHERE indisprimary AND relkind = 'p' ORDER BY relname";
    assert_eq!(
        partitioned.rows(keys),
        [
            "alerts_pkey|PRIMARY KEY (alert_id, event_time)",
            "dead_letters_pkey|PRIMARY KEY (partition, \"offset\", \"timestamp\")",
            "events_pkey|PRIMARY KEY (partition, \"offset\", event_time)",
            "window_aggregates_pkey|PRIMARY KEY (window_name, key_kind, key, start)",
        ]
    );
}

#[test]
fn other_partitioning_of_existing_tables_is_refused() {
    let months = Some(Partitioning { period: Period::Month, retention: None });
    for (existing, refused, found, remedy) in [
        (None, days(None), "the tables are not partitioned", "remove `partition_by`"),
        (days(None), None, "the tables are partitioned by day", "set `partition_by = \"day\"`"),
        (days(None), months, "the tables are partitioned by day", "set `partition_by = \"day\"`"),
    ] {
        let database = Database::create();
        let mut running = opened(&database, existing, 1);
        let error = sink(&database, refused).open(&context(2)).expect_err("refused");
        assert!(matches!(error, OpenError::Refused { .. }), "{error}");
        let reason = error.to_string();
        assert!(reason.contains(found) && reason.contains(remedy), "{reason}");
        assert!(reason.contains("`--adopt-sink postgres`"), "{reason}");
        running.stage(Epoch(1), event(0, 1, "e")).expect("staged");
        running.commit(permit(1)).expect("the refused start has changed nothing");
        if existing.is_some() {
            opened(&database, days(Some(9)), 3).commit(permit(2)).expect("the retention may change");
        }
    }
}

#[test]
fn a_reader_of_all_rows_delays_neither_rounds_nor_loses_rows() {
    let database = Database::create();
    let old = 1_700_000_000_000;
    let mut sink = opened(&database, days(None), 1);
    wait_for(&database, &format!("SELECT count(*) > 9 FROM ({PARTITIONS}) AS found"), "t");
    let reader = database.connect();
    reader.rows("BEGIN; SELECT count(*) FROM events");
    let started = Instant::now();
    sink.stage(Epoch(1), events(0, &[old, old + DAY, now()])).expect("staged");
    sink.commit(permit(1)).expect("committed");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let placed = "SELECT tableoid::regclass::text FROM events WHERE \"offset\" < 2 ORDER BY \"offset\"";
    assert_eq!(database.rows(placed), ["events_default", "events_default"]);
    reader.rows("COMMIT");
    drop(sink);
    // The maintenance of the next start begins at once.
    let _sink = opened(&database, days(None), 2);
    wait_for(&database, "SELECT count(*) FROM events_default", "0");
    assert_eq!(database.rows(placed), ["events_2023_11_14", "events_2023_11_15"]);
}

/// A row whose statement began before its partition was attached has no place for a moment.
#[test]
fn a_round_is_retried_if_a_partition_is_attached_meanwhile() {
    let database = Database::create();
    let mut sink = opened(&database, days(None), 1);
    let far = now() + 365 * DAY;
    // The first row waits until the partition of the second has been attached.
    database.rows(
        "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.\"offset\" = 0 THEN PERFORM pg_advisory_xact_lock_shared(7); END IF; RETURN NEW; END $$;
         CREATE TRIGGER pause BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION pause()",
    );
    let other = database.connect();
    other.rows("SELECT pg_advisory_lock(7)");
    sink.stage(Epoch(1), events(0, &[now(), far])).expect("staged");
    let round = std::thread::spawn(move || {
        let outcome = sink.commit(permit(1));
        (sink, outcome)
    });
    wait_for(
        &database,
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 7",
        "1",
    );
    // Not CREATE TABLE … PARTITION OF, which would wait for the round.
    database.rows(&format!(
        "CREATE TABLE far (LIKE events INCLUDING ALL);
         ALTER TABLE events ATTACH PARTITION far
             FOR VALUES FROM (to_timestamp({far} / 1000)) TO (to_timestamp({far} / 1000 + 9))"
    ));
    other.rows("SELECT pg_advisory_unlock(7)");
    let (mut sink, outcome) = round.join().expect("no panic");
    let error = outcome.expect_err("the row does not belong to the default partition any more");
    assert!(matches!(error, CommitError::Failed { .. }), "{error}");
    sink.commit(permit(1)).expect("committed this time");
    assert_eq!(database.one("SELECT count(*) FROM far"), "1");
}

#[test]
fn retention_drops_partitions_under_load_without_a_lost_row() {
    let database = Database::create();
    let today = now();
    let mut sink = opened(&database, days(None), 1);
    let old: Vec<_> = (3..8).map(|age| today - age * DAY).collect();
    sink.stage(Epoch(1), events(0, &old)).expect("staged");
    sink.commit(permit(1)).expect("committed");
    drop(sink);
    let expired: BTreeSet<_> = old.iter().map(|&time| partition(&database, time)).collect();
    let remaining = format!(
        "SELECT count(*) FROM ({PARTITIONS}) AS found WHERE inhrelid = ANY ('{{{}}}')",
        expired.iter().cloned().collect::<Vec<_>>().join(",")
    );
    assert_eq!(database.one(&remaining), "5");

    // A reader holds all partitions for a while: nothing can be dropped, and rounds go on.
    let reader = database.connect();
    reader.rows("BEGIN; SELECT count(*) FROM events");
    let mut sink = opened(&database, days(Some(2)), 2);
    let (started, mut epoch, mut offset, mut slowest) = (Instant::now(), 2, 100, Duration::ZERO);
    let mut reading = true;
    while reading || database.one(&remaining) != "0" {
        assert!(started.elapsed() < Duration::from_secs(15), "the partitions are not dropped");
        // Rows of today and yesterday, and one that has expired already.
        let times: Vec<_> = (0..200).map(|n| today - n % 2 * DAY).chain([old[0]]).collect();
        sink.stage(Epoch(epoch), events(offset, &times)).expect("staged");
        let round = Instant::now();
        // As the run does: a partition may be attached while the round has rows of it.
        while let Err(error) = sink.commit(permit(epoch)) {
            assert!(matches!(error, CommitError::Failed { .. }), "{error}");
        }
        slowest = slowest.max(round.elapsed());
        (epoch, offset) = (epoch + 1, offset + times.len() as i64);
        if reading && started.elapsed() > Duration::from_millis(1500) {
            assert_eq!(database.one(&remaining), "5", "a reader reads them");
            reader.rows("COMMIT");
            reading = false;
        }
    }
    assert!(slowest < Duration::from_secs(2), "a round took {slowest:?}");
    let rounds = epoch - 2;
    let kept = format!(
        "SELECT count(*), count(DISTINCT \"offset\") FROM events WHERE event_time > to_timestamp({today} / 1000) - interval '2 days'"
    );
    assert_eq!(database.one(&kept), format!("{0}|{0}", rounds * 200));
    // The next pass removes the rows that had expired when they arrived.
    drop(sink);
    let _sink = opened(&database, days(Some(2)), 3);
    wait_for(&database, "SELECT count(*) FROM events_default", "0");
    assert_eq!(database.one("SELECT count(*) FROM events"), (rounds * 200).to_string());
}

#[test]
fn a_start_ends_the_maintenance_of_older_starts() {
    let database = Database::create();
    let _old = opened(&database, days(None), 1);
    wait_for(&database, &format!("SELECT count(*) {MAINTENANCE}"), "1");
    let new = opened(&database, days(None), 2);
    wait_for(
        &database,
        &format!("SELECT coalesce(string_agg(application_name, ','), '') {MAINTENANCE}"),
        "headwater:fraud:postgres:2:0:tables",
    );
    drop(new);
    wait_for(&database, &format!("SELECT count(*) {MAINTENANCE}"), "0");
}

#[test]
fn views_of_dashboards_are_refreshed_until_they_are_turned_off() {
    for partitioning in [None, days(None)] {
        let database = Database::create();
        let now = now();
        let config = PostgresConfig {
            partitioning,
            dashboards: Some(Duration::from_millis(100)),
            schema: Some("fraud".to_owned()),
            ..database.config()
        };
        database.rows("SET search_path = fraud");
        let mut sink = config.clone().build();
        sink.open(&context(1)).expect("opened");
        for (epoch, (user, status)) in (1..).zip([("ann", "raised"), ("ann", "raised"), ("bob", "revoked")]) {
            let mut changes = events(epoch * 10, &[now, now - DAY, now - 8 * DAY]);
            add_alert_at(&mut changes, &format!("alert-{epoch}"), status, "live", user, now);
            add_alert_at(&mut changes, &format!("shadow-{epoch}"), status, "shadow", user, now);
            sink.stage(Epoch(epoch as u64), changes).expect("staged");
            sink.stage(Epoch(epoch as u64), dead_letter(0, epoch)).expect("staged");
            // A round that meets the creation of a partition fails, and is retried.
            let committed = sink.commit(permit(epoch as u64));
            committed.or_else(|_| sink.commit(permit(epoch as u64))).expect("committed");
        }
        let hours = format!("date_trunc('hour', to_timestamp({now} / 1000), 'UTC')");
        let by_hour = "SELECT count(*), sum(raised), sum(revoked) FROM headwater_alerts_by_hour";
        let exists = "SELECT count(*) FROM pg_matviews WHERE schemaname = 'fraud'";
        wait_for(&database, exists, "4");
        wait_for(&database, by_hour, "1|2|1");
        let at_hour =
            format!("SELECT rule, severity, raised FROM headwater_alerts_by_hour WHERE hour = {hours}");
        assert_eq!(database.one(&at_hour), "velocity_spike|high|2");
        wait_for(&database, "SELECT sum(events) FROM headwater_volumes_by_type", "6");
        wait_for(
            &database,
            "SELECT string_agg(\"key\" || ' ' || alerts, ',') FROM headwater_top_keys",
            "ann 2",
        );
        assert_eq!(
            database.one("SELECT count(*) FROM headwater_dead_letters_by_reason"),
            "0",
            "those dead letters are of 1970"
        );
        drop(sink);

        let mut sink = PostgresConfig { dashboards: None, ..config }.build();
        sink.open(&context(2)).expect("opened");
        let mut changes = Changes::default();
        add_alert_at(&mut changes, "alert-9", "raised", "live", "ann", now);
        sink.stage(Epoch(9), changes).expect("staged");
        sink.commit(permit(9)).expect("committed");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(database.one(by_hour), "1|2|1", "left alone");
    }
}

#[test]
fn a_foreign_table_with_the_name_of_a_view_is_left_alone() {
    let database = Database::create();
    database.rows("CREATE TABLE headwater_top_keys (mine text)");
    let dashboards = Some(Duration::from_millis(50));
    let mut sink = PostgresConfig { dashboards, ..database.config() }.build();
    sink.open(&context(1)).expect("opened");
    wait_for(
        &database,
        "SELECT count(*) FROM pg_matviews WHERE matviewname = 'headwater_alerts_by_hour'",
        "1",
    );
    sink.stage(Epoch(1), event(0, 1, "e")).expect("staged");
    sink.commit(permit(1)).expect("a failure of the views does not stop rounds");
    assert_eq!(database.one("SELECT count(mine) FROM headwater_top_keys"), "0");
}

/// Adds a window of a minute for each of so many users.
fn add_windows(changes: &mut Changes, users: i64, start: i64) {
    for user in 0..users {
        let mut row = changes.rows.row(tables::WINDOW_AGGREGATES);
        row.cell(Cell::Text("user_1m")).cell(Cell::Text("user")).cell(Cell::Text(&format!("u{user}")));
        row.cell(Cell::Time(start)).cell(Cell::Time(start + 60_000)).cell(Cell::Int(1)).cell(Cell::Int(1));
        row.cell(Cell::Micros(1)).cell(Cell::Float(1.0)).cell(Cell::Micros(1)).cell(Cell::Micros(1));
        row.cell(Cell::Null).cell(Cell::Int(1)).cell(Cell::Bool(true)).cell(Cell::Int(1)).end();
    }
}

/// Prints the rates of rounds of events and windows into plain and partitioned tables, by turns.
#[test]
#[ignore = "a measurement, of a quiet machine; run with --nocapture"]
fn rate_of_plain_and_partitioned_tables() {
    const EVENTS: i64 = 18_000;
    const ROUNDS: u64 = 31;
    let stores = [(None, Database::create()), (days(Some(90)), Database::create())];
    let mut sinks = stores.each_ref().map(|(partitioning, database)| opened(database, *partitioning, 1));
    let midnight = now().div_euclid(DAY) * DAY;
    let mut rates = [Vec::new(), Vec::new()];
    for round in 1..=ROUNDS {
        for (sink, rates) in sinks.iter_mut().zip(&mut rates) {
            let start = midnight + round as i64 * 60_000;
            let mut changes = events(round as i64 * EVENTS, &vec![start; EVENTS as usize]);
            add_windows(&mut changes, EVENTS, start);
            sink.stage(Epoch(round), changes).expect("staged");
            let began = Instant::now();
            sink.commit(permit(round)).expect("committed");
            rates.push(EVENTS as f64 / began.elapsed().as_secs_f64());
        }
    }
    let mut ratios: Vec<_> = rates[0].iter().zip(&rates[1]).map(|(plain, parts)| parts / plain).collect();
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let ratio = median(&mut ratios);
    let [plain, partitioned] = rates.each_mut().map(median);
    println!("plain {plain:.0} events/s, partitioned {partitioned:.0}; ratio by rounds {ratio:.2}");
    for (_, database) in &stores {
        for table in ["events", "window_aggregates"] {
            let count = database.one(&format!("SELECT count(*) FROM {table}"));
            assert_eq!(count, (EVENTS * ROUNDS as i64).to_string());
        }
    }
}
