//! Rules that change while a run goes on: applied by a command, by a watched file or by a start, at any moment and through
//! kills. The oracle judges each event by the rules that were in force when it was admitted.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread::JoinHandle;
use std::time::Duration;

use headwater_sinks::kafka::topics::TopicSpec;
use serde_json::Value;

use crate::api::json;
use crate::cluster::Cluster;
use crate::common::{Random, headwater, merge_bindings, succeed};
use crate::crash::{Files, Results};
use crate::crash_points::{RULE_POINTS, crash_at};
use crate::kafka::{brokers, topics};
use crate::live::{Process, wait_for};
use crate::own_rules::{Feed, OWN_FLOW, PARTITIONS, own_files, records};

/// Changes of single rules: the id, a text of the rule, and what replaces it.
const CHANGES: [(&str, &str, &str); 44] = [
    ("large", "event.amount >= 950.0", "event.amount > 100.0"),
    ("large", "suppress = \"2m\"\n", ""),
    ("large_pair", "emit = \"final\"\n", "suppress = \"1m\"\n"),
    ("card_count", "at_least = 3", "at_least = 2"),
    ("card_count", "within = \"90s\"", "within = \"5m\""),
    ("shop_count", "severity = \"high\"", "severity = \"critical\""),
    ("shop_count", "more_than = 15", "at_least = 10"),
    ("shop_count", "by = \"shop\"", "by = \"till\""),
    ("pair_count", "emit = \"final\"\n", ""),
    ("pair_count", "at_least = 2", "at_least = 3"),
    ("user_sum", "1500", "900"),
    ("user_sum", "within = \"5m\"", "within = \"12m\""),
    ("card_net", "800.5", "600"),
    ("card_net", "within = \"4m\"", "within = \"2m\""),
    ("user_items", "at_least = 6,", "at_least = 5,"),
    ("user_items", "at_least_events = 3", "at_least_events = 2"),
    ("card_average", "suppress = \"7m\"\n", ""),
    ("card_average", "within = \"10m\"", "within = \"3m\""),
    ("user_shops", "at_least = 3", "at_least = 2"),
    ("user_shops", "within = \"3m\"", "within = \"8m\""),
    ("shop_cards", "at_least = 16", "at_least = 11"),
    ("declines", "more_than = 0.5", "more_than = 0.4"),
    ("declines", "where = \"has(event.declined)\"\n", ""),
    ("bulk", "suppress = \"1m\"\n", ""),
    ("odd_amount", " sigmas = 1.5", " sigmas = 1.75"),
    ("odd_amount", "high_sigmas = 2.0", "high_sigmas = 1.6"),
    ("odd_card", "at_least = 4", "at_least = 6"),
    ("odd_card", ", group_by = \"currency\"", ""),
    ("trip", "travel = {}", "travel = { more_than_kmh = 300 }"),
    ("trip", "severity = \"critical\"", "severity = \"low\""),
    ("card_trip", "emit = \"final\"\n", ""),
    ("card_testing", "within = \"5m\"", "within = \"20m\""),
    ("card_testing", "times = 2", "times = 3"),
    ("cash_out", "within = \"15m\"", "within = \"6m\""),
    ("cash_out", "suppress = \"10m\"", "suppress = \"3m\""),
    ("unpaid", "within = \"5m\"", "within = \"8m\""),
    ("unpaid", "suppress = \"10m\"", "severity = \"low\"\nsuppress = \"10m\""),
    ("shop_silence", "within = \"30s\" }", "within = \"30s\" }\nseverity = \"high\""),
    ("quiet_shop", "within = \"2m\" }", "within = \"2m\" }\nseverity = \"high\""),
    ("quiet_card", "suppress = \"30m\"", "description = \"a card rests\"\nsuppress = \"30m\""),
    ("quiet_card", "mode = \"shadow\"", "mode = \"live\""),
    ("user_sum", "mode = \"shadow\"", "mode = \"live\""),
    ("till_cards", "at_least = 18", "at_least = 14"),
    ("corridor_rush", "at_least = 22", "at_least = 30"),
];

