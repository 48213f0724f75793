//! The contract of sinks on Redis, as `contract.rs` tests it for tables: what a reader of hashes sees, and when.
//!
//! `HEADWATER_TEST_REDIS` is the URL of a Redis server.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use headwater_dataflows::Epoch;
use headwater_sinks::redis::{RedisServer, RedisSink, RedisSinkConfig};
use headwater_sinks::{
    Cell, Changes, CommitError, Generation, LedgerId, OpenError, Sink, WriterContext, tables,
};
use proptest::prelude::*;
use redis::{Commands, Connection, cmd};

use support::{alert, context, dead_letter, delete_alert, permit};

type Hash = BTreeMap<String, String>;

/// Keys of one test, which are deleted with this value.
struct Store {
    url: String,
    prefix: String,
    ttl: Duration,
}

impl Store {
    fn new() -> Store {
        Store::at(std::env::var("HEADWATER_TEST_REDIS").expect("HEADWATER_TEST_REDIS names a Redis"))
    }

    fn at(url: String) -> Store {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Store { url, prefix, ttl: Duration::from_secs(3600) }
    }

    fn sink(&self) -> RedisSink {
        self.sink_through(&self.url)
    }

    fn sink_through(&self, url: &str) -> RedisSink {
        let (name, prefix) = ("redis".to_owned(), self.prefix.clone());
        RedisSinkConfig { name, server: RedisServer::at("sinks.redis", url), prefix, ttl: self.ttl }.build()
    }

    fn opened(&self, generation: u64) -> RedisSink {
        let mut sink = self.sink();
        sink.open(&context(generation)).expect("the sink opens");
        sink
    }

    fn connection(&self) -> Connection {
        redis::Client::open(&*self.url).and_then(|client| client.get_connection()).expect("a Redis server")
    }

    fn key(&self, rest: &str) -> String {
        format!("{}:fraud:{rest}", self.prefix)
    }

    fn profile(&self, key: &str) -> Hash {
        self.connection().hgetall(self.key(&format!("user:{key}"))).expect("a hash")
    }

    /// Returns all profiles by key.
    fn profiles(&self) -> BTreeMap<String, Hash> {
        let mut connection = self.connection();
        let begin = self.key("user:");
        let keys: Vec<String> = connection.keys(format!("{begin}*")).expect("keys");
        keys.into_iter()
            .map(|key| (key[begin.len()..].to_owned(), connection.hgetall(&key).expect("a hash")))
            .collect()
    }

    fn progress_key(&self) -> String {
        self.key("progress:redis")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let mut connection = self.connection();
        let keys: Vec<String> = connection.keys(format!("{}:*", self.prefix)).expect("keys");
        keys.iter().for_each(|key| connection.del(key).expect("deleted"));
    }
}

/// Returns the nth event of a key, at a second.
fn event(key: &str, n: i64, second: i64) -> Changes {
    let mut changes = Changes::default();
    add_event(&mut changes, key, n, second, Some(12_500_000), Some((52.5, 13.25)));
    changes
}

fn add_event(
    changes: &mut Changes,
    key: &str,
    n: i64,
    second: i64,
    amount: Option<i128>,
    location: Option<(f64, f64)>,
) {
    let id = format!("{key}-{n}");
    let mut row = changes.rows.row(tables::EVENTS);
    row.cell(Cell::Int(0)).cell(Cell::Int(n)).cell(Cell::Int(7)).cell(Cell::Text(&id));
    row.cell(Cell::Text("transaction")).cell(Cell::Text("user")).cell(Cell::Text(key));
    row.cell(Cell::Time(second * 1000)).cell(amount.map_or(Cell::Null, Cell::Micros)).cell(Cell::Text("EUR"));
    for _ in 0..5 {
        row.cell(Cell::Null);
    }
    let degrees = |of: fn((f64, f64)) -> f64| location.map_or(Cell::Null, |at| Cell::Float(of(at)));
    row.cell(degrees(|at| at.0)).cell(degrees(|at| at.1)).cell(Cell::Null).cell(Cell::Text("<100"));
    row.cell(Cell::Int(n)).cell(Cell::Float(12.5)).cell(Cell::Null).cell(Cell::Float(3.25)).end();
}

