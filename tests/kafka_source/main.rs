//! Tests of the Kafka source with a real broker, because mocks lack transactions, watermarks and retention.
//!
//! `HEADWATER_TEST_KAFKA` names the broker, as `host:port`. Every test creates its own topics.

mod produce;
mod reading;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use headwater::source::history::{Gap, HistoryQuery, HistoryRead, RecordHistory, Visitor};
use headwater::source::kafka::history::TopicHistory;
use headwater::source::kafka::produce::{Produced, Producer};
use headwater::source::kafka::{KafkaSource, KafkaSourceConfig, StartFrom};
use headwater::source::{Budget, Raw, Source, SourceError};
use headwater::topics::{TopicSpec, create_topics};
use headwater_dataflows::{Offset, Partition, Position};
use headwater_sinks::Misconfigured;
use headwater_sinks::kafka::client::Options;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, TopicPartitionList};

use reading::Reading;

const TEN_SECONDS: Duration = Duration::from_secs(10);

fn brokers() -> String {
    std::env::var("HEADWATER_TEST_KAFKA")
        .expect("these tests need a Kafka broker: set HEADWATER_TEST_KAFKA to its host:port")
}

/// Creates a new topic, whose name starts with `test` and is unique.
fn topic(test: &str, partitions: u32, config: &[(&str, &str)]) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{test}-{}-{count}", std::process::id());
    let spec = TopicSpec::new(&name, partitions);
    let spec = config.iter().fold(spec, |spec, (key, value)| spec.with(key, value));
    create_topics(&brokers(), &Options::new(), &[spec]).expect("the topic is new");
    name
}

fn config(topic: &str) -> KafkaSourceConfig {
    KafkaSourceConfig {
        brokers: brokers(),
        topic: topic.to_owned(),
        group: format!("group-{topic}"),
        starts: None,
        start_from: StartFrom::Earliest,
        ignore_group: false,
        producer_header: "producer".to_owned(),
        accepted: Vec::new(),
        options: Options::new(),
        until_end: false,
        bytes_in_flight: 8 << 20,
    }
}

fn open(topic: &str) -> KafkaSource {
    KafkaSource::open(config(topic)).expect("it opens")
}

fn refusal<T>(outcome: Result<T, SourceError>) -> String {
    match outcome {
        Err(SourceError::Refused(reason)) => reason,
        Err(error) => panic!("unavailable rather than refused: {error}"),
        Ok(_) => panic!("it is not refused"),
    }
}

/// Creates a producer; with an id, a transactional one.
fn producer(id: Option<&str>) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers());
    if let Some(id) = id {
        config.set("transactional.id", id);
    }
    let producer: BaseProducer = config.create().expect("a producer");
    if id.is_some() {
        producer.init_transactions(TEN_SECONDS).expect("transactions are initialised");
    }
    producer
}

fn send(producer: &BaseProducer, topic: &str, partition: i32, values: impl IntoIterator<Item = String>) {
    for value in values {
        let record = BaseRecord::<[u8], str>::to(topic).partition(partition).payload(&value);
        producer.send(record).map_err(|(error, _)| error).expect("it is queued");
    }
    producer.flush(TEN_SECONDS).expect("it is written");
}

/// Commits a transaction of three records in the first partition.
fn commit_three(producer: &BaseProducer, topic: &str) {
    producer.begin_transaction().expect("it begins");
    send(producer, topic, 0, numbers(0..3));
    producer.commit_transaction(TEN_SECONDS).expect("it commits");
}

fn numbers(range: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    range.map(|n| n.to_string())
}

