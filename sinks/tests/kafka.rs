//! The Kafka sink against a real broker: librdkafka's own mock neither hides aborted transactions nor fences.
//!
//! `HEADWATER_TEST_KAFKA` names the broker, as `host:port`. Every test makes topics of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use headwater_sinks::kafka::client::Options;
use headwater_sinks::kafka::topics::{TopicError, TopicSpec, Topics};
use headwater_sinks::kafka::{KafkaConfig, KafkaSink, progress_topic, transactional_ids};
use headwater_sinks::{
    Changes, CommitError, CommitPermit, Generation, Header, Lineage, OpenError, Progress, Shards, Sink, Start,
};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

fn brokers() -> String {
    std::env::var("HEADWATER_TEST_KAFKA")
        .expect("these tests need a Kafka broker: set HEADWATER_TEST_KAFKA to its host:port")
}

fn topics() -> Topics {
    Topics::connect(&brokers(), &Options::new()).expect("the options are valid")
}

/// A pipeline with one output topic, both named after the test.
struct Bench {
    pipeline: String,
    topic: String,
}

impl Bench {
    fn new(test: &str, partitions: u32, config: &[(&str, &str)]) -> Bench {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let pipeline = format!("{test}-{}-{count}", std::process::id());
        let topic = format!("out-{pipeline}");
        let spec = TopicSpec::new(&topic, partitions);
        let spec = config.iter().fold(spec, |spec, (key, value)| spec.with(key, value));
        topics().create(&[spec]).expect("the topic is new");
        Bench { pipeline, topic }
    }

    fn start(&self, generation: u64) -> Start {
        Start {
            pipeline: self.pipeline.clone(),
            lineage: Lineage("a".repeat(32)),
            generation: Generation(generation),
            process: 0,
            shards: Shards::ALL,
            ever: 1,
            adopt: None,
        }
    }

    fn config(&self) -> KafkaConfig {
        KafkaConfig {
            name: "kafka".to_owned(),
            brokers: brokers(),
            topics: vec![self.topic.clone()],
            options: Options::new(),
        }
    }

    fn try_open(&self, generation: u64) -> Result<Vec<Progress>, OpenError> {
        KafkaSink::new(self.config()).open(&self.start(generation))
    }

    fn opened(&self, generation: u64) -> KafkaSink {
        let mut sink = KafkaSink::new(self.config());
        sink.open(&self.start(generation)).expect("it opens");
        sink
    }

    fn look(&self) -> Vec<Progress> {
        KafkaSink::new(self.config()).look(&self.pipeline).expect("readable")
    }

    fn committed(&self) -> Vec<Record> {
        read(&self.topic, "read_committed")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    partition: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

/// Everything in a topic up to its present end, as a reader with this isolation sees it.
fn read(topic: &str, isolation: &str) -> Vec<Record> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", "reader")
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let partitions = topics().partitions(topic).expect("the cluster answers").expect("the topic exists");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions as i32 {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("a valid offset");
    }
    consumer.assign(&list).expect("it is assigned");
    let mut ended = 0;
    let mut records = Vec::new();
    while ended < partitions {
        match consumer.poll(Duration::from_secs(20)).expect("every partition ends within 20 s") {
            Ok(message) => records.push(Record {
                partition: message.partition(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                headers: message.headers().map_or_else(Vec::new, |headers| {
                    let owned = |value: Option<&[u8]>| value.unwrap_or_default().to_vec();
                    headers.iter().map(|header| (header.key.to_owned(), owned(header.value))).collect()
                }),
            }),
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => panic!("{error}"),
        }
    }
    records
}

fn values(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| String::from_utf8(record.value.clone().unwrap_or_default()).expect("text");
    records.iter().map(text).collect()
}

fn messages(pairs: &[(&str, &str)]) -> Changes {
    let mut changes = Changes::default();
    for (key, value) in pairs {
        changes.messages.push(0, Some(key.as_bytes()), &[], |out| out.extend_from_slice(value.as_bytes()));
    }
    changes
}

/// Text that does not compress.
fn noise(len: usize) -> String {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'!' + (state >> 33) as u8 % 90)
    };
    (0..len).map(|_| next()).collect()
}

fn commit(sink: &mut KafkaSink, through: u64) -> Result<(), CommitError> {
    sink.commit(CommitPermit::granted(Epoch(through)))
}