fn add_window(changes: &mut Changes, key: &str, start: i64, count: i64) {
    let mut row = changes.rows.row(tables::WINDOW_AGGREGATES);
    row.cell(Cell::Text("user_1m")).cell(Cell::Text("user")).cell(Cell::Text(key)).cell(Cell::Time(start));
    row.cell(Cell::Time(start + 60_000)).cell(Cell::Int(count)).cell(Cell::Int(count));
    row.cell(Cell::Micros(i128::from(count) * 1_500_000))
        .cell(Cell::Float(1.5))
        .cell(Cell::Micros(1_000_000));
    row.cell(Cell::Micros(2_000_000)).cell(Cell::Float(0.5)).cell(Cell::Int(1)).cell(Cell::Bool(false));
    row.cell(Cell::Int(7)).end();
}

fn remove_window(changes: &mut Changes, key: &str, start: i64) {
    let mut row = changes.rows.delete(tables::WINDOW_AGGREGATES);
    row.cell(Cell::Text("user_1m"))
        .cell(Cell::Text("user"))
        .cell(Cell::Text(key))
        .cell(Cell::Time(start))
        .end();
}

fn add_alert(changes: &mut Changes, key: &str, id: &str, status: &str, second: i64) {
    let mut row = changes.rows.row(tables::ALERTS);
    row.cell(Cell::Text(id)).cell(Cell::Text(status)).cell(Cell::Text("velocity_spike")).cell(Cell::Int(1));
    row.cell(Cell::Text("high")).cell(Cell::Text("user")).cell(Cell::Text(key)).cell(Cell::Json("[]"));
    row.cell(Cell::Time(second * 1000))
        .cell(Cell::Int(1))
        .cell(Cell::Bool(true))
        .cell(Cell::Json("{}"))
        .end();
}

/// Returns the events of `keys` keys, one each.
fn events_of(keys: usize, n: i64) -> Changes {
    let mut changes = Changes::default();
    (0..keys).for_each(|key| add_event(&mut changes, &format!("k{key}"), n, n, None, None));
    changes
}

/// Commits until the outcome is not `Failed`.
fn outcome(sink: &mut RedisSink, through: u64) -> Result<(), CommitError> {
    loop {
        match sink.commit(permit(through)) {
            Err(CommitError::Failed { .. }) => std::thread::sleep(Duration::from_millis(5)),
            other => return other,
        }
    }
}

#[test]
fn a_round_becomes_visible_with_its_commit() {
    let store = Store::new();
    let mut sink = store.opened(1);
    sink.stage(Epoch(2), event("ann", 2, 20)).expect("staged");
    sink.stage(Epoch(1), event("ann", 1, 10)).expect("staged");
    sink.stage(Epoch(1), event("bob", 1, 11)).expect("staged");
    sink.stage(Epoch(3), event("bob", 2, 30)).expect("staged");
    assert_eq!(store.profiles(), BTreeMap::new());
    sink.commit(permit(2)).expect("committed");
    let ann = store.profile("ann");
    for (field, value) in [
        ("event:id", "ann-2"),
        ("event:type", "transaction"),
        ("event:time_ms", "20000"),
        ("event:amount", "12.5"),
        ("event:currency", "EUR"),
        ("events", "2"),
        ("amount_mean", "12.5"),
        ("km_from_previous", "3.25"),
        ("location:lat_deg", "52.5"),
        ("location:lon_deg", "13.25"),
        ("location:time_ms", "20000"),
        ("epoch", "2"),
    ] {
        assert_eq!(ann.get(field).map(String::as_str), Some(value), "{field}");
    }
    assert_eq!(ann.len(), 12, "{ann:?}");
    assert_eq!(store.profile("bob")["event:id"], "bob-1");
    sink.commit(permit(3)).expect("committed");
    assert_eq!((&*store.profile("bob")["epoch"], &*store.profile("ann")["epoch"]), ("3", "2"));
}

