//! No Kafka transaction of a run that lives is open for long: whoever reads what is committed does not wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::kafka::{Killed, OUTPUTS, alone, topics};
use crate::live::Running;
use crate::services::Services;

/// How long a transaction may be open.
const BOUND: Duration = Duration::from_secs(1);

/// Looks at the ends of partitions all the time: between the last stable offset and the high watermark lies what open
/// transactions have written.
struct Watched {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What was seen of open transactions.
#[derive(Debug, Default)]
struct Seen {
    /// How often one was open.
    open: usize,
    /// The longest time for which a partition's last stable offset stood still while one was.
    longest: Duration,
}

impl Watched {
    /// Of these topics, from now on.
    fn start(brokers: &str, topics: &'static [&'static str]) -> Watched {
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
        assert!(partitions.len() >= topics.len(), "every topic is watched");
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let mut standing = vec![None; partitions.len()];
            while !until.load(Ordering::Relaxed) {
                for (&(topic, partition), standing) in partitions.iter().zip(&mut standing) {
                    let end = |consumer: &BaseConsumer| {
                        consumer
                            .fetch_watermarks(topic, partition, Duration::from_secs(10))
                            .expect("answered")
                            .1
                    };
                    // The stable end first: what is committed in between is not taken for open.
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
        Watched { over, thread }
    }

    fn end(self) -> Seen {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it has watched")
    }
}

#[test]
fn no_transaction_of_a_run_is_open_for_longer_than_a_second() {
    let _alone = alone();
    let (killed, mut stream) = Killed::on(Services::shared(), "open", 71);
    let watched = Watched::start(&killed.services().kafka, &OUTPUTS);
    let mut run = Running::start(killed.live("2"), killed.path("run.log"));
    let mut produced = 0;
    for _ in 0..8 {
        stream.produce(5_000);
        produced += 5_000;
        crate::live::wait_for("what was produced", || (killed.stored() >= produced).then_some(()));
    }
    run.terminate();
    run.ends_well();
    let seen = watched.end();
    assert!(seen.open > 0, "its transactions were not seen: {seen:?}");
    assert!(seen.longest < BOUND, "{seen:?}");
    Running::start(killed.command("2"), killed.path("run.log")).ends_well();
    killed.judge();
}

/// Otherwise the test above would show nothing.
#[test]
fn a_transaction_that_is_open_for_long_is_seen() {
    let _alone = alone();
    let services = Services::shared();
    let specs = crate::kafka::standard_topics();
    headwater::topics::create_topics(&services.kafka, &Default::default(), &specs).expect("created");
    let stranger: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", &services.kafka)
        .set("transactional.id", format!("stranger-{}", std::process::id()))
        .create()
        .expect("a client");
    let patience = Duration::from_secs(30);
    stranger.init_transactions(patience).expect("it may write");
    stranger.begin_transaction().expect("begun");
    stranger
        .send(BaseRecord::to(OUTPUTS[1]).key("a").payload("b"))
        .map_err(|(error, _)| error)
        .expect("queued");
    stranger.flush(patience).expect("written");
    let watched = Watched::start(&services.kafka, &OUTPUTS);
    std::thread::sleep(BOUND + Duration::from_millis(500));
    stranger.abort_transaction(patience).expect("aborted");
    let seen = watched.end();
    topics(&services.kafka).delete(&OUTPUTS).expect("deleted");
    assert!(seen.longest >= BOUND, "{seen:?}");
}
