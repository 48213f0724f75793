//! A COMMIT that is not answered: the sink must find out what became of it, and an old one must not come true
//! later. Between sink and server stands a proxy that does to the COMMIT what a network may do.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use headwater_dataflows::Epoch;
use headwater_sinks::postgres::PostgresConfig;
use headwater_sinks::{CommitError, Sink};

use support::{Database, alert, context, event, permit};

/// What befalls the next COMMIT.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// It gets through, its answer does not.
    AnswerLost,
    /// It is held back while the sink's end is cut, and delivered later.
    Delayed,
    /// Its answer is lost, and nobody is let through any more.
    ServerLost,
}

#[derive(Default)]
struct State {
    fate: Option<Fate>,
    lost: bool,
    /// The server's end of the connection that was cut, and what has not been delivered to it.
    cut: Option<(TcpStream, Vec<u8>)>,
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
        let here = proxy.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if here.state().lost {
                    continue;
                }
                let server = TcpStream::connect(server).expect("the server");
                let mut from = server.try_clone().expect("a handle");
                let mut to = client.try_clone().expect("a handle");
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let here = here.clone();
                std::thread::spawn(move || here.forward(client, server));
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
            let Some(fate) = state.fate.take_if(|_| is_commit) else {
                drop(state);
                if server.write_all(sent).is_err() {
                    break;
                }
                continue;
            };
            let _ = client.shutdown(Shutdown::Both);
            state.lost = fate == Fate::ServerLost;
            let undelivered = if fate == Fate::Delayed {
                sent.to_vec()
            } else {
                server.write_all(sent).expect("the server takes the COMMIT");
                Vec::new()
            };
            // Held open: the server knows nothing of the cut.
            state.cut = Some((server, undelivered));
            return;
        }
        let _ = server.shutdown(Shutdown::Write);
    }
}

/// A sink behind a proxy, with a round staged, whose COMMIT will have this fate.
fn behind_proxy(database: &Database, fate: Fate) -> (Proxy, impl Sink) {
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
    proxy.state().fate = Some(fate);
    (proxy, sink)
}

#[test]
fn a_commit_whose_answer_is_lost_has_happened_and_the_next_follows_it() {
    let database = Database::create();
    let (proxy, mut sink) = behind_proxy(&database, Fate::AnswerLost);
    sink.commit(permit(2)).expect("it happened");
    assert!(proxy.state().cut.is_some(), "the proxy has seen the COMMIT");
    sink.stage(Epoch(3), event(0, 2, "e")).expect("staged");
    sink.commit(permit(3)).expect("committed");
    assert_eq!(database.rows("SELECT \"offset\" FROM events ORDER BY 1"), ["1", "2"]);
    assert_eq!(database.one("SELECT through FROM headwater_progress"), "3");
}

#[test]
fn a_commit_held_back_by_a_cut_connection_has_failed_and_does_not_happen_when_delivered_later() {
    let database = Database::create();
    let (proxy, mut sink) = behind_proxy(&database, Fate::Delayed);
    let error = sink.commit(permit(2)).expect_err("it has not happened");
    assert!(matches!(error, CommitError::Failed { .. }), "{error}");
    let (mut server, commit) = proxy.state().cut.take().expect("the proxy has seen the COMMIT");
    // Refused or not, nobody is there any more to obey it.
    let _ = server.write_all(&commit);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(database.one("SELECT count(*) FROM events"), "0");
    sink.commit(permit(2)).expect("committed this time");
    assert_eq!(database.one("SELECT count(*) FROM events"), "1");
    assert_eq!(database.one("SELECT through FROM headwater_progress"), "2");
}

#[test]
fn a_commit_that_nobody_can_be_asked_about_is_indeterminate_in_bounded_time() {
    let database = Database::create();
    let (_proxy, mut sink) = behind_proxy(&database, Fate::ServerLost);
    let began = Instant::now();
    let error = sink.commit(permit(2)).expect_err("nobody knows");
    assert!(matches!(error, CommitError::Indeterminate { through: Epoch(2), .. }), "{error}");
    assert!((28..45).contains(&began.elapsed().as_secs()), "after {:?}", began.elapsed());
}