#[test]
fn the_last_event_replaces_all_fields_but_the_location() {
    let store = Store::new();
    let mut sink = store.opened(1);
    sink.stage(Epoch(1), event("ann", 1, 10)).expect("staged");
    sink.commit(permit(1)).expect("committed");
    let mut changes = Changes::default();
    add_event(&mut changes, "ann", 2, 9, None, None);
    sink.stage(Epoch(2), changes).expect("staged");
    sink.commit(permit(2)).expect("committed");
    let ann = store.profile("ann");
    assert_eq!((ann.get("event:amount"), &*ann["event:time_ms"], &*ann["events"]), (None, "9000", "2"));
    assert_eq!((&*ann["location:lat_deg"], &*ann["location:time_ms"]), ("52.5", "10000"));
}

#[test]
fn the_newest_window_and_the_newest_alert_are_kept() {
    let store = Store::new();
    let mut sink = store.opened(1);
    let mut epoch = 0;
    let mut commit = |changes: Changes| {
        epoch += 1;
        sink.stage(Epoch(epoch), changes).expect("staged");
        sink.commit(permit(epoch)).expect("committed");
        store.profile("ann")
    };
    let with = |add: &dyn Fn(&mut Changes)| {
        let mut changes = Changes::default();
        add(&mut changes);
        changes
    };
    let ann = commit(with(&|to| {
        add_window(to, "ann", 60_000, 3);
        add_window(to, "ann", 0, 9);
        add_alert(to, "ann", "b", "raised", 20);
        add_alert(to, "ann", "a", "raised", 10);
    }));
    assert_eq!((&*ann["window:user_1m:start_ms"], &*ann["window:user_1m:count"]), ("60000", "3"));
    assert_eq!((&*ann["window:user_1m:amount_sum"], &*ann["window:user_1m:end_ms"]), ("4.5", "120000"));
    assert_eq!((&*ann["alert:velocity_spike:id"], &*ann["alert:velocity_spike:status"]), ("b", "raised"));
    // An older window and an older alert change nothing; a revocation of the newest alert does.
    let ann = commit(with(&|to| {
        add_window(to, "ann", 0, 10);
        add_alert(to, "ann", "b", "revoked", 20);
        add_alert(to, "ann", "a", "revoked", 10);
    }));
    assert_eq!((&*ann["window:user_1m:count"], &*ann["epoch"]), ("3", "2"));
    assert_eq!((&*ann["alert:velocity_spike:id"], &*ann["alert:velocity_spike:status"]), ("b", "revoked"));
    // The session joins an earlier one.
    let ann = commit(with(&|to| {
        add_window(to, "ann", 30_000, 13);
        remove_window(to, "ann", 60_000);
        remove_window(to, "ann", 0);
    }));
    assert_eq!((&*ann["window:user_1m:start_ms"], &*ann["window:user_1m:count"]), ("30000", "13"));
    let ann = commit(with(&|to| remove_window(to, "ann", 30_000)));
    assert!(!ann.keys().any(|field| field.starts_with("window:")), "{ann:?}");
}

#[test]
fn profiles_expire_after_their_last_change_and_progress_does_not() {
    let mut store = Store::new();
    store.ttl = Duration::from_millis(1500);
    let mut sink = store.opened(1);
    sink.stage(Epoch(1), event("ann", 1, 1)).expect("staged");
    sink.stage(Epoch(1), event("bob", 1, 1)).expect("staged");
    sink.commit(permit(1)).expect("committed");
    std::thread::sleep(Duration::from_millis(1000));
    sink.stage(Epoch(2), event("ann", 2, 2)).expect("staged");
    sink.commit(permit(2)).expect("committed");
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(store.profiles().keys().collect::<Vec<_>>(), ["ann"]);
    let ttl = |key: &str| cmd("PTTL").arg(key).query::<i64>(&mut store.connection()).expect("a number");
    assert!((1..=500).contains(&ttl(&store.key("user:ann"))));
    assert_eq!(ttl(&store.progress_key()), -1);
}

