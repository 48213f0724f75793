//! An output that a sink does not take: the run stops and says how to leave it out, and only that one is missing then.

use std::collections::BTreeSet;
use std::fs;

use headwater_sinks::kafka::topics::TopicSpec;

use crate::common::{headwater, succeed};
use crate::kafka::{OUTPUTS, alone, read_all, topics};
use crate::services::Services;

/// How many events there are; one of them is larger than the topic of enriched events takes.
const EVENTS: usize = 3_000;
const LARGE: usize = 1_700;

#[test]
fn an_output_that_a_topic_does_not_take_is_named_and_left_out_once_one_says_so() {
    let _alone = alone();
    let services = Services::shared();
    let limited = TopicSpec::new(OUTPUTS[0], 3).with("max.message.bytes", "20000");
    let others = OUTPUTS[1..].iter().map(|name| TopicSpec::new(name, 1));
    let specs: Vec<_> = std::iter::once(limited).chain(others).collect();
    let topics_of = topics(&services.kafka);
    crate::live::wait_for("topics of its own", || {
        let made = topics_of.create(&specs).ok()?.len() == specs.len();
        if !made {
            // A test that failed may have left its own.
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
            // Twice of this user in a row, so that its place among those of the same key counts.
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
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(&format!("enriched-events/u{LARGE}/")), "{said}");
        fs::write(path("said"), said).expect("written");
    }
    let said = fs::read_to_string(path("said")).expect("it said something");
    let (_, rest) = said.rsplit_once("`--skip ").expect("it says how");
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
        assert_eq!(ids.len(), all.len(), "each once");
        ids
    };
    let all: BTreeSet<_> = (0..EVENTS).map(|n| format!("e{n}")).collect();
    let missing: Vec<_> = all.difference(&ids()).cloned().collect();
    assert_eq!(missing, [format!("e{LARGE}")], "that one, and at that sink");
    let results = rusqlite::Connection::open(path("results.db")).expect("a database");
    let stored: i64 =
        results.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).expect("a number");
    assert_eq!(stored, EVENTS as i64);

    // It is remembered, and nothing is given twice.
    succeed(&mut run(&[]));
    assert_eq!(ids().len(), EVENTS - 1);
    let status = succeed(headwater(&["status"]).arg(path("run.toml")));
    assert!(String::from_utf8_lossy(&status.stdout).contains(&format!("skipped: {skip}\n")));
    topics(&services.kafka).delete(&OUTPUTS).expect("deleted");
}
