//! A COMMIT without a reply: the sink must determine its outcome, and a delayed COMMIT must not take effect later. A
//! proxy between sink and server simulates the network failures.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use headwater_sinks::postgres::PostgresConfig;
use headwater_sinks::{CommitError, Sink};

use support::{Database, alert, context, event, permit};

/// The failure of the next COMMIT.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Failure {
    /// The server receives it, but the reply is lost.
    ReplyLost,
    /// It is delayed until the connection of the sink is closed, and delivered later.
    Delayed,
    /// The reply is lost, and new connections fail.
    ServerLost,
}

#[derive(Default)]
struct State {
    failure: Option<Failure>,
    lost: bool,
    /// The server side of the closed connection, and the bytes that have not been delivered.
    severed: Option<(TcpStream, Vec<u8>)>,
}

#[derive(Clone)]
struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    fn start(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let proxy = Proxy { address, state: Arc::default() };
        let acceptor = proxy.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if acceptor.state().lost {
                    continue;
                }
                let server = TcpStream::connect(server).expect("the server");
                let mut from = server.try_clone().expect("a handle");
                let mut to = client.try_clone().expect("a handle");
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let forwarder = acceptor.clone();
                std::thread::spawn(move || forwarder.forward(client, server));
            }
        });
        proxy
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }

    fn forward(&self, mut client: TcpStream, mut server: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = client.read(&mut buffer) {
            let sent = &buffer[..length];
            let mut state = self.state();
            let is_commit = sent.starts_with(b"Q") && sent.ends_with(b"COMMIT\0");
            let Some(failure) = state.failure.take_if(|_| is_commit) else {
                drop(state);
                if server.write_all(sent).is_err() {
                    break;
                }
                continue;
            };
            let _ = client.shutdown(Shutdown::Both);
            state.lost = failure == Failure::ServerLost;
            let undelivered = if failure == Failure::Delayed {
                sent.to_vec()
            } else {
                server.write_all(sent).expect("the server receives the COMMIT");
                Vec::new()
            };
            // Kept open, so that the server does not notice the failure.
            state.severed = Some((server, undelivered));
            return;
        }
        let _ = server.shutdown(Shutdown::Write);
    }
}

/// Returns a sink behind a proxy, with a staged round whose COMMIT will have this failure.
fn behind_proxy(database: &Database, failure: Failure) -> (Proxy, impl Sink) {
    let url = database.url();
    let (_, host) = url.split_once('@').expect("user@host");
    let (server, name) = host.split_once('/').expect("host/database");
    let proxy = Proxy::start(server.parse().expect("a numeric address"));
    let url = format!("postgres://headwater@{}/{name}", proxy.address);
    let mut sink = PostgresConfig { url: url.into(), ..database.config() }.build();
    sink.open(&context(1)).expect("opened");
    sink.commit(permit(1)).expect("committed");
    sink.stage(Epoch(2), event(0, 1, "e")).expect("staged");
    sink.stage(Epoch(2), alert("a", "raised")).expect("staged");
    proxy.state().failure = Some(failure);
    (proxy, sink)
}

#[test]
fn a_commit_with_a_lost_reply_succeeds() {
    let database = Database::create();
    let (proxy, mut sink) = behind_proxy(&database, Failure::ReplyLost);
    sink.commit(permit(2)).expect("it is committed");
    assert!(proxy.state().severed.is_some(), "the proxy has seen the COMMIT");
    sink.stage(Epoch(3), event(0, 2, "e")).expect("staged");
    sink.commit(permit(3)).expect("committed");
    assert_eq!(database.rows("SELECT \"offset\" FROM events ORDER BY 1"), ["1", "2"]);
    assert_eq!(database.one("SELECT through FROM headwater_progress"), "3");
}

#[test]
fn a_delayed_commit_fails_and_has_no_effect_when_delivered() {
    let database = Database::create();
    let (proxy, mut sink) = behind_proxy(&database, Failure::Delayed);
    let error = sink.commit(permit(2)).expect_err("it is not committed");
    assert!(matches!(error, CommitError::Failed { .. }), "{error}");
    let (mut server, commit) = proxy.state().severed.take().expect("the proxy has seen the COMMIT");
    // The write may fail or not: the backend has been terminated.
    let _ = server.write_all(&commit);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(database.one("SELECT count(*) FROM events"), "0");
    sink.commit(permit(2)).expect("committed this time");
    assert_eq!(database.one("SELECT count(*) FROM events"), "1");
    assert_eq!(database.one("SELECT through FROM headwater_progress"), "2");
}

#[test]
fn a_commit_is_indeterminate_in_bounded_time_without_a_server() {
    let database = Database::create();
    let (_proxy, mut sink) = behind_proxy(&database, Failure::ServerLost);
    let started = Instant::now();
    let error = sink.commit(permit(2)).expect_err("the outcome is unknown");
    assert!(matches!(error, CommitError::Indeterminate { through: Epoch(2), .. }), "{error}");
    assert!((28..45).contains(&started.elapsed().as_secs()), "after {:?}", started.elapsed());
}