#[test]
fn a_failed_commit_shows_nothing_and_can_be_retried() {
    let store = Store::new();
    let proxy = Proxy::start(&store.url);
    let mut sink = store.sink_through(&proxy.url());
    sink.open(&context(1)).expect("opened");
    sink.stage(Epoch(1), event("ann", 1, 1)).expect("staged");
    sink.commit(permit(1)).expect("committed");
    sink.stage(Epoch(2), event("ann", 2, 2)).expect("staged");
    proxy.fail_next(Fault::Request);
    let error = sink.commit(permit(2)).expect_err("the commit fails");
    assert!(matches!(error, CommitError::Failed { through: Epoch(2), .. }), "{error}");
    assert_eq!(store.profile("ann")["event:id"], "ann-1");
    sink.commit(permit(2)).expect("committed this time");
    assert_eq!(store.profile("ann")["event:id"], "ann-2");
}

/// The script ran, and its answer is lost: the retry finds the record, and goes on with what was staged since.
#[test]
fn a_round_whose_answer_is_lost_is_not_repeated() {
    let store = Store::new();
    let proxy = Proxy::start(&store.url);
    let mut sink = store.sink_through(&proxy.url());
    sink.open(&context(1)).expect("opened");
    for (first, retried_through) in [(1, 1), (2, 3)] {
        sink.stage(Epoch(first), event("ann", first as i64, 1)).expect("staged");
        proxy.fail_next(Fault::Answer);
        let error = sink.commit(permit(first)).expect_err("the answer is lost");
        assert!(matches!(error, CommitError::Failed { .. }), "{error}");
        let ann = store.profile("ann");
        assert_eq!(ann["epoch"], first.to_string());
        cmd("HSET")
            .arg(store.key("user:ann"))
            .arg("mark")
            .arg(first)
            .exec(&mut store.connection())
            .expect("set");
        if retried_through > first {
            sink.stage(Epoch(retried_through), event("bob", 1, 1)).expect("staged");
        }
        sink.commit(permit(retried_through)).expect("found");
        assert_eq!(store.profile("ann")["epoch"], first.to_string());
    }
    assert_eq!(store.profile("bob")["epoch"], "3");
    drop(sink);
    assert_eq!(store.sink().open(&context(2)).expect("opened")[0].through, Epoch(3));
}

#[test]
fn reopening_returns_the_committed_progress() {
    let store = Store::new();
    let mut sink = store.sink();
    assert_eq!(sink.open(&context(1)).expect("opened"), []);
    sink.commit(permit(4)).expect("a commit of progress alone");
    sink.stage(Epoch(5), event("ann", 1, 1)).expect("staged");
    sink.commit(permit(7)).expect("committed");
    sink.stage(Epoch(8), event("bob", 1, 1)).expect("staged, never committed");
    drop(sink);
    let progress = store.sink().open(&context(2)).expect("opened");
    assert_eq!(progress.len(), 1);
    assert_eq!((progress[0].through, progress[0].generation), (Epoch(7), Generation(1)));
    assert_eq!((&progress[0].ledger_id, progress[0].shards), (&context(1).ledger_id, context(1).shards));
    assert_eq!(store.profiles().keys().collect::<Vec<_>>(), ["ann"]);
}

#[test]
fn another_ledger_and_an_older_start_are_refused() {
    let store = Store::new();
    let mut sink = store.opened(5);
    sink.commit(permit(1)).expect("committed");
    let ledger_id = LedgerId("ffffffffffffffffffffffffffffffff".to_owned());
    for refused in [WriterContext { ledger_id, ..context(6) }, context(4)] {
        let error = store.sink().open(&refused).expect_err("refused");
        assert!(matches!(error, OpenError::Refused { .. }), "{error}");
    }
    sink.stage(Epoch(2), event("ann", 1, 1)).expect("staged");
    sink.commit(permit(2)).expect("the refused starts have not affected this one");
}

