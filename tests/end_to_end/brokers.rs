//! Three brokers, one of which is away while records flow: leaders and coordinators move, and the run goes on by itself.
//! Without a majority of brokers, or enough replicas in sync, the run waits and says so. At the end every result is there
//! exactly once.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use headwater_sinks::kafka::{progress_topic, transactional_ids};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::kafka::{Killed, OUTPUTS, Stream, admin, standard_topics, topics};
use crate::live::{Running, caused, get, metric, wait_for};
use crate::services::{Service, Services};

/// The replicas of each partition, and the least number of them that must be in sync.
const REPLICAS: (usize, usize) = (3, 2);

const ANSWER: Duration = Duration::from_secs(10);

/// How many records are produced at a time.
const BATCH: u64 = 100;

/// Longer than the timeout of a sink's transaction.
const LONG: Duration = Duration::from_secs(12);

/// Records that come all the time.
struct Traffic {
    over: Arc<AtomicBool>,
    produced: Arc<AtomicU64>,
    /// Whoever holds it holds records up.
    gate: Arc<Mutex<()>>,
    thread: JoinHandle<()>,
}

impl Traffic {
    fn start(mut stream: Stream) -> Traffic {
        let (over, produced) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let gate = Arc::<Mutex<()>>::default();
        let (until, count, open) = (Arc::clone(&over), Arc::clone(&produced), Arc::clone(&gate));
        let thread = spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let open = open.lock().expect("no holder of the lock panics");
                stream.produce(BATCH);
                count.fetch_add(BATCH, Ordering::Relaxed);
                drop(open);
                sleep(Duration::from_millis(100));
            }
        });
        Traffic { over, produced, gate, thread }
    }

    /// How many records the brokers have acknowledged.
    fn produced(&self) -> u64 {
        assert!(!self.thread.is_finished(), "records are produced all the time");
        self.produced.load(Ordering::Relaxed)
    }

    /// Ends it; how many records there are.
    fn end(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("every record was acknowledged");
        self.produced.load(Ordering::Relaxed)
    }
}

/// A run that nobody starts again.
struct Unattended {
    killed: Killed,
    topic: String,
    traffic: Traffic,
    run: Running,
    address: SocketAddr,
    cluster: BaseConsumer,
}

fn start(killed: &Killed, log: &str) -> (Running, SocketAddr) {
    let mut command = killed.live("2");
    command.env("HEADWATER__HTTP__LISTEN", "127.0.0.1:0").env("HEADWATER__LOG__FORMAT", "json");
    let mut run = Running::start(command, killed.path(log));
    let address = run.address();
    (run, address)
}

impl Unattended {
    fn new(services: Services, name: &str, seed: u64) -> Unattended {
        let (killed, stream) = Killed::on(services, name, seed);
        let cluster = ClientConfig::new().set("bootstrap.servers", &killed.services().kafka).create();
        let topic = stream.topic().to_owned();
        let traffic = Traffic::start(stream);
        let (run, address) = start(&killed, "run.log");
        Unattended { killed, topic, traffic, run, address, cluster: cluster.expect("a client") }
    }

    fn services(&self) -> &Services {
        self.killed.services()
    }

    /// Waits for something while the run must not end.
    fn waits<T>(&mut self, what: &str, condition: impl Fn(&Unattended) -> Option<T>) -> T {
        wait_for(what, || {
            let ended = self.run.ended();
            assert!(ended.is_none(), "{what}: {ended:?}\n{}", self.run.log());
            condition(self)
        })
    }

    /// Waits until every sink has records that are produced from now on.
    fn goes_on(&mut self) {
        let before = self.traffic.produced();
        let produced = self.waits("records to be produced", |run| {
            Some(run.traffic.produced()).filter(|&produced| produced >= before + 2 * BATCH)
        });
        self.waits("records in PostgreSQL", |run| (run.killed.stored() >= produced).then_some(()));
        let epoch = metric(self.address, "headwater_epoch");
        self.waits("records in every sink", |run| {
            (metric(run.address, "headwater_frontier_epoch") > epoch).then_some(())
        });
    }

