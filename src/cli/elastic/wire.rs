//! The messages between the first process of a cluster and the other members, one line of JSON each.
//!
//! ```text
//!   leader, between two runs and during them           member, between two runs
//!     connects ─ hello {pipeline, nonce} ─────────────▶ accepts
//!              ◀──────────────── challenge {nonce, proof} ─
//!              ─ proof ───────────────────────────────▶
//!              ◀──────────────────────────────── ready ─
//!              ─ start {process, workers, members} ───▶ runs; the engine uses the port now
//!              ─ stop ────────────────────────────────▶ the engine stops at a checkpoint
//!              ◀──────────────────────────────── ready ─
//!              ─ start …, or dismiss ─────────────────▶
//! ```
//!
//! A member that is asked to stop says `leaving`, one whose input has ended `done`. A connection that ends otherwise means
//! that its process is lost. Both ends prove that they know the secret of the cluster, by an HMAC over both nonces and, with
//! `cluster.tls`, over what only the two ends of the session know.

use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use headwater_sinks::Secret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cli::hosts::Placement;
use crate::cluster::proof::{Nonces, nonce};
use crate::cluster::{
    Accepted, Halves, HandshakeError, ReasonLog, TlsIdentity, WriteHalf, open_from, open_to, printable,
};

/// The timeout for connecting, for the first message, and for sending.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The maximum length of a message.
const MAX_LEN: u64 = 64 * 1024;

/// The maximum number of connections that have not said hello.
const PENDING: usize = 64;

/// The first byte of a message without TLS.
const PLAIN_BYTE: u8 = b'{';

/// A message from the first process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromLeader {
    /// The first message of a connection.
    Hello {
        /// The name of the pipeline.
        pipeline: String,
        /// True if the first process has already run the pipeline.
        has_run: bool,
        /// A nonce.
        nonce: String,
    },
    /// The proof that the first process knows the secret.
    Proof(String),
    /// Start the engine.
    Start(Placement),
    /// Stop the engine, to start it again.
    Stop,
    /// End the process: the input has ended.
    Done,
    /// End the process: it is no longer a member.
    Dismiss,
}

/// A message from another member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromMember {
    /// The answer to a hello.
    Challenge {
        /// A nonce.
        nonce: String,
        /// The proof that the member knows the secret.
        proof: String,
    },
    /// The engine does not run and can be started.
    Ready,
    /// The process was asked to stop.
    Leaving,
    /// The engine has ended with the input.
    Done,
    /// The process is no member of this cluster.
    Refused(String),
}

/// The next item of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<T> {
    /// A message.
    Message(T),
    /// Nothing new.
    Nothing,
    /// The connection has ended.
    Closed,
}

/// A connection, whose messages a thread of its own reads. It is closed when it is dropped.
pub struct Connection<T> {
    socket: TcpStream,
    write: Mutex<WriteHalf>,
    /// The bytes that only the two ends of a session of TLS know, in hexadecimal digits.
    session: String,
    messages: Receiver<T>,
    since: Instant,
}

impl<T: DeserializeOwned + Send + 'static> Connection<T> {
    /// Returns a connection over the two halves of this socket.
    ///
    /// # Errors
    /// If the socket cannot be set up.
    fn new(socket: TcpStream, (read_half, write): Halves) -> io::Result<Connection<T>> {
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let session = crate::lists::hex(&read_half.binding()?);
        let (sender, messages) = channel();
        let handle = socket.try_clone()?;
        thread::Builder::new().name("member".to_owned()).spawn(move || {
            let mut reader = BufReader::new(read_half);
            while let Some(message) = read(&mut reader) {
                // Only the first message has to come in time.
                if sender.send(message).is_err() || handle.set_read_timeout(None).is_err() {
                    break;
                }
            }
        })?;
        Ok(Connection { socket, write: Mutex::new(write), session, messages, since: Instant::now() })
    }

    /// Sends a message. If that fails, the connection ends.
    pub fn send(&self, message: &impl Serialize) {
        let line = serde_json::to_string(message).expect("a message can be encoded") + "\n";
        let mut write = self.write.lock().expect("no thread panics while it holds the lock");
        if let Err(error) = write.write(line.as_bytes(), &[]) {
            tracing::debug!(%error, "cannot send to a member of the cluster");
            self.close();
        }
    }

    /// Returns the next message, if there is one.
    pub fn receive(&self) -> Received<T> {
        match self.messages.try_recv() {
            Ok(message) => Received::Message(message),
            Err(TryRecvError::Empty) => Received::Nothing,
            Err(TryRecvError::Disconnected) => Received::Closed,
        }
    }

    /// Waits for the next message, up to this time.
    pub fn wait(&self, time: Duration) -> Received<T> {
        match self.messages.recv_timeout(time) {
            Ok(message) => Received::Message(message),
            Err(RecvTimeoutError::Timeout) => Received::Nothing,
            Err(RecvTimeoutError::Disconnected) => Received::Closed,
        }
    }
}