fn is_fenced(outcome: Result<(), CommitError>) -> String {
    let error = outcome.expect_err("it is fenced");
    assert!(matches!(error, CommitError::Fenced { .. }), "{error}");
    error.to_string()
}

/// Has a topic take messages of up to so many bytes.
fn largest_message(topic: &str, bytes: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers()).create().expect("a client");
    let alter = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", bytes);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let answers = runtime.block_on(admin.alter_configs(&[alter], &AdminOptions::new()));
    answers.expect("answered")[0].as_ref().expect("it is altered");
}

fn stranger(id: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("transactional.id", id)
        .create()
        .expect("a producer");
    producer.init_transactions(Duration::from_secs(20)).expect("it takes the id over");
    producer
}

#[test]
fn a_round_shows_its_epochs_and_their_progress_and_keeps_later_ones() {
    let bench = Bench::new("round", 1, &[]);
    let mut sink = bench.opened(1);
    for epoch in [3, 1, 2] {
        sink.stage(Epoch(epoch), messages(&[("k", &format!("e{epoch}"))])).expect("it is staged");
    }
    assert_eq!(read(&bench.topic, "read_uncommitted"), [], "staging shows nothing");
    commit(&mut sink, 2).expect("it commits");
    assert_eq!(values(&bench.committed()), ["e1", "e2"]);
    commit(&mut sink, 5).expect("it commits");
    assert_eq!(values(&bench.committed()), ["e1", "e2", "e3"]);
    drop(sink);
    let found = bench.try_open(2).expect("it opens");
    let (lineage, generation) = (Lineage("a".repeat(32)), Generation(1));
    assert_eq!(found, [Progress { lineage, generation, shards: Shards::ALL, through: Epoch(5) }]);
}

#[test]
fn a_sink_never_written_has_no_progress_and_a_round_without_outputs_leaves_some() {
    let bench = Bench::new("empty", 1, &[]);
    assert_eq!(bench.try_open(1).expect("it opens"), []);
    let mut sink = bench.opened(2);
    commit(&mut sink, 7).expect("it commits");
    let found = bench.try_open(3).expect("it opens");
    assert_eq!(found.iter().map(|p| p.through).collect::<Vec<_>>(), [Epoch(7)]);
}

#[test]
fn looking_finds_what_is_committed_and_disturbs_nobody() {
    let bench = Bench::new("look", 1, &[]);
    assert_eq!(bench.look(), []);
    let exists = topics().partitions(&progress_topic(&bench.pipeline)).expect("an answer");
    assert_eq!(exists, None, "looking makes no topic");
    let mut sink = bench.opened(1);
    assert_eq!(bench.look(), [], "opening promises nothing");
    for epoch in [3, 4] {
        sink.commit(CommitPermit::granted(Epoch(epoch))).expect("nobody has taken over");
        let found: Vec<_> =
            bench.look().iter().map(|progress| (progress.generation, progress.through)).collect();
        assert_eq!(found, [(Generation(1), Epoch(epoch))]);
    }
}

