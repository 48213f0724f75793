//! Three brokers, one of which is down while records flow: leaders and coordinators move, and the run continues without
//! intervention. Without a majority of brokers, or without enough in-sync replicas, the run waits and reports that it
//! is not ready. At the end every result is stored exactly once.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use headwater_sinks::kafka::{progress_topic, transactional_ids};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::kafka::{CrashPipeline, OUTPUTS, Stream, admin, standard_topics, topics};
use crate::live::{Process, get, lines_with_cause, metric, wait_for};
use crate::services::{Service, Services};

/// The replicas of each partition, and the least number of them that must be in sync.
const REPLICAS: (usize, usize) = (3, 2);

const TIMEOUT: Duration = Duration::from_secs(10);

/// The number of records in each batch that is produced.
const BATCH: u64 = 100;

/// A duration longer than the timeout of a sink's transaction.
const BEYOND_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(12);

/// A thread that produces records continuously.
struct Traffic {
    is_stopped: Arc<AtomicBool>,
    produced: Arc<AtomicU64>,
    /// The producer stops while the lock is held elsewhere.
    gate: Arc<Mutex<()>>,
    thread: JoinHandle<()>,
}

impl Traffic {
    fn start(mut stream: Stream) -> Traffic {
        let (is_stopped, produced) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let gate = Arc::<Mutex<()>>::default();
        let (until, count, open) = (Arc::clone(&is_stopped), Arc::clone(&produced), Arc::clone(&gate));
        let thread = spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let open = open.lock().expect("the lock is poisoned");
                stream.produce(BATCH);
                count.fetch_add(BATCH, Ordering::Relaxed);
                drop(open);
                sleep(Duration::from_millis(100));
            }
        });
        Traffic { is_stopped, produced, gate, thread }
    }

    /// Returns the number of records that the brokers have acknowledged.
    fn produced(&self) -> u64 {
        assert!(!self.thread.is_finished(), "the producer thread has ended");
        self.produced.load(Ordering::Relaxed)
    }

    /// Stops producing and returns the number of records.
    fn stop(self) -> u64 {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.thread.join().expect("the producer thread panicked");
        self.produced.load(Ordering::Relaxed)
    }
}

/// A run that is not restarted if it fails.
struct UnattendedRun {
    pipeline: CrashPipeline,
    topic: String,
    traffic: Traffic,
    run: Process,
    address: SocketAddr,
    cluster: BaseConsumer,
}

fn start(pipeline: &CrashPipeline, log: &str) -> (Process, SocketAddr) {
    let mut command = pipeline.live_command("2");
    command.env("HEADWATER__HTTP__LISTEN", "127.0.0.1:0").env("HEADWATER__LOG__FORMAT", "json");
    let mut run = Process::start(command, pipeline.path(log));
    let address = run.address();
    (run, address)
}

impl UnattendedRun {
    fn new(services: Services, name: &str, seed: u64) -> UnattendedRun {
        let (pipeline, stream) = CrashPipeline::on(services, name, seed);
        let cluster = ClientConfig::new().set("bootstrap.servers", &pipeline.services().kafka).create();
        let topic = stream.topic().to_owned();
        let traffic = Traffic::start(stream);
        let (run, address) = start(&pipeline, "run.log");
        UnattendedRun { pipeline, topic, traffic, run, address, cluster: cluster.expect("a client") }
    }

    fn services(&self) -> &Services {
        self.pipeline.services()
    }

    /// Waits for a condition and fails if the run ends before.
    fn wait_while_running<T>(&mut self, what: &str, condition: impl Fn(&UnattendedRun) -> Option<T>) -> T {
        wait_for(what, || {
            let ended = self.run.try_wait();
            assert!(ended.is_none(), "{what}: {ended:?}\n{}", self.run.log());
            condition(self)
        })
    }

