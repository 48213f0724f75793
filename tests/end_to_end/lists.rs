//! Lists: their contents change while events flow and the run is killed, and every event is judged by the contents that were
//! in force at its position.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use headwater::fields::FieldType;
use headwater::ledger::{Ledger as _, SqliteLedger};
use headwater::lists::{Cell, Entries, Key, KeyType, Schema, encode, hash, hex};
use headwater_sinks::kafka::topics::TopicSpec;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::Value;

use crate::common::{Random, hard_settings, headwater, merge_bindings, succeed, write_files};
use crate::crash::{Files, Results, kill_when};
use crate::crash_points::{LIST_POINTS, crash_at};
use crate::kafka::{producer, topics};
use crate::live::{Process, wait_for};
use crate::postgres::Database;
use crate::services::Services;

/// The contents of both lists: the blocked shops, and the risk of some, in tenths.
#[derive(Clone, Debug, Default, PartialEq)]
struct Contents {
    blocked: BTreeSet<String>,
    risks: BTreeMap<String, u64>,
}

impl Contents {
    fn random(random: &mut Random, shops: &[String]) -> Contents {
        let mut contents = Contents::default();
        for shop in shops {
            if random.below(3) == 0 {
                contents.blocked.insert(shop.clone());
            }
            if random.below(2) == 0 {
                contents.risks.insert(shop.clone(), random.below(60));
            }
        }
        contents
    }

    /// Returns the hashes of both lists, as the program has them.
    fn hashes(&self) -> [String; 2] {
        let text = |shop: &String| Key::Text(shop.as_str().into());
        let blocked: Entries = self.blocked.iter().map(|shop| (text(shop), Box::default())).collect();
        let row = |risk: &u64| -> Box<[Cell]> { [Cell::Whole(*risk as i64 * 100_000)].into() };
        let risks: Entries = self.risks.iter().map(|(shop, risk)| (text(shop), row(risk))).collect();
        let columns = vec![("risk".into(), FieldType::Decimal)];
        let table = Schema { key: KeyType::String, columns };
        [hex(&hash(&encode(&Schema::set(), &blocked))), hex(&hash(&encode(&table, &risks)))]
    }
}

/// The source of both lists.
trait Origin: Send {
    fn write(&mut self, contents: &Contents);
}

/// Files that are replaced.
struct ListFiles(PathBuf);

impl Origin for ListFiles {
    fn write(&mut self, contents: &Contents) {
        let blocked: String = contents.blocked.iter().map(|shop| format!("{shop}\n")).collect();
        let risk = |(shop, risk): (&String, &u64)| format!("{shop},{}.{}\n", risk / 10, risk % 10);
        let risks: String = contents.risks.iter().map(risk).collect();
        for (name, text) in [("blocked.txt", blocked), ("risks.csv", format!("shop,risk\n{risks}"))] {
            let new = self.0.join("new");
            fs::write(&new, text).expect("written");
            fs::rename(&new, self.0.join(name)).expect("renamed");
        }
    }
}

/// The contents that were written, by the hashes of both lists.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<[HashMap<String, Contents>; 2]>>);

impl Written {
    fn note(&self, contents: &Contents) {
        let mut written = self.0.lock().expect("no panic");
        for (of_list, hash) in written.iter_mut().zip(contents.hashes()) {
            of_list.insert(hash, contents.clone());
        }
    }
}