#[test]
fn records_have_key_timestamp_tombstone_and_retry_count() {
    let topic = topic("record", 1, &[]);
    let header = |value: &str| vec![("headwater-retries".to_owned(), value.as_bytes().to_vec())];
    let produced = [
        Produced { key: Some(b"k".to_vec()), value: Some(b"v".to_vec()), ..Produced::default() },
        Produced { headers: header("2"), ..Produced::default() },
        Produced { value: Some(Vec::new()), headers: header("many"), ..Produced::default() },
    ];
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now").as_millis();
    let kafka = Producer::connect(&brokers(), &Options::new(), &topic).expect("it connects");
    kafka.run(produced, None, &AtomicBool::new(false), &mut |_| {}).expect("they are produced");
    let mut reader = open(&topic).reader(&[(Partition(0), Offset(0))]).expect("it reads");
    let mut got = Vec::new();
    let deadline = Instant::now() + TEN_SECONDS;
    while got.len() < 3 && Instant::now() < deadline {
        let each = &mut |raw: headwater::source::Raw<'_>| {
            assert!((raw.timestamp as u128).abs_diff(before) < 60_000, "{}", raw.timestamp);
            let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
            got.push((raw.position.offset.0, owned(raw.key), owned(raw.value), raw.retries));
        };
        reader.read(Budget::records(10), each).expect("it reads");
    }
    let expected = [
        (0, Some(b"k".to_vec()), Some(b"v".to_vec()), 0),
        (1, None, None, 2),
        (2, None, Some(Vec::new()), 0),
    ];
    assert_eq!(got, expected);
}

#[test]
fn aborted_records_are_hidden_and_the_position_passes_them() {
    let topic = topic("aborted", 1, &[]);
    let upstream = producer(Some(&topic));
    commit_three(&upstream, &topic);
    upstream.begin_transaction().expect("it begins");
    send(&upstream, &topic, 0, numbers(3..5));
    upstream.abort_transaction(TEN_SECONDS).expect("it aborts");
    let source = open(&topic);
    let mut reading = Reading::of(&source);
    // Three records, a marker, two aborted records, a marker.
    reading.until("the position passes the last marker", |r| r.state(0).position == Offset(7));
    assert_eq!(reading.values(0), ["0", "1", "2"]);
    reading.until("it is at its end", |r| r.at_end(0));
    assert_eq!(reading.state(0).backlog, 0);
}

#[test]
fn records_of_an_open_transaction_are_read_when_it_commits() {
    let topic = topic("open", 1, &[]);
    send(&producer(None), &topic, 0, numbers(0..2));
    let upstream = producer(Some(&topic));
    upstream.begin_transaction().expect("it begins");
    send(&upstream, &topic, 0, numbers(2..4));
    let source = open(&topic);
    let mut reading = Reading::of(&source);
    reading.until("committed records are read", |r| r.state(0).position == Offset(2));
    reading.until("the transaction is seen", |r| r.state(0).high_watermark == Some(Offset(4)));
    reading.keep_reading(Duration::from_secs(2));
    assert!(!reading.at_end(0), "an open transaction must not look like the end");
    let state = reading.state(0);
    assert_eq!((state.position, state.stable_offset), (Offset(2), Some(Offset(2))), "it holds the partition");
    assert_eq!(state.backlog, 0, "uncommitted records cannot be read");
    upstream.commit_transaction(TEN_SECONDS).expect("it commits");
    reading.until("the transaction's records are read", |r| r.values(0).len() == 4);
    reading.until("it is at its end", |r| r.at_end(0));
}

#[test]
fn a_partition_is_at_its_end_while_another_is_busy() {
    let topic = topic("end", 2, &[]);
    let upstream = producer(None);
    send(&upstream, &topic, 1, numbers(0..1));
    let source = open(&topic);
    let mut reading = Reading::of(&source);
    let begun = Instant::now();
    let mut next = 0;
    while !reading.at_end(1) {
        assert!(begun.elapsed() < TEN_SECONDS, "{:?}", reading.state(1));
        send(&upstream, &topic, 0, numbers(next..next + 200));
        next += 200;
        reading.step(50).expect("it reads");
    }
    let before = reading.state(1);
    reading.keep_reading(Duration::from_millis(600));
    let state = reading.state(1);
    assert!(reading.at_end(1) && state.observation > before.observation, "{state:?}");
    assert_eq!(state.leader_failures, 0);
    send(&upstream, &topic, 1, numbers(1..2));
    reading.until("the new record is read", |r| r.values(1).len() == 2);
    reading.until("it is at its new end", |r| r.at_end(1));
}

