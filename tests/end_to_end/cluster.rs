//! Several processes with one ledger: whichever is killed, all start again, and every result is there exactly once.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use headwater_sinks::kafka::topics::TopicSpec;

use crate::common::{Expected, FLOW, Random, gather, hard, headwater};
use crate::crash::refused;
use crate::kafka::{KILLED, OUTPUTS, alone, produce, topics, topics_agree};
use crate::live::{Running, wait_for};
use crate::postgres::Database;
use crate::services::Services;

/// Event times as topics have them.
const TIME: &str = "to_char(event_time AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')";

struct Cluster {
    dir: tempfile::TempDir,
    postgres: Database,
    services: Services,
}

impl Cluster {
    /// Over so many generated records of a topic.
    fn new(records: u64) -> Cluster {
        let services = Services::shared();
        let topic = format!("raw-cluster-{}", std::process::id());
        topics(&services.kafka).create(&[TopicSpec::new(&topic, 6)]).expect("created");
        headwater::topics::create_topics(
            &services.kafka,
            &Default::default(),
            &crate::kafka::standard_topics(),
        )
        .expect("created");
        let postgres = Database::create("cluster");
        let cluster = Cluster { dir: tempfile::tempdir().expect("a directory"), postgres, services };
        let brokers = &cluster.services.kafka;
        let text = format!(
            "pipeline = \"cluster\"\n[source]\nkind = \"kafka\"\ntopic = {topic:?}\nbrokers = {brokers:?}\n{FLOW}\
             [sinks.kafka]\nbrokers = {brokers:?}\n[sinks.postgres]\nurl = {:?}\n{KILLED}{:?}\n",
            cluster.postgres.url(),
            cluster.services.redis,
        );
        fs::write(cluster.path("run.toml"), text).expect("written");
        produce(&topic, &hard(91), records, &cluster.path("records.ndjson"));
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The last epoch of which PostgreSQL has anything.
    fn through(&self) -> i64 {
        self.postgres.newest("headwater_progress", "through")
    }

    /// Starts so many processes with so many workers each.
    fn start(&self, processes: usize, workers: usize) -> Vec<Running> {
        let durable = self.postgres.recorded();
        gather(self.dir.path(), durable);
        // All are held while they are chosen, so that they differ.
        let free: Vec<_> =
            (0..processes).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let hosts: String =
            free.iter().map(|free| format!("{}\n", free.local_addr().expect("bound"))).collect();
        fs::write(self.path("hosts"), hosts).expect("written");
        drop(free);
        (0..processes)
            .map(|process| {
                let mut command = headwater(&["run", "--until-end", "--close", "-h"]);
                command.arg(self.path("hosts")).arg(self.path("run.toml"));
                command.args(["-w", &workers.to_string(), "-n", &processes.to_string()]);
                command.args(["-p", &process.to_string(), "--bindings"]).arg(self.path("bindings.ndjson"));
                Running::start(command, self.path(&format!("log-{process}")))
            })
            .collect()
    }

    /// Kills one of the processes; the others end by themselves, and not well.
    fn kill(&self, mut processes: Vec<Running>, random: &mut Random) {
        let before = self.through();
        wait_for("results", || (self.through() > before).then_some(()));
        std::thread::sleep(Duration::from_millis(random.below(300)));
        let at = random.below(processes.len() as u64) as usize;
        processes.remove(at).kill();
        for process in &mut processes {
            assert!(!process.end().success(), "it lost a peer\n{}", process.log());
        }
    }

    /// Whether the processes of the last start have come unequally far in PostgreSQL.
    fn is_uneven(&self) -> bool {
        let last = "SELECT count(DISTINCT coalesce(through, 0)) FROM headwater_progress
            WHERE generation = (SELECT max(generation) FROM headwater_progress)";
        self.postgres.number(last) > 1
    }

    fn judge(&self) {
        gather(self.dir.path(), i64::MAX);
        let (records, history) = (self.path("records.ndjson"), self.path("history.ndjson"));
        let input = ["--records", records.to_str().expect("UTF-8")];
        let expected = Expected::of(self.dir.path(), &self.path("run.toml"), &input, &history);
        self.postgres.dump("public", &self.path("postgres"));
        expected.judge(&self.path("postgres"));
        topics_agree(&self.services.kafka, TIME, |sql| self.postgres.ask(sql));
        topics(&self.services.kafka).delete(&OUTPUTS).expect("deleted");
    }
}

#[test]
fn whichever_process_is_killed_every_result_is_there_once_also_if_others_go_on() {
    let _alone = alone();
    let cluster = Cluster::new(200_000);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // Without a stop in between, shards lie on other processes than those that were killed.
    let mut uneven = 0;
    for (processes, workers) in [(3, 1), (3, 1), (2, 2), (3, 1), (2, 1), (3, 1)] {
        cluster.kill(cluster.start(processes, workers), &mut random);
        uneven += usize::from(cluster.is_uneven());
    }
    assert!(uneven > 0, "all had come equally far each time");
    let mut processes = cluster.start(3, 1);
    let before = cluster.through();
    wait_for("results", || (cluster.through() > before).then_some(()));
    processes[1].terminate();
    processes.iter_mut().for_each(Running::ends_well);
    cluster.kill(cluster.start(2, 2), &mut random);
    cluster.start(2, 2).iter_mut().for_each(Running::ends_well);
    cluster.judge();
    assert!(cluster.postgres.newest("headwater_pruned", "through") > 0, "starts go on from checkpoints");
    assert_eq!(cluster.postgres.newest("headwater_writers", "processes"), 3, "all are fenced for ever");
}

#[test]
fn what_several_processes_cannot_share_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (hosts, config) = (dir.path().join("hosts"), dir.path().join("run.toml"));
    fs::write(&hosts, "127.0.0.1:1\n127.0.0.1:2\n").expect("written");
    let base = "pipeline = \"shared\"\n[source]\nkind = \"generator\"\n";
    let ledger = "[ledger]\nkind = \"sqlite\"\npath = \"ledger.db\"\n";
    for (rest, why) in [
        ("[sinks.postgres]\nurl = \"postgres://a@127.0.0.1/b\"\n".to_owned(), "add `[ledger]`"),
        (format!("[sinks.sqlite]\npath = \"a.db\"\n{ledger}"), "cannot write SQLite files"),
        (
            format!("[sinks.postgres]\nurl = \"postgres://a@127.0.0.1/b\"\n{ledger}[checkpoint]\n"),
            "`state.kind = \"redis\"`",
        ),
    ] {
        fs::write(&config, format!("{base}{rest}")).expect("written");
        let mut run = headwater(&["run", "-n", "2", "-p", "0", "-h"]);
        refused(run.arg(&hosts).arg(&config).current_dir(dir.path()), why);
    }
}
