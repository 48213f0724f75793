//! Tests with several writers: transactional ids that are taken over and taken back, and progress that is read
//! meanwhile.

use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use headwater_sinks::kafka::{KafkaSink, progress_topic, transactional_ids};
use headwater_sinks::{CommitError, Generation, LedgerId, OpenError, Progress, Shards, Sink, WriterContext};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::bench::*;

#[test]
fn two_transactional_ids_are_used_in_turn() {
    let bench = Bench::new("turns", 1, &[]);
    let mut sink = bench.opened(1);
    commit(&mut sink, 1).expect("the first id commits");
    commit(&mut sink, 2).expect("the second id commits");
    let _other = other_producer(&transactional_ids(&bench.pipeline, "kafka", 0)[1]);
    commit(&mut sink, 3).expect("the first id is untouched");
    assert_fenced(commit(&mut sink, 4));
}

#[test]
fn a_zombie_that_takes_its_ids_back_commits_nothing() {
    let bench = Bench::new("zombie", 1, &[("max.message.bytes", "2000")]);
    let mut zombie = bench.opened(1);
    zombie.stage(Epoch(1), messages(&[("k", "v")])).expect("it is staged");
    zombie.stage(Epoch(2), messages(&[("k", &noise(8000))])).expect("it is staged");
    // The first producer must now be replaced, which takes over its id again.
    commit(&mut zombie, 2).expect_err("the message is too large");
    let mut successor = bench.opened(2);
    assert_fenced(commit(&mut zombie, 1));
    let error = assert_fenced(commit(&mut zombie, 1));
    assert!(error.contains("generation 2"), "it has taken the id back and read the sentinel: {error}");
    assert_eq!(bench.committed(), []);
    assert_fenced(commit(&mut successor, 1));
}

#[test]
fn a_zombie_is_fenced_on_every_retry() {
    let bench = Bench::new("stubborn", 1, &[]);
    let mut zombie = bench.opened(1);
    zombie.stage(Epoch(1), messages(&[("k", "v")])).expect("it is staged");
    let _successor = bench.opened(2);
    for _ in 0..8 {
        assert_fenced(commit(&mut zombie, 1));
    }
    assert_eq!(bench.committed(), []);
}

/// Records of the successor that were read before reading failed must not be lost.
#[test]
fn a_zombie_is_fenced_after_a_failed_read_of_the_progress() {
    let bench = Bench::new("interrupted", 1, &[("max.message.bytes", "2000")]);
    let mut zombie = bench.opened(1);
    zombie.stage(Epoch(1), messages(&[("k", "v")])).expect("it is staged");
    zombie.stage(Epoch(2), messages(&[("k", &noise(8000))])).expect("it is staged");
    // Both producers must now be replaced.
    for _ in 0..2 {
        commit(&mut zombie, 2).expect_err("the message is too large");
    }
    let _successor = bench.opened(2);
    let other = other_producer(&format!("stranger-{}", bench.pipeline));
    other.begin_transaction().expect("it begins");
    let topic = progress_topic(&bench.pipeline);
    other.send(BaseRecord::to(&topic).key("x").payload("no progress")).expect("it is queued");
    other.flush(Duration::from_secs(10)).expect("it is written");
    let error = commit(&mut zombie, 1).expect_err("its own sentinel is hidden");
    assert!(matches!(error, CommitError::Failed { .. }), "{error}");
    other.abort_transaction(Duration::from_secs(10)).expect("it aborts");
    assert_fenced(commit(&mut zombie, 1));
    assert_eq!(bench.committed(), []);
}

#[test]
fn opening_fences_processes_that_no_longer_exist() {
    let bench = Bench::new("smaller", 1, &[]);
    let mut third = KafkaSink::new(bench.config());
    third.open(&WriterContext { process: 2, ..bench.context(1) }).expect("it opens");
    third.stage(Epoch(1), messages(&[("k", "v")])).expect("it is staged");
    let mut first = KafkaSink::new(bench.config());
    first
        .open(&WriterContext { max_processes: 3, ..bench.context(2) })
        .expect("it opens, although it fences its own ids");
    for _ in 0..3 {
        assert_fenced(commit(&mut third, 1));
    }
    assert_eq!(bench.committed(), []);
}

/// A process that takes an id back at any moment must find that another process has owned it.
#[test]
fn every_id_that_is_taken_over_gets_a_sentinel() {
    let bench = Bench::new("sentinels", 1, &[]);
    let mut first = KafkaSink::new(bench.config());
    first.open(&WriterContext { max_processes: 3, ..bench.context(1) }).expect("it opens");
    let found = read(&progress_topic(&bench.pipeline), "read_committed");
    for id in (0..3).flat_map(|process| transactional_ids(&bench.pipeline, "kafka", process)) {
        let is_its_sentinel =
            |record: &Record| record.value.as_ref().is_some_and(|value| value.ends_with(id.as_bytes()));
        assert!(found.iter().any(is_its_sentinel), "{id}");
    }
}