#[test]
fn pausing_and_resuming_loses_and_repeats_no_record() {
    let topic = topic("pause", 2, &[]);
    let upstream = producer(None);
    for partition in 0..2 {
        send(&upstream, &topic, partition, numbers(0..20_000));
    }
    let source = open(&topic);
    let mut reading = Reading::of(&source);
    let mut pauses = 0;
    let deadline = Instant::now() + Duration::from_secs(60);
    while reading.got.values().map(Vec::len).sum::<usize>() < 40_000 {
        assert!(Instant::now() < deadline, "{:?}", reading.reader.partitions());
        let (position, other) = (reading.state(0).position, reading.state(1).position);
        let pause = reading.got.values().map(Vec::len).sum::<usize>() / 4_000 % 2 == 1;
        reading.reader.set_paused(Partition(0), pause).expect("it is owned");
        pauses += usize::from(pause);
        reading.step(700).expect("it reads");
        if pause {
            assert_eq!(reading.state(0).position, position, "a paused partition does not advance");
            if other == Offset(20_000) {
                break;
            }
        }
    }
    assert!(pauses > 3);
    reading.reader.set_paused(Partition(0), false).expect("it is owned");
    reading.until("all records are read", |r| (0..2).all(|p| r.values(p).len() >= 20_000));
    let expected: Vec<_> = numbers(0..20_000).enumerate().map(|(n, value)| (n as i64, value)).collect();
    assert!((0..2).all(|p| reading.got[&p] == expected), "each record once, in order");
}

#[test]
fn the_position_never_passes_records_that_were_not_emitted() {
    let topic = topic("position", 1, &[]);
    send(&producer(None), &topic, 0, numbers(0..5_000));
    let source = open(&topic);
    let mut reading = Reading::of(&source);
    // All records are fetched long before they are read, and statistics report this meanwhile.
    for _ in 0..60 {
        reading.step(10).expect("it reads");
        assert_eq!(reading.state(0).position, Offset(reading.values(0).len() as i64));
        assert!(!reading.at_end(0));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!((1..5_000).contains(&reading.values(0).len()));
    reading.reader.set_paused(Partition(0), true).expect("it is owned");
    let position = reading.state(0).position;
    reading.keep_reading(Duration::from_millis(500));
    assert_eq!(reading.state(0).position, position);
    assert_eq!(reading.state(0).backlog, (5_000 - position.0) as u64);
}

#[test]
fn a_bounded_run_ends_after_control_records() {
    let topic = topic("bounded", 3, &[]);
    let upstream = producer(Some(&topic));
    commit_three(&upstream, &topic);
    upstream.begin_transaction().expect("it begins");
    send(&upstream, &topic, 0, numbers(3..5));
    send(&upstream, &topic, 1, numbers(0..2));
    upstream.abort_transaction(TEN_SECONDS).expect("it aborts");
    let source =
        KafkaSource::open(KafkaSourceConfig { until_end: true, ..config(&topic) }).expect("it opens");
    let mut reading = Reading::of(&source);
    assert!(reading.state(2).ended, "an empty partition has ended before anything is read");
    for partition in 0..3 {
        send(&producer(None), &topic, partition, numbers(90..99));
    }
    reading.until("every partition ends", Reading::ended);
    reading.keep_reading(Duration::from_millis(500));
    assert_eq!(reading.values(0), ["0", "1", "2"]);
    assert_eq!((reading.values(1).len(), reading.values(2).len()), (0, 0));
    assert!((0..3).all(|p| reading.state(p).backlog == 0), "later records do not count as backlog");
    let position = |p| reading.state(p).position;
    assert_eq!([position(0), position(1), position(2)], [Offset(7), Offset(3), Offset(0)]);
}

#[test]
fn a_bounded_run_ends_before_an_open_transaction() {
    let topic = topic("bounded-open", 1, &[]);
    send(&producer(None), &topic, 0, numbers(0..2));
    let upstream = producer(Some(&topic));
    upstream.begin_transaction().expect("it begins");
    send(&upstream, &topic, 0, numbers(2..4));
    let source =
        KafkaSource::open(KafkaSourceConfig { until_end: true, ..config(&topic) }).expect("it opens");
    upstream.commit_transaction(TEN_SECONDS).expect("it commits");
    let mut reading = Reading::of(&source);
    reading.until("it ends", Reading::ended);
    assert_eq!(reading.values(0), ["0", "1"]);
}

/// Removes the records of partition 0 below an offset, as retention would.
fn truncate(topic: &str, before: i64) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers()).create().expect("a client");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, 0, rdkafka::Offset::Offset(before)).expect("a valid offset");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(admin.delete_records(&offsets, &AdminOptions::new())).expect("they are removed");
}

