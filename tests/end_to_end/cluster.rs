//! Several processes with one ledger: after any of them is killed, all restart, and every result is stored exactly
//! once.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use headwater_sinks::kafka::topics::TopicSpec;

use crate::common::{Expected, FLOW, Random, hard_settings, headwater, merge_bindings};
use crate::crash::assert_refused;
use crate::hosts::{HOSTS, Hosts, address};
use crate::kafka::{
    CRASH_SECTIONS, OUTPUTS, assert_topics_match_tables, lock_output_topics, produce, topics,
};
use crate::live::{Process, wait_for};
use crate::postgres::Database;
use crate::proxy::Proxy;
use crate::services::Services;

/// The SQL expression for event times in the format of the topics.
const TIME: &str = "to_char(event_time AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')";

pub struct Cluster {
    dir: tempfile::TempDir,
    pub postgres: Database,
    services: Services,
}

impl Cluster {
    /// Creates a cluster that reads `records` generated records from a topic. The name begins that of its pipeline, whose
    /// progress Kafka keeps beyond the test.
    pub fn new(name: &str, records: u64) -> Cluster {
        let brokers = Services::shared().kafka.clone();
        headwater::topics::create_topics(&brokers, &Default::default(), &crate::kafka::standard_topics())
            .expect("created");
        let sink = format!("[cluster]\nheartbeat_timeout = \"2s\"\n[sinks.kafka]\nbrokers = {brokers:?}\n");
        let (cluster, topic) = Cluster::of(name, 6, FLOW, &sink);
        produce(&topic, &hard_settings(91), records, &cluster.path("records.ndjson"));
        cluster
    }

    /// Creates a cluster that reads a topic into PostgreSQL and these sinks. Returns it with the name of the topic.
    pub fn of(name: &str, partitions: u32, flow: &str, sinks: &str) -> (Cluster, String) {
        let services = Services::shared();
        let topic = format!("raw-{name}-{}", std::process::id());
        topics(&services.kafka).create(&[TopicSpec::new(&topic, partitions)]).expect("created");
        let postgres = Database::create(name);
        let cluster = Cluster { dir: tempfile::tempdir().expect("a directory"), postgres, services };
        let brokers = &cluster.services.kafka;
        let text = format!(
            "pipeline = \"{name}-{}\"\n[source]\nkind = \"kafka\"\ntopic = {topic:?}\nbrokers = {brokers:?}\n{flow}\
             {sinks}[sinks.postgres]\nurl = {:?}\n{CRASH_SECTIONS}{:?}\n",
            std::process::id(),
            cluster.postgres.url(),
            cluster.services.redis,
        );
        fs::write(cluster.path("run.toml"), text).expect("written");
        (cluster, topic)
    }

    /// Returns the directory of the configuration and the bindings.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the last epoch that is committed in PostgreSQL.
    pub fn through(&self) -> i64 {
        self.postgres.max_of("headwater_progress", "through")
    }

    /// Starts the processes, with the given number of workers each. At the end of the topic, they close the stream.
    pub fn start(&self, processes: usize, workers: usize) -> Vec<Process> {
        self.start_with(&["--bounded", "--drain"], processes, workers)
    }

    /// Starts the processes with further arguments.
    pub fn start_with(&self, arguments: &[&str], processes: usize, workers: usize) -> Vec<Process> {
        self.start_through(&[], arguments, processes, workers)
    }

    /// Starts the processes. The last one connects to the first ones through these proxies.
    pub fn start_through(
        &self,
        proxies: &[Proxy],
        arguments: &[&str],
        processes: usize,
        workers: usize,
    ) -> Vec<Process> {
        let mut hosts = free_addresses(processes);
        fs::write(self.path("hosts"), hosts.join("\n")).expect("written");
        for (host, proxy) in hosts.iter_mut().zip(proxies) {
            proxy.forward_to(host);
            *host = proxy.address().to_string();
        }
        fs::write(self.path("hosts-of-last"), hosts.join("\n")).expect("written");
        self.launch(processes, |process, mut command| {
            let hosts = if process == processes - 1 { "hosts-of-last" } else { "hosts" };
            command.args(arguments).arg("-h").arg(self.path(hosts)).args(["-w", &workers.to_string()]);
            command
        })
    }

