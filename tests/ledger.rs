//! The contract of a ledger: one suite for every store.
//!
//! `HEADWATER_TEST_POSTGRES` is the URL of a server in which these tests may create and drop databases.

use std::time::{Duration, Instant};

use headwater::coordination::ingest::TimeRules;
use headwater::coordination::{
    Binding, Change, EpochRecord, Loss, Manifest, Operator, Part, PartKind, PartName, Position, Skip,
    TAKEOVERS_WITHIN_MS, Takeovers, Versions,
};
use headwater::ledger::{Genesis, Ledger, LedgerError, PostgresLedger, SqliteLedger};
use headwater_dataflows::{Epoch, EventTime, Offset, Partition, ShardId};
use headwater_sinks::{Generation, LedgerId};

fn genesis() -> Genesis {
    Genesis { starts: vec![Offset(0), Offset(17)], semantics: "patterns".into() }
}

fn record(epoch: u64) -> EpochRecord {
    let binding = Binding {
        partition: Partition(1),
        end: Offset(17 + epoch as i64),
        timestamp: Some(1_000),
        max_event_time: Some(EventTime(-5)),
        pushing_time: Some(EventTime(-6)),
        candidate: None,
        idle: false,
    };
    let (rules, change) = (TimeRules::default(), Change::default());
    EpochRecord {
        epoch: Epoch(epoch),
        wall_ms: 2_000,
        bindings: vec![binding],
        closes: epoch == 9,
        rules,
        change,
    }
}

fn manifest(epoch: u64) -> Manifest {
    let name = PartName {
        ledger_id: LedgerId("a".into()),
        generation: Generation(1),
        epoch: Epoch(epoch),
        shard: ShardId(5),
        kind: PartKind::Base,
    };
    Manifest {
        epoch: Epoch(epoch),
        generation: Generation(1),
        wall_ms: 2_000,
        watermark: EventTime(-5_006),
        positions: vec![Position { timestamp_ms: Some(1_000), idle: true, ..Position::starting(Offset(17)) }],
        unfinal: vec![(Partition(1), EventTime(-5), 300)],
        all_idle: None,
        in_force: Versions::default(),
        operators: vec![Operator { name: "scan".into(), version: 1 }],
        keys: None,
        parts: vec![Part { name, hash: [7; 32], bytes: 9 }],
    }
}

/// Returns the epochs of all manifests, and of those that can be read.
fn epochs_of_manifests(ledger: &mut dyn Ledger) -> (Vec<u64>, Vec<u64>) {
    let stored = ledger.manifests().expect("readable");
    let readable = stored.iter().filter_map(|stored| Some(stored.manifest.as_ref().ok()?.epoch.0)).collect();
    (stored.iter().map(|stored| stored.epoch.0).collect(), readable)
}

fn reason<T: std::fmt::Debug>(outcome: Result<T, LedgerError>) -> String {
    match outcome {
        Err(LedgerError::Refused(reason)) => reason,
        other => panic!("not a refusal: {other:?}"),
    }
}

/// Checks the contract of skips.
fn check_skips(open: impl Fn(&str) -> Box<dyn Ledger>) {
    let skip = |text: &str| text.parse::<Skip>().expect("a skip");
    let mut first = open("skips");
    first.claim().expect("new");
    let (late, early) = (skip("kafka:9:enriched-events/a:b/0"), skip("postgres:7:events/3/42"));
    for again in [&late, &early, &late] {
        first.skip(again).expect("recorded, once");
    }
    assert_eq!(first.skips().expect("readable"), [early.clone(), late.clone()]);
    assert_eq!(open("others").skips().expect("readable"), []);
    let mut second = open("skips");
    second.claim().expect("taken over");
    assert_eq!(second.skips().expect("readable"), [early, late]);
    let lost = first.skip(&skip("kafka:9:alerts/a/0"));
    assert!(matches!(lost, Err(LedgerError::Fenced { .. })), "{lost:?}");
    assert_eq!(second.skips().expect("readable").len(), 2);
}

