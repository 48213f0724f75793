//! Tests of the Kafka sink with a real broker: the mock broker of librdkafka neither hides aborted transactions nor
//! fences.
//!
//! `HEADWATER_TEST_KAFKA` is the broker, as `host:port`. Every test creates its own topics.

mod bench;
mod takeover;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use headwater_sinks::kafka::topics::{TopicError, TopicSpec};
use headwater_sinks::kafka::{KafkaConfig, KafkaSink, progress_topic};
use headwater_sinks::{
    Changes, CommitError, CommitPermit, Generation, Header, LedgerId, Misconfigured, OpenError, Progress,
    Shards, Sink,
};

use bench::*;

#[test]
fn a_round_commits_its_epochs_and_keeps_later_ones_staged() {
    let bench = Bench::new("round", 1, &[]);
    let mut sink = bench.opened(1);
    for epoch in [3, 1, 2] {
        sink.stage(Epoch(epoch), messages(&[("k", &format!("e{epoch}"))])).expect("it is staged");
    }
    assert_eq!(read(&bench.topic, "read_uncommitted"), [], "staged messages are not visible");
    commit(&mut sink, 2).expect("it commits");
    assert_eq!(values(&bench.committed()), ["e1", "e2"]);
    commit(&mut sink, 5).expect("it commits");
    assert_eq!(values(&bench.committed()), ["e1", "e2", "e3"]);
    drop(sink);
    let found = bench.try_open(2).expect("it opens");
    let (ledger_id, generation) = (LedgerId("a".repeat(32)), Generation(1));
    assert_eq!(found, [Progress { ledger_id, generation, shards: Shards::ALL, through: Epoch(5) }]);
}

#[test]
fn an_empty_round_commits_progress() {
    let bench = Bench::new("empty", 1, &[]);
    assert_eq!(bench.try_open(1).expect("it opens"), []);
    let mut sink = bench.opened(2);
    commit(&mut sink, 7).expect("it commits");
    let found = bench.try_open(3).expect("it opens");
    assert_eq!(found.iter().map(|p| p.through).collect::<Vec<_>>(), [Epoch(7)]);
}

#[test]
fn peeking_returns_the_progress_and_fences_no_writer() {
    let bench = Bench::new("look", 1, &[]);
    assert_eq!(bench.peek_progress(), []);
    let exists = topics().partitions(&progress_topic(&bench.pipeline)).expect("a response");
    assert_eq!(exists, None, "peeking creates no topic");
    let mut sink = bench.opened(1);
    assert_eq!(bench.peek_progress(), [], "opening commits no progress");
    for epoch in [3, 4] {
        sink.commit(CommitPermit::granted(Epoch(epoch))).expect("no other start has taken over");
        let found: Vec<_> =
            bench.peek_progress().iter().map(|progress| (progress.generation, progress.through)).collect();
        assert_eq!(found, [(Generation(1), Epoch(epoch))]);
    }
}

#[test]
fn headers_tombstones_and_empty_values_are_delivered() {
    let bench = Bench::new("shapes", 1, &[]);
    let mut sink = bench.opened(1);
    let mut changes = Changes::default();
    let header = Header { name: "reason", value: b"late" };
    changes.messages.push(0, Some(b"k"), &[header, header], |out| out.extend_from_slice(&[0, 255]));
    changes.messages.push_tombstone(0, Some(b""), &[]);
    changes.messages.push(0, None, &[], |_| {});
    sink.stage(Epoch(1), changes).expect("it is staged");
    commit(&mut sink, 1).expect("it commits");
    let record = |key: Option<&[u8]>, value: Option<&[u8]>| Record {
        partition: 0,
        key: key.map(<[u8]>::to_vec),
        value: value.map(<[u8]>::to_vec),
        headers: Vec::new(),
    };
    let mut first = record(Some(b"k"), Some(&[0, 255]));
    first.headers = vec![("reason".to_owned(), b"late".to_vec()); 2];
    assert_eq!(bench.committed(), [first, record(Some(b""), None), record(None, Some(b""))]);
}