    /// Starts a process of one worker on each host. At the end of the topic, they close the stream.
    pub fn start_on(&self, hosts: &Hosts) -> Vec<Process> {
        let addresses: Vec<_> = (0..HOSTS).map(|nth| format!("{}:2101", address(nth))).collect();
        fs::write(self.path("hosts"), addresses.join("\n")).expect("written");
        self.launch(HOSTS, |process, mut command| {
            command.args(["--bounded", "--drain", "-h"]).arg(self.path("hosts"));
            hosts.command(process, &command)
        })
    }

    /// Starts processes. `complete` is given the index of each, and a command without the addresses of the hosts.
    fn launch(&self, processes: usize, complete: impl Fn(usize, Command) -> Command) -> Vec<Process> {
        merge_bindings(self.dir.path(), self.postgres.recorded());
        // A frozen process of the last start may go on writing to its files.
        for process in 0..processes {
            // The first start finds none.
            let _ = fs::remove_file(self.path(&format!("log-{process}")));
        }
        let start = |process: usize| {
            let mut command = headwater(&["run"]);
            command.arg(self.path("run.toml")).arg("--bindings").arg(self.path("bindings.ndjson"));
            command.args(["-n", &processes.to_string(), "-p", &process.to_string()]);
            Process::start(complete(process, command), self.path(&format!("log-{process}")))
        };
        (0..processes).map(start).collect()
    }

    /// Kills one of the processes and checks that the others exit with an error.
    fn kill_one(&self, mut processes: Vec<Process>, random: &mut Random) {
        let before = self.through();
        wait_for("results", || (self.through() > before).then_some(()));
        std::thread::sleep(Duration::from_millis(random.below(300)));
        let at = random.below(processes.len() as u64) as usize;
        processes.remove(at).kill();
        for process in &mut processes {
            assert_eq!(process.wait().code(), Some(1), "{}", process.log());
            // Whichever process ends next may be noticed first by a third one.
            assert!(process.log().contains("headwater: lost process "), "{}", process.log());
            assert!(!process.log().contains("panicked"), "{}", process.log());
        }
    }

    /// Returns true if the processes of the last start have committed different epochs to PostgreSQL.
    fn has_uneven_progress(&self) -> bool {
        let last = "SELECT count(DISTINCT coalesce(through, 0)) FROM headwater_progress
            WHERE generation = (SELECT max(generation) FROM headwater_progress)";
        self.postgres.number(last) > 1
    }

    /// Compares the tables with those of the oracle.
    pub fn judge_tables(&self) {
        merge_bindings(self.dir.path(), i64::MAX);
        let (records, history) = (self.path("records.ndjson"), self.path("history.ndjson"));
        let input = ["--records", records.to_str().expect("UTF-8")];
        let expected = Expected::of(self.dir.path(), &self.path("run.toml"), &input, &history);
        self.postgres.dump("public", &self.path("postgres"));
        expected.judge(&self.path("postgres"));
    }

    /// Compares the tables with those of the oracle of rules of one's own, given the configuration with the first rules.
    pub fn judge_own_rules(&self, first: &Path) {
        merge_bindings(self.dir.path(), i64::MAX);
        let (records, history) = (self.path("records.ndjson"), self.path("history.ndjson"));
        let input = ["--records", records.to_str().expect("UTF-8"), "--partitions", "4"];
        let expected = Expected::by("own_rules.py", self.dir.path(), first, &input, &history);
        self.postgres.dump("public", &self.path("postgres"));
        expected.judge(&self.path("postgres"));
    }

    /// Compares the tables with those of the oracle, and the topics with the tables.
    pub fn judge(&self) {
        self.judge_tables();
        assert_topics_match_tables(&self.services.kafka, TIME, |sql| self.postgres.query(sql));
        topics(&self.services.kafka).delete(&OUTPUTS).expect("deleted");
    }
}