/// The second id is taken over a moment after the first. Until then an older start, which does not end in this test,
/// may commit through it.
#[test]
fn commits_during_the_opening_of_a_later_start_are_found() {
    for _ in 0..5 {
        let bench = Bench::new("opening", 1, &[]);
        let mut before = bench.opened(1);
        commit(&mut before, 1).expect("it commits");
        let (mut sink, next) = (KafkaSink::new(bench.config()), bench.context(2));
        let opening = std::thread::spawn(move || sink.open(&next));
        let (mut committed, mut through) = (1, 2);
        while !opening.is_finished() {
            if commit(&mut before, through).is_ok() {
                committed = through;
            }
            through += 1;
        }
        match opening.join().expect("no panic") {
            Ok(found) => {
                assert_eq!(found, bench.peek_progress(), "nothing was committed after the read");
                assert!(found[0].through >= Epoch(committed), "{found:?}, and {committed} was committed");
            }
            // The older start has taken an id back in between. A new start would follow.
            Err(error) => {
                assert!(matches!(error, OpenError::Fenced { .. } | OpenError::Unavailable { .. }), "{error}")
            }
        }
    }
}

#[test]
fn progress_of_other_ledgers_is_refused_but_can_be_adopted() {
    let bench = Bench::new("refusals", 1, &[]);
    let mut sink = bench.opened(5);
    commit(&mut sink, 3).expect("it commits");
    let refused = |outcome: Result<Vec<Progress>, OpenError>, word: &str| {
        let error = outcome.expect_err("it is refused");
        assert!(matches!(error, OpenError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(bench.try_open(4), "generation 5");
    refused(bench.try_open(5), "two copies");
    let other = WriterContext { ledger_id: LedgerId("b".repeat(32)), ..bench.context(1) };
    refused(KafkaSink::new(bench.config()).open(&other), "--adopt-sink");
    let mut adopting = KafkaSink::new(bench.config());
    let adopted =
        adopting.open(&WriterContext { adopt: Some(Epoch(2)), ..other.clone() }).expect("it adopts");
    let through = |found: &[Progress]| found.iter().map(|p| (p.generation, p.through)).collect::<Vec<_>>();
    assert_eq!(through(&adopted), [(Generation(1), Epoch(2))]);
    // The adopted progress is durable before the first commit, and the replaced progress does not reappear, with or
    // without compaction.
    let next = WriterContext { generation: Generation(2), ..other };
    let found = KafkaSink::new(bench.config()).open(&next).expect("it opens after adoption");
    assert_eq!(through(&found), [(Generation(1), Epoch(2))]);
    assert_fenced(commit(&mut adopting, 3));
    refused(bench.try_open(6), "--adopt-sink");
}

#[test]
fn progress_of_several_writers_is_all_returned() {
    let bench = Bench::new("writers", 1, &[]);
    let half = |process| Shards::of_workers(process..process + 1, 2);
    for (process, through) in [(0, 10), (1, 12)] {
        let mut sink = KafkaSink::new(bench.config());
        sink.open(&WriterContext { process, shards: half(process), ..bench.context(1) }).expect("it opens");
        commit(&mut sink, through - 1).expect("it commits");
        commit(&mut sink, through).expect("it commits");
    }
    let found = bench.try_open(2).expect("it opens");
    let through: Vec<_> = found.iter().map(|p| (p.shards, p.through)).collect();
    assert_eq!(through, [(half(0), Epoch(10)), (half(1), Epoch(12))]);
}

#[test]
fn opening_waits_for_progress_hidden_by_an_open_transaction() {
    let bench = Bench::new("stranger", 1, &[]);
    let mut sink = bench.opened(1);
    commit(&mut sink, 1).expect("it commits");
    let other = other_producer(&format!("stranger-{}", bench.pipeline));
    other.begin_transaction().expect("it begins");
    let topic = progress_topic(&bench.pipeline);
    other.send(BaseRecord::to(&topic).key("x").payload("no progress")).expect("it is queued");
    other.flush(Duration::from_secs(10)).expect("it is written");
    commit(&mut sink, 2).expect("it commits, but readers do not see it yet");
    let waiting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(3));
        other.abort_transaction(Duration::from_secs(10)).expect("it aborts");
    });
    let started = Instant::now();
    let found = bench.try_open(2).expect("it opens");
    assert!(started.elapsed() > Duration::from_secs(2), "it did not wait for the open transaction");
    assert_eq!(found.iter().map(|p| p.through).collect::<Vec<_>>(), [Epoch(2)]);
    waiting.join().expect("it aborted");
}

#[test]
fn an_invalid_progress_record_is_refused_with_its_offset() {
    let bench = Bench::new("foreign", 1, &[]);
    drop(bench.opened(1));
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", brokers()).create().expect("a producer");
    let topic = progress_topic(&bench.pipeline);
    producer.send(BaseRecord::to(&topic).key("k").payload("{}")).expect("it is queued");
    producer.flush(Duration::from_secs(10)).expect("it is written");
    let error = bench.try_open(2).expect_err("it is refused");
    assert!(matches!(error, OpenError::Refused { .. }) && error.to_string().contains("offset"), "{error}");
}