/// Rules that come and go.
const MORE: [&str; 4] = [
    "id = \"visitor\"\nby = \"card\"\ncount = { at_least = 2, within = \"1m\" }\n",
    "id = \"pause\"\nby = \"user\"\nabsence = { within = \"3m\" }\nseverity = \"critical\"\n",
    "id = \"rest\"\nby = \"user\"\nabsence = { within = \"40s\" }\n",
    "id = \"stranger\"\nby = \"corridor\"\nwhere = \"event.amount >= 950.0\"\nmatch = true\n",
];

/// A variant of the rules of [`OWN_FLOW`].
#[derive(Default)]
struct Variant {
    /// The indices of [`CHANGES`].
    changed: BTreeSet<usize>,
    /// The rules that are there if they are not usually, and not if they are, by index.
    toggled: BTreeSet<usize>,
    is_reversed: bool,
    is_empty: bool,
}

/// Returns the fields, keys and windows, and each rule without its header.
fn parts() -> (&'static str, Vec<&'static str>) {
    let (before, rules) = OWN_FLOW.split_once("[[rules]]\n").expect("rules");
    (before, rules.split("[[rules]]\n").collect())
}

fn toggle(set: &mut BTreeSet<usize>, index: usize) {
    if !set.remove(&index) {
        set.insert(index);
    }
}

impl Variant {
    /// Changes a few rules, adds or removes some, and sometimes all.
    fn change(&mut self, random: &mut Random) {
        for _ in 0..1 + random.below(5) {
            toggle(&mut self.changed, random.below(CHANGES.len() as u64) as usize);
        }
        let count = parts().1.len() + MORE.len();
        for _ in 0..random.below(3) {
            toggle(&mut self.toggled, random.below(count as u64) as usize);
        }
        self.is_reversed = random.below(4) == 0;
        self.is_empty = random.below(15) == 0;
    }

    fn flow(&self) -> String {
        let (before, usual) = parts();
        let mut rules = Vec::new();
        for (at, rule) in usual.iter().chain(&MORE).enumerate() {
            if (at < usual.len()) == self.toggled.contains(&at) || self.is_empty {
                continue;
            }
            let mut rule = (*rule).to_owned();
            for (id, from, to) in self.changed.iter().map(|at| CHANGES[*at]) {
                if rule.starts_with(&format!("id = \"{id}\"\n")) {
                    assert!(rule.contains(from), "{from}: {rule}");
                    rule = rule.replacen(from, to, 1);
                }
            }
            rules.push(format!("[[rules]]\n{rule}"));
        }
        if self.is_reversed {
            rules.reverse();
        }
        format!("{before}{}", rules.concat())
    }
}

/// A pipeline of files whose rules change.
pub struct Changing {
    pub files: Files,
    /// Sections beside fields, keys, windows and rules.
    sections: String,
    /// The epochs that changes were bound to, as commands said.
    acknowledged: Vec<i64>,
}

impl Changing {
    fn new(seed: u64, count: u64) -> Changing {
        Changing::of(own_files(Results::Directory, seed, count))
    }

    fn of(files: Files) -> Changing {
        Changing::of_flow(files, OWN_FLOW)
    }