impl<T> Connection<T> {
    fn close(&self) {
        // An error means that it is closed.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl<T> Drop for Connection<T> {
    fn drop(&mut self) {
        self.close();
    }
}

/// Reads a message; None at the end of the stream, or if it is none.
fn read<T: DeserializeOwned>(reader: &mut impl BufRead) -> Option<T> {
    let mut line = Vec::new();
    reader.take(MAX_LEN).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
}

/// The roles in proofs.
const LEADER: &str = "first process";
const MEMBER: &str = "member";

/// The reason of a refusal.
const WRONG_SECRET: &str = "the two processes have different secrets: set the same `cluster.secret_file` in all processes of the cluster";

/// The part of a cluster's configuration that its processes share, and prove to share.
#[derive(Clone)]
pub struct Shared {
    /// The name of the pipeline.
    pub pipeline: String,
    /// The secret; None if all addresses are of this machine.
    pub secret: Option<Secret>,
    /// The certificates of this process; None if connections are not encrypted.
    pub tls: Option<Arc<TlsIdentity>>,
}

impl Shared {
    /// Returns the text that both ends prove in a session.
    fn claim(&self, session: &str) -> String {
        format!("{session} {}", self.pipeline)
    }

    fn prove(&self, nonces: &Nonces, role: &str, session: &str) -> String {
        nonces.prove(role, &self.claim(session), self.secret.as_ref())
    }

