//! Clusters whose members change while they run: they follow a host file, and every result is stored exactly once.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, free_addresses};
use crate::common::{FLOW, hard_settings, headwater};
use crate::kafka::{Stream, brokers};
use crate::live::{Process, get, wait_for};

/// The message of the first process when it stops the cluster for a change.
const CHANGE: &str = "the members of the cluster have changed: going on with them after a checkpoint";

/// A cluster that follows a host file, and its input.
struct Elastic {
    cluster: Cluster,
    addresses: Vec<String>,
    /// Ends the producer.
    done: Arc<AtomicBool>,
    producer: Option<JoinHandle<()>>,
}

impl Elastic {
    /// Creates a cluster of up to `most` processes, and produces `records` records to its topic at once and then 1,000 every
    /// 200 ms if `flows`.
    fn new(name: &str, most: usize, records: u64, flows: bool) -> Elastic {
        Elastic::with(name, most, records, flows, "")
    }

    /// The same with further sections of the configuration.
    fn with(name: &str, most: usize, records: u64, flows: bool, sections: &str) -> Elastic {
        let sections = format!("[http]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n{sections}");
        let (cluster, topic) = Cluster::of(name, 6, FLOW, &sections);
        let mut stream = Stream::new(&brokers(), &topic, &hard_settings(17), &cluster.path("records.ndjson"));
        stream.produce(records);
        let done = Arc::new(AtomicBool::new(!flows));
        let is_done = Arc::clone(&done);
        let producer = std::thread::spawn(move || {
            while !is_done.load(Ordering::Relaxed) {
                stream.produce(1_000);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Elastic { cluster, addresses: free_addresses(most), done, producer: Some(producer) }
    }

    /// Lists these processes in the host file.
    fn list(&self, processes: &[usize]) {
        let lines: Vec<_> =
            processes.iter().map(|&process| format!("{}\n", self.addresses[process])).collect();
        fs::write(self.cluster.path("members"), lines.concat()).expect("written");
    }

    /// Starts a process, which need not be listed.
    fn start(&self, process: usize) -> Process {
        self.start_with(process, "run.toml")
    }

    /// The same with another configuration.
    fn start_with(&self, process: usize, config: &str) -> Process {
        let log =
            format!("elastic-{process}-{}", fs::read_dir(self.cluster.dir()).expect("a directory").count());
        let mut command = headwater(&["run", "--restart", "--settle", "500ms", "-w", "1", "-p"]);
        command.arg(&self.addresses[process]).arg("--hostfile").arg(self.cluster.path("members"));
        command.arg("--bindings").arg(self.cluster.path("bindings.ndjson")).arg(self.cluster.path(config));
        Process::start(command, self.cluster.path(&log))
    }

    /// Waits until the newest engine of the first process runs with this number of processes, and has committed.
    fn wait_for_processes(&self, first: &Process, processes: u64) {
        let running = |line: &Value| {
            let fields = &line["fields"];
            (fields["message"] == "running").then(|| fields["processes"].as_u64()).flatten()
        };
        wait_for(&format!("{processes} processes\n{}", first.log()), || {
            let last = lines(&first.log()).iter().rev().find_map(running);
            (last == Some(processes)).then_some(())
        });
        self.wait_for_results();
    }

    fn wait_for_results(&self) {
        let before = self.cluster.through();
        wait_for("results", || (self.cluster.through() > before).then_some(()));
    }

    /// Ends the input and these processes, all at once.
    fn stop(&mut self, processes: &mut [&mut Process]) {
        self.done.store(true, Ordering::Relaxed);
        self.producer.take().map(JoinHandle::join).expect("once").expect("produced");
        processes.iter().for_each(|process| process.terminate());
        processes.iter_mut().for_each(|process| process.expect_success());
    }

    /// Returns the number of epochs that a start would replay.
    fn replay(&self) -> u64 {
        let status = headwater(&["status", "--json"]).arg(self.cluster.path("run.toml")).output();
        let status: Value = serde_json::from_slice(&status.expect("run").stdout).expect("JSON");
        status["start"]["replay"].as_u64().unwrap_or_else(|| panic!("{status}"))
    }

    /// Ends the input and the first process, reads the rest in a single run, and compares the results with the oracle's.
    fn judge(mut self, first: &mut Process) {
        self.stop(&mut [first]);
        self.judge_stopped();
    }

    /// The same once all processes have ended.
    fn judge_stopped(self) {
        self.cluster.start(1, 2).iter_mut().for_each(Process::expect_success);
        self.cluster.judge_tables();
    }
}

impl Drop for Elastic {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Returns the lines of a log.
fn lines(log: &str) -> Vec<Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Returns how often a log has a message.
fn count(process: &Process, message: &str) -> usize {
    lines(&process.log()).iter().filter(|line| line["fields"]["message"] == message).count()
}

/// Waits until a log has a message one time more than before.
fn wait_for_next(process: &Process, message: &str, before: usize) {
    wait_for(message, || (count(process, message) > before).then_some(()));
}

/// Kills a process and its engine at once, as the loss of a machine does.
fn kill_host(mut process: Process) {
    let engine = |line: &Value| line["fields"]["pid"].as_u64();
    let engine = lines(&process.log()).iter().rev().find_map(engine);
    process.kill();
    if let Some(engine) = engine {
        // An engine that has ended meanwhile is one of the cases.
        let _ = Command::new("kill").args(["-9", &engine.to_string()]).output();
    }
}

#[test]
fn a_cluster_grows_and_shrinks_while_events_flow() {
    let elastic = Elastic::new("elastic", 3, 20_000, true);
    elastic.list(&[0]);
    let mut first = elastic.start(0);
    let waiting = elastic.start(1);
    elastic.wait_for_processes(&first, 1);
    let reason = format!(
        "waiting for this process, {}, in the list of members and for the first one, {}",
        elastic.addresses[1], elastic.addresses[0]
    );
    wait_for_next(&waiting, &reason, 0);

    elastic.list(&[0, 1]);
    elastic.wait_for_processes(&first, 2);
    elastic.list(&[0, 1, 2]);
    let mut third = elastic.start(2);
    elastic.wait_for_processes(&first, 3);

    // A host that is not the last one leaves: the index of the one after it changes.
    elastic.list(&[0, 2]);
    let mut second = waiting;
    second.expect_success();
    let left = "this process is no longer a member of the cluster: ending";
    assert_eq!(count(&second, left), 1, "{}", second.log());
    elastic.wait_for_processes(&first, 2);

    // A request to stop one process is no request to stop the cluster.
    let before = count(&first, "running");
    third.terminate();
    third.expect_success();
    wait_for_next(&first, "running", before);
    elastic.wait_for_processes(&first, 1);
    elastic.judge(&mut first);
}

#[test]
fn hosts_lost_during_a_change_lose_and_repeat_nothing() {
    let elastic = Elastic::new("elastic_lost", 3, 20_000, true);
    elastic.list(&[0, 1]);
    let (mut first, second) = (elastic.start(0), elastic.start(1));
    elastic.wait_for_processes(&first, 2);

    // While the engines stop.
    let third = elastic.start(2);
    elastic.list(&[0, 1, 2]);
    wait_for_next(&first, CHANGE, 0);
    let before = count(&first, "running");
    kill_host(second);
    // The run of two processes that is about to end does not count.
    wait_for_next(&first, "running", before);
    elastic.wait_for_processes(&first, 2);

    // While the engines start.
    let second = elastic.start(1);
    wait_for_next(&first, CHANGE, 1);
    let starting = "received the start data from the first process";
    wait_for_next(&third, starting, count(&third, starting));
    kill_host(third);
    elastic.wait_for_processes(&first, 2);

    // The first process decides, so the others wait for it.
    let third = elastic.start(2);
    wait_for_next(&first, CHANGE, 2);
    kill_host(first);
    first = elastic.start(0);
    elastic.wait_for_processes(&first, 3);
    drop((second, third));
    elastic.judge(&mut first);
}

#[cfg(feature = "tls")]
#[test]
fn agents_use_the_certificates_of_the_cluster() {
    let dir = tempfile::tempdir().expect("a directory");
    crate::peers::certify(dir.path(), "one");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let sections = format!(
        "[cluster]\ntls = {{ cert_file = \"{}\", key_file = \"{}\", ca_file = \"{}\" }}\n",
        file("one.pem"),
        file("one.key"),
        file("one-ca.pem")
    );
    let mut elastic = Elastic::with("elastictls", 3, 20_000, true, &sections);
    let config = fs::read_to_string(elastic.cluster.path("run.toml")).expect("written");
    fs::write(elastic.cluster.path("plain.toml"), config.replace(&sections, "")).expect("written");
    elastic.list(&[0, 1, 2]);
    let [mut first, mut second] = [0, 1].map(|process| elastic.start(process));
    let plain = elastic.start_with(2, "plain.toml");
    elastic.wait_for_processes(&first, 2);
    for (process, reason) in [
        (&plain, "the other end uses TLS, and this process has no `cluster.tls`"),
        (&first, "all processes need `cluster.tls`"),
    ] {
        wait_for(reason, || process.log().contains(reason).then_some(()));
    }
    drop(plain);
    let mut third = elastic.start(2);
    elastic.wait_for_processes(&first, 3);
    elastic.stop(&mut [&mut third, &mut second, &mut first]);
    assert_eq!(elastic.replay(), 0, "the configuration can be changed");
    elastic.judge_stopped();
}

#[test]
fn a_member_that_never_comes_stops_nobody() {
    let elastic = Elastic::new("elastic_absent", 2, 5_000, true);
    elastic.list(&[0, 1]);
    let mut first = elastic.start(0);
    let waits = format!("waiting for members of the cluster that do not answer: {}", elastic.addresses[1]);
    wait_for("the reason", || (count(&first, &waits) > 0).then_some(()));
    let address = first.address();
    let (status, body) = get(address, "/readyz");
    assert!(status == 503 && body.contains(&elastic.addresses[1]), "{status}: {body}");
    assert_eq!(get(address, "/livez").0, 200);

    elastic.wait_for_processes(&first, 1);
    let goes_on =
        "members of the cluster do not answer: going on without them; each takes part once it answers";
    assert_eq!(count(&first, goes_on), 1, "{}", first.log());
    assert_eq!(count(&first, CHANGE), 0, "a listed host that does not answer changes nothing");

    // A list that is not valid does neither.
    fs::write(elastic.cluster.path("members"), "127.0.0.1\n").expect("written");
    let broken = |line: &Value| {
        let message = line["fields"]["message"].as_str().unwrap_or_default();
        message.starts_with("cannot read the list of members, so it stays as it is")
            && message.contains("line 1")
    };
    wait_for("the error", || lines(&first.log()).iter().any(broken).then_some(()));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(count(&first, CHANGE), 0, "{}", first.log());

    elastic.list(&[0, 1]);
    let second = elastic.start(1);
    elastic.wait_for_processes(&first, 2);
    drop(second);
    elastic.judge(&mut first);
}

/// Returns the command of a process for which names are resolved by this file instead of /etc/hosts.
fn with_names(command: &Command, names: &Path) -> Command {
    let mut private = Command::new("unshare");
    private.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]).arg(names);
    private.arg(command.get_program()).args(command.get_args());
    private.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    private
}

#[test]
fn pods_are_found_by_the_names_of_their_set() {
    let elastic = Elastic::new("elastic_pods", 1, 10_000, true);
    let port = elastic.addresses[0].rsplit_once(':').expect("a port").1.to_owned();
    let names = elastic.cluster.path("names");
    let list = |pods: &[u8]| {
        let pod = |pod: &u8| format!("127.0.7.{pod} peers\n127.0.7.{pod} engine-{pod}.peers\n");
        let others = fs::read_to_string("/etc/hosts").expect("readable");
        fs::write(&names, others + &pods.iter().map(pod).collect::<String>()).expect("written");
    };
    let start = |pod: u8| {
        let mut command = headwater(&["run", "--settle", "500ms", "--bindings"]);
        command.arg(elastic.cluster.path("bindings.ndjson")).arg(elastic.cluster.path("run.toml"));
        command
            .env("HEADWATER_PEERS", format!("dns:peers:{port}"))
            .env("HEADWATER_PROCESS", format!("engine-{pod}"));
        Process::start(with_names(&command, &names), elastic.cluster.path(&format!("elastic-{pod}")))
    };
    list(&[0, 2]);
    let (mut first, mut third) = (start(0), start(2));
    elastic.wait_for_processes(&first, 2);
    let starting = lines(&first.log())
        .iter()
        .any(|line| line["fields"]["members"] == format!("engine-0.peers:{port}, engine-2.peers:{port}"));
    assert!(starting, "the pod 1 is being replaced\n{}", first.log());
    list(&[0, 1, 2]);
    let second = start(1);
    elastic.wait_for_processes(&first, 3);

    // Kubernetes asks a pod to stop before DNS knows it.
    third.terminate();
    third.expect_success();
    elastic.wait_for_processes(&first, 2);
    list(&[0, 1]);
    drop(second);
    elastic.wait_for_processes(&first, 1);
    elastic.judge(&mut first);
}

#[test]
fn a_load_that_rises_gets_more_processes() {
    let elastic = Elastic::new("elastic_lag", 3, 150_000, false);
    elastic.list(&[0]);
    let mut processes = vec![elastic.start(0)];
    elastic.wait_for_processes(&processes[0], 1);
    // The autoscaler: a process for every 30,000 records that are not committed, as KEDA decides.
    let stored = "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM dead_letters)";
    let lag = || 150_000 - elastic.cluster.postgres.number(stored);
    let begun = lag();
    while processes.len() < 3 {
        let wanted = ((lag() + 29_999) / 30_000).clamp(1, 3) as usize;
        assert!(wanted >= processes.len(), "the lag of {begun} is gone before it was measured");
        elastic.list(&(0..wanted).collect::<Vec<_>>());
        let added: Vec<_> = (processes.len()..wanted).map(|process| elastic.start(process)).collect();
        processes.extend(added);
    }
    elastic.wait_for_processes(&processes[0], 3);
    wait_for("the lag to fall", || (lag() == 0).then_some(()));
    elastic.list(&[0]);
    let mut first = processes.remove(0);
    processes.iter_mut().for_each(Process::expect_success);
    elastic.judge(&mut first);
}