#[test]
fn offsets_outside_the_log_are_refused_with_its_range() {
    let topic = topic("range", 1, &[]);
    send(&producer(None), &topic, 0, numbers(0..10));
    truncate(&topic, 4);
    let source = open(&topic);
    assert_eq!(source.start(), [Offset(4)]);
    for offset in [2, 77] {
        let reader = source.reader(&[(Partition(0), Offset(offset))]).expect("it is assigned");
        let mut reading = Reading { reader, got: BTreeMap::new() };
        let deadline = Instant::now() + TEN_SECONDS;
        let reason = loop {
            assert!(Instant::now() < deadline, "it is not refused");
            if let outcome @ Err(_) = reading.step(10) {
                break refusal(outcome);
            }
        };
        assert_eq!(reading.values(0), Vec::<&str>::new());
        for part in [&format!("offset {offset}"), "partition 0", "4 to 10", &topic] {
            assert!(reason.contains(part), "{reason}");
        }
    }
}

#[test]
fn group_offsets_are_the_start_and_refused_once_truncated() {
    let topic = topic("group", 2, &[]);
    send(&producer(None), &topic, 0, numbers(0..10));
    let source = open(&topic);
    assert_eq!(source.start(), [Offset(0), Offset(0)]);
    source.commit(&[(Partition(0), Offset(2))]).expect("it commits");
    source.commit(&[(Partition(0), Offset(3))]).expect("it commits");
    assert_eq!(open(&topic).start(), [Offset(3), Offset(0)]);
    truncate(&topic, 5);
    let reason = refusal(KafkaSource::open(config(&topic)));
    assert!(reason.contains("from offset 3") && reason.contains("5 to 10"), "{reason}");
}

#[test]
fn recorded_starts_override_the_group_and_must_be_in_the_log() {
    let topic = topic("recorded", 1, &[]);
    send(&producer(None), &topic, 0, numbers(0..10));
    open(&topic).commit(&[(Partition(0), Offset(7))]).expect("it is committed");
    let with = |starts: Vec<i64>| {
        let starts = Some(starts.into_iter().map(Offset).collect());
        KafkaSource::open(KafkaSourceConfig { starts, ..config(&topic) })
    };
    assert_eq!(with(vec![3]).expect("it opens").start(), [Offset(3)]);
    assert!(refusal(with(vec![3, 0])).contains("has 1 partitions, but 2 were read before"));
    assert!(refusal(with(vec![11])).contains("must be read from offset 11, but the topic has 0 to 10"));
    truncate(&topic, 5);
    assert!(refusal(with(vec![3])).contains("the topic has 5 to 10"));
}

#[test]
fn no_record_at_or_beyond_a_limit_is_read() {
    let topic = topic("limit", 2, &[]);
    (0..2).for_each(|partition| send(&producer(None), &topic, partition, numbers(0..20)));
    let mut reading = Reading::of(&open(&topic));
    let limit = |reading: &mut Reading, partition, limit: Option<i64>| {
        reading.reader.set_limit(Partition(partition), limit.map(Offset)).expect("it is owned");
    };
    limit(&mut reading, 0, Some(7));
    limit(&mut reading, 1, Some(0));
    reading.until("up to the limit", |reading| reading.state(0).position == Offset(7));
    reading.keep_reading(Duration::from_millis(500));
    assert_eq!((reading.state(0).position, reading.state(1).position), (Offset(7), Offset(0)));
    assert_eq!(reading.got[&0].len(), 7);
    assert!(!reading.got.contains_key(&1), "{:?}", reading.got);
    limit(&mut reading, 0, Some(8));
    reading.until("one more", |reading| reading.got[&0].len() == 8);
    (0..2).for_each(|partition| limit(&mut reading, partition, None));
    reading.until("the rest", |reading| (0..2).all(|p| reading.got.get(&p).map_or(0, Vec::len) == 20));
}