#[test]
fn adopting_replaces_the_progress_and_fences_other_writers() {
    let store = Store::new();
    store.opened(5).commit(permit(9)).expect("committed");
    let mut idle = store.opened(6);
    idle.stage(Epoch(10), event("ann", 1, 1)).expect("staged");
    let ledger_id = LedgerId("ffffffffffffffffffffffffffffffff".to_owned());
    let other = WriterContext { ledger_id, adopt: Some(Epoch(3)), ..context(1) };
    let mut adopting = store.sink();
    let progress = adopting.open(&other).expect("adopted");
    assert_eq!(progress.len(), 1);
    assert_eq!((progress[0].through, &progress[0].ledger_id), (Epoch(3), &other.ledger_id));
    let fenced = outcome(&mut idle, 10);
    assert!(matches!(fenced, Err(CommitError::Fenced { .. })), "{fenced:?}");
    assert_eq!(store.sink().peek_progress("fraud").expect("readable"), progress, "it is durable at once");
    adopting.stage(Epoch(4), event("ann", 2, 2)).expect("staged");
    adopting.commit(permit(4)).expect("committed");
    let next = WriterContext { generation: Generation(2), adopt: None, ..other };
    assert_eq!(store.sink().open(&next).expect("it opens after adoption")[0].through, Epoch(4));
    assert_eq!(store.profile("ann")["event:id"], "ann-2");
}

#[test]
fn opening_fences_older_starts_in_every_chunk() {
    let store = Store::new();
    let mut old = store.opened(1);
    old.commit(permit(1)).expect("committed");
    old.stage(Epoch(2), events_of(1000, 1)).expect("staged");
    let mut new = store.sink();
    assert_eq!(new.open(&context(2)).expect("opened")[0].through, Epoch(1));
    let fenced = outcome(&mut old, 2);
    assert!(matches!(fenced, Err(CommitError::Fenced { .. })), "{fenced:?}");
    assert_eq!(store.profiles(), BTreeMap::new());
    let late = store.sink().open(&context(1)).expect_err("a later start has opened the sink");
    assert!(matches!(late, OpenError::Refused { .. }), "{late}");
    new.stage(Epoch(2), events_of(1000, 2)).expect("staged");
    new.commit(permit(2)).expect("committed");
    assert_eq!(store.profiles().len(), 1000);
}

#[test]
fn the_second_of_two_starts_with_one_generation_is_fenced() {
    let store = Store::new();
    let (mut one, mut other) = (store.opened(1), store.opened(1));
    one.stage(Epoch(1), event("ann", 1, 1)).expect("staged");
    one.commit(permit(1)).expect("committed");
    other.stage(Epoch(1), event("ann", 2, 2)).expect("staged");
    let fenced = outcome(&mut other, 1);
    assert!(matches!(fenced, Err(CommitError::Fenced { .. })), "{fenced:?}");
    assert_eq!(store.profile("ann")["event:id"], "ann-1");
}

#[test]
fn peeking_returns_the_progress_and_fences_no_writer() {
    let store = Store::new();
    assert_eq!(store.sink().peek_progress("fraud").expect("nothing was ever written"), []);
    let mut sink = store.opened(1);
    assert_eq!(store.sink().peek_progress("fraud").expect("readable"), [], "opening commits no progress");
    sink.commit(permit(4)).expect("committed");
    let progress = store.sink().peek_progress("fraud").expect("readable");
    assert_eq!((progress[0].through, progress[0].generation, progress.len()), (Epoch(4), Generation(1), 1));
    assert_eq!(store.sink().peek_progress("payments").expect("another pipeline has other keys"), []);
    sink.stage(Epoch(5), event("ann", 1, 1)).expect("staged");
    sink.commit(permit(5)).expect("no other start has taken over");
}

#[test]
fn writers_of_several_processes_share_the_progress() {
    let store = Store::new();
    let mut sinks: Vec<_> = (0..2).map(|_| store.sink()).collect();
    for (process, sink) in sinks.iter_mut().enumerate() {
        sink.open(&WriterContext { process, max_processes: 2, ..context(1) }).expect("opened");
    }
    for (process, sink) in sinks.iter_mut().enumerate() {
        sink.stage(Epoch(1), event(["ann", "bob"][process], 1, 1)).expect("staged");
        sink.commit(permit(1 + process as u64)).expect("committed");
    }
    let progress = store.sink().open(&context(2)).expect("opened");
    assert_eq!(progress.iter().map(|found| found.through).collect::<Vec<_>>(), [Epoch(1), Epoch(2)]);
    assert_eq!(store.profiles().len(), 2);
    for mut sink in sinks {
        let fenced = outcome(&mut sink, 5);
        assert!(matches!(fenced, Err(CommitError::Fenced { .. })), "{fenced:?}");
    }
}

