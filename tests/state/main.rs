//! The contract of a state store: one suite for every kind.
//!
//! `HEADWATER_TEST_REDIS` is the URL of a durable Redis, and `HEADWATER_TEST_S3` that of an S3 server.

#[cfg(feature = "object-store")]
mod object_store;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use headwater::state::{RedisConfig, StateConfig};
use headwater::state::{StateError, StateStore, open};

/// Returns a pipeline name of this test run, because earlier test runs may have left data.
fn pipeline(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

fn redis() -> StateConfig {
    let url = std::env::var("HEADWATER_TEST_REDIS").expect("HEADWATER_TEST_REDIS names a Redis");
    StateConfig::Redis(RedisConfig::at(url))
}

/// Returns a new store of every kind that is a folder.
fn folders(dir: &Path) -> Vec<StateConfig> {
    vec![
        StateConfig::Fjall(dir.join("fjall")),
        #[cfg(feature = "rocksdb")]
        StateConfig::RocksDb(dir.join("rocksdb")),
    ]
}

fn refusal(outcome: Result<Box<dyn StateStore>, StateError>) -> String {
    match outcome {
        Err(StateError::Refused(reason)) => reason,
        Err(other) => panic!("not a refusal: {other:?}"),
        Ok(_) => panic!("it was opened"),
    }
}

/// Returns a store of every kind that several processes can share, new ones in a directory.
#[cfg_attr(
    not(feature = "object-store"),
    expect(unused_variables, reason = "only object stores may be in a directory")
)]
fn shareable(dir: &Path) -> Vec<StateConfig> {
    vec![
        redis(),
        #[cfg(feature = "object-store")]
        object_store::s3(),
        #[cfg(feature = "object-store")]
        object_store::directory(&dir.join("objects")),
    ]
}

/// Runs a test on a new, empty store of each kind; the test may open it again.
fn on_every_store(name: &str, test: impl Fn(&dyn Fn() -> Box<dyn StateStore>)) {
    let dir = tempfile::tempdir().expect("a directory");
    for config in folders(dir.path()).into_iter().chain(shareable(dir.path())) {
        test(&|| open(&config, &pipeline(name)).expect("it can be opened"));
    }
}

#[test]
fn blobs_exist_until_they_are_deleted() {
    on_every_store("put", |open| {
        let mut store = open();
        assert_eq!(store.get("a/1").expect("an answer"), None);
        store.put("a/1", b"one").expect("put");
        store.put("a/1", b"one").expect("the same, again");
        store.put("a/2", b"").expect("put");
        assert_eq!(store.get("a/1").expect("an answer").as_deref(), Some(&b"one"[..]));
        assert_eq!(store.get("a/2").expect("an answer").as_deref(), Some(&b""[..]));
        store.delete("a/1").expect("deleted");
        store.delete("a/1").expect("it may be gone already");
        assert_eq!(store.get("a/1").expect("an answer"), None);
        store.sync().expect("synced");
        drop(store);
        let mut store = open();
        assert_eq!(store.list("").expect("an answer"), ["a/2"]);
        assert_eq!(store.get("a/2").expect("an answer").as_deref(), Some(&b""[..]));
    });
}

#[test]
fn names_with_a_prefix_are_listed_in_order() {
    on_every_store("list", |open| {
        let mut store = open();
        let names: Vec<_> = (0..2500).map(|n| format!("ab/{n:04}.base")).collect();
        for name in names.iter().rev().map(String::as_str).chain(["a", "ab.x", "ac/1", "b"]) {
            store.put(name, b"x").expect("put");
        }
        assert_eq!(store.list("ab/").expect("an answer"), names);
        assert_eq!(store.list("ac/").expect("an answer"), ["ac/1"]);
        assert!(store.list("ad/").expect("an answer").is_empty());
        assert_eq!(store.list("").expect("an answer").len(), 2504);
    });
}

#[test]
fn several_blobs_are_read_and_deleted_together() {
    on_every_store("several", |open| {
        let mut store = open();
        let names: Vec<_> = (0..100).map(|n| format!("a/1/{n}.delta")).collect();
        for name in &names[1..] {
            store.put(name, name.as_bytes()).expect("put");
        }
        let blobs = store.get_all(&names).expect("answers");
        assert_eq!(blobs[0], None);
        for (name, blob) in names.iter().zip(&blobs).skip(1) {
            assert_eq!(blob.as_deref(), Some(name.as_bytes()));
        }
        store.delete_all(&names[..99]).expect("deleted, and one was missing");
        assert_eq!(store.list("").expect("an answer"), ["a/1/99.delta"]);
    });
}