/// Checks the contract of losses, of sinks that have committed, of attempts, and of takeovers.
fn check_losses_commits_and_attempts(open: impl Fn(&str) -> Box<dyn Ledger>) {
    let loss = |partition, first, next| Loss {
        partition: Partition(partition),
        first: Offset(first),
        next: Offset(next),
    };
    let mut first = open("ways-on");
    first.claim().expect("new");
    for again in [loss(3, 5, 9), loss(0, 1, 2), loss(3, 5, 9)] {
        first.lose(&again).expect("recorded, once");
    }
    first.committed("kafka-alerts").expect("recorded");
    first.committed("kafka-alerts").expect("once");
    assert_eq!(
        [first.attempt(Epoch(7)), first.attempt(Epoch(7))].map(|before| before.expect("recorded")),
        [0, 1]
    );
    assert_eq!(first.attempts(Epoch(7)).expect("readable"), 2);
    assert_eq!(first.attempt(Epoch(9)).expect("recorded"), 0, "the ledger has advanced");
    assert_eq!(first.attempts(Epoch(7)).expect("readable"), 0);
    first.ended().expect("recorded");
    assert_eq!(first.attempts(Epoch(9)).expect("readable"), 0, "it ended by itself");

    let mut other = open("others");
    assert_eq!(
        (other.losses().expect("readable"), other.committed_sinks().expect("readable")),
        (vec![], vec![])
    );
    let mut second = open("ways-on");
    second.claim().expect("taken over");
    assert_eq!(second.losses().expect("readable"), [loss(0, 1, 2), loss(3, 5, 9)]);
    assert_eq!(second.committed_sinks().expect("readable"), ["kafka-alerts"]);
    assert_eq!(second.takeovers().expect("readable"), None);
    let takeovers = |count, last_ms| Some(Takeovers { count, last_ms });
    for (now_ms, count) in [(1_000, 1), (2_000, 2), (1_500, 3), (1_500 + TAKEOVERS_WITHIN_MS + 1, 1)] {
        first.replaced(now_ms).expect("an older generation may record it");
        assert_eq!(second.takeovers().expect("readable"), takeovers(count, now_ms));
    }
    let fenced = [
        first.lose(&loss(1, 1, 2)),
        first.committed("postgres"),
        first.attempt(Epoch(9)).map(drop),
        first.ended(),
    ];
    for written in fenced {
        assert!(matches!(written, Err(LedgerError::Fenced { .. })), "{written:?}");
    }
    assert_eq!(second.losses().expect("readable").len(), 2);
}