#[test]
fn messages_arrive_as_staged_with_headers_tombstones_and_empty_values() {
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

/// Java's hash of a key, written down independently.
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
fn a_key_goes_where_java_clients_send_it_and_stays_in_order_across_rounds() {
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
fn a_round_that_a_broker_refuses_shows_nothing_and_repeated_shows_everything_once() {
    let bench = Bench::new("retry", 1, &[("max.message.bytes", "2000")]);
    let mut sink = bench.opened(1);
    assert_eq!(sink.largest_message(), Some(2000));
    let noise = noise(8000);
    sink.stage(Epoch(1), messages(&[("small", "before")])).expect("it is staged");
    sink.stage(Epoch(2), messages(&[("large-key", &noise)])).expect("it is staged");
    sink.stage(Epoch(3), messages(&[("small", "after")])).expect("it is staged");
    for _ in 0..3 {
        let error = commit(&mut sink, 3).expect_err("the topic takes no such message");
        let text = error.to_string();
        assert!(matches!(error, CommitError::Refused { .. }), "{text}");
        assert!(text.contains(&format!("--skip kafka:2:{}/large-key/0", bench.topic)), "{text}");
    }
    assert_eq!(bench.committed(), []);
    assert_eq!(bench.look(), [], "progress comes with its round");

    largest_message(&bench.topic, "100000");
    commit(&mut sink, 3).expect("it commits");
    commit(&mut sink, 4).expect("it commits");
    assert_eq!(values(&bench.committed()), ["before", noise.as_str(), "after"]);
}

#[test]
fn a_round_whose_progress_a_broker_refuses_shows_nothing() {
    let bench = Bench::new("unpromised", 1, &[]);
    let mut sink = bench.opened(1);
    sink.stage(Epoch(1), messages(&[("k", "v")])).expect("it is staged");
    largest_message(&progress_topic(&bench.pipeline), "1");
    let error = commit(&mut sink, 1).expect_err("the progress topic takes nothing");
    assert!(matches!(error, CommitError::Failed { .. } | CommitError::Refused { .. }), "{error}");
    assert_eq!(bench.committed(), [], "a round comes with its progress");
    largest_message(&progress_topic(&bench.pipeline), "100000");
    commit(&mut sink, 1).expect("it commits");
    assert_eq!(values(&bench.committed()), ["v"]);
}

#[test]
fn a_message_that_is_too_large_is_refused_for_good_and_named() {
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
    assert!(error.len() < 1000, "the message itself stays out of the error");
    assert_eq!(bench.committed(), []);
}

#[test]
fn what_is_as_large_as_a_topic_takes_is_taken_also_beyond_the_clients_own_bound() {
    let bench = Bench::new("large", 1, &[("max.message.bytes", "3000000")]);
    let mut sink = bench.opened(1);
    let large = noise(2_000_000);
    sink.stage(Epoch(1), messages(&[("a", "1"), ("large", &large), ("b", "2")])).expect("it is staged");
    commit(&mut sink, 1).expect("its topic takes it");
    assert_eq!(bench.committed().len(), 3);
}

#[test]
fn two_transactional_ids_are_used_in_turn() {
    let bench = Bench::new("turns", 1, &[]);
    let mut sink = bench.opened(1);
    commit(&mut sink, 1).expect("the first id commits");
    commit(&mut sink, 2).expect("the second id commits");
    let _other = stranger(&transactional_ids(&bench.pipeline, "kafka", 0)[1]);
    commit(&mut sink, 3).expect("the first id is untouched");
    is_fenced(commit(&mut sink, 4));
}

#[test]
fn a_zombie_commits_nothing_not_even_after_taking_its_ids_back() {
    let bench = Bench::new("zombie", 1, &[("max.message.bytes", "2000")]);
    let mut zombie = bench.opened(1);
    zombie.stage(Epoch(1), messages(&[("k", "v")])).expect("it is staged");
    zombie.stage(Epoch(2), messages(&[("k", &noise(8000))])).expect("it is staged");
    // The first producer is now due for replacement, which takes its id over again.
    commit(&mut zombie, 2).expect_err("the message is too large");
    let mut successor = bench.opened(2);
    is_fenced(commit(&mut zombie, 1));
    let error = is_fenced(commit(&mut zombie, 1));
    assert!(error.contains("generation 2"), "the id was taken back and the sentinel read: {error}");
    assert_eq!(bench.committed(), []);
    is_fenced(commit(&mut successor, 1));
}

#[test]
fn a_zombie_is_fenced_however_often_it_tries() {
    let bench = Bench::new("stubborn", 1, &[]);
    let mut zombie = bench.opened(1);
    zombie.stage(Epoch(1), messages(&[("k", "v")])).expect("it is staged");
    let _successor = bench.opened(2);
    for _ in 0..8 {
        is_fenced(commit(&mut zombie, 1));
    }
    assert_eq!(bench.committed(), []);
}

/// What it has read of its successor before reading failed must not be forgotten.
#[test]
fn a_zombie_that_cannot_read_all_progress_at_first_is_fenced_when_it_can() {
    let bench = Bench::new("interrupted", 1, &[("max.message.bytes", "2000")]);
    let mut zombie = bench.opened(1);
    zombie.stage(Epoch(1), messages(&[("k", "v")])).expect("it is staged");
    zombie.stage(Epoch(2), messages(&[("k", &noise(8000))])).expect("it is staged");
    // Both producers are now due for replacement.
    for _ in 0..2 {
        commit(&mut zombie, 2).expect_err("the message is too large");
    }
    let _successor = bench.opened(2);
    let other = stranger(&format!("stranger-{}", bench.pipeline));
    other.begin_transaction().expect("it begins");
    let topic = progress_topic(&bench.pipeline);
    other.send(BaseRecord::to(&topic).key("x").payload("no progress")).expect("it is queued");
    other.flush(Duration::from_secs(10)).expect("it is written");
    let error = commit(&mut zombie, 1).expect_err("its own sentinel is hidden");
    assert!(matches!(error, CommitError::Failed { .. }), "{error}");
    other.abort_transaction(Duration::from_secs(10)).expect("it aborts");
    is_fenced(commit(&mut zombie, 1));
    assert_eq!(bench.committed(), []);
}

#[test]
fn fencing_stops_a_process_that_the_new_cluster_no_longer_has() {
    let bench = Bench::new("smaller", 1, &[]);
    let mut third = KafkaSink::new(bench.config());
    third.open(&Start { process: 2, ..bench.start(1) }).expect("it opens");
    third.stage(Epoch(1), messages(&[("k", "v")])).expect("it is staged");
    let mut first = KafkaSink::new(bench.config());
    first.open(&Start { ever: 3, ..bench.start(2) }).expect("it opens, its own fencing notwithstanding");
    for _ in 0..3 {
        is_fenced(commit(&mut third, 1));
    }
    assert_eq!(bench.committed(), []);
}

/// Whoever takes an id back, at whatever moment, must find that somebody else has had it.
#[test]
fn every_id_that_is_taken_over_has_its_own_sentinel() {
    let bench = Bench::new("sentinels", 1, &[]);
    let mut first = KafkaSink::new(bench.config());
    first.open(&Start { ever: 3, ..bench.start(1) }).expect("it opens");
    let found = read(&progress_topic(&bench.pipeline), "read_committed");
    for id in (0..3).flat_map(|process| transactional_ids(&bench.pipeline, "kafka", process)) {
        let says_so =
            |record: &Record| record.value.as_ref().is_some_and(|value| value.ends_with(id.as_bytes()));
        assert!(found.iter().any(says_so), "{id}");
    }
}

/// The second id is taken over a moment after the first, and until then a predecessor, which never ends here, may commit
/// through it.
#[test]
fn what_is_committed_while_the_next_start_opens_is_in_the_progress_that_it_finds() {
    for _ in 0..5 {
        let bench = Bench::new("opening", 1, &[]);
        let mut before = bench.opened(1);
        commit(&mut before, 1).expect("it commits");
        let (mut sink, next) = (KafkaSink::new(bench.config()), bench.start(2));
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
                assert_eq!(found, bench.look(), "nothing came after it was read");
                assert!(found[0].through >= Epoch(committed), "{found:?}, and {committed} was committed");
            }
            // Its predecessor has taken an id back in between: it is started again.
            Err(error) => {
                assert!(matches!(error, OpenError::Fenced { .. } | OpenError::Unavailable { .. }), "{error}")
            }
        }
    }
}