    /// Returns a pipeline that begins with these rules.
    pub fn of_flow(files: Files, first: &str) -> Changing {
        let state = files.path("state").display().to_string();
        let sections = format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n[checkpoint]\ninterval = \"100ms\"\nkeep = 2\n\
             [state]\npath = {state:?}\n"
        );
        let changing = Changing { files, sections, acknowledged: Vec::new() };
        changing.write("first.toml", first);
        changing.write("run.toml", first);
        changing
    }

    /// Writes a configuration with these rules to a file, which is replaced at once, as an editor does.
    pub fn write(&self, name: &str, flow: &str) -> PathBuf {
        // Few epochs at once, so that a run can be disturbed often before the end of the input.
        let text = self.files.configuration("epochs_in_flight = 2\n", &format!("{flow}{}", self.sections));
        let (path, new) = (self.files.path(name), self.files.path("new.toml"));
        fs::write(&new, format!("rules_reload = \"auto\"\n{text}")).expect("written");
        fs::rename(new, &path).expect("renamed");
        path
    }

    fn start(&self, workers: &str) -> Process {
        Process::start(self.files.command(workers), self.files.path("run.log"))
    }

    /// Lets rules come into force with a command. Returns false if the run has ended before it could answer.
    pub fn apply(&mut self, run: &mut Process, flow: &str) -> bool {
        let candidate = self.write("candidate.toml", flow);
        let Some(address) = address(run) else { return false };
        let output = wait_for("the rules to be in force", || {
            let output = apply(&candidate, address, &["--json"]);
            let is_starting = String::from_utf8_lossy(&output.stderr).contains("the run is starting");
            (!is_starting || run.try_wait().is_some()).then_some(output)
        });
        if !output.status.success() {
            // Only a run that has ended may refuse them.
            run.expect_success();
            return false;
        }
        let change: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        self.acknowledged.extend(change["epoch"].as_i64());
        true
    }

    /// Checks that no change that was said to be in force is lost.
    pub fn check(&self) {
        let (sink, ledger) = self.files.frontiers();
        assert!(sink <= ledger, "the sink has epoch {sink}, the ledger {ledger}");
        let newest = self.acknowledged.last();
        assert!(newest <= Some(&ledger), "rules were in force since {newest:?}, the ledger has {ledger}");
    }

    /// Returns the epochs of the durable changes, once no run goes on.
    pub fn changes(&self) -> Vec<i64> {
        merge_bindings(self.files.dir(), self.files.frontiers().1);
        changes(self.files.dir())
    }

    pub fn judge(&self) {
        let expected = self.files.expected(&self.files.path("first.toml"));
        expected.judge_directory(&self.files.path("results"));
        let changes = self.changes();
        let lost = self.acknowledged.iter().find(|epoch| !changes.contains(epoch));
        assert_eq!(lost, None, "a change that was in force is not in {changes:?}");
    }
}

/// Returns the epochs in a history of bindings that rules changed in.
fn changes(dir: &Path) -> Vec<i64> {
    let history = fs::read_to_string(dir.join("history.ndjson")).expect("readable");
    let lines = history.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let changes = lines.filter(|line| line["change"]["rules"].is_string());
    changes.map(|line| line["epoch"].as_i64().expect("an epoch")).collect()
}

/// Returns the address of a run, or None if it has ended.
pub fn address(run: &mut Process) -> Option<SocketAddr> {
    wait_for("the address of the run", || {
        let ended = run.try_wait().is_some();
        let address = run.addresses().first().copied().filter(|_| !ended);
        (address.is_some() || ended).then_some(address)
    })
}

/// Runs `headwater rules apply`.
pub fn apply(config: &Path, address: SocketAddr, arguments: &[&str]) -> Output {
    let mut command = headwater(&["rules", "apply"]);
    command.arg(config).args(["--url", &format!("http://{address}")]).args(arguments);
    command.output().expect("started")
}

/// By a command and by the watched file, with any number of workers, and kills at any moment.
#[test]
fn rules_change_while_files_are_read_through_kills() {
    let mut random = Random(0x51_7c_c1_b7);
    let mut changing = Changing::new(81, 20_000);
    let (mut applied, mut variant) = (Variant::default(), Variant::default());
    let (mut kills, mut runs) = (0, 0);
    while runs < 12 {
        runs += 1;
        if random.below(3) == 0 {
            variant.change(&mut random);
            changing.write("run.toml", &variant.flow());
        }
        let mut run = changing.start(["1", "2", "3"][random.below(3) as usize]);
        let mut goes_on = true;
        for _ in 0..random.below(4) {
            if random.below(3) == 0 && address(&mut run).is_some() {
                variant.change(&mut random);
                changing.write("run.toml", &variant.flow());
                std::thread::sleep(Duration::from_millis(random.below(1_500)));
            } else {
                applied.change(&mut random);
                goes_on = changing.apply(&mut run, &applied.flow());
            }
            std::thread::sleep(Duration::from_millis(random.below(200)));
        }
        if !goes_on {
            break;
        }
        std::thread::sleep(Duration::from_millis(random.below(100)));
        kills += u32::from(run.kill_if_alive());
        changing.check();
    }
    succeed(&mut changing.files.command("2"));
    changing.judge();
    let changes = changing.changes();
    assert!(changes.len() >= 10 && kills >= 5, "{} changes, {kills} kills", changes.len());
    assert!(changing.files.pruned_through() > 0, "no checkpoint was used: the ledger was never pruned");
}

/// A feed of a topic, in a thread of its own.
pub fn feed(mut feed: Feed, records: Vec<(usize, String)>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for piece in records.chunks(40) {
            feed.produce(piece);
            std::thread::sleep(Duration::from_millis(15));
        }
    })
}

