//! Random faults of a run's input and clock: junk, wrong clocks, open transactions, added partitions, a wall clock that
//! jumps.

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

use crate::common::{Random, hard_settings};
use crate::kafka::{self, read_all};
use crate::liveness::{NOW, event, wall_ms};
use crate::topics::grow;

/// The initial and the greatest number of partitions of a topic.
const INITIAL_PARTITIONS: usize = 6;
const MAX_PARTITIONS: usize = 12;

const TIMEOUT: Duration = Duration::from_secs(60);

const DAY_MS: i64 = 86_400_000;

/// A topic and its producers.
pub struct Input {
    brokers: String,
    topic: String,
    maker: RecordMaker,
    /// The number of the generator's records in each partition.
    made: Vec<u64>,
    /// The number of records in the topic, without those of the open transaction.
    written: u64,
    /// The thread of the open transaction, which returns the number of committed records.
    open: Option<JoinHandle<u64>>,
}

impl Input {
    /// Returns the topic's settings: it accepts records with any timestamp and keeps them.
    pub fn spec(topic: &str) -> TopicSpec {
        TopicSpec::new(topic, INITIAL_PARTITIONS as u32)
            .with("retention.ms", "-1")
            .with("message.timestamp.after.max.ms", &i64::MAX.to_string())
    }

    pub fn new(brokers: &str, topic: &str, seed: u64) -> Input {
        let settings = GeneratorSettings { partitions: MAX_PARTITIONS as u32, ..hard_settings(seed) };
        Input {
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
            maker: RecordMaker::new(settings),
            made: vec![0; INITIAL_PARTITIONS],
            written: 0,
            open: None,
        }
    }

    /// Produces this number of the generator's records to each partition.
    pub fn produce(&mut self, records: u64) {
        let producer = producer(&self.brokers, None);
        for _ in 0..records {
            for partition in 0..self.made.len() {
                self.send_next(&producer, partition);
            }
        }
        producer.flush(TIMEOUT).expect("written");
        self.written += records * self.made.len() as u64;
    }

    fn send_next(&mut self, producer: &BaseProducer, partition: usize) {
        self.maker.make(partition as u32, self.made[partition], None);
        self.made[partition] += 1;
        self.send(producer, partition, NOW, Some(&self.maker.value));
    }

    fn send(&self, producer: &BaseProducer, partition: usize, timestamp: i64, value: Option<&[u8]>) {
        let record =
            BaseRecord::<[u8], [u8]>::to(&self.topic).partition(partition as i32).timestamp(timestamp);
        let mut record = value.into_iter().fold(record, BaseRecord::payload);
        // A producer refreshes its list of partitions only periodically, and its queue is bounded.
        while let Err((error, refused)) = producer.send(record) {
            let code = error.rdkafka_error_code();
            let later = [RDKafkaErrorCode::QueueFull, RDKafkaErrorCode::UnknownPartition];
            assert!(code.is_some_and(|code| later.contains(&code)), "{error}");
            producer.poll(Duration::from_millis(20));
            record = refused;
        }
        producer.poll(Duration::ZERO);
    }

    /// Injects a random fault, produces regular records after it, and returns the kind of fault.
    pub fn inject_fault(&mut self, random: &mut Random) -> &'static str {
        let kind = match random.below(4) {
            0 => {
                self.write_junk(random);
                "junk"
            }
            1 => {
                self.write_wrong_clocks(random);
                "wrong clocks"
            }
            2 if self.made.len() < MAX_PARTITIONS => {
                let partitions = (self.made.len() + 1 + random.below(2) as usize).min(MAX_PARTITIONS);
                grow(&self.brokers, &self.topic, partitions);
                // An added partition starts at the event time of the others.
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

    /// Writes records that are rejected to one partition.
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
        producer.flush(TIMEOUT).expect("written");
        self.written += records;
    }

    /// Writes events whose event time, record timestamp, or both are wrong by a day or by years.
    fn write_wrong_clocks(&mut self, random: &mut Random) {
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
            // A jump that is not confirmed by a further record makes no event late.
            self.send_next(&producer, partition);
        }
        producer.flush(TIMEOUT).expect("written");
        self.written += 2 * records;
    }

    /// Writes the next records of some partitions in a transaction that stays open for up to 5 s and is then committed
    /// or aborted. At most one transaction is open at a time.
    fn begin_transaction(&mut self, random: &mut Random) {
        self.wait_for_transaction();
        let producer = producer(&self.brokers, Some(&format!("{}-upstream", self.topic)));
        producer.begin_transaction().expect("begun");
        let (partitions, each) = (1 + random.below(2) as usize, 1 + random.below(100));
        let first = random.below((self.made.len() - partitions + 1) as u64) as usize;
        for partition in first..first + partitions {
            (0..each).for_each(|_| self.send_next(&producer, partition));
        }
        producer.flush(TIMEOUT).expect("written");
        let (commits, lasts) = (random.below(2) == 0, Duration::from_millis(random.below(5000)));
        self.open = Some(spawn(move || {
            sleep(lasts);
            let mut commits = commits;
            loop {
                let ended = match commits {
                    true => producer.commit_transaction(TIMEOUT),
                    false => producer.abort_transaction(TIMEOUT),
                };
                match ended {
                    Ok(()) => break,
                    // The broker is down.
                    Err(KafkaError::Transaction(error)) if error.is_retriable() => {}
                    Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => commits = false,
                    Err(error) => panic!("{error}"),
                }
            }
            if commits { partitions as u64 * each } else { 0 }
        }));
    }

    /// Waits for the end of an open transaction.
    pub fn wait_for_transaction(&mut self) {
        if let Some(open) = self.open.take() {
            self.written += open.join().expect("the transaction's thread panicked");
        }
    }

    /// Writes the records of the topic to a file for the oracle.
    pub fn write_for_oracle(&mut self, path: &Path) {
        self.wait_for_transaction();
        let mut file = std::io::BufWriter::new(fs::File::create(path).expect("a file"));
        let mut count = 0;
        for record in read_all(&self.brokers, &self.topic) {
            let Position { partition, offset } = record.position;
            let (offset, value) = (offset.0 as u64, record.value.as_deref());
            let line = kafka::oracle_line(partition.0, offset, Some(record.timestamp), value);
            file.write_all(line.as_bytes()).expect("written");
            count += 1;
        }
        file.flush().expect("written");
        assert_eq!(count, self.written, "the topic does not have the records that were written");
    }
}

fn producer(brokers: &str, id: Option<&str>) -> BaseProducer {
    let options = [("enable.idempotence", "true"), ("topic.metadata.refresh.interval.ms", "200")];
    kafka::producer(brokers, &options, id.map(|id| (id, TIMEOUT)))
}

/// The wall clock of one process, set by libfaketime; other processes keep the clock of the machine.
pub struct Clock(PathBuf);

impl Clock {
    /// Makes a command read its clock from a file.
    pub fn attach(command: &mut Command, file: PathBuf, random: &mut Random) -> Clock {
        let library = std::env::var("HEADWATER_TORTURE_FAKETIME")
            .expect("HEADWATER_TORTURE_FAKETIME is not set: run scripts/torture");
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

    /// Sets the clock to a random offset.
    pub fn step(&self, random: &mut Random) {
        let steps = ["+0", "-2h", "-30s", "+30s", "+1h", "-1d", "+3s", "-3s"];
        let step = steps[random.below(steps.len() as u64) as usize];
        // The rename is atomic, so that a reader never sees a partial file.
        let new = self.0.with_extension("new");
        fs::write(&new, step).expect("written");
        fs::rename(new, &self.0).expect("renamed");
    }
}
