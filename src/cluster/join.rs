//! The threads by which processes join: each process connects to those before it and accepts those after it. Strangers at
//! the port are refused, each reason once a minute, and end nothing.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::handshake::{Handshake, HandshakeError};
use super::identity::Identity;
use super::link::{Link, LinkReader};
use super::members::{Members, Stage};
use super::opening::{Accepted, Halves, open_from, open_to};

/// The longest time for a connection to be made and identified.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The time until the next attempt to connect.
const RETRY: Duration = Duration::from_millis(100);

/// The same in the first seconds, when all processes start.
const EARLY_RETRY: Duration = Duration::from_millis(10);

/// The time for which attempts are early.
const EARLY: Duration = Duration::from_secs(3);

/// The time between two looks for new connections.
const POLL: Duration = Duration::from_millis(10);

/// The greatest number of connections that have not identified themselves yet. Beyond it, the oldest is closed.
const PENDING: usize = 64;

/// The time after which the same reason is logged again.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// The greatest number of reasons that are remembered.
const REASONS: usize = 256;

/// The first byte of the handshake without TLS.
const PLAIN_BYTE: u8 = b'h';

/// Connects to a process until it has joined, and again if it is lost before the run.
pub fn connect_to(members: &Arc<Members>, process: usize) {
    let address = members.address(process);
    let since = Instant::now();
    let mut log = ReasonLog::default();
    while members.wants(process) {
        let error = match try_connect(members, process, address) {
            Ok((link, reader)) => {
                members.add(link, reader);
                continue;
            }
            Err(error) => error,
        };
        let reason = error.to_string();
        if log.is_new(None, &reason) {
            match error {
                HandshakeError::Connection(_) => {
                    tracing::info!(process, address, reason, "waiting for a process of the cluster");
                }
                HandshakeError::RefusedByPeer(_) => {
                    tracing::warn!(process, address, reason, "a process of the cluster refused this process");
                }
                HandshakeError::Refused(_) => {
                    tracing::warn!(process, address, reason, "refused a process of the cluster");
                }
            }
        }
        members.missing(process, reason);
        thread::sleep(if since.elapsed() < EARLY { EARLY_RETRY } else { RETRY });
    }
}