#[test]
fn keys_with_any_text_are_stored_as_they_are() {
    let store = Store::new();
    let mut sink = store.opened(1);
    let texts = ["'; FLUSHALL --", "\"", "a:b", "*", "\r\n$3\r\n", "é😀", "\u{1}", "{x}", " "];
    for text in texts {
        sink.stage(Epoch(1), event(text, 1, 1)).expect("staged");
    }
    sink.commit(permit(1)).expect("committed");
    let found: BTreeSet<_> = store.profiles().into_keys().collect();
    assert_eq!(found, texts.map(str::to_owned).into_iter().collect());
    assert_eq!(store.profile("a:b")["event:id"], "a:b-1");
}

#[test]
fn outputs_that_profiles_cannot_hold_are_refused_by_name() {
    let store = Store::new();
    let mut sink = store.opened(1);
    let mut messages = Changes::default();
    messages.messages.push(0, None, &[], |_| {});
    let mut deletion = Changes::default();
    delete_alert(&mut deletion, "a1");
    for (changes, expected) in [
        (messages, "a Redis sink accepts rows, not messages"),
        (deletion, "alerts/a1: a Redis sink keeps alerts"),
        (dead_letter(0, 7), "dead_letters/0/7: a Redis sink keeps events"),
    ] {
        let error = sink.stage(Epoch(1), changes).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
    sink.stage(Epoch(1), alert("a1", "raised")).expect("alerts are kept");
    sink.commit(permit(1)).expect("committed");
    assert_eq!(store.profile("u1")["alert:velocity_spike:id"], "a1");
}

#[test]
fn a_key_of_another_type_is_named_and_nothing_is_written() {
    let store = Store::new();
    let mut sink = store.opened(1);
    let foreign = store.key("user:bob");
    store.connection().set::<_, _, ()>(&foreign, "x").expect("set");
    sink.stage(Epoch(1), event("ann", 1, 1)).expect("staged");
    sink.stage(Epoch(1), event("bob", 1, 1)).expect("staged");
    let error = sink.commit(permit(1)).expect_err("refused");
    assert!(matches!(error, CommitError::Refused { .. }), "{error}");
    assert!(error.to_string().contains(&format!("{foreign} of a profile has a string")), "{error}");
    assert_eq!(store.profile("ann"), Hash::new());
    store.connection().del::<_, ()>(&foreign).expect("deleted");
    sink.commit(permit(1)).expect("committed");
    assert_eq!(store.profiles().len(), 2);
}

#[test]
fn lost_data_fences_the_writer_with_the_reason() {
    let store = Store::new();
    let mut sink = store.opened(1);
    sink.commit(permit(1)).expect("committed");
    let saved: Hash = store.connection().hgetall(store.progress_key()).expect("the progress");
    sink.commit(permit(2)).expect("committed");
    // A failover to a replica that lacks the last round.
    for (field, value) in saved {
        store.connection().hset::<_, _, _, ()>(store.progress_key(), field, value).expect("set");
    }
    let error = outcome(&mut sink, 3).expect_err("fenced").to_string();
    assert!(error.contains("went back to epoch 1: Redis has lost its last writes"), "{error}");
    store.connection().del::<_, ()>(store.progress_key()).expect("deleted");
    let error = outcome(&mut sink, 3).expect_err("fenced").to_string();
    assert!(error.contains("is gone: it was deleted, evicted, or Redis has lost its data"), "{error}");
    assert_eq!(store.sink().open(&context(2)).expect("the runtime refuses a start without progress"), []);
}

#[test]
fn a_forgotten_script_is_loaded_again() {
    let store = Store::new();
    let mut sink = store.opened(1);
    cmd("SCRIPT").arg("FLUSH").exec(&mut store.connection()).expect("flushed");
    sink.stage(Epoch(1), event("ann", 1, 1)).expect("staged");
    sink.commit(permit(1)).expect("committed");
    assert_eq!(store.profile("ann")["epoch"], "1");
}

/// Readers who look while parts are committed see every profile as of one epoch, never before an earlier epoch, and in a
/// round of small epochs all profiles as of the same one.
#[test]
fn readers_see_profiles_of_one_epoch() {
    let store = Store::new();
    let mut sink = store.opened(1);
    let keys: Vec<_> = (0..20).map(|key| store.key(&format!("user:k{key}"))).collect();
    sink.stage(Epoch(1), events_of(keys.len(), 1)).expect("staged");
    sink.commit(permit(1)).expect("committed");
    let writer = std::thread::spawn(move || {
        for n in 2..300 {
            sink.stage(Epoch(n), events_of(20, n as i64)).expect("staged");
            sink.commit(permit(n)).expect("committed");
        }
    });
    let mut reads = 0;
    while !writer.is_finished() {
        let mut all = redis::pipe();
        all.atomic();
        for key in &keys {
            all.cmd("HMGET").arg(key).arg("epoch").arg("events");
        }
        let read: Vec<(i64, i64)> = all.query(&mut store.connection()).expect("read");
        assert!(read.iter().all(|&found| found == read[0] && found.0 == found.1), "{read:?}");
        reads += 1;
    }
    writer.join().expect("the writer succeeds");
    assert!(reads > 5, "{reads} reads");
}

/// A Redis server of a test, in a mode that a sink refuses.
struct Special {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Special {
    fn start(arguments: &[&str]) -> Special {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port")
            .port();
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--port"]).arg(port.to_string()).args(arguments);
        let child =
            command.current_dir(dir.path()).stdout(Stdio::null()).spawn().expect("redis-server is installed");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Special { child, port, _dir: dir }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Special {
    fn drop(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited");
    }
}

#[test]
fn clusters_and_replicas_are_refused() {
    for (arguments, expected) in [
        (&["--cluster-enabled", "yes"][..], "it is a node of a Redis Cluster"),
        (&["--replicaof", "127.0.0.1 1"][..], "it is a replica"),
    ] {
        let server = Special::start(arguments);
        let config = RedisServer::at("sinks.redis", server.url());
        let (name, prefix, ttl) = ("redis".to_owned(), "x".to_owned(), Duration::from_secs(1));
        let mut sink = RedisSinkConfig { name, server: config.clone(), prefix, ttl }.build();
        let error = sink.open(&context(1)).expect_err("refused");
        assert!(
            matches!(&error, OpenError::Refused { .. }) && error.to_string().contains(expected),
            "{error}"
        );
        let error = headwater_sinks::redis::probe(&config).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn full_memory_and_a_stopped_server_fail_a_commit_until_they_end() {
    let server = Special::start(&["--appendonly", "yes"]);
    let store = Store::at(server.url());
    let mut sink = store.opened(1);
    sink.stage(Epoch(1), event("ann", 1, 1)).expect("staged");
    let limit = |bytes: &str| {
        cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).exec(&mut store.connection()).expect("set");
    };
    limit("1");
    let error = sink.commit(permit(1)).expect_err("no memory");
    assert!(
        matches!(&error, CommitError::Failed { .. }) && error.to_string().contains("`maxmemory`"),
        "{error}"
    );
    limit("0");
    sink.commit(permit(1)).expect("committed");
    sink.stage(Epoch(2), event("ann", 2, 2)).expect("staged");
    // A server that is paused answers nothing.
    let pause = |signal: &str| {
        let status = Command::new("kill").args([signal, &server.child.id().to_string()]).status();
        assert!(status.expect("started").success());
    };
    pause("-STOP");
    let error = sink.commit(permit(2)).expect_err("no answer");
    pause("-CONT");
    assert!(matches!(&error, CommitError::Failed { .. }), "{error}");
    assert!(error.to_string().contains("does not answer in time"), "{error}");
    assert!(outcome(&mut sink, 2).is_ok());
    assert_eq!(store.profile("ann")["event:id"], "ann-2");
}

/// What a proxy does to the next request that calls a script.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Closes the connection before the server receives the request.
    Request,
    /// Closes the connection after the server has answered.
    Answer,
}

/// A proxy in front of Redis.
struct Proxy {
    port: u16,
    fault: std::sync::Arc<std::sync::Mutex<Option<Fault>>>,
}

impl Proxy {
    fn start(url: &str) -> Proxy {
        let server = url.trim_start_matches("redis://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let proxy = Proxy { port, fault: Default::default() };
        let fault = std::sync::Arc::clone(&proxy.fault);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, fault) = (client.expect("a client"), std::sync::Arc::clone(&fault));
                let server = TcpStream::connect(&server).expect("the server");
                std::thread::spawn(move || forward(client, server, &fault));
            }
        });
        proxy
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    fn fail_next(&self, fault: Fault) {
        *self.fault.lock().expect("not poisoned") = Some(fault);
    }
}

/// Forwards requests and answers in turn. A request of these tests is one read.
fn forward(mut client: TcpStream, mut server: TcpStream, fault: &std::sync::Mutex<Option<Fault>>) {
    let mut bytes = vec![0; 1 << 20];
    while let Ok(length @ 1..) = client.read(&mut bytes) {
        let calls = bytes[..length].windows(7).any(|window| window == b"EVALSHA");
        let fault = if calls { fault.lock().expect("not poisoned").take() } else { None };
        if fault == Some(Fault::Request) || server.write_all(&bytes[..length]).is_err() {
            return;
        }
        let Ok(length @ 1..) = server.read(&mut bytes) else { return };
        if fault == Some(Fault::Answer) || client.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}

/// A change of one epoch: key, kind, a number.
type Change = (u8, u8, i64);

/// Stages the changes of an epoch. Sessions join as the engine joins them: the later window is removed in the epoch in
/// which the earlier one grows.
fn changes_of(epoch: u64, changes: &[Change]) -> Changes {
    let mut out = Changes::default();
    for (at, &(key, kind, number)) in changes.iter().enumerate() {
        let key = format!("k{key}");
        let n = epoch as i64 * 100 + at as i64;
        match kind {
            0 => add_event(&mut out, &key, n, number, Some(i128::from(number)), None),
            1 => add_event(&mut out, &key, n, number, None, Some((number as f64, -1.0))),
            2 => add_window(&mut out, &key, number * 1000, n),
            _ => add_alert(
                &mut out,
                &key,
                &format!("{number:02}"),
                ["raised", "revoked"][n as usize % 2],
                number,
            ),
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Profiles do not depend on how epochs are divided into rounds, on crashes, or on who writes.
    #[test]
    fn rounds_of_any_length_leave_the_same_profiles(
        epochs in prop::collection::vec(prop::collection::vec((0..4_u8, 0..4_u8, 0..20_i64), 0..8), 1..12),
        ends in prop::collection::btree_set(1..12_u64, 0..6),
    ) {
        let last = epochs.len() as u64;
        let commit = |store: &Store, ends: &BTreeSet<u64>| {
            let mut generation = 1;
            let mut sink = store.opened(generation);
            let mut committed = 0;
            for end in ends.iter().copied().filter(|&end| end < last).chain([last]) {
                for epoch in committed + 1..=last {
                    let changes = changes_of(epoch, &epochs[epoch as usize - 1]);
                    sink.stage(Epoch(epoch), changes).expect("staged");
                }
                sink.commit(permit(end)).expect("committed");
                // The process ends, and the next one stages again what was not committed.
                (generation, committed) = (generation + 1, end);
                sink = store.opened(generation);
            }
            store.profiles()
        };
        let (one_by_one, chosen) = (Store::new(), Store::new());
        let all: BTreeSet<_> = (1..=last).collect();
        prop_assert_eq!(commit(&one_by_one, &all), commit(&chosen, &ends));
    }
}
