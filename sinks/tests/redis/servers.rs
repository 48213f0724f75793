//! Servers that fail or cannot be used, and lost requests and answers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use headwater_dataflows::Epoch;
use headwater_sinks::redis::{RedisServer, RedisSinkConfig};
use headwater_sinks::{CommitError, OpenError, Sink};
use redis::cmd;

use crate::store::{Store, event, outcome};
use crate::support::{context, permit};

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
        let mark = |value: &str| {
            cmd("HSET").arg(store.key("user:ann")).arg("event:id").arg(value).exec(&mut store.connection())
        };
        mark("mark").expect("set");
        if retried_through > first {
            sink.stage(Epoch(retried_through), event("bob", 1, 1)).expect("staged");
        }
        sink.commit(permit(retried_through)).expect("found");
        assert_eq!(store.profile("ann")["event:id"], "mark", "it is not written again");
    }
    assert_eq!(store.profile("bob")["epoch"], "3");
    drop(sink);
    assert_eq!(store.sink().open(&context(2)).expect("opened")[0].through, Epoch(3));
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

/// A fault of the next request that calls a script.
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
    fault: Arc<Mutex<Option<Fault>>>,
}

impl Proxy {
    fn start(url: &str) -> Proxy {
        let server = url.trim_start_matches("redis://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let proxy = Proxy { port, fault: Default::default() };
        let fault = Arc::clone(&proxy.fault);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, fault) = (client.expect("a client"), Arc::clone(&fault));
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
fn forward(mut client: TcpStream, mut server: TcpStream, fault: &Mutex<Option<Fault>>) {
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
