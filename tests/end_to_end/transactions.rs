//! No Kafka transaction of a live run stays open for long, so that `read_committed` consumers do not wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::kafka::{CrashPipeline, OUTPUTS, lock_output_topics, topics};
use crate::live::Process;
use crate::services::Services;

/// The longest time that a transaction may be open.
const BOUND: Duration = Duration::from_secs(1);

/// A thread that polls the ends of partitions: the records between the last stable offset and the high watermark belong
/// to open transactions.
struct TransactionWatcher {
    is_stopped: Arc<AtomicBool>,
    thread: JoinHandle<OpenTransactions>,
}

/// The open transactions that were observed.
#[derive(Debug, Default)]
struct OpenTransactions {
    /// The number of observations of an open transaction.
    open: usize,
    /// The longest time for which a partition's last stable offset did not change while a transaction was open.
    longest: Duration,
}

impl TransactionWatcher {
    /// Starts observing these topics.
    fn start(brokers: &str, topics: &'static [&'static str]) -> TransactionWatcher {
        let consumer = |isolation: &str| -> BaseConsumer {
            ClientConfig::new()
                .set("bootstrap.servers", brokers)
                .set("isolation.level", isolation)
                .create()
                .expect("a client")
        };
        let (stable, all) = (consumer("read_committed"), consumer("read_uncommitted"));
        let metadata = stable.fetch_metadata(None, Duration::from_secs(10)).expect("answered");
        let partitions: Vec<_> = metadata
            .topics()
            .iter()
            .filter_map(|topic| topics.iter().find(|name| **name == topic.name()).zip(Some(topic)))
            .flat_map(|(name, topic)| topic.partitions().iter().map(|partition| (*name, partition.id())))
            .collect();
        assert!(partitions.len() >= topics.len(), "a topic has no partitions");
        let is_stopped = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_stopped);
        let thread = std::thread::spawn(move || {
            let mut seen = OpenTransactions::default();
            let mut standing = vec![None; partitions.len()];
            while !until.load(Ordering::Relaxed) {
                for (&(topic, partition), standing) in partitions.iter().zip(&mut standing) {
                    let end = |consumer: &BaseConsumer| {
                        consumer
                            .fetch_watermarks(topic, partition, Duration::from_secs(10))
                            .expect("answered")
                            .1
                    };
                    // The stable offset is read first, so that a commit in between does not count as open.
                    let (stable, end) = (end(&stable), end(&all));
                    let since = match *standing {
                        Some((before, since)) if before == stable => since,
                        _ => Instant::now(),
                    };
                    *standing = (stable < end).then_some((stable, since));
                    if stable < end {
                        seen.open += 1;
                        seen.longest = seen.longest.max(since.elapsed());
                    }
                }
            }
            seen
        });
        TransactionWatcher { is_stopped, thread }
    }

    fn stop(self) -> OpenTransactions {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watcher panicked")
    }
}

#[test]
fn no_transaction_of_a_run_is_open_for_longer_than_a_second() {
    let _lock = lock_output_topics();
    let (pipeline, mut stream) = CrashPipeline::on(Services::shared(), "open", 71);
    let watcher = TransactionWatcher::start(&pipeline.services().kafka, &OUTPUTS);
    let mut run = Process::start(pipeline.live_command("2"), pipeline.path("run.log"));
    let mut produced = 0;
    for _ in 0..8 {
        stream.produce(5_000);
        produced += 5_000;
        crate::live::wait_for("the produced records", || (pipeline.stored() >= produced).then_some(()));
    }
    run.terminate();
    run.expect_success();
    let seen = watcher.stop();
    assert!(seen.open > 0, "no transaction was observed: {seen:?}");
    assert!(seen.longest < BOUND, "{seen:?}");
    Process::start(pipeline.command("2"), pipeline.path("run.log")).expect_success();
    pipeline.judge();
}

/// Checks the watcher that the test above relies on.
#[test]
fn the_watcher_detects_a_long_open_transaction() {
    let _lock = lock_output_topics();
    let services = Services::shared();
    let specs = crate::kafka::standard_topics();
    headwater::topics::create_topics(&services.kafka, &Default::default(), &specs).expect("created");
    let stranger: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", &services.kafka)
        .set("transactional.id", format!("stranger-{}", std::process::id()))
        .create()
        .expect("a client");
    let timeout = Duration::from_secs(30);
    stranger.init_transactions(timeout).expect("initialised");
    stranger.begin_transaction().expect("begun");
    stranger
        .send(BaseRecord::to(OUTPUTS[1]).key("a").payload("b"))
        .map_err(|(error, _)| error)
        .expect("queued");
    stranger.flush(timeout).expect("written");
    let watcher = TransactionWatcher::start(&services.kafka, &OUTPUTS);
    std::thread::sleep(BOUND + Duration::from_millis(500));
    stranger.abort_transaction(timeout).expect("aborted");
    let seen = watcher.stop();
    topics(&services.kafka).delete(&OUTPUTS).expect("deleted");
    assert!(seen.longest >= BOUND, "{seen:?}");
}