/// A thread that changes the lists.
struct Changing {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Changing {
    fn start(mut origin: Box<dyn Origin>, written: Written, every: Duration, shops: Vec<String>) -> Changing {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut random = Random(0x0123_4567_89ab_cdef);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let contents = Contents::random(&mut random, &shops);
                written.note(&contents);
                origin.write(&contents);
                std::thread::sleep(every);
            }
        });
        Changing { stop, thread: Some(thread) }
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// The rules, and the lists whose sources are given.
fn flow(files: &Files, blocked: &str, risks: &str) -> String {
    let state = files.path("state");
    format!(
        "[[lists]]\nname = \"blocked\"\nsource = {blocked}\n[[lists]]\nname = \"risks\"\ncolumns = {{ risk = \"decimal\" }}\n\
         source = {risks}\n[checkpoint]\ninterval = \"100ms\"\nkeep = 2\n[state]\npath = {state:?}\n\
         [[rules]]\nid = \"blocked_shop\"\nwhere = \"event.merchant_id in lists.blocked\"\nmatch = true\n\
         severity = \"has(lists.risks[event.merchant_id].risk) ? 'high' : 'low'\"\n\
         [[rules]]\nid = \"risky_shop\"\nwhere = \"lists.risks[event.merchant_id].risk > 3.0\"\nmatch = true\n"
    )
}

/// Creates a pipeline of files that commits a few small epochs at a time, so that it runs for a while.
fn slow_files(seed: u64, records: u64) -> (Files, Vec<String>) {
    let dir = tempfile::tempdir().expect("a directory");
    let paths = write_files(dir.path(), &hard_settings(seed), records);
    let shops = shops_of(&paths[0]);
    (Files::of(Results::Sqlite, dir, &paths, "epoch_records = 10\n", ""), shops)
}

/// Returns the shops of a file of the input.
fn shops_of(path: &Path) -> Vec<String> {
    let text = fs::read(path).expect("readable");
    let values = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let shops: BTreeSet<String> =
        values.filter_map(|value: Value| value["merchant_id"].as_str().map(str::to_owned)).collect();
    shops.into_iter().collect()
}

const SLOW: &str = "epochs_in_flight = 4\n";

/// The contents in force from some offsets on.
struct Version {
    ends: Vec<i64>,
    lists: Vec<(String, String)>,
}

/// Returns the versions in the bindings, in order.
fn versions(dir: &Path) -> Vec<Version> {
    merge_bindings(dir, i64::MAX);
    let (mut ends, mut versions) = (Vec::new(), Vec::new());
    for line in fs::read_to_string(dir.join("history.ndjson")).expect("bindings").lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        for binding in line["partitions"].as_array().expect("partitions") {
            let partition = binding["partition"].as_u64().expect("a partition") as usize;
            ends.resize(ends.len().max(partition + 1), 0);
            ends[partition] = binding["end"].as_i64().expect("an end");
        }
        let Some(lists) = line["change"]["lists"].as_array() else { continue };
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let lists = lists.iter().map(|list| (text(&list["name"]), text(&list["hash"]))).collect();
        versions.push(Version { ends: ends.clone(), lists });
    }
    versions
}

/// Returns the alerts that each event raises by the versions at its position: rule, event, severity. Counts the versions that
/// judged events.
fn expected(
    events: &[(usize, i64, String, Option<String>)],
    versions: &[Version],
    written: &Written,
) -> BTreeSet<(String, String, String)> {
    let written = written.0.lock().expect("no panic");
    let mut alerts = BTreeSet::new();
    for (partition, offset, id, shop) in events {
        let Some(shop) = shop else { continue };
        let in_force = |name: &str, at: usize| {
            let newest = versions
                .iter()
                .rev()
                .filter(|version| version.ends.get(*partition).copied().unwrap_or(0) <= *offset);
            let hash =
                newest.flat_map(|version| &version.lists).find(|(of, _)| of == name).map(|(_, hash)| hash);
            hash.map(|hash| {
                written[at].get(hash).unwrap_or_else(|| panic!("{name}: unknown contents {hash}"))
            })
        };
        let risk = in_force("risks", 1).and_then(|contents| contents.risks.get(shop));
        if in_force("blocked", 0).is_some_and(|contents| contents.blocked.contains(shop)) {
            let severity = if risk.is_some() { "high" } else { "low" };
            alerts.insert(("blocked_shop".to_owned(), id.clone(), severity.to_owned()));
        }
        if risk.is_some_and(|risk| *risk > 30) {
            alerts.insert(("risky_shop".to_owned(), id.clone(), "medium".to_owned()));
        }
    }
    alerts
}