/// Checks the contract of manifests.
fn check_manifests(open: impl Fn(&str) -> Box<dyn Ledger>) {
    let mut first = open("checkpoints");
    assert_eq!(first.peek().expect("readable"), None, "peeking creates nothing");
    let claim = first.claim().expect("new");
    first.begin(&genesis()).expect("once");
    assert_eq!(epochs_of_manifests(&mut *first), (vec![], vec![]));
    first.append(&[record(1), record(2)]).expect("a round");
    first.append(&[record(3), record(4)]).expect("a round");
    first.append(&[record(5)]).expect("a round");

    // The beginning counts as one of the three, so the first two prune nothing.
    first.conclude(&manifest(1), 3).expect("the first");
    first.conclude(&manifest(3), 3).expect("the second");
    assert_eq!(first.pruned().expect("readable"), Epoch(0));
    assert_eq!(first.epochs(Epoch(0)).expect("all").len(), 5);
    let stored = first.manifests().expect("readable").pop().expect("two");
    assert_eq!(stored.manifest.expect("whole"), manifest(3));

    // The third prunes only what ends at or before the oldest manifest: the round of epochs 1 and 2 stays.
    first.conclude(&manifest(4), 3).expect("the third");
    assert_eq!(
        (first.pruned().expect("readable"), epochs_of_manifests(&mut *first).0),
        (Epoch(1), vec![1, 3, 4])
    );
    assert_eq!(first.epochs(Epoch(1)).expect("kept"), [record(2), record(3), record(4), record(5)]);
    let refused = reason(first.epochs(Epoch(0)));
    assert!(refused.contains("after 0: the epochs through 1 were pruned"), "{refused}");
    first.conclude(&manifest(5), 3).expect("the fourth");
    assert_eq!(
        (first.pruned().expect("readable"), epochs_of_manifests(&mut *first).0),
        (Epoch(3), vec![3, 4, 5])
    );
    assert_eq!(first.epochs(Epoch(3)).expect("kept"), [record(4), record(5)]);

    // An invalid manifest is rejected, and nothing changes.
    for epoch in [4, 5] {
        let refused = reason(first.conclude(&manifest(epoch), 3));
        assert!(refused.contains("has a manifest of epoch 5"), "{refused}");
    }
    let mut invalid = manifest(6);
    invalid.parts[0].name.kind = PartKind::Delta;
    let refused = reason(first.conclude(&invalid, 3));
    assert!(refused.contains("parts of epoch 6"), "{refused}");

    // Peeking claims nothing. A start of a pruned ledger claims it and resumes from it.
    let peeked = open("checkpoints").peek().expect("readable").expect("it exists");
    assert_eq!((peeked.generation, peeked.ledger_id), (Generation(1), claim.ledger_id.clone()));
    first.append(&[record(6)]).expect("not fenced yet");
    let mut second = open("checkpoints");
    let again = second.claim().expect("a pruned ledger");
    assert_eq!(
        (again.ledger_id, again.generation, again.genesis),
        (claim.ledger_id, Generation(2), Some(genesis()))
    );
    let fenced = first.conclude(&manifest(6), 3);
    assert!(matches!(fenced, Err(LedgerError::Fenced { generation: Generation(2), .. })), "{fenced:?}");
    assert_eq!(epochs_of_manifests(&mut *second).0, [3, 4, 5], "a fenced write changes nothing");
    assert_eq!(second.epochs(Epoch(3)).expect("kept"), [record(4), record(5), record(6)]);

    // From now on more manifests are kept; pruned manifests stay deleted.
    let start = Instant::now();
    second.conclude(&manifest(6), 9).expect("the fifth");
    assert!(start.elapsed() < Duration::from_secs(5), "a fenced write holds no lock");
    assert_eq!(
        (second.pruned().expect("readable"), epochs_of_manifests(&mut *second).0.len()),
        (Epoch(3), 4)
    );
    second.conclude(&manifest(7), 1).expect("only the newest");
    assert_eq!(
        (second.pruned().expect("readable"), epochs_of_manifests(&mut *second).0),
        (Epoch(7), vec![7])
    );
    assert_eq!(second.epochs(Epoch(7)).expect("kept"), []);

    // After a configuration change, the pipeline resumes only from one checkpoint, which replaces the one of the same
    // epoch.
    second.append(&[record(8)]).expect("a round");
    let refused = reason(second.amend("changed", Some(&manifest(7))));
    assert!(refused.contains("has recorded epoch 8"), "{refused}");
    assert_eq!(open("checkpoints").peek().expect("readable").expect("it").genesis, Some(genesis()));
    second.conclude(&manifest(8), 3).expect("all of it");
    let mut without_parts = manifest(8);
    without_parts.parts.clear();
    second.amend("changed", Some(&without_parts)).expect("nothing would be replayed");
    let stored = second.manifests().expect("readable");
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].manifest.as_ref().expect("whole"), &without_parts);
    assert_eq!(
        (second.pruned().expect("readable"), second.epochs(Epoch(8)).expect("none")),
        (Epoch(8), vec![])
    );
    second.append(&[record(9)]).expect("the pipeline continues");
    let mut third = open("checkpoints");
    let semantics = third.claim().expect("claimed").genesis.expect("it has begun").semantics;
    assert_eq!(semantics, "changed");
    let fenced = second.amend("of a zombie", Some(&manifest(9)));
    assert!(matches!(fenced, Err(LedgerError::Fenced { .. })), "{fenced:?}");

    let mut other = open("unrelated");
    other.claim().expect("new");
    other.begin(&genesis()).expect("once");
    other.amend("before anything", None).expect("nothing is recorded");
    other.append(&[record(1)]).expect("a round");
    assert!(reason(other.amend("after all", None)).contains("has recorded epoch 1"));
    assert_eq!(
        open("unrelated").peek().expect("readable").expect("it").genesis.expect("it").semantics,
        "before anything"
    );
    assert_eq!((other.pruned().expect("readable"), other.manifests().expect("none").len()), (Epoch(0), 0));
}