    /// Waits until every sink has committed records that are produced from now on.
    fn wait_for_progress(&mut self) {
        let before = self.traffic.produced();
        let produced = self.wait_while_running("records to be produced", |run| {
            Some(run.traffic.produced()).filter(|&produced| produced >= before + 2 * BATCH)
        });
        self.wait_while_running("records in PostgreSQL", |run| {
            (run.pipeline.stored() >= produced).then_some(())
        });
        let epoch = metric(self.address, "headwater_epoch");
        self.wait_while_running("records in every sink", |run| {
            (metric(run.address, "headwater_frontier_epoch") > epoch).then_some(())
        });
    }

    /// Returns the broker that leads a partition.
    fn leader(&self, topic: &str, partition: usize) -> i32 {
        let metadata = self.cluster.fetch_metadata(Some(topic), TIMEOUT).expect("answered");
        let partitions = metadata.topics()[0].partitions();
        let found = partitions.iter().find(|found| found.id() as usize == partition);
        found.expect("no such partition").leader()
    }

    /// Returns the partition whose leader is the coordinator of a transactional id.
    fn coordinator(&self, id: &str) -> (&'static str, usize) {
        const TRANSACTIONS: &str = "__transaction_state";
        let metadata = self.cluster.fetch_metadata(Some(TRANSACTIONS), TIMEOUT).expect("answered");
        // Java's hash of a string.
        let hash = id.bytes().fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let hash = hash.checked_abs().unwrap_or(0) as usize;
        (TRANSACTIONS, hash % metadata.topics()[0].partitions().len())
    }

    /// Returns true if all replicas of all partitions are in sync.
    fn is_replicated(&self) -> bool {
        let Ok(metadata) = self.cluster.fetch_metadata(None, TIMEOUT) else { return false };
        let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        partitions.all(|partition| partition.isr().len() == REPLICAS.0)
    }

    /// Stops a broker, waits until the run makes progress without it, and starts it again.
    fn survive_fault(&mut self, what: &str, action: &str, broker: i32) {
        let started = Instant::now();
        self.services().control_broker(action, broker);
        self.wait_for_progress();
        let away = started.elapsed().as_secs_f64();
        self.services().control_broker("start", broker);
        self.wait_while_running("all replicas to be in sync", |run| run.is_replicated().then_some(()));
        let back = started.elapsed().as_secs_f64();
        println!(
            "{what}, broker {broker}: every sink commits again after {away:.1} s, all replicas in sync after {back:.1} s"
        );
    }

