//! The contract of sinks on Redis, as `contract.rs` tests it for tables: which hashes a reader sees, and when.
//!
//! `HEADWATER_TEST_REDIS` is the URL of a Redis server.

mod servers;
mod store;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use headwater_dataflows::Epoch;
use headwater_sinks::{Changes, CommitError, Generation, LedgerId, OpenError, Sink, WriterContext};
use proptest::prelude::*;
use redis::{Commands, cmd};

use store::{Hash, Store, add_alert, add_event, add_window, event, events_of, outcome, remove_window};
use support::{alert, context, dead_letter, delete_alert, permit};

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

/// A change of one epoch: key, kind, a number.
type Change = (u8, u8, i64);

/// Returns the changes of each epoch. A session that joins the one before it is removed in the epoch in which that one
/// grows, as the engine does it.
fn changes_of(epochs: &[Vec<Change>]) -> Vec<Changes> {
    let mut windows = BTreeMap::<u8, BTreeSet<i64>>::new();
    let encode = |(epoch, changes): (usize, &Vec<Change>)| {
        let mut out = Changes::default();
        for (at, &(key, kind, number)) in changes.iter().enumerate() {
            let (name, n) = (format!("k{key}"), epoch as i64 * 100 + at as i64);
            let live = windows.entry(key).or_default();
            match kind {
                0 => add_event(&mut out, &name, n, number, Some(i128::from(number)), None),
                1 => add_event(&mut out, &name, n, number, None, Some((number as f64, -1.0))),
                2 => {
                    live.insert(number);
                    add_window(&mut out, &name, number, n);
                }
                3 if live.len() > 1 => {
                    remove_window(&mut out, &name, live.pop_last().expect("there are two"));
                    add_window(&mut out, &name, *live.last().expect("there is one"), n);
                }
                _ => {
                    let status = ["raised", "revoked"][n as usize % 2];
                    add_alert(&mut out, &name, &format!("{number:02}"), status, number);
                }
            }
        }
        out
    };
    epochs.iter().enumerate().map(encode).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Profiles do not depend on how epochs are divided into rounds, on crashes, or on who writes.
    #[test]
    fn rounds_of_any_length_leave_the_same_profiles(
        epochs in prop::collection::vec(prop::collection::vec((0..3_u8, 0..5_u8, 0..20_i64), 0..10), 1..12),
        ends in prop::collection::btree_set(1..12_u64, 0..6),
    ) {
        let last = epochs.len() as u64;
        let changes = changes_of(&epochs);
        let commit = |store: &Store, ends: &BTreeSet<u64>| {
            let mut generation = 1;
            let mut sink = store.opened(generation);
            let mut committed = 0;
            for end in ends.iter().copied().filter(|&end| end < last).chain([last]) {
                for epoch in committed + 1..=last {
                    sink.stage(Epoch(epoch), changes[epoch as usize - 1].clone()).expect("staged");
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