/// Compares all alerts with those that the contents at each event's position raise.
fn judge(files: &Files, written: &Written, least_versions: usize) {
    let dir = files.path("");
    let versions = versions(&dir);
    assert!(versions.len() >= least_versions, "{} versions", versions.len());
    let results = rusqlite::Connection::open(files.path("results.db")).expect("a database");
    let mut statement =
        results.prepare("SELECT partition, \"offset\", event_id, merchant_id FROM events").expect("a table");
    let events: Vec<(usize, i64, String, Option<String>)> = statement
        .query_map([], |row| Ok((row.get::<_, i64>(0)? as usize, row.get(1)?, row.get(2)?, row.get(3)?)))
        .expect("rows")
        .map(|row| row.expect("a row"))
        .collect();
    let mut statement = results
        .prepare("SELECT rule, json_extract(event_ids, '$[0]'), severity FROM alerts WHERE status = 'raised'")
        .expect("a table");
    let alerts: BTreeSet<(String, String, String)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .expect("rows")
        .map(|row| row.expect("a row"))
        .collect();
    let expected = expected(&events, &versions, written);
    let missing: Vec<_> = expected.difference(&alerts).take(5).collect();
    let extra: Vec<_> = alerts.difference(&expected).take(5).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing {missing:?}, not expected {extra:?}");
    assert!(expected.len() > events.len() / 50, "{} alerts of {} events", expected.len(), events.len());
    let revoked: i64 = results
        .query_row("SELECT count(*) FROM alerts WHERE status <> 'raised'", [], |row| row.get(0))
        .expect("a number");
    assert_eq!(revoked, 0, "no event is judged otherwise later");
}

fn file_sources(files: &Files) -> [String; 2] {
    ["blocked.txt", "risks.csv"].map(|name| format!("{{ kind = \"file\", path = {:?} }}", files.path(name)))
}

/// Kills at random moments, at which contents change as well.
#[test]
fn kills_while_lists_change_judge_each_event_once() {
    let (files, shops) = slow_files(71, 60_000);
    let [blocked, risks] = file_sources(&files);
    files.configure_limits(SLOW, &flow(&files, &blocked, &risks));
    let written = Written::default();
    let origin = Box::new(ListFiles(files.path("")));
    let changing = Changing::start(origin, written.clone(), Duration::from_millis(170), shops);
    let mut random = Random(0x51_6a93);
    for attempt in 0..8 {
        let before = files.frontiers();
        let delay = Duration::from_millis(random.below(2_500));
        let workers = ["1", "2", "3"][attempt % 3];
        if !kill_when(&mut files.command(workers), || files.frontiers().0 > before.0, delay) {
            break;
        }
    }
    succeed(&mut files.command("2"));
    drop(changing);
    judge(&files, &written, 6);
    // The last run may have stored contents of each list whose epoch was never bound.
    let (stored, needed) = (stored_contents(&files), needed_contents(&files));
    assert!(needed.is_subset(&stored), "{needed:?} {stored:?}");
    assert!(
        stored.len() <= needed.len() + 2,
        "{} contents are stored, {} needed",
        stored.len(),
        needed.len()
    );
}

/// Returns the contents that the ledger names.
fn needed_contents(files: &Files) -> BTreeSet<String> {
    let mut ledger = SqliteLedger::open(&files.path("ledger.db"), "crash").expect("the ledger");
    let (manifests, pruned) = (ledger.manifests().expect("read"), ledger.pruned().expect("read"));
    let manifests: Vec<_> = manifests.into_iter().map(|stored| stored.manifest.expect("readable")).collect();
    let oldest = manifests.first().expect("a manifest").epoch;
    let epochs = ledger.epochs(pruned).expect("read");
    let of_manifests =
        manifests.iter().flat_map(|manifest| manifest.in_force.as_slice()).map(|in_force| &in_force.change);
    let of_epochs = epochs.iter().filter(|record| record.epoch > oldest).map(|record| &record.change);
    of_manifests.chain(of_epochs).flat_map(|change| &change.lists).map(|list| hex(&list.hash)).collect()
}

