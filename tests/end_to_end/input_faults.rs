//! What befalls the input of a run and its clock, at random: junk, clocks that are off, transactions that stay open,
//! partitions that are added, a wall clock that is set.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use headwater::source::generator::{GeneratorSettings, RecordMaker};
use headwater_dataflows::Position;
use headwater_sinks::kafka::topics::TopicSpec;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::common::{Random, hard};
use crate::kafka::{self, read_all};
use crate::liveness::{NOW, event, wall_ms};
use crate::topics::grow;

/// How many partitions a topic has at first, and at most.
const FIRST: usize = 6;
const MOST: usize = 12;

const PATIENCE: Duration = Duration::from_secs(60);

const DAY_MS: i64 = 86_400_000;

/// A topic, and who writes to it.
pub struct Input {
    brokers: String,
    topic: String,
    maker: RecordMaker,
    /// How many of the generator's records each partition has been given.
    made: Vec<u64>,
    /// How many records the topic has, without those of the open transaction.
    written: u64,
    /// Ends by and by, and says how many records it has committed.
    open: Option<JoinHandle<u64>>,
}

impl Input {
    /// The topic, which takes records with any timestamp and keeps them.
    pub fn spec(topic: &str) -> TopicSpec {
        TopicSpec::new(topic, FIRST as u32)
            .with("retention.ms", "-1")
            .with("message.timestamp.after.max.ms", &i64::MAX.to_string())
    }

    pub fn new(brokers: &str, topic: &str, seed: u64) -> Input {
        let settings = GeneratorSettings { partitions: MOST as u32, ..hard(seed) };
        Input {
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
            maker: RecordMaker::new(settings),
            made: vec![0; FIRST],
            written: 0,
            open: None,
        }
    }

    /// Gives each partition so many of the generator's records.
    pub fn produce(&mut self, records: u64) {
        let producer = producer(&self.brokers, None);
        for _ in 0..records {
            for partition in 0..self.made.len() {
                self.give_next(&producer, partition);
            }
        }
        producer.flush(PATIENCE).expect("written");
        self.written += records * self.made.len() as u64;
    }

    fn give_next(&mut self, producer: &BaseProducer, partition: usize) {
        self.maker.make(partition as u32, self.made[partition], None);
        self.made[partition] += 1;
        self.send(producer, partition, NOW, Some(&self.maker.value));
    }

    fn send(&self, producer: &BaseProducer, partition: usize, timestamp: i64, value: Option<&[u8]>) {
        let record =
            BaseRecord::<[u8], [u8]>::to(&self.topic).partition(partition as i32).timestamp(timestamp);
        let mut record = value.into_iter().fold(record, BaseRecord::payload);
        // A producer learns of new partitions only now and then, and takes so many records at a time.
        while let Err((error, refused)) = producer.send(record) {
            let code = error.rdkafka_error_code();
            let later = [RDKafkaErrorCode::QueueFull, RDKafkaErrorCode::UnknownPartition];
            assert!(code.is_some_and(|code| later.contains(&code)), "{error}");
            producer.poll(Duration::from_millis(20));
            record = refused;
        }
        producer.poll(Duration::ZERO);
    }