/// Creates a topic and returns its name.
pub fn create_topic(name: &str) -> String {
    let topic = format!("raw-{name}-{}", std::process::id());
    topics(&brokers()).create(&[TopicSpec::new(&topic, PARTITIONS as u32)]).expect("created");
    topic
}

#[test]
fn rules_change_while_a_topic_is_read_through_kills() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = create_topic("changed_rules");
    let feeding = feed(Feed::new(topic.clone(), dir.path()), records(82, 14_000));
    let mut changing = Changing::of(Files::of_topic(dir, &brokers(), &topic, "own_rules.py"));
    let mut random = Random(0x2e_7a_11_05);
    let (mut applied, mut variant, mut kills) = (Variant::default(), Variant::default(), 0);
    while !feeding.is_finished() {
        if random.below(4) == 0 {
            variant.change(&mut random);
            changing.write("run.toml", &variant.flow());
        }
        let command = changing.files.command_with(["1", "2", "3"][random.below(3) as usize], &[]);
        let mut run = Process::start(command, changing.files.path("run.log"));
        address(&mut run).expect("it does not end");
        for _ in 0..random.below(5) {
            if random.below(3) == 0 {
                variant.change(&mut random);
                changing.write("run.toml", &variant.flow());
                std::thread::sleep(Duration::from_millis(random.below(1_500)));
            } else {
                applied.change(&mut random);
                assert!(changing.apply(&mut run, &applied.flow()), "{}", run.log());
            }
            std::thread::sleep(Duration::from_millis(random.below(200)));
        }
        std::thread::sleep(Duration::from_millis(random.below(100)));
        run.kill();
        kills += 1;
        changing.check();
    }
    feeding.join().expect("produced");
    succeed(&mut changing.files.command_with("2", &["--bounded", "--drain"]));
    changing.judge();
    let changes = changing.changes().len();
    assert!(changes >= 10 && kills >= 3, "{changes} changes, {kills} kills");
    assert!(changing.files.pruned_through() > 0, "no checkpoint was used: the ledger was never pruned");
}

/// Returns a flow whose processes serve HTTP and log as JSON.
pub fn served(flow: &str) -> String {
    let sections = "[http]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n";
    let (before, rules) = flow.split_once("[time]").expect("a section");
    format!("{before}{sections}[time]{rules}")
}

/// Two processes with two workers each: one of them takes a change, and all judge by it.
#[test]
fn a_change_is_in_force_in_all_processes_at_once() {
    let (cluster, topic) = Cluster::of("rules_of_all", PARTITIONS as u32, &served(OWN_FLOW), "");
    let first = cluster.path("first.toml");
    fs::copy(cluster.path("run.toml"), &first).expect("copied");
    let feeding = feed(Feed::new(topic, cluster.dir()), records(83, 10_000));
    let mut random = Random(0x77_01_5e_03);
    let (mut variant, mut acknowledged) = (Variant::default(), Vec::new());
    for (processes, workers) in [(2, 2), (1, 3), (2, 1)] {
        let mut running = cluster.start_with(&[], processes, workers);
        let addresses: Vec<_> =
            running.iter_mut().map(|run| address(run).expect("it does not end")).collect();
        for _ in 0..4 {
            variant.change(&mut random);
            let text = fs::read_to_string(&first)
                .expect("readable")
                .replace(&served(OWN_FLOW), &served(&variant.flow()));
            let candidate = cluster.path("candidate.toml");
            fs::write(&candidate, text).expect("written");
            let applied = wait_for("the rules to be in force", || {
                let output = apply(&candidate, addresses[0], &["--json"]);
                let is_starting = String::from_utf8_lossy(&output.stderr).contains("the run is starting");
                (!is_starting).then_some(output)
            });
            assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
            let change = json_of(&applied);
            acknowledged.extend(change["epoch"].as_i64());
            let version = change["version"].clone();
            for address in &addresses {
                wait_for("the version", || {
                    (json(*address, "/api/v1/rules")["version"] == version).then_some(())
                });
            }
            if let Some(other) = addresses.get(1) {
                let refused = apply(&candidate, *other, &[]);
                let text = String::from_utf8_lossy(&refused.stderr).into_owned();
                assert!(text.contains("rules are changed in process 0 of the cluster"), "{text}");
            }
            std::thread::sleep(Duration::from_millis(random.below(400)));
        }
        running.remove(random.below(processes as u64) as usize).kill();
        running.iter_mut().for_each(|run| _ = run.wait());
    }
    feeding.join().expect("produced");
    let mut last = cluster.start_with(&["--bounded", "--drain"], 2, 2);
    last.iter_mut().for_each(Process::expect_success);

    cluster.judge_own_rules(&first);
    assert_eq!(changes(cluster.dir()), acknowledged);
    assert!(acknowledged.len() >= 10, "{acknowledged:?}");
}