/// Checks the basic contract of a ledger; `open` opens the same ledger again.
fn check_basics(open: impl Fn(&str) -> Box<dyn Ledger>) {
    let mut first = open("fraud");
    let claim = first.claim().expect("a new ledger");
    assert_eq!((claim.generation, &claim.genesis), (Generation(1), &None));
    assert_eq!(claim.ledger_id.0.len(), 32);
    first.begin(&genesis()).expect("once");
    first.append(&[]).expect("nothing");
    first.append(&[record(3), record(4)]).expect("a round");
    first.append(&[record(7)]).expect("another");

    // A second start resumes from there, and the first can no longer write.
    let mut second = open("fraud");
    let again = second.claim().expect("a ledger that exists");
    assert_eq!((&again.ledger_id, again.generation), (&claim.ledger_id, Generation(2)));
    assert_eq!(again.genesis, Some(genesis()));
    assert_eq!(second.epochs(Epoch(0)).expect("readable"), [record(3), record(4), record(7)]);
    assert_eq!(second.epochs(Epoch(3)).expect("readable"), [record(4), record(7)]);
    let fenced = first.append(&[record(8)]);
    assert!(matches!(fenced, Err(LedgerError::Fenced { generation: Generation(2), .. })), "{fenced:?}");
    let fenced = first.begin(&genesis());
    assert!(matches!(fenced, Err(LedgerError::Fenced { .. })), "{fenced:?}");
    let fenced = first.register_processes(9);
    assert!(matches!(fenced, Err(LedgerError::Fenced { .. })), "{fenced:?}");
    second.append(&[record(9)]).expect("the successor writes");
    assert_eq!(second.epochs(Epoch(7)).expect("readable"), [record(9)]);

    // The number of processes that ever wrote never decreases.
    for (processes, max_processes) in [(2, 2), (3, 3), (1, 3)] {
        assert_eq!(second.register_processes(processes).expect("not fenced"), max_processes);
    }

    // The beginning never changes.
    second.begin(&Genesis { starts: vec![], semantics: "other".into() }).expect("ignored");
    assert_eq!(open("fraud").claim().expect("claimed").genesis, Some(genesis()));

    // Another pipeline has another ledger.
    let mut other = open("other");
    let claim_of_other = other.claim().expect("new");
    assert_ne!(claim_of_other.ledger_id, claim.ledger_id);
    assert_eq!(other.epochs(Epoch(0)).expect("readable"), []);
}

#[test]
fn sqlite_satisfies_the_basic_contract() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ledger.db");
    check_basics(|pipeline| Box::new(SqliteLedger::open(&path, pipeline).expect("opens")));
}

#[test]
fn sqlite_satisfies_the_contract_of_manifests_and_skips() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ledger.db");
    check_manifests(|pipeline| Box::new(SqliteLedger::open(&path, pipeline).expect("opens")));
    check_skips(|pipeline| Box::new(SqliteLedger::open(&path, pipeline).expect("opens")));
    check_losses_commits_and_attempts(|pipeline| {
        Box::new(SqliteLedger::open(&path, pipeline).expect("opens"))
    });
}