fn try_connect(
    members: &Members,
    process: usize,
    address: &str,
) -> Result<(Arc<Link>, LinkReader), HandshakeError> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for at in address.to_socket_addrs()? {
        let until = Instant::now() + TIMEOUT;
        match TcpStream::connect_timeout(&at, TIMEOUT) {
            Ok(socket) => return identify(members, socket, process, until),
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

/// Performs the handshake of the process that connects.
fn identify(
    members: &Members,
    socket: TcpStream,
    process: usize,
    until: Instant,
) -> Result<(Arc<Link>, LinkReader), HandshakeError> {
    let handle = socket.try_clone()?;
    let halves = open_to(socket, members.address(process), members.settings.tls.as_deref(), until)?;
    let admit = |other: &Identity| {
        if other.process != process {
            return Err(format!(
                "process {} answers at the address of process {process}: correct the host file",
                other.process
            ));
        }
        members.admit(other)
    };
    join(members, handle, halves, until, |handshake, members| {
        handshake.connect(&members.own, members.settings.config.secret.as_ref(), admit)
    })
}

/// Performs the handshake of the process that accepts.
fn accept(
    members: &Members,
    socket: TcpStream,
    until: Instant,
) -> Result<(Arc<Link>, LinkReader), HandshakeError> {
    let own = members.own.process;
    let handle = socket.try_clone()?;
    let name = format!("process {own}");
    let halves = match open_from(socket, (&name, PLAIN_BYTE), members.settings.tls.as_deref(), TIMEOUT)? {
        Accepted::Open(halves) => halves,
        Accepted::Plain((mut read, mut write), reason) => {
            return Handshake { read: &mut read, write: &mut write, until }.refuse(reason);
        }
    };
    let admit = |other: &Identity| {
        if other.process <= own {
            return Err(format!(
                "process {} is not expected to connect to process {own}: correct the host file, or -p",
                other.process
            ));
        }
        members.admit(other)
    };
    join(members, handle, halves, until, |handshake, members| {
        handshake.accept(&members.own, members.settings.config.secret.as_ref(), admit)
    })
}

fn join(
    members: &Members,
    socket: TcpStream,
    (mut read, mut write): Halves,
    until: Instant,
    handshake: impl FnOnce(&mut Handshake<'_>, &Members) -> Result<Identity, HandshakeError>,
) -> Result<(Arc<Link>, LinkReader), HandshakeError> {
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    let other = handshake(&mut Handshake { read: &mut read, write: &mut write, until }, members)?;
    let timeout = members.settings.config.heartbeat_timeout;
    Ok(Link::new(other.process, socket, (read, write), timeout)?)
}

/// Starts the thread that accepts processes until the run ends. It goes on during the run, to say to others why they cannot
/// join.
///
/// # Errors
/// If the address cannot be listened on.
pub fn listen(members: &Arc<Members>) -> io::Result<JoinHandle<()>> {
    let listener = TcpListener::bind(members.address(members.own.process))?;
    listener.set_nonblocking(true)?;
    let members = Arc::clone(members);
    thread::Builder::new().name("cluster:accept".to_owned()).spawn(move || accept_all(&members, &listener))
}

fn accept_all(members: &Arc<Members>, listener: &TcpListener) {
    let log = Arc::<Mutex<ReasonLog>>::default();
    let mut pending: Vec<(JoinHandle<()>, TcpStream)> = Vec::new();
    while members.stage() != Stage::Ended {
        pending.retain(|(thread, _)| !thread.is_finished());
        let Ok((socket, address)) = listener.accept() else {
            thread::sleep(POLL);
            continue;
        };
        if pending.len() >= PENDING {
            // Its thread ends with an error.
            let _ = pending.remove(0).1.shutdown(std::net::Shutdown::Both);
        }
        let (members, log) = (Arc::clone(members), Arc::clone(&log));
        let spawned = socket.set_nonblocking(false).and_then(|()| {
            let handle = socket.try_clone()?;
            let thread = thread::Builder::new().name("cluster:hello".to_owned());
            Ok((thread.spawn(move || accept_one(&members, socket, address, &log))?, handle))
        });
        match spawned {
            Ok(spawned) => pending.push(spawned),
            Err(error) => {
                tracing::warn!(%address, %error, "cannot accept a connection to the cluster's port")
            }
        }
    }
}

fn accept_one(members: &Arc<Members>, socket: TcpStream, address: SocketAddr, log: &Mutex<ReasonLog>) {
    let reason = match accept(members, socket, Instant::now() + TIMEOUT) {
        Ok((link, reader)) => {
            members.add(link, reader);
            return;
        }
        Err(HandshakeError::Refused(reason)) => reason,
        Err(HandshakeError::RefusedByPeer(reason)) => format!("it refused this process: {reason}"),
        Err(HandshakeError::Connection(error)) => {
            format!("it did not identify itself in {TIMEOUT:?}: {error}")
        }
    };
    let mut log = log.lock().expect("no thread panics while it holds the lock");
    if log.is_new(Some(address.ip()), &reason) {
        tracing::warn!(%address, reason, "refused a connection to the cluster's port");
    }
}

/// The reasons that were logged, each with the host that it was for.
#[derive(Default)]
pub struct ReasonLog(HashMap<(Option<IpAddr>, String), Instant>);

impl ReasonLog {
    /// Returns true if a reason is to be logged now.
    pub fn is_new(&mut self, host: Option<IpAddr>, reason: &str) -> bool {
        if self.0.len() >= REASONS {
            self.0.clear();
        }
        let now = Instant::now();
        let key = (host, reason.to_owned());
        let is_new = self.0.get(&key).is_none_or(|last| now.duration_since(*last) >= LOG_AGAIN);
        if is_new {
            self.0.insert(key, now);
        }
        is_new
    }
}