/// Returns what a command printed.
fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A start with changed rules crashes before and after they are bound, durable, committed and part of a checkpoint.
#[test]
fn crashes_around_a_change_lose_and_repeat_nothing() {
    let changing = Changing::new(84, 16_000);
    let (mut random, mut variant) = (Random(0x6a_09_e6_67), Variant::default());
    crash_at(changing.files.command("2"), "sink.commit.after", 5);
    let around = [
        "ledger.append.before",
        "ledger.append.after",
        "sink.stage",
        "sink.commit.before",
        "sink.commit.after",
        "file.written",
        "parts.synced",
        "ledger.conclude.before",
        "ledger.conclude.after",
    ];
    for point in RULE_POINTS.into_iter().chain(around) {
        variant.change(&mut random);
        changing.write("run.toml", &variant.flow());
        for workers in ["1", "3"] {
            crash_at(changing.files.command(workers), point, 1);
            changing.check();
        }
    }
    // The same with a command, which times out without an answer.
    let mut asked = 0;
    for point in RULE_POINTS {
        variant.change(&mut random);
        let mut command = changing.files.command("2");
        command.env("HEADWATER_CRASH_AT", format!("{point}:1"));
        let mut run = Process::start(command, changing.files.path("run.log"));
        // If the rules before were bound and not answered, this start returns to those of its file, and may crash at once.
        let Some(address) = address(&mut run) else { continue };
        asked += 1;
        let candidate = changing.write("candidate.toml", &variant.flow());
        wait_for("the crash", || {
            let output = apply(&candidate, address, &[]);
            assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            run.try_wait()
        });
    }
    assert!(asked > 0, "no run lived until it was asked");
    succeed(&mut changing.files.command("2"));
    changing.judge();
    assert!(changing.changes().len() >= 5, "{} changes", changing.changes().len());
}

/// The epochs that are replayed are judged by the rules that they were bound with.
#[test]
fn changed_rules_of_a_start_follow_the_replay() {
    let mut changing = Changing::new(85, 14_000);
    let mut random = Random(0x3c_6e_f3_72);
    let mut variant = Variant::default();
    for kill in [true, false, true] {
        let before = changing.files.frontiers();
        let mut run = changing.start("2");
        wait_for("results", || (changing.files.frontiers().0 > before.0 + 20).then_some(()));
        if kill {
            run.kill();
        } else {
            run.terminate();
            run.expect_success();
        }
        let durable = changing.files.frontiers().1;
        variant.change(&mut random);
        changing.write("run.toml", &variant.flow());
        let mut run = changing.start("3");
        wait_for("epochs", || (changing.files.frontiers().1 > durable + 20).then_some(()));
        assert!(run.log().contains("the rules of the configuration have changed"), "{}", run.log());
        run.kill();
        let epochs = changing.changes();
        assert!(epochs.last() > Some(&durable), "{epochs:?} {durable}");
    }

    // What was applied while a run went on stays, until the configuration changes.
    let applied = changing.changes().len() as u64 + 1;
    let mut run = changing.start("1");
    variant.change(&mut random);
    let flow = variant.flow();
    assert!(changing.apply(&mut run, &flow), "{}", run.log());
    run.kill();
    let mut run = changing.start("2");
    let address = address(&mut run).expect("it goes on");
    wait_for("the version", || (json(address, "/api/v1/rules")["version"] == applied + 1).then_some(()));
    assert!(
        run.log().contains("stay in force: those of the configuration have not changed since"),
        "{}",
        run.log()
    );
    run.kill();
    succeed(&mut changing.files.command("2"));
    changing.judge();
}
