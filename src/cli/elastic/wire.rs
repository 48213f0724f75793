//! The messages between the first process of a cluster and the other members, one line of JSON each.
//!
//! ```text
//!   leader, between two runs and during them           member, between two runs
//!     connects ─ hello {pipeline} ────────────────────▶ accepts
//!              ◀──────────────────────────────── ready ─
//!              ─ start {process, workers, members} ───▶ runs; the engine uses the port now
//!              ─ stop ────────────────────────────────▶ the engine stops at a checkpoint
//!              ◀──────────────────────────────── ready ─
//!              ─ start …, or dismiss ─────────────────▶
//! ```
//!
//! A member that is asked to stop says `leaving`, one whose input has ended `done`. A connection that ends otherwise means
//! that its process is lost.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cli::hosts::Placement;

/// The timeout for connecting, for the first message, and for sending.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The maximum length of a message.
const MAX_LEN: u64 = 64 * 1024;

/// The maximum number of connections that have not said hello.
const PENDING: usize = 64;

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
    },
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
    stream: TcpStream,
    messages: Receiver<T>,
    since: Instant,
}

impl<T: DeserializeOwned + Send + 'static> Connection<T> {
    /// Returns a connection over this stream.
    ///
    /// # Errors
    /// If the stream cannot be set up.
    pub fn new(stream: TcpStream) -> io::Result<Connection<T>> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let (sender, messages) = channel();
        let reading = stream.try_clone()?;
        std::thread::Builder::new().name("member".to_owned()).spawn(move || {
            let mut reader = BufReader::new(&reading);
            while let Some(message) = read(&mut reader) {
                // Only the first message has to come in time.
                if sender.send(message).is_err() || reading.set_read_timeout(None).is_err() {
                    break;
                }
            }
        })?;
        Ok(Connection { stream, messages, since: Instant::now() })
    }

    /// Sends a message. If that fails, the connection ends.
    pub fn send(&self, message: &impl Serialize) {
        let line = serde_json::to_string(message).expect("a message can be encoded");
        let mut stream = &self.stream;
        if let Err(error) = stream.write_all(format!("{line}\n").as_bytes()) {
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
        let _ = self.stream.shutdown(Shutdown::Both);
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

/// Connects to a member and says hello. Waits for its answer.
///
/// # Errors
/// If it does not answer, or refuses: the reason.
pub fn greet(member: &str, hello: &FromLeader) -> Result<Connection<FromMember>, String> {
    let addresses = member.to_socket_addrs().map_err(|error| error.to_string())?;
    let mut last = "it has no address".to_owned();
    for address in addresses {
        let stream = match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => stream,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        let connection = Connection::new(stream).map_err(|error| error.to_string())?;
        connection.send(hello);
        return match connection.wait(TIMEOUT) {
            Received::Message(FromMember::Ready) => Ok(connection),
            Received::Message(FromMember::Refused(reason)) => Err(reason),
            _ => Err("it accepts connections and does not answer".to_owned()),
        };
    }
    Err(last)
}

/// The port of this process between two runs, on which the first process connects.
pub struct Door {
    listener: TcpListener,
    pending: Vec<(Connection<FromLeader>, SocketAddr)>,
}

impl Door {
    /// Listens on the address of this process.
    ///
    /// # Errors
    /// If it cannot.
    pub fn open(own: &str) -> io::Result<Door> {
        let listener = TcpListener::bind(own)?;
        listener.set_nonblocking(true)?;
        Ok(Door { listener, pending: Vec::new() })
    }

    /// Returns a connection whose hello is for this pipeline, if there is one, and whether its process has run the pipeline.
    /// It has not been answered.
    pub fn accept(&mut self, pipeline: &str) -> Option<(Connection<FromLeader>, bool)> {
        while let Ok((stream, address)) = self.listener.accept() {
            if self.pending.len() >= PENDING {
                self.pending.remove(0);
            }
            self.pending.extend(Connection::new(stream).ok().map(|connection| (connection, address)));
        }
        for (connection, address) in std::mem::take(&mut self.pending) {
            match connection.receive() {
                Received::Nothing if connection.since.elapsed() < TIMEOUT => {
                    self.pending.push((connection, address));
                }
                Received::Message(FromLeader::Hello { pipeline: other, .. }) if other != pipeline => {
                    let reason = format!("it belongs to the pipeline {pipeline:?}, not {other:?}");
                    tracing::warn!(%address, reason, "refused the first process of another cluster");
                    connection.send(&FromMember::Refused(reason));
                }
                Received::Message(FromLeader::Hello { has_run, .. }) => return Some((connection, has_run)),
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
    use super::*;

    fn free() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("bound").to_string()
    }

    fn accepted(door: &mut Door, pipeline: &str) -> Connection<FromLeader> {
        loop {
            if let Some((connection, _)) = door.accept(pipeline) {
                return connection;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn hello(pipeline: &str) -> FromLeader {
        FromLeader::Hello { pipeline: pipeline.to_owned(), has_run: false }
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
        let leader = std::thread::spawn(move || greet(&address, &hello("fraud")));
        let member = accepted(&mut door, "fraud");
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

    #[test]
    fn another_pipeline_is_refused_with_the_reason() {
        let own = free();
        let mut door = Door::open(&own).expect("listening");
        let leader = std::thread::spawn(move || greet(&own, &hello("orders")).err());
        while !leader.is_finished() {
            assert!(door.accept("fraud").is_none());
            std::thread::sleep(Duration::from_millis(1));
        }
        let reason = leader.join().expect("no panic");
        assert_eq!(reason.as_deref(), Some("it belongs to the pipeline \"fraud\", not \"orders\""));
    }

    #[test]
    fn a_message_has_a_maximum_length() {
        let long = format!("{:?}\n", "x".repeat(MAX_LEN as usize));
        assert_eq!(read::<String>(&mut long.as_bytes()), None);
        assert_eq!(read::<String>(&mut "\"x\"\n".as_bytes()).as_deref(), Some("x"));
        assert_eq!(read::<String>(&mut "\"x\"".as_bytes()), None, "a line that is not complete");
    }
}
