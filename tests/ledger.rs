//! What a ledger promises: one suite for every store.
//!
//! `HEADWATER_TEST_POSTGRES` is the address of a server in which these tests may make and drop databases.

use headwater::coordination::{Binding, EpochRecord};
use headwater::ledger::{Genesis, Ledger, LedgerError, PostgresLedger, SqliteLedger};
use headwater_dataflows::{Epoch, EventTime, Offset, Partition};
use headwater_sinks::Generation;

fn genesis() -> Genesis {
    Genesis { starts: vec![Offset(0), Offset(17)], meaning: "patterns".into() }
}

fn record(epoch: u64) -> EpochRecord {
    let binding = Binding {
        partition: Partition(1),
        end: Offset(17 + epoch as i64),
        timestamp: Some(1_000),
        max_event_time: Some(EventTime(-5)),
        idle: false,
    };
    EpochRecord { epoch: Epoch(epoch), wall_ms: 2_000, bindings: vec![binding], closes: epoch == 9 }
}

/// What every ledger promises; `open` opens the same one again.
fn promises(open: impl Fn(&str) -> Box<dyn Ledger>) {
    let mut first = open("fraud");
    let claim = first.claim().expect("a new ledger");
    assert_eq!((claim.generation, &claim.genesis), (Generation(1), &None));
    assert_eq!(claim.lineage.0.len(), 32);
    first.begin(&genesis()).expect("once");
    first.append(&[]).expect("nothing");
    first.append(&[record(3), record(4)]).expect("a round");
    first.append(&[record(7)]).expect("another");

    // A second start goes on from there, and the first writes nothing any more.
    let mut second = open("fraud");
    let again = second.claim().expect("a ledger that exists");
    assert_eq!((&again.lineage, again.generation), (&claim.lineage, Generation(2)));
    assert_eq!(again.genesis, Some(genesis()));
    assert_eq!(second.epochs(Epoch(0)).expect("readable"), [record(3), record(4), record(7)]);
    assert_eq!(second.epochs(Epoch(3)).expect("readable"), [record(4), record(7)]);
    let fenced = first.append(&[record(8)]);
    assert!(matches!(fenced, Err(LedgerError::Fenced { generation: Generation(2), .. })), "{fenced:?}");
    let fenced = first.begin(&genesis());
    assert!(matches!(fenced, Err(LedgerError::Fenced { .. })), "{fenced:?}");
    second.append(&[record(9)]).expect("the successor writes");
    assert_eq!(second.epochs(Epoch(7)).expect("readable"), [record(9)]);

    // Genesis is never changed.
    second.begin(&Genesis { starts: vec![], meaning: "other".into() }).expect("ignored");
    assert_eq!(open("fraud").claim().expect("claimed").genesis, Some(genesis()));

    // Another pipeline's ledger is another ledger.
    let mut other = open("other");
    let claim_of_other = other.claim().expect("new");
    assert_ne!(claim_of_other.lineage, claim.lineage);
    assert_eq!(other.epochs(Epoch(0)).expect("readable"), []);
}

#[test]
fn sqlite_keeps_its_promises() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ledger.db");
    promises(|pipeline| Box::new(SqliteLedger::open(&path, pipeline).expect("opens")));
}

#[test]
fn a_wiped_sqlite_ledger_is_noticed_by_its_writer() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ledger.db");
    let mut ledger = SqliteLedger::open(&path, "fraud").expect("opens");
    ledger.claim().expect("claims");
    let other = rusqlite::Connection::open(&path).expect("opens");
    other.execute("DELETE FROM headwater_ledger", []).expect("wipes");
    assert!(matches!(ledger.append(&[record(1)]), Err(LedgerError::Refused(_))));
}

#[test]
fn a_file_that_is_no_database_and_a_damaged_round_are_refused() {
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
    assert_eq!(
        reason,
        "the round through epoch 1 of pipeline fraud is damaged: it is not well formed at byte 5"
    );
}

#[test]
fn postgresql_keeps_its_promises() {
    let url = std::env::var("HEADWATER_TEST_POSTGRES")
        .expect("HEADWATER_TEST_POSTGRES is not set: scripts/test starts a server and sets it");
    let run = std::process::id();
    promises(|pipeline| {
        Box::new(PostgresLedger::open(&url, &format!("ledger-{run}-{pipeline}")).expect("opens"))
    });

    // Two starts at the same moment do not get the same generation.
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
    assert!(claims.iter().all(|claim| claim.lineage == claims[0].lineage));
}