#[test]
fn a_damaged_manifest_does_not_hide_the_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ledger.db");
    let mut ledger = SqliteLedger::open(&path, "fraud").expect("opens");
    ledger.claim().expect("claims");
    for epoch in [1, 2, 3] {
        ledger.append(&[record(epoch)]).expect("appends");
        ledger.conclude(&manifest(epoch), 3).expect("concludes");
    }
    let other = rusqlite::Connection::open(&path).expect("opens");
    let damage = "UPDATE headwater_manifests SET manifest = substr(manifest, 1, 30) WHERE epoch = 2;
                  UPDATE headwater_manifests SET manifest = (SELECT manifest FROM headwater_manifests WHERE epoch = 1)
                  WHERE epoch = 3;";
    other.execute_batch(damage).expect("damages");
    assert_eq!(epochs_of_manifests(&mut ledger), (vec![1, 2, 3], vec![1]));
    let reasons: Vec<_> =
        ledger.manifests().expect("readable").into_iter().map(|stored| stored.manifest).collect();
    let [Ok(_), Err(truncated), Err(exchanged)] = reasons.as_slice() else { panic!("{reasons:?}") };
    assert_eq!(
        truncated.to_string(),
        "ledger: the manifest of epoch 2 of pipeline fraud is damaged: its checksum does not match"
    );
    assert_eq!(
        exchanged.to_string(),
        "ledger: the manifest of epoch 3 of pipeline fraud is damaged: it belongs to another epoch"
    );
}

/// A failure before the end of the transaction leaves no effect of it.
#[test]
fn an_interrupted_manifest_write_changes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ledger.db");
    let mut ledger = SqliteLedger::open(&path, "fraud").expect("opens");
    ledger.claim().expect("claims");
    ledger.append(&[record(1)]).expect("appends");
    ledger.conclude(&manifest(1), 1).expect("concludes");
    ledger.append(&[record(2)]).expect("appends");
    // Each statement of the transaction fails in turn.
    let other = rusqlite::Connection::open(&path).expect("opens");
    for (event, table) in [
        ("INSERT", "headwater_manifests"),
        ("DELETE", "headwater_manifests"),
        ("DELETE", "headwater_bindings"),
        ("UPDATE", "headwater_pruned"),
        ("UPDATE", "headwater_ledger"),
    ] {
        let trigger =
            format!("CREATE TRIGGER crash BEFORE {event} ON {table} BEGIN SELECT RAISE(FAIL, 'crash'); END");
        other.execute_batch(&trigger).expect("a trigger");
        assert!(matches!(ledger.conclude(&manifest(2), 1), Err(LedgerError::Unavailable { .. })), "{table}");
        other.execute_batch("DROP TRIGGER crash").expect("dropped");
        assert_eq!(epochs_of_manifests(&mut ledger), (vec![1], vec![1]), "{event} {table}");
        assert_eq!(ledger.epochs(Epoch(1)).expect("kept"), [record(2)], "{event} {table}");
    }
    ledger.conclude(&manifest(2), 1).expect("retried");
    assert_eq!(epochs_of_manifests(&mut ledger).0, [2]);
}

/// A program that supports only version 1 would mistake the remaining rounds for all rounds.
#[test]
fn the_version_identifies_pruned_and_newer_ledgers() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ledger.db");
    let mut ledger = SqliteLedger::open(&path, "fraud").expect("opens");
    ledger.claim().expect("claims");
    let other = rusqlite::Connection::open(&path).expect("opens");
    let version = || other.query_one("SELECT version FROM headwater_ledger", [], |row| row.get::<_, i64>(0));
    ledger.conclude(&manifest(1), 3).expect("concludes");
    assert_eq!(version(), Ok(1), "nothing was pruned");
    ledger.conclude(&manifest(2), 1).expect("concludes");
    assert_eq!(version(), Ok(2));
    other.execute("UPDATE headwater_ledger SET version = 3", []).expect("written");
    for outcome in [ledger.claim().map(drop), ledger.peek().map(drop)] {
        let refused = reason(outcome);
        assert!(refused.contains("has version 3, and this program supports versions 1 to 2"), "{refused}");
    }
    let generation =
        other.query_one("SELECT generation FROM headwater_ledger", [], |row| row.get::<_, i64>(0));
    assert_eq!(generation, Ok(1), "a refused ledger is not claimed");
}

#[test]
fn a_wiped_sqlite_ledger_is_detected_by_its_writer() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ledger.db");
    let mut ledger = SqliteLedger::open(&path, "fraud").expect("opens");
    ledger.claim().expect("claims");
    let other = rusqlite::Connection::open(&path).expect("opens");
    other.execute("DELETE FROM headwater_ledger", []).expect("wipes");
    assert!(matches!(ledger.append(&[record(1)]), Err(LedgerError::Refused(_))));
}