#[test]
fn an_older_generation_another_ledger_and_a_cloned_one_are_refused_and_another_can_be_adopted() {
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
    let other = Start { lineage: Lineage("b".repeat(32)), ..bench.start(1) };
    refused(KafkaSink::new(bench.config()).open(&other), "--reset-sink");
    let mut adopting = KafkaSink::new(bench.config());
    let adopted = adopting.open(&Start { adopt: Some(Epoch(2)), ..other.clone() }).expect("it adopts");
    let through = |found: &[Progress]| found.iter().map(|p| (p.generation, p.through)).collect::<Vec<_>>();
    assert_eq!(through(&adopted), [(Generation(1), Epoch(2))]);
    // Durably, before anything is committed; and what was removed does not come back, compacted or not.
    let next = Start { generation: Generation(2), ..other };
    let found = KafkaSink::new(bench.config()).open(&next).expect("it is ours now");
    assert_eq!(through(&found), [(Generation(1), Epoch(2))]);
    is_fenced(commit(&mut adopting, 3));
    refused(bench.try_open(6), "--reset-sink");
}

#[test]
fn progress_of_several_writers_is_all_returned() {
    let bench = Bench::new("writers", 1, &[]);
    let half = |process| Shards::of_workers(process..process + 1, 2);
    for (process, through) in [(0, 10), (1, 12)] {
        let mut sink = KafkaSink::new(bench.config());
        sink.open(&Start { process, shards: half(process), ..bench.start(1) }).expect("it opens");
        commit(&mut sink, through - 1).expect("it commits");
        commit(&mut sink, through).expect("it commits");
    }
    let found = bench.try_open(2).expect("it opens");
    let through: Vec<_> = found.iter().map(|p| (p.shards, p.through)).collect();
    assert_eq!(through, [(half(0), Epoch(10)), (half(1), Epoch(12))]);
}