/// Returns the contents in the state store.
fn stored_contents(files: &Files) -> BTreeSet<String> {
    use headwater::state::{StateConfig, StateStore, open};
    let mut store: Box<dyn StateStore> =
        open(&StateConfig::Fjall(files.path("state")), "crash").expect("the state store");
    let names = store.list("").expect("readable");
    let of_lists = names.iter().filter(|name| name.contains("/lists/"));
    of_lists.filter_map(|name| Some(name.rsplit_once('/')?.1.to_owned())).collect()
}

#[test]
fn crashes_between_store_and_ledger_lose_no_contents() {
    let (files, shops) = slow_files(72, 90_000);
    let [blocked, risks] = file_sources(&files);
    files.configure_limits(SLOW, &flow(&files, &blocked, &risks));
    let written = Written::default();
    let origin = Box::new(ListFiles(files.path("")));
    let changing = Changing::start(origin, written.clone(), Duration::from_millis(230), shops);
    for (at, point) in LIST_POINTS.into_iter().enumerate() {
        crash_at(files.command(["1", "2", "3"][at % 3]), point, 2);
        crash_at(files.command("2"), point, 1);
    }
    succeed(&mut files.command("3"));
    drop(changing);
    judge(&files, &written, 8);
}

/// The first record is judged by the contents at the start, and so is that of a run whose list has changed meanwhile.
#[test]
fn contents_at_a_start_judge_its_first_record() {
    let (files, shops) = slow_files(73, 12_000);
    let [blocked, risks] = file_sources(&files);
    files.configure_limits(SLOW, &flow(&files, &blocked, &risks));
    let (written, mut random) = (Written::default(), Random(5));
    let mut put = || {
        let contents = Contents::random(&mut random, &shops);
        written.note(&contents);
        ListFiles(files.path("")).write(&contents);
    };
    put();
    crash_at(files.command("2"), "sink.commit.after", 1);
    put();
    crash_at(files.command("1"), "sink.commit.after", 2);
    put();
    succeed(&mut files.command("3"));
    let versions = versions(&files.path(""));
    assert_eq!(versions.len(), 3);
    assert!(versions[0].ends.is_empty(), "no record is before the first contents");
    judge(&files, &written, 3);
    // The same contents are no new version, and a wrong file is none either.
    fs::write(files.path("risks.csv"), "shop,risk\nm,much\n").expect("written");
    succeed(&mut files.command("1"));
    judge(&files, &written, 3);
    let config = files.path("run.toml");
    let output = succeed(&mut headwater(&["status", config.to_str().expect("UTF-8")]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("list blocked: ") && text.contains("list risks: "), "{text}");
    let checked = headwater(&["check", "--connect", config.to_str().expect("UTF-8")]).output().expect("run");
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(text.contains("risks.csv:2: risk: expected the type decimal, got \"much\""), "{text}");
}

/// A topic and a table.
struct Stores {
    producer: BaseProducer,
    topic: String,
    database: String,
    before: BTreeSet<String>,
}

impl Origin for Stores {
    fn write(&mut self, contents: &Contents) {
        // One transaction, so that a reader sees all of it.
        self.producer.begin_transaction().expect("begun");
        for shop in contents.blocked.union(&self.before) {
            let record = BaseRecord::<str, str>::to(&self.topic).key(shop);
            let record = if contents.blocked.contains(shop) { record.payload("{}") } else { record };
            self.producer.send(record).map_err(|(error, _)| error).expect("queued");
        }
        self.producer.commit_transaction(Duration::from_secs(30)).expect("committed");
        self.before.clone_from(&contents.blocked);
        let rows =
            contents.risks.iter().map(|(shop, risk)| format!("('{shop}', {}.{})", risk / 10, risk % 10));
        let rows: Vec<_> = rows.collect();
        let insert = if rows.is_empty() {
            String::new()
        } else {
            format!("INSERT INTO risk VALUES {};", rows.join(", "))
        };
        crate::postgres::query(&self.database, &format!("BEGIN; DELETE FROM risk; {insert} COMMIT"));
    }
}

/// A list that is read while a topic is written has contents that no state of the topic had; each is judged as it was read.
#[test]
fn topics_and_queries_are_followed_and_go_away() {
    let services = Services::shared();
    let (files, shops) = slow_files(74, 60_000);
    let topic = format!("blocked-{}", std::process::id());
    let compacted = TopicSpec::new(&topic, 1).with("cleanup.policy", "compact");
    topics(&services.kafka).create(&[compacted]).expect("created");
    let database = Database::create("risks");
    crate::postgres::query(&database.url(), "CREATE TABLE risk (shop text, risk numeric)");
    let blocked = format!("{{ kind = \"kafka\", topic = {topic:?}, brokers = {:?} }}", services.kafka);
    let query = "SELECT shop, risk FROM risk";
    let risks = format!(
        "{{ kind = \"postgres\", url = {:?}, query = {query:?}, every = \"1s\", timeout = \"2s\" }}",
        database.url()
    );
    let http = "[http]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n";
    files.configure_limits(SLOW, &format!("{}{http}", flow(&files, &blocked, &risks)));
    let config = files.path("run.toml");
    let checked = succeed(&mut headwater(&["check", "--connect", config.to_str().expect("UTF-8")]));
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(text.contains("lists.blocked") && text.contains("lists.risks"), "{text}");

    let written = Written::default();
    written.note(&Contents::default());
    let id = format!("lists-{topic}");
    let producer = producer(&services.kafka, &[], Some((&id, Duration::from_secs(30))));
    let (of_topic, url) = (topic.clone(), database.url());
    let stores = Stores { producer, topic: of_topic, database: url, before: BTreeSet::new() };
    let changing = Changing::start(Box::new(stores), written.clone(), Duration::from_millis(900), shops);
    let mut run = Process::start(files.command("2"), files.path("run.log"));
    let address = run.address();
    let list = |name: &str| {
        let status = crate::api::json(address, "/api/v1/status");
        let lists = status["lists"].as_array().expect("lists").clone();
        // There are none until the run begins.
        lists.into_iter().find(|list| list["name"] == name).unwrap_or_default()
    };
    wait_for("a version of each", || {
        let has_entries = |name: &str| list(name)["entries"].as_u64() > Some(0);
        (has_entries("blocked") && has_entries("risks")).then_some(())
    });
    crate::postgres::query(&database.url(), "ALTER TABLE risk RENAME COLUMN shop TO gone");
    let failing =
        wait_for("a failing list", || Some(list("risks")).filter(|list| list["state"] == "failing"));
    assert!(
        failing["error"].as_str().expect("an error").contains("column \"shop\" does not exist"),
        "{failing}"
    );
    // What was read last comes into force with the next epoch.
    let [first, later] = [(); 2].map(|()| {
        let before = files.frontiers().0;
        wait_for("progress without the list", || (files.frontiers().0 > before).then_some(()));
        list("risks")
    });
    assert!(later["state"] == "failing" && later["version"].is_object(), "{later}");
    let contents = |list: &Value| (list["version"].clone(), list["entries"].clone());
    assert_eq!(contents(&first), contents(&later), "it keeps its contents");
    crate::postgres::query(&database.url(), "ALTER TABLE risk RENAME COLUMN gone TO shop");
    wait_for("the list again", || (list("risks")["state"] == "ok").then_some(()));
    run.kill();
    succeed(&mut files.command("3"));
    drop(changing);
    judge(&files, &written, 4);
}