    fn is_proved(&self, nonces: &Nonces, role: &str, session: &str, proof: &str) -> bool {
        nonces.is_proved(role, &self.claim(session), self.secret.as_ref(), proof)
    }
}

/// Connects to a member, says hello and proves to know the secret. Waits until the member is ready.
///
/// # Errors
/// If it does not answer, does not know the secret, or refuses: the reason.
pub fn greet(member: &str, shared: &Shared, has_run: bool) -> Result<Connection<FromMember>, String> {
    let addresses = member.to_socket_addrs().map_err(|error| error.to_string())?;
    let mut last = "it has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(socket) => {
                let connection = connect(socket, member, shared).map_err(|error| error.to_string())?;
                return introduce(connection, shared, has_run);
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Opens a connection that was made to a member.
fn connect(
    socket: TcpStream,
    member: &str,
    shared: &Shared,
) -> Result<Connection<FromMember>, HandshakeError> {
    let handle = socket.try_clone()?;
    let halves = open_to(socket, member, shared.tls.as_deref(), Instant::now() + TIMEOUT)?;
    Ok(Connection::new(handle, halves)?)
}

/// Says hello over a connection, and proves to know the secret.
fn introduce(
    connection: Connection<FromMember>,
    shared: &Shared,
    has_run: bool,
) -> Result<Connection<FromMember>, String> {
    let silent = || "it accepts connections and does not answer".to_owned();
    let connects = nonce().map_err(|error| error.to_string())?;
    let pipeline = shared.pipeline.clone();
    connection.send(&FromLeader::Hello { pipeline, has_run, nonce: connects.clone() });
    match connection.wait(TIMEOUT) {
        Received::Message(FromMember::Challenge { nonce: accepts, proof }) => {
            let nonces = Nonces { connects, accepts };
            if !shared.is_proved(&nonces, MEMBER, &connection.session, &proof) {
                return Err(WRONG_SECRET.to_owned());
            }
            connection.send(&FromLeader::Proof(shared.prove(&nonces, LEADER, &connection.session)));
        }
        Received::Message(FromMember::Refused(reason)) => return Err(printable(&reason)),
        _ => return Err(silent()),
    }
    match connection.wait(TIMEOUT) {
        Received::Message(FromMember::Ready) => Ok(connection),
        Received::Message(FromMember::Refused(reason)) => Err(printable(&reason)),
        _ => Err(silent()),
    }
}

/// The port of this process between two runs, on which the first process connects.
pub struct Door {
    listener: TcpListener,
    /// The threads that open connections, each with its socket.
    opening: Vec<(JoinHandle<()>, TcpStream)>,
    /// Open connections.
    opened: Receiver<(SocketAddr, Result<Connection<FromLeader>, HandshakeError>)>,
    open: Sender<(SocketAddr, Result<Connection<FromLeader>, HandshakeError>)>,
    pending: Vec<Pending>,
    refusals: ReasonLog,
}

/// A connection that has not proved to come from the first process.
struct Pending {
    connection: Connection<FromLeader>,
    address: SocketAddr,
    /// The nonces, and whether its process has run the pipeline, once it has said hello.
    challenged: Option<(Nonces, bool)>,
}

/// Opens a connection that was accepted.
fn open(socket: TcpStream, tls: Option<&TlsIdentity>) -> Result<Connection<FromLeader>, HandshakeError> {
    let handle = socket.try_clone()?;
    match open_from(socket, ("this process", PLAIN_BYTE), tls, TIMEOUT)? {
        Accepted::Open(halves) => Ok(Connection::new(handle, halves)?),
        Accepted::Plain(halves, reason) => {
            Connection::<FromLeader>::new(handle, halves)?.send(&FromMember::Refused(reason.clone()));
            Err(HandshakeError::Refused(reason))
        }
    }
}

impl Door {
    /// Listens on the address of this process.
    ///
    /// # Errors
    /// If it cannot.
    pub fn open(own: &str) -> io::Result<Door> {
        let listener = TcpListener::bind(own)?;
        listener.set_nonblocking(true)?;
        let (open, opened) = channel();
        let (opening, pending, refusals) = (Vec::new(), Vec::new(), ReasonLog::default());
        Ok(Door { listener, opening, opened, open, pending, refusals })
    }

    /// Opens new connections on threads of their own, because the other end may be silent.
    fn open_new(&mut self, shared: &Shared) {
        self.opening.retain(|(thread, _)| !thread.is_finished());
        while let Ok((socket, address)) = self.listener.accept() {
            if self.opening.len() >= PENDING {
                // Its thread ends with an error.
                let _ = self.opening.remove(0).1.shutdown(Shutdown::Both);
            }
            let (open_sender, tls) = (self.open.clone(), shared.tls.clone());
            let spawned = socket.set_nonblocking(false).and_then(|()| {
                let handle = socket.try_clone()?;
                let thread = thread::Builder::new().name("member:open".to_owned());
                // The door may be closed.
                let thread = thread.spawn(move || {
                    drop(open_sender.send((address, open(socket, tls.as_deref()))));
                })?;
                Ok((thread, handle))
            });
            match spawned {
                Ok(opening) => self.opening.push(opening),
                Err(error) => {
                    tracing::warn!(%address, %error, "cannot accept a connection to the cluster's port")
                }
            }
        }
    }

    /// Logs the reason of a refusal, unless it was logged just before.
    fn refuse(&mut self, address: SocketAddr, reason: &str) {
        let host: IpAddr = address.ip();
        if self.refusals.is_new(Some(host), reason) {
            tracing::warn!(%address, reason, "refused a connection to the cluster's port");
        }
    }

    /// Returns a connection whose process is of this pipeline and knows the secret, if there is one, and whether it has run
    /// the pipeline. It waits for an answer.
    pub fn accept(&mut self, shared: &Shared) -> Option<(Connection<FromLeader>, bool)> {
        self.open_new(shared);
        while let Ok((address, opened)) = self.opened.try_recv() {
            match opened {
                Ok(connection) => {
                    if self.pending.len() >= PENDING {
                        self.pending.remove(0);
                    }
                    self.pending.push(Pending { connection, address, challenged: None });
                }
                Err(HandshakeError::Connection(error)) => {
                    tracing::debug!(%address, %error, "a connection to the cluster's port has ended");
                }
                Err(refused) => self.refuse(address, &refused.to_string()),
            }
        }
        for pending in std::mem::take(&mut self.pending) {
            let Pending { connection, address, challenged } = pending;
            match (connection.receive(), challenged) {
                (Received::Nothing, challenged) if connection.since.elapsed() < TIMEOUT => {
                    self.pending.push(Pending { connection, address, challenged });
                }
                (Received::Message(FromLeader::Hello { pipeline, .. }), None)
                    if pipeline != shared.pipeline =>
                {
                    let reason =
                        format!("it belongs to the pipeline {:?}, not {pipeline:?}", shared.pipeline);
                    self.refuse(address, &reason);
                    connection.send(&FromMember::Refused(reason));
                }
                (Received::Message(FromLeader::Hello { has_run, nonce: connects, .. }), None) => {
                    let Ok(accepts) = nonce() else { continue };
                    let nonces = Nonces { connects, accepts: accepts.clone() };
                    let proof = shared.prove(&nonces, MEMBER, &connection.session);
                    connection.send(&FromMember::Challenge { nonce: accepts, proof });
                    let challenged = Some((nonces, has_run));
                    self.pending.push(Pending { connection, address, challenged });
                }
                (Received::Message(FromLeader::Proof(proof)), Some((nonces, has_run))) => {
                    if shared.is_proved(&nonces, LEADER, &connection.session, &proof) {
                        return Some((connection, has_run));
                    }
                    self.refuse(address, WRONG_SECRET);
                    connection.send(&FromMember::Refused(WRONG_SECRET.to_owned()));
                }
                // A process of the cluster that still tries to join a run that has ended is one of them.
                _ => {
                    tracing::debug!(%address, "closed a connection that does not come from the first process")
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn free() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("bound").to_string()
    }

    fn accepted(door: &mut Door, shared: &Shared) -> Connection<FromLeader> {
        loop {
            if let Some((connection, _)) = door.accept(shared) {
                return connection;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn shared(pipeline: &str, secret: &str) -> Shared {
        Shared { pipeline: pipeline.to_owned(), secret: Some(Secret::from(secret)), tls: None }
    }

    #[test]
    fn messages_arrive_despite_foreign_connections() {
        let own = free();
        let mut door = Door::open(&own).expect("listening");
        let foreign: Vec<_> = ["", "GET / HTTP/1.1\r\n\r\n", "\"ready\"\n", "hw-join1\0\0\0\u{1}", "{}\n"]
            .iter()
            .map(|text| {
                let mut stream = TcpStream::connect(&own).expect("connected");
                stream.write_all(text.as_bytes()).expect("sent");
                stream
            })
            .collect();
        let address = own.clone();
        let leader = std::thread::spawn(move || greet(&address, &shared("fraud", "a"), false));
        let member = accepted(&mut door, &shared("fraud", "a"));
        member.send(&FromMember::Ready);
        let leader = leader.join().expect("no panic").expect("answered");
        let placement = Placement { process: 1, workers: 2, members: vec![own.clone(), own] };
        leader.send(&FromLeader::Start(placement.clone()));
        assert_eq!(member.wait(TIMEOUT), Received::Message(FromLeader::Start(placement)));
        assert_eq!(member.receive(), Received::Nothing);
        drop(leader);
        assert_eq!(member.wait(TIMEOUT), Received::Closed);
        drop(foreign);
    }

    /// Returns the reason why a member refuses a first process.
    fn refusal(leader: Shared, member: &Shared) -> Option<String> {
        let own = free();
        let mut door = Door::open(&own).expect("listening");
        let leader = std::thread::spawn(move || greet(&own, &leader, false).err());
        while !leader.is_finished() {
            assert!(door.accept(member).is_none());
            std::thread::sleep(Duration::from_millis(1));
        }
        leader.join().expect("no panic")
    }

    #[test]
    fn another_pipeline_or_secret_is_refused_with_the_reason() {
        assert_eq!(
            refusal(shared("orders", "a"), &shared("fraud", "a")).as_deref(),
            Some("it belongs to the pipeline \"fraud\", not \"orders\"")
        );
        let none = Shared { secret: None, ..shared("fraud", "a") };
        for (leader, member) in [
            (shared("fraud", "a"), shared("fraud", "b")),
            (none.clone(), shared("fraud", "b")),
            (shared("fraud", "a"), none),
        ] {
            assert_eq!(refusal(leader, &member).as_deref(), Some(WRONG_SECRET));
        }
    }

    /// A process without the secret that pretends to have found the member's proof right.
    #[test]
    fn only_a_process_that_knows_the_secret_is_accepted() {
        let own = free();
        let mut door = Door::open(&own).expect("listening");
        let stream = TcpStream::connect(&own).expect("connected");
        let thief = connect(stream, &own, &shared("fraud", "a")).expect("connected");
        let hello = FromLeader::Hello { pipeline: "fraud".into(), has_run: true, nonce: "n".into() };
        thief.send(&hello);
        let member = shared("fraud", "a");
        let mut answer = || loop {
            assert!(door.accept(&member).is_none());
            if let Received::Message(message) = thief.wait(Duration::from_millis(1)) {
                return message;
            }
        };
        let FromMember::Challenge { proof, .. } = answer() else { panic!("a challenge") };
        // The member's own proof is not that of the first process.
        thief.send(&FromLeader::Proof(proof));
        assert_eq!(answer(), FromMember::Refused(WRONG_SECRET.to_owned()));
    }

    #[test]
    fn a_message_has_a_maximum_length() {
        let long = format!("{:?}\n", "x".repeat(MAX_LEN as usize));
        assert_eq!(read::<String>(&mut long.as_bytes()), None);
        assert_eq!(read::<String>(&mut "\"x\"\n".as_bytes()).as_deref(), Some("x"));
        assert_eq!(read::<String>(&mut "\"x\"".as_bytes()), None, "a line that is not complete");
    }
}