#[test]
fn progress_behind_a_strangers_open_transaction_is_waited_for() {
    let bench = Bench::new("stranger", 1, &[]);
    let mut sink = bench.opened(1);
    commit(&mut sink, 1).expect("it commits");
    let other = stranger(&format!("stranger-{}", bench.pipeline));
    other.begin_transaction().expect("it begins");
    let topic = progress_topic(&bench.pipeline);
    other.send(BaseRecord::to(&topic).key("x").payload("no progress")).expect("it is queued");
    other.flush(Duration::from_secs(10)).expect("it is written");
    commit(&mut sink, 2).expect("it commits, but its readers wait");
    let waiting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(3));
        other.abort_transaction(Duration::from_secs(10)).expect("it aborts");
    });
    let begun = Instant::now();
    let found = bench.try_open(2).expect("it opens");
    assert!(begun.elapsed() > Duration::from_secs(2), "the stranger was not waited for");
    assert_eq!(found.iter().map(|p| p.through).collect::<Vec<_>>(), [Epoch(2)]);
    waiting.join().expect("it aborted");
}

#[test]
fn a_foreign_record_in_the_progress_topic_is_refused_with_its_place() {
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

#[test]
fn missing_topics_and_owned_options_are_refused_by_name() {
    let bench = Bench::new("missing", 1, &[]);
    let mut config = bench.config();
    config.topics.extend(["no-such-one".to_owned(), "nor-this".to_owned()]);
    let error = KafkaSink::new(config).open(&bench.start(1)).expect_err("topics are missing").to_string();
    assert!(error.contains("no-such-one, nor-this") && error.contains("topics create"), "{error}");
    assert!(!error.contains(&bench.topic), "{error}");
    let mut config = bench.config();
    config.options.insert("acks".to_owned(), "1".to_owned());
    let error = KafkaSink::new(config).open(&bench.start(1)).expect_err("acks is owned").to_string();
    assert!(error.contains("`acks`"), "{error}");
}

#[test]
fn changes_that_are_not_for_this_sink_are_refused_when_staged() {
    let mut sink = KafkaSink::new(Bench::new("stage", 1, &[]).config());
    let mut rows = Changes::default();
    rows.rows.row(0).end();
    sink.stage(Epoch(1), rows).expect_err("rows are for tables");
    let mut elsewhere = Changes::default();
    elsewhere.messages.push(1, None, &[], |_| {});
    sink.stage(Epoch(1), elsewhere).expect_err("there is no second topic");
}

#[test]
fn creating_topics_again_changes_nothing_and_too_few_partitions_are_said() {
    let bench = Bench::new("create", 2, &[]);
    let wanted = |partitions| [TopicSpec::new(&bench.topic, partitions)];
    assert_eq!(topics().create(&wanted(2)).expect("it exists"), Vec::<String>::new());
    let error = topics().create(&wanted(3)).expect_err("it has two");
    assert!(matches!(error, TopicError::TooFewPartitions { found: 2, wanted: 3, .. }), "{error}");
    topics().delete(&[&bench.topic]).expect("it is deleted");
    topics().delete(&[&bench.topic]).expect("deleting twice is no error");
}

#[test]
fn a_broker_that_is_not_there_is_an_error_and_not_a_hang() {
    let bench = Bench::new("absent", 1, &[]);
    let config = KafkaConfig { brokers: "127.0.0.1:1".to_owned(), ..bench.config() };
    let begun = Instant::now();
    let error = KafkaSink::new(config).open(&bench.start(1)).expect_err("nobody listens there");
    assert!(matches!(error, OpenError::Unavailable { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

/// `cargo test --test kafka measure -- --ignored --nocapture` prints commit latencies and throughput.
#[test]
#[ignore = "a measurement"]
fn measure_rounds() {
    for linger in ["0", "1", "5"] {
        for (size, rounds) in [(100, 300), (1_000, 100), (10_000, 30)] {
            let bench = Bench::new("measure", 6, &[]);
            let mut config = bench.config();
            config.options.insert("linger.ms".to_owned(), linger.to_owned());
            let mut sink = KafkaSink::new(config);
            let begun = Instant::now();
            sink.open(&bench.start(1)).expect("it opens");
            let open = begun.elapsed();
            let value = "v".repeat(200);
            let mut latencies = Vec::new();
            let begun = Instant::now();
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
            let seconds = begun.elapsed().as_secs_f64();
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