    /// Something befalls it, and its usual records go on; says what.
    pub fn befall(&mut self, random: &mut Random) -> &'static str {
        let kind = match random.below(4) {
            0 => {
                self.write_junk(random);
                "junk"
            }
            1 => {
                self.write_by_wrong_clocks(random);
                "wrong clocks"
            }
            2 if self.made.len() < MOST => {
                let partitions = (self.made.len() + 1 + random.below(2) as usize).min(MOST);
                grow(&self.brokers, &self.topic, partitions);
                // What is added begins with the time of the others.
                self.made.resize(partitions, self.made[0]);
                "partitions added"
            }
            _ => {
                self.begin_transaction(random);
                "open transaction"
            }
        };
        self.produce(200);
        kind
    }

    /// Records that are rejected, in one partition.
    fn write_junk(&mut self, random: &mut Random) {
        let producer = producer(&self.brokers, None);
        let partition = random.below(self.made.len() as u64) as usize;
        let records = 1 + random.below(2000);
        let large = vec![b'x'; 100_000];
        for n in 0..records {
            let value: Option<&[u8]> = match n % 5 {
                0 => Some(b"heartbeat"),
                1 => None,
                2 => Some(b"{\"event_id\":\"cut"),
                3 if n % 100 == 3 => Some(&large),
                3 => Some(b"\xff\xfe"),
                _ => Some(b""),
            };
            self.send(&producer, partition, NOW, value);
        }
        producer.flush(PATIENCE).expect("written");
        self.written += records;
    }

    /// Events whose own clock, record timestamp, or both are off by a day or by years.
    fn write_by_wrong_clocks(&mut self, random: &mut Random) {
        let producer = producer(&self.brokers, None);
        let partition = random.below(self.made.len() as u64) as usize;
        let now = wall_ms();
        let times = [now + DAY_MS, now + 400 * DAY_MS, now, 1, now - 1000 * DAY_MS];
        let records = 1 + random.below(40);
        for n in 0..records {
            let mut time = || times[random.below(times.len() as u64) as usize];
            let (event_time, timestamp) = (time(), time());
            let (id, user) = (format!("off-{}-{n}", self.written), format!("off-{}", n % 5));
            let event = event(&id, &user, event_time);
            self.send(&producer, partition, timestamp, Some(event.as_bytes()));
            // An event that nothing confirms makes nobody late.
            self.give_next(&producer, partition);
        }
        producer.flush(PATIENCE).expect("written");
        self.written += 2 * records;
    }

    /// Some of the next records of some partitions are written by a transaction that goes on for up to 5 s, and then
    /// is committed or not. One at a time.
    fn begin_transaction(&mut self, random: &mut Random) {
        self.settle();
        let producer = producer(&self.brokers, Some(&format!("{}-upstream", self.topic)));
        producer.begin_transaction().expect("it begins");
        let (partitions, each) = (1 + random.below(2) as usize, 1 + random.below(100));
        let first = random.below((self.made.len() - partitions + 1) as u64) as usize;
        for partition in first..first + partitions {
            (0..each).for_each(|_| self.give_next(&producer, partition));
        }
        producer.flush(PATIENCE).expect("written");
        let (commits, lasts) = (random.below(2) == 0, Duration::from_millis(random.below(5000)));
        self.open = Some(spawn(move || {
            sleep(lasts);
            let mut commits = commits;
            loop {
                let ended = match commits {
                    true => producer.commit_transaction(PATIENCE),
                    false => producer.abort_transaction(PATIENCE),
                };
                match ended {
                    Ok(()) => break,
                    // The broker is away.
                    Err(KafkaError::Transaction(error)) if error.is_retriable() => {}
                    Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => commits = false,
                    Err(error) => panic!("{error}"),
                }
            }
            if commits { partitions as u64 * each } else { 0 }
        }));
    }

    /// Waits for the end of an open transaction.
    pub fn settle(&mut self) {
        if let Some(open) = self.open.take() {
            self.written += open.join().expect("it has ended");
        }
    }

    /// Writes down for the oracle what the topic has.
    pub fn record(&mut self, path: &Path) {
        self.settle();
        let mut file = std::io::BufWriter::new(fs::File::create(path).expect("a file"));
        let mut count = 0;
        for record in read_all(&self.brokers, &self.topic) {
            let Position { partition, offset } = record.position;
            let (offset, value) = (offset.0 as u64, record.value.as_deref());
            let line = kafka::recorded(partition.0, offset, Some(record.timestamp), value);
            file.write_all(line.as_bytes()).expect("written");
            count += 1;
        }
        file.flush().expect("written");
        assert_eq!(count, self.written, "what was written is there");
    }
}

fn producer(brokers: &str, id: Option<&str>) -> BaseProducer {
    let options = [("enable.idempotence", "true"), ("topic.metadata.refresh.interval.ms", "200")];
    kafka::producer(brokers, &options, id.map(|id| (id, PATIENCE)))
}

/// The wall clock of one process, by libfaketime: others keep the machine's.
pub struct Clock(PathBuf);

impl Clock {
    /// Has a command take its clock from a file.
    pub fn of(command: &mut Command, file: PathBuf, random: &mut Random) -> Clock {
        let library = std::env::var("HEADWATER_TORTURE_FAKETIME").expect("scripts/torture says where it is");
        command
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", &file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1");
        let clock = Clock(file);
        clock.step(random);
        clock
    }

    /// Sets it.
    pub fn step(&self, random: &mut Random) {
        let steps = ["+0", "-2h", "-30s", "+30s", "+1h", "-1d", "+3s", "-3s"];
        let step = steps[random.below(steps.len() as u64) as usize];
        // Whoever reads it never finds half of it.
        let new = self.0.with_extension("new");
        fs::write(&new, step).expect("written");
        fs::rename(new, &self.0).expect("renamed");
    }
}