/// Returns different loopback addresses that nothing listens on.
pub fn free_addresses(count: usize) -> Vec<String> {
    // All listeners stay open until every port is chosen, so that the ports differ.
    let free: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    free.iter().map(|free| free.local_addr().expect("bound").to_string()).collect()
}

#[test]
fn killing_any_process_loses_and_repeats_nothing() {
    let _lock = lock_output_topics();
    let cluster = Cluster::new("cluster", 200_000);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // Without a clean stop in between, the next start assigns shards to processes whose progress differs.
    let mut uneven = 0;
    for (processes, workers) in [(3, 1), (3, 1), (2, 2), (3, 1), (2, 1), (3, 1)] {
        cluster.kill_one(cluster.start(processes, workers), &mut random);
        uneven += usize::from(cluster.has_uneven_progress());
    }
    assert!(uneven > 0, "the processes had equal progress each time");
    let mut processes = cluster.start(3, 1);
    let before = cluster.through();
    wait_for("results", || (cluster.through() > before).then_some(()));
    processes[1].terminate();
    processes.iter_mut().for_each(Process::expect_success);
    cluster.kill_one(cluster.start(2, 2), &mut random);
    cluster.start(2, 2).iter_mut().for_each(Process::expect_success);
    cluster.judge();
    assert!(
        cluster.postgres.max_of("headwater_pruned", "through") > 0,
        "no checkpoint was used: the ledger was never pruned"
    );
    assert_eq!(
        cluster.postgres.max_of("headwater_writers", "processes"),
        3,
        "the ledger records the greatest number of processes"
    );
}

#[test]
#[cfg(feature = "object-store")]
fn processes_share_checkpoints_in_an_object_store() {
    let _lock = lock_output_topics();
    let cluster = Cluster::new("shared_state", 100_000);
    let text = fs::read_to_string(cluster.path("run.toml")).expect("readable");
    let (rest, _) = text.split_once("[state]").expect("a section");
    let state = crate::object_store::section(cluster.dir(), &crate::object_store::server(), "shared");
    fs::write(cluster.path("run.toml"), format!("{rest}{state}")).expect("written");
    let mut random = Random(0x517c_c1b7_2722_0a95);
    for (processes, workers) in [(2, 1), (3, 1), (1, 2), (2, 2)] {
        cluster.kill_one(cluster.start(processes, workers), &mut random);
    }
    cluster.start(3, 1).iter_mut().for_each(Process::expect_success);
    cluster.judge();
    assert!(
        cluster.postgres.max_of("headwater_pruned", "through") > 0,
        "no checkpoint was used: the ledger was never pruned"
    );
}

#[test]
fn unshareable_settings_are_refused_for_several_processes() {
    let dir = tempfile::tempdir().expect("a directory");
    let (hosts, config) = (dir.path().join("hosts"), dir.path().join("run.toml"));
    fs::write(&hosts, "127.0.0.1:1\n127.0.0.1:2\n").expect("written");
    let base = "pipeline = \"shared\"\n[source]\nkind = \"generator\"\n";
    let ledger = "[ledger]\nkind = \"sqlite\"\npath = \"ledger.db\"\n";
    for (rest, reason) in [
        ("[sinks.postgres]\nurl = \"postgres://a@127.0.0.1/b\"\n".to_owned(), "add `[ledger]`"),
        (format!("[sinks.sqlite]\npath = \"a.db\"\n{ledger}"), "cannot share a SQLite file"),
        (
            format!("[sinks.postgres]\nurl = \"postgres://a@127.0.0.1/b\"\n{ledger}[checkpoint]\n"),
            "`state.kind = \"redis\"`",
        ),
    ] {
        fs::write(&config, format!("{base}{rest}")).expect("written");
        let mut run = headwater(&["run", "-n", "2", "-p", "0", "-h"]);
        assert_refused(run.arg(&hosts).arg(&config).current_dir(dir.path()), reason);
    }
}