#[test]
fn start_from_applies_without_recorded_offsets() {
    let topic = topic("from", 2, &[]);
    let upstream = producer(None);
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now").as_millis() as i64;
    for n in 0..5 {
        let record = BaseRecord::<str, str>::to(&topic).partition(0).payload("x").timestamp(now + n);
        upstream.send(record).map_err(|(error, _)| error).expect("it is queued");
    }
    upstream.flush(TEN_SECONDS).expect("it is written");
    for (from, expected) in [
        (StartFrom::Latest, 5),
        (StartFrom::Time(now + 3), 3),
        (StartFrom::Time(0), 0),
        (StartFrom::Time(now + 5), 5),
    ] {
        let source = KafkaSource::open(KafkaSourceConfig { start_from: from, ..config(&topic) });
        assert_eq!(source.expect("it opens").start(), [Offset(expected), Offset(0)], "{from:?}");
    }
}

#[test]
fn missing_or_compacted_topics_and_owned_options_are_refused() {
    let reason = refusal(KafkaSource::open(config("no-such-topic")));
    assert!(reason.contains("no-such-topic") && reason.contains("topics create"), "{reason}");
    for policy in ["compact", "compact,delete"] {
        let topic = topic("compacted", 1, &[("cleanup.policy", policy)]);
        let reason = refusal(KafkaSource::open(config(&topic)));
        assert!(reason.contains(&topic) && reason.contains("compacted"), "{reason}");
    }
    let topic = topic("owned", 1, &[]);
    for key in
        ["enable.auto.commit", "auto.offset.reset", "isolation.level", "group.id", "enable.partition.eof"]
    {
        let options = Options::from([(key.to_owned(), "x".into())]);
        let Err(error) = KafkaSource::open(KafkaSourceConfig { options, ..config(&topic) }) else {
            panic!("{key} is not refused");
        };
        let mut causes =
            std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let reason = causes.find_map(|cause| cause.downcast_ref::<Misconfigured>());
        assert!(reason.is_some_and(|reason| reason.0.contains(key)), "{error:?}");
    }
}

#[test]
fn an_absent_broker_is_an_error_within_a_timeout() {
    let begun = Instant::now();
    let absent = KafkaSourceConfig { brokers: "127.0.0.1:1".to_owned(), ..config("any") };
    let outcome = KafkaSource::open(absent);
    assert!(matches!(outcome, Err(SourceError::Unavailable { .. })));
    assert!(begun.elapsed() < Duration::from_secs(30));
}

