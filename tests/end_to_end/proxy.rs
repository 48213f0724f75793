//! A proxy that does to connections what a network may do.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What befalls one direction of a connection. What is held is kept and may be delivered later, even if whoever sent
/// it has gone.
#[derive(Default)]
struct Way {
    held: AtomicBool,
    /// To be held from the next request on that ends a Kafka transaction.
    held_at_end: AtomicBool,
    slow: AtomicBool,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    requests: Arc<Way>,
    answers: Arc<Way>,
}

#[derive(Default)]
struct State {
    server: Option<SocketAddr>,
    connections: Vec<Connection>,
    refusing: bool,
}

/// Forwards connections to a server.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// The key of the request that ends a Kafka transaction, in the protocol's table.
const END_TXN: [u8; 2] = [0, 26];

impl Proxy {
    /// Listens; where it forwards to is said later.
    pub fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let proxy = Proxy { address: listener.local_addr().expect("bound"), state: Arc::default() };
        let state = Arc::clone(&proxy.state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut state = state.lock().expect("no holder of the lock panics");
                // A connection that is dropped here is closed.
                if let Some(server) = state.server.filter(|_| !state.refusing)
                    && let Ok(server) = TcpStream::connect(server)
                {
                    state.connections.push(Connection::new(client, server));
                }
            }
        });
        proxy
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says where to forward to.
    pub fn forward_to(&self, server: &str) {
        self.state().server = Some(server.parse().expect("a numeric address"));
    }

    /// Cuts every connection, and lets nobody through until `mend`.
    pub fn cut(&self) {
        let mut state = self.state();
        state.refusing = true;
        for Connection { client, server, .. } in state.connections.drain(..) {
            // It may have been closed already.
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        }
    }

    /// Holds back what the connections of now say.
    pub fn hold_requests(&self) {
        self.each(|connection| connection.requests.held.store(true, Ordering::Relaxed));
    }

    /// Holds back, in each connection of now, what is said from the end of its next Kafka transaction on.
    pub fn hold_at_end_of_transaction(&self) {
        self.each(|connection| connection.requests.held_at_end.store(true, Ordering::Relaxed));
    }

    /// Whether the end of a Kafka transaction is being held back.
    pub fn holds_an_end(&self) -> bool {
        self.state().connections.iter().any(|connection| connection.requests.held.load(Ordering::Relaxed))
    }

    /// Holds back what the connections of now are told.
    pub fn hold_answers(&self) {
        self.each(|connection| connection.answers.held.store(true, Ordering::Relaxed));
    }

    /// Makes the connections of now slow, both ways.
    pub fn slow(&self) {
        self.each(|connection| {
            connection.requests.slow.store(true, Ordering::Relaxed);
            connection.answers.slow.store(true, Ordering::Relaxed);
        });
    }

    /// Everything is well again: what was held back is delivered.
    pub fn mend(&self) {
        self.state().refusing = false;
        self.each(|connection| {
            for way in [&connection.requests, &connection.answers] {
                for fault in [&way.held, &way.held_at_end, &way.slow] {
                    fault.store(false, Ordering::Relaxed);
                }
            }
        });
    }

    fn each(&self, act: impl Fn(&Connection)) {
        self.state().connections.iter().for_each(act);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }
}

impl Connection {
    fn new(client: TcpStream, server: TcpStream) -> Connection {
        let both = |stream: &TcpStream| {
            stream.set_nodelay(true).expect("a socket");
            stream.try_clone().expect("a handle")
        };
        let (requests, answers) = (Arc::<Way>::default(), Arc::<Way>::default());
        forward(both(&client), both(&server), Arc::clone(&requests));
        forward(both(&server), both(&client), Arc::clone(&answers));
        Connection { client, server, requests, answers }
    }
}

/// Forwards one direction: a thread reads whatever comes, another one writes it when it may.
fn forward(mut from: TcpStream, to: TcpStream, way: Arc<Way>) {
    let (sender, receiver) = channel();
    std::thread::spawn(move || write(&receiver, to, &way));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
}

fn write(chunks: &Receiver<Vec<u8>>, mut to: TcpStream, way: &Way) {
    for chunk in chunks {
        if chunk.get(4..6) == Some(&END_TXN) && way.held_at_end.swap(false, Ordering::Relaxed) {
            way.held.store(true, Ordering::Relaxed);
        }
        while way.held.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if way.slow.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if to.write_all(&chunk).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
