//! `limits.max_rejected_share`: a run stops instead of turning all its input into dead letters.

use std::fmt::Write as _;
use std::fs;

use crate::common::headwater;

/// Each start reads on after what the one before has committed, and stops only for what it reads itself.
#[test]
fn a_run_stops_when_too_many_records_are_rejected() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut records = String::new();
    for n in 0..1000 {
        let time = 1_772_330_400_000_i64 + n;
        // The middle of the input is from a faulty producer.
        let name = if (300..900).contains(&n) { "user" } else { "user_id" };
        let line =
            format!(r#"{{"event_id":"{n}","event_type":"api_call","{name}":"u","event_time":{time}}}"#);
        writeln!(records, "{line}").expect("written");
    }
    fs::write(dir.path().join("events.ndjson"), records).expect("written");
    let config = "pipeline = \"shop\"\n[source]\nkind = \"file\"\npaths = \"events.ndjson\"\nepoch_records = 50\n\
                  [limits]\nmax_rejected_share = 0.5\n[ledger]\nkind = \"sqlite\"\npath = \"ledger.db\"\n\
                  [sinks.sqlite]\npath = \"results.db\"\n";
    fs::write(dir.path().join("run.toml"), config).expect("written");
    let count = |query: &str| {
        let connection = rusqlite::Connection::open(dir.path().join("results.db")).expect("a database");
        connection.query_row(query, [], |row| row.get::<_, i64>(0)).expect("a count")
    };
    let mut rejected = Vec::new();
    for start in 0.. {
        assert!(start < 10, "{rejected:?}");
        let output = headwater(&["run", "run.toml"]).current_dir(dir.path()).output().expect("started");
        rejected.push(count("SELECT count(*) FROM dead_letters"));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => break,
            Some(3) if start > 0 => {}
            Some(3) => {
                for part in
                    ["limits.max_rejected_share = 0.5", "invalid in field user_id", "user_id is missing"]
                {
                    assert!(error.contains(part), "{part}: {error}");
                }
                assert!((301..600).contains(&rejected[0]), "{rejected:?}");
            }
            code => panic!("{code:?}: {error}"),
        }
    }
    assert!((2..=4).contains(&rejected.len()), "{rejected:?}");
    assert_eq!(count("SELECT count(*) FROM dead_letters"), 600);
    assert_eq!(count("SELECT count(*) FROM events"), 400, "nothing is lost");
}