/// The hash of a key in the Java client, implemented independently.
fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = 0x9747_b28c ^ key.len() as u32;
    let mut chunks = key.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (i, &byte) in rest.iter().enumerate() {
            h ^= u32::from(byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h = (h ^ (h >> 13)).wrapping_mul(M);
    h ^ (h >> 15)
}

#[test]
fn keys_are_partitioned_as_in_java_and_stay_in_order() {
    let bench = Bench::new("keys", 5, &[]);
    let mut sink = bench.opened(1);
    for epoch in 1..=6 {
        let value = epoch.to_string();
        let keys: Vec<_> = (0..40).map(|user| format!("user-{user}")).collect();
        let pairs: Vec<_> = keys.iter().map(|key| (&**key, &*value)).collect();
        sink.stage(Epoch(epoch), messages(&pairs)).expect("it is staged");
        commit(&mut sink, epoch).expect("it commits");
    }
    let mut by_key: BTreeMap<Vec<u8>, Vec<Record>> = BTreeMap::new();
    for record in bench.committed() {
        by_key.entry(record.key.clone().expect("keyed")).or_default().push(record);
    }
    assert_eq!(by_key.len(), 40);
    for (key, records) in by_key {
        assert_eq!(values(&records), ["1", "2", "3", "4", "5", "6"]);
        let expected = ((murmur2(&key) & 0x7fff_ffff) % 5) as i32;
        assert!(records.iter().all(|record| record.partition == expected), "{key:?}");
    }
}

#[test]
fn a_round_refused_by_the_broker_can_be_retried() {
    let bench = Bench::new("retry", 1, &[("max.message.bytes", "2000")]);
    let mut sink = bench.opened(1);
    assert_eq!(sink.largest_message(), Some(2000));
    let noise = noise(8000);
    sink.stage(Epoch(1), messages(&[("small", "before")])).expect("it is staged");
    sink.stage(Epoch(2), messages(&[("large-key", &noise)])).expect("it is staged");
    sink.stage(Epoch(3), messages(&[("small", "after")])).expect("it is staged");
    for _ in 0..3 {
        let error = commit(&mut sink, 3).expect_err("the message is too large");
        let text = error.to_string();
        assert!(matches!(error, CommitError::Refused { .. }), "{text}");
        assert!(text.contains(&format!("--skip kafka:2:{}/large-key/0", bench.topic)), "{text}");
    }
    assert_eq!(bench.committed(), []);
    assert_eq!(bench.peek_progress(), [], "progress is committed with its round");

    set_largest_message(&bench.topic, "100000");
    commit(&mut sink, 3).expect("it commits");
    commit(&mut sink, 4).expect("it commits");
    assert_eq!(values(&bench.committed()), ["before", noise.as_str(), "after"]);
}

#[test]
fn a_round_with_refused_progress_shows_nothing() {
    let bench = Bench::new("unpromised", 1, &[]);
    let mut sink = bench.opened(1);
    sink.stage(Epoch(1), messages(&[("k", "v")])).expect("it is staged");
    set_largest_message(&progress_topic(&bench.pipeline), "1");
    let error = commit(&mut sink, 1).expect_err("the progress topic rejects all records");
    assert!(matches!(error, CommitError::Failed { .. } | CommitError::Refused { .. }), "{error}");
    assert_eq!(bench.committed(), [], "a round is committed with its progress");
    set_largest_message(&progress_topic(&bench.pipeline), "100000");
    commit(&mut sink, 1).expect("it commits");
    assert_eq!(values(&bench.committed()), ["v"]);
}

#[test]
fn a_message_that_is_too_large_is_refused_and_named() {
    let bench = Bench::new("oversized", 1, &[("max.message.bytes", "1000000")]);
    let mut sink = bench.opened(1);
    sink.stage(Epoch(1), messages(&[("huge", "1"), ("a", "2")])).expect("it is staged");
    sink.stage(Epoch(2), messages(&[("huge", "3"), ("b", "4")])).expect("it is staged");
    sink.stage(Epoch(2), messages(&[("huge", &noise(2_000_000)), ("c", "5")])).expect("it is staged");
    let error = commit(&mut sink, 2).expect_err("it is too large");
    assert!(matches!(error, CommitError::Refused { .. }), "{error:?}");
    let error = error.to_string();
    let name = format!("`--skip kafka:2:{}/huge/1`", bench.topic);
    assert!(error.contains(&name) && error.contains("(2000000 bytes)"), "{error}");
    assert!(error.len() < 1000, "the error does not contain the message itself");
    assert_eq!(bench.committed(), []);
}

#[test]
fn messages_may_be_larger_than_the_default_limit_of_the_client() {
    let bench = Bench::new("large", 1, &[("max.message.bytes", "3000000")]);
    let mut sink = bench.opened(1);
    let large = noise(2_000_000);
    sink.stage(Epoch(1), messages(&[("a", "1"), ("large", &large), ("b", "2")])).expect("it is staged");
    commit(&mut sink, 1).expect("the topic accepts it");
    assert_eq!(bench.committed().len(), 3);
}

#[test]
fn missing_topics_and_owned_options_are_refused_by_name() {
    let bench = Bench::new("missing", 1, &[]);
    let mut config = bench.config();
    config.topics.extend(["no-such-one".to_owned(), "nor-this".to_owned()]);
    let error = KafkaSink::new(config).open(&bench.context(1)).expect_err("topics are missing").to_string();
    assert!(error.contains("no-such-one, nor-this") && error.contains("topics create"), "{error}");
    assert!(!error.contains(&bench.topic), "{error}");
    let mut config = bench.config();
    config.options.insert("acks".to_owned(), "1".into());
    let error = KafkaSink::new(config).open(&bench.context(1)).expect_err("acks is owned");
    let mut causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    let reason = causes.find_map(|cause| cause.downcast_ref::<Misconfigured>());
    assert!(reason.is_some_and(|reason| reason.0.contains("`acks`")), "{error:?}");
}

#[test]
fn rows_and_unknown_topics_are_refused_when_staged() {
    let mut sink = KafkaSink::new(Bench::new("stage", 1, &[]).config());
    let mut rows = Changes::default();
    rows.rows.row(0).end();
    sink.stage(Epoch(1), rows).expect_err("rows are for tables");
    let mut elsewhere = Changes::default();
    elsewhere.messages.push(1, None, &[], |_| {});
    sink.stage(Epoch(1), elsewhere).expect_err("there is no second topic");
}

#[test]
fn creating_an_existing_topic_checks_its_partitions() {
    let bench = Bench::new("create", 2, &[]);
    let wanted = |partitions| [TopicSpec::new(&bench.topic, partitions)];
    assert_eq!(topics().create(&wanted(2)).expect("it exists"), Vec::<String>::new());
    let error = topics().create(&wanted(3)).expect_err("it has two partitions");
    assert!(matches!(error, TopicError::TooFewPartitions { found: 2, wanted: 3, .. }), "{error}");
    topics().delete(&[&bench.topic]).expect("it is deleted");
    topics().delete(&[&bench.topic]).expect("deleting it twice is not an error");
}

#[test]
fn an_unavailable_broker_is_an_error_in_bounded_time() {
    let bench = Bench::new("absent", 1, &[]);
    let config = KafkaConfig { brokers: "127.0.0.1:1".to_owned(), ..bench.config() };
    let started = Instant::now();
    let error = KafkaSink::new(config).open(&bench.context(1)).expect_err("no broker listens there");
    assert!(matches!(error, OpenError::Unavailable { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30));
}

/// Prints commit latencies and throughput: `cargo test --test kafka measure -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_rounds() {
    for linger in ["0", "1", "5"] {
        for (size, rounds) in [(100, 300), (1_000, 100), (10_000, 30)] {
            let bench = Bench::new("measure", 6, &[]);
            let mut config = bench.config();
            config.options.insert("linger.ms".to_owned(), linger.into());
            let mut sink = KafkaSink::new(config);
            let started = Instant::now();
            sink.open(&bench.context(1)).expect("it opens");
            let open = started.elapsed();
            let value = "v".repeat(200);
            let mut latencies = Vec::new();
            let started = Instant::now();
            for epoch in 0..rounds {
                let mut changes = Changes::default();
                for n in 0..size {
                    let key = format!("user-{}", (epoch * size + n) % 5000);
                    let put = |out: &mut Vec<u8>| out.extend_from_slice(value.as_bytes());
                    changes.messages.push(0, Some(key.as_bytes()), &[], put);
                }
                sink.stage(Epoch(epoch), changes).expect("it is staged");
                let round = Instant::now();
                commit(&mut sink, epoch).expect("it commits");
                latencies.push(round.elapsed());
            }
            let seconds = started.elapsed().as_secs_f64();
            latencies.sort();
            println!(
                "linger {linger} ms, {size} messages a round: open {open:.0?}, {:.0} rounds/s, {:.0} messages/s, \
                 commit p50 {:.1?} p99 {:.1?} max {:.1?}",
                rounds as f64 / seconds,
                (rounds * size) as f64 / seconds,
                latencies[latencies.len() / 2],
                latencies[latencies.len() * 99 / 100],
                latencies[latencies.len() - 1],
            );
        }
    }
}