#[test]
fn files_that_are_no_database_and_damaged_rounds_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ledger.db");
    std::fs::write(&path, "this is not a database, but it is long enough to look like one at first sight…")
        .expect("written");
    let Err(error) = SqliteLedger::open(&path, "fraud") else { panic!("opened") };
    assert!(error.to_string().contains("ledger.db"), "{error}");

    let path = dir.path().join("other.db");
    let mut ledger = SqliteLedger::open(&path, "fraud").expect("opens");
    ledger.claim().expect("claims");
    ledger.append(&[record(1)]).expect("appends");
    let other = rusqlite::Connection::open(&path).expect("opens");
    other.execute("UPDATE headwater_bindings SET epochs = substr(epochs, 1, 5)", []).expect("damages");
    let Err(LedgerError::Refused(reason)) = ledger.epochs(Epoch(0)) else { panic!("read") };
    let damaged = "the round through epoch 1 of pipeline fraud is damaged: it is malformed at byte 5";
    assert!(reason.starts_with(damaged) && reason.contains("restore the ledger"), "{reason}");
}

#[test]
fn postgresql_satisfies_the_contract() {
    let url = std::env::var("HEADWATER_TEST_POSTGRES")
        .expect("HEADWATER_TEST_POSTGRES is not set: scripts/test starts a server and sets it");
    let run = std::process::id();
    let open = |pipeline: &str| -> Box<dyn Ledger> {
        Box::new(PostgresLedger::open(&url, &format!("ledger-{run}-{pipeline}")).expect("opens"))
    };
    check_basics(open);
    check_manifests(open);
    check_skips(open);
    check_losses_commits_and_attempts(open);

    // Concurrent starts get different generations.
    let claims: Vec<_> = (0..4)
        .map(|_| {
            let url = url.clone();
            std::thread::spawn(move || {
                let mut ledger = PostgresLedger::open(&url, &format!("ledger-{run}-race")).expect("opens");
                ledger.claim().expect("claims")
            })
        })
        .collect();
    let mut claims: Vec<_> = claims.into_iter().map(|claim| claim.join().expect("no panic")).collect();
    claims.sort_by_key(|claim| claim.generation);
    let generations: Vec<_> = claims.iter().map(|claim| claim.generation.0).collect();
    assert_eq!(generations, [1, 2, 3, 4]);
    assert!(claims.iter().all(|claim| claim.ledger_id == claims[0].ledger_id));
}

/// A write that is in progress when a successor claims the pipeline waits for the claim, and then must see its
/// generation.
#[test]
fn postgresql_fences_a_write_that_waited_for_the_successor() {
    let url = std::env::var("HEADWATER_TEST_POSTGRES")
        .expect("HEADWATER_TEST_POSTGRES is not set: scripts/test starts a server and sets it");
    let pipeline = format!("ledger-{}-waiting", std::process::id());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut other = runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("connects");
        tokio::spawn(connection);
        client
    });
    type Write = fn(&mut PostgresLedger) -> Result<(), LedgerError>;
    let writes: [Write; 5] = [
        |ledger| ledger.register_processes(2).map(drop),
        |ledger| ledger.begin(&genesis()),
        |ledger| ledger.append(&[record(1)]),
        |ledger| ledger.conclude(&manifest(1), 3),
        |ledger| ledger.amend("changed", None),
    ];
    for write in writes {
        let mut ledger = PostgresLedger::open(&url, &pipeline).expect("opens");
        ledger.claim().expect("claims");
        let fenced = runtime.block_on(async {
            let successor = other.transaction().await.expect("begun");
            let claim = "UPDATE headwater_ledger SET generation = generation + 1 WHERE pipeline = $1";
            successor.execute(claim, &[&pipeline]).await.expect("claimed");
            let writing = std::thread::spawn(move || write(&mut ledger));
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(!writing.is_finished(), "it did not wait");
            successor.commit().await.expect("committed");
            writing.join().expect("no panic")
        });
        assert!(matches!(fenced, Err(LedgerError::Fenced { .. })), "{fenced:?}");
    }
}