#[test]
fn large_blobs_round_trip() {
    on_every_store("large", |open| {
        let large: Vec<u8> =
            (0..32u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut store = open();
        for name in ["1", "2", "3"] {
            store.put(name, &large).expect("put");
        }
        store.sync().expect("synced");
        drop(store);
        assert!(
            open().get("2").expect("an answer").is_some_and(|blob| blob == large),
            "{} bytes",
            large.len()
        );
    });
}

#[test]
fn folders_are_exclusive_and_others_divided_by_pipeline() {
    let dir = tempfile::tempdir().expect("a directory");
    for folder in folders(dir.path()) {
        let opened = open(&folder, "a").expect("it can be opened");
        let busy = open(&folder, "a").err().expect("the folder is open").to_string();
        assert!(busy.contains("open the database, which another process has open, in "), "{busy}");
        let closer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(opened);
        });
        open(&folder, "a").expect("it is closed in time");
        closer.join().expect("it does not panic");
    }

    for config in shareable(dir.path()) {
        let [mut one, mut same, mut other] =
            ["one", "one", "one-2"].map(|name| open(&config, &pipeline(name)).expect("open"));
        one.put("a", b"1").expect("put");
        one.sync().expect("synced");
        assert_eq!(same.get("a").expect("an answer").as_deref(), Some(&b"1"[..]), "{config}");
        assert_eq!(other.get("a").expect("an answer"), None, "{config}");
        assert!(other.list("").expect("an answer").is_empty(), "{config}");
    }
}

/// One test for all settings, because two tests would interfere with each other.
#[test]
fn a_redis_that_is_not_durable_is_refused() {
    let service = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services/up"))
        .arg("redis")
        .stderr(Stdio::null())
        .output()
        .expect("it can be started");
    let output = String::from_utf8(service.stdout).expect("UTF-8");
    let exported = |name: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(&format!("export {name}=")));
        line.unwrap_or_else(|| panic!("no {name} in {output}")).to_owned()
    };
    let (url, services) = (exported("HEADWATER_TEST_REDIS"), exported("HEADWATER_SERVICES_DIR"));
    let client = redis::Client::open(&*url).expect("a URL");
    let set = |name: &str, value: &str| {
        let mut connection = client.get_connection().expect("connected");
        redis::cmd("CONFIG").arg("SET").arg(name).arg(value).exec(&mut connection).expect("set");
    };
    let config = StateConfig::Redis(RedisConfig::at(&*url));
    let mut store = open(&config, "kept").expect("it is durable");
    for (name, bad, good) in [
        ("appendonly", "no", "yes"),
        ("appendfsync", "everysec", "always"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
    ] {
        set(name, bad);
        let reason = refusal(open(&config, "kept"));
        assert!(reason.contains(&format!("{name} {bad}")) && reason.contains(good), "{reason}");
        assert!(matches!(store.sync(), Err(StateError::Refused(_))), "an open store detects it");
        set(name, good);
    }
    store.sync().expect("the settings are restored");

    // A lost connection is made again, and an unreachable server is reported.
    let mut connection = client.get_connection().expect("connected");
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").exec(&mut connection).expect("killed");
    store.put("a", b"1").expect("put over a new connection");
    let down = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services/down");
    assert!(Command::new(down).arg(&services).stderr(Stdio::null()).status().expect("started").success());
    assert!(matches!(store.put("b", b"2"), Err(StateError::Unavailable { .. })));
}

const CHILD: &str = "HEADWATER_TEST_STATE_CHILD";

/// The body of a process that is killed; it does nothing unless the folder is given.
#[test]
fn child_that_stores_blobs_until_killed() {
    let Ok(argument) = std::env::var(CHILD) else { return };
    let (dir, kind) = argument.rsplit_once(' ').expect("a folder and a kind");
    let kind = kind.parse::<usize>().expect("a number");
    let mut store = open(&folders(Path::new(dir))[kind], "child").expect("it can be opened");
    for n in 0.. {
        let blob = format!("{n}").repeat(10_000);
        store.put(&format!("{n:06}"), blob.as_bytes()).expect("put");
        store.sync().expect("synced");
        println!("synced {n}");
    }
}

#[test]
fn synced_blobs_survive_a_kill() {
    use std::io::BufRead;
    let dir = tempfile::tempdir().expect("a directory");
    for (kind, folder) in folders(dir.path()).iter().enumerate() {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "child_that_stores_blobs_until_killed", "--nocapture"])
            .env(CHILD, format!("{} {kind}", dir.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let lines = std::io::BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let synced =
            lines.filter(|line| line.as_ref().is_ok_and(|line| line.starts_with("synced"))).take(50).count();
        child.kill().expect("killed");
        child.wait().expect("gone");
        assert_eq!(synced, 50, "the child ended too early");
        let mut store = open(folder, "child").expect("it can be opened");
        for n in 0..synced {
            let blob = store.get(&format!("{n:06}")).expect("an answer");
            assert_eq!(blob, Some(format!("{n}").repeat(10_000).into_bytes()), "{n}");
        }
    }
}