/// `cargo test --test kafka_source measure -- --ignored --nocapture` prints the rate of reading.
#[test]
#[ignore = "a measurement"]
fn measure_reading() {
    let topic = topic("measure", 6, &[]);
    let records = (0..1_000_000u32).map(|n| Produced {
        partition: Some(n % 6),
        value: Some(format!("{n:0>250}").into_bytes()),
        ..Produced::default()
    });
    let kafka = Producer::connect(&brokers(), &Options::new(), &topic).expect("it connects");
    let begun = Instant::now();
    kafka.run(records, None, &AtomicBool::new(false), &mut |_| {}).expect("they are produced");
    println!("produced {:.0} records/s", 1e6 / begun.elapsed().as_secs_f64());
    let source =
        KafkaSource::open(KafkaSourceConfig { until_end: true, bytes_in_flight: 64 << 20, ..config(&topic) })
            .expect("it opens");
    let owned: Vec<_> = (0..6).map(|p| (Partition(p), Offset(0))).collect();
    let mut reader = source.reader(&owned).expect("it reads");
    let (begun, mut count, mut bytes) = (Instant::now(), 0, 0);
    while !reader.partitions().iter().all(|state| state.ended) {
        let read = reader
            .read(Budget::records(5_000), &mut |raw| bytes += raw.value.map_or(0, <[u8]>::len))
            .expect("it reads");
        count += read;
        if read == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    println!(
        "read {count} records, {:.0} a second, {bytes} bytes",
        f64::from(count as u32) / begun.elapsed().as_secs_f64()
    );
}

/// Keeps the positions and timestamps of records; the wanted one has the value `80`.
#[derive(Default)]
struct Around(Vec<(u32, i64, i64)>);

impl Visitor for Around {
    fn is_wanted(&mut self, raw: Raw<'_>) -> bool {
        raw.value == Some(b"80") && raw.position.partition == Partition(0)
    }

    fn record(&mut self, raw: Raw<'_>) {
        self.0.push((raw.position.partition.0, raw.position.offset.0, raw.timestamp));
    }

    fn is_full(&self) -> bool {
        false
    }
}

#[test]
fn records_around_one_are_read_within_bounds() {
    let topic = topic("history", 2, &[("retention.ms", "-1")]);
    let (base, producer) = (1_795_939_200_000, producer(None));
    for n in 0..100 {
        for partition in 0..2 {
            let value = n.to_string();
            let record = BaseRecord::<[u8], str>::to(&topic).partition(partition).payload(&value);
            let record = record.timestamp(base + 1000 * n);
            producer.send(record).map_err(|(error, _)| error).expect("it is queued");
        }
    }
    producer.flush(TEN_SECONDS).expect("it is written");
    let position = Position { partition: Partition(0), offset: Offset(80) };
    let (trigger_ms, spare_ms) = (base + 80_000, 5000);
    let read = |max_records, position, from_ms| {
        let history = TopicHistory {
            brokers: brokers(),
            options: Options::new(),
            topic: topic.clone(),
            is_from_first: true,
            max_records,
        };
        let deadline = Instant::now() + TEN_SECONDS;
        let query = HistoryQuery {
            position,
            earliest_ms: trigger_ms - 7000,
            from_ms,
            spare_ms,
            after_ms: 2500,
            deadline,
        };
        let mut around = Around::default();
        let read = history.read(&query, &mut around).expect("readable");
        around.0.sort_unstable();
        (read, around.0)
    };
    let expected = |first: i64| -> Vec<_> {
        (0..2).flat_map(|partition| (first..83).map(move |n| (partition, n, base + 1000 * n))).collect()
    };
    let whole = HistoryRead { is_found: true, ..HistoryRead::default() };
    assert_eq!(read(1000, Some(position), None), (whole.clone(), expected(0)));
    assert_eq!(read(1000, None, None), (whole, expected(0)), "it is found without its position");
    let (of_time, records) = read(1000, Some(position), Some(base + 50_500));
    assert_eq!((of_time.since_ms, of_time.gaps), (Some(base + 50_500), Vec::new()));
    assert_eq!(records, expected(46), "few records before that are read too");
    let (of_time, records) = read(70, Some(position), Some(base + 60_500));
    assert_eq!((of_time.since_ms, records), (Some(base + 60_500), expected(61)), "and more than few are not");

    let (cut, records) = read(40, Some(position), None);
    assert!(records.len() <= 40 && matches!(cut.gaps[..], [Gap::Bound(_)]), "{cut:?}");
    let since_ms = cut.since_ms.expect("it is cut");
    let first = (since_ms - base + 999) / 1000;
    assert!((62..=72).contains(&first), "{first}");
    assert_eq!(records, expected(first), "nothing is missing from then on");

    let gone = Position { offset: Offset(5000), ..position };
    let (missing, records) = read(1000, Some(gone), None);
    assert!(!missing.is_found && records.is_empty(), "{missing:?}");
}

#[test]
fn most_of_a_budget_goes_to_the_partition_furthest_behind() {
    let topic = topic("order", 3, &[]);
    let producer = producer(None);
    (0..3).for_each(|partition| send(&producer, &topic, partition, numbers(0..1000)));
    let source = open(&topic);
    let mut reading = Reading::of(&source);
    reading.until("every partition is fetched", |reading| reading.got.len() == 3);

    let count = |reading: &Reading, partition: u32| reading.got.get(&partition).map_or(0, Vec::len);
    let shares = |reading: &mut Reading, order: &[usize]| {
        reading.reader.set_order(order);
        let before = [0, 1, 2].map(|partition| count(reading, partition));
        assert_eq!(reading.step(120).expect("it reads"), 120);
        [0, 1, 2].map(|partition| count(reading, partition) - before[partition as usize])
    };
    assert_eq!(
        shares(&mut reading, &[2, 0, 1]),
        [10, 10, 100],
        "all get a share, and the first what is left"
    );
    assert_eq!(shares(&mut reading, &[1, 2, 0]), [10, 100, 10]);
    reading.reader.set_paused(Partition(1), true).expect("it is assigned");
    assert_eq!(shares(&mut reading, &[1, 2, 0]), [15, 0, 105], "the first that can be read");
    assert_eq!(shares(&mut reading, &[]), [60, 0, 60], "without an order all get the same");
}
