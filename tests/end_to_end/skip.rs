//! An output that a sink refuses: the run stops and suggests `--skip`, and then only that output is missing.

use std::collections::BTreeSet;
use std::fs;

use headwater_sinks::kafka::topics::TopicSpec;

use crate::common::{headwater, succeed};
use crate::kafka::{OUTPUTS, lock_output_topics, read_all, topics};
use crate::services::Services;

/// The number of events; the event `LARGE` exceeds the limit of the topic of enriched events.
const EVENTS: usize = 3_000;
const LARGE: usize = 1_700;

#[test]
fn an_output_refused_by_a_topic_is_named_and_can_be_skipped() {
    let _lock = lock_output_topics();
    let services = Services::shared();
    let limited = TopicSpec::new(OUTPUTS[0], 3).with("max.message.bytes", "20000");
    let others = OUTPUTS[1..].iter().map(|name| TopicSpec::new(name, 1));
    let specs: Vec<_> = std::iter::once(limited).chain(others).collect();
    let topics_of = topics(&services.kafka);
    crate::live::wait_for("topics with a size limit", || {
        let made = topics_of.create(&specs).ok()?.len() == specs.len();
        if !made {
            // A failed test may have left its topics.
            _ = topics_of.delete(&OUTPUTS);
        }
        made.then_some(())
    });
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut random = crate::common::Random(5);
    let mut noise = |length| (0..length).map(|_| char::from(33 + random.below(90) as u8)).collect::<String>();
    let records: String = (0..EVENTS)
        .map(|n| {
            // Two events of this user in a row, so that the output's index within its key matters.
            let user = if n == LARGE - 1 { LARGE } else { n };
            let note = noise(if n == LARGE { 40_000 } else { 10 });
            let event = serde_json::json!({
                "event_id": format!("e{n}"), "event_type": "transaction", "user_id": format!("u{user}"),
                "event_time": 1_700_000_000_000_i64 + n as i64, "amount": 5, "attributes": { "note": note },
            });
            format!("{event}\n")
        })
        .collect();
    fs::write(path("events.ndjson"), records).expect("written");
    let text = format!(
        "pipeline = \"skip-{}\"\n[source]\nkind = \"file\"\npaths = [{:?}]\n[sinks.kafka]\nbrokers = {:?}\n\
         [sinks.sqlite]\npath = {:?}\n[ledger]\nkind = \"sqlite\"\npath = {:?}\n",
        std::process::id(),
        path("events.ndjson"),
        services.kafka,
        path("results.db"),
        path("ledger.db"),
    );
    fs::write(path("run.toml"), text).expect("written");
    let run = |arguments: &[&str]| {
        let mut run = headwater(&["run", "-w", "2"]);
        run.arg(path("run.toml")).args(arguments);
        run
    };

    for arguments in [&[][..], &["--skip", "kafka-events:1:enriched-events/nobody/0"]] {
        let output = run(arguments).output().expect("started");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains(&format!("enriched-events/u{LARGE}/")), "{stderr}");
        fs::write(path("said"), stderr).expect("written");
    }
    let stderr = fs::read_to_string(path("said")).expect("a log");
    let (_, rest) = stderr.rsplit_once("`--skip ").expect("a suggested `--skip`");
    let (skip, _) = rest.split_once('`').expect("a skip");
    succeed(&mut run(&["--skip", skip]));

    let ids = || -> BTreeSet<String> {
        let of = |record: &headwater::source::kafka::dead_letters::DeadLetter| {
            let event: serde_json::Value =
                serde_json::from_slice(record.value.as_deref().expect("an event")).expect("JSON");
            event["event_id"].as_str().expect("an id").to_owned()
        };
        let all = read_all(&services.kafka, OUTPUTS[0]);
        let ids: BTreeSet<_> = all.iter().map(of).collect();
        assert_eq!(ids.len(), all.len(), "an event id is in the topic twice");
        ids
    };
    let all: BTreeSet<_> = (0..EVENTS).map(|n| format!("e{n}")).collect();
    let missing: Vec<_> = all.difference(&ids()).cloned().collect();
    assert_eq!(missing, [format!("e{LARGE}")], "only the skipped output is missing");
    let results = rusqlite::Connection::open(path("results.db")).expect("a database");
    let stored: i64 =
        results.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).expect("a number");
    assert_eq!(stored, EVENTS as i64);

    // The skip is recorded, and no output is sent twice.
    succeed(&mut run(&[]));
    assert_eq!(ids().len(), EVENTS - 1);
    let status = succeed(headwater(&["status"]).arg(path("run.toml")));
    assert!(String::from_utf8_lossy(&status.stdout).contains(&format!("skipped: {skip}\n")));
    topics(&services.kafka).delete(&OUTPUTS).expect("deleted");
}
