//! A proxy that injects network faults.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// The faults of one direction of a connection. Held data is kept and may be delivered later, even after its sender is
/// gone.
#[derive(Default)]
struct Direction {
    is_held: AtomicBool,
    /// True if data is to be held from the next request on that ends a Kafka transaction.
    is_held_at_end: AtomicBool,
    is_slow: AtomicBool,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    requests: Arc<Direction>,
    responses: Arc<Direction>,
}

#[derive(Default)]
struct State {
    server: Option<SocketAddr>,
    connections: Vec<Connection>,
    is_refusing: bool,
}

/// A proxy in front of a server.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// The API key of Kafka's EndTxn request.
const END_TXN: [u8; 2] = [0, 26];

impl Proxy {
    /// Starts listening; `forward_to` sets the server later.
    pub fn start() -> Proxy {
        Proxy::on(TcpListener::bind("127.0.0.1:0").expect("a free port"))
    }

    /// Like [`Proxy::start`], with a listener that exists already.
    pub fn on(listener: TcpListener) -> Proxy {
        let proxy = Proxy { address: listener.local_addr().expect("bound"), state: Arc::default() };
        let state = Arc::clone(&proxy.state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut state = state.lock().expect("the lock is poisoned");
                // Dropping the connection closes it.
                if let Some(server) = state.server.filter(|_| !state.is_refusing)
                    && let Ok(server) = TcpStream::connect(server)
                {
                    state.connections.push(Connection::new(client, server));
                }
            }
        });
        proxy
    }

    /// Returns the address that the proxy listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the server to forward to.
    pub fn forward_to(&self, server: &str) {
        self.state().server = Some(server.parse().expect("a numeric address"));
    }

    /// Cuts every connection and refuses new ones until `restore`.
    pub fn cut(&self) {
        let mut state = self.state();
        state.is_refusing = true;
        for Connection { client, server, .. } in state.connections.drain(..) {
            // The connection may already be closed.
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        }
    }

    /// Holds the requests of the current connections.
    pub fn hold_requests(&self) {
        self.for_each(|connection| connection.requests.is_held.store(true, Ordering::Relaxed));
    }

    /// Holds the requests of each current connection, starting with its next EndTxn request.
    pub fn hold_end_txn(&self) {
        self.for_each(|connection| connection.requests.is_held_at_end.store(true, Ordering::Relaxed));
    }

    /// Returns true if an EndTxn request is being held.
    pub fn is_holding_end_txn(&self) -> bool {
        self.state().connections.iter().any(|connection| connection.requests.is_held.load(Ordering::Relaxed))
    }

    /// Holds the responses to the current connections.
    pub fn hold_responses(&self) {
        self.for_each(|connection| connection.responses.is_held.store(true, Ordering::Relaxed));
    }

    /// Slows down the current connections in both directions.
    pub fn slow_down(&self) {
        self.for_each(|connection| {
            connection.requests.is_slow.store(true, Ordering::Relaxed);
            connection.responses.is_slow.store(true, Ordering::Relaxed);
        });
    }

    /// Removes all faults and delivers the held data.
    pub fn restore(&self) {
        self.state().is_refusing = false;
        self.for_each(|connection| {
            for direction in [&connection.requests, &connection.responses] {
                for fault in [&direction.is_held, &direction.is_held_at_end, &direction.is_slow] {
                    fault.store(false, Ordering::Relaxed);
                }
            }
        });
    }

    fn for_each(&self, act: impl Fn(&Connection)) {
        self.state().connections.iter().for_each(act);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the lock is poisoned")
    }
}

impl Connection {
    fn new(client: TcpStream, server: TcpStream) -> Connection {
        let both = |stream: &TcpStream| {
            stream.set_nodelay(true).expect("a socket");
            stream.try_clone().expect("a handle")
        };
        let (requests, responses) = (Arc::<Direction>::default(), Arc::<Direction>::default());
        forward(both(&client), both(&server), Arc::clone(&requests));
        forward(both(&server), both(&client), Arc::clone(&responses));
        Connection { client, server, requests, responses }
    }
}

/// Forwards one direction: one thread reads, another one writes unless the data is held.
fn forward(mut from: TcpStream, to: TcpStream, direction: Arc<Direction>) {
    let (sender, receiver) = channel();
    std::thread::spawn(move || write(&receiver, to, &direction));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
}

fn write(chunks: &Receiver<Vec<u8>>, mut to: TcpStream, direction: &Direction) {
    for chunk in chunks {
        if chunk.get(4..6) == Some(&END_TXN) && direction.is_held_at_end.swap(false, Ordering::Relaxed) {
            direction.is_held.store(true, Ordering::Relaxed);
        }
        while direction.is_held.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if direction.is_slow.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if to.write_all(&chunk).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