    /// Checks that the topics of input, outputs and progress have the replicas that the brokers are configured for.
    fn assert_replication(&self) {
        let cluster = topics(&self.services().kafka);
        let progress = progress_topic("flow-brokers");
        for topic in OUTPUTS.into_iter().chain([&*self.topic, &*progress]) {
            let facts = cluster.describe(topic).expect("answered").expect("no such topic");
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
                // Settings that are not named are reset to their defaults.
                spec.config.iter().fold(config, |config, (key, value)| config.set(key, value))
            })
            .collect();
        admin(&self.services().kafka, async |admin: &AdminClient<_>| {
            for answer in admin.alter_configs(&configs, &AdminOptions::new()).await.expect("answered") {
                answer.expect("altered");
            }
        });
    }

    /// Counts the lines of the log, from a byte offset on, that have this message and the cause `sink`.
    fn logged(&self, from: usize, message: &str) -> usize {
        lines_with_cause(&self.run.log()[from..], "sink", message).count()
    }

    /// Waits until `/readyz` and `headwater_stalled` report that a Kafka sink does not commit.
    fn wait_until_unready(&mut self) {
        let reason = self.wait_while_running("the run not to be ready", |run| {
            let (status, body) = get(run.address, "/readyz");
            (status == 503 && body.contains("; sink kafka-")).then_some(body)
        });
        println!("{reason}");
        assert_eq!(metric(self.address, "headwater_stalled{cause=\"sink\"}"), 1.0);
    }

    /// Kills two brokers, which leaves no quorum and too few in-sync replicas, and restarts one of them.
    fn lose_majority_and_recover(&mut self, gone: i32, back: i32) {
        let gate = Arc::clone(&self.traffic.gate);
        // Otherwise the producer of the test would time out.
        let paused = gate.lock().expect("the lock is poisoned");
        self.services().control_broker("kill", gone);
        self.services().control_broker("kill", back);
        self.wait_until_unready();
        sleep(BEYOND_TRANSACTION_TIMEOUT);
        let started = Instant::now();
        self.services().control_broker("start", back);
        drop(paused);
        self.wait_for_progress();
        println!(
            "every sink commits again {:.1} s after two of three brokers are up",
            started.elapsed().as_secs_f64()
        );
    }

    /// Checks that nothing is committed while too few replicas are in sync, and that the run then continues.
    fn lose_in_sync_replicas_and_recover(&mut self) {
        let from = self.run.log().len();
        self.set_min_insync("3");
        self.wait_until_unready();
        sleep(BEYOND_TRANSACTION_TIMEOUT);
        self.wait_while_running("the warning", |run| (run.logged(from, "stalled") == 1).then_some(()));
        assert_eq!(self.logged(from, "no longer stalled"), 0, "{}", self.run.log());
        self.set_min_insync("2");
        let started = Instant::now();
        self.wait_for_progress();
        println!(
            "every sink commits again {:.1} s after enough replicas are in sync",
            started.elapsed().as_secs_f64()
        );
        self.wait_while_running("readiness", |run| (get(run.address, "/readyz").0 == 200).then_some(()));
        assert_eq!(self.logged(from, "stalled"), 1, "{}", self.run.log());
    }

    /// Stops the run, processes and closes the rest of the input, and compares the results with the oracle.
    fn stop_and_judge(self) {
        let UnattendedRun { pipeline, traffic, mut run, .. } = self;
        let produced = traffic.stop();
        run.terminate();
        run.expect_success();
        Process::start(pipeline.command("2"), pipeline.path("last.log")).expect_success();
        assert_eq!(pipeline.stored(), produced);
        pipeline.judge();
    }
}

#[test]
fn a_run_survives_broker_failures_without_a_restart() {
    let mut run = UnattendedRun::new(Services::three_brokers(), "brokers", 81);
    run.wait_for_progress();
    run.assert_replication();

    let topic = run.topic.clone();
    let leader = run.leader(&topic, 0);
    run.survive_fault("the leader of a source partition is killed", "kill", leader);
    let [id, _] = transactional_ids("flow-brokers", "kafka-events", 0);
    let (transactions, partition) = run.coordinator(&id);
    let coordinator = run.leader(transactions, partition);
    run.survive_fault("the coordinator of transactions is killed", "kill", coordinator);
    for broker in 1..=3 {
        run.survive_fault("rolling restart", "stop", broker);
    }

    // The first of `bootstrap.servers` is gone for good: the run continues, and another run can start.
    run.lose_majority_and_recover(1, 2);
    run.run.terminate();
    run.run.expect_success();
    (run.run, run.address) = start(&run.pipeline, "second.log");
    run.wait_for_progress();

    run.lose_in_sync_replicas_and_recover();
    run.stop_and_judge();
}

/// The broker aborts a transaction that has timed out and fences its producer, as if a successor had taken over.
#[test]
fn a_round_whose_transaction_times_out_is_retried() {
    let mut run = UnattendedRun::new(Services::own(), "timed_out", 82);
    for _ in 0..2 {
        run.wait_for_progress();
        run.services().proxy(Service::Kafka).hold_end_txn();
        run.wait_while_running("the end of a transaction", |run| {
            run.services().proxy(Service::Kafka).is_holding_end_txn().then_some(())
        });
        sleep(BEYOND_TRANSACTION_TIMEOUT);
        run.services().proxy(Service::Kafka).restore();
    }
    run.wait_for_progress();
    assert!(run.run.log().contains("outcome of a commit resolved"), "{}", run.run.log());
    run.stop_and_judge();
}