    /// The broker that leads a partition.
    fn leader(&self, topic: &str, partition: usize) -> i32 {
        let metadata = self.cluster.fetch_metadata(Some(topic), ANSWER).expect("answered");
        let partitions = metadata.topics()[0].partitions();
        let found = partitions.iter().find(|found| found.id() as usize == partition);
        found.expect("there is such a partition").leader()
    }

    /// Where the coordinator of a transactional id is: the partition of a topic whose leader it is.
    fn coordinator(&self, id: &str) -> (&'static str, usize) {
        const TRANSACTIONS: &str = "__transaction_state";
        let metadata = self.cluster.fetch_metadata(Some(TRANSACTIONS), ANSWER).expect("answered");
        // As Java computes the hash of a string.
        let hash = id.bytes().fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let hash = hash.checked_abs().unwrap_or(0) as usize;
        (TRANSACTIONS, hash % metadata.topics()[0].partitions().len())
    }

    /// Whether all replicas of all partitions are in sync.
    fn is_replicated(&self) -> bool {
        let Ok(metadata) = self.cluster.fetch_metadata(None, ANSWER) else { return false };
        let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        partitions.all(|partition| partition.isr().len() == REPLICAS.0)
    }

    /// The run goes on without a broker, which then comes back.
    fn survives(&mut self, what: &str, action: &str, broker: i32) {
        let begun = Instant::now();
        self.services().control_broker(action, broker);
        self.goes_on();
        let away = begun.elapsed().as_secs_f64();
        self.services().control_broker("start", broker);
        self.waits("all replicas to be in sync", |run| run.is_replicated().then_some(()));
        let back = begun.elapsed().as_secs_f64();
        println!(
            "{what}, broker {broker}: every sink goes on after {away:.1} s, all replicas in sync after {back:.1} s"
        );
    }

    /// Input, outputs and progress have the replicas that the brokers are configured for.
    fn topics_have_replicas(&self) {
        let cluster = topics(&self.services().kafka);
        let progress = progress_topic("flow-brokers");
        for topic in OUTPUTS.into_iter().chain([&*self.topic, &*progress]) {
            let facts = cluster.describe(topic).expect("answered").expect("there is such a topic");
            let replicas = (facts.replication as usize, facts.min_insync_replicas as usize);
            assert_eq!(replicas, REPLICAS, "{topic}");
        }
    }

    /// Sets `min.insync.replicas` of the output topics.
    fn set_min_insync(&self, replicas: &str) {
        let specs = standard_topics();
        let outputs = specs.iter().filter(|spec| OUTPUTS.contains(&spec.name.as_str()));
        let configs: Vec<_> = outputs
            .map(|spec| {
                let config = AlterConfig::new(ResourceSpecifier::Topic(&spec.name));
                let config = config.set("min.insync.replicas", replicas);
                // What is not named is set to its default.
                spec.config.iter().fold(config, |config, (key, value)| config.set(key, value))
            })
            .collect();
        admin(&self.services().kafka, async |admin: &AdminClient<_>| {
            for answer in admin.alter_configs(&configs, &AdminOptions::new()).await.expect("answered") {
                answer.expect("altered");
            }
        });
    }

    /// How many lines of the log, from a place on, have this message because of a sink.
    fn logged(&self, from: usize, message: &str) -> usize {
        caused(&self.run.log()[from..], "sink", message).count()
    }

    /// Waits until `/readyz` and `headwater_stalled` report that a Kafka sink does not commit.
    fn becomes_unready(&mut self) {
        let reason = self.waits("the run not to be ready", |run| {
            let (status, body) = get(run.address, "/readyz");
            (status == 503 && body.contains("; sink kafka-")).then_some(body)
        });
        println!("{reason}");
        assert_eq!(metric(self.address, "headwater_stalled{cause=\"sink\"}"), 1.0);
    }

    /// Two brokers are killed, which leaves no quorum and no replicas in sync; one of them comes back.
    fn waits_for_a_majority(&mut self, gone: i32, back: i32) {
        let gate = Arc::clone(&self.traffic.gate);
        // The producer of the test would give its records up.
        let silence = gate.lock().expect("no holder of the lock panics");
        self.services().control_broker("kill", gone);
        self.services().control_broker("kill", back);
        self.becomes_unready();
        sleep(LONG);
        let begun = Instant::now();
        self.services().control_broker("start", back);
        drop(silence);
        self.goes_on();
        println!(
            "every sink goes on {:.1} s after two of three brokers are there",
            begun.elapsed().as_secs_f64()
        );
    }

    /// Nothing is committed while too few replicas are in sync; then the run goes on.
    fn waits_for_replicas(&mut self) {
        let from = self.run.log().len();
        self.set_min_insync("3");
        self.becomes_unready();
        sleep(LONG);
        self.waits("the warning", |run| (run.logged(from, "stalled") == 1).then_some(()));
        assert_eq!(self.logged(from, "no longer stalled"), 0, "{}", self.run.log());
        self.set_min_insync("2");
        let begun = Instant::now();
        self.goes_on();
        println!(
            "every sink goes on {:.1} s after enough replicas are in sync",
            begun.elapsed().as_secs_f64()
        );
        self.waits("readiness", |run| (get(run.address, "/readyz").0 == 200).then_some(()));
        assert_eq!(self.logged(from, "stalled"), 1, "{}", self.run.log());
    }

    /// It is stopped, and what is left is done, closed and judged.
    fn ends_with_the_right_results(self) {
        let Unattended { killed, traffic, mut run, .. } = self;
        let produced = traffic.end();
        run.terminate();
        run.ends_well();
        Running::start(killed.command("2"), killed.path("last.log")).ends_well();
        assert_eq!(killed.stored(), produced);
        killed.judge();
    }
}

#[test]
fn a_run_goes_on_by_itself_while_brokers_come_and_go() {
    let mut run = Unattended::new(Services::three_brokers(), "brokers", 81);
    run.goes_on();
    run.topics_have_replicas();

    let topic = run.topic.clone();
    let leader = run.leader(&topic, 0);
    run.survives("the leader of a source partition is killed", "kill", leader);
    let [id, _] = transactional_ids("flow-brokers", "kafka-events", 0);
    let (transactions, partition) = run.coordinator(&id);
    let coordinator = run.leader(transactions, partition);
    run.survives("the coordinator of transactions is killed", "kill", coordinator);
    for broker in 1..=3 {
        run.survives("rolling restart", "stop", broker);
    }

    // The first of `bootstrap.servers` is gone for good: the run goes on, and another one starts.
    run.waits_for_a_majority(1, 2);
    run.run.terminate();
    run.run.ends_well();
    (run.run, run.address) = start(&run.killed, "second.log");
    run.goes_on();

    run.waits_for_replicas();
    run.ends_with_the_right_results();
}

/// The broker aborts a transaction that has timed out, and fences its producer as if a successor had taken over.
#[test]
fn a_round_whose_transaction_times_out_is_tried_again() {
    let mut run = Unattended::new(Services::own(), "timed_out", 82);
    for _ in 0..2 {
        run.goes_on();
        run.services().proxy(Service::Kafka).hold_at_end_of_transaction();
        run.waits("the end of a transaction", |run| {
            run.services().proxy(Service::Kafka).holds_an_end().then_some(())
        });
        sleep(LONG);
        run.services().proxy(Service::Kafka).mend();
    }
    run.goes_on();
    assert!(run.run.log().contains("outcome of a commit resolved"), "{}", run.run.log());
    run.ends_with_the_right_results();
}
